"""Crashes: every call that a writer makes fails once, or is the last of its process.

A target is whole after all of it, with its old bytes or its new ones. Of several files (shards
and their index) a prefix is new and the rest old, in the order of the renames, index last: the
index of a new set is there only when all of the set is, and before the first rename all of it
is on the disk.

``python -m tests.test_crash --kills 200`` kills a process that saves 64 MiB, at random moments.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import os
import random
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import torchzip as tz
from tests.comparing import assert_same_tree
from tests.faults import (
    CAN_BE_SHORT,
    Call,
    descriptors,
    end_half_way,
    end_process,
    ends_in_child,
    failing_with,
    forks,
    half,
    in_child,
    under,
)
from tests.writers import (
    LEFT_OVER,
    NEW,
    OLD,
    Place,
    Writer,
    content,
    each_writer,
    make_small,
    over_what,
    write_save,
)


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    make_small(monkeypatch)


@pytest.fixture
def is_there() -> bool:
    return True


@pytest.fixture
def place(tmp_path: Path, writer: Writer, is_there: bool) -> Place:
    """Return a place with the old files, but for where a test says that there is none."""
    return Place(tmp_path, writer, is_there)


def _calls_of(place: Place) -> list[Call]:
    place.reset()
    with under() as system:
        place.write()
    assert place.renamed() == len(place.new) == system.renames
    return system.calls


def _check_failure(place: Place, fails: Callable[[Call], bool], effect: Callable[..., Any]) -> bool:
    """Write with a fault; check what is left; return whether an error was raised."""
    place.reset()
    before = descriptors(), threading.active_count()
    with under(fails, effect) as system:
        try:
            place.write()
        except OSError as error:
            # Not the error itself: its traceback holds what is to be gone.
            is_raised = error.errno is not None
            assert is_raised
        else:
            is_raised = False
    # What has its name keeps it, all else is as it was: exactly, and not one or the other.
    assert place.renamed() == system.renames
    assert is_raised or system.renames == len(place.new)
    assert place.others() == set()
    assert (descriptors(), threading.active_count()) == before
    return is_raised


# -- faults ----------------------------------------------------------------------------------------


@over_what
@each_writer
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EINTR], ids=errno.errorcode.get)
def test_each_call_fails_once(
    tmp_path: Path, place: Place, writer: Writer, code: int, is_there: bool
) -> None:
    """An OSError or none; the files that have their names are new, all others old."""
    calls = _calls_of(place)
    raised = {call for call in calls if _check_failure(place, call.__eq__, failing_with(code))}
    # What must be told, because the bytes are not there, or not durable.
    must = {"fsync", "replace", *(CAN_BE_SHORT - {"copy_file_range"})}
    assert raised >= {call for call in calls if call[0] in must}


@pytest.mark.few
@each_writer
def test_the_disk_goes_away(place: Place) -> None:
    """From a call on all fail, those of the clearing up too, but for the removal."""
    for call in _calls_of(place):
        is_gone = False

        def fails(this: Call, first: Call = call) -> bool:
            nonlocal is_gone
            is_gone = is_gone or this == first
            return is_gone and this[0] != "unlink"

        _check_failure(place, fails, failing_with(errno.EIO))


@each_writer
def test_each_write_is_short_once(place: Place) -> None:
    """It is gone on with, from where it ended."""
    calls = [call for call in _calls_of(place) if call[0] in CAN_BE_SHORT]
    assert calls
    for call in calls:
        assert not _check_failure(place, call.__eq__, half)


def test_faults_after_an_error_of_the_caller(tmp_path: Path, path: Path) -> None:
    """A block that ends with an exception: clearing up goes on when one of its calls fails."""

    def write(folder: Path, seed: int) -> None:
        with tz.incremental_save(folder / "m.pt") as out:
            out.store_early(content(seed)["a"])
            raise KeyError("of the caller")

    path.write_bytes(b"old")
    with under() as system, pytest.raises(KeyError):
        write(tmp_path, NEW)
    before = descriptors()
    for call in (call for call in system.calls if call[0] != "unlink"):
        with under(call.__eq__, failing_with(errno.EIO)), contextlib.suppress(KeyError, OSError):
            write(tmp_path, NEW)
        assert os.listdir(tmp_path) == ["m.pt"]
        assert path.read_bytes() == b"old"
        assert descriptors() == before


@each_writer
def test_failure_after_the_renames(place: Place, writer: Writer) -> None:
    """The error of the folder's sync is told, and the new files are there."""
    last = max(call for call in _calls_of(place) if call[0] == "fsync")
    assert _check_failure(place, last.__eq__, failing_with(errno.EIO))
    assert place.renamed() == len(writer.files)
    writer.check(place.folder, NEW)


def test_a_folder_that_is_made(tmp_path: Path) -> None:
    """It is there with its file, or not at all, and the error is that of the call."""
    tz.save(content(NEW), tmp_path / "m.pt")
    folder = tmp_path / "made"

    def write() -> None:
        tz.convert(tmp_path / "m.pt", f"{folder}/")

    with under() as system:
        write()
    assert system.events == [
        "sync file",
        "rename model.safetensors",
        "sync folder",
        "sync folder",  # in which the folder is
    ]
    for call in system.calls:
        shutil.rmtree(folder, ignore_errors=True)
        with under(call.__eq__, failing_with(errno.EIO)) as system:
            try:
                write()
            except OSError as error:
                code = error.errno
                assert code == errno.EIO
        assert folder.exists() == (system.renames == 1)
        if system.renames:
            assert os.listdir(folder) == ["model.safetensors"]
            assert np.array_equal(tz.load(folder / "model.safetensors")["a"], content(NEW)["a"])


@over_what
@each_writer
def test_order(place: Place, writer: Writer) -> None:
    """All files are synced, then renamed, the index last; then the folder is synced."""
    with under() as system:
        place.write()
    names = writer.files
    assert system.events == [
        *["sync file"] * len(names),
        *[f"rename {name}" for name in names],
        "sync folder",
    ]


# -- the end of the process ------------------------------------------------------------------------


@pytest.mark.few
@forks
@each_writer
def test_the_process_ends_at_each_call(place: Place, writer: Writer) -> None:
    """Nothing is cleared up then. The files are whole, and what is left has a name that says so."""
    seen = set()
    calls = _calls_of(place)
    ends = [(call, end_process) for call in calls]
    ends += [(call, end_half_way) for call in calls if call[0] in CAN_BE_SHORT]
    for call, effect in ends:
        place.reset()
        assert ends_in_child(call, effect, place.write)
        seen.add(place.renamed())
        assert all(LEFT_OVER.fullmatch(name) for name in place.others())
    assert seen == set(range(len(writer.files) + 1))


@each_writer
def test_left_overs_are_no_hindrance(place: Place, writer: Writer) -> None:
    """A writer that comes after one that was killed, at its last moment, removes what it left."""
    assert ends_in_child(("replace", 0), end_process, place.write)
    left = place.others()
    assert len(left) == len(writer.files)
    with pytest.warns(UserWarning, match="which a process that was killed had left"):
        place.write()
    assert place.renamed() == len(writer.files)
    assert place.others() == set()


class Killed:
    """A process that saves two contents in turn over one path, killed again and again."""

    def __init__(self, folder: Path, nbytes: int, seed: int) -> None:
        self.path = folder / "m.pt"
        self._random = random.Random(seed)
        rng = np.random.default_rng(seed)
        self._contents: list[dict[str, Any]] = []
        for number in range(2):
            parts = [rng.integers(0, 255, nbytes // 4, dtype=np.uint8) for _ in range(4)]
            self._contents.append({"number": number, "parts": parts})
        begun = time.monotonic()
        for made in self._contents:
            tz.save(made, self.path)
        self._longest = time.monotonic() - begun  # about twice what a save takes
        self.kills = self.while_writing = 0

    def kill(self) -> None:
        """Start, kill, and check; raise if the file is not whole."""
        child = os.fork()
        if not child:
            try:
                while True:
                    for made in self._contents:
                        tz.save(made, self.path)
            finally:
                os._exit(1)
        time.sleep(self._random.uniform(0, self._longest))
        os.kill(child, signal.SIGKILL)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
        self.kills += 1
        loaded = tz.load(self.path)  # with all CRCs
        assert_same_tree(loaded["parts"], self._contents[loaded["number"]]["parts"])
        left = [path for path in self.path.parent.iterdir() if path != self.path]
        assert len(left) <= 1
        for path in left:
            assert LEFT_OVER.fullmatch(path.name)
            path.unlink()
        self.while_writing += bool(left)


@pytest.mark.long
@forks
def test_kills(tmp_path: Path) -> None:
    """Killed at any moment, it leaves a whole file."""
    killed = Killed(tmp_path, 4 << 20, seed=1)
    for _ in range(10):
        killed.kill()


# -- bad weather -----------------------------------------------------------------------------------


@forks
@each_writer
@pytest.mark.parametrize("limit", [0, 1, 4096, 10_000, 16_384, 20_000, 24_577, 27_999])
def test_limit_on_the_file_size(place: Place, limit: int) -> None:
    """It is an OSError, wherever it comes, and the old files stay."""

    def task() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        import resource  # Windows has none

        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        with pytest.raises(OSError, match=r".+") as caught:
            place.write()
        assert caught.value.errno in (errno.EFBIG, errno.EINVAL)

    assert in_child(task) == 0
    assert place.renamed() == 0
    assert place.others() == set()


@each_writer
def test_read_only_folder(place: Place) -> None:
    """It is an OSError, and the old files stay."""
    place.folder.chmod(0o500)
    try:
        if os.access(place.folder, os.W_OK):
            pytest.skip("root may write everywhere")
        with pytest.raises(PermissionError):
            place.write()
        assert place.renamed() == 0
    finally:
        place.folder.chmod(0o700)


@each_writer
@pytest.mark.parametrize("umask", [0o777, 0o277, 0o027])
def test_files_that_others_may_not_open(tmp_path: Path, writer: Writer, umask: int) -> None:
    """Under an odd umask, or over a read-only file, the temporary file can be opened again."""
    place = Place(tmp_path, writer, False)

    def modes() -> set[int]:
        return {(place.folder / name).stat().st_mode & 0o777 for name in writer.files}

    def check_open(path: Any, flags: int, *rest: Any, **more: Any) -> int:
        descriptor: int = real(path, flags, *rest, **more)
        if LEFT_OVER.fullmatch(os.path.basename(str(path))) and not flags & os.O_CREAT:
            # Root may open everything.
            assert os.fstat(descriptor).st_mode & 0o600 == 0o600
        return descriptor

    real = os.open
    place.reset()
    before = os.umask(umask)
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(os, "open", check_open)
            place.write()
            assert modes() == {0o666 & ~umask}
            for name in writer.files:
                (place.folder / name).chmod(0o444)
            place.write()
    finally:
        os.umask(before)
    assert modes() == {0o444}
    assert place.renamed() == len(writer.files)


@each_writer
def test_private_files_stay_private(place: Place, writer: Writer) -> None:
    """What takes the place of a private file was never open to others."""
    for name in writer.files:
        (place.folder / name).chmod(0o600)
    asked = []
    real = os.open

    def note(path: Any, flags: int, mode: int = 0o777, **more: Any) -> int:
        if flags & os.O_CREAT:
            asked.append(mode)
        return real(path, flags, mode, **more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "open", note)
        place.write()
    assert asked == [0o600] * len(writer.files)


@each_writer
@pytest.mark.parametrize(
    ("name", "code"), [("open", errno.EACCES), ("fsync", errno.EINVAL), ("fsync", errno.EOPNOTSUPP)]
)
def test_folders_that_cannot_be_synced(place: Place, writer: Writer, name: str, code: int) -> None:
    """One without the right to read, and file systems that sync files only: all is well."""
    last = max(call for call in _calls_of(place) if call[0] == name)
    assert not _check_failure(place, last.__eq__, failing_with(code))
    assert place.renamed() == len(writer.files)


@each_writer
@pytest.mark.parametrize("failing", [None, "fsync", "replace"])
def test_symlinks(tmp_path: Path, place: Place, writer: Writer, failing: str | None) -> None:
    """They stay, whether what they point to is replaced or not."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    for name in writer.files:
        (place.folder / name).rename(elsewhere / name)
        (place.folder / name).symlink_to(elsewhere / name)
    with under((failing, 0).__eq__, failing_with(errno.EIO)), contextlib.suppress(OSError):
        place.write()
    assert place.renamed() == (0 if failing else len(writer.files))
    assert all((place.folder / name).is_symlink() for name in writer.files)
    assert sorted(os.listdir(elsewhere)) == sorted(writer.files)
    assert place.others() == set()


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("failing", [None, "fsync", "replace"])
def test_names_of_255_bytes(tmp_path: Path, suffix: str, failing: str | None) -> None:
    """There is no longer name, and a temporary file beside it."""
    path = tmp_path / "target" / ("n" * (255 - len(suffix)) + suffix)
    path.parent.mkdir()
    path.write_bytes(b"old")
    tz.save(content(NEW), tmp_path / "m.pt")
    writes: list[Callable[[], object]] = [
        lambda: tz.convert(tmp_path / "m.pt", path, overwrite=True)
    ]
    if suffix == ".pt":
        writes.append(lambda: tz.save(content(NEW), path))
    for write in writes:
        with under((failing, 0).__eq__, failing_with(errno.EIO)), contextlib.suppress(OSError):
            write()
        assert os.listdir(path.parent) == [path.name]
        if failing:
            assert path.read_bytes() == b"old"
        else:
            assert np.array_equal(tz.load(path)["a"], content(NEW)["a"])


def _check_either(path: Path) -> None:
    loaded = tz.load(path)
    assert_same_tree(loaded, content(OLD if "d" in loaded else NEW))


def test_two_threads_on_one_path(tmp_path: Path, path: Path) -> None:
    """Whoever reads gets what one of them wrote, whole; the last rename wins."""
    tz.save(content(OLD), path)

    def save_often(seed: int) -> None:
        for _ in range(10):
            write_save(tmp_path, seed)

    threads = [threading.Thread(target=save_often, args=[seed]) for seed in (OLD, NEW)]
    with under() as system:
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            _check_either(path)
        for thread in threads:
            thread.join()
    assert system.renames == 20
    _check_either(path)
    assert os.listdir(tmp_path) == ["m.pt"]


@forks
def test_two_processes_on_one_path(tmp_path: Path, path: Path) -> None:
    """The same of processes."""
    tz.save(content(OLD), path)
    children = []
    for seed in (OLD, NEW):
        child = os.fork()
        if not child:
            try:
                for _ in range(10):
                    write_save(tmp_path, seed)
            except BaseException:
                os._exit(1)
            os._exit(0)
        children.append(child)
    while children:
        child, status = os.waitpid(children[0], os.WNOHANG)
        if child:
            assert status == 0
            children.remove(child)
        _check_either(path)
    assert os.listdir(tmp_path) == ["m.pt"]


def main() -> None:
    """Kill as often as is asked, and say what was found."""
    parser = argparse.ArgumentParser(description="Kill a process that saves, at random moments.")
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--mib", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", help="on the disk to be tested")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
        killed = Killed(Path(folder), given.mib << 20, given.seed)
        torn = 0
        for _ in range(given.kills):
            try:
                killed.kill()
            except (AssertionError, tz.TorchZipError, OSError) as error:
                torn += 1
                print(repr(error), file=sys.stderr)
    print(
        f"{torn} torn files in {given.kills} kills while overwriting a {given.mib} MiB checkpoint"
        f" ({killed.while_writing} of them in the middle of a file)"
    )
    sys.exit(bool(torn))


if __name__ == "__main__":
    main()
