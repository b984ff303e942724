"""Sources: exactly the bytes that were asked for, or an error."""

from __future__ import annotations

import array
import contextlib
import ctypes
import errno
import io
import mmap
import os
import pickle
import socket
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.faults import descriptors
from tests.systems import needs, open_files_can_go
from torchzip.errors import FormatError
from torchzip.files import platform_calls
from torchzip.files import source as source_module
from torchzip.files.opening import open_source
from torchzip.files.source import FileObjectSource, FileSource, MmapSource, Source

_DATA = bytes(range(256)) * 4


class Custom:
    """A reader with ``read`` and ``seek`` alone; ``read`` gives a buffer of some kind."""

    def __init__(self, data: bytes, wrap: Callable[[bytes], Any], most: int = 1 << 30) -> None:
        self._file = io.BytesIO(data)
        self._wrap = wrap
        self._most = most

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._file.seek(offset, whence)

    def read(self, size: int = -1) -> Any:
        return self._wrap(self._file.read(min(size, self._most)))


class Buffered(Custom, io.BufferedIOBase):  # type: ignore[misc]
    """The same, with the ``readinto`` of io's base class, which insists on bytes."""


class Reused(Custom):
    """Gives views of one buffer, which the next read overwrites."""

    def __init__(self, data: bytes, most: int) -> None:
        self._buffer = bytearray(1 << 12)
        super().__init__(data, self._view, most)

    def _view(self, part: bytes) -> memoryview:
        self._buffer[: len(part)] = part
        return memoryview(self._buffer)[: len(part)]


#: What a reader may give for bytes: any object with a buffer, of any items.
BUFFERS: dict[str, Callable[[bytes], Any]] = {
    "bytes": bytes,
    "bytearray": bytearray,
    "memoryview": memoryview,
    "memoryview, backward": lambda data: memoryview(data[::-1])[::-1],
    "memoryview of chars": lambda data: memoryview(data).cast("c"),
    "array.array": lambda data: array.array("B", data),
    "array.array of shorts": lambda data: array.array("H", data),
    "numpy array": lambda data: np.frombuffer(data, np.uint8),
    "numpy matrix": lambda data: np.frombuffer(data, np.uint8).reshape(2, -1),
    "ctypes array": lambda data: (ctypes.c_ubyte * len(data)).from_buffer_copy(data),
    "mmap": lambda data: _mapped(data),
}


def _mapped(data: bytes) -> mmap.mmap:
    made = mmap.mmap(-1, len(data))
    made.write(data)
    return made


class Stingy(io.RawIOBase):
    """A raw file that gives a few bytes at a time."""

    def __init__(self, data: bytes, most: int = 7) -> None:
        self._file = io.BytesIO(data)
        self.most = most

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._file.seek(offset, whence)

    def readinto(self, buffer: Any) -> int:
        part = self._file.read(min(len(buffer), self.most))
        buffer[: len(part)] = part
        return len(part)


def test_a_pipe_says_what_to_do() -> None:
    """Buffered or not; the message of the system is "Illegal seek" alone, without a file."""
    for buffering in (-1, 0):
        reading, writing = os.pipe()
        os.close(writing)
        with (
            os.fdopen(reading, "rb", buffering) as pipe,
            pytest.raises(OSError, match=r"cannot seek.*io\.BytesIO"),
        ):
            FileObjectSource(pipe)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Return the path of a file of the data."""
    made = tmp_path / "data"
    made.write_bytes(_DATA)
    return made


def _at(file: Any, offset: int) -> FileObjectSource:
    """Return the source of a file object that stands there."""
    file.seek(offset)
    return FileObjectSource(file)


def _both(source: Source, offset: int, nbytes: int) -> list[Callable[[], object]]:
    """Return both ways to read."""
    out = memoryview(bytearray(nbytes))
    return [lambda: source.read_at(offset, nbytes), lambda: source.read_into(offset, out)]


#: Each kind of source of the data, given the path of a file of it.
KINDS: dict[str, Callable[[Path], Source]] = {
    "path": FileSource,
    "mmap": MmapSource,
    "file object": lambda path: _at(io.BytesIO(_DATA), 0),
    "not from its start": lambda path: _at(io.BytesIO(b"before" + _DATA), 6),
    "raw, a few bytes at a time": lambda path: _at(Stingy(_DATA), 0),
    "read and seek alone": lambda path: _at(Custom(_DATA, bytes, most=50), 0),
}


class TestSource:
    """What every kind of source does."""

    @pytest.fixture(params=KINDS)
    def source(self, request: pytest.FixtureRequest, path: Path) -> Source:
        return KINDS[request.param](path)

    def test_reads(self, source: Source) -> None:
        """The same bytes, whole, in parts, and none."""
        assert isinstance(source, Source)
        assert source.size == len(_DATA)
        for offset, nbytes in ((0, 1024), (0, 0), (1024, 0), (3, 300), (1023, 1), (500, 524)):
            assert bytes(source.read_at(offset, nbytes)) == _DATA[offset : offset + nbytes]
            out = bytearray(nbytes)
            source.read_into(offset, memoryview(out))
            assert out == _DATA[offset : offset + nbytes]

    @pytest.mark.parametrize(
        ("offset", "nbytes"),
        [(0, 1025), (1024, 1), (1000, 100), (-1, 1), (0, -1), (5, -3), (1 << 62, 1), (0, 1 << 62),
         (1 << 80, 0), (1 << 80, 1 << 80)],
    )  # fmt: skip
    def test_reads_outside(self, source: Source, offset: int, nbytes: int) -> None:
        """A read that does not lie inside is a FormatError with its place, and costs no memory."""
        with pytest.raises(FormatError, match="truncated") as caught:
            source.read_at(offset, nbytes)
        assert caught.value.path == source.name
        assert caught.value.offset == offset

    def test_reads_into_outside(self, source: Source) -> None:
        for offset, nbytes in ((1020, 5), (-1, 1), (1 << 80, 1)):
            with pytest.raises(FormatError, match="truncated"):
                source.read_into(offset, memoryview(bytearray(nbytes)))


@given(st.binary(max_size=100), st.integers(0, 20), st.integers(1, 30), st.data())
def test_file_objects_from_any_position(
    data: bytes, before: int, most: int, drawn: st.DataObject
) -> None:
    """Offsets count from where the object stood, however little it gives at a time."""
    source = _at(Stingy(b"x" * before + data, most), before)
    assert source.size == len(data)
    offset = drawn.draw(st.integers(0, len(data)))
    nbytes = drawn.draw(st.integers(0, len(data) - offset))
    assert source.read_at(offset, nbytes) == data[offset : offset + nbytes]


def test_file_object_is_left_where_it_was() -> None:
    """Opening a source does not move the object, and `move_to` does."""
    file = io.BytesIO(b"head" + _DATA)
    source = _at(file, 4)
    assert file.tell() == 4
    source.move_to(10)
    assert file.tell() == 14
    source.close()
    assert not file.closed


def test_file_object_behind_its_end() -> None:
    """An object that stands behind its end has no bytes."""
    assert _at(io.BytesIO(b"abc"), 10).size == 0


def test_file_object_that_ends_early() -> None:
    """An object that gives less than it had is an error, not zeros."""
    file = io.BytesIO(_DATA)
    source = FileObjectSource(file)
    file.truncate(100)
    for read in _both(source, 50, 100):
        with pytest.raises(FormatError, match="cut it short"):
            read()


def test_file_object_in_threads() -> None:
    """Reads of one object take turns."""
    source = FileObjectSource(Stingy(_DATA, 3))  # type: ignore[arg-type]
    wrong: list[int] = []

    def work(offset: int) -> None:
        for _ in range(20):
            if source.read_at(offset, 100) != _DATA[offset : offset + 100]:
                wrong.append(offset)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, [17 * i for i in range(8)]))
    assert wrong == []


@pytest.mark.parametrize("kind", [FileSource, MmapSource])
def test_empty_file(tmp_path: Path, kind: Callable[[Path], Source]) -> None:
    (tmp_path / "empty").touch()
    source = kind(tmp_path / "empty")
    assert source.size == 0
    assert bytes(source.read_at(0, 0)) == b""
    with pytest.raises(FormatError):
        source.read_at(0, 1)


def test_names(path: Path) -> None:
    assert FileSource(path).name == str(path)
    assert FileObjectSource(io.BytesIO()).name == "<BytesIO>"
    with path.open("rb") as file:
        assert FileObjectSource(file).name == str(path)


# -- what is no regular file -----------------------------------------------------------------------


def _fifo(folder: Path) -> Path:
    os.mkfifo(folder / "fifo")
    return folder / "fifo"


def _socket(folder: Path) -> Path:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(folder / "s"))
    return folder / "s"


@pytest.mark.parametrize("kind", [FileSource, MmapSource, open_source])
@pytest.mark.parametrize(
    "make",
    [
        pytest.param(_fifo, marks=needs("mkfifo")),
        _socket,
        lambda folder: folder,
        lambda folder: Path(os.devnull),
        lambda folder: folder / "no such file",
        lambda folder: Path("/dev/zero"),
    ],
    ids=["fifo", "socket", "directory", "null", "missing", "zero"],
)
def test_what_is_no_regular_file(
    tmp_path: Path, make: Callable[[Path], Path], kind: Callable[[Path], Any]
) -> None:
    """A FIFO, socket, device, directory or nothing is refused at once, without waiting."""
    path = make(tmp_path)
    with pytest.raises(OSError, match=r".+") as caught:
        kind(path)
    assert str(caught.value.filename) == str(path)


@needs("mkfifo")
def test_symlink_to_a_fifo(tmp_path: Path) -> None:
    """What a link leads to counts."""
    (tmp_path / "link").symlink_to(_fifo(tmp_path))
    with pytest.raises(OSError, match="Not a regular file"):
        FileSource(tmp_path / "link")


def test_refused_file_is_closed(tmp_path: Path) -> None:
    """A refused path leaves no descriptor behind."""
    before = descriptors()
    for _ in range(5):
        with pytest.raises(IsADirectoryError):
            FileSource(tmp_path)
    assert descriptors() == before


class BytesPath:
    """A path that says its name in bytes."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __fspath__(self) -> bytes:
        return os.fsencode(self.path)


def test_path_in_bytes(path: Path) -> None:
    with contextlib.closing(open_source(BytesPath(path))) as source:  # type: ignore[arg-type]
        assert (source.name, source.read_at(3, 4)) == (str(path), _DATA[3:7])


def test_seek_that_says_nothing(tmp_path: Path) -> None:
    """That of an mmap gives None before Python 3.13."""

    class Silent(io.BytesIO):
        def seek(self, *args: Any) -> Any:
            super().seek(*args)

    source = _at(Silent(_DATA), 5)
    assert (source.size, source.read_at(1, 3)) == (len(_DATA) - 5, _DATA[6:9])


@pytest.mark.parametrize("raw", [False, True])
def test_closed_file_object(raw: bool) -> None:
    """It is read no more, and stays open for its owner."""
    file: Any = Stingy(_DATA) if raw else io.BytesIO(_DATA)
    source = FileObjectSource(file)
    source.close()
    for read in _both(source, 0, 1):
        with pytest.raises(ValueError, match="the checkpoint is closed"):
            read()
    assert not file.closed


@pytest.mark.parametrize("wrong", [None, 7, b"bytes", object, io.StringIO, [1]], ids=repr)
def test_what_is_no_file(wrong: Any) -> None:
    with pytest.raises(TypeError):
        open_source(wrong)


# -- files that change -----------------------------------------------------------------------------


def test_file_cut_short(path: Path) -> None:
    """A file that is cut while it is open gives a FormatError that says so."""
    source = FileSource(path)
    os.truncate(path, 100)
    assert source.read_at(0, 100) == _DATA[:100]
    for read in (*_both(source, 50, 100), *_both(source, 200, 1)):
        with pytest.raises(FormatError, match="cut it short") as caught:
            read()
        assert caught.value.path == str(path)


@open_files_can_go
def test_replaced_path(tmp_path: Path, path: Path) -> None:
    """An open source keeps the file that it opened."""
    sources: list[Source] = [FileSource(path), MmapSource(path)]
    (tmp_path / "new").write_bytes(b"new" * 500)
    os.replace(tmp_path / "new", path)
    for source in sources:
        assert bytes(source.read_at(10, 5)) == _DATA[10:15]
        assert source.size == 1024


def test_short_reads_of_the_kernel(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = FileSource(path)
    read_at, read_into = platform_calls.read_at, platform_calls.read_into
    with monkeypatch.context() as patch:
        patch.setattr(source_module, "read_at", lambda fd, n, at: read_at(fd, min(n, 10), at))
        patch.setattr(source_module, "read_into", lambda fd, out, at: read_into(fd, out[:10], at))
        assert source.read_at(100, 500) == _DATA[100:600]


def test_a_read_that_fails_names_the_file(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The system says it of a descriptor, which tells nobody which of several files is broken."""

    def fail(*args: Any) -> Any:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    source = FileSource(path)
    monkeypatch.setattr(source_module, "read_at", fail)
    with pytest.raises(OSError, match=os.strerror(errno.EIO)) as caught:
        source.read_at(0, 8)
    assert caught.value.filename == str(path)


@needs("pread")
def test_offsets_of_31_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Python in a browser takes no longer ones; the bytes beyond are read all the same."""
    pread, lseek = os.pread, os.lseek

    def short(number: int) -> int:
        if number >= 1 << 31:
            raise OverflowError("Python int too large to convert to C long")
        return number

    file = tmp_path / "long"
    with file.open("wb") as target:
        for place in (0, (1 << 31) - 2, 5 << 30):
            target.seek(place)
            target.write(b"marked")
    with contextlib.closing(FileSource(file)) as source, monkeypatch.context() as patch:
        patch.setattr(os, "pread", lambda fd, n, at: pread(fd, n, short(at)))
        patch.setattr(os, "lseek", lambda fd, at, how: lseek(fd, short(at), how))
        with pytest.raises(OverflowError):
            source.read_at(5 << 30, 6)
        patch.setattr(sys, "platform", "emscripten")
        for place, expected in (
            (0, b"marked"), ((1 << 31) - 2, b"marked"), ((1 << 31) - 1, b"arked"),
            (1 << 31, b"rked"), (5 << 30, b"marked"),
        ):  # fmt: skip
            assert source.read_at(place, len(expected)) == expected


def test_pickle(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A source opens its file again on the other side, from any folder."""
    monkeypatch.chdir(path.parent)
    source = FileSource(path.name)
    data = pickle.dumps(source)
    monkeypatch.chdir("/")
    again = pickle.loads(data)
    assert again.read_at(5, 5) == _DATA[5:10]
    assert again.identity == source.identity
    source.close()
    assert again.read_at(5, 5) == _DATA[5:10]


@pytest.mark.parametrize("change", ["replace", "append", "rewrite", "remove"])
def test_pickle_refuses_another_file(tmp_path: Path, path: Path, change: str) -> None:
    data = pickle.dumps(FileSource(path))
    if change == "replace":
        (tmp_path / "new").write_bytes(_DATA)
        os.replace(tmp_path / "new", path)
    elif change == "append":
        with path.open("ab") as file:
            file.write(b"x")
    elif change == "rewrite":
        status = path.stat()
        path.write_bytes(b"x" + _DATA[1:])
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    else:
        path.unlink()
    with pytest.raises((FormatError, FileNotFoundError)):
        pickle.loads(data)


def test_closed_source(path: Path) -> None:
    """Reading after `close` is the caller's mistake; closing twice is none."""
    source = FileSource(path)
    source.close()
    source.close()
    for use in (lambda: source.read_at(0, 1), source.status, source.descriptor.__enter__):
        with pytest.raises(ValueError, match="closed") as caught:
            use()
        assert not isinstance(caught.value, FormatError)


def test_the_last_user_closes(path: Path) -> None:
    """A descriptor stays open for all who have its number, and for nobody else."""
    source = FileSource(path)
    with source.descriptor as number:
        with source.descriptor as same:
            assert same == number
            source.close()
            source.close()
            with pytest.raises(ValueError, match="closed"):
                source.read_at(0, 1)
        assert os.read(number, 5) == _DATA[:5]
    with pytest.raises(OSError, match="descriptor"):
        os.fstat(number)


def test_descriptor_is_not_inherited(path: Path) -> None:
    """A program that is started does not get the file."""
    source = FileSource(path)
    with source.descriptor as number:
        assert not os.get_inheritable(number)


def test_mapped_views(path: Path) -> None:
    source = MmapSource(path)
    view = source.view(3, 10)
    assert view.readonly
    source.close()
    del source
    if hasattr(os, "chown"):
        path.unlink()
    assert bytes(view) == _DATA[3:13]


@pytest.mark.parametrize("kind", [Custom, Buffered])
@pytest.mark.parametrize("name", BUFFERS)
def test_readers_that_give_any_buffer(name: str, kind: Any) -> None:
    """What ``read`` gives may be anything with a buffer, with ``readinto`` or without."""
    source = FileObjectSource(kind(_DATA, BUFFERS[name]))
    for start, nbytes in ((0, 64), (100, 2), (0, len(_DATA))):
        assert source.read_at(start, nbytes) == _DATA[start : start + nbytes]
        out = bytearray(nbytes)
        source.read_into(start, memoryview(out))
        assert out == _DATA[start : start + nbytes]
    assert type(source.read_at(0, 8)) is bytes


def test_reader_that_uses_its_buffer_again() -> None:
    """Parts that are views of one buffer do not overwrite one another."""
    source = FileObjectSource(Reused(_DATA, most=10))  # type: ignore[arg-type]
    assert source.read_at(3, 500) == _DATA[3:503]
    assert source.read_at(0, 10) == _DATA[:10]


@pytest.mark.parametrize("wrong", [str, list, lambda data: None, lambda data: 5])
def test_readers_that_give_something_else(wrong: Any) -> None:
    """What has no buffer is an error that says so."""
    source = FileObjectSource(Custom(_DATA, lambda data: wrong(data)))  # type: ignore[arg-type]
    with pytest.raises((TypeError, BlockingIOError), match=r"gives|no bytes now"):
        source.read_at(0, 10)


def test_raw_file_without_bytes_now() -> None:
    """A ``readinto`` that has nothing yet is no end of the file."""
    file = Stingy(_DATA)
    source = FileObjectSource(file)  # type: ignore[arg-type]
    file.readinto = lambda buffer: None  # type: ignore[method-assign,assignment,return-value]
    with pytest.raises(BlockingIOError):
        source.read_into(0, memoryview(bytearray(4)))


def test_pickle_of_a_file_object() -> None:
    """It goes along if it can be pickled, and must be as long as before; else that is the error."""
    file = io.BytesIO(b"before" + _DATA)
    source = _at(file, 6)
    file.seek(17)
    again = pickle.loads(pickle.dumps(source))
    assert again.read_at(5, 9) == _DATA[5:14]
    assert (again.size, file.tell()) == (len(_DATA), 17)
    file.seek(0, 2)
    file.write(b"more")
    with pytest.raises(FormatError, match=r"has 1,028 bytes .* had 1,024"):
        pickle.loads(pickle.dumps(source))
    with pytest.raises(TypeError, match="pickle"), open(__file__, "rb") as real:
        pickle.dumps(FileObjectSource(real))
    source.close()
    with pytest.raises(ValueError, match="closed"):
        pickle.dumps(source)


@pytest.mark.parametrize(
    "last", ["", "module.os = None", "os.close(source.descriptor._number)", "del source.descriptor"]
)
def test_quiet_at_the_end(path: Path, last: str) -> None:
    """One that is open when the interpreter ends says nothing, whatever is gone by then."""
    script = (
        "import builtins, os, sys\n"
        "import torchzip.files.source as module\n"
        "builtins.kept = source = module.FileSource(sys.argv[1])\n" + last
    )
    done = subprocess.run(
        [sys.executable, "-c", script, path], capture_output=True, text=True, check=True
    )
    assert done.stderr == ""
