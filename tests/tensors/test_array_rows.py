"""Arrays in bulk are written as one by one: the same bytes, the same memo, the same storages."""

from __future__ import annotations

import io
import math
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.saved import saved
from torchzip import lazy_load
from torchzip.checkpoint.structure import Structure
from torchzip.tensors.array_rows import ArrayRows, _Template
from torchzip.tensors.memory import place_arrays
from torchzip.tensors.reduce import StorageKeys
from torchzip.types import Parameter, SparseTensor, TypedArray

_SHAPES = [(), (1,), (3,), (4, 3), (2, 1, 2), (1, 2, 3, 2), (300,), (1, 1, 1, 1, 70_000 // 64)]
_DTYPES = ["float32", "float16", "int64", "bool"]


def written(tree: Any, *, rows: bool) -> tuple[bytes, list[bytes]]:
    """Return the pickle and the bytes of the storages, with or without the fast way."""
    with pytest.MonkeyPatch.context() as patch:
        if not rows:
            patch.setattr(ArrayRows, "_parts", lambda *arguments: None)
        keys = StorageKeys()
        pickle = Structure(tree, keys, place_arrays).pickle
    return pickle, [bytes(storage.read(0, storage.nbytes)) for storage in keys.storages()]


_BASE = np.zeros((500, 6))


def lazy_tensors() -> list[Any]:
    """Return tensors of a file: plain ones, Parameters, two on one storage, one with an offset."""
    base = np.arange(12, dtype=np.float32)
    tree = [np.zeros((2, 3)), Parameter(np.ones(3)), Parameter(np.ones(4, np.int8), False)]
    tree += [base[:6], base[4:], np.zeros((0, 3)), np.zeros(3).T]
    return list(lazy_load(io.BytesIO(saved(tree))).root)


@st.composite
def trees(draw: st.DrawFn) -> Any:
    """Return state dicts of tensors of a few shapes, with other things among them."""
    shapes = draw(st.lists(st.sampled_from(_SHAPES), min_size=1, max_size=3))
    dtypes = draw(st.lists(st.sampled_from(_DTYPES), min_size=1, max_size=2))
    kind = draw(st.sampled_from([dict, OrderedDict]))
    wrap = draw(st.sampled_from(["array", "parameter", "frozen", "both"]))
    buffer = np.zeros(1 << 16, np.uint8)
    step = draw(st.sampled_from([0, 0, 1, 40, 64]))  # views: one buffer, with gaps or without
    lazy = draw(st.sampled_from([0, 0, 2, 7]))
    made: Any = kind()
    tree = made if draw(st.booleans()) else [{"first": np.zeros(2, np.float32)}, made, "after"]
    last: Any = None
    at = 0
    for index in range(draw(st.sampled_from([1, 2, 12, 40, 150, 1100]))):
        choice = draw(st.integers(0, 60)) if index < 60 else 60
        shape, dtype = shapes[index % len(shapes)], np.dtype(dtypes[index % len(dtypes)])
        nbytes = dtype.itemsize * math.prod(shape)
        if step and at + nbytes + 64 < buffer.size and dtype == np.dtype(dtypes[0]):
            array = buffer[at : at + nbytes].view(dtype).reshape(shape)
            at += nbytes + (64 if step == 64 else 0 if step == 1 else 8 * (index % 2))
        else:
            array = np.full(shape, index % 2, dtype)
        value: Any = array
        if wrap != "array" and (wrap != "both" or index % 3):
            value = Parameter(array, wrap != "frozen")
        if choice == 0 and last is not None:
            value = last  # the same object again: a get
        elif choice == 1:
            made[f"plain.{index}"] = ["x", index, None]
        elif choice == 2:
            made[index] = value  # a key that is no string
            continue
        elif choice == 4 and last is not None:  # a tensor of its own on the same storage
            value = Parameter(last.data if isinstance(last, Parameter) else last)
        elif choice == 5:
            value = array[..., None][..., ::-1] if index % 2 else array.astype(">i4")
        elif choice == 6:
            value = Parameter(array, True, {"note": index})
        elif choice == 7:
            value = [array, TypedArray(np.zeros(index, np.uint8), "bits8")]
        elif choice == 8:
            value = {"step": array, "exp_avg": np.ones(3), "exp_avg_sq": np.ones(3)}
        name = "name \ud800" if choice == 3 else "é" * (index % 3) + f"layers.{index}.weight"
        made[name] = value
        if isinstance(value, np.ndarray | Parameter):
            last = value
    for index in range(lazy):
        for at, tensor in enumerate(lazy_tensors()):
            made[f"lazy.{index}.{at}"] = tensor
    return tree


@given(trees())
def test_rows_are_what_one_by_one_gives(tree: Any) -> None:
    assert written(tree, rows=True) == written(tree, rows=False)


@st.composite
def optimizers(draw: st.DrawFn) -> Any:
    """Return states of an optimizer, most of them alike, with other things among them."""
    names = draw(st.sampled_from([["step", "exp_avg", "exp_avg_sq"], ["momentum_buffer"], ["a"]]))
    shapes = draw(st.lists(st.sampled_from(_SHAPES), min_size=1, max_size=3))
    wrap = draw(st.sampled_from(["array", "array", "parameter", "lazy"]))
    first = draw(st.sampled_from([0, 0, 250, 65_530, (1 << 31) - 30]))
    tensors = [tensor for _ in range(draw(st.sampled_from([9, 60]))) for tensor in lazy_tensors()]
    states: dict[Any, Any] = {}
    last: Any = np.ones(3)
    for index in range(draw(st.sampled_from([30, 70, 400]))):
        key: Any = first + index
        choice = draw(st.integers(0, 80)) if index < 60 else 80
        state = {}
        for name in names:
            value: Any = np.full(shapes[index % len(shapes)] if name != "step" else (), 1.0)
            if wrap == "lazy" and tensors:
                value = tensors.pop()
            state[name] = Parameter(value) if wrap == "parameter" else value
        if choice == 0:
            state[names[-1]] = last  # the same object again: a get
        elif choice == 1:
            state = {name: state[name] for name in reversed(names)}
        elif choice == 2:
            state["".join(["a", "fresh string"])] = np.ones(2)
        elif choice == 3:
            state = {"".join([*name]): value for name, value in state.items()}
        elif choice == 4:
            state[names[0]] = draw(st.sampled_from([None, 3, np.zeros((2, 2)).T, [np.ones(1)]]))
        elif choice == 5:
            key = draw(st.sampled_from([-1 - index, f"name {index}", 1.5 * index, 1 << 31 | index]))
        elif choice == 6 and states:
            state = next(reversed(states.values()))
        elif choice == 7:
            state = {}
        states[key] = state
        last = next(iter(state.values()), last)
    return {"state": {f"before.{index}": np.zeros(2) for index in range(30)}, "states": states}


@given(optimizers())
def test_states_of_an_optimizer_are_what_one_by_one_gives(tree: Any) -> None:
    assert written(tree, rows=True) == written(tree, rows=False)


@pytest.mark.parametrize("count", [30, 31, 32, 99, 100, 101, 1000, 2001, 10_100])
def test_where_numbers_grow(count: int) -> None:
    """Memo numbers and storage keys take more bytes from some array on."""
    tree = {f"layers.{index}": np.zeros(1, np.float32) for index in range(count)}
    assert written(tree, rows=True) == written(tree, rows=False)


def spied(monkeypatch: pytest.MonkeyPatch, method: str) -> list[tuple[Any, ...]]:
    """Return a list that gets the arguments of each call of a method of a template."""
    calls: list[tuple[Any, ...]] = []
    original = getattr(_Template, method)

    def spy(self: _Template, *arguments: Any) -> Any:
        calls.append(arguments)
        return original(self, *arguments)

    monkeypatch.setattr(_Template, method, spy)
    return calls


@pytest.mark.parametrize(
    "make",
    [
        lambda index: np.zeros((2, 2, 1, 1), np.float32),
        lambda index: Parameter(np.zeros((2, 2), np.float32)),
        lambda index: _BASE[index, :5],
        lambda index: lazy_tensors()[index % 3],
    ],
)
def test_rows_are_taken(monkeypatch: pytest.MonkeyPatch, make: Callable[[int], Any]) -> None:
    """The comparisons compare two ways: almost all tensors are written as rows."""
    calls = spied(monkeypatch, "rows")
    tree = {f"layers.{index}": make(index) for index in range(500)}
    Structure(tree, StorageKeys(), place_arrays)
    assert sum(len(keys) for keys, *_ in calls) > 450


def test_rows_are_taken_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tensors in small containers are rows too."""
    calls = spied(monkeypatch, "one")
    tree = [[np.array(1.0), np.zeros(3)] for index in range(100)]
    Structure(tree, StorageKeys(), place_arrays)
    assert len(calls) > 180


def test_rows_of_dicts_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """The states of an optimizer are rows, but for those before the first long memo number."""
    calls = spied(monkeypatch, "rows")
    tree = {index: {"step": np.array(1.0), "exp_avg": np.zeros(3)} for index in range(300)}
    Structure(tree, StorageKeys(), place_arrays)
    assert sum(len(begins) for _, begins in calls) > 250


def test_a_parameter_of_an_array_that_is_there_too() -> None:
    """Both are on one storage, whichever comes first."""
    arrays = [np.full(2, index, np.float32) for index in range(20)]
    for tied in (arrays[10], arrays[15:], SparseTensor):
        tree: Any = {f"p{index}": Parameter(array) for index, array in enumerate(arrays)}
        tree["tied"] = tied if tied is not SparseTensor else _sparse(arrays[10])
        tree |= {f"a{index}": np.ones(3, np.float32) for index in range(20)}
        pickle, storages = written(tree, rows=True)
        assert (pickle, storages) == written(tree, rows=False)
        assert len(storages) == (41 if tied is SparseTensor else 40)
        backwards = dict(reversed(tree.items()))
        assert written(backwards, rows=True) == written(backwards, rows=False)
        assert len(written(backwards, rows=True)[1]) == len(storages)


def _sparse(values: Any) -> SparseTensor:
    return SparseTensor("sparse_coo", np.array([[1, 2]]), values, (9,), True)


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
