"""Reads of elements that lie apart: many are gathered at once, and kept for the next reads."""

from __future__ import annotations

from abc import abstractmethod

import numpy as np

from torchzip.tensors.storage import BlockReader, Bytes, TensorStorage


def whole_rows(first: int, last: int, row: int) -> tuple[int, int]:
    """Return a range of elements made longer to whole rows, if it has some of three or more."""
    if row and last // row > first // row + 1:
        return first - first % row, last + -last % row
    return first, last


class WindowReader(BlockReader):
    """Reads elements that are best gathered many at once: a window of them, which it keeps.

    A window has about ``nbytes``, or what is asked for if that is more. It does not go past the
    element ``stop``, but for whole rows, of ``row`` elements: a part of one costs as many reads as
    all of it.
    """

    def __init__(
        self, storage: TensorStorage, itemsize: int, row: int, stop: int, nbytes: int
    ) -> None:
        super().__init__(storage)
        self._itemsize = itemsize
        self._row = row
        self._stop = stop
        self._most = nbytes // itemsize
        self._memory = self._block

    @abstractmethod
    def gather(self, first: int, last: int, out: Bytes) -> None:
        """Fill ``out`` with the elements from ``first`` to ``last``."""

    def move(self, start: int, stop: int) -> None:
        first, last = start // self._itemsize, -(-stop // self._itemsize)
        row, most = self._row, self._most
        if most:
            left = max(self._stop, last) - first
            last = first + -(-left // max(1, round(left / most)))  # as many in each window
        first, last = whole_rows(first, last, row)
        last = min(last, self._storage.nbytes // self._itemsize)
        self._block = np.empty(0, np.uint8)  # until it is filled
        nbytes = (last - first) * self._itemsize
        if self._memory.size < nbytes:
            self._memory = self._block  # the old memory goes before there is new
            self._memory = np.empty(nbytes, np.uint8)
        window = self._memory[:nbytes]
        self.gather(first, last, window)
        self._at, self._block = first * self._itemsize, window
