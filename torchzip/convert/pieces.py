"""Storages cut in pieces, and pieces carried out, in this process or another.

A piece is a range of a storage of the output and the place in the file where it goes. Whoever
carries it out gives back the CRC of what was written, and that of what was read where the source
has a CRC to compare it with; the CRCs of the pieces are joined afterwards.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import chain

import numpy as np

from torchzip.dtypes import DTYPES
from torchzip.files.crc import RunningCrc32, crc32
from torchzip.files.direct import ALIGNMENT
from torchzip.files.ranges import RangeWriter
from torchzip.files.source import file_place
from torchzip.files.streamed_file import StreamedFile
from torchzip.files.watch import Watched
from torchzip.tensors.casts import Cast, CastStorage
from torchzip.tensors.packing import ElementStorage
from torchzip.tensors.storage import (
    Bytes,
    Part,
    SpanStorage,
    TensorStorage,
    whole_parts,
    will_read,
)

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

    @property
    def nbytes(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True, slots=True)
class Written:
    """What came of a piece: CRCs, and how many bytes of the source the second is of.

    ``out_of_range`` counts elements that the new dtype has no place for.
    """

    crc: int
    source_crc: int = 0
    source_nbytes: int = 0
    out_of_range: int = 0


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


def _read_in_part(storages: Iterable[TensorStorage]) -> list[TensorStorage]:
    """Return the storages with a CRC that these are made of, but not of all their bytes in order.

    So nothing that is written shows whether they are damaged.
    """
    found: dict[int, TensorStorage] = {}
    for storage in storages:
        inner = storage.base if isinstance(storage, CastStorage) else storage
        if isinstance(inner, ElementStorage):
            base = inner.spec.storage
            if base.crc and not (inner.is_range and inner.nbytes == base.nbytes):
                found[id(base)] = base
    return list(found.values())


def check_read_in_part(storages: Iterable[TensorStorage]) -> None:
    """Compare the CRCs of storages of which only a part is written, or not in order."""
    partial = _read_in_part(storages)
    will_read(partial)
    for storage in partial:
        for _ in storage.checked_blocks():
            pass


def cut(
    storage: TensorStorage, offset: int, nbytes: int, *, with_crc: bool, verify: bool
) -> Iterator[Piece]:
    """Yield the pieces, of about ``nbytes``, of a storage that goes to ``offset`` of a file."""
    origin = origin_of(storage)
    if origin is None:
        yield Piece(storage, 0, storage.nbytes, offset, with_crc=with_crc)
        return
    # Without a look at the bytes only if a CRC goes along that shows damage, or there is none.
    copied = (
        origin.cast is None
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
        yield Piece(storage, start, stop, offset + start, copied, with_crc)
        start = stop


def write_pieces(
    path: str, pieces: Sequence[Piece], tell: Tell = lambda nbytes: None
) -> list[Written]:
    """Write pieces of the file at ``path``; return what came of each.

    ``tell`` gets the number of bytes of each block.
    """
    will_read([piece.storage for piece in pieces], chain.from_iterable(map(parts_of, pieces)))
    return write_announced(path, pieces, tell)


def write_announced(path: str, pieces: Sequence[Piece], tell: Tell) -> list[Written]:
    """Write pieces whose sources know that they will be read."""
    with RangeWriter(path) as out:
        return PieceWriter(out, tell).write_all(pieces)


def parts_of(piece: Piece) -> Iterator[Part]:
    """Yield what is read of files for a piece."""
    origin = origin_of(piece.storage)
    if origin is None or not isinstance(origin.base, SpanStorage):
        yield from whole_parts(piece.storage)
        return
    start, stop = piece.start, piece.stop
    if origin.cast is not None:
        start, stop = origin.cast.base_range(start, stop)
    yield origin.base, origin.start + start, origin.start + stop


class PieceWriter:
    """Writes pieces, with memory that it keeps from one to the next."""

    def __init__(self, out: RangeWriter | StreamedFile, tell: Tell) -> None:
        self._out = out
        self._tell = tell
        self._cast_of = cache(Cast)

    @cached_property
    def _buffer(self) -> Bytes:
        return np.empty(_READ_NBYTES, np.uint8)

    def write_all(self, pieces: Sequence[Piece]) -> list[Written]:
        return [self.write(piece) for piece in pieces]

    def write(self, piece: Piece) -> Written:
        """Write a piece; return the CRCs."""
        origin = origin_of(piece.storage)
        if piece.copied and origin is not None and self._copy(piece, origin):
            return Written(0)
        self._out.begin(piece.offset, piece.nbytes)
        if origin is None:
            written = self._write_blocks(piece)
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
        start, stop = (origin.start + at for at in storage.base_range(piece.start, piece.stop))
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
