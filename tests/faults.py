"""Faults: a layer under the calls to the system, in which chosen calls fail."""

from __future__ import annotations

import contextlib
import os
import signal
import stat
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from torchzip.convert import conversion, mapped
from torchzip.files import (
    direct,
    in_place,
    left_overs,
    new_file,
    place,
    platform_calls,
    ranges,
    sink,
    source,
)

#: All that reach the system while they write.
WRITING = (
    platform_calls,
    new_file,
    left_overs,
    in_place,
    sink,
    direct,
    ranges,
    source,
    place,
    conversion,
    mapped,
)
_CALLS = frozenset(
    "open pwrite pread preadv fsync ftruncate replace close fchmod copy_file_range"
    " posix_fadvise unlink stat fstat mkdir rmdir".split()
)
CAN_BE_SHORT = frozenset({"pwrite", "copy_file_range"})

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


def failing_with(code: int) -> Callable[..., Any]:
    """Return an effect: the call fails with an error number."""

    def fail(name: str, real: Callable[..., Any], *args: Any, **more: Any) -> Any:
        if name == "close":
            real(*args)  # the descriptor is gone, whatever the kernel says of the data
        raise OSError(code, os.strerror(code))

    return fail


def half(name: str, real: Callable[..., Any], *args: Any, **more: Any) -> Any:
    """Take half of what was given."""
    if name == "copy_file_range":
        source, target, count, *places = args
        return real(source, target, max(count // 2, 1), *places)
    descriptor, data, *place = args
    return real(descriptor, memoryview(data)[: max(len(data) // 2, 1)], *place)


def end_process(name: str, real: Callable[..., Any], *args: Any, **more: Any) -> Any:
    os._exit(77)


def end_afterwards(name: str, real: Callable[..., Any], *args: Any, **more: Any) -> Any:
    real(*args, **more)
    os._exit(77)


def end_half_way(name: str, real: Callable[..., Any], *args: Any, **more: Any) -> Any:
    half(name, real, *args, **more)
    os._exit(77)


@contextlib.contextmanager
def under(
    fails: Callable[[Call], bool] = lambda call: False, effect: Callable[..., Any] = end_process
) -> Iterator[System]:
    """Put a `System` under the writers."""
    system = System(fails, effect)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(new_file, "_reserve", system.wrapped("reserve", new_file._reserve))
        patch.setattr(in_place, "allocate", system.wrapped("reserve", platform_calls.allocate))
        for module in WRITING:
            if hasattr(module, "os"):
                patch.setattr(module, "os", system)
        yield system


def descriptors() -> int:
    """Return how many files this process has open, 0 where that cannot be known."""
    return len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0


def in_child(task: Callable[[], object]) -> int:
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


def ends_in_child(call: Call, effect: Callable[..., Any], task: Callable[[], object]) -> bool:
    """Return whether a forked process, with a task to do, is ended by the effect of a call."""

    def until_it_ends() -> None:
        with under(call.__eq__, effect):
            task()

    return in_child(until_it_ends) == 77


forks = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of fork beside threads
