"""The file that `save` writes: all or nothing, its name, its place, and file objects."""

from __future__ import annotations

import errno
import io
import os
import re
import stat
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import torchzip as tz
from tests.saved import saved
from tests.systems import needs, open_files_can_go
from torchzip.files import new_file, platform_calls, sink
from torchzip.types import Parameter, SparseTensor, Storage, TypedArray


@pytest.mark.parametrize("alignment", [0, -1, 1 << 20, 1.5, True, "64"])
def test_wrong_alignment(tmp_path: Path, alignment: Any) -> None:
    """A caller's mistake leaves no file."""
    with pytest.raises((TypeError, ValueError), match="alignment"):
        tz.save({}, tmp_path / "m.pt", alignment=alignment)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("file", [None, 7, b"path", object()])
def test_wrong_file(file: Any) -> None:
    """Neither a path nor a file object."""
    with pytest.raises(TypeError):
        tz.save({}, file)


def test_empty_archive_name(tmp_path: Path) -> None:
    """``.pt`` has no name before its dot, which torch refuses too."""
    with pytest.raises(ValueError, match="empty"):
        tz.save({}, tmp_path / ".pt")
    with pytest.raises(ValueError, match=r"it is \.\. here"):
        tz.save({}, tmp_path / "...pt")
    assert os.listdir(tmp_path) == []


# -- all or nothing ------------------------------------------------------------------------------


def _old(path: Path) -> bytes:
    tz.save({"old": np.arange(3.0)}, path)
    return path.read_bytes()


def test_old_file_stays_if_the_object_cannot_be_saved(tmp_path: Path, path: Path) -> None:
    """The structure is checked before a byte is written."""
    before = _old(path)
    with pytest.raises(TypeError):
        tz.save({"w": np.ones(3), "bad": lambda: 0}, path)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["m.pt"]


@pytest.mark.parametrize(
    "call", ["pwrite" if hasattr(os, "pwrite") else "write", "fsync", "close", "replace"]
)
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EFBIG])
def test_old_file_stays_if_the_disk_fails(
    tmp_path: Path, path: Path, monkeypatch: pytest.MonkeyPatch, call: str, number: int
) -> None:
    """Whichever call fails, the old file is there, no other, and the error is an OSError."""
    before = _old(path)
    original = getattr(os, call)

    def fail(*args: Any, **more: Any) -> Any:
        if call == "close":
            original(*args, **more)
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(os, call, fail)
        with pytest.raises(OSError, match=os.strerror(number)) as caught:
            tz.save({"new": np.ones(1000)}, path)
        assert caught.value.filename == str(path)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["m.pt"]


def test_writes_in_parts(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A write that takes a few bytes only is gone on with."""
    original = platform_calls.write_at
    with monkeypatch.context() as patch:
        for module in (sink, new_file):
            patch.setattr(module, "write_at", lambda fd, data, at: original(fd, data[:1000], at))
        tz.save({"w": np.arange(5000.0)}, path)
    assert tz.load(path)["w"].tolist() == list(range(5000))


def test_source_that_fails_while_it_is_copied(tmp_path: Path) -> None:
    """A lazy tensor whose file is damaged ends the save, and the target stays."""
    source, target = tmp_path / "a.pt", tmp_path / "b.pt"
    tz.save({"w": np.arange(100_000.0)}, source)
    before = _old(target)
    with tz.lazy_load(source) as checkpoint:
        os.truncate(source, 5000)
        with pytest.raises(tz.FormatError):
            tz.save(checkpoint.root, target)
    assert target.read_bytes() == before
    assert sorted(os.listdir(tmp_path)) == ["a.pt", "b.pt"]


@open_files_can_go
def test_saving_over_the_file_that_is_read(path: Path) -> None:
    """The reader keeps the old file, lazily and by mmap."""
    tz.save({"w": np.arange(1000.0), "b": np.zeros(3)}, path)
    mapped = tz.load(path, mmap=True)
    with tz.lazy_load(path) as checkpoint:
        root = checkpoint.root
        tz.save({"w": root["w"], "more": np.ones(4)}, path)
        assert checkpoint["w"].numpy().tolist() == list(range(1000))
        assert checkpoint["b"].numpy().tolist() == [0] * 3
    assert mapped["w"].tolist() == list(range(1000))
    made = tz.load(path)
    assert made["w"].tolist() == list(range(1000))
    assert list(made) == ["w", "more"]


def test_symlink_is_followed(tmp_path: Path) -> None:
    """The link stays a link, its target is replaced."""
    target, link = tmp_path / "real.pt", tmp_path / "link.pt"
    target.write_bytes(b"old")
    link.symlink_to(target)
    tz.save({"w": np.ones(2)}, link)
    assert link.is_symlink()
    assert tz.load(target)["w"].tolist() == [1, 1]
    assert sorted(os.listdir(tmp_path)) == ["link.pt", "real.pt"]


@needs("chown")
def test_mode_of_the_replaced_file_is_kept(path: Path) -> None:
    """A file that others may not read stays so."""
    path.write_bytes(b"old")
    path.chmod(0o640)
    tz.save({}, path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


def test_unseekable_file_object() -> None:
    """A file object needs ``write`` and nothing else."""

    class Pipe:
        def __init__(self) -> None:
            self.parts: list[bytes] = []

        def write(self, data: Any) -> None:
            self.parts.append(bytes(data))

    pipe = Pipe()
    tz.save({"w": np.arange(5.0)}, pipe)  # type: ignore[arg-type]
    assert b"".join(pipe.parts) == saved({"w": np.arange(5.0)})


@pytest.mark.parametrize(
    ("answer", "error", "message"),
    [
        (-1, OSError, "says it took -1 bytes"),
        (10**9, OSError, "says it took 1000000000 bytes"),
        (0, OSError, "takes no more bytes"),
        ("x", TypeError, "integer"),
    ],
)
def test_file_objects_with_odd_answers(answer: Any, error: Any, message: str) -> None:
    """A count that cannot be is an error; the writer does not go round in circles."""

    class Odd:
        def write(self, data: Any) -> Any:
            return answer

    odd: Any = Odd()
    with pytest.raises(error, match=message):
        tz.save({"w": np.ones(3)}, odd)


def test_same_object_same_bytes(tmp_path: Path) -> None:
    """Neither clock nor hash order leave a trace, nor does the folder."""
    state = {"w": np.arange(5.0), "names": ["a", "b"], "n": {"x": 1}}
    folder = tmp_path / "other"
    folder.mkdir()
    for path in (tmp_path / "m.pt", folder / "m.pt"):
        tz.save(state, path)
    assert (tmp_path / "m.pt").read_bytes() == (folder / "m.pt").read_bytes()


def test_arrays_are_not_changed() -> None:
    """Saving reads only, read-only memory too."""
    array = np.arange(6.0)
    array.flags.writeable = False
    tz.save({"a": array, "r": array[::-1]}, io.BytesIO())
    assert array.tolist() == list(range(6))


@pytest.mark.parametrize("name", [
    "m.safetensors", "M.SafeTensors", "m.sft", "m.gguf", "m.npz", "m.npy",
    "model.safetensors.index.json", "pytorch_model.bin.index.json",
    "model.safetensors.index.fp16.json", "sub/m.v1.safetensors",
])  # fmt: skip
@pytest.mark.parametrize("as_path", [str, Path])
def test_the_suffix_of_another_format(tmp_path: Path, name: str, as_path: Any) -> None:
    """It is an error that names ``convert``, before anything is written."""
    (tmp_path / "sub").mkdir()
    path = as_path(tmp_path / name)
    suffix = re.escape(name[name.index(".index") :] if ".index" in name else Path(name).suffix)
    with pytest.raises(ValueError, match=rf"{suffix} is the suffix of .*convert\("):
        tz.save({"w": np.ones(2)}, path)
    with pytest.raises(ValueError, match=rf"{suffix} is the suffix of .*convert\("):
        tz.incremental_save(path)
    assert [each.name for each in tmp_path.rglob("*")] == ["sub"]


@pytest.mark.parametrize(
    "name",
    ["m.pt", "m", "m.safetensors.pt", "safetensors", "index.json.pt", "m.bin", "m.pkl", "m.json"],
)
def test_other_names(tmp_path: Path, name: str) -> None:
    """Any other name is the caller's affair, and so is that of an open file."""
    tz.save({"w": 1}, tmp_path / name)
    assert tz.load(tmp_path / name) == {"w": 1}
    with open(tmp_path / "m.safetensors", "wb") as file:
        tz.save({"w": 1}, file)


class _Watched(io.BytesIO):
    """Counts what is written to it, and may fail at some byte."""

    def __init__(self, room: int = 1 << 30) -> None:
        super().__init__(b"before")
        self.seek(6)
        self.room = room

    def write(self, data: Any) -> int:
        self.room -= memoryview(data).nbytes
        if self.room < 0:
            raise OSError(errno.ENOSPC, "No space left")
        return super().write(data)


@pytest.mark.parametrize("value", [
    np.array(["text"]), np.ones(2, "O"), TypedArray(np.ones(2), "bits8"), lambda: None,
    Storage(np.ones(3), "int8"), Parameter("no array"),
    SparseTensor("sparse_coo", np.array([[9], [9]]), np.ones(1), (2, 2)),
])  # fmt: skip
def test_nothing_of_a_bad_tree_is_written_to_an_open_file(value: Any) -> None:
    """The structure is serialised before the first byte goes out, wherever the fault lies."""
    file = _Watched()
    with pytest.raises((TypeError, ValueError)):
        tz.save({"first": np.ones(100_000), "late": [value]}, file)
    assert (file.getvalue(), file.tell()) == (b"before", 6)
    with pytest.raises((TypeError, ValueError)), tz.incremental_save(file) as out:
        out.save({"first": np.ones(100_000), "late": [value]})
    assert file.getvalue() == b"before"
