"""The fast way to write a tensor gives the bytes of the slow one."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from torchzip.checkpoint.structure import Structure
from torchzip.dtypes import DTYPES
from torchzip.pickling.emitter import Emitter
from torchzip.tensors.memory import place_arrays
from torchzip.tensors.reduce import LEAF_WRITERS, DenseWriter, StorageKeys
from torchzip.tensors.specs import TensorSpec
from torchzip.tensors.storage import ArrayStorage, TensorStorage
from torchzip.types import Device, Dtype, Layout, QScheme, Size


class Tensor:
    """What a test has written: the fields of a `TensorSpec`."""

    def __init__(self, *layout: Any, **more: Any) -> None:
        self.layout = layout
        self.more = more


def write(tree: Any, *, fast: bool) -> tuple[bytes, list[tuple[str, str]], int]:
    """Return the pickle of a tree with Tensors in it, what is refused, and the storages."""
    keys = StorageKeys()
    dense = DenseWriter(keys)

    def tensor(emitter: Emitter, value: Tensor) -> None:
        if not emitter.written(id(value)):
            dense.tensor(emitter, TensorSpec(*value.layout, **value.more))
            emitter.put_object(value)

    with pytest.MonkeyPatch.context() as patch:
        if not fast:
            patch.setattr(DenseWriter, "_tensor_fast", lambda *args, **more: False)
        emitter = Emitter({**LEAF_WRITERS, Tensor: tensor})
        data = emitter.dump(tree)
    return data, emitter.refused, len(keys.order)


_BIG = 1 << 40


class _Claimed(TensorStorage):
    """A storage of any size that is never read."""

    def __init__(self, nbytes: int, torch_dtype: str, location: str = "cpu") -> None:
        self.nbytes = nbytes
        self.torch_dtype = torch_dtype
        self.location = location

    def read_into(self, start: int, out: Any) -> None:
        """Never called."""
        raise AssertionError("read")


_SIZES = st.sampled_from([0, 1, 2, 255, 256, 65_535, 65_536, (1 << 31) - 1, 1 << 31, 1 << 33, 127,
                          128, 32_767, 32_768, (1 << 32) - 1, 1 << 39, 1 << 47])  # fmt: skip


@st.composite
def tensors(draw: st.DrawFn) -> list[Any]:
    """Return a list of tensors, some on one storage, with other values between."""
    locations = st.sampled_from(["cpu", "cpu", "cpu", "cuda:0", "meta", "mps"])
    dtypes = st.sampled_from(
        ["float32", "float32", "bfloat16", "int64", "bool", "uint16", "quint8"]
    )
    storages = [
        _Claimed(draw(_SIZES), draw(dtypes), draw(locations))
        for _ in range(draw(st.integers(1, 4)))
    ]
    made: list[Any] = []
    for _ in range(draw(st.integers(1, 12))):
        storage = draw(st.sampled_from(storages))
        ndim = draw(st.integers(0, 5))
        shape = tuple(draw(_SIZES) for _ in range(ndim))
        stride = tuple(draw(_SIZES) for _ in range(ndim))
        flags = draw(st.sampled_from([{}, {}, {}, {"requires_grad": True}, {"neg": True}]))
        made.append(Tensor(storage.torch_dtype, shape, stride, draw(_SIZES), storage, **flags))
        between = draw(st.integers(0, 5))
        if between == 0:
            made.append(made[-1])
        elif between == 1:
            made += ["storage", "cpu", OrderedDict(), Size((1, 2))]
        elif between == 2:
            made.append([f"text {i}" for i in range(60)])
    return made


@given(tensors())
def test_fast_is_slow(tree: list[Any]) -> None:
    """Tensors of any layout, on storages old and new, with any values between them."""
    assert write(tree, fast=True) == write(tree, fast=False)


def test_fast_way_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """The comparison compares two ways: the second tensor of a dtype takes the fast one."""
    taken: list[bool] = []
    original = DenseWriter._tensor_fast

    def spy(self: DenseWriter, *args: Any, **more: Any) -> bool:
        taken.append(bool(original(self, *args, **more)))
        return taken[-1]

    monkeypatch.setattr(DenseWriter, "_tensor_fast", spy)
    storages = [_Claimed(8, "float32") for _ in range(3)]
    write([Tensor("float32", (2,), (1,), 0, storage) for storage in storages], fast=True)
    assert taken == [False, True, True]


@pytest.mark.parametrize("count", [1, 2, 30, 60, 300, 70_000 // 10])
def test_memo_numbers_of_one_and_four_bytes(count: int) -> None:
    """Both kinds of puts and gets, and the step from one to the other."""
    storages = [_Claimed(8, "float32") for _ in range(count)]
    tree = {
        f"layer.{i}": Tensor("float32", (2,), (1,), 0, storage)
        for i, storage in enumerate(storages)
    }
    assert write(tree, fast=True) == write(tree, fast=False)


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype(dtype: str) -> None:
    """v2 with a storage class, v3 without, each twice."""
    storages = [_Claimed(160, dtype) for _ in range(2)]
    tree = [Tensor(dtype, (2, 3), (3, 1), 1, storages[i // 2]) for i in range(4)]
    assert write(tree, fast=True) == write(tree, fast=False)
    data, _, count = write(tree, fast=True)
    assert count == 2
    assert (b"_rebuild_tensor_v2" in data) == (DTYPES[dtype].storage_class is not None)


def test_arrays_through_the_structure(monkeypatch: pytest.MonkeyPatch) -> None:
    """A whole state dict of arrays gives the same pickle either way."""
    base = np.arange(60, dtype=np.float32).reshape(3, 20)
    state: Any = OrderedDict(
        (f"w{i}", np.zeros((i % 4,) * (i % 5), np.float32)) for i in range(300)
    )
    state |= {"a": base, "b": base.T, "c": base[1], "d": np.float64(1).reshape(()), "n": [1, "x"]}
    state["again"] = state["w7"]
    fast = Structure(state, StorageKeys(), place_arrays).pickle
    monkeypatch.setattr(DenseWriter, "_tensor_fast", lambda *args, **more: False)
    assert Structure(state, StorageKeys(), place_arrays).pickle == fast


def test_keys_are_handed_out_once() -> None:
    """A storage has one key, the same string object, in the order of first mention."""
    keys = StorageKeys()
    storages = [ArrayStorage(np.zeros(1, np.uint8), None) for _ in range(3)]
    given_keys = [keys.key_of(storage) for storage in (*storages, storages[1])]
    assert given_keys == ["0", "1", "2", "1"]
    assert given_keys[3] is given_keys[1]
    assert keys.order == storages


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (Size((2, 3)), b"ctorch\nSize\nq\x00K\x02K\x03\x86q\x01\x85q\x02Rq\x03"),
        (Size(), b"ctorch\nSize\nq\x00)\x85q\x01Rq\x02"),
        (Dtype("float16"), b"ctorch\nfloat16\nq\x00"),
        (QScheme("per_tensor_affine"), b"ctorch\nper_tensor_affine\nq\x00"),
        (Device("cpu"), b"ctorch\ndevice\nq\x00X\x03\0\0\0cpuq\x01\x85q\x02Rq\x03"),
        (
            Device("cuda", 1),
            b"ctorch\ndevice\nq\x00X\x04\0\0\0cudaq\x01K\x01\x86q\x02Rq\x03",
        ),
        (
            Layout("strided"),
            b"ctorch.serialization\n_get_layout\nq\x00X\x0d\0\0\0torch.stridedq\x01\x85q\x02Rq\x03",
        ),
    ],
)
def test_leaf_types(value: Any, expected: bytes) -> None:
    """Each leaf type is written as section 6.2 of docs/format.md says."""
    assert Emitter(LEAF_WRITERS).dump(value) == b"\x80\x02" + expected + b"."
    # a second mention is a get
    again = Emitter(LEAF_WRITERS).dump((value, value))
    last = expected[expected.rindex(b"q") + 1]
    assert again.endswith(b"h%c\x86q%c." % (last, last + 1))


def test_bytes_of_a_tensor() -> None:
    """The first tensor in full, as section 6.1 of docs/format.md has it."""
    storage = _Claimed(24, "float32")
    data, _, _ = write(Tensor("float32", (2, 3), (3, 1), 0, storage), fast=True)
    assert data == (
        b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\nq\x00((X\x07\0\0\0storageq\x01"
        b"ctorch\nFloatStorage\nq\x02X\x01\0\0\x000q\x03X\x03\0\0\0cpuq\x04K\x06tq\x05QK\x00"
        b"K\x02K\x03\x86q\x06K\x03K\x01\x86q\x07\x89ccollections\nOrderedDict\nq\x08)Rq\ttq\n"
        b"Rq\x0b."
    )
