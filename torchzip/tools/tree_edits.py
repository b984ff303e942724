"""Edits of the object in a checkpoint: names of items, plain values, marks of tensors.

The object was made for this edit and belongs to it alone, so it is changed where it is: what is
one object in several places stays so.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from torchzip.checkpoint.lazy_tensor import LazyTensor, data_of, storages_of
from torchzip.checkpoint.names import module_parts
from torchzip.checkpoint.plain_values import is_container, same_value
from torchzip.checkpoint.walk import Walk, children, reach
from torchzip.dtypes import DTYPES
from torchzip.formats.base import Child
from torchzip.limits import Limits
from torchzip.tensors.persistent_ids import BareStorage
from torchzip.tensors.storage import TensorStorage
from torchzip.tools.edit_rules import EditRules, prefixes
from torchzip.types import ForeignObject, MetaTensor, NestedTensor, OtherTensor, Parameter

#: Whose gradient a file can speak of when they are not Parameters.
_WITH_GRADIENT = (LazyTensor, MetaTensor, NestedTensor)


class _Item(NamedTuple):
    """Something in a container. ``holder`` is the dict that it is an item of, if it is in one."""

    text: str
    holder: dict[Any, Any] | None
    key: Any
    value: Any


class _Known(NamedTuple):
    """What ``set_values`` speaks of, or a dict around it, and its path when all is done."""

    item: _Item
    new_path: str
    is_dropped: bool


@dataclass(slots=True)
class _Change:
    """What becomes of the items of one dict."""

    holder: dict[Any, Any]
    renames: dict[Any, Any] = field(default_factory=dict)
    gone: set[Any] = field(default_factory=set)

    def apply(self) -> None:
        if self.renames or self.gone:
            items = [
                (self.renames.get(key, key), value)
                for key, value in self.holder.items()
                if key not in self.gone
            ]
            self.holder.clear()
            for key, value in items:
                self.holder[key] = value


class _Frame(NamedTuple):
    """A container on one way to it; ``changes`` are those of its dicts, by their ids."""

    prefix: str
    new_prefix: str
    changes: dict[int, _Change]


class TreeEdit:
    """What the rules make of an object. `apply` changes it.

    ``renamed`` are pairs of paths, ``dropped`` and ``set`` paths.

    Raises
    ------
    ValueError
        If the rules ask for what cannot be.
    LimitError
        If the object has more paths than a file should have.
    """

    def __init__(self, root: Any, rules: EditRules, limits: Limits, pickle_nbytes: int) -> None:
        self.root = root
        self.renamed: list[tuple[str, str]] = []
        self.dropped: list[str] = []
        self.set: list[str] = []
        self._rules = rules
        self._limits = limits
        self._characters = limits.names_nbytes + 4 * pickle_nbytes
        self._changes: dict[int, tuple[str, _Change]] = {}
        # By new path: the old one, and whether a rule is about this very item.
        self._names: dict[str, tuple[str, bool]] = {}
        self._grads: dict[int, tuple[Any, bool, str]] = {}
        self._devices: dict[int, tuple[TensorStorage, str, str]] = {}
        self._values: list[tuple[dict[Any, Any], Any, Any]] = []
        self._wanted = prefixes(rules.values) | rules.values.keys()
        self._known: dict[str, _Known] = {}
        if _is_tensor(root):
            self._mark("", root)
        else:
            self._walk()
        for path, value in rules.values.items():
            self._set(path, value)

    # -- going over the object -----------------------------------------------------------------

    def _walk(self) -> None:
        containers = sum(1 for _ in reach(self.root, _containers_in))
        ways = containers + self._limits.shared_names + 1
        walk: Walk[_Frame] = Walk(self._limits, ways, self._characters)
        frames = [self._enter(walk, self.root, "", "")]
        for frame, (text, _, item) in walk:
            path = frame.prefix + text
            walk.charge(len(path))
            is_tensor = _is_tensor(item.value)
            has_items = not is_tensor and is_container(item.value)
            new_path = self._name(frame, item, path, has_items)
            if new_path is None:
                continue
            if is_tensor:
                self._mark(path, item.value)
            elif has_items and not walk.is_on_the_way(item.value):
                frames.append(self._enter(walk, item.value, f"{path}.", f"{new_path}."))
        for frame in frames:
            self._keep(frame)

    def _enter(self, walk: Walk[_Frame], value: Any, prefix: str, new_prefix: str) -> _Frame:
        items = list(_items(value))
        holders = [item.holder for item in items if item.holder is not None]
        frame = _Frame(prefix, new_prefix, {id(holder): _Change(holder) for holder in holders})
        walk.enter(value, [(item.text, "", item) for item in items], frame)
        return frame

    def _name(self, frame: _Frame, item: _Item, path: str, has_items: bool) -> str | None:
        """Return the new path of an item; None if it is dropped."""
        text = item.text
        is_dropped = False
        if item.holder is not None:
            is_dropped = self._rules.drops(path)
            found = None if is_dropped else self._rules.renames.of(path, is_container=has_items)
            is_dropped = found is None
            change = frame.changes[id(item.holder)]
            if found is None:
                change.gone.add(item.key)
                self.dropped.append(path)
            elif found != path:
                text = _last_part(frame, path, found)
                if text != item.text:
                    change.renames[item.key] = _new_key(item.key, text)
                    self.renamed.append((path, frame.new_prefix + text))
        new_path = frame.new_prefix + text
        if path in self._wanted:
            if path in self._known and path in self._rules.values:
                raise ValueError(f"two items are called {path!r}; neither can be set")
            self._known[path] = _Known(item, new_path, is_dropped)
        if is_dropped:
            return None
        if self._rules.changes_names:
            self._claim(new_path, path, is_new=text != item.text)
        return new_path

    def _claim(self, new_path: str, path: str, is_new: bool) -> None:
        """Take a name; ``is_new`` says that a rule gives it to this item.

        Two items may have had one name before. Then both keep it.
        """
        known = self._names.get(new_path)
        if known is not None and (known != (path, False) or is_new):
            raise ValueError(f"{known[0]!r} and {path!r} would both be called {new_path!r}")
        self._names[new_path] = (path, is_new)

    def _keep(self, frame: _Frame) -> None:
        for own, change in frame.changes.items():
            path, known = self._changes.setdefault(own, (frame.prefix, change))
            if (known.renames, known.gone) != (change.renames, change.gone):
                raise ValueError(
                    f"{path[:-1]!r} and {frame.prefix[:-1]!r} are one dict, and the rules change "
                    "it in two ways; give rules that say the same of both"
                )

    # -- tensors -------------------------------------------------------------------------------

    def _mark(self, name: str, tensor: Any) -> None:
        if _may_require_grad(tensor):
            wanted = self._rules.requires_grad_of(name)
            if wanted is not None:
                _, known, other = self._grads.setdefault(id(tensor), (tensor, wanted, name))
                if known != wanted:
                    raise ValueError(
                        f"{other!r} and {name!r} are one tensor; it cannot require a gradient "
                        "under one name only"
                    )
        storages = storages_of(tensor)
        tag = self._rules.device_of(name) if storages else None
        if tag is not None:
            for storage in storages:
                _, known_tag, other = self._devices.setdefault(id(storage), (storage, tag, name))
                if known_tag != tag:
                    raise ValueError(
                        f"{other!r} and {name!r} share one storage, which cannot be on {known_tag} "
                        f"and on {tag}"
                    )

    # -- values --------------------------------------------------------------------------------

    def _set(self, path: str, value: Any) -> None:
        known = self._known.get(path)
        if known is not None and not known.is_dropped:
            _, holder, key, old = known.item
            if holder is None:
                raise ValueError(f"{path!r} is not an item of a dict; only these can be set")
            if any(map(_is_tensor, reach(old, children))):
                raise ValueError(f"{path!r} is or holds a tensor; a value cannot take its place")
            if not same_value(old, value):
                _, change = self._changes[id(holder)]
                self._values.append((holder, change.renames.get(key, key), value))
                self.set.append(path)
            return
        holder, key, new_path = self._place_of_new(path)
        self._claim(new_path, f"{path} (new)", is_new=True)
        self._values.append((holder, key, value))
        self.set.append(path)

    def _place_of_new(self, path: str) -> tuple[dict[Any, Any], str, str]:
        """Return the innermost dict that there is for a new item, its key, and its new path."""
        parent = path
        while "." in parent:
            parent = parent.rpartition(".")[0]
            known = self._known.get(parent)
            if known is None:
                continue
            holder = known.item.value
            if known.is_dropped or not isinstance(holder, dict):
                what = "dropped" if known.is_dropped else "not a dict"
                raise ValueError(f"{path!r} cannot be set, as {parent!r} is {what}")
            key = path[len(parent) + 1 :]
            return holder, key, f"{known.new_path}.{key}"
        if not isinstance(self.root, dict):
            raise ValueError(f"{path!r} cannot be set, as the object in the file is not a dict")
        return self.root, path, path

    # -- the end -------------------------------------------------------------------------------

    def apply(self, storages: Iterable[TensorStorage]) -> tuple[int, list[TensorStorage]]:
        """Change the object; return how many tensors were marked, and the storages retagged.

        ``storages`` are all that the file has, for a device that is that of all.
        """
        for _, change in self._changes.values():
            change.apply()
        for holder, key, value in self._values:
            holder[key] = value
        marked = sum(
            _set_requires_grad(tensor, wanted) for tensor, wanted, _ in self._grads.values()
        )
        tags = [(storage, tag) for storage, tag, _ in self._devices.values()]
        if self._rules.device is not None:
            tags = [(storage, self._rules.device) for storage in storages]
        moved = [storage for storage, tag in tags if storage.location != tag]
        for storage, tag in tags:
            storage.location = tag
        return marked, moved


def _items(container: Any) -> Iterator[_Item]:
    """Yield what a container holds, by the names that `Checkpoint` gives."""
    if isinstance(container, dict):
        for (text, _, value), key in zip(children(container), list(container), strict=True):
            yield _Item(text, container, key, value)
        return
    parts = module_parts(container) if isinstance(container, ForeignObject) else None
    holders: list[Any] = []
    if isinstance(container, ForeignObject):
        state = container.state
        holders = [state, container.items, container.kwargs]
        if parts is not None and isinstance(state, dict):
            holders = [state.get(name) for name in ("_parameters", "_buffers", "_modules")]
    for text, _, value in children(container) if parts is None else parts:
        holder = next(
            (each for each in holders if isinstance(each, dict) and each.get(text) is value), None
        )
        yield _Item(text, holder, text, value)


def _containers_in(value: Any) -> list[Child]:
    return [
        (item.text, "", item.value)
        for item in _items(value)
        if not _is_tensor(item.value) and is_container(item.value)
    ]


def _last_part(frame: _Frame, path: str, new: str) -> str:
    """Return the new name of an item in its container, which it cannot leave."""
    for prefix in (frame.new_prefix, frame.prefix):
        if new.startswith(prefix):
            return new[len(prefix) :]
    raise ValueError(
        f"{path!r} would become {new!r} and so leave {frame.new_prefix[:-1]!r}, the container that "
        "it is in; `torchzip convert` can do that"
    )


def _new_key(old: Any, text: str) -> Any:
    """Return the key of a name: an int where there was one, if it is one."""
    if type(old) is int and text.isascii() and len(text) < 20:
        digits = text.removeprefix("-")
        if digits.isdecimal() and str(int(text)) == text:
            return int(text)
    return text


# -- tensors and their storages ------------------------------------------------------------------


def _is_tensor(value: Any) -> bool:
    return isinstance(data_of(value), LazyTensor | OtherTensor | BareStorage)


def _may_require_grad(tensor: Any) -> bool:
    """Return whether torch lets a tensor require a gradient, and the file can say so."""
    held = data_of(tensor)
    if isinstance(held, BareStorage) or not isinstance(tensor, (*_WITH_GRADIENT, Parameter)):
        return False
    if isinstance(tensor, NestedTensor) and tensor.layout == "strided":
        return False
    row = DTYPES.get(held.torch_dtype)
    return row is not None and row.kind in ("float", "complex")


def _set_requires_grad(tensor: Any, wanted: bool) -> bool:
    """Mark a tensor; return whether it was marked otherwise."""
    if bool(tensor.requires_grad) == wanted:
        return False
    for each in (tensor, tensor.data) if isinstance(tensor, Parameter) else (tensor,):
        if isinstance(each, LazyTensor):
            each.spec = each.spec.replace(requires_grad=wanted)
        elif isinstance(each, Parameter | OtherTensor):
            # Frozen for its users; nobody else has this one yet.
            object.__setattr__(each, "requires_grad", wanted)
    return True
