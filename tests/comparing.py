"""Compares arrays, tensors and the trees that they are in: torchzip's and torch's.

An array of numpy, a `LazyTensor`, a `TypedArray` and a tensor of torch are all compared as the bits
that they stand for.
"""

from __future__ import annotations

import datetime
import decimal
import enum
import fractions
import pathlib
import types
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

import torchzip as tz
from tests.picklable import Plain
from tests.torch_oracle import array_dtype, raw_array, storage_array
from torchzip.types import (
    MetaTensor,
    NestedTensor,
    OtherTensor,
    Parameter,
    QuantizedTensor,
    SparseTensor,
)

_PLAIN_VALUES = (
    datetime.date, datetime.time, datetime.timedelta, datetime.timezone, decimal.Decimal,
    fractions.Fraction, pathlib.PurePath, np.generic, np.dtype,
)  # fmt: skip


# -- bytes and arrays ------------------------------------------------------------------------------


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


def array_of(value: Any) -> NDArray[Any]:
    """Return a dense tensor of any kind as an array, conj and neg carried out."""
    if hasattr(value, "untyped_storage"):
        import torch

        value = value.detach().resolve_conj().resolve_neg()
        return raw_array(value, storage_array(torch, value.untyped_storage()))
    value = value.numpy() if isinstance(value, tz.LazyTensor) else value
    return np.asarray(value.array if isinstance(value, tz.types.TypedArray) else value)


def assert_same_array(actual: Any, expected: Any, path: str = "") -> None:
    """Compare dtype, shape and bits."""
    one, other = array_of(actual), array_of(expected)
    assert (one.dtype, one.shape) == (other.dtype, other.shape), path
    assert one.tobytes() == other.tobytes(), path


def assert_same_tree(actual: Any, expected: Any, path: str = "root") -> None:
    """Compare two trees: keys and their order, arrays bit for bit, what else there is by value."""
    if isinstance(expected, dict):
        assert list(actual) == list(expected), path
        for key, value in expected.items():
            assert_same_tree(actual[key], value, f"{path}.{key}")
    elif isinstance(expected, list | tuple):
        assert len(actual) == len(expected), path
        for index, (one, other) in enumerate(zip(actual, expected, strict=True)):
            assert_same_tree(one, other, f"{path}.{index}")
    elif isinstance(expected, np.ndarray | tz.LazyTensor | tz.types.TypedArray) or (
        hasattr(expected, "untyped_storage")
    ):
        assert_same_array(actual, expected, path)
    else:
        assert actual == expected, path


def assert_same_tensor(actual: Any, expected: Any, path: str = "") -> None:
    """Compare a `LazyTensor` with a tensor of torch: its dtype, where it lies, and its bits."""
    assert type(actual) is tz.LazyTensor, path
    assert actual.torch_dtype == str(expected.dtype).removeprefix("torch."), path
    assert actual.stride == expected.stride(), path
    assert actual.storage_offset == expected.storage_offset(), path
    assert_same_array(actual, expected, path)


# -- trees in which identity counts ----------------------------------------------------------------


class _Comparison:
    """Compares two trees, of which one has torch's tensors. What is one object stays one."""

    def __init__(self, torch: Any) -> None:
        self._torch = torch
        self._partners: dict[int, tuple[Any, Any]] = {}
        self._places: dict[int, int] = {}
        self._places_backwards: dict[int, int] = {}

    def check(self, actual: Any, expected: Any, path: str = "root") -> None:
        """Compare two objects and all that is in them."""
        raise NotImplementedError

    def _items(self, actual: Iterable[Any], expected: Iterable[Any], path: str) -> None:
        """Compare pairs of key and value, in their order."""
        ours, theirs = list(actual), list(expected)
        assert len(ours) == len(theirs), path
        for (key, value), (expected_key, expected_value) in zip(ours, theirs, strict=True):
            self.check(key, expected_key, f"{path}, a key")
            self.check(value, expected_value, f"{path}.{expected_key}")

    def _place(self, actual: int, expected: int, path: str) -> None:
        """Compare addresses: what shares memory here shares it there, and nothing else does."""
        assert self._places.setdefault(expected, actual) == actual, f"{path}: no longer shared"
        assert self._places_backwards.setdefault(actual, expected) == expected, (
            f"{path}: now shared"
        )


def assert_equal_in_torch(torch: Any, actual: Any, expected: Any) -> None:
    """Compare two torch trees: values, types, identities, memory, layouts, attributes."""
    _Equality(torch).check(actual, expected)


class _Equality(_Comparison):
    def __init__(self, torch: Any) -> None:
        super().__init__(torch)
        self._backwards: dict[int, Any] = {}

    def check(self, actual: Any, expected: Any, path: str = "root") -> None:
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
        self._backwards[id(actual)] = actual
        if isinstance(expected, torch.Tensor):
            self._tensor(actual, expected, path)
        elif isinstance(expected, torch.storage.TypedStorage):
            assert actual.dtype == expected.dtype, path
            self._storage(actual._untyped_storage, expected._untyped_storage, path)
            return
        elif isinstance(expected, dict):
            self._items(actual.items(), expected.items(), path)
        elif isinstance(expected, list | tuple | deque):
            self._items(enumerate(actual), enumerate(expected), path)
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
        self._items(left.items(), right.items(), path)
        for kind in type(expected).__mro__ if type(expected).__module__ == Plain.__module__ else ():
            for name in kind.__dict__.get("__slots__", ()):
                left, right = (getattr(each, name, None) for each in (actual, expected))
                self.check(left, right, f"{path}.{name}")

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
        self._place(actual.data_ptr(), expected.data_ptr(), path)
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


class Reading(_Comparison):
    """Compares a torch tree with what torchzip made of its file."""

    def __init__(self, torch: Any, lazy: bool, mapped: bool = False) -> None:
        super().__init__(torch)
        self._lazy = lazy
        self._mapped = mapped

    def check(self, actual: Any, expected: Any, path: str = "root") -> None:
        torch, kind = self._torch, type(expected)
        if kind in (int, str, float, bool, complex, bytes, type(None)) or (
            kind is tuple and not expected
        ):
            assert type(actual) is kind, (path, type(actual), kind)
            assert repr(actual) == repr(expected), path
            return
        if id(expected) in self._partners:
            known = self._partners[id(expected)][1]
            if not isinstance(expected, type | types.FunctionType | torch.dtype):
                assert known is actual, f"{path}: no longer one object"
            return
        self._partners[id(expected)] = (expected, actual)
        if isinstance(expected, torch.Tensor):
            self._tensor(actual, expected, path)
        elif isinstance(expected, torch.UntypedStorage | torch.storage.TypedStorage):
            self._storage(actual, expected, path)
        elif kind in (torch.Size, torch.dtype, torch.device, torch.layout, torch.qscheme):
            self._leaf(actual, expected, path)
        elif kind in (bytearray, range, slice, set, frozenset, Counter):
            assert type(actual) is kind, path
            assert actual == expected, path
        elif isinstance(expected, _PLAIN_VALUES):
            assert type(actual) is kind, path
            assert repr(actual) == repr(expected), path
        elif kind is np.ndarray and not expected.dtype.hasobject:
            assert isinstance(actual, np.ndarray), path
            assert_same_array(actual, expected, path)
        elif kind in (dict, OrderedDict, list, tuple, deque) or (
            kind is defaultdict and type(actual) is defaultdict
        ):
            assert type(actual) is kind, path
            items: Any = dict.items if isinstance(expected, dict) else enumerate
            self._items(items(actual), items(expected), path)
            if kind is OrderedDict:
                self._items(vars(actual).items(), vars(expected).items(), path)
        else:
            self._foreign(actual, expected, path)

    def _leaf(self, actual: Any, expected: Any, path: str) -> None:
        if isinstance(expected, self._torch.Size):
            assert type(actual) is tz.types.Size, path
            assert tuple(actual) == tuple(expected), path
            return
        names = {"dtype": "Dtype", "device": "Device", "layout": "Layout", "qscheme": "QScheme"}
        assert type(actual).__name__ == names[type(expected).__name__], path
        assert str(actual) == str(expected), path

    def _foreign(self, actual: Any, expected: Any, path: str) -> None:
        assert isinstance(actual, tz.types.ForeignObject), (path, type(actual))
        kind = type(expected)
        if actual.how == "new":
            assert actual.name == kind.__qualname__.rpartition(".")[2] or actual.name == (
                kind.__qualname__
            ), path
        if isinstance(expected, dict) and isinstance(actual.items, dict):
            self._items(actual.items.items(), expected.items(), path)
        elif isinstance(expected, list) and isinstance(actual.items, list):
            self._items(enumerate(actual.items), enumerate(expected), path)
        elif isinstance(expected, tuple) and hasattr(kind, "_fields"):
            self._items(enumerate(actual.args or ()), enumerate(expected), path)
        if isinstance(actual.state, dict) and hasattr(expected, "__dict__") and (
            list(actual.state) == list(vars(expected))
        ):  # fmt: skip
            self._items(actual.state.items(), vars(expected).items(), path)

    def _storage(self, actual: Any, expected: Any, path: str) -> None:
        assert isinstance(actual, tz.types.Storage), (path, type(actual))
        typed = isinstance(expected, self._torch.storage.TypedStorage)
        if typed and expected.dtype != self._torch.uint8:
            assert actual.torch_dtype == str(expected.dtype).removeprefix("torch."), path
        else:  # torch too gives a storage the type by which it is mentioned first, or uint8
            assert actual.torch_dtype in (None, "uint8"), path
        data = actual.data
        array = data.array if isinstance(data, tz.types.TypedArray) else np.asarray(data)
        untyped = expected._untyped_storage if typed else expected
        assert array.tobytes() == storage_array(self._torch, untyped).tobytes(), path

    def _tensor(self, actual: Any, expected: Any, path: str) -> None:
        torch = self._torch
        dense = expected.layout == torch.strided and not expected.is_nested
        if not dense or expected.is_quantized or expected.is_meta:
            held = actual.data if isinstance(actual, tz.types.Parameter) else actual
            assert isinstance(held, tz.types.OtherTensor), path
            assert held.torch_dtype == str(expected.dtype).removeprefix("torch."), path
            return  # what they are made of is for `check_tree`
        name = str(expected.dtype).removeprefix("torch.")
        parameter = isinstance(expected, torch.nn.Parameter)
        if self._lazy:
            if parameter:
                assert type(actual) is tz.types.Parameter, path
                assert actual.requires_grad == expected.requires_grad, path
                if vars(expected):
                    self._items(actual.state.items(), vars(expected).items(), path)
                actual = actual.data
            assert_same_tensor(actual, expected, path)
            assert actual.is_parameter == parameter, path
            assert actual.requires_grad == expected.requires_grad, path
            assert actual.nbytes == expected.numel() * array_dtype(name).itemsize, path
            return
        typed = isinstance(actual, tz.types.TypedArray)
        assert typed == name.startswith(("bits", "float4")), path
        if typed:
            assert actual.torch_dtype == name, path
        array = actual.array if typed else actual
        assert isinstance(array, np.ndarray), path
        assert_same_array(array, expected, path)
        self._memory(array, expected, path)

    def _memory(self, array: NDArray[Any], expected: Any, path: str) -> None:
        """Tensors on one storage must lie in one piece of memory, as far apart as there."""
        if not array.size or expected.is_conj() or expected.is_neg():
            return
        if self._mapped:
            assert not array.flags.writeable, path
        address = array.__array_interface__["data"][0]
        start = address - expected.storage_offset() * array.itemsize
        self._place(start, expected.untyped_storage().data_ptr(), path)


# -- tensors that are not dense --------------------------------------------------------------------


def check_tensor(torch: Any, actual: Any, expected: Any) -> None:
    """Compare a tensor of torchzip with torch's: parts, and what they stand for."""
    assert isinstance(actual, OtherTensor)
    assert repr(actual).startswith(type(actual).__name__ + "(")
    assert actual.torch_dtype == str(expected.dtype).removeprefix("torch.")
    if isinstance(actual, MetaTensor):
        assert (actual.shape, actual.stride) == (tuple(expected.shape), expected.stride())
        if actual.is_parameter or not isinstance(expected, torch.nn.Parameter):
            assert actual.requires_grad == expected.requires_grad
    elif isinstance(actual, SparseTensor):
        assert f"torch.{actual.layout}" == str(expected.layout)
        assert actual.shape == tuple(expected.shape)
        expected = expected.detach()
        if actual.layout == "sparse_coo":
            assert_same_array(actual.indices, expected._indices())
            assert_same_array(actual.values, expected._values())
            assert actual.is_coalesced == expected.is_coalesced()
        else:
            rows = actual.layout in ("sparse_csr", "sparse_bsr")
            names = ("crow_indices", "col_indices") if rows else ("ccol_indices", "row_indices")
            assert_same_array(actual.compressed_indices, getattr(expected, names[0])())
            assert_same_array(actual.plain_indices, getattr(expected, names[1])())
            assert_same_array(actual.values, expected.values())
        assert_same_array(actual.todense(), expected.to_dense())
    elif isinstance(actual, QuantizedTensor):
        assert actual.shape == tuple(expected.shape)
        assert f"torch.{actual.qscheme}" == str(expected.qscheme())
        packed = actual.torch_dtype in ("quint4x2", "quint2x4")
        if expected.numel() and not packed:
            assert array_of(actual.int_repr).tolist() == expected.int_repr().tolist()
        if actual.axis is None:
            assert (actual.scale, actual.zero_point) == (
                expected.q_scale(), expected.q_zero_point(),
            )  # fmt: skip
        else:
            assert actual.axis == expected.q_per_channel_axis()
            scales, zero_points = actual.scale, actual.zero_point
            assert array_of(scales).tolist() == expected.q_per_channel_scales().tolist()
            assert array_of(zero_points).tolist() == expected.q_per_channel_zero_points().tolist()
        assert_same_array(actual.dequantize(), expected.detach().dequantize())
    else:
        assert isinstance(actual, NestedTensor)
        held = expected.detach().unbind()
        made = actual.unbind()
        assert len(made) == len(held) == actual.shape[0]
        assert len(actual.shape) == expected.dim()
        for array, tensor in zip(made, held, strict=True):
            assert_same_array(array, tensor)


def check_tree(torch: Any, actual: Any, expected: Any) -> int:
    """Compare the tensors that are not dense in two trees; return how many there are."""
    if isinstance(expected, dict):
        return sum(check_tree(torch, actual[key], expected[key]) for key in expected)
    if isinstance(expected, list):
        pairs = zip(actual, expected, strict=True)
        return sum(check_tree(torch, value, tensor) for value, tensor in pairs)
    if not isinstance(expected, torch.Tensor):
        return 0
    plain = expected.layout == torch.strided and not expected.is_nested
    if plain and not expected.is_quantized and not expected.is_meta:
        return 0
    if isinstance(actual, Parameter):
        assert actual.requires_grad == expected.requires_grad
        if actual.data.is_parameter:  # as in a file
            assert actual.data.requires_grad == expected.requires_grad
        actual = actual.data
    check_tensor(torch, actual, expected)
    return 1
