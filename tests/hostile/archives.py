"""The archive around the pickle: records, directory and end."""

from __future__ import annotations

import struct
from dataclasses import replace

from tests import builders as b
from tests.hostile.attack import Attack
from tests.hostile.parts import HEAD, and_records, with_record
from torchzip.errors import ArchiveError, LimitError, PickleError, TorchZipError, UnsupportedError

_FILES: list[tuple[str, bytes, type[TorchZipError]]] = [
    ("no data.pkl", b.build_zip([replace(HEAD[0], name=b"archive/data.pk1")]), ArchiveError),
    ("no version", b.build_zip(b.members_of(b.stream(b"N"), {}, version=None)), ArchiveError),
    ("version 0", with_record(b"version", data=b"0\n"), ArchiveError),
    ("version 11", with_record(b"version", data=b"11\n"), ArchiveError),
    ("version -1", with_record(b"version", data=b"-1"), ArchiveError),
    ("version of text", with_record(b"version", data=b"three"), ArchiveError),
    ("version of nothing", with_record(b"version", data=b""), ArchiveError),
    ("version of 4,000 digits", with_record(b"version", data=b"9" * 4000), ArchiveError),
    ("version of 5,000 bytes", with_record(b"version", data=b" " * 5000), LimitError),
    ("version that is no text", with_record(b"version", data=b"\xff\xfe"), ArchiveError),
    ("two versions that differ", and_records(**{"__data/version": b"99"}), ArchiveError),
    ("byte order of text", with_record(b"byteorder", data=b"middle"), ArchiveError),
    ("byte order with a line break", with_record(b"byteorder", data=b"little\n"), ArchiveError),
    ("byte order of 5,000 bytes", with_record(b"byteorder", data=b"x" * 5000), LimitError),
    ("a byte order bomb", with_record(b"byteorder", data=bytes(1 << 20), method=8), LimitError),
    ("a .pt2 archive without a program", and_records(archive_format=b"pt2"), UnsupportedError),
    ("a wrong CRC of the pickle", with_record(b"data.pkl", crc=1), ArchiveError),
    ("a wrong CRC of a storage", with_record(b"data/0", crc=1), ArchiveError),
    ("a wrong CRC of the version", with_record(b"version", crc=1), ArchiveError),
    ("a pickle bomb", with_record(b"data.pkl", method=8, nbytes=1 << 29), LimitError),
    ("a pickle of 2 GiB", with_record(b"data.pkl", method=8, nbytes=1 << 31), LimitError),
    ("a storage of another name below", with_record(b"data/0", local_name=b"archive/data/1"),
     ArchiveError),
    ("a storage of 200 GB that is stored",
     with_record(b"data/0", nbytes=0xFFFFFFFF, extra=struct.pack("<HHQ", 1, 8, 200 * 10**9)),
     ArchiveError),
    ("an empty pickle", b.checkpoint(b""), PickleError),
    ("a pickle cut short", b.checkpoint(b.stream(b.tensor())[:-2]), PickleError),
    ("a pickle of other opcodes", b.checkpoint(b"\xff\xff\xff"), PickleError),
]  # fmt: skip

ROWS = [Attack(name, data, error) for name, data, error in _FILES]
