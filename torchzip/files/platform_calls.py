"""The calls that not every system has, each with what takes its place where it is missing.

Strategy: what ``os`` has is looked up once, when this module is imported, and no other module names
these calls (`tests/test_layering.py`). `tests/without_posix.py` takes them away, so that the other
ways are tested on Linux too.

Windows has no reads and writes at an offset, no advice to the kernel and no owners of files. A file
that is open there can neither be replaced nor renamed nor removed: `OPEN_FILES_CAN_GO`. macOS
lacks advice, reservation and direct writes, and syncs to the disk by a call of its own.
"""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import signal
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from typing import Protocol

try:
    import fcntl
except ImportError:  # Windows, and Python in a browser
    _HAS_LOCKS, _FULL_SYNC = False, None
else:
    _HAS_LOCKS, _FULL_SYNC = hasattr(fcntl, "flock"), getattr(fcntl, "F_FULLFSYNC", None)

#: Whether an open file can be replaced, renamed and removed, as where files have owners.
OPEN_FILES_CAN_GO = hasattr(os, "chown")
#: Whether a process can be copied as it is, which only Linux does without harm.
CAN_FORK = sys.platform == "linux" and hasattr(os, "fork")
#: A pool of processes on Windows has no more than this.
MOST_WORKERS = 61 if sys.platform == "win32" else 1 << 20

_NEW_LINES_AS_THEY_ARE: int = getattr(os, "O_BINARY", 0)
#: Opening does not wait for the other end of a pipe. It changes nothing for files.
NO_WAIT: int = getattr(os, "O_NONBLOCK", 0)
#: A symlink at the end of the path is refused.
NO_FOLLOW: int = getattr(os, "O_NOFOLLOW", 0)
#: A terminal does not become that of the process.
NO_TERMINAL: int = getattr(os, "O_NOCTTY", 0)

# -- opening and closing ---------------------------------------------------------------------------


def open_file(path: str | os.PathLike[str], flags: int, mode: int = 0o666) -> int:
    """Open a file; return its descriptor."""
    try:
        return os.open(path, flags | _NEW_LINES_AS_THEY_ARE, mode)
    except PermissionError:
        if not os.path.isdir(path):
            raise
    raise IsADirectoryError(errno.EISDIR, "Is a directory, not a file", os.fsdecode(path))


def open_direct(path: str) -> int:
    """Open a file for writes that bypass the page cache; raise OSError where there are none."""
    if not hasattr(os, "O_DIRECT"):
        raise OSError(errno.EINVAL, "This system has no direct writes", path)
    return os.open(path, os.O_WRONLY | os.O_DIRECT)


class Closable(Protocol):
    def close(self) -> None: ...


def let_go(*files: Closable) -> None:
    """Close files that are going to be replaced, where that is impossible while they are open."""
    if not OPEN_FILES_CAN_GO:
        for file in files:
            file.close()


# -- bytes at an offset ----------------------------------------------------------------------------

#: The longest step that every Python takes.
_STEP = (1 << 31) - 1

if hasattr(os, "pread") and hasattr(os, "pwrite"):

    def read_at(descriptor: int, nbytes: int, offset: int) -> bytes:
        """Return what one call gives of the bytes at an offset.

        Before 3.14, Python in a browser is built with offsets of 31 bits, and has no threads. Files
        may be longer all the same: a place beyond is reached by steps from the beginning.
        """
        try:
            return os.pread(descriptor, nbytes, offset)
        except OverflowError:
            if sys.platform != "emscripten":
                raise
        os.lseek(descriptor, 0, os.SEEK_SET)
        while offset:
            step = min(offset, _STEP)
            os.lseek(descriptor, step, os.SEEK_CUR)
            offset -= step
        return os.read(descriptor, nbytes)

    def write_at(descriptor: int, data: memoryview, offset: int) -> int:
        """Write what one call takes, at an offset; return how many bytes."""
        return os.pwrite(descriptor, data, offset)

else:
    # An open file has one position: who sets it has it alone until the bytes are there. Files that
    # are numbered alike share a lock.
    _TURNS = [threading.Lock() for _ in range(64)]

    def read_at(descriptor: int, nbytes: int, offset: int) -> bytes:
        """Return what one call gives of the bytes at an offset."""
        with _TURNS[descriptor % len(_TURNS)]:
            os.lseek(descriptor, offset, os.SEEK_SET)
            return os.read(descriptor, nbytes)

    def write_at(descriptor: int, data: memoryview, offset: int) -> int:
        """Write what one call takes, at an offset; return how many bytes."""
        with _TURNS[descriptor % len(_TURNS)]:
            os.lseek(descriptor, offset, os.SEEK_SET)
            return os.write(descriptor, data)


if hasattr(os, "preadv"):

    def read_into(descriptor: int, out: memoryview, offset: int) -> int:
        """Read what one call gives into ``out``; return how many bytes."""
        return os.preadv(descriptor, [out], offset)

else:
    #: What is read at once, as it is copied once more.
    _BLOCK_NBYTES = 1 << 18

    def read_into(descriptor: int, out: memoryview, offset: int) -> int:
        """Read what one call gives into ``out``; return how many bytes."""
        data = read_at(descriptor, min(out.nbytes, _BLOCK_NBYTES), offset)
        out[: len(data)] = data
        return len(data)


def copy_range(source: int, target: int, nbytes: int, start: int, offset: int) -> int:
    """Have the kernel copy bytes from ``start`` to ``offset``; return how many it took.

    They leave the page cache at once, which also sends them to the disk.
    """
    if not hasattr(os, "copy_file_range"):
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    count = os.copy_file_range(source, target, nbytes, start, offset)
    if count:
        os.posix_fadvise(target, offset, count, os.POSIX_FADV_DONTNEED)
    return count


def read_further_ahead(descriptor: int) -> None:
    """Have the kernel read further ahead in a file, where it takes advice."""
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_SEQUENTIAL)


# -- space, modes and the disk ---------------------------------------------------------------------

#: Of Linux's fallocate: blocks past the end of the file, whose size does not change.
_KEEP_SIZE = 1


def allocate(descriptor: int, offset: int, nbytes: int, *, keep_size: bool = False) -> bool:
    """Allocate blocks of a file; return False if that is not possible quickly.

    Python only has `posix_fallocate`, which writes to every block if the file system has no
    faster way.
    """
    if not hasattr(os, "posix_fallocate"):
        return False
    import ctypes

    try:
        fallocate = ctypes.CDLL(None, use_errno=True).fallocate64
    except (OSError, AttributeError):
        return False
    fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
    if fallocate(descriptor, _KEEP_SIZE if keep_size else 0, offset, nbytes) == 0:
        return True
    failed = ctypes.get_errno()
    if failed in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        raise OSError(failed, os.strerror(failed))
    return False


def set_mode(descriptor: int, mode: int) -> None:
    """Set the mode of an open file.

    Where files have no owner, their folder says who may open them, and nothing is done.
    """
    if OPEN_FILES_CAN_GO:
        os.fchmod(descriptor, mode)


def sync_file(descriptor: int) -> None:
    """Wait until what was written to a file is on the disk, and not only in its cache."""
    os.fsync(descriptor)
    if _FULL_SYNC is not None:  # macOS
        with contextlib.suppress(OSError):  # a file system that has no such call
            fcntl.fcntl(descriptor, _FULL_SYNC)


def sync_folder(folder: str) -> None:
    """Sync a folder, so that changes of names in it survive a power loss.

    It is not an error if that is impossible: in a folder that may be written to but not read, and
    on file systems that only sync files.
    """
    if not hasattr(os, "O_DIRECTORY"):
        return
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except PermissionError:
        return
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):
            raise
    finally:
        os.close(descriptor)


#: How often and how long Windows is asked again: other programs look at new files for a moment.
_TRIES, _PAUSE_SECONDS = 10, 0.05


def replace(path: str, target: str) -> None:
    """Rename a file to ``target``, in the place of what has that name."""
    if OPEN_FILES_CAN_GO:
        os.replace(path, target)
        return
    for left in reversed(range(_TRIES)):
        try:
            os.replace(path, target)
            return
        except PermissionError:
            if not left:
                break
        time.sleep(_PAUSE_SECONDS)
    raise PermissionError(
        errno.EACCES,
        "Cannot be replaced: this system keeps a file that is open or read-only. Close it in every "
        "program (checkpoints and mapped arrays of it too), or write to another name",
        target,
    )


# -- locks -----------------------------------------------------------------------------------------

#: Errors of file systems without locks.
_NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS)

if sys.platform == "win32":
    import ctypes
    import msvcrt
    from ctypes import wintypes

    #: Windows locks bytes, and keeps all others from them: this one lies past the end of any file.
    _LOCKED_HIGH = 1 << 30
    _AT_ONCE, _ALONE, _IS_LOCKED = 1, 2, 33

    class _Overlapped(ctypes.Structure):
        _fields_ = (
            ("Internal", ctypes.c_void_p),
            ("InternalHigh", ctypes.c_void_p),
            ("Offset", wintypes.DWORD),
            ("OffsetHigh", wintypes.DWORD),
            ("hEvent", wintypes.HANDLE),
        )

    _kernel = ctypes.WinDLL("kernel32", use_last_error=True)
    _kernel.LockFileEx.argtypes = (
        wintypes.HANDLE, wintypes.DWORD, wintypes.DWORD, wintypes.DWORD, wintypes.DWORD,
        ctypes.POINTER(_Overlapped),
    )  # fmt: skip

    def lock(descriptor: int) -> bool:
        """Lock an open file; return whether it is locked. See the other `lock`."""
        place = _Overlapped(OffsetHigh=_LOCKED_HIGH)
        handle = msvcrt.get_osfhandle(descriptor)
        if _kernel.LockFileEx(handle, _AT_ONCE | _ALONE, 0, 1, 0, ctypes.byref(place)):
            return True
        if ctypes.get_last_error() == _IS_LOCKED:
            raise BlockingIOError(errno.EWOULDBLOCK, "Another process has locked the file")
        return False

    def unlock(descriptor: int) -> None:
        """Do nothing: the lock goes when the file is closed, and no other process shares it."""

else:

    def lock(descriptor: int) -> bool:
        """Lock an open file; return whether it is locked, which some file systems cannot do.

        Raises
        ------
        BlockingIOError
            If another process has locked it.
        """
        if not _HAS_LOCKS:
            return False
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            return False
        return True

    def unlock(descriptor: int) -> None:
        """Take the lock from an open file, also where a forked process has it open too."""
        if _HAS_LOCKS:
            with contextlib.suppress(OSError):  # a file system without locks
                fcntl.flock(descriptor, fcntl.LOCK_UN)


# -- memory, processors and signals ----------------------------------------------------------------


def on_huge_pages(memory: mmap.mmap) -> None:
    """Put memory on huge pages, if the system has some."""
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):
            memory.madvise(mmap.MADV_HUGEPAGE)


def memory_nbytes() -> int | None:
    """Return how much memory the machine has; None where that is unknown."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return None


def processors() -> int:
    """Return the number of processors that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def computer() -> str:
    """Return the name of this computer in its network."""
    import platform

    return platform.node()


@contextlib.contextmanager
def signals_later(numbers: Iterable[int]) -> Iterator[None]:
    """Keep signals from this thread, and from processes that it makes, until the block ends."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def signals_now(numbers: Iterable[int]) -> None:
    """Let signals come that the process which made this one has kept from it."""
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, numbers)
