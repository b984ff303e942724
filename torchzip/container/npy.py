"""The header of a .npy file: dtype, order and shape of the array whose bytes follow.

Layout (numpy's NEP 1; docs/format.md, section 11.11): the magic, two bytes of the version, the
length of the rest as u16 (version 1) or u32 (2, 3), and a dict as Python prints it::

    {'descr': '<f4', 'fortran_order': False, 'shape': (3, 4), }

Spaces and a newline fill it up, so that the data begins on a multiple of 64 bytes. numpy adds room
first for a longer number in the first place of the shape, or in the last place if the first axis is
the fastest. This module writes the bytes that numpy 2 writes, and never evaluates what it reads.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from torchzip.dtypes import DTYPES, NPY
from torchzip.errors import (
    MAX_NDIM,
    TRUNCATED,
    ArchiveError,
    UnsupportedError,
    shown,
    too_many_dimensions,
)
from torchzip.limits import is_number

MAGIC = b"\x93NUMPY"
#: Bytes in which a header ends; numpy reads no more characters than these by default.
HEADER_NBYTES = 12 + 10_000
#: Bytes in which nearly every header ends.
USUAL_NBYTES = 256

_ALIGNMENT = 64
#: Digits that the first size of a shape has room for, so that a file can grow.
_ROOM = 21
_ITEM = re.compile(
    r"""\s*(?:'(\w+)'|"(\w+)")\s*:\s*(True|False|'[^'\\]*'|"[^"\\]*"|\([\d\s,L]*\)|\[.*\])\s*,?""",
    re.ASCII | re.DOTALL,
)
_DESCR = re.compile(r"([<>=|]?)([a-z]\d+)", re.ASCII)


class NpyHeader(NamedTuple):
    """What a header says. The data begins ``nbytes`` after its start."""

    torch_dtype: str
    byteorder: str
    #: The first axis is the fastest.
    fortran_order: bool
    shape: tuple[int, ...]
    nbytes: int


def build_header(torch_dtype: str, shape: tuple[int, ...], start: int = 0) -> bytes:
    """Return the header of an array in C order, for a place ``start`` in the file around it.

    The dtype has a type of .npy. With another start, the data begins on a multiple of 64 there.

    >>> build_header("float32", (2, 3))[10:].rstrip()
    b"{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), }"
    """
    row = DTYPES[torch_dtype]
    order = "|" if row.itemsize == 1 else "<"
    text = f"{{'descr': '{order}{row.npy}', 'fortran_order': False, 'shape': {shape!r}, }}"
    if shape:
        text += " " * (_ROOM - len(str(shape[0])))
    pad = -(start + len(MAGIC) + 4 + len(text) + 1) % _ALIGNMENT
    text += " " * pad + "\n"
    return MAGIC + b"\1\0" + len(text).to_bytes(2, "little") + text.encode("ascii")


def end_of_header(data: bytes) -> int:
    """Return where a header ends, by its first 12 bytes."""
    start = 10 if data[6:7] == b"\1" else 12
    return start + int.from_bytes(data[8:start], "little")


def parse_header(data: bytes) -> NpyHeader:
    """Return what the header at the start of ``data`` says; `HEADER_NBYTES` are enough.

    Raises
    ------
    ArchiveError
        If it is not a header, or cut short.
    UnsupportedError
        If torch does not have the dtype: strings, objects (which are pickles), records.
    """
    if not data.startswith(MAGIC) or data[6:7] not in (b"\1", b"\2", b"\3"):
        raise ArchiveError(
            f"it begins with {shown(data[:8])}; the magic of a .npy file and a version from 1 to 3 "
            "were expected"
        )
    start, end = 10 if data[6:7] == b"\1" else 12, end_of_header(data)
    if end > HEADER_NBYTES:
        raise ArchiveError(f"a header of {end - start:,} bytes; numpy reads 10,000 at most")
    if end > len(data):
        raise ArchiveError(f"a .npy file that ends in its header. {TRUNCATED}")
    items = _parse_dict(data[start:end].decode("latin-1"))
    if items is None or items.keys() != {"descr", "fortran_order", "shape"}:
        raise ArchiveError(
            f"the header is {shown(data[start:end])}; a dict with descr, fortran_order and shape "
            "was expected"
        )
    byteorder, torch_dtype = _parse_descr(items["descr"])
    fortran_order = items["fortran_order"]
    shape = _parse_shape(items["shape"])
    if fortran_order not in ("True", "False") or shape is None:
        raise ArchiveError(
            f"the header has {shown(fortran_order)} for its order and {shown(items['shape'])} for "
            "its shape; True or False and a tuple of sizes were expected"
        )
    if len(shape) > MAX_NDIM:
        raise too_many_dimensions("the array", len(shape))
    return NpyHeader(torch_dtype, byteorder, fortran_order == "True", shape, end)


def _parse_dict(text: str) -> dict[str, str] | None:
    """Return the items of a dict as they are written; None if it is not one, or has one twice."""
    text = text.strip()
    if not (text.startswith("{") and text.endswith("}")):
        return None
    items: dict[str, str] = {}
    at, inside = 0, text[1:-1]
    while inside[at:].strip():
        match = _ITEM.match(inside, at)
        name = "" if match is None else match[1] or match[2]
        if match is None or name in items:
            return None
        items[name] = match[3]
        at = match.end()
    return items


def _parse_descr(text: str) -> tuple[str, str]:
    """Return the byte order and the dtype."""
    match = _DESCR.fullmatch(text[1:-1]) if text[0] in "'\"" else None
    row = NPY.get(match[2]) if match is not None else None
    if match is None or row is None:
        what = "which is a pickle" if "O" in text else "which torch does not have"
        raise UnsupportedError(
            f"an array of numpy with the dtype {shown(text)}, {what}; save numbers and bools only"
        )
    return "big" if match[1] == ">" else "little", row.name


def _parse_shape(text: str) -> tuple[int, ...] | None:
    """Return the sizes of a tuple as Python prints it; None if they are not valid.

    >>> _parse_shape("(3, 4)"), _parse_shape("(3L,)"), _parse_shape("()"), _parse_shape("(3)")
    ((3, 4), (3,), (), None)
    """
    if text[0] != "(" or (text[1:-1].strip() and "," not in text):
        return None
    parts = [part.strip().removesuffix("L") for part in text[1:-1].split(",")]
    if parts[-1] == "":
        parts.pop()
    if not all(part.isdigit() and len(part) <= 19 for part in parts):
        return None
    sizes = tuple(map(int, parts))
    return sizes if all(map(is_number, sizes)) else None
