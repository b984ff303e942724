"""Storages: the runs of bytes that tensors are views of.

A storage has bytes in native order, wherever they come from: a record of a file, an
array in memory, another storage cast to another dtype.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import KW_ONLY, dataclass
from operator import attrgetter
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from torchzip.dtypes import DTYPES
from torchzip.errors import TensorError
from torchzip.files.crc import RunningCrc32, crc32_combine, wrong_crc
from torchzip.files.source import Source, file_place

Bytes = NDArray[np.uint8]

#: Bytes that pass through memory at once: they stay in the processor's cache.
BLOCK_NBYTES = 1 << 18
#: Read at once where the CRC of what was read is checked.
_READ_NBYTES = 1 << 23


#: What a `Reader` may keep in memory from read to read.
READER_NBYTES = 16 << 20


class Reader:
    """Reads ranges of a storage for one thread, and keeps from one to the next what serves both.

    It is made for ranges that follow one another; others come out as well. ``out_of_range`` counts
    the elements so far that a cast has no place for.
    """

    out_of_range = 0

    def __init__(self, storage: TensorStorage) -> None:
        self._storage = storage

    def read_into(self, start: int, out: Bytes) -> None:
        """Fill ``out`` with the bytes of the storage from ``start``."""
        self._storage.read_into(start, out)

    def blocks(self, nbytes: int = BLOCK_NBYTES) -> Iterator[Bytes]:
        """Yield all bytes of the storage in order, in memory that is used again for the next."""
        total = self._storage.nbytes
        buffer = np.empty(min(nbytes, total), np.uint8)
        for start in range(0, total, nbytes):
            block = buffer[: total - start]
            self.read_into(start, block)
            yield block

    def crcs(self) -> list[RangeCrc]:
        """Return what was read so far of each storage of `TensorStorage.compared`, in that order.

        Of two readers of adjoining ranges the second goes on where the first has ended.
        """
        return []


class BlockReader(Reader, ABC):
    """Makes one block after another; the last one stays, for a read that begins in it."""

    def __init__(self, storage: TensorStorage) -> None:
        super().__init__(storage)
        self._block = np.empty(0, np.uint8)
        self._at = 0  # the byte where the block begins

    def read_into(self, start: int, out: Bytes) -> None:
        done = 0
        while done < out.size:
            skip = start + done - self._at
            if not 0 <= skip < self._block.size:
                self.move(start + done, start + out.size)
                skip = start + done - self._at
            part = self._block[skip : skip + out.size - done]
            out[done : done + part.size] = part
            done += part.size

    @abstractmethod
    def move(self, start: int, stop: int) -> None:
        """Make the block that has the byte ``start``; those up to ``stop`` are wanted now."""


class RangeCrc(NamedTuple):
    """The CRC of bytes ``start`` to ``stop`` of a storage."""

    start: int
    stop: int
    crc: int


class TensorStorage(ABC):
    """Bytes that tensors view.

    ``torch_dtype`` is the dtype of a typed storage; None is an untyped one, which counts
    bytes. ``location`` is torch's device tag. ``crc`` is the known CRC-32 of
    the bytes, 0 or None if there is none. ``random_access`` says that `read` costs what
    it reads.
    """

    torch_dtype: str | None
    nbytes: int
    location: str
    crc: int | None = None
    record: str | None = None
    random_access: bool = True
    #: How many storages are inside one another below this.
    depth: int = 0
    #: The tensor whose elements these are in C order, if it is one that lies elsewhere.
    viewed: Any = None
    #: False: its bytes are somewhere that nobody reads them from.
    is_read: bool = True
    #: What the file has in the place of its elements: codes of a type in `dtypes.BLOCKS`.
    block: str | None = None
    #: The file, as messages show it.
    path: str | None = None

    @property
    def uncompared(self) -> Sequence[TensorStorage]:
        """What has a CRC and is not read from end to end when this is: of another order, a part."""
        return ()

    @property
    def stored(self) -> TensorStorage:
        """Itself, or the codes that the file has in its place."""
        return self

    @property
    def itemsize(self) -> int:
        """Bytes of one element as the storage counts them."""
        return 1 if self.torch_dtype is None else DTYPES[self.torch_dtype].itemsize

    @property
    def numel(self) -> int:
        """Elements as the persistent id counts them: whole ones, or bytes if untyped."""
        return self.nbytes // self.itemsize

    @abstractmethod
    def read_into(self, start: int, out: Bytes) -> None:
        """Fill ``out`` with the bytes from ``start``."""

    def check_range(self, start: int, nbytes: int) -> None:
        """Raise TensorError for bytes that are not there."""
        if start < 0 or start + nbytes > self.nbytes:
            raise TensorError("a range outside its storage", record=self.record)

    def span(self) -> tuple[Source, int] | None:
        """Return the Source and the offset of the bytes, if they lie so in a file; else None."""
        return None

    def made_of(self) -> Iterable[TensorStorage]:
        """Return the storages whose bytes this one is computed from."""
        return ()

    def parts(self, start: int, stop: int) -> Iterator[Part]:
        """Yield what is read of files for a range of bytes, in that order, as far as it is known.

        It is for fetching it beforehand (`will_read`), and may have gaps that nobody reads.
        """
        return iter(())

    def gather(
        self, dtype: np.dtype[Any], sizes: list[int], steps: list[int], start: int
    ) -> NDArray[Any] | None:
        """Return elements that leave gaps, if the storage has a better way than reading runs.

        They are ``start`` plus any multiple, below ``sizes``, of each of ``steps``, which descend.
        None is for most storages.
        """
        return None

    def reader(self, start: int, stop: int, nbytes: int = READER_NBYTES) -> Reader:
        """Return what reads many ranges from ``start`` to ``stop``; it keeps about ``nbytes``.

        With 0 it reads what it is asked for and nothing else, as `read_into` does.
        """
        return Reader(self)

    def compared(self) -> list[TensorStorage]:
        """Return what a `Reader` takes the CRC of: what is read from end to end when this is."""
        return []

    def read(self, start: int, stop: int) -> Bytes:
        """Return the bytes of a range as an array of its own."""
        out = np.empty(stop - start, np.uint8)
        if out.size:
            self.read_into(start, out)
        return out

    def blocks(self, nbytes: int = BLOCK_NBYTES) -> Iterator[Bytes]:
        """Yield all bytes in order. A block is valid until the next one is taken."""
        return Reader(self).blocks(nbytes)

    def checked_blocks(self, nbytes: int = BLOCK_NBYTES) -> Iterator[Bytes]:
        """Yield all bytes in order and compare their CRCs, where any is known.

        For whoever writes them without that CRC: damage must not pass for sound bytes.

        Raises
        ------
        ArchiveError
            At the end, if the bytes are not those that were stored.
        """
        compared = self.compared()
        if not (compared or self.uncompared or self.made_of()):
            yield from self.blocks(nbytes)
            return
        for storage in self.uncompared:
            storage.check()
        reader = self.reader(0, self.nbytes)
        # Read more at once than a block: long buffers have a quicker CRC.
        at_once = _READ_NBYTES if self.crc and self.nbytes > nbytes else nbytes
        for read in reader.blocks(at_once):
            for first in range(0, read.size, nbytes):
                yield read[first : first + nbytes]
        compare_crcs(compared, [[each] for each in reader.crcs()])

    def check(self) -> None:
        """Read all bytes and compare their CRC, for nobody who takes them."""
        for _ in self.checked_blocks():
            pass


class MadeStorage(TensorStorage):
    """Bytes that are made of other storages, the ``bases``, by a `Reader`, which compares them."""

    location = "cpu"

    def __init__(self, torch_dtype: str, nbytes: int, bases: Sequence[TensorStorage]) -> None:
        self.torch_dtype = torch_dtype if DTYPES[torch_dtype].storage_class else None
        self.nbytes = nbytes
        self._bases = bases
        self.random_access = all(map(attrgetter("random_access"), bases))
        self.depth = 1 + max(map(attrgetter("depth"), bases), default=-1)

    def made_of(self) -> Iterable[TensorStorage]:
        return self._bases

    def read_into(self, start: int, out: Bytes) -> None:
        self.check_range(start, out.nbytes)
        self.reader(start, start + out.nbytes).read_into(start, out)

    @abstractmethod
    def reader(self, start: int, stop: int, nbytes: int = READER_NBYTES) -> Reader: ...

    def blocks(self, nbytes: int = BLOCK_NBYTES) -> Iterator[Bytes]:
        return self.reader(0, self.nbytes).blocks(nbytes)


class Measure(NamedTuple):
    """What a pickle says of a storage, but for its key."""

    torch_dtype: str | None
    nbytes: int
    location: str


@dataclass(eq=False, repr=False)
class MeasuredStorage(TensorStorage):
    """What is known of a storage whose bytes nobody asks for: to check tensors against its size."""

    torch_dtype: str | None
    nbytes: int
    location: str

    def read_into(self, start: int, out: Bytes) -> None:
        raise RuntimeError("a storage without bytes")


#: Returns the storage of a key, given what the pickle says of it.
OpenStorage = Callable[[str, Measure], TensorStorage]
#: Returns the storages of keys, given the measures and which of them each has. None if one of them
#: has to be opened alone, if only to say what is wrong with it.
OpenMany = Callable[[list[str], list[Measure], list[int]], list[TensorStorage] | None]


class StorageOpener:
    """Opens the storages of a file one by one, as any function that opens one, or many at once."""

    many: OpenMany


class ArrayStorage(TensorStorage):
    """Bytes in memory: those of a C-contiguous array, whatever its dtype and shape."""

    location = "cpu"

    def __init__(self, array: NDArray[Any], torch_dtype: str | None) -> None:
        self.array = array
        self.torch_dtype = torch_dtype

    @property
    def nbytes(self) -> int:  # type: ignore[override]
        return self.array.nbytes

    @property
    def data(self) -> Bytes:
        """The bytes in place, one-dimensional."""
        return self.array.reshape(-1).view(np.uint8)

    def read_into(self, start: int, out: Bytes) -> None:
        out[:] = self.data[start : start + out.nbytes]

    def blocks(self, nbytes: int = BLOCK_NBYTES) -> Iterator[Bytes]:
        if self.nbytes:
            yield self.data


class Locator(Protocol):
    """Whoever knows where in a file a record's bytes stand."""

    def locate(self, record: str) -> tuple[Source, int]:
        """Return the Source and the offset of the bytes of a record."""
        ...

    def extent(self, record: str, nbytes: int) -> tuple[Source, int, int]:
        """Return the Source, and the offset and size of all that is read for a record's bytes.

        Nothing is read for that.
        """
        ...

    def alone(self, record: str) -> Locator:
        """Return a Locator for a record that can be pickled if the Source can."""
        return FixedPlace(*self.locate(record))


class FixedPlace(Locator):
    """A Locator for one place."""

    def __init__(self, source: Source, offset: int) -> None:
        self._place = (source, offset)

    def locate(self, record: str) -> tuple[Source, int]:
        return self._place

    def extent(self, record: str, nbytes: int) -> tuple[Source, int, int]:
        return (*self._place, nbytes)


class SpanStorage(TensorStorage):
    """Stored bytes of a file: a span of a Source, which ``locator`` finds when it is needed.

    ``swap_nbytes`` is the unit in which the bytes are swapped because the file has the other
    byte order; 1 swaps nothing. It survives ``pickle`` if its Source does.
    """

    def __init__(
        self,
        torch_dtype: str | None,
        nbytes: int,
        location: str,
        record: str,
        locator: Locator,
        crc: int | None = None,
        swap_nbytes: int = 1,
    ) -> None:
        self.torch_dtype = torch_dtype
        self.nbytes = nbytes
        self.location = location
        self.crc = crc if swap_nbytes == 1 else None
        self.record: str = record
        self._locator = locator
        self._swap_nbytes = swap_nbytes

    def span(self) -> tuple[Source, int] | None:
        """Return the Source and the offset of the bytes, if they are there in native order."""
        return self._locator.locate(self.record) if self._swap_nbytes == 1 else None

    @property
    def source(self) -> Source:
        """Where the bytes stand."""
        return self.extent(0, 0)[0]

    @property
    def path(self) -> str:  # type: ignore[override]
        return self.source.name

    def extent(self, start: int, stop: int) -> tuple[Source, int, int]:
        """Return the Source, and the offset and size of all that is read for a range of bytes."""
        source, offset, nbytes = self._locator.extent(self.record, self.nbytes)
        return source, offset + start, nbytes - self.nbytes + stop - start

    def __reduce__(self) -> tuple[Any, ...]:
        place = self._locator.alone(self.record)
        fields = (self.torch_dtype, self.nbytes, self.location, self.record, place)
        return (SpanStorage, (*fields, self.crc, self._swap_nbytes))

    def read_into(self, start: int, out: Bytes) -> None:
        source, offset = self._locator.locate(self.record)
        self.check_range(start, out.nbytes)
        unit = self._swap_nbytes
        if unit == 1:
            source.read_into(offset + start, out.data)
            return
        first, last = start // unit * unit, -(-(start + out.nbytes) // unit) * unit
        whole = np.empty(last - first, np.uint8)
        source.read_into(offset + first, whole.data)
        swapped = whole.reshape(-1, unit)[:, ::-1].reshape(-1)
        out[:] = swapped[start - first : start - first + out.nbytes]

    def parts(self, start: int, stop: int) -> Iterator[Part]:
        yield self, start, stop

    def compared(self) -> list[TensorStorage]:
        return [self] if self.crc else []

    def reader(self, start: int, stop: int, nbytes: int = READER_NBYTES) -> Reader:
        return _SpanReader(self, start, stop) if self._swap_nbytes == 1 else Reader(self)


class _SpanReader(Reader):
    """Looks once for the place, and takes the CRC of what it reads as long as there is no gap.

    What is read beyond ``stop`` belongs to the reader of the next range.
    """

    def __init__(self, storage: SpanStorage, start: int, stop: int) -> None:
        super().__init__(storage)
        self._source, self._offset = storage._locator.locate(storage.record)
        self._start = self._at = start
        self._stop = stop
        self._crc = RunningCrc32() if storage.crc else None

    def read_into(self, start: int, out: Bytes) -> None:
        self._storage.check_range(start, out.size)
        self._source.read_into(self._offset + start, out.data)
        stop = min(start + out.size, self._stop)
        if self._crc is not None and start <= self._at < stop:
            self._crc.update(out[self._at - start : stop - start].data)
            self._at = stop

    def crcs(self) -> list[RangeCrc]:
        crc = self._crc
        return [] if crc is None else [RangeCrc(self._start, self._at, crc.value())]


def sources_of(storages: Iterable[object]) -> list[Source]:
    """Return what storages are read from, and what those read that they are made of."""
    found: dict[int, Source] = {}
    known: set[int] = set()
    left = list(storages)
    while left:
        storage = left.pop()
        if isinstance(storage, SpanStorage):
            locator = storage._locator  # one is shared by all storages of a file
            if id(locator) not in known:
                known.add(id(locator))
                source = storage.source
                found[id(source)] = source
        elif isinstance(storage, TensorStorage) and id(storage) not in known:
            known.add(id(storage))
            left += storage.made_of()
    return list(found.values())


#: A storage of a file, and from which byte of it to which something will be read.
Part = tuple[SpanStorage, int, int]


def will_read(storages: Iterable[TensorStorage], parts: Iterable[Part] | None = None) -> None:
    """Tell the sources of storages which parts of them will be read soon, in this order.

    By default they are read whole.
    """
    storages = list(storages)
    sources = {id(file): file for file in (file_place(s, 0)[0] for s in sources_of(storages))}
    groups: dict[int, list[tuple[Source, int, int]]] = {}
    if any(source.far_group is not None for source in sources.values()):  # others look at nothing
        if parts is None:
            parts = (part for storage in storages for part in storage.parts(0, storage.nbytes))
        for storage, start, stop in parts:
            source, at, nbytes = storage.extent(start, stop)
            source, at = file_place(source, at)
            groups.setdefault(id(source.far_group), []).append((source, at, nbytes))
    for source in sources.values():
        if source.far_group is None:
            source.will_read([])
        elif spans := groups.pop(id(source.far_group), []):
            source.will_read(spans)


@dataclass(eq=False, repr=False)
class StreamStorage(TensorStorage):
    """Deflated bytes of a file, which can only be read in order."""

    torch_dtype: str | None
    nbytes: int
    location: str
    _: KW_ONLY
    inflate: Callable[[], Iterator[bytes]]
    crc: int | None = None
    swap_nbytes: int = 1
    record: str | None = None

    random_access = False

    def __post_init__(self) -> None:
        if self.swap_nbytes != 1:
            self.crc = None

    def read_into(self, start: int, out: Bytes) -> None:
        self.reader(start, start + out.nbytes).read_into(start, out)

    def reader(self, start: int, stop: int, nbytes: int = READER_NBYTES) -> Reader:
        return _StreamReader(self)

    def compared(self) -> list[TensorStorage]:
        return [self] if self.crc else []

    def blocks(self, nbytes: int = BLOCK_NBYTES) -> Iterator[Bytes]:
        unit = self.swap_nbytes
        rest = b""
        for block in self.inflate():
            if unit == 1:
                yield np.frombuffer(block, np.uint8)
                continue
            joined = rest + block
            whole = len(joined) // unit * unit
            rest = joined[whole:]
            raw = np.frombuffer(joined, np.uint8, count=whole)
            yield raw.reshape(-1, unit)[:, ::-1].reshape(-1)
        if rest:  # a storage that is not a whole number of elements
            yield np.frombuffer(rest, np.uint8)


class _StreamReader(BlockReader):
    """Goes on where the last read has ended; begins again for what is before that."""

    def __init__(self, storage: StreamStorage) -> None:
        super().__init__(storage)
        self._begin()

    def _begin(self) -> None:
        self._blocks = self._storage.blocks()
        self._block, self._at = np.empty(0, np.uint8), 0
        self._crc = RunningCrc32()

    def move(self, start: int, stop: int) -> None:
        if start < self._at:
            self._begin()
        while start >= self._at + self._block.size:
            self._at += self._block.size
            self._block = next(self._blocks)
            if self._storage.crc:
                self._crc.update(self._block.data)

    def crcs(self) -> list[RangeCrc]:
        stop = self._at + self._block.size
        if stop == self._storage.nbytes:
            next(self._blocks, None)  # which sees that nothing follows
        return [RangeCrc(0, stop, self._crc.value())] if self._storage.crc else []


def compare_crcs(compared: Iterable[TensorStorage], ranges: Iterable[Iterable[RangeCrc]]) -> None:
    """Compare the CRCs of storages with those of ranges of them, which follow one another.

    ``ranges`` are what `Reader.crcs` has given of each of the storages.

    Raises
    ------
    ArchiveError
        If one differs.
    """
    for storage, parts in zip(compared, ranges, strict=True):
        at = found = 0
        for part in parts:
            if part.start != at:
                break  # it was read in another order, and shows nothing
            found = crc32_combine(found, part.crc, part.stop - at) if at else part.crc
            at = part.stop
        if at == storage.nbytes and found != storage.crc:
            raise wrong_crc(found, storage.crc or 0, storage.record, storage.path)
