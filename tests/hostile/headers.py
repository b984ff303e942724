"""What the directory and a local header say of one record: any field of either may lie."""

from __future__ import annotations

import struct
import zlib
from dataclasses import replace

from tests import builders as b
from tests.hostile.attack import Row, attacks
from tests.hostile.parts import good_members, in_directory, with_record
from torchzip.errors import ArchiveError, TensorError, UnsupportedError

_CAPPED = 0xFFFFFFFF
_GOOD = b.build_zip(good_members())
_DIRECTORY = _GOOD.index(b"PK\1\2")
_STORAGE = b"data/0"
_NBYTES = len(b.DATA)


def _zip64(*numbers: int) -> bytes:
    """Return a zip64 field."""
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
_STRAY = b.build_zip([b.Member(name=b"archive/data/0", data=bytes(_NBYTES))]).partition(b"PK\1\2")[
    0
]

_NAMES: list[Row] = [
    ("a shorter name below", with_record(_STORAGE, local_name=b"archive/data/")),
    ("a longer name below", with_record(_STORAGE, local_name=b"archive/data/00")),
    ("no name below", with_record(_STORAGE, local_name=b"")),
    ("a name in capitals below", with_record(_STORAGE, local_name=b"archive/DATA/0")),
    ("a name with a zero byte below", with_record(_STORAGE, local_name=b"archive/data/0\0")),
    ("a name with a backslash below", with_record(_STORAGE, local_name=b"archive\\data\\0")),
    ("a name of another folder below", with_record(_STORAGE, local_name=b"archiv3/data/0")),
    ("a UTF-8 name in a field below", with_record(
        _STORAGE, local_extra=_unicode_path(b"archive/data/0", b"archive/data/9"))),
    ("a name without folder below", with_record(_STORAGE, local_name=b"data/0")),
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
    ("deflated below, stored above", with_record(_STORAGE, local_method=8)),
    ("stored below, deflated above", with_record(_STORAGE, method=8, local_method=0)),
    ("an unknown method below", with_record(_STORAGE, local_method=99)),
    ("a deflated pickle below only", with_record(b"data.pkl", local_method=8)),
    ("encrypted below only", with_record(_STORAGE, local_flags=1)),
    ("strongly encrypted below only", with_record(_STORAGE, local_flags=0x40)),
    ("masked below only", with_record(_STORAGE, local_flags=0x2000)),
    ("encrypted above only", with_record(_STORAGE, flags=1, local_flags=0), UnsupportedError),
    ("encrypted pickle below only", with_record(b"data.pkl", local_flags=1)),
    ("a masked directory", with_record(b"version", flags=0x2000), UnsupportedError),
    ("a strongly encrypted storage", with_record(_STORAGE, flags=0x41), UnsupportedError),
    ("a UTF-8 flag below only", with_record(_STORAGE, local_flags=0x800), None),
    ("a descriptor flag above only", with_record(_STORAGE, flags=8, local_flags=0), None),
    ("flags of no meaning", with_record(_STORAGE, flags=0x5F96), None),
    ("a patch of another file", with_record(_STORAGE, flags=0x20), UnsupportedError),
    ("a patch below only", with_record(_STORAGE, local_flags=0x20)),
    ("a patch above only", with_record(_STORAGE, flags=0x20, local_flags=0), UnsupportedError),
    ("a pickle that is a patch", with_record(b"data.pkl", flags=0x20), UnsupportedError),
    ("a patch that nobody reads", b.build_zip(
     [*good_members(), b.Member(name=b"archive/readme", data=b"x", flags=0x20)]), UnsupportedError),
    *[(f"method {method}", with_record(_STORAGE, method=method), UnsupportedError)
     for method in (1, 6, 9, 12, 14, 93, 95, 98, 99, 0xFFFF)],
    ("an unknown method that nobody reads", b.build_zip(
     [*good_members(), b.Member(name=b"archive/readme", data=b"x", method=12)]), UnsupportedError),
]  # fmt: skip

_SIZES: list[Row] = [
    ("sizes of 0 below without descriptor",
     with_record(_STORAGE, local_nbytes=0, local_compressed=0)),
    ("a larger size below", with_record(_STORAGE, local_nbytes=17, local_compressed=17)),
    ("a smaller size below", with_record(_STORAGE, local_nbytes=15, local_compressed=15)),
    ("another compressed size below", with_record(_STORAGE, local_compressed=4)),
    ("another size below", with_record(_STORAGE, local_nbytes=4)),
    ("another size of the pickle below", with_record(b"data.pkl", local_nbytes=4)),
    ("capped sizes below without zip64",
     with_record(_STORAGE, local_nbytes=_CAPPED, local_compressed=_CAPPED)),
    ("capped sizes below and zip64 that lies", with_record(_STORAGE,
     local_nbytes=_CAPPED, local_compressed=_CAPPED, local_extra=_zip64(4, 4))),
    ("capped sizes below and zip64 of one number", with_record(_STORAGE,
     local_nbytes=_CAPPED, local_compressed=_CAPPED, local_extra=_zip64(_NBYTES))),
    ("capped sizes below and two zip64 fields", with_record(_STORAGE, local_nbytes=_CAPPED,
     local_compressed=_CAPPED, local_extra=_zip64(16, 16) + _zip64(4, 4))),
    ("capped sizes below and zip64 that is right", with_record(_STORAGE,
     local_nbytes=_CAPPED, local_compressed=_CAPPED, local_extra=_zip64(_NBYTES, _NBYTES)), None),
    ("zip64 below that nothing needs", with_record(_STORAGE, local_extra=_zip64(4, 4))),
    ("zip64 below that nothing needs and is right",
     with_record(_STORAGE, local_extra=_zip64(_NBYTES, _NBYTES)), None),
    ("zip64 below of an offset", with_record(_STORAGE, local_extra=_zip64(4)), None),
    ("sizes that lie below with a descriptor",
     with_record(_STORAGE, flags=8, local_nbytes=4, local_compressed=4)),
    ("zip64 that lies below with a descriptor", with_record(_STORAGE, flags=8,
     local_nbytes=0, local_compressed=0, local_crc=0, local_extra=_zip64(4, 4))),
    ("capped sizes and zip64 that lies below with a descriptor", with_record(_STORAGE, flags=8,
     local_nbytes=_CAPPED, local_compressed=_CAPPED, local_extra=_zip64(4, 4))),
    ("capped sizes and zip64 of zeros below with a descriptor", with_record(_STORAGE, flags=8,
     local_nbytes=_CAPPED, local_compressed=_CAPPED, local_crc=0, local_extra=_zip64(0, 0)), None),
    ("zip64 below as torch writes it for 4 GiB", with_record(_STORAGE, flags=8, local_nbytes=0,
     local_compressed=0, local_crc=0, local_extra=_zip64(_NBYTES, 0, 1 << 32)), None),
    ("a descriptor that lies",
     with_record(_STORAGE, flags=8, local_nbytes=0, local_compressed=0, local_crc=0,
     stored=b.DATA + b"PK\7\10" + struct.pack("<LLL", 1, 2, 3), compressed=_NBYTES), None),
    ("a descriptor that is not there",
     with_record(_STORAGE, flags=8, local_nbytes=0, local_compressed=0, local_crc=0), None),
    ("a descriptor cut by the next record",
     with_record(_STORAGE, flags=8, stored=b.DATA + b"PK\7\10", compressed=_NBYTES), None),
    ("another CRC below", with_record(_STORAGE, local_crc=1)),
    ("no CRC below without descriptor", with_record(_STORAGE, local_crc=0)),
    ("a CRC below only", with_record(_STORAGE, crc=0, local_crc=1)),
    ("another CRC of the pickle below", with_record(b"data.pkl", local_crc=1)),
    ("another CRC below with a descriptor", with_record(_STORAGE, flags=8, local_crc=1)),
    ("no CRC at all", with_record(_STORAGE, crc=0), None),
    ("a stored storage of two sizes", with_record(_STORAGE, compressed=12, local_compressed=12)),
    ("a stored pickle of two sizes", with_record(b"data.pkl", nbytes=4)),
    ("a storage of 12 bytes", with_record(_STORAGE, data=b.DATA[:12]), TensorError),
    ("a storage of 20 bytes", with_record(_STORAGE, data=b.DATA + bytes(4)), TensorError),
    ("a storage of no bytes", with_record(_STORAGE, data=b""), TensorError),
    ("a storage that is a folder", with_record(_STORAGE, name=b"archive/data/0/")),
    ("a storage outside its folder", with_record(_STORAGE, name=b"archive/0")),
    ("a storage of one byte more in both headers", with_record(_STORAGE, nbytes=17, compressed=17)),
    ("the last record over the directory", with_record(b"version", nbytes=9, compressed=9)),
]  # fmt: skip

_EXTRA: list[Row] = [
    ("extra data past the next record", with_record(_STORAGE, local_extra_nbytes=1)),
    ("extra data past the directory", with_record(_STORAGE, local_extra_nbytes=0xFFFF)),
    ("extra data that counts less than it is",
     with_record(_STORAGE, local_extra=b"FB\4\0ZZZZ", local_extra_nbytes=4)),
    ("extra data that is no field", with_record(_STORAGE, local_extra=b"\xff\xff\xff"), None),
    ("extra data with a length past its end",
     with_record(_STORAGE, local_extra=b"FB\xff\xffZZ"), None),
    ("extra data of 65,535 bytes", with_record(_STORAGE, local_extra=b"Z" * 0xFFFF), None),
    ("extra data with a signature", with_record(_STORAGE, local_extra=b"PK\3\4PK\1\2"), None),
    ("extra data above that is no field", with_record(_STORAGE, extra=b"\1\0\xff"), None),
    ("extra data above with a signature", with_record(_STORAGE, extra=b"PK\1\2" + _GOOD[-22:]),
     None),
    ("a Unicode name in extra data",  # Info-ZIP: it stands in for the name
     with_record(_STORAGE, extra=_unicode_path(b"archive/data/0", b"archive/data/9"))),
    ("a Unicode name of the pickle in extra data", with_record(b"version",
     extra=_unicode_path(b"archive/version", b"archive/data.pkl"))),
    ("a Unicode name behind another field", with_record(_STORAGE,
     extra=b"FB\0\0" + _unicode_path(b"archive/data/0", b"a/data/9"))),
    ("a Unicode name for another name",
     with_record(_STORAGE, extra=_unicode_path(b"archive/data/1", b"archive/data/9")), None),
    ("the same name in extra data",
     with_record(_STORAGE, extra=_unicode_path(b"archive/data/0", b"archive/data/0")), None),
    ("a comment of a record with a signature",
     with_record(_STORAGE, comment=b"PK\1\2" + bytes(42) + b"archive/data/0"), None),
]  # fmt: skip

_ZIP64: list[Row] = [
    ("a capped size without zip64", with_record(_STORAGE, nbytes=_CAPPED)),
    ("capped sizes without zip64", with_record(_STORAGE, nbytes=_CAPPED, compressed=_CAPPED)),
    ("a capped offset without zip64", with_record(_STORAGE, offset=_CAPPED)),
    ("an empty zip64 field", with_record(_STORAGE, nbytes=_CAPPED, extra=_zip64())),
    ("a zip64 field of seven bytes",
     with_record(_STORAGE, nbytes=_CAPPED, extra=b"\1\0\7\0" + bytes(7))),
    ("a zip64 field of one number for two", with_record(_STORAGE,
     nbytes=_CAPPED, compressed=_CAPPED, extra=_zip64(_NBYTES))),
    ("a zip64 field past its end",
     with_record(_STORAGE, nbytes=_CAPPED, extra=b"\1\0\x10\0" + bytes(8))),
    ("a zip64 field behind one past its end",
     with_record(_STORAGE, nbytes=_CAPPED, extra=b"FB\xff\0" + _zip64(_NBYTES))),
    ("two zip64 fields that agree",
     with_record(_STORAGE, nbytes=_CAPPED, extra=_zip64(_NBYTES) * 2)),
    ("two zip64 fields that differ",
     with_record(_STORAGE, nbytes=_CAPPED, extra=_zip64(_NBYTES) + _zip64(4))),
    ("zip64 of a larger size",
     with_record(_STORAGE, nbytes=_CAPPED, local_nbytes=17, extra=_zip64(17))),
    ("zip64 of sizes past the next record",
     with_record(_STORAGE, nbytes=_CAPPED, compressed=_CAPPED, extra=_zip64(99, 99))),
    ("zip64 of a size of 2**63", with_record(_STORAGE, nbytes=_CAPPED, extra=_zip64(1 << 63))),
    ("zip64 of a size of 2**64 - 1",
     with_record(_STORAGE, nbytes=_CAPPED, extra=_zip64((1 << 64) - 1))),
    ("zip64 of a compressed size of 2**63 - 1",
     with_record(_STORAGE, compressed=_CAPPED, extra=_zip64((1 << 63) - 1))),
    ("zip64 of a pickle of 2**62 bytes", with_record(b"data.pkl",
     nbytes=_CAPPED, compressed=_CAPPED, extra=_zip64(1 << 62, 1 << 62))),
    ("zip64 of an offset past the end",
     with_record(_STORAGE, offset=_CAPPED, extra=_zip64(1 << 20))),
    ("zip64 of an offset of 2**63 - 1",
     with_record(_STORAGE, offset=_CAPPED, extra=_zip64((1 << 63) - 1))),
    ("zip64 of an offset of 2**64 - 1",
     with_record(_STORAGE, offset=_CAPPED, extra=_zip64((1 << 64) - 1))),
    ("zip64 of the offset of another record",
     with_record(_STORAGE, offset=_CAPPED, extra=_zip64(0))),
    ("zip64 in another order", with_record(_STORAGE,
     nbytes=_CAPPED, offset=_CAPPED, extra=_zip64(_place(_STORAGE), _NBYTES))),
    ("zip64 of the right numbers",
     with_record(_STORAGE, nbytes=_CAPPED, compressed=_CAPPED, offset=_CAPPED, local_nbytes=_NBYTES,
     local_compressed=_NBYTES, extra=_zip64(_NBYTES, _NBYTES, _place(_STORAGE))), None),
    ("zip64 of more numbers than are capped", with_record(_STORAGE,
     nbytes=_CAPPED, local_nbytes=_NBYTES, extra=_zip64(_NBYTES, 4, 4)), None),
    ("zip64 that nothing needs", with_record(_STORAGE, extra=_zip64(4, 4, 4)), None),
    ("two zip64 fields that nothing needs", with_record(_STORAGE, extra=_zip64(4) + _zip64(5)),
     None),
    ("a disk in zip64", with_record(_STORAGE, disk=0xFFFF, extra=struct.pack("<HHL", 1, 4, 0))),
]  # fmt: skip

_PLACES: list[Row] = [
    ("no local header", with_record(_STORAGE, local_magic=bytes(4))),
    ("a header of the directory below", with_record(_STORAGE, local_magic=b"PK\1\2")),
    ("a descriptor for a local header", with_record(_STORAGE, local_magic=b"PK\7\10")),
    ("a split marker for a local header", with_record(_STORAGE, local_magic=b"PK00")),
    ("a pickle without local header", with_record(b"version", local_magic=bytes(4))),
    ("a storage one byte further", with_record(_STORAGE, offset=_place(_STORAGE) + 1)),
    ("a storage one byte before", with_record(_STORAGE, offset=_place(_STORAGE) - 1)),
    ("a storage that is the pickle", with_record(_STORAGE, offset=0)),
    ("a storage inside the pickle", with_record(_STORAGE, offset=40)),
    ("a storage in its own bytes", with_record(_STORAGE, offset=_place(_STORAGE) + 44)),
    ("a storage at the directory", with_record(_STORAGE, offset=_DIRECTORY)),
    ("a storage in the directory", with_record(_STORAGE, offset=_DIRECTORY + 46)),
    ("a storage at the end", with_record(_STORAGE, offset=len(_GOOD))),
    ("a storage before the beginning", with_record(_STORAGE, offset=(1 << 32) - 16)),
    ("a storage at 2**31", with_record(_STORAGE, offset=1 << 31)),
    ("the last record at the byte before the directory",
     with_record(b"version", offset=_DIRECTORY - 1)),
    ("two records that changed places", b.build_zip([replace(each,
     offset=_place({b"archive/data/0": b"byteorder"}.get(each.name, _STORAGE))) if each.name in (
     b"archive/data/0", b"archive/byteorder") else each for each in good_members()])),
    ("all records at one place", b.build_zip([replace(each, offset=0) for each in good_members()])),
    ("a record inside another", b.build_zip(
     [*good_members(), b.Member(name=b"archive/x", offset=_place(_STORAGE) + 44)])),
    ("records that quote one another", b.build_zip([  # each holds the headers of those behind it
        b.Member(name=b"archive/%d" % i, data=b"", compressed=40 * (20 - i), nbytes=40 * (20 - i))
        for i in range(20)])),
    ("a record on disk 1", with_record(_STORAGE, disk=1)),
    ("a record on disk 65,535", with_record(b"version", disk=0xFFFF)),
    ("zeros between records", _with_gap(bytes(100)), None),
    ("a local header that no directory knows", _with_gap(_STRAY), None),
    ("an end record between records", _with_gap(_GOOD[-22:]), None),
]  # fmt: skip

_ATTRIBUTES: list[Row] = [
    ("a storage that is a symbolic link",
     in_directory(_GOOD, _STORAGE, 38, struct.pack("<L", 0o120777 << 16)), None),
    ("a pickle that is a device",
     in_directory(_GOOD, b"data.pkl", 38, struct.pack("<L", 0o060666 << 16)), None),
    ("a storage that is a folder by its attributes",
     in_directory(_GOOD, _STORAGE, 38, struct.pack("<L", 0o040777 << 16 | 0x10))),
    ("a storage that is a folder to Unix only",
     in_directory(_GOOD, _STORAGE, 38, struct.pack("<L", 0o040777 << 16)), None),
    ("an empty record that is a folder by its attributes",
     in_directory(b.build_zip([*good_members(), b.Member(name=b"archive/x/")]), b"x/", 38, b"\x10"),
     None),
    ("made by a system that is not known", in_directory(_GOOD, _STORAGE, 4, b"\xff\xff"), None),
    ("a version needed of 255", in_directory(_GOOD, _STORAGE, 6, b"\xff\xff"), None),
    ("a time that is none", in_directory(_GOOD, _STORAGE, 12, b"\xff\xff\xff\xff"), None),
    ("internal attributes", in_directory(_GOOD, _STORAGE, 36, b"\xff\xff"), None),
]  # fmt: skip

_FILES = [*_NAMES, *_CHANGED_NAMES, *_METHODS, *_SIZES, *_EXTRA, *_ZIP64, *_PLACES, *_ATTRIBUTES]
ROWS = attacks(_FILES, ArchiveError)
