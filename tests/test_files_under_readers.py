"""Files that change under a reader, disks that fail, and readers in threads and forked children.

Each has a defined end: the values that were there when the file was opened, or an error. Bytes that
are overwritten in place are noticed where the format has a CRC, which is in a zip only.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import pickle
import shutil
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import torchzip as tz
from tests.child_process import in_threads
from tests.faults import Call, descriptors, failing_with, forks, in_child, under
from tests.sampling import some
from tests.saved import legacy
from torchzip.files.ranges import RangeWriter

Values = dict[str, np.ndarray[Any, Any]]
KINDS = ("zip", "legacy", "safetensors", "shards")
#: Of one file, which the tests change.
FILES = ("zip", "legacy", "safetensors")
OLD, NEW = 1, 2


def values(seed: int) -> Values:
    """Return tensors whose files have the same size for all seeds."""
    rng = np.random.default_rng(seed)
    return {
        "a": rng.standard_normal(3000).astype(np.float32),
        "b": rng.standard_normal((20, 50)),
        "c": rng.integers(0, 99, 2000).astype(np.uint8),
    }


def write(folder: Path, kind: str, seed: int) -> Path:
    """Write a checkpoint; return what is opened: a file, or the index of shards."""
    made = values(seed)
    folder.mkdir(exist_ok=True)
    source = folder / "source.pt"
    path = folder / "m.pt"
    if kind == "zip":
        tz.save(made, path)
    elif kind == "legacy":
        path.write_bytes(legacy(made))
    else:
        tz.save(made, source)
        path = folder / ("m.safetensors" if kind == "safetensors" else "m.safetensors.index.json")
        tz.convert(source, path, max_shard_size=12_000 if kind == "shards" else None)
        source.unlink()
    return path


def is_of(loaded: Any, seed: int) -> bool:
    made = values(seed)
    assert sorted(loaded) == sorted(made)
    return all(np.array_equal(loaded[name], array) for name, array in made.items())


def read_lazily(path: Path) -> Values:
    with tz.lazy_load(path) as ckpt:
        return {name: ckpt[name].numpy() for name in ckpt}


def read_checked(path: Path) -> Values:
    """Read them, and look at the CRCs afterwards."""
    with tz.lazy_load(path) as ckpt:
        loaded = {name: ckpt[name].numpy() for name in ckpt}
        ckpt.verify()
        return loaded


# -- changes while it is open ----------------------------------------------------------------------


def _replace(path: Path, other: Path) -> None:
    shutil.copy(other, path.with_name("new"))
    os.replace(path.with_name("new"), path)


def _grow(path: Path, other: Path) -> None:
    with path.open("ab") as file:
        file.write(bytes(5000))


def overwrite(path: Path, other: Path) -> None:
    assert path.stat().st_size == other.stat().st_size
    with path.open("r+b") as file:
        file.write(other.read_bytes())


def _cut_to(nbytes: float) -> Callable[[Path, Path], None]:
    def cut(path: Path, other: Path) -> None:
        size = path.stat().st_size
        os.truncate(path, max(0, int(nbytes if nbytes < 0 or nbytes > 1 else nbytes * size)))

    return cut


CHANGES: dict[str, Callable[[Path, Path], None]] = {
    "replaced": _replace,
    "removed": lambda path, other: path.unlink(),
    "grown": _grow,
    "overwritten": overwrite,
    "emptied": _cut_to(0),
    "cut in half": _cut_to(0.5),
    "cut near the end": _cut_to(0.9),
}
each_kind = pytest.mark.parametrize("kind", FILES)
harmless = pytest.mark.parametrize("change", ["replaced", "removed", "grown"])
cuts = pytest.mark.parametrize("change", ["emptied", "cut in half", "cut near the end"])


@pytest.fixture
def paths(tmp_path: Path, kind: str) -> tuple[Path, Path]:
    """Return a file and another of its size."""
    return write(tmp_path / "old", kind, OLD), write(tmp_path / "new", kind, NEW)


@pytest.fixture
def path(tmp_path: Path, kind: str) -> Path:
    """Return a file, or the index of shards."""
    return write(tmp_path / "m", kind, OLD)


@each_kind
@harmless
def test_harmless_changes(paths: tuple[Path, Path], change: str) -> None:
    """The open file is what it was."""
    path, other = paths
    mapped = tz.load(path, mmap=True)
    with tz.lazy_load(path) as ckpt:
        CHANGES[change](path, other)
        assert is_of({name: ckpt[name].numpy() for name in ckpt}, OLD)
        assert ckpt["b"][3, 7] == values(OLD)["b"][3, 7]
        ckpt.verify()
    assert is_of(mapped, OLD)


@each_kind
@cuts
def test_cut_while_open(paths: tuple[Path, Path], change: str) -> None:
    """Each tensor has its values or is an error that says what has happened; so has `verify`."""
    path, other = paths
    failed = 0
    with tz.lazy_load(path) as ckpt:
        CHANGES[change](path, other)
        for name in ckpt:
            try:
                assert np.array_equal(ckpt[name].numpy(), values(OLD)[name])
            except tz.FormatError as error:
                failed += 1
                assert "cut it short" in str(error)  # noqa: PT017
                assert error.path == str(path)  # noqa: PT017
        assert failed
        with pytest.raises(tz.FormatError, match="cut it short"):
            ckpt.verify()


@each_kind
def test_overwritten_while_open(paths: tuple[Path, Path], kind: str) -> None:
    """`verify` sees it in a zip; other formats have nothing to see it by: what is there is read."""
    path, other = paths
    with tz.lazy_load(path) as ckpt:
        overwrite(path, other)
        if kind == "zip":
            with pytest.raises(tz.FormatError, match="CRC-32"):
                ckpt.verify()
        else:
            assert ckpt.verify().without_crc
            assert is_of({name: ckpt[name].numpy() for name in ckpt}, NEW)


@each_kind
@pytest.mark.parametrize("change", CHANGES)
def test_tensors_that_were_sent(paths: tuple[Path, Path], change: str) -> None:
    """A pickled tensor opens its file again, and takes no other for it."""
    path, other = paths
    with tz.lazy_load(path) as ckpt:
        sent = pickle.dumps(ckpt["a"])
        assert np.array_equal(pickle.loads(sent).numpy(), values(OLD)["a"])
        CHANGES[change](path, other)
        if change == "overwritten":  # a clock may not have gone on since the file was made
            os.utime(path)
        is_gone = change == "removed"
        with pytest.raises(
            FileNotFoundError if is_gone else tz.FormatError,
            match="No such file" if is_gone else "replaced or changed",
        ):
            pickle.loads(sent)


@forks
@each_kind
def test_cut_while_mapped(paths: tuple[Path, Path]) -> None:
    """As it is documented: the process is killed."""
    path, _ = paths

    def task() -> None:
        signal.signal(signal.SIGBUS, signal.SIG_DFL)  # no report of a crash
        mapped = tz.load(path, mmap=True)
        os.truncate(path, 0)
        mapped["a"].sum()

    assert in_child(task) == -signal.SIGBUS


# -- changes and failures at each call of a reader -------------------------------------------------


def _calls_of(read: Callable[[Path], Values], path: Path) -> list[Call]:
    with under() as system:
        assert is_of(read(path), OLD)
    return [call for call in system.calls if call[0] != "close"]


READS: dict[str, Callable[[Path], Any]] = {
    "load": tz.load,
    "lazy_load": read_lazily,
    "lazy_load and verify": read_checked,
}
each_read = pytest.mark.parametrize("read", READS.values(), ids=READS)


@each_kind
@each_read
@pytest.mark.parametrize("change", CHANGES)
def test_change_at_each_call(
    paths: tuple[Path, Path], kind: str, read: Callable[[Path], Values], change: str
) -> None:
    """The values of one of the two files, all of them, or an error."""
    path, other = paths
    if change == "overwritten" and (kind != "zip" or read is read_lazily):
        pytest.skip("nothing is there to notice it by")
    kept = path.read_bytes()
    outcomes = set()
    for call in _calls_of(read, path):

        def effect(name: str, real: Callable[..., Any], *args: Any, **more: Any) -> Any:
            CHANGES[change](path, other)
            return real(*args, **more)

        with under(call.__eq__, effect):
            try:
                loaded = read(path)
            except (tz.TorchZipError, OSError):
                outcomes.add("error")
            else:
                is_old, is_new = is_of(loaded, OLD), is_of(loaded, NEW)
                assert is_old or (is_new and change in ("replaced", "overwritten"))
                outcomes.add("old" if is_old else "new")
        path.unlink(missing_ok=True)
        path.write_bytes(kept)
    assert outcomes <= {"error", "old", "new"}
    assert outcomes & {"old", "error"}


def _shorter(name: str, real: Callable[..., Any], *args: Any, **more: Any) -> Any:
    if name == "pread":
        descriptor, nbytes, offset = args
        return real(descriptor, -(-nbytes // 2), offset)
    descriptor, (out,), offset = args
    return real(descriptor, [out[: -(-len(out) // 2)]], offset)


def _state() -> tuple[int, int, int]:
    return descriptors(), threading.active_count(), len(sys.modules)


@pytest.mark.parametrize("kind", KINDS)
@each_read
@pytest.mark.parametrize("code", [errno.EIO, errno.EINTR, errno.ESTALE], ids=errno.errorcode.get)
def test_each_call_fails_once(path: Path, read: Callable[[Path], Values], code: int) -> None:
    """It is the error of the call, nothing is left behind, and the next load is as good as ever."""
    calls = _calls_of(read, path)
    assert calls
    for call in calls:
        before = _state()
        with under(call.__eq__, failing_with(code)):
            try:
                read(path)
            except OSError as error:
                # Not the error itself: its traceback holds what is to be gone.
                found = error.errno
            else:
                found = 0
        assert found == code, call
        assert _state() == before
        assert is_of(read(path), OLD)


@pytest.mark.parametrize("kind", KINDS)
@each_read
def test_short_reads(path: Path, read: Callable[[Path], Values]) -> None:
    """What the kernel gives is taken and the rest asked for, each time."""
    with under(lambda call: call[0] in ("pread", "preadv"), _shorter) as system:
        assert is_of(read(path), OLD)
    assert any(name == "preadv" for name, _ in system.calls) or not hasattr(os, "preadv")


@pytest.mark.parametrize("kind", KINDS)
def test_failed_loads_leave_nothing(path: Path, kind: str) -> None:
    """A file that is no whole checkpoint, again and again, and then one that is."""
    target = next(path.parent.glob("*00001-of*")) if kind == "shards" else path
    whole = target.read_bytes()
    is_of(tz.load(path), OLD)
    before = _state()
    for part in (0.1, 0.5, 0.99):
        target.write_bytes(whole[: int(part * len(whole))])
        for read in READS.values():
            with pytest.raises((tz.TorchZipError, OSError)):
                read(path)
        assert _state() == before
    target.write_bytes(whole)
    for read in READS.values():
        assert is_of(read(path), OLD)


# -- closing while another thread reads ------------------------------------------------------------


def _numpy(ckpt: tz.Checkpoint, folder: Path) -> bool:
    return is_of({name: ckpt[name].numpy() for name in ckpt}, OLD)


def _slices(ckpt: tz.Checkpoint, folder: Path) -> bool:
    made = values(OLD)
    return all(np.array_equal(ckpt[name][1:-1:2], made[name][1:-1:2]) for name in ckpt)


def _verify(ckpt: tz.Checkpoint, folder: Path) -> bool:
    return ckpt.verify().tensors == len(values(OLD))


def _save(ckpt: tz.Checkpoint, folder: Path) -> bool:
    tz.save(ckpt.root, folder / "saved.pt")
    return is_of(tz.load(folder / "saved.pt"), OLD)


def _kernel_copy(ckpt: tz.Checkpoint, folder: Path) -> bool:
    path = folder / "copied"
    for name, array in values(OLD).items():
        path.write_bytes(b"")
        span = ckpt[name].spec.storage.span()
        assert span is not None
        source, at = span
        with RangeWriter(str(path)) as out:
            if out.copy(source, at, 0, array.nbytes) and path.read_bytes() != array.tobytes():
                return False
    return True


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("use", [_numpy, _slices, _verify, _save, _kernel_copy])
def test_close_at_each_call(
    tmp_path: Path, path: Path, use: Callable[[tz.Checkpoint, Path], bool]
) -> None:
    """A read that another thread closes the file under gives its bytes, or is an error.

    The read is stopped where the system has its descriptor's number, which other files get.
    """
    other = tmp_path / "other"
    other.write_bytes(b"\xee" * (1 << 16))
    with tz.lazy_load(path) as ckpt, under() as system:
        assert use(ckpt, tmp_path)
    reading = ("pread", "preadv", "copy_file_range")
    for call in some([call for call in system.calls if call[0] in reading]):
        before = descriptors()
        with contextlib.ExitStack() as opened:
            ckpt = tz.lazy_load(path)

            def effect(name: str, real: Callable[..., Any], *args: Any, **more: Any) -> Any:
                thread = threading.Thread(target=ckpt.close)  # noqa: B023
                thread.start()
                thread.join()
                for _ in range(8):
                    opened.enter_context(other.open("rb"))
                return real(*args, **more)

            with under(call.__eq__, effect):
                try:
                    assert use(ckpt, tmp_path), call
                except (ValueError, OSError, tz.TorchZipError) as error:
                    assert not isinstance(error, OSError), call  # noqa: PT017
        assert descriptors() == before, call


def test_close_waits_for_a_file_object(tmp_path: Path) -> None:
    """What its owner does with a file object after `close` does not meet a read."""
    path = write(tmp_path / "m", "zip", OLD)
    stopped, go_on = threading.Event(), threading.Event()

    class Stopping(io.FileIO):
        stops = False

        def readinto(self, buffer: Any) -> int | None:
            if self.stops:
                stopped.set()
                assert go_on.wait(60)
            return super().readinto(buffer)

    with Stopping(path) as file, tz.lazy_load(file) as ckpt:
        file.stops = True
        with ThreadPoolExecutor(2) as pool:
            read = pool.submit(ckpt["a"].numpy)
            assert stopped.wait(60)
            closed = pool.submit(ckpt.close)
            with pytest.raises(TimeoutError):
                closed.result(0.05)
            go_on.set()
            assert np.array_equal(read.result(60), values(OLD)["a"])
            closed.result(60)
        with pytest.raises(ValueError, match="closed"):
            ckpt["a"].numpy()


def test_map_of_a_file_that_was_replaced(tmp_path: Path) -> None:
    """A file is mapped by its path, which must lead to the file that was opened still."""
    path, other = write(tmp_path / "old", "zip", OLD), write(tmp_path / "new", "zip", NEW)

    def effect(name: str, real: Callable[..., Any], *args: Any, **more: Any) -> Any:
        result = real(*args, **more)
        _replace(path, other)
        return result

    with under(("fstat", 0).__eq__, effect), pytest.raises(tz.FormatError, match="replaced"):
        tz.load(path, mmap=True)


# -- threads and processes -------------------------------------------------------------------------


def test_different_files_in_threads(tmp_path: Path) -> None:
    """Eight threads, each with its own file of any format, some of them damaged."""
    files = [(write(tmp_path / f"{i}", KINDS[i % 4], i), i) for i in range(8)]
    damaged = tmp_path / "damaged.pt"
    damaged.write_bytes(files[0][0].read_bytes()[:-100])

    def work(number: int) -> None:
        path, seed = files[number]
        for round_ in range(6):
            assert is_of(list(READS.values())[round_ % 3](path), seed)
            with pytest.raises(tz.FormatError):
                tz.load(damaged)

    in_threads(*[work] * 8)


@pytest.mark.parametrize("kind", KINDS)
def test_one_checkpoint_in_threads(path: Path) -> None:
    """Its names are first asked for by all at once, and then read by all at once."""
    with tz.lazy_load(path) as ckpt:

        def work(number: int) -> None:
            for _ in range(5):
                assert is_of({name: ckpt[name].numpy() for name in ckpt}, OLD)
                assert ckpt["b"][number].tolist() == values(OLD)["b"][number].tolist()
            ckpt.verify()

        in_threads(*[work] * 8)


@forks
@pytest.mark.parametrize("kind", KINDS)
def test_checkpoint_after_fork(path: Path) -> None:
    """A child reads as its parent does, at the same time, and closes for itself only."""
    with tz.lazy_load(path) as ckpt:

        def read() -> None:
            for _ in range(20):
                assert is_of({name: ckpt[name].numpy() for name in ckpt}, OLD)

        def in_child_too() -> None:
            read()
            ckpt.close()
            with pytest.raises(ValueError, match="closed"):
                ckpt["a"].numpy()

        thread = threading.Thread(target=read)
        thread.start()
        assert in_child(in_child_too) == 0
        thread.join()
        read()
        ckpt.verify()


@pytest.mark.parametrize("kind", KINDS)
def test_checkpoint_after_close(path: Path) -> None:
    """Data can no more be read, which is the caller's mistake; what is known stays known."""
    with tz.lazy_load(path) as ckpt:
        tensor = ckpt["b"]
    ckpt.close()
    uses: Iterator[Callable[[], object]] = iter(
        (tensor.numpy, lambda: tensor[1, 2], ckpt.verify, lambda: ckpt["a"].numpy())
    )
    for use in uses:
        with pytest.raises(ValueError, match="closed") as caught:
            use()
        assert not isinstance(caught.value, tz.TorchZipError)
    assert tensor.shape == ckpt["b"].shape == (20, 50)
