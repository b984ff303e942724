"""Ctrl-C: a real SIGINT at every call and every line of a writer, and at any moment of a pool.

What has its final name is whole, what has not is as it was, and nothing else is left: no temporary
file, no thread, no process.
"""

from __future__ import annotations

import gc
import itertools
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest

import torchzip as tz
from tests.faults import forks, under
from tests.writers import WRITERS, Place, Writer, each_writer, make_small
from torchzip.convert import conversion

_PACKAGE = os.path.dirname(tz.__file__)
_FILES = os.path.join(_PACKAGE, "files")
#: What calls the writing, or is called in between.
_ROOMS = tuple(
    os.path.join(_PACKAGE, *room)
    for room in (["files"], ["convert"], ["checkpoint", "saving"], ["container", "zip_writer"])
)

pytestmark = pytest.mark.skipif(
    signal.getsignal(signal.SIGINT) is not signal.default_int_handler,
    reason="SIGINT is no KeyboardInterrupt in this process",
)


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    make_small(monkeypatch)


def _interrupt() -> None:
    # To the process, as a terminal does it: the main thread takes it, whoever has sent it.
    os.kill(os.getpid(), signal.SIGINT)


def _before(name: str, real: Callable[..., Any], *args: Any, **more: Any) -> Any:
    _interrupt()
    return real(*args, **more)


def _after(name: str, real: Callable[..., Any], *args: Any, **more: Any) -> Any:
    try:
        return real(*args, **more)
    finally:
        _interrupt()


def _write(place: Place) -> bool:
    """Return whether the interrupt has come."""
    try:
        place.write()
        for _ in range(1000):  # one that another thread has sent may be late
            pass
    except KeyboardInterrupt:
        return True
    return False


def _check_nothing_left(place: Place) -> None:
    gc.collect()
    place.renamed()  # raises where a file is neither old nor new, or they are in another order
    assert place.others() == set()
    assert set(threading.enumerate()) <= _others


#: The threads that other tests have left.
_others: set[threading.Thread] = set()


@pytest.fixture(autouse=True)
def _forget_the_others() -> None:
    """Let `gc.collect`, which is called hundreds of times here, look at this test only."""
    _others.update(threading.enumerate())
    gc.collect()
    gc.freeze()


@pytest.mark.few
@each_writer
@pytest.mark.parametrize("effect", [_before, _after], ids=["before", "after"])
def test_interrupt_at_each_call(tmp_path: Path, writer: Writer, effect: Callable[..., Any]) -> None:
    """Before each call to the system, and when it is done and its result not known yet."""
    place = Place(tmp_path, writer, True)
    with under() as system:
        place.write()
    for call in system.calls:
        place.reset()
        with under(call.__eq__, effect):
            assert _write(place), call
        _check_nothing_left(place)


SOME = {name: WRITERS[name] for name in ("save", "incremental_save", "convert to shards")}


class Lines:
    """Follows the lines of the package that are run; interrupts at a chosen one."""

    def __init__(self, at: tuple[str, int] | None = None) -> None:
        self.seen: dict[tuple[str, int], None] = {}
        self._at = at
        self._before = sys.gettrace()

    def __enter__(self) -> Lines:
        sys.settrace(self._enter)
        return self

    def __exit__(self, *exc: object) -> None:
        sys.settrace(self._before)

    def _enter(self, frame: FrameType, event: str, argument: Any) -> Any:
        # Python lets no exception out of __del__.
        code = frame.f_code
        is_followed = code.co_filename.startswith(_ROOMS) and code.co_name != "__del__"
        return self._line if is_followed else None

    def _line(self, frame: FrameType, event: str, argument: Any) -> Any:
        place = (frame.f_code.co_filename, frame.f_lineno)
        if place not in self.seen:
            self.seen[place] = None
            if place == self._at:
                _interrupt()
        return self._line


@pytest.mark.few
@pytest.mark.parametrize("writer", SOME.values(), ids=SOME)
def test_interrupt_at_each_line(tmp_path: Path, writer: Writer) -> None:
    """Between the calls as well, and in what clears up: each of ``files``, some of the others."""
    place = Place(tmp_path, writer, True)
    place.write()  # what is imported when it is first needed is there
    place.reset()
    with under(), Lines() as lines:
        place.write()
    around: list[tuple[str, int]] = []
    inside: list[tuple[str, int]] = []
    for at in lines.seen:
        (inside if os.path.dirname(at[0]) == _FILES else around).append(at)
    assert len(inside) > 50
    for at in [*inside, *around[::15]]:
        place.reset()
        with under(), Lines(at):
            assert _write(place), at
        _check_nothing_left(place)


def _alive(group: int) -> list[int]:
    """Return the processes of a group that have not ended."""
    found = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            fields = Path("/proc", name, "stat").read_text().rpartition(")")[2].split()
        except OSError:  # it has ended meanwhile
            continue
        if int(fields[2]) == group and fields[0] not in "ZX":
            found.append(int(name))
    return found


def _wait_until_alone(group: int) -> None:
    """Wait until no process of a group is left; a worker that stays is one that hangs."""
    for _ in range(2000):
        if not _alive(group):
            return
        time.sleep(0.01)
    left = _alive(group)
    os.killpg(group, signal.SIGKILL)  # whoever waits for the output of this test waits for them
    raise AssertionError(f"processes are left: {left}")


class Pool:
    """A process that converts with workers over one file, again and again, until a signal comes."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.target = folder / "target" / "m.pt"
        self.target.parent.mkdir()
        self._sources = [folder / f"source{number}.pt" for number in range(2)]
        self._contents = []
        for number, source in enumerate(self._sources):
            values = np.random.default_rng(seed + number).standard_normal((8, 40_000))
            self._contents.append({f"w{i}": row.astype(np.float32) for i, row in enumerate(values)})
            tz.save(self._contents[-1], source)
        begun = time.monotonic()
        for source in self._sources:
            self._convert(source)
        self._longest = time.monotonic() - begun  # about twice what a conversion takes
        self._random = random.Random(seed)

    def _convert(self, source: Path) -> None:
        tz.convert(source, self.target, dtype="float16", jobs=2, overwrite=True)

    def _work(self) -> None:
        has_come = False

        def interrupt(*of: object) -> None:
            nonlocal has_come
            has_come = True
            raise KeyboardInterrupt

        signal.signal(signal.SIGINT, interrupt)
        os.setsid()  # a group of its own, as a shell makes one
        for source in itertools.cycle(self._sources):
            self._convert(source)
            if has_come:  # in what Python runs before a fork, or frees, where it is not raised
                raise KeyboardInterrupt

    def signal(self, number: int, *, to_all: bool) -> int:
        """Start, send a signal at some moment, wait until no process is left; return the status."""
        child = os.fork()
        if not child:
            try:
                signal.alarm(60)  # a test that hangs ends
                self._work()
            except KeyboardInterrupt:
                os._exit(130)
            finally:
                os._exit(1)
        while not os.path.exists(f"/proc/{child}") or os.getpgid(child) != child:
            time.sleep(0.001)
        time.sleep(self._random.uniform(0, self._longest))
        (os.killpg if to_all else os.kill)(child, number)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        _wait_until_alone(child)
        return status

    def check(self) -> None:
        """Raise if the file is not one of the two, whole."""
        loaded = tz.load(self.target)
        assert any(
            all(
                np.array_equal(loaded[name], array.astype(np.float16))
                for name, array in made.items()
            )
            for made in self._contents
        )


needs_proc = pytest.mark.skipif(
    not os.path.exists("/proc/self/stat"), reason="processes are found in /proc"
)


@pytest.mark.long
@forks
@needs_proc
@pytest.mark.parametrize("to_all", [True, False], ids=["the group", "the process"])
def test_interrupt_of_a_pool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, to_all: bool) -> None:
    """At any moment of ``jobs=2``: the file is whole, and nothing and nobody is left."""
    monkeypatch.setattr(conversion, "_WORTH_NBYTES", 0)
    pool = Pool(tmp_path, seed=3)
    for _ in range(12):
        assert pool.signal(signal.SIGINT, to_all=to_all) == 130
        pool.check()
        assert os.listdir(pool.target.parent) == ["m.pt"]


@pytest.mark.long
@forks
@needs_proc
@pytest.mark.filterwarnings("ignore:.*which a process that was killed had left:UserWarning")
def test_workers_end_with_a_killed_parent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that is killed cannot end its workers: they see to it themselves."""
    monkeypatch.setattr(conversion, "_WORTH_NBYTES", 0)
    pool = Pool(tmp_path, seed=4)
    for _ in range(8):
        assert pool.signal(signal.SIGKILL, to_all=False) == -signal.SIGKILL
        pool.check()
