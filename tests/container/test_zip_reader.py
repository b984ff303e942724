"""One reading of an archive: the same names and bytes for every reader."""

from __future__ import annotations

import io
import posixpath
import shutil
import struct
import subprocess
import sys
import tempfile
import zipfile
import zlib
from dataclasses import replace
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.builders import End, Member, build_zip
from tests.container.memory import BytesSink, BytesSource
from tests.files.test_sink import Partial
from tests.sampling import thorough
from tests.test_cost import peak_below
from torchzip.container.record_index import index_fast, index_plainly
from torchzip.container.zip_reader import ZipReader, _chain_fast, _chain_plainly
from torchzip.container.zip_writer import ZipWriter
from torchzip.errors import ArchiveError, TorchZipError
from torchzip.limits import Limits

A = Member(name=b"archive/data.pkl", data=b"pickle")
B = Member(name=b"archive/data/0", data=bytes(range(200)))
C = Member(name=b"archive/version", data=b"3\n")


def open_bytes(data: bytes, limits: Limits | None = None) -> ZipReader:
    return ZipReader(BytesSource(data), limits or Limits())


def read_all(data: bytes, limits: Limits | None = None) -> dict[str, bytes]:
    reader = open_bytes(data, limits)
    return {name: reader.read(name) for name in reader}


def by_zipfile(records: dict[str, bytes], method: int, zip64: bool = False) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as archive:
        for name, data in records.items():
            with archive.open(f"root/{name}", "w", force_zip64=zip64) as entry:
                entry.write(data)
    return file.getvalue()


_RECORDS = {"data.pkl": b"abc", "empty": b"", "data/0": bytes(5000), "é": b"x", "a b/c": b"y" * 70}


# -- what is read --------------------------------------------------------------------------------


def test_records_in_no_folder() -> None:
    """Where the archive need not have one, names are whole; all other checks stay."""

    def flat(*members: Member) -> ZipReader:
        return ZipReader(BytesSource(build_zip(members)), Limits(), in_folder=False)

    reader = flat(replace(A, name=b"data.json"), replace(B, name=b"extra/0", method=8))
    assert (reader.root, list(reader)) == ("", ["data.json", "extra/0"])
    assert (reader.read("data.json"), reader.read("extra/0")) == (A.data, B.data)
    with pytest.raises(ArchiveError, match="two records are called"):
        flat(replace(A, name=b"a"), replace(B, name=b"A"))
    with pytest.raises(ArchiveError, match="local header names"):
        flat(replace(A, name=b"a", local_name=b"b")).read("a")
    assert list(flat(replace(A, name=b""))) == [""]


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize("zip64", [False, True])
def test_archives_of_zipfile(method: int, zip64: bool) -> None:
    data = by_zipfile(_RECORDS, method, zip64)
    reader = open_bytes(data)
    assert reader.root == "root"
    # names are kept as bytes, one character each
    names = [name.encode().decode("latin-1") for name in _RECORDS]
    assert list(reader) == names
    for name, content in zip(names, _RECORDS.values(), strict=True):
        assert reader.read(name) == content
        assert name in reader
        span = reader.stored_span(name)
        if method == zipfile.ZIP_STORED:
            assert span is not None
            assert data[span[0] : span[0] + span[1]] == content
            assert reader.locate(name)[1] == span[0]
        elif content:
            assert span is None
            with pytest.raises(ArchiveError, match="deflated"):
                reader.locate(name)
            assert b"".join(reader.inflate(name)) == content


def test_archive_of_an_unseekable_stream() -> None:
    """Descriptors behind the data, as a stream needs them, are no obstacle."""
    pipe = Partial(most=1 << 30)
    with zipfile.ZipFile(pipe, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("r/a", b"content" * 50)
    assert read_all(b"".join(pipe.parts)) == {"a": b"content" * 50}


def test_entry() -> None:
    data = build_zip([A, B])
    reader = open_bytes(data)
    entry = reader.entry("data/0")
    assert entry.nbytes == entry.compressed_nbytes == 200
    assert (entry.crc, entry.method) == (zlib.crc32(B.data), 0)
    assert data[entry.header_offset :].startswith(b"PK\3\4")
    assert reader.size_of("data/0") == (200, entry.crc, 0)
    for ask in (reader.entry, reader.size_of, reader.read, reader.data_offset, reader.stored_span):
        with pytest.raises(
            ArchiveError, match="record data/1: the archive has no record"
        ) as caught:
            ask("data/1")
        assert caught.value.record == "data/1"


@pytest.mark.long
def test_hundred_thousand_entries() -> None:
    count = 100_000
    sink = BytesSink()
    writer = ZipWriter(sink, "archive")
    numbers = [b"%d" % i for i in range(count)]
    writer.write_small_records([b"data/" + number for number in numbers], numbers)
    writer.finish()
    source = BytesSource(sink.data)
    reader = ZipReader(source, Limits())
    assert len(list(reader)) == count + 2
    source.reads.clear()
    assert reader.read("data/99999") == b"99999"
    assert sum(nbytes for _, nbytes in source.reads) < 200


def test_opening_reads_the_end_and_the_directory() -> None:
    members = [replace(B, name=b"archive/%d" % i, data=bytes(50_000)) for i in range(20)]
    data = build_zip(members)
    source = BytesSource(data)
    ZipReader(source, Limits())
    assert sum(nbytes for _, nbytes in source.reads) < 22 + 0xFFFF + 20 * 100 + 200
    assert min(offset for offset, _ in source.reads) > 900_000


@pytest.mark.parametrize("ignored", [b"", b"a comment", b"x" * 0xFFFF])
def test_archive_comment(ignored: bytes) -> None:
    records = read_all(build_zip([A, B], End(comment=ignored)))
    assert records == {"data.pkl": b"pickle", "data/0": B.data}


def test_extra_fields_and_comments_of_entries() -> None:
    """They are passed over, in the directory and before the data."""
    odd = replace(
        B, extra=b"ab\x02\x00xy", comment=b"PK\1\2 comment", local_extra=b"cd\x05\x00vwxyz"
    )
    assert read_all(build_zip([A, odd, C]))["data/0"] == B.data


def test_crc_of_zero_is_not_checked() -> None:
    """A stored CRC of 0 means that none was computed."""
    assert read_all(build_zip([A, replace(B, crc=0)]))["data/0"] == B.data


def test_root_can_be_anything() -> None:
    """The archive name is what stands before the first slash of the first record."""
    for root in (b"m", b"a b", b"\xff\xfe", "é".encode(), b".", b"...", b"\xed\xa0\x80"):
        reader = open_bytes(build_zip([replace(A, name=root + b"/data.pkl")]))
        assert reader.root.encode("utf-8", "surrogateescape") == root
        assert reader.read("data.pkl") == b"pickle"


def test_names_are_whole_byte_strings() -> None:
    """A name with a blank, a dot or a slash more is another name."""
    for other in (b"data.pkl ", b"data.pkl.", b".data.pkl", b"data.pkl/", b"data.pkl/...", b"~"):
        records = read_all(build_zip([A, replace(A, name=b"archive/" + other, data=b"other")]))
        assert records["data.pkl"] == b"pickle"
        assert records[other.decode("latin-1")] == b"other"


#: Each is read as archive/data/0, by a reader that cuts it or cleans it up.
_SPELLED = [
    b"archive/data/0\0", b"archive/data/0\0x", b"archive/data//0", b"archive/./data/0",
    b"archive/data/./0", b"archive/data/x/../0", b"archive\\data\\0", b"archive/data\\0",
    b"archive/data/0/.", b"archive//data/0", b"/archive/data/0", b"./archive/data/0",
    b"x/../archive/data/0", b"../archive/data/0",
]  # fmt: skip


@pytest.mark.parametrize("name", _SPELLED)
@pytest.mark.parametrize("place", [0, 1, 2])
@pytest.mark.parametrize("in_folder", [True, False])
def test_names_that_readers_change(name: bytes, place: int, in_folder: bool) -> None:
    """What a reader may take for another name is refused, wherever in the directory."""
    members = [A, C]
    members.insert(place, replace(B, name=name))
    with pytest.raises(ArchiveError, match=r"is called|does not lie in"):
        ZipReader(BytesSource(build_zip(members)), Limits(), in_folder=in_folder)


_COMPONENTS = st.sampled_from(
    ["archive", "data", "0", "..", ".", "...", "", "é", "a\\b", "x\0", " "]
)


@thorough
@given(
    st.lists(st.lists(_COMPONENTS, min_size=1, max_size=4).map("/".join), min_size=1, max_size=4)
)
def test_names_are_those_of_zipfile(names: list[str]) -> None:
    """What is read has the names that ``zipfile`` gives, and as paths they lead where they say."""
    data = build_zip([Member(name=name.encode(), flags=0x800) for name in names])
    try:
        reader = ZipReader(BytesSource(data), Limits(), in_folder=False)
    except ArchiveError:
        return
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        found = archive.namelist()
    assert [name.encode("latin-1").decode() for name in reader] == found == names
    cleaned = [PurePosixPath(posixpath.normpath(name or "x")) for name in names]
    assert [PurePosixPath(name or "x") for name in names] == cleaned
    assert "".join(names).isprintable()
    assert not any(PureWindowsPath(name).parts != PurePosixPath(name).parts for name in names)


def _unicode_path(name: bytes, path: bytes) -> bytes:
    """Return the field of Info-ZIP that replaces a name."""
    content = struct.pack("<BL", 1, zlib.crc32(name)) + path
    return struct.pack("<HH", 0x7075, len(content)) + content


def _names_of_others(data: bytes) -> list[list[str]]:
    """Return the names of an archive as readers have them that know the Unicode path field."""
    found = []
    if sys.version_info >= (3, 13):
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            found.append(archive.namelist())
    program = shutil.which("zipinfo")
    if program is not None:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "x.zip")
            path.write_bytes(data)
            listed = subprocess.run([program, "-1", path], capture_output=True, check=False)
        found.append(listed.stdout.decode().splitlines())
    return found


@pytest.mark.parametrize("is_local", [False, True])
@pytest.mark.parametrize(
    ("crc_of", "path", "is_refused"),
    [
        (B.name, b"archive/data/9", True),
        (B.name, A.name, True),
        (B.name, "archive/datä/0".encode(), True),
        (B.name, B.name, False),
        (B.name, b"", False),
        (b"archive/data/1", b"archive/data/9", False),
    ],
    ids=["another", "a twin", "not ASCII", "the same", "nothing", "stale"],
)
def test_unicode_path(crc_of: bytes, path: bytes, is_refused: bool, is_local: bool) -> None:
    """A field that gives a record another name is refused; one that does not count is passed over.

    Those that are not refused have the header's name for every other reader too.
    """
    field = _unicode_path(crc_of, path)
    odd = replace(B, local_extra=field) if is_local else replace(B, extra=field)
    data = build_zip([A, odd, C])
    expected = [member.name.decode() for member in (A, B, C)]
    if not is_local and path != b"":
        for names in _names_of_others(data):
            assert (names != expected) == is_refused
    if is_refused:
        with pytest.raises(ArchiveError, match="its Unicode path field calls it"):
            read_all(data)
    else:
        assert read_all(data)["data/0"] == B.data


def test_unicode_path_of_an_old_name() -> None:
    """Info-ZIP writes one beside a name in the code page of the IBM PC: both say the same."""
    name, path = "modèle/data.pkl".encode("cp437"), "modèle/data.pkl".encode()
    data = build_zip([replace(A, name=name, extra=_unicode_path(name, path))])
    assert read_all(data) == {"data.pkl": b"pickle"}


@given(
    st.booleans(), st.booleans(), st.sampled_from([None, (0, 0), (200, 0), (0, 200), (200, 200),
                                                   (4, 4), (200, 4), (4, 0), (1 << 40, 0)]),
    st.sampled_from([(0, 0), (200, 200), (4, 4), (0, 4), (200, 0), (0xFFFFFFFF, 0xFFFFFFFF)]),
    st.sampled_from([0, 1, None]),
)  # fmt: skip
def test_numbers_of_a_local_header(
    descriptor: bool, has_offset: bool, zip64: Any, sizes: tuple[int, int], crc: int | None
) -> None:
    """Wherever a local header has them, they are the directory's, or 0 before a descriptor."""
    extra = b""
    if zip64 is not None:
        numbers = [*zip64, *[0][:has_offset]]
        extra = struct.pack(f"<HH{len(numbers)}Q", 1, 8 * len(numbers), *numbers)
    member = replace(
        B, flags=8 * descriptor, local_nbytes=sizes[0], local_compressed=sizes[1], local_crc=crc,
        local_extra=extra,
    )  # fmt: skip
    given_sizes = [number for number in sizes if number != 0xFFFFFFFF or zip64 is None]
    right = {200, 0} if descriptor else {200}
    crcs = {None, 0} if descriptor else {None}
    is_right = right.issuperset([*given_sizes, *(zip64 or ())]) and crc in crcs
    data = build_zip([A, member, C])
    if is_right:
        assert read_all(data)["data/0"] == B.data
    else:
        with pytest.raises(ArchiveError, match="the local header says"):
            read_all(data)


def test_sizes_of_the_directory_count() -> None:
    """With a descriptor, the zeros in the local header mean nothing."""
    torch_like = replace(B, flags=8, local_nbytes=0, local_compressed=0, local_crc=0)
    assert read_all(build_zip([A, torch_like]))["data/0"] == B.data


def test_zip64_fields_of_small_records() -> None:
    """A zip64 field is used for the values that are capped, in its order."""
    data = build_zip(
        [
            replace(A, nbytes=0xFFFFFFFF, compressed=0xFFFFFFFF, offset=0xFFFFFFFF, local_nbytes=6,
             local_compressed=6, extra=struct.pack("<HHHHQQQ", 0x7777, 0, 1, 24, 6, 6, 0)),
            replace(C,
             compressed=0xFFFFFFFF, local_compressed=2, extra=struct.pack("<HHQ", 1, 8, 2)),
        ],
        End(zip64=True),
    )  # fmt: skip
    assert read_all(data) == {"data.pkl": b"pickle", "version": b"3\n"}


@pytest.mark.parametrize("delta", [-5000, -1, 0, 1, 2, 100, 257, 258, 1000, 4000, 9000])
@pytest.mark.parametrize("fill", [b"\0", b"ab", bytes(range(256))])
def test_deflated_sizes_around_a_block(delta: int, fill: bytes) -> None:
    """The last bytes of a record come out also where zlib has them pending."""
    for whole in (1 << 18, 1 << 20, 1 << 21):
        nbytes = whole + delta
        content = (fill * (nbytes // len(fill) + 1))[:nbytes]
        reader = open_bytes(build_zip([replace(B, data=content, method=8)]))
        assert b"".join(reader.inflate("data/0")) == content
        assert reader.read("data/0") == content


def test_deflated_blocks_are_bounded() -> None:
    content = np.arange(3 << 18, dtype=np.uint32).tobytes()
    source = BytesSource(build_zip([replace(B, data=content, method=8)]))
    reader = ZipReader(source, Limits())
    source.reads.clear()
    largest = max(len(block) for block in reader.inflate("data/0"))
    assert largest <= 1 << 20
    assert max(nbytes for _, nbytes in source.reads) <= 1 << 18


# -- the two ways to walk the directory ------------------------------------------------------------

_DIRECTORY_NAMES = st.lists(
    st.binary(min_size=1, max_size=12) | st.just(b"PK\1\2"), min_size=1, max_size=12
)


@given(_DIRECTORY_NAMES, st.lists(st.binary(max_size=6), min_size=12, max_size=12))
def test_fast_chain_is_the_plain_chain(names: list[bytes], extras: list[bytes]) -> None:
    """Both give the same places; where a signature stands in a name the fast one gives up."""
    directory = _directory(
        [Member(name=name, extra=extras[i], comment=extras[-i]) for i, name in enumerate(names)]
    )
    plain = _chain_plainly(directory, len(names), 0)
    fast = _chain_fast(directory, len(names))
    if directory.count(b"PK\1\2") == len(names):
        assert fast is not None
        assert fast.tolist() == plain.tolist()
    else:
        assert fast is None
    assert [directory[at : at + 4] for at in plain.tolist()] == [b"PK\1\2"] * len(names)


def _directory(members: list[Member]) -> bytes:
    data = build_zip(members)
    nbytes, offset = struct.unpack_from("<LL", data, len(data) - 10)
    return data[offset : offset + nbytes]


def test_signature_in_a_name() -> None:
    members = [A, replace(B, name=b"archive/PK\1\2"), replace(C, name=b"archive/xPK\1\2" * 3)]
    assert _chain_fast(_directory(members), 3) is None
    assert list(read_all(build_zip(members)).values()) == [m.data for m in members]


@given(st.binary(max_size=300), st.integers(1, 5))
def test_chains_of_any_bytes(data: bytes, count: int) -> None:
    """On any bytes the fast chain agrees with the plain one, or gives up."""
    data = data.replace(b"PK", b"PK\1\2") + b"PK\1\2" + bytes(42)
    try:
        plain = _chain_plainly(data, count, 0).tolist()
    except ArchiveError:
        plain = None
    fast = _chain_fast(data, count)
    assert fast is None or fast.tolist() == plain


def test_chains_of_no_bytes() -> None:
    assert _chain_fast(b"", 1) is None
    assert _chain_fast(b"PK\1\2", 1) is None


def test_declared_sizes_cost_nothing() -> None:
    rows = [
        build_zip([A], End(zip64=True, count=0xFFFF, zip64_count=1 << 62)),
        build_zip([replace(A, nbytes=1 << 31, compressed=1 << 31)]),
        build_zip([replace(A, nbytes=0xFFFFFFFF, extra=struct.pack("<HHQ", 1, 8, 1 << 62))]),
        build_zip([replace(A, method=8, nbytes=1 << 29)]),
        build_zip([replace(A, method=8, data=bytes(100), nbytes=100_000)]),
    ]
    with peak_below(1_000_000):
        for data in rows:
            with pytest.raises(TorchZipError):
                read_all(data)


def test_zip_reader_needs_no_private_state() -> None:
    """Two readers of one source do not meet."""
    source = BytesSource(build_zip([A, B, C]))
    readers = [ZipReader(source, Limits()) for _ in range(2)]
    assert readers[0].read("data/0") == readers[1].read("data/0")


_PARTS = st.sampled_from(
    ["data/0", "data/1", "data/00", "data/01", "data/7", "data/10", "DATA/7", "Data/x", "data/",
     "data", "data.pkl", "data/-1", "data/+1", "data/1_0", "data/" + "9" * 18, "data/" + "9" * 19,
     "data/" + "1" * 30, "d", "data/\u0663".encode().decode("latin-1"), "version", "data/\xb2"]
)  # fmt: skip


@given(st.lists(_PARTS, min_size=1, max_size=12), st.lists(_PARTS, min_size=1, max_size=3))
def test_names_by_number_are_names(names: list[str], asked: list[str]) -> None:
    """The index that knows numbers finds what the plain one does, and refuses the same."""
    data = b"".join(b"/" + name.encode("latin-1") for name in names)
    ends = np.cumsum([1 + len(name) for name in names], dtype=np.int64)
    begins = ends - np.array([len(name) for name in names], np.int64)
    try:
        plain = index_plainly(data, begins, ends)
    except ArchiveError:
        assert index_fast(data, begins, ends) is None
        return
    fast = index_fast(data, begins, ends)
    if fast is None:  # it leaves what is nearly a number to the plain one
        assert not {"data/0", "data/1", "data/7", "data.pkl", "version"}.issuperset(names)
        return
    assert fast.names() == plain.names() == names
    for name in {*names, *asked, "data/\u0663", "data/0000"}:
        assert fast.find(name) == plain.find(name)
        if name.startswith("data/"):
            found = fast.find_keys([name[5:]])
            assert found is None or found.tolist() == [plain.find(name)]
