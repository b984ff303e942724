"""Results of the opcodes that call, make and fill objects, without making foreign objects.

The arguments of a name in the table are passed to a function of torchzip. Any other name becomes
a `ForeignObject`, which takes arguments, items and state.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from typing import Any

from torchzip.errors import PickleError, UnsupportedError, shown
from torchzip.leaf_types import ForeignObject
from torchzip.pickling.table import KEEP, Table

_PLAIN_DICTS = (dict, OrderedDict)
#: The cost of copying an item of these types, in eighths of an item.
_SIZED: dict[type[Any], int] = {list: 8, tuple: 8, dict: 8, str: 1, bytes: 1, bytearray: 1}


def size_of(values: Any) -> int:
    """Return how many items a call with these arguments copies at most.

    Eight characters or bytes count as one.
    """
    if type(values) is not tuple or not values:
        return 0
    eighths = [len(value) * _SIZED[type(value)] for value in values if type(value) in _SIZED]
    return sum(eighths) >> 3


#: Most characters of the name of a nested class.
_MAX_NAME = 1000


def call(table: Table, callee: Any, args: Any) -> Any:
    """Return the result of calling a name by the table, or else an inert call."""
    if type(callee) is not ForeignObject:
        raise PickleError(f"a call of {shown(callee)}; a class or a function was expected")
    if not isinstance(args, tuple):
        prefix = table.one_value
        if prefix is None or not callee.module.startswith(prefix):
            raise PickleError(f"a call with {shown(args)} for its arguments; a tuple was expected")
        args = (args,)
    if callee.how == "name":
        handler = table.calls.get((callee.module, callee.name))
        if handler is not None:
            made = handler(args)
            if made is not KEEP:
                return made
    module, name = callee.module, callee.name
    first = args[0] if args else None
    if type(first) is ForeignObject:
        # Protocol 2 writes a nested class as getattr(Outer, "Inner"), protocols 0 and 1 a new
        # object as _reconstructor(Class, object, None). Both are shown under the class.
        called = (module, name)
        if called == ("builtins", "getattr") and len(args) == 2 and type(args[1]) is str:
            # A chain of them could make names of any length, each copying the one before.
            joined = (first.module, first.name) != called
            if joined and len(first.name) + len(args[1]) < _MAX_NAME:
                module, name = first.module, f"{first.name}.{args[1]}"
        elif called == ("copyreg", "_reconstructor") and first.how == "name":
            module, name = first.module, first.name
    return ForeignObject(module, name, args, callee=callee, how="call")


def new(table: Table, callee: Any, args: Any, kwargs: Any) -> Any:
    """Return a new object of a class by the table, or else an inert one."""
    if type(callee) is not ForeignObject:
        raise PickleError(f"a new object of {shown(callee)}; a class was expected")
    if not isinstance(args, tuple):
        raise PickleError(
            f"a new object with {shown(args)} for its arguments; a tuple was expected"
        )
    if kwargs is not None and not (
        type(kwargs) is dict and all(type(key) is str for key in kwargs)
    ):
        raise PickleError(
            f"a new object with {shown(kwargs)} for its keywords; a dict of strings was expected"
        )
    if not args and not kwargs and callee.how == "name":
        handler = table.calls.get((callee.module, callee.name))
        if handler is not None:
            made = handler(())
            if made is not KEEP:
                return made
    return ForeignObject(callee.module, callee.name, args, kwargs or None, callee=callee, how="new")


def dropped(value: Any, stack: list[Any]) -> None:
    """Keep the arguments of a state setter.

    A reduction with a setter is written as setter(object, state) and a POP of the result;
    dropping the call would drop the state.
    """
    if (
        type(value) is ForeignObject
        and stack
        and type(stack[-1]) is ForeignObject
        and value.how == "call"
        and value.args is not None
        and len(value.args) == 2
        and value.args[0] is stack[-1]
    ):
        stack[-1].setter = value.callee
        stack[-1].state = value.args[1]


def _items_of(target: ForeignObject, kind: type, fault: str) -> Any:
    """Return the items of a foreign object, which are all of one kind."""
    if target.items is None:
        target.items = kind()
    if not isinstance(target.items, kind):
        raise UnsupportedError(f"{shown(target)} has {fault}")
    return target.items


def append(target: Any, items: list[Any]) -> None:
    """Add items to a list, or to a foreign object."""
    if type(target) is list or type(target) is deque:
        target.extend(items)
    elif type(target) is ForeignObject and target.how != "name":
        _items_of(target, list, "list items and dict items").extend(items)
    else:
        raise PickleError(f"APPEND to {shown(target)}; a list was expected")


def set_items(table: Table, target: Any, items: list[Any]) -> None:
    """Set alternating keys and values in a dict, or in a foreign object."""
    if isinstance(target, dict):
        mapping = target
    elif type(target) is ForeignObject and target.how != "name":
        mapping = _items_of(target, dict, "list items and dict items")
    else:
        raise PickleError(f"SETITEM on {shown(target)}; a dict was expected")
    keys = items[::2]
    if len(items) % 2:
        raise PickleError(f"{shown(keys[-1])} is a key without a value")
    others = [key for key in keys if type(key) is not str]
    if others:
        keys = table.keys.checked(keys)
    if others or table.keys.is_watching:
        table.keys.fill(mapping, keys, items[1::2])
        return
    pairs = zip(keys, items[1::2], strict=True)
    if type(mapping) in _PLAIN_DICTS:
        mapping.update(pairs)
    else:  # a Counter's own update would count them
        for key, value in pairs:
            mapping[key] = value


def add_items(table: Table, target: Any, items: list[Any]) -> None:
    """Add items to a set, or to a foreign object."""
    if type(target) is ForeignObject and target.how != "name":
        table.keys.collect(_items_of(target, set, "items of two kinds"), items)
    elif type(target) is set:
        table.keys.collect(target, items)
    else:
        raise PickleError(f"ADDITEMS on {shown(target)}; a set was expected")


def build(table: Table, target: Any, state: Any) -> Any:
    """Give an object its state; return the object, or its replacement."""
    if type(target) is ForeignObject and target.how != "name":
        if target.state is not None:
            raise UnsupportedError(f"{shown(target)} is given a state twice")
        target.state = state
        handler = table.builds.get((target.module, target.name))
        if handler is not None:
            made = handler(target, state)
            if made is not KEEP:
                return made
    elif isinstance(target, OrderedDict) and type(state) is dict:
        # This is how `module.state_dict()` stores its `_metadata`.
        for key, value in state.items():
            # numpy and others look up names with underscores on an object, some of them addresses.
            if type(key) is not str or key.startswith("__") or hasattr(type(target), key):
                raise PickleError(
                    f"BUILD sets {shown(key)} on an OrderedDict; the name of a new attribute was "
                    "expected"
                )
            target.__dict__[key] = value
    else:
        raise UnsupportedError(
            f"BUILD gives {shown(target)} the state {shown(state)}; such a state is not read"
        )
    return target
