"""Paths that lead to a stream: a pipe, a device, or a file that a process has open already.

``/dev/stdout`` is an open file of this process, whatever a shell has redirected it to. What is
written there is appended to what was written before; the file cannot be replaced under that name.
So a writer gets the open file, and no temporary file is made.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import re
import stat
import sys

from torchzip.files.platform_calls import NO_TERMINAL, open_file

#: Folders in which the system shows the open files of a process, by number.
_OPEN_FILES = re.compile(r"/dev/fd|/proc/(?:self|\d+(?:/task/\d+)?)/fd")
#: Where it shows those of this process, or thread.
_OWN_FOLDERS = ("/dev/fd", "/proc/self/fd", "/proc/thread-self/fd")
#: At most so many links are followed, as in the system.
_MOST_LINKS = 40


def is_stream(path: str | os.PathLike[str]) -> bool:
    """Return whether a path leads to a pipe, a device or an open file."""
    if _open_file_link(path) is not None:
        return True
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError):  # opening it gives the error
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISCHR(mode)


def open_stream(path: str | os.PathLike[str]) -> io.FileIO:
    """Return the file that a path for which `is_stream` is true leads to, open for writing.

    In an open file of this process, writing continues at its position, after `sys.stdout` and
    `sys.stderr` were flushed. A FIFO waits for its reader.
    """
    link = _open_file_link(path)
    try:
        if link is None:
            return io.FileIO(open_file(path, os.O_WRONLY | NO_TERMINAL), "wb")
        folder, number = os.path.split(link)
        if folder not in {*_OWN_FOLDERS, *map(os.path.realpath, _OWN_FOLDERS)}:
            raise OSError(errno.EINVAL, "Cannot write to the open file of another process")
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(AttributeError, OSError, ValueError):  # closed, or not a file
                if stream.fileno() == int(number):
                    stream.flush()
        return io.FileIO(os.dup(int(number)), "wb")
    except OSError as error:
        raise OSError(error.errno, error.strerror, os.fsdecode(path)) from None


def _open_file_link(path: str | os.PathLike[str]) -> str | None:
    """Return the entry of `_OPEN_FILES` that a path leads to through links, or None."""
    name = os.fsdecode(path)
    if not (name.startswith("/dev/") or os.path.islink(name)):
        return None  # nearly always
    for _ in range(_MOST_LINKS):
        folder, last = os.path.split(os.path.abspath(name))
        folder = os.path.realpath(folder)
        name = os.path.join(folder, last)
        if _OPEN_FILES.fullmatch(folder) and last.isdecimal():
            return name
        try:
            name = os.path.join(folder, os.readlink(name))
        except OSError:
            return None
    return None
