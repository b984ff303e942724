"""Values to compare by their graph, and hypothesis strategies for them."""

from __future__ import annotations

import struct
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Any

from hypothesis import strategies as st

from torchzip.types import ForeignObject


def graph(
    value: Any,
    parts_of: Mapping[type, Callable[[Any], Iterable[Any]]] = MappingProxyType({}),
    *,
    ints_are_plain: bool = False,
) -> Any:
    """Return a form of a tree in which two are equal if values, types and sharing are.

    Strings, numbers and empty tuples are compared by value only, and if ``ints_are_plain``, tuples
    of ints too. ``parts_of`` says what is compared of objects of other types.
    """
    numbers: dict[int, int] = {}
    alive: list[Any] = []

    def form(item: Any) -> Any:
        kind = type(item)
        if item is None or kind in (bool, int, str, bytes):
            return (kind.__name__, item)
        if kind is float:
            return ("float", struct.pack(">d", item))
        if kind is complex:
            return ("complex", struct.pack(">dd", item.real, item.imag))
        if kind is tuple and (ints_are_plain or not item) and set(map(type, item)) <= {int}:
            return ("tuple", *item)
        if id(item) in numbers:
            return ("again", numbers[id(item)])
        numbers[id(item)] = len(numbers)
        alive.append(item)
        if kind in (list, tuple):
            return (kind.__name__, *map(form, item))
        if kind in (dict, OrderedDict):
            return (kind.__name__, *((form(key), form(item[key])) for key in item))
        if kind in (set, frozenset):
            return (kind.__name__, frozenset(form_of_key(key) for key in item))
        if kind is bytearray:
            return ("bytearray", bytes(item))
        if kind in parts_of:
            return (kind.__name__, *map(form, parts_of[kind](item)))
        if kind is ForeignObject:
            if item.how == "name":
                return ("name", item.module, item.name)
            parts = (item.callee, item.args, item.kwargs, item.items, item.state, item.setter)
            return ("foreign", item.how, item.module, item.name, *map(form, parts))
        raise TypeError(f"no form of a {kind.__name__}")

    def form_of_key(key: Any) -> Any:
        if isinstance(key, tuple | frozenset):
            return (type(key).__name__, frozenset(map(form_of_key, key)))
        return form(key)

    return form(value)


_TEXT = st.text(st.characters(codec=None, exclude_categories=()), max_size=12)
_INTS = st.integers() | st.integers(-(1 << 70), 1 << 70) | st.sampled_from([0, 255, 256, 65535])
_HASHABLE = st.none() | st.booleans() | _INTS | st.floats() | _TEXT | st.binary(max_size=12)
KEYS = _HASHABLE | st.tuples(_HASHABLE, _HASHABLE)
LEAVES = _HASHABLE | st.complex_numbers() | st.binary(max_size=300)


def _grow(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return (
        st.lists(inner, max_size=6)
        | st.lists(inner, max_size=6).map(tuple)
        | st.dictionaries(KEYS, inner, max_size=6)
        | st.dictionaries(_TEXT, inner, max_size=4).map(OrderedDict)
        | st.sets(KEYS, max_size=4)
        | st.frozensets(KEYS, max_size=4)
        | inner.map(lambda item: [item, (item, item), {"again": item}])
    )


#: Trees of what every Python has; parts of them are shared.
TREES = st.recursive(LEAVES, _grow, max_leaves=25)
#: The same with mutable bytes, which protocols below 5 write differently.
TREES_WITH_BYTEARRAYS = st.recursive(LEAVES | st.binary().map(bytearray), _grow, max_leaves=15)


def cycles() -> list[Any]:
    ring: list[Any] = [1]
    ring.append(ring)
    looped: dict[str, Any] = {}
    looped["self"] = looped
    pair: list[Any] = []
    pair.append((pair,))
    through_tuple: list[Any] = []
    tuples = [(through_tuple,), (through_tuple, 1), (through_tuple, 1, 2), (through_tuple, 1, 2, 3)]
    through_tuple.extend(tuples)
    ordered: OrderedDict[str, Any] = OrderedDict()
    ordered["self"] = [ordered, (ordered,)]
    inner: list[Any] = []
    recursive = (inner, 1)
    inner.append(recursive)
    first: list[Any] = []
    second = [first]
    first.append(second)
    return [ring, looped, pair, through_tuple, ordered, recursive, first, {"a": recursive}]
