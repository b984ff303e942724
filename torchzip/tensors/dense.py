"""The numbers that sparse, quantized and nested tensors stand for, as torch 2.13 works them out.

Equal to torch's for all bits (tests compare them), NaN payloads apart:

* sparse: values are added to zeros, one after the other, in the dtype of the values; so a
  value of -0.0 becomes 0.0, and bools are or-ed;
* quantized: ``(q - zero_point) * scale``. Per tensor, the difference is of int32 and the product of
  float32; per channel the difference is of float32, and the product of float64 or, with
  zero points that are floats, of float32.
"""

from __future__ import annotations

import errno
import math
import os
from typing import Any

import numpy as np
from numpy.typing import NDArray

from torchzip.dtypes import DTYPES
from torchzip.errors import EnoughMemory, TensorError, UnsupportedError
from torchzip.tensors.kind_checks import (
    COMPRESSED,
    PACKED,
    as_array,
    check_kind,
    check_values,
    packed_nbytes,
    shape_of,
)
from torchzip.tensors.numpy_dtypes import has_numpy_dtype, numpy_dtype
from torchzip.types import NestedTensor, QuantizedTensor, SparseTensor

Array = NDArray[Any]

#: What one small array costs beside its elements.
_ARRAY_NBYTES = 112


@EnoughMemory()
def sparse_to_dense(tensor: SparseTensor) -> Array:
    """Return a sparse tensor as a dense array; see `types.SparseTensor.todense`."""
    check_kind(tensor)
    if not has_numpy_dtype(tensor.torch_dtype):
        raise UnsupportedError(f"numpy cannot add values of dtype {tensor.torch_dtype}")
    dtype = numpy_dtype(tensor.torch_dtype)
    nbytes = math.prod(tensor.shape) * dtype.itemsize
    blocks = tensor.layout in ("sparse_bsr", "sparse_bsc")  # they are put in order at the end
    _check_memory(
        nbytes * (2 if blocks else 1) + tensor.nbytes,
        f"a dense array for a {tensor.layout} tensor of shape {list(tensor.shape)}",
    )
    tensor = tensor.with_parts(as_array)  # read once
    check_values(tensor)
    if not math.prod(tensor.shape):
        return np.zeros(tensor.shape, dtype)
    return (_coo if tensor.layout == "sparse_coo" else _compressed)(tensor, dtype)


def _coo(tensor: SparseTensor, dtype: np.dtype[Any]) -> Array:
    indices, values = tensor.indices, tensor.values
    dimensions = len(indices)
    places = np.zeros(indices.shape[1], np.int64)
    for size, row in zip(tensor.shape[:dimensions], indices, strict=True):
        places = places * size + row
    dense = _zeros((math.prod(tensor.shape[:dimensions]), *tensor.shape[dimensions:]), dtype)
    _add(dense, places, values)
    return dense.reshape(tensor.shape)


def _compressed(tensor: SparseTensor, dtype: np.dtype[Any]) -> Array:
    by_rows, blocks = COMPRESSED[tensor.layout]
    compressed, plain = (part.astype(np.int64) for part in tensor.indices)
    values: Array = tensor.values
    batch = plain.ndim - 1
    batches, nnz = math.prod(plain.shape[:-1]), plain.shape[-1]
    block = values.shape[batch + 1 : batch + 3] if blocks else (1, 1)
    rest = tensor.shape[batch + 2 :]
    counts = [size // step for size, step in zip(tensor.shape[batch:], block, strict=False)]
    rows, columns = counts
    # Each place along the compressed axis as often as it has values.
    lengths = np.diff(compressed.reshape(batches, -1), axis=1)
    along = np.tile(np.arange(lengths.shape[1]), batches).repeat(lengths.reshape(-1))
    across = plain.reshape(-1)
    row, column = (along, across) if by_rows else (across, along)
    places = (np.repeat(np.arange(batches), nnz) * rows + row) * columns + column
    dense = _zeros((batches * rows * columns, *block, *rest), dtype)
    _add(dense, places, values.reshape(-1, *block, *rest))
    # Rows of blocks and rows in a block side by side, and columns likewise.
    split = dense.reshape(batches, rows, columns, *block, *rest).swapaxes(2, 3)
    return np.ascontiguousarray(split).reshape(tensor.shape)


def _add(dense: Array, places: Array, values: Array) -> None:
    """Add values to the rows of an array, one after the other."""
    with np.errstate(all="ignore"):
        np.add.at(dense, places, values)


@EnoughMemory()
def dequantize(tensor: QuantizedTensor) -> Array:
    """Return a quantized tensor as float32; see `types.QuantizedTensor.dequantize`."""
    check_kind(tensor)
    check_values(tensor)
    numel = math.prod(tensor.shape)
    _check_memory(3 * 4 * numel, f"a float32 array of shape {list(tensor.shape)}")
    stored = as_array(tensor.int_repr)
    per_byte = PACKED.get(tensor.torch_dtype)
    if per_byte is not None:
        bits = 8 // per_byte
        shifts = np.arange(per_byte, dtype=np.uint8) * np.uint8(bits)
        flat = stored[: packed_nbytes(tensor.torch_dtype, tensor.shape), None] >> shifts & np.uint8(
            (1 << bits) - 1
        )
        stored = flat.reshape(-1)[:numel].reshape(tensor.shape)
    bounds = np.iinfo(np.dtype(DTYPES[tensor.torch_dtype].raw))
    with np.errstate(all="ignore"):
        if tensor.axis is None:
            zero_point = np.array(tensor.zero_point)
            _check_zero_points(tensor, zero_point, bounds)
            # Past 32 bits the difference wraps, as in torch.
            whole = stored.astype(np.int32) - zero_point.astype(np.int32)
            return np.asarray(whole.astype(np.float32) * np.float32(tensor.scale))
        along = tuple(-1 if axis == tensor.axis else 1 for axis in range(len(tensor.shape)))
        zero_points = as_array(tensor.zero_point).reshape(along)
        scales = as_array(tensor.scale).reshape(along)
        floats = zero_points.dtype.kind not in "iu"
        if not floats:
            _check_zero_points(tensor, zero_points, bounds)
        differences = stored.astype(np.float32) - zero_points.astype(np.float32)
        scaled = differences * scales.astype(np.float32 if floats else np.float64)
        return np.asarray(scaled.astype(np.float32))


def _check_zero_points(tensor: QuantizedTensor, zero_points: Array, bounds: np.iinfo[Any]) -> None:
    """Raise TensorError if a zero point is none of the integers of the dtype."""
    if zero_points.size and not (
        bounds.min <= zero_points.min() and zero_points.max() <= bounds.max
    ):
        raise TensorError(
            f"zero points from {zero_points.min()} to {zero_points.max()} for a tensor of "
            f"{tensor.torch_dtype}, whose integers go from {bounds.min} to {bounds.max}"
        )


@EnoughMemory()
def nested_arrays(tensor: NestedTensor) -> list[Array]:
    """Return the tensors in a nested tensor as arrays; see `types.NestedTensor.unbind`."""
    check_kind(tensor)
    count = shape_of(tensor.offsets)[0]
    _check_memory(count * _ARRAY_NBYTES + tensor.nbytes, f"a nested tensor of {count:,}")
    tensor = tensor.with_parts(as_array)  # read once
    check_values(tensor)
    values = tensor.values
    offsets = tensor.offsets.tolist()
    if tensor.layout == "jagged":
        axis = (slice(None),) * (tensor.ragged_idx - 1)
        ends = offsets[1:]
        if tensor.lengths is not None:
            lengths = tensor.lengths.tolist()
            ends = [start + length for start, length in zip(offsets, lengths, strict=False)]
        return [
            values[(*axis, slice(start, end))] for start, end in zip(offsets, ends, strict=False)
        ]
    if not offsets:
        return []
    made = []
    rows = zip(tensor.sizes.tolist(), tensor.strides.tolist(), offsets, strict=True)
    for sizes, strides, offset in rows:
        if 0 in sizes:
            made.append(np.empty(sizes, values.dtype))
            continue
        steps = tuple(
            step * values.strides[0] if size > 1 else 0
            for size, step in zip(sizes, strides, strict=True)
        )
        made.append(np.lib.stride_tricks.as_strided(values[offset:], sizes, steps))
    return made


# -- memory ----------------------------------------------------------------------------------


def _check_memory(nbytes: int, what: str) -> None:
    """Raise OSError if an array is larger than the memory of the machine, where that is known.

    Systems that hand out more memory than they have would end the process later.
    """
    try:
        available = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        available = 1 << 62
    if nbytes > available > 0:
        raise OSError(
            errno.ENOMEM,
            f"{what} does not fit: it needs {nbytes:,} bytes, the machine has {available:,}. "
            "Take its parts instead",
        )


def _zeros(shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    try:
        return np.zeros(shape, dtype)
    except MemoryError:
        raise OSError(
            errno.ENOMEM, f"an array of shape {list(shape)} and dtype {dtype} does not fit"
        ) from None
