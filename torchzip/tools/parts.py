"""Tensors that are not dense as what can be sliced, counted and written: dense ones."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from torchzip.checkpoint.lazy_tensor import LazyTensor, tensor_of
from torchzip.checkpoint.walk import inner
from torchzip.errors import MAX_NDIM, UnsupportedError
from torchzip.tensors.specs import slice_spec
from torchzip.types import OtherTensor, QuantizedTensor, TypedArray

#: Elements of a quantized tensor that are dequantized at once: 64 MB of float32.
_MOST_DEQUANTIZED = 1 << 24


def view(tensor: Any, index: Any = None) -> LazyTensor | None:
    """Return ``tensor[index]`` unread, of a LazyTensor or an array; None of anything else.

    Raises
    ------
    IndexError
        If the index points outside the tensor.
    """
    if isinstance(tensor, TypedArray):
        tensor = tensor_of(tensor.array, tensor.torch_dtype)
    elif isinstance(tensor, np.ndarray | np.generic):
        tensor = tensor_of(np.asarray(tensor))
    if not isinstance(tensor, LazyTensor):
        return None
    return tensor if index is None else sliced(tensor, index)


def sliced(tensor: LazyTensor, index: Any) -> LazyTensor:
    """Return ``tensor[index]`` unread."""
    chosen = slice_spec(tensor.spec, index)
    if chosen is None:
        raise IndexError("not a basic index")
    shape, stride, offset = chosen
    if len(shape) > MAX_NDIM:
        raise IndexError(f"{len(shape)} dimensions; arrays have {MAX_NDIM} at most")
    return LazyTensor(tensor.spec.replace(shape=shape, stride=stride, storage_offset=offset))


def named_parts(tensor: OtherTensor) -> Iterator[tuple[str, LazyTensor]]:
    """Yield the parts of a tensor with the names that `lookup.look_up` knows them by."""
    found = ((str(name), part) for name, _, part in inner(tensor))
    return ((name, part) for name, part in found if isinstance(part, LazyTensor))


def dense_of(tensor: OtherTensor, name: str) -> LazyTensor:
    """Return a quantized tensor dequantized, in memory.

    Raises
    ------
    UnsupportedError
        If it is of another kind, or too large.
    """
    parts = ", ".join(f"{name}.{part}" for part, _ in named_parts(tensor))
    if not isinstance(tensor, QuantizedTensor):
        has = f"take one of its parts: {parts}" if parts else "it has no data"
        raise UnsupportedError(f"{name} is a {tensor.kind} tensor; {has}")
    numel = math.prod(tensor.shape)
    if numel > _MOST_DEQUANTIZED:
        raise UnsupportedError(
            f"{name} has {numel:,} quantized elements, too many to dequantize at once; take one "
            f"of its parts: {parts}"
        )
    made = tensor_of(tensor.dequantize())
    assert made is not None  # float32
    return made
