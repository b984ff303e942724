"""The members of a tar file, as far as torch before 0.1.10 needs them: four regular files.

A member is a header of 512 bytes and its data, padded to 512. Of the header: name at 0 (100
bytes), size at 124 (12 octal digits, or binary if the first bit is set), the sum of its own bytes
at 148, type at 156 (``0`` or NUL is a regular file), ``ustar`` at 257, and a prefix of the name at
345. Python's tarfile writes a header of type ``x`` before a member whose numbers do not fit: texts
``<length> <key>=<value>``, of which ``size`` and ``path`` count here. Two blocks of zeros end it.

Nothing is extracted. Anything but regular files is skipped by its size and is no member.
"""

from __future__ import annotations

from torchzip.errors import TRUNCATED, ArchiveError, LimitError, shown
from torchzip.files.source import Source
from torchzip.limits import Limits

_BLOCK = 512


def find_members(source: Source, limits: Limits) -> tuple[dict[str, tuple[int, int]], int]:
    """Return where each regular member lies, (offset, bytes) by name, and where the tar ends.

    Raises
    ------
    ArchiveError
        If a header is broken, a member reaches past the file, or two have one name.
    LimitError
        If there are more than ``limits.entries`` headers.
    """
    members: dict[str, tuple[int, int]] = {}
    extended: dict[str, str] = {}
    at = 0
    count = 0
    while at + _BLOCK <= source.size:
        header = bytes(source.read_at(at, _BLOCK))
        if not any(header):
            return members, min(at + 2 * _BLOCK, source.size)
        count += 1
        if count > limits.entries:
            raise LimitError("entries", count, limits.entries, path=source.name)
        name, nbytes, kind = _parse_header(header, at, source.name)
        begin = at + _BLOCK
        if kind in (b"0", b"\0"):
            if "size" in extended:
                nbytes = _number(extended["size"].encode(), 10, at, source.name)
            name = extended.get("path", name)
            extended = {}
        if begin + nbytes > source.size:
            raise ArchiveError(
                f"member {shown(name)} ends at byte {begin + nbytes:,}, the file has "
                f"{source.size:,} bytes. {TRUNCATED}",
                path=source.name,
                offset=at,
            )
        if kind == b"x":
            if nbytes > limits.text_nbytes:
                raise LimitError("text_nbytes", nbytes, limits.text_nbytes, path=source.name)
            extended = _parse_extended(bytes(source.read_at(begin, nbytes)), at, source.name)
        elif kind in (b"0", b"\0"):
            if name in members:
                raise ArchiveError(
                    f"two members are called {shown(name)}", path=source.name, offset=at
                )
            members[name] = (begin, nbytes)
        at = begin + -(-nbytes // _BLOCK) * _BLOCK
    return members, min(at, source.size)


def _parse_header(header: bytes, at: int, path: str) -> tuple[str, int, bytes]:
    """Return name, size and type of a header."""
    total = sum(header) - sum(header[148:156]) + 8 * ord(" ")
    found = _number(header[148:156], 8, at, path)
    if found != total:
        raise ArchiveError(
            f"the bytes of a tar header have the sum {total:,}, it says {found:,}",
            path=path,
            offset=at,
        )
    name = _text(header[:100])
    prefix = _text(header[345:500])
    if header[257:262] == b"ustar" and prefix:
        name = f"{prefix}/{name}"
    if header[124] & 0x80:
        nbytes = int.from_bytes(header[125:136], "big")
    else:
        nbytes = _number(header[124:136], 8, at, path)
    return name, nbytes, header[156:157]


def _text(field: bytes) -> str:
    return field.split(b"\0", 1)[0].decode("utf-8", "surrogateescape")


def _number(field: bytes, base: int, at: int, path: str) -> int:
    digits = field.split(b"\0", 1)[0].strip(b" ")
    if not digits.isdigit() or len(digits) > 24 or (base == 8 and digits.strip(b"01234567")):
        raise ArchiveError(
            f"a tar header has {shown(field, 24)} where a number was expected", path=path, offset=at
        )
    return int(digits, base)


def _parse_extended(raw: bytes, at: int, path: str) -> dict[str, str]:
    """Return the texts of an extended header."""
    made: dict[str, str] = {}
    while raw:
        length, space, _ = raw.partition(b" ")
        end = int(length) if space and length.isdigit() and len(length) < 9 else 0
        key, equals, value = raw[len(length) + 1 : end - 1].partition(b"=")
        if not equals or end > len(raw) or raw[end - 1 : end] != b"\n":
            raise ArchiveError(
                "an extended tar header is broken; texts '<length> <key>=<value>' were expected",
                path=path,
                offset=at,
            )
        made[key.decode("utf-8", "replace")] = value.decode("utf-8", "surrogateescape")
        raw = raw[end:]
    return made
