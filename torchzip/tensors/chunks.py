"""A tensor whose elements lie in several places: boxes of it, each a tensor of a file.

torch.distributed.checkpoint saves what each rank has of a tensor. A box is given by its offsets
in the whole tensor and its sizes, on any number of axes; together the boxes fill the tensor once.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from torchzip.dtypes import DTYPES
from torchzip.errors import TensorError, UnsupportedError
from torchzip.files.source import Source
from torchzip.tensors.numpy_dtypes import numpy_dtype
from torchzip.tensors.specs import (
    Shape,
    TensorSpec,
    contiguous_stride,
    is_contiguous,
    parts_of_view,
    read_view,
)
from torchzip.tensors.storage import (
    BLOCK_NBYTES,
    READER_NBYTES,
    Bytes,
    MadeStorage,
    Part,
    RangeCrc,
    Reader,
    TensorStorage,
)
from torchzip.tensors.windows import WindowReader, whole_rows

Array = NDArray[Any]

#: Read of each chunk at once, as long as all together are no more than the second number.
_RUN_NBYTES = 1 << 18
_MOST_NBYTES = 16 << 20

#: Comparisons of two boxes for all tensors of a file; a grid of 200 x 200 needs 8 million.
_COMPARISONS = 200_000_000


class Chunk:
    """A box of a tensor, and the tensor that fills it. ``place`` is where messages say it is."""

    __slots__ = ("_spec", "offsets", "place", "sizes")

    def __init__(
        self, offsets: Shape, sizes: Shape, place: str, spec: TensorSpec | None = None
    ) -> None:
        self.offsets = offsets
        self.sizes = sizes
        self.place = place
        self._spec = spec

    def open(self) -> TensorSpec:
        """Return what fills the box: of the tensor's dtype, and of shape ``sizes``."""
        assert self._spec is not None
        return self._spec


class TilingCheck:
    """Sees that boxes fill a tensor, each element once. One is for all tensors of a file."""

    def __init__(self, comparisons: int = _COMPARISONS) -> None:
        self._left = comparisons

    def __call__(self, shape: Shape, chunks: Sequence[Chunk]) -> None:
        """Compare the boxes, none of them empty, with the tensor and with one another.

        Raises
        ------
        TensorError
            If one lies outside, two overlap, or an element is in none.
        UnsupportedError
            If there are so many side by side that comparing them would take minutes.
        """
        for chunk in chunks:
            if len(chunk.offsets) != len(shape) or len(chunk.sizes) != len(shape):
                raise TensorError(
                    f"a chunk at {list(chunk.offsets)} of size {list(chunk.sizes)} of a tensor of "
                    f"{len(shape)} dimensions"
                )
            for offset, size, whole in zip(chunk.offsets, chunk.sizes, shape, strict=True):
                if offset < 0 or size < 0 or offset + size > whole:
                    raise TensorError(
                        f"a chunk at {list(chunk.offsets)} of size {list(chunk.sizes)} reaches out "
                        f"of a tensor of size {list(shape)}"
                    )
        filled = sum(math.prod(chunk.sizes) for chunk in chunks)
        if len(chunks) > 1:
            self._check_pairs(chunks)
        numel = math.prod(shape)
        if filled != numel:
            raise TensorError(
                f"the chunks hold {filled:,} of the {numel:,} elements of a tensor of size "
                f"{list(shape)}; a file may be missing"
            )

    def _check_pairs(self, chunks: Sequence[Chunk]) -> None:
        starts = np.array([chunk.offsets for chunk in chunks], np.int64)
        stops = starts + np.array([chunk.sizes for chunk in chunks], np.int64)
        if not starts.shape[1]:
            raise TensorError("a tensor without dimensions has several chunks")
        # Sorted along the axis on which they differ most, few can overlap.
        axis = max(range(starts.shape[1]), key=lambda each: len(np.unique(starts[:, each])))
        order = np.argsort(starts[:, axis], kind="stable")
        starts, stops = starts[order], stops[order]
        ends = np.searchsorted(starts[:, axis], stops[:, axis])
        self._left -= int((ends - np.arange(len(ends)) - 1).sum()) + len(ends)
        if self._left < 0:
            raise UnsupportedError(f"a tensor of {len(chunks):,} chunks, too many to be compared")
        for first in np.flatnonzero(ends > np.arange(len(ends)) + 1):
            beside = slice(first + 1, ends[first])
            meets = (starts[beside] < stops[first]) & (starts[first] < stops[beside])
            both = np.flatnonzero(meets.all(axis=1))
            if both.size:
                one, other = (chunks[order[each]] for each in (first, first + 1 + both[0]))
                raise TensorError(
                    f"the chunks at {list(one.offsets)} of size {list(one.sizes)} ({one.place}) "
                    f"and at {list(other.offsets)} of size {list(other.sizes)} ({other.place}) "
                    "overlap"
                )


class _Met(NamedTuple):
    """What a chunk has of a box: where that goes in the box, and the view of its tensor."""

    chunk: Chunk
    spec: TensorSpec
    place: tuple[slice, ...]
    shape: Shape
    stride: Shape
    first: int


class ChunkedStorage(MadeStorage):
    """The elements of a tensor in C order, put together from chunks when they are read.

    The chunks are none of them empty and have passed a `TilingCheck`. A read opens and
    reads the chunks that it meets, and of those the bytes that it needs. ``bases`` are their
    storages, unless a chunk opens its file when it is read.
    """

    def __init__(
        self, torch_dtype: str, shape: Shape, chunks: Sequence[Chunk], record: str,
        bases: Sequence[TensorStorage] = (),
    ) -> None:  # fmt: skip
        super().__init__(torch_dtype, math.prod(shape) * DTYPES[torch_dtype].itemsize, bases)
        self.record = record
        self.dtype = numpy_dtype(torch_dtype)
        self.shape = shape
        self._stride = contiguous_stride(shape)
        # Sorted along the axis on which they differ most, to find those that a box meets.
        self._axis = max(
            range(len(shape)),
            key=lambda axis: len({chunk.offsets[axis] for chunk in chunks}),
            default=-1,
        )
        axis = self._axis
        self.chunks = sorted(chunks, key=lambda chunk: chunk.offsets[axis]) if shape else chunks
        self._starts = [chunk.offsets[axis] for chunk in self.chunks] if shape else []
        self._widest = max((chunk.sizes[axis] for chunk in chunks), default=0) if shape else 0

    def span(self) -> tuple[Source, int] | None:
        if len(self.chunks) != 1 or not self.chunks[0].open().is_whole:
            return None
        return self.chunks[0].open().storage.span()

    def made_of(self) -> Iterable[TensorStorage]:
        return [chunk.open().storage for chunk in self.chunks]

    def parts(self, start: int, stop: int) -> Iterator[Part]:
        itemsize = self.dtype.itemsize
        at_once = self.at_once(BLOCK_NBYTES) // itemsize
        row = math.prod(self.shape[1:])
        begin, end = whole_rows(start // itemsize, -(-stop // itemsize), row)
        for first in range(begin, end, at_once):
            for offsets, sizes in boxes(self.shape, first, min(first + at_once, end)):
                for met in self.meeting(sizes, offsets, (1,) * len(sizes)):
                    yield from parts_of_view(met.spec, met.shape, met.stride, met.first)

    def reader(self, start: int, stop: int, nbytes: int = READER_NBYTES) -> Reader:
        return _ChunkedReader(self, start, stop, nbytes)

    def compared(self) -> list[TensorStorage]:
        return [each for _, found in self.with_crcs for each in found]

    @cached_property
    def with_crcs(self) -> list[tuple[Chunk, list[TensorStorage]]]:
        """The chunks that are all of their storage, and what that compares, if anything."""
        opened = ((chunk, chunk.open()) for chunk in self.chunks)
        whole = ((chunk, spec.storage.compared()) for chunk, spec in opened if spec.is_whole)
        return [(chunk, found) for chunk, found in whole if found]

    @cached_property
    def uncompared(self) -> Sequence[TensorStorage]:
        compared = {id(each) for each in self.compared()}
        return [each for each in self.made_of() if each.crc and id(each) not in compared]

    @property
    def tensors(self) -> list[TensorSpec]:
        """The tensors in the boxes."""
        return [chunk.open() for chunk in self.chunks]

    def with_tensors(self, torch_dtype: str, tensors: Iterable[TensorSpec]) -> ChunkedStorage:
        """Return the same boxes with other tensors, in the order of `tensors`."""
        chunks = [
            Chunk(old.offsets, old.sizes, old.place, spec)
            for old, spec in zip(self.chunks, tensors, strict=True)
        ]
        bases = [chunk.open().storage for chunk in chunks]
        return ChunkedStorage(torch_dtype, self.shape, chunks, self.record or "", bases)

    def gather(
        self, dtype: np.dtype[Any], sizes: list[int], steps: list[int], start: int
    ) -> Array | None:
        if dtype != self.dtype:
            return None
        index: list[int] = []
        for step in self._stride:
            place, start = divmod(start, step)
            index.append(place)
        counts, strides = [1] * len(index), [1] * len(index)
        axis = 0
        for size, step in zip(sizes, steps, strict=True):
            while axis < len(index) and not self._fits(axis, index[axis], size, step):
                axis += 1
            if axis == len(index):
                return None  # no part of this tensor; whoever asks will read it in runs
            counts[axis], strides[axis] = size, step // self._stride[axis]
            axis += 1
        made = np.empty(counts, dtype)
        for met in self.meeting(counts, index, strides):
            made[met.place] = read_view(met.spec, met.shape, met.stride, met.first)
        return made.reshape(sizes)

    def _fits(self, axis: int, first: int, size: int, step: int) -> bool:
        jump, rest = divmod(step, self._stride[axis])
        return not rest and jump > 0 and first + (size - 1) * jump < self.shape[axis]

    @cached_property
    def _in_order(self) -> bool:
        """Whether each chunk lies in its storage as it does in the box, or is one element."""
        return all(
            is_contiguous(spec.shape, spec.stride) or not any(spec.stride) for spec in self.tensors
        )

    @cached_property
    def are_runs(self) -> bool:
        """Whether each chunk is a run of the tensor's bytes, and one of its own storage."""
        boxes_are = all(_is_run(chunk.sizes, self.shape) for chunk in self.chunks)
        return boxes_are and all(spec.is_run for spec in self.tensors)

    def at_once(self, nbytes: int) -> int:
        """Return how many bytes to put together at once, where ``nbytes`` would do otherwise.

        Where rows go through many chunks, many rows at once make long runs in each. Of a chunk in
        another order each read costs gaps, so there are few.
        """
        at_once = max(nbytes, _RUN_NBYTES * len(self.chunks))
        if at_once > _MOST_NBYTES or not self._in_order:
            at_once = _MOST_NBYTES
        return at_once

    def meeting(
        self, shape: Sequence[int], start: Sequence[int], steps: Sequence[int]
    ) -> Iterator[_Met]:
        """Yield what chunks have of every ``steps``-th element from ``start`` on, axis by axis."""
        chunks = self.chunks
        if self.shape:
            axis = self._axis
            stop = start[axis] + (shape[axis] - 1) * steps[axis] + 1
            chunks = chunks[
                bisect.bisect_right(self._starts, start[axis] - self._widest) : bisect.bisect_left(
                    self._starts, stop
                )
            ]
        for chunk in chunks:
            place: list[slice] = []
            counts: list[int] = []
            inside: list[int] = []
            for begin, step, count, offset, size in zip(
                start, steps, shape, chunk.offsets, chunk.sizes, strict=True
            ):
                low = max(0, -(-(offset - begin) // step))
                high = min(count, -(-(offset + size - begin) // step))
                place.append(slice(low, high))
                counts.append(high - low)
                inside.append(begin + low * step - offset)
            if any(size <= 0 for size in counts):
                continue
            spec = chunk.open()
            stride = tuple(own * step for own, step in zip(spec.stride, steps, strict=True))
            first = spec.storage_offset + sum(
                at * own for at, own in zip(inside, spec.stride, strict=True)
            )
            yield _Met(chunk, spec, tuple(place), tuple(counts), stride, first)


class _ChunkedReader(WindowReader):
    """Reads each chunk through a reader of its own storage, which takes the CRC of what it reads.

    What a range of the tensor takes from a chunk is a run of it in C order, and the runs follow
    one another. Chunks that are runs of the tensor are read to where they are wanted; of others,
    rows are put together in a window.
    """

    _storage: ChunkedStorage

    def __init__(
        self, storage: ChunkedStorage, start: int, stop: int, nbytes: int = READER_NBYTES
    ) -> None:
        shape, itemsize = storage.shape, storage.dtype.itemsize
        self._range = (start // itemsize, -(-stop // itemsize))
        at_once = min(nbytes, storage.at_once(BLOCK_NBYTES)) if nbytes else 0
        row = math.prod(shape[1:])
        super().__init__(storage, itemsize, row, self._range[1], at_once)
        self._share = nbytes // max(1, len(storage.chunks))
        self._readers: dict[int, Reader] = {}

    def read_into(self, start: int, out: Bytes) -> None:
        first, skip = divmod(start, self._itemsize)
        count, rest = divmod(out.size, self._itemsize)
        if self._storage.are_runs and not skip and not rest:
            self.gather(first, first + count, out)
        else:
            super().read_into(start, out)

    def gather(self, first: int, last: int, out: Bytes) -> None:
        elements, done = out.view(self._storage.dtype), 0
        for start, sizes in boxes(self._storage.shape, first, last):
            count = math.prod(sizes)
            target = elements[done : done + count].reshape(sizes)
            for met in self._storage.meeting(sizes, start, (1,) * len(sizes)):
                self._read(met, target[met.place] if met.place else target)
            done += count

    def _read(self, met: _Met, place: Array) -> None:
        if not met.spec.is_run:
            place[...] = read_view(met.spec, met.shape, met.stride, met.first)
            return
        reader = self._reader_of(met.chunk, met.spec)
        run = place if place.flags.c_contiguous else np.empty(met.shape, place.dtype)
        reader.read_into(met.first * self._itemsize, run.reshape(-1).view(np.uint8))
        if run is not place:
            place[...] = run

    def _reader_of(self, chunk: Chunk, spec: TensorSpec) -> Reader:
        reader = self._readers.get(id(chunk))
        if reader is None:
            start, stop = self._range_of(chunk, spec)
            reader = self._readers[id(chunk)] = spec.storage.reader(start, stop, self._share)
        return reader

    def _range_of(self, chunk: Chunk, spec: TensorSpec) -> tuple[int, int]:
        """Return the bytes of a chunk's storage that are read for the range of this reader."""
        shape = self._storage.shape
        start, stop = (
            (spec.storage_offset + elements_before(chunk, shape, each)) * self._itemsize
            for each in self._range
        )
        return start, stop

    def crcs(self) -> list[RangeCrc]:
        found: list[RangeCrc] = []
        for chunk, compared in self._storage.with_crcs:
            if id(chunk) not in self._readers and compared == [chunk.open().storage]:
                at = self._range_of(chunk, chunk.open())[0]
                found.append(RangeCrc(at, at, 0))  # as a reader gives it that has read nothing
            else:
                found += self._reader_of(chunk, chunk.open()).crcs()
        return found


def elements_before(chunk: Chunk, shape: Shape, element: int) -> int:
    """Return how many elements of a chunk come before one of the whole tensor in C order.

    >>> chunk = Chunk((0, 2), (3, 2), "columns 2 and 3 of 3 rows")
    >>> [elements_before(chunk, (3, 4), element) for element in (0, 3, 4, 10, 12)]
    [0, 1, 2, 4, 6]
    """
    left, found = math.prod(shape), 0
    inner = math.prod(chunk.sizes)
    if element >= left:
        return inner
    for whole, offset, size in zip(shape, chunk.offsets, chunk.sizes, strict=True):
        left //= whole
        inner //= size
        index, element = divmod(element, left)
        found += min(max(index - offset, 0), size) * inner
        if not offset <= index < offset + size:
            break
    return found


def _is_run(sizes: Shape, shape: Shape) -> bool:
    """Return whether the elements of a box follow one another in a tensor of a shape.

    >>> [_is_run(sizes, (4, 3, 2)) for sizes in ((2, 3, 2), (1, 2, 2), (2, 2, 2), (1, 1, 1))]
    [True, True, False, True]
    """
    first = next((axis for axis, size in enumerate(sizes) if size > 1), len(sizes))
    return sizes[first + 1 :] == shape[first + 1 :]


def boxes(shape: Shape, first: int, last: int) -> Iterator[tuple[Shape, Shape]]:
    """Cut a range of a tensor's elements in C order into boxes, in order: (offsets, sizes).

    >>> list(boxes((3, 4), 2, 9))
    [((0, 2), (1, 2)), ((1, 0), (1, 4)), ((2, 0), (1, 1))]
    """
    if first >= last:
        return
    if not shape:
        yield (), ()
        return
    inner = math.prod(shape[1:])
    row, skip = divmod(first, inner)
    end, rest = divmod(last, inner)
    if row == end:
        for start, sizes in boxes(shape[1:], skip, rest):
            yield (row, *start), (1, *sizes)
        return
    if skip:
        for start, sizes in boxes(shape[1:], skip, inner):
            yield (row, *start), (1, *sizes)
        row += 1
    if row < end:
        yield (row, *(0,) * (len(shape) - 1)), (end - row, *shape[1:])
    for start, sizes in boxes(shape[1:], 0, rest):
        yield (end, *start), (1, *sizes)
