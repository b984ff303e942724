"""The opcodes of dense tensors, storage keys and leaf values."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from torchzip.dtypes import DTYPES
from torchzip.pickling.emitter import Emitter
from torchzip.tensors.reduce import LEAF_WRITERS, DenseWriter, StorageKeys
from torchzip.tensors.specs import TensorSpec
from torchzip.tensors.storage import ArrayStorage, MeasuredStorage
from torchzip.types import Device, Dtype, Layout, QScheme, Size


def write(specs: TensorSpec | list[TensorSpec]) -> tuple[bytes, int]:
    """Return the pickle of one or more tensors, and how many storages have keys."""
    keys = StorageKeys()
    dense = DenseWriter(keys)

    def tensor(emitter: Emitter, spec: TensorSpec) -> None:
        dense.tensor(emitter, spec)
        emitter.put_object(spec)

    data = Emitter({**LEAF_WRITERS, TensorSpec: tensor}).dump(specs)
    return data, len(keys.order)


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype(dtype: str) -> None:
    """v2 with a storage class, v3 without; each storage has one key."""
    storages = [MeasuredStorage(dtype, 160, "cpu") for _ in range(2)]
    data, count = write([TensorSpec(dtype, (2, 3), (3, 1), 1, each) for each in storages * 2])
    assert count == 2
    assert (b"_rebuild_tensor_v2" in data) == (DTYPES[dtype].storage_class is not None)


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
    storage = MeasuredStorage("float32", 24, "cpu")
    data, _ = write(TensorSpec("float32", (2, 3), (3, 1), 0, storage))
    assert data == (
        b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\nq\x00((X\x07\0\0\0storageq\x01"
        b"ctorch\nFloatStorage\nq\x02X\x01\0\0\x000q\x03X\x03\0\0\0cpuq\x04K\x06tq\x05QK\x00"
        b"K\x02K\x03\x86q\x06K\x03K\x01\x86q\x07\x89ccollections\nOrderedDict\nq\x08)Rq\ttq\n"
        b"Rq\x0b."
    )
