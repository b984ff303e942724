"""A loaded object as nested tuples of plain values, from torchzip and from torch alike.

Two readers agree on a file where the two tuples are equal: types, numbers to the bit, shapes and
strides, what lies on one storage, containers that are one object.
"""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np

from torchzip.checkpoint.lazy_tensor import LazyTensor
from torchzip.dtypes import STORAGE_CLASSES
from torchzip.types import (
    Device,
    Dtype,
    ForeignObject,
    Layout,
    MetaTensor,
    NestedTensor,
    OtherTensor,
    Parameter,
    QScheme,
    QuantizedTensor,
    SparseTensor,
    Storage,
)


class UnknownError(Exception):
    """torchzip has kept something as it is, and gives no value that could be compared."""


#: Of larger tensors the values are not compared: a broadcast one may have any size.
_MOST_NBYTES = 1 << 20
Described = tuple[Any, ...]


class Describer:
    """Describes what both readers have: Python's own values. A subclass adds the tensors."""

    def __init__(self) -> None:
        self._numbers: dict[int, int] = {}
        self._kept: list[Any] = []  # an id means something only while its object is there
        self._storages: dict[Any, int] = {}

    def describe(self, value: Any) -> Described:
        """Return a value as tuples."""
        kind = type(value)
        if value is None or kind in (bool, int, str, complex):
            return (kind.__name__, repr(value))
        if kind is float:
            return ("float", value.hex())
        if kind in (bytes, bytearray):
            return (kind.__name__, bytes(value))
        if kind is not tuple and kind is not frozenset:
            if id(value) in self._numbers:
                return ("again", self._numbers[id(value)])
            self._numbers[id(value)] = len(self._numbers)
            self._kept.append(value)
        if isinstance(value, dict):
            items = [(self.describe(key), self.describe(item)) for key, item in value.items()]
            attributes = getattr(value, "__dict__", None) or {}
            more = [(name, self.describe(item)) for name, item in attributes.items()]
            return (kind.__name__, tuple(items), tuple(more))
        if isinstance(value, set | frozenset):
            return (kind.__name__, tuple(sorted(self.describe(item) for item in value)))
        if isinstance(value, list | tuple):
            return (kind.__name__, tuple(self.describe(item) for item in value))
        return self.other(value)

    def other(self, value: Any) -> Described:
        """Return what is not Python's own."""
        raise NotImplementedError

    def number_of(self, storage: Any) -> int:
        """Return which storage this is, in the order in which they were met."""
        return self._storages.setdefault(storage, len(self._storages))


def digest(array: Any) -> str:
    """Return a digest of an array's elements in C order."""
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()


class OfTorchzip(Describer):
    """Describes what `torchzip.lazy_load` gives."""

    def other(self, value: Any) -> Described:
        if isinstance(value, Parameter):
            state = None if not value.state else self.describe(value.state)
            data = self.describe(value.data)[:-1]  # requires_grad is the parameter's
            return ("parameter", value.requires_grad, data, state)
        if isinstance(value, LazyTensor):
            return self._tensor(value)
        if isinstance(value, OtherTensor):
            return self._other_tensor(value)
        if isinstance(value, Storage):
            data = value.data.numpy()
            return ("storage", value.torch_dtype, data.nbytes, digest(data))
        if isinstance(value, Dtype | Layout | QScheme | Device):
            return ("word", str(value))
        if isinstance(value, ForeignObject):
            if value.args is not None:
                raise UnknownError
            storage = STORAGE_CLASSES.get(value.name)
            if storage is not None:
                return ("storage class", storage.name)
            return ("name", f"{value.module}.{value.name}")
        return ("?", type(value).__name__)

    def _tensor(self, tensor: LazyTensor) -> Described:
        spec = tensor.spec
        return (
            "tensor", spec.torch_dtype, spec.shape, spec.stride, spec.storage_offset, spec.conj,
            spec.neg, self.number_of(id(spec.storage)) if spec.storage.nbytes else None,
            digest(tensor.numpy()) if tensor.nbytes <= _MOST_NBYTES else None, spec.requires_grad,
        )  # fmt: skip

    def _other_tensor(self, tensor: OtherTensor) -> Described:
        name, shape, grad = tensor.torch_dtype, tuple(tensor.shape), tensor.requires_grad
        if isinstance(tensor, SparseTensor):
            indices = [digest(part.numpy()) for part in _as_list(tensor.indices)]
            values = digest(tensor.values.numpy())
            return ("sparse", tensor.layout, name, shape, tuple(indices), values, grad)
        if isinstance(tensor, QuantizedTensor):
            numbers = digest(tensor.int_repr.numpy())
            return ("quantized", tensor.qscheme, name, shape, numbers, grad)
        if isinstance(tensor, MetaTensor):
            return ("meta", name, shape, tensor.stride, grad)
        if isinstance(tensor, NestedTensor):
            return ("nested", name, tuple(digest(part) for part in tensor.unbind()), grad)
        return ("?", type(tensor).__name__)


def _as_list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [value]


class OfTorch(Describer):
    """Describes what ``torch.load`` gives. ``torch`` is the module."""

    def __init__(self, torch: Any) -> None:
        super().__init__()
        self._torch = torch

    def other(self, value: Any) -> Described:
        torch = self._torch
        if isinstance(value, torch.nn.Parameter):
            state = dict(value.__dict__)
            return (
                "parameter", value.requires_grad, self._tensor(value)[:-1],
                self.describe(state) if state else None,
            )  # fmt: skip
        if isinstance(value, torch.Tensor):
            return self._tensor(value)
        if isinstance(value, torch.storage.TypedStorage | torch.UntypedStorage):
            is_typed = isinstance(value, torch.storage.TypedStorage)
            raw = value._untyped_storage if is_typed else value
            name = str(value.dtype).removeprefix("torch.") if is_typed else None
            elements = torch.empty(0, dtype=value.dtype if is_typed else torch.uint8).set_(raw)
            return ("storage", name, raw.nbytes(), self._digest(elements))
        if isinstance(value, torch.dtype | torch.layout | torch.qscheme | torch.device):
            return ("word", str(value))
        if type(value).__name__ == "StorageType":
            return ("storage class", str(value.dtype).removeprefix("torch."))
        if isinstance(value, type) or callable(value):
            return ("name", f"{value.__module__}.{getattr(value, '__qualname__', '?')}")
        return ("?", type(value).__name__)

    def _tensor(self, tensor: Any) -> Described:
        torch = self._torch
        grad = tensor.requires_grad
        tensor = tensor.detach()
        name, shape = str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape)
        if tensor.is_nested:
            return ("nested", name, tuple(self._digest(part) for part in tensor.unbind()), grad)
        if tensor.is_quantized:
            scheme = str(tensor.qscheme()).removeprefix("torch.")
            return ("quantized", scheme, name, shape, self._digest(tensor.int_repr()), grad)
        if tensor.layout != torch.strided:
            is_coo = tensor.layout == torch.sparse_coo
            parts = tuple(self._digest(part) for part in _indices(tensor))
            values = self._digest(tensor._values() if is_coo else tensor.values())
            layout = str(tensor.layout).removeprefix("torch.")
            return ("sparse", layout, name, shape, parts, values, grad)
        stride = tuple(tensor.stride())
        if tensor.is_meta:
            return ("meta", name, shape, stride, grad)
        storage = tensor.untyped_storage()
        nbytes = tensor.numel() * tensor.element_size()
        return (
            "tensor", name, shape, stride, tensor.storage_offset(), tensor.is_conj(),
            tensor.is_neg(), self.number_of(storage.data_ptr()) if storage.nbytes() else None,
            self._digest(tensor) if nbytes <= _MOST_NBYTES else None, grad,
        )  # fmt: skip

    def _digest(self, tensor: Any) -> str:
        plain = tensor.detach().resolve_conj().resolve_neg().contiguous()
        if not plain.numel():
            return digest(np.empty(0))
        raw = self._torch.empty(0, dtype=self._torch.uint8).set_(plain.untyped_storage())
        start = plain.storage_offset() * plain.element_size()
        return digest(raw[start : start + plain.numel() * plain.element_size()].numpy())


def _indices(tensor: Any) -> list[Any]:
    if str(tensor.layout) == "torch.sparse_coo":
        return [tensor._indices()]
    if str(tensor.layout) in ("torch.sparse_csr", "torch.sparse_bsr"):
        return [tensor.crow_indices(), tensor.col_indices()]
    return [tensor.ccol_indices(), tensor.row_indices()]
