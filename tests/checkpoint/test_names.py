"""Flat names: one for each way to a tensor, none for cycles, an end to everything."""

from __future__ import annotations

import contextlib
from collections import OrderedDict
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.test_cost import peak_below
from torchzip.checkpoint.lazy_tensor import LazyTensor, tensor_of
from torchzip.checkpoint.names import NameTable
from torchzip.checkpoint.walk import children, key_text
from torchzip.errors import FormatError, LimitError
from torchzip.limits import Limits
from torchzip.types import ForeignObject, Parameter


class Leaf:
    """Stands for a tensor."""

    def __repr__(self) -> str:
        return "Leaf()"


def table(root: Any, *, pickle_nbytes: int = 1000, **limits: int) -> NameTable:
    return NameTable(
        root, lambda value: isinstance(value, Leaf | LazyTensor), Limits(**limits), pickle_nbytes
    )


def names(root: Any, **limits: int) -> list[str]:
    return list(table(root, **limits).names)


A, B, C = Leaf(), Leaf(), Leaf()


@pytest.mark.parametrize(
    ("root", "expected"),
    [
        (A, [""]),
        ({"w": A}, ["w"]),
        ({"b": A, "a": B}, ["b", "a"]),
        ({"m": {"l": {"w": A}}}, ["m.l.w"]),
        ([A, [B, 1], (C,)], ["0", "1.0", "2.0"]),
        ({0: A, None: B, 1.5: C}, ["0", "None", "1.5"]),
        ({True: A, (1, "x"): B}, ["True", "(1, 'x')"]),
        ({"a.b": A, "c": {"d": B}}, ["a.b", "c.d"]),
        ({"": A, "x": {"": B}}, ["", "x."]),
        (OrderedDict(a=A, b={"x": 1}), ["a"]),
        ({"none": {}, "l": [[], ()], "x": 1, "s": {1, 2}}, []),
        ({}, []),
        (7, []),
        ({"a": A, "same": A}, ["a", "same"]),
        ({b"raw": A}, ["b'raw'"]),
    ],
    ids=repr,
)
def test_names(root: Any, expected: list[str]) -> None:
    """Keys as text and positions as numbers, joined by dots, in the order of the tree."""
    assert names(root) == expected


def test_leaves_are_found_under_their_names() -> None:
    """Each name leads to its own leaf."""
    found = table({"x": [A, {"y": B}], "z": C}).names
    assert found == {"x.0": A, "x.1.y": B, "z": C}


def test_huge_int_as_a_key() -> None:
    """A key that Python does not print has a name all the same."""
    assert len(names({"m": {1 << 20_000: A}})) == 1


def test_conflict_shows_both_places() -> None:
    """Two tensors of one name are an error when that name is asked for, and no other."""
    found = table({"a.b": A, "a": {"b": B, "c": C}})
    assert list(found.names) == ["a.b", "a.c"]
    with pytest.raises(FormatError) as caught:
        found.check("a.b")
    assert "root['a.b']" in str(caught.value)
    assert "root['a']['b']" in str(caught.value)
    found.check("a.c")


@pytest.mark.parametrize(
    ("root", "name", "said"),
    [
        ({"m": {0: A, "0": B}}, "m.0", r"root\['m'\]\[0\] and root\['m'\]\['0'\]"),
        ({1: A, "1": B}, "1", "two tensors are called '1'"),
    ],
)
def test_conflict_of_key_and_position(root: Any, name: str, said: str) -> None:
    """An int key and its text are one name, in a flat dict too."""
    with pytest.raises(FormatError, match=said):
        table(root).check(name)


def test_same_tensor_twice_under_one_name_is_no_conflict() -> None:
    """It does not matter which of them is meant."""
    found = table({"a.b": A, "a": {"b": A}})
    found.check("a.b")
    assert found.names == {"a.b": A}


def test_shared_dict_under_two_names() -> None:
    """A container that is there twice gives its tensors two names each."""
    shared = {"w": A, "b": B}
    assert names({"x": shared, "y": [shared]}) == ["x.w", "x.b", "y.0.w", "y.0.b"]


def test_cycles_give_no_names() -> None:
    """A way that comes back to where it was ends there."""
    root: dict[str, Any] = {"w": A}
    root["self"] = root
    root["list"] = [root, {"w": B, "up": root}]
    assert names(root) == ["w", "list.1.w"]
    knot: list[Any] = [C]
    knot.append((knot, {"k": knot}))
    assert names({"k": knot}) == ["k.0"]


def test_two_that_reach_one_another() -> None:
    """Each way is followed as far as it is new."""
    first: dict[str, Any] = {"w": A}
    second: dict[str, Any] = {"w": B, "first": first}
    first["second"] = second
    assert names([first, second]) == ["0.w", "0.second.w", "1.w", "1.first.w"]


def test_inside_foreign_objects() -> None:
    """The state of an object is what its attributes are; arguments go by position."""
    made = ForeignObject("m", "C", (A,), {"k": B}, {"w": C, "x": 1}, [Leaf()], how="new")
    assert set(names({"o": made})) == {"o.0", "o.w", "o.k"}
    assert names(ForeignObject("m", "C", (), None, (None, {"slot": A}))) == ["state.1.slot"]
    assert names(ForeignObject("m", "C", (), None, None, {"key": A})) == ["key"]
    assert [child for _, _, child in children(made)] == [A, C, 1, made.items[0], B]  # type: ignore[index]


def test_others_are_listed_apart() -> None:
    """A tensor of a class of its own is no leaf; what is in its attributes goes by its name."""
    function = ForeignObject("torch._utils", "_rebuild_wrapper_subclass")
    rebuild = ("torch._tensor", "_rebuild_from_type_v2")
    wrapper = ForeignObject(*rebuild, (function, ForeignObject("m", "W"), (), {"inner": A}))
    found = table({"s": wrapper, "d": C, "l": [wrapper]})
    assert list(found.names) == ["s.inner", "d", "l.0.inner"]
    assert found.subclassed == {"s": wrapper, "l.0": wrapper}
    assert table(wrapper).subclassed == {"": wrapper}
    assert list(table(wrapper).names) == ["inner"]
    assert list(table({"p": Parameter(wrapper)}).names) == ["p.inner"]
    assert table({"p": Parameter(wrapper)}).subclassed == {"p": wrapper}
    slots = ForeignObject(*rebuild, (function, ForeignObject("m", "W"), (B,), ({"x": A}, {"y": C})))
    assert list(table({"s": slots}).names) == ["s.x", "s.y", "s.args.0"]
    empty = ForeignObject(*rebuild, (function, ForeignObject("m", "W"), (), None))
    assert list(table({"e": empty, "d": [C]}).subclassed) == ["e"]
    plain = ForeignObject(*rebuild)  # the bare name
    assert not table({"s": plain, "d": C}).subclassed


@pytest.mark.long
def test_deep_tree() -> None:
    """Depth is bounded where a tensor lies below it, and costs nothing elsewhere."""
    deep: Any = {"w": A}
    for _ in range(800):
        deep = [deep]
    assert len(names(deep)) == 1
    for _ in range(200):
        deep = [deep]
    with pytest.raises(LimitError, match="nesting would be"):
        names(deep)
    assert len(names(deep, nesting=2000)) == 1
    empty: Any = []
    for _ in range(100_000):
        empty = [empty]
    assert names({"w": A, "deep": empty}) == ["w"]


def test_sharing_without_tensors_costs_nothing() -> None:
    """A list that is 2**60 long as a tree is walked once."""
    doubling: Any = []
    for _ in range(60):
        doubling = [doubling, doubling]
    assert names({"d": doubling, "w": A}) == ["w"]


@pytest.mark.parametrize(
    "leaf",
    [A, *(pytest.param(leaf, marks=pytest.mark.long) for leaf in ({"w": A}, [[A]]))],
    ids=["leaf", "dict", "list"],
)
def test_sharing_with_a_tensor_is_bounded(leaf: Any) -> None:
    """The same with a tensor at its end has 2**60 names, and is refused."""
    for _ in range(60):
        leaf = [leaf, leaf]
    with pytest.raises(LimitError) as caught:
        names(leaf)
    assert caught.value.limit in ("shared_names", "names_nbytes")


def test_sharing_within_the_limit() -> None:
    """A few thousand names through sharing are no attack."""
    doubling: Any = A
    for _ in range(12):
        doubling = [doubling, doubling]
    assert len(names(doubling)) == 4096
    with pytest.raises(LimitError):
        names(doubling, shared_names=1000)


def test_long_names_are_bounded() -> None:
    """Names that grow with their depth have a sum, which has a limit."""
    deep: Any = {"w": A}
    for index in range(300):
        deep = {"k" * 100: deep, f"w{index}": Leaf()}
    with pytest.raises(LimitError, match="names_nbytes would be"):
        names(deep, names_nbytes=1 << 20)
    assert len(names(deep, names_nbytes=1 << 27)) == 301


def test_long_keys_on_the_way_are_bounded() -> None:
    """One long key at each of many levels is a small pickle, and must stay small in memory."""
    key = "k" * 10_000
    deep: Any = {"w": A}
    for _ in range(200):
        deep = {key: deep}
    with peak_below(64 << 20), contextlib.suppress(LimitError):
        names(deep)


@pytest.mark.long
def test_many_names_are_no_attack() -> None:
    """A large and flat file is within all limits."""
    root = {f"layer.{i}": {"weight": Leaf(), "bias": Leaf()} for i in range(60_000)}
    assert len(names(root, pickle_nbytes=10_000_000)) == 120_000


TENSORS = [tensor_of(np.zeros(index)) for index in range(4)]
_KEYS = st.sampled_from(["w", "a.b", "0", 0, 1, "1", None, "ü"])
_TREES: st.SearchStrategy[Any] = st.recursive(
    st.sampled_from([*TENSORS, *TENSORS, 5, "text"]),
    lambda inside: st.one_of(
        st.dictionaries(_KEYS, inside, max_size=4),
        st.dictionaries(_KEYS, st.sampled_from(TENSORS), max_size=4),
        st.dictionaries(_KEYS, inside, max_size=3).map(OrderedDict),
        st.lists(inside, max_size=3),
        inside.map(lambda value: {0: value, "again": value}),  # one object twice
    ),
    max_leaves=12,
)


def _named_plainly(value: Any, prefix: str, found: list[tuple[str, Any]]) -> None:
    """Add each tensor in a tree under its name."""
    if any(value is tensor for tensor in TENSORS):
        found.append((prefix[:-1], value))
    elif isinstance(value, dict):
        for key, inside in value.items():
            _named_plainly(inside, f"{prefix}{key_text(key)}.", found)
    elif isinstance(value, list):
        for index, inside in enumerate(value):
            _named_plainly(inside, f"{prefix}{index}.", found)


@given(tree=_TREES)
def test_names_are_those_of_a_plain_walk(tree: Any) -> None:
    """Whatever is named in bulk: the same names in the same order, and the same conflicts."""
    found: list[tuple[str, Any]] = []
    _named_plainly({"tree": tree}, "", found)
    made = table({"tree": tree})
    expected: dict[str, Any] = {}
    for name, tensor in found:
        expected.setdefault(name, tensor)
    assert [*made.names] == [*expected]
    assert all(made.names[name] is tensor for name, tensor in expected.items())
    assert set(made.conflicts) == {name for name, each in found if expected[name] is not each}


class CountingList(list[Any]):
    """Counts how often it is gone through."""

    times = 0

    def __iter__(self) -> Any:
        self.times += 1
        return super().__iter__()


def test_shared_containers_are_searched_once() -> None:
    """What is in one beside its tensors is not looked at again for each way to it."""
    inner = CountingList([None] * 50 + [A])
    made = names([inner] * 1000)
    assert made == [f"{index}.50" for index in range(1000)]
    assert inner.times <= 3


def test_ways_back_are_bounded() -> None:
    """A container that mentions itself costs for each mention."""
    inner: list[Any] = [A]
    inner += [inner] * 300
    with pytest.raises(LimitError, match="shared_names"):
        names([inner] * 300, shared_names=1000)
    assert names([inner], shared_names=1000) == ["0.0"]


def test_two_subclasses_of_no_name() -> None:
    """The object itself is a tensor that stays a call, with another of no name among its parts."""

    def call(attributes: dict[str, Any]) -> ForeignObject:
        arguments = (None, None, (), attributes)
        return ForeignObject("torch._tensor", "_rebuild_from_type_v2", arguments, how="call")

    found = table(call({"": call({})}))
    assert list(found.subclassed) == [""]
    with pytest.raises(FormatError, match=r"two tensors are called '': root and root\.args\[3\]"):
        found.check("")
