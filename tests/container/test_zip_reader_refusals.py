"""Archives that are refused: broken ones, and those that two readers could read in two ways."""

from __future__ import annotations

import struct
from dataclasses import replace
from typing import Any

import pytest

from tests.builders import End, build_zip, deflate
from tests.container.memory import BytesSource
from tests.container.test_zip_reader import A, B, C, read_all
from tests.refusals import Refusal, each_refusal
from torchzip.container.zip_reader import ZipReader
from torchzip.errors import ArchiveError, LimitError, TorchZipError, UnsupportedError
from torchzip.limits import Limits


def _two_ends(between: bytes = b"", **lies: Any) -> bytes:
    """Return an archive with another one behind it, in its comment."""
    first = build_zip([A, C])
    second = build_zip([replace(A, data=b"other!"), C])
    nbytes, offset = struct.unpack_from("<LL", second, len(second) - 10)
    end = End(offset=offset + len(first), nbytes=nbytes, between=between, **lies)
    moved = build_zip(
        [replace(A, data=b"other!", offset=len(first)), replace(C, offset=len(first) + 52)], end
    )
    return first[:-2] + struct.pack("<H", len(moved)) + moved


_PLAIN = build_zip([A, B, C])
_ZIP64 = build_zip([A, B, C], End(zip64=True))


def _only(**changes: Any) -> bytes:
    """Return an archive of one record, with a lie in it."""
    return build_zip([replace(A, **changes)])


def _second(**changes: Any) -> bytes:
    """Return an archive of two records, with a lie in the second."""
    return build_zip([A, replace(B, **changes)])


def _end(**lies: Any) -> bytes:
    return build_zip([A], End(**lies))


def _zip64(**lies: Any) -> bytes:
    return _end(zip64=True, **lies)


_REFUSED: list[Refusal] = [
    ("empty file", b"", "no zip directory"),
    ("not a zip", b"x" * 1000, "no zip directory"),
    ("empty archive", build_zip([]), "no record"),
    ("duplicate names", build_zip([A, B, A]), "two records are called"),
    ("names that differ in case", build_zip([A, replace(A, name=b"archive/DATA.pkl")]),
     "two records are called"),
    ("roots that differ in case", _second(name=b"Archive/data/0"), "does not lie in"),
    ("a record of another root", _second(name=b"other/data/0"), "does not lie in"),
    ("a root that is a prefix", _second(name=b"archive2/data/0"), "does not lie in"),
    ("a name shorter than the root", _second(name=b"a"), "lie"),
    ("no root in the first name",
     build_zip([replace(A, name=b"data.pkl"), B]), "lie in one directory"),
    ("an empty name", build_zip([replace(A, name=b""), B]), "lie in one"),
    ("two entries for one record", _second(name=b"archive/x", offset=0), "reaches to byte"),
    ("a record inside another", build_zip([A, B, replace(C, offset=80)]), "reaches to byte"),
    ("a size that reaches into the next",
     build_zip([A, replace(B, nbytes=300, compressed=300), C]), "reaches to byte"),
    ("a size that reaches into the directory",
     _second(nbytes=250, compressed=250), "reaches to byte"),
    ("a compressed size past the directory", _second(compressed=0xFFFFFFF0),
     "does not lie before the directory"),
    ("an offset past the directory", _second(offset=10_000), "does not lie before the directory"),
    ("a zip64 size past 2**63",
     _only(nbytes=0xFFFFFFFF, extra=struct.pack("<HHQ", 1, 8, 1 << 63)), "past 2**63"),
    ("a zip64 offset past 2**63", _only(offset=0xFFFFFFFF,
     extra=struct.pack("<HHQ", 1, 8, (1 << 64) - 1)), "past 2**63"),
    ("sizes whose sum passes 2**63", _only(compressed=0xFFFFFFFF,
     offset=0xFFFFFFFF, extra=struct.pack("<HHQQ", 1, 16, (1 << 63) - 1, (1 << 63) - 1)),
     "does not lie before the directory"),
    ("a zip64 field that is too short",
     _only(nbytes=0xFFFFFFFF, extra=struct.pack("<HHL", 1, 4, 6)), "has 4 bytes"),
    ("two zip64 fields", _only(nbytes=0xFFFFFFFF,
     extra=struct.pack("<HHQHHQ", 1, 8, 6, 1, 8, 7)), "two zip64 fields"),
    ("a count that is too small",
     build_zip([A, B, C], End(count=2)), "entries of the directory take"),
    ("a count that is too large", build_zip([A, B, replace(C, comment=b"x" * 50)], End(count=4)),
     "has no header here"),
    ("a count of 65535", _end(count=0xFFFF), "cannot fit"),
    ("a count of none", _end(count=0), "no record"),
    ("a count past the limit", build_zip([A] * 9), "entries", LimitError),
    ("a directory size that lies", _end(nbytes=10), "should end"),
    ("a directory offset that lies", _end(offset=10), "should end"),
    ("bytes before the archive", b"junk" + _PLAIN, "added or lost"),
    ("a byte before the end record", _end(between=b"x"), "added"),
    ("two disks", _end(disk=1), "join the parts"),
    ("a directory on another disk", _end(first_disk=1), "several"),
    ("a count on this disk", build_zip([A, C], End(on_disk=1)), "join the parts"),
    ("a record on another disk", _only(disk=1), "another disk"),
    ("a second archive behind the first", _two_ends(), "end records"),
    ("a second end record that others believe", _two_ends(b"x"), ""),
    ("a second end record with another count", _two_ends(b"\0" * 3, count=1), ""),
    ("a zip64 count that differs",
     build_zip([A, C], End(zip64=True, zip64_count=1)), "zip64 end record says 1"),
    ("a zip64 offset that differs", _zip64(zip64_offset=1), "zip64 end record says 1"),
    ("a zip64 size that differs", _zip64(zip64_nbytes=1), "zip64 end record says 1"),
    ("a zip64 count of 2**64 - 1", build_zip([A],
     End(zip64=True, count=0xFFFF, zip64_count=(1 << 64) - 1)), "cannot fit"),
    ("a locator to nowhere", _zip64(locator_offset=1 << 60), "locator points to"),
    ("a locator to something else", _zip64(locator_offset=0), "locator points here"),
    ("a zip64 end record of another length", _zip64(zip64_length=50), "locator points here"),
    ("a locator of two disks", _zip64(locator_disks=2), "locator points to"),
    ("a locator of no disk",  # torch refuses it, too
     _zip64(locator_disks=0), "disk 0 of 0"),
    ("encrypted", _second(flags=1), "encrypted", UnsupportedError),
    ("strongly encrypted", _only(flags=0x41), "encrypted", UnsupportedError),
    ("a masked header", _only(flags=0x2000), "encrypted", UnsupportedError),
    ("bzip2", _only(method=12), "method 12", UnsupportedError),
    ("method 0xffff", _only(method=0xFFFF), "method 65535", UnsupportedError),
    # what shows when the record is read
    ("a local header of another name", _second(local_name=b"archive/data/1"), "names"),
    ("a local header of a longer name", _second(local_name=b"archive/data/01"), "names"),
    ("a local header of a name in other case", _second(local_name=b"archive/Data/0"), "names"),
    ("a local header of another method", _second(local_method=8), "says method 8"),
    ("a local header that says encrypted", _second(local_flags=1), "flags 0x0001"),
    ("a local header of another size",
     _second(local_nbytes=199, local_compressed=199), "the local header says 199"),
    ("a local header of one other size", _second(local_nbytes=199), "the local header says 199"),
    ("a local header of another CRC", _second(local_crc=1), "says CRC 00000001"),
    ("no local header", _second(local_magic=b"PK\3\5"), "local header of a record was expected"),
    ("extra data past the directory", _second(local_extra_nbytes=60_000), "reach past byte"),
    ("extra data that moves a record over the next", build_zip([A, replace(B, data=b"abcxyz",
     crc=0, local_extra_nbytes=3), replace(B, name=b"archive/data/1")]), ""),
    ("a wrong CRC", _second(crc=1), "the directory says 00000001"),
    ("a wrong CRC of a deflated record", _second(method=8, crc=1), "the directory says 00000001"),
    ("a stored record of two sizes", _second(nbytes=199), "says 199 bytes and 200"),
    ("a deflate bomb", _second(method=8, data=bytes(100), nbytes=1 << 30),
     "deflate_ratio", LimitError),
    ("deflated bytes of a smaller size", _second(method=8, nbytes=199), "continue after the 199"),
    ("deflated bytes of a larger size", _second(method=8, nbytes=201), "come to 200"),
    ("deflated bytes cut short", _second(method=8, stored=deflate(B.data)[:-1]), "are cut short"),
    ("deflated bytes that are none", _second(method=8, stored=b"\xff" * 50), "damaged"),
    ("no deflated bytes at all", _second(method=8, stored=b"", nbytes=0, crc=0), "are cut short"),
]  # fmt: skip


@each_refusal(_REFUSED, ArchiveError)
def test_refused(given: bytes, error: type[TorchZipError], message: str) -> None:
    """An archive that is broken, or that two readers could read in two ways, is refused."""
    with pytest.raises(error) as caught:
        read_all(given, Limits(entries=5))
    assert message in str(caught.value)
    assert caught.value.path == "made.pt"


def test_the_rows_are_broken_in_one_way_only() -> None:
    """The archives that the rows change are read."""
    for data in (_PLAIN, _ZIP64):
        assert read_all(data, Limits(entries=5))["data/0"] == B.data


@pytest.mark.parametrize("data", [_PLAIN, _ZIP64], ids=["plain", "zip64"])
def test_every_truncation_is_refused(data: bytes) -> None:
    for cut in range(len(data)):
        with pytest.raises(TorchZipError):
            read_all(data[:cut])


@pytest.mark.few
@pytest.mark.parametrize("data", [_PLAIN, _ZIP64], ids=["plain", "zip64"])
def test_every_changed_byte(data: bytes) -> None:
    """Whatever byte is changed, a record has its content or there is an error."""
    truth = read_all(data)
    for at in range(len(data)):
        for value in (0, 1, 0x50, 0xFF, data[at] ^ 0x80, (data[at] + 1) & 0xFF):
            try:
                records = read_all(data[:at] + bytes([value]) + data[at + 1 :])
            except TorchZipError:
                continue
            # The CRC may have been set to "not computed"; names may have changed everywhere.
            assert set(records.values()) == set(truth.values()), (at, value)


def test_missing_byte_anywhere() -> None:
    """A lost or added byte shows, except in a comment."""
    for at in range(len(_PLAIN)):
        with pytest.raises(TorchZipError):
            read_all(_PLAIN[:at] + _PLAIN[at + 1 :])
    for at in range(len(_PLAIN) - 2):  # behind it is the comment
        with pytest.raises(TorchZipError):
            read_all(_PLAIN[:at] + b"x" + _PLAIN[at:])


def test_end_record_inside_a_record() -> None:
    """A record that holds a whole archive, or a bare end record, makes no second reading."""
    for inner in (_PLAIN, b"PK\5\6" + bytes(18), b"PK\5\6", b"PK\5\6" + b"\xff" * 18):
        assert read_all(build_zip([A, replace(B, data=inner)]))["data/0"] == inner


def test_small_records_have_small_limits() -> None:
    """`read` compares the declared size with the limit it is given, before reading."""
    data = build_zip([A, replace(C, data=b"3" * 5000), replace(B, method=8, data=bytes(9000))])
    source = BytesSource(data)
    reader = ZipReader(source, Limits(pickle_nbytes=8999))
    source.reads.clear()
    for name, limit in (("version", "text_nbytes"), ("data/0", "pickle_nbytes")):
        with pytest.raises(LimitError) as caught:
            reader.read(name, limit=limit)
        assert (caught.value.limit, caught.value.record) == (limit, name)
    assert source.reads == []
