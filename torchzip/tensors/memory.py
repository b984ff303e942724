"""Which arrays share memory, and what of it is saved: numpy arrays -> storages.

Arrays that overlap become views of one storage, so tied weights stay tied; views of one
buffer that lie side by side without a gap do too, as they would in torch. A storage
holds what the arrays reach and nothing else of the buffer: a 4 KB view never drags a
4 GB base along. A view with gaps that shares its elements with no other is packed.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from torchzip.dtypes import DTYPES
from torchzip.errors import printable, shortened
from torchzip.tensors.numpy_dtypes import torch_dtype_of
from torchzip.tensors.specs import Shape, contiguous_stride
from torchzip.tensors.storage import BLOCK_NBYTES, ArrayStorage, Bytes, TensorStorage

Array = NDArray[Any]

#: So many views with gaps between them are compared pair by pair; more become one storage.
_MAX_EXACT = 64
#: How much numpy may think about a pair; past it, the pair counts as sharing.
_MAX_WORK: Any = 100_000


class Placement(NamedTuple):
    """Where an array lies: a storage, and offset and stride in elements."""

    storage: TensorStorage
    storage_offset: int
    stride: Shape


class PackedStorage(TensorStorage):
    """The elements of one array in C order and native bytes, packed when they are read."""

    def __init__(self, array: Array, torch_dtype: str | None) -> None:
        self._array = np.asarray(array)  # the rows of a matrix would be matrices for ever
        self._native = array.dtype.newbyteorder("=")
        self.nbytes = array.nbytes
        self.torch_dtype = torch_dtype
        self.location = "cpu"

    def read_into(self, start: int, out: Bytes) -> None:
        out[:] = self._pack(self._array)[start : start + out.nbytes]

    def blocks(self, nbytes: int = BLOCK_NBYTES) -> Iterator[Bytes]:
        for part in _rows(self._array, nbytes):
            yield self._pack(part)

    def _pack(self, array: Array) -> Bytes:
        packed = np.ascontiguousarray(array, self._native)
        return packed.reshape(-1).view(np.uint8)


def _rows(array: Array, nbytes: int) -> Iterator[Array]:
    """Cut an array along its outer axes into parts of about ``nbytes``, in C order."""
    if array.nbytes <= nbytes or array.ndim == 0:
        if array.size:
            yield array
        return
    row = array.nbytes // len(array)
    if row > nbytes:
        for part in array:
            yield from _rows(part, nbytes)
        return
    step = max(1, nbytes // row)
    for first in range(0, len(array), step):
        yield array[first : first + step]


def torch_dtype_to_save(array: Array) -> str:
    """Return the torch dtype of an array.

    Raises
    ------
    TypeError
        If torch has no such dtype. The message has no path: the caller knows it.
    """
    name = torch_dtype_of(array.dtype)
    if name is None and not array.dtype.isnative:
        name = torch_dtype_of(array.dtype.newbyteorder("="))
    if name is None:
        raise TypeError(
            f"cannot save an array of dtype {array.dtype}, which torch does not have; save its "
            "tolist(), or convert it with astype"
        )
    if isinstance(array, np.ma.MaskedArray):
        raise TypeError("cannot save a masked array; torch has no mask. Fill it first")
    return name


@dataclass(slots=True)
class Extent:
    """The memory of one array whose layout torch can have."""

    array: Array
    torch_dtype: str
    start: int  # address of the first byte
    stop: int
    stride: Shape
    owner: int  # id of the object that owns the memory
    reached: int  # bytes that the array's elements take

    @property
    def has_gaps(self) -> bool:
        return self.reached < self.stop - self.start


def owner_of(array: Array) -> Any:
    """Return the object that owns an array's memory: an array, or what it was made from."""
    owner: Any = array
    while True:
        if isinstance(owner, np.ndarray) and owner.base is not None:
            owner = owner.base
        elif isinstance(owner, memoryview):
            owner = owner.obj
        else:
            return owner


def extent_of(array: Array, torch_dtype: str) -> Extent | None:
    """Return the memory that an array spans; None if torch cannot have such a layout.

    That is: other byte order, negative strides, strides that are not whole elements.
    """
    itemsize = array.itemsize
    if not array.dtype.isnative:
        return None
    plain = contiguous_stride(array.shape)
    if not array.size:
        # What strides it has depends on the release of numpy, and means nothing.
        start = array.ctypes.data
        return Extent(array, torch_dtype, start, start, plain, id(owner_of(array)), 0)
    stride = []
    span = reached = 1
    for size, step, usual in zip(array.shape, array.strides, plain, strict=True):
        if step % itemsize or step < 0:
            if size > 1:
                return None
            step = usual * itemsize  # never used, so as good as any
        stride.append(step // itemsize)
        if size > 1 and step:
            span += (size - 1) * (step // itemsize)
            reached *= size
    start = array.ctypes.data
    return Extent(
        array, torch_dtype, start, start + span * itemsize, tuple(stride),
        id(owner_of(array)), min(reached, span) * itemsize,
    )  # fmt: skip


def packed(array: Array, torch_dtype: str) -> Placement:
    """Place an array into a storage of its own, in C order."""
    if array.flags.c_contiguous and array.dtype.isnative:
        storage: TensorStorage = ArrayStorage(array, torch_dtype)
    else:
        storage = PackedStorage(array, torch_dtype)
    return Placement(storage, 0, contiguous_stride(array.shape))


def place_arrays(
    arrays: Sequence[tuple[Array, str]], path_of: Callable[[int], str] = str
) -> list[Placement]:
    """Return the placement of each (array, torch dtype), sharing storages where memory is shared.

    ``path_of`` gives what messages call an array, by its index.

    Raises
    ------
    ValueError
        If arrays of different dtypes share memory, which torch cannot save either.
    """
    result: dict[int, Placement] = {}
    extents: list[tuple[Extent, int]] = []
    for index, (array, torch_dtype) in enumerate(arrays):
        extent = extent_of(array, torch_dtype)
        if extent is None:
            result[index] = packed(array, torch_dtype)
        elif extent.start == extent.stop:
            empty = ArrayStorage(np.empty(0, np.uint8), torch_dtype)
            result[index] = Placement(empty, 0, extent.stride)
        else:
            extents.append((extent, index))
    extents.sort(key=lambda pair: (pair[0].start, pair[0].stop))
    for component in _components(extents):
        try:
            result.update(_place_component(component))
        except ValueError as error:
            names = sorted(path_of(index) for _, index in component)
            listed = ", ".join(shortened(printable(name), 100) for name in names[:8]) + (
                ", ..." if len(names) > 8 else ""
            )
            raise ValueError(f"{listed}: {error}") from None
    return [result[index] for index in range(len(arrays))]


@dataclass(slots=True, eq=False)
class Form:
    """What the opcodes of a tensor on a storage of its own say, beside the storage's key.

    ``numel`` is of the storage. ``parameter`` is None, or whether a Parameter requires a gradient.
    Equal by identity: whoever makes many tensors gives those that are alike one form.
    """

    torch_dtype: str
    shape: Shape
    stride: Shape
    storage_offset: int
    numel: int
    parameter: bool | None = None

    def of_parameter(self, requires_grad: bool) -> Form:
        """Return the form of a Parameter with such data."""
        return replace(self, parameter=requires_grad)


def plain_form(dtype: np.dtype[Any], shape: Shape, strides: Shape) -> Form | None:
    """Return the form of an array that is saved as it is, from first byte to last, else None."""
    torch_dtype = torch_dtype_of(dtype)  # none for bytes in another order
    numel = math.prod(shape)
    stride = contiguous_stride(shape)
    # An axis of one element may have any stride, and keeps it.
    if torch_dtype is None or not numel or tuple(s * dtype.itemsize for s in stride) != strides:
        return None
    return Form(torch_dtype, shape, stride, 0, numel)


def addresses(arrays: Sequence[Array]) -> list[int]:
    """Return where the bytes of arrays begin."""
    # A quarter of the time of `ndarray.ctypes`, an eighth of `__array_interface__`.
    view: Callable[[Any], ctypes.c_char] = ctypes.c_char.from_buffer
    try:
        return list(map(ctypes.addressof, map(view, arrays)))
    except (TypeError, ValueError, BufferError):  # read-only, empty, or of ml_dtypes
        return [array.ctypes.data for array in arrays]


def are_apart(starts: NDArray[np.int64], stops: NDArray[np.int64]) -> NDArray[np.bool]:
    """Return for each range of addresses whether it neither overlaps nor touches another."""
    order = np.argsort(starts, kind="stable")
    first, last = starts[order], np.maximum.accumulate(stops[order])
    meets_next = np.zeros(len(order) + 1, np.bool)
    meets_next[1:-1] = first[1:] <= last[:-1]
    apart = np.empty(len(order), np.bool)
    apart[order] = ~(meets_next[1:] | meets_next[:-1])
    return apart


def _components(extents: list[tuple[Extent, int]]) -> Iterator[list[tuple[Extent, int]]]:
    """Cut sorted extents into runs that overlap, or touch within one buffer and dtype."""
    current: list[tuple[Extent, int]] = []
    stop = 0
    for pair in extents:
        extent = pair[0]
        if current:
            last = current[-1][0]
            touches = (
                extent.start == stop
                and extent.owner == last.owner
                and extent.torch_dtype == last.torch_dtype
                and not extent.has_gaps
                and not last.has_gaps
            )
            if not (extent.start < stop or touches):
                yield current
                current = []
        current.append(pair)
        stop = max(stop, extent.stop) if len(current) > 1 else extent.stop
    if current:
        yield current


def _place_component(component: list[tuple[Extent, int]]) -> Iterator[tuple[int, Placement]]:
    extents = [extent for extent, _ in component]
    if not _leaves_gaps(extents):
        yield from _place_together(component)
        return
    for cluster in _sharing_clusters(component):
        views = {(e.start, e.array.shape, e.stride) for e, _ in cluster}
        if len(views) == 1 and cluster[0][0].has_gaps:
            # One view, perhaps under several names: only its elements.
            first = cluster[0][0]
            place = packed(first.array, first.torch_dtype)
            for _, index in cluster:
                yield index, place
        else:
            yield from _place_together(cluster)


def _leaves_gaps(extents: list[Extent]) -> bool:
    """Return whether some byte from the first to the last is reached by no array."""
    stop = extents[0].start
    for extent in extents:  # sorted by start: the gapless ones must cover all
        if not extent.has_gaps:
            if extent.start > stop:
                return True
            stop = max(stop, extent.stop)
    return stop < max(extent.stop for extent in extents)


def _sharing_clusters(component: list[tuple[Extent, int]]) -> list[list[tuple[Extent, int]]]:
    """Group extents that have elements in common, not only address ranges."""
    if len(component) > _MAX_EXACT:
        return [component]
    cluster_of = list(range(len(component)))
    for second, (b, _) in enumerate(component):
        for first, (a, _) in enumerate(component[:second]):
            joined = cluster_of[first]
            if b.start >= a.stop or joined == cluster_of[second]:
                continue
            try:
                shared = np.shares_memory(a.array, b.array, max_work=_MAX_WORK)
            except np.exceptions.TooHardError:
                shared = True
            if shared:
                left = cluster_of[second]
                cluster_of = [joined if each == left else each for each in cluster_of]
    clusters: dict[int, list[tuple[Extent, int]]] = {}
    for cluster, pair in zip(cluster_of, component, strict=True):
        clusters.setdefault(cluster, []).append(pair)
    return list(clusters.values())


def _place_together(cluster: list[tuple[Extent, int]]) -> Iterator[tuple[int, Placement]]:
    """Place arrays as views of one storage that spans them all."""
    start = min(extent.start for extent, _ in cluster)
    stop = max(extent.stop for extent, _ in cluster)
    torch_dtypes = {extent.torch_dtype for extent, _ in cluster}
    if len(set(map(storage_kind, torch_dtypes))) > 1:
        raise ValueError(shared_memory(torch_dtypes))
    storage: TensorStorage | None = None
    for extent, index in cluster:
        itemsize = DTYPES[extent.torch_dtype].itemsize
        if (extent.start - start) % itemsize:
            yield index, packed(extent.array, extent.torch_dtype)
            continue
        if storage is None:
            data = memory_span(start, stop, keep=[e.array for e, _ in cluster])
            storage = ArrayStorage(data, extent.torch_dtype)
        yield index, Placement(storage, (extent.start - start) // itemsize, extent.stride)


def storage_kind(torch_dtype: str) -> str:
    """Return what must be one for tensors that share a storage, in torch too.

    It is the dtype; those without a storage class of their own count as uint8.
    """
    return torch_dtype if DTYPES[torch_dtype].storage_class else "uint8"


def shared_memory(torch_dtypes: Iterable[str]) -> str:
    """Return what is wrong where arrays of these dtypes share memory, which torch refuses too."""
    names = " and ".join(sorted(set(torch_dtypes)))
    return f"arrays of dtype {names} share memory, which a checkpoint cannot keep; copy one"


class _Span:
    def __init__(self, start: int, nbytes: int, keep: Any) -> None:
        self.keep = keep
        self.__array_interface__ = {
            "data": (start, True),
            "shape": (nbytes,),
            "typestr": "|u1",
            "version": 3,
        }


def memory_span(start: int, stop: int, keep: Any) -> Bytes:
    """Return the bytes between two addresses, which ``keep`` keeps alive, read-only."""
    return np.asarray(_Span(start, stop - start, keep))
