"""What is inside what: the walker finds all that a file holds, and names agree with it."""

from __future__ import annotations

import io
from collections import Counter, OrderedDict, defaultdict, deque
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import torchzip as tz
from tests import builders as b
from tests.saved import records_of, saved
from torchzip.checkpoint import plain_values
from torchzip.checkpoint.lazy_tensor import data_of, is_tensor
from torchzip.checkpoint.plain_values import form_of, what_is_beside
from torchzip.checkpoint.walk import (
    SCALARS,
    Label,
    Walk,
    children,
    is_plain,
    joined,
    parts,
    reach,
    shared,
    ways,
)
from torchzip.errors import LimitError
from torchzip.tensors.persistent_ids import BareStorage
from torchzip.types import ForeignObject, Parameter

_ZIPS = [
    path
    for path in sorted(b.GOLDEN.rglob("*.pt"))
    if path.read_bytes()[:4] == b"PK\3\4" and path.name != "script.pt"
]


def lazily(value: Any) -> tz.Checkpoint:
    return tz.lazy_load(io.BytesIO(saved(value)))


def storages_of(data: bytes) -> set[str]:
    return {name for name in records_of(data) if name.startswith("data/")}


def records_below(value: Any) -> set[str]:
    """Return the records of all storages that the walker comes to."""
    found = set()
    for each in reach(value):
        if isinstance(each, BareStorage):
            found.add(each.storage.record or "")
        elif isinstance(each, tz.LazyTensor):
            found.add(each.spec.storage.record or "")
    return found


@pytest.mark.parametrize("path", _ZIPS, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_all_that_a_file_holds_is_reached(path: Path) -> None:
    """Each storage of the archive, whatever holds it: attributes, parts, keys, bare storages."""
    with tz.lazy_load(path) as checkpoint:
        assert records_below(checkpoint.root) == storages_of(path.read_bytes())


_ARRAY = st.builds(lambda n: np.full(n + 1, n, np.float32), st.integers(0, 5))
_LEAF = _ARRAY | st.integers(0, 3) | st.text(max_size=2) | st.none()


def _ordered(items: dict[str, Any], attribute: Any) -> Any:
    made = OrderedDict(items)
    vars(made)["_metadata"] = attribute
    return made


def _trees(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    few = st.lists(inner, max_size=3)
    named = st.dictionaries(st.text("ab.", max_size=2), inner, max_size=3)
    return (
        few
        | few.map(tuple)
        | few.map(deque)
        | named
        | st.dictionaries(st.integers(0, 3) | st.tuples(st.integers(0, 2)), inner, max_size=2)
        | st.builds(_ordered, named, inner)
        | st.builds(lambda items: defaultdict(list, items), named)
        | st.builds(lambda data, state: Parameter(data, True, {"x": state}), _ARRAY, inner)
        | st.builds(
            lambda args, state: ForeignObject("m", "C", tuple(args), state=state), few, named
        )
    )


@pytest.mark.filterwarnings("ignore::UserWarning")
@given(st.recursive(_LEAF, _trees, max_leaves=12))
def test_any_tree(value: Any) -> None:
    """Every storage that was written is reached; names and what is beside them are all of it."""
    data = saved(value)
    with tz.lazy_load(io.BytesIO(data)) as checkpoint:
        root = checkpoint.root
        assert records_below(root) == storages_of(data)
        seen = list(map(id, reach(root)))
        assert all(count == 1 for key, count in Counter(seen).items() if key in _held(root))
        try:
            named = [tensor for _, tensor in checkpoint.items()]
        except tz.FormatError:  # two of one name
            return
        beside = what_is_beside(root, named, checkpoint.limits)
        assert not {id(data_of(each)) for each in beside.tensors.values()} & set(map(id, named))
        tensors = {id(each) for each in reach(root) if isinstance(each, tz.LazyTensor)}
        if not isinstance(root, ForeignObject) and "." not in str(value):
            assert tensors == {id(each) for each in [*named, *beside.tensors.values()]}


def _held(root: Any) -> set[int]:
    return {id(each) for each in reach(root) if is_tensor(each) or isinstance(each, dict | list)}


def test_attributes_are_found_and_named() -> None:
    """On tensors, Parameters and dicts, at any depth."""
    weight = Parameter(np.ones(2), True, {"calib": {"amax": np.zeros(10)}, "bits": 8})
    root = _ordered({"w": weight}, {"": {"version": 2}})
    with lazily({"model": root}) as checkpoint:
        assert list(checkpoint) == ["model.w"]
        beside = what_is_beside(checkpoint.root, [checkpoint["model.w"]], checkpoint.limits)
        assert list(beside.tensors) == ["model.w (calib).amax"]
        assert beside.values["model.w (bits)"] == 8
        assert beside.values["model (_metadata)..version"] == 2
        assert beside.forms["model"] == "OrderedDict"


@pytest.mark.parametrize(
    ("value", "form"),
    [
        ({"a": 1}, "dict"),
        ({1: 2, "a": 3}, "dict with keys of type int"),
        (OrderedDict(a=1), "OrderedDict"),
        (deque([[]], 5), "deque of at most 5"),
        (deque([[]]), "deque"),
        (defaultdict(int, a=1), "defaultdict of int"),
        (Counter("ab"), "Counter"),
        ([[]], "list"),
        (([],), "tuple"),
    ],
)
def test_forms(value: Any, form: str) -> None:
    """What two containers with equal items can differ in."""
    assert form_of(value) == form
    assert what_is_beside(value, (), tz.Limits()).forms[""] == form


def test_ways_are_short_and_first() -> None:
    """The first way to an object is its name; it is put together when it is asked for."""
    inner = [1]
    root = {"a": {"b": inner}, "c": inner}
    assert [str(way or "") for way, value in ways(root)] == ["", "a", "a.b"]
    assert [str(way or "") for way, value in ways(root, parts)] == ["", "a", "a.b", "a.b.0"]
    deep: Any = []
    for _ in range(50_000):
        deep = [deep]
    assert sum(1 for _ in reach(deep)) == 50_001
    assert joined("a.", Label("x")) == "a (x)"


def test_shared_objects() -> None:
    """More than one way, or a way back."""
    twice: list[Any] = []
    cycle: list[Any] = []
    cycle.append(cycle)
    assert shared({"a": twice, "b": [twice], "c": cycle}) == {id(twice), id(cycle)}
    assert shared({"a": [], "b": []}) == set()


def test_a_walk_is_bounded() -> None:
    """Ways, depth and characters of names are: a list that doubles has no end."""
    doubling: Any = []
    for _ in range(60):
        doubling = [doubling, doubling]
    for options, name in (
        ({}, "shared_names"),
        ({"nesting": 20}, "nesting"),
        ({"names_nbytes": 30}, "names_nbytes"),
    ):
        limits = tz.Limits(**options)
        with pytest.raises(LimitError) as caught:
            _go_every_way(doubling, limits)
        assert caught.value.limit == name


def _go_every_way(value: Any, limits: tz.Limits) -> None:
    walk: Walk[str] = Walk(limits, 1000, limits.names_nbytes)
    walk.enter(value, children(value), "")
    for prefix, (key, _, child) in walk:
        name = f"{prefix}{key}."
        walk.charge(len(name))
        walk.enter(child, parts(child), name, len(name))


@pytest.mark.filterwarnings("ignore::UserWarning")
@given(st.recursive(_LEAF, _trees, max_leaves=12))
def test_without_plain_values(value: Any) -> None:
    """What is left is the same as with them, and no number or string is."""
    every = what_is_beside([value], (), tz.Limits())
    fewer = what_is_beside([value], (), tz.Limits(), plain=False)

    def told(values: dict[str, Any]) -> dict[str, str]:
        return {
            name: str(type(each))
            for name, each in values.items()
            if type(each) not in SCALARS and not is_plain(each)
        }

    others, left = told(every.values), told(fewer.values)
    assert others.items() <= left.items()
    assert left.keys() <= every.values.keys()  # a number may have had the name of another
    assert len(fewer.values) == len(left)
    assert fewer.tensors.keys() == every.tensors.keys()


def test_a_long_list_is_looked_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many hold it: what a list is costs its length."""
    long = list(range(1000))
    looks = Counter[int]()

    def is_container(value: Any, real: Any = plain_values.is_container) -> bool:
        looks[id(value)] += 1
        return bool(real(value))

    monkeypatch.setattr(plain_values, "is_container", is_container)
    found = what_is_beside([[long] for _ in range(100)], (), tz.Limits())
    assert len(found.values) == 100
    assert looks[id(long)] == 1
