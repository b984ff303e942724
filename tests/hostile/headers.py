"""What the directory and a local header say of one record: any field of either may lie."""

from __future__ import annotations

import struct
import zlib
from dataclasses import replace
from typing import Any

from tests import builders as b
from tests.hostile.attack import Row, attacks
from tests.hostile.parts import and_record, good_members, in_directory, with_record
from torchzip.errors import ArchiveError, TensorError, UnsupportedError

_CAPPED = 0xFFFFFFFF
_GOOD = b.build_zip(good_members())
_DIRECTORY = _GOOD.index(b"PK\1\2")
_STORAGE = b"data/0"
_NBYTES = len(b.DATA)


def _storage(**changes: Any) -> bytes:
    """Return a good checkpoint with its storage changed."""
    return with_record(_STORAGE, **changes)


def _zip64(*numbers: int) -> bytes:
    return struct.pack(f"<HH{len(numbers)}Q", 1, 8 * len(numbers), *numbers)


def _unicode_path(name: bytes, path: bytes) -> bytes:
    """Return Info-ZIP's field that replaces a name."""
    return struct.pack("<HHBL", 0x7075, 5 + len(path), 1, zlib.crc32(name)) + path


def _place(member: bytes) -> int:
    """Return where the local header of a record begins in the good archive."""
    return _GOOD.index(b"archive/" + member) - 30


def _with_gap(gap: bytes) -> bytes:
    """Return an archive with bytes of no record behind its pickle."""
    pickle = good_members()[0].data
    return with_record(b"data.pkl", stored=pickle + gap, compressed=len(pickle))


#: A local header that no directory knows, and its bytes.
_STRAY, *_ = b.build_zip([b.Member(name=b"archive/data/0", data=bytes(_NBYTES))]).partition(
    b"PK\1\2"
)

_NAMES: list[Row] = [
    ("a shorter name below", _storage(local_name=b"archive/data/")),
    ("a longer name below", _storage(local_name=b"archive/data/00")),
    ("no name below", _storage(local_name=b"")),
    ("a name in capitals below", _storage(local_name=b"archive/DATA/0")),
    ("a name with a zero byte below", _storage(local_name=b"archive/data/0\0")),
    ("a name with a backslash below", _storage(local_name=b"archive\\data\\0")),
    ("a name of another folder below", _storage(local_name=b"archiv3/data/0")),
    ("a UTF-8 name in a field below",
     _storage(local_extra=_unicode_path(b"archive/data/0", b"archive/data/9"))),
    ("a name without folder below", _storage(local_name=b"data/0")),
    ("the pickle under a storage's name", with_record(b"data.pkl", local_name=b"archive/data/0")),
    ("the pickle under another name", with_record(b"data.pkl", local_name=b"archive/data.pk1")),
    ("the version under another name", with_record(b"version", local_name=b"archive/versioN")),
    ("the byte order under another name", with_record(b"byteorder", local_name=b"archive/x")),
]  # fmt: skip

_CHANGED_NAMES: list[Row] = [
    (f"a second storage called {name!r}", b.build_zip(
        [*good_members(), b.Member(name=name.encode(), data=bytes(_NBYTES))]))
    for name in (
        "archive/data/0\0", "archive/data/0\0x", "archive/data//0", "archive//data/0",
        "archive/./data/0", "archive/data/./0", "archive/x/../data/0", "archive/data\\0",
        "archive/data/0/.", "archive/data/..",
    )
]  # fmt: skip
_METHODS: list[Row] = [
    ("deflated below, stored above", _storage(local_method=8)),
    ("stored below, deflated above", _storage(method=8, local_method=0)),
    ("an unknown method below", _storage(local_method=99)),
    ("a deflated pickle below only", with_record(b"data.pkl", local_method=8)),
    ("encrypted below only", _storage(local_flags=1)),
    ("strongly encrypted below only", _storage(local_flags=0x40)),
    ("masked below only", _storage(local_flags=0x2000)),
    ("encrypted above only", _storage(flags=1, local_flags=0), UnsupportedError),
    ("encrypted pickle below only", with_record(b"data.pkl", local_flags=1)),
    ("a masked directory", with_record(b"version", flags=0x2000), UnsupportedError),
    ("a strongly encrypted storage", _storage(flags=0x41), UnsupportedError),
    ("a UTF-8 flag below only", _storage(local_flags=0x800), None),
    ("a descriptor flag above only", _storage(flags=8, local_flags=0), None),
    ("flags of no meaning", _storage(flags=0x5F96), None),
    ("a patch of another file", _storage(flags=0x20), UnsupportedError),
    ("a patch below only", _storage(local_flags=0x20)),
    ("a patch above only", _storage(flags=0x20, local_flags=0), UnsupportedError),
    ("a pickle that is a patch", with_record(b"data.pkl", flags=0x20), UnsupportedError),
    ("a patch that nobody reads", and_record(b"readme", data=b"x", flags=0x20), UnsupportedError),
    *[(f"method {method}", _storage(method=method), UnsupportedError)
     for method in (1, 6, 9, 12, 14, 93, 95, 98, 99, 0xFFFF)],
    ("an unknown method that nobody reads",
     and_record(b"readme", data=b"x", method=12), UnsupportedError),
]  # fmt: skip

_SIZES: list[Row] = [
    ("sizes of 0 below without descriptor", _storage(local_nbytes=0, local_compressed=0)),
    ("a larger size below", _storage(local_nbytes=17, local_compressed=17)),
    ("a smaller size below", _storage(local_nbytes=15, local_compressed=15)),
    ("another compressed size below", _storage(local_compressed=4)),
    ("another size below", _storage(local_nbytes=4)),
    ("another size of the pickle below", with_record(b"data.pkl", local_nbytes=4)),
    ("capped sizes below without zip64", _storage(local_nbytes=_CAPPED, local_compressed=_CAPPED)),
    ("capped sizes below and zip64 that lies",
     _storage(local_nbytes=_CAPPED, local_compressed=_CAPPED, local_extra=_zip64(4, 4))),
    ("capped sizes below and zip64 of one number",
     _storage(local_nbytes=_CAPPED, local_compressed=_CAPPED, local_extra=_zip64(_NBYTES))),
    ("capped sizes below and two zip64 fields", _storage(local_nbytes=_CAPPED,
     local_compressed=_CAPPED, local_extra=_zip64(16, 16) + _zip64(4, 4))),
    ("capped sizes below and zip64 that is right", _storage(local_nbytes=_CAPPED,
     local_compressed=_CAPPED, local_extra=_zip64(_NBYTES, _NBYTES)), None),
    ("zip64 below that nothing needs", _storage(local_extra=_zip64(4, 4))),
    ("zip64 below that nothing needs and is right",
     _storage(local_extra=_zip64(_NBYTES, _NBYTES)), None),
    ("zip64 below of an offset", _storage(local_extra=_zip64(4)), None),
    ("sizes that lie below with a descriptor",
     _storage(flags=8, local_nbytes=4, local_compressed=4)),
    ("zip64 that lies below with a descriptor", _storage(flags=8,
     local_nbytes=0, local_compressed=0, local_crc=0, local_extra=_zip64(4, 4))),
    ("capped sizes and zip64 that lies below with a descriptor", _storage(flags=8,
     local_nbytes=_CAPPED, local_compressed=_CAPPED, local_extra=_zip64(4, 4))),
    ("capped sizes and zip64 of zeros below with a descriptor", _storage(flags=8,
     local_nbytes=_CAPPED, local_compressed=_CAPPED, local_crc=0, local_extra=_zip64(0, 0)), None),
    ("zip64 below as torch writes it for 4 GiB", _storage(flags=8, local_nbytes=0,
     local_compressed=0, local_crc=0, local_extra=_zip64(_NBYTES, 0, 1 << 32)), None),
    ("a descriptor that lies",
     _storage(flags=8, local_nbytes=0, local_compressed=0, local_crc=0,
     stored=b.DATA + b"PK\7\10" + struct.pack("<LLL", 1, 2, 3), compressed=_NBYTES), None),
    ("a descriptor that is not there",
     _storage(flags=8, local_nbytes=0, local_compressed=0, local_crc=0), None),
    ("a descriptor cut by the next record",
     _storage(flags=8, stored=b.DATA + b"PK\7\10", compressed=_NBYTES), None),
    ("another CRC below", _storage(local_crc=1)),
    ("no CRC below without descriptor", _storage(local_crc=0)),
    ("a CRC below only", _storage(crc=0, local_crc=1)),
    ("another CRC of the pickle below", with_record(b"data.pkl", local_crc=1)),
    ("another CRC below with a descriptor", _storage(flags=8, local_crc=1)),
    ("no CRC at all", _storage(crc=0), None),
    ("a stored storage of two sizes", _storage(compressed=12, local_compressed=12)),
    ("a stored pickle of two sizes", with_record(b"data.pkl", nbytes=4)),
    ("a storage of 12 bytes", _storage(data=b.DATA[:12]), TensorError),
    ("a storage of 20 bytes", _storage(data=b.DATA + bytes(4)), TensorError),
    ("a storage of no bytes", _storage(data=b""), TensorError),
    ("a storage that is a folder", _storage(name=b"archive/data/0/")),
    ("a storage outside its folder", _storage(name=b"archive/0")),
    ("a storage of one byte more in both headers", _storage(nbytes=17, compressed=17)),
    ("the last record over the directory", with_record(b"version", nbytes=9, compressed=9)),
]  # fmt: skip

_EXTRA: list[Row] = [
    ("extra data past the next record", _storage(local_extra_nbytes=1)),
    ("extra data past the directory", _storage(local_extra_nbytes=0xFFFF)),
    ("extra data that counts less than it is",
     _storage(local_extra=b"FB\4\0ZZZZ", local_extra_nbytes=4)),
    ("extra data that is no field", _storage(local_extra=b"\xff\xff\xff"), None),
    ("extra data with a length past its end", _storage(local_extra=b"FB\xff\xffZZ"), None),
    ("extra data of 65,535 bytes", _storage(local_extra=b"Z" * 0xFFFF), None),
    ("extra data with a signature", _storage(local_extra=b"PK\3\4PK\1\2"), None),
    ("extra data above that is no field", _storage(extra=b"\1\0\xff"), None),
    ("extra data above with a signature", _storage(extra=b"PK\1\2" + _GOOD[-22:]), None),
    ("a Unicode name in extra data",  # Info-ZIP: it stands in for the name
     _storage(extra=_unicode_path(b"archive/data/0", b"archive/data/9"))),
    ("a Unicode name of the pickle in extra data", with_record(b"version",
     extra=_unicode_path(b"archive/version", b"archive/data.pkl"))),
    ("a Unicode name behind another field",
     _storage(extra=b"FB\0\0" + _unicode_path(b"archive/data/0", b"a/data/9"))),
    ("a Unicode name for another name",
     _storage(extra=_unicode_path(b"archive/data/1", b"archive/data/9")), None),
    ("the same name in extra data",
     _storage(extra=_unicode_path(b"archive/data/0", b"archive/data/0")), None),
    ("a comment of a record with a signature",
     _storage(comment=b"PK\1\2" + bytes(42) + b"archive/data/0"), None),
]  # fmt: skip

_ZIP64: list[Row] = [
    ("a capped size without zip64", _storage(nbytes=_CAPPED)),
    ("capped sizes without zip64", _storage(nbytes=_CAPPED, compressed=_CAPPED)),
    ("a capped offset without zip64", _storage(offset=_CAPPED)),
    ("an empty zip64 field", _storage(nbytes=_CAPPED, extra=_zip64())),
    ("a zip64 field of seven bytes", _storage(nbytes=_CAPPED, extra=b"\1\0\7\0" + bytes(7))),
    ("a zip64 field of one number for two",
     _storage(nbytes=_CAPPED, compressed=_CAPPED, extra=_zip64(_NBYTES))),
    ("a zip64 field past its end", _storage(nbytes=_CAPPED, extra=b"\1\0\x10\0" + bytes(8))),
    ("a zip64 field behind one past its end",
     _storage(nbytes=_CAPPED, extra=b"FB\xff\0" + _zip64(_NBYTES))),
    ("two zip64 fields that agree", _storage(nbytes=_CAPPED, extra=_zip64(_NBYTES) * 2)),
    ("two zip64 fields that differ", _storage(nbytes=_CAPPED, extra=_zip64(_NBYTES) + _zip64(4))),
    ("zip64 of a larger size", _storage(nbytes=_CAPPED, local_nbytes=17, extra=_zip64(17))),
    ("zip64 of sizes past the next record",
     _storage(nbytes=_CAPPED, compressed=_CAPPED, extra=_zip64(99, 99))),
    ("zip64 of a size of 2**63", _storage(nbytes=_CAPPED, extra=_zip64(1 << 63))),
    ("zip64 of a size of 2**64 - 1", _storage(nbytes=_CAPPED, extra=_zip64((1 << 64) - 1))),
    ("zip64 of a compressed size of 2**63 - 1",
     _storage(compressed=_CAPPED, extra=_zip64((1 << 63) - 1))),
    ("zip64 of a pickle of 2**62 bytes", with_record(b"data.pkl",
     nbytes=_CAPPED, compressed=_CAPPED, extra=_zip64(1 << 62, 1 << 62))),
    ("zip64 of an offset past the end", _storage(offset=_CAPPED, extra=_zip64(1 << 20))),
    ("zip64 of an offset of 2**63 - 1", _storage(offset=_CAPPED, extra=_zip64((1 << 63) - 1))),
    ("zip64 of an offset of 2**64 - 1", _storage(offset=_CAPPED, extra=_zip64((1 << 64) - 1))),
    ("zip64 of the offset of another record", _storage(offset=_CAPPED, extra=_zip64(0))),
    ("zip64 in another order",
     _storage(nbytes=_CAPPED, offset=_CAPPED, extra=_zip64(_place(_STORAGE), _NBYTES))),
    ("zip64 of the right numbers",
     _storage(nbytes=_CAPPED, compressed=_CAPPED, offset=_CAPPED, local_nbytes=_NBYTES,
     local_compressed=_NBYTES, extra=_zip64(_NBYTES, _NBYTES, _place(_STORAGE))), None),
    ("zip64 of more numbers than are capped",
     _storage(nbytes=_CAPPED, local_nbytes=_NBYTES, extra=_zip64(_NBYTES, 4, 4)), None),
    ("zip64 that nothing needs", _storage(extra=_zip64(4, 4, 4)), None),
    ("two zip64 fields that nothing needs", _storage(extra=_zip64(4) + _zip64(5)), None),
    ("a disk in zip64", _storage(disk=0xFFFF, extra=struct.pack("<HHL", 1, 4, 0))),
]  # fmt: skip

_PLACES: list[Row] = [
    ("no local header", _storage(local_magic=bytes(4))),
    ("a header of the directory below", _storage(local_magic=b"PK\1\2")),
    ("a descriptor for a local header", _storage(local_magic=b"PK\7\10")),
    ("a split marker for a local header", _storage(local_magic=b"PK00")),
    ("a pickle without local header", with_record(b"version", local_magic=bytes(4))),
    ("a storage one byte further", _storage(offset=_place(_STORAGE) + 1)),
    ("a storage one byte before", _storage(offset=_place(_STORAGE) - 1)),
    ("a storage that is the pickle", _storage(offset=0)),
    ("a storage inside the pickle", _storage(offset=40)),
    ("a storage in its own bytes", _storage(offset=_place(_STORAGE) + 44)),
    ("a storage at the directory", _storage(offset=_DIRECTORY)),
    ("a storage in the directory", _storage(offset=_DIRECTORY + 46)),
    ("a storage at the end", _storage(offset=len(_GOOD))),
    ("a storage before the beginning", _storage(offset=(1 << 32) - 16)),
    ("a storage at 2**31", _storage(offset=1 << 31)),
    ("the last record at the byte before the directory",
     with_record(b"version", offset=_DIRECTORY - 1)),
    ("two records that changed places", b.build_zip([replace(each,
     offset=_place({b"archive/data/0": b"byteorder"}.get(each.name, _STORAGE))) if each.name in (
     b"archive/data/0", b"archive/byteorder") else each for each in good_members()])),
    ("all records at one place", b.build_zip([replace(each, offset=0) for each in good_members()])),
    ("a record inside another", and_record(b"x", offset=_place(_STORAGE) + 44)),
    ("records that quote one another", b.build_zip([  # each holds the headers of those behind it
        b.Member(name=b"archive/%d" % i, data=b"", compressed=40 * (20 - i), nbytes=40 * (20 - i))
        for i in range(20)])),
    ("a record on disk 1", _storage(disk=1)),
    ("a record on disk 65,535", with_record(b"version", disk=0xFFFF)),
    ("zeros between records", _with_gap(bytes(100)), None),
    ("a local header that no directory knows", _with_gap(_STRAY), None),
    ("an end record between records", _with_gap(_GOOD[-22:]), None),
]  # fmt: skip


def _attributes(value: int) -> bytes:
    return in_directory(_GOOD, _STORAGE, 38, struct.pack("<L", value))


_ATTRIBUTES: list[Row] = [
    ("a storage that is a symbolic link", _attributes(0o120777 << 16), None),
    ("a pickle that is a device",
     in_directory(_GOOD, b"data.pkl", 38, struct.pack("<L", 0o060666 << 16)), None),
    ("a storage that is a folder by its attributes", _attributes(0o040777 << 16 | 0x10)),
    ("a storage that is a folder to Unix only", _attributes(0o040777 << 16), None),
    ("an empty record that is a folder by its attributes",
     in_directory(and_record(b"x/"), b"x/", 38, b"\x10"), None),
    ("made by a system that is not known", in_directory(_GOOD, _STORAGE, 4, b"\xff\xff"), None),
    ("a version needed of 255", in_directory(_GOOD, _STORAGE, 6, b"\xff\xff"), None),
    ("a time that is none", in_directory(_GOOD, _STORAGE, 12, b"\xff\xff\xff\xff"), None),
    ("internal attributes", in_directory(_GOOD, _STORAGE, 36, b"\xff\xff"), None),
]  # fmt: skip

_FILES = [*_NAMES, *_CHANGED_NAMES, *_METHODS, *_SIZES, *_EXTRA, *_ZIP64, *_PLACES, *_ATTRIBUTES]
ROWS = attacks(_FILES, ArchiveError)
