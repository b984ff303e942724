"""What must be true of sparse, quantized, nested and meta tensors, whoever made them.

`check_kind` looks at shapes and dtypes and reads nothing: it is what a lazy checkpoint can know.
`check_values` reads indices, offsets and sizes and holds them against the shape. Both raise
TensorError. torch 2.13 leaves the second to its user (``check_sparse_tensor_invariants``); it also
accepts columns that are not sorted or stand twice in a row, and so do these.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from torchzip.dtypes import DTYPES, NAME_ONLY
from torchzip.errors import MAX_NDIM, TensorError, UnsupportedError, shown, too_many_dimensions
from torchzip.tensors.numpy_dtypes import torch_dtype_of
from torchzip.tensors.specs import wrong_requires_grad
from torchzip.types import (
    MetaTensor,
    NestedTensor,
    OtherTensor,
    QuantizedTensor,
    SparseTensor,
    TypedArray,
)

_MAX = 1 << 63

#: layout -> (whether rows are what is compressed, whether values are blocks)
COMPRESSED: dict[str, tuple[bool, bool]] = {
    "sparse_csr": (True, False),
    "sparse_csc": (False, False),
    "sparse_bsr": (True, True),
    "sparse_bsc": (False, True),
}
#: Values in one byte of the packed dtypes.
PACKED = {"quint4x2": 2, "quint2x4": 4}

Array = NDArray[Any]
#: (what looks at arrays, the arrays) -> what it finds
Find = Callable[..., tuple[int, ...]]


def check_kind(tensor: OtherTensor) -> None:
    """Raise TensorError if the shapes and dtypes of the parts do not fit together."""
    if type(tensor.requires_grad) is not bool:
        raise wrong_requires_grad("a tensor", tensor.requires_grad)
    if isinstance(tensor, SparseTensor):
        _check_sizes(tensor.shape, f"the shape of a {tensor.layout} tensor")
        if tensor.layout == "sparse_coo":
            _check_coo(tensor)
        elif tensor.layout in COMPRESSED:
            _check_compressed(tensor)
        else:
            raise TensorError(
                f"a sparse tensor has layout {shown(tensor.layout)}, which torch has not"
            )
        if DTYPES[_dtype(tensor.values)].kind == "quantized":
            raise TensorError(
                "the values of a sparse tensor are quantized; another dtype was expected"
            )
    elif isinstance(tensor, QuantizedTensor):
        _check_quantized(tensor)
    elif isinstance(tensor, NestedTensor):
        _check_nested(tensor)
    elif isinstance(tensor, MetaTensor):
        _check_meta(tensor)


class Checked:
    """What was found in the indices of a file so far, so that shared ones are read once.

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

    def find(
        self, look: Callable[..., tuple[int, ...]], parts: tuple[Any, ...], axes: tuple[int, ...]
    ) -> tuple[int, ...]:
        """Return ``look`` of the parts as arrays, which was perhaps found before."""
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


#: How many times all that is stored may be looked at.
_TIMES = 16


def can_check(tensor: OtherTensor) -> bool:
    """Return whether `check_values` can read the parts: not of one that was stored early."""
    return all(
        isinstance(part, TypedArray)
        or (hasattr(part, "__array__") and (not hasattr(part, "spec") or part.spec.storage.is_read))
        for part in tensor.parts
    )


def check_values(tensor: OtherTensor, checked: Checked | None = None) -> None:
    """Read indices, offsets and sizes; raise TensorError if one points outside the tensor.

    Takes time and memory in proportion to what their storages hold. With ``checked``, what was
    looked at for another tensor is not looked at again. This is what `load`, `Checkpoint.verify`
    and everything that writes ask.
    """
    checked = Checked() if checked is None else checked

    def find(
        look: Callable[..., tuple[int, ...]], *parts: Any, axes: tuple[int, ...] = ()
    ) -> tuple[int, ...]:
        return checked.find(look, parts, axes)

    if isinstance(tensor, SparseTensor):
        if tensor.layout == "sparse_coo":
            _check_coo_indices(tensor, find)
        else:
            _check_compressed_indices(tensor, find)
    elif isinstance(tensor, NestedTensor):
        if tensor.layout == "strided":
            _check_nested_strided_values(tensor, find)
        else:
            _check_nested_jagged_values(tensor, find)
    elif isinstance(tensor, QuantizedTensor) and tensor.axis is not None:
        for numbers, kinds in ((tensor.scale, (int, float)), (tensor.zero_point, (int,))):
            if type(numbers) is list:
                _check_list(numbers, kinds, checked)


def _check_list(numbers: list[Any], kinds: tuple[type, ...], checked: Checked) -> None:
    """Check the scales or zero points of a file of torch before 1.4."""
    known = checked.lists
    if known.get(id(numbers)) is numbers:
        return
    known[id(numbers)] = numbers
    for number in numbers:
        if type(number) not in kinds or not (type(number) is float or abs(number) < _MAX):
            raise TensorError(
                f"the scales or zero points of a tensor have {shown(number)} in them; numbers of "
                "64 bits were expected"
            )


def as_array(part: Any) -> Array:
    """Return a part as an array, which is read if it is a LazyTensor."""
    return np.asarray(part.array if isinstance(part, TypedArray) else part)


def shape_of(part: Any) -> tuple[int, ...]:
    """Return the shape of a part.

    Raises
    ------
    TensorError
        If it has none: it is no array and no tensor.
    """
    array = part.array if isinstance(part, TypedArray) else part
    shape: tuple[int, ...] | None = getattr(array, "shape", None)
    if shape is None:
        raise TensorError(
            f"a part of a tensor is {shown(array)}; an array or a tensor was expected"
        )
    return shape


def _dtype(part: Any) -> str:
    """Return torch's name of the dtype of a part."""
    name = getattr(part, "torch_dtype", None)
    if name is None and isinstance(part, np.ndarray):
        name = torch_dtype_of(part.dtype.newbyteorder("="))
    if name not in DTYPES:
        what = part.dtype if isinstance(part, np.ndarray) else type(part).__name__
        raise TensorError(f"a part of a tensor is of dtype {what}, which torch has not")
    return str(name)


def _check_sizes(sizes: Any, what: str) -> None:
    if type(sizes) is not tuple or not all(
        isinstance(size, int | np.integer) and type(size) is not bool and 0 <= size < _MAX
        for size in sizes
    ):
        raise TensorError(f"{what} is {shown(sizes)}; a tuple of ints from 0 to 2**63 was expected")
    if len(sizes) > MAX_NDIM:
        raise too_many_dimensions(what, len(sizes))


# -- shapes ----------------------------------------------------------------------------------


def wrong_scale(scale: Any, zero_point: Any) -> TensorError:
    """Return the error of a quantizer whose numbers are none."""
    return TensorError(
        f"a quantized tensor has scale {shown(scale)} and zero point {shown(zero_point)}; a float "
        "and an int of 64 bits were expected"
    )


def _check_coo(tensor: SparseTensor) -> None:
    if isinstance(tensor.indices, tuple):
        raise TensorError("a sparse_coo tensor has a pair of index tensors; one was expected")
    if type(tensor.is_coalesced) is not bool and tensor.is_coalesced is not None:
        raise TensorError(
            f"is_coalesced of a sparse tensor is {shown(tensor.is_coalesced)}; True or False was "
            "expected"
        )
    indices, values = shape_of(tensor.indices), shape_of(tensor.values)
    if _dtype(tensor.indices) != "int64" or len(indices) != 2:
        raise TensorError(
            f"the indices of a sparse_coo tensor are {_dtype(tensor.indices)} of shape "
            f"{list(indices)}, not int64 with two dimensions"
        )
    dimensions, nnz = indices
    expected = (nnz, *tensor.shape[dimensions:])
    if dimensions > len(tensor.shape) or values != expected:
        raise TensorError(
            f"a sparse_coo tensor of shape {list(tensor.shape)} has indices of shape "
            f"{list(indices)} and values of shape {list(values)}, which do not fit together"
        )


def _check_compressed(tensor: SparseTensor) -> None:
    layout, shape = tensor.layout, tensor.shape
    by_rows, blocks = COMPRESSED[layout]
    if not (isinstance(tensor.indices, tuple) and len(tensor.indices) == 2):
        raise TensorError(f"a {layout} tensor has one tensor of indices; a pair was expected")
    dtypes = [_dtype(part) for part in tensor.indices]
    if dtypes[0] != dtypes[1] or dtypes[0] not in ("int64", "int32"):
        raise TensorError(
            f"the indices of a {layout} tensor are {' and '.join(dtypes)}; int64 or int32 for "
            "both was expected"
        )
    compressed, plain = (shape_of(part) for part in tensor.indices)
    values = shape_of(tensor.values)
    batch = len(plain) - 1
    first_dense = batch + (3 if blocks else 1)
    fits = len(compressed) == len(plain) >= 1 and len(values) >= first_dense
    if fits:
        rest = len(values) - first_dense
        fits = (
            len(shape) == batch + 2 + rest
            and compressed[:batch] == plain[:batch] == values[:batch] == shape[:batch]
            and values[batch] == plain[batch]
            and values[first_dense:] == shape[batch + 2 :]
        )
    if fits:
        block = values[batch + 1 : batch + 3] if blocks else (1, 1)
        counts = [0, 0]
        for axis, (size, step) in enumerate(zip(shape[batch : batch + 2], block, strict=True)):
            if step == 0 or size % step:
                raise TensorError(
                    f"a {layout} tensor of shape {list(shape)} has blocks of {list(block)}, which "
                    "do not fit into it"
                )
            counts[axis] = size // step
        fits = compressed[batch] == counts[0 if by_rows else 1] + 1
    if not fits:
        raise TensorError(
            f"a {layout} tensor of shape {list(shape)} has compressed indices of shape "
            f"{list(compressed)}, plain indices of shape {list(plain)} and values of shape "
            f"{list(values)}, which do not fit together"
        )


def _check_quantized(tensor: QuantizedTensor) -> None:
    row = DTYPES.get(tensor.torch_dtype)
    if row is None or row.kind != "quantized":
        raise TensorError(
            f"a quantized tensor is of dtype {shown(tensor.torch_dtype)}; a quantized one was "
            "expected"
        )
    _check_sizes(tensor.shape, "the shape of a quantized tensor")
    found, shape = _dtype(tensor.int_repr), shape_of(tensor.int_repr)
    if found not in (row.name, row.raw):
        raise TensorError(
            f"the integers of a {row.name} tensor are {found}; {row.raw} was expected"
        )
    if row.name in PACKED:
        needed = packed_nbytes(row.name, tensor.shape)
        if len(shape) != 1 or shape[0] < needed:
            raise TensorError(
                f"a {row.name} tensor of shape {list(tensor.shape)} needs {needed:,} bytes with "
                f"one dimension, and its integers have shape {list(shape)}"
            )
    elif shape != tensor.shape:
        raise TensorError(
            f"a quantized tensor of shape {list(tensor.shape)} has integers of shape {list(shape)}"
        )
    if tensor.axis is None:
        if type(tensor.scale) is not float or type(tensor.zero_point) is not int:
            raise wrong_scale(tensor.scale, tensor.zero_point)
        if not -_MAX <= tensor.zero_point < _MAX:
            raise wrong_scale(tensor.scale, tensor.zero_point)
        return
    axis = tensor.axis
    if type(axis) is not int or not 0 <= axis < len(tensor.shape):
        raise TensorError(
            f"the axis of a quantized tensor of {len(tensor.shape)} dimensions is {shown(axis)}"
        )
    for part, what, kinds in (
        (tensor.scale, "scales", ("float",)),
        (tensor.zero_point, "zero points", ("float", "int")),
    ):
        if type(part) is list:  # of torch before 1.4; what is in it is looked at when it is read
            if len(part) != tensor.shape[axis]:
                raise TensorError(
                    f"a quantized tensor has {len(part):,} {what} for {tensor.shape[axis]:,} "
                    f"channels on axis {axis}"
                )
            continue
        if DTYPES[_dtype(part)].kind not in kinds:
            raise TensorError(
                f"the {what} of a quantized tensor are {_dtype(part)}; {' or '.join(kinds)} was "
                "expected"
            )
        if shape_of(part) != (tensor.shape[axis],):
            raise TensorError(
                f"a quantized tensor has {what} of shape {list(shape_of(part))} for "
                f"{tensor.shape[axis]:,} channels on axis {axis}"
            )


def packed_nbytes(torch_dtype: str, shape: tuple[int, ...]) -> int:
    """Return the bytes that the elements of a packed tensor take: it is packed as if flat."""
    return -(-math.prod(shape) // PACKED[torch_dtype])


def _check_nested(tensor: NestedTensor) -> None:
    values, offsets = shape_of(tensor.values), shape_of(tensor.offsets)
    _dtype(tensor.values)
    if tensor.layout == "strided":
        if tensor.sizes is None or tensor.strides is None or tensor.lengths is not None:
            raise TensorError("a strided nested tensor has sizes, strides, offsets, no lengths")
        sizes, strides = shape_of(tensor.sizes), shape_of(tensor.strides)
        if offsets == (0,) and sizes == strides == () and len(values) == 1:
            return  # torch 2.13 writes an empty one so, and cannot read it itself
        dtypes = {_dtype(part) for part in (tensor.sizes, tensor.strides, tensor.offsets)}
        if not (
            dtypes == {"int64"}
            and len(values) == len(offsets) == 1
            and len(sizes) == 2
            and sizes == strides
            and sizes[0] == offsets[0]
            and sizes[1] <= MAX_NDIM
        ):
            raise TensorError(
                f"a nested tensor has values of shape {list(values)}, sizes of shape "
                f"{list(sizes)}, strides of shape {list(strides)} and offsets of shape "
                f"{list(offsets)} ({', '.join(sorted(dtypes))}), which do not fit together"
            )
        return
    if tensor.layout != "jagged":
        raise TensorError(
            f"the layout of a nested tensor is {shown(tensor.layout)}; 'strided' or 'jagged' was "
            "expected"
        )
    if tensor.sizes is not None or tensor.strides is not None:
        raise TensorError("a jagged nested tensor has offsets, and no sizes or strides")
    ragged = tensor.ragged_idx
    if type(ragged) is not int or not 1 <= ragged <= len(values):
        raise TensorError(
            f"the ragged_idx of a nested tensor over values of {len(values)} dimensions is "
            f"{shown(ragged)}"
        )
    for part in (tensor.offsets, tensor.lengths):
        if part is not None and not (
            _dtype(part) in ("int64", "int32") and len(shape_of(part)) == 1
        ):
            raise TensorError(
                f"the offsets or lengths of a nested tensor are {_dtype(part)} of shape "
                f"{list(shape_of(part))}; int64 or int32 with one dimension was expected"
            )
    lengths = None if tensor.lengths is None else shape_of(tensor.lengths)[0]
    if offsets[0] < 1 or lengths not in (None, offsets[0] - 1):
        raise TensorError(f"a nested tensor has {offsets[0]:,} offsets and {lengths} lengths")


def _check_meta(tensor: MetaTensor) -> None:
    if tensor.torch_dtype not in DTYPES and tensor.torch_dtype not in NAME_ONLY:
        raise TensorError(
            f"the dtype of a meta tensor is {shown(tensor.torch_dtype)}, which torch has not"
        )
    _check_sizes(tensor.shape, "the shape of a meta tensor")
    _check_sizes(tensor.stride, "the stride of a meta tensor")
    if len(tensor.shape) != len(tensor.stride):
        raise TensorError(
            f"a meta tensor has {len(tensor.shape)} sizes and {len(tensor.stride)} strides"
        )
    if math.prod(max(size, 1) for size in tensor.shape) >= _MAX:
        raise TensorError(f"a meta tensor of size {list(tensor.shape)} has 2**63 elements or more")


# -- values ----------------------------------------------------------------------------------


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


def _outside(what: str, low: int, high: int, bound: int) -> TensorError:
    return TensorError(f"{what} go from {low} to {high}; they must lie in 0 to {bound}")


def _row_ends(indices: Array) -> tuple[int, ...]:
    """Return the least of each row, and then the greatest of each."""
    return (*indices.min(axis=1).tolist(), *indices.max(axis=1).tolist())


def _ends(numbers: Array) -> tuple[int, ...]:
    """Return the least and the greatest."""
    return int(numbers.min()), int(numbers.max())


def _steps(numbers: Array) -> tuple[int, ...]:
    """Return the least and greatest first, the least and greatest last, and if it goes back."""
    first, last = numbers[..., 0], numbers[..., -1]
    backwards = bool((numbers[..., 1:] < numbers[..., :-1]).any())
    return (*_ends(first), *_ends(last), int(backwards))


def _check_coo_indices(tensor: SparseTensor, find: Find) -> None:
    if 0 in shape_of(tensor.indices):
        return
    found = find(_row_ends, tensor.indices)
    rows = len(found) // 2
    for axis in range(shape_of(tensor.indices)[0]):
        row = min(axis, rows - 1)  # one row of indices may stand for all of them
        if found[row] < 0 or found[rows + row] >= tensor.shape[axis]:
            raise _outside(
                f"the indices of dimension {axis} of a sparse tensor of shape "
                f"{list(tensor.shape)}", found[row], found[rows + row], tensor.shape[axis] - 1,
            )  # fmt: skip


def _check_compressed_indices(tensor: SparseTensor, find: Find) -> None:
    by_rows, blocks = COMPRESSED[tensor.layout]
    batch = len(shape_of(tensor.indices[1])) - 1
    compressed, plain = tensor.indices
    nnz = tensor.nnz
    if 0 not in shape_of(compressed):
        *ends, backwards = find(_steps, compressed)
        if ends != [0, 0, nnz, nnz]:
            raise TensorError(
                f"the compressed indices of a {tensor.layout} tensor of {nnz:,} values do not go "
                f"from 0 to {nnz:,}"
            )
        if backwards:
            raise TensorError(f"the compressed indices of a {tensor.layout} tensor go backwards")
    if 0 not in shape_of(plain):
        axis = 1 if by_rows else 0
        step = shape_of(tensor.values)[batch + 1 + axis] if blocks else 1
        bound = tensor.shape[batch + axis] // step
        low, high = find(_ends, plain)
        if low < 0 or high >= bound:
            raise _outside(
                f"the plain indices of a {tensor.layout} tensor of shape {list(tensor.shape)}",
                low, high, bound - 1,
            )  # fmt: skip


def _check_nested_strided_values(tensor: NestedTensor, find: Find) -> None:
    if shape_of(tensor.offsets) == (0,):
        return
    numel = shape_of(tensor.values)[0]
    negative, far, reach = find(_reach, tensor.sizes, tensor.strides, tensor.offsets, axes=(0,))
    if negative:
        raise TensorError("a nested tensor has a size, stride or offset below 0")
    if far or reach >= numel:
        raise TensorError(
            f"a tensor within a nested tensor reaches outside the {numel:,} values that it has"
        )


def _reach(sizes: Array, strides: Array, offsets: Array) -> tuple[int, ...]:
    """Return if a number is negative, if one is far too large, and the furthest element."""
    if any(part.size and part.min() < 0 for part in (sizes, strides, offsets)):
        return 1, 0, 0
    # In floats first, which do not overflow and are exact enough to tell what is far outside.
    far = 2.0**62
    filled: Array = np.all(sizes > 0, axis=1)
    reaches = ((sizes.astype(float) - 1) * strides).sum(axis=1) + offsets
    counts = np.maximum(sizes, 1).astype(float).prod(axis=1)
    if (counts >= far).any() or (filled & (reaches >= far)).any():
        return 0, 1, 0
    exact = np.where(filled[:, None], (sizes - 1) * strides, 0).sum(axis=1) + offsets
    return 0, 0, int(np.where(filled, exact, -1).max())


def _check_nested_jagged_values(tensor: NestedTensor, find: Find) -> None:
    size = shape_of(tensor.values)[tensor.ragged_idx - 1]
    low, high = find(_ends, tensor.offsets)
    if low < 0 or high > size:
        raise _outside("the offsets of a nested tensor", low, high, size)
    if tensor.lengths is None:
        if find(_steps, tensor.offsets)[-1]:
            raise TensorError("the offsets of a nested tensor go backwards")
        return
    if 0 in shape_of(tensor.lengths):
        return
    low, high = find(_ends, tensor.lengths)
    if low < 0 or high > size:
        raise _outside("the lengths of a nested tensor", low, high, size)
    if find(_furthest_end, tensor.offsets, tensor.lengths)[0] > size:
        raise TensorError(f"an offset and length of a nested tensor end past its {size:,} values")


def _furthest_end(offsets: Array, lengths: Array) -> tuple[int, ...]:
    starts = offsets if len(offsets) == 1 else offsets[:-1]
    return (int((starts.astype(np.int64) + lengths).max()),)
