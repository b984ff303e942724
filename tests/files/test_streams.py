"""Paths that lead to a stream: what is written follows what is there, and replaces nothing."""

from __future__ import annotations

import io
import os
import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import torchzip as tz
from tests.saved import saved
from tests.systems import needs
from torchzip.files.streams import is_stream
from torchzip.tools import report

_VALUES: dict[str, Any] = {"w": np.arange(1000, dtype=np.float32), "n": 7}


def _incremental(path: Any) -> None:
    with tz.incremental_save(path) as out:
        out.save({"w": out.store_early(_VALUES["w"]), "n": 7})


def _report(path: Any) -> None:
    file = io.BytesIO(saved(_VALUES))
    report(file, path)


#: What writes to a path, and what the bytes begin with.
WRITERS: dict[str, tuple[Callable[[Any], object], bytes]] = {
    "save": (lambda path: tz.save(_VALUES, path), b"PK\3\4"),
    "incremental_save": (_incremental, b"PK\3\4"),
    "report": (_report, b"<!doctype html>"),
}
each_writer = pytest.mark.parametrize("writer", WRITERS)
#: How a path leads to an open file, given its number and a folder for links.
WAYS: dict[str, Callable[[int, Path], str]] = {
    "dev": lambda number, folder: f"/dev/fd/{number}",
    "proc": lambda number, folder: f"/proc/self/fd/{number}",
    "process": lambda number, folder: f"/proc/{os.getpid()}/fd/{number}",
    "thread": lambda number, folder: f"/proc/thread-self/fd/{number}",
    "dots": lambda number, folder: f"/dev/fd/../fd/./{number}",
    "link": lambda number, folder: _link(folder / "a.pt", f"/dev/fd/{number}"),
    "links": lambda number, folder: _link(
        folder / "b.pt", _link(folder / "a", f"/dev/fd/{number}")
    ),
    "folder": lambda number, folder: os.path.join(_link(folder / "d", "/dev/fd"), str(number)),
}


def _link(path: Path, target: str) -> str:
    path.symlink_to(target)
    return str(path)


def _check(data: bytes, writer: str) -> None:
    assert data.startswith(WRITERS[writer][1])
    if data.startswith(b"PK"):
        loaded = tz.load(io.BytesIO(data))
        assert np.array_equal(loaded["w"], _VALUES["w"])
        assert loaded["n"] == 7


@each_writer
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("flags", [0, os.O_APPEND], ids=["positioned", "appending"])
def test_open_file(tmp_path: Path, writer: str, way: str, flags: int) -> None:
    """However it is named, it is written to where it stands; the file behind it stays."""
    log = tmp_path / "log"
    log.write_bytes(b"old lines\n")
    links = tmp_path / "links"
    links.mkdir()
    descriptor = os.open(log, os.O_RDWR | flags)
    try:
        path = WAYS[way](descriptor, links)
        if not os.path.exists(path):
            pytest.skip("this system does not show open files there")
        before = os.fstat(descriptor).st_ino
        if not flags:
            os.lseek(descriptor, 0, os.SEEK_END)
        assert is_stream(path)
        WRITERS[writer][0](path)
        os.write(descriptor, b"after")
    finally:
        os.close(descriptor)
    data = log.read_bytes()
    assert os.stat(log).st_ino == before
    assert data.startswith(b"old lines\n")
    assert data.endswith(b"after")
    _check(data[10:-5], writer)
    assert sorted(os.listdir(tmp_path)) == ["links", "log"]


@pytest.mark.parametrize("name", ["/dev/stdout", "/dev/stderr", "/dev/fd/1"])
@pytest.mark.parametrize("kind", ["pipe", "file", "log"])
def test_stdout(tmp_path: Path, name: str, kind: str) -> None:
    """As a shell's user expects: redirected or piped, between what is printed before and after."""
    stream = "stderr" if name.endswith("stderr") else "stdout"
    code = (
        f"import sys, torchzip\nprint('before', file=sys.{stream})\n"
        f"torchzip.save({{'a': 1}}, {name!r})\nprint('after', file=sys.{stream})\n"
    )
    path = tmp_path / "out"
    path.write_bytes(b"old\n")
    environment = {**os.environ, "PYTHONPATH": str(Path(tz.__file__).parents[1])}
    with path.open("ab" if kind == "log" else "wb") as file:
        made = subprocess.run(
            [sys.executable, "-c", code],
            check=True,
            env=environment,
            **{stream: subprocess.PIPE if kind == "pipe" else file},  # type: ignore[call-overload]
        )
    found = getattr(made, stream) if kind == "pipe" else path.read_bytes()
    head = b"old\nbefore\n" if kind == "log" else b"before\n"
    assert found.startswith(head + b"PK")
    assert found.endswith(b"after\n")
    assert tz.load(io.BytesIO(found[len(head) : -6])) == {"a": 1}


@needs("mkfifo")
@each_writer
def test_fifo(tmp_path: Path, writer: str) -> None:
    """Its reader gets the bytes; it is a FIFO afterwards, and alone."""
    path = tmp_path / "m.pt"
    os.mkfifo(path)
    got: list[bytes] = []
    reader = threading.Thread(target=lambda: got.append(path.read_bytes()))
    reader.start()
    WRITERS[writer][0](path)
    reader.join()
    _check(got[0], writer)
    assert stat.S_ISFIFO(path.stat().st_mode)
    assert os.listdir(tmp_path) == ["m.pt"]


@each_writer
def test_device(writer: str) -> None:
    """What goes to a device is gone, and the device is there."""
    WRITERS[writer][0](os.devnull)
    assert stat.S_ISCHR(os.stat(os.devnull).st_mode)


def test_nothing_is_written_of_what_cannot_be_saved(tmp_path: Path) -> None:
    """The structure comes first, as it does for a file object."""
    with (tmp_path / "log").open("wb") as file, pytest.raises(TypeError):
        tz.save({"a": np.array([object()])}, f"/dev/fd/{file.fileno()}")
    assert not (tmp_path / "log").read_bytes()


@pytest.mark.parametrize(
    "way", [pytest.param("fifo", marks=needs("mkfifo")), "device", "open file"]
)
def test_convert_writes_to_no_stream(tmp_path: Path, way: str) -> None:
    """Its workers write at any place, so it is refused, and what is there stays as it is."""
    tz.save(_VALUES, tmp_path / "m.pt")
    path = tmp_path / "o.pt"
    (tmp_path / "log").write_bytes(b"old")
    with (tmp_path / "log").open("ab") as file:
        if way == "fifo":
            os.mkfifo(path)
        else:
            path.symlink_to(os.devnull if way == "device" else f"/dev/fd/{file.fileno()}")
        for overwrite in (False, True):
            with pytest.raises(OSError, match="not a regular file but a stream") as caught:
                tz.convert(tmp_path / "m.pt", path, overwrite=overwrite)
            assert caught.value.filename == str(path)
    assert (tmp_path / "log").read_bytes() == b"old"
    assert sorted(os.listdir(tmp_path)) == ["log", "m.pt", "o.pt"]


@pytest.mark.skipif(not os.path.isdir("/proc/1/fd"), reason="no /proc")
def test_open_file_of_another_process(tmp_path: Path) -> None:
    """It has its own place in that file, which is not known here: refused."""
    with (
        (tmp_path / "log").open("wb") as file,
        subprocess.Popen(
            [sys.executable, "-c", "input()"], stdin=subprocess.PIPE, stdout=file
        ) as other,
    ):
        with pytest.raises(OSError, match="another process"):
            tz.save({}, f"/proc/{other.pid}/fd/1")
        other.communicate(b"\n")
    assert not (tmp_path / "log").read_bytes()


@pytest.mark.parametrize("name", ["m.pt", "fd/1", "link", "1", "none/m.pt", "dangling"])
def test_files(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other paths are files, with or without something there."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "fd").mkdir()
    (tmp_path / "link").symlink_to("m.pt")
    (tmp_path / "dangling").symlink_to("dangling")
    assert not is_stream(name)
