"""What a checkpoint holds beside the tensors that have flat names, by the way to it.

Numbers, strings and the like; tensors that hang on others, on dicts or on objects, and so have no
flat name; and what the containers themselves are.
"""

from __future__ import annotations

from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from torchzip.checkpoint.lazy_tensor import data_of, is_tensor, is_weight
from torchzip.checkpoint.walk import (
    SCALARS,
    Label,
    Walk,
    attributes,
    children,
    inner,
    is_plain,
    joined,
)
from torchzip.errors import LimitError
from torchzip.formats.base import Child
from torchzip.limits import Limits
from torchzip.tensors.numpy_values import plain_type
from torchzip.types import ForeignObject, Parameter

_SCALARS = (int, float, complex, str, bytes, bool, type(None))
_CONTAINERS = (dict, list, tuple, deque, ForeignObject)


@dataclass(slots=True)
class Beside:
    """``values`` are not tensors, ``tensors`` those without a flat name, ``forms`` what else there
    is to say of a container or a tensor: its class, a length that it keeps to, kinds of keys.

    All by name; if two have one name, the first counts. A cycle has no name.
    """

    values: dict[str, Any] = field(default_factory=dict)
    tensors: dict[str, Any] = field(default_factory=dict)
    forms: dict[str, str] = field(default_factory=dict)


def flat_values(root: Any, limits: Limits) -> dict[str, Any]:
    """Return all values that are not tensors, by the way to each, as `what_is_beside` does."""
    return what_is_beside(root, (), limits).values


def what_is_beside(
    root: Any, named: Collection[Any], limits: Limits, *, plain: bool = True
) -> Beside:
    """Return what is in an object beside ``named``: the tensors and arrays that have flat names.

    A list of numbers or strings is one value, and so is the class of a foreign object that has
    something inside. A part that is not an item of its holder follows it in parentheses.
    ``plain=False`` leaves out numbers, strings and containers of nothing else, which may be
    millions.

    Raises
    ------
    LimitError
        If containers are shared or nested so that there are more names than a file should have.
    """
    known = {id(data_of(leaf)) for leaf in named}
    looked_at: dict[int, tuple[Any, bool]] = {}
    left_out: set[int] = set()

    def below(container: Any) -> Iterable[Child]:
        parts = _below(container, known)
        return parts if plain else [part for part in parts if type(part[2]) not in SCALARS]

    def leads_on(value: Any) -> bool:
        # Once for each: a long list may be held by many.
        if type(value) in SCALARS:
            return False
        if id(value) not in looked_at:
            if not plain and is_plain(value):
                left_out.add(id(value))
            looked_at[id(value)] = (value, id(value) not in left_out and _leads_on(value))
        return looked_at[id(value)][1]

    containers, items, characters = _measure(root, below, leads_on)
    items = 4 * items + limits.shared_names
    walk: Walk[str] = Walk(
        limits, containers + limits.shared_names, characters + limits.names_nbytes
    )
    found = Beside()

    def see(name: str, value: Any) -> bool:
        """Note a value; return whether there is something below it."""
        if type(value) in SCALARS or (is_weight(value) and not is_tensor(value)):
            if id(value) not in known:
                found.values.setdefault(name, value)
            return False
        if is_tensor(value):
            if id(data_of(value)) not in known:
                found.tensors.setdefault(name, data_of(value))
            if isinstance(value, Parameter):
                found.forms.setdefault(name, "a Parameter")
            return leads_on(value)
        if not leads_on(value):
            if id(value) not in left_out:
                found.values.setdefault(name, value)
            return False
        form = form_of(value)
        if form:
            found.forms.setdefault(name, form)
        if isinstance(value, ForeignObject):
            found.values.setdefault(name, ForeignObject(value.module, value.name))
        return True

    if see("", root):
        walk.enter(root, below(root), "")
    for prefix, (key, _, child) in walk:
        items -= 1
        if items < 0:
            raise LimitError("shared_names", limits.shared_names + 1, limits.shared_names)
        if walk.is_on_the_way(child):
            continue
        name = joined(prefix, key)
        walk.charge(len(name))
        if see(name, child):
            walk.enter(child, below(child), name + ".")
    return found


def has_attributes(tensor: Any) -> bool:
    return next(attributes(tensor), None) is not None


def form_of(value: Any) -> str:
    """Return what a container is, but for its items; "" for a Parameter and a ForeignObject.

    >>> form_of(OrderedDict(a=1)), form_of({1: 2}), form_of(deque([1], 5)), form_of({"a": 1})
    ('OrderedDict', 'dict with keys of type int', 'deque of at most 5', 'dict')
    """
    if isinstance(value, ForeignObject | Parameter):
        return ""
    text = type(value).__name__
    if isinstance(value, deque) and value.maxlen is not None:
        text += f" of at most {value.maxlen}"
    if isinstance(value, defaultdict) and value.default_factory is not None:
        text += f" of {getattr(value.default_factory, '__name__', value.default_factory)}"
    if isinstance(value, dict):
        kinds = sorted({type(key).__name__ for key in value if type(key) is not str})
        if kinds:
            text += f" with keys of type {', '.join(kinds)}"
    return text


def _below(container: Any, known: Collection[int]) -> Iterable[Child]:
    """Return what is in a container; nothing, if that is only tensors that have names."""
    if is_tensor(container):
        return list(attributes(container))
    if type(container) in (dict, OrderedDict) and all(
        id(data_of(value)) in known and is_tensor(value) and not has_attributes(value)
        and not isinstance(value, Parameter)
        for value in container.values()
    ):  # fmt: skip
        return [*attributes(container), *inner(container)]
    parts = [*children(container), *attributes(container)]
    # The data of a Parameter of an object goes by the Parameter's name.
    return parts if isinstance(container, Parameter) else [*parts, *inner(container)]


def _measure(
    root: Any, below: Callable[[Any], Iterable[Child]], leads_on: Callable[[Any], bool]
) -> tuple[int, int, int]:
    """Return how many containers there are, what is in them, and the characters of its keys."""
    seen: dict[int, Any] = {id(root): root}
    todo = [root] if leads_on(root) else []
    items = characters = 0
    while todo:
        for key, _, child in below(todo.pop()):
            items += 1
            characters += len(key) + 3 * isinstance(key, Label)
            if id(child) not in seen and leads_on(child):
                seen[id(child)] = child
                todo.append(child)
    return len(seen), items, characters


def _leads_on(value: Any) -> bool:
    return has_attributes(value) if is_tensor(value) else is_container(value)


def is_container(value: Any) -> bool:
    """Return whether a value holds others that have names of their own."""
    if isinstance(value, ForeignObject):
        return next(children(value), None) is not None
    if isinstance(value, Parameter):
        return True
    if isinstance(value, list | tuple):
        return not all(isinstance(item, _SCALARS) for item in value)
    if isinstance(value, set | frozenset | np.ndarray):  # a value, but for tensors in it
        return any(map(is_tensor, (child for _, _, child in inner(value))))
    return isinstance(value, _CONTAINERS) and (bool(value) or any(True for _ in attributes(value)))


def same_value(a: Any, b: Any) -> bool:
    """Return whether two values are of one type and equal; NaN is NaN here."""
    if a is b:
        return True
    if plain_type(a) is not plain_type(b):
        return False
    try:
        if isinstance(a, list | tuple):
            return len(a) == len(b) and all(map(same_value, a, b))
        if isinstance(a, dict):
            return list(a) == list(b) and all(map(same_value, a.values(), b.values()))
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
    if a.dtype.char in "gG":  # a long double has bytes that mean nothing
        return bool(np.array_equal(a, b, equal_nan=True))
    if a.dtype.hasobject:
        return same_value(a.reshape(-1).tolist(), b.reshape(-1).tolist())
    return bool(a.tobytes() == b.tobytes())
