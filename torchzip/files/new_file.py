"""A file that takes its final name when it is complete, and is gone if it never is."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import stat
from collections.abc import Sequence

from torchzip.files.source import Buffer
from torchzip.files.streams import is_stream


class NewFile:
    """A temporary file beside its target, to be written at any place.

    A symlink is followed. The mode is that of the file that is replaced, or what the
    umask gives. The temporary name is short, so a target name of 255 bytes works.

    ``temporary`` is its path until then: other processes may write parts of it.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.name = os.fsdecode(path)
        #: The path that is replaced: where a symlink points.
        self.target = os.path.realpath(self.name)
        self._fd = -1
        self._pid = os.getpid()
        mode = None
        if is_stream(self.name):
            raise OSError(
                errno.EINVAL,
                "Cannot save here, it is not a regular file but a stream, in which nothing can be "
                "written out of order; give the name of a file",
                self.name,
            )
        try:
            status = os.stat(self.target)
        except FileNotFoundError:
            pass
        else:
            if not stat.S_ISREG(status.st_mode):
                kind = "a directory" if stat.S_ISDIR(status.st_mode) else "not a regular file"
                raise OSError(errno.EINVAL, f"Cannot save here, it is {kind}", self.name)
            mode = stat.S_IMODE(status.st_mode)
        folder = os.path.dirname(self.target)
        self.temporary = os.path.join(folder, f".torchzip-{os.urandom(8).hex()}.tmp")
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL
        # What is replaced may be private, so what takes its place must never have been public; and
        # it may be read-only, or the umask odd, but others have to open the file while it is made.
        self._mode = mode
        try:
            self._fd = os.open(self.temporary, flags, 0o666 if mode is None else 0o600)
            made = stat.S_IMODE(os.fstat(self._fd).st_mode)
            if made & 0o600 != 0o600:
                os.fchmod(self._fd, made | 0o600)
                if self._mode is None:
                    self._mode = made
        except BaseException as error:
            if isinstance(error, OSError) and error.filename == self.temporary:
                error.filename = self.name  # nobody knows the temporary file
                if error.errno == errno.ENOENT:
                    error.strerror = "The directory to put it in does not exist; make it first"
            # An interrupt can come when the file is there and the descriptor is not known yet.
            with contextlib.suppress(OSError):
                self.abort()
            raise

    def check(self) -> None:
        """Raise ValueError where the file is closed, or belongs to another process."""
        if self._fd < 0:
            raise ValueError(f"{self.name}: the writer is closed")
        if os.getpid() != self._pid:
            raise ValueError(f"{self.name}: the writer belongs to the process that opened it")

    @property
    def descriptor(self) -> int:
        """The open file."""
        self.check()
        return self._fd

    def free_nbytes(self) -> int:
        """Return how much the disk has left."""
        disk = os.fstatvfs(self.descriptor)
        return disk.f_bavail * disk.f_frsize

    def resize(self, nbytes: int) -> None:
        """Give the file its final size, with its place on the disk where the system can do that.

        Writers past the cache need not wait for one another then: into a hole each writes alone.
        """
        if not _reserve(self.descriptor, nbytes):
            os.ftruncate(self.descriptor, nbytes)

    def write_at(self, offset: int, data: Buffer) -> None:
        """Write all of ``data`` at a place."""
        write_all(self.descriptor, offset, data)

    def commit(self) -> None:
        """Make the bytes durable under the final name."""
        commit_together([self])

    def abort(self) -> None:
        """Leave nothing behind. Harmless after a commit, and in a forked child."""
        descriptor, self._fd = self._fd, -1
        try:
            if descriptor >= 0:
                os.close(descriptor)
        finally:
            if os.getpid() == self._pid:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(self.temporary)

    def sync(self) -> None:
        """Make the bytes durable, and close the file."""
        descriptor = self.descriptor
        if self._mode is not None:
            os.fchmod(descriptor, self._mode)
        os.fsync(descriptor)
        self._fd = -1
        os.close(descriptor)

    def rename(self) -> str:
        """Give the file its final name; return the folder, whose sync makes that durable."""
        try:
            os.replace(self.temporary, self.target)
        except OSError as error:  # nobody knows the temporary file
            raise OSError(error.errno, error.strerror, self.name) from error
        return os.path.dirname(self.target)

    def __del__(self) -> None:
        if getattr(self, "_fd", -1) >= 0:
            self.abort()


def write_all(descriptor: int, offset: int, data: Buffer) -> None:
    """Write all of ``data`` at a place of an open file."""
    view = memoryview(data).cast("B")
    while view:
        done = os.pwrite(descriptor, view, offset)
        offset += done
        view = view[done:]


def refuse_existing(path: str | os.PathLike[str]) -> None:
    """Raise FileExistsError if there is anything under a name, be it a link that leads nowhere.

    A stream is not replaced by what is written to it.
    """
    if os.path.lexists(path) and not is_stream(path):
        name = os.fsdecode(path)
        raise FileExistsError(errno.EEXIST, "Exists already; overwrite=True replaces it", name)


def _reserve(descriptor: int, nbytes: int) -> bool:
    """Allocate the blocks of a file and set its size; return False if that cannot be done."""
    return nbytes > 0 and allocate(descriptor, 0, nbytes)


#: Of Linux's fallocate: the file keeps its size, and what is behind it has room.
KEEP_SIZE = 1


def allocate(descriptor: int, offset: int, nbytes: int, mode: int = 0) -> bool:
    """Allocate blocks of a file; return False if that cannot be done quickly.

    Python has `posix_fallocate` only, which writes to every block where the file system has no
    better way.
    """
    try:
        fallocate = ctypes.CDLL(None, use_errno=True).fallocate64
    except (OSError, AttributeError, TypeError):
        return False
    fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
    if fallocate(descriptor, mode, offset, nbytes) == 0:
        return True
    failed = ctypes.get_errno()
    if failed in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        raise OSError(failed, os.strerror(failed))
    return False


def commit_together(files: Sequence[NewFile]) -> None:
    """Make files durable, and then give them their final names, in order.

    Before the first has its name, each can fail and nothing has happened.
    """
    for file in files:
        file.check()
    with contextlib.ExitStack() as failed:
        for file in files:
            failed.callback(file.abort)
        for file in files:
            file.sync()
        folders = dict.fromkeys(file.rename() for file in files)
        failed.pop_all()
    for folder in folders:
        sync_folder(folder)


def sync_folder(folder: str) -> None:
    """Make what was done to the names in a folder survive a power loss too.

    Where that cannot be asked for nothing is wrong: in a folder that one may write to and not read,
    and on file systems that sync files only.
    """
    if hasattr(os, "O_DIRECTORY"):
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
