"""The first pass over an object to be saved: every array in it, and where each is to lie.

An array's storage can only be written once all others that share its memory are known. Most share
it with none: these *stand alone*, and the second pass writes them in bulk, by their forms.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from itertools import compress, count, repeat
from operator import attrgetter, eq, is_not
from struct import pack
from typing import Any

import numpy as np
from numpy.typing import NDArray

from torchzip.checkpoint.lazy_tensor import LazyTensor
from torchzip.dtypes import DTYPES
from torchzip.limits import Limits
from torchzip.pickling.reductions import Reduction, reduce_object, text_of
from torchzip.tensors.array_likes import ArrayKind, TorchStorages, array_kind, array_of
from torchzip.tensors.memory import (
    Form,
    Placement,
    addresses,
    are_apart,
    extent_of,
    plain_form,
    torch_dtype_to_save,
)
from torchzip.tensors.numpy_values import PickledArray, module_among, module_of
from torchzip.tensors.persistent_ids import BareStorage
from torchzip.tensors.reduce import Stored
from torchzip.tensors.specs import TensorSpec
from torchzip.types import (
    ForeignObject,
    NestedTensor,
    OtherTensor,
    Parameter,
    QuantizedTensor,
    Storage,
    TypedArray,
)

Array = NDArray[Any]
#: (arrays with their torch dtypes, what messages call each by its index) -> where each lies
PlaceArrays = Callable[[list[tuple[Array, str]], Callable[[int], str]], list[Placement]]


class EarlyTensor:
    """A tensor that `incremental_save` has stored already: it keeps the tensor's place."""

    __slots__ = ("spec", "writer")

    def __init__(self, spec: TensorSpec, writer: object) -> None:
        self.spec: TensorSpec = spec
        self.writer: object = writer

    @property
    def shape(self) -> tuple[int, ...]:
        return self.spec.shape

    @property
    def torch_dtype(self) -> str:
        return self.spec.torch_dtype

    def __repr__(self) -> str:
        return f"EarlyTensor({self.torch_dtype}, shape={list(self.shape)})"

    def __reduce__(self) -> Any:
        raise TypeError("an EarlyTensor belongs to its writer and cannot be pickled")


class _Link:
    """One step of a path: a key, and the step before. Made into text only for messages.

    ``depth`` counts the steps, ``length`` is that of the path as a name and as a place. That of the
    root has no step before.
    """

    __slots__ = ("before", "depth", "key", "length")

    def __init__(self, before: _Link | None = None, key: Any = None) -> None:
        self.before = before
        self.key = key
        self.depth = self.length = 0
        if before is not None:
            self.depth = before.depth + 1
            self.length = before.length + _step_length(key)

    def __str__(self) -> str:
        keys = []
        link = self
        while link.before is not None:
            if link.key is not _NO_STEP:
                keys.append(text_of(link.key))
            link = link.before
        return ".".join(reversed(keys))


#: Characters that a key which is not a string takes in names and places, if it is plain.
_KEY_LENGTH = 64


def _step_length(key: Any) -> int:
    """Return how many characters a key takes in a name and in a place."""
    return len(key) + len(repr(key)) + 3 if type(key) is str else _KEY_LENGTH


#: The key of what is inside an object and has no name there: it counts, and is not shown.
_NO_STEP = object()


class Survey:
    """What the first pass finds.

    ``placements`` says where arrays lie that may share memory, by identity and torch dtype.
    ``forms`` has the others by their identity, and Parameters and LazyTensors that are alone on
    their storage; ``storages`` has the storages of these two. ``reductions`` are the parts of
    objects of unknown types, by identity. All of it holds as long as the survey is alive.

    ``arrays_of`` has the arrays that objects with ``__array__`` or ``__dlpack__`` give, by the
    identity of the objects, ``torch_storages`` the storages of torch, and ``numpy_modules`` the
    inner modules of numpy that values remember.

    ``spec_of`` is how a tensor of a file is written. With ``in_bulk`` false no tensor stands alone,
    so that each is placed and written by itself.
    """

    def __init__(
        self,
        root: Any,
        place: PlaceArrays,
        spec_of: Callable[[TensorSpec], TensorSpec],
        *,
        in_bulk: bool,
    ) -> None:
        self.placements: dict[tuple[int, str], Placement] = {}
        self.forms: dict[int, Form] = {}
        self.storages: dict[int, Stored] = {}
        self.reductions: dict[int, tuple[Any, Reduction]] = {}
        self.arrays_of: dict[int, Array] = {}
        self.torch_storages = TorchStorages()
        self.numpy_modules: set[str | None] = set()
        # Arrays of the plain class: values, which are met again by identity, and parts of other
        # values, which are written again at each mention.
        self._arrays: list[Array] = []
        self._parts: list[Array] = []
        self._parameters: list[Parameter] = []
        self._lazy: list[LazyTensor | Parameter] = []
        # The others, which have to be placed one by one.
        self._special: dict[tuple[int, str], tuple[Array, str]] = {}
        self._todo: list[tuple[Any, _Link]] = [(root, _Link())]
        self._links: dict[int, _Link] = {}
        self._holders: list[tuple[Iterable[Any], Iterable[Any], _Link]] = []
        self._seen: set[int] = set()
        # Those of the dicts that `_add_dicts` has added.
        self._outer: list[tuple[Collection[Any], Collection[dict[str, Array]], _Link]] = []
        self._alive: list[Any] = []  # so that ids stay
        self.is_too_deep = False
        # What bears on the flat names, and on keys: see `is_plain`.
        self._has_odd_keys = False
        self._is_shared = False
        self._depth = 0
        self._names = 0
        self._names_length = 0
        self._find()
        self._settle_arrays(place, in_bulk)
        if in_bulk:
            self._settle_lazy(spec_of)

    def is_plain(self, limits: Limits) -> bool:
        """Return whether any reader takes the keys, and makes flat names of all tensors.

        That is for trees that are plain to the `Emitter`, too. True is for sure; a False may be
        that of an object of which they all take everything.
        """
        return (
            not self._has_odd_keys
            and not self._is_shared
            and self._depth + 2 < limits.nesting
            and self._names <= limits.shared_names
            and self._names_length <= limits.names_nbytes
        )

    # -- going over the tree -----------------------------------------------------------------

    def _find(self) -> None:
        seen = self._seen
        most = _DEPTHS * sys.getrecursionlimit()
        todo = self._todo
        while todo:
            value, link = todo.pop()
            kind = type(value)
            if kind in _WITHOUT_ARRAYS:
                continue
            if kind is np.ndarray:
                self._arrays.append(value)
                self._links[id(value)] = link
                continue
            # By the type alone: ``__class__`` is what an object says of itself.
            if issubclass(kind, np.ndarray) and not is_pickled(value):
                self._add_special(value, link)
                continue
            if id(value) in seen:
                self._is_shared = self._is_shared or _has_names_inside(value)
                continue
            seen.add(id(value))
            self._alive.append(value)
            if kind is dict:
                self._add_pairs(value.keys(), value.values(), link)
            elif kind is list or kind is tuple:
                self._add_pairs(range(len(value)), value, link)
            elif kind is TypedArray:
                if isinstance(value.array, np.ndarray) and value.torch_dtype in DTYPES:
                    self._special[id(value.array), value.torch_dtype] = (
                        value.array, value.torch_dtype,
                    )  # fmt: skip
                    self._links[id(value.array)] = link
            elif kind is Parameter:
                self._add_part(value.data, link)
                todo.append((value.state, link))
            elif issubclass(kind, OtherTensor):
                for part in _parts_of_other(value):
                    self._add_part(part, link)
            elif kind is LazyTensor:
                self._lazy.append(value)
            elif issubclass(kind, (BareStorage, LazyTensor, EarlyTensor)):
                pass
            elif kind is Storage:
                self._add_part(value.data, link)
            elif kind is ForeignObject:
                self.numpy_modules.add(module_among([(value.module, value.name)]))
                parts = (value.items, value.state, value.kwargs, value.args, value.callee)
                todo += [(part, link) for part in parts]
            elif kind is set or kind is frozenset:
                todo += [(item, link) for item in value]
            else:
                if link.depth > most:
                    # An object that is made of new ones without end. The second pass says where.
                    self.is_too_deep = True
                    return
                found = array_kind(kind)
                if found is None or found == "torch tensor":
                    self._take_apart(value, link)
                else:
                    self._add_array_like(value, found, link)

    def _add_pairs(self, keys: Collection[Any], values: Collection[Any], link: _Link) -> None:
        kinds = set(map(type, values))
        self._depth = max(self._depth, link.depth)
        is_sequence = type(keys) is range
        key_kinds: set[type] = {int} if is_sequence else set(map(type, keys))
        if not (is_sequence or key_kinds <= _STRINGS or self._has_odd_keys):
            self._has_odd_keys = not _are_plain_keys(keys, key_kinds)
        is_state_dict = link.before is None and kinds <= _TENSORS and key_kinds == _STRINGS
        if not (is_state_dict or kinds <= _WITHOUT_ARRAYS or self._has_odd_keys):
            self._names += len(keys)
            # A key is quoted in a place, and not in a name.
            self._names_length += len(keys) * link.length + 2 * _quoted_length(keys, key_kinds)
        if np.ndarray in kinds or Parameter in kinds:
            self._holders.append((keys, values, link))
        if kinds == _ARRAYS:
            self._arrays += values
        elif kinds == _DICTS and self._add_dicts(keys, values, link):
            pass
        elif not kinds <= _WITHOUT_ARRAYS:
            found = []
            for key, value in zip(keys, values, strict=True):
                kind = type(value)
                if kind is np.ndarray:
                    self._arrays.append(value)
                elif kind is LazyTensor:
                    self._lazy.append(value)
                elif kind is Parameter and value.state is None and type(value.data) in _DENSE:
                    held = self._parameters if type(value.data) is np.ndarray else self._lazy
                    held.append(value)
                elif kind not in _WITHOUT_ARRAYS:
                    found.append((value, _Link(link, key)))
            self._todo += reversed(found)
        if not is_sequence and not key_kinds <= _WITHOUT_ARRAYS:
            self._todo += [(key, link) for key in keys if type(key) not in _WITHOUT_ARRAYS]

    def _add_dicts(self, keys: Collection[Any], dicts: Collection[Any], link: _Link) -> bool:
        """Add dicts of strings all at once, such as the states of an optimizer or ``_metadata``.

        Return False, having done nothing, if something else than arrays alone or plain values
        alone is in them.
        """
        ids = set(map(id, dicts))
        values = [value for inside in dicts for value in inside.values()]
        names = [name for inside in dicts for name in inside]
        kinds = set(map(type, values))
        if (
            (kinds != _ARRAYS and not kinds <= _WITHOUT_ARRAYS)
            or not set(map(type, names)) <= _STRINGS
            or len(ids) < len(dicts)
            or not self._seen.isdisjoint(ids)
        ):
            return False
        self._seen |= ids
        self._alive += dicts
        self._depth = max(self._depth, link.depth + 1)
        if kinds != _ARRAYS:
            return True
        self._arrays += values
        self._outer.append((keys, dicts, link))
        self._names += len(names)
        self._names_length += 2 * _quoted_length(names, {str}) + sum(
            (link.length + _step_length(key)) * len(inside)
            for key, inside in zip(keys, dicts, strict=True)
        )
        return True

    def _take_apart(self, value: Any, link: _Link) -> None:
        """Take an object apart for the first pass, and keep the parts for the second."""
        try:
            reduction = reduce_for_good(value)
        except Exception:
            return  # tried again by the second pass, which says where the value is
        self.reductions[id(value)] = (value, reduction)
        if issubclass(type(value), np.ndarray | np.generic):
            self.numpy_modules.add(module_of(value))
        if not isinstance(reduction, tuple):
            return
        link = _Link(link, _NO_STEP)
        parts = list(reduction)
        pairs = parts[4] if len(parts) > 4 else None
        if pairs and {*map(type, pairs)} == {tuple} and {*map(len, pairs)} == {2}:
            del parts[4]
            keys, values = zip(*pairs, strict=True)
            self._add_pairs(keys, values, link)
        self._todo += [(part, link) for part in reversed(parts)]

    def _add_part(self, part: Any, link: _Link) -> None:
        if type(part) is np.ndarray:
            self._parts.append(part)
            self._links[id(part)] = link
        else:
            self._todo.append((part, link))

    def _add_special(self, array: Array, link: _Link | None) -> None:
        try:
            torch_dtype = torch_dtype_to_save(array)
        except TypeError:
            return  # the second pass says where it is
        self._special.setdefault((id(array), torch_dtype), (array, torch_dtype))
        if link is not None:
            self._links.setdefault(id(array), link)
        self._alive.append(array)

    def _add_array_like(self, value: Any, kind: ArrayKind, link: _Link) -> None:
        try:
            if kind == "torch storage":
                self.torch_storages.get(value)
            else:
                self.arrays_of[id(value)] = array_of(value)
                self._add_special(self.arrays_of[id(value)], link)
        except Exception:
            pass  # tried again by the second pass, which says where it is

    def _paths(self) -> dict[int, str]:
        """Return what messages call arrays, by identity."""
        links = dict(self._links)
        inner = [
            (inside.keys(), inside.values(), _Link(link, key))
            for keys, dicts, link in self._outer
            for key, inside in zip(keys, dicts, strict=True)
        ]
        for keys, values, link in [*self._holders, *inner]:
            for key, value in zip(keys, values, strict=True):
                array = value.data if type(value) is Parameter else value
                links.setdefault(id(array), _Link(link, key))
        return {identity: str(link) for identity, link in links.items()}

    # -- what it comes to ----------------------------------------------------------------------

    def _settle_arrays(self, place: PlaceArrays, in_bulk: bool) -> None:
        """Find those that stand alone, and place the others."""
        parameters = list({id(value): value for value in self._parameters}.values())
        parts = [*self._parts, *(value.data for value in parameters)]
        arrays = self._arrays + parts
        ids = list(map(id, arrays))
        looks = map(attrgetter("dtype", "shape", "strides"), arrays)
        form_of = _FormOf()
        forms: dict[int, Any] = dict(zip(ids, map(form_of.__getitem__, looks), strict=True))
        if None in form_of.values():
            for identity, array in zip(ids, arrays, strict=True):
                if forms.get(identity, self) is None:
                    del forms[identity]
                    self._add_special(array, None)
        if self.torch_storages:
            self._settle_in_torch(dict(zip(ids, arrays, strict=True)), forms)
        owners = map(attrgetter("base"), arrays)
        # An array that owns its memory can still be the owner of another's.
        if self._special or not in_bulk or any(map(is_not, owners, repeat(None))):
            by_id = dict(zip(ids, arrays, strict=True))
            regular = [by_id[identity] for identity in forms]
            alone = _which_alone(regular, self._special.values())
            if not in_bulk:
                alone[:] = False
            together = dict(self._special)
            for array, form in compress(zip(regular, forms.values(), strict=True), ~alone):
                together[id(array), form.torch_dtype] = (array, form.torch_dtype)
            self._place(place, together)
            forms = dict(compress(forms.items(), alone))
        if parts:
            self._settle_parts(parts, parameters, forms)
        else:
            self.forms = forms

    def _settle_in_torch(self, arrays: dict[int, Array], forms: dict[int, Any]) -> None:
        """Place the arrays that lie in the memory of a torch tensor: as views of its storage."""
        candidates = [(arrays[key], form.torch_dtype) for key, form in forms.items()]
        for key, placement in self.torch_storages.placements(
            [*candidates, *self._special.values()], lambda array: self._paths()[id(array)]
        ):
            self.placements[key] = placement
            self._special.pop(key, None)
            forms.pop(key[0], None)

    def _place(self, place: PlaceArrays, arrays: dict[tuple[int, str], tuple[Array, str]]) -> None:
        paths: dict[int, str] = {}
        keys = list(arrays)

        def path_of(index: int) -> str:
            if not paths:
                paths.update(self._paths())
            return paths[keys[index][0]]

        placements = place(list(arrays.values()), path_of)
        self.placements.update(zip(keys, placements, strict=True))

    def _settle_parts(
        self, parts: list[Array], parameters: list[Parameter], forms: dict[int, Form]
    ) -> None:
        """Leave out what is a part of another value, and take in Parameters.

        Each mention of a part makes a new tensor on the storage that the first has made.
        """
        mentions = Counter(map(id, parts))
        values = set(map(id, self._arrays))
        self.forms = {key: form for key, form in forms.items() if key not in mentions}
        made: dict[tuple[Form, bool], Form] = {}
        for parameter in parameters:
            data = parameter.data
            form = forms.get(id(data))
            if form is None or mentions[id(data)] > 1 or id(data) in values:
                continue
            look = (form, bool(parameter.requires_grad))
            if look not in made:
                made[look] = form.of_parameter(look[1])
            self.forms[id(parameter)] = made[look]
            self.storages[id(parameter)] = data

    def _settle_lazy(self, spec_of: Callable[[TensorSpec], TensorSpec]) -> None:
        made: dict[Any, Form] = {}
        for value in self._lazy:
            parameter: bool | None = None
            if isinstance(value, Parameter):
                spec, parameter = value.data.spec, bool(value.requires_grad)
            else:
                spec = value.spec
                if spec.is_parameter:
                    parameter = spec.requires_grad
            spec = spec_of(spec)
            storage = spec.storage
            if (
                spec.subclass is not None or spec.conj or spec.neg or storage.location != "cpu"
                or (spec.requires_grad and parameter is None)
            ):  # fmt: skip
                continue
            shape, stride, offset = spec.shape, spec.stride, spec.storage_offset
            numel = storage.nbytes // DTYPES[spec.torch_dtype].itemsize
            # As bytes: tuples of ints from a file can be such that all have one hash.
            numbers = pack(f"{2 * len(shape) + 2}q", *shape, *stride, offset, numel)
            look = (spec.torch_dtype, numbers, parameter)
            form = made.get(look)
            if form is None:
                made[look] = form = Form(spec.torch_dtype, shape, stride, offset, numel, parameter)
            self.forms[id(value)] = form
            self.storages[id(value)] = storage


def _which_alone(arrays: Sequence[Array], others: Iterable[tuple[Array, str]]) -> NDArray[np.bool]:
    """Return which of the arrays, all without gaps, meet neither one another nor the others."""
    starts = addresses(arrays)
    stops = np.fromiter(map(attrgetter("nbytes"), arrays), np.int64, len(arrays)) + starts
    extents = [extent_of(array, torch_dtype) for array, torch_dtype in others]
    known = [extent for extent in extents if extent is not None and extent.stop > extent.start]
    all_starts = np.array(starts + [extent.start for extent in known], np.int64)
    all_stops = np.append(stops, [extent.stop for extent in known]).astype(np.int64)
    return are_apart(all_starts, all_stops)[: len(arrays)]


def is_pickled(array: Array) -> bool:
    """Return whether numpy pickled this array, which is then no tensor."""
    return type(array) is PickledArray and array.is_pickled


def _quoted_length(keys: Collection[Any], kinds: set[type]) -> int:
    """Return how many characters a list of keys has as Python writes it."""
    if kinds == _STRINGS:
        text = "".join(keys)
        if text.isprintable() and "'" not in text and "\\" not in text:
            return len(text) + 4 * len(keys)  # with quotes, commas and brackets
    return len(repr(list(keys)))


def _are_plain_keys(keys: Collection[Any], kinds: set[type]) -> bool:
    """Return whether keys cost a reader nothing, whichever they are."""
    if kinds == {int}:
        first = next(iter(keys))
        if not (-_SMALL < first < _SMALL):
            return False
        if all(map(eq, keys, count(first))):  # each has a place of its own
            return True
    return (
        len(keys) <= _FEW_KEYS
        and kinds <= _PLAIN_KEYS
        and all(-_SMALL < key < _SMALL for key in keys if type(key) is int)
    )


class _FormOf(dict[Any, Form | None]):
    """The form of a dtype, a shape and strides, made once for all that are alike."""

    def __missing__(self, look: Any) -> Form | None:
        form = self[look] = plain_form(*look)
        return form


def _has_names_inside(value: Any) -> bool:
    """Return whether what is met again may give tensors more names than one."""
    if type(value) in (list, tuple, dict):
        inside = value.values() if type(value) is dict else value
        return len(value) > _FEW_KEYS or not set(map(type, inside)) <= _WITHOUT_ARRAYS
    return not isinstance(value, LazyTensor | EarlyTensor | TypedArray | Parameter | OtherTensor)


def _parts_of_other(tensor: OtherTensor) -> list[Any]:
    """Return what is inside a tensor that is not dense; integers with the dtype they stand for."""
    parts = tensor.parts
    if isinstance(tensor, QuantizedTensor):
        array = parts[0].array if isinstance(parts[0], TypedArray) else parts[0]
        if isinstance(array, np.ndarray):
            parts[0] = TypedArray(array, tensor.torch_dtype)
    if isinstance(tensor, NestedTensor) and type(tensor.constructor) is dict:
        parts += [
            value
            for name, value in tensor.constructor.items()
            if name not in ("values", "offsets", "lengths")  # which are parts
        ]
    return [*parts, tensor.attributes]


def reduce_for_good(value: Any) -> Reduction:
    """Return a reduction whose items can be gone over twice."""
    reduction = reduce_object(value.view(np.ndarray) if type(value) is PickledArray else value)
    if isinstance(reduction, tuple) and len(reduction) > 3:
        reduction = tuple(
            list(part) if index in (3, 4) and part is not None else part
            for index, part in enumerate(reduction)
        )
    return reduction


_WITHOUT_ARRAYS = frozenset(
    [str, int, float, bool, type(None), bytes, bytearray, complex, type, range]
)
_ARRAYS = {np.ndarray}
_STRINGS = {str}
_DICTS = {dict}
#: In a flat dict of these alone the keys are the names, however many and whatever is tied.
_TENSORS = frozenset([np.ndarray, LazyTensor, EarlyTensor, Parameter])
#: Keys that no reader looks at, if there are not more in a dict.
_PLAIN_KEYS = frozenset([str, int, bool, type(None)])
_FEW_KEYS = 1000
_SMALL = 1 << 60
#: So many times deeper than the second pass can go, for whatever it may reach by a shorter way.
_DEPTHS = 10
_DENSE = (np.ndarray, LazyTensor)
