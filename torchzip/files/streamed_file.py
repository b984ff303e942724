"""A new file of which the bytes come in order, with the members of a `NewFile` and its writers.

What is written to a later place fills the gap with zeros, as a file of a disk does.
"""

from __future__ import annotations

from torchzip.files.sink import Sink
from torchzip.files.source import Buffer, Source

_ROOM_NBYTES = 1 << 22
_ZEROS = bytes(1 << 16)


class StreamedFile:
    """Writes to a sink at offsets that only grow.

    It is also the writer of ranges of itself, as a `RangeWriter` is of a file: `begin`, then
    `room` and `advance`, `end`.
    """

    def __init__(self, sink: Sink) -> None:
        self.name = sink.name
        self._sink = sink
        self._memory = bytearray()
        self._firsts: dict[int, bytes] = {}
        self._range = -1

    def write_at(self, offset: int, data: Buffer) -> None:
        gap = offset - self._sink.position
        if gap < 0:
            raise RuntimeError("bytes of a stream out of order")
        while gap:
            count = min(gap, len(_ZEROS))
            self._sink.write(_ZEROS[:count])
            gap -= count
        self._sink.write(data)

    def read_back(self, offset: int, nbytes: int) -> bytes:
        """Return the first bytes, up to 8, of the range that was written from here."""
        return self._firsts.pop(offset)[:nbytes]

    def begin(self, offset: int, nbytes: int) -> None:
        self.write_at(offset, b"")
        self._range = offset
        self._memory = self._memory or bytearray(_ROOM_NBYTES)

    @property
    def room(self) -> memoryview:
        """Memory for the next bytes; `advance` takes them."""
        return memoryview(self._memory)

    def advance(self, nbytes: int) -> None:
        """Take the first bytes of `room`."""
        view = memoryview(self._memory)[:nbytes]
        first = self._firsts.get(self._range, b"")
        if len(first) < 8:
            self._firsts[self._range] = first + bytes(view[: 8 - len(first)])
        self._sink.write(view)

    def end(self) -> None:
        """Do nothing: the bytes are under way."""

    def copy(self, source: Source, start: int, offset: int, nbytes: int) -> bool:
        return False

    def commit(self) -> None:
        self._sink.commit()

    def abort(self) -> None:
        self._sink.abort()
