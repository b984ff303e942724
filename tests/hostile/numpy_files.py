"""Files of numpy, .npy and .npz, wrong in every way."""

from __future__ import annotations

import struct

from tests import builders as b
from tests.hostile.attack import Row, attacks
from torchzip.errors import ArchiveError, TensorError, UnsupportedError

_HEADER = b"{'descr': '<f4', 'fortran_order': False, 'shape': (4,), }"


def _npy(
    header: bytes = _HEADER, data: bytes = b.DATA, version: int = 1, nbytes: int | None = None
) -> bytes:
    nbytes = len(header) if nbytes is None else nbytes
    length = struct.pack("<H" if version == 1 else "<I", nbytes)
    return b"\x93NUMPY" + bytes([version, 0]) + length + header + data


def _of(descr: bytes = b"'<f4'", order: bytes = b"False", shape: bytes = b"(4,)") -> bytes:
    return _npy(b"{'descr': %s, 'fortran_order': %s, 'shape': %s, }" % (descr, order, shape))


def _npz(*members: tuple[bytes, bytes]) -> bytes:
    return b.build_zip([b.Member(name=name, data=data) for name, data in members])


_ARRAYS: list[Row] = [
    ("the magic alone", b"\x93NUMPY"),
    ("version 0", _npy(version=0)),
    ("version 9", _npy(version=9)),
    ("version 3", _npy(version=3), None),
    ("a header of 2**32 - 1 bytes", _npy(version=2, nbytes=(1 << 32) - 1)),
    ("a header past the end", _npy(nbytes=5000)),
    ("no header", _npy(b"")),
    ("a call", _npy(b"__import__('os').system('touch canary')")),
    ("a call in the shape", _of(shape=b"(os.system('x'),)")),
    ("ten thousand brackets", _npy(b"[" * 9_000)),
    ("a header of 60,000 bytes", _npy(b"(" * 60_000)),
    ("a power in the shape", _of(shape=b"(9**9**9,)")),
    ("a negative size", _of(shape=b"(-4,)")),
    ("a size that is a string", _of(shape=b"('4',)")),
    ("a size of 2**63", _of(shape=b"(%d,)" % (1 << 63))),
    ("a size of a thousand digits", _of(shape=b"(" + b"9" * 1000 + b",)")),
    ("sizes whose product is 2**64", _of(shape=b"(4294967296, 4294967296)")),
    ("a size of 0 beside 2**62", _of(shape=b"(0, %d)" % (1 << 62)), ArchiveError),
    ("a shape that is an int", _of(shape=b"(4)")),
    ("65 dimensions", _of(shape=b"(" + b"1," * 64 + b"4,)"), TensorError),
    ("one number more", _of(shape=b"(5,)")),
    ("one number fewer", _of(shape=b"(3,)")),
    ("an order of None", _of(order=b"None")),
    ("no order", _npy(b"{'descr': '<f4', 'shape': (4,)}")),
    ("a key twice", _npy(_HEADER[:-1] + b"'shape': (4,)}")),
    ("a key more", _npy(_HEADER[:-1] + b"'x': (4,)}")),
    ("objects", _of(b"'|O'"), UnsupportedError),
    ("strings", _of(b"'<U4'"), UnsupportedError),
    ("times", _of(b"'<M8[s]'"), UnsupportedError),
    ("records", _of(b"[('x', '<f4')]"), UnsupportedError),
    ("raw bytes", _of(b"'|V4'"), UnsupportedError),
    ("numbers of 16 bytes", _of(b"'<f16'"), UnsupportedError),
    ("the other byte order", _of(b"'>f4'"), None),
    ("columns first", _of(order=b"True"), None),
]  # fmt: skip

_GOOD = (b"x.npy", _npy())
_ARCHIVES: list[Row] = [
    ("two arrays", _npz(_GOOD, (b"y.npy", _npy())), None),
    ("two arrays of one name", _npz(_GOOD, _GOOD)),
    ("names that differ in case", _npz(_GOOD, (b"X.npy", _npy()))),
    ("another file beside", _npz(_GOOD, (b"code.py", b"x"))),
    ("the pickle of a checkpoint beside", _npz(_GOOD, (b"x/data.pkl", b"\x80\2N."))),
    ("a way out", _npz((b"../x.npy", _npy()))),
    ("objects in an archive", _npz(_GOOD, (b"y.npy", _of(b"'|O'"))), UnsupportedError),
    ("an empty array file", _npz(_GOOD, (b"y.npy", b""))),
    ("a cut array file", _npz((b"x.npy", _npy()[:-1]))),
]  # fmt: skip

ROWS = [
    *attacks(_ARRAYS, ArchiveError, prefix="npy: "),
    *attacks(_ARCHIVES, ArchiveError, prefix="npz: "),
]
