"""What a checkpoint holds beside its tensors: numbers, texts and the like, by flat name."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from torchzip.checkpoint.names import children
from torchzip.errors import LimitError
from torchzip.formats.base import Child
from torchzip.limits import Limits
from torchzip.tensors.numpy_values import plain_type
from torchzip.types import ForeignObject, Parameter

_SCALARS = (int, float, complex, str, bytes, bool, type(None))
_CONTAINERS = (dict, list, tuple, deque, ForeignObject)


def flat_values(root: Any, is_tensor: Callable[[Any], bool], limits: Limits) -> dict[str, Any]:
    """Return all values that are no tensors, by the path to each.

    A list of numbers or texts is one value, and so is the class of a foreign object that has
    something inside. If two values have one name, the first counts; a cycle has no name.

    Raises
    ------
    LimitError
        If containers are shared or nested so that there are more names than a file should have.
    """
    containers, items, characters = _measure(root, is_tensor)
    containers += limits.shared_names
    items = 4 * items + limits.shared_names
    characters += limits.names_nbytes
    found: dict[str, Any] = {}
    if is_tensor(root):
        return found
    if not is_container(root):
        return {"": root}
    stack = [(_below(root, is_tensor), "", id(root))]
    on_path = {id(root)}
    _add_class(found, "", root)
    while stack:
        below, prefix, own = stack[-1]
        for key, _, child in below:
            items -= 1
            if items < 0:
                raise LimitError("shared_names", limits.shared_names + 1, limits.shared_names)
            if is_tensor(child) or id(child) in on_path:
                continue
            name = prefix + key
            characters -= len(name)
            if characters < 0:
                raise LimitError("names_nbytes", limits.names_nbytes + 1, limits.names_nbytes)
            if not is_container(child):
                found.setdefault(name, child)
                continue
            _add_class(found, name, child)
            containers -= 1
            if containers < 0:
                raise LimitError("shared_names", limits.shared_names + 1, limits.shared_names)
            if len(stack) >= limits.nesting:
                raise LimitError("nesting", len(stack) + 1, limits.nesting)
            stack.append((_below(child, is_tensor), name + ".", id(child)))
            on_path.add(id(child))
            break
        else:
            stack.pop()
            on_path.discard(own)
    return found


def _below(container: Any, is_tensor: Callable[[Any], bool]) -> Iterator[Child]:
    """Return what is in a container; of a dict of tensors alone nothing, as there is no value."""
    if type(container) in (dict, OrderedDict) and all(map(is_tensor, container.values())):
        return iter(())
    return iter(list(children(container)))


def _add_class(found: dict[str, Any], name: str, value: Any) -> None:
    if isinstance(value, ForeignObject):
        found.setdefault(name, ForeignObject(value.module, value.name))


def _measure(root: Any, is_tensor: Callable[[Any], bool]) -> tuple[int, int, int]:
    """Return how many containers there are, what is in them, and the characters of its keys."""
    seen: dict[int, Any] = {id(root): root}
    todo = [root] if is_container(root) and not is_tensor(root) else []
    items = characters = 0
    while todo:
        for key, _, child in _below(todo.pop(), is_tensor):
            items += 1
            characters += len(key)
            if id(child) not in seen and not is_tensor(child) and is_container(child):
                seen[id(child)] = child
                todo.append(child)
    return len(seen), items, characters


def is_container(value: Any) -> bool:
    """Return whether a value holds others that have names of their own."""
    if isinstance(value, ForeignObject):
        return next(children(value), None) is not None
    if isinstance(value, Parameter):
        return True
    if isinstance(value, list | tuple):
        return not all(isinstance(item, _SCALARS) for item in value)
    return isinstance(value, _CONTAINERS) and bool(value)


def same_value(a: Any, b: Any) -> bool:
    """Return whether two values are of one type and equal; NaN is NaN here."""
    if a is b:
        return True
    if plain_type(a) is not plain_type(b):
        return False
    try:
        if isinstance(a, list | tuple):
            return len(a) == len(b) and all(map(same_value, a, b))
        if isinstance(a, ForeignObject):
            return (a.module, a.name, a.how) == (b.module, b.name, b.how)
        if isinstance(a, np.ndarray | np.generic):
            return _same_array(np.asarray(a), np.asarray(b))
        return bool(a == b) or bool(a != a and b != b)
    except (ArithmeticError, RecursionError, TypeError, ValueError):
        return False  # of kinds that cannot be compared, such as a signalling NaN


def _same_array(a: Any, b: Any) -> bool:
    if (a.dtype, a.shape) != (b.dtype, b.shape):
        return False
    if a.dtype.hasobject:
        return same_value(a.reshape(-1).tolist(), b.reshape(-1).tolist())
    return bool(a.tobytes() == b.tobytes())
