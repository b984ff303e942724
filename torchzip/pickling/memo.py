"""The memo of an `Interpreter`: what a pickle has numbered.

A run of records that are alike numbers eight objects for each, and a file hardly ever asks for one
of them again. Such a run stays whole here, and makes what it has numbered when that is asked for.

Picklers number in turn. Numbers chosen otherwise could be such that each has to be looked for in
thousands of places of the dict, so there may be few of them.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from typing import Any, Protocol

from torchzip.errors import LimitError, PickleError

#: Some picklers leave numbers out, of what is never asked for: up to 15 of 16, and a start so far
#: from 0. In so narrow a range no number has to be looked for in many places.
_SPREAD, _AHEAD = 16, 100_000
#: Numbers that may be anywhere.
_MAX_OUT_OF_TURN = 256


class NumberedRun(Protocol):
    """Objects under consecutive numbers, from ``start`` to before ``end``."""

    start: int
    end: int

    def numbered(self, index: int) -> Iterator[tuple[int, Any]]:
        """Yield numbers and objects of the record that ``index`` belongs to."""
        ...


class Memo(dict[int, Any]):
    """A dict of what is numbered, with runs behind it.

    What is in the dict itself was numbered after a run that has the same number.
    """

    __slots__ = ("_in_runs", "_out_of_turn", "_runs", "_starts", "most")

    def __init__(self) -> None:
        #: How many there may be, beside those in runs.
        self.most = 0
        self._in_runs = 0
        self._out_of_turn = 0
        self._runs: list[NumberedRun] = []
        self._starts: list[int] = []

    def takes(self, start: int, end: int) -> bool:
        """Return whether a run of these numbers can stay whole: they are new, and the highest."""
        if self._runs and start < self._runs[-1].end:
            return False
        if len(self) < end - start:
            return not any(start <= index < end for index in self)
        return not any(map(self.__contains__, range(start, end)))

    def add(self, run: NumberedRun) -> None:
        """Number a run that it `takes`."""
        self._runs.append(run)
        self._starts.append(run.start)
        self._in_runs += run.end - run.start

    def check(self, number: int) -> int:
        """Check a number that was given; return which lower ones need no check from here on.

        Raises
        ------
        LimitError
            If there are too many.
        PickleError
            If too many of them are out of turn.
        """
        if len(self) > self.most:
            raise LimitError("memo", len(self), self.most)
        expected = _SPREAD * (len(self) + self._in_runs) + _AHEAD
        if number >= expected:
            self._out_of_turn += 1
            if self._out_of_turn > _MAX_OUT_OF_TURN:
                raise PickleError(
                    f"memo number {number:,} after {len(self):,} numbers; more than "
                    f"{_MAX_OUT_OF_TURN} are out of turn"
                )
        return min(expected, self.most)

    def __missing__(self, index: int) -> Any:
        at = bisect_right(self._starts, index) - 1
        if at < 0 or index >= self._runs[at].end:
            raise KeyError(index)
        for number, value in self._runs[at].numbered(index):
            self.setdefault(number, value)
        return self.get(index)

    def recall(self, index: int, default: Any = None) -> Any:
        """Return what has a number, or ``default``."""
        try:
            return self[index]
        except KeyError:
            return default

    def settle(self) -> int:
        """Make all that runs have numbered; return how many numbers there are."""
        for run in self._runs:
            index = run.start
            while index < run.end:
                for number, value in run.numbered(index):
                    self.setdefault(number, value)
                    index = number + 1
        self._runs.clear()
        self._starts.clear()
        self._in_runs = 0
        return len(self)
