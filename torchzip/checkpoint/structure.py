"""An object to be saved -> its pickle, and the storages that the pickle mentions.

Two passes. The first, `survey`, finds every array. It takes unknown objects apart with
``__reduce_ex__`` as it meets them, and the second pass, which writes the opcodes, uses the same
reductions.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from torchzip.checkpoint.lazy import Checkpoint
from torchzip.checkpoint.lazy_tensor import LazyFactory, LazyTensor, data_of
from torchzip.checkpoint.readable import check_readable
from torchzip.checkpoint.survey import (
    EarlyTensor,
    PlaceArrays,
    Survey,
    is_pickled,
    reduce_for_good,
)
from torchzip.dtypes import DTYPES
from torchzip.errors import TorchZipError, UnsupportedError
from torchzip.formats.base import read_pickle
from torchzip.limits import DEFAULT_LIMITS, Limits
from torchzip.pickling.emitter import Emitter, StoppedError, Writer
from torchzip.pickling.reductions import Reduction, text_of
from torchzip.tensors.array_likes import array_kind, array_of
from torchzip.tensors.array_rows import ArrayRows
from torchzip.tensors.kinds.base import PartWriter
from torchzip.tensors.kinds.nested import MarkedValues, is_jagged
from torchzip.tensors.memory import (
    Placement,
    packed,
    place_arrays,
    torch_dtype_to_save,
)
from torchzip.tensors.numpy_values import PickledArray, module_of, under_module
from torchzip.tensors.packing import ElementStorage
from torchzip.tensors.persistent_ids import BareStorage
from torchzip.tensors.reduce import (
    LEAF_WRITERS,
    DenseWriter,
    StorageKeys,
    as_storage,
    empty_ordered_dict,
)
from torchzip.tensors.specs import TensorSpec, contiguous_stride
from torchzip.tensors.storage import Measure, TensorStorage
from torchzip.types import (
    ForeignObject,
    OtherTensor,
    Parameter,
    QuantizedTensor,
    Storage,
    TypedArray,
)

#: Types whose tensors any reader takes as they are written here.
_PLAIN = frozenset([np.ndarray, TypedArray, LazyTensor, EarlyTensor, Parameter])


class Structure:
    """The pickle of ``root``. ``refused`` is what torch's default loader will not take.

    ``keys`` hands out the storage keys and may know some already; ``place`` puts arrays into
    storages. ``spec_of`` may change how a tensor of a file is written, ``storage_of`` a bare
    storage. ``writer`` is whose EarlyTensors are welcome. ``numpy_module`` is numpy's inner module
    as the file of the object names it, for values that do not remember it. ``limits`` are the
    bounds that readers will have; what they would refuse is refused here. With ``in_bulk`` tensors
    that are alone on their storage are written many at once, which gives the same bytes sooner: it
    must be false where some tensors have a storage already. ``stop_at`` is a byte of the pickle
    where StoppedError is to be raised.

    Raises
    ------
    TypeError, ValueError
        For what cannot be saved, or could not be read again, with its path in the object.
    """

    def __init__(
        self,
        root: Any,
        keys: StorageKeys,
        place: PlaceArrays,
        spec_of: Callable[[TensorSpec], TensorSpec] | None = None,
        storage_of: Callable[[TensorStorage], TensorStorage] | None = None,
        writer: object = None,
        numpy_module: str | None = None,
        limits: Limits = DEFAULT_LIMITS,
        in_bulk: bool = True,
        stop_at: int | None = None,
    ) -> None:
        keys_before = keys.copy()
        self._dense = DenseWriter(keys)
        self._parts = PartWriter(self._dense, self._plain_spec, self._integers_of)
        self._spec_of = spec_of or (lambda spec: spec)
        # Once for each: the bytes of one that was stored early are compared.
        self._storage_of = functools.cache(storage_of) if storage_of else lambda storage: storage
        self._writer = writer
        self._survey = Survey(root, place, self._spec_of, in_bulk=in_bulk)
        remembered = self._survey.numpy_modules - {None}
        only = remembered.pop() if len(remembered) == 1 else None
        self._numpy_module = numpy_module or only
        self._rows = ArrayRows(keys, self._dense, self._survey.forms, self._survey.storages)
        self._write_array = self._once(self._write_plain)
        write_tensor = self._once(self._write_tensor)
        emitter = Emitter(
            {
                **LEAF_WRITERS,
                np.ndarray: self._write_array,
                PickledArray: self._write_pickled_array,
                TypedArray: self._write_array,
                LazyTensor: write_tensor,
                EarlyTensor: write_tensor,
                Parameter: self._once(self._write_parameter),
                Storage: self._write_storage,
                OtherTensor: self._once(self._write_other),
                MarkedValues: self._once(self._write_marked),
            },
            self._reduce,
            self._rows if self._survey.forms else None,
            self._find_writer,
            _PLAIN,
        )
        if stop_at is not None:
            emitter.stop_at(stop_at)
        self.pickle = emitter.dump(root)
        if self._survey.is_too_deep:
            raise ValueError("nested too deeply to be saved")
        self.refused = emitter.refused
        is_plain = (
            emitter.is_plain
            and emitter.int_nbytes <= limits.int_nbytes
            and self._survey.is_plain(limits)
        )
        try:
            check_readable(self.pickle, len(keys.order), limits, is_plain=is_plain)
        except TorchZipError as error:
            where = "the object itself"
            if error.offset is not None:
                try:
                    Structure(
                        root, keys_before, place, spec_of, storage_of, writer, numpy_module,
                        limits, in_bulk, error.offset,
                    )  # fmt: skip
                except StoppedError as stopped:
                    where = stopped.path
            raise ValueError(f"{where}: {error.message}") from None

    def _reduce(self, value: Any) -> Reduction:
        if type(value) is Checkpoint:  # its pickle names the file, and holds none of it
            raise TypeError("a Checkpoint is an open file and no value; save its root")
        # Used once: an object that is met again before it has a number, because it contains
        # itself, is taken apart again, as pickle does it.
        known = self._survey.reductions.pop(id(value), None)
        reduction = reduce_for_good(value) if known is None else known[1]
        if issubclass(type(value), np.ndarray | np.generic):
            module = module_of(value) or self._numpy_module
            return reduction if module is None else under_module(reduction, module)
        return reduction

    def _find_writer(self, kind: type) -> Writer | None:
        found = array_kind(kind)
        if found == "torch storage":
            return self._write_torch_storage
        return self._write_array if found == "array" else None

    # -- the second pass: writers --------------------------------------------------------

    def _once(self, write: Writer) -> Writer:
        """Return the writer of a tensor: it refers to one that was written before by its number."""

        def write_once(emitter: Emitter, value: Any) -> None:
            if not emitter.written(id(value)) and not self._rows.one(emitter, value):
                write(emitter, value)
                emitter.put_object(value)

        return write_once

    def _place_of(self, array: NDArray[Any], torch_dtype: str) -> Placement:
        placements, key = self._survey.placements, (id(array), torch_dtype)
        if key not in placements:  # an array that a reduction has created
            placements[key] = packed(array, torch_dtype)
        return placements[key]

    def _write_pickled_array(self, emitter: Emitter, array: PickledArray) -> None:
        if not is_pickled(array):
            self._write_array(emitter, array)
        elif not emitter.written(id(array)):
            reduction = self._reduce(array)
            if isinstance(reduction, tuple):  # it always is, for an array
                emitter.reduced(array, reduction)

    def _write_torch_storage(self, emitter: Emitter, value: Any) -> None:
        try:
            storage, torch_dtype = self._survey.torch_storages.get(value)
            if torch_dtype is not None and not DTYPES[torch_dtype].storage_class:
                raise ValueError(f"torch has no storage of dtype {torch_dtype}")
        except Exception as error:  # torch's own errors among them, which name no place
            kind = ValueError if isinstance(error, ValueError) else TypeError
            raise kind(f"{emitter.where()}: {text_of(error)}") from error
        self._dense.persistent_id(emitter, self._storage_of(storage), torch_dtype)

    def _write_plain(self, emitter: Emitter, value: Any) -> None:
        self._write_spec(emitter, self._plain_spec(emitter, value))

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
            array = value
            try:
                torch_dtype = torch_dtype_to_save(array)
            except TypeError as error:
                raise TypeError(f"{emitter.where()}: {error}") from None
        else:
            known = self._as_known(emitter, value)
            if known is not value:
                return self._plain_spec(emitter, known)
            raise TypeError(
                f"{emitter.where()}: a Parameter of {type(value).__name__}; its data must be an "
                "array or a tensor"
            )
        place = self._place_of(array, torch_dtype)
        return TensorSpec(
            torch_dtype, array.shape, place.stride, place.storage_offset,
            self._storage_of(place.storage),
        )  # fmt: skip

    def _as_known(self, emitter: Emitter, value: Any) -> Any:
        """Return a torch tensor or what gives an array as `as_tensor` does; others as they are."""
        found = None if isinstance(value, _KNOWN) else array_kind(type(value))
        if found not in ("torch tensor", "array"):
            return value
        array = self._survey.arrays_of.get(id(value))
        if array is not None:
            return array
        try:
            return data_of(as_tensor(value, self._survey.torch_storages.known))
        except (TypeError, ValueError) as error:
            raise type(error)(f"{emitter.where()}: {error}") from None

    def _write_spec(
        self, emitter: Emitter, spec: TensorSpec, requires_grad: bool | None = None
    ) -> None:
        """Write a tensor up to its REDUCE; ``requires_grad`` overrides that of the spec."""
        if requires_grad is not None and requires_grad != spec.requires_grad:
            spec = spec.replace(requires_grad=requires_grad)
        if spec.subclass is None:
            self._dense.tensor(emitter, spec)
            return
        emitter.is_plain = False
        emitter.name("torch._tensor", "_rebuild_from_type_v2")
        emitter.write(b"(")
        self._dense.function(emitter, spec.torch_dtype)
        emitter.save(spec.subclass)
        self._dense.arguments(emitter, spec)
        emitter.save(spec.attributes)
        emitter.write(b"t")
        emitter.put(None)
        emitter.write(b"R")

    def _write_tensor(self, emitter: Emitter, tensor: LazyTensor | EarlyTensor) -> None:
        if tensor.spec.is_parameter:
            self._write_parameter_call(emitter, tensor, tensor.spec.requires_grad, None)
        else:
            self._write_plain(emitter, tensor)

    def _write_parameter(self, emitter: Emitter, parameter: Parameter) -> None:
        data = self._as_known(emitter, parameter.data)
        self._write_parameter_call(emitter, data, parameter.requires_grad, parameter.state)

    def _write_parameter_call(
        self, emitter: Emitter, data: Any, requires_grad: bool, state: Any
    ) -> None:
        if is_jagged(data):  # has a class of its own, and is marked as a parameter there
            attributes = {**(data.attributes or {}), **(state or {}), "_is_param": True}
            data.replace(attributes=attributes).write(emitter, self._parts, bool(requires_grad))
            return
        with_state = state is not None
        if with_state or isinstance(data, OtherTensor):
            emitter.is_plain = False
        emitter.name("torch._utils", f"_rebuild_parameter{'_with_state' if with_state else ''}")
        emitter.write(b"(" if with_state else b"")
        if isinstance(data, ForeignObject):  # of a class of its own
            emitter.save(data)
        elif isinstance(data, OtherTensor):
            data.write(emitter, self._parts, requires_grad=False)
            emitter.put(None)
        else:
            # The data of a parameter is a plain tensor that needs no gradient, a new object each
            # time it is asked for.
            self._write_spec(emitter, self._plain_spec(emitter, data), requires_grad=False)
            emitter.put(None)
        emitter.save(bool(requires_grad))
        empty_ordered_dict(emitter)
        if with_state:
            emitter.save(state)
        emitter.write(b"t" if with_state else b"\x87")
        emitter.put(None)
        emitter.write(b"R")

    def _write_other(self, emitter: Emitter, value: OtherTensor) -> None:
        tensor = value
        if not all(isinstance(part, _KNOWN) for part in value.parts):
            tensor = value.with_parts(lambda part: self._as_known(emitter, part))
        if tensor.is_parameter and not is_jagged(tensor):
            self._write_parameter_call(emitter, tensor, tensor.requires_grad, None)
        else:
            tensor.write(emitter, self._parts, tensor.requires_grad)

    def _write_marked(self, emitter: Emitter, values: MarkedValues) -> None:
        self._write_spec(emitter, values.spec(self._plain_spec(emitter, values.values)))

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
            self._check_storage(emitter, value, spec)
            storage.location = value.location
        self._dense.persistent_id(emitter, self._storage_of(storage), value.torch_dtype)

    def _check_storage(self, emitter: Emitter, value: Storage, spec: TensorSpec) -> None:
        """Raise where a bare storage would not be the numbers of its data."""
        where, torch_dtype = emitter.where(), value.torch_dtype
        if not isinstance(value.location, str):
            raise TypeError(
                f"{where}: the location of a Storage is a {type(value.location).__name__}; a "
                "string was expected"
            )
        if torch_dtype is not None:
            row = DTYPES.get(torch_dtype)
            if row is None or row.storage_class is None:
                raise ValueError(f"{where}: torch has no storage of dtype {torch_dtype!r}")
            if torch_dtype != spec.torch_dtype:
                raise TypeError(
                    f"{where}: a Storage of {torch_dtype} has data of {spec.torch_dtype}"
                )
        if len(spec.shape) != 1 or (spec.stride != (1,) and spec.numel > 1):
            raise ValueError(f"{where}: the data of a Storage must be one-dimensional, and dense")
        nbytes = spec.numel * DTYPES[spec.torch_dtype].itemsize
        if spec.storage_offset or nbytes != spec.storage.nbytes:
            raise ValueError(
                f"{where}: a Storage of {nbytes:,} bytes which are a part of "
                f"{spec.storage.nbytes:,} that other tensors share; copy its data first"
            )


def as_tensor(
    value: Any, storage_of: Callable[[TensorStorage], TensorStorage] = lambda storage: storage
) -> Any:
    """Return a torch tensor as `lazy_load` would give it, and what gives an array as that array.

    The tensors lie in torch's own memory, or where ``storage_of`` has put each storage.

    Raises
    ------
    TypeError, ValueError
        If it is neither, or cannot be saved. The message has no path.
    """
    found = array_kind(type(value))
    if found == "array":
        return array_of(value)
    if found != "torch tensor":
        raise TypeError(f"an array or a tensor was expected, not {type(value).__name__}")
    keys = StorageKeys()
    pickle = Structure(value, keys, place_arrays).pickle

    def open_storage(key: str, measure: Measure) -> TensorStorage:
        return storage_of(as_storage(keys.order[int(key)]))

    made = read_pickle(pickle, open_storage, LazyFactory, DEFAULT_LIMITS, path="torch").root
    if isinstance(made, ForeignObject):
        raise TypeError(
            f"a {type(value).__qualname__} is a tensor of a class that only its own code can make; "
            "give the plain tensors inside of it"
        )
    return made


#: What the writers take as it is.
_KNOWN = (np.ndarray, TypedArray, LazyTensor, EarlyTensor, OtherTensor, ForeignObject)
