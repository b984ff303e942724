"""An object without the tensors that are lost; all else in it stays the object that it was.

From dicts a lost tensor is taken out. In lists and tuples, whose other items have their places, and
in the attributes of objects, None takes its place. A tensor made of several parts is lost with
any of them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from graphlib import TopologicalSorter
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
            steps = [(child, _Link(link, step)) for step, child in _children(value)]
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
        if isinstance(holder, dict):
            self._prune_dict(holder, keeps=id(holder) in self._attributes)
            self._prune_dict(getattr(holder, "__dict__", {}), keeps=True)
        elif isinstance(holder, list | deque):
            for index, item in enumerate(holder):
                if self._is_touched(item):
                    holder[index] = self._put(item)
        elif isinstance(holder, np.ndarray):
            for index, item in enumerate(holder.reshape(-1).tolist()):
                if self._is_touched(item):
                    holder.flat[index] = self._put(item)
        elif not isinstance(holder, tuple):
            target, names = _slots(holder)
            for name in names:
                item = getattr(target, name)
                if self._is_touched(item):
                    object.__setattr__(target, name, self._put(item))

    def _prune_dict(self, holder: dict[Any, Any], *, keeps: bool) -> None:
        for key, item in list(holder.items()):
            if id(item) in self.lost and not keeps:
                del holder[key]
            elif self._is_touched(item):
                holder[key] = self._put(item)


def _is_holder(value: Any) -> bool:
    if isinstance(value, np.ndarray):
        return bool(value.dtype == object)
    return isinstance(
        value, dict | list | tuple | deque | ForeignObject | Parameter | OtherTensor | LazyTensor
    )


def _slots(value: Any) -> tuple[Any, tuple[str, ...]]:
    """Return what holds the parts of an object, and their names in it."""
    if isinstance(value, LazyTensor):
        return value.spec, ("attributes",)
    if isinstance(value, Parameter):
        return value, ("data", "state")
    if isinstance(value, ForeignObject):
        return value, ("args", "kwargs", "state", "items", "callee")
    names = ("attributes", "constructor") if hasattr(value, "constructor") else ("attributes",)
    return value, names


def _children(value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield f"[{key!r}]" if isinstance(key, str | int | bool) else "[...]", item
        for name, item in getattr(value, "__dict__", {}).items():
            yield f".{name}", item
    elif isinstance(value, list | tuple | deque):
        for index, item in enumerate(value):
            yield f"[{index}]", item
    elif isinstance(value, np.ndarray):
        for index, item in enumerate(value.reshape(-1).tolist()):
            yield f".flat[{index}]", item
    else:
        target, names = _slots(value)
        for name in names:
            yield f".{name}", getattr(target, name)


def _attribute_dicts(value: Any) -> Iterator[dict[Any, Any]]:
    """Yield the dicts that are not a user's but the attributes of an object."""
    if isinstance(value, dict | list | tuple | deque | np.ndarray):
        return
    for step, held in _children(value):
        if step != ".items":
            parts = held if isinstance(held, tuple) else (held,)
            yield from (each for each in parts if isinstance(each, dict))
