"""A `Sink` that uploads to an object while it is written to, all or nothing.

The backend takes the blocks from a thread of its own, in parts of some MB. Only the end of the
last block makes the object appear; until then, and after any error, what was there before stays,
and an upload that was begun is aborted.
"""

from __future__ import annotations

import errno
import queue
import threading
from collections.abc import Iterator

from torchzip.files.backends import is_read_only, open_object
from torchzip.files.location import EXISTS, Location
from torchzip.files.remote import read_only
from torchzip.files.source import Buffer

_BLOCK_NBYTES = 1 << 20
#: Blocks that wait for the backend, at most.
_WAITING = 4


class _AbortedError(Exception):
    """Ends an upload from the inside."""


class RemoteSink:
    """An upload; see the module docstring. With ``overwrite=False`` no object may be there."""

    def __init__(self, location: Location, *, overwrite: bool = True) -> None:
        self.name = location.name
        self.position = 0
        if is_read_only(location):
            raise read_only(self.name)
        self._object = open_object(location)
        self._overwrite = overwrite
        self._block = bytearray()
        self._blocks: queue.Queue[bytes | _AbortedError | None] = queue.Queue(_WAITING)
        self._failed: list[BaseException] = []
        self._is_ended = False
        self._thread: threading.Thread | None = threading.Thread(
            target=self._upload, name="torchzip-upload", daemon=True
        )
        self._thread.start()

    def _upload(self) -> None:
        try:
            self._object.put(self._taken(), overwrite=self._overwrite)
        except BaseException as error:  # raised where the next block is written
            self._failed.append(error)
            for _ in self._taken():
                pass  # the writer may be waiting for room

    def _taken(self) -> Iterator[bytes]:
        """Yield blocks up to the end; raise if the writer gave up."""
        while not self._is_ended:
            block = self._blocks.get()
            self._is_ended = not isinstance(block, bytes)
            if isinstance(block, bytes):
                yield block
            elif block is not None and not self._failed:
                raise block

    def write(self, data: Buffer) -> None:
        if self._thread is None:
            raise ValueError(f"{self.name}: the writer is closed")
        view = memoryview(data).cast("B")
        self.position += len(view)
        while view:
            part = view[: _BLOCK_NBYTES - len(self._block)]
            self._block += part
            view = view[len(part) :]
            if len(self._block) == _BLOCK_NBYTES:
                self._send()

    def _send(self) -> None:
        if self._failed:
            raise self._failed[0]
        self._blocks.put(bytes(self._block))
        self._block.clear()

    def reserve(self, nbytes: int) -> None:
        """Do nothing: a store has room, or says that it does not."""

    def read_back(self, offset: int, nbytes: int) -> None:
        return None

    def commit(self) -> None:
        """End the upload, so that the object appears; abort it if that fails."""
        try:
            if self._block:
                self._send()
            # Stores refuse an object of one part by themselves, and one of several not at all.
            if not self._overwrite and self._object.exists():
                raise FileExistsError(errno.EEXIST, EXISTS, self.name)
            self._end(None)
        finally:
            self.abort()
        if self._failed:
            raise self._failed[0]

    def abort(self) -> None:
        """Drop the upload, if it was not committed."""
        self._end(_AbortedError("the writer gave up"))

    def _end(self, last: _AbortedError | None) -> None:
        thread, self._thread = self._thread, None
        if thread is not None:
            self._blocks.put(last)
            thread.join()
