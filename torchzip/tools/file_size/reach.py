"""How many bytes of a storage its tensors reach: the union of all of them, exactly."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from torchzip.convert.casting import inner_tensors
from torchzip.dtypes import DTYPES
from torchzip.tensors.persistent_ids import BareStorage
from torchzip.tensors.specs import TensorSpec
from torchzip.tensors.storage import TensorStorage

#: Units of a storage that are marked, in memory and in all: a second or so.
_MOST_MARKED = 1 << 27


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


def unreached_nbytes(values: Iterable[object]) -> int:
    """Return how many bytes of the storages in some values no tensor in them reaches.

    Storages for which it would take too long to say are taken to be reached, and bare ones are.
    """
    storages: dict[int, TensorStorage] = {}
    specs: dict[int, list[TensorSpec]] = {}
    bare: set[int] = set()
    for held in inner_tensors(values).values():
        key = id(held.storage)
        storages[key] = held.storage
        if isinstance(held, BareStorage):
            bare.add(key)
        else:
            specs.setdefault(key, []).append(held)
    left = 0
    for key in specs.keys() - bare:
        nbytes = storages[key].nbytes
        reached = reached_nbytes(specs[key], nbytes)
        left += 0 if reached is None else max(0, nbytes - reached)
    return left


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
    """Count what runs and views with gaps reach, by marking it; None if there is too much.

    What is marked are the largest units that no view and no run cuts.
    """
    low, high = min(view.start for view in gaps), max(view.stop for view in gaps)
    outside = sum(
        max(0, min(stop, low) - start) + max(0, stop - max(start, high)) for start, stop in runs
    )
    views = [*gaps]
    for start, stop in runs:
        start, stop = max(start, low), min(stop, high)
        if start < stop:
            views.append(_View(start, stop - start, ()))
    numbers = [(view.start - low, view.run, *(step for _, step in view.axes)) for view in views]
    unit = math.gcd(high - low, *(number for each in numbers for number in each))
    marks = sum(view.run // unit * math.prod(size for size, _ in view.axes) for view in views)
    if max(marks, (high - low) // unit) > _MOST_MARKED:
        return None
    marked = np.zeros((high - low) // unit, np.bool_)
    for view in views:
        np.lib.stride_tricks.as_strided(
            marked[(view.start - low) // unit :],
            (*(size for size, _ in view.axes), view.run // unit),
            (*(step // unit for _, step in view.axes), 1),
        )[...] = True
    return outside + unit * int(np.count_nonzero(marked))
