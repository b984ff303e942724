"""A canary for execution, and limits on memory and time, around whatever reads a hostile file."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

#: Audit events of code that is made, found or run, of processes, of the network, of the system
#: changed; those that end in a dot are a whole family. Python raises them before the thing is done,
#: so what is forbidden does not happen.
_FORBIDDEN = frozenset(
    "import compile exec code.__new__ function.__new__ builtins.input builtins.breakpoint"
    " pickle. marshal. ctypes. cpython. subprocess. pty. webbrowser. socket. ftplib. urllib."
    " smtplib. sqlite3. shutil. tempfile. signal. resource. fcntl. sys.settrace sys.setprofile"
    " sys.addaudithook os.system os.exec os.fork os.forkpty os.posix_spawn os.spawn os.kill"
    " os.killpg os.putenv os.unsetenv os.chdir os.chown os.link os.symlink os.truncate"
    " os.removexattr os.setxattr".split()
)
#: What only the files in the folder of a conversion may suffer.
_CHANGES_FILES = frozenset("os.remove os.rename os.mkdir os.rmdir os.chmod".split())
#: How a conversion asks for its place on the disk.
_OF_TORCHZIP = frozenset({("ctypes.dlopen", None), ("ctypes.dlsym", "fallocate64")})
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND

#: What a hostile file may cost in address space, and in CPU time. Both are far above what any
#: needs: they end a runaway, and nothing depends on how quick the machine is.
_SPARE_NBYTES = 1 << 30
_CPU_SECONDS = 60


class ExecutedError(BaseException):
    """A file made its reader do what it must not. No ``except Exception`` takes it away."""


class OutOfTimeError(BaseException):
    """A file took its reader more CPU time than any file should."""


class _Canary:
    """Hears of all that Python audits. There is one a process, as no audit hook can be removed."""

    def __init__(self) -> None:
        self.is_watching = False
        self.folder: str | None = None
        sys.addaudithook(self._hear)

    def _hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.is_watching:
            return
        if event == "open":
            path, _, flags = arguments
            is_bad = bool(flags & _WRITING) and not self._is_inside(path)
        elif event in _CHANGES_FILES:
            is_bad = not all(self._is_inside(path) for path in arguments if isinstance(path, str))
        elif event.startswith("ctypes."):
            is_bad = (event, arguments[-1]) not in _OF_TORCHZIP
        elif event == "fcntl.flock":  # of the temporary file that a writer has made
            is_bad = False
        else:
            is_bad = event in _FORBIDDEN or event.partition(".")[0] + "." in _FORBIDDEN
        if is_bad:
            self.is_watching = False
            raise ExecutedError(f"{event} {arguments!r}"[:300])

    def _is_inside(self, path: Any) -> bool:
        return self.folder is not None and str(path).startswith(self.folder)


_canary: _Canary | None = None


def _stop_for_time(signum: int, frame: Any) -> None:
    raise OutOfTimeError(f"more than {_CPU_SECONDS} s of CPU time")


@contextlib.contextmanager
def guarded(folder: Path | None = None) -> Iterator[None]:
    """Let no code run, nothing be imported, and no file be written but in ``folder``.

    All that reads must have been used once before, since a module that is imported late counts as
    an import that the file asked for.

    Raises
    ------
    ExecutedError, OutOfTimeError, MemoryError
        From within what is guarded.
    """
    global _canary
    if _canary is None:
        _canary = _Canary()
    _canary.folder = None if folder is None else str(folder) + os.sep
    address_space = resource.getrlimit(resource.RLIMIT_AS)
    handler = signal.signal(signal.SIGPROF, _stop_for_time)
    try:
        if (now := _address_space_nbytes()) is not None:
            resource.setrlimit(resource.RLIMIT_AS, (now + _SPARE_NBYTES, address_space[1]))
        signal.setitimer(signal.ITIMER_PROF, _CPU_SECONDS)
        _canary.is_watching = True
        yield
    finally:
        _canary.is_watching = False
        signal.setitimer(signal.ITIMER_PROF, 0)
        resource.setrlimit(resource.RLIMIT_AS, address_space)
        signal.signal(signal.SIGPROF, handler)


def _address_space_nbytes() -> int | None:
    try:
        with open("/proc/self/statm") as status:
            return int(status.read().split()[0]) * resource.getpagesize()
    except FileNotFoundError:  # not Linux: no limit on memory
        return None
