"""Torch as an oracle: what it writes, and its values in torchzip's words."""

from __future__ import annotations

import copy
import importlib
import io
import math
import random
from collections import OrderedDict, defaultdict, deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray

import torchzip as tz
from tests.picklable import Data, DictSubclass, ListSubclass, OrderedSubclass, Plain, Point

#: torch's name -> the numpy type of the same meaning.
NUMPY_DTYPES: dict[str, str] = {
    name: name
    for name in (
        "float64 float32 float16 bfloat16 int64 int32 int16 int8 uint8 bool complex128 complex64 "
        "uint16 uint32 uint64 complex32 float8_e4m3fn float8_e4m3fnuz float8_e5m2 float8_e5m2fnuz "
        "float8_e8m0fnu"
    ).split()
}
#: torch's name -> the numpy type of its raw bits, where numpy has no such dtype.
RAW_DTYPES: dict[str, str] = {
    "float4_e2m1fn_x2": "uint8",
    "bits8": "uint8",
    "bits1x8": "uint8",
    "bits2x4": "uint8",
    "bits4x2": "uint8",
    "bits16": "uint16",
}
#: The same for dtypes that only bare storages have without more ado.
QUANTIZED_DTYPES: dict[str, str] = {
    "quint8": "uint8",
    "qint8": "int8",
    "qint32": "int32",
    "quint4x2": "uint8",
    "quint2x4": "uint8",
}
TENSOR_DTYPES = (*NUMPY_DTYPES, *RAW_DTYPES)
TYPED_STORAGES = (
    "float64 float32 float16 bfloat16 int64 int32 int16 int8 uint8 bool complex128 complex64 "
    "quint8 qint8 qint32 quint4x2 quint2x4"
).split()


def array_dtype(torch_dtype: str) -> np.dtype[Any]:
    """Return the numpy dtype whose bytes are those of a torch dtype."""
    raw = {**NUMPY_DTYPES, **RAW_DTYPES, **QUANTIZED_DTYPES}[torch_dtype]
    return np.dtype(getattr(ml_dtypes, raw, None) or raw)


# -- marks -----------------------------------------------------------------------------------


def asks_torch(*ignored: str) -> list[pytest.MarkDecorator]:
    """Return the marks of a module that asks torch, with those of its warnings that are let be."""
    return [pytest.mark.torch, *(pytest.mark.filterwarnings(f"ignore:{each}") for each in ignored)]


# -- saving ----------------------------------------------------------------------------------


def torch_bytes(torch: Any, tree: Any, **options: Any) -> bytes:
    """Return what ``torch.save`` writes into a file object."""
    file = io.BytesIO()
    torch.save(tree, file, **options)
    return file.getvalue()


@contextmanager
def torch_settings(torch: Any, alignment: int = 64, crc32: bool = True) -> Iterator[None]:
    """Let ``torch.save`` write with this alignment, and with or without CRCs."""
    config = importlib.import_module("torch.utils.serialization.config")
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(crc32)
    try:
        with config.patch("save.storage_alignment", alignment):
            yield
    finally:
        torch.serialization.set_crc32_options(before)


# -- torch's values in torchzip's words --------------------------------------------------------


class Converter:
    """Turns a torch tree into one for `torchzip.save`. The same object gives the same object."""

    def __init__(self, torch: Any) -> None:
        self._torch = torch
        self._memo: dict[int, Any] = {}
        self._bases: dict[int, NDArray[np.uint8]] = {}
        self._alive: list[Any] = []

    def __call__(self, value: Any) -> Any:
        if isinstance(value, str | int | float | type(None)):
            return value
        if id(value) in self._memo:
            return self._memo[id(value)]
        made = self._convert(value)
        # A tuple may have been met again, and made, inside itself.
        made = self._memo.setdefault(id(value), made)
        self._alive.append(value)
        return made

    def _begin(self, value: Any, made: Any) -> Any:
        self._memo[id(value)] = made
        self._alive.append(value)
        return made

    def _convert(self, value: Any) -> Any:
        torch = self._torch
        kind: Any = type(value)
        made: Any
        if isinstance(value, torch.Tensor):
            return self._tensor(value)
        if isinstance(value, torch.UntypedStorage):
            return tz.types.Storage(self._bytes(value))
        if isinstance(value, torch.storage.TypedStorage):
            name = str(value.dtype).removeprefix("torch.")
            data = self._bytes(value._untyped_storage).view(array_dtype(name))
            typed = name not in NUMPY_DTYPES
            return tz.types.Storage(tz.types.TypedArray(data, name) if typed else data, name)
        if kind is torch.Size:
            return tz.types.Size(value)
        if kind is torch.dtype:
            return tz.types.Dtype(str(value).removeprefix("torch."))
        if kind is torch.device:
            return tz.types.Device(value.type, value.index)
        if kind is torch.layout:
            return tz.types.Layout(str(value).removeprefix("torch."))
        if kind is torch.qscheme:
            return tz.types.QScheme(str(value).removeprefix("torch."))
        if kind is tuple:
            return tuple([self(item) for item in value])
        if kind is Point:
            return Point(*[self(item) for item in value])
        if kind in (list, ListSubclass, deque):
            made = kind(maxlen=value.maxlen) if kind is deque else kind()
            self._begin(value, made).extend([self(item) for item in value])
            return self._attributes(value, made)
        if kind in (dict, OrderedDict, DictSubclass, OrderedSubclass, defaultdict):
            made = defaultdict(value.default_factory) if kind is defaultdict else kind()
            self._begin(value, made)
            for key, item in value.items():
                made[self(key)] = self(item)
            return self._attributes(value, made)
        if kind in (Plain, Data):
            return self._attributes(value, self._begin(value, copy.copy(value)))
        return value

    def _attributes(self, value: Any, made: Any) -> Any:
        for name, attribute in getattr(value, "__dict__", {}).items():
            made.__dict__[name] = self(attribute)
        return made

    def _bytes(self, storage: Any) -> NDArray[np.uint8]:
        if not storage.nbytes():
            return np.empty(0, np.uint8)
        base = self._bases.get(storage.data_ptr())
        if base is None:
            whole = self._torch.empty(0, dtype=self._torch.uint8).set_(storage)
            base = self._bases[storage.data_ptr()] = whole.numpy()
        return base

    def _tensor(self, tensor: Any) -> Any:
        if isinstance(tensor, self._torch.nn.Parameter):
            state = self(dict(tensor.__dict__)) if tensor.__dict__ else None
            data = self._array(tensor.detach())
            return tz.types.Parameter(data, tensor.requires_grad, state)
        plain = not (tensor.requires_grad or tensor.is_conj() or tensor.is_neg())
        assert plain, "torchzip has no array for it"
        assert type(tensor) is self._torch.Tensor
        assert not tensor.__dict__
        return self._array(tensor)

    def _array(self, tensor: Any) -> Any:
        name = str(tensor.dtype).removeprefix("torch.")
        array = raw_array(tensor, self._bytes(tensor.untyped_storage()))
        return tz.types.TypedArray(array, name) if name in RAW_DTYPES else array


def raw_array(tensor: Any, storage: NDArray[np.uint8]) -> NDArray[Any]:
    """Return the array over a storage's bytes that lies as a tensor does."""
    dtype = array_dtype(str(tensor.dtype).removeprefix("torch."))
    strides = tuple(step * dtype.itemsize for step in tensor.stride())
    if not tensor.numel():
        return np.ndarray(tuple(tensor.shape), dtype, np.empty(0, np.uint8), 0, strides)
    offset = tensor.storage_offset() * dtype.itemsize
    return np.ndarray(tuple(tensor.shape), dtype, buffer=storage, offset=offset, strides=strides)


def to_torchzip(torch: Any, tree: Any) -> Any:
    """Return a torch tree as `torchzip.save` takes it."""
    return Converter(torch)(tree)


def storage_array(torch: Any, storage: Any) -> NDArray[np.uint8]:
    """Return the bytes of a torch storage as an array."""
    if not storage.nbytes():
        return np.empty(0, np.uint8)
    array: NDArray[np.uint8] = torch.empty(0, dtype=torch.uint8).set_(storage).numpy()
    return array


# -- making tensors ----------------------------------------------------------------------------


def random_bytes(seed: int, nbytes: int) -> bytearray:
    """Return bytes that are the same each time."""
    return bytearray(random.Random(seed).randbytes(nbytes))


def tensor(
    torch: Any,
    dtype: str,
    shape: tuple[int, ...],
    stride: tuple[int, ...] | None = None,
    offset: int = 0,
    numel: int | None = None,
    seed: int = 0,
) -> Any:
    """Return a tensor over a new storage of random bytes with room for ``numel`` elements."""
    itemsize = array_dtype(dtype).itemsize
    if stride is None:
        stride = tuple(math.prod(max(s, 1) for s in shape[i + 1 :]) for i in range(len(shape)))
    if numel is None:
        reach = sum((size - 1) * step for size, step in zip(shape, stride, strict=True))
        numel = 0 if 0 in shape else offset + reach + 1
    data = random_bytes(seed, numel * itemsize)
    if dtype == "bool":
        data = bytearray(byte & 1 for byte in data)
    return view(torch, dtype, storage_of(torch, data), shape, stride, offset)


def storage_of(torch: Any, data: bytearray | bytes) -> Any:
    """Return an untyped storage of these bytes."""
    if not data:
        return torch.UntypedStorage(0)
    return torch.from_numpy(np.frombuffer(bytearray(data), np.uint8)).untyped_storage()


def view(torch: Any, dtype: str, storage: Any, shape: Any, stride: Any, offset: int = 0) -> Any:
    return torch.empty(0, dtype=getattr(torch, dtype)).set_(storage, offset, shape, stride)


def typed_storage(torch: Any, dtype: str, storage: Any) -> Any:
    """Return a typed storage, without the warning that they are deprecated."""
    kind = getattr(torch, dtype)
    return torch.storage.TypedStorage(wrap_storage=storage, dtype=kind, _internal=True)
