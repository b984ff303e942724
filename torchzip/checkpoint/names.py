"""Flat names: the path to each tensor, joined by dots.

Containers that are shared give their tensors a name for each way to them, cycles none. The walk
visits what leads to a tensor and nothing else, and is bounded: a few bytes of pickle can
describe more paths than any memory holds.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Iterable
from typing import Any

from torchzip.checkpoint.lazy_tensor import LazyTensor
from torchzip.checkpoint.walk import (
    BUILT_IN,
    SCALARS,
    Walk,
    children,
    children_at,
    foreign_tensor,
    is_plain,
    items_of,
)
from torchzip.errors import FormatError, LimitError
from torchzip.formats.base import Child, PartsOf
from torchzip.leaf_types import ForeignObject, Parameter
from torchzip.limits import Limits

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

    With ``are_all_dense`` each leaf is known to be a LazyTensor, unseen one by one: there may be
    100,000. ``arrays`` is for those of them that stand for something else in the object, and
    ``conflicts`` has the names that `check` refuses. ``subclassed`` are the tensors that stay
    ForeignObjects; what is inside them has names too.
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
        self._places: dict[str, str] = {}
        self.conflicts: dict[str, str] = {}
        self.names: dict[str, Any] = {}
        self.are_all_dense = False
        self.arrays: dict[str, Any] = {}
        self.subclassed: dict[str, ForeignObject] = {}
        if is_leaf(root):
            self._add("", "", root)
            return
        if type(root) in (dict, OrderedDict) and {str}.issuperset(map(type, root)):
            kinds = set(map(type, root.values()))
            self.are_all_dense = kinds == {LazyTensor}
            if self.are_all_dense or (
                ForeignObject not in kinds and all(map(is_leaf, root.values()))
            ):
                self.names = dict(root)  # a flat state dict: its keys are the names
                return
        leading, shared, leaves = leading_to_leaves(root, is_leaf, self._items)
        self._ways = Walk(limits, len(leading) + limits.shared_names + 1, characters)
        self._bound = leaves + limits.shared_names
        other = foreign_tensor(root)
        if other is not None:
            self._add("", "", other)
        if id(root) in leading:
            self._walk(root, leading, shared)

    def check(self, name: str) -> None:
        """Raise FormatError if two tensors have this name."""
        if name in self.conflicts:
            raise FormatError(
                f"two tensors are called {name!r}: root{self._places[name]} and "
                f"root{self.conflicts[name]}; take them from the checkpoint's root"
            )

    def _children(self, value: Any) -> Iterable[Child]:
        parts = self._parts_of(value) if isinstance(value, ForeignObject) else None
        return children(value) if parts is None else parts

    def _items(self, value: Any) -> Iterable[Any]:
        if isinstance(value, ForeignObject):
            return [child for _, _, child in self._children(value)]
        return items_of(value)

    def _walk(self, root: Any, leading: set[int], shared: set[int]) -> None:
        # What leads to a tensor in each container that there is more than one way to: whatever
        # else is in it is looked at once, and not once for each way.
        kept: dict[int, list[Child]] = {}

        def below(container: Any) -> Iterable[Child]:
            own = id(container)
            if own not in shared:
                return self._children(container)
            if own not in kept:
                kept[own] = [
                    child
                    for child in self._children(container)
                    if self._is_leaf(child[2])
                    or id(child[2]) in leading
                    or foreign_tensor(child[2]) is not None
                ]
            return kept[own]

        # A frame: the name so far, the place so far.
        walk = self._ways
        walk.enter(root, below(root), ("", ""))
        for (prefix, place), (key, step, child) in walk:
            if self._is_leaf(child):
                self._add(prefix + key, place + step, child)
                continue
            other = foreign_tensor(child)
            if other is not None:
                self._add(prefix + key, place + step, other)
            if id(child) in leading:
                length = len(prefix) + len(key) + 1 + len(place) + len(step)
                walk.charge(length)  # before it is made
                walk.enter(child, below(child), (f"{prefix}{key}.", place + step), length)

    def _add(self, name: str, place: str, leaf: Any) -> None:
        self._ways.charge(len(name) + len(place))
        table = self.subclassed if isinstance(leaf, ForeignObject) else self.names
        known = table.setdefault(name, leaf)
        if known is not leaf:
            self.conflicts.setdefault(name, place)
        else:
            self._places.setdefault(name, place)
        if len(table) > self._bound:
            raise LimitError("shared_names", len(table), self._limits.shared_names)


def leading_to_leaves(
    root: Any, is_leaf: Callable[[Any], bool], items: Callable[[Any], Iterable[Any]] = items_of
) -> tuple[set[int], set[int], int]:
    """Return the containers from which a leaf can be reached, and those with more than one parent.

    Both by id; and the number of leaves. Numbers, strings, dicts, lists and tuples are none.
    """
    parents: dict[int, list[int]] = {}
    leading: list[int] = []
    leaves: set[int] = set()
    seen: dict[int, Any] = {id(root): root}  # keeps what is seen alive, so that ids stay
    todo = [root]
    while todo:
        container = todo.pop()
        if is_plain(container):
            continue
        own = id(container)
        direct = False
        for child in items(container):
            if type(child) in SCALARS:
                continue
            if type(child) not in BUILT_IN:
                if is_leaf(child):
                    direct = True
                    leaves.add(id(child))
                    continue
                if foreign_tensor(child) is not None:
                    direct = True
                    leaves.add(id(child))
            if isinstance(child, _CONTAINERS):
                parents.setdefault(id(child), []).append(own)
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
    return found, shared, len(leaves)
