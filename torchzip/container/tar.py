"""Finds the regular files in a tar file, as torch before 0.1.10 wrote it.

See docs/format.md, section 11.2.

A member is a header of 512 bytes and its data, padded to 512. Of the header: name at 0 (100 bytes),
size at 124 (12 octal digits, or binary if the first bit is set), the sum of its own bytes at 148,
type at 156 (``0`` or NUL is a regular file), ``ustar`` at 257, and a prefix of the name at 345.
Python's tarfile writes a header of type ``x`` before a member whose numbers do not fit. It has
lines ``<length> <key>=<value>``, of which ``size`` and ``path`` matter here. Two blocks of zeros
end the file.

Nothing is extracted. Entries that are not regular files are skipped by their size. Everything that
could make Python's tarfile, and so torch, see other files than this module is refused: links and
the like under the name of a file, and names and sizes in other kinds of headers.
"""

from __future__ import annotations

from torchzip.errors import TRUNCATED, ArchiveError, ErrorPlace, LimitError, UnsupportedError, shown
from torchzip.files.source import Source
from torchzip.limits import Limits

_BLOCK = 512
_FILES = (b"0", b"\0")
_FOLDER = b"5"
#: Headers about other entries: about the next one, about all that follow, and those of Solaris and
#: GNU, which no version of torch wrote.
_NEXT, _ALL = b"x", b"g"
_FOREIGN = {b"X": "an extended header of Solaris", b"L": "a long name of GNU"}


def is_header(block: bytes) -> bool:
    """Return whether Python's tarfile takes a block for a header: its checksum is right.

    >>> is_header(bytes(512)), is_header(b"x" * 100)
    (False, False)
    """
    if len(block) < _BLOCK:
        return False
    field = block[148:156]
    rest = [*block[:148], *block[156:_BLOCK]]
    unsigned = sum(rest) + 8 * ord(" ")
    signed = unsigned - 256 * sum(byte > 127 for byte in rest)
    if field[0] in (0o200, 0o377):
        found = int.from_bytes(field[1:], "big") - (256**7 if field[0] == 0o377 else 0)
    else:
        try:
            found = int(field.split(b"\0", 1)[0].decode("ascii").strip() or "0", 8)
        except ValueError:
            return False
    return found in (unsigned, signed) and any(block)


def find_members(source: Source, limits: Limits) -> tuple[dict[str, tuple[int, int]], int]:
    """Return (offset, bytes) of each regular member by name, and the offset at which the tar ends.

    Raises
    ------
    ArchiveError
        If a header is invalid, a member reaches past the file, or two have the same name.
    LimitError
        If there are more than ``limits.entries`` headers.
    UnsupportedError
        If it has headers that no version of torch wrote.
    """
    members: dict[str, tuple[int, int]] = {}
    others: set[str] = set()  # names of links, devices and the like
    extended: dict[str, str] | None = None
    at = 0
    count = 0
    with ErrorPlace(path=source.name):
        while at + _BLOCK <= source.size:
            header = bytes(source.read_at(at, _BLOCK))
            if not any(header):
                return members, min(at + 2 * _BLOCK, source.size)
            count += 1
            if count > limits.entries:
                raise LimitError("entries", count, limits.entries)
            name, nbytes, kind = _parse_header(header, at)
            begin = at + _BLOCK
            if extended is not None and kind in (_NEXT, _ALL):
                raise ArchiveError("an extended tar header of another one", offset=at)
            if extended:
                if "size" in extended:
                    nbytes = _number(extended["size"].encode("utf-8", "replace"), 10, at)
                name = extended.get("path", name).rstrip("/")
            extended = None
            if begin + nbytes > source.size:
                raise ArchiveError(
                    f"member {shown(name)} ends at byte {begin + nbytes:,}, the file has "
                    f"{source.size:,} bytes. {TRUNCATED}",
                    offset=at,
                )
            if kind in (_NEXT, _ALL):
                if nbytes > limits.text_nbytes:
                    raise LimitError("text_nbytes", nbytes, limits.text_nbytes)
                extended = _parse_extended(bytes(source.read_at(begin, nbytes)), at)
                if kind == _ALL:
                    if extended.keys() & {"path", "size"}:
                        raise ArchiveError(
                            "a tar header that gives all members one name or size", offset=at
                        )
                    extended = None
            elif kind in _FOREIGN:
                raise UnsupportedError(f"a tar file with {_FOREIGN[kind]}", offset=at)
            elif name in members or (name in others and kind in _FILES):
                raise ArchiveError(f"two members are called {shown(name)}", offset=at)
            elif kind in _FILES:
                members[name] = (begin, nbytes)
            elif kind != _FOLDER:
                others.add(name)
            at = begin + -(-nbytes // _BLOCK) * _BLOCK
    return members, min(at, source.size)


def _parse_header(header: bytes, at: int) -> tuple[str, int, bytes]:
    """Return name, size and type of a header."""
    if not is_header(header):
        raise ArchiveError("a tar header whose checksum is wrong", offset=at)
    name = _text(header[:100])
    prefix = _text(header[345:500])
    if prefix:
        name = f"{prefix}/{name}"
    if header[124] & 0x80:
        nbytes = int.from_bytes(header[125:136], "big")
    else:
        nbytes = _number(header[124:136], 8, at)
    return name, nbytes, header[156:157]


def _text(field: bytes) -> str:
    return field.split(b"\0", 1)[0].decode("utf-8", "surrogateescape")


def _number(field: bytes, base: int, at: int) -> int:
    digits = field.split(b"\0", 1)[0].strip(b" ")
    if not digits.isdigit() or len(digits) > 24 or (base == 8 and digits.strip(b"01234567")):
        raise ArchiveError(
            f"a tar header has {shown(field, 24)} where a number was expected", offset=at
        )
    return int(digits, base)


def _parse_extended(raw: bytes, at: int) -> dict[str, str]:
    """Return the keys and values of an extended header."""
    made: dict[str, str] = {}
    while raw:
        length, space, _ = raw.partition(b" ")
        end = int(length) if space and length.isdigit() and len(length) < 9 else 0
        key, equals, value = raw[len(length) + 1 : end - 1].partition(b"=")
        if not equals or end > len(raw) or raw[end - 1 : end] != b"\n":
            raise ArchiveError(
                "an extended tar header is broken; lines '<length> <key>=<value>' were expected",
                offset=at,
            )
        if key.startswith(b"GNU.sparse."):
            raise UnsupportedError("a sparse file in a tar file", offset=at)
        made[key.decode("utf-8", "replace")] = value.decode("utf-8", "surrogateescape")
        raw = raw[end:]
    return made
