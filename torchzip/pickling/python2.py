"""Strings and names of Python 2, which old checkpoints have."""

from __future__ import annotations

import re
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from typing import Any

from torchzip.errors import PickleError, shown


def python2_string(raw: bytes) -> Any:
    """Return a ``str`` of Python 2 as a string if it is UTF-8, as torch does, else as bytes."""
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        return raw


def bytes_of(value: Any) -> bytes | bytearray | None:
    """Return bytes, which Python 2 wrote as a ``str``; None for anything else."""
    if type(value) is str:
        try:
            return value.encode("latin1")
        except UnicodeEncodeError:
            return None
    return value if type(value) in (bytes, bytearray) else None


def unquote(line: bytes) -> bytes:
    """Return the value of the argument of STRING: a literal in quotes, with escapes."""
    if len(line) < 2 or line[:1] != line[-1:] or line[:1] not in (b"'", b'"'):
        raise PickleError(f"{shown(line)} where a string in quotes was expected")
    # As a string, since joining many pieces of bytes takes 80 bytes for each.
    return _ESCAPE.sub(_unescape, line[1:-1].decode("latin1")).encode("latin1")


#: Escapes in a string of Python 2; any other backslash is kept.
_ESCAPE = re.compile(r"\\(?:([0-7]{1,3})|x([0-9a-fA-F]{2})|([\\'\"abfnrtv\n])|(x|\Z))", re.DOTALL)
_ESCAPED: dict[str, str] = dict(zip("\\'\"abfnrtv\n", [*"\\'\"\a\b\f\n\r\t\v", ""], strict=True))


def _unescape(found: re.Match[str]) -> str:
    octal, hexadecimal, letter, broken = found.groups()
    if broken is not None:
        raise PickleError("a string in quotes has an escape that is not complete")
    if octal is not None:
        return chr(int(octal, 8) & 0xFF)
    if hexadecimal is not None:
        return chr(int(hexadecimal, 16))
    return _ESCAPED[str(letter)]


def python3_name(module: str, name: str) -> tuple[str, str]:
    """Return the Python 3 name for a name in protocols 0 to 2, which use those of Python 2."""
    if (module, name) in NAME_MAPPING:
        return NAME_MAPPING[module, name]
    return IMPORT_MAPPING.get(module, module), name
