"""How far the writing is."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[int, int], None]

_PROGRESS_NBYTES = 1 << 20


class Meter:
    """Tells a callback how far the writing is, not oftener than it is worth."""

    def __init__(self, total: int, progress: Progress | None) -> None:
        self._total = total
        self._progress = progress
        self._done = 0
        self._told = -_PROGRESS_NBYTES

    def add(self, nbytes: int) -> None:
        self._done += nbytes
        if self._progress is not None and self._done - self._told >= _PROGRESS_NBYTES:
            self._told = self._done
            self._progress(self._done, self._total)

    def finish(self) -> None:
        if self._progress is not None:
            self._progress(self._total, self._total)
