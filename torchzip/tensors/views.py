"""Views of tensors that nobody has read, and tensors put together of others.

A view is a tensor of its own: its elements in C order, without what else is in the storage
(`ElementStorage`). So a slice that is saved does not bring the whole tensor along, and a transposed
tensor is saved as its elements stand. How they lie in the file is arithmetic on strides: a view of
a view is one step from the file.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from torchzip.dtypes import DTYPES
from torchzip.tensors.chunks import Chunk, ChunkedStorage
from torchzip.tensors.computed import fresh_spec
from torchzip.tensors.numpy_dtypes import numpy_dtype
from torchzip.tensors.packing import elements_of
from torchzip.tensors.specs import (
    Shape,
    TensorSpec,
    contiguous_stride,
    is_contiguous,
    opened,
    slice_spec,
    whole_numbers,
)
from torchzip.tensors.storage import ArrayStorage


def _closed(spec: TensorSpec, shape: Shape, stride: Shape, offset: int) -> TensorSpec:
    """Return a view of an opened tensor as a tensor of its own."""
    inner = TensorSpec(
        spec.torch_dtype, shape, stride, offset, spec.storage, conj=spec.conj, neg=spec.neg
    )
    return fresh_spec(spec.torch_dtype, shape, elements_of(inner))


def sliced(spec: TensorSpec, key: Any) -> TensorSpec:
    """Return ``tensor[key]`` for a basic index.

    Raises
    ------
    IndexError
        If it points outside, or is not a basic index.
    """
    spec = opened(spec)
    chosen = slice_spec(spec, key)
    if chosen is None:
        raise IndexError(
            "an index of a tensor that is not read is made of ints, slices, ... and None"
        )
    return _closed(spec, *chosen)


def permuted(spec: TensorSpec, axes: Sequence[int]) -> TensorSpec:
    """Return a tensor with its axes in another order."""
    ndim = len(spec.shape)
    given = whole_numbers("an order of axes", axes)
    order = [axis + ndim if axis < 0 else axis for axis in given]
    if sorted(order) != list(range(ndim)):
        raise ValueError(f"{list(given)} does not have each of the {ndim} axes of the tensor once")
    spec = opened(spec)
    shape, stride = (tuple(of[axis] for axis in order) for of in (spec.shape, spec.stride))
    return _closed(spec, shape, stride, spec.storage_offset)


def reshaped(spec: TensorSpec, shape: Sequence[int]) -> TensorSpec:
    """Return a tensor of the same elements in C order; one of the sizes may be -1."""
    shape = whole_numbers("a shape", shape)
    sizes = list(shape)
    known = math.prod(size for size in sizes if size != -1)
    if sizes.count(-1) == 1 and known > 0 and spec.numel % known == 0:
        sizes[sizes.index(-1)] = spec.numel // known
    if any(size < 0 for size in sizes) or math.prod(sizes) != spec.numel:
        raise ValueError(f"a tensor of shape {list(spec.shape)} does not become {list(shape)}")
    spec = opened(spec)
    made = tuple(sizes)
    if is_contiguous(spec.shape, spec.stride):
        return _closed(spec, made, contiguous_stride(made), spec.storage_offset)
    stride = _stride_for(spec, made)
    if stride is not None:
        return _closed(spec, made, stride, spec.storage_offset)
    return fresh_spec(spec.torch_dtype, made, elements_of(spec))


def _stride_for(spec: TensorSpec, shape: Shape) -> Shape | None:
    """Return the stride of another shape of the same elements; None if no stride says it."""
    if 0 in shape:
        return contiguous_stride(shape)
    # Axes that lie one inside the other are one run; each run takes whole new axes.
    runs: list[list[int]] = []
    for size, step in zip(spec.shape, spec.stride, strict=True):
        if size == 1:
            continue
        if runs and runs[-1][1] == size * step:
            runs[-1] = [runs[-1][0] * size, step]
        else:
            runs.append([size, step])
    stride: list[int] = []
    for size in reversed(shape):
        if size == 1:
            stride.append(runs[-1][1] if runs else 1)
            continue
        if runs and runs[-1][0] == 1:
            runs.pop()
        if not runs or runs[-1][0] % size:
            return None
        left, step = runs[-1]
        stride.append(step)
        runs[-1] = [left // size, step * size]
    return tuple(reversed(stride))


def broadcast_spec(spec: TensorSpec, shape: Shape) -> TensorSpec:
    """Return a tensor with its elements repeated to a shape that its own goes to."""
    if spec.shape == shape:
        return spec
    spec = opened(spec)
    missing = len(shape) - len(spec.shape)
    stride = [0] * missing + [
        step if size == whole else 0
        for size, whole, step in zip(spec.shape, shape[missing:], spec.stride, strict=True)
    ]
    return _closed(spec, shape, tuple(stride), spec.storage_offset)


def joined(torch_dtype: str, shape: Shape, parts: Iterable[tuple[Shape, TensorSpec]]) -> TensorSpec:
    """Return the tensor that others fill, each from its offsets on. They have its dtype."""
    chunks = [
        Chunk(offsets, spec.shape, f"part {number}", opened(spec))
        for number, (offsets, spec) in enumerate(parts)
        if spec.numel
    ]
    if not chunks:
        empty = np.empty(shape, numpy_dtype(torch_dtype))
        row = DTYPES[torch_dtype]
        return fresh_spec(
            torch_dtype, shape, ArrayStorage(empty, torch_dtype if row.storage_class else None)
        )
    bases = [chunk.open().storage for chunk in chunks]
    storage = ChunkedStorage(torch_dtype, shape, chunks, "tensors put together", bases)
    return fresh_spec(torch_dtype, shape, storage)


def padded(spec: TensorSpec, shape: Sequence[int], fill: TensorSpec) -> TensorSpec:
    """Return a tensor that is longer at the end of each axis; ``fill`` has one element."""
    shape = whole_numbers("a shape", shape)
    if len(shape) != len(spec.shape) or any(
        new < old for new, old in zip(shape, spec.shape, strict=True)
    ):
        raise ValueError(f"a tensor of shape {list(spec.shape)} is not padded to {list(shape)}")
    parts = [((0,) * len(shape), spec)]
    for axis, (old, new) in enumerate(zip(spec.shape, shape, strict=True)):
        offsets = tuple(old if each == axis else 0 for each in range(len(shape)))
        sizes = (*spec.shape[:axis], new - old, *shape[axis + 1 :])
        parts.append((offsets, broadcast_spec(fill, sizes)))
    return joined(spec.torch_dtype, shape, parts)
