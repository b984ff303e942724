"""A `Source` over an object at a URL, read by ranges.

Strategy: two requests at once fetch the head and the tail, which is where the formats begin to be
read; their answers give the size and the ETag. A short read fetches some KB more than it was asked
for, since the header of a record is read before its bytes. What `will_read` announces comes in
ranges of some MB over several connections, ahead of the reads. Each request asks for the object
that was opened, and each answer is compared with it: an object that was replaced is an error, not
other numbers.
"""

from __future__ import annotations

import errno
import threading
from collections import deque
from collections.abc import Iterable
from typing import Any

from torchzip.files.backends import open_object
from torchzip.files.location import Location
from torchzip.files.read_ahead import RANGE_NBYTES, Connections, FarSource, ReadAhead
from torchzip.files.remote import Answer, replaced
from torchzip.files.source import Buffer, Source, check_inside

#: What is fetched when an object is opened.
_HEAD_NBYTES = 1 << 17
_TAIL_NBYTES = 1 << 18
#: What stands around a run of bytes is often looked at next: the record before a directory, or the
#: bytes after a header. A request costs as much time as some hundred KB.
_LEAD_NBYTES = 1 << 12
_AFTER_NBYTES = 1 << 17
#: Reads of up to so many bytes are kept for the next ones, the last of them.
_KEPT_NBYTES = 1 << 20
_KEPT = 8


class RemoteSource(FarSource):
    """An object that is read by ranges; see the module docstring. It can be pickled.

    By default it has its own ``connections``.
    """

    def __init__(self, location: Location, connections: Connections | None = None) -> None:
        self._prepare(location, connections)
        try:
            head = self._connections.pool.submit(self._object.range, 0, _HEAD_NBYTES, None)
            tail = self._object.tail(_TAIL_NBYTES)
            self.size, self.identity = tail.size, tail.identity
            self._ends.append((self.size - len(tail.data), tail.data))
            if len(tail.data) < self.size:
                self._ends.append((0, self._checked(head.result(), 0, _HEAD_NBYTES)))
        except BaseException:
            self.close()
            raise

    def _prepare(self, location: Location, connections: Connections | None) -> None:
        self.location = location
        self.name = location.name
        self._ends: list[tuple[int, Buffer]] = []
        self._recent: deque[tuple[int, Buffer]] = deque(maxlen=_KEPT)
        self._owns_connections = connections is None
        self._connections: Connections = connections if connections is not None else Connections()
        self.far_group = self._connections
        self._object = open_object(location, self._connections.kept)
        self._lock = threading.Lock()
        self._is_closed = False

    def _checked(self, answer: Answer, start: int, stop: int) -> Buffer:
        """Return the bytes of an answer, which must be the ones asked for, of the same object."""
        if (answer.size, answer.identity) != (self.size, self.identity):
            raise replaced(self.name)
        stop = min(stop, self.size)
        if (answer.start, len(answer.data)) != (start, stop - start):
            raise OSError(
                errno.EIO,
                f"The server gives {len(answer.data):,} bytes from byte {answer.start:,}, not "
                f"{stop - start:,} from byte {start:,}",
                self.name,
            )
        return answer.data

    def fetch(self, start: int, stop: int) -> Buffer:
        return self._checked(self._object.range(start, stop, self.identity), start, stop)

    def read_at(self, offset: int, nbytes: int) -> Buffer:
        check_inside(self, offset, nbytes)
        found = self._found(offset, nbytes)
        if found is not None:
            return found
        start = max(0, offset - _LEAD_NBYTES)
        lead = offset - start
        if nbytes > _KEPT_NBYTES:
            data = memoryview(bytearray(lead + nbytes))
            self._read_long(start, data)
            kept = memoryview(bytes(data[:lead]))
        else:
            stop = min(self.size, offset + nbytes + _AFTER_NBYTES)
            kept = data = memoryview(self.fetch(start, stop))
        with self._lock:
            self._recent.append((start, kept))
        return data[lead : lead + nbytes]

    def read_into(self, offset: int, out: memoryview) -> None:
        check_inside(self, offset, out.nbytes)
        found = self._found(offset, out.nbytes)
        if found is not None:
            out[:] = found
        elif out.nbytes > _AFTER_NBYTES:
            self._read_long(offset, out)
        else:
            out[:] = self.read_at(offset, out.nbytes)

    def _read_long(self, offset: int, out: memoryview) -> None:
        """Fill ``out`` over several connections at once."""
        ahead = ReadAhead([(self, offset, out.nbytes)], self._connections.pool)
        for at in range(0, out.nbytes, RANGE_NBYTES):
            part = out[at : at + RANGE_NBYTES]
            start, stop = offset + at, offset + at + part.nbytes
            found = ahead.read(self, start, part.nbytes)
            part[:] = self.fetch(start, stop) if found is None else found

    def will_read(self, spans: Iterable[tuple[Source, int, int]]) -> None:
        far = ((source, at, size) for source, at, size in spans if isinstance(source, FarSource))
        self._connections.will_read(far)

    def _found(self, offset: int, nbytes: int) -> memoryview | None:
        """Return bytes that were fetched before, or are announced; None if they are neither."""
        if self._is_closed:
            raise ValueError(f"{self.name}: the checkpoint is closed")
        with self._lock:
            blocks = [*self._ends, *self._recent]
        for first, data in blocks:
            if first <= offset and offset + nbytes <= first + len(data):
                return memoryview(data)[offset - first : offset - first + nbytes]
        return self._connections.read(self, offset, nbytes)

    def close(self) -> None:
        """End reading."""
        self._is_closed = True
        if self._owns_connections:
            self._connections.close()

    def __reduce__(self) -> tuple[Any, ...]:
        return (reopen_remote, (self.location, self.size, self.identity))


def reopen_remote(location: Location, size: int, identity: str) -> RemoteSource:
    """Return the source of an object, which must be in the state that it was in."""
    source = RemoteSource.__new__(RemoteSource)
    source._prepare(location, None)
    source.size, source.identity = size, identity
    return source
