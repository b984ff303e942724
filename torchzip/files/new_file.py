"""A file that gets its final name when it is complete, and is removed if it never is."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import stat
import warnings
from collections.abc import Iterator, Sequence

from torchzip.files.left_overs import claim, prefix_for, remove_left_overs
from torchzip.files.platform_calls import (
    OPEN_FILES_CAN_GO,
    allocate,
    open_file,
    read_at,
    replace,
    set_mode,
    sync_file,
    sync_folder,
    unlock,
    write_at,
)
from torchzip.files.source import Buffer
from torchzip.files.streams import is_stream


class NewFile:
    """A temporary file beside its target, which can be written at any offset.

    A symlink is followed. The mode is that of the file that is replaced, or the one that the
    umask gives. The temporary name is short, so a target name of 255 bytes works.

    ``temporary`` is its path until the commit: other processes may write parts of it. Those of the
    same target whose processes are gone are removed first, with a warning (`left_overs`).
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.name = os.fsdecode(path)
        if not self.name:  # which would be taken for the current folder
            raise FileNotFoundError(errno.ENOENT, "The name of the file is empty", self.name)
        #: The path that is replaced, with symlinks resolved.
        self.target = os.path.realpath(self.name)
        self._fd = -1
        self._pid = os.getpid()
        self._mode: int | None = None
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
            self._mode = stat.S_IMODE(status.st_mode)
        left_overs = remove_left_overs(self.target)
        if left_overs:
            warnings.warn(
                f"{self.name}: removed {', '.join(map(os.path.basename, left_overs))}, which a "
                "process that was killed had left beside it",
                UserWarning,
                stacklevel=2,
            )
        while not self._make():
            self.abort()

    def _make(self) -> bool:
        """Make the temporary file; return False if another run took it for a left over one."""
        self.temporary = os.path.join(
            os.path.dirname(self.target), f"{prefix_for(self.target)}{os.urandom(8).hex()}.tmp"
        )
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL
        # The old file may be private, so its replacement must never be public. And the old file may
        # be read-only, or the umask unusual, but workers have to open the new file for writing.
        try:
            self._fd = open_file(self.temporary, flags, 0o666 if self._mode is None else 0o600)
            if not claim(self._fd):
                return False
            made = stat.S_IMODE(os.fstat(self._fd).st_mode)
            if made & 0o600 != 0o600:
                set_mode(self._fd, made | 0o600)
                if self._mode is None:
                    self._mode = made
        except BaseException as error:
            if isinstance(error, OSError) and error.filename == self.temporary:
                error.filename = self.name  # nobody knows the temporary file
                if error.errno == errno.ENOENT and os.path.isdir(os.path.dirname(self.target)):
                    error.strerror = "The directory takes no new files; choose another one"
                elif error.errno == errno.ENOENT:
                    error.strerror = "The directory to put it in does not exist; make it first"
            # An interrupt can come after the file was made and before its descriptor is known.
            with contextlib.suppress(OSError):
                self.abort()
            raise
        return True

    def check(self) -> None:
        """Raise ValueError if the file is closed, or belongs to another process."""
        if self._fd < 0:
            raise ValueError(f"{self.name}: the writer is closed")
        if os.getpid() != self._pid:
            raise ValueError(f"{self.name}: the writer belongs to the process that opened it")

    @property
    def descriptor(self) -> int:
        self.check()
        return self._fd

    def free_nbytes(self) -> int:
        self.check()
        return shutil.disk_usage(self.temporary).free

    def resize(self, nbytes: int) -> None:
        """Give the file its final size, and its disk space if the system supports that.

        Direct writers then need not wait for each other, as they would when writing into a hole.
        """
        with names_file(self.name):
            if not _reserve(self.descriptor, nbytes):
                os.ftruncate(self.descriptor, nbytes)

    def write_at(self, offset: int, data: Buffer) -> None:
        with names_file(self.name):
            write_all(self.descriptor, offset, data)

    def read_back(self, offset: int, nbytes: int) -> bytes:
        """Return bytes that were written before."""
        return read_at(self.descriptor, nbytes, offset)

    def commit(self) -> None:
        """Sync the file and give it its final name."""
        commit_together([self])

    def names_target(self, kind: object, error: object, trace: object) -> None:
        """Have the error that ends a ``with`` block name the target, and not `temporary`.

        Nobody knows the temporary file.
        """
        if isinstance(error, OSError) and error.filename == self.temporary:
            error.filename = self.name

    def abort(self) -> None:
        """Remove the file. Does nothing after a commit, or in a forked child."""
        descriptor, self._fd = self._fd, -1
        try:
            if descriptor >= 0:
                with names_file(self.name):
                    os.close(descriptor)
        finally:
            if os.getpid() == self._pid:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(self.temporary)

    def sync(self) -> None:
        """Sync the file. It stays open, and so locked, until it has its final name."""
        descriptor = self.descriptor
        with names_file(self.name):
            if self._mode is not None:
                set_mode(descriptor, self._mode)
            sync_file(descriptor)
            os.close(os.dup(descriptor))  # some file systems tell here what could not be written

    def rename(self) -> str:
        """Give the file its final name; return the folder, which must be synced as well."""
        if not OPEN_FILES_CAN_GO:
            self._close()
        try:
            replace(self.temporary, self.target)
        except OSError as error:  # nobody knows the temporary file
            raise OSError(error.errno, error.strerror, self.name) from error
        if OPEN_FILES_CAN_GO:
            unlock(self._fd)  # somebody may want to edit the file now
            self._close()
        return os.path.dirname(self.target)

    def _close(self) -> None:
        descriptor, self._fd = self._fd, -1
        with contextlib.suppress(OSError):  # `sync` has raised what there is
            os.close(descriptor)

    def __del__(self) -> None:
        if getattr(self, "_fd", -1) >= 0:
            self.abort()


@contextlib.contextmanager
def names_file(name: str) -> Iterator[None]:
    """Put the name of a file into an OSError of a call that only had the file's descriptor."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = name
        raise


def write_all(descriptor: int, offset: int, data: Buffer) -> None:
    """Write all of ``data`` at an offset of an open file."""
    view = memoryview(data).cast("B")
    while view:
        done = write_at(descriptor, view, offset)
        offset += done
        view = view[done:]


def _reserve(descriptor: int, nbytes: int) -> bool:
    """Allocate the blocks of a file and set its size; return False if that is not possible."""
    return nbytes > 0 and allocate(descriptor, 0, nbytes)


def commit_together(files: Sequence[NewFile]) -> None:
    """Sync all files, and then give them their final names, in order.

    If one of them fails to sync, none has its final name.
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
