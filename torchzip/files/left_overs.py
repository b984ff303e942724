"""Temporary files that a process left behind when it was killed.

Strategy: whoever writes a temporary file holds a lock on it, which the kernel takes back
when the last process that has the file open is gone, however it ended. So one that can be locked
belongs to nobody, whichever process number or age it has. Its name begins with a checksum of the
target's name and of this computer's: a later run looks at the files of its own target alone, and
leaves those of other computers, whose locks a network may not show.

Whoever makes a file has no lock for a moment. `claim` finds out whether somebody took it meanwhile.
"""

from __future__ import annotations

import contextlib
import os
import stat
import zlib

from torchzip.files.platform_calls import (
    NO_FOLLOW,
    NO_WAIT,
    OPEN_FILES_CAN_GO,
    computer,
    lock,
    open_file,
)


def claim(descriptor: int) -> bool:
    """Lock a file that was just made; return False if somebody took it for a left over one."""
    try:
        lock(descriptor)
    except BlockingIOError:
        return False
    return os.fstat(descriptor).st_nlink > 0


def prefix_for(target: str) -> str:
    """Return how the names of the temporary files of a target begin."""
    told = f"{computer()}/{os.path.basename(target)}"
    return f".torchzip-{zlib.crc32(os.fsencode(told)):08x}-"


def remove_left_overs(target: str) -> list[str]:
    """Remove the temporary files of a target whose writers are gone; return their paths.

    An empty one may also belong to somebody who has just made it and makes another then: these go
    as well, and are not returned, as nothing is proved.
    """
    folder, prefix = os.path.dirname(target), prefix_for(target)
    try:
        names = os.listdir(folder)
    except OSError:
        return []  # it may be written to and not be listed, or does not exist: the writer says so
    paths = [os.path.join(folder, name) for name in names if name.startswith(prefix)]
    return [path for path in sorted(paths) if _remove(path)]


def _remove(path: str) -> bool:
    """Remove a file if it belongs to nobody; return whether somebody has written to it."""
    try:
        descriptor = open_file(path, os.O_RDWR | NO_FOLLOW | NO_WAIT)
    except OSError:
        return False  # it is gone, or not a file, or of another user: nothing is proved
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode) or not lock(descriptor):
            return False
        status = os.fstat(descriptor)
        if status.st_nlink == 0:
            return False  # another run was sooner
        if OPEN_FILES_CAN_GO:
            os.unlink(path)
    except OSError:
        return False  # somebody writes it, or it may not be removed
    finally:
        with contextlib.suppress(OSError):  # nothing was written
            os.close(descriptor)
    if not OPEN_FILES_CAN_GO:
        try:
            os.unlink(path)
        except OSError:
            return False  # somebody has opened it meanwhile
    return status.st_size > 0
