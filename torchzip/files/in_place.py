"""A file that is changed where it is, by one process at a time."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from typing import Self

from torchzip.errors import FormatError
from torchzip.files.new_file import names_file, write_all
from torchzip.files.platform_calls import NO_WAIT, allocate, lock, open_file, sync_file
from torchzip.files.source import Buffer, FileSource


class InPlaceFile:
    """A regular file, open for writing and locked. A symlink is followed.

    Raises
    ------
    OSError
        If it cannot be written to, or another process is editing it.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.name = os.fsdecode(path)
        self._fd = open_file(path, os.O_RDWR | NO_WAIT)
        try:
            if not stat.S_ISREG(os.fstat(self._fd).st_mode):
                raise OSError(errno.EINVAL, "Not a regular file", self.name)
            lock(self._fd)
        except BlockingIOError:
            self.close()
            raise BlockingIOError(
                errno.EWOULDBLOCK, "The file is being edited by another process", self.name
            ) from None
        except BaseException:
            self.close()
            raise

    def check_same(self, source: FileSource) -> None:
        """Raise FormatError if the file of this name was replaced or changed since it was read."""
        status, named = os.fstat(self._fd), os.stat(self.name)
        identity = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
        is_named = (named.st_dev, named.st_ino) == (status.st_dev, status.st_ino)
        if identity != source.identity or not is_named:
            raise FormatError(
                "the file was replaced or changed while it was read; nothing was written",
                path=self.name,
            )

    def reserve(self, offset: int, nbytes: int) -> None:
        """Reserve disk space for the bytes to be written, if the system supports it."""
        with names_file(self.name):
            allocate(self._fd, offset, nbytes, keep_size=True)

    def write_at(self, offset: int, data: Buffer) -> None:
        with names_file(self.name):
            write_all(self._fd, offset, data)

    def sync(self) -> None:
        with names_file(self.name):
            sync_file(self._fd)

    def cut(self, nbytes: int) -> None:
        with names_file(self.name):
            os.ftruncate(self._fd, nbytes)

    def close(self) -> None:
        """Close the file, which releases its lock."""
        descriptor, self._fd = self._fd, -1
        if descriptor >= 0:
            os.close(descriptor)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_fd", -1) >= 0:
            with contextlib.suppress(OSError):
                self.close()
