"""Which tensors of a checkpoint have elements that are not finite: NaN and the infinities."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from torchzip.checkpoint.lazy import Checkpoint
from torchzip.checkpoint.lazy_tensor import LazyTensor, storages_of
from torchzip.dtypes import DTYPES
from torchzip.lazy import reduce
from torchzip.tensors.specs import layout
from torchzip.tools.elements import Work


class OddValues(NamedTuple):
    """A tensor with elements that are NaN or infinite, and how many are."""

    name: str
    nans: int
    infinities: int


def odd_values(checkpoint: Checkpoint) -> tuple[OddValues, ...]:
    """Return the dense floating and complex tensors that have some; all of them are read.

    Of a tensor with several names the first counts.

    Raises
    ------
    TorchZipError, OSError
        If the bytes are damaged, as far as that shows, or tensors overlap too much.
    """
    tensors = {name: held for name, held in checkpoint.items() if isinstance(held, LazyTensor)}
    storages = {id(each): each for held in tensors.values() for each in storages_of(held)}
    work = Work(sum(storage.nbytes for storage in storages.values()))
    seen: set[Any] = set()
    found = []
    for name, tensor in tensors.items():
        spec, row = tensor.spec, DTYPES[tensor.torch_dtype]
        key = layout(spec)
        if row.kind not in ("float", "complex") or not row.has_numbers or key in seen:
            continue
        seen.add(key)
        work.charge(spec, spec.numel * row.itemsize, checkpoint.path)
        nans, infinities = reduce(_count, tensor, initial=(0, 0))
        if nans or infinities:
            found.append(OddValues(name, nans, infinities))
    return tuple(found)


def _count(before: tuple[int, int], block: Any) -> tuple[int, int]:
    if np.isfinite(block).all():
        return before
    nans = np.isnan(block)
    infinite = int(np.count_nonzero(np.isinf(block) & ~nans))
    return before[0] + int(np.count_nonzero(nans)), before[1] + infinite
