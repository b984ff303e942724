"""Torch as an oracle: what it writes, its values in torchzip's words, equality as it sees it."""

from __future__ import annotations

import copy
import enum
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


# -- saving ----------------------------------------------------------------------------------


def torch_bytes(torch: Any, tree: Any, **options: Any) -> bytes:
    """Return what ``torch.save`` writes into a file object."""
    file = io.BytesIO()
    torch.save(tree, file, **options)
    return file.getvalue()


def torchzip_bytes(tree: Any, **options: Any) -> bytes:
    """Return what ``torchzip.save`` writes into a file object."""
    file = io.BytesIO()
    tz.save(tree, file, **options)
    return file.getvalue()


def assert_same_bytes(actual: bytes, expected: bytes) -> None:
    """Compare two files; the message says where they part, not all that is in them."""
    if actual == expected:
        return
    length = min(len(actual), len(expected))
    first = next((i for i in range(length) if actual[i] != expected[i]), length)
    shown = slice(max(0, first - 48), first + 48)
    raise AssertionError(
        f"{len(actual)} bytes instead of {len(expected)}; from byte {first} on\n"
        f"  wrote    {actual[shown]!r}\n  expected {expected[shown]!r}"
    )


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


# -- equality in torch ---------------------------------------------------------------------------


def assert_equal_in_torch(torch: Any, actual: Any, expected: Any) -> None:
    """Compare two torch trees: values, types, identities, memory, layouts, attributes."""
    _Equality(torch).check(actual, expected, "root")


class _Equality:
    def __init__(self, torch: Any) -> None:
        self._torch = torch
        self._partners: dict[int, tuple[Any, Any]] = {}
        self._backwards: dict[int, tuple[Any, Any]] = {}
        self._storages: dict[int, int] = {}
        self._storages_backwards: dict[int, int] = {}

    def check(self, actual: Any, expected: Any, path: str) -> None:
        torch = self._torch
        assert type(actual) is type(expected), (path, type(actual), type(expected))
        if isinstance(expected, str | int | float | complex | bytes | type(None)):
            assert repr(actual) == repr(expected), path
            return
        if isinstance(expected, type | torch.dtype | enum.Enum | set | frozenset):
            assert actual == expected, path
            return
        if type(expected) is tuple and not expected:
            assert actual == (), path
            return
        if id(expected) in self._partners:
            assert self._partners[id(expected)][1] is actual, f"{path}: no longer one object"
            return
        assert id(actual) not in self._backwards, f"{path}: now the object of another place"
        self._partners[id(expected)] = (expected, actual)
        self._backwards[id(actual)] = (actual, expected)
        if isinstance(expected, torch.Tensor):
            self._tensor(actual, expected, path)
        elif isinstance(expected, torch.storage.TypedStorage):
            assert actual.dtype == expected.dtype, path
            self._storage(actual._untyped_storage, expected._untyped_storage, path)
            return
        elif isinstance(expected, dict):
            assert len(actual) == len(expected), path
            for (key, item), (other, value) in zip(actual.items(), expected.items(), strict=True):
                self.check(key, other, f"{path}, a key")
                self.check(item, value, f"{path}.{other!r}")
        elif isinstance(expected, list | tuple | deque):
            assert len(actual) == len(expected), path
            for index, (item, value) in enumerate(zip(actual, expected, strict=True)):
                self.check(item, value, f"{path}.{index}")
        elif isinstance(expected, torch.Generator):
            assert torch.equal(actual.get_state(), expected.get_state()), path
        elif isinstance(expected, np.ndarray | np.generic):
            assert actual.dtype == expected.dtype, path
            assert actual.tobytes() == expected.tobytes(), path
        elif isinstance(expected, Exception) or " at 0x" not in object_text(expected):
            assert repr(actual) == repr(expected), path
        self._attributes(actual, expected, path)

    def _attributes(self, actual: Any, expected: Any, path: str) -> None:
        left, right = getattr(actual, "__dict__", {}), getattr(expected, "__dict__", {})
        assert list(left) == list(right), path
        for name, value in right.items():
            self.check(left[name], value, f"{path}.{name}")
        for kind in type(expected).__mro__ if type(expected).__module__ == Plain.__module__ else ():
            for name in kind.__dict__.get("__slots__", ()):
                self.check(getattr(actual, name), getattr(expected, name), f"{path}.{name}")

    def _tensor(self, actual: Any, expected: Any, path: str) -> None:
        assert actual.dtype == expected.dtype, path
        assert actual.layout == expected.layout, path
        assert actual.requires_grad == expected.requires_grad, path
        assert actual.is_leaf == expected.is_leaf, path
        if expected.is_nested:
            for item, other in zip(actual.unbind(), expected.unbind(), strict=True):
                assert self._torch.equal(item, other), path
            return
        assert actual.shape == expected.shape, path
        if expected.is_quantized:
            assert actual.qscheme() == expected.qscheme(), path
            for name in ("q_scale", "q_zero_point", "q_per_channel_scales", "q_per_channel_axis"):
                if ("channel" in name) == ("channel" in str(expected.qscheme())):
                    value, other = getattr(actual, name)(), getattr(expected, name)()
                    assert bool((value == other).all() if "scales" in name else value == other)
            assert self._torch.equal(actual.int_repr(), expected.int_repr()), path
            return
        if expected.layout != self._torch.strided:
            for name in ("indices", "crow_indices", "col_indices", "ccol_indices", "values"):
                held = _part_of_sparse(expected, name)
                if held is not None:
                    assert self._torch.equal(_part_of_sparse(actual, name), held), path
            return
        assert actual.stride() == expected.stride(), path
        assert actual.storage_offset() == expected.storage_offset(), path
        assert actual.is_conj() == expected.is_conj(), path
        assert actual.is_neg() == expected.is_neg(), path
        if not expected.is_meta:
            self._storage(actual.untyped_storage(), expected.untyped_storage(), path)

    def _storage(self, actual: Any, expected: Any, path: str) -> None:
        assert actual.nbytes() == expected.nbytes(), path
        if not expected.nbytes():
            return
        left, right = actual.data_ptr(), expected.data_ptr()
        assert self._storages.setdefault(right, left) == left, f"{path}: no longer shared"
        assert self._storages_backwards.setdefault(left, right) == right, f"{path}: now shared"
        assert storage_array(self._torch, actual).tobytes() == (
            storage_array(self._torch, expected).tobytes()
        ), path


def object_text(value: Any) -> str:
    """Return the text of an object, which tells it from others if it has no address in it."""
    return " at 0x" if hasattr(value, "__dict__") else repr(value)


def _part_of_sparse(tensor: Any, name: str) -> Any:
    try:
        return getattr(tensor, name)()
    except RuntimeError:
        return None


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
    """Return a tensor over a storage."""
    return torch.empty(0, dtype=getattr(torch, dtype)).set_(storage, offset, shape, stride)


def typed_storage(torch: Any, dtype: str, storage: Any) -> Any:
    """Return a typed storage, without the warning that they are deprecated."""
    kind = getattr(torch, dtype)
    return torch.storage.TypedStorage(wrap_storage=storage, dtype=kind, _internal=True)
