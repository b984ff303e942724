"""The extra fields of a zip header: ``u16 kind, u16 length, bytes``, one after the other.

Two kinds change how the header itself is read. The zip64 field (1; docs/format.md, section 2.6)
holds numbers that do not fit into the header's 32 bits. The Unicode path field of Info-ZIP (0x7075)
replaces the name: ``version 1, u32 CRC-32 of the name, UTF-8``. It only applies if the CRC matches,
since a tool that renames a record may not know the field. Newer releases of Python's ``zipfile``,
7-Zip and unzip follow it; torch and torchzip use the name in the header.
"""

from __future__ import annotations

import codecs
import struct
import zlib
from collections.abc import Sequence
from encodings.cp437 import decoding_table

from torchzip.container.zip_layout import BIG
from torchzip.errors import ArchiveError, shown

#: Kind and content of a field.
Field = tuple[int, bytes]

ZIP64, UNICODE_PATH = 1, 0x7075
PADDING = int.from_bytes(b"FB", "little")


def all_fields(extra: bytes) -> list[Field]:
    """Return the fields, torch's padding too, up to the first that does not fit into the bytes.

    >>> all_fields(b"\\1\\0\\0\\0" + b"FB\\2\\0ZZ" + b"\\7\\7\\xff\\xff")
    [(1, b''), (16966, b'ZZ')]
    """
    made = []
    at = 0
    while at + 4 <= len(extra):
        kind, length = struct.unpack_from("<HH", extra, at)
        at += 4 + length
        if at > len(extra):
            break
        made.append((kind, extra[at - length : at]))
    return made


def uncap(values: list[int], fields: Sequence[Field]) -> list[int]:
    """Return the numbers of a header, with capped ones replaced by those of the zip64 field."""
    found = [content for kind, content in fields if kind == ZIP64]
    if len(found) > 1:
        raise ArchiveError("an entry has two zip64 fields; one was expected")
    # Each capped value takes the next u64, in this order. Without a field, a value of
    # 0xffffffff means exactly that.
    if not found:
        return values
    made = []
    used = 0
    for value in values:
        if value == BIG:
            if used + 8 > len(found[0]):
                raise ArchiveError(
                    f"the zip64 field of an entry has {len(found[0])} bytes; {used + 8} or more "
                    "were expected"
                )
            (value,) = struct.unpack_from("<Q", found[0], used)
            used += 8
        made.append(value)
    return made


def zip64_sizes(fields: Sequence[Field]) -> tuple[int, int] | None:
    """Return size and compressed size from the zip64 field of a local header.

    That field must hold both or none, so some readers use it even if the header's own numbers are
    not capped. None if there is no field, or it is too short for both.
    """
    for kind, content in fields:
        if kind == ZIP64 and len(content) >= 16:
            size, compressed = struct.unpack_from("<QQ", content)
            return size, compressed
    return None


def check_path(fields: Sequence[Field], name: bytes) -> None:
    """Raise ArchiveError if a Unicode path field gives a record another name than its header.

    >>> def field(name: bytes, path: bytes) -> Field:
    ...     return UNICODE_PATH, struct.pack("<BL", 1, zlib.crc32(name)) + path
    >>> check_path([field(b"a", b"b")], b"c")  # made for another name, so it does not apply
    >>> check_path([field(b"a", b"b")], b"a")
    Traceback (most recent call last):
    torchzip.errors.ArchiveError: a record is called b'a', and its Unicode path field calls it b'b'
    """
    for kind, content in fields:
        if kind != UNICODE_PATH or len(content) <= 5 or content[0] > 1:
            continue
        crc, path = int.from_bytes(content[1:5], "little"), content[5:]
        if crc == zlib.crc32(name) and path not in (name, _in_utf8(name)):
            raise ArchiveError(
                f"a record is called {shown(name)}, and its Unicode path field calls it "
                f"{shown(path)}"
            )


def _in_utf8(name: bytes) -> bytes:
    """Return a name in UTF-8; without the UTF-8 flag it is in the code page of the IBM PC."""
    # By a table: looking up a codec imports it, and nothing is imported because of a file's
    # content.
    return codecs.charmap_decode(name, "strict", decoding_table)[0].encode()
