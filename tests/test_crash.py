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
import re
import resource
import shutil
import signal
import stat
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import torchzip as tz
from torchzip.convert import conversion, mapped, run
from torchzip.files import direct, new_file, ranges, sink, source

#: All that reach the system while they write.
_MODULES = (new_file, sink, direct, ranges, source, run, conversion, mapped)
_CALLS = frozenset(
    "open write pwrite pread preadv fsync ftruncate replace close fchmod copy_file_range"
    " posix_fadvise unlink stat fstat fstatvfs mkdir rmdir".split()
)
_CAN_BE_SHORT = frozenset({"write", "pwrite", "copy_file_range"})
_LEFT_OVER = re.compile(r"\.torchzip-[0-9a-f]{16}\.tmp")


# -- the writers -----------------------------------------------------------------------------------


def content(seed: int) -> dict[str, Any]:
    """Return a large array, one more, and small ones; even seeds have one small one more."""
    rng = np.random.default_rng(seed)
    made: dict[str, Any] = {
        "a": rng.standard_normal(9000).astype(np.float32),
        "b": rng.standard_normal(7001).astype(np.float32),
        "c": rng.standard_normal(50).astype(np.float32),
    }
    return made if seed % 2 else made | {"d": np.full(3, seed, np.int64)}


def _save(folder: Path, seed: int) -> None:
    tz.save(content(seed), folder / "m.pt")


def _save_early(folder: Path, seed: int) -> None:
    made = content(seed)
    with tz.incremental_save(folder / "m.pt") as out:
        made["a"] = out.store_early(made["a"])
        out.save(made)


def _convert(folder: Path, seed: int, name: str, **options: Any) -> None:
    # One tensor is cast on its way, the other copied by the kernel if that can be done.
    tz.convert(
        folder.parent / f"source{seed}.pt", folder / name,
        dtype=[("a", "float16")], overwrite=True, **options,
    )  # fmt: skip


def _convert_to_pt(folder: Path, seed: int) -> None:
    _convert(folder, seed, "m.pt")


def _convert_to_safetensors(folder: Path, seed: int) -> None:
    _convert(folder, seed, "m.safetensors")


def _convert_to_shards(folder: Path, seed: int) -> None:
    _convert(folder, seed, "m.safetensors.index.json", max_shard_size=28_300)


@dataclass(frozen=True)
class Writer:
    """What is tested: ``write`` makes ``files`` in a folder, which are renamed in this order."""

    write: Callable[[Path, int], None]
    files: tuple[str, ...]

    def check(self, folder: Path, seed: int) -> None:
        """Load what there is, with all its CRCs, and compare it."""
        loaded = tz.load(folder / self.files[-1])
        for name, array in content(seed).items():
            is_cast = name == "a" and self.write not in (_save, _save_early)
            expected = array.astype(np.float16) if is_cast else array
            assert np.array_equal(loaded.pop(name), expected)
        assert not loaded


_SHARDS = ("m-00001-of-00002.safetensors", "m-00002-of-00002.safetensors")
WRITERS = {
    "save": Writer(_save, ("m.pt",)),
    "incremental_save": Writer(_save_early, ("m.pt",)),
    "convert to pt": Writer(_convert_to_pt, ("m.pt",)),
    "convert to safetensors": Writer(_convert_to_safetensors, ("m.safetensors",)),
    "convert to shards": Writer(_convert_to_shards, (*_SHARDS, "m.safetensors.index.json")),
}
each_writer = pytest.mark.parametrize("writer", WRITERS.values(), ids=WRITERS)
over_what = pytest.mark.parametrize("is_there", [True, False], ids=["over a file", "no file"])
OLD, NEW = 2, 3


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make a few KB large: past the cache, in pieces, with a thread."""
    monkeypatch.setattr(sink, "_CACHED_NBYTES", 2 * direct.ALIGNMENT)
    monkeypatch.setattr(direct, "_BLOCK_NBYTES", 2 * direct.ALIGNMENT)
    monkeypatch.setattr(ranges, "_DIRECT_NBYTES", 1 << 14)
    monkeypatch.setattr(ranges, "_COPY_NBYTES", 1 << 14)
    monkeypatch.setattr(run, "_SMALL_NBYTES", 1 << 11)
    monkeypatch.setattr(run, "_PIECE_NBYTES", 1 << 14)


class Place:
    """A folder for a writer's files, and the bytes that they have before and afterwards."""

    def __init__(self, root: Path, writer: Writer, is_there: bool) -> None:
        self.folder = root / "target"
        self._writer = writer
        for seed in (OLD, NEW):
            tz.save(content(seed), root / f"source{seed}.pt")
        self.old = self._make(OLD) if is_there else [None] * len(writer.files)
        self.new = self._make(NEW)
        assert all(a != b for a, b in zip(self.old, self.new, strict=True))

    def _make(self, seed: int) -> list[bytes | None]:
        self.reset([])
        self._writer.write(self.folder, seed)
        self._writer.check(self.folder, seed)
        assert sorted(os.listdir(self.folder)) == sorted(self._writer.files)
        return self.found()

    def reset(self, contents: Sequence[bytes | None] | None = None) -> None:
        """Put the old files there, and nothing else."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir()
        for name, data in zip(
            self._writer.files, self.old if contents is None else contents, strict=False
        ):
            if data is not None:
                (self.folder / name).write_bytes(data)

    def found(self) -> list[bytes | None]:
        """Return the bytes of each file, None where there is none."""
        paths = [self.folder / name for name in self._writer.files]
        return [path.read_bytes() if path.exists() else None for path in paths]

    def renamed(self) -> int:
        """Return how many files are new; raise if one is neither, or they are in another order."""
        found = self.found()
        count = sum(data == new for data, new in zip(found, self.new, strict=True))
        assert found == self.new[:count] + self.old[count:]
        return count

    def others(self) -> set[str]:
        """Return what is there beside the files."""
        return set(os.listdir(self.folder)) - set(self._writer.files)

    def write(self) -> None:
        """Write the new files."""
        self._writer.write(self.folder, NEW)


# -- the layer under the calls ---------------------------------------------------------------------

#: A call, told by its name and how many of that name came before.
Call = tuple[str, int]


class System:
    """Stands for ``os`` in the modules that write; ``effect`` takes the place of chosen calls.

    Nothing is synced, which the tests have no use for: only the order of the calls counts.
    """

    def __init__(self, fails: Callable[[Call], bool], effect: Callable[..., Any]) -> None:
        self.calls: list[Call] = []
        self.events: list[str] = []
        self.renames = 0
        self._fails = fails
        self._effect = effect
        self._counts: Counter[str] = Counter()
        self._lock = threading.Lock()

    def __getattr__(self, name: str) -> Any:
        real = getattr(os, name)
        return self.wrapped(name, real) if name in _CALLS else real

    def wrapped(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        """Return a function that counts, and then fails or does what it does."""

        def call(*args: Any, **more: Any) -> Any:
            with self._lock:
                this = (name, self._counts[name])
                self._counts[name] += 1
                self.calls.append(this)
            do = self._synced if name == "fsync" else real
            if self._fails(this):
                return self._effect(name, do, *args, **more)
            result = do(*args, **more)
            if name == "replace":
                self.renames += 1
                self.events.append(f"rename {os.path.basename(args[1])}")
            return result

        return call

    def _synced(self, descriptor: int) -> None:
        is_folder = stat.S_ISDIR(os.fstat(descriptor).st_mode)
        self.events.append("sync folder" if is_folder else "sync file")


def _effect_of(code: int) -> Callable[..., Any]:
    def fail(name: str, real: Callable[..., Any], *args: Any, **more: Any) -> Any:
        if name == "close":
            real(*args)  # the descriptor is gone, whatever the kernel says of the data
        raise OSError(code, os.strerror(code))

    return fail


def _half(name: str, real: Callable[..., Any], *args: Any, **more: Any) -> Any:
    if name == "copy_file_range":
        source, target, count, *places = args
        return real(source, target, max(count // 2, 1), *places)
    descriptor, data, *place = args
    return real(descriptor, memoryview(data)[: max(len(data) // 2, 1)], *place)


def _exit(name: str, real: Callable[..., Any], *args: Any, **more: Any) -> Any:
    os._exit(77)


def _exit_half_way(name: str, real: Callable[..., Any], *args: Any, **more: Any) -> Any:
    _half(name, real, *args, **more)
    os._exit(77)


@contextlib.contextmanager
def _under(
    fails: Callable[[Call], bool] = lambda call: False, effect: Callable[..., Any] = _exit
) -> Iterator[System]:
    """Put a `System` under the writers."""
    system = System(fails, effect)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(new_file, "_reserve", system.wrapped("reserve", new_file._reserve))
        for module in _MODULES:
            if hasattr(module, "os"):
                patch.setattr(module, "os", system)
        yield system


def _calls_of(place: Place) -> list[Call]:
    place.reset()
    with _under() as system:
        place.write()
    assert place.renamed() == len(place.new) == system.renames
    return system.calls


def _descriptors() -> int:
    return len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0


def _check_failure(place: Place, fails: Callable[[Call], bool], effect: Callable[..., Any]) -> bool:
    """Write with a fault; check what is left; return whether an error was raised."""
    place.reset()
    before = _descriptors(), threading.active_count()
    with _under(fails, effect) as system:
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
    assert (_descriptors(), threading.active_count()) == before
    return is_raised


# -- faults ----------------------------------------------------------------------------------------


@over_what
@each_writer
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EINTR], ids=errno.errorcode.get)
def test_each_call_fails_once(tmp_path: Path, writer: Writer, code: int, is_there: bool) -> None:
    """An OSError or none; the files that have their names are new, all others old."""
    place = Place(tmp_path, writer, is_there)
    calls = _calls_of(place)
    raised = {call for call in calls if _check_failure(place, call.__eq__, _effect_of(code))}
    # What must be told, because the bytes are not there, or not durable.
    must = {"fsync", "replace", *(_CAN_BE_SHORT - {"copy_file_range"})}
    assert raised >= {call for call in calls if call[0] in must}


@each_writer
def test_the_disk_goes_away(tmp_path: Path, writer: Writer) -> None:
    """From a call on all fail, those of the clearing up too, but for the removal."""
    place = Place(tmp_path, writer, True)
    for call in _calls_of(place):
        is_gone = False

        def fails(this: Call, first: Call = call) -> bool:
            nonlocal is_gone
            is_gone = is_gone or this == first
            return is_gone and this[0] != "unlink"

        _check_failure(place, fails, _effect_of(errno.EIO))


@each_writer
def test_each_write_is_short_once(tmp_path: Path, writer: Writer) -> None:
    """It is gone on with, from where it ended."""
    place = Place(tmp_path, writer, True)
    calls = [call for call in _calls_of(place) if call[0] in _CAN_BE_SHORT]
    assert calls
    for call in calls:
        assert not _check_failure(place, call.__eq__, _half)


def test_faults_after_an_error_of_the_caller(tmp_path: Path) -> None:
    """A block that ends with an exception: clearing up goes on when one of its calls fails."""

    def write(folder: Path, seed: int) -> None:
        with tz.incremental_save(folder / "m.pt") as out:
            out.store_early(content(seed)["a"])
            raise KeyError("of the caller")

    path = tmp_path / "m.pt"
    path.write_bytes(b"old")
    with _under() as system, pytest.raises(KeyError):
        write(tmp_path, NEW)
    before = _descriptors()
    for call in (call for call in system.calls if call[0] != "unlink"):
        with (
            _under(call.__eq__, _effect_of(errno.EIO)),
            contextlib.suppress(KeyError, OSError),
        ):
            write(tmp_path, NEW)
        assert os.listdir(tmp_path) == ["m.pt"]
        assert path.read_bytes() == b"old"
        assert _descriptors() == before


@each_writer
def test_failure_after_the_renames(tmp_path: Path, writer: Writer) -> None:
    """The error of the folder's sync is told, and the new files are there."""
    place = Place(tmp_path, writer, True)
    last = max(call for call in _calls_of(place) if call[0] == "fsync")
    assert _check_failure(place, last.__eq__, _effect_of(errno.EIO))
    assert place.renamed() == len(writer.files)
    writer.check(place.folder, NEW)


def test_a_folder_that_is_made(tmp_path: Path) -> None:
    """It is there with its file, or not at all, and the error is that of the call."""
    tz.save(content(NEW), tmp_path / "m.pt")
    folder = tmp_path / "made"

    def write() -> None:
        tz.convert(tmp_path / "m.pt", f"{folder}/")

    with _under() as system:
        write()
    assert system.events == [
        "sync file",
        "rename model.safetensors",
        "sync folder",
        "sync folder",  # in which the folder is
    ]
    for call in system.calls:
        shutil.rmtree(folder, ignore_errors=True)
        with _under(call.__eq__, _effect_of(errno.EIO)) as system:
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
def test_order(tmp_path: Path, writer: Writer, is_there: bool) -> None:
    """All files are synced, then renamed, the index last; then the folder is synced."""
    place = Place(tmp_path, writer, is_there)
    place.reset()
    with _under() as system:
        place.write()
    names = writer.files
    assert system.events == [
        *["sync file"] * len(names),
        *[f"rename {name}" for name in names],
        "sync folder",
    ]


# -- the end of the process ------------------------------------------------------------------------


def _in_child(task: Callable[[], object]) -> int:
    """Carry out a task in a forked process; return its status, 0 if it came to its end."""
    child = os.fork()
    if not child:
        status = 1
        try:
            signal.alarm(100)  # a test that hangs ends
            task()
            status = 0
        except BaseException as error:
            os.write(2, f"{error!r}\n".encode())
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


forks = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of fork beside threads


@forks
@each_writer
def test_the_process_ends_at_each_call(tmp_path: Path, writer: Writer) -> None:
    """Nothing is cleared up then. The files are whole, and what is left has a name that says so."""
    place = Place(tmp_path, writer, True)
    seen = set()
    calls = _calls_of(place)
    ends = [(call, _exit) for call in calls]
    ends += [(call, _exit_half_way) for call in calls if call[0] in _CAN_BE_SHORT]
    for call, effect in ends:

        def task(call: Call = call, effect: Callable[..., Any] = effect) -> None:
            with _under(call.__eq__, effect):
                place.write()

        place.reset()
        assert _in_child(task) == 77
        seen.add(place.renamed())
        assert all(_LEFT_OVER.fullmatch(name) for name in place.others())
    assert seen == set(range(len(writer.files) + 1))


@each_writer
def test_left_overs_are_no_hindrance(tmp_path: Path, writer: Writer) -> None:
    """A writer that comes after one that was killed, at its last moment, goes its way."""
    place = Place(tmp_path, writer, True)
    place.reset()

    def task() -> None:
        with _under(("replace", 0).__eq__, _exit):
            place.write()

    assert _in_child(task) == 77
    left = place.others()
    assert len(left) == len(writer.files)
    place.write()
    assert place.renamed() == len(writer.files)
    assert place.others() == left


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
        expected = self._contents[loaded["number"]]
        for part, other in zip(loaded["parts"], expected["parts"], strict=True):
            assert np.array_equal(part, other)
        left = [path for path in self.path.parent.iterdir() if path != self.path]
        assert len(left) <= 1
        for path in left:
            assert _LEFT_OVER.fullmatch(path.name)
            path.unlink()
        self.while_writing += bool(left)


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
def test_limit_on_the_file_size(tmp_path: Path, writer: Writer, limit: int) -> None:
    """It is an OSError, wherever it comes, and the old files stay."""
    place = Place(tmp_path, writer, True)
    place.reset()

    def task() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        with pytest.raises(OSError, match=r".+") as caught:
            place.write()
        assert caught.value.errno in (errno.EFBIG, errno.EINVAL)

    assert _in_child(task) == 0
    assert place.renamed() == 0
    assert place.others() == set()


@each_writer
def test_read_only_folder(tmp_path: Path, writer: Writer) -> None:
    """It is an OSError, and the old files stay."""
    place = Place(tmp_path, writer, True)
    place.reset()
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
@pytest.mark.parametrize("failing", [None, "fsync", "replace"])
def test_symlinks(tmp_path: Path, writer: Writer, failing: str | None) -> None:
    """They stay, whether what they point to is replaced or not."""
    place = Place(tmp_path, writer, True)
    place.reset()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    for name in writer.files:
        (place.folder / name).rename(elsewhere / name)
        (place.folder / name).symlink_to(elsewhere / name)
    with _under((failing, 0).__eq__, _effect_of(errno.EIO)), contextlib.suppress(OSError):
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
        with _under((failing, 0).__eq__, _effect_of(errno.EIO)), contextlib.suppress(OSError):
            write()
        assert os.listdir(path.parent) == [path.name]
        if failing:
            assert path.read_bytes() == b"old"
        else:
            assert np.array_equal(tz.load(path)["a"], content(NEW)["a"])


def _check_either(path: Path) -> None:
    loaded = tz.load(path)
    expected = content(OLD if "d" in loaded else NEW)
    assert loaded.keys() == expected.keys()
    assert all(np.array_equal(loaded[name], expected[name]) for name in expected)


def test_two_threads_on_one_path(tmp_path: Path) -> None:
    """Whoever reads gets what one of them wrote, whole; the last rename wins."""
    path = tmp_path / "m.pt"
    tz.save(content(OLD), path)

    def save_often(seed: int) -> None:
        for _ in range(10):
            _save(tmp_path, seed)

    threads = [threading.Thread(target=save_often, args=[seed]) for seed in (OLD, NEW)]
    with _under() as system:
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
def test_two_processes_on_one_path(tmp_path: Path) -> None:
    """The same of processes."""
    path = tmp_path / "m.pt"
    tz.save(content(OLD), path)
    children = []
    for seed in (OLD, NEW):
        child = os.fork()
        if not child:
            try:
                for _ in range(10):
                    _save(tmp_path, seed)
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
