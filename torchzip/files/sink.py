"""Where bytes go: append, then commit all or nothing.

A path is written to a temporary file beside it, made durable, and renamed over the
target: the target holds the old or the new bytes after any failure. A file object is
written as it comes; only its owner can undo that.
"""

from __future__ import annotations

import errno
import io
import os
import stat
from typing import Any, BinaryIO, Protocol

from torchzip.files.direct import DirectWriter
from torchzip.files.source import Buffer

#: What a larger file has beyond this is written past the page cache, if that is possible.
_CACHED_NBYTES = 16 << 20


class Sink(Protocol):
    """Takes bytes in order. `position` counts from where the sink began."""

    name: str
    position: int

    def write(self, data: Buffer) -> None: ...

    def read_back(self, offset: int, nbytes: int) -> bytes | None:
        """Return bytes that were written before, or None where that is impossible."""
        ...

    def commit(self) -> None: ...

    def abort(self) -> None: ...


class PathSink:
    """A new file that takes its final name when it is complete.

    A symlink is followed. The mode is that of the file that is replaced, or what the
    umask gives. The temporary name is short, so a target name of 255 bytes works.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.name = os.fspath(path)
        self.position = 0
        self._target = os.path.realpath(self.name)
        self._fd = -1
        self._pid = os.getpid()
        self._direct: DirectWriter | None = None
        self._is_cached = False  # if there is no way past the cache
        mode = None
        try:
            status = os.stat(self._target)
        except FileNotFoundError:
            pass
        else:
            if not stat.S_ISREG(status.st_mode):
                kind = "a directory" if stat.S_ISDIR(status.st_mode) else "not a regular file"
                raise OSError(22, f"Cannot save here, it is {kind}", self.name)
            mode = stat.S_IMODE(status.st_mode)
        folder = os.path.dirname(self._target)
        self._temporary = os.path.join(folder, f".torchzip-{os.urandom(8).hex()}.tmp")
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL
        flags |= getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
        self._fd = os.open(self._temporary, flags, 0o666)
        try:
            if mode is not None:
                os.fchmod(self._fd, mode)
        except BaseException:
            self.abort()
            raise

    def _check(self) -> None:
        if self._fd < 0:
            raise ValueError(f"{self.name}: the writer is closed")
        if os.getpid() != self._pid:
            raise ValueError(f"{self.name}: the writer belongs to the process that opened it")

    def write(self, data: Buffer) -> None:
        self._check()
        view = memoryview(data).cast("B")
        while view:
            room = len(view) if self._is_cached else _CACHED_NBYTES - self.position
            if self._direct is not None:
                self._direct.write(view)
                done = len(view)
            elif room > 0:
                done = os.write(self._fd, view[:room])
            else:
                self._open_direct()
                continue
            self.position += done
            view = view[done:]

    def _open_direct(self) -> None:
        try:
            self._direct = DirectWriter(self._temporary, self.position)
        except OSError:
            self._is_cached = True

    def _settle(self) -> None:
        """Wait until all bytes are in the file."""
        if self._direct is not None:
            tail, offset = self._direct.settle()
            while tail:
                done = os.pwrite(self._fd, tail, offset)
                tail, offset = tail[done:], offset + done

    def read_back(self, offset: int, nbytes: int) -> bytes:
        self._check()
        if nbytes:
            self._settle()
        return os.pread(self._fd, nbytes, offset)

    def commit(self) -> None:
        """Make the bytes durable under the final name."""
        self._check()
        try:
            self._settle()
            os.fsync(self._fd)
            self._close_direct()
            descriptor, self._fd = self._fd, -1
            os.close(descriptor)
            os.replace(self._temporary, self._target)
        except BaseException:
            self.abort()
            raise
        # The rename itself must survive a power loss too.
        if hasattr(os, "O_DIRECTORY"):
            folder = os.open(os.path.dirname(self._target), os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)

    def abort(self) -> None:
        """Leave nothing behind. Harmless after a commit, and in a forked child."""
        self._close_direct()
        descriptor, self._fd = self._fd, -1
        if descriptor >= 0:
            os.close(descriptor)
        if os.getpid() == self._pid:
            try:
                os.unlink(self._temporary)
            except FileNotFoundError:
                pass

    def _close_direct(self) -> None:
        direct, self._direct = self._direct, None
        if direct is not None:
            if os.getpid() == self._pid:
                direct.close()
            else:
                direct.close_descriptor()

    def __del__(self) -> None:
        if getattr(self, "_fd", -1) >= 0:
            self.abort()


class FileObjectSink:
    """A binary file object with ``write``, seekable or not."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.name = str(getattr(file, "name", None) or f"<{type(file).__name__}>")
        self.position = 0

    def write(self, data: Buffer) -> None:
        view = memoryview(data).cast("B")
        while view:
            done: Any = self._file.write(view)
            if done is None and not isinstance(self._file, io.RawIOBase):
                done = len(view)  # objects that are less exact than io take it all
            if not done:
                raise OSError(errno.EIO, "The file object takes no more bytes", self.name)
            self.position += done
            view = view[done:]

    def read_back(self, offset: int, nbytes: int) -> None:
        return None

    def commit(self) -> None:
        """Nothing: the file object is flushed and closed by its owner."""

    def abort(self) -> None:
        """Nothing can be taken back."""


def open_sink(file: str | os.PathLike[str] | BinaryIO) -> PathSink | FileObjectSink:
    """Return a Sink for a path or a binary file object with ``write``."""
    if isinstance(file, str | os.PathLike):
        return PathSink(file)
    if not hasattr(file, "write") or isinstance(file, io.TextIOBase):
        raise TypeError(
            f"expected a path or a binary file object with write, not {type(file).__name__}"
        )
    return FileObjectSink(file)
