"""Which storages of a checkpoint are cast on the way to a zip, and to what."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from torchzip.checkpoint.lazy_tensor import LazyTensor
from torchzip.checkpoint.walk import reach
from torchzip.tensors.casts import CastStorage
from torchzip.tensors.computed import unrounded
from torchzip.tensors.packing import ElementStorage, elements_of
from torchzip.tensors.persistent_ids import BareStorage
from torchzip.tensors.specs import TensorSpec, contiguous_stride, layout
from torchzip.tensors.storage import TensorStorage

#: (name, torch dtype) -> the dtype in the output
DtypeOf = Callable[[str, str], str]
#: A storage of the output, and the dtype of its tensors there.
_Made = tuple[TensorStorage, str]


class StorageCasts:
    """Which storages are cast, and to what.

    A storage whose tensors all have one dtype and one target is cast as a whole, so that
    views and ties stay as they are. One whose tensors part ways gives each a storage of
    its own. Tensors inside of others (scales, indices), ``inner`` by the id of their spec, stay
    as they are.
    """

    def __init__(
        self,
        tensors: dict[str, LazyTensor],
        inner: dict[int, TensorSpec | BareStorage],
        rule: DtypeOf,
    ) -> None:
        self._inner = inner
        self._applied: dict[int, tuple[TensorSpec, TensorSpec]] = {}
        #: By the id of a storage that is cast as a whole; by the layout and the target of a tensor
        #: alone, and by the layout for one without a name, which goes with the first.
        self._whole: dict[int, _Made] = {}
        self._single: dict[Any, _Made] = {}
        self._targets: dict[int, str] = {}
        wanted: dict[int, set[tuple[str, str]]] = {}
        for name, tensor in tensors.items():
            spec = tensor.spec
            target = self._targets[id(spec)] = rule(name, spec.torch_dtype)
            wanted.setdefault(id(spec.storage), set()).add((spec.torch_dtype, target))
        pinned = {id(held.storage) for held in inner.values()}
        for tensor in tensors.values():
            spec = tensor.spec
            own, target = id(spec.storage), self._targets[id(spec)]
            if spec.torch_dtype == target:
                continue
            if len(wanted[own]) == 1 and own not in pinned:
                if own not in self._whole:
                    before = unrounded(spec)
                    self._whole[own] = _cast(before.storage, before.torch_dtype, target), target
            elif id(spec) not in inner and (layout(spec), target) not in self._single:
                before = unrounded(spec)
                made = _cast(ElementStorage(before), before.torch_dtype, target), target
                self._single[layout(spec), target] = made
                self._single.setdefault((layout(spec), None), made)

    def apply(self, spec: TensorSpec) -> TensorSpec:
        """Return a tensor's spec in the output: the same one each time."""
        if id(spec) not in self._applied:
            self._applied[id(spec)] = (spec, self._apply(spec))
        return self._applied[id(spec)][1]

    def _apply(self, spec: TensorSpec) -> TensorSpec:
        if id(spec) in self._inner:
            return spec
        whole = self._whole.get(id(spec.storage))
        if whole is not None:
            return spec.replace(torch_dtype=whole[1], storage=whole[0])
        alone = self._single.get((layout(spec), self._targets.get(id(spec))))
        if alone is not None:
            return spec.replace(
                torch_dtype=alone[1], storage=alone[0], storage_offset=0,
                stride=contiguous_stride(spec.shape), neg=False,
            )  # fmt: skip
        return spec


def cast_elements(spec: TensorSpec, target: str) -> TensorStorage:
    """Return the elements of a tensor in C order in another dtype, rounded once."""
    if spec.torch_dtype == target:
        return elements_of(spec)
    before = unrounded(spec)
    return _cast(elements_of(before), before.torch_dtype, target)


def _cast(storage: TensorStorage, source: str, target: str) -> TensorStorage:
    return storage if source == target else CastStorage(storage, source, target)


def inner_tensors(others: Iterable[object]) -> dict[int, TensorSpec | BareStorage]:
    """Return the specs of all tensors that others are made of, and their bare storages, by id."""
    found: dict[int, TensorSpec | BareStorage] = {}
    for value in reach(list(others)):
        if isinstance(value, LazyTensor):
            found[id(value.spec)] = value.spec
        elif isinstance(value, BareStorage):
            found[id(value)] = value
    return found
