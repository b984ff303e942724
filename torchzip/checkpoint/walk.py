"""What is inside what, and the ways to go over it: the one walker of objects.

Three groups of parts, which together are all that a value holds:

* `children`: what has a flat name below the value: items of dicts, lists, tuples and deques, and
  what an object of another class was given.
* `attributes`: what hangs on a value beside its items: Python attributes of tensors, Parameters
  and OrderedDicts (the ``_metadata`` of a state dict).
* `inner`: what a value is made of: the parts of a tensor that is not dense, the data of a
  Parameter, tensors in the keys of a dict and in sets, items of an array of objects.

`reach`, `ways` and `shared` visit each object once. `Walk` goes every way, as names do, and is
bounded: a few bytes of pickle can describe more ways than any memory holds.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np

from torchzip.checkpoint.lazy_tensor import LazyTensor
from torchzip.errors import LimitError
from torchzip.formats.base import Child
from torchzip.leaf_types import ForeignObject, Parameter, Storage
from torchzip.limits import Limits
from torchzip.tensors.kinds.base import OtherTensor
from torchzip.tensors.persistent_ids import BareStorage
from torchzip.tensors.rebuild import FOREIGN_TENSORS

_Frame = TypeVar("_Frame")
PartsOf = Callable[[Any], Iterable[Child]]
#: What holds nothing, and is equal wherever it stands.
SCALARS = frozenset([str, int, float, bool, complex, bytes, type(None)])
#: What has nothing beside its items.
BUILT_IN = frozenset([dict, list, tuple])


def is_plain(value: Any) -> bool:
    """Return whether a dict, list or tuple has nothing but numbers and strings in it.

    >>> is_plain({"a": 1}), is_plain([1.5, None]), is_plain([[1]]), is_plain(5)
    (True, True, False, False)
    """
    if type(value) not in BUILT_IN:
        return False
    held = (value, value.values()) if isinstance(value, dict) else (value,)
    return all(SCALARS.issuperset(map(type, each)) for each in held)


def items_of(value: Any) -> Iterable[Any]:
    """Return what `children` yields, without the names, which take most of the time."""
    if isinstance(value, dict):
        return value.values()
    if isinstance(value, list | tuple | deque):
        return value
    return [child for _, _, child in children(value)]


class Label(str):
    """The name of a part that is not an item: it follows the name of its holder in parentheses."""

    __slots__ = ()


def joined(prefix: str, key: str) -> str:
    """Return the name of a part, given its holder's followed by a dot ("" for the root).

    >>> joined("a.", "b"), joined("a.", Label("_metadata")), joined("", Label("_metadata"))
    ('a.b', 'a (_metadata)', '(_metadata)')
    """
    if isinstance(key, Label):
        return f"{prefix[:-1]} ({key})" if prefix else f"({key})"
    return prefix + key


def key_text(key: Any) -> str:
    """Return a key as flat names have it."""
    if type(key) is str:
        return key
    try:
        return str(key)
    except ValueError:  # an int of more digits than Python prints
        return f"<{type(key).__name__}>"


def children(value: Any) -> Iterator[Child]:
    """Yield what a container holds under flat names; nothing for other values."""
    if isinstance(value, dict):
        for key in value:
            text = key_text(key)
            yield text, f"[{key!r}]" if type(key) is str else f"[{text}]", value[key]
    elif isinstance(value, list | tuple | deque):
        for index, item in enumerate(value):
            yield str(index), f"[{index}]", item
    elif isinstance(value, Parameter):
        if isinstance(value.data, ForeignObject):  # what is in it goes by the parameter's name
            yield from children_at(".data", value.data)
    elif isinstance(value, ForeignObject):
        yield from _subclass_parts(value) if is_subclass_call(value) else _object_parts(value)


def children_at(place: str, value: Any) -> Iterator[Child]:
    """Yield the `children` of a part, whose place in what holds it comes before theirs."""
    for name, step, child in children(value):
        yield name, place + step, child


def _subclass_parts(value: ForeignObject) -> Iterator[Child]:
    # (function, class, arguments, attributes): the attributes go by their own names.
    _, _, args, attributes = value.args or ()
    if isinstance(attributes, dict):
        yield from children_at(".args[3]", attributes)
    elif isinstance(attributes, tuple):  # those in the dict, and those in slots
        for index, held in enumerate(attributes):
            if isinstance(held, dict):
                yield from children_at(f".args[3][{index}]", held)
            else:
                yield f"state.{index}", f".args[3][{index}]", held
    else:
        yield "state", ".args[3]", attributes
    yield "args", ".args[2]", args


def _object_parts(value: ForeignObject) -> Iterator[Child]:
    # A state is mostly the attribute dict; items and arguments come with it.
    for index, item in enumerate(value.args or ()):
        yield str(index), f".args[{index}]", item
    if isinstance(value.state, dict):
        yield from children_at(".state", value.state)
    elif value.state is not None:
        yield "state", ".state", value.state
    yield from children_at(".items", value.items)
    yield from children_at(".kwargs", value.kwargs)


def attributes(value: Any) -> Iterator[Child]:
    """Yield the Python attributes of a value, each under a `Label`."""
    if isinstance(value, Parameter):
        yield from _state_parts(value.state, ".state")
        value = value.data
    if isinstance(value, LazyTensor):
        yield from _state_parts(value.spec.attributes, ".attributes")
    elif isinstance(value, OtherTensor):
        yield from _state_parts(value.attributes, ".attributes")
    elif isinstance(value, dict) and type(value) is not dict:
        yield from _state_parts(getattr(value, "__dict__", None), "")


def _state_parts(state: Any, step: str) -> Iterator[Child]:
    """Yield the attributes in a state: a dict, or a dict and one of slots."""
    for held in state if type(state) is tuple else (state,):
        if isinstance(held, dict):
            for name, place, child in children(held):
                yield Label(name), f"{step}{place}", child
        elif held is not None:
            yield Label("state"), step, held


def inner(value: Any) -> Iterator[Child]:
    """Yield what a value is made of and what is in its keys, each under a `Label`."""
    if isinstance(value, Parameter | Storage):
        yield Label("data"), ".data", value.data
    elif isinstance(value, OtherTensor):
        for name, part in value.named_parts():
            if part is not None:
                yield Label(name), f".{name}", part
        constructor = getattr(value, "constructor", None)  # of a jagged nested tensor
        if constructor is not None:
            yield Label("constructor"), ".constructor", constructor
    elif isinstance(value, np.ndarray):
        if value.dtype.hasobject and value.dtype.names is None:
            for index, item in enumerate(value.reshape(-1).tolist()):
                yield Label(str(index)), f".flat[{index}]", item
    elif isinstance(value, dict):
        if SCALARS.issuperset(map(type, value)):
            return
        keys = [key for key in value if not isinstance(key, str | int) and _may_hold(key)]
        for index, key in enumerate(keys):
            yield Label(f"key {index}"), f".keys[{index}]", key
    elif isinstance(value, slice):
        for name in ("start", "stop", "step"):
            yield Label(name), f".{name}", getattr(value, name)
    elif isinstance(value, set | frozenset):
        # By their places in the file: sets have no order that lasts.
        for index, item in enumerate(sorted(filter(_may_hold, value), key=_place)):
            yield Label(f"item {index}"), f".items[{index}]", item
    elif isinstance(value, ForeignObject) and value.callee and value.callee.how != "name":
        yield Label("callee"), ".callee", value.callee


def _may_hold(key: Any) -> bool:
    """Return whether a key or an item of a set can have a tensor inside."""
    return isinstance(
        key, LazyTensor | OtherTensor | BareStorage | Parameter | ForeignObject | tuple | frozenset
    )


def _place(value: Any) -> tuple[str, int, str]:
    if isinstance(value, LazyTensor):
        return value.spec.storage.record or "", value.spec.storage_offset, repr(value)
    return "", 0, repr(value)


def parts(value: Any) -> Iterator[Child]:
    """Yield all that a value holds: `children`, `attributes` and `inner`."""
    yield from children(value)
    yield from attributes(value)
    yield from inner(value)


def holders(value: Any) -> Iterable[Child]:
    """Return `parts` but for numbers and strings, which hold nothing and may be millions.

    What is asked of a value, and not of each way to it, so that a list is looked at once.
    """
    if is_plain(value):
        return ()
    return [part for part in parts(value) if type(part[2]) not in SCALARS]


class Way(NamedTuple):
    """The first way to a value: ``str`` gives its name. The root's is None.

    The name is put together when it is asked for: a nest of lists a million deep has long ones.
    """

    before: Way | None
    key: str

    def __str__(self) -> str:
        keys = []
        way: Way | None = self
        while way is not None:
            keys.append(way.key)
            way = way.before
        made = ""
        for key in reversed(keys):
            made = f"{joined(made, key)}."
        return made[:-1]


def ways(root: Any, parts_of: PartsOf = holders) -> Iterator[tuple[Way | None, Any]]:
    """Yield a value and all that is in it, each object once and with the first way to it.

    A holder comes before what it holds. Numbers and strings come only if ``parts_of`` gives them,
    as often as they are held.
    """
    seen: dict[int, Any] = {}  # keeps them alive, so that an id is not another's
    todo: list[tuple[Way | None, Any]] = [(None, root)]
    while todo:
        way, value = todo.pop()
        if type(value) not in SCALARS:
            if id(value) in seen:
                continue
            seen[id(value)] = value
        yield way, value
        todo += reversed([(Way(way, key), child) for key, _, child in parts_of(value)])


def reach(root: Any, parts_of: PartsOf = holders) -> Iterator[Any]:
    """Yield a value and all that is in it, each object once, a holder before what it holds."""
    return (value for _, value in ways(root, parts_of))


def shared(root: Any, parts_of: PartsOf = holders) -> set[int]:
    """Return by id the objects to which there is more than one way."""
    seen: dict[int, Any] = {id(root): root}
    found: set[int] = set()
    todo = [root]
    while todo:
        for _, _, child in parts_of(todo.pop()):
            if type(child) in SCALARS:
                continue
            if id(child) in seen:
                found.add(id(child))
            else:
                seen[id(child)] = child
                todo.append(child)
    return found


class Walk(Generic[_Frame]):
    """Goes every way through containers: iterating gives (frame, part) of those that were entered.

    ``ways`` is how many containers may be entered, ``characters`` how many the names may have.
    """

    def __init__(self, limits: Limits, ways: int, characters: int) -> None:
        self._limits = limits
        self._ways = ways
        self._left = self._budget = characters
        self._stack: list[tuple[Iterator[Child], _Frame, int, int]] = []
        self._on_path: set[int] = set()

    def enter(self, value: Any, items: Iterable[Child], frame: _Frame, length: int = 0) -> None:
        """Go into a container next; not again where it is on the way already: a cycle has no name.

        ``length`` is what its frame takes of the characters, which the caller has charged: they are
        given back when it is left.

        Raises
        ------
        LimitError
            If there are more ways, or deeper ones, than a file should have.
        """
        self._count()  # a way back to where it comes from costs as much
        if id(value) in self._on_path:
            self._left += length
            return
        self._check_depth()
        self._stack.append((iter(items), frame, id(value), length))
        self._on_path.add(id(value))

    def pass_through(self, length: int) -> None:
        """Count a container whose items the caller goes through by itself, as `enter` does.

        The caller has not charged the ``length`` of its frame, which is not kept.
        """
        self._count()
        self._check_depth()
        if self._left < length:
            self.charge(length)

    def _count(self) -> None:
        self._ways -= 1
        if self._ways < 0:
            bound = self._limits.shared_names
            raise LimitError("shared_names", bound + 1, bound)

    def _check_depth(self) -> None:
        if len(self._stack) >= self._limits.nesting:
            raise LimitError("nesting", len(self._stack) + 1, self._limits.nesting)

    def is_on_the_way(self, value: Any) -> bool:
        """Return whether a value holds what the walk is at: a cycle."""
        return id(value) in self._on_path

    def charge(self, length: int) -> None:
        """Count the characters of a name.

        Raises
        ------
        LimitError
            If names have more than a file should have.
        """
        self._left -= length
        if self._left < 0:
            raise LimitError("names_nbytes", self._budget - self._left, self._budget)

    def __iter__(self) -> Iterator[tuple[_Frame, Child]]:
        stack = self._stack
        while stack:
            depth = len(stack)
            items, frame, own, length = stack[-1]
            for child in items:
                yield frame, child
                if len(stack) > depth:
                    break  # into what was entered
            else:
                stack.pop()
                self._on_path.discard(own)
                self._left += length  # what led here is not kept


def foreign_tensor(value: Any) -> ForeignObject | None:
    """Return the tensor that stays a ForeignObject, if a value is one or a Parameter of one."""
    if isinstance(value, Parameter):
        value = value.data
    if (
        isinstance(value, ForeignObject)
        and value.how == "call"
        and (value.module, value.name) in FOREIGN_TENSORS
    ):
        return value
    return None


def is_subclass_call(value: ForeignObject) -> bool:
    """Return whether a value is a tensor of a class of its own, which its arguments describe."""
    return (
        foreign_tensor(value) is not None
        and value.name == "_rebuild_from_type_v2"
        and len(value.args or ()) == 4
    )
