"""Which ranges fetch spans that will be read soon, and when.

Strategy: spans come in the order in which they will be read, which need not be that of the file.
They are taken in windows of some MB. In a window they are sorted, near ones become one range, long
ones are cut. The windows that were read from last stay in memory, and no others. So small tensors
come together, nothing is fetched twice, and memory is bounded whatever the order.
"""

from __future__ import annotations

import threading
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from itertools import dropwhile, islice
from typing import NamedTuple

from torchzip.files.source import Buffer

#: The longest range, and how many are under way at once.
RANGE_NBYTES = 8 << 20
CONNECTIONS = 8
#: Bytes between two spans that are fetched along with them: a request takes as long.
_GAP_NBYTES = 1 << 16
_WINDOW_NBYTES = 32 << 20
#: Windows that are kept, of all sources together.
_KEPT_WINDOWS = 3

Span = tuple[int, int]  # an offset and a number of bytes


class Range(NamedTuple):
    """What one request fetches, and in which window it is."""

    start: int
    stop: int
    window: int


def ranges_of(spans: Iterable[Span]) -> Iterator[Range]:
    """Yield the ranges for spans in the order in which they are read."""
    for number, window in enumerate(_windows(spans)):
        start = stop = 0
        for offset, nbytes in sorted(window):
            if start < stop and offset <= stop + _GAP_NBYTES:
                stop = max(stop, offset + nbytes)
            else:
                yield from _cut(start, stop, number)
                start, stop = offset, offset + nbytes
        yield from _cut(start, stop, number)


def _windows(spans: Iterable[Span]) -> Iterator[list[Span]]:
    """Yield spans, long ones in pieces, in groups that have some MB together."""
    window: list[Span] = []
    room = _WINDOW_NBYTES
    for offset, nbytes in spans:
        while nbytes > 0:
            part = min(nbytes, room)
            window.append((offset, part))
            offset, nbytes, room = offset + part, nbytes - part, room - part
            if not room:
                yield window
                window, room = [], _WINDOW_NBYTES
    if window:
        yield window


def _cut(start: int, stop: int, window: int) -> Iterator[Range]:
    for first in range(start, stop, RANGE_NBYTES):
        yield Range(first, min(first + RANGE_NBYTES, stop), window)


class Connections:
    """Threads that wait for answers, and what came of them lately. Sources can share them.

    The ``lock`` is held for a moment, never for a request.
    """

    def __init__(self) -> None:
        self.pool = ThreadPoolExecutor(CONNECTIONS, "torchzip-remote")
        self.lock = threading.RLock()
        self._kept: OrderedDict[tuple[int, int], ReadAhead] = OrderedDict()
        #: What was announced and is not forgotten, in the order in which it will be read.
        self._announced: list[ReadAhead] = []

    def announce(self, ahead: ReadAhead) -> None:
        """Take note of what will be read after all else that was announced."""
        self._announced.append(ahead)

    def begin_after(self, ahead: ReadAhead) -> None:
        """Begin to fetch what follows something of which all is under way."""
        following = dropwhile(lambda each: each is not ahead, self._announced)
        for each in islice(following, 1, 2):
            each.begin()

    def keep(self, ahead: ReadAhead, window: int) -> None:
        """Take note that a window is read from, and let go of the one that was not for longest."""
        key = (id(ahead), window)
        self._kept[key] = ahead
        self._kept.move_to_end(key)
        if len(self._kept) > _KEPT_WINDOWS:
            (_, old), other = self._kept.popitem(last=False)
            other.drop(old)

    def forget(self, ahead: ReadAhead) -> None:
        """Let go of all windows of what is not read any more."""
        for key in [key for key, each in self._kept.items() if each is ahead]:
            del self._kept[key]
        self._announced = [each for each in self._announced if each is not ahead]
        ahead.drop()

    def close(self) -> None:
        self.pool.shutdown(wait=False, cancel_futures=True)


class ReadAhead:
    """Ranges in the order in which they will be read, of which the next few are under way.

    ``fetch`` gives the bytes of a range.
    """

    def __init__(
        self,
        spans: Iterable[Span],
        fetch: Callable[[int, int], Buffer],
        connections: Connections,
    ) -> None:
        self._fetch = fetch
        self._connections = connections
        self._ranges = list(ranges_of(spans))
        self._order = sorted(range(len(self._ranges)), key=self._ranges.__getitem__)
        self._starts = [self._ranges[index].start for index in self._order]
        self._futures: dict[int, Future[Buffer]] = {}
        #: No range from here on was asked for.
        self._next = 0

    def read(self, offset: int, nbytes: int) -> memoryview | None:
        """Return bytes of ranges; None if some are in none of them."""
        parts: list[memoryview] = []
        stop = offset + nbytes
        while offset < stop or not parts:
            with self._connections.lock:
                found = self._find(offset)
            if found is None:
                return None
            (start, end, _), future = found
            end = min(stop, end)
            try:
                data = future.result()
            except CancelledError:  # something else was announced meanwhile
                return None
            parts.append(memoryview(data)[offset - start : end - start])
            offset = end
        return parts[0] if len(parts) == 1 else memoryview(b"".join(parts))

    def _find(self, at: int) -> tuple[Range, Future[Buffer]] | None:
        """Return the range that has a byte, and what fetches it; None if no range has it."""
        place = bisect_right(self._starts, at) - 1
        if place < 0:
            return None
        index = self._order[place]
        found = self._ranges[index]
        if at >= found.stop:
            return None
        if index >= self._next + CONNECTIONS:  # what lies between is not read after all
            self._next = index
        if self._next < len(self._ranges):
            self._begin_up_to(index + CONNECTIONS)
            if self._next == len(self._ranges):
                self._connections.begin_after(self)
        if index not in self._futures:  # it was read before, and let go
            self._begin(index)
        self._connections.keep(self, found.window)
        return found, self._futures[index]

    def begin(self) -> None:
        """Begin to fetch the first ranges, unless that was done."""
        self._begin_up_to(CONNECTIONS)

    def _begin_up_to(self, stop: int) -> None:
        for index in range(self._next, min(stop, len(self._ranges))):
            self._begin(index)
            self._next = index + 1

    def _begin(self, index: int) -> None:
        start, stop, _ = self._ranges[index]
        self._futures[index] = self._connections.pool.submit(self._fetch, start, stop)

    def drop(self, window: int | None = None) -> None:
        """Let go of a window, for which another thread may wait; or of all, which nobody reads."""
        for index in [*self._futures]:
            if window is None:
                self._futures.pop(index).cancel()
            elif window == self._ranges[index].window:
                del self._futures[index]
