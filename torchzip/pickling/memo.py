"""The memo of an `Interpreter`: values by memo number.

A run of similar records numbers eight objects per record, and a file hardly ever uses one of them
again. Such a run is kept as a whole, and makes a numbered object when it is requested.

Picklers number consecutively, some with gaps. A file could choose numbers that each need a search
through thousands of places in a dict. So a number that is far ahead is kept as a string, whose hash
is salted.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from typing import Any, Protocol

from torchzip.errors import LimitError, PickleError

#: A number is kept as an int up to so many above the count of all: then no two of them can compete
#: for a place in the dict.
_AHEAD = 256


class NumberedRun(Protocol):
    """Objects under consecutive numbers, from ``start`` to before ``end``."""

    start: int
    end: int

    def numbered(self, index: int) -> Iterator[tuple[int, Any]]:
        """Yield numbers and objects of the record that ``index`` belongs to."""
        ...


class Memo(dict[int, Any]):
    """A dict of numbered values, backed by runs.

    Values in the dict itself were numbered later than those of a run with the same number.
    """

    __slots__ = ("_far", "_in_runs", "_runs", "_starts", "most")

    def __init__(self) -> None:
        #: The bound on their count, without those in runs.
        self.most: int = 0
        self._in_runs = 0
        self._far: dict[str, Any] = {}
        self._runs: list[NumberedRun] = []
        self._starts: list[int] = []

    def takes(self, start: int, end: int) -> bool:
        """Return whether a run of these numbers can be kept: they are new, and the highest."""
        if self._far or (self._runs and start < self._runs[-1].end):
            return False
        if len(self) < end - start:
            return not any(start <= index < end for index in self)
        return not any(map(self.__contains__, range(start, end)))

    def add(self, run: NumberedRun) -> None:
        """Number a run for which `takes` is true."""
        self._runs.append(run)
        self._starts.append(run.start)
        self._in_runs += run.end - run.start

    def put(self, number: int, value: Any) -> int:
        """Number a value; return the bound below which numbers may go into the dict directly.

        Raises
        ------
        LimitError
            If there are too many.
        """
        expected = len(self) + self._in_runs + _AHEAD
        if number < expected:
            self[number] = value
            self._far.pop(str(number), None)
        else:
            self._far[str(number)] = value
        count = len(self) + len(self._far)
        if count > self.most:
            raise LimitError("memo", count, self.most)
        return 0 if self._far else min(expected, self.most)

    def __missing__(self, index: int) -> Any:
        if self._far and (text := str(index)) in self._far:
            return self._far[text]
        at = bisect_right(self._starts, index) - 1
        if at < 0 or index >= self._runs[at].end:
            raise PickleError(f"memo number {index} was never set")
        for number, value in self._runs[at].numbered(index):
            self.setdefault(number, value)
        return self.get(index)

    def recall(self, index: int, default: Any = None) -> Any:
        """Return the value with a number, or ``default``."""
        try:
            return self[index]
        except PickleError:
            return default

    def settle(self) -> int:
        """Make all objects of the runs; return how many numbers there are."""
        for run in self._runs:
            index = run.start
            while index < run.end:
                for number, value in run.numbered(index):
                    self.setdefault(number, value)
                    index = number + 1
        self._runs.clear()
        self._starts.clear()
        self._in_runs = 0
        return len(self) + len(self._far)
