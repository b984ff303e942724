"""The elements of a tensor in C order, as a storage of their own."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from operator import mul

from torchzip.dtypes import DTYPES
from torchzip.tensors.chunks import boxes
from torchzip.tensors.numpy_dtypes import numpy_dtype
from torchzip.tensors.specs import (
    Shape,
    TensorSpec,
    is_contiguous,
    parts_of_view,
    read_view,
    resolve_bits,
)
from torchzip.tensors.storage import (
    BLOCK_NBYTES,
    READER_NBYTES,
    Bytes,
    MadeStorage,
    Part,
    RangeCrc,
    Reader,
    SpanStorage,
    TensorStorage,
)
from torchzip.tensors.windows import WindowReader, whole_rows

#: Runs of so many bytes are read as quickly from small pieces, which stay in the cache.
_LONG_RUN_NBYTES = 1 << 13
_SMALL_GATHER_NBYTES = 1 << 20


def elements_of(spec: TensorSpec) -> TensorStorage:
    """Return the elements of a tensor in C order: its own storage, if that holds just these."""
    return spec.storage if spec.is_whole else ElementStorage(spec)


class ElementStorage(MadeStorage):
    """What a tensor holds, without what else is in its storage, in C order.

    Conj and neg are carried out. ``is_strided``: the elements do not follow one another in the
    tensor's storage, where ``start`` is the byte at which the tensor begins. ``is_range``: they are
    bytes of it as they are, and ``is_whole``: all of them.
    """

    def __init__(self, spec: TensorSpec) -> None:
        self._element_nbytes = DTYPES[spec.torch_dtype].itemsize
        super().__init__(spec.torch_dtype, spec.numel * self._element_nbytes, (spec.storage,))
        self.spec = self.viewed = spec
        self.location = spec.storage.location
        self.record = spec.storage.record
        self.is_strided = not is_contiguous(spec.shape, spec.stride)
        self.is_range = not (self.is_strided or spec.conj or spec.neg)
        self.start = spec.storage_offset * self._element_nbytes
        self.is_whole = self.is_range and (self.start, self.nbytes) == (0, spec.storage.nbytes)

    def parts(self, start: int, stop: int) -> Iterator[Part]:
        if self.is_range:
            yield from self.spec.storage.parts(self.start + start, self.start + stop)
            return
        itemsize = self._element_nbytes
        at_once = READER_NBYTES // itemsize  # as much is gathered at once
        row = math.prod(self.spec.shape[1:])
        begin, end = whole_rows(start // itemsize, -(-stop // itemsize), row)
        for first in range(begin, end, at_once):
            for offset, sizes in self._boxes(first, min(first + at_once, end)):
                yield from parts_of_view(self.spec, sizes, self.spec.stride, offset)

    def read_into(self, start: int, out: Bytes) -> None:
        if self.is_range:
            self.spec.storage.read_into(self.start + start, out)
        else:
            super().read_into(start, out)

    def compared(self) -> list[TensorStorage]:
        return self.spec.storage.compared() if self.is_whole else []

    @property
    def uncompared(self) -> Sequence[TensorStorage]:
        return self.spec.storage.uncompared if self.is_whole else ()

    def reader(self, start: int, stop: int, nbytes: int = READER_NBYTES) -> Reader:
        if not self.is_strided:
            if self.is_range and isinstance(self.spec.storage, SpanStorage) and not self.is_whole:
                return Reader(self)
            base = self.spec.storage.reader(self.start + start, self.start + stop, nbytes)
            return _RunReader(self, base) if self.is_range else _TurningReader(self, stop, base)
        if not self.random_access:
            stop = nbytes = self.nbytes  # all at once: each read is one of the whole stream
        elif _has_long_runs(self.spec.shape, self.spec.stride, self._element_nbytes):
            nbytes = min(nbytes, _SMALL_GATHER_NBYTES)
        itemsize, row = self._element_nbytes, math.prod(self.spec.shape[1:])
        return _GatheringReader(self, itemsize, row, -(-stop // itemsize), nbytes)

    def _boxes(self, first: int, last: int) -> Iterator[tuple[int, Shape]]:
        """Yield a range of the elements in boxes: where each begins in the storage, its sizes."""
        for start, sizes in boxes(self.spec.shape, first, last):
            yield self.spec.storage_offset + sum(map(mul, start, self.spec.stride)), sizes


class _GatheringReader(WindowReader):
    """Reads elements that do not follow one another."""

    _storage: ElementStorage

    def gather(self, first: int, last: int, out: Bytes) -> None:
        spec = self._storage.spec
        elements = out.view(numpy_dtype(spec.torch_dtype))
        done = 0
        for offset, sizes in self._storage._boxes(first, last):
            target = elements[done : done + math.prod(sizes)]
            target.reshape(sizes)[...] = read_view(spec, sizes, spec.stride, offset)
            done += target.size


class _TurningReader(WindowReader):
    """Reads elements that follow one another, and carries out conj and neg."""

    _storage: ElementStorage

    def __init__(self, storage: ElementStorage, stop: int, base: Reader) -> None:
        itemsize = storage._element_nbytes
        super().__init__(storage, itemsize, 0, -(-stop // itemsize), BLOCK_NBYTES)
        self._base = base

    def gather(self, first: int, last: int, out: Bytes) -> None:
        spec = self._storage.spec
        self._base.read_into(self._storage.start + first * self._itemsize, out)
        elements = out.view(numpy_dtype(spec.torch_dtype))
        elements[...] = resolve_bits(elements, spec)


class _RunReader(Reader):
    """Reads elements that are a run of bytes of another storage."""

    def __init__(self, storage: ElementStorage, base: Reader) -> None:
        super().__init__(storage)
        self._start = storage.start
        self._is_whole = storage.is_whole
        self._base = base

    def read_into(self, start: int, out: Bytes) -> None:
        self._base.read_into(self._start + start, out)

    def crcs(self) -> list[RangeCrc]:
        return self._base.crcs() if self._is_whole else []


def _has_long_runs(shape: Shape, stride: Shape, itemsize: int) -> bool:
    """Return whether the last axes of a tensor lie without gaps for some kilobytes, or stand still.

    A tensor of that kind is not read quicker the more of it is read at once.
    """
    run = itemsize
    for size, step in zip(reversed(shape), reversed(stride), strict=True):
        if size > 1 and step not in (0, run // itemsize):
            break
        run *= size
    return run >= _LONG_RUN_NBYTES
