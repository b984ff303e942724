"""Finds every local header, directory row and end record in a damaged archive, by signatures.

No mark is needed to find the next one. The bytes of a tensor can look like any of them, so all
results are candidates.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from typing import NamedTuple

from torchzip.container.zip_end import END_64_NBYTES, LAST_NBYTES
from torchzip.container.zip_extra import all_fields
from torchzip.container.zip_layout import (
    BIG,
    CENTRAL,
    DESCRIPTOR,
    DESCRIPTOR_64,
    DESCRIPTOR_MAGIC,
    LOCAL,
)
from torchzip.errors import LimitError
from torchzip.files.source import Source
from torchzip.limits import Limits

_SIGNATURE = re.compile(rb"PK(?:\x03\x04|\x01\x02|\x05\x06|\x06\x06)")

_BLOCK_NBYTES = 1 << 20
#: Record names are strings like ``archive/data/12``; longer ones are ignored.
_MOST_NAME = 1024
#: Records that have no folder if the archive was repacked without its top folder.
_WITHOUT_FOLDER = frozenset(
    [
        b"data.pkl", b"byteorder", b"version", b".format_version", b".storage_alignment",
        b"constants.pkl", b"archive_format",
    ]
)  # fmt: skip
_LOOK_NBYTES = CENTRAL.size + _MOST_NAME
#: The zip64 field of a row, the first in its extra data.
_ZIP64_NBYTES = 4 + 3 * 8
_DESCRIPTOR_FLAG = 8
#: Records of torch.save start on a multiple of this, unless it was told otherwise.
_ALIGNMENT = 64
#: Most marks in one file; each takes some 300 bytes of memory. `Limits.entries` may lower it.
_MOST_MARKS = 1_000_000
#: Most places in one record that look like a descriptor and are checked.
_MOST_TRIES = 10_000


class LocalHeader(NamedTuple):
    """The header before a record. ``name`` includes the archive name."""

    offset: int
    name: bytes
    has_descriptor: bool
    method: int
    crc: int
    compressed: int
    nbytes: int
    data_offset: int


class Row(NamedTuple):
    """The row of the directory for a record; ``at`` is the offset of the row itself."""

    at: int
    end: int
    name: bytes
    method: int
    crc: int
    compressed: int
    nbytes: int
    offset: int


class EndRecord(NamedTuple):
    """An end record or zip64 end record. ``stop`` is where its archive ends."""

    at: int
    stop: int
    entries: int
    offset: int


class Descriptor(NamedTuple):
    """The descriptor after a record. ``is_signed`` says whether it has the signature."""

    is_signed: bool
    crc: int
    compressed: int
    nbytes: int


Mark = LocalHeader | Row | EndRecord


def scan(source: Source, limits: Limits) -> Iterator[Mark]:
    """Yield all marks in file order, in constant memory.

    Raises
    ------
    LimitError
        If there are more of them than an archive may have records.
    """
    bound = min(_MOST_MARKS, 3 * limits.entries + 1000)
    count = 0
    skip_to = 0
    for start in range(0, source.size, _BLOCK_NBYTES):
        length = min(source.size - start, _BLOCK_NBYTES + _LOOK_NBYTES)
        block = bytes(source.read_at(start, length))
        for match in _SIGNATURE.finditer(block):
            at = match.start()
            if at >= _BLOCK_NBYTES:
                break  # the next block begins there
            if start + at < skip_to:
                continue  # inside a name
            mark = _parse(source, block, at, start)
            if mark is None:
                continue
            count += 1
            if count > bound:
                raise LimitError("entries", count, bound, path=source.name)
            if isinstance(mark, LocalHeader):
                skip_to = mark.offset + LOCAL.size + len(mark.name)
            elif isinstance(mark, Row):
                skip_to = mark.at + CENTRAL.size + len(mark.name)
            yield mark


def _parse(source: Source, block: bytes, at: int, start: int) -> Mark | None:
    kind = block[at + 2 : at + 4]
    if kind == b"\3\4":
        return _parse_local(block, at, start)
    if kind == b"\1\2":
        return _parse_row(source, block, at, start)
    if kind == b"\5\6" and at + 22 <= len(block):
        count, _, offset, comment = struct.unpack_from("<HLLH", block, at + 10)
        return EndRecord(start + at, start + at + 22 + comment, count, offset)
    if kind == b"\6\6" and at + 56 <= len(block):
        count, _, offset = struct.unpack_from("<QQQ", block, at + 32)
        stop = start + at + END_64_NBYTES + LAST_NBYTES
        return EndRecord(start + at, stop, count, offset)
    return None


def _parse_local(block: bytes, at: int, start: int) -> LocalHeader | None:
    if at + LOCAL.size > len(block):
        return None
    fields = LOCAL.unpack_from(block, at)
    flags, method = fields[2:4]
    crc, compressed, nbytes, name_length, extra_length = fields[6:]
    name = block[at + 30 : at + 30 + name_length]
    if not _is_name(name, name_length):
        return None
    offset = start + at
    data_offset = offset + 30 + name_length + extra_length
    return LocalHeader(
        offset, name, bool(flags & _DESCRIPTOR_FLAG), method, crc, compressed, nbytes, data_offset
    )


def _parse_row(source: Source, block: bytes, at: int, start: int) -> Row | None:
    if at + CENTRAL.size > len(block):
        return None
    fields = CENTRAL.unpack_from(block, at)
    method, crc, compressed, nbytes = fields[4], *fields[7:10]
    name_length, extra_length, comment_length = fields[10:13]
    offset = fields[16]
    name = block[at + 46 : at + 46 + name_length]
    if not _is_name(name, name_length):
        return None
    extra_at = start + at + 46 + name_length
    end = extra_at + extra_length + comment_length
    if end > source.size:
        return None
    if BIG in (nbytes, compressed, offset):
        extra = bytes(source.read_at(extra_at, min(extra_length, _ZIP64_NBYTES)))
        nbytes, compressed, offset = _uncap([nbytes, compressed, offset], extra)
    return Row(start + at, end, name, method, crc, compressed, nbytes, offset)


def _is_name(name: bytes, length: int) -> bool:
    return (
        0 < length <= _MOST_NAME
        and len(name) == length
        and (b"/" in name or name in _WITHOUT_FOLDER)
        and b"\0" not in name
    )


def _uncap(values: list[int], extra: bytes) -> list[int]:
    """Return the numbers of a row; capped ones come from the zip64 field, as far as it has them."""
    fields = extra[4:] if extra[:2] == b"\1\0" else b""
    made = []
    for value in values:
        if value == BIG and len(fields) >= 8:
            value, fields = int.from_bytes(fields[:8], "little"), fields[8:]
        made.append(value)
    return made


def read_lengths(source: Source, offset: int) -> int | None:
    """Return where the data starts according to a local header, whose lengths may be damaged."""
    if offset < 0 or offset + LOCAL.size > source.size:
        return None
    name_length, extra_length = struct.unpack("<HH", source.read_at(offset + 26, 4))
    return int(offset + 30 + name_length + extra_length)


def aligned(offset: int, start: int) -> int:
    """Return the next place at which `torch.save` puts bytes, in an archive that begins at start.

    >>> aligned(65, 0), aligned(65, 1)
    (128, 65)
    """
    return offset + (start - offset) % _ALIGNMENT


def is_sound_extra(source: Source, start: int, stop: int) -> bool:
    """Return whether the extra data of a header is a valid list of fields."""
    if not 0 <= start <= stop <= source.size:
        return False
    fields = all_fields(bytes(source.read_at(start, stop - start)))
    is_whole = sum(4 + len(content) for _, content in fields) == stop - start
    return is_whole and all(kind for kind, _ in fields)


def read_descriptors(source: Source, offset: int) -> list[Descriptor]:
    """Return the bytes after a record, read as a short and as a long descriptor."""
    found = []
    for form in (DESCRIPTOR, DESCRIPTOR_64):
        if offset >= 0 and offset + form.size <= source.size:
            magic, crc, compressed, nbytes = form.unpack(source.read_at(offset, form.size))
            found.append(Descriptor(magic == DESCRIPTOR_MAGIC, crc, compressed, nbytes))
    return found


def find_descriptor(source: Source, start: int, stop: int) -> int | None:
    """Return the offset of the first descriptor whose size fits bytes that begin at ``start``."""
    at = start
    tries = _MOST_TRIES
    while at < stop and tries:
        block = bytes(source.read_at(at, min(stop - at, _BLOCK_NBYTES)))
        place = block.find(DESCRIPTOR_MAGIC)
        while place >= 0 and tries:
            tries -= 1
            behind = read_descriptors(source, at + place)
            if any(each.compressed == at + place - start for each in behind):
                return at + place
            place = block.find(DESCRIPTOR_MAGIC, place + 1)
        if at + len(block) >= stop:
            break
        at += len(block) - 3
    return None
