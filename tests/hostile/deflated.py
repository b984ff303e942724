"""Records that are deflated: streams that end elsewhere than the directory says, and bombs."""

from __future__ import annotations

import gzip
import struct
import zlib
from typing import Any

from tests import builders as b
from tests.hostile.attack import Row, attacks
from tests.hostile.parts import and_record, and_records, good_members, tensor_on, with_record
from torchzip.errors import ArchiveError, LimitError, TensorError

_PICKLE = good_members()[0].data
_EMPTY_BLOCK = b"\0\0\0\xff\xff"
_DEFLATED = b.deflate(b.DATA)


def _stored_block(data: bytes, *, is_last: bool = True, complement: int | None = None) -> bytes:
    """Return a block of deflate that holds bytes as they are."""
    wrong = len(data) ^ 0xFFFF if complement is None else complement
    return bytes([is_last]) + struct.pack("<HH", len(data), wrong) + data


def _deflated(**changes: Any) -> bytes:
    return with_record(b"data/0", method=8, **changes)


def _storage(stored: bytes) -> bytes:
    """Return a checkpoint whose storage is this stream."""
    return _deflated(stored=stored)


def _pickle(stored: bytes) -> bytes:
    return with_record(b"data.pkl", method=8, stored=stored)


_FILES: list[Row] = [
    ("a deflated storage", _deflated(), None),
    ("a deflated pickle", with_record(b"data.pkl", method=8), None),
    ("all records deflated", b.build_zip(
        [b.Member(name=each.name, data=each.data, method=8) for each in good_members()]), None),
    ("a deflated storage at another level", _deflated(flags=6), None),
    ("a deflated storage with a descriptor",
     _deflated(flags=8, local_nbytes=0, local_compressed=0, local_crc=0), None),
    ("a deflated storage without CRC", _deflated(crc=0), None),
    ("a block that is not compressed", _storage(_stored_block(b.DATA)), None),
    ("ten thousand empty blocks", _storage(_EMPTY_BLOCK * 10_000 + _DEFLATED), None),
    ("empty blocks without end", _storage(_EMPTY_BLOCK * 10_000)),
    ("empty blocks behind the bytes", _storage(
        _stored_block(b.DATA, is_last=False) + _EMPTY_BLOCK * 999)),
    ("a stream without its last block", _storage(_stored_block(b.DATA, is_last=False))),
    ("a stream of no bytes", _storage(b"")),
    ("a stream of one byte", _storage(_DEFLATED[:1])),
    ("a stream cut by one byte", _storage(_DEFLATED[:-1])),
    ("a stream with a byte behind it", _storage(_DEFLATED + b"\0")),
    ("a stream with a megabyte behind it", _storage(_DEFLATED + bytes(1 << 20))),
    ("a stream twice", _storage(_DEFLATED * 2)),
    ("a stream of fewer bytes", _storage(b.deflate(b.DATA[:-1]))),
    ("a stream of more bytes", _storage(b.deflate(b.DATA + b"\0"))),
    ("a stream of a megabyte", _storage(b.deflate(b.DATA + bytes(1 << 20)))),
    ("a stream of nothing", _storage(b.deflate(b""))),
    ("a stream of zlib", _storage(zlib.compress(b.DATA))),
    ("a stream of gzip", _storage(gzip.compress(b.DATA, mtime=0))),
    ("a stream that was deflated twice", _storage(b.deflate(_DEFLATED))),
    ("a stream of other bytes", _storage(b.deflate(bytes(16)))),
    ("a block with a length that lies", _storage(_stored_block(b.DATA, complement=0))),
    ("a block of no known kind", _storage(b"\7" + bytes(20))),
    ("a block that copies from before its start", _storage(b"\x4b\x04\x11\x00")),
    ("bytes that are not deflated", _storage(b.DATA)),
    ("a deflated storage with a wrong CRC", _deflated(crc=1)),
    ("a deflated storage of 12 bytes", _deflated(data=b.DATA[:12]), TensorError),
    ("a deflated storage of 20 bytes", _deflated(data=b.DATA + bytes(4)), TensorError),
    ("a deflated storage that says 12 bytes", _deflated(nbytes=12), TensorError),
    ("a deflated storage of 4 GiB", _deflated(nbytes=0xFFFFFFFF), TensorError),
    ("a storage bomb", _deflated(root=tensor_on(numel=1 << 25), data=b"",
     stored=bytes(1 << 17), nbytes=1 << 27), LimitError),
    ("a storage that deflate cannot make", _deflated(root=tensor_on(numel=1 << 28), data=b"",
     stored=_DEFLATED, nbytes=1 << 30)),
    ("a pickle bomb of 16 MB", with_record(
        b"data.pkl", method=8, stored=bytes(1 << 14), nbytes=1 << 24), LimitError),
    ("a pickle stream that is cut", _pickle(b.deflate(_PICKLE)[:-1])),
    ("a pickle stream with a byte behind it", _pickle(b.deflate(_PICKLE) + b"\0")),
    ("a pickle stream that goes on", _pickle(b.deflate(_PICKLE + bytes(1 << 20)))),
    ("a pickle stream of fewer bytes", _pickle(b.deflate(_PICKLE[:-1]))),
    ("a pickle stream of no bytes", _pickle(b"")),
    ("a pickle stream that is damaged", _pickle(b"\xff" * 40)),
    ("a deflated pickle with a wrong CRC", with_record(b"data.pkl", method=8, crc=1)),
    ("a version bomb", with_record(b"version", data=b"3" + bytes(1 << 20), method=8), LimitError),
    ("a version that says 1 GiB", with_record(b"version", method=8, nbytes=1 << 30), LimitError),
    ("a version stream of no bytes", with_record(b"version", method=8, stored=b"")),
    ("a version stream that goes on",
     with_record(b"version", method=8, stored=b.deflate(b"3\n" + bytes(1 << 20)))),
    ("a hidden version bomb",
     and_record(b".data/version", data=b"3" + bytes(1 << 20), method=8), LimitError),
    ("a bomb that nobody reads",
     and_record(b"x", stored=_DEFLATED, method=8, nbytes=1 << 31), None),
    ("a damaged stream that nobody reads",
     and_record(b"x", stored=b"\xff" * 9, method=8, nbytes=9), None),
    ("an archive inside that nobody reads", and_records(x=b.build_zip(good_members())), None),
]  # fmt: skip

ROWS = attacks(_FILES, ArchiveError)
