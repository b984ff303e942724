"""How many bytes of a storage its tensors reach: the union of all of them, exactly."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from torchzip.dtypes import DTYPES
from torchzip.tensors.specs import TensorSpec

#: Bytes of a storage that are marked at once.
_WINDOW_NBYTES = 1 << 24
#: Bytes that are marked in all: some seconds. Storages with gaps that are larger are not known.
_MOST_NBYTES = 1 << 34
#: Steps of marking, in all; what would take more has strides that no program makes.
_MOST_STEPS = 2_000_000


@dataclass(frozen=True, slots=True)
class _View:
    """Runs of ``run`` bytes, from ``start`` and any multiple, below a size, of each axis' step.

    ``axes`` are (size, step in bytes), steps descending and all longer than the run.
    """

    start: int
    run: int
    axes: tuple[tuple[int, int], ...]

    @property
    def stop(self) -> int:
        return self.start + self.run + sum((size - 1) * step for size, step in self.axes)


def reached_nbytes(specs: Iterable[TensorSpec], nbytes: int) -> int | None:
    """Return how many of the ``nbytes`` of one storage the tensors reach together.

    None if it would take too long to say. Memory is bounded, whatever the storage has.

    >>> from torchzip.tensors.storage import ArrayStorage
    >>> storage = ArrayStorage(np.zeros(40, np.uint8), "float32")
    >>> odd, first = TensorSpec("float32", (5,), (2,), 1, storage), TensorSpec(
    ...     "float32", (2, 2), (2, 1), 0, storage)
    >>> reached_nbytes([odd], 40), reached_nbytes([odd, first], 40)
    (20, 28)
    """
    views = {view for spec in specs if (view := _view_of(spec)) is not None}
    runs = _merged(sorted((view.start, view.stop) for view in views if not view.axes))
    whole = sum(stop - start for start, stop in runs)
    gaps = [view for view in views if view.axes]
    if whole == nbytes or not gaps:
        return whole
    if len(gaps) == 1 and not runs and _is_apart(gaps[0]):
        view = gaps[0]
        return view.run * math.prod(size for size, _ in view.axes)
    return _marked(runs, gaps)


def _view_of(spec: TensorSpec) -> _View | None:
    """Return what a tensor reaches; None if that is nothing."""
    if 0 in spec.shape:
        return None
    itemsize = DTYPES[spec.torch_dtype].itemsize
    steps = sorted(
        (step * itemsize, size)
        for size, step in zip(spec.shape, spec.stride, strict=True)
        if size > 1 and step
    )
    run = itemsize
    axes: list[tuple[int, int]] = []
    for step, size in steps:
        if step <= run and not axes:
            run += (size - 1) * step
        elif axes and step % axes[-1][1] == 0 and step <= axes[-1][0] * axes[-1][1]:
            count, inner = axes[-1]  # goes on where the steps of the axis inside of it end
            axes[-1] = (count + (size - 1) * (step // inner), inner)
        else:
            axes.append((size, step))
    return _View(spec.storage_offset * itemsize, run, tuple(reversed(axes)))


def _is_apart(view: _View) -> bool:
    """Return whether no two runs of a view meet."""
    inner = view.run
    for size, step in reversed(view.axes):
        if step < inner:
            return False
        inner += (size - 1) * step
    return True


def _merged(runs: list[tuple[int, int]]) -> list[tuple[int, int]]:
    made: list[tuple[int, int]] = []
    for start, stop in runs:
        if made and start <= made[-1][1]:
            made[-1] = (made[-1][0], max(stop, made[-1][1]))
        else:
            made.append((start, stop))
    return made


def _marked(runs: list[tuple[int, int]], gaps: list[_View]) -> int | None:
    """Count what runs and views with gaps reach, a window at a time; None if there is too much."""
    low, high = min(view.start for view in gaps), max(view.stop for view in gaps)
    windows = range(low, high, _WINDOW_NBYTES)
    steps = len(windows) * (len(runs) + len(gaps)) + sum(map(_steps, gaps))
    if high - low > _MOST_NBYTES or steps > _MOST_STEPS:
        return None
    reached = sum(
        max(0, min(stop, low) - start) + max(0, stop - max(start, high)) for start, stop in runs
    )
    for begin in windows:
        end = min(begin + _WINDOW_NBYTES, high)
        window = np.zeros(end - begin, np.bool_)
        for start, stop in runs:
            window[max(0, start - begin) : max(0, stop - begin)] = True
        for view in gaps:
            for first in _rows(view.start, view.run, view.axes, begin, end):
                _mark(window, first - begin, view.run, *view.axes[-1])
        reached += int(np.count_nonzero(window))
    return reached


def _steps(view: _View) -> int:
    """Return how many times at most a row of a view meets a window."""
    size, step = view.axes[-1]
    rows = math.prod(size for size, _ in view.axes[:-1])
    return rows * (2 + (view.run + (size - 1) * step) // _WINDOW_NBYTES)


def _rows(
    start: int, run: int, axes: tuple[tuple[int, int], ...], begin: int, end: int
) -> Iterator[int]:
    """Yield where the innermost rows of a view start, of those that may lie in a range."""
    if len(axes) == 1:
        yield start
        return
    (size, step), inner = axes[0], axes[1:]
    reach = run + sum((size - 1) * step for size, step in inner)
    first = max(0, -(-(begin - reach + 1 - start) // step))
    last = min(size, -(-(end - start) // step))
    for index in range(first, last):
        yield from _rows(start + index * step, run, inner, begin, end)


def _mark(window: NDArray[np.bool_], start: int, run: int, size: int, step: int) -> None:
    """Mark a row of runs; ``start`` counts from the window and may lie before it."""
    first = max(0, -(-(1 - run - start) // step))
    last = min(size, -(-(len(window) - start) // step))
    while first < last and start + first * step < 0:  # reaches in from before
        window[: start + first * step + run] = True
        first += 1
    while first < last and start + (last - 1) * step + run > len(window):
        last -= 1
        window[start + last * step :] = True
    if first < last:
        begin = start + first * step
        rows = np.lib.stride_tricks.as_strided(
            window[begin:], (last - first, run), (step, 1), writeable=True
        )
        rows[...] = True
