"""Nested tensors: strided <-> ``_rebuild_nested_tensor``, jagged <-> ``_rebuild_njt``."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, TypeGuard

import numpy as np

from torchzip.errors import (
    MAX_NDIM,
    EnoughMemory,
    PickleError,
    TensorError,
    listed,
    shown,
    wrong_arguments,
)
from torchzip.leaf_types import ForeignObject
from torchzip.pickling.table import Name
from torchzip.tensors.kinds.base import NJT, PLAIN_CLASS, OtherTensor, PartReader, PartWriter
from torchzip.tensors.kinds.parts import (
    Array,
    Checked,
    as_array,
    bare,
    check_memory,
    dtype_name,
    dtype_of,
    ends,
    outside,
    shape_of,
    steps,
)
from torchzip.tensors.specs import TensorSpec, check_count

if TYPE_CHECKING:
    from torchzip.pickling.emitter import Emitter

_CLASS = ForeignObject(NJT, "NestedTensor")
_REBUILD_JAGGED = (NJT, "_rebuild_njt")

# Names of attributes, which CPython interns: a user's literals are these objects, as in torch.
_DYNAMIC = "_dynamo_propagated_dynamic_indices"
#: What one small array costs beside its elements.
_ARRAY_NBYTES = 112


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class NestedTensor(OtherTensor):
    """A nested tensor: several tensors of different sizes over one buffer, ``values``.

    ``layout`` is ``"strided"`` or ``"jagged"``. Strided: ``sizes`` and ``strides`` are int64 arrays
    of shape (n, dimensions) and ``offsets`` one of shape (n), in elements of ``values``, which has
    one dimension. Jagged: tensor i is the part of ``values`` on axis ``ragged_idx - 1`` from
    ``offsets[i]`` to ``offsets[i + 1]``, or of ``lengths[i]`` elements if there are lengths.
    ``constructor`` is the argument dict of a jagged tensor as in its file, with torch's caches;
    ``attributes`` is torch's attribute dict.

    >>> import numpy as np
    >>> nested = NestedTensor("jagged", np.arange(5.0), np.array([0, 2, 5]))
    >>> nested, [array.tolist() for array in nested.unbind()]
    (NestedTensor(jagged, float64, shape=[2, None]), [[0.0, 1.0], [2.0, 3.0, 4.0]])
    """

    layout: str
    values: Any
    offsets: Any
    sizes: Any = field(default=None, kw_only=True)
    strides: Any = field(default=None, kw_only=True)
    lengths: Any = field(default=None, kw_only=True)
    ragged_idx: int = field(default=1, kw_only=True)
    requires_grad: bool = field(default=False, kw_only=True)
    constructor: Any = field(default=None, kw_only=True)

    REBUILT_BY: ClassVar[Name] = ("torch._utils", "_rebuild_nested_tensor")
    PARTS: ClassVar[tuple[str, ...]] = ("values", "sizes", "strides", "offsets", "lengths")

    def __post_init__(self) -> None:
        self._check_parts("values", "offsets")

    @property
    def torch_dtype(self) -> str:
        """Torch's name of the dtype of the values."""
        return dtype_name(self.values)

    @property
    def shape(self) -> tuple[int | None, ...]:
        """The shape, with None for each axis whose size differs or is unknown before reading."""
        if self.layout == "strided":
            sizes = self.sizes.shape
            return (int(self.offsets.shape[0]), *(None for _ in range(sizes[1] if sizes else 0)))
        inner = list(bare(self.values).shape)
        inner[self.ragged_idx - 1] = None
        return (int(self.offsets.shape[0]) - 1, *inner)

    @property
    def kind(self) -> str:
        return "nested" if self.layout == "strided" else "nested_jagged"

    @EnoughMemory()
    def unbind(self) -> list[Array]:
        """Return its tensors as arrays: views of one array that is read as a whole.

        Raises
        ------
        TensorError
            If one of them does not lie inside the values.
        OSError
            If the values do not fit into memory.
        """
        self.check()
        count = shape_of(self.offsets)[0]
        check_memory(count * _ARRAY_NBYTES + self.nbytes, f"a nested tensor of {count:,}")
        tensor = self.with_parts(as_array)  # read once
        tensor.check_values()
        values = tensor.values
        offsets = tensor.offsets.tolist()
        if self.layout == "jagged":
            axis = (slice(None),) * (self.ragged_idx - 1)
            lengths = np.diff(tensor.offsets) if tensor.lengths is None else tensor.lengths
            return [
                values[(*axis, slice(start, start + length))]
                for start, length in zip(offsets, lengths.tolist(), strict=False)
            ]
        made: list[Array] = []
        if not offsets:
            return made
        rows = zip(tensor.sizes.tolist(), tensor.strides.tolist(), offsets, strict=True)
        for sizes, strides, offset in rows:
            if 0 in sizes:
                made.append(np.empty(sizes, values.dtype))
                continue
            nbytes = tuple(
                step * values.strides[0] if size > 1 else 0
                for size, step in zip(sizes, strides, strict=True)
            )
            made.append(np.lib.stride_tricks.as_strided(values[offset:], sizes, nbytes))
        return made

    def _check(self) -> None:
        values, offsets = shape_of(self.values), shape_of(self.offsets)
        dtype_of(self.values)
        if self.layout == "strided":
            if self.sizes is None or self.strides is None or self.lengths is not None:
                raise TensorError("a strided nested tensor has sizes, strides, offsets, no lengths")
            dtypes = {dtype_of(part) for part in (self.sizes, self.strides, self.offsets)}
            sizes, strides = shape_of(self.sizes), shape_of(self.strides)
            if offsets == (0,) and sizes == strides == () and len(values) == 1:
                return  # torch 2.13 writes an empty one so, and cannot read it itself
            if not (
                dtypes == {"int64"}
                and len(values) == len(offsets) == 1
                and len(sizes) == 2
                and sizes == strides
                and sizes[0] == offsets[0]
                and sizes[1] <= MAX_NDIM
            ):
                raise TensorError(
                    f"a nested tensor has values of shape {list(values)}, sizes of shape "
                    f"{list(sizes)}, strides of shape {list(strides)} and offsets of shape "
                    f"{list(offsets)} ({', '.join(sorted(dtypes))}), which do not fit together"
                )
            return
        if self.layout != "jagged":
            raise TensorError(
                f"the layout of a nested tensor is {shown(self.layout)}; 'strided' or 'jagged' was "
                "expected"
            )
        if self.sizes is not None or self.strides is not None:
            raise TensorError("a jagged nested tensor has offsets, and no sizes or strides")
        ragged = self.ragged_idx
        if type(ragged) is not int or not 1 <= ragged <= len(values):
            raise TensorError(
                f"the ragged_idx of a nested tensor over values of {len(values)} dimensions is "
                f"{shown(ragged)}"
            )
        for part in (self.offsets, self.lengths):
            if part is not None and not (
                dtype_of(part) in ("int64", "int32") and len(shape_of(part)) == 1
            ):
                raise TensorError(
                    f"the offsets or lengths of a nested tensor are {dtype_of(part)} of shape "
                    f"{list(shape_of(part))}; int64 or int32 with one dimension was expected"
                )
        lengths = None if self.lengths is None else shape_of(self.lengths)[0]
        if offsets[0] < 1 or lengths not in (None, offsets[0] - 1):
            raise TensorError(f"a nested tensor has {offsets[0]:,} offsets and {lengths} lengths")

    def _check_values(self, checked: Checked) -> None:
        if self.layout == "jagged":
            self._check_jagged_values(checked)
            return
        if shape_of(self.offsets) == (0,):
            return
        numel = shape_of(self.values)[0]
        negative, far, reach = checked.find(
            _reach, self.sizes, self.strides, self.offsets, axes=(0,)
        )
        if negative:
            raise TensorError("a nested tensor has a size, stride or offset below 0")
        if far or reach >= numel:
            raise TensorError(
                f"a tensor within a nested tensor reaches outside the {numel:,} values that it has"
            )

    def _check_jagged_values(self, checked: Checked) -> None:
        size = shape_of(self.values)[self.ragged_idx - 1]
        low, high = checked.find(ends, self.offsets)
        if low < 0 or high > size:
            raise outside("the offsets of a nested tensor", low, high, size)
        if self.lengths is None:
            if checked.find(steps, self.offsets)[-1]:
                raise TensorError("the offsets of a nested tensor go backwards")
            return
        if 0 in shape_of(self.lengths):
            return
        low, high = checked.find(ends, self.lengths)
        if low < 0 or high > size:
            raise outside("the lengths of a nested tensor", low, high, size)
        if checked.find(_furthest_end, self.offsets, self.lengths)[0] > size:
            raise TensorError(
                f"an offset and length of a nested tensor end past its {size:,} values"
            )

    def _torch_names(self) -> tuple[Name, ForeignObject | None]:
        return (_REBUILD_JAGGED, _CLASS) if self.layout == "jagged" else (self.REBUILT_BY, None)

    def _write_arguments(self, emitter: Emitter, parts: PartWriter, requires_grad: bool) -> Any:
        if self.layout == "jagged":
            return self._write_jagged(emitter, requires_grad)
        parts.tuple(emitter, self.values, self.sizes, self.strides, self.offsets)
        return self.attributes

    def _write_jagged(self, emitter: Emitter, requires_grad: bool) -> Any:
        now = {
            "values": self.values, "offsets": self.offsets, "lengths": self.lengths,
            "_ragged_idx": self.ragged_idx, "requires_grad": requires_grad,
        }  # fmt: skip
        given = self.constructor
        if type(given) is dict:
            emitter.save(({name: now.get(name, value) for name, value in given.items()},))
            # The attributes hold the same tensors, which a copy may have replaced since.
            changed = {
                id(given[name]): now[name] for name in ("values", "offsets", "lengths")
                if given.get(name) is not None
            }  # fmt: skip
            attributes = self.attributes
            if type(attributes) is dict:
                attributes = {name: changed.get(id(v), v) for name, v in attributes.items()}
            return attributes
        # One that no file had: as torch 2.13 writes one that was just made. Its constructor marks
        # the values with an attribute, and has cached nothing yet.
        values = MarkedValues(self.values, {_DYNAMIC: {self.ragged_idx - 1}})
        cache: dict[str, Any] = {}
        fresh = {
            "values": values, "offsets": self.offsets, "lengths": self.lengths,
            "_ragged_idx": self.ragged_idx, "_metadata_cache": cache,
            "requires_grad": requires_grad,
        }  # fmt: skip
        emitter.save((fresh,))
        return {
            "_ragged_idx": self.ragged_idx, "_values": values, "_offsets": self.offsets,
            "_lengths": self.lengths, "_metadata_cache": cache,
            _DYNAMIC: {self.ragged_idx}, **(self.attributes or {}),
        }  # fmt: skip

    def _describe(self) -> str:
        return f"{self.layout}, {self.torch_dtype}, shape={list(self.shape)}"


def _reach(sizes: Array, strides: Array, offsets: Array) -> tuple[int, ...]:
    """Return if a number is negative, if one is far too large, and the furthest element."""
    if any(part.size and part.min() < 0 for part in (sizes, strides, offsets)):
        return 1, 0, 0
    # In floats first, which do not overflow and are exact enough to tell what is far outside.
    far = 2.0**62
    filled: Array = np.all(sizes > 0, axis=1)
    reaches = ((sizes.astype(float) - 1) * strides).sum(axis=1) + offsets
    counts = np.maximum(sizes, 1).astype(float).prod(axis=1)
    if (counts >= far).any() or (filled & (reaches >= far)).any():
        return 0, 1, 0
    exact = np.where(filled[:, None], (sizes - 1) * strides, 0).sum(axis=1) + offsets
    return 0, 0, int(np.where(filled, exact, -1).max())


def _furthest_end(offsets: Array, lengths: Array) -> tuple[int, ...]:
    starts = offsets if len(offsets) == 1 else offsets[:-1]
    return (int((starts.astype(np.int64) + lengths).max()),)


NestedTensor.__module__ = "torchzip.types"


def rebuild(args: tuple[Any, ...], parts: PartReader) -> NestedTensor:
    check_count("_rebuild_nested_tensor", args, 4)
    values, sizes, strides, offsets = map(
        parts.part, args, ("values", "sizes", "strides", "offsets")
    )
    return NestedTensor("strided", values, offsets, sizes=sizes, strides=strides)


def rebuild_jagged(args: tuple[Any, ...], parts: PartReader) -> NestedTensor:
    if len(args) != 1 or type(args[0]) is not dict:
        raise wrong_arguments("_rebuild_njt", "one dict", args)
    given = args[0]
    if not {"values", "offsets"} <= given.keys():
        raise PickleError(
            f"_rebuild_njt takes values and offsets, not {listed(list(given)) or 'nothing'}"
        )
    lengths = given.get("lengths")
    return NestedTensor(
        "jagged",
        parts.part(given["values"], "values"),
        parts.part(given["offsets"], "offsets"),
        lengths=None if lengths is None else parts.part(lengths, "lengths"),
        ragged_idx=given.get("_ragged_idx", 1),
        requires_grad=given.get("requires_grad", False),
        constructor=given,
    )


@dataclass(slots=True, eq=False, repr=False)
class MarkedValues:
    """The values of a jagged nested tensor, with the attribute that torch's constructor sets."""

    values: Any
    attributes: dict[str, Any]

    def spec(self, spec: TensorSpec) -> TensorSpec:
        """Return the spec of the values as that of a tensor with the attribute."""
        if spec.subclass is not None:
            return spec
        return spec.replace(subclass=PLAIN_CLASS, attributes=self.attributes)


def is_jagged(tensor: Any) -> TypeGuard[NestedTensor]:
    """Return whether a value is a jagged nested tensor, which torch has a Python class for."""
    return isinstance(tensor, NestedTensor) and tensor.layout == "jagged"
