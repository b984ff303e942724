"""Progress on stderr: tqdm if it is installed, else a plain line on a terminal, else nothing."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator

from torchzip.checkpoint.quantities import nbytes_text


@contextlib.contextmanager
def progress_line() -> Iterator[Callable[[int, int], None] | None]:
    """Yield a callback (bytes done, bytes in all), or None if stderr is not a terminal."""
    if not sys.stderr.isatty():
        yield None
        return
    try:
        from tqdm import tqdm
    except ImportError:
        line = _Line()
        try:
            yield line.update
        finally:
            line.clear()
        return
    tqdm.monitor_interval = 0  # its monitor thread would make it unsafe to fork workers
    with tqdm(unit="B", unit_scale=True, leave=False, file=sys.stderr) as bar:

        def update(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield update


class _Line:
    """One line that is overwritten, at most ten times a second."""

    def __init__(self) -> None:
        self._started = time.monotonic()
        self._shown = 0.0
        self._width = 0

    def update(self, done: int, total: int) -> None:
        now = time.monotonic()
        if now - self._shown < 0.1 and done < total:
            return
        self._shown = now
        seconds = max(now - self._started, 1e-9)
        rate = done / seconds
        left = f", {(total - done) / rate:.0f} s left" if 0 < done < total else ""
        text = (
            f"{100 * done // max(total, 1):3d}%  {nbytes_text(done)} of {nbytes_text(total)}, "
            f"{nbytes_text(int(rate))}/s{left}"
        )
        # A line that wraps cannot be overwritten. The last column stays free: some terminals wrap
        # when it is written.
        text = text[: max(_columns() - 1, 1)]
        self._width = max(self._width, len(text))
        sys.stderr.write("\r" + text.ljust(self._width))
        sys.stderr.flush()

    def clear(self) -> None:
        if self._width:
            sys.stderr.write("\r" + " " * self._width + "\r")
            sys.stderr.flush()


def _columns() -> int:
    """Return the width of the terminal on stderr; `shutil` only knows that of stdout."""
    try:
        return os.get_terminal_size(sys.stderr.fileno()).columns or 80
    except (OSError, ValueError):
        return 80
