"""Inputs: a size, and `read_at`.

The rest of the package uses a file through `Source` only, so a remote object works as well as a
path. Reads never depend on a shared position. A short read is an error here, so that no caller has
to check for it.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import io
import mmap
import operator
import os
import stat
import threading
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from typing import Any, BinaryIO, NamedTuple, Protocol, runtime_checkable

from torchzip.errors import TRUNCATED, FormatError
from torchzip.files.platform_calls import (
    NO_WAIT,
    open_file,
    read_at,
    read_further_ahead,
    read_into,
)

Buffer = bytes | bytearray | memoryview
_BASE_READINTO = io.BufferedIOBase.readinto
#: What users may give for a file.
File = str | os.PathLike[str] | BinaryIO
#: Device, inode, size and time of the last change: they identify a file under a path.
Identity = tuple[int, int, int, int]


class Status(NamedTuple):
    """What is compared of a file: its size, and when it was last written to and changed."""

    size: int
    mtime_ns: int
    ctime_ns: int


@runtime_checkable
class Source(Protocol):
    """A fixed number of bytes that can be read at any place."""

    size: int
    name: str
    #: Not None: a read takes long to begin, so it is worth saying beforehand what will be read. It
    #: is said of all sources together that have the same.
    far_group: object | None = None

    def read_at(self, offset: int, nbytes: int) -> Buffer:
        """Return exactly ``nbytes`` bytes from ``offset``, or raise."""
        ...

    def read_into(self, offset: int, out: memoryview) -> None:
        """Fill ``out`` with the bytes from ``offset``, or raise."""
        out[:] = self.read_at(offset, out.nbytes)

    def will_read(self, spans: Iterable[tuple[Source, int, int]]) -> None:
        """Take note of what will be read soon, in this order: sources, offsets, numbers of bytes.

        The sources are this one, and others of its ``far_group``.
        """
        return

    def close(self) -> None: ...


def check_inside(source: Source, offset: int, nbytes: int) -> None:
    if offset < 0 or nbytes < 0 or offset + nbytes > source.size:
        raise FormatError(
            f"needs {nbytes:,} bytes here, and the file has {source.size:,} bytes in all. "
            f"{TRUNCATED}",
            path=source.name,
            offset=offset,
        )


def _shrunk(name: str, offset: int) -> FormatError:
    return FormatError(
        "the file ends here now, before the size it had when it was opened. "
        "Something cut it short while it was being read.",
        path=name,
        offset=offset,
    )


def _too_many(name: str) -> OSError:
    return OSError(errno.EIO, "The file object gives more than it was asked for", name)


def _no_bytes_now(name: str) -> OSError:
    return BlockingIOError(errno.EAGAIN, "The file object has no bytes now", name)


def _no_seek(name: str) -> OSError:
    return io.UnsupportedOperation(
        errno.ESPIPE,
        "The file object cannot seek, as a pipe cannot, and a checkpoint is read in any order; "
        "read it into io.BytesIO, or save it to a file, first",
        name,
    )


class Descriptor:
    """An open file: its descriptor is used in ``with`` blocks. `close` or the last block closes it.

    The system gives the number of a closed descriptor to the next file that is opened. A thread
    that still uses the number would then read that other file. So users are counted, and if there
    are any when `close` is called, the last of them closes the file.

    There is no lock: each step is one operation on a list. A user is counted in ``_users`` before
    it looks at the number, and `close` removes the number before it looks at the count. So at least
    one of them sees the other.
    """

    __slots__ = ("_name", "_number", "_open", "_users")

    def __init__(self, number: int, name: str) -> None:
        self._number = number
        self._name = name
        self._users: list[None] = []
        self._open = [number]  # until it is closed

    def __enter__(self) -> int:
        self._users.append(None)
        number = self._number
        if number < 0:
            self.__exit__()
            raise ValueError(f"{self._name}: the checkpoint is closed")
        return number

    def __exit__(self, kind: object = None, error: object = None, trace: object = None) -> None:
        if isinstance(error, OSError) and error.filename is None:
            error.filename = self._name  # the call only had the number
        self._users.pop()
        if self._number < 0:
            with contextlib.suppress(OSError):  # the file was only read: nothing is lost
                self._close_unused()

    def close(self) -> None:
        """Hand out the number no longer; close the file unless it is in use."""
        self._number = -1
        self._close_unused()

    def _close_unused(self) -> None:
        if not self._users:
            try:
                number = self._open.pop()
            except IndexError:  # it is closed
                return
            os.close(number)

    def __del__(self) -> None:
        # There are no users left. An interrupt may have come before a block, or between two steps.
        try:
            self._number = -1
            for number in self._open:
                os.close(number)
        except Exception:  # when the interpreter exits, even `os` may be gone
            pass


class FileSource(Source):
    """A regular file of this computer, which is read at offsets. Other processes can open it too.

    If the file is truncated while it is open, reads raise an error. If the path is replaced, reads
    still get the old file. If another thread closes the source during a read, that read succeeds
    and later ones raise. It can be pickled: unpickling opens the path again and refuses another
    file.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.name = os.fsdecode(path)
        self.path = os.path.abspath(self.name)
        self._file = Descriptor(open_file(path, os.O_RDONLY | NO_WAIT), self.name)
        #: Gives the descriptor of the open file, in a ``with`` block.
        self.descriptor: AbstractContextManager[int] = self._file
        try:
            with self.descriptor as number:
                status = os.fstat(number)
            if stat.S_ISDIR(status.st_mode):
                raise IsADirectoryError(
                    errno.EISDIR, "Is a directory, not a checkpoint file", self.name
                )
            if not stat.S_ISREG(status.st_mode):
                raise OSError(errno.EINVAL, "Not a regular file", self.name)
        except BaseException:
            self.close()
            raise
        self.size = status.st_size
        #: The status at the beginning, to compare `status` with.
        self.opened = _status_of(status)
        self.identity = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)

    def read_at(self, offset: int, nbytes: int) -> bytes:
        check_inside(self, offset, nbytes)
        with self.descriptor as number:
            data = read_at(number, nbytes, offset)
        if len(data) == nbytes:
            return data
        # The kernel reads at most 2 GiB per call.
        out = bytearray(nbytes)
        self.read_into(offset, memoryview(out))
        return bytes(out)

    def read_into(self, offset: int, out: memoryview) -> None:
        check_inside(self, offset, out.nbytes)
        done = 0
        while done < out.nbytes:
            with self.descriptor as number:
                got = read_into(number, out[done:], offset + done)
            if got == 0:
                raise _shrunk(self.name, offset + done)
            done += got

    def will_read(self, spans: Iterable[tuple[Source, int, int]]) -> None:
        """Have the kernel read further ahead: 1 GB came from the disk in 0.55 s, not in 0.73."""
        with self.descriptor as number:
            read_further_ahead(number)

    def status(self) -> Status:
        """Return the current status of the file; `opened` is that at the beginning."""
        with self.descriptor as number:
            return _status_of(os.fstat(number))

    def close(self) -> None:
        """End reading. The file is closed as soon as no read is under way."""
        self._file.close()

    def __reduce__(self) -> tuple[Any, ...]:
        return (reopen, (self.path, self.identity))


def _status_of(status: os.stat_result) -> Status:
    return Status(status.st_size, status.st_mtime_ns, status.st_ctime_ns)


def reopen(path: str, identity: Identity) -> FileSource:
    """Return the FileSource of a path, which must be the same file as before."""
    source = FileSource(path)
    if source.identity != identity:
        source.close()
        raise FormatError(
            "the file was replaced or changed since it was opened; open it again", path=path
        )
    return source


def reopen_object(file: BinaryIO, start: int, size: int) -> FileObjectSource:
    """Return the FileObjectSource of a file object, which must be as long as it was before."""
    file.seek(start)
    source = FileObjectSource(file)
    if source.size != size:
        raise FormatError(
            f"the file object has {source.size:,} bytes from where it began, and had {size:,} when "
            "it was opened; open it again",
            path=source.name,
        )
    return source


def _seek(file: BinaryIO, whence: int) -> int:
    """Seek and return the new position. Some ``seek``s return None, such as mmap's before 3.13."""
    place: int | None = file.seek(0, whence)
    return operator.index(file.tell() if place is None else place)


class FileObjectSource(Source):
    """A binary file object with ``read`` and ``seek``, from its current position to its end.

    Offsets are relative to that position, so a checkpoint inside a larger file works.
    The object is not closed. Reads take turns, since a file object has one position. `close` waits
    for its turn, so that no read is under way when the owner uses the object again. It can be
    pickled if the file object can, and the copy must have as many bytes.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._is_closed = False
        # A signal handler may close the source in the thread that is reading.
        self._lock = threading.RLock()
        self.name = str(getattr(file, "name", None) or f"<{type(file).__name__}>")
        try:
            #: The position of the object when it was given.
            self.start = _seek(file, os.SEEK_CUR)
            self.size = max(0, _seek(file, os.SEEK_END) - self.start)
            file.seek(self.start)
        except OSError as error:
            if isinstance(error, io.UnsupportedOperation) or error.errno == errno.ESPIPE:
                raise _no_seek(self.name) from error
            raise

    def __reduce__(self) -> tuple[Any, ...]:
        self._check_open()
        return (reopen_object, (self._file, self.start, self.size))

    def read_at(self, offset: int, nbytes: int) -> bytes:
        check_inside(self, offset, nbytes)
        with self._lock:
            self._check_open()
            self._file.seek(self.start + offset)
            data = self._file.read(nbytes)
            if type(data) is not bytes or len(data) != nbytes:
                data = self._complete(data, nbytes, offset)
        return data

    def _complete(self, part: Any, nbytes: int, offset: int) -> bytes:
        """Read until all bytes are there: a raw or remote object may give less per call."""
        parts = []
        have = 0
        while True:
            if part is None:
                raise _no_bytes_now(self.name)
            try:
                # Any buffer; copied, since some objects return a part of a buffer that they reuse.
                copy = bytes(memoryview(part))
            except TypeError:
                raise TypeError(
                    f"read of {self.name} gives {type(part).__name__}; bytes, or another object "
                    "with a buffer, were expected"
                ) from None
            parts.append(copy)
            have += len(copy)
            if have > nbytes:
                raise _too_many(self.name)
            if have == nbytes:
                return b"".join(parts)
            if not copy:
                raise _shrunk(self.name, offset + have)
            part = self._file.read(nbytes - have)

    def read_into(self, offset: int, out: memoryview) -> None:
        check_inside(self, offset, out.nbytes)
        readinto: Callable[[memoryview], int | None] | None
        readinto = getattr(self._file, "readinto", None)
        # ``readinto`` of io's base classes accepts only bytes from ``read``.
        if readinto is None or getattr(type(self._file), "readinto", None) is _BASE_READINTO:
            out[:] = self.read_at(offset, out.nbytes)
            return
        with self._lock:
            self._check_open()
            self._file.seek(self.start + offset)
            done = 0
            while done < out.nbytes:
                got = readinto(out[done:])
                if got is None:
                    raise _no_bytes_now(self.name)
                if not got:
                    raise _shrunk(self.name, offset + done)
                if not 0 < got <= out.nbytes - done:
                    raise _too_many(self.name)
                done += got

    def move_to(self, offset: int) -> None:
        """Leave the file object at ``offset``, where the next reader continues."""
        with self._lock:
            self._file.seek(self.start + offset)

    def _check_open(self) -> None:
        if self._is_closed:
            raise ValueError(f"{self.name}: the checkpoint is closed")

    def close(self) -> None:
        """End reading. The file object belongs to the caller and stays open."""
        with self._lock:
            self._is_closed = True


class MmapSource(Source):
    """A regular file, mapped read-only. `view` gives its bytes without a copy.

    If the file is truncated while it is mapped, touching the lost pages kills the process
    (SIGBUS). No reader of mapped files can prevent that.
    """

    def __init__(self, path: str | os.PathLike[str], identity: Identity | None = None) -> None:
        source = FileSource(path) if identity is None else reopen(os.fsdecode(path), identity)
        self.name = source.name
        try:
            with source.descriptor as number:
                self._map = mmap.mmap(number, 0, access=mmap.ACCESS_READ) if source.size else b""
        except ValueError:  # it is empty by now
            raise _shrunk(self.name, 0) from None
        finally:
            source.close()
        self.size = len(self._map)

    def view(self, offset: int, nbytes: int) -> memoryview:
        """Return a read-only view of the bytes. It keeps the mapping alive."""
        check_inside(self, offset, nbytes)
        return memoryview(self._map)[offset : offset + nbytes]

    def read_at(self, offset: int, nbytes: int) -> bytes:
        return bytes(self.view(offset, nbytes))

    def read_into(self, offset: int, out: memoryview) -> None:
        out[:] = self.view(offset, out.nbytes)

    def close(self) -> None:
        """Do nothing: the mapping lives as long as the last view of it."""


class PartSource(Source):
    """A run of bytes of another Source, as a Source of its own: a checkpoint inside a file."""

    def __init__(self, base: Source, start: int, nbytes: int, name: str) -> None:
        check_inside(base, start, nbytes)
        self.base = base
        self.start = start
        self.size = nbytes
        self.name = name

    def read_at(self, offset: int, nbytes: int) -> Buffer:
        check_inside(self, offset, nbytes)
        return self.base.read_at(self.start + offset, nbytes)

    def read_into(self, offset: int, out: memoryview) -> None:
        check_inside(self, offset, out.nbytes)
        self.base.read_into(self.start + offset, out)

    def will_read(self, spans: Iterable[tuple[Source, int, int]]) -> None:
        whole, _ = file_place(self, 0)
        whole.will_read((*file_place(source, at), nbytes) for source, at, nbytes in spans)

    def close(self) -> None:
        """Do nothing: the other Source belongs to its opener."""


def rewinder(file: File) -> Callable[[], object]:
    """Return a function that moves a file object back to here; for a path it does nothing."""
    if isinstance(file, str | os.PathLike):
        return lambda: None
    start = position_of(file)  # which refuses objects that cannot seek
    return functools.partial(file.seek, start)


def file_place(source: Source, offset: int) -> tuple[Source, int]:
    """Return the whole file, and the offset in it, of an offset in a Source."""
    while isinstance(source, PartSource):
        offset += source.start
        source = source.base
    return source, offset


def position_of(file: BinaryIO) -> int:
    return _seek(checked_file(file), os.SEEK_CUR)


def checked_file(file: BinaryIO) -> BinaryIO:
    if not (hasattr(file, "read") and hasattr(file, "seek")) or isinstance(file, io.TextIOBase):
        raise TypeError(
            f"expected a path or a binary file object with read and seek, not {type(file).__name__}"
        )
    return file
