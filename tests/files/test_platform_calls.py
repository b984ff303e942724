"""What takes the place of calls that a system lacks, also with all of them taken away at once."""

from __future__ import annotations

import errno
import ntpath
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import torchzip as tz
from tests.child_process import python
from tests.systems import needs
from torchzip.convert.targets import parse_target
from torchzip.files import platform_calls
from torchzip.files.location import Location

_WITHOUT = "import sys, tests.without_posix\n"

_THREADS = """
import os
from concurrent.futures import ThreadPoolExecutor
from torchzip.files import platform_calls
from torchzip.files.source import FileSource
assert not hasattr(os, "pread") and not hasattr(os, "preadv")
numbers = b"".join(n.to_bytes(8, "little") for n in range(4096))
descriptor = platform_calls.open_file(sys.argv[1], os.O_RDWR | os.O_CREAT)
at = list(range(0, len(numbers), 64))
sys.setswitchinterval(1e-6)
with ThreadPoolExecutor(8) as pool:
    write = lambda start: platform_calls.write_at(
        descriptor, memoryview(numbers)[start : start + 64], start
    )
    assert set(pool.map(write, at)) == {64}
    source = FileSource(sys.argv[1])
    read = lambda start: source.read_at(start, 64) == numbers[start : start + 64]
    out = bytearray(len(numbers))
    assert all(pool.map(read, at * 8))
    list(pool.map(lambda start: source.read_into(start, memoryview(out)[start : start + 64]), at))
    assert out == numbers
"""

_FILES = """
import os
import numpy as np
import torchzip as tz
if __name__ == "__main__":
    path = sys.argv[1]
    tz.save({"w": np.arange(1e5)}, path)
    assert tz.convert(path, path, dtype="float32", overwrite=True).nbytes
    assert tz.tools.edit(path, rename={"w": "v"}).how == "appended"
    assert tz.tools.edit(path, rename={"v": "u"}, compact=True).how == "rewritten"
    mapped = tz.load(path, mmap=True)
    assert mapped["u"].dtype == "float32"
    with tz.lazy_load(path) as checkpoint:
        assert checkpoint["u"][-1] == 1e5 - 1
    try:
        tz.save({}, path)
    except PermissionError as error:
        print(error)
    print(*os.listdir(os.path.dirname(path)))
"""


def test_threads_that_share_a_position(tmp_path: Path) -> None:
    """Reads and writes at an offset do not mix, though a file has one position."""
    assert python("-c", _WITHOUT + _THREADS, tmp_path / "f") == ""


def test_files_that_cannot_be_replaced_while_they_are_open(path: Path) -> None:
    """What torchzip has opened itself it closes; of what a user has open, the error tells."""
    said, left = python("-c", _WITHOUT + _FILES, path).splitlines()
    assert said == (
        "[Errno 13] Cannot be replaced: this system keeps a file that is open or read-only. Close "
        "it in every program (checkpoints and mapped arrays of it too), or write to another name: "
        f"'{path}'"
    )
    assert left == "m.pt"


def test_a_file_that_others_look_at(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A scanner for viruses opens what is new for a moment: the file is replaced after it."""
    path.write_bytes(b"new")
    real, calls = os.replace, []

    def busy(*paths: Any) -> None:
        calls.append(paths)
        if len(calls) < 3:
            raise PermissionError(errno.EACCES, "It is open")
        real(*paths)

    monkeypatch.setattr(platform_calls, "OPEN_FILES_CAN_GO", False)
    monkeypatch.setattr(platform_calls, "_PAUSE_SECONDS", 0)
    monkeypatch.setattr(os, "replace", busy)
    platform_calls.replace(str(path), f"{path}.new")
    assert os.listdir(path.parent) == ["m.pt.new"]
    assert len(calls) == 3


def test_a_folder_where_opening_one_is_not_permitted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Windows says of a folder that it may not be opened; what is wrong is that it is one."""

    def refuse(*args: Any) -> int:
        raise PermissionError(errno.EACCES, "Permission denied", str(args[0]))

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(IsADirectoryError) as caught:
        tz.tools.edit(tmp_path, drop="*")
    assert caught.value.filename == str(tmp_path)
    with pytest.raises(PermissionError):
        platform_calls.open_file(tmp_path / "m.pt", os.O_RDONLY)


@needs("fcntl")
@pytest.mark.parametrize("is_there", [True, False])
def test_the_sync_of_macos(path: Path, monkeypatch: pytest.MonkeyPatch, is_there: bool) -> None:
    """It empties the cache of the disk; a file system that cannot is synced as elsewhere."""
    calls: list[str] = []

    def full_sync(descriptor: int, what: int) -> int:
        calls.append(f"call {what}")
        if not is_there:
            raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))
        return 0

    monkeypatch.setattr(platform_calls, "_FULL_SYNC", 51)
    monkeypatch.setattr("fcntl.fcntl", full_sync)
    monkeypatch.setattr(os, "fsync", lambda descriptor: calls.append("fsync"))
    with path.open("wb") as file:
        platform_calls.sync_file(file.fileno())
    assert calls == ["fsync", "call 51"]


@pytest.mark.parametrize("url", ["s3://bucket", "s3://bucket/run/", "hf://org/model"])
def test_urls_have_slashes_everywhere(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The names of files at a URL are made with slashes, also where paths have backslashes."""
    with monkeypatch.context() as patch:
        patch.setattr(os, "path", ntpath)
        patch.setattr(os, "sep", "\\")
        target = parse_target(Location(url), "model.fp16.safetensors")
        local = parse_target("C:\\models\\", "model.fp16.safetensors")
    folder = url.rstrip("/")
    assert target.path == f"{folder}/model.fp16.safetensors"
    assert target.index_path == f"{folder}/model.safetensors.index.fp16.json"
    assert local.index_path == "C:\\models\\model.safetensors.index.fp16.json"


def test_paths_from_the_root_and_from_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A list of files may have both, which have no folder in common."""
    monkeypatch.chdir(tmp_path)
    for rank, name in enumerate("ab"):
        tz.save({"w": np.full(2, rank)}, f"{name}.pt")
    with tz.lazy_load(["a.pt", tmp_path / "b.pt"], join={"*": 0}) as checkpoint:
        assert checkpoint["w"].numpy().tolist() == [0, 0, 1, 1]


def test_names_that_differ_by_case(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where case does not count, they are one file, and the second would replace the first."""
    (tmp_path / "hf").mkdir()
    tz.save({"w": np.ones(2)}, tmp_path / "hf" / "pytorch_model.bin")
    for name in ("config.json", "Config.json"):
        (tmp_path / "hf" / name).write_text("{}")
    monkeypatch.setattr(os.path, "normcase", str.lower)
    with pytest.raises(FileExistsError, match="leads to the same file as"):
        tz.convert(tmp_path / "hf", f"{tmp_path / 'out'}/")
    assert os.listdir(tmp_path) == ["hf"]
