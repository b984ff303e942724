"""The archive that torch writes: read by zipfile, laid out as the format says."""

from __future__ import annotations

import io
import itertools
import struct
import zipfile
import zlib
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.container.memory import BytesSink, BytesSource, SparseFile
from tests.sampling import costly
from torchzip.container import zip_writer
from torchzip.container.serialization_id import serialization_id
from torchzip.container.zip_reader import ZipReader
from torchzip.container.zip_writer import MAX_ALIGNMENT, ZipWriter, archive_name, measure
from torchzip.files.new_file import NewFile
from torchzip.files.sink import GapSink
from torchzip.limits import Limits

Records = list[tuple[str, bytes]]


def build(records: Records, **options: Any) -> bytes:
    sink = BytesSink()
    writer = ZipWriter(sink, "archive", **options)
    for name, data in records:
        writer.write_record(name, data)
    writer.finish()
    return sink.data


_RECORDS: Records = [
    ("data.pkl", b"pickle"),
    ("empty", b""),
    ("data/0", bytes(range(256)) * 5),
    ("data/1", b"x"),
    ("large", b"y" * 300_000),
    ("größe", "é".encode()),
]


def test_zipfile_reads_it() -> None:
    with zipfile.ZipFile(io.BytesIO(build(_RECORDS))) as archive:
        assert archive.testzip() is None
        names = [f"archive/{name}" for name, _ in _RECORDS]
        assert archive.namelist()[:-2] == names
        assert archive.namelist()[-2:] == ["archive/version", "archive/.data/serialization_id"]
        for name, data in _RECORDS:
            assert archive.read(f"archive/{name}") == data
        assert archive.read("archive/version") == b"3\n"
        assert all(info.compress_type == 0 for info in archive.infolist())
        assert {info.date_time for info in archive.infolist()} == {(1980, 0, 0, 0, 0, 0)}


@pytest.mark.parametrize("alignment", [1, 2, 3, 5, 64, 100, 512, 4096, 65_000, MAX_ALIGNMENT])
def test_records_are_aligned(alignment: int) -> None:
    data = build(_RECORDS, alignment=alignment)
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        assert archive.testzip() is None
        for info in archive.infolist():
            name, extra = struct.unpack_from("<HH", data, info.header_offset + 26)
            start = info.header_offset + 30 + name + extra
            assert start % alignment == 0
            field = data[start - extra : start]
            assert field == b"FB" + struct.pack("<H", extra - 4) + b"Z" * (extra - 4)
            assert extra - 4 < alignment


def test_bytes_of_one_record() -> None:
    data = build([("data.pkl", b"abc")])
    head = bytes.fromhex("504b0304 0000 0808 0000 0000 0000 00000000 00000000 00000000 1000")
    pad = -(30 + 16 + 4) % 64
    assert data[:30] == head + struct.pack("<H", 4 + pad)
    assert data[30:64] == b"archive/data.pkl" + b"FB" + struct.pack("<H", pad) + b"Z" * pad
    crc = struct.pack("<L", zlib.crc32(b"abc"))
    sizes = struct.pack("<LL", 3, 3)
    assert data[64 : 64 + 3 + 16] == b"abc" + b"PK\x07\x08" + crc + sizes
    central = bytes.fromhex("504b0102 0000 0000 0808 0000 0000 0000") + crc + sizes
    central += struct.pack("<HHHHHLL", 16, 0, 0, 0, 0, 0, 0) + b"archive/data.pkl"
    assert data.count(central) == 1


def test_end_records() -> None:
    data = build([("data.pkl", b"abc")])
    tail = data[-98:]
    directory = data.index(b"PK\1\2")
    nbytes = len(data) - 98 - directory
    assert tail[:56] == struct.pack(
        "<4sQHHLLQQQQ", b"PK\6\6", 44, 0x031E, 0x2D, 0, 0, 3, 3, nbytes, directory
    )
    assert tail[56:76] == struct.pack("<4sLQL", b"PK\6\7", 0, len(data) - 98, 1)
    assert tail[76:] == struct.pack("<4sHHHHLLH", b"PK\5\6", 0, 0, 3, 3, nbytes, directory, 0)


def test_empty_record() -> None:
    """An empty record has no descriptor, and flags that say so."""
    data = build([("data/0", b""), ("data/1", b"x")])
    assert data[6:8] == b"\x00\x08"
    assert data[64:68] == b"PK\3\4"  # the empty record starts at 64 and ends there
    assert data.count(b"PK\x07\x08") == 3  # data/1, version, id


def test_without_crcs() -> None:
    """Every CRC field is 0, and the id is made of those zeros."""
    records: Records = [("data.pkl", b"abc"), ("data/0", b"d" * 100)]
    data = build(records, crc32=False)
    other = build([("data.pkl", b"xyz"), ("data/0", b"e" * 100)], crc32=False)
    reader = ZipReader(BytesSource(data), Limits())
    assert {reader.entry(name).crc for name in reader} == {0}
    digits = serialization_id([b"data.pkl", b"data/0", b"version"], [0, 0, 0])
    assert reader.read(".data/serialization_id") == digits.encode()
    assert other == data.replace(b"abc", b"xyz", 1).replace(b"d" * 100, b"e" * 100)


def _crcs(records: Records) -> list[int]:
    return [zlib.crc32(data) for _, data in [*records, ("version", b"3\n")] if data]


def test_serialization_id_is_over_names_and_crcs() -> None:
    names = [name.encode() for name, _ in _RECORDS] + [b"version"]
    with zipfile.ZipFile(io.BytesIO(build(_RECORDS))) as archive:
        digits = archive.read("archive/.data/serialization_id").decode()
    assert digits == serialization_id(names, _crcs(_RECORDS))


@pytest.mark.parametrize(
    ("start", "counts"), [(b"PK\x07\x08", True), (b"PK\x07\x09", False), (b"PK\x07", False)]
)
@pytest.mark.parametrize("size", [4, 7, 8, 9, 100, 100_000])
@pytest.mark.parametrize("piece", [1, 3, 5, 8, 1 << 20])
def test_record_that_looks_like_a_descriptor(
    start: bytes, counts: bool, size: int, piece: int
) -> None:
    """It adds to the id what torch's writer takes for a CRC, in whatever pieces it comes."""
    data = (start + b"wxyz" * size)[:size]
    sink = BytesSink()
    writer = ZipWriter(sink, "archive")
    writer.begin_record("data/0", size)
    for at in range(0, size, piece):
        writer.write(data[at : at + piece])
    writer.end_record()
    writer.finish()
    crcs = _crcs([("data/0", data)])
    if counts and size >= 8:
        crcs.insert(0, int.from_bytes(b"wxyz", "little"))
    digits = serialization_id([b"data/0", b"version"], crcs)
    reader = ZipReader(BytesSource(sink.data), Limits())
    assert reader.read(".data/serialization_id") == digits.encode()


_NAMES = st.lists(
    st.from_regex(r"[a-z]{1,8}(/[0-9]{1,4})?", fullmatch=True), unique=True
) | st.integers(0, 40).map(lambda count: [f"data/{index}" for index in range(10, 10 + count)])
_DATA = st.binary(max_size=200) | st.binary(max_size=9).map(lambda raw: b"PK\x07\x08" + raw)


@costly
@given(_NAMES, st.data(), st.booleans(), st.booleans(), st.sampled_from([1, 3, 64, 4096]))
def test_small_records_at_once(
    names: list[str], data: st.DataObject, crc32: bool, known: bool, alignment: int
) -> None:
    names = [name for name in names if name != "version"]
    contents = _DATA if data.draw(st.booleans()) else st.binary(min_size=1, max_size=100)
    records = [(name, data.draw(contents)) for name in names]
    sink = BytesSink()
    writer = ZipWriter(sink, "archive", alignment=alignment, crc32=crc32)
    half = len(records) // 2
    small = records[:half]
    with pytest.MonkeyPatch.context() as patch:
        joined = data.draw(st.sampled_from([1, 300, zip_writer._JOINED_NBYTES]))
        patch.setattr(zip_writer, "_JOINED_NBYTES", joined)
        writer.write_small_records(
            [name.encode() for name, _ in small],
            [content for _, content in small],
            [zlib.crc32(content) if len(content) % 2 else None for _, content in small]
            if known
            else None,
        )
    for name, content in records[half:]:
        writer.write_record(name, content)
    writer.finish()
    assert sink.data == build(records, alignment=alignment, crc32=crc32)


def test_small_records_under_a_root_like_a_descriptor() -> None:
    """An archive name that begins like a descriptor is counted in every record."""
    records = [("a", b"1"), ("b", b""), ("c", b"PK\x07\x08....")]
    sinks = BytesSink(), BytesSink()
    writers = [ZipWriter(sink, "PK\x07\x08root") for sink in sinks]
    for name, content in records:
        writers[0].write_record(name, content)
    writers[1].write_small_records([n.encode() for n, _ in records], [data for _, data in records])
    for writer in writers:
        writer.finish()
    assert sinks[0].data == sinks[1].data


@pytest.mark.long
def test_many_small_records() -> None:
    """More records than the pending bytes hold, and more than 65,535 in all."""
    count = 70_000
    sink = BytesSink()
    writer = ZipWriter(sink, "archive")
    numbers = [b"%d" % i for i in range(count)]
    for first, stop in itertools.pairwise([0, 10, 100, 1000, 10_000, count]):
        some = numbers[first:stop]
        writer.write_small_records([b"data/" + number for number in some], some)
    writer.finish()
    reader = ZipReader(BytesSource(sink.data), Limits())
    assert len(list(reader)) == count + 2
    assert reader.read("data/69999") == b"69999"
    assert struct.unpack_from("<HH", sink.data, len(sink.data) - 22 + 8) == (0xFFFF, 0xFFFF)
    with zipfile.ZipFile(io.BytesIO(sink.data)) as archive:
        assert len(archive.namelist()) == count + 2
        assert archive.read("archive/data/12345") == b"12345"


def test_same_input_same_bytes() -> None:
    assert build(_RECORDS) == build(_RECORDS)


def test_given_crc_is_taken() -> None:
    sink = BytesSink()
    writer = ZipWriter(sink, "archive")
    writer.write_record("data/0", b"abc", crc=0x12345678)
    writer.finish()
    assert ZipReader(BytesSource(sink.data), Limits()).entry("data/0").crc == 0x12345678


def test_memory_may_change_after_write() -> None:
    """A block is copied or written before `write` returns."""
    for size in (10, 70_000):
        sink = BytesSink()
        writer = ZipWriter(sink, "archive")
        buffer = bytearray(b"a" * size)
        writer.begin_record("data/0", 2 * size)
        writer.write(memoryview(buffer))
        buffer[:] = b"b" * size
        writer.write(memoryview(buffer))
        writer.end_record()
        writer.finish()
        reader = ZipReader(BytesSource(sink.data), Limits())
        assert reader.read("data/0") == b"a" * size + b"b" * size


def test_position_is_where_the_record_starts() -> None:
    sink = BytesSink()
    writer = ZipWriter(sink, "archive")
    start = writer.begin_record("data/0", 3)
    assert start == writer.position
    writer.write(b"abc")
    writer.end_record()
    writer.flush()
    assert sink.data[start : start + 3] == b"abc"
    assert sink.position == writer.position


# -- misuse --------------------------------------------------------------------------------------


def _writer() -> ZipWriter:
    return ZipWriter(BytesSink(), "archive")


def _begun(nbytes: int) -> ZipWriter:
    writer = _writer()
    writer.begin_record("data/0", nbytes)
    return writer


@pytest.mark.parametrize(
    ("act", "error", "message"),
    [
        (lambda: _begun(2).end_record(), RuntimeError, "lacks 2 bytes"),
        (lambda: _begun(2).write(b"abc"), RuntimeError, "more bytes"),
        (lambda: _begun(2).begin_record("x", 1), RuntimeError, "not finished"),
        (lambda: _writer().write(b"x"), RuntimeError, "more bytes"),
        (lambda: _writer().end_record(), RuntimeError, "no record is open"),
        (lambda: ZipWriter(BytesSink(), ""), ValueError, "empty"),
        (lambda: ZipWriter(BytesSink(), "a", alignment=0), ValueError, "alignment"),
        (lambda: ZipWriter(BytesSink(), "a", alignment=-1), ValueError, "alignment"),
        (lambda: ZipWriter(BytesSink(), "a", alignment=1 << 16), ValueError, "alignment"),
        (lambda: ZipWriter(BytesSink(), "a", alignment=True), TypeError, "alignment"),
        (lambda: ZipWriter(BytesSink(), "a", alignment=64.0), TypeError, "alignment"),  # type: ignore[arg-type]
    ],
)
def test_misuse(act: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        act()


def test_a_name_is_written_once() -> None:
    writer = _writer()
    writer.write_record("a", b"1")
    with pytest.raises(ValueError, match="written twice"):
        writer.write_record("a", b"2")
    with pytest.raises(ValueError, match="written twice"):
        writer.write_small_records([b"a"], [b"2"])


# -- zip64 ---------------------------------------------------------------------------------------

_BIG = 0xFFFFFFFF
_BLOCK = memoryview(bytearray(1 << 26))


def _write_zeros(writer: ZipWriter, name: str, nbytes: int) -> int:
    start = writer.begin_record(name, nbytes, crc=7)
    left = nbytes
    while left:
        step = min(left, _BLOCK.nbytes)
        writer.write(_BLOCK[:step])
        left -= step
    writer.end_record()
    return start


@pytest.mark.parametrize("nbytes", [_BIG - 1, _BIG, _BIG + 1])
def test_record_around_4_gib(nbytes: int) -> None:
    """A record has zip64 fields from 0xffffffff bytes on, and the records behind it too."""
    file = SparseFile()
    writer = ZipWriter(file, "archive")
    start = _write_zeros(writer, "data/0", nbytes)
    writer.write_record("data/1", b"after")
    writer.finish()
    large = nbytes >= _BIG
    extra = struct.unpack("<H", file.read_at(28, 2))[0]
    local = file.read_at(30 + 14, 4)
    assert local == (struct.pack("<HH", 1, 16) if large else b"FB" + struct.pack("<H", extra - 4))
    if large:
        assert file.read_at(30 + 14 + 4, 16) == struct.pack("<QQ", nbytes, 0)
    descriptor = file.read_at(start + nbytes, 24 if large else 16)
    layout = "<4sLQQ" if large else "<4sLLL"
    assert descriptor == struct.pack(layout, b"PK\x07\x08", 7, nbytes, nbytes)
    assert file.read_at(start + nbytes + len(descriptor), 4) == b"PK\3\4"
    reader = ZipReader(file, Limits())
    assert reader.stored_span("data/0") == (start, nbytes)
    assert reader.entry("data/0").crc == 7
    assert reader.read("data/1") == b"after"
    with zipfile.ZipFile(file) as archive:
        assert archive.getinfo("archive/data/0").file_size == nbytes
        assert archive.read("archive/data/1") == b"after"
    assert measure("archive", [(6, nbytes), (6, 5)]) == (
        [start, reader.stored_span("data/1")[0]],  # type: ignore[index]
        file.size,
    )


@pytest.mark.parametrize("offset", [_BIG - 1, _BIG, _BIG + 1])
def test_header_around_4_gib(offset: int) -> None:
    """A record whose header stands at 0xffffffff or later has a zip64 field with its offset."""
    file = SparseFile()
    writer = ZipWriter(file, "archive", alignment=1)
    # header 30 + name 14 + field 4 + data + descriptor 16 (24 if large)
    nbytes = offset - 64
    _write_zeros(writer, "data/0", nbytes)
    assert writer.position == offset
    writer.write_record("data/1", b"after")
    writer.write_record("empty", b"")
    writer.finish()
    header = file.read_at(offset, 100)
    large = offset >= _BIG
    if large:
        assert header[44:56] == struct.pack("<HHQ", 1, 8, offset)
        assert header[18:26] == bytes(8)
    reader = ZipReader(file, Limits())
    assert reader.entry("data/1").header_offset == offset
    assert reader.read("data/1") == b"after"
    assert reader.read("empty") == b""
    with zipfile.ZipFile(file) as archive:
        assert archive.read("archive/data/1") == b"after"
    assert measure("archive", [(6, nbytes), (6, 5), (5, 0)], 1)[1] == file.size


@costly
@given(
    st.lists(st.binary(max_size=300), max_size=6),
    st.sets(st.integers(0, 5)),
    st.sampled_from([1, 8, 64, 4096]),
    st.booleans(),
    st.sampled_from(["a", "größe", "PK\x07\x08q"]),
)
def test_around_gaps(
    tmp_path_factory: pytest.TempPathFactory, contents: list[bytes], gaps: set[int],
    alignment: int, with_crc: bool, root: str,
) -> None:  # fmt: skip
    """Where records will stand is known before, and what stands there already is left alone."""
    names = [f"data/{index}" for index in range(len(contents))]
    sink = BytesSink()
    plain = ZipWriter(sink, root, alignment=alignment, crc32=with_crc)
    places = []
    for name, data in zip(names, contents, strict=True):
        places.append(plain.begin_record(name, len(data)))
        if data:
            plain.write(data)
        plain.end_record()
    plain.finish()
    records = [(len(name), len(data)) for name, data in zip(names, contents, strict=True)]
    starts, nbytes = measure(root, records, alignment)
    assert (starts, nbytes) == (places, len(sink.data))

    path = tmp_path_factory.mktemp("gaps") / "m.pt"
    file = NewFile(path)
    file.resize(nbytes)
    writer = ZipWriter(GapSink(file), root, alignment=alignment, crc32=with_crc)
    for index, (name, data) in enumerate(zip(names, contents, strict=True)):
        if index in gaps:
            file.write_at(starts[index], data)
            writer.begin_record(name, len(data))
            writer.skip(len(data), zlib.crc32(data), data[:8])
            writer.end_record()
        else:
            writer.write_record(name, data)
    writer.finish()
    file.commit()
    assert path.read_bytes() == sink.data


# -- the archive name ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "root"),
    [
        ("m.pt", "m"),
        ("model.v1.tar.gz", "model.v1.tar"),
        ("x", "x"),
        ("x.", "x"),
        (".hid.pt", ".hid"),
        (".pt", ""),
        ("a b.pt", "a b"),
        ("some/dir.d/m.pt", "m"),
        ("some/dir.d/m", "m"),
        ("back\\slash.pt", "slash"),
        ("é.pt", "archive"),
        ("é/m.pt", "archive"),
    ],
)
def test_archive_name(path: str, root: str) -> None:
    """The last component without its last suffix, or ``archive`` outside ASCII."""
    assert archive_name(path) == root
    assert archive_name(io.BytesIO()) == "archive"


def test_large_buffers(monkeypatch: pytest.MonkeyPatch) -> None:
    """A buffer whose CRC is worked out while it is written gives the same archive."""
    records = [("data.pkl", b"pickle"), ("data/0", bytes(range(256)) * 900)]
    expected = build(records)
    monkeypatch.setattr(zip_writer, "_MEANWHILE_NBYTES", 1000)
    assert build(records) == expected
