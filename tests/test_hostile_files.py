"""Small files cut and changed at every place, and paths and objects that are no plain files."""

from __future__ import annotations

import io
import json
import os
import socket
import struct
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import torchzip as tz
from fuzz.doors import room
from fuzz.seeds import Case
from tests import builders as b
from tests.formats.counting import Counted
from tests.formats.tar_builder import four_numbers
from tests.hostile.attack import Attack
from tests.hostile.every import BY_KIND
from tests.hostile.parts import good_members, legacy
from tests.saved import flipped
from tests.test_cost import peak_below
from torchzip.errors import FormatError, TorchZipError

_VALUE = [1, 2, 3, 4]
_ZIP = b.checkpoint(b.stream(b.tensor()))
_ZIP64 = b.build_zip(good_members(), b.End(zip64=True))
_LEGACY = legacy()
_SAFETENSORS = b.safetensors(
    json.dumps({"x": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}).encode(), b.DATA
)
_TAR = four_numbers().build()


def _load(data: bytes) -> Any:
    """Return the numbers of the one tensor in a file, or whatever else is in it."""
    made = tz.load(io.BytesIO(data))
    if isinstance(made, tz.types.ForeignObject):  # a module of TorchScript
        made = made.state
    if isinstance(made, dict) and made:
        made = next(iter(made.values()))
    return made.tolist() if isinstance(made, np.ndarray) else made


def _try(data: bytes) -> Any:
    """Return the same, or the error; what is no error of torchzip comes through."""
    try:
        return _load(data)
    except (TorchZipError, OSError) as error:
        return error


def _is_error(outcome: Any) -> bool:
    return isinstance(outcome, Exception)


def _check(data: bytes, is_same: bool, *where: object) -> None:
    """Fail unless the file is what it was, or an error."""
    outcome = _try(data)
    assert outcome == _VALUE if is_same else _is_error(outcome), where


_LEGAL = [
    attack
    for kind in "archive header end deflated safetensors tar program body".split()
    for attack in BY_KIND[kind]
    if attack.error is None
]


@pytest.mark.parametrize("attack", _LEGAL, ids=[each.name for each in _LEGAL])
def test_legal_files_have_their_value(attack: Attack) -> None:
    """Where a row is legal, what it tries changes nothing."""
    assert _load(attack.data) == _VALUE


# -- cut ------------------------------------------------------------------------------------------

#: Files, and from how many bytes on they are whole: what is behind is a comment, or nobody's.
_CUT: dict[str, tuple[bytes, int]] = {
    "zip": (_ZIP, len(_ZIP)),
    "zip64": (_ZIP64, len(_ZIP64)),
    "zip with a comment": (b.build_zip(good_members(), b.End(comment=b"x" * 20)), len(_ZIP)),
    "deflated": (b.build_zip([replace(each, method=8) for each in good_members()]), 1 << 30),
    "legacy": (_LEGACY, len(_LEGACY)),
    "legacy with bytes behind it": (_LEGACY + b"x" * 20, len(_LEGACY)),
    "safetensors": (_SAFETENSORS, len(_SAFETENSORS)),
    # The last member is whole where its bytes are: neither padding nor the end are needed.
    "tar": (_TAR, _TAR.rindex(b.DATA) + len(b.DATA) + len(b.stream(b.list_of()))),
}


@pytest.mark.few
@pytest.mark.parametrize("name", _CUT)
def test_cut_at_every_byte(name: str) -> None:
    """A file that is cut is an error, or whole: never another value."""
    data, whole = _CUT[name]
    assert _load(data) == _VALUE
    for nbytes in range(len(data)):
        _check(data[:nbytes], nbytes >= whole, nbytes)


def test_cut_at_the_front() -> None:
    """The same where the first bytes are missing. A tar may lack its first member."""
    first = 1024
    for data in (_ZIP, _ZIP64, _LEGACY, _SAFETENSORS, _TAR):
        for nbytes in range(1, len(data)):
            _check(data[nbytes:], data is _TAR and nbytes == first, nbytes)


# -- changed --------------------------------------------------------------------------------------

# Name, offset and bytes of each field (docs/format.md, sections 2.2 to 2.7).
_LOCAL = [
    ("signature", 0, 4), ("needed", 4, 2), ("flags", 6, 2), ("method", 8, 2), ("time", 10, 2),
    ("date", 12, 2), ("crc", 14, 4), ("compressed", 18, 4), ("size", 22, 4), ("name", 26, 2),
    ("extra", 28, 2),
]  # fmt: skip
_CENTRAL = [
    ("signature", 0, 4), ("made by", 4, 2), ("needed", 6, 2), ("flags", 8, 2), ("method", 10, 2),
    ("time", 12, 2), ("date", 14, 2), ("crc", 16, 4), ("compressed", 20, 4), ("size", 24, 4),
    ("name", 28, 2), ("extra", 30, 2), ("comment", 32, 2), ("disk", 34, 2), ("internal", 36, 2),
    ("external", 38, 4), ("offset", 42, 4),
]  # fmt: skip
_END = [
    ("signature", 0, 4), ("disk", 4, 2), ("first disk", 6, 2), ("on disk", 8, 2), ("count", 10, 2),
    ("size", 12, 4), ("offset", 16, 4), ("comment", 20, 2),
]  # fmt: skip
_END_64 = [
    ("signature", 0, 4), ("length", 4, 8), ("made by", 12, 2), ("needed", 14, 2), ("disk", 16, 4),
    ("first disk", 20, 4), ("on disk", 24, 8), ("count", 32, 8), ("size", 40, 8),
    ("offset", 48, 8),
]  # fmt: skip
_LOCATOR = [("signature", 0, 4), ("disk", 4, 4), ("offset", 8, 8), ("disks", 16, 4)]

#: Fields that mean nothing to a reader.
_FREE = frozenset({"needed", "made by", "time", "date", "internal"})
#: Encrypted, a patch, strongly encrypted, masked.
_UNREADABLE = 0x2061


def _fields(data: bytes) -> Iterator[tuple[str, str, int, int]]:
    """Yield kind, name, place and size of each field of an archive."""
    at = 0
    while data[at : at + 4] == b"PK\3\4":
        yield from (("local", name, at + begin, size) for name, begin, size in _LOCAL)
        nbytes, name_nbytes, extra_nbytes = struct.unpack_from("<LxxxxHH", data, at + 18)
        at += 30 + name_nbytes + extra_nbytes + nbytes
    while data[at : at + 4] == b"PK\1\2":
        yield from (("central", name, at + begin, size) for name, begin, size in _CENTRAL)
        at += 46 + sum(struct.unpack_from("<HHH", data, at + 28))
    if data[at : at + 4] == b"PK\6\6":
        yield from (("end 64", name, at + begin, size) for name, begin, size in _END_64)
        yield from (("locator", name, at + 56 + begin, size) for name, begin, size in _LOCATOR)
        at += 56 + 20
    yield from (("end", name, at + begin, size) for name, begin, size in _END)
    assert at + 22 == len(data)


def _is_same(kind: str, name: str, value: int, size: int, *, zip64: bool) -> bool:
    """Return whether an archive with that value in a field is the same to a reader."""
    if name in _FREE or (kind == "end" and name == "comment"):
        return True
    if name == "flags":
        return not value & _UNREADABLE
    if name == "external":
        return not value & 0x10  # a folder
    if kind == "end" and name != "signature" and zip64:
        return value == (1 << 8 * size) - 1  # the zip64 end record has it
    return False


_ARCHIVES = pytest.mark.parametrize("data", [_ZIP, _ZIP64], ids=["zip", "zip64"])


@pytest.mark.few
@_ARCHIVES
def test_every_field_of_an_archive(data: bytes) -> None:
    """Each field set to 0, 1, its most, one more, one less, and with each bit changed.

    The record of the byte order is read here, so all four local headers count.
    """
    count = 0
    for kind, name, at, size in _fields(data):
        truth = int.from_bytes(data[at : at + size], "little")
        most = (1 << 8 * size) - 1
        values = {0, 1, most, (truth + 1) & most, (truth - 1) & most, most >> 1, (most >> 1) + 1}
        values |= {truth ^ (1 << bit) for bit in range(8 * size)}
        for value in values - {truth}:
            changed = data[:at] + value.to_bytes(size, "little") + data[at + size :]
            is_same = _is_same(kind, name, value, size, zip64=data is _ZIP64)
            _check(changed, is_same, kind, name, at, value)
            count += 1
    assert count > 3000


@pytest.mark.few
@_ARCHIVES
def test_every_bit_of_an_archive(data: bytes) -> None:
    """A bit that is changed is an error, or means nothing.

    Outside the fields there are names and the bytes of records; none of their bits is free.
    """
    spans = {
        place: (kind, name, at, size)
        for kind, name, at, size in _fields(data)
        for place in range(at, at + size)
    }
    for place in range(len(data)):
        for bit in range(8):
            changed = flipped(data, place, 1 << bit)
            is_same = False
            if place in spans:
                kind, name, at, size = spans[place]
                value = int.from_bytes(changed[at : at + size], "little")
                is_same = _is_same(kind, name, value, size, zip64=data is _ZIP64)
            _check(changed, is_same, place, bit)


@pytest.mark.parametrize("data", [_LEGACY, _SAFETENSORS], ids=["legacy", "safetensors"])
def test_every_bit_of_a_file_without_checksums(data: bytes) -> None:
    """Bits of the data change its numbers and nothing else; others are an error, or a value."""
    start = data.rindex(b.DATA)
    for place in range(len(data)):
        for bit in range(8):
            changed = flipped(data, place, 1 << bit)
            outcome = _try(changed)
            if start <= place < start + 16:
                wanted = struct.unpack_from("<4f", changed, start)
                np.testing.assert_array_equal(outcome, wanted)


def test_every_bit_of_the_headers_of_a_tar() -> None:
    """A header of a tar has a sum of its bytes: a change is an error, or in the sum's own end."""
    at = 0
    while any(header := _TAR[at : at + 512]):
        for place in range(512):
            for bit in range(8):
                outcome = _try(flipped(_TAR, at + place, 1 << bit))
                # The sum is six digits, a zero byte and a blank, which stands behind the end.
                if place == 155:
                    assert outcome == _VALUE, (at, place, bit)
                else:
                    assert _is_error(outcome) or (148 <= place < 155 and outcome == _VALUE)
        at += 512 + -(-int(header[124:135], 8) // 512) * 512


def test_every_byte_of_the_data_of_a_tar() -> None:
    """There is no checksum there: a value, or an error of torchzip."""
    for place in (i for i in range(512, len(_TAR)) if _TAR[i]):
        for bits in (1, 0x80, 0xFF):
            _try(flipped(_TAR, place, bits))


def test_a_sample_through_every_door() -> None:
    """Some of the files that are cut or changed, in all the ways that users read them."""
    rng = np.random.default_rng(5)
    with room() as send:
        for data in (_ZIP, _ZIP64, _LEGACY, _SAFETENSORS, _TAR):
            for place in rng.choice(np.flatnonzero(np.frombuffer(data, np.uint8)), 12).tolist():
                send(Case.of(data[:place]))
                send(Case.of(flipped(data, place, 1 << int(rng.integers(8)))))


# -- paths that are no files ----------------------------------------------------------------------


def _link_to_fifo(path: Path) -> None:
    os.mkfifo(path.with_name("f"))
    path.symlink_to("f")


def _link_to_folder(path: Path) -> None:
    (path.parent / "folder").mkdir()
    path.symlink_to("folder")


def _two_links(path: Path) -> None:
    path.symlink_to("other")
    path.with_name("other").symlink_to(path.name)


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        here = Path.cwd()
        os.chdir(path.parent)  # a socket's path is short
        try:
            server.bind(path.name)
        finally:
            os.chdir(here)


ODD: dict[str, Callable[[Path], Any]] = {
    "a FIFO": os.mkfifo,
    "a socket": _socket,
    "a link to a FIFO": _link_to_fifo,
    "a link to a directory": _link_to_folder,
    "a link to itself": lambda path: path.symlink_to(path.name),
    "two links to one another": _two_links,
    "a link to nothing": lambda path: path.symlink_to("nothing"),
    "a link to zeros without end": lambda path: path.symlink_to("/dev/zero"),
    "a link to nothing at all": lambda path: path.symlink_to("/dev/null"),
    "a link to random bytes": lambda path: path.symlink_to("/dev/urandom"),
    "a link to the terminal": lambda path: path.symlink_to("/dev/tty"),
    "a directory": lambda path: path.mkdir(),
    "nothing": lambda path: None,
}  # fmt: skip


@pytest.mark.usefixtures("soon")
@pytest.mark.parametrize("name", ODD)
@pytest.mark.parametrize("file", ["m.pt", "m.safetensors", "m.bin.index.json", ".metadata"])
def test_no_regular_file(tmp_path: Path, name: str, file: str) -> None:
    """Whatever is no regular file raises at once, under any name and by any door."""
    path = tmp_path / file
    ODD[name](path)
    for read in (tz.load, tz.lazy_load, lambda it: tz.load(it, mmap=True)):
        with pytest.raises((OSError, TorchZipError)):
            read(path)
    for out in ("out.pt", "out.safetensors"):
        with pytest.raises((OSError, TorchZipError)):
            tz.convert(path, tmp_path / out)
        assert not (tmp_path / out).exists()


def _index(folder: Path) -> Path:
    path = folder / "m.bin.index.json"
    path.write_text('{"weight_map": {"a": "x.bin"}}')
    return path


@pytest.mark.usefixtures("soon")
@pytest.mark.parametrize("name", [name for name in ODD if name != "nothing"])
def test_no_regular_file_behind_an_index(tmp_path: Path, name: str) -> None:
    """The same for the shards of an index, and for the items of a distributed checkpoint."""
    ODD[name](tmp_path / "x.bin")
    for path in (_index(tmp_path), tmp_path):
        with pytest.raises((OSError, TorchZipError)):
            tz.load(path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads any file")
def test_a_file_that_may_not_be_read(tmp_path: Path) -> None:
    path = tmp_path / "m.pt"
    path.write_bytes(_ZIP)
    path.chmod(0)
    with pytest.raises(PermissionError):
        tz.load(path)


@pytest.mark.parametrize("path", ["a\0b", "x" * 300, "x/" * 3000, "\ud800", ""])
def test_paths_that_are_none(path: str) -> None:
    """A path that the system cannot have is its own error, or the caller's."""
    for read in (tz.load, tz.lazy_load):
        with pytest.raises((OSError, ValueError)):
            read(path)


# -- files of 64 GiB ------------------------------------------------------------------------------

_GIANT = 64 << 30


def _sparse(path: Path, parts: dict[int, bytes], size: int = _GIANT) -> Path:
    """Write a file that is zeros but for these parts."""
    with path.open("wb") as file:
        try:
            file.truncate(size)
        except OSError:
            pytest.skip("no files of that size here")
        for offset, data in parts.items():
            file.seek(offset)
            file.write(data)
    return path


def _archive_at(offset: int) -> tuple[bytes, bytes]:
    """Return the records of a good archive that begins at an offset, and its directory and ends."""
    members = b.members_of(b.stream(b.tensor()))
    body, directory = b"", b""
    for each in members:
        place = struct.pack("<HHQ", 1, 8, offset + len(body))
        one = b.build_zip([b.Member(name=each.name, data=each.data, extra=place, offset=(1 << 32))])
        body += one[: one.index(b"PK\1\2")]
        directory += one[one.index(b"PK\1\2") : -22]
    start = offset + len(body)
    end_64 = struct.pack("<4sQHHLLQQQQ", b"PK\6\6", 44, 45, 45, 0, 0, 4, 4, len(directory), start)
    locator = struct.pack("<4sLQL", b"PK\6\7", 0, start + len(directory), 1)
    end = struct.pack("<4sHHHHLLH", b"PK\5\6", 0, 0, 4, 4, len(directory), 0xFFFFFFFF, 0)
    return body, directory + end_64 + locator + end


_SPARSE: dict[str, Callable[[Path], Path]] = {
    "zeros": lambda path: _sparse(path, {}),
    "an archive and zeros": lambda path: _sparse(path, {0: _ZIP}),
    "zeros and an archive": lambda path: _sparse(path, {_GIANT - len(_ZIP): _ZIP}),
    "a local header, zeros and an archive": lambda path: _sparse(
        path, {0: b"PK\3\4", _GIANT - len(_ZIP): _ZIP}
    ),
    "a length of 64 GiB": lambda path: _sparse(path, {0: struct.pack("<Q", _GIANT - 8) + b"{"}),
    "a length of 2**26": lambda path: _sparse(path, {0: struct.pack("<Q", 1 << 26) + b"{"}),
    "a header of safetensors": lambda path: _sparse(path, {0: _SAFETENSORS}),
    "a tar header": lambda path: _sparse(path, {0: _TAR[:512]}),
    "the magic of legacy": lambda path: _sparse(path, {0: _LEGACY[:14]}),
}


@pytest.mark.usefixtures("soon")
@pytest.mark.parametrize("name", _SPARSE)
def test_giant_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """A file of 64 GiB costs what is looked at, not what it has."""
    path = _SPARSE[name](tmp_path / "m.pt")
    counted = Counted(monkeypatch)
    with peak_below(1 << 28):
        for read in (tz.load, tz.lazy_load, lambda it: tz.load(it, mmap=True)):
            counted.forget()
            with pytest.raises(TorchZipError):
                read(path)
            assert counted.nbytes <= 1 << 27


@pytest.mark.usefixtures("soon")
def test_giant_files_that_are_right(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A legacy stream before 64 GiB of zeros, a tar, and an archive that begins behind them."""
    counted = Counted(monkeypatch)
    path = _sparse(tmp_path / "legacy.pt", {0: _LEGACY})
    assert tz.load(path).tolist() == _VALUE
    path = _sparse(tmp_path / "tar.pt", {0: _TAR})
    assert tz.load(path).tolist() == _VALUE
    offset = _GIANT - 4096
    body, tail = _archive_at(offset)
    path = _sparse(
        tmp_path / "zip.pt", {0: b"PK\3\4", offset: body + tail}, offset + len(body + tail)
    )
    assert tz.load(path).tolist() == _VALUE
    assert tz.load(path, mmap=True).tolist() == _VALUE
    assert counted.nbytes < 8 << 20


@pytest.mark.usefixtures("soon")
@pytest.mark.parametrize("name", ["m.bin.index.json", ".metadata", "__0.metadata"])
def test_giant_descriptions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    path = _sparse(tmp_path / name, {0: b'{"weight_map": {'})
    counted = Counted(monkeypatch)
    for each in (path, tmp_path):
        with pytest.raises(tz.LimitError):
            tz.load(each)
    assert counted.nbytes < 1 << 20


@pytest.mark.usefixtures("soon")
def test_giant_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A shard of 64 GiB of zeros is looked at, and not read."""
    _sparse(tmp_path / "x.bin", {})
    counted = Counted(monkeypatch)
    with pytest.raises(FormatError):
        tz.load(_index(tmp_path))
    assert counted.nbytes < 1 << 20


# -- file objects that lie ------------------------------------------------------------------------


class _Liar(io.BytesIO):
    """A file object of a good checkpoint; tests give it another `read`, `readinto` or `seek`."""

    def __init__(self) -> None:
        super().__init__(_ZIP)


def _gives(value: Any) -> Callable[..., Any]:
    return lambda *arguments: value


def _raises(error: Exception) -> Callable[..., Any]:
    def call(*arguments: Any) -> Any:
        raise error

    return call


_LIES: dict[str, tuple[str, Callable[..., Any], type[Exception] | tuple[type[Exception], ...]]] = {
    "read gives nothing": ("read", _gives(b""), FormatError),
    "read gives None": ("read", _gives(None), OSError),
    "read gives text": ("read", _gives("x" * 10), TypeError),
    "read gives numbers": ("read", _gives(5), TypeError),
    "read gives a list": ("read", _gives([1, 2]), TypeError),
    "read gives a megabyte": ("read", _gives(bytes(1 << 20)), OSError),
    "read gives zeros": ("read", lambda n: bytes(n), FormatError),
    "read gives one byte more": ("read", lambda n: bytes(n + 1), OSError),
    "read fails": ("read", _raises(OSError(5, "EIO")), OSError),
    "read is closed": ("read", _raises(ValueError("I/O operation on closed file")), ValueError),
    "readinto gives nothing": ("readinto", _gives(0), FormatError),
    "readinto gives None": ("readinto", _gives(None), OSError),
    "readinto gives -1": ("readinto", _gives(-1), OSError),
    "readinto gives more": ("readinto", _gives(1 << 40), OSError),
    "readinto fails": ("readinto", _raises(OSError(5, "EIO")), OSError),
    "seek fails": ("seek", _raises(io.UnsupportedOperation("seek")), OSError),
    "seek gives None": ("seek", _gives(None), FormatError),  # as of mmap; tell says 0
    "seek gives text": ("seek", _gives("0"), TypeError),
    "seek gives a float": ("seek", _gives(0.0), TypeError),
    "seek gives -1": ("seek", _gives(-1), (TorchZipError, OSError)),
    "seek gives 0": ("seek", _gives(0), FormatError),
    "seek gives 2**62": ("seek", _gives(1 << 62), FormatError),
}


@pytest.mark.usefixtures("soon")
@pytest.mark.parametrize("name", _LIES)
def test_file_objects_that_lie(name: str) -> None:
    """An object that breaks its promise: an error that says so, and never a value."""
    method, lie, error = _LIES[name]
    file = _Liar()
    setattr(file, method, lie)
    with pytest.raises(error):
        tz.load(file)


def test_a_file_object_that_gives_a_size_too_large() -> None:
    """An object that says it has more than it gives is an error, and so is one that says less."""
    for more in (-30, -1, 1, 1000, 1 << 40):
        file = _Liar()
        seek = file.seek

        def lie(offset: int, whence: int = 0, seek: Any = seek, more: int = more) -> int:
            return int(seek(offset, whence)) + (more if whence == os.SEEK_END else 0)

        file.seek = lie  # type: ignore[method-assign]
        with pytest.raises(TorchZipError):
            tz.load(file)


def test_file_objects_that_give_other_kinds_of_bytes() -> None:
    """Whatever is bytes will do, however little comes at a time."""
    for kind in (bytearray, memoryview):
        for most in (1, 7, 1 << 20):
            file = _Liar()
            read = file.read

            def give(n: int = -1, read: Any = read, kind: Any = kind, most: int = most) -> Any:
                return kind(read(min(n, most)))

            file.read = give  # type: ignore[method-assign,assignment]
            assert tz.load(file).tolist() == _VALUE
