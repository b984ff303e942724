"""What is in a checkpoint, as plain values: a row for each tensor, storage and other value.

`torchzip ls`, a notebook's view of a `Checkpoint` and reports are made from it. No tensor is read.
"""

from __future__ import annotations

import fnmatch
import functools
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol

import numpy as np

from torchzip.checkpoint.lazy_tensor import LazyTensor, data_of, is_tensor
from torchzip.checkpoint.plain_values import Beside, what_is_beside
from torchzip.checkpoint.quantities import count_text, name_text, nbytes_text
from torchzip.container.gguf import value_text
from torchzip.dtypes import DTYPES
from torchzip.errors import LimitError, printable, shortened, shown
from torchzip.formats.base import Container, collector_paused
from torchzip.limits import Limits
from torchzip.pickling.table import Name
from torchzip.tensors.persistent_ids import BareStorage
from torchzip.tensors.specs import span_of
from torchzip.tensors.storage import TensorStorage
from torchzip.types import ForeignObject, MetaTensor, OtherTensor, Size

#: Items of a list in the metadata that are shown.
_LISTED = 8


class Outlined(Protocol):
    """What `outline` asks of a `Checkpoint`, which imports this module for notebooks."""

    path: str
    format: str
    root: Any
    limits: Limits
    metadata: dict[str, str]
    constants: tuple[Any, ...]
    container: Container

    def items(self) -> Collection[tuple[str, Any]]: ...

    @property
    def arrays(self) -> Mapping[str, Any]: ...

    @property
    def subclassed(self) -> Mapping[str, ForeignObject]: ...

    @property
    def foreign_in_root(self) -> list[Name]: ...


class TensorRow(NamedTuple):
    """One tensor. (A NamedTuple, as there may be 100,000 and a dataclass takes five times as long.)

    ``kind`` is "dense", or what the tensor is instead: "sparse_coo", "quantized", "meta", ... An
    axis of a nested tensor whose size is not known is None in ``shape``. ``nbytes`` are those of
    its elements (of all its parts, if it is not dense), ``numel`` its elements: of a sparse or
    nested one the values that are there. Where a GGUF file has codes in the place of the elements,
    ``dtype`` is their type ("q8_0") and ``nbytes`` are theirs.

    ``storages`` are places in `Outline.storages`, one for each part, in the order in which torch
    writes them; a dense tensor has one part, a meta tensor none. ``span`` are the first byte
    and the one after the last that a dense tensor touches in its storage, and ``is_view`` says
    that it has fewer or more elements than are stored there. ``shares_storage_with`` is the
    first tensor in the same storage, ``tied_to`` the first that is the same elements in the same
    form. ``stride`` and ``storage_offset`` count elements; they and ``span`` are None where a
    tensor has none. ``subclass`` is the class of a tensor that is of its own.
    """

    name: str
    kind: str
    dtype: str
    shape: tuple[int | None, ...]
    nbytes: int
    stride: tuple[int, ...] | None
    storage_offset: int | None
    requires_grad: bool
    is_parameter: bool
    location: str
    shares_storage_with: str | None
    tied_to: str | None
    is_view: bool
    span: tuple[int, int] | None
    storages: tuple[int, ...]
    numel: int
    subclass: str | None

    @property
    def kind_text(self) -> str:
        """Its dtype, with what else it is: "float32 sparse_coo param"."""
        kind = f" {self.kind}" if self.kind != "dense" else ""
        return f"{self.dtype}{kind}{' param' if self.is_parameter else ''}"

    @property
    def sharing_text(self) -> str:
        """The tensor that it is, or whose storage it shares, if there is one."""
        if self.tied_to is not None:
            return f"= {name_text(self.tied_to)}"
        if self.shares_storage_with is not None:
            return f"view of {name_text(self.shares_storage_with)}"
        return ""


class StorageRow(NamedTuple):
    """One storage: ``record`` is its name in the file, ``first_name`` who was first seen in it.

    ``dtype`` is None for an untyped one, ``tensors`` how many of the rows lie in it.
    ``stored_nbytes`` are those of the codes that a GGUF file has in the place of its elements, and
    ``nbytes`` for all others.
    """

    record: str | None
    dtype: str | None
    nbytes: int
    location: str
    first_name: str
    tensors: int
    stored_nbytes: int


class ValueRow(NamedTuple):
    """A value that is not a tensor: its path, its type, and itself as messages show it.

    Long values are cut. A list of numbers or strings is one value. A bare storage has the type
    "storage". ``data`` is the value itself if it is a bool, a number or a string, or a list or
    tuple, and None for all others.
    """

    path: str
    type: str
    value: str
    data: bool | int | float | str | list[Any] | tuple[Any, ...] | None = None


@dataclass(frozen=True, slots=True)
class DtypeSum:
    """The tensors of one dtype, ties counted as often as they have names."""

    tensors: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class Outline:
    """What `outline` says of a checkpoint.

    ``tensors`` and ``values`` are in the order of the file, ``storages`` in that in which tensors
    mention them. ``unnamed`` are tensors without a flat name, by the way to each: attributes of
    other tensors, or in an object beside its state dict. ``constants`` are the tensors among those
    of a TorchScript archive, under names such as "(constant 3)" that are not theirs, and
    ``constant_count`` counts all of those. ``stored_nbytes`` counts each storage once.
    ``subclasses`` are the tensors that only code of their own can make, with their classes; what is
    inside them has rows. ``foreign`` are the names outside torchzip's table, ``metadata`` the
    strings of a safetensors file or an index. ``notes`` say what is odd, and what could
    not be listed.
    """

    path: str
    format: str
    tensors: tuple[TensorRow, ...]
    storages: tuple[StorageRow, ...]
    values: tuple[ValueRow, ...]
    unnamed: tuple[TensorRow, ...]
    constants: tuple[TensorRow, ...]
    constant_count: int
    by_dtype: dict[str, DtypeSum]
    stored_nbytes: int
    subclasses: dict[str, str]
    foreign: tuple[str, ...]
    metadata: dict[str, str]
    notes: tuple[str, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors, ties counted as often as they have names."""
        return sum(sums.nbytes for sums in self.by_dtype.values())

    @property
    def sums_text(self) -> str:
        """The format, and the tensors by dtype with their bytes."""
        parts = [
            f"{sums.tensors:,} {dtype} {nbytes_text(sums.nbytes)}"
            for dtype, sums in sorted(self.by_dtype.items())
        ]
        inside = f" ({', '.join(parts)})" if parts else ""
        count = count_text(len(self.tensors), "tensor")
        return f"{self.format}, {count}{inside}, {nbytes_text(self.stored_nbytes)} stored"


@collector_paused(True)  # nothing that is made here has a cycle
def outline(checkpoint: Outlined, *, plain: bool = True) -> Outline:
    """Return what is in a checkpoint. No tensor is read.

    ``plain=False`` leaves out numbers, strings and containers of nothing else, which may be
    millions.

    Raises
    ------
    TorchZipError
        If two tensors have one name, or the names are more than `Limits` allow. Where that is so
        for the values beside them, a note says it and ``values`` is empty.

    Examples
    --------
    >>> import io, numpy as np, torchzip
    >>> buffer = io.BytesIO()
    >>> weight = np.zeros((2, 3), np.float32)
    >>> torchzip.save({"weight": weight, "tied": weight, "step": 7}, buffer)
    >>> start = buffer.seek(0)
    >>> found = outline(torchzip.lazy_load(buffer))
    >>> [(row.name, row.shape, row.tied_to) for row in found.tensors], found.stored_nbytes
    ([('weight', (2, 3), None), ('tied', (2, 3), 'weight')], 24)
    >>> found.values
    (ValueRow(path='step', type='int', value='7', data=7),)
    """
    rows = _Rows()
    tensors = [rows.row(name, tensor) for name, tensor in checkpoint.items()]
    notes = list(checkpoint.container.notes)
    beside = Beside()
    try:
        named = [*(tensor for _, tensor in checkpoint.items()), *checkpoint.arrays.values()]
        beside = what_is_beside(checkpoint.root, named, checkpoint.limits, plain=plain)
    except LimitError as error:
        notes.append(f"values that are not tensors are not listed: {error.message}")
    values = beside.values
    unnamed = [rows.row(name, tensor) for name, tensor in beside.tensors.items()]
    constants = []
    for index, constant in enumerate(checkpoint.constants):
        name = f"(constant {index})"
        if is_tensor(constant):
            constants.append(rows.row(name, data_of(constant)))
        else:
            values.setdefault(name, constant)
    return Outline(
        path=checkpoint.path,
        format=checkpoint.format,
        tensors=tuple(tensors),
        values=tuple(rows.value(path, value) for path, value in values.items()),
        storages=rows.storages(),  # when all that mentions them has been seen
        unnamed=tuple(unnamed),
        constants=tuple(constants),
        constant_count=len(checkpoint.constants),
        by_dtype=_by_dtype(tensors),
        stored_nbytes=rows.stored_nbytes,
        subclasses={name: class_of(call) for name, call in checkpoint.subclassed.items()},
        foreign=tuple(f"{module}.{name}" for module, name in checkpoint.foreign_in_root),
        metadata={key: value_text(text, _LISTED) for key, text in checkpoint.metadata.items()},
        notes=tuple(notes),
    )


def chosen(outline: Outline, globs: Sequence[str]) -> Outline:
    """Return an outline of the tensors and values that match one of some globs; all without any.

    Raises
    ------
    ValueError
        If nothing matches one of them.
    """
    if not globs:
        return outline
    names = [each.name for each in (*outline.tensors, *outline.unnamed, *outline.constants)]
    names += [row.path for row in outline.values]
    wanted: set[str] = set()
    for glob in globs:
        found = [name for name in names if fnmatch.fnmatchcase(name, glob)]
        if not found:
            raise ValueError(f"{outline.path}: nothing is called {shown(glob)}")
        wanted.update(found)
    tensors, unnamed, constants = (
        tuple(row for row in rows if row.name in wanted)
        for rows in (outline.tensors, outline.unnamed, outline.constants)
    )
    used = {number for row in (*tensors, *unnamed, *constants) for number in row.storages}
    return replace(
        outline,
        tensors=tensors,
        unnamed=unnamed,
        constants=constants,
        values=tuple(row for row in outline.values if row.path in wanted),
        by_dtype=_by_dtype(tensors),
        stored_nbytes=sum(outline.storages[number].stored_nbytes for number in used),
    )


def _by_dtype(rows: Sequence[TensorRow]) -> dict[str, DtypeSum]:
    sums: dict[str, list[int]] = {}
    for row in rows:
        found = sums.get(row.dtype) or sums.setdefault(row.dtype, [0, 0])
        found[0] += 1
        found[1] += row.nbytes
    return {dtype: DtypeSum(*each) for dtype, each in sums.items()}


def class_of(call: ForeignObject) -> str:
    """Return the class of a tensor that stays foreign, or else what rebuilds it."""
    named = [arg for arg in call.args or () if isinstance(arg, ForeignObject) and arg.how == "name"]
    return _name_of(named[-1] if named else call)


class _Rows:
    """Makes rows, and numbers the storages in the order in which they come."""

    def __init__(self) -> None:
        self.stored_nbytes = 0
        self._numbers: dict[int, int] = {}
        self._storages: list[TensorStorage] = []
        self._firsts: list[str] = []
        self._tensors: list[int] = []
        self._measure = functools.cache(_measure)
        # The first tensor of each form, in those storages that have several.
        self._first_of_form: dict[tuple[Any, ...], str] = {}
        self._only: dict[int, LazyTensor | OtherTensor] = {}

    def row(self, name: str, tensor: LazyTensor | OtherTensor) -> TensorRow:
        if isinstance(tensor, OtherTensor):
            return self._other_row(name, tensor)
        spec = tensor.spec
        storage = spec.storage
        dtype, shape, stride = spec.torch_dtype, spec.shape, spec.stride
        numel, nbytes, reach = self._measure(dtype, shape, stride)
        offset = spec.storage_offset
        start = offset * (nbytes // numel) if numel else 0
        number = self._numbers.get(id(storage))
        shares = tied = None
        if number is None:
            number = self._add(storage, name)
            self._only[number] = tensor
        else:
            shares = self._firsts[number]
            tied = self._tied_to(name, tensor, (number,))
        self._tensors[number] += 1
        told, told_nbytes = dtype, nbytes
        if storage.block is not None:
            told, told_nbytes = storage.block, storage.stored.nbytes
        # (This is called for every tensor: straight to tuple is a third of the time.)
        return tuple.__new__(TensorRow, (
            name, "dense", told, shape, told_nbytes, stride, offset,
            spec.requires_grad, spec.is_parameter, storage.location,
            shares, tied, nbytes != reach or reach != storage.nbytes,
            (start, start + reach), (number,), numel,
            None if spec.subclass is None else _name_of(spec.subclass),
        ))  # fmt: skip

    def _other_row(self, name: str, tensor: OtherTensor) -> TensorRow:
        parts: list[LazyTensor] = tensor.parts
        numbers = []
        shares = None
        for part in parts:
            number = self._numbers.get(id(part.spec.storage))
            if number is None:
                number = self._add(part.spec.storage, name)
            elif self._firsts[number] != name:
                shares = self._firsts[number]
            numbers.append(number)
        for number in set(numbers):
            self._tensors[number] += 1
        return TensorRow(
            name, tensor.kind, tensor.torch_dtype, tensor.shape, tensor.nbytes,
            tensor.stride if isinstance(tensor, MetaTensor) else None, None,
            tensor.requires_grad, tensor.is_parameter,
            parts[0].spec.storage.location if parts else "meta",
            shares, self._tied_to(name, tensor, tuple(numbers)), False,
            None, tuple(numbers), _numel_of(tensor),
            None if tensor.subclass is None else _name_of(tensor.subclass),
        )  # fmt: skip

    def _tied_to(
        self, name: str, tensor: LazyTensor | OtherTensor, numbers: tuple[int, ...]
    ) -> str | None:
        """Return the first tensor of the form of this one, if that is not itself."""
        if not numbers:
            return None
        only = self._only.pop(numbers[0], None)
        if only is not None:
            self._first_of_form[_form(only, numbers[:1])] = self._firsts[numbers[0]]
        first = self._first_of_form.setdefault(_form(tensor, numbers), name)
        return None if first == name else first

    def _add(self, storage: TensorStorage, name: str) -> int:
        number = self._numbers[id(storage)] = len(self._storages)
        self._storages.append(storage)
        self._firsts.append(name)
        self._tensors.append(0)
        self.stored_nbytes += storage.stored.nbytes
        return number

    def value(self, path: str, value: Any) -> ValueRow:
        if isinstance(value, BareStorage):
            if id(value.storage) not in self._numbers:
                self._add(value.storage, path)
            of = "bytes" if value.torch_dtype is None else value.torch_dtype
            return ValueRow(path, "storage", f"{value.count:,} {of}, {value.location}")
        data = value.item() if isinstance(value, np.number | np.bool_) else value
        is_plain = isinstance(data, _PLAIN) and not isinstance(data, Size)
        return ValueRow(path, _type_of(value), _short(value), data if is_plain else None)

    def storages(self) -> tuple[StorageRow, ...]:
        return tuple(
            StorageRow(
                each.record, each.torch_dtype, each.nbytes, each.location, name, tensors,
                each.stored.nbytes,
            )
            for each, name, tensors in zip(self._storages, self._firsts, self._tensors, strict=True)
        )  # fmt: skip


def _form(tensor: LazyTensor | OtherTensor, numbers: tuple[int, ...]) -> tuple[Any, ...]:
    """Return what is equal for two tensors that are the same elements in the same form."""
    if isinstance(tensor, OtherTensor):
        # (Its parts and its shape tell it: what else it has is in no storage.)
        inner = tuple(_form(part, ()) for part in tensor.parts)
        return (numbers, tensor.kind, tensor.torch_dtype, tensor.shape, inner)
    spec = tensor.spec
    return (
        numbers, spec.torch_dtype, spec.shape, spec.stride, spec.storage_offset, spec.conj, spec.neg
    )  # fmt: skip


def _measure(dtype: str, shape: tuple[int, ...], stride: tuple[int, ...]) -> tuple[int, int, int]:
    """Return the elements, their bytes, and the bytes from the first to the last."""
    itemsize = DTYPES[dtype].itemsize
    numel = math.prod(shape)
    if not numel:
        return 0, 0, 0
    return numel, numel * itemsize, span_of(shape, stride) * itemsize


def _numel_of(tensor: OtherTensor) -> int:
    values = getattr(tensor, "values", None)
    if values is not None:
        return math.prod(values.shape)
    return math.prod(size for size in tensor.shape if size is not None)


def _name_of(named: ForeignObject) -> str:
    return f"{named.module}.{named.name}"


#: Leaf types whose repr says all, is short and cannot fail.
_TOLD_BY_REPR = frozenset(
    "date datetime time timedelta Decimal UUID PurePosixPath PureWindowsPath range".split()
)


#: What `ValueRow.data` may be.
_PLAIN = (bool, int, float, str, list, tuple)


def _short(value: Any) -> str:
    """Return a value as messages show it; arrays and sets are described."""
    if isinstance(value, np.ndarray):
        return f"an array, {value.dtype} {list(value.shape)}"
    if isinstance(value, np.generic):
        return shown(value.item())
    if isinstance(value, set | frozenset):
        return f"a {type(value).__name__} of {len(value):,}" if value else "an empty set"
    if isinstance(value, Size):
        return shown(tuple(value))
    if type(value).__name__ in _TOLD_BY_REPR:
        return shortened(printable(repr(value)), 100)
    return shown(value)


def _type_of(value: Any) -> str:
    if isinstance(value, ForeignObject):
        return "foreign"
    name = type(value).__name__
    return "array" if name == "ndarray" else name
