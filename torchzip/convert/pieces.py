"""Storages cut in pieces, and pieces carried out, in this process or another.

A piece is a range of a storage of the output and the place in the file where it goes. Whoever
carries it out gives back the CRC of what was written, and that of what was read where the source
has a CRC to compare it with; the CRCs of the pieces are joined afterwards.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np

from torchzip.files.crc import RunningCrc32
from torchzip.files.direct import ALIGNMENT
from torchzip.files.ranges import RangeWriter
from torchzip.files.source import FileSource, file_place
from torchzip.files.streamed_file import StreamedFile
from torchzip.tensors.computed import names_tensor
from torchzip.tensors.packing import ElementStorage
from torchzip.tensors.storage import RangeCrc, Reader, SpanStorage, TensorStorage, will_read

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
    """What came of a piece: its CRC, and those of what it was made of, as far as that was in order.

    ``out_of_range`` counts elements that the new dtype has no place for.
    """

    crc: int
    compared: tuple[RangeCrc, ...] = ()
    out_of_range: int = 0


def copied_from(storage: TensorStorage) -> tuple[SpanStorage, int] | None:
    """Return the stored bytes that those of a storage are, and from which byte on."""
    start = 0
    if isinstance(storage, ElementStorage) and storage.is_range:
        start, storage = storage.start, storage.spec.storage
    return (storage, start) if isinstance(storage, SpanStorage) else None


def known_crc(storage: TensorStorage) -> int:
    """Return the stored CRC of the bytes of a storage; 0 if it is unknown, as that of a part is."""
    compared = storage.compared()
    return compared[0].crc or 0 if compared and copied_from(storage) is not None else 0


def _can_go_unread(storage: TensorStorage) -> bool:
    """Return whether bytes can be copied: with a CRC only of a file that tells when it changes."""
    place = copied_from(storage)
    span = place[0].span() if place is not None else None
    return span is not None and (
        not known_crc(storage) or isinstance(file_place(*span)[0], FileSource)
    )


def check_read_in_part(storages: Iterable[TensorStorage]) -> None:
    """Compare the CRCs of what storages are made of, but not of all its bytes in order.

    So nothing that is written shows whether it is damaged.
    """
    found: dict[int, TensorStorage] = {}
    for storage in storages:
        compared = {id(each) for each in storage.compared()}
        left = [storage]
        while left:
            part = left.pop()
            left += part.made_of()
            if part.crc and id(part) not in compared:
                found[id(part)] = part
    will_read(found.values())
    for part in found.values():
        part.check()


def cut(
    storage: TensorStorage, offset: int, nbytes: int, *, with_crc: bool, verify: bool,
    name: str = "",
) -> Iterator[Piece]:  # fmt: skip
    """Yield the pieces, of about ``nbytes``, of a storage that goes to ``offset`` of a file."""
    if not storage.random_access or storage.uncompared:
        yield Piece(storage, 0, storage.nbytes, offset, with_crc=with_crc, name=name)
        return
    # Without a look at the bytes only if a CRC goes along that shows damage, or there is none.
    crc = known_crc(storage)
    copied = bool(crc) == with_crc and not (verify and crc) and _can_go_unread(storage)
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
    parts = (piece.storage.parts(piece.start, piece.stop) for piece in pieces)
    will_read([piece.storage for piece in pieces], chain.from_iterable(parts))
    return write_announced(path, pieces, tell)


def write_announced(path: str, pieces: Sequence[Piece], tell: Tell) -> list[Written]:
    """Write pieces whose sources know that they will be read."""
    with RangeWriter(path) as out:
        return PieceWriter(out, tell).write_all(pieces)


class PieceWriter:
    """Writes pieces to their places in a file, or one after another to a stream."""

    def __init__(self, out: RangeWriter | StreamedFile, tell: Tell) -> None:
        self._out = out
        self._tell = tell

    def write_all(self, pieces: Sequence[Piece]) -> list[Written]:
        return [self.write(piece) for piece in pieces]

    def write(self, piece: Piece) -> Written:
        """Write a piece; return the CRCs."""
        if piece.copied and self._copy(piece):
            return Written(0)
        self._out.begin(piece.offset, piece.nbytes)
        with names_tensor(piece.name):
            written = self._write_read(piece)
        self._out.end()
        return written

    def _copy(self, piece: Piece) -> bool:
        place = copied_from(piece.storage)
        span = place[0].span() if place is not None else None
        if place is None or span is None:
            return False
        source, at = span
        copied = self._out.copy(source, at + place[1] + piece.start, piece.offset, piece.nbytes)
        if copied:
            self._tell(piece.nbytes)
        return copied

    def _write_read(self, piece: Piece) -> Written:
        storage = piece.storage
        for part in storage.uncompared:
            part.check()
        reader = Reader(storage) if piece.copied else storage.reader(piece.start, piece.stop)
        is_known = piece.copied or bool(known_crc(storage))  # then the reader has the CRC
        crc = RunningCrc32()
        at = piece.start
        while at < piece.stop:
            room = self._out.room[: piece.stop - at]
            reader.read_into(at, np.frombuffer(room, np.uint8))
            if piece.with_crc and not is_known:
                crc.update(room)
            self._out.advance(room.nbytes)
            self._tell(room.nbytes)
            at += room.nbytes
        compared = tuple(reader.crcs())
        found = compared[0].crc if is_known and compared else crc.value()
        return Written(found, compared, reader.out_of_range)
