"""Storages cut in pieces, and pieces carried out, in this process or another.

A piece is a range of a storage of the output and the place in the file where it goes. Whoever
carries it out gives back the CRC of what was written, and that of what was read where the source
has a CRC to compare it with; the CRCs of the pieces are joined afterwards.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from torchzip.dtypes import DTYPES
from torchzip.files.crc import crc32, crc32_combine, crc32_short, wrong_crc
from torchzip.files.direct import ALIGNMENT
from torchzip.files.ranges import RangeWriter
from torchzip.tensors.casts import Cast, CastStorage
from torchzip.tensors.packing import ElementStorage
from torchzip.tensors.storage import BLOCK_NBYTES, SpanStorage, TensorStorage

#: Read at once: long enough for the quick CRC, short enough for the processor's second cache.
_READ_NBYTES = 2 << 20

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
    """What came of a piece: CRCs, and how many bytes of the source the second is of."""

    crc: int
    source_crc: int = 0
    source_nbytes: int = 0


@dataclass(frozen=True, slots=True)
class Task:
    """Pieces of one file, for one worker."""

    path: str
    pieces: tuple[Piece, ...]


@dataclass(frozen=True, slots=True)
class _Run:
    """A storage that is a run of another's bytes, each element cast perhaps."""

    base: TensorStorage
    start: int
    cast: CastStorage | None

    @property
    def is_whole(self) -> bool:
        """Whether it has all bytes of a storage whose CRC is known."""
        nbytes = self.base.nbytes
        if self.cast is not None:
            nbytes = self.cast.base.nbytes
        return bool(self.base.crc) and self.start == 0 and nbytes == self.base.nbytes


def _run_of(storage: TensorStorage) -> _Run | None:
    """Return how a storage is made, if any range of it can be had by itself."""
    cast = storage if isinstance(storage, CastStorage) else None
    inner = cast.base if cast is not None else storage
    start = 0
    if isinstance(inner, ElementStorage):
        if not inner.is_run:
            return None
        start = inner.start
        inner = inner.spec.storage
    return _Run(inner, start, cast) if isinstance(inner, SpanStorage) else None


def cut(
    storage: TensorStorage, offset: int, nbytes: int, *, with_crc: bool, verify: bool
) -> Iterator[Piece]:
    """Yield the pieces, of about ``nbytes``, of a storage that goes to ``offset`` of a file."""
    run = _run_of(storage)
    if run is None:
        yield Piece(storage, 0, storage.nbytes, offset, with_crc=with_crc)
        return
    # Without a look at the bytes only if a CRC goes along that shows damage, or there is none.
    copied = (
        run.cast is None
        and run.is_whole == with_crc
        and not (verify and run.is_whole)
        and run.base.span() is not None
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


def joined(storage: TensorStorage, pieces: Sequence[Piece], written: Sequence[Written]) -> int:
    """Return the CRC of a storage from those of its pieces.

    Raises
    ------
    ArchiveError
        If what was read is not what the source's directory says.
    """
    run = _run_of(storage)
    if pieces[0].copied:
        return run.base.crc or 0 if run is not None else 0
    crc = source_crc = 0
    for piece, part in zip(pieces, written, strict=True):
        crc = crc32_combine(crc, part.crc, piece.nbytes)
        source_crc = crc32_combine(source_crc, part.source_crc, part.source_nbytes)
    if run is not None and run.is_whole and source_crc != run.base.crc:
        raise wrong_crc(source_crc, run.base.crc or 0, run.base.record)
    return crc


def contents_of(storages: Sequence[TensorStorage]) -> list[bytes]:
    """Return the bytes of small storages, with their CRCs compared. Casts alike go together."""
    contents = [b""] * len(storages)
    alike: dict[tuple[str, str], list[tuple[int, bytes]]] = {}
    for index, storage in enumerate(storages):
        run = _run_of(storage)
        if run is None or run.cast is None or not storage.nbytes:
            contents[index] = b"".join(bytes(block) for block in storage.checked_blocks())
            continue
        pair = (run.cast.source, run.cast.target)
        nbytes = storage.nbytes // DTYPES[pair[1]].itemsize * DTYPES[pair[0]].itemsize
        raw = run.base.read(run.start, run.start + nbytes).tobytes()
        if run.is_whole:
            found = crc32_short(raw)
            if found != run.base.crc:
                raise wrong_crc(found, run.base.crc or 0, run.base.record)
        alike.setdefault(pair, []).append((index, raw))
    for pair, parts in alike.items():
        raw = b"".join([part for _, part in parts])
        made = Cast(*pair)(np.frombuffer(raw, np.uint8)).tobytes()
        at = 0
        for index, _ in parts:
            nbytes = storages[index].nbytes
            contents[index] = made[at : at + nbytes]
            at += nbytes
    return contents


def carry_out(task: Task) -> list[Written]:
    """Write the pieces of a task; return what came of each."""
    return write_pieces(task, lambda nbytes: None)


def write_pieces(task: Task, tell: Tell) -> list[Written]:
    """Do that, and tell of the bytes of each block."""
    casts: dict[tuple[str, str], Cast] = {}
    with RangeWriter(task.path) as out:
        return [_write(piece, out, casts, tell) for piece in task.pieces]


def _write(
    piece: Piece, out: RangeWriter, casts: dict[tuple[str, str], Cast], tell: Tell
) -> Written:
    run = _run_of(piece.storage)
    if piece.copied and run is not None:
        span = run.base.span()
        if span is not None:
            source, at = span
            if out.copy(source, at + run.start + piece.start, piece.offset, piece.nbytes):
                tell(piece.nbytes)
                return Written(0)
    out.begin(piece.offset, piece.nbytes)
    if run is None:
        written = _write_blocks(piece, out, tell)
    elif run.cast is None:
        written = _write_run(piece, run, out, None, tell)
    else:
        pair = (run.cast.source, run.cast.target)
        written = _write_run(piece, run, out, casts.setdefault(pair, Cast(*pair)), tell)
    out.end()
    return written


def _write_blocks(piece: Piece, out: RangeWriter, tell: Tell) -> Written:
    """Write a storage that is to be had from its start to its end only."""
    crc = 0
    # The bytes are given a new CRC, so damage must show here.
    for block in piece.storage.checked_blocks():
        if piece.with_crc:
            crc = crc32(block.data, crc)
        out.write(block.data)
        tell(block.nbytes)
    return Written(crc)


def _write_run(piece: Piece, run: _Run, out: RangeWriter, cast: Cast | None, tell: Tell) -> Written:
    checks = run.is_whole and not piece.copied
    in_nbytes = out_nbytes = 1
    if run.cast is not None:
        in_nbytes = DTYPES[run.cast.source].itemsize
        out_nbytes = DTYPES[run.cast.target].itemsize
    start = run.start + piece.start // out_nbytes * in_nbytes
    stop = run.start + piece.stop // out_nbytes * in_nbytes
    with_crc = piece.with_crc and not piece.copied
    buffer = np.empty(min(_READ_NBYTES, stop - start), np.uint8)
    # In place, unless elements lie across the ends of blocks.
    scratch = np.empty(BLOCK_NBYTES, np.uint8) if piece.offset % out_nbytes else None
    crc = source_crc = 0
    for at in range(start, stop, _READ_NBYTES):
        read = buffer[: stop - at]
        run.base.read_into(at, read)
        if checks:
            source_crc = crc32(read.data, source_crc)
        if cast is None:
            if with_crc:
                crc = source_crc if checks else crc32(read.data, crc)
            out.write(read.data)
            tell(read.nbytes)
            continue
        done = 0
        while done < read.size:
            room = out.room if scratch is None else scratch.data
            elements = min(BLOCK_NBYTES, read.size - done) // in_nbytes
            elements = min(elements, room.nbytes // out_nbytes)
            made = room[: elements * out_nbytes]
            block = read[done : done + elements * in_nbytes]
            cast.into(block, made)
            if with_crc:
                crc = crc32_short(made, crc)  # it is in the cache still
            if scratch is None:
                out.advance(made.nbytes)
            else:
                out.write(made)
            done += block.nbytes
            tell(made.nbytes)
    return Written(crc, source_crc, stop - start if checks else 0)
