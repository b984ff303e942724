"""What a tensor is: a dtype and a shape, laid over a storage.

torch counts ``storage_offset`` and ``stride`` in elements; files count in bytes. The two meet where
a tensor is checked against its storage (`check_spec`), viewed (`view_of`) and read (`read_view`).
"""

from __future__ import annotations

import math
import operator
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from torchzip.dtypes import DTYPES
from torchzip.errors import (
    MAX_NDIM,
    PickleError,
    TensorError,
    UnsupportedError,
    shown,
    too_many_dimensions,
)
from torchzip.leaf_types import ForeignObject
from torchzip.limits import is_number
from torchzip.tensors.numpy_dtypes import numpy_dtype
from torchzip.tensors.storage import Part, TensorStorage

#: Gaps that are fetched along with what lies around them: a request takes as long.
_FAR_GAP_NBYTES = 1 << 20
#: Reads of a strided slice that lie this close together become one if there are many.
_GAP_NBYTES = 4096
_MANY_READS = 1024
_CHUNK_NBYTES = 1 << 22
_SMALL_NBYTES = 1 << 24
_MAX = 1 << 63


#: A shape, or a stride.
Shape = tuple[int, ...]


@dataclass(slots=True, eq=False, repr=False)
class TensorSpec:
    """One tensor, as `_rebuild_tensor_v2` describes it, with what its class adds.

    A tensor with Python attributes, or of a subclass, has the name of its class in ``subclass`` and
    its state in ``attributes``; ``subclass`` is None for the plain ones.
    """

    torch_dtype: str
    shape: Shape
    stride: Shape
    storage_offset: int
    storage: TensorStorage
    requires_grad: bool = False
    conj: bool = False
    neg: bool = False
    is_parameter: bool = False
    attributes: Any = None
    subclass: ForeignObject | None = None

    @property
    def numel(self) -> int:
        return math.prod(self.shape)

    @property
    def is_run(self) -> bool:
        """Whether the elements are bytes of the storage as they are, in C order."""
        return is_contiguous(self.shape, self.stride) and not (self.conj or self.neg)

    @property
    def is_whole(self) -> bool:
        """Whether they are all of its bytes."""
        nbytes = self.numel * DTYPES[self.torch_dtype].itemsize
        return self.is_run and (self.storage_offset, nbytes) == (0, self.storage.nbytes)

    def replace(self, **changes: Any) -> TensorSpec:
        """Return a copy with some fields changed."""
        made = TensorSpec(*_FIELDS(self))
        for name, value in changes.items():
            setattr(made, name, value)
        return made


_FIELDS = attrgetter(*TensorSpec.__slots__)


def contiguous_stride(shape: Shape) -> Shape:
    """Return the stride that torch gives a fresh tensor.

    >>> contiguous_stride((2, 0, 3))
    (3, 3, 1)
    """
    stride = []
    step = 1
    for size in reversed(shape):
        stride.append(step)
        step *= max(size, 1)
    return tuple(reversed(stride))


def is_contiguous(shape: Shape, stride: Shape) -> bool:
    """Return whether the elements lie in C order without gaps."""
    return 0 in shape or (
        len(shape) == len(stride)
        and all(
            size == 1 or step == usual
            for size, step, usual in zip(shape, stride, contiguous_stride(shape), strict=True)
        )
    )


def opened(spec: TensorSpec) -> TensorSpec:
    """Return what a view is a view of: the same elements as they lie in a file; others as they are.

    The strides of that can be negative.
    """
    viewed: TensorSpec | None = spec.storage.viewed
    if viewed is None or viewed.shape != spec.shape:
        return spec
    return viewed if spec.is_run and not spec.storage_offset else spec


def layout(spec: TensorSpec) -> Any:
    """Return what two tensors of the same elements have in common, as a key of a dict.

    The numbers are bytes in it: tuples of ints can be chosen so that all have one hash.
    """
    shape, stride = spec.shape, spec.stride
    numbers = struct.pack(f"{2 * len(shape) + 1}q", *shape, *stride, spec.storage_offset)
    return id(spec.storage), spec.torch_dtype, numbers, spec.conj, spec.neg


def is_dense(shape: Shape, stride: Shape) -> bool:
    """Return whether the elements lie without gaps, and none twice, in some order of the axes.

    >>> is_dense((2, 3), (1, 2)), is_dense((2, 3), (1, 3)), is_dense((2, 3), (0, 1))
    (True, False, False)
    """
    axes = sorted(zip(stride, shape, strict=True), reverse=True)
    return is_contiguous(tuple(size for _, size in axes), tuple(step for step, _ in axes))


def check_spec(spec: TensorSpec) -> TensorSpec:
    """Return ``spec`` if every number in it is one and lies in bounds, else raise TensorError.

    The numbers come from a file. Python's integers do not overflow, so the sums are exact.
    """
    shape, stride, offset = spec.shape, spec.stride, spec.storage_offset
    if not (isinstance(shape, tuple | list) and isinstance(stride, tuple | list)):
        raise TensorError(
            f"a tensor has {shown(shape)} for its size and {shown(stride)} for its stride; tuples "
            "of ints were expected"
        )
    spec.shape = shape = tuple(shape)
    spec.stride = stride = tuple(stride)
    if len(shape) != len(stride):
        raise TensorError(
            f"a tensor has a size of {len(shape):,} dimensions and a stride of {len(stride):,}; as "
            "many were expected"
        )
    if len(shape) > MAX_NDIM:
        raise too_many_dimensions("a tensor", len(shape))
    numel = 1
    last = 0
    for size, step in zip(shape, stride, strict=True):
        # Numbers past 2**63 are refused before they are used: they could not even be printed.
        if not (type(size) is int and type(step) is int and 0 <= size < _MAX and 0 <= step < _MAX):
            what, number = ("stride", step) if is_number(size) else ("size", size)
            raise TensorError(
                f"the {what} of a tensor has {shown(number)} in it; ints from 0 to 2**63 were "
                "expected"
            )
        numel *= size
        last += (size - 1) * step
    if not (type(offset) is int and 0 <= offset < _MAX):
        raise TensorError(
            f"the storage offset of a tensor is {shown(offset)}; an int from 0 to 2**63 was "
            "expected"
        )
    last += offset
    itemsize = DTYPES[spec.torch_dtype].itemsize
    if numel:
        if (last + 1) * itemsize > spec.storage.nbytes:
            raise TensorError(
                f"a tensor of size {list(shape)}, stride {list(stride)} and offset {offset:,} "
                f"reaches to byte {(last + 1) * itemsize:,} of a storage of "
                f"{spec.storage.nbytes:,} bytes"
            )
        if numel * itemsize >= _MAX:
            raise TensorError(f"a tensor of size {list(shape)} takes 2**63 bytes or more")
    elif math.prod(max(size, 1) for size in shape) * itemsize >= _MAX:
        raise TensorError(
            f"an empty tensor of size {list(shape)} takes 2**63 bytes or more without its zeros"
        )
    return spec


def check_count(name: str, args: tuple[Any, ...], *counts: int) -> None:
    """Raise PickleError unless a call has one of these numbers of arguments."""
    if len(args) not in counts:
        wanted = " or ".join(map(str, counts))
        raise PickleError(f"{name} takes {wanted} arguments, not {len(args)}")


def check_requires_grad(what: str, value: Any) -> None:
    """Raise TensorError unless the requires_grad of a tensor is a bool."""
    if type(value) is not bool:
        raise TensorError(f"requires_grad of {what} is {shown(value)}; True or False was expected")


def wrong_dtype(what: str, value: Any) -> TensorError:
    """Return the error of a tensor whose dtype is not one that a tensor can have."""
    return TensorError(
        f"the dtype of {what} is {shown(value)}; a torch dtype that tensors have was expected"
    )


def check_hooks(hooks: Any) -> None:
    """Raise UnsupportedError if a tensor has backward hooks; torch writes an empty dict."""
    if not (hooks is None or (isinstance(hooks, dict) and len(hooks) == 0)):
        raise UnsupportedError(
            f"a tensor has {shown(hooks)} for its backward hooks; tensors without any are read"
        )


def span_of(shape: Sequence[int], stride: Sequence[int]) -> int:
    """Return the elements from the first to the last of a tensor that has some, gaps included.

    A broadcast axis (stride 0) adds nothing however long it is.

    >>> span_of((3, 2), (1, 3)), span_of((3, 2), (0, 5))
    (6, 6)
    """
    return 1 + sum((size - 1) * step for size, step in zip(shape, stride, strict=True))


def view_of(data: Any, spec: TensorSpec) -> NDArray[Any]:
    """Return the array that views ``data``, all bytes of the spec's storage, as the tensor.

    Conj and neg are not applied.
    """
    dtype = numpy_dtype(spec.torch_dtype)
    if 0 in spec.shape:
        return np.empty(spec.shape, dtype)
    strides = tuple(
        step * dtype.itemsize if size > 1 or step * dtype.itemsize < 1 << 62 else 0
        for size, step in zip(spec.shape, spec.stride, strict=True)
    )
    return np.ndarray(
        spec.shape, dtype, buffer=data, offset=spec.storage_offset * dtype.itemsize, strides=strides
    )


def resolve_bits(array: NDArray[Any], spec: TensorSpec) -> NDArray[Any]:
    """Return ``array`` with the spec's lazy conjugation and negation carried out."""
    if spec.torch_dtype == "complex32" and (spec.conj or spec.neg):
        return _turned_halves(array, spec.neg, spec.neg != spec.conj)
    if spec.conj:
        array = np.asarray(np.conjugate(array))  # numpy makes a scalar of a 0-d array
    if spec.neg:
        array = np.asarray(np.negative(array))
    return array


def _turned_halves(array: NDArray[Any], real: bool, imag: bool) -> NDArray[Any]:
    """Return complex32 values with the signs turned: ml_dtypes loses what is in a NaN."""
    halves = np.array(array, order="C").reshape(-1).view(np.uint16)
    for first, turned in enumerate((real, imag)):
        if turned:
            halves[first::2] ^= 0x8000
    return halves.view(array.dtype).reshape(array.shape)


def whole_numbers(what: str, given: Any) -> tuple[int, ...]:
    """Return the ints that a caller gives, in any sequence; those of numpy become plain ones."""
    try:
        return tuple(int(operator.index(number)) for number in given)
    except TypeError:
        raise TypeError(f"{what} is made of ints, not {shown(given)}") from None


def check_shape(shape: Shape, torch_dtype: str) -> None:
    """Raise TensorError for a shape that no tensor of a dtype has."""
    if any(size < 0 for size in shape):
        raise TensorError(f"a shape of {list(shape)}; sizes are not negative")
    if len(shape) > MAX_NDIM:
        raise too_many_dimensions("a tensor", len(shape))
    if math.prod(max(size, 1) for size in shape) * DTYPES[torch_dtype].itemsize >= _MAX:
        raise TensorError(f"a shape of {list(shape)}, which no file can hold")


def slice_spec(spec: TensorSpec, key: Any) -> tuple[Shape, Shape, int] | None:
    """Return shape, stride and offset of ``tensor[key]``; None if ``key`` is not a basic index.

    Strides can be negative, as numpy's are.

    Raises
    ------
    IndexError
        If it points outside the tensor.
    """
    keys = key if isinstance(key, tuple) else (key,)
    plain: list[Any] = []
    for item in keys:
        if item is None or item is Ellipsis or isinstance(item, slice):
            plain.append(item)
        elif isinstance(item, int | np.integer) and not isinstance(item, bool):
            plain.append(int(item))
        else:
            return None
    used = len(plain) - plain.count(None) - plain.count(Ellipsis)
    if plain.count(Ellipsis) > 1:
        raise IndexError("an index has at most one ellipsis (...)")
    if used > len(spec.shape):
        raise IndexError(f"{used} indices for a tensor of {len(spec.shape)} dimensions")
    at = plain.index(Ellipsis) if Ellipsis in plain else len(plain)
    plain[at : at + 1] = [slice(None)] * (len(spec.shape) - used)
    shape: list[int] = []
    stride: list[int] = []
    offset = spec.storage_offset
    axis = 0
    for item in plain:
        if item is None:
            shape.append(1)
            stride.append(0)
            continue
        size, step = spec.shape[axis], spec.stride[axis]
        axis += 1
        if isinstance(item, int):
            if not -size <= item < size:
                raise IndexError(f"index {item} on axis {axis - 1} of size {size}")
            offset += (item % size) * step
        else:
            assert isinstance(item, slice)
            chosen = range(size)[item]
            shape.append(len(chosen))
            stride.append(chosen.step * step)
            if chosen:
                offset += chosen.start * step
    return tuple(shape), tuple(stride), offset


def read_view(spec: TensorSpec, shape: Shape, stride: Shape, offset: int) -> NDArray[Any]:
    """Return a part of a tensor: the elements at ``offset + sum(index * stride)`` of its storage.

    Reads the bytes that are needed and no others, apart from small gaps where that saves thousands
    of reads. Conj and neg are carried out before broadcast axes are repeated, on each element once.
    """
    array = _read_once(spec.storage, numpy_dtype(spec.torch_dtype), shape, stride, offset)
    return broadcast(resolve_bits(array, spec), shape)


def parts_of_view(spec: TensorSpec, shape: Shape, stride: Shape, offset: int) -> Iterator[Part]:
    """Yield what `read_view` reads of files, with small gaps."""
    if 0 in shape:
        return
    itemsize = DTYPES[spec.torch_dtype].itemsize
    _, sizes, steps, start = _moving(shape, stride, offset)
    level, run = len(sizes), 1
    while level and (steps[level - 1] - run) * itemsize <= _FAR_GAP_NBYTES:
        level -= 1
        run += (sizes[level] - 1) * steps[level]
    for index in np.ndindex(*sizes[:level]):
        at = start + sum(i * step for i, step in zip(index, steps, strict=False))
        yield from spec.storage.parts(at * itemsize, (at + run) * itemsize)


def _moving(
    shape: Shape, stride: Shape, offset: int
) -> tuple[list[int], list[int], list[int], int]:
    """Return the axes that move, outermost first, their sizes and steps, and the first element.

    A backward axis is read forwards.
    """
    axes = [axis for axis in range(len(shape)) if shape[axis] > 1 and stride[axis] != 0]
    axes.sort(key=lambda axis: -abs(stride[axis]))
    start = offset + sum((shape[axis] - 1) * stride[axis] for axis in axes if stride[axis] < 0)
    return axes, [shape[axis] for axis in axes], [abs(stride[axis]) for axis in axes], start


def _read_once(
    storage: TensorStorage, dtype: np.dtype[Any], shape: Shape, stride: Shape, offset: int
) -> NDArray[Any]:
    """Return elements of a storage, with one on each broadcast axis (stride 0)."""
    if 0 in shape:
        return np.empty(shape, dtype)
    axes, sizes, steps, start = _moving(shape, stride, offset)
    span = span_of(sizes, steps)
    gathered = storage.gather(dtype, sizes, steps, start)
    if gathered is not None:
        packed = gathered
    elif span <= math.prod(sizes) or not storage.random_access:
        data = storage.read(start * dtype.itemsize, (start + span) * dtype.itemsize)
        packed = np.ndarray(
            tuple(sizes), dtype, buffer=data, strides=tuple(s * dtype.itemsize for s in steps)
        )
    else:
        packed = _read_runs(storage, dtype, sizes, steps, start)
    # Back to the order and direction of the tensor's own axes.
    backward = tuple(slice(None, None, -1 if stride[axis] < 0 else 1) for axis in axes)
    packed = packed[backward]
    order = sorted(range(len(axes)), key=lambda place: axes[place])
    kept = set(axes)
    whole = (slice(None) if axis in kept else None for axis in range(len(shape)))
    return packed.transpose(order)[(..., *whole)]


def broadcast(array: NDArray[Any], shape: Shape) -> NDArray[Any]:
    """Return ``array`` with its axes of one element repeated to ``shape``.

    A file can describe an enormous tensor over one element, so a large one stays a view, which is
    read-only. A small one is an array like any other.
    """
    if array.shape == shape:
        return array
    view = np.broadcast_to(array, shape)
    return view.copy() if math.prod(shape) * array.itemsize <= _SMALL_NBYTES else view


def _read_runs(
    storage: TensorStorage, dtype: np.dtype[Any], sizes: list[int], steps: list[int], start: int
) -> NDArray[Any]:
    """Read the elements of axes that leave gaps, as a packed array of shape ``sizes``."""
    packed = np.empty(tuple(sizes), dtype)
    itemsize = dtype.itemsize
    # The innermost axes from `level` on are read as one run, gaps included.
    level = len(sizes)
    run = 1
    while level and steps[level - 1] == run:
        level -= 1
        run *= sizes[level]
    reads = math.prod(sizes[:level])
    while level and reads > _MANY_READS and (steps[level - 1] - run) * itemsize <= _GAP_NBYTES:
        level -= 1
        reads //= sizes[level]
        run += (sizes[level] - 1) * steps[level]
    end = start + span_of(sizes, steps)
    reader = storage.reader(start * itemsize, end * itemsize, 0)
    if level and run == math.prod(sizes[level:]):  # without gaps: each is read where it goes
        places = iter(packed.reshape(-1, run).view(np.uint8))
        span = sizes[level - 1] * steps[level - 1]
        for index in np.ndindex(*sizes[: level - 1]):
            at = start + sum(i * step for i, step in zip(index, steps, strict=False))
            for begin in range(at, at + span, steps[level - 1]):
                reader.read_into(begin * itemsize, next(places))
        return packed
    inner_strides = tuple(step * itemsize for step in steps[level:])
    for index in np.ndindex(*sizes[:level]):
        at = start + sum(i * step for i, step in zip(index, steps, strict=False))
        for rows, first, count in _chunks(sizes[level:], steps[level:], run, itemsize):
            begin = at + first
            data = storage.read(begin * itemsize, (begin + count) * itemsize)
            target = packed[(*index, ...)] if rows is None else packed[index][rows]
            target[...] = np.ndarray(target.shape, dtype, buffer=data, strides=inner_strides)
    return packed


def _chunks(
    sizes: list[int], steps: list[int], run: int, itemsize: int
) -> Iterator[tuple[slice | None, int, int]]:
    """Cut a run into parts of bounded size along its first axis: (rows, first element, count)."""
    if not sizes or run * itemsize <= _CHUNK_NBYTES:
        yield None, 0, run
        return
    tail = run - (sizes[0] - 1) * steps[0]  # elements that one row spans
    rows = max(1, _CHUNK_NBYTES // itemsize // steps[0])
    for first in range(0, sizes[0], rows):
        last = min(first + rows, sizes[0])
        yield slice(first, last), first * steps[0], (last - first - 1) * steps[0] + tail
