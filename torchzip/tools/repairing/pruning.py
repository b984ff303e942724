"""An object without the tensors that are lost; all else in it stays the object that it was.

From dicts a lost tensor is taken out. In lists and tuples, whose other items have their places, and
in the attributes of objects, None takes its place. A tensor made of several parts is lost with
any of them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from graphlib import TopologicalSorter
from operator import setitem
from typing import Any, NamedTuple

import numpy as np

from torchzip.checkpoint.lazy_tensor import LazyTensor
from torchzip.formats.damaged.storages import LostStorage
from torchzip.tensors.persistent_ids import BareStorage
from torchzip.types import ForeignObject, OtherTensor, Parameter, Storage


class _Link(NamedTuple):
    before: _Link | None
    step: str

    def __str__(self) -> str:
        steps = []
        link: _Link | None = self
        while link is not None:
            steps.append(link.step)
            link = link.before
        return "".join(reversed(steps))


def lost_in(value: Any) -> LostStorage | None:
    """Return the lost storage of a tensor, or of one of its parts; None for any other value."""
    if isinstance(value, Parameter):
        return lost_in(value.data)
    if isinstance(value, OtherTensor):
        found = (lost_in(part) for part in value.parts)
        return next((lost for lost in found if lost is not None), None)
    if isinstance(value, LazyTensor):
        storage: Any = value.spec.storage
    elif isinstance(value, BareStorage):
        storage = value.storage
    elif isinstance(value, Storage):
        return lost_in(value.data)
    else:
        return None
    return storage if isinstance(storage, LostStorage) else None


class Pruning:
    """Takes lost tensors out of an object, in place but for tuples.

    ``root`` is the object without them, None if it was one itself. ``lost`` has each of them by its
    identity: the value, and the path to it.
    """

    def __init__(self, root: Any) -> None:
        self.lost: dict[int, tuple[Any, str]] = {}
        self._tuples: dict[int, tuple[Any, ...]] = {}
        self._changed: dict[int, tuple[Any, ...]] = {}
        self._attributes: set[int] = set()
        holders = self._find(root)
        if not self.lost:
            self.root = root
            return
        self._rebuild_tuples()
        for holder in holders:
            if not isinstance(holder, tuple):
                self._prune(holder)
        self.root = self._put(root)

    # -- finding -----------------------------------------------------------------------------------

    def _find(self, root: Any) -> list[Any]:
        """Return all that holds values, each once, and note what is lost."""
        seen: set[int] = set()
        holders: list[Any] = []
        todo: list[tuple[Any, _Link | None]] = [(root, None)]
        while todo:
            value, link = todo.pop()
            if id(value) in seen:
                continue
            if lost_in(value) is not None:
                seen.add(id(value))
                self.lost[id(value)] = (value, str(link or ""))
                continue
            if not _is_holder(value):
                continue
            seen.add(id(value))
            holders.append(value)
            if isinstance(value, tuple):
                self._tuples[id(value)] = value
            self._attributes.update(map(id, _attribute_dicts(value)))
            steps = [(child, _Link(link, step)) for step, child, *_ in _slots(value)]
            todo += reversed(steps)
        return holders

    # -- what takes its place ----------------------------------------------------------------------

    def _put(self, value: Any) -> Any:
        if id(value) in self.lost:
            return None
        return self._changed.get(id(value), value)

    def _is_touched(self, value: Any) -> bool:
        return id(value) in self.lost or id(value) in self._changed

    def _rebuild_tuples(self) -> None:
        """Replace the tuples that hold something lost, those inside of others first."""
        # A tuple holds itself only by way of a list or a dict, so there is an order.
        inner = {
            key: {id(item) for item in value if id(item) in self._tuples}
            for key, value in self._tuples.items()
        }
        for key in TopologicalSorter(inner).static_order():
            value = self._tuples[key]
            if any(map(self._is_touched, value)):
                self._changed[key] = type(value)([self._put(item) for item in value])

    def _prune(self, holder: Any) -> None:
        for _, item, put, target, key in list(_slots(holder)):
            if not self._is_touched(item):
                continue
            is_item = isinstance(target, dict) and put is setitem
            if is_item and id(item) in self.lost and id(target) not in self._attributes:
                del target[key]
            else:
                put(target, key, self._put(item))


def _is_holder(value: Any) -> bool:
    if isinstance(value, np.ndarray):
        return bool(value.dtype == object)
    return isinstance(
        value, dict | list | tuple | deque | ForeignObject | Parameter | OtherTensor | LazyTensor
    )


def _slots(value: Any) -> Iterator[tuple[str, Any, Callable[..., None], Any, Any]]:
    """Yield what a value holds: the step to it, the item, and how to put another in its place."""
    if isinstance(value, dict):
        for key, item in value.items():
            step = f"[{key!r}]" if isinstance(key, str | int | bool) else "[...]"
            yield step, item, setitem, value, key
        for name, item in getattr(value, "__dict__", {}).items():
            yield f".{name}", item, object.__setattr__, value, name
    elif isinstance(value, list | tuple | deque):
        for index, item in enumerate(value):
            yield f"[{index}]", item, setitem, value, index
    elif isinstance(value, np.ndarray):
        for index, item in enumerate(value.reshape(-1).tolist()):
            yield f".flat[{index}]", item, setitem, value.flat, index
    else:
        names: tuple[str, ...] = ("attributes", "constructor")
        if isinstance(value, LazyTensor):
            value = value.spec
        elif isinstance(value, Parameter):
            names = ("data", "state")
        elif isinstance(value, ForeignObject):
            names = ("args", "kwargs", "state", "items", "callee")
        for name in names:
            if hasattr(value, name):
                yield f".{name}", getattr(value, name), object.__setattr__, value, name


def _attribute_dicts(value: Any) -> Iterator[dict[Any, Any]]:
    """Yield the dicts that are not a user's but the attributes of an object."""
    if isinstance(value, dict | list | tuple | deque | np.ndarray):
        return
    for step, held, *_ in _slots(value):
        if step != ".items":
            parts = held if isinstance(held, tuple) else (held,)
            yield from (each for each in parts if isinstance(each, dict))
