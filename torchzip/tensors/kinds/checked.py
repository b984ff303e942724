"""Indices, offsets and sizes of a file, each looked at once however many tensors share them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from torchzip.dtypes import DTYPES
from torchzip.errors import MAX_NDIM, TensorError, UnsupportedError
from torchzip.tensors.kinds.parts import Array, as_array

#: How many times all that is stored may be looked at.
_TIMES = 16

#: What looks at arrays, and returns what it finds.
Look = Callable[..., tuple[int, ...]]


class Checked:
    """What was found in the indices of a file so far.

    ``nbytes`` is what the storages of the file hold; where it is not known beforehand, each storage
    and each array counts when it is met. No honest file asks to read much more than that. One of
    views that overlap one another could ask for the square of it.
    """

    def __init__(self, nbytes: int | None = None) -> None:
        self._left = _TIMES * (nbytes or 0) + (64 << 20)
        self._is_known = nbytes is not None
        self._found: dict[Any, tuple[int, ...]] = {}
        # Storages that count, and parts whose addresses are in use: by id, and kept for that.
        self._kept: dict[int, Any] = {}
        self.lists: dict[int, list[Any]] = {}

    def find(self, look: Look, *parts: Any, axes: tuple[int, ...] = ()) -> tuple[int, ...]:
        """Return ``look`` of the parts as arrays, which was perhaps found before.

        Of an axis on which all elements are one (``axes``: all axes), it gets that one.
        """
        key = (look, axes, *(self._place_of(part) for part in parts))
        found = self._found.get(key)
        if found is None:
            arrays = [_once(part, *axes) for part in parts]
            self._left -= sum(array.nbytes for array in arrays)
            if self._left < 0:
                raise UnsupportedError("indices of many tensors that overlap one another in memory")
            found = self._found[key] = look(*arrays)
        return found

    def _place_of(self, part: Any) -> tuple[Any, ...]:
        """Return what two parts have in common that are the same elements."""
        spec = getattr(part, "spec", None)
        if spec is None:
            array = as_array(part)
            self._meet(array)
            return (array.ctypes.data, array.shape, array.strides, array.dtype)
        self._meet(spec.storage)
        return (id(spec.storage), spec.storage_offset, spec.shape, spec.stride, spec.torch_dtype)

    def _meet(self, held: Any) -> None:
        if id(held) not in self._kept:
            self._kept[id(held)] = held
            self._left += 0 if self._is_known else _TIMES * held.nbytes


def _once(part: Any, *axes: int) -> Array:
    """Return an array with one element on each of the axes on which all are the same.

    A file can describe endless axes over one element (stride 0): none is gone along. Nothing of a
    LazyTensor is read that is not in the result.
    """
    spec = getattr(part, "spec", None)
    if spec is None:
        part = as_array(part)
        if not part.dtype.isnative:
            part = part.astype(part.dtype.newbyteorder("="))
        shape, itemsize, strides = part.shape, part.itemsize, part.strides
    else:
        shape, itemsize = spec.shape, DTYPES[spec.torch_dtype].itemsize
        strides = tuple(step * itemsize for step in spec.stride)
    chosen = axes or range(len(shape))
    index = tuple(
        slice(0, 1) if axis in chosen and step == 0 and size > 1 else slice(None)
        for axis, (size, step) in enumerate(zip(shape, strides, strict=True))
    )
    sizes = [1 if each.stop else size for each, size in zip(index, shape, strict=True)]
    nbytes = math.prod(sizes) * itemsize
    reach = itemsize + sum((n - 1) * abs(step) for n, step in zip(sizes, strides, strict=True))
    if nbytes > MAX_NDIM * reach and 0 not in sizes:
        raise UnsupportedError(
            f"indices or offsets of shape {list(shape)} whose elements overlap in memory"
        )
    return as_array(part[index])


def outside(what: str, low: int, high: int, bound: int) -> TensorError:
    """Return the error of indices that point outside the tensor."""
    return TensorError(f"{what} go from {low} to {high}; they must lie in 0 to {bound}")


def ends(numbers: Array) -> tuple[int, ...]:
    """Return the least and the greatest."""
    return int(numbers.min()), int(numbers.max())


def steps(numbers: Array) -> tuple[int, ...]:
    """Return the least and greatest first, the least and greatest last, and if it goes back."""
    first, last = numbers[..., 0], numbers[..., -1]
    backwards = bool((numbers[..., 1:] < numbers[..., :-1]).any())
    return (*ends(first), *ends(last), int(backwards))
