"""Writes to ranges of an existing file, by one worker or several at once."""

from __future__ import annotations

import errno
import os
from typing import Self

from torchzip.files.direct import DirectWriter
from torchzip.files.new_file import names_file, write_all
from torchzip.files.platform_calls import copy_range, open_file
from torchzip.files.source import FileSource, Source, file_place

#: Ranges of this size or more bypass the page cache, if that is possible.
_DIRECT_NBYTES = 1 << 20
_BLOCK_NBYTES = 1 << 20
#: How much the kernel copies per call.
_COPY_NBYTES = 8 << 20
#: Errors of the kernel if it cannot copy between two files.
_CANNOT_COPY = {errno.EXDEV, errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, errno.EPERM, errno.EBADF}


class RangeWriter:
    """Writes ranges of the file at ``path``: `begin`, then `room` and `advance`, `end`.

    Use it in a ``with`` block; errors of writes are raised at its end.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._block = bytearray()
        self._filled = 0
        self._offset = 0
        self._direct: DirectWriter | None = None
        self._fd = open_file(path, os.O_RDWR)
        #: The direct writer, in ranges that bypass the page cache.
        self._now: DirectWriter | None = None
        self._no_direct = False

    def begin(self, offset: int, nbytes: int) -> None:
        is_direct = nbytes >= _DIRECT_NBYTES and self._can_write_directly()
        self._now = self._direct if is_direct else None
        if self._now is not None:
            self._now.begin(offset)
        else:
            self._offset = offset
            self._block = self._block or bytearray(_BLOCK_NBYTES)

    def _can_write_directly(self) -> bool:
        if self._direct is None and not self._no_direct:
            try:
                self._direct = DirectWriter(self._path, 0)
            except OSError:
                self._no_direct = True
        return self._direct is not None

    @property
    def room(self) -> memoryview:
        """Memory for the next bytes; `advance` takes them."""
        if self._now is not None:
            return self._now.room
        return memoryview(self._block)[self._filled :]

    def advance(self, nbytes: int) -> None:
        """Take the first bytes of `room`."""
        if self._now is not None:
            with names_file(self._path):
                self._now.advance(nbytes)
            return
        self._filled += nbytes
        if self._filled == len(self._block):
            self._flush()

    def end(self) -> None:
        if self._now is not None:
            with names_file(self._path):
                self._now.end()
        else:
            self._flush()

    def _flush(self) -> None:
        with names_file(self._path):
            write_all(self._fd, self._offset, memoryview(self._block)[: self._filled])
        self._offset += self._filled
        self._filled = 0

    def copy(self, source: Source, start: int, offset: int, nbytes: int) -> bool:
        """Have the kernel copy a range from ``start`` of a source; return False if it cannot.

        It drops the pages at once, which also sends them to the disk: the sync at the end has
        little to do, and the next pages need no fresh memory (1 GB with the sync: 0.5 s, and 2.3 s
        where the pages stay).
        """
        source, start = file_place(source, start)
        if not isinstance(source, FileSource):
            return False
        done = 0
        with source.descriptor as number:
            while done < nbytes:
                try:
                    count = copy_range(
                        number, self._fd, min(_COPY_NBYTES, nbytes - done),
                        start + done, offset + done,
                    )  # fmt: skip
                except OSError as error:
                    if error.errno in _CANNOT_COPY:
                        return False
                    error.filename = self._path  # a disk that is full is that of the target
                    raise
                if not count:
                    return False  # the source is shorter by now; reading it gives the error
                done += count
        return True

    def _close(self) -> None:
        try:
            direct, self._direct = self._direct, None
            if direct is not None:
                direct.close()
        finally:
            descriptor, self._fd = self._fd, -1
            if descriptor >= 0:
                os.close(descriptor)

    def __del__(self) -> None:
        if getattr(self, "_fd", -1) >= 0:  # an interrupt came before the ``with`` block
            self._close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        try:
            if exc[0] is None and self._direct is not None:
                with names_file(self._path):
                    self._direct.settle()
        finally:
            self._close()
