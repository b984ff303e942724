"""The object around the tensors, made again from the JSON text that `carried` writes.

The text comes from a file. It can make values of the kinds of `carried_kinds` and nothing else: no
name in it is looked up, and its lengths, depths and numbers are bounded as those of a pickle.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator
from dataclasses import dataclass
from types import GeneratorType
from typing import Any

from torchzip.checkpoint.lazy_tensor import LazyTensor
from torchzip.container.json_objects import parse_json
from torchzip.convert.carried_kinds import CONTAINERS, KINDS, MENTIONS, Node, broken, read_value
from torchzip.errors import LimitError, PickleError, TensorError, UnsupportedError, shown
from torchzip.limits import DEFAULT_LIMITS, Limits, is_number
from torchzip.pickling.keys import KeyCheck
from torchzip.tensors.packing import ElementStorage
from torchzip.tensors.specs import TensorSpec, check_spec, is_dense
from torchzip.tensors.storage import TensorStorage
from torchzip.types import ForeignObject, Parameter

#: Yields the JSON of a value inside and how deep it is, gets the value, and returns its own.
_Reading = Generator[tuple[Node, int], Any, Any]

_TAGS = KINDS.keys() | CONTAINERS.keys() | MENTIONS.keys()


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
        If `carry` did not write the text, or it names a tensor that the file lacks, or is past a
        bound of ``limits`` (``header_nbytes``, ``containers``, ``nesting``, ``int_nbytes``,
        ``key_values``, ``key_nesting``).
    """
    limits = limits if limits is not None else DEFAULT_LIMITS
    raw = text.encode("utf-8", "surrogatepass")
    if len(raw) > limits.header_nbytes:
        raise LimitError("header_nbytes", len(raw), limits.header_nbytes)
    what = "the object in the metadata"
    made = parse_json(raw, what, "", limits=limits, parse_constant=_no_constant)
    table = made.get("shared", [])
    if "root" not in made or len(made) > 1 + ("shared" in made) or type(table) is not list:
        raise broken("a root, and a list of shared values if there are any, were expected")
    return _Maker(table, tensor, limits, len(raw)).make(made["root"])


def _no_constant(name: str) -> Any:
    raise broken(f"{name}, which JSON does not have")


#: Placeholders of a shared value that is not made yet, or is just being made.
_UNMADE, _BEING_MADE = object(), object()


@dataclass
class _Maker:
    """Makes one object.

    What can be changed (lists, dicts, sets) is made empty and filled afterwards, which is how it
    can contain itself; what cannot needs its parts first. Neither recurses.
    """

    table: list[Node]
    find_tensor: Callable[[str], LazyTensor | None]
    limits: Limits
    nbytes: int

    def __post_init__(self) -> None:
        self._made: list[Any] = [_UNMADE] * len(self.table)
        self._keys = KeyCheck()
        self._keys.allow(self.limits, self.nbytes)
        self._fills: deque[_Reading] = deque()
        self._permuted: dict[Any, tuple[TensorStorage, TensorStorage]] = {}

    def make(self, root: Node) -> Any:
        made = self._run(self._start(root, 1))
        while self._fills:
            self._run(self._fills.popleft())
        return made

    def _run(self, made: Any) -> Any:
        """Return what `_start` has made; if that is a generator, what it returns in the end.

        The values that generators ask for are made here, so no call nests.
        """
        stack: list[_Reading] = []
        while True:
            if type(made) is GeneratorType:
                stack.append(made)
                made = None
            if not stack:
                return made
            try:
                asked = stack[-1].send(made)
            except StopIteration as stop:
                stack.pop()
                made = stop.value
            else:
                made = self._start(*asked)

    def _start(self, node: Node, depth: int) -> Any:
        """Return the value of a node, or the generator that makes it."""
        if type(node) is list:
            node = {"list": node}
        elif type(node) is not dict:
            return node
        tags = [key for key in node if key in _TAGS]
        if len(tags) != 1:
            found = ", ".join(repr(key[:40]) for key in list(node)[:4])
            raise broken(f"an object that is not of one kind (its keys: {found or 'none'})")
        (tag,) = tags
        if tag in KINDS:
            return read_value(node, self.limits)
        options = dict(node)
        body = options.pop(tag)
        container = CONTAINERS.get(tag)
        for key in options.keys() - (container.options if container else MENTIONS[tag]):
            raise broken(f"{tag!r} has no option {key[:40]!r}")
        # A mention of what is elsewhere is not a level of its own.
        if depth - (tag in MENTIONS and tag != "tensors") > self.limits.nesting:
            raise LimitError("nesting", depth, self.limits.nesting)
        if tag == "tensors":
            return self._tensors(body)
        if tag == "shared":
            return self._shared(body, depth)
        if container is None:
            return self._tensor(body, options, tag == "parameter", depth)
        if container.empty is None:
            return self._whole(container.type, body, depth)
        shell = container.empty(**options)
        self._fills.append(self._fill(shell, body, options, depth))
        return shell

    def _shared(self, place: Any, depth: int) -> _Reading:
        if type(place) is not int or not 0 <= place < len(self.table):
            raise broken("a shared value that is not there")
        if self._made[place] is _UNMADE:
            self._made[place] = _BEING_MADE
            self._made[place] = yield self.table[place], depth
        elif self._made[place] is _BEING_MADE:
            raise broken("a value that can only be made from itself")
        return self._made[place]

    # -- containers ------------------------------------------------------------------------

    def _items(self, body: Any, depth: int, *, are_keys: bool) -> Generator[Any, Any, list[Any]]:
        items = []
        for item in _checked(body, list, "a list"):
            made = yield item, depth + 1
            items.append(self._key(made) if are_keys else made)
        return items

    def _whole(self, kind: type, body: Any, depth: int) -> _Reading:
        """Make what cannot be changed."""
        if kind is tuple:
            return tuple((yield from self._items(body, depth, are_keys=False)))
        return self._keys.frozen((yield from self._items(body, depth, are_keys=True)))

    def _fill(self, shell: Any, body: Any, options: dict[str, Any], depth: int) -> _Reading:
        if isinstance(shell, set):
            self._keys.collect(shell, (yield from self._items(body, depth, are_keys=True)))
        elif not isinstance(shell, dict):
            shell.extend((yield from self._items(body, depth, are_keys=False)))
        elif type(body) is dict:
            for key, item in body.items():
                shell[key] = yield item, depth + 1
        else:
            keys: list[Any] = []
            values: list[Any] = []
            for pair in _checked(body, list, "a list"):
                if type(pair) is not list or len(pair) != 2:
                    raise broken("the items of a dict are not pairs")
                keys.append(self._key((yield pair[0], depth + 1)))
                values.append((yield pair[1], depth + 1))
            self._keys.fill(shell, keys, values)
            if len(shell) != len(keys):
                raise broken("a dict has a key twice")
        attributes = _checked(options.get("attributes", {}), dict, "an object of attributes")
        for name, item in attributes.items():
            # numpy and others ask an object itself for names in underscores, some for an address.
            if name.startswith("__") or hasattr(type(shell), name):
                raise broken(f"an OrderedDict with an attribute {shown(name)}")
            vars(shell)[name] = yield item, depth + 1

    def _tensors(self, body: Any) -> dict[str, LazyTensor]:
        found = {
            name: self.find_tensor(_checked(name, str, "the name of a tensor"))
            for name in _checked(body, list, "a list")
        }
        # Another program may have left one out.
        return {name: tensor for name, tensor in found.items() if tensor is not None}

    def _key(self, key: Any) -> Any:
        """Return a key or an item of a set, if it can be one at a cost that is bounded."""
        if type(key) is not str:
            try:
                self._keys(key)
            except (PickleError, UnsupportedError) as error:
                raise broken(error.message) from None
        return key

    # -- tensors ---------------------------------------------------------------------------

    def _tensor(
        self, name: Any, options: dict[str, Any], is_parameter: bool, depth: int
    ) -> _Reading:
        spec = self._spec(_checked(name, str, "the name of a tensor"), options, is_parameter)
        spec.is_parameter = is_parameter
        if "attributes" in options:
            spec.subclass = ForeignObject("torch", "Tensor")
            spec.attributes = yield options["attributes"], depth + 1
        tensor = LazyTensor(spec)
        if not is_parameter:
            return tensor
        state = (yield options["state"], depth + 1) if "state" in options else None
        return Parameter(tensor, spec.requires_grad, state)

    def _spec(self, name: str, options: dict[str, Any], is_parameter: bool) -> TensorSpec:
        found = self.find_tensor(name)
        if found is None:
            raise broken(f"the file has no tensor {shown(name)}")
        requires_grad = options.get("requires_grad", is_parameter)
        if type(requires_grad) is not bool:
            raise TensorError(f"{shown(name)}: requires_grad is neither true nor false")
        spec = found.spec.replace(requires_grad=requires_grad)
        if "stride" not in options:
            return spec
        stride = options["stride"]
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


def _checked(value: Any, kind: type, what: str) -> Any:
    if type(value) is not kind:
        raise broken(f"{what} was expected")
    return value
