"""The object around the tensors, as one JSON text in the metadata of a safetensors file.

safetensors holds tensors by name and nothing else. What a checkpoint has besides (containers, the
``_metadata`` of a state dict, the step of an optimizer, that a tensor is a Parameter) stands under
the key `OBJECT_KEY`, and `torchzip.convert.restored` makes the object again from it. Other readers
of the file see a string that they do not ask for.

The text is ``{"root": value, "shared": [value, ...]}``, without ``"shared"`` if that is empty. A
value is

* null, true, false, a string, a list: itself. A number: an int of up to 64 bits, or a float, which
  always has a point or an exponent;
* an object: exactly one of its keys is a kind of the tables below and holds the body; the other
  keys are options of that kind. An option that stands for what is usual is left out.

=================  ==============================================================================
``tensor``         the tensor of that name in the file. ``stride``: its stride in elements, if it is
                   not that of C order; its elements lie in the file in C order all the same. The
                   strides are those of a permutation of axes (``channels_last``, a transposed
                   weight), without gaps. ``requires_grad``: true for a leaf that is not a
                   Parameter. ``attributes``: its Python attributes, a value
``parameter``      an ``nn.Parameter`` over the tensor of that name; options as above, but
                   ``requires_grad`` is true if left out, and ``state``: its Python attributes
``dict``           ``{"key": value, ...}`` if all keys are strings, else ``[[key, value], ...]``, in
                   order. Keys are values too
``tensors``        a list of names: a dict from each to the tensor of that name, if the file has it.
                   For a state dict that has another order than the file
``OrderedDict``    likewise. ``attributes``: ``{"_metadata": value, ...}``
``defaultdict``    likewise. ``factory``: the name of the type that makes its values
``Counter``        likewise
``deque``          a list of values. ``maxlen``: an int
``tuple``          a list of values
``set``            a list of values, ``frozenset`` likewise; sorted by their JSON
``shared``         an int: the value at this place of the list ``"shared"``
=================  ==============================================================================

A list, dict, tensor or other object to which there are two ways is in ``"shared"``, so it comes
back as one object; one that contains itself does too. (Numbers, strings, bytes and dtypes do not.)
So does what lies too deep for its own place: the text itself is nested no deeper than a
reader of JSON with a stack of a few hundred levels takes.

Values that hold no others (`carried_kinds`):

====================  ===========================================================================
``int``               ``"-0x1f"``, of more than 64 bits
``float``             ``"nan"``, ``"inf"``, ``"-inf"``
``str``               base64 of its UTF-8, with surrogates as three bytes each; only for a string
                      that has surrogates, which JSON may not keep
``bytes``             base64; ``bytearray`` likewise
``complex``           [real part, imaginary part]
``range``             [start, stop, step]; ``slice`` likewise, of ints and null
``datetime``          ISO 8601 without a zone. ``tzinfo``: a ``timezone``; ``fold``: 1. ``time``
                      likewise; ``date``
``timedelta``         [days, seconds, microseconds]
``timezone``          the same, of its offset. ``name``: a string
``Decimal``           its text
``Fraction``          [numerator, denominator]
``PosixPath``         its text; also ``WindowsPath``, ``PurePosixPath``, ``PureWindowsPath``
``numpy.scalar``      base64 of its bytes. ``dtype``: the code of numpy (``"<f8"``), or the name of
                      one of ml_dtypes
``numpy.array``       base64 of its elements, for an array that numpy pickled. ``dtype`` as above,
                      ``shape``, ``order``: ``"F"`` if the elements are in Fortran's order
``numpy.dtype``       such a code or name
``torch.Size``        a list of ints
``torch.dtype``       ``"float16"``; likewise ``torch.layout``, ``torch.qscheme``
``torch.device``      ``"cuda"``. ``index``: an int
====================  ===========================================================================

What has no form here (objects of other classes, bare storages, structured arrays) is left out of
its dict or set; in a list or tuple null stands for it, so that the others keep their places. An
object of another class that has tensors inside, such as a pickled module in a dict, comes back as
a dict of these by their names below it.
"""

from __future__ import annotations

import json
from bisect import bisect_left
from collections import OrderedDict, deque
from collections.abc import Callable, Collection, Generator, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from types import GeneratorType
from typing import Any

import numpy as np

from torchzip.checkpoint.lazy_tensor import LazyTensor
from torchzip.checkpoint.walk import is_plain, items_of, key_text, reach, shared
from torchzip.convert.carried_kinds import (
    CONTAINERS,
    Node,
    NotCarriedError,
    are_json,
    is_plain_text,
    write_value,
)
from torchzip.errors import LimitError, PickleError, UnsupportedError
from torchzip.formats.base import Child
from torchzip.limits import Limits
from torchzip.pickling.keys import KeyCheck
from torchzip.tensors.specs import TensorSpec, contiguous_stride, is_contiguous
from torchzip.types import Dtype, ForeignObject, Layout, OtherTensor, Parameter, QScheme

#: The key of the text in the metadata.
OBJECT_KEY = "torchzip.object"

#: Values within values that are written in place. One takes up to three levels of JSON, and
#: Python's reader of JSON has some 900 of them.
_INLINE_DEPTH = 32
_PATH_LENGTH = 300

#: Whose items are counted before anything is written.
_COUNTED = (dict, list, tuple)

NameOf = Callable[[LazyTensor], str | None]
#: A step of a path: the path before, a key, and whether it is the name of an attribute.
_Path = tuple[Any, Any, bool] | None
#: A value, its path, and whether it is in a sequence.
_Asked = tuple[Any, _Path, bool]
#: Asks for the JSON of the values inside, and returns its own.
_Writing = Generator[_Asked, Any, Node]


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
    is_listed: Callable[[Any], bool] = lambda value: isinstance(value, OtherTensor),
    name_of_array: Callable[[Any], str | None] = lambda array: None,
    in_file: Sequence[str] | None = None,
    limits: Limits | None = None,
) -> Carried:
    """Return the JSON of the object of a lazy checkpoint, with its tensors by their names.

    ``name_of`` returns the name that a tensor has in the file, None if it is not written.
    ``names`` are those of all tensors that are written, in the checkpoint and in the file; they
    say what is below an object of another class. Values for which ``is_listed`` is true are left
    out without a line in ``lost``, because the caller has said what there is to say of them: the
    kinds of tensors that are not dense (`types.OtherTensor`, which is what it is by default), and
    tensors of classes of their own. It is not asked about containers. ``name_of_array`` returns
    the name of the tensor in the file for an array of numpy, and None for one whose
    values are to be in the text. ``in_file`` are the names in the order in which a reader of the
    file gets them.

    The text is None in three cases. A plain dict of ordinary tensors by their names, in that order,
    is what any reader makes of the file. An object that is itself of another class (a pickled
    module) has nothing around its tensors that could be carried: the caller lists what it has, as
    if there was no `carry`. And a string that is too long for a header is not written, which
    ``lost`` says.

    Reads no tensor data. Does not recurse, whatever the depth of the object: what is deeper than
    ``limits.nesting`` is lost.
    """
    limits = limits if limits is not None else Limits()
    if isinstance(root, ForeignObject):
        return Carried()
    if _is_state_dict(root, name_of):
        return carry_order(list(root), in_file, limits)
    most = limits.header_nbytes // 2
    if _count(root) > most // 2:  # a value takes two characters at least
        return Carried(None, [f"the object around the tensors: more than {most:,} bytes as JSON"])
    writer = _Writer(root, name_of, names, is_listed, name_of_array, limits)
    node = writer.write()
    if node is _LOST:
        return Carried()
    made = {"root": node, "shared": writer.table} if writer.table else {"root": node}
    return _text_of(made, "the object around the tensors", writer.lost, limits)


def carry_order(names: list[str], in_file: Sequence[str] | None, limits: Limits) -> Carried:
    """Return the JSON of a plain dict of tensors by their names, if the file has another order."""
    if in_file is None or names == list(in_file):
        return Carried()
    return _text_of({"root": {"tensors": names}}, "the order of the tensors", [], limits)


def _text_of(made: Node, what: str, lost: list[str], limits: Limits) -> Carried:
    """Return the JSON of all that is carried, unless it is too long for a header."""
    most = limits.header_nbytes // 2
    if _is_longer(made, most):
        return Carried(None, [f"{what}: more than {most:,} bytes as JSON"])
    text = _to_json(made)
    for unit, actual, bound in (
        # It is quoted once more as a string of the header, and shares that with the tensors.
        # The name of a tensor may have surrogates, which the header refuses.
        ("bytes", len(text.encode("utf-8", "surrogatepass")) + text.count('"'), most),
        ("lists and dicts", *containers_in(text, limits)),
    ):
        if actual > bound:
            return Carried(None, [f"{what}: {actual:,} {unit} as JSON, more than {bound:,}"])
    return Carried(text, lost)


def containers_in(text: str, limits: Limits) -> tuple[int, int]:
    """Return how many lists and objects a JSON string has at most, and how many it may have."""
    return text.count("[") + text.count("{"), limits.containers + len(text) // 8


def _is_longer(node: Node, most: int) -> bool:
    """Return whether the strings and numbers alone are longer: one may be in many places."""
    todo = [node]
    while todo and most >= 0:
        part = todo.pop()
        parts = [*part, *part.values()] if isinstance(part, dict) else part
        most -= sum([len(each) for each in parts if type(each) is str])
        most -= sum([each.bit_length() >> 2 for each in parts if type(each) is int])
        todo += [each for each in parts if type(each) in (dict, list)]
    return most < 0


def _to_json(node: Node) -> str:
    """Return JSON without blanks."""
    return json.dumps(node, ensure_ascii=False, separators=(",", ":"))


def _count(root: Any) -> int:
    """Return how many items all lists and dicts have together, each counted once."""
    return sum(len(value) for value in reach(root, _holders) if isinstance(value, _COUNTED))


def _holders(value: Any) -> Iterable[Child]:
    if not isinstance(value, _COUNTED) or is_plain(value):
        return ()
    return [("", "", item) for item in items_of(value) if isinstance(item, _COUNTED)]


def is_dense(shape: tuple[int, ...], stride: tuple[int, ...]) -> bool:
    """Return whether the elements lie without gaps, and none twice, in some order of the axes.

    >>> is_dense((2, 3), (1, 2)), is_dense((2, 3), (1, 3)), is_dense((2, 3), (0, 1))
    (True, False, False)
    """
    axes = sorted(zip(stride, shape, strict=True), reverse=True)
    return is_contiguous(tuple(size for _, size in axes), tuple(step for step, _ in axes))


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


def drive(first: Generator[Any, Any, Any], start: Callable[[Any, int], Any]) -> Any:
    """Run a generator, and those of the values that it asks for; no call nests.

    ``start`` gets what one of them yields, and how many are under way. It returns the value that
    was asked for, or the generator that makes it.
    """
    stack = [first]
    sent: Any = None
    while stack:
        try:
            asked = stack[-1].send(sent)
        except StopIteration as stop:
            stack.pop()
            sent = stop.value
            continue
        sent = start(asked, len(stack))
        if type(sent) is GeneratorType:
            stack.append(sent)
            sent = None
    return sent


#: Stands for the JSON of a value that has none.
_LOST: Any = object()
_WITH_ITEMS = frozenset([list, *(row.type for row in CONTAINERS.values())])


@dataclass
class _Writer:
    """Writes one object. ``table`` is the list of shared values, ``lost`` what is not carried."""

    root: Any
    name_of: NameOf
    names: Collection[str]
    is_listed: Callable[[Any], bool]
    name_of_array: Callable[[Any], str | None]
    limits: Limits
    table: list[Node] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._keys = KeyCheck()
        # A key takes more bytes as JSON than in any file that it can come from.
        self._keys.allow(self.limits, self.limits.header_nbytes)
        self._shared = shared(self.root, _carried_parts)
        self._places: dict[int, int] = {}  # in the table, by the id of a value
        self._jobs: deque[tuple[int, _Writing, int]] = deque()

    def write(self) -> Node:
        """Return the JSON of the object; `_LOST` if it has none."""

        def start() -> _Writing:
            return (yield self.root, None, False)

        node = self._drive(start(), 0)
        while self._jobs:
            place, writing, depth = self._jobs.popleft()
            self.table[place] = self._drive(writing, depth)
        return node

    def _drive(self, writing: _Writing, depth: int) -> Node:
        return drive(writing, lambda asked, inline: self._node(asked, depth + inline, inline))

    def _node(self, asked: _Asked, depth: int, inline: int) -> Any:
        """Return the JSON of a value, or the generator that writes it."""
        value, path, in_sequence = asked
        place = self._places.get(id(value))
        if place is not None:
            return {"shared": place}
        try:
            made = self._start(value, path, depth)
        except NotCarriedError as error:
            self._lose(path, f"{error}{'; None stands for it' if in_sequence else ''}")
            return _LOST
        writes = type(made) is GeneratorType
        if made is _LOST or (
            id(value) not in self._shared and not (writes and inline >= _INLINE_DEPTH)
        ):
            return made
        place = self._places[id(value)] = len(self.table)
        self.table.append(None if writes else made)
        if writes:
            self._jobs.append((place, made, depth))
        return {"shared": place}

    def _start(self, value: Any, path: _Path, depth: int) -> Any:
        """Return the JSON of a value, or the generator that writes it, or `_LOST` without a line.

        Raises
        ------
        NotCarriedError
            If the value is lost. What is started is never lost as a whole.
        """
        held = value.data if type(value) is Parameter else value
        if isinstance(held, ForeignObject):
            return self._foreign(held, path)
        if isinstance(held, LazyTensor | OtherTensor) and self.is_listed(held):
            return _LOST
        if type(held) is LazyTensor:
            name = self.name_of(held)
            if name is None:
                raise NotCarriedError("a tensor that the state dict does not name")
            return self._tensor(value, held.spec, name, path)
        if isinstance(held, OtherTensor):
            raise NotCarriedError(f"a {held.kind.replace('_', ' ')} tensor")
        if isinstance(held, np.ndarray):
            name = self.name_of_array(held)
            if name is not None:
                return {"tensor": name}
        if type(value) not in _WITH_ITEMS:
            return write_value(value, self.limits)
        if depth > self.limits.nesting:
            raise NotCarriedError(f"nested more than {self.limits.nesting:,} deep")
        return self._container(value, path)

    # -- containers ------------------------------------------------------------------------

    def _container(self, value: Any, path: _Path) -> _Writing:
        if isinstance(value, dict):
            body = yield from self._mapping(value, path, are_attributes=False)
        elif isinstance(value, set | frozenset):
            made = [self._key(item, path) for item in value]
            body = _in_order([item for item in made if item is not _LOST])
        else:
            body = yield from self._sequence(value, path)
        if type(value) is list:
            return body
        tag = type(value).__name__
        node: dict[str, Node] = {tag: body}
        for option, get in CONTAINERS[tag].options.items():
            held = get(value)
            if option == "attributes":
                held = (yield from self._mapping(held, path, are_attributes=True)) or None
            if held is not None:
                node[option] = held
        return node

    def _sequence(self, value: Any, path: _Path) -> _Writing:
        if are_json(value):  # a million losses are not asked for one by one
            return list(value)
        items: list[Node] = []
        for index, item in enumerate(value):
            made = yield item, (path, index, False), True
            items.append(None if made is _LOST else made)
        return items

    def _mapping(self, value: Any, path: _Path, *, are_attributes: bool) -> _Writing:
        if {str}.issuperset(map(type, value)) and are_json(value) and are_json(value.values()):
            return dict(value)
        pairs: list[tuple[Node, Node]] = []
        for key, item in value.items():
            step = (path, key, are_attributes)
            if are_attributes and not is_plain_text(key):
                self._lose(step, "an attribute whose name is not a string")
                continue
            made_key = self._key(key, step)
            if made_key is not _LOST:
                made = yield item, step, False
                if made is not _LOST:
                    pairs.append((made_key, made))
        return _items(pairs)

    def _key(self, key: Any, path: _Path) -> Node:
        if type(key) is str and is_plain_text(key):
            return key
        try:
            self._keys(key)
            return self._key_node(key)
        except NotCarriedError as error:
            self._lose(path, f"its key: {error}")
        except (LimitError, PickleError, UnsupportedError) as error:
            self._lose(path, f"its key: {error.message}")
        return _LOST

    def _key_node(self, key: Any) -> Node:
        """Return the JSON of a key, which `KeyCheck` has found to be small and not deep."""
        if type(key) not in (tuple, frozenset):
            return write_value(key, self.limits)
        items = [self._key_node(item) for item in key]
        return {type(key).__name__: items if type(key) is tuple else _in_order(items)}

    # -- tensors and objects ---------------------------------------------------------------

    def _tensor(
        self, value: LazyTensor | Parameter, spec: TensorSpec, name: str, path: _Path
    ) -> _Writing:
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
        held = {} if state is None else {"state": state}
        if is_plain_tensor(spec.subclass):
            held = {"attributes": spec.attributes, **held}
        elif spec.subclass is not None:
            self._lose((path, "class", True), f"{_name_of_class(spec.subclass)}, with its state")
        for option, attributes in held.items():
            made = yield attributes, (path, "attributes", True), False
            if made is not _LOST:
                node[option] = made
        return node

    def _foreign(self, value: ForeignObject, path: _Path) -> Node:
        """Return a dict of the tensors below an object that is not carried."""
        below = self._below(path)
        what = f"{_name_of_class(value)} cannot be held by JSON"
        if not below:
            if self.is_listed(value):
                return _LOST
            raise NotCarriedError(what)
        if not self.is_listed(value):
            self._lose(path, f"{what}; a dict of its tensors stands for it")
        pairs = [(write_value(key, self.limits), {"tensor": name}) for key, name in below.items()]
        return {"dict": _items(pairs)}

    def _below(self, path: _Path) -> dict[str, str]:
        """Return the names of the tensors below a path, by what follows on the path in them.

        None is below an attribute: it is not on the way to any name.
        """
        labels = []
        while path is not None:
            path, key, is_attribute = path
            if is_attribute:
                return {}
            labels.append(key_text(key))
        prefix = ".".join(reversed(labels)) + "."
        first = bisect_left(self._sorted_names, prefix)
        stop = bisect_left(self._sorted_names, prefix[:-1] + "/")  # what follows on a dot
        return {name[len(prefix) :]: name for name in self._sorted_names[first:stop]}

    @cached_property
    def _sorted_names(self) -> list[str]:
        return sorted(self.names)

    def _lose(self, path: _Path, why: str) -> None:
        place = ""
        while path is not None and len(place) < _PATH_LENGTH:
            path, key, is_attribute = path
            label = key_text(key)[:_PATH_LENGTH]
            place = (f" ({label})" if is_attribute else f".{label}") + place
        if path is not None:
            place = f"...{place}"
        elif not place:
            place = "the object itself"
        elif place[0] == ".":
            place = place[1:]
        else:
            place = f"the root{place}"
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


def _in_order(items: list[Node]) -> list[Node]:
    """Return the items of a set, which has the order of hashes: they differ with each process."""
    return sorted(items, key=_to_json)


def _items(pairs: list[tuple[Node, Node]]) -> Node:
    if all(type(key) is str for key, _ in pairs):
        return dict(pairs)
    return [[key, item] for key, item in pairs]


#: What is equal wherever it stands, or is no more than a name; and what is not carried as it is.
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
