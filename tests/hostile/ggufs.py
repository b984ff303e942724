"""The header of a GGUF file, wrong in every way."""

from __future__ import annotations

import struct

from tests.hostile.attack import Row, attacks
from torchzip.errors import ArchiveError, UnsupportedError

_DATA = struct.pack("<4f", 1, 2, 3, 4)
_STRING, _ARRAY, _U32, _BOOL = 8, 9, 4, 7


def _text(text: bytes, nbytes: int | None = None) -> bytes:
    return struct.pack("<Q", len(text) if nbytes is None else nbytes) + text


def _value(number: int, raw: bytes, key: bytes = b"k") -> bytes:
    return _text(key) + struct.pack("<I", number) + raw


def _tensor(
    name: bytes = b"x", shape: tuple[int, ...] = (4,), number: int = 0, at: int = 0,
    ndim: int | None = None,
) -> bytes:  # fmt: skip
    sizes = struct.pack(f"<{len(shape)}Q", *shape)
    ndim = len(shape) if ndim is None else ndim
    return _text(name) + struct.pack("<I", ndim) + sizes + struct.pack("<IQ", number, at)


def _file(
    *rows: bytes, tensors: int = 1, values: int = 0, data: bytes = _DATA, version: int = 3
) -> bytes:
    """Return a file of values and of tensors, as many as it says."""
    head = struct.pack("<4sIQQ", b"GGUF", version, tensors, values) + b"".join(rows)
    return head + bytes(-len(head) % 32) + data


def _of(number: int, raw: bytes) -> bytes:
    """Return a file with one value of a type."""
    return _file(_value(number, raw), _tensor(), values=1)


def _array(number: int, count: int, raw: bytes = b"") -> bytes:
    return _of(_ARRAY, struct.pack("<IQ", number, count) + raw)


def _aligned(number: int) -> bytes:
    """Return a file that wants an alignment."""
    value = _value(_U32, struct.pack("<I", number), b"general.alignment")
    return _file(value, _tensor(), values=1, data=_DATA + bytes(64))


_FILES: list[Row] = [
    # the head
    ("the magic alone", b"GGUF"),
    ("version 0", _file(_tensor(), version=0), UnsupportedError),
    ("version 1", _file(_tensor(), version=1), UnsupportedError),
    ("version 4", _file(_tensor(), version=4), UnsupportedError),
    ("version 3, the other way round", _file(_tensor(), version=3 << 24), UnsupportedError),
    ("no tensors", _file(tensors=0), None),
    ("one tensor more", _file(_tensor(), tensors=2)),
    ("2**63 tensors", _file(_tensor(), tensors=1 << 63)),
    ("three values more", _file(_tensor(), values=3)),
    ("2**63 values", _file(_tensor(), values=1 << 63)),
    ("a key of 2**63 bytes", _file(_text(b"k", 1 << 63), _tensor(), values=1)),
    ("a key past the end", _file(_text(b"k", 1000), _tensor(), values=1)),
    # values
    ("type 13", _of(13, bytes(8)), UnsupportedError),
    ("type 2**32 - 1", _of((1 << 32) - 1, bytes(8)), UnsupportedError),
    ("a bool of 2", _of(_BOOL, b"\2")),
    ("a string of 2**63 bytes", _of(_STRING, _text(b"", 1 << 63))),
    ("a string that is not UTF-8", _of(_STRING, _text(b"\xff\xfe")), None),
    ("a string with an escape", _of(_STRING, _text(b"\x1b[31m")), None),
    ("an array of 2**63 numbers", _array(_U32, 1 << 63)),
    ("an array of 2**60 numbers", _array(_U32, 1 << 60)),
    ("an array of 2**61 strings", _array(_STRING, 1 << 61)),
    ("an array of many strings", _array(_STRING, 100, _text(b"a"))),
    ("an array of arrays", _array(_ARRAY, 1, struct.pack("<IQ", _U32, 0)), UnsupportedError),
    ("an empty array", _array(_U32, 0), None),
    ("two keys of one name", _file(_value(0, b"\1") * 2, _tensor(), values=2)),
    ("an alignment of 0", _aligned(0)),
    ("an alignment of 24", _aligned(24)),
    ("an alignment of 2**31", _aligned(1 << 31)),
    ("an alignment of 64", _aligned(64), None),
    ("an alignment that is a string",
     _file(_value(_STRING, _text(b"32"), b"general.alignment"), _tensor(), values=1)),
    # tensors
    ("no name", _file(_tensor(b"")), None),
    ("a name of 2**63 bytes", _file(_text(b"x", 1 << 63))),
    ("two tensors of one name", _file(_tensor() * 2, tensors=2)),
    ("5 dimensions", _file(_tensor(shape=(1, 1, 1, 1, 4)))),
    ("2**32 - 1 dimensions", _file(_tensor(ndim=(1 << 32) - 1))),
    ("a size of 2**64 - 1", _file(_tensor(shape=((1 << 64) - 1,)))),
    ("sizes whose product is 2**64", _file(_tensor(shape=(1 << 32, 1 << 32)))),
    ("a size of 0 beside 2**63", _file(_tensor(shape=(0, 1 << 63)))),
    ("blocks of 256 in a row of 4", _file(_tensor(number=12))),
    ("type 9, Q8_1", _file(_tensor(number=9)), UnsupportedError),
    ("type 2**32 - 1 of a tensor", _file(_tensor(number=(1 << 32) - 1)), UnsupportedError),
    ("blocks of 4", _file(_tensor(number=8))),
    ("blocks without a row", _file(_tensor(shape=(), number=8))),
    ("an offset of 1", _file(_tensor(at=1))),
    ("an offset of 2**64 - 1", _file(_tensor(at=(1 << 64) - 1))),
    ("two tensors at one place", _file(_tensor(), _tensor(b"y"), tensors=2)),
    ("two tensors with a gap", _file(_tensor(), _tensor(b"y", at=64), tensors=2, data=bytes(96))),
    ("data cut by a byte", _file(_tensor(), data=_DATA[:-1])),
    ("a byte behind the data", _file(_tensor(), data=_DATA + b"x"), None),
]  # fmt: skip

ROWS = attacks(_FILES, ArchiveError, prefix="gguf: ")
