"""Flat names: the path to each tensor, joined by dots.

Containers that are shared give their tensors a name for each way to them, cycles none. The walk
visits what leads to a tensor and nothing else, and is bounded: a few bytes of pickle can
describe more paths than any memory holds.
"""

from __future__ import annotations

import sys
from collections import OrderedDict, deque
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any, NamedTuple

from torchzip.checkpoint.lazy_tensor import LazyTensor
from torchzip.checkpoint.walk import (
    BUILT_IN,
    SCALARS,
    Walk,
    children,
    children_at,
    foreign_tensor,
    items_of,
    key_text,
)
from torchzip.errors import FormatError, LimitError
from torchzip.formats.base import Child, PartsOf
from torchzip.leaf_types import ForeignObject, Parameter
from torchzip.limits import Limits

_DICT = {dict}
_DICTS = (dict, OrderedDict)
_TENSORS_AND_SCALARS = SCALARS | {LazyTensor}
_CONTAINERS = (dict, list, tuple, deque, ForeignObject, Parameter)


def module_parts(value: ForeignObject) -> list[Child] | None:
    """Return what the ``state_dict()`` of a pickled ``nn.Module`` has; None for other objects.

    That is, as torch 2.13 goes about it: its parameters, its buffers but for those that are not
    persistent, the packed weights of a quantized module, then its submodules. Other tensors among
    its attributes have no name.
    """
    state = value.state
    if _is_packed(value):  # (what is packed, its class in C++)
        return list(children_at(".state[0]", state[0]))
    if type(state) is not dict:
        return None
    members: list[Any] = [state.get(name) for name in ("_parameters", "_buffers", "_modules")]
    if not all(isinstance(held, dict) for held in members):
        return None
    parameters, buffers, modules = members
    skipped = state.get("_non_persistent_buffers_set")
    if isinstance(skipped, set | frozenset):
        buffers = {name: held for name, held in buffers.items() if name not in skipped}
    packed = {name: held for name, held in state.items() if _is_packed(held)}
    return [
        *children_at(".state['_parameters']", parameters),
        *children_at(".state['_buffers']", buffers),
        *children_at(".state", packed),
        *children_at(".state['_modules']", modules),
    ]


def _is_packed(value: Any) -> bool:
    """Return whether an object is one of those in C++ that hold a quantized module's weights."""
    return (
        isinstance(value, ForeignObject)
        and (value.module, value.name) == ("torch", "ScriptObject")
        and type(value.state) is tuple
        and len(value.state) == 2
    )


class NameTable:
    """``names`` maps each flat name to its leaf, in the order of the tree.

    With ``are_all_dense`` each leaf is a LazyTensor, and nobody need look at 100,000. ``arrays`` is
    for those of them that stand for something else in the object, and ``conflicts`` has the names
    that `check` refuses. ``subclassed`` are the tensors that stay ForeignObjects; what is inside
    them has names too.
    """

    def __init__(
        self,
        root: Any,
        is_leaf: Callable[[Any], bool],
        limits: Limits,
        pickle_nbytes: int,
        parts_of: PartsOf | None = None,
    ) -> None:
        self._limits = limits
        self._parts_of = parts_of or module_parts
        self._is_leaf = is_leaf
        self._bound = 1
        characters = max(limits.names_nbytes, pickle_nbytes)
        self._ways: Walk[tuple[str, str]] = Walk(limits, 1, characters)
        self._root = root
        #: The second tensor of a name.
        self.conflicts: dict[str, Any] = {}
        self.names: dict[str, Any] = {}
        self.are_all_dense = False
        self.arrays: dict[str, Any] = {}
        self.subclassed: dict[str, ForeignObject] = {}
        if is_leaf(root):
            self._add("", root)
            return
        if type(root) in (dict, OrderedDict) and {str}.issuperset(map(type, root)):
            kinds = set(map(type, root.values()))
            self.are_all_dense = kinds == {LazyTensor}
            if self.are_all_dense or (
                ForeignObject not in kinds and all(map(is_leaf, root.values()))
            ):
                self.names = dict(root)  # a flat state dict: its keys are the names
                return
        found = leading_to_leaves(root, is_leaf, self._items)
        self._ways = Walk(limits, len(found.leading) + limits.shared_names + 1, characters)
        self._bound = found.leaves + limits.shared_names
        other = foreign_tensor(root)
        if other is not None:
            self._add("", other)
        if id(root) in found.leading:
            self._walk(found, self._ways, lambda name, place, leaf: self._add(name, leaf))
        self.are_all_dense = set(map(type, self.names.values())) == {LazyTensor}

    def check(self, name: str) -> None:
        """Raise FormatError if two tensors have this name."""
        if name in self.conflicts:
            first, second = self._places_of(name)
            raise FormatError(
                f"two tensors are called {name!r}: root{first} and root{second}; take them from "
                "the checkpoint's root"
            )

    def _places_of(self, name: str) -> tuple[str, str]:
        """Return where the two tensors of a name are: places are only made for a message."""
        second = self.conflicts[name]
        first = (self.subclassed if isinstance(second, ForeignObject) else self.names)[name]
        places: dict[int, str] = {}

        def add(other_name: str, place: tuple[str, str], leaf: Any) -> None:
            if other_name == name:
                places.setdefault(id(leaf), "".join(place))

        other = foreign_tensor(self._root)
        if other is not None:
            add("", ("", ""), other)
        found = leading_to_leaves(self._root, self._is_leaf, self._items)
        ways = len(found.leading) + self._limits.shared_names + 1
        walk: Walk[tuple[str, str]] = Walk(self._limits, ways, sys.maxsize)
        self._walk(found._replace(dense=set()), walk, add)
        return places[id(first)], places[id(second)]

    def _children(self, value: Any) -> Iterable[Child]:
        parts = self._parts_of(value) if isinstance(value, ForeignObject) else None
        return children(value) if parts is None else parts

    def _items(self, value: Any) -> Iterable[Any]:
        if isinstance(value, ForeignObject):
            return [child for _, _, child in self._children(value)]
        return items_of(value)

    def _walk(
        self,
        found: Leading,
        walk: Walk[tuple[str, str]],
        add: Callable[[str, tuple[str, str], Any], None],
    ) -> None:
        """Call ``add`` with the name of each leaf, the two parts of its place, and itself."""
        # What leads to a tensor in each container that there is more than one way to: whatever
        # else is in it is looked at once, and not once for each way.
        kept: dict[int, list[Child]] = {}
        is_leaf, leading, dense = self._is_leaf, found.leading, found.dense

        def below(container: Any) -> Iterable[Child]:
            own = id(container)
            if own not in found.shared:
                return self._children(container)
            if own not in kept:
                kept[own] = [
                    child
                    for child in self._children(container)
                    if is_leaf(child[2])
                    or id(child[2]) in leading
                    or foreign_tensor(child[2]) is not None
                ]
            return kept[own]

        # A frame: the name so far, the place so far.
        walk.enter(self._root, below(self._root), ("", ""))
        for (prefix, place), (key, step, child) in walk:
            length = len(prefix) + len(key) + 1 + len(place) + len(step)
            if id(child) in dense:  # then it is neither a leaf nor a foreign tensor
                walk.pass_through(length)
                self._add_dense(prefix, [key], [child])
                continue
            if is_leaf(child):
                add(prefix + key, (place, step), child)
                continue
            other = foreign_tensor(child)
            if other is not None:
                add(prefix + key, (place, step), other)
            if id(child) in leading:
                walk.charge(length)  # before it is made
                frame = f"{prefix}{key}.", place + step
                if type(child) is dict and dense.issuperset(map(id, child.values())):
                    walk.enter(child, (), frame, length)
                    keys = list(map(key_text, child))
                    for key in keys:
                        walk.pass_through(len(frame[0]) + len(key) + 1)
                    self._add_dense(frame[0], keys, child.values())
                else:
                    walk.enter(child, below(child), frame, length)

    def _add_dense(
        self, prefix: str, keys: Sequence[str], dicts: Collection[dict[Any, Any]]
    ) -> None:
        """Add the tensors of dicts, by their keys, which else have numbers and strings only."""
        leaves = [leaf for inside in dicts for leaf in inside.values()]
        last_keys = [key for inside in dicts for key in inside]
        if {LazyTensor}.issuperset(map(type, leaves)) and {str}.issuperset(map(type, last_keys)):
            pairs = zip(keys, dicts, strict=True)
            length = sum((len(prefix) + len(key) + 1) * len(inside) for key, inside in pairs)
            length = 2 * (length + len("".join(last_keys)))
            self._ways.charge(length)  # before they are made
            pairs = zip(keys, dicts, strict=True)
            names = [f"{prefix}{key}.{last}" for key, inside in pairs for last in inside]
            added = dict(zip(names, leaves, strict=True))
            is_new = len(added) == len(names) and self.names.keys().isdisjoint(added)
            if is_new and len(self.names) + len(added) <= self._bound:
                self.names.update(added)
                return
            self._ways.charge(-length)
        for key, inside in zip(keys, dicts, strict=True):
            for last, leaf in inside.items():
                if type(leaf) is LazyTensor:
                    self._add(f"{prefix}{key}.{key_text(last)}", leaf)

    def _add(self, name: str, leaf: Any) -> None:
        self._ways.charge(2 * len(name))
        table = self.subclassed if isinstance(leaf, ForeignObject) else self.names
        if table.setdefault(name, leaf) is not leaf:
            self.conflicts.setdefault(name, leaf)
        elif len(table) > self._bound:
            raise LimitError("shared_names", len(table), self._limits.shared_names)


class Leading(NamedTuple):
    """What leads to leaves, by ids.

    ``leading`` are containers from which a leaf can be reached, and ``shared`` those with more than
    one parent. ``dense`` are dicts that have leaves, numbers and strings and nothing else.
    ``leaves`` is how many leaves there are.
    """

    leading: set[int]
    shared: set[int]
    dense: set[int]
    leaves: int


def leading_to_leaves(
    root: Any, is_leaf: Callable[[Any], bool], items: Callable[[Any], Iterable[Any]] = items_of
) -> Leading:
    """Return what leads to leaves. Numbers, strings, dicts, lists and tuples are none.

    A LazyTensor is one, whatever ``is_leaf`` says.
    """
    parents: dict[int, list[int]] = {}
    leading: list[int] = []
    leaves: set[int] = set()
    dense: set[int] = set()
    seen: dict[int, Any] = {id(root): root}  # keeps what is seen alive, so that ids stay
    todo = [root]
    while todo:
        container = todo.pop()
        own = id(container)
        inside = container.values() if type(container) is dict else items(container)
        kinds = set(map(type, inside))
        if _TENSORS_AND_SCALARS.issuperset(kinds):
            if LazyTensor in kinds:
                leading.append(own)
                alone = len(kinds) == 1
                leaves.update(
                    map(id, inside if alone else [x for x in inside if type(x) is LazyTensor])
                )
                if type(container) in _DICTS:
                    dense.add(own)
            continue
        if kinds == _DICT and seen.keys().isdisjoint(map(id, inside)):
            # Dicts of tensors and nothing else, such as the states of an optimizer.
            tensors = [leaf for each in inside for leaf in each.values()]
            if all(inside) and {LazyTensor}.issuperset(map(type, tensors)):
                leading += [own, *map(id, inside)]
                leaves.update(map(id, tensors))
                dense.update(map(id, inside))
                seen.update(zip(map(id, inside), inside, strict=True))
                continue
        direct = False
        for child in inside:
            kind = type(child)
            if kind in SCALARS:
                continue
            if kind not in BUILT_IN:
                if is_leaf(child):
                    direct = True
                    leaves.add(id(child))
                    continue
                if foreign_tensor(child) is not None:
                    direct = True
                    leaves.add(id(child))
                if not isinstance(child, _CONTAINERS):
                    continue
            if id(child) in parents:
                parents[id(child)].append(own)
            else:
                parents[id(child)] = [own]
            if id(child) not in seen:
                seen[id(child)] = child
                todo.append(child)
        if direct:
            leading.append(own)
    found = set(leading)
    while leading:
        for parent in parents.get(leading.pop(), ()):
            if parent not in found:
                found.add(parent)
                leading.append(parent)
    shared = {own for own, above in parents.items() if len(above) > 1 or own == id(root)}
    return Leading(found, shared, dense, len(leaves))
