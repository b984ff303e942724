"""Tensors that are not dense -> the opcodes that torch writes for them.

The counterpart of `rebuild_kinds`; see docs/format.md, section 6.2.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeGuard

import numpy as np

from torchzip.errors import TorchZipError
from torchzip.pickling.emitter import Emitter
from torchzip.tensors.kind_checks import PACKED, Checked, can_check, check_kind, check_values
from torchzip.tensors.rebuild_kinds import NJT
from torchzip.tensors.reduce import DenseWriter, empty_ordered_dict
from torchzip.tensors.specs import TensorSpec, contiguous_stride
from torchzip.types import (
    Dtype,
    ForeignObject,
    Layout,
    MetaTensor,
    NestedTensor,
    OtherTensor,
    QuantizedTensor,
    Size,
    SparseTensor,
    TypedArray,
)

# Names of attributes, which CPython interns: a user's literals are these objects, as in torch.
_DYNAMIC = "_dynamo_propagated_dynamic_indices"


class KindWriter:
    """Writes tensors that are not dense.

    ``spec_of`` gives the spec of a part in the file that is written, ``integers_of`` that of the
    integers of a quantized tensor.
    """

    def __init__(
        self,
        dense: DenseWriter,
        spec_of: Callable[[Emitter, Any], TensorSpec],
        integers_of: Callable[[Emitter, QuantizedTensor], TensorSpec],
    ) -> None:
        self._dense = dense
        self._spec_of = spec_of
        self._integers_of = integers_of
        self._checked = Checked()

    def write(self, emitter: Emitter, tensor: OtherTensor, requires_grad: bool) -> None:
        """Write a tensor up to its REDUCE, without its put.

        Raises
        ------
        ValueError
            If its parts do not fit together, or an index lies outside the shape.
        """
        try:
            check_kind(tensor)
            if can_check(tensor):
                check_values(tensor, self._checked)
        except TorchZipError as error:
            raise ValueError(f"{emitter.where()}: {error.message}") from None
        attributes = tensor.attributes
        if tensor.subclass is None and attributes is None and not is_jagged(tensor):
            self._function(emitter, tensor)
            self._arguments(emitter, tensor, requires_grad)
            emitter.write(b"R")
            return
        subclass = tensor.subclass
        if subclass is None:
            subclass = _NESTED if is_jagged(tensor) else _PLAIN
        emitter.name("torch._tensor", "_rebuild_from_type_v2")
        emitter.write(b"(")
        self._function(emitter, tensor)
        emitter.save(subclass)
        if is_jagged(tensor):
            attributes = self._jagged(emitter, tensor, requires_grad)
        else:
            self._arguments(emitter, tensor, requires_grad)
        emitter.save(attributes)
        emitter.write(b"t")
        emitter.put(None)
        emitter.write(b"R")

    def _function(self, emitter: Emitter, tensor: OtherTensor) -> None:
        if isinstance(tensor, SparseTensor):
            emitter.name("torch._utils", "_rebuild_sparse_tensor")
        elif isinstance(tensor, QuantizedTensor):
            emitter.name("torch._utils", "_rebuild_qtensor")
        elif isinstance(tensor, MetaTensor):
            emitter.name("torch._utils", "_rebuild_meta_tensor_no_storage")
        elif is_jagged(tensor):
            emitter.name(NJT, "_rebuild_njt")
        else:
            emitter.name("torch._utils", "_rebuild_nested_tensor")

    def _arguments(self, emitter: Emitter, tensor: OtherTensor, requires_grad: bool) -> None:
        """Write the argument tuple."""
        if isinstance(tensor, SparseTensor):
            self._sparse(emitter, tensor)
        elif isinstance(tensor, QuantizedTensor):
            self._quantized(emitter, tensor, requires_grad)
        elif isinstance(tensor, NestedTensor):
            emitter.write(b"(")
            for part in (tensor.values, tensor.sizes, tensor.strides, tensor.offsets):
                self._part(emitter, part)
            emitter.write(b"t")
            emitter.put(None)
        elif isinstance(tensor, MetaTensor):
            emitter.save(
                (Dtype(tensor.torch_dtype), (*tensor.shape,), (*tensor.stride,), requires_grad)
            )

    def _part(self, emitter: Emitter, part: Any) -> None:
        """Write a dense tensor inside another.

        torch makes a new object for it each time it is asked, so an array is written anew.
        A LazyTensor is one object wherever its file had one.
        """
        if isinstance(part, np.ndarray | TypedArray):
            self._dense.tensor(emitter, self._spec_of(emitter, part))
            emitter.put(None)
        else:
            emitter.save(part)

    def _sparse(self, emitter: Emitter, tensor: SparseTensor) -> None:
        says_coalesced = tensor.layout == "sparse_coo" and tensor.is_coalesced is not None
        has_mark = tensor.layout != "sparse_coo" or says_coalesced  # of four parts, not three
        emitter.save(Layout(tensor.layout))
        if has_mark:
            emitter.write(b"(")
        pair = tensor.indices if isinstance(tensor.indices, tuple) else (tensor.indices,)
        for part in (*pair, tensor.values):
            self._part(emitter, part)
        emitter.save(Size(map(int, tensor.shape)))
        if says_coalesced:
            emitter.save(tensor.is_coalesced)
        emitter.write(b"t" if has_mark else b"\x87")
        emitter.put(None)
        emitter.write(b"\x86")
        emitter.put(None)

    def _quantized(self, emitter: Emitter, tensor: QuantizedTensor, requires_grad: bool) -> None:
        spec = self._integers_of(emitter, tensor)
        emitter.write(b"(")
        self._dense.persistent_id(emitter, spec.storage, tensor.torch_dtype)
        emitter.save(spec.storage_offset)
        packed = tensor.torch_dtype in PACKED
        emitter.save(tuple(map(int, tensor.shape)))
        emitter.save(contiguous_stride(tensor.shape) if packed else (*spec.stride,))
        if tensor.axis is None:
            emitter.name("torch", "per_tensor_affine")
            emitter.save(tensor.scale)
            emitter.save(tensor.zero_point)
            emitter.write(b"\x87")
        else:
            # The name is the same for both schemes per channel: the dtypes tell them apart.
            emitter.write(b"(")
            emitter.name("torch", "per_channel_affine")
            self._part(emitter, tensor.scale)
            self._part(emitter, tensor.zero_point)
            emitter.save(tensor.axis)
            emitter.write(b"t")
        emitter.put(None)
        emitter.save(requires_grad)
        empty_ordered_dict(emitter)
        emitter.write(b"t")
        emitter.put(None)

    def _jagged(self, emitter: Emitter, tensor: NestedTensor, requires_grad: bool) -> Any:
        """Write the argument tuple of a jagged nested tensor; return its attribute dict."""
        now = {
            "values": tensor.values, "offsets": tensor.offsets, "lengths": tensor.lengths,
            "_ragged_idx": tensor.ragged_idx, "requires_grad": requires_grad,
        }  # fmt: skip
        given = tensor.constructor
        if type(given) is dict:
            emitter.save(({name: now.get(name, value) for name, value in given.items()},))
            # The attributes hold the same tensors, which a copy may have replaced since.
            changed = {
                id(given[name]): now[name] for name in ("values", "offsets", "lengths")
                if given.get(name) is not None
            }  # fmt: skip
            attributes = tensor.attributes
            if type(attributes) is dict:
                attributes = {name: changed.get(id(v), v) for name, v in attributes.items()}
            return attributes
        # One that no file had: as torch 2.13 writes one that was just made. Its constructor marks
        # the values with an attribute, and has cached nothing yet.
        values = MarkedValues(tensor.values, {_DYNAMIC: {tensor.ragged_idx - 1}})
        cache: dict[str, Any] = {}
        fresh = {
            "values": values, "offsets": tensor.offsets, "lengths": tensor.lengths,
            "_ragged_idx": tensor.ragged_idx, "_metadata_cache": cache,
            "requires_grad": requires_grad,
        }  # fmt: skip
        emitter.save((fresh,))
        return {
            "_ragged_idx": tensor.ragged_idx, "_values": values, "_offsets": tensor.offsets,
            "_lengths": tensor.lengths, "_metadata_cache": cache,
            _DYNAMIC: {tensor.ragged_idx}, **(tensor.attributes or {}),
        }  # fmt: skip


class MarkedValues:
    """The values of a jagged nested tensor, with the attribute that torch's constructor sets."""

    __slots__ = ("attributes", "values")

    def __init__(self, values: Any, attributes: dict[str, Any]) -> None:
        self.values = values
        self.attributes = attributes

    def spec(self, spec: TensorSpec) -> TensorSpec:
        """Return the spec of the values as that of a tensor with the attribute."""
        if spec.subclass is not None:
            return spec
        return spec.replace(subclass=_PLAIN, attributes=self.attributes)


def is_jagged(tensor: Any) -> TypeGuard[NestedTensor]:
    """Return whether a value is a jagged nested tensor, which torch has a Python class for."""
    return isinstance(tensor, NestedTensor) and tensor.layout == "jagged"


_PLAIN = ForeignObject("torch", "Tensor")
_NESTED = ForeignObject(NJT, "NestedTensor")
