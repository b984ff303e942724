"""Storages cut in pieces, and pieces carried out, in this process or another.

A piece is a range of a storage of the output and the place in the file where it goes. Whoever
carries it out gives back the CRC of what was written, and that of what was read where the source
has a CRC to compare it with; the CRCs of the pieces are joined afterwards.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, cached_property

import numpy as np

from torchzip.dtypes import DTYPES
from torchzip.files.crc import RunningCrc32, crc32
from torchzip.files.direct import ALIGNMENT
from torchzip.files.ranges import RangeWriter
from torchzip.files.source import file_place
from torchzip.files.watch import Watched
from torchzip.tensors.casts import Cast, CastReader, CastStorage
from torchzip.tensors.chunks import ChunkedStorage
from torchzip.tensors.computed import ComputedStorage, names_tensor
from torchzip.tensors.packing import ElementStorage
from torchzip.tensors.storage import Bytes, RangeCrc, SpanStorage, TensorStorage

#: Read at once: long enough for the quick CRC, short enough for the processor's caches.
_READ_NBYTES = 4 << 20

Tell = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class Piece:
    """Bytes ``start`` to ``stop`` of an output's storage, and where they go in the file."""

    storage: TensorStorage
    start: int
    stop: int
    offset: int
    #: The bytes go as they are, and their CRC is known: nobody needs to look at them.
    copied: bool = False
    #: The target keeps CRCs.
    with_crc: bool = True
    #: What messages call the tensor.
    name: str = ""

    @property
    def nbytes(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True, slots=True)
class Written:
    """What came of a piece: CRCs, and how many bytes of the source the second is of.

    ``out_of_range`` counts elements that the new dtype has no place for. ``compared`` are the CRCs
    of what a computed piece was made of, if that was read in order.
    """

    crc: int
    source_crc: int = 0
    source_nbytes: int = 0
    out_of_range: int = 0
    compared: tuple[RangeCrc, ...] = ()


@dataclass(frozen=True, slots=True)
class Origin:
    """What a storage is made of: ``nbytes`` of another from ``start``, perhaps to be cast."""

    base: TensorStorage
    start: int
    nbytes: int
    cast: CastStorage | None

    @property
    def crc(self) -> int:
        """The known CRC of these bytes; 0 if it is unknown, as that of a part is."""
        is_whole = self.start == 0 and self.nbytes == self.base.nbytes
        return self.base.crc or 0 if is_whole else 0


def origin_of(storage: TensorStorage) -> Origin | None:
    """Return how a storage is made, if any range of it can be read by itself."""
    cast = storage if isinstance(storage, CastStorage) else None
    base = cast.base if cast is not None else storage
    start, nbytes = 0, base.nbytes
    if isinstance(base, ElementStorage):
        if not base.is_range:
            return None
        start = base.start
        base = base.spec.storage
    return Origin(base, start, nbytes, cast) if isinstance(base, SpanStorage) else None


def _can_go_unread(origin: Origin) -> bool:
    """Return whether bytes can be copied: with a CRC only of a file that tells when it changes."""
    span = origin.base.span()
    return span is not None and (not origin.crc or isinstance(file_place(*span)[0], Watched))


def read_in_part(storages: Iterable[TensorStorage]) -> list[TensorStorage]:
    """Return the storages with a CRC that these are made of, but not of all their bytes in order.

    So nothing that is written shows whether they are damaged.
    """
    found: dict[int, TensorStorage] = {}
    for storage in storages:
        inner = storage.base if isinstance(storage, CastStorage) else storage
        if isinstance(inner, ElementStorage) and inner.is_whole:
            inner = inner.spec.storage
        if inner.crc:  # it is read from end to end itself
            continue
        is_joined = isinstance(inner, ChunkedStorage)
        compared = {id(each) for each in (inner.made_of() if is_joined else inner.compared())}
        left = list(inner.made_of())
        while left:
            part = left.pop()
            left += part.made_of()
            if part.crc and id(part) not in compared:
                found[id(part)] = part
    return list(found.values())


def goes_by_ranges(storage: TensorStorage) -> bool:
    """Return whether any range of a storage is computed or gathered by itself."""
    inner = storage.base if isinstance(storage, CastStorage) else storage
    if isinstance(inner, ElementStorage):
        is_gathered = inner.is_strided
        inner = inner.spec.storage
    else:
        is_gathered = False
    return storage.random_access and (
        is_gathered or isinstance(inner, ComputedStorage | CastStorage)
    )


def cut(
    storage: TensorStorage, offset: int, nbytes: int, *, with_crc: bool, verify: bool,
    name: str = "",
) -> Iterator[Piece]:  # fmt: skip
    """Yield the pieces, of about ``nbytes``, of a storage that goes to ``offset`` of a file."""
    origin = origin_of(storage)
    if origin is None and not goes_by_ranges(storage):
        yield Piece(storage, 0, storage.nbytes, offset, with_crc=with_crc, name=name)
        return
    # Without a look at the bytes only if a CRC goes along that shows damage, or there is none.
    copied = (
        origin is not None
        and origin.cast is None
        and bool(origin.crc) == with_crc
        and not (verify and origin.crc)
        and _can_go_unread(origin)
    )
    start = 0
    while start < storage.nbytes:
        stop = start + nbytes
        # Pieces meet on pages of the file, where that is on elements too.
        stop -= (offset + stop) % ALIGNMENT
        if storage.nbytes - stop < nbytes // 4:
            stop = storage.nbytes
        yield Piece(storage, start, stop, offset + start, copied, with_crc, name)
        start = stop


def write_pieces(
    path: str, pieces: Sequence[Piece], tell: Tell = lambda nbytes: None
) -> list[Written]:
    """Write pieces of the file at ``path``; return what came of each.

    ``tell`` gets the number of bytes of each block.
    """
    with RangeWriter(path) as out:
        worker = _Worker(out, tell)
        return [worker.write(piece) for piece in pieces]


class _Worker:
    """Writes pieces, with memory that it keeps from one to the next."""

    def __init__(self, out: RangeWriter, tell: Tell) -> None:
        self._out = out
        self._tell = tell
        self._cast_of = cache(Cast)

    @cached_property
    def _buffer(self) -> Bytes:
        return np.empty(_READ_NBYTES, np.uint8)

    def write(self, piece: Piece) -> Written:
        """Write a piece; return the CRCs."""
        origin = origin_of(piece.storage)
        if piece.copied and origin is not None and self._copy(piece, origin):
            return Written(0)
        self._out.begin(piece.offset, piece.nbytes)
        if origin is None:
            with names_tensor(piece.name):
                is_range = goes_by_ranges(piece.storage)
                written = self._write_range(piece) if is_range else self._write_blocks(piece)
        elif origin.cast is None:
            written = self._write_same(piece, origin)
        else:
            written = self._write_cast(piece, origin, origin.cast)
        self._out.end()
        return written

    def _copy(self, piece: Piece, origin: Origin) -> bool:
        span = origin.base.span()
        if span is None:
            return False
        source, at = span
        copied = self._out.copy(source, at + origin.start + piece.start, piece.offset, piece.nbytes)
        if copied:
            self._tell(piece.nbytes)
        return copied

    def _write_range(self, piece: Piece) -> Written:
        """Write what is computed or gathered."""
        reader = piece.storage.reader(piece.start, piece.stop)
        crc = RunningCrc32()
        at = piece.start
        while at < piece.stop:
            room = self._out.room[: piece.stop - at]
            reader.read_into(at, np.frombuffer(room, np.uint8))
            if piece.with_crc:
                crc.update(room)
            self._out.advance(room.nbytes)
            self._tell(room.nbytes)
            at += room.nbytes
        lost = reader.out_of_range if isinstance(reader, CastReader) else 0
        return Written(crc.value(), out_of_range=lost, compared=tuple(reader.crcs()))

    def _write_blocks(self, piece: Piece) -> Written:
        """Write a storage that can only be read from its start to its end."""
        storage, cast = piece.storage, None
        # The bytes are given a new CRC, so damage must show here.
        if isinstance(storage, CastStorage):
            cast = Cast(storage.source, storage.target)
            blocks = storage.blocks(cast=cast)
        else:
            blocks = storage.checked_blocks()
        crc = 0
        for block in blocks:
            if piece.with_crc:
                crc = crc32(block.data, crc)
            self._out.write(block.data)
            self._tell(block.nbytes)
        return Written(crc, out_of_range=cast.out_of_range if cast is not None else 0)

    def _write_same(self, piece: Piece, origin: Origin) -> Written:
        running = RunningCrc32()
        checks = origin.crc and not piece.copied
        at, stop = origin.start + piece.start, origin.start + piece.stop
        while at < stop:
            room = self._out.room[: stop - at]
            origin.base.read_into(at, np.frombuffer(room, np.uint8))
            if checks or (piece.with_crc and not piece.copied):
                running.update(room)
            self._out.advance(room.nbytes)
            self._tell(room.nbytes)
            at += room.nbytes
        crc = running.value()
        return Written(crc, crc, piece.nbytes) if checks else Written(crc)

    def _write_cast(self, piece: Piece, origin: Origin, storage: CastStorage) -> Written:
        cast = self._cast_of(storage.source, storage.target)
        in_nbytes = DTYPES[storage.source].itemsize
        out_nbytes = DTYPES[storage.target].itemsize
        start, stop = (
            origin.start + at // out_nbytes * in_nbytes for at in (piece.start, piece.stop)
        )
        crc, source_crc = RunningCrc32(), RunningCrc32()
        before = cast.out_of_range
        for at in range(start, stop, _READ_NBYTES):
            read = self._buffer[: min(_READ_NBYTES, stop - at)]
            origin.base.read_into(at, read)
            if origin.crc:
                source_crc.update(read.data)
            while read.size:
                # No element lies across the end of the room: a storage that is cast starts at a
                # multiple of its element size (`Output.one_file`).
                room = self._out.room
                elements = min(read.size // in_nbytes, room.nbytes // out_nbytes)
                made = room[: elements * out_nbytes]
                cast.into(read[: elements * in_nbytes], made)
                if piece.with_crc:
                    crc.update(made)
                self._out.advance(made.nbytes)
                self._tell(made.nbytes)
                read = read[elements * in_nbytes :]
        source_nbytes = stop - start if origin.crc else 0
        return Written(crc.value(), source_crc.value(), source_nbytes, cast.out_of_range - before)
