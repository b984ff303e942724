"""The object around the tensors, as one JSON text in the metadata of a safetensors file.

safetensors holds tensors by name and nothing else. What a checkpoint has besides (containers, the
``_metadata`` of a state dict, the step of an optimizer, that a tensor is a Parameter) stands under
the key `OBJECT_KEY`, and `torchzip.convert.restored` makes the object again from it. Other readers
of the file see a string that they do not ask for.

docs/format.md, section 11.8, describes the text: JSON in which an object of one key stands for a
container, a tensor of the file or another value (`carried_kinds`), and in which what there are two
ways to is listed apart, so that it comes back as one object.

What has no form there (objects of other classes, bare storages, structured arrays) is left out of
its dict or set; in a list or tuple null stands for it. An object of another class that has tensors
inside, such as a pickled module in a dict, comes back as a dict of these by their names below it.
"""

from __future__ import annotations

import json
from bisect import bisect_left
from collections import OrderedDict, deque
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from torchzip.checkpoint.lazy_tensor import LazyTensor
from torchzip.checkpoint.walk import Label, Way, items_of, key_text, shared
from torchzip.container.json_objects import check_containers, is_plain_text
from torchzip.convert.carried_kinds import (
    CONTAINERS,
    Node,
    NotCarriedError,
    are_json,
    write_value,
)
from torchzip.errors import LimitError, PickleError, UnsupportedError
from torchzip.formats.base import Child
from torchzip.limits import DEFAULT_LIMITS, Limits
from torchzip.pickling.keys import KeyCheck
from torchzip.tensors.specs import TensorSpec, contiguous_stride, is_contiguous, is_dense
from torchzip.types import Dtype, ForeignObject, Layout, OtherTensor, Parameter, QScheme

#: The key of the text in the metadata.
OBJECT_KEY = "torchzip.object"

#: Values within values that are written in place; one takes up to three levels of JSON, and a few
#: calls here. Python's reader of JSON has some 900 levels.
_INLINE_DEPTH = 32
_PATH_LENGTH = 300

#: The name in the file of a tensor, or of an array of numpy; None if it is not there.
NameOf = Callable[[Any], str | None]


@dataclass(frozen=True, slots=True)
class Carried:
    """``text`` is the object as JSON; ``lost`` says what is not in it, as "path: what and why".

    A text of None: nothing was carried, and ``lost`` is empty unless it says why.
    """

    text: str | None = None
    lost: list[str] = field(default_factory=list)


def carry(
    root: Any,
    name_of: NameOf,
    *,
    names: Collection[str] = (),
    listed: Collection[int] = (),
    in_file: Sequence[str] | None = None,
    limits: Limits | None = None,
) -> Carried:
    """Return the JSON of the object of a lazy checkpoint, with its tensors by their names.

    ``name_of`` returns the name that a tensor has in the file, None if it is not written; and that
    of the tensor for an array of numpy, None for one whose values are to be in the text. ``names``
    are those of all tensors that are written, in the checkpoint and in the file; they
    say what is below an object of another class. Tensors that are not dense (`types.OtherTensor`),
    and objects whose ids are in ``listed``, are left out without a line in ``lost``, because the
    caller has said what there is to say of them. ``in_file`` are the names in the order in which
    a reader of the file gets them.

    The text is None in three cases. A plain dict of ordinary tensors by their names, in that order,
    is what any reader makes of the file. An object that is itself of another class (a pickled
    module) has nothing around its tensors that could be carried: the caller lists what it has, as
    if there was no `carry`. And a string that is too long for a header is not written, which
    ``lost`` says.

    Reads no tensor data. What is deeper than ``limits.nesting`` is lost.
    """
    limits = limits if limits is not None else DEFAULT_LIMITS
    if isinstance(root, ForeignObject):
        return Carried()
    if _is_state_dict(root, name_of):
        return carry_order(list(root), in_file, limits)
    writer = _Writer(root, name_of, names, listed, limits)
    try:
        node = writer.write()
        if node is _LOST:
            return Carried()
        made = {"root": node, "shared": writer.table} if writer.table else {"root": node}
        return Carried(_text_of(made, limits), writer.lost)
    except LimitError as error:
        return _too_much("the object around the tensors", error)


def carry_order(names: list[str], in_file: Sequence[str] | None, limits: Limits) -> Carried:
    """Return the JSON of a plain dict of tensors by their names, if the file has another order."""
    if in_file is None or names == list(in_file):
        return Carried()
    try:
        return Carried(_text_of({"root": {"tensors": names}}, limits))
    except LimitError as error:
        return _too_much("the order of the tensors", error)


def _too_much(what: str, error: LimitError) -> Carried:
    line = f"{what}: as JSON, {error.limit} would be {error.actual:,}, past {error.bound:,}"
    return Carried(None, [line])


def _text_of(made: Node, limits: Limits) -> str:
    """Return the JSON of all that is carried; raise LimitError if no header has room for it."""
    text = _to_json(made)
    raw = text.encode("utf-8", "surrogatepass")  # as names may have, which the header refuses
    # It is quoted once more as a string of the header, and shares that with the tensors.
    nbytes, most = len(raw) + text.count('"'), limits.header_nbytes // 2
    if nbytes > most:
        raise LimitError("header_nbytes", nbytes, most)
    check_containers(raw, limits, "")
    return text


#: Gives JSON without blanks.
_to_json = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


def _is_state_dict(root: Any, name_of: NameOf) -> bool:
    return type(root) is dict and all(
        type(key) is str and type(value) is LazyTensor and _is_ordinary(value.spec)
        and name_of(value) == key
        for key, value in root.items()
    )  # fmt: skip


def _is_ordinary(spec: TensorSpec) -> bool:
    return not (
        spec.is_parameter or spec.requires_grad or spec.subclass is not None
    ) and (
        is_contiguous(spec.shape, spec.stride) or not is_dense(spec.shape, spec.stride)
    )  # fmt: skip


#: Stand for the JSON of a value that has none, and of one with others inside.
_LOST: Any = object()
_HAS_PARTS: Any = object()
_WITH_ITEMS = frozenset(row.type for row in CONTAINERS.values())


@dataclass
class _Writer:
    """Writes one object. ``table`` is the list of shared values, ``lost`` what is not carried.

    Values are written in place within each other down to a small depth, and below that as entries
    of the table, one after the other: so no depth is too much for Python's stack.
    """

    root: Any
    name_of: NameOf
    names: Collection[str]
    listed: Collection[int]
    limits: Limits
    table: list[Node] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._keys = KeyCheck()
        # A key takes more bytes as JSON than in any file that it can come from.
        self._keys.allow(self.limits, self.limits.header_nbytes)
        self._nbytes = 0
        self._shared = shared(self.root, _carried_parts)
        self._places: dict[int, int] = {}  # in the table, by the id of a value
        #: Places that are still to be filled, with the value, its way and its depth.
        self._jobs: deque[tuple[int, Any, Way | None, int]] = deque()
        #: The depth of what is in no other value: the root, or an entry of the table.
        self._top = 0

    def write(self) -> Node:
        """Return the JSON of the object; `_LOST` if it has none."""
        node = self._node(self.root, None, 1)
        while self._jobs:
            place, value, way, self._top = self._jobs.popleft()
            self.table[place] = self._with_parts(value, way, self._top)
        return node

    def _node(self, value: Any, way: Way | None, depth: int) -> Node:
        """Return the JSON of a value, `_LOST` if it has none."""
        place = self._places.get(id(value))
        if place is not None:
            return {"shared": place}
        made = self._without_parts(value, way, depth)
        is_deep = made is _HAS_PARTS and depth - self._top >= _INLINE_DEPTH
        if made is _LOST or not (is_deep or id(value) in self._shared):
            return self._with_parts(value, way, depth) if made is _HAS_PARTS else made
        place = self._places[id(value)] = len(self.table)
        self.table.append(made)
        if made is _HAS_PARTS:
            self._jobs.append((place, value, way, depth))
        return {"shared": place}

    def _charge(self, nbytes: int) -> None:
        """Count what is written: one value may be in many places."""
        self._nbytes += nbytes
        most = self.limits.header_nbytes // 2
        if self._nbytes > most:
            raise LimitError("header_nbytes", self._nbytes, most)

    def _without_parts(self, value: Any, way: Way | None, depth: int) -> Node:
        """Return the JSON of a value with none inside, `_HAS_PARTS`, or `_LOST`."""
        held = value.data if type(value) is Parameter else value
        try:
            if isinstance(held, ForeignObject):
                made = self._foreign(held, way)
            elif isinstance(held, OtherTensor) or id(held) in self.listed:
                made = _LOST
            elif type(held) is LazyTensor:
                if self.name_of(held) is None:
                    raise NotCarriedError("a tensor that the state dict does not name")
                return _HAS_PARTS
            elif isinstance(held, np.ndarray) and (name := self.name_of(held)) is not None:
                made = {"tensor": name}
            elif type(value) in _WITH_ITEMS:
                if depth > self.limits.nesting:
                    raise NotCarriedError(f"nested more than {self.limits.nesting:,} deep")
                return _HAS_PARTS
            else:
                made = write_value(value, self.limits)
        except NotCarriedError as error:
            self._lose(way, str(error))
            made = _LOST
        if made is not _LOST:
            self._charge(len(_to_json(made)))
        return made

    def _with_parts(self, value: Any, way: Way | None, depth: int) -> Node:
        """Return the JSON of a container or a tensor."""
        if isinstance(value, LazyTensor | Parameter):
            return self._tensor(value, way, depth + 1)
        self._charge(2 * len(value))
        if isinstance(value, dict):
            body = self._mapping(value, way, depth + 1)
        elif isinstance(value, set | frozenset):
            made = [self._key(item, way) for item in value]
            body = _in_order([item for item in made if item is not _LOST])
        else:
            body = self._sequence(value, way, depth + 1)
        if type(value) is list:
            return body
        tag = type(value).__name__
        node: dict[str, Node] = {tag: body}
        for option, get in CONTAINERS[tag].options.items():
            held = get(value)
            if option == "attributes":
                held = self._attributes(held, way, depth + 1)
            if held is not None:
                node[option] = held
        return node

    # -- containers ------------------------------------------------------------------------

    def _sequence(self, value: Any, way: Way | None, depth: int) -> Node:
        if are_json(value):  # a million losses are not looked at one by one
            self._charge(_text_nbytes(value))
            return list(value)
        items: list[Node] = []
        for index, item in enumerate(value):
            known = len(self.lost)
            made = self._node(item, Way(way, str(index)), depth)
            if made is _LOST:
                self.lost[known:] = [f"{line}; None stands for it" for line in self.lost[known:]]
            items.append(None if made is _LOST else made)
        return items

    def _mapping(self, value: Any, way: Way | None, depth: int) -> Node:
        if {str}.issuperset(map(type, value)) and are_json(value) and are_json(value.values()):
            self._charge(_text_nbytes(value) + _text_nbytes(value.values()))
            return dict(value)
        pairs: list[tuple[Node, Node]] = []
        for key, item in value.items():
            step = Way(way, key_text(key))
            made_key = self._key(key, step)
            if made_key is not _LOST:
                made = self._node(item, step, depth)
                if made is not _LOST:
                    pairs.append((made_key, made))
        return _items(pairs)

    def _attributes(self, value: dict[Any, Any], way: Way | None, depth: int) -> Node | None:
        """Return the JSON of what hangs on a container; None if there is nothing."""
        made = {}
        for key, item in value.items():
            step = Way(way, Label(key_text(key)))
            if not is_plain_text(key):
                self._lose(step, "an attribute whose name is not a string")
            elif (node := self._node(item, step, depth)) is not _LOST:
                made[key] = node
        return made or None

    def _key(self, key: Any, way: Way | None) -> Node:
        if type(key) is str and is_plain_text(key):
            self._charge(len(key))
            return key
        try:
            self._keys(key)
            made = self._key_node(key)
        except NotCarriedError as error:
            self._lose(way, f"its key: {error}")
        except (LimitError, PickleError, UnsupportedError) as error:
            self._lose(way, f"its key: {error.message}")
        else:
            self._charge(len(_to_json(made)))
            return made
        return _LOST

    def _key_node(self, key: Any) -> Node:
        """Return the JSON of a key, which `KeyCheck` has found to be small and not deep."""
        if type(key) not in (tuple, frozenset):
            return write_value(key, self.limits)
        items = [self._key_node(item) for item in key]
        return {type(key).__name__: items if type(key) is tuple else _in_order(items)}

    # -- tensors and objects ---------------------------------------------------------------

    def _tensor(self, value: LazyTensor | Parameter, way: Way | None, depth: int) -> Node:
        tensor = value.data if isinstance(value, Parameter) else value
        spec: TensorSpec = tensor.spec
        name = self.name_of(tensor) or ""
        state: Any = None
        requires_grad = spec.requires_grad
        is_parameter = spec.is_parameter
        if isinstance(value, Parameter):
            is_parameter, requires_grad, state = True, value.requires_grad, value.state
        node: dict[str, Node] = {"parameter" if is_parameter else "tensor": name}
        if requires_grad is not is_parameter:
            node["requires_grad"] = bool(requires_grad)
        if spec.stride != contiguous_stride(spec.shape) and is_dense(spec.shape, spec.stride):
            node["stride"] = list(spec.stride)
        self._charge(len(_to_json(node)))
        held = {} if state is None else {"state": state}
        if is_plain_tensor(spec.subclass):
            held = {"attributes": spec.attributes, **held}
        elif spec.subclass is not None:
            what = f"{_name_of_class(spec.subclass)}, with its state"
            self._lose(Way(way, Label("class")), what)
        for option, attributes in held.items():
            made = self._node(attributes, Way(way, Label("attributes")), depth)
            if made is not _LOST:
                node[option] = made
        return node

    def _foreign(self, value: ForeignObject, way: Way | None) -> Node:
        """Return a dict of the tensors below an object that is not carried."""
        below = self._below(way)
        what = f"{_name_of_class(value)} cannot be held by JSON"
        if not below:
            if id(value) in self.listed:
                return _LOST
            raise NotCarriedError(what)
        if id(value) not in self.listed:
            self._lose(way, f"{what}; a dict of its tensors stands for it")
        pairs = [(write_value(key, self.limits), {"tensor": name}) for key, name in below.items()]
        return {"dict": _items(pairs)}

    def _below(self, way: Way | None) -> dict[str, str]:
        """Return the names of the tensors below a value, by what follows on its way in them.

        None is below an attribute: it is not on the way to any name.
        """
        keys = []
        while way is not None:
            if isinstance(way.key, Label):
                return {}
            keys.append(way.key)
            way = way.before
        prefix = ".".join(reversed(keys)) + "."
        first = bisect_left(self._sorted_names, prefix)
        stop = bisect_left(self._sorted_names, prefix[:-1] + "/")  # what follows on a dot
        return {name[len(prefix) :]: name for name in self._sorted_names[first:stop]}

    @cached_property
    def _sorted_names(self) -> list[str]:
        return sorted(self.names)

    def _lose(self, way: Way | None, why: str) -> None:
        place = ""
        while way is not None and len(place) < _PATH_LENGTH:
            key, is_label, way = way.key[:_PATH_LENGTH], isinstance(way.key, Label), way.before
            place = (f" ({key})" if is_label else f".{key}") + place
        if way is not None:
            place = f"...{place}"
        elif not place:
            place = "the object itself"
        else:
            place = place[1:] if place[0] == "." else f"the root{place}"
        self.lost.append(f"{place}: {why}")


def is_plain_tensor(subclass: ForeignObject | None) -> bool:
    """Return whether the class of a tensor with attributes is that of all tensors."""
    return (
        subclass is not None
        and subclass.how == "name"
        and (subclass.module, subclass.name) == ("torch", "Tensor")
    )


def _name_of_class(value: ForeignObject) -> str:
    return f"{value.module}.{value.name}"[:_PATH_LENGTH]


def _text_nbytes(values: Iterable[Any]) -> int:
    return sum([len(value) for value in values if type(value) is str])


def _in_order(items: list[Node]) -> list[Node]:
    """Return the items of a set, which has the order of hashes: they differ with each process."""
    return sorted(items, key=_to_json)


def _items(pairs: list[tuple[Node, Node]]) -> Node:
    if all(type(key) is str for key, _ in pairs):
        return dict(pairs)
    return [[key, item] for key, item in pairs]


#: What is equal wherever it stands, or is only a name; and what is not carried as it is.
_ANONYMOUS = frozenset(
    [type(None), bool, int, float, complex, str, bytes, Dtype, Layout, QScheme, ForeignObject]
)


def _carried_parts(value: Any) -> Iterable[Child]:
    """Return the parts of a value that are carried and can be in several places.

    A state is one value here, and not what is in it.
    """
    held: list[Any] = []
    if type(value) in _WITH_ITEMS:
        held += items_of(value)
    if type(value) is OrderedDict:
        held += vars(value).values()
    if type(value) is Parameter:
        held.append(value.state)
        value = value.data
        held += [value] if type(value) is Parameter else []
    if type(value) is LazyTensor and is_plain_tensor(value.spec.subclass):
        held.append(value.spec.attributes)
    return [
        ("", "", part)
        for part in held
        if type(part) not in _ANONYMOUS and not (type(part) is tuple and not part)
    ]
