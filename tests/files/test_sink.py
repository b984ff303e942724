"""Sinks: the old or the new bytes, under the final name, and nothing else."""

from __future__ import annotations

import contextlib
import errno
import gc
import io
import os
import stat
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.faults import failing_with, half, in_child, under
from tests.files.test_source import BytesPath
from tests.systems import needs
from torchzip.files.opening import open_sink
from torchzip.files.platform_calls import allocate
from torchzip.files.sink import FileObjectSink, PathSink, Sink


@pytest.fixture
def umask() -> Iterator[int]:
    before = os.umask(0o027)
    yield 0o027
    os.umask(before)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Return a path for the target, which is alone in its folder."""
    return tmp_path / "m.pt"


def _write(path: Path, data: bytes = b"new") -> None:
    sink = PathSink(path)
    sink.write(data)
    sink.commit()


class Partial(io.RawIOBase):
    """An unseekable stream that takes a few bytes at a time."""

    def __init__(self, most: int = 5) -> None:
        self.parts: list[bytes] = []
        self.most = most

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        part = bytes(data[: self.most])
        self.parts.append(part)
        return len(part)


class Silent:
    """Takes everything and says nothing."""

    def __init__(self) -> None:
        self.parts: list[bytes] = []

    def write(self, data: Any) -> None:
        self.parts.append(bytes(data))


def _into_path(path: Path) -> tuple[Sink, Callable[[], bytes]]:
    return PathSink(path), path.read_bytes


def _into_object(path: Path) -> tuple[Sink, Callable[[], bytes]]:
    file = io.BytesIO()
    file.write(b"head")  # offsets count from here
    return open_sink(file), lambda: file.getvalue()[4:]


def _into_parts(file: Any) -> tuple[Sink, Callable[[], bytes]]:
    return open_sink(file), lambda: b"".join(file.parts)


#: Each kind of sink, and what gives the bytes that went into it.
KINDS: dict[str, Callable[[Path], tuple[Sink, Callable[[], bytes]]]] = {
    "path": _into_path,
    "file object": _into_object,
    "stream that takes a part": lambda path: _into_parts(Partial()),
    "object that says nothing": lambda path: _into_parts(Silent()),
}


class TestSink:
    """What every kind of sink does."""

    @pytest.mark.parametrize("kind", KINDS)
    def test_writes(self, path: Path, kind: str) -> None:
        """Every byte of any buffer is written once, and stays after the end."""
        sink, written = KINDS[kind](path)
        sink.write(b"hello, ")
        sink.write(bytearray(b"world" * 5))
        sink.write(memoryview(b"xghix")[1:4])
        sink.write(memoryview(bytearray(range(8))).cast("I"))
        sink.write(b"")
        assert sink.position == 43
        assert sink.read_back(2, 3) == (b"llo" if kind == "path" else None)
        sink.commit()
        sink.abort()
        assert written() == b"hello, " + b"world" * 5 + b"ghi" + bytes(range(8))


def test_commit(path: Path) -> None:
    """The file appears when it is complete, and alone."""
    sink = PathSink(path)
    sink.write(b"abc")
    assert not path.exists()
    sink.commit()
    assert path.read_bytes() == b"abc"
    assert os.listdir(path.parent) == ["m.pt"]


def test_abort(path: Path) -> None:
    """Nothing is left, and an old file is as it was; aborting again is harmless."""
    for before in ([], ["m.pt"]):
        sink = PathSink(path)
        sink.write(b"abc")
        sink.abort()
        sink.abort()
        assert os.listdir(path.parent) == before
        path.write_bytes(b"old")
    assert path.read_bytes() == b"old"


def test_forgotten_sink(path: Path) -> None:
    """A sink that is dropped leaves nothing."""
    sink = PathSink(path)
    sink.write(b"abc")
    del sink
    gc.collect()
    assert os.listdir(path.parent) == []


def test_temporary_name(path: Path) -> None:
    """While it is written, nobody takes the file for a checkpoint."""
    sink = PathSink(path)
    (name,) = os.listdir(path.parent)
    assert name.startswith(".")
    assert name.endswith(".tmp")
    sink.abort()


def test_left_over_temporary_file(tmp_path: Path, path: Path) -> None:
    """What a killed process has left does not block the next save."""
    (tmp_path / ".torchzip-0123456789abcdef.tmp").write_bytes(b"left")
    _write(path)
    assert path.read_bytes() == b"new"


def test_two_sinks_on_one_path(path: Path) -> None:
    """The last that commits wins; neither sees the other."""
    first, second = PathSink(path), PathSink(path)
    first.write(b"first")
    second.write(b"second")
    second.commit()
    first.commit()
    assert path.read_bytes() == b"first"
    assert os.listdir(path.parent) == ["m.pt"]


@pytest.mark.parametrize("length", [1, 200, 250, 255])
def test_long_names(tmp_path: Path, length: int) -> None:
    """A name may be as long as the file system has them."""
    path = tmp_path / ("n" * length)
    _write(path)
    assert path.read_bytes() == b"new"


def test_name_that_is_too_long(tmp_path: Path) -> None:
    """One byte more is an OSError, and nothing stays."""
    with pytest.raises(OSError, match="too long"):
        _write(tmp_path / ("n" * 256))
    assert os.listdir(tmp_path) == []


# -- mode ----------------------------------------------------------------------------------------


def test_mode_of_a_new_file(path: Path, umask: int) -> None:
    """It is what the umask gives, as for any file."""
    _write(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~umask


@needs("chown")
@pytest.mark.parametrize("mode", [0o600, 0o644, 0o664, 0o400, 0o755])
def test_mode_of_a_replaced_file(path: Path, umask: int, mode: int) -> None:
    """It stays, whatever the umask says."""
    path.write_bytes(b"old")
    path.chmod(mode)
    _write(path)
    assert stat.S_IMODE(path.stat().st_mode) == mode
    assert path.read_bytes() == b"new"


def test_error_of_the_rename(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It names the target, not the temporary file, which nobody knows."""
    sink = PathSink(path)
    sink.write(b"new")
    path.mkdir()
    with pytest.raises(IsADirectoryError) as caught:
        sink.commit()
    assert str(caught.value).endswith(f"{str(path)!r}")
    assert os.listdir(path.parent) == ["m.pt"]


def test_path_of_bytes(path: Path) -> None:
    made: Any = BytesPath(path)
    _write(made)
    assert path.read_bytes() == b"new"


# -- links ---------------------------------------------------------------------------------------


def test_symlink_is_followed(tmp_path: Path) -> None:
    folder = tmp_path / "other"
    folder.mkdir()
    target, link = folder / "real.pt", tmp_path / "link.pt"
    target.write_bytes(b"old")
    link.symlink_to(Path("other") / "real.pt")
    _write(link)
    assert link.is_symlink()
    assert target.read_bytes() == b"new"
    assert os.listdir(folder) == ["real.pt"]
    assert sorted(os.listdir(tmp_path)) == ["link.pt", "other"]


def test_dangling_symlink(tmp_path: Path) -> None:
    link = tmp_path / "link.pt"
    link.symlink_to(tmp_path / "real.pt")
    _write(link)
    assert link.is_symlink()
    assert (tmp_path / "real.pt").read_bytes() == b"new"


def test_symlink_loop(tmp_path: Path) -> None:
    """A link to itself is an OSError, and nothing stays but the link."""
    link = tmp_path / "link.pt"
    link.symlink_to(link)
    with pytest.raises(OSError, match=r".+"):
        _write(link)
    assert os.listdir(tmp_path) == ["link.pt"]
    assert link.is_symlink()


def test_hard_link(tmp_path: Path, path: Path) -> None:
    """The other name of a replaced file keeps the old bytes."""
    other = tmp_path / "other.pt"
    path.write_bytes(b"old")
    os.link(path, other)
    _write(path)
    assert (path.read_bytes(), other.read_bytes()) == (b"new", b"old")


# -- what cannot be replaced -------------------------------------------------------------------


def test_no_name() -> None:
    """It is not taken for the current folder."""
    with pytest.raises(FileNotFoundError, match="name of the file is empty"):
        open_sink("")


def test_directory(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    with pytest.raises(OSError, match="a directory") as caught:
        PathSink(tmp_path / "d")
    assert caught.value.filename == str(tmp_path / "d")
    assert os.listdir(tmp_path) == ["d"]


@needs("mkfifo")
def test_device_and_fifo(tmp_path: Path) -> None:
    """So are a device and a FIFO, without waiting for a reader."""
    os.mkfifo(tmp_path / "fifo")
    for path in (os.devnull, tmp_path / "fifo"):
        with pytest.raises(OSError, match="not a regular file"):
            PathSink(path)
    assert os.listdir(tmp_path) == ["fifo"]
    assert stat.S_ISCHR(os.stat(os.devnull).st_mode)


def test_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        PathSink(tmp_path / "no" / "m.pt")


def test_relative_path(tmp_path: Path, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The target is where it was meant when the sink was opened."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "elsewhere").mkdir()
    sink = PathSink("m.pt")
    sink.write(b"abc")
    monkeypatch.chdir(tmp_path / "elsewhere")
    sink.commit()
    assert path.read_bytes() == b"abc"


# -- failures --------------------------------------------------------------------------------------


@pytest.mark.parametrize("call", ["fsync", "close", "replace"])
def test_commit_that_fails(path: Path, call: str) -> None:
    """Whichever call fails: the error is raised, the old file is there, and no other."""
    path.write_bytes(b"old")
    with under((call, 0).__eq__, failing_with(errno.EIO)):
        sink = PathSink(path)
        sink.write(b"abc")
        with pytest.raises(OSError, match=os.strerror(errno.EIO)):
            sink.commit()
    assert path.read_bytes() == b"old"
    assert os.listdir(path.parent) == ["m.pt"]


def test_failed_fsync_of_the_folder(path: Path) -> None:
    """The new file is there then; only that it will survive a power loss is not known."""
    path.write_bytes(b"old")
    with under(("fsync", 1).__eq__, failing_with(errno.EIO)), contextlib.suppress(OSError):
        _write(path)
    assert path.read_bytes() == b"new"
    assert os.listdir(path.parent) == ["m.pt"]


def test_commit_is_durable(path: Path) -> None:
    """The bytes are synced before the rename, the folder after it."""
    with under() as system:
        _write(path)
    folder = ["sync folder"] if hasattr(os, "O_DIRECTORY") else []
    assert system.events == ["sync file", "rename m.pt", *folder]


_WRITE = "pwrite" if hasattr(os, "pwrite") else "write"


def test_writes_in_parts(path: Path) -> None:
    """A write that takes a part is gone on with."""
    data = bytes(range(256)) * 40
    with under(lambda call: call[0] == _WRITE, half):
        _write(path, data)
    assert path.read_bytes() == data


def test_use_after_the_end(path: Path) -> None:
    for end in ("commit", "abort"):
        sink = PathSink(path)
        getattr(sink, end)()
        for use in (lambda: sink.write(b"x"), lambda: sink.read_back(0, 1), sink.commit):  # noqa: B023
            with pytest.raises(ValueError, match="closed"):
                use()


def test_large_writes(path: Path) -> None:
    """Buffers past what goes through the page cache are whole."""
    data = os.urandom(1 << 16) * 600  # 39 MB
    _write(path, data)
    assert path.read_bytes() == data


@needs("fork")
def test_forked_child(path: Path) -> None:
    """A child can neither write nor commit nor remove the file of its parent."""
    sink = PathSink(path)
    sink.write(b"abc")

    def use_it() -> None:
        for use in (lambda: sink.write(b"x"), sink.commit, lambda: sink.read_back(0, 1)):
            with pytest.raises(ValueError, match="process that opened it"):
                use()
        sink.abort()
        gc.collect()

    assert in_child(use_it) == 0
    sink.write(b"def")
    sink.commit()
    assert path.read_bytes() == b"abcdef"


# -- file objects --------------------------------------------------------------------------------


def test_file_object_that_takes_nothing() -> None:
    """An object that takes no byte must not make the writer wait for ever."""

    class Full:
        def __init__(self) -> None:
            self.calls = 0

        def write(self, data: Any) -> int:
            self.calls += 1
            if self.calls > 1000:
                raise AssertionError("asked a thousand times")
            return 0

    with pytest.raises(OSError, match=r".*"):
        FileObjectSink(Full()).write(b"abc")  # type: ignore[arg-type]


def _taken_nbytes(file: Any) -> int:
    """Return how much of the disk a file has."""
    return os.fstat(file.fileno()).st_blocks * 512


@pytest.fixture
def room() -> int:
    """Return how much a file can take ahead; skip where there is no way to."""
    nbytes = 32 << 20
    with tempfile.TemporaryFile(buffering=0) as file:
        if not allocate(file.fileno(), 0, nbytes, keep_size=True):
            pytest.skip("this system or this file system takes no room ahead")
    return nbytes


@pytest.mark.parametrize("mode", ["wb", "w+b", "r+b", "ab"])
@pytest.mark.parametrize("buffering", [0, -1])
def test_reserved_room(path: Path, room: int, mode: str, buffering: int) -> None:
    """It is taken behind what is there, changes no byte, and goes back where nothing is written."""
    path.write_bytes(b"old" * 5000)
    with path.open(mode, buffering=buffering) as file:
        file.write(b"mine")
        file.flush()
        size = path.stat().st_size
        sink = open_sink(file)  # type: ignore[arg-type]
        sink.reserve(1000)
        assert _taken_nbytes(file) < room
        sink.reserve(room)
        assert room <= _taken_nbytes(file) < room + 2 * 5000 * 3 + 8192
        assert path.stat().st_size == size
        sink.write(b"new" * 10_000)
        sink.abort()
        assert _taken_nbytes(file) <= 2 * path.stat().st_size
        sink.abort()
    old = b"" if "w" in mode else b"old" * 5000
    new = b"mine" + b"new" * 10_000
    assert path.read_bytes() == (old + new if mode == "ab" else new + old[len(new) :])


def test_reserved_room_that_is_used(path: Path, room: int) -> None:
    """After a commit the file is as it was written, and has no more of the disk than it needs."""
    data = os.urandom(room)
    with path.open("wb") as file:
        sink = open_sink(file)
        sink.reserve(room)
        sink.write(data)
        sink.commit()
        sink.abort()
        file.flush()
        os.fsync(file.fileno())
        assert room <= _taken_nbytes(file) <= room + (1 << 16)
    assert path.read_bytes() == data


def test_no_room(path: Path, room: int) -> None:
    """A disk that is too small says so before anything is written, and names the file."""
    with path.open("wb") as file:
        sink = open_sink(file)
        with pytest.raises(OSError, match=r"No space|too large") as caught:
            sink.reserve(1 << 60)
        assert caught.value.filename == str(path)
        sink.abort()
        assert _taken_nbytes(file) == 0


def test_room_of_other_file_objects(tmp_path: Path, path: Path, room: int) -> None:
    """Only plain files take room: another object may write less than it is given."""

    class Wrapped(io.FileIO):
        pass

    reader, writer = os.pipe()
    with (
        Wrapped(path, "w") as wrapped,
        io.BufferedWriter(Wrapped(tmp_path / "n.pt", "w")) as buffered,
        open(writer, "wb") as pipe,
        open(reader, "rb"),
    ):
        for file in (wrapped, buffered, pipe, io.BytesIO()):
            open_sink(file).reserve(room)
        assert _taken_nbytes(wrapped) == _taken_nbytes(buffered) == 0


def test_error_of_a_file_object() -> None:
    class Broken:
        def write(self, data: Any) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        FileObjectSink(Broken()).write(b"abc")  # type: ignore[arg-type]


@pytest.mark.parametrize("wrong", [None, 7, b"m.pt", object], ids=repr)
def test_what_is_no_file(wrong: Any) -> None:
    with pytest.raises(TypeError):
        open_sink(wrong)
