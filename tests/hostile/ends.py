"""The end of an archive, names of its records, and what lies around it."""

from __future__ import annotations

import struct
from typing import Any

from tests import builders as b
from tests.hostile.attack import Row, attacks
from tests.hostile.parts import changed, good_members, with_record
from torchzip.errors import ArchiveError, FormatError

_MEMBERS = good_members()
_GOOD = b.build_zip(_MEMBERS)
_ZIP64 = b.build_zip(_MEMBERS, b.End(zip64=True))
_COUNT, _NBYTES, _OFFSET = struct.unpack_from("<HLL", _GOOD, len(_GOOD) - 12)
_OTHER = b.build_zip(b.members_of(b.stream(b.integer(5)), {}))
#: Where the zip64 end record and its locator begin, from the end.
_END_64 = -(56 + 20 + 22)
_LOCATOR = -(20 + 22)


def _end(**lies: Any) -> bytes:
    return b.build_zip(_MEMBERS, b.End(**lies))


def _end_64(**lies: Any) -> bytes:
    return b.build_zip(_MEMBERS, b.End(zip64=True, **lies))


def _moved(data: bytes, by: int) -> bytes:
    """Return an archive whose offsets count from that many bytes before it."""
    nbytes, start = struct.unpack_from("<LL", data, len(data) - 10)
    made = bytearray(changed(data, -6, struct.pack("<L", start + by)))
    at = start
    while at < start + nbytes:
        (offset,) = struct.unpack_from("<L", made, at + 42)
        struct.pack_into("<L", made, at + 42, offset + by)
        at += 46 + sum(struct.unpack_from("<HHH", made, at + 28))
    return bytes(made)


_LAST = _ZIP64[_LOCATOR:]


def _appended(
    body: bytes = bytes(600), last: bytes = _LAST, *, erased: bytes = b"P", at: int = -22
) -> bytes:
    """Return an archive with its last two records again behind what is being appended.

    At ``at`` of the archive there are other bytes than before.
    """
    return changed(_ZIP64, at, erased) + body + last


def _swallowing(nbytes: int) -> bytes:
    """Return a directory of that size whose last entry ends behind a locator, which it lacks."""
    start = _ZIP64.index(b"PK\1\2")
    length = 46 + sum(struct.unpack_from("<HHH", _ZIP64, start + 28))
    entry = bytearray(_ZIP64[start : start + length])
    struct.pack_into("<H", entry, 32, nbytes - length)  # its comment
    return bytes(entry) + bytes(nbytes - length - 20)


def _extended(data: bytes) -> bytes:
    """Return an archive whose zip64 end record has more data behind its 56 bytes."""
    made = changed(_ZIP64, _END_64 + 4, struct.pack("<Q", 44 + len(data)))
    return made[:_LOCATOR] + data + _LAST


def _with_comment(comment: bytes) -> bytes:
    return _end(comment=comment)


_ENDS: list[Row] = [
    ("one entry fewer", _end(count=_COUNT - 1)),
    ("one entry more", _end(count=_COUNT + 1)),
    ("no entries", _end(count=0)),
    ("65,535 entries", _end(count=0xFFFF)),
    ("fewer entries on this disk", _end(on_disk=1)),
    ("more entries on this disk", _end(on_disk=0xFFFF)),
    ("a directory of one byte fewer", _end(nbytes=_NBYTES - 1)),
    ("a directory of one byte more", _end(nbytes=_NBYTES + 1)),
    ("a directory of no bytes", _end(nbytes=0)),
    ("a directory of 4 GiB", _end(nbytes=0xFFFFFFFF)),
    ("a directory one byte before", _end(offset=_OFFSET - 1)),
    ("a directory one byte further", _end(offset=_OFFSET + 1)),
    ("a directory at 0", _end(offset=0)),
    ("a directory at 2**32 - 1", _end(offset=0xFFFFFFFF)),
    ("a directory at -1 that reaches to the end",
     _end(offset=0xFFFFFFFF, nbytes=_OFFSET + _NBYTES + 1)),
    ("a directory that begins in the last record", _end(offset=_OFFSET - 2, nbytes=_NBYTES + 2)),
    ("a directory that is the whole archive", _end(offset=0, nbytes=_OFFSET + _NBYTES)),
    ("a directory that begins with its second entry", _end(
        offset=_OFFSET + 62, nbytes=_NBYTES - 62, count=_COUNT - 1)),
    ("a directory with bytes behind it", _end(between=b"x")),
    ("a directory with its signature behind it", _end(between=b"PK\5\5\0\0")),
    ("disk 1", _end(disk=1)),
    ("disk 65,535", _end(disk=0xFFFF)),
    ("a directory from disk 1", _end(first_disk=1)),
    ("an end record cut short", _GOOD[:-1]),
    ("no end record", _GOOD[:-22]),
    ("a comment that is longer than it says", _end(comment=b"hello", comment_nbytes=0), None),
    ("a comment that is not there", _end(comment_nbytes=5), None),
    ("a comment of 65,535 bytes", _with_comment(b"x" * 0xFFFF), None),
    ("65,535 bytes behind the archive", _GOOD + b"x" * 0xFFFF, None),
    ("65,536 bytes behind the archive", _GOOD + b"x" * 0x10000),
    ("a byte behind the archive", _GOOD + b"x", None),
    ("zeros behind the archive", _GOOD + bytes(512), None),
    ("a comment that begins like an end record", _with_comment(b"PK\5\6"), None),
    ("a comment with an empty end record", _with_comment(b"PK\5\6" + bytes(18))),
    ("a comment with an end record of ones", _with_comment(b"PK\5\6" + b"\xff" * 18)),
    ("a comment with the end record again", _with_comment(_GOOD[-22:])),
    ("a comment with an end record for one entry", _with_comment(
        struct.pack("<4sHHHHLLH", b"PK\5\6", 0, 0, 1, 1, _NBYTES, _OFFSET, 0))),
    ("a comment with a whole archive", _with_comment(_OTHER)),
    ("a comment with an archive that fits", _with_comment(_moved(_OTHER, len(_GOOD)))),
    ("a comment with an archive and more", _with_comment(_moved(_OTHER, len(_GOOD)) + b"tail")),
    ("an archive behind the archive", _GOOD + _OTHER),
    ("an archive behind the archive that fits", _GOOD + _moved(_OTHER, len(_GOOD))),
    ("the archive twice", _GOOD + _GOOD),
    ("an archive of zip64 behind the archive", _GOOD + _ZIP64),
    ("an archive far before the archive",
     _OTHER + bytes(70_000) + _moved(_GOOD, len(_OTHER) + 70_000), None),
    ("a local header of nothing before the archive",
     b"PK\3\4" + bytes(60) + _moved(_GOOD, 64), None),
    ("a local header before an archive that did not move", b"PK\3\4" + bytes(60) + _GOOD),
    ("a byte before the archive", b"x" + _GOOD, FormatError),
    ("a byte before the archive that fits", b"x" + _moved(_GOOD, 1), FormatError),
    ("a script before the archive", b"#!/bin/sh\n" + _moved(_GOOD, 10), FormatError),
    ("a split marker before the archive", b"PK00" + _moved(_GOOD, 4), FormatError),
    ("a directory before its records", _GOOD[_OFFSET:-22] + _GOOD[:_OFFSET] + changed(
        _GOOD[-22:], 16, bytes(4)), FormatError),
]  # fmt: skip

_ENDS_64: list[Row] = [
    ("zip64 end records that nothing needs", _ZIP64, None),
    ("a zip64 end record of length 0", _end_64(zip64_length=0)),
    ("a zip64 end record of length 43", _end_64(zip64_length=43)),
    ("a zip64 end record of length 45", _end_64(zip64_length=45)),
    ("a zip64 end record of length 2**63", _end_64(zip64_length=1 << 63)),
    ("a zip64 end record of length -12", _end_64(zip64_length=(1 << 64) - 12)),
    ("a zip64 end record of another signature", changed(_ZIP64, _END_64, b"PK\6\5")),
    ("a zip64 end record of version 99", changed(_ZIP64, _END_64 + 12, b"c\0c\0"), None),
    ("a zip64 end record on disk 1", changed(_ZIP64, _END_64 + 16, b"\1")),
    ("a zip64 directory from disk 1", changed(_ZIP64, _END_64 + 20, b"\1")),
    ("fewer zip64 entries on this disk", changed(_ZIP64, _END_64 + 24, b"\1")),
    ("fewer zip64 entries", _end_64(zip64_count=_COUNT - 1)),
    ("zip64 entries that are fewer than the archive has",
     _end_64(zip64_count=_COUNT - 1, count=0xFFFF)),
    ("2**63 zip64 entries", _end_64(zip64_count=1 << 63, count=0xFFFF)),
    ("2**64 - 1 zip64 entries", _end_64(zip64_count=(1 << 64) - 1, count=0xFFFF)),
    ("a zip64 directory of another size", _end_64(zip64_nbytes=_NBYTES - 1)),
    ("a zip64 directory of 2**63 bytes", _end_64(zip64_nbytes=1 << 63, nbytes=0xFFFFFFFF)),
    ("a zip64 directory at another place", _end_64(zip64_offset=_OFFSET - 1)),
    ("a zip64 directory at 2**63", _end_64(zip64_offset=1 << 63, offset=0xFFFFFFFF)),
    ("a zip64 directory that wraps around", _end_64(zip64_offset=(1 << 64) - 8,
     offset=0xFFFFFFFF, zip64_nbytes=_OFFSET + _NBYTES + 8, nbytes=0xFFFFFFFF)),
    ("capped numbers in the end record", _end_64(offset=0xFFFFFFFF, zip64_offset=_OFFSET,
     nbytes=0xFFFFFFFF, zip64_nbytes=_NBYTES, count=0xFFFF, zip64_count=_COUNT), None),
    ("capped numbers without zip64", _end(offset=0xFFFFFFFF, nbytes=0xFFFFFFFF, count=0xFFFF)),
    ("a locator to byte 0", _end_64(locator_offset=0)),
    ("a locator to itself", _end_64(locator_offset=len(_ZIP64) + _LOCATOR)),
    ("a locator one byte before", _end_64(locator_offset=len(_ZIP64) + _END_64 - 1)),
    ("a locator one byte further", _end_64(locator_offset=len(_ZIP64) + _END_64 + 1)),
    ("a locator to the end record", _end_64(locator_offset=len(_ZIP64) - 22)),
    ("a locator to 2**63", _end_64(locator_offset=1 << 63)),
    ("a locator to 2**64 - 1", _end_64(locator_offset=(1 << 64) - 1)),
    ("a locator of another disk", changed(_ZIP64, _LOCATOR + 4, b"\1")),
    ("a locator of two disks", _end_64(locator_disks=2)),
    ("a locator of 2**32 - 1 disks", _end_64(locator_disks=0xFFFFFFFF)),
    ("a locator without its end record", _GOOD[:-22] + struct.pack(
        "<4sLQL", b"PK\6\7", 0, _OFFSET + _NBYTES, 1) + _GOOD[-22:]),
    ("a locator of another signature", changed(_ZIP64, _LOCATOR, b"PK\6\6")),
    ("bytes between locator and end record", _end_64(between=b"x")),
    ("a zip64 end record with data behind it", _extended(bytes(100)), None),
    ("a zip64 end record that ends with another one",
     _extended(bytes(10) + _ZIP64[_END_64:_LOCATOR])),
    ("a zip64 end record that is another one from its 57th byte on",
     _extended(_ZIP64[_END_64:_LOCATOR])),
    ("a zip64 end record with a directory behind it that ends with the locator",
     _extended(_swallowing(_NBYTES))),
    ("the last two records of an archive of another length",
     changed(_ZIP64, _END_64 + 4, b"\x2b") + bytes(600) + _LAST),
    ("a zip64 end record without locator", _ZIP64[:_LOCATOR] + _ZIP64[-22:]),
]  # fmt: skip

#: The last two records again, and what is different.
_AGAIN: list[Row] = [
    (" behind zeros", _appended(), None),
    (", right behind", _appended(b""), None),
    (", and bytes behind", _appended() + bytes(100), None),
    (", the first end erased", _appended(erased=b"\0"), None),
    (", the first end with another letter", _appended(erased=b"Q")),
    (", the first end erased further", _appended(erased=b"\0\0")),
    (", the first locator erased", _appended(erased=b"\0", at=_LOCATOR)),
    (", the first locator to another place", _appended(erased=b"\1", at=_LOCATOR + 8)),
    (", the first end with another count", _appended(erased=b"\1", at=-12)),
    (", the last end with another count", _appended(last=changed(_LAST, -12, b"\1"))),
    (", the last end with a comment", _appended(last=changed(_LAST, -2, b"\1"))),
    (" behind a zip64 end record", _appended(bytes(600) + _ZIP64[_END_64:_LOCATOR])),
    (" behind the signature of one", _appended(bytes(600) + b"PK\6\6" + bytes(52), erased=b"\0")),
    (" behind a directory that ends with them",
     _appended(bytes(600) + _swallowing(_NBYTES), erased=b"\0")),
    (" behind another archive", _appended(_moved(_OTHER, len(_ZIP64)), erased=b"\0")),
    (" behind an end record of nothing",
     _appended(bytes(600) + b"PK\5\6" + bytes(18), erased=b"\0"), None),
]  # fmt: skip


def _more(*names: bytes, data: bytes = b"other", **fields: Any) -> bytes:
    more = [b.Member(name=name, data=data, **fields) for name in names]
    return b.build_zip([*_MEMBERS, *more])


def _before(*names: bytes, data: bytes = b"") -> bytes:
    return b.build_zip([*(b.Member(name=name, data=data) for name in names), *_MEMBERS])


def _rooted(root: bytes) -> bytes:
    records = [(each.name.partition(b"/")[2], each.data) for each in _MEMBERS]
    return b.build_zip([b.Member(name=root + b"/" + name, data=data) for name, data in records])


def _without(name: bytes, instead: bytes) -> bytes:
    """Return a good checkpoint with one record under another name."""
    return with_record(name, name=instead)


_NAMES: list[Row] = [
    ("the pickle twice", _more(b"archive/data.pkl")),
    ("the pickle twice, the other first", _before(b"archive/data.pkl", data=b"N.")),
    ("the pickle twice, alike", b.build_zip([*_MEMBERS, _MEMBERS[0]])),
    ("a storage twice", _more(b"archive/data/0")),
    ("the version twice", _more(b"archive/version")),
    ("a record twice that nobody reads", _more(b"archive/x", b"archive/x")),
    ("an empty name twice", _more(b"archive/", b"archive/")),
    ("the pickle in capitals too", _more(b"archive/DATA.PKL")),
    ("a storage in capitals too", _more(b"archive/Data/0")),
    ("the byte order in capitals too", _more(b"archive/ByteOrder")),
    ("the pickle in capitals only", _without(b"data.pkl", b"archive/DATA.PKL")),
    ("a storage in capitals only", _without(b"data/0", b"archive/DATA/0")),
    ("the version in capitals only", _without(b"version", b"archive/VERSION")),
    ("a pickle in a folder", _without(b"data.pkl", b"archive/sub/data.pkl")),
    ("a pickle of a folder", _without(b"data.pkl", b"archive/data.pkl/")),
    ("a pickle with a zero byte only", _without(b"data.pkl", b"archive/data.pkl\0")),
    ("a storage with a leading zero only", _without(b"data/0", b"archive/data/00")),
    ("a storage with a full-width digit only", _without(b"data/0", "archive/data/０".encode())),
    ("a pickle with a zero byte too", _more(b"archive/data.pkl\0", b"archive/data/0\0x")),
    ("a pickle in the folder dot", _more(b"archive/./data.pkl", b"archive/data/./0")),
    ("a pickle behind two slashes", _more(b"archive//data.pkl", b"archive/data//0")),
    ("a storage with a backslash too", _more(b"archive/data\\0")),
    ("a storage with a leading zero too", _more(b"archive/data/00", b"archive/data/+0"), None),
    ("a storage with another digit too", _more("archive/data/０".encode(),
                                               "archive/data/٠".encode()), None),
    ("a name in two Unicode forms", _more("archive/é".encode(), "archive/e\u0301".encode()), None),
    ("a name with a Kelvin sign", _more("archive/data.p\u212al".encode()), None),
    ("names that are no UTF-8", _more(b"archive/\xff", b"archive/\xc3", b"archive/\xe9"), None),
    ("names that differ in a capital that is no ASCII",
     _more("archive/É".encode(), "archive/é".encode()), None),
    ("names of terminal commands", _more(b"archive/\x1b[2J\x1b]0;x\7", b"archive/\r\n"), None),
    ("a name that climbs", _more(b"archive/../../etc/passwd", b"archive/..")),
    ("an absolute name", _more(b"/etc/passwd")),
    ("a name of a drive", _more(b"C:\\data.pkl")),
    ("a name that climbs from the start", _more(b"../archive/data.pkl")),
    ("a name behind the folder dot", _more(b"./archive/data.pkl")),
    ("a name with a backslash for the slash", _more(b"archive\\data.pkl")),
    ("a name of no letters", _more(b"")),
    ("a name that is the folder's", _more(b"archive")),
    ("a first name that is the folder's", _before(b"archive")),
    ("a first name without folder", _before(b"data.pkl")),
    ("two folders", _more(b"brchive/data.pkl")),
    ("two folders that differ in case", _more(b"Archive/data.pkl")),
    ("two folders, one a part of the other", _more(b"archive2/data.pkl")),
    ("two folders, the other first", _before(b"other/data.pkl")),
    ("a folder of macOS beside it", _more(b"__MACOSX/archive/._data.pkl")),
    ("entries for folders", b.build_zip([
        b.Member(name=b"archive/"), b.Member(name=b"archive/data/"), *_MEMBERS]), None),
    ("an entry for a folder with bytes in it", _more(b"archive/data/"), None),
    ("a folder without name", _rooted(b"")),
    ("a folder that is a dot", _rooted(b"."), None),
    ("a folder that climbs", _rooted(b"..")),
    ("a folder of zero bytes", _rooted(b"\0\0")),
    ("a folder with a backslash", _rooted(b"a\\b")),
    ("a folder that is no UTF-8", _rooted(b"\xff\xfe\x1b[2J"), None),
    ("a folder of 65,000 bytes", _rooted(b"x" * 65_000), None),
    ("a name of 65,535 bytes", _more(b"archive/" + b"x" * 65_527), None),
    ("a name of 65,535 slashes", _more(b"archive/" + b"/" * 65_527)),
    ("a name that holds an entry", _more(b"archive/PK\1\2" + b"x" * 42 + b"archive/data/0"), None),
    ("a storage called by 18 digits", _more(b"archive/data/" + b"9" * 18), None),
    ("a storage called by 400 digits", _more(b"archive/data/" + b"9" * 400), None),
    ("a thousand entries that are empty", b.build_zip(
        [*_MEMBERS, *(b.Member(name=b"archive/x%d" % i) for i in range(1000))]), None),
]  # fmt: skip

ROWS = attacks([*_ENDS, *_ENDS_64, *_NAMES], ArchiveError)
ROWS += attacks(_AGAIN, ArchiveError, prefix="the last two records again")
