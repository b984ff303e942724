"""Which ranges fetch spans that will be read soon, and when.

Strategy: spans come in the order in which they will be read, which need not be that of the files
that they are in. They are taken in windows of some MB. In a window they are sorted, near ones
become one range, long ones are cut. The windows that were read from last stay in memory, and no
others. So small tensors come together, nothing is fetched twice, and memory is bounded whatever the
order.
"""

from __future__ import annotations

import threading
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from typing import Any, NamedTuple

from torchzip.files.source import Buffer, Source

#: The longest range, and how many are under way at once.
RANGE_NBYTES = 8 << 20
CONNECTIONS = 8
#: Bytes between two spans that are fetched along with them: a request takes as long.
_GAP_NBYTES = 1 << 16
_WINDOW_NBYTES = 32 << 20
#: Windows that are kept.
_KEPT_WINDOWS = 3


class FarSource(Source):
    """A Source whose bytes are fetched by ranges."""

    def fetch(self, start: int, stop: int) -> Buffer:
        """Return the bytes of a range, over a connection of its own."""
        raise NotImplementedError


#: A source, an offset and a number of bytes.
Span = tuple[FarSource, int, int]


class Range(NamedTuple):
    """What one request fetches, of which source, and in which window it is."""

    source: FarSource
    start: int
    stop: int
    window: int


def ranges_of(spans: Iterable[Span]) -> Iterator[Range]:
    """Yield the ranges for spans in the order in which they are read."""
    for number, window in enumerate(_windows(spans)):
        by_source: dict[int, list[Span]] = {}
        for span in window:
            by_source.setdefault(id(span[0]), []).append(span)
        for (source, *_), *_ in by_source.values():
            start = stop = 0
            for _, offset, nbytes in sorted(by_source[id(source)], key=lambda span: span[1]):
                if start < stop and offset <= stop + _GAP_NBYTES:
                    stop = max(stop, offset + nbytes)
                else:
                    yield from _cut(source, start, stop, number)
                    start, stop = offset, offset + nbytes
            yield from _cut(source, start, stop, number)


def _windows(spans: Iterable[Span]) -> Iterator[list[Span]]:
    """Yield spans, long ones in pieces, in groups that have some MB together."""
    window: list[Span] = []
    room = _WINDOW_NBYTES
    for source, offset, nbytes in spans:
        while nbytes > 0:
            part = min(nbytes, room)
            window.append((source, offset, part))
            offset, nbytes, room = offset + part, nbytes - part, room - part
            if not room:
                yield window
                window, room = [], _WINDOW_NBYTES
    if window:
        yield window


def _cut(source: FarSource, start: int, stop: int, window: int) -> Iterator[Range]:
    for first in range(start, stop, RANGE_NBYTES):
        yield Range(source, first, min(first + RANGE_NBYTES, stop), window)


class ReadAhead:
    """Ranges in the order in which they will be read, of which the next few are under way.

    Several threads may read at once.
    """

    def __init__(self, spans: Iterable[Span], pool: ThreadPoolExecutor) -> None:
        self._pool = pool
        self._lock = threading.Lock()
        self._ranges = list(ranges_of(spans))
        #: The starts of the ranges of each source, sorted, and which ranges these are.
        self._places: dict[int, tuple[list[int], list[int]]] = {}
        for index in sorted(range(len(self._ranges)), key=lambda index: self._ranges[index].start):
            starts, indices = self._places.setdefault(id(self._ranges[index].source), ([], []))
            starts.append(self._ranges[index].start)
            indices.append(index)
        self._futures: dict[int, Future[Buffer]] = {}
        self._kept: OrderedDict[int, None] = OrderedDict()
        #: No range from here on was asked for.
        self._next = 0

    def read(self, source: Source, offset: int, nbytes: int) -> memoryview | None:
        """Return bytes of ranges; None if some are in none of them."""
        parts: list[memoryview] = []
        stop = offset + nbytes
        while offset < stop or not parts:
            with self._lock:
                found = self._find(source, offset)
            if found is None:
                return None
            (_, start, end, _), future = found
            end = min(stop, end)
            try:
                data = future.result()
            except CancelledError:  # something else was announced meanwhile
                return None
            parts.append(memoryview(data)[offset - start : end - start])
            offset = end
        return parts[0] if len(parts) == 1 else memoryview(b"".join(parts))

    def _find(self, source: Source, at: int) -> tuple[Range, Future[Buffer]] | None:
        """Return the range that has a byte, and what fetches it; None if no range has it."""
        starts, indices = self._places.get(id(source), ([], []))
        near = indices[bisect_right(starts, at - RANGE_NBYTES) : bisect_right(starts, at)]
        having = [index for index in near if at < self._ranges[index].stop]
        if not having:
            return None
        # What is announced several times is read several times: the next one is meant.
        index = min(
            having, key=lambda index: (index not in self._futures, index < self._next, index)
        )
        found = self._ranges[index]
        if index >= self._next + CONNECTIONS:  # what lies between is not read after all
            self._next = index
        for later in range(self._next, min(index + CONNECTIONS, len(self._ranges))):
            self._begin(later)
            self._next = later + 1
        if index not in self._futures:  # it was read before, and let go
            self._begin(index)
        self._keep(found.window)
        return found, self._futures[index]

    def _begin(self, index: int) -> None:
        source, start, stop, _ = self._ranges[index]
        self._futures[index] = self._pool.submit(source.fetch, start, stop)

    def _keep(self, window: int) -> None:
        """Take note that a window is read from, and let go of the one that was not for longest."""
        self._kept[window] = None
        self._kept.move_to_end(window)
        if len(self._kept) > _KEPT_WINDOWS:
            old, _ = self._kept.popitem(last=False)
            # Another thread may wait for one of them, so they are not cancelled.
            for index in [key for key in self._futures if self._ranges[key].window == old]:
                del self._futures[index]

    def drop(self) -> None:
        """Let go of everything: nobody will read it."""
        with self._lock:
            for future in self._futures.values():
                future.cancel()
            self._futures.clear()


class Connections:
    """Threads that wait for answers, and what is read ahead. Sources can share them."""

    def __init__(self) -> None:
        self.pool = ThreadPoolExecutor(CONNECTIONS, "torchzip-remote")
        self._ahead = ReadAhead([], self.pool)
        #: What the backend keeps for the next request.
        self.kept: dict[Any, Any] = {}

    def will_read(self, spans: Iterable[Span]) -> None:
        before, self._ahead = self._ahead, ReadAhead(spans, self.pool)
        before.drop()

    def read(self, source: Source, offset: int, nbytes: int) -> memoryview | None:
        """Return bytes that were announced; None if they were not."""
        return self._ahead.read(source, offset, nbytes)

    def close(self) -> None:
        self._ahead.drop()
        self.pool.shutdown(wait=False, cancel_futures=True)
        for each in self.kept.values():
            each.close()
