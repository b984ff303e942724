"""An object without the tensors that are lost; all else in it stays the object that it was.

From dicts a lost tensor is taken out. In lists and tuples, whose other items have their places, and
in the attributes of objects, None takes its place. A tensor made of several parts is lost with
any of them.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from graphlib import TopologicalSorter
from operator import setitem
from typing import Any

import numpy as np

from torchzip.checkpoint.lazy_tensor import LazyTensor
from torchzip.checkpoint.walk import SCALARS, is_plain, key_text, ways
from torchzip.formats.base import Child
from torchzip.formats.damaged.storages import LostStorage
from torchzip.tensors.persistent_ids import BareStorage
from torchzip.types import ForeignObject, OtherTensor, Parameter, Storage


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
    identity: the value, and the first way to it.
    """

    def __init__(self, root: Any) -> None:
        self.lost: dict[int, tuple[Any, str]] = {}
        self._tuples: dict[int, tuple[Any, ...]] = {}
        self._changed: dict[int, tuple[Any, ...]] = {}
        #: Dicts that are not a user's but the attributes of an object.
        self._attributes: set[int] = set()
        others = []
        for way, value in ways(root, _parts):
            if lost_in(value) is not None:
                self.lost[id(value)] = (value, str(way or ""))
            elif isinstance(value, tuple):
                self._tuples[id(value)] = value
            elif type(value) not in SCALARS:
                others.append(value)
                if not isinstance(value, _CONTAINERS):
                    held = [item for name, item, *_ in _slots(value) if name != "items"]
                    pairs = [each if isinstance(each, tuple) else (each,) for each in held]
                    self._attributes.update(map(id, itertools.chain(*pairs)))
        if self.lost:
            self._rebuild_tuples()
            for holder in others:
                self._prune(holder)
        self.root = self._put(root)

    def _put(self, value: Any) -> Any:
        """Return what takes the place of a value."""
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


_CONTAINERS = (dict, list, tuple, deque, np.ndarray)


def _parts(value: Any) -> Iterable[Child]:
    if is_plain(value) or lost_in(value) is not None:
        return ()
    return [(step, "", item) for step, item, *_ in _slots(value) if type(item) not in SCALARS]


def _slots(value: Any) -> Iterator[tuple[str, Any, Callable[..., None], Any, Any]]:
    """Yield what a value holds: its name, the item, and how to put another in its place."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield key_text(key), item, setitem, value, key
        for name, item in getattr(value, "__dict__", {}).items():
            yield name, item, object.__setattr__, value, name
    elif isinstance(value, list | tuple | deque):
        for index, item in enumerate(value):
            yield str(index), item, setitem, value, index
    elif isinstance(value, np.ndarray):
        for index, item in enumerate(value.reshape(-1).tolist() if value.dtype == object else ()):
            yield str(index), item, setitem, value.flat, index
    else:
        names: tuple[str, ...] = ()
        if isinstance(value, LazyTensor):
            value, names = value.spec, ("attributes",)
        elif isinstance(value, OtherTensor):
            names = ("attributes", "constructor")
        elif isinstance(value, Parameter):
            names = ("data", "state")
        elif isinstance(value, ForeignObject):
            names = ("args", "kwargs", "state", "items", "callee")
        for name in names:
            if hasattr(value, name):
                yield name, getattr(value, name), object.__setattr__, value, name
