"""What torchzip reads from torch's files, and what torch reads of what torchzip has read."""

from __future__ import annotations

import functools
import io
import pathlib
import random
import zipfile
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hypothesis_numpy

import torchzip as tz
from tests.comparing import Reading, assert_equal_in_torch, assert_same_bytes
from tests.random_trees import random_tree
from tests.sampling import some, thorough
from tests.saved import big_endian, saved, zipped_again
from tests.torch_oracle import (
    TENSOR_DTYPES,
    TYPED_STORAGES,
    array_dtype,
    asks_torch,
    storage_of,
    tensor,
    torch_bytes,
    torch_settings,
    view,
)
from tests.trees import CASES, TORCH_ONLY

pytestmark = asks_torch(
    "torch.load", "ComplexHalf support is experimental", "Sparse",
    "The PyTorch API of nested tensors", "TypedStorage is deprecated", ".*quantiz",
)  # fmt: skip

ALL = {**CASES, **TORCH_ONLY}


# -- reading ----------------------------------------------------------------------------------


def _without_crcs(torch: Any, tree: Any) -> bytes:
    with torch_settings(torch, alignment=16, crc32=False):
        return torch_bytes(torch, tree)


def check_reading(
    torch: Any, data: bytes, tree: Any, path: pathlib.Path, *, mapped: bool = True
) -> None:
    """Read a file lazily, at once and by mmap; compare with the tree that is in it."""
    with tz.lazy_load(io.BytesIO(data)) as ckpt:
        lazy = Reading(torch, lazy=True)
        lazy.check(ckpt.root, tree)
        ckpt.verify()
    path.write_bytes(data)
    eager = Reading(torch, lazy=False)
    eager.check(tz.load(io.BytesIO(data)), tree)
    Reading(torch, lazy=False, mapped=mapped).check(tz.load(path, mmap=True), tree)


#: How a file comes about: (torch, tree) -> its bytes, and whether its storages can be mapped.
_WAYS: dict[str, tuple[Callable[[Any, Any], bytes], bool]] = {
    "zip": (torch_bytes, True),
    "legacy": (lambda t, tree: torch_bytes(t, tree, _use_new_zipfile_serialization=False), True),
    "protocol 3": (lambda t, tree: torch_bytes(t, tree, pickle_protocol=3), True),
    "protocol 4": (lambda t, tree: torch_bytes(t, tree, pickle_protocol=4), True),
    "protocol 5": (lambda t, tree: torch_bytes(t, tree, pickle_protocol=5), True),
    "without CRCs": (_without_crcs, True),
    "deflated": (lambda t, tree: zipped_again(torch_bytes(t, tree), zipfile.ZIP_DEFLATED), False),
}


def check_ways(torch: Any, tree: Any, path: pathlib.Path) -> None:
    """Check what is read of a tree in each of the formats."""
    for way, (make, mapped) in _WAYS.items():
        try:
            check_reading(torch, make(torch, tree), tree, path, mapped=mapped)
        except Exception as error:
            error.add_note(way)
            raise


@pytest.mark.parametrize("name", ALL)
def test_every_format(torch: Any, name: str, path: pathlib.Path) -> None:
    """What ``torch.save`` writes and has written, and what another program has packed again."""
    check_ways(torch, ALL[name](torch), path)


# Swapped indices point anywhere; torch does not look.
_SWAPPED = [name for name in ALL if name not in ("nested", "sparse")]


@pytest.mark.parametrize("name", _SWAPPED)
def test_other_byte_order(torch: Any, name: str, path: pathlib.Path) -> None:
    """Storages are swapped as torch swaps them: by the element of their class."""
    data = big_endian(torch_bytes(torch, ALL[name](torch)))
    tree = torch.load(io.BytesIO(data), weights_only=False)
    check_reading(torch, data, tree, path, mapped=False)


def test_values_of_the_other_byte_order(torch: Any) -> None:
    """Values that a big-endian machine has written are those values here."""
    values: dict[str, list[Any]] = {
        "float32": [1.5, -2.0], "int16": [1, -300], "float64": [0.1], "int64": [2**40],
        "complex64": [1 + 2j], "complex128": [3 - 4j], "float16": [0.5, 2.0], "int8": [1, -1],
        "bool": [True, False], "int32": [70000],
    }  # fmt: skip
    tree = {name: torch.tensor(held, dtype=getattr(torch, name)) for name, held in values.items()}
    itemsizes = [array_dtype(name).itemsize // (2 if "complex" in name else 1) for name in values]

    def change(name: str, content: bytes) -> bytes:
        if name == "byteorder":
            return b"big"
        if not name.startswith("data/"):
            return content
        units = np.frombuffer(content, np.uint8).reshape(-1, itemsizes[int(name[5:])])
        return units[:, ::-1].tobytes()

    data = zipped_again(torch_bytes(torch, tree), change=change)
    loaded = torch.load(io.BytesIO(data))
    for name, held in tz.load(io.BytesIO(data)).items():
        assert held.tolist() == values[name]
        assert loaded[name].tolist() == values[name]


def test_pickled_optimizer(torch: Any) -> None:
    """An optimizer that was pickled whole has its state by Parameter."""
    parameter = torch.nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD([parameter], momentum=0.9)
    parameter.sum().backward()
    optimizer.step()
    made = tz.load(io.BytesIO(torch_bytes(torch, {"w": parameter, "optimizer": optimizer})))
    ((key, state),) = made["optimizer"].state["state"].items()
    assert key.array is made["w"]
    assert state["momentum_buffer"].tolist() == [1.0, 1.0]


def test_random_trees(torch: Any, path: pathlib.Path) -> None:
    """Random trees in all formats."""
    for seed in some(range(300)):
        try:
            check_ways(torch, random_tree(torch, random.Random(seed)), path)
        except Exception as error:
            error.add_note(f"seed {seed}")
            raise


@given(st.lists(st.sampled_from(TENSOR_DTYPES), min_size=1, max_size=60), st.booleans())
def test_dtypes_of_one_empty_storage(torch: Any, names: list[str], is_zip: bool) -> None:
    """Empty tensors on one storage, in any order and number, keep their dtypes."""
    if not is_zip:  # torch reads no untyped storages there
        names = [name for name in names if name in TYPED_STORAGES]
    held = torch.empty(0, dtype=torch.uint8)
    tensors = {str(i): held.view(getattr(torch, name)) for i, name in enumerate(names)}
    data = torch_bytes(torch, tensors, _use_new_zipfile_serialization=is_zip)
    with tz.lazy_load(io.BytesIO(data)) as checkpoint:
        assert [tensor.torch_dtype for tensor in checkpoint.values()] == names
    for written in (data, saved(tz.load(io.BytesIO(data)))):
        read = torch.load(io.BytesIO(written))
        assert [str(tensor.dtype)[6:] for tensor in read.values()] == names


def test_storage_of_odd_size_is_refused_by_both(torch: Any) -> None:
    """A storage that is no whole number of elements is written by torch and read by nobody."""
    data = torch_bytes(torch, view(torch, "float32", storage_of(torch, bytes(11)), (2,), (1,)))
    with pytest.raises(RuntimeError):
        torch.load(io.BytesIO(data))
    with pytest.raises(tz.FormatError):
        tz.load(io.BytesIO(data))


# -- slices ----------------------------------------------------------------------------------------

_SLICED: dict[str, tuple[str, tuple[int, ...], tuple[int, ...], int]] = {
    "scalar": ("float32", (), (), 3),
    "vector": ("int64", (50,), (1,), 0),
    "every third": ("int16", (40,), (3,), 2),
    "matrix": ("float32", (9, 11), (11, 1), 0),
    "column-major": ("float64", (9, 11), (1, 9), 5),
    "gaps": ("uint8", (7, 5, 3), (200, 20, 2), 1),
    "expanded": ("float16", (4, 6, 5), (0, 5, 1), 0),
    "windows": ("complex64", (6, 5), (2, 1), 0),
    "bfloat16": ("bfloat16", (3, 4, 5), (20, 5, 1), 0),
    "many rows": ("int32", (3000, 4), (9, 2), 0),
    "size 1": ("float32", (1, 5, 1), (99, 1, 77), 0),
    "empty": ("float32", (0, 4), (4, 1), 0),
    "bits": ("bits16", (5, 6), (6, 1), 0),
    "4 dimensions": ("uint32", (3, 4, 2, 5), (5, 40, 20, 1), 0),
}


@pytest.fixture(scope="module")
def sliced(torch: Any) -> dict[str, tz.LazyTensor]:
    """Return lazy tensors of many layouts, one of them conjugated, one deflated."""
    tree = {name: tensor(torch, *layout) for name, layout in _SLICED.items()}
    tree["conjugated"] = tensor(torch, "complex64", (4, 5)).conj()
    data = torch_bytes(torch, tree)
    packed = tz.lazy_load(io.BytesIO(zipped_again(data, zipfile.ZIP_DEFLATED)))
    found = dict(tz.lazy_load(io.BytesIO(data)))
    for name in ("column-major", "gaps"):
        found[f"{name}, deflated"] = packed[name]
    return found


_SLICED_NAMES = (*_SLICED, "conjugated", "column-major, deflated", "gaps, deflated")


@thorough
@given(data=st.data(), name=st.sampled_from(_SLICED_NAMES))
def test_slices(sliced: dict[str, tz.LazyTensor], data: st.DataObject, name: str) -> None:
    """Any basic index of a lazy tensor gives what it gives of the whole array."""
    lazy = sliced[name]
    index = data.draw(
        hypothesis_numpy.basic_indices(
            lazy.shape, allow_newaxis=True, allow_ellipsis=True, max_dims=lazy.ndim + 2
        )
    )
    expected, actual = lazy.numpy()[index], lazy[index]
    assert type(actual) is type(expected)
    assert actual.dtype == expected.dtype
    assert actual.shape == expected.shape
    assert actual.tobytes() == expected.tobytes()


@given(
    data=st.data(),
    name=st.sampled_from([name for name in _SLICED_NAMES if name not in ("scalar", "empty")]),
)
def test_other_indices(sliced: dict[str, tz.LazyTensor], data: st.DataObject, name: str) -> None:
    """Indices by arrays and masks give what they give of the whole array."""
    lazy = sliced[name]
    whole = lazy.numpy()
    rows = data.draw(hypothesis_numpy.integer_array_indices(lazy.shape[:1]))[0]
    mask = np.arange(lazy.shape[0]) % 2 == 0
    for index in (rows, mask, rows.tolist() if rows.ndim else int(rows)):
        assert np.asarray(lazy[index]).tobytes() == whole[index].tobytes()


def test_indices_outside(sliced: dict[str, tz.LazyTensor]) -> None:
    """An index outside the tensor is the error that numpy raises."""
    lazy = sliced["matrix"]
    index: Any
    for index in (9, -10, (0, 11), (0, 0, 0), (..., ...), "x", 1.5):
        with pytest.raises(IndexError):
            lazy.numpy()[index]
        with pytest.raises(IndexError):
            lazy[index]


# -- read and saved again --------------------------------------------------------------------------


def resaved(data: bytes) -> bytes:
    """Return what torchzip writes of what it has read lazily."""
    with tz.lazy_load(io.BytesIO(data)) as ckpt:
        return saved(ckpt.root)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("is_zip", [True, False], ids=["zip", "legacy"])
def test_resaved_is_equal_in_torch(torch: Any, name: str, is_zip: bool) -> None:
    """Strides, offsets, sharing, Parameters, attributes, foreign objects: all come back.

    Of a legacy file also where torch writes but cannot read it.
    """
    tree = ALL[name](torch)
    data = torch_bytes(torch, tree, _use_new_zipfile_serialization=is_zip)
    load = functools.partial(torch.load, weights_only=False)
    expected = load(io.BytesIO(data if is_zip else torch_bytes(torch, tree)))
    assert_equal_in_torch(torch, load(io.BytesIO(resaved(data))), expected)


@pytest.mark.parametrize("name", ALL)
def test_resaved_again_changes_nothing(torch: Any, name: str) -> None:
    """What torchzip wrote of what it had read is read and written the same."""
    once = resaved(torch_bytes(torch, ALL[name](torch)))
    assert_same_bytes(resaved(once), once)


@pytest.mark.parametrize("name", [name for name in ALL if name != "object_in_its_arguments"])
def test_resaved_bytes(torch: Any, name: str) -> None:
    """Saving what was read gives the file again, or what torch makes of it in the same way.

    They differ where strings of the tree were one object with those of the writer. (An object
    that is in its own arguments has new ones each time it is asked, which no file can tell.)
    """
    data = torch_bytes(torch, ALL[name](torch))
    actual = resaved(data)
    if actual != data:
        loaded = torch.load(io.BytesIO(data), weights_only=False)
        assert_same_bytes(actual, torch_bytes(torch, loaded))


def test_resaved_random_trees(torch: Any) -> None:
    """The same for trees that nobody thought of."""
    for seed in some(range(400)):
        data = torch_bytes(torch, random_tree(torch, random.Random(seed)))
        expected = torch.load(io.BytesIO(data), weights_only=False)
        again = torch.load(io.BytesIO(resaved(data)), weights_only=False)
        try:
            assert_equal_in_torch(torch, again, expected)
        except AssertionError as error:
            raise AssertionError(f"seed {seed}: {error}") from None
