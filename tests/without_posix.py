"""Takes away what Windows does not have, for tests on other systems.

    python -m pytest -p tests.without_posix tests/files tests/container tests/convert

Calls that are missing there are removed from ``os`` and ``signal``, and modules cannot be imported.
A file that this process has open or mapped can no longer be replaced, renamed or removed. Processes
that are started inherit all this. Importing this module does it, so it comes before torchzip.
"""

from __future__ import annotations

import atexit
import errno
import mmap
import multiprocessing
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

#: What `needs` can ask for, and this module takes away.
CALLS = (
    "chown copy_file_range fchmod fchown fork forkpty fstatvfs geteuid getgid getpgid killpg lchown"
    " mkfifo mknod posix_fadvise posix_fallocate pread preadv pwrite pwritev sched_getaffinity"
    " setpgid setsid sysconf"
    " O_CLOEXEC O_DIRECT O_DIRECTORY O_DSYNC O_NOATIME O_NOCTTY O_NOFOLLOW O_NONBLOCK O_SYNC"
).split()
MODULES = ("fcntl", "grp", "pty", "pwd", "resource", "termios", "tty")
SIGNAL_CALLS = ("alarm", "pthread_kill", "pthread_sigmask", "setitimer", "sigpending", "sigwait")

_CHILDREN = f"""
import importlib.util
spec = importlib.util.spec_from_file_location("tests_without_posix", {__file__!r})
spec.loader.exec_module(importlib.util.module_from_spec(spec))
"""


def _take_away() -> None:
    for name in CALLS:
        vars(os).pop(name, None)
    for name in SIGNAL_CALLS:
        vars(signal).pop(name, None)
    for name in [name for name in vars(mmap) if name.startswith("MADV_")]:
        delattr(mmap, name)
    for name in MODULES:
        sys.modules[name] = None  # type: ignore[assignment]
    vars(shutil)["_use_fd_functions"] = False  # it would use O_NONBLOCK
    tempfile.TemporaryFile = tempfile.NamedTemporaryFile  # type: ignore[assignment]
    for name in ("replace", "rename", "unlink", "remove", "rmdir"):
        setattr(os, name, _for_closed_files(getattr(os, name)))


def _for_closed_files(real: Callable[..., Any]) -> Callable[..., Any]:
    def call(*paths: Any, **options: Any) -> Any:
        for path in paths:
            if isinstance(path, str | bytes | os.PathLike) and _is_open(os.fsdecode(path)):
                raise PermissionError(errno.EACCES, "It is open", os.fsdecode(path))
        return real(*paths, **options)

    return call


def _is_open(path: str) -> bool:
    """Return whether this process has a file open or mapped."""
    try:
        asked = os.lstat(path)
    except OSError:
        return False
    for number in os.listdir("/proc/self/fd"):
        try:
            if os.path.samestat(os.fstat(int(number)), asked):
                return True
        except OSError:  # that of the listing
            continue
    lines = Path("/proc/self/maps").read_text(errors="surrogateescape").splitlines()
    return os.path.realpath(path) in {line.split(maxsplit=5)[-1] for line in lines}


def _in_children() -> None:
    """Have each Python that this one starts do the same."""
    if os.environ.get("TORCHZIP_WITHOUT_POSIX"):
        return
    folder = tempfile.mkdtemp()
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    Path(folder, "sitecustomize.py").write_text(_CHILDREN)
    os.environ["TORCHZIP_WITHOUT_POSIX"] = "1"
    multiprocessing.set_start_method("spawn")
    paths = [folder, os.environ.get("PYTHONPATH", "")]
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, paths))


_take_away()
_in_children()
