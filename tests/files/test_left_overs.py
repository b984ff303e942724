"""Temporary files of killed processes: removed by a later run of the same target, and no others."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
from pathlib import Path

import numpy as np
import pytest

import torchzip as tz
from tests.child_process import python
from tests.cli.running import Capture, run
from tests.faults import forks, in_child
from tests.systems import needs
from torchzip.files import left_overs, platform_calls
from torchzip.files.left_overs import prefix_for, remove_left_overs
from torchzip.files.new_file import NewFile


def left_over(target: Path) -> Path:
    """Make a file such as a killed process leaves."""
    path = Path(f"{target.parent}/{prefix_for(str(target))}0123456789abcdef.tmp")
    path.write_bytes(b"left")
    return path


@needs("fork", "fcntl")
@forks
def test_what_a_killed_process_left(path: Path) -> None:
    """It is gone with the next save, which warns of it by its name."""

    def killed() -> None:
        file = NewFile(path)
        file.write_at(0, b"half")
        os.kill(os.getpid(), signal.SIGKILL)

    with pytest.raises(AssertionError):
        assert in_child(killed) == 0
    (name,) = os.listdir(path.parent)
    with pytest.warns(UserWarning, match=f"m.pt: removed {name}, which a process that was killed"):
        tz.save({"w": np.ones(3)}, path)
    assert os.listdir(path.parent) == ["m.pt"]


@needs("fcntl")
def test_the_command_says_so(path: Path, capsys: Capture) -> None:
    """In one line on stderr."""
    tz.save({"w": np.ones(3, np.float32)}, path)
    left = left_over(path.with_name("o.pt"))
    status, _, err = run(capsys, "convert", path, path.with_name("o.pt"))
    assert status == 0
    assert f"torchzip: warning: {path.with_name('o.pt')}: removed {left.name}, which" in err
    assert sorted(os.listdir(path.parent)) == ["m.pt", "o.pt"]


def test_one_that_is_written(path: Path) -> None:
    """It stays, whether a process or a thread of this one writes it."""
    file = NewFile(path)
    assert remove_left_overs(str(path)) == []
    code = (
        "import sys; from torchzip.files.left_overs import *; print(remove_left_overs(sys.argv[1]))"
    )
    assert python("-c", code, path).strip() == "[]"
    file.sync()
    assert remove_left_overs(str(path)) == []  # it has no final name yet
    file.commit()
    assert os.listdir(path.parent) == ["m.pt"]


@needs("fcntl")
def test_one_that_was_just_made(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It goes before it is locked, and its writer makes another; no process was killed."""
    told: list[list[str]] = []

    def claim(descriptor: int) -> bool:
        if not told:
            told.append(remove_left_overs(str(path)))
        return real(descriptor)

    real = left_overs.claim
    monkeypatch.setattr("torchzip.files.new_file.claim", claim)
    tz.save({"w": np.ones(3)}, path)
    assert told == [[]]
    assert os.listdir(path.parent) == ["m.pt"]


@needs("fork", "fcntl")
@forks
def test_one_whose_worker_lives(path: Path) -> None:
    """A forked process that has the file open still writes it."""
    file = NewFile(path)
    file.write_at(0, b"half")
    told, tell = os.pipe()
    child = os.fork()
    if not child:
        os.close(tell)
        os.read(told, 1)  # until the other end is closed
        os._exit(0)
    os.close(told)
    os.close(file.descriptor)
    try:
        assert remove_left_overs(str(path)) == []
    finally:
        os.close(tell)
        os.waitpid(child, 0)
    assert remove_left_overs(str(path)) == [file.temporary]
    file._fd = -1


@needs("fork", "fcntl")
@forks
def test_a_lock_ends_with_the_commit(path: Path) -> None:
    """A process that was forked meanwhile does not keep others from editing the file."""
    file = NewFile(path)
    descriptor = os.dup(file.descriptor)
    file.commit()
    with open(path, "rb") as other:
        assert platform_calls.lock(other.fileno())
    os.close(descriptor)


def test_those_of_others(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of another target or computer, of before there were locks, and what is not a file."""
    others = [left_over(path.with_name("n.pt")), path.with_name(".torchzip-0123456789abcdef.tmp")]
    others[1].write_bytes(b"left")
    with monkeypatch.context() as patch:
        patch.setattr(left_overs, "computer", lambda: "elsewhere")
        others.append(left_over(path))
    others.append(path.with_name(prefix_for(str(path)) + "folder.tmp"))
    others[-1].mkdir()
    others.append(path.with_name(prefix_for(str(path)) + "link.tmp"))
    others[-1].symlink_to(others[0])
    tz.save({"w": np.ones(3)}, path)
    assert all(map(os.path.lexists, others))


def test_without_locks_nothing_is_proved(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some file systems have none: files are written all the same, and none is removed."""

    def none(descriptor: int, how: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    left = left_over(path)
    with contextlib.suppress(ImportError):  # on a system that has none anyway
        monkeypatch.setattr("fcntl.flock", none)
    tz.save({"w": np.ones(3)}, path)
    assert left.exists()
    assert path.exists()


@needs("fcntl")
def test_one_that_was_taken(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between making and locking a file another run may take it: then another one is made."""
    real = platform_calls.lock
    taken: list[str] = []

    def lock(descriptor: int) -> bool:
        if not taken:
            (name,) = os.listdir(path.parent)
            os.unlink(path.parent / name)
            taken.append(name)
        elif len(taken) == 1:
            taken.append("")
            raise BlockingIOError(errno.EWOULDBLOCK, "locked")
        return real(descriptor)

    monkeypatch.setattr(left_overs, "lock", lock)
    tz.save({"w": np.ones(3)}, path)
    assert len(taken) == 2
    assert os.listdir(path.parent) == ["m.pt"]
