"""Arrays in bulk are written as one by one: the same bytes, the same memo, the same storages."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from torchzip.checkpoint.structure import Structure
from torchzip.tensors.array_rows import ArrayRows
from torchzip.tensors.memory import place_arrays
from torchzip.tensors.reduce import StorageKeys

_SHAPES = [(), (1,), (3,), (4, 3), (2, 1, 2), (1, 2, 3, 2), (300,), (1, 1, 1, 1, 70_000 // 64)]
_DTYPES = ["float32", "float16", "int64", "bool"]


def written(tree: Any, *, rows: bool) -> tuple[bytes, list[bytes]]:
    """Return the pickle and the bytes of the storages, with or without the fast way."""
    with pytest.MonkeyPatch.context() as patch:
        if not rows:
            patch.setattr(ArrayRows, "__call__", lambda *arguments: 0)
        keys = StorageKeys()
        pickle = Structure(tree, keys, place_arrays).pickle
    return pickle, [bytes(storage.read(0, storage.nbytes)) for storage in keys.order]


@st.composite
def trees(draw: st.DrawFn) -> Any:
    """Return state dicts of arrays of a few shapes, with other things among them."""
    shapes = draw(st.lists(st.sampled_from(_SHAPES), min_size=1, max_size=3))
    dtypes = draw(st.lists(st.sampled_from(_DTYPES), min_size=1, max_size=2))
    kind = draw(st.sampled_from([dict, OrderedDict]))
    made: Any = kind()
    tree = made if draw(st.booleans()) else [{"first": np.zeros(2, np.float32)}, made, "after"]
    last: Any = None
    for index in range(draw(st.sampled_from([1, 2, 12, 40, 150, 1100]))):
        choice = draw(st.integers(0, 60)) if index < 60 else 60
        array = np.full(shapes[index % len(shapes)], index % 2, dtypes[index % len(dtypes)])
        if choice == 0 and last is not None:
            array = last  # the same object again: a get
        elif choice == 1:
            made[f"plain.{index}"] = ["x", index, None]
        elif choice == 2:
            made[index] = array  # a key that is no string
            continue
        name = "name \ud800" if choice == 3 else "é" * (index % 3) + f"layers.{index}.weight"
        made[name] = last = array
    return tree


@settings(max_examples=60, deadline=None)
@given(trees())
def test_rows_are_what_one_by_one_gives(tree: Any) -> None:
    """Whatever the shapes, the dtypes, and what stands between."""
    assert written(tree, rows=True) == written(tree, rows=False)


@pytest.mark.parametrize("count", [30, 31, 32, 99, 100, 101, 1000, 2001, 10_100])
def test_where_numbers_grow(count: int) -> None:
    """Memo numbers and storage keys take more bytes from some array on."""
    tree = {f"layers.{index}": np.zeros(1, np.float32) for index in range(count)}
    assert written(tree, rows=True) == written(tree, rows=False)


def test_rows_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """The comparisons compare two ways: all but three arrays are rows."""
    done: list[int] = []
    original = ArrayRows.__call__

    def spy(self: ArrayRows, *arguments: Any) -> int:
        done.append(original(self, *arguments))
        return done[-1]

    monkeypatch.setattr(ArrayRows, "__call__", spy)
    tree = {f"layers.{index}": np.zeros((2, 2, 1, 1), np.float32) for index in range(500)}
    Structure(tree, StorageKeys(), place_arrays)
    assert sum(done) == 497


class _Repeats:
    """Reduces to an iterator of dict items that gives one pair twice."""

    def __init__(self) -> None:
        self.pair = ("name", np.ones(2, np.float32))
        self.before = ("before", np.ones(3, np.float32))

    def __reduce__(self) -> Any:
        return (OrderedDict, (), None, None, iter([self.before, self.pair, self.pair, self.pair]))


def test_a_pair_that_comes_twice() -> None:
    """The second time its name and its array are gets."""
    tree = [np.zeros(2, np.float32), _Repeats()]
    assert written(tree, rows=True) == written(tree, rows=False)
