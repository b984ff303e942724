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
from torchzip.container.zip_extra import all_fields, uncap
from torchzip.container.zip_layout import (
    BIG,
    CENTRAL,
    DESCRIPTOR,
    DESCRIPTOR_64,
    DESCRIPTOR_MAGIC,
    LOCAL,
)
from torchzip.errors import ArchiveError, LimitError
from torchzip.files.source import Source
from torchzip.limits import Limits

_SIGNATURE = re.compile(rb"PK(?:\x03\x04|\x01\x02|\x05\x06|\x06\x06)")

_BLOCK_NBYTES = 1 << 20
#: Record names are strings like ``archive/data/12``; longer ones are ignored.
_MOST_NAME = 1024
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
    name_end: int
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
    name_end: int
    end: int
    name: bytes
    method: int
    crc: int
    compressed: int
    nbytes: int
    offset: int

    @property
    def says(self) -> tuple[object, ...]:
        """What it says of its record, wherever the row itself is."""
        return self[3:]


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
    count = name_end = 0
    for start in range(0, source.size, _BLOCK_NBYTES):
        length = min(source.size - start, _BLOCK_NBYTES + _LOOK_NBYTES)
        block = bytes(source.read_at(start, length))
        for match in _SIGNATURE.finditer(block):
            at = match.start()
            if at >= _BLOCK_NBYTES:
                break  # the next block begins there
            if start + at < name_end:
                continue
            try:
                mark = _parse(source, block, at, start + at)
            except struct.error:  # the file ends within it
                continue
            if mark is None:
                continue
            count += 1
            if count > bound:
                raise LimitError("entries", count, bound, path=source.name)
            if not isinstance(mark, EndRecord):
                name_end = mark.name_end
            yield mark


def _parse(source: Source, block: bytes, at: int, offset: int) -> Mark | None:
    """Return what begins at ``at`` of a block, which is ``offset`` in the file."""
    kind = block[at + 2 : at + 4]
    if kind == b"\5\6":
        count, _, directory, comment = struct.unpack_from("<HLLH", block, at + 10)
        return EndRecord(offset, offset + 22 + comment, count, directory)
    if kind == b"\6\6":
        count, _, directory = struct.unpack_from("<QQQ", block, at + 32)
        return EndRecord(offset, offset + END_64_NBYTES + LAST_NBYTES, count, directory)
    form = LOCAL if kind == b"\3\4" else CENTRAL
    fields = form.unpack_from(block, at)
    # The row of the directory has one more field before those that both have.
    flags, method, _, _, crc, compressed, nbytes, name_length, extra_length = (
        fields[2:11] if form is LOCAL else fields[3:12]
    )
    name = block[at + form.size : at + form.size + name_length]
    if not 0 < name_length <= _MOST_NAME or len(name) < name_length or b"\0" in name:
        return None
    name_end = offset + form.size + name_length
    if form is LOCAL:
        has_descriptor = bool(flags & _DESCRIPTOR_FLAG)
        return LocalHeader(
            offset, name_end, name, has_descriptor, method, crc, compressed, nbytes,
            name_end + extra_length,
        )  # fmt: skip
    comment_length, place = fields[12], fields[16]
    end = name_end + extra_length + comment_length
    if end > source.size:
        return None
    if BIG in (nbytes, compressed, place):
        extra = bytes(source.read_at(name_end, min(extra_length, _ZIP64_NBYTES)))
        try:
            nbytes, compressed, place = uncap([nbytes, compressed, place], all_fields(extra))
        except ArchiveError:
            pass  # its numbers are damaged, and lead nowhere
    return Row(offset, name_end, end, name, method, crc, compressed, nbytes, place)


def read_lengths(source: Source, offset: int) -> int | None:
    """Return where the data starts according to a local header, whose lengths may be damaged."""
    if offset < 0 or offset + LOCAL.size > source.size:
        return None
    name_length, extra_length = struct.unpack("<HH", source.read_at(offset + 26, 4))
    return int(offset + LOCAL.size + name_length + extra_length)


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


def has_descriptor(source: Source, start: int, end: int) -> bool:
    """Return whether a signed descriptor follows bytes and has their size."""
    return any(
        each.is_signed and each.compressed == end - start for each in read_descriptors(source, end)
    )


def find_descriptor(source: Source, start: int, stop: int) -> int | None:
    """Return the offset of the first descriptor whose size fits bytes that begin at ``start``."""
    tries = _MOST_TRIES
    for at in range(start, stop, _BLOCK_NBYTES):
        # With the signatures that begin in this block and end in the next one.
        block = bytes(source.read_at(at, min(stop - at, _BLOCK_NBYTES + 3)))
        for match in re.finditer(re.escape(DESCRIPTOR_MAGIC), block):
            tries -= 1
            if tries < 0:
                return None
            if has_descriptor(source, start, at + match.start()):
                return at + match.start()
    return None


def past_the_end(source: Source, begin: int, nbytes: int) -> str:
    """Return why bytes are lost that a file is too short for."""
    return f"the file ends at byte {source.size:,}; its {nbytes:,} bytes begin at byte {begin:,}"
