"""How Python takes objects apart: reductions, and the names under which globals are found.

The rules are those of CPython's ``copyreg`` and ``pickle``, protocol 2.
"""

from __future__ import annotations

import copyreg
import functools
import sys
from collections.abc import Iterable
from typing import Any

from torchzip.leaf_types import ForeignObject

Reduction = str | tuple[Any, ...]


def reduce_object(value: Any) -> Reduction:
    """Return Python's own reduction of an object at protocol 2."""
    reducer = copyreg.dispatch_table.get(type(value))
    if reducer is not None:
        return reducer(value)
    reduction: Reduction = value.__reduce_ex__(2)
    return reduction


def text_of(value: Any) -> str:
    """Return a key or an error as messages show it, even if its ``__str__`` raises."""
    try:
        return str(value)
    except Exception:
        return f"<{type(value).__qualname__}>"


def fault_of(reduction: tuple[Any, ...]) -> str | None:
    """Return what a reduction has in place of the parts that pickle requires; None if all is right.

    >>> fault_of((int, (5,))), fault_of((5, ()))
    (None, 'no callable')
    """
    callee, args, _, list_items, dict_items, setter = (*reduction, *(None,) * 4)[:6]
    name = getattr(callee, "__name__", "")
    if not callable(callee) and type(callee) is not ForeignObject:
        return "no callable"
    if not isinstance(args, tuple):
        return f"a {type(args).__name__} for its arguments"
    if name == "__newobj__" and not (args and isinstance(args[0], type)):
        return "no class for __newobj__"
    if name == "__newobj_ex__" and len(args) != 3:
        return "not three arguments for __newobj_ex__"
    if any(
        items is not None and not isinstance(items, Iterable) for items in (list_items, dict_items)
    ):
        return "items that cannot be iterated"
    if setter is not None and not callable(setter):
        return "a state setter that cannot be called"
    return None


class _Outer:
    class Inner:
        pass


@functools.cache
def numbers_parts_of_names() -> bool:
    """Return whether the running Python numbers the parts of a nested class, A.B.

    It is written as the call getattr(A, "B"). Up to some 3.12, A and the tuple of arguments get
    numbers; since then both are written again each time. 3.12.1 does the former and 3.12.7 the
    latter, so this asks pickle.
    """
    import pickle

    return b"\x86R" not in pickle.dumps(_Outer.Inner, 2)


def is_nested_name(value: Any) -> bool:
    """Return whether a foreign object is what `Emitter.name` writes for a nested class.

    A class method has the same two arguments, and is read back the same way.
    """
    while type(value) is ForeignObject and value.how == "call":
        callee, args = value.callee, value.args or ()
        if not (
            type(callee) is ForeignObject
            and (callee.how, callee.module, callee.name) == ("name", "builtins", "getattr")
            and len(args) == 2
            and value.state is None
            and not value.items
            and value.name.endswith(f".{args[1]}")
        ):
            return False
        value = args[0]
    return type(value) is ForeignObject and value.how == "name"


def module_of(value: Any, name: str) -> str:
    """Return the module in which a global lives, as ``pickle.whichmodule`` finds it."""
    module = getattr(value, "__module__", None)
    if module is not None:
        return str(module)
    for candidate, found in sys.modules.copy().items():
        if candidate in ("__main__", "__mp_main__") or found is None:
            continue
        try:
            for part in name.split("."):
                found = getattr(found, part)
        except AttributeError:
            continue
        if found is value:
            return candidate
    return "__main__"
