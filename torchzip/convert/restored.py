"""The object around the tensors, made again from the JSON text that `carried` describes.

The text comes from a file. It can make values of the kinds of that table and nothing else: no name
in it is looked up, and its lengths, depths and numbers are bounded as those of a pickle.
"""

from __future__ import annotations

import json
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Generator
from types import GeneratorType
from typing import Any

from torchzip.checkpoint.lazy_tensor import LazyTensor
from torchzip.container.json_objects import no_duplicates
from torchzip.convert.carried import is_dense
from torchzip.convert.carried_text import containers_in
from torchzip.convert.carried_values import READERS, Node, broken, check_options, read_kind
from torchzip.errors import (
    ArchiveError,
    FormatError,
    LimitError,
    PickleError,
    TensorError,
    UnsupportedError,
    shown,
)
from torchzip.limits import Limits, is_number
from torchzip.pickling.keys import KeyCheck
from torchzip.tensors.packing import ElementStorage
from torchzip.tensors.python_values import FACTORIES
from torchzip.tensors.specs import TensorSpec, check_spec
from torchzip.tensors.storage import TensorStorage
from torchzip.types import ForeignObject, Parameter

#: Yields the JSON of a value inside, gets the value, and returns its own.
_Reading = Generator[Node, Any, Any]


def restore(
    text: str, tensor: Callable[[str], LazyTensor | None], limits: Limits | None = None
) -> Any:
    """Return the object of a string that `carry` wrote: a tree like `Checkpoint.root`.

    ``tensor`` returns the tensor of a name of the file, None if there is none of that name. Each
    mention of a name is a LazyTensor of its own over the storage of that one. A tensor with a
    stride that is not that of C order lies over a storage of its own (one for each storage
    and stride, so that ties stay ties), which reads its elements in that order; so the storages of
    the object are those of the file for the other tensors only. Tensors of the file that are not
    asked for are not in the object: whoever wants them all has to compare.

    Raises
    ------
    FormatError, LimitError
        If the text is none of `carry`, names a tensor that the file lacks, or is past a bound of
        ``limits`` (``header_nbytes``, ``containers``, ``nesting``, ``int_nbytes``, ``key_values``,
        ``key_nesting``).
    """
    limits = limits if limits is not None else Limits()
    if len(text) > limits.header_nbytes:
        raise LimitError("header_nbytes", len(text), limits.header_nbytes)
    containers, bound = containers_in(text, limits)
    if containers > bound:
        raise LimitError("containers", containers, limits.containers)
    try:
        made = json.loads(text, object_pairs_hook=no_duplicates, parse_constant=_no_constant)
    except ArchiveError as error:
        raise broken(error.message) from None
    except FormatError:
        raise
    except (ValueError, RecursionError) as error:
        raise broken(f"no JSON ({error})") from None
    if type(made) is not dict or "root" not in made:
        raise broken("no root")
    check_options(made, "root", ("shared",))
    table = made.get("shared", [])
    if type(table) is not list:
        raise broken("the shared values are not a list")
    return _Maker(table, tensor, limits, len(text)).make(made["root"])


def _no_constant(name: str) -> Any:
    raise broken(f"{name}, which JSON does not have")


class _Unmade:
    """The placeholder of a shared value that is not made yet, or is just being made."""


_UNMADE, _BEING_MADE = _Unmade(), _Unmade()


class _Maker:
    """Makes one object.

    What can be changed (lists, dicts, sets) is made empty and filled afterwards, which is how it
    can contain itself; what cannot needs its parts first. Neither recurses.
    """

    def __init__(
        self,
        table: list[Node],
        tensor: Callable[[str], LazyTensor | None],
        limits: Limits,
        nbytes: int,
    ) -> None:
        self._table = table
        self._made: list[Any] = [_UNMADE] * len(table)
        self._find_tensor = tensor
        self._limits = limits
        self._keys = KeyCheck()
        self._keys.allow(limits, nbytes)
        self._fills: deque[tuple[_Reading, int]] = deque()
        self._permuted: dict[Any, tuple[TensorStorage, TensorStorage]] = {}
        # Kinds that need their parts first, and kinds that are filled: how, and their options.
        self._wholes: dict[str, tuple[Callable[[Any, Any], _Reading], tuple[str, ...]]] = {
            "shared": (self._shared, ()),
            "tuple": (self._tuple, ()),
            "frozenset": (self._frozenset, ()),
            "tensor": (self._tensor, ("stride", "requires_grad", "attributes")),
            "parameter": (self._parameter, ("stride", "requires_grad", "attributes", "state")),
        }
        self._shells: dict[str, tuple[Callable[[Any], Any], tuple[str, ...]]] = {
            "dict": (lambda node: {}, ()),
            "tensors": (lambda node: {}, ()),
            "OrderedDict": (lambda node: OrderedDict(), ("attributes",)),
            "Counter": (lambda node: Counter(), ()),
            "defaultdict": (_empty_defaultdict, ("factory",)),
            "deque": (_empty_deque, ("maxlen",)),
            "set": (lambda node: set(), ()),
        }

    def make(self, root: Node) -> Any:
        """Return the object."""

        def start() -> _Reading:
            return (yield root)

        made = self._drive(start(), 0)
        while self._fills:
            self._drive(*self._fills.popleft())
        return made

    def _drive(self, reading: _Reading, depth: int) -> Any:
        """Run a reader and those of the values inside; no call nests."""
        stack = [(reading, depth + 1)]
        sent: Any = None
        while stack:
            reading, depth = stack[-1]
            try:
                node = reading.send(sent)
            except StopIteration as stop:
                stack.pop()
                sent = stop.value
                continue
            sent = self._start(node, depth)
            if type(sent) is GeneratorType:
                # A mention of a shared value is not a level of its own.
                stack.append((sent, depth if "shared" in node else depth + 1))
                sent = None
        return sent

    def _start(self, node: Node, depth: int) -> Any:
        """Return the value of a node, or the generator that makes it."""
        if type(node) not in (dict, list):
            return node
        if type(node) is list:
            self._check_depth(depth)
            items: list[Any] = []
            self._fills.append((self._fill_sequence(items, node), depth))
            return items
        kinds = [key for key in node if key in _KINDS]
        if len(kinds) != 1:
            found = ", ".join(repr(key[:40]) for key in list(node)[:4])
            raise broken(f"an object that is not of one kind (its keys: {found or 'none'})")
        kind = kinds[0]
        if kind in READERS:
            return read_kind(kind, node, self._limits)
        if kind in self._wholes:
            make, options = self._wholes[kind]
            check_options(node, kind, options)
            self._check_depth(depth if kind in ("tuple", "frozenset") else depth - 1)
            return make(node[kind], node)
        self._check_depth(depth)
        make_shell, options = self._shells[kind]
        check_options(node, kind, options)
        shell = make_shell(node)
        fill = self._fill_mapping if isinstance(shell, dict) else self._fill_sequence
        if kind == "tensors":
            fill = self._fill_tensors
        self._fills.append((fill(shell, node[kind], node), depth))
        return shell

    def _check_depth(self, depth: int) -> None:
        if depth > self._limits.nesting:
            raise LimitError("nesting", depth, self._limits.nesting)

    def _shared(self, place: Any, node: Any) -> _Reading:
        if type(place) is not int or not 0 <= place < len(self._table):
            raise broken("a shared value that is not there")
        if self._made[place] is _UNMADE:
            self._made[place] = _BEING_MADE
            self._made[place] = yield self._table[place]
        elif self._made[place] is _BEING_MADE:
            raise broken("a value that can only be made from itself")
        return self._made[place]

    # -- containers ------------------------------------------------------------------------

    def _tuple(self, body: Any, node: Any) -> _Reading:
        items = []
        for item in _list(body):
            items.append((yield item))
        return tuple(items)

    def _frozenset(self, body: Any, node: Any) -> _Reading:
        items = []
        for item in _list(body):
            items.append(self._key((yield item)))
        return self._keys.frozen(items)

    def _fill_sequence(self, shell: Any, body: Any, node: Any = None) -> _Reading:
        if type(shell) is set:
            items = []
            for item in _list(body):
                items.append(self._key((yield item)))
            self._keys.collect(shell, items)
            return
        add = shell.append
        for item in _list(body):
            add((yield item))

    def _fill_mapping(self, shell: Any, body: Any, node: Any) -> _Reading:
        if type(body) is dict:
            for key, item in body.items():
                shell[key] = yield item
        else:
            keys: list[Any] = []
            values: list[Any] = []
            for pair in _list(body):
                if type(pair) is not list or len(pair) != 2:
                    raise broken("the items of a dict are not pairs")
                keys.append(self._key((yield pair[0])))
                values.append((yield pair[1]))
            self._keys.fill(shell, keys, values)
            if len(shell) != len(keys):
                raise broken("a dict has a key twice")
        attributes = node.get("attributes", {})
        if type(attributes) is not dict:
            raise broken("attributes that are not an object")
        for name, item in attributes.items():
            # numpy and others ask an object itself for names in underscores, some for an address.
            if name.startswith("__") or hasattr(type(shell), name):
                raise broken(f"an OrderedDict with an attribute {shown(name)}")
            vars(shell)[name] = yield item

    def _fill_tensors(self, shell: dict[str, Any], body: Any, node: Any) -> _Reading:
        for name in _list(body):
            if type(name) is not str:
                raise broken("a tensor whose name is not a string")
            tensor = self._find_tensor(name)
            if tensor is not None:  # another program may have left it out
                shell[name] = tensor
        yield from ()

    def _key(self, key: Any) -> Any:
        """Return a key or an item of a set, if it can be one at a cost that is bounded."""
        if type(key) is not str:
            try:
                self._keys(key)
            except (PickleError, UnsupportedError) as error:
                raise broken(error.message) from None
        return key

    # -- tensors ---------------------------------------------------------------------------

    def _tensor(self, name: Any, node: Any) -> _Reading:
        spec = self._spec(name, node, requires_grad=False)
        if "attributes" in node:
            spec.subclass = ForeignObject("torch", "Tensor")
            spec.attributes = yield node["attributes"]
        return LazyTensor(spec)

    def _parameter(self, name: Any, node: Any) -> _Reading:
        spec = self._spec(name, node, requires_grad=True)
        spec.is_parameter = True
        if "attributes" in node:
            spec.subclass = ForeignObject("torch", "Tensor")
            spec.attributes = yield node["attributes"]
        state = (yield node["state"]) if "state" in node else None
        return Parameter(LazyTensor(spec), spec.requires_grad, state)

    def _spec(self, name: Any, node: Any, requires_grad: bool) -> TensorSpec:
        if type(name) is not str:
            raise broken("a tensor whose name is not a string")
        found = self._find_tensor(name)
        if found is None:
            raise broken(f"the file has no tensor {shown(name)}")
        requires_grad = node.get("requires_grad", requires_grad)
        if type(requires_grad) is not bool:
            raise TensorError(f"{shown(name)}: requires_grad is neither true nor false")
        spec = found.spec.replace(requires_grad=requires_grad)
        if "stride" not in node:
            return spec
        stride = node["stride"]
        if (
            type(stride) is not list
            or len(stride) != len(spec.shape)
            or not all(map(is_number, stride))
            or not is_dense(spec.shape, tuple(stride))
        ):
            raise TensorError(
                f"{shown(name)}: a stride that orders no tensor of size {list(spec.shape)}"
            )
        return check_spec(self._with_stride(spec, tuple(stride)))

    def _with_stride(self, spec: TensorSpec, stride: tuple[int, ...]) -> TensorSpec:
        """Return a tensor with the same elements that lie in memory by another stride."""
        axes = [axis for axis, size in enumerate(spec.shape) if size > 1]
        order = sorted(axes, key=lambda axis: -stride[axis])
        if order == axes or 0 in spec.shape:
            return spec.replace(stride=stride)  # only axes that nothing moves along differ
        # As text, which has a hash that nobody can choose.
        key = (id(spec.storage), f"{spec.storage_offset} {spec.shape} {spec.stride} {stride}")
        if key not in self._permuted:
            moved = spec.replace(
                shape=tuple(spec.shape[axis] for axis in order),
                stride=tuple(spec.stride[axis] for axis in order),
            )
            # With the storage that is named by its id, which must stay.
            self._permuted[key] = (ElementStorage(moved), spec.storage)
        storage = self._permuted[key][0]
        # The elements of that storage have conj and neg carried out.
        return spec.replace(stride=stride, storage_offset=0, storage=storage, conj=False, neg=False)


def _list(body: Any) -> list[Any]:
    if type(body) is not list:
        raise broken("a list was expected")
    return body


def _empty_defaultdict(node: dict[str, Any]) -> Any:
    name = node.get("factory")
    if name is None:
        return defaultdict(None)
    for (_, known), factory in FACTORIES.items():
        if name == known:
            return defaultdict(factory)
    raise broken("a defaultdict of unknown values")


def _empty_deque(node: dict[str, Any]) -> Any:
    most = node.get("maxlen")
    if most is not None and not is_number(most):
        raise broken("a deque whose length is not valid")
    return deque(maxlen=most)


_KINDS = frozenset(READERS) | frozenset(
    "shared tuple frozenset tensor tensors parameter dict OrderedDict Counter defaultdict deque "
    "set".split()
)
