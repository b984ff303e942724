"""The archive around the pickle: records, directory and end."""

from __future__ import annotations

import struct

from tests import builders as b
from tests.hostile.attack import Row, attacks
from tests.hostile.parts import and_record, and_records, with_record
from torchzip.errors import ArchiveError, LimitError, PickleError, UnsupportedError

_FILES: list[Row] = [
    ("no data.pkl", b.zip_of({"data.pk1": b.stream(b"N")})),
    ("no version", b.build_zip(b.members_of(b.stream(b"N"), {}, version=None))),
    ("version 0", with_record(b"version", data=b"0\n")),
    ("version 11", with_record(b"version", data=b"11\n")),
    ("version -1", with_record(b"version", data=b"-1")),
    ("version of text", with_record(b"version", data=b"three")),
    ("version of nothing", with_record(b"version", data=b"")),
    ("version of 4,000 digits", with_record(b"version", data=b"9" * 4000)),
    ("version of 5,000 bytes", with_record(b"version", data=b" " * 5000), LimitError),
    ("version that is no text", with_record(b"version", data=b"\xff\xfe")),
    ("two versions that differ", and_records(**{"__data/version": b"99"})),
    ("byte order of text", with_record(b"byteorder", data=b"middle")),
    ("byte order with a line break", with_record(b"byteorder", data=b"little\n")),
    ("byte order of 5,000 bytes", with_record(b"byteorder", data=b"x" * 5000), LimitError),
    ("a byte order bomb", with_record(b"byteorder", data=bytes(1 << 20), method=8), LimitError),
    ("a .pt2 archive without a program", and_records(archive_format=b"pt2"), UnsupportedError),
    ("a wrong CRC of the pickle", with_record(b"data.pkl", crc=1)),
    ("a wrong CRC of a storage", with_record(b"data/0", crc=1)),
    ("a wrong CRC of the version", with_record(b"version", crc=1)),
    ("a pickle bomb", with_record(b"data.pkl", method=8, nbytes=1 << 29), LimitError),
    ("a pickle of 2 GiB", with_record(b"data.pkl", method=8, nbytes=1 << 31), LimitError),
    ("a storage of another name below", with_record(b"data/0", local_name=b"archive/data/1")),
    ("a storage of 200 GB that is stored", with_record(b"data/0",
     nbytes=0xFFFFFFFF, extra=struct.pack("<HHQ", 1, 8, 200 * 10**9))),
    ("an empty pickle", b.checkpoint(b""), PickleError),
    ("a pickle cut short", b.checkpoint(b.stream(b.tensor())[:-2]), PickleError),
    ("a pickle of other opcodes", b.checkpoint(b"\xff\xff\xff"), PickleError),
    # what a version may be
    ("version 1", with_record(b"version", data=b"1"), None),
    ("version 10", with_record(b"version", data=b"10"), None),
    ("version behind a blank", with_record(b"version", data=b" 3"), None),
    ("version behind a tab and a line break", with_record(b"version", data=b"\t\n3"), None),
    ("version behind a zero", with_record(b"version", data=b"03"), None),
    ("version behind 99 zeros", with_record(b"version", data=b"0" * 99 + b"3"), None),
    ("version with a fraction", with_record(b"version", data=b"3.9"), None),
    ("version with a zero byte", with_record(b"version", data=b"3\0"), None),
    ("version of two numbers", with_record(b"version", data=b"3 99"), None),
    ("version with letters behind it", with_record(b"version", data=b"3abc"), None),
    ("version with a plus", with_record(b"version", data=b"+3")),
    ("version in hexadecimal", with_record(b"version", data=b"0x3")),
    ("version behind a zero byte", with_record(b"version", data=b"\0003")),
    ("version of 2**64", with_record(b"version", data=b"18446744073709551616")),
    ("version behind a byte order mark", with_record(b"version", data=b"\xef\xbb\xbf3")),
    ("version in full-width digits", with_record(b"version", data="３".encode())),
    ("version in Arabic digits", with_record(b"version", data="٣".encode())),
    ("a hidden version that counts", and_records(**{"__data/version": b"3", "x": b""}), None),
    ("a hidden version that is none", and_records(**{"__data/version": b"x"})),
    ("a hidden version with a visible one that is none", b.build_zip([*b.members_of(b.stream(
     b.tensor()), version=b"99"), b.Member(name=b"archive/.data/version", data=b"3")]), None),
    ("a hidden version of 5,000 bytes", and_records(**{"__data/version": b"3" * 5000}), LimitError),
    # and a byte order
    ("byte order of nothing", with_record(b"byteorder", data=b"")),
    ("byte order with a capital", with_record(b"byteorder", data=b"Little")),
    ("byte order in capitals", with_record(b"byteorder", data=b"BIG")),
    ("byte order behind a blank", with_record(b"byteorder", data=b" little")),
    ("byte order with a zero byte", with_record(b"byteorder", data=b"little\0")),
    ("both byte orders", with_record(b"byteorder", data=b"little big")),
    ("byte order that is no text", with_record(b"byteorder", data=b"\xff")),
    ("no byte order", b.build_zip(b.members_of(b.stream(b.tensor()), byteorder=None)), None),
    ("big-endian", b.build_zip(b.members_of(
        b.stream(b.tensor()), {"0": struct.pack(">4f", 1, 2, 3, 4)}, byteorder=b"big")), None),
    # records that change nothing
    ("an alignment that is none", and_records(**{"__storage_alignment": b"junk"}), None),
    ("an alignment of 0", and_records(**{"__storage_alignment": b"0"}), None),
    ("an alignment of 4,000 digits", and_records(**{"__storage_alignment": b"9" * 4000}), None),
    ("a format version that is none", and_records(**{"__format_version": b"\xff"}), None),
    ("a format version of 99", and_records(**{"__format_version": b"99"}), None),
    ("a serialization id of other bytes", and_records(**{"__data/serialization_id": b"\xff" * 40}),
     None),
    ("a serialization id of a megabyte", and_records(
        **{"__data/serialization_id": b"0" * (1 << 20)}), None),
    ("a wrong CRC of what nobody reads", and_record(b"readme", data=b"x", crc=1), None),
    ("a second storage that nobody needs", and_records(**{"data/1": b"x"}), None),
    ("a storage in the folder of constants", and_records(**{"constants/0": b.DATA}), None),
    ("a pickle with another behind it", b.checkpoint(
        b.stream(b.tensor()) + b.stream(b.name("os", "system"))), None),
    # other kinds of archives
    ("constants of no pickle that nobody asks for", and_records(**{"constants.pkl": b""}), None),
    ("a model of old TorchScript", b.build_zip([b.Member(name=b"m/model.json", data=b"{}"),
     b.Member(name=b"m/version", data=b"1")]), UnsupportedError),
    ("an archive of documents", b.build_zip([b.Member(name=b"doc/a.txt", data=b"x"),
     b.Member(name=b"doc/b.txt", data=b"y")])),
    ("an archive of arrays", b.build_zip([b.Member(name=b"arr_0.npy", data=b"\x93NUMPY\1\0")])),
]  # fmt: skip

ROWS = attacks(_FILES, ArchiveError)
