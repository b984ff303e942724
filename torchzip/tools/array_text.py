"""A tensor as text, as numpy prints it; of a large one no more is read than is printed."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from torchzip.checkpoint.lazy_tensor import LazyTensor
from torchzip.tools.parts import sliced

Array = NDArray[Any]

#: Numpy's own: a larger array is summarised, with so many items at each end of an axis.
THRESHOLD = 1000
_EDGE_ITEMS = 3
#: Elements that are printed at most, in a summary and in all.
_MOST_IN_CORNERS = 100_000
MOST_IN_FULL = 1_000_000


def tensor_text(tensor: LazyTensor, *, full: bool = False, width: int = 80) -> str:
    """Return a tensor as numpy prints an array, in lines of ``width`` characters.

    Of more than 1,000 elements the corners are shown, and only their bytes are read (of a deflated
    record, what lies before them too). Floats of 8 bits, bfloat16 and complex32 are printed
    as float32 and complex64; dtypes that numpy lacks by their raw bits.

    Raises
    ------
    ValueError
        If what would be printed has more elements than anyone reads: all of a tensor of more than a
        million, or the corners of one of many dimensions.
    """
    numel = math.prod(tensor.shape)
    if numel <= THRESHOLD or full:
        if numel > MOST_IN_FULL:
            raise ValueError(
                f"{numel:,} elements are too many to print; give a SLICE, or write them with --npy"
            )
        return array_text(tensor[...], full=full, width=width)
    _check_corners(tensor.shape)
    return _text(_with_gaps(_corners(tensor), tensor.shape), 0, width)


def array_text(array: Array, *, full: bool = False, width: int = 80) -> str:
    """Return an array in memory as numpy prints it."""
    if not full and array.size > THRESHOLD:
        _check_corners(array.shape)
    return _text(array, array.size if full else THRESHOLD, width)


def _text(array: Array, threshold: int, width: int) -> str:
    if array.dtype.isbuiltin == 2:  # of ml_dtypes: numpy would not align them
        array = array.astype(np.complex64 if "complex" in array.dtype.name else np.float32)
    return np.array2string(array, max_line_width=width, threshold=threshold, edgeitems=_EDGE_ITEMS)


def _is_cut(size: int) -> bool:
    return size > 2 * _EDGE_ITEMS


def _check_corners(shape: tuple[int, ...]) -> None:
    count = math.prod(2 * _EDGE_ITEMS if _is_cut(size) else size for size in shape)
    if count > _MOST_IN_CORNERS:
        raise ValueError(
            f"the corners alone of {len(shape)} dimensions have {count:,} elements; give a SLICE"
        )


def _corners(tensor: LazyTensor, axis: int = 0) -> Array:
    """Return a tensor with the first and last items alone of each long axis, from one on.

    Each corner is read by itself: of a deflated record, what lies between goes through memory.
    """
    while axis < tensor.ndim and not _is_cut(tensor.shape[axis]):
        axis += 1
    if axis == tensor.ndim:
        corner: Array = tensor[...]
        return corner
    before = (slice(None),) * axis
    ends = (slice(_EDGE_ITEMS), slice(-_EDGE_ITEMS, None))
    parts = [_corners(sliced(tensor, (*before, end)), axis + 1) for end in ends]
    return np.concatenate(parts, axis)


def _with_gaps(corners: Array, shape: tuple[int, ...]) -> Array:
    """Put an item between the two ends of each axis that is longer in truth."""
    for axis, size in enumerate(shape):
        if _is_cut(size):
            corners = np.insert(corners, _EDGE_ITEMS, corners.take(0, axis), axis)
    return corners
