"""The end of a zip archive, which leads to its one central directory (docs/format.md, section 2.7).

An archive ends with the end record, which readers search for backwards from the end of the file. In
torch's archives it follows the zip64 locator, which follows the zip64 end record, which follows the
directory::

    directory | zip64 end record 56 | locator 20 | end record 22

Two more forms are read. The zip64 end record may have data after its 56 bytes. And while `zip_edit`
appends to an archive, there are copies of the locator and the end record at the end of the file,
away from the zip64 end record; the first byte of the old end record is erased::

    directory | zip64 end record | locator | end record | appended bytes | locator | end record

Readers that follow the locator find one directory. Others use the bytes right before the locator or
the end record: if these could be a zip64 end record or a directory, the file is refused.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from torchzip.container.zip_layout import BIG, CENTRAL
from torchzip.errors import CUT_SHORT, ArchiveError, LimitError
from torchzip.files.source import Source
from torchzip.limits import Limits

_END = struct.Struct("<4sHHHHLLH")
_LOCATOR = struct.Struct("<4sLQL")
_END_64 = struct.Struct("<4sQHHLLQQQQ")

#: Bytes at the end of a file in which readers look for the end record.
WINDOW_NBYTES = _END.size + 0xFFFF
END_64_NBYTES = _END_64.size
#: Bytes of a locator and an end record.
LAST_NBYTES = _LOCATOR.size + _END.size


class End(NamedTuple):
    """Where the directory is and how many entries it has; ``at`` is the offset of the end record.

    ``end_64`` is the offset of the zip64 end record, None if there is none.
    """

    offset: int
    nbytes: int
    entries: int
    at: int
    end_64: int | None

    @property
    def directory(self) -> tuple[int, int, int]:
        """Where the directory is, its size, and its number of entries."""
        return self.offset, self.nbytes, self.entries


def build_end(count: int, nbytes: int, offset: int) -> bytes:
    """Return what torch writes after a directory: always all three records.

    >>> len(build_end(3, 200, 1000))
    98
    """
    return (
        _END_64.pack(b"PK\6\6", 44, 0x031E, 0x002D, 0, 0, count, count, nbytes, offset)
        + _LOCATOR.pack(b"PK\6\7", 0, offset + nbytes, 1)
        + _END.pack(
            b"PK\5\6", 0, 0, min(count, 0xFFFF), min(count, 0xFFFF), min(nbytes, BIG),
            min(offset, BIG), 0,
        )
    )  # fmt: skip


def find_end(source: Source, limits: Limits) -> End:
    """Return the only end of an archive.

    Raises
    ------
    ArchiveError
        If there is none, or if another one leads to another directory.
    LimitError
        If it counts more entries than ``limits`` allow.
    """
    tail_nbytes = min(source.size, WINDOW_NBYTES)
    base = source.size - tail_nbytes
    tail = bytes(source.read_at(base, tail_nbytes))
    # Readers search backwards: the last signature that begins a whole record counts.
    at = tail.rfind(b"PK\5\6", 0, max(0, len(tail) - 18))
    if at < 0:
        raise ArchiveError(
            f"no zip directory in the last {tail_nbytes:,} bytes (the file has "
            f"{source.size:,} bytes and starts like a zip archive). {CUT_SHORT}"
        )
    found = _read_end(source, limits, tail, base, at)
    _check_nothing_else(source, found)
    at = tail.rfind(b"PK\5\6", 0, at)
    while at >= 0:
        try:
            other = _read_end(source, limits, tail, base, at)
        except (ArchiveError, LimitError):
            pass
        else:
            if other.directory != found.directory:  # some readers would follow it
                raise ArchiveError(
                    f"end records at bytes {base + at:,} and {found.at:,} each lead to a "
                    "directory; readers would disagree about what is in this file"
                )
        at = tail.rfind(b"PK\5\6", 0, at)
    return found


def _read_end(source: Source, limits: Limits, tail: bytes, base: int, at: int) -> End:
    _, *numbers, _ = _END.unpack_from(tail, at)
    end = base + at  # where the directory must end
    end_64: int | None = None
    locator_at = end - _LOCATOR.size
    locator = (
        _LOCATOR.unpack(source.read_at(locator_at, _LOCATOR.size)) if locator_at >= 0 else None
    )
    if locator is not None and locator[0] == b"PK\6\7":
        _, disk_of_end, end_64, disks = locator
        if disk_of_end or disks != 1 or end_64 + _END_64.size > locator_at:
            raise ArchiveError(
                f"the zip64 locator points to byte {end_64:,} of disk {disk_of_end:,} of "
                f"{disks:,}; a byte before it, of disk 0 of 1, was expected",
                offset=locator_at,
            )
        magic, length, _, _, *large = _END_64.unpack(source.read_at(end_64, _END_64.size))
        if magic != b"PK\6\6" or not (
            end_64 + 12 + length == locator_at
            or (length == 44 and _is_appended_to(source, end_64, locator_at))
        ):
            raise ArchiveError(
                "the zip64 locator points here; a zip64 end record up to byte "
                f"{locator_at:,} was expected",
                offset=end_64,
            )
        caps = (0xFFFF, 0xFFFF, 0xFFFF, 0xFFFF, BIG, BIG)
        for low, cap, high in zip(numbers, caps, large, strict=True):
            if low not in (high, cap):
                raise ArchiveError(
                    f"the end record says {low:,} where the zip64 end record says {high:,}",
                    offset=end,
                )
        numbers, end = large, end_64
    disk, first_disk, on_disk, count, nbytes, offset = numbers
    if disk or first_disk or on_disk != count:
        raise ArchiveError(
            "the archive is one part of several; join the parts first", offset=base + at
        )
    if offset + nbytes != end:
        raise ArchiveError(
            f"the directory should end where its end record begins, at byte {end:,}, but "
            f"its offset {offset:,} and size {nbytes:,} say {offset + nbytes:,}. Bytes were "
            "added or lost.",
            offset=base + at,
        )
    if count * CENTRAL.size > nbytes:
        raise ArchiveError(
            f"{count:,} entries cannot fit in a directory of {nbytes:,} bytes", offset=base + at
        )
    if count > limits.entries:
        raise LimitError("entries", count, limits.entries)
    return End(offset, nbytes, count, base + at, end_64)


def _is_appended_to(source: Source, end_64: int, locator_at: int) -> bool:
    """Return whether a locator and an end record are copies of those after the zip64 end record."""
    own_at = end_64 + _END_64.size
    if own_at + LAST_NBYTES > locator_at:
        return False
    own = bytes(source.read_at(own_at, LAST_NBYTES))
    last = bytes(source.read_at(locator_at, LAST_NBYTES))
    erased = last[: _LOCATOR.size] + b"\0" + last[_LOCATOR.size + 1 :]
    return own in (last, erased)


def _check_nothing_else(source: Source, end: End) -> None:
    """Refuse archives in which a reader that ignores the locator's offset finds something else.

    Python's ``zipfile`` uses a zip64 end record right before the locator, and without one a
    directory that ends where the end record begins.
    """
    before = end.at - _LOCATOR.size - _END_64.size
    if end.end_64 is None or end.end_64 == before:
        return
    has_record = source.read_at(before, 4) == b"PK\6\6"
    if has_record or _is_directory(source, end.at - end.nbytes, end.at):
        raise ArchiveError(
            "the zip64 locator does not point to the bytes right before it, where there is an "
            "end record or a directory as well; readers would disagree about what is in this file",
            offset=end.at - _LOCATOR.size,
        )


def _is_directory(source: Source, start: int, end: int) -> bool:
    """Return whether entries of a directory fill the bytes between two offsets."""
    if start < 0 or source.read_at(start, 4) != b"PK\1\2":
        return False
    data = bytes(source.read_at(start, end - start))
    at = 0
    while at + CENTRAL.size <= len(data) and data[at : at + 4] == b"PK\1\2":
        at += CENTRAL.size + sum(struct.unpack_from("<HHH", data, at + 28))
    return at == len(data)
