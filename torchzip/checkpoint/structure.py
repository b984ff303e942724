"""An object to be saved -> its pickle, and the storages that the pickle mentions.

Two passes. The first finds every array, for an array's storage can only be written once all
others that share its memory are known. It takes unknown objects apart with ``__reduce_ex__`` as
it meets them, and the second pass, which writes the opcodes, uses the same reductions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from torchzip.checkpoint.lazy import LazyTensor
from torchzip.dtypes import DTYPES
from torchzip.errors import UnsupportedError
from torchzip.pickling.emitter import Emitter, Reduction, reduce_object
from torchzip.tensors.array_rows import ArrayRows
from torchzip.tensors.memory import (
    Placement,
    dtype_alone,
    packed,
    place_arrays,
    torch_dtype_to_save,
)
from torchzip.tensors.numpy_values import PickledArray
from torchzip.tensors.packing import ElementStorage
from torchzip.tensors.rebuild import BareStorage
from torchzip.tensors.reduce import LEAF_WRITERS, DenseWriter, StorageKeys, empty_ordered_dict
from torchzip.tensors.reduce_kinds import KindWriter, MarkedValues, is_jagged
from torchzip.tensors.specs import TensorSpec, contiguous_stride
from torchzip.tensors.storage import TensorStorage
from torchzip.types import (
    ForeignObject,
    NestedTensor,
    OtherTensor,
    Parameter,
    QuantizedTensor,
    Storage,
    TypedArray,
)

#: (arrays with their torch dtypes, what messages call them) -> where each lies
PlaceArrays = Callable[[list[tuple[NDArray[Any], str]], list[str]], list[Placement]]


class EarlyTensor:
    """A tensor that `incremental_save` has stored already: it keeps the tensor's place."""

    __slots__ = ("spec", "writer")

    def __init__(self, spec: TensorSpec, writer: object) -> None:
        self.spec = spec
        self.writer = writer

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
    """One step of a path: a key, and the step before. Made into text only for messages."""

    __slots__ = ("before", "key")

    def __init__(self, before: _Link | None, key: Any) -> None:
        self.before = before
        self.key = key

    def __str__(self) -> str:
        keys = []
        link: _Link | None = self
        while link is not None:
            keys.append(str(link.key))
            link = link.before
        return ".".join(reversed(keys))


class Structure:
    """The pickle of ``root``. ``refused`` is what torch's default loader will not take.

    ``keys`` hands out the storage keys and may know some already; ``place`` puts arrays into
    storages. ``spec_of`` may change how a tensor of a file is written, ``storage_of`` a bare
    storage. ``writer`` is whose EarlyTensors are welcome.
    """

    def __init__(
        self,
        root: Any,
        keys: StorageKeys,
        place: PlaceArrays,
        spec_of: Callable[[TensorSpec], TensorSpec] | None = None,
        storage_of: Callable[[TensorStorage], TensorStorage] | None = None,
        writer: object = None,
    ) -> None:
        self._dense = DenseWriter(keys)
        self._kinds = KindWriter(self._dense, self._plain_spec, self._integers_of)
        self._spec_of = spec_of or (lambda spec: spec)
        self._storage_of = storage_of or (lambda storage: storage)
        self._writer = writer
        self._reductions: dict[int, tuple[Any, Reduction]] = {}
        arrays, alone, holders = self._find_arrays(root)
        self._placements: dict[tuple[int, str], Placement] = {}
        # An array that stands alone can still be the owner of another's memory.
        if arrays or place is not place_arrays:
            for pairs, link in holders:
                for key, value in pairs:
                    if id(value) in alone:
                        name = alone[id(value)]
                        step = link if key is None else _Link(link, key)
                        arrays.setdefault((id(value), name), (value, name, step))
            alone = {}
            found = list(arrays.values())
            placements = place(
                [(a, name) for a, name, _ in found], [str(link) for *_, link in found]
            )
            self._placements = dict(zip(arrays, placements, strict=True))
        rows = ArrayRows(keys, self._dense.prefixes, alone)
        emitter = Emitter(
            {
                **LEAF_WRITERS,
                np.ndarray: self._write_array,
                PickledArray: self._write_pickled_array,
                TypedArray: self._write_typed_array,
                LazyTensor: self._write_lazy,
                EarlyTensor: self._write_early,
                Parameter: self._write_parameter,
                Storage: self._write_storage,
                OtherTensor: self._write_other,
                MarkedValues: self._write_marked,
            },
            self._reduce,
            rows if alone else None,
        )
        self.pickle = emitter.dump(root)
        self.refused = emitter.refused

    # -- the first pass --------------------------------------------------------------------

    def _find_arrays(
        self, root: Any
    ) -> tuple[
        dict[tuple[int, str], tuple[NDArray[Any], str, _Link | None]],
        dict[int, str],
        list[tuple[Iterable[tuple[Any, Any]], _Link | None]],
    ]:
        """Return the arrays in the tree.

        First those that may share memory, by identity and torch dtype, with their paths. Then
        the torch dtypes of those that stand alone, by identity, and the pairs among which these
        are: many, and their paths are seldom asked for.
        """
        alone: dict[int, str] = {}
        holders: list[tuple[Iterable[tuple[Any, Any]], _Link | None]] = []
        found: dict[tuple[int, str], tuple[NDArray[Any], str, _Link | None]] = {}
        seen: set[int] = set()
        alive: list[Any] = []  # what is in `seen`, so that ids stay
        todo: list[tuple[Any, _Link | None]] = [(root, None)]
        while todo:
            value, link = todo.pop()
            kind = type(value)
            if kind in _WITHOUT_ARRAYS:
                continue
            if isinstance(value, np.ndarray) and not _is_pickled(value):
                name = dtype_alone(value) if kind is np.ndarray else None
                if name is not None:
                    alone[id(value)] = name
                    holders.append(([(None, value)], link))
                    continue
                try:
                    name = torch_dtype_to_save(value)
                except TypeError:
                    continue  # the second pass says where it is
                found.setdefault((id(value), name), (value, name, link))
                continue
            if id(value) in seen:
                continue
            seen.add(id(value))
            alive.append(value)
            if kind is dict:
                holders.append((value.items(), link))
                for key, item in reversed(value.items()):
                    if type(item) is np.ndarray:
                        name = dtype_alone(item)
                        if name is not None:
                            alone[id(item)] = name
                            continue
                    if type(item) not in _WITHOUT_ARRAYS:
                        todo.append((item, _Link(link, key)))
                todo += [(key, link) for key in value if type(key) not in _WITHOUT_ARRAYS]
            elif kind is list or kind is tuple:
                for index in range(len(value) - 1, -1, -1):
                    if type(value[index]) not in _WITHOUT_ARRAYS:
                        todo.append((value[index], _Link(link, index)))
            elif kind is TypedArray:
                if isinstance(value.array, np.ndarray) and value.torch_dtype in DTYPES:
                    key = (id(value.array), value.torch_dtype)
                    found.setdefault(key, (value.array, value.torch_dtype, link))
            elif kind is Parameter:
                todo += [(value.state, link), (value.data, link)]
            elif isinstance(value, OtherTensor):
                todo += [(part, link) for part in _parts_of_other(value)]
            elif isinstance(value, BareStorage | LazyTensor | EarlyTensor):
                pass
            elif kind is Storage:
                todo.append((value.data, link))
            elif kind is ForeignObject:
                parts = (value.items, value.state, value.kwargs, value.args, value.callee)
                todo += [(part, link) for part in parts]
            elif kind is set or kind is frozenset:
                todo += [(item, link) for item in value]
            else:
                reduction = self._try_reduce(value)
                if isinstance(reduction, tuple):
                    todo += [(part, link) for part in reversed(reduction)]
        return found, alone, holders

    def _try_reduce(self, value: Any) -> Reduction | None:
        """Take an object apart for the first pass, and keep the parts for the second."""
        try:
            reduction = _reduce_for_good(value)
        except Exception:
            # Tried again by the second pass, which says where the value is.
            return None
        self._reductions[id(value)] = (value, reduction)
        return reduction

    def _reduce(self, value: Any) -> Reduction:
        # Used once: an object that is met again before it has a number, because it contains
        # itself, is taken apart again, as pickle does it.
        known = self._reductions.pop(id(value), None)
        return _reduce_for_good(value) if known is None else known[1]

    # -- the second pass: writers --------------------------------------------------------

    def _place_of(self, array: NDArray[Any], torch_dtype: str) -> Placement:
        place = self._placements.get((id(array), torch_dtype))
        if place is None:  # an array that a reduction made anew
            key = (id(array), torch_dtype)
            place = self._placements[key] = packed(array, torch_dtype)
        return place

    def _dtype_of(self, emitter: Emitter, array: NDArray[Any]) -> str:
        try:
            return torch_dtype_to_save(array)
        except TypeError as error:
            raise TypeError(f"{emitter.where()}: {error}") from None

    def _write_array(self, emitter: Emitter, array: NDArray[Any]) -> None:
        if not emitter.written(id(array)):
            self._dense.tensor(emitter, self._plain_spec(emitter, array))
            emitter.put_object(array)

    def _write_pickled_array(self, emitter: Emitter, array: PickledArray) -> None:
        if not _is_pickled(array):
            self._write_array(emitter, array)
        elif not emitter.written(id(array)):
            reduction = self._reduce(array)
            if isinstance(reduction, tuple):  # it always is, for an array
                emitter.reduced(array, reduction)

    def _write_typed_array(self, emitter: Emitter, value: TypedArray) -> None:
        if emitter.written(id(value)):
            return
        spec = self._plain_spec(emitter, value)
        self._write_spec(emitter, spec)
        emitter.put_object(value)

    def _plain_spec(self, emitter: Emitter, value: Any) -> TensorSpec:
        """Return the spec of any tensor that a Parameter or the tree may hold."""
        if isinstance(value, LazyTensor):
            return self._spec_of(value.spec)
        if isinstance(value, EarlyTensor):
            if value.writer is not self._writer:
                raise ValueError(f"{emitter.where()}: stored by another writer")
            return value.spec
        if isinstance(value, TypedArray):
            array, torch_dtype = value.array, value.torch_dtype
            if torch_dtype not in DTYPES:
                raise ValueError(f"{emitter.where()}: torch has no dtype {torch_dtype!r}")
            if not (
                isinstance(array, np.ndarray) and array.itemsize == DTYPES[torch_dtype].itemsize
            ):
                raise TypeError(
                    f"{emitter.where()}: a TypedArray of {torch_dtype} needs an array with items "
                    f"of {DTYPES[torch_dtype].itemsize} bytes"
                )
        elif isinstance(value, np.ndarray):
            array, torch_dtype = value, self._dtype_of(emitter, value)
        else:
            raise TypeError(
                f"{emitter.where()}: a Parameter of {type(value).__name__}; its data must be an "
                "array or a tensor"
            )
        place = self._place_of(array, torch_dtype)
        return TensorSpec(
            torch_dtype, array.shape, place.stride, place.storage_offset, place.storage
        )

    def _write_spec(
        self, emitter: Emitter, spec: TensorSpec, requires_grad: bool | None = None
    ) -> None:
        """Write a tensor up to its REDUCE; ``requires_grad`` overrides that of the spec."""
        if requires_grad is not None and requires_grad != spec.requires_grad:
            spec = spec.replace(requires_grad=requires_grad)
        if spec.subclass is None:
            self._dense.tensor(emitter, spec)
            return
        emitter.name("torch._tensor", "_rebuild_from_type_v2")
        emitter.write(b"(")
        self._dense.function(emitter, spec.torch_dtype)
        emitter.save(spec.subclass)
        self._dense.arguments(emitter, spec)
        emitter.save(spec.attributes)
        emitter.write(b"t")
        emitter.put(None)
        emitter.write(b"R")

    def _write_lazy(self, emitter: Emitter, tensor: LazyTensor) -> None:
        if emitter.written(id(tensor)):
            return
        if tensor.spec.is_parameter:
            self._write_parameter_call(emitter, tensor, tensor.requires_grad, None)
        else:
            self._write_spec(emitter, self._spec_of(tensor.spec))
        emitter.put_object(tensor)

    def _write_early(self, emitter: Emitter, tensor: EarlyTensor) -> None:
        if not emitter.written(id(tensor)):
            spec = self._plain_spec(emitter, tensor)
            if spec.is_parameter:
                self._write_parameter_call(emitter, tensor, spec.requires_grad, None)
            else:
                self._write_spec(emitter, spec)
            emitter.put_object(tensor)

    def _write_parameter(self, emitter: Emitter, parameter: Parameter) -> None:
        if not emitter.written(id(parameter)):
            self._write_parameter_call(
                emitter, parameter.data, parameter.requires_grad, parameter.state
            )
            emitter.put_object(parameter)

    def _write_parameter_call(
        self, emitter: Emitter, data: Any, requires_grad: bool, state: Any
    ) -> None:
        if is_jagged(data):  # has a class of its own, and is marked as a parameter there
            attributes = {**(data.attributes or {}), **(state or {}), "_is_param": True}
            self._kinds.write(emitter, data.replace(attributes=attributes), bool(requires_grad))
            return
        with_state = state is not None
        emitter.name("torch._utils", f"_rebuild_parameter{'_with_state' if with_state else ''}")
        emitter.write(b"(" if with_state else b"")
        if isinstance(data, ForeignObject):  # of a class of its own
            emitter.save(data)
        elif isinstance(data, OtherTensor):
            self._kinds.write(emitter, data, requires_grad=False)
            emitter.put(None)
        else:
            # The data of a parameter is a plain tensor that needs no gradient, made anew
            # each time it is asked for.
            self._write_spec(emitter, self._plain_spec(emitter, data), requires_grad=False)
            emitter.put(None)
        emitter.save(bool(requires_grad))
        empty_ordered_dict(emitter)
        if with_state:
            emitter.save(state)
        emitter.write(b"t" if with_state else b"\x87")
        emitter.put(None)
        emitter.write(b"R")

    def _write_other(self, emitter: Emitter, tensor: OtherTensor) -> None:
        if emitter.written(id(tensor)):
            return
        if tensor.is_parameter and not is_jagged(tensor):
            self._write_parameter_call(emitter, tensor, tensor.requires_grad, None)
        else:
            self._kinds.write(emitter, tensor, tensor.requires_grad)
        emitter.put_object(tensor)

    def _write_marked(self, emitter: Emitter, values: MarkedValues) -> None:
        if not emitter.written(id(values)):
            self._write_spec(emitter, values.spec(self._plain_spec(emitter, values.values)))
            emitter.put_object(values)

    def _integers_of(self, emitter: Emitter, tensor: QuantizedTensor) -> TensorSpec:
        """Return the spec of the integers of a quantized tensor, on a storage of its dtype."""
        part = tensor.int_repr
        if isinstance(part, np.ndarray | TypedArray):
            array = part.array if isinstance(part, TypedArray) else part
            return self._plain_spec(emitter, TypedArray(array, tensor.torch_dtype))
        spec = self._plain_spec(emitter, part)
        if spec.torch_dtype == tensor.torch_dtype:
            return spec
        if isinstance(part, EarlyTensor):
            raise TypeError(
                f"{emitter.where()}: its integers were stored early as {spec.torch_dtype}; store "
                "the QuantizedTensor"
            )
        return spec.replace(
            storage=ElementStorage(spec), storage_offset=0, stride=contiguous_stride(spec.shape)
        )

    def _write_storage(self, emitter: Emitter, value: Storage) -> None:
        if isinstance(value, BareStorage):
            storage = value.storage
            if value.count != storage.numel:
                raise UnsupportedError(f"{emitter.where()}: a window of a storage")
        else:
            spec = self._plain_spec(emitter, value.data)
            storage = spec.storage
            storage.location = value.location
        self._dense.persistent_id(emitter, self._storage_of(storage), value.torch_dtype)


def _is_pickled(array: NDArray[Any]) -> bool:
    """Return whether numpy pickled this array, which is then no tensor."""
    return type(array) is PickledArray and array.is_pickled


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


def _reduce_for_good(value: Any) -> Reduction:
    """Return a reduction whose items can be gone over twice."""
    reduction = reduce_object(value.view(np.ndarray) if type(value) is PickledArray else value)
    if isinstance(reduction, tuple) and len(reduction) > 3:
        reduction = tuple(
            list(part) if index in (3, 4) and part is not None else part
            for index, part in enumerate(reduction)
        )
    return reduction


_WITHOUT_ARRAYS = frozenset(
    [str, int, float, bool, type(None), bytes, bytearray, complex, type, range, slice]
)
