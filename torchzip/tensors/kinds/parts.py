"""The dense tensors that a sparse, quantized or nested tensor is made of, and their values.

They are arrays, TypedArrays or LazyTensors. Indices, offsets and sizes of a file are each looked at
once, however many tensors share them.
"""

from __future__ import annotations

import errno
import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from torchzip.dtypes import DTYPES
from torchzip.errors import MAX_NDIM, TensorError, UnsupportedError, shown, too_many_dimensions
from torchzip.files.platform_calls import memory_nbytes
from torchzip.leaf_types import TypedArray
from torchzip.limits import is_number
from torchzip.tensors.numpy_dtypes import torch_dtype_of

#: What a size, a stride or an int of 64 bits is less than.
MAX = 1 << 63
#: How many times all that is stored may be looked at.
_TIMES = 16

#: What looks at arrays, and returns what it finds.
Look = Callable[..., tuple[int, ...]]

Array = NDArray[Any]


def is_part(value: Any) -> bool:
    """Return whether the value of a field is a tensor, not a number or a list of numbers."""
    return value is not None and not isinstance(value, int | float | list)


def bare(part: Any) -> Any:
    """Return a part without the name of its dtype that a TypedArray adds."""
    return part.array if isinstance(part, TypedArray) else part


def as_array(part: Any) -> Array:
    """Return a part as an array, which is read if it is a LazyTensor."""
    return np.asarray(bare(part))


def shape_of(part: Any) -> tuple[int, ...]:
    """Return the shape of a part that is an array or a tensor, as `dtype_of` sees to."""
    shape: tuple[int, ...] = bare(part).shape
    return shape


def dtype_name(part: Any) -> str:
    """Return the name of the dtype of a part, which torch may lack."""
    name = getattr(part, "torch_dtype", None)
    if name is None:  # numpy and ml_dtypes call a dtype as torch does
        name = getattr(part.dtype, "name", None) or str(part.dtype).removeprefix("torch.")
    return str(name)


def dtype_of(part: Any) -> str:
    """Return torch's name of the dtype of a part, or raise TensorError if torch has no such."""
    name = getattr(part, "torch_dtype", None)
    if name is None and isinstance(part, np.ndarray):
        name = torch_dtype_of(part.dtype.newbyteorder("="))
    if name not in DTYPES:
        what = part.dtype if isinstance(part, np.ndarray) else type(part).__name__
        raise TensorError(f"a part of a tensor is of dtype {what}, which torch does not have")
    return str(name)


def sizes_of(value: Any, what: str) -> tuple[int, ...]:
    """Return a shape or stride as a tuple, or raise TensorError if torch can have no such."""
    if not isinstance(value, tuple | list) or not all(map(is_number, value)):
        raise TensorError(f"{what} is {shown(value)}; a tuple of ints from 0 to 2**63 was expected")
    if len(value) > MAX_NDIM:
        raise too_many_dimensions(what, len(value))
    return tuple(value)


def check_memory(nbytes: int, what: str) -> None:
    """Raise OSError if an array is larger than the memory of the machine, where that is known.

    Systems that hand out more memory than they have would end the process later.
    """
    available = memory_nbytes()
    if available and nbytes > available:
        raise OSError(
            errno.ENOMEM,
            f"{what} does not fit: it needs {nbytes:,} bytes, the machine has {available:,}. "
            "Take its parts instead",
        )


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
        if self.is_new(held) and not self._is_known:
            self._left += _TIMES * held.nbytes

    def is_new(self, held: Any) -> bool:
        """Return whether an object was not met before."""
        count = len(self._kept)
        self._kept.setdefault(id(held), held)
        return len(self._kept) > count


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
