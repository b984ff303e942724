"""Replaces records of an archive in place: appends them with a new directory, and moves nothing.

See docs/format.md, section 2.9. torch and torchzip can read the file at every moment, with its old
directory or its new one; also after a power cut, when any of the writes since the last sync may be
missing. S is the old size and F the new one, a multiple of the sector size:

1. A copy of the old locator and end record, 42 bytes, is written so that it ends at F. The locator
   leads to the old zip64 end record, wherever that is. Readers accept at most 65,535 bytes after an
   end record, and a file system may extend a file before it has the bytes. So if more than that is
   appended, this is done in several steps. Sync after each.
2. The first byte of the old end record is erased, as two ends with a directory each could be read
   in two ways. The new records are written from S on, with their directory last, which ends 98
   bytes before F. Sync.
3. The new zip64 end record, locator and end record are written over the last 98 bytes. They are in
   one sector, which a disk writes as a whole or not at all. Sync.

An error before the end of step 3 is undone by `restore`, which also cleans up after an edit whose
process was killed: it restores the old end record, syncs, and truncates the file after it.
"""

from __future__ import annotations

import contextlib
import io
import struct
from collections.abc import Collection, Mapping
from typing import NamedTuple

from torchzip.container.serialization_id import serialization_id
from torchzip.container.zip_end import END_64_NBYTES, LAST_NBYTES, build_end
from torchzip.container.zip_reader import ZipReader
from torchzip.container.zip_writer import ZipWriter
from torchzip.errors import TorchZipError
from torchzip.files.in_place import InPlaceFile
from torchzip.files.sink import FileObjectSink
from torchzip.files.source import Source
from torchzip.limits import Limits

SECTOR_NBYTES = 512
#: Bytes of one step: the end record before it stays within the last 65,557 bytes.
STEP_NBYTES = 126 * SECTOR_NBYTES
_END_NBYTES = END_64_NBYTES + LAST_NBYTES
_ERASED_AT = -22  # relative to the old size: the first byte of the end record
_ID = ".data/serialization_id"


class Appended(NamedTuple):
    """What is appended to a file: ``body`` from ``start``, its old size, and then ``end``.

    ``old_end`` are the locator and end record that lead to the old directory.
    """

    start: int
    body: bytes
    end: bytes
    old_end: bytes

    @property
    def size(self) -> int:
        """The new size of the file."""
        return self.start + len(self.body) + len(self.end)


def old_size(archive: ZipReader) -> int | None:
    """Return where an archive ends, if it can be appended to, else None.

    It must have the three end records of torch's writer, and nothing after them except what an edit
    leaves whose process was killed: zeros and the beginning of the same records.
    """
    end, source = archive.end, archive.source
    if end.end_64 is None or not archive.root:
        return None
    size = end.end_64 + _END_NBYTES
    (length,) = struct.unpack("<4xQ", source.read_at(end.end_64, 12))
    last = bytes(source.read_at(end.at + 22 - LAST_NBYTES, LAST_NBYTES))
    behind = end.at + 22
    left = bytes(source.read_at(behind, source.size - behind)).strip(b"\0")
    is_whole = length == 44 and last.endswith(b"\0\0") and size <= behind
    return size if is_whole and last.startswith(left) else None


def append(
    archive: ZipReader,
    records: Mapping[str, bytes],
    without: Collection[str],
    limits: Limits,
    alignment: int = 64,
) -> Appended | None:
    """Return the edit that adds these records to an archive and removes those in ``without``.

    Records of the same names are replaced; all others stay, in their order. The serialization id is
    recomputed if there is one. None if the archive cannot be edited in place.
    """
    start = old_size(archive)
    if start is None:
        return None
    added = io.BytesIO()
    writer = ZipWriter(FileObjectSink(added), archive.root, alignment=alignment, start=start)
    names = list(archive)
    rows = dict(zip(names, archive.rows(), strict=True))
    for name in without:
        del rows[name]
    for name, data in records.items():
        writer.write_record(name, data)
        rows[name] = writer.rows[-1]
    if _ID in rows:
        writer.write_record(_ID, _id_of(rows))
        rows[_ID] = writer.rows[-1]
    writer.flush()
    directory = b"".join(rows.values())
    begin = writer.position
    size = begin + len(directory) + _END_NBYTES
    padding = -size % SECTOR_NBYTES
    body = added.getvalue() + bytes(padding) + directory
    end = build_end(len(rows), len(directory), begin + padding)
    own = start - LAST_NBYTES
    old_end = bytearray(archive.source.read_at(own, LAST_NBYTES))
    old_end[_ERASED_AT] = ord("P")
    made = Appended(start, body, end, bytes(old_end))
    return made if _can_be_read(archive, made, set(rows), limits) else None


def _id_of(rows: Mapping[str, bytes]) -> bytes:
    others = {name.encode("latin-1"): row for name, row in rows.items() if name != _ID}
    fields = [struct.unpack_from("<LLL", row, 16) for row in others.values()]
    return serialization_id(list(others), [crc for crc, _, nbytes in fields if nbytes]).encode()


def _can_be_read(archive: ZipReader, made: Appended, names: set[str], limits: Limits) -> bool:
    """Return whether a reader finds the right directory, before the last write and after it."""
    before = _Overlay(archive.source, made, bytes(END_64_NBYTES) + made.old_end)
    after = _Overlay(archive.source, made, made.end)
    try:
        return (
            ZipReader(before, limits).end.directory == archive.end.directory
            and set(ZipReader(after, limits)) == names
        )
    except TorchZipError:  # such as bytes in the file that look like the end of an archive
        return False


def write(file: InPlaceFile, made: Appended, size: int) -> None:
    """Apply the edit to a file of ``size`` bytes, which is restored after any error.

    Raises
    ------
    OSError
        Then the file is unchanged, unless the last sync failed.
    """
    if size != made.start:
        restore(file, made)
    last = made.size - _END_NBYTES
    try:
        file.reserve(made.start, made.size - made.start)
        for place in _steps(made.start, made.size):
            file.write_at(place - LAST_NBYTES, made.old_end)
            file.sync()
        file.write_at(made.start + _ERASED_AT, b"\0")
        file.write_at(made.start, made.body)
        file.sync()
        try:
            file.write_at(last, made.end)
        except BaseException:
            file.write_at(last, bytes(END_64_NBYTES) + made.old_end)
            file.sync()
            raise
    except BaseException:
        # If that fails too, readers still find the old directory at the end of the longer file.
        with contextlib.suppress(OSError):
            restore(file, made)
        raise
    file.sync()


def restore(file: InPlaceFile, made: Appended) -> None:
    """Restore the end of a file as it was before anything was appended."""
    file.write_at(made.start + _ERASED_AT, b"P")
    file.sync()  # the end record must be there before the other one is cut off
    file.cut(made.start)


def _steps(start: int, size: int) -> list[int]:
    """Return where the copies of the old end record end, in order; the last is the new size."""
    first = start + STEP_NBYTES
    first -= first % SECTOR_NBYTES
    return [*range(first, size - SECTOR_NBYTES, STEP_NBYTES), size]


class _Overlay(Source):
    """The file as it will be: the old bytes, one of them erased, followed by the new ones."""

    def __init__(self, base: Source, made: Appended, end: bytes) -> None:
        self._base = base
        self._start = made.start
        self._new = made.body + end
        self.name = base.name
        self.size = made.size

    def read_at(self, offset: int, nbytes: int) -> bytes:
        count = min(max(self._start - offset, 0), nbytes)
        old = bytearray(self._base.read_at(offset, count)) if count else bytearray()
        erased = self._start + _ERASED_AT - offset
        if 0 <= erased < count:
            old[erased] = 0
        first = max(offset - self._start, 0)
        return bytes(old) + self._new[first : first + nbytes - count]

    def close(self) -> None:
        """Do nothing: the base belongs to its opener."""
