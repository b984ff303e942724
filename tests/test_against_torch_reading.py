"""What torchzip reads from torch's files, and what torch reads of what torchzip has read."""

from __future__ import annotations

import datetime
import decimal
import fractions
import functools
import io
import pathlib
import random
import types
import zipfile
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hypothesis_numpy
from numpy.typing import NDArray

import torchzip as tz
from tests.sampling import some, thorough
from tests.torch_oracle import (
    TENSOR_DTYPES,
    TYPED_STORAGES,
    array_dtype,
    assert_equal_in_torch,
    assert_same_bytes,
    raw_array,
    storage_array,
    storage_of,
    tensor,
    torch_bytes,
    torch_settings,
    view,
)
from tests.trees import CASES, TORCH_ONLY, random_tree

pytestmark = [
    pytest.mark.torch,
    pytest.mark.filterwarnings("ignore:torch.load"),
    pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental"),
    pytest.mark.filterwarnings("ignore:Sparse"),
    pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors"),
    pytest.mark.filterwarnings("ignore:TypedStorage is deprecated"),
    pytest.mark.filterwarnings("ignore:.*quantiz"),
]

_PLAIN_VALUES = (
    datetime.date, datetime.time, datetime.timedelta, datetime.timezone, decimal.Decimal,
    fractions.Fraction, pathlib.PurePath, np.generic, np.dtype,
)  # fmt: skip
ALL = {**CASES, **TORCH_ONLY}


# -- files ---------------------------------------------------------------------------------------


def rewritten(data: bytes, change: Callable[[str, bytes], bytes], method: int) -> bytes:
    """Return an archive written anew by `zipfile`, with its records changed."""
    file = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(file, "w", method) as new:
        for info in old.infolist():
            content = old.read(info)
            new.writestr(info.filename, change(info.filename.partition("/")[2], content))
    return file.getvalue()


def deflated(data: bytes) -> bytes:
    """Return the archive with its records deflated."""
    return rewritten(data, lambda name, content: content, zipfile.ZIP_DEFLATED)


def of_other_byte_order(data: bytes) -> bytes:
    """Return the archive as one that says it comes from a big-endian machine.

    Its storages are what they were, so its values are others: those that torch reads.
    """
    return rewritten(
        data,
        lambda name, content: b"big" if name == "byteorder" else content,
        zipfile.ZIP_STORED,
    )


# -- comparing what was read -----------------------------------------------------------------


def expected_array(torch: Any, tensor: Any) -> NDArray[Any]:
    """Return the elements of a torch tensor as numpy holds their bits, conj and neg carried out."""
    tensor = tensor.detach().resolve_conj().resolve_neg()
    return raw_array(tensor, storage_array(torch, tensor.untyped_storage()))


class _Reading:
    """Compares a torch tree with what torchzip made of its file."""

    def __init__(self, torch: Any, lazy: bool, mapped: bool = False) -> None:
        self._torch = torch
        self._lazy = lazy
        self._mapped = mapped
        self._seen: dict[int, tuple[Any, Any]] = {}
        self._places: dict[int, int] = {}
        self._places_backwards: dict[int, int] = {}

    def check(self, actual: Any, expected: Any, path: str = "root") -> None:
        torch, kind = self._torch, type(expected)
        if kind in (int, str, float, bool, complex, bytes, type(None)) or (
            kind is tuple and not expected
        ):
            assert type(actual) is kind, (path, type(actual), kind)
            assert repr(actual) == repr(expected), path
            return
        if id(expected) in self._seen:
            known = self._seen[id(expected)][1]
            if not isinstance(expected, type | types.FunctionType | torch.dtype):
                assert known is actual, f"{path}: no longer one object"
            return
        self._seen[id(expected)] = (expected, actual)
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
            assert actual.dtype == expected.dtype, path
            assert actual.shape == expected.shape, path
            assert actual.tobytes() == expected.tobytes(), path
        elif kind is deque or (kind is defaultdict and type(actual) is defaultdict):
            assert type(actual) is kind, path
            items: Any = enumerate if kind is deque else dict.items
            self._items(list(items(actual)), list(items(expected)), path)
        elif kind in (dict, OrderedDict):
            assert type(actual) is kind, path
            self._items(list(actual.items()), list(expected.items()), path)
            if kind is OrderedDict:
                self._items(list(vars(actual).items()), list(vars(expected).items()), path)
        elif kind in (list, tuple):
            assert type(actual) is kind, path
            self._items(list(enumerate(actual)), list(enumerate(expected)), path)
        else:
            self._foreign(actual, expected, path)

    def _items(self, actual: Any, expected: Any, path: str) -> None:
        assert len(actual) == len(expected), path
        for (key, value), (expected_key, expected_value) in zip(actual, expected, strict=True):
            self.check(key, expected_key, f"{path}, a key")
            self.check(value, expected_value, f"{path}.{expected_key}")

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
            self._items(list(actual.items.items()), list(expected.items()), path)
        elif isinstance(expected, list) and isinstance(actual.items, list):
            self._items(list(enumerate(actual.items)), list(enumerate(expected)), path)
        elif isinstance(expected, tuple) and hasattr(kind, "_fields"):
            self._items(list(enumerate(actual.args or ())), list(enumerate(expected)), path)
        if isinstance(actual.state, dict) and hasattr(expected, "__dict__") and (
            list(actual.state) == list(vars(expected))
        ):  # fmt: skip
            self._items(list(actual.state.items()), list(vars(expected).items()), path)

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
            return  # compared in test_against_torch_kinds
        name = str(expected.dtype).removeprefix("torch.")
        parameter = isinstance(expected, torch.nn.Parameter)
        if self._lazy:
            if parameter:
                assert type(actual) is tz.types.Parameter, path
                assert actual.requires_grad == expected.requires_grad, path
                if vars(expected):
                    self._items(list(actual.state.items()), list(vars(expected).items()), path)
                actual = actual.data
            assert type(actual) is tz.LazyTensor, path
            assert actual.torch_dtype == name, path
            assert actual.is_parameter == parameter, path
            assert actual.requires_grad == expected.requires_grad, path
            assert actual.stride == expected.stride(), path
            assert actual.storage_offset == expected.storage_offset(), path
            assert actual.nbytes == expected.numel() * array_dtype(name).itemsize, path
            array = actual.numpy()
        else:
            typed = isinstance(actual, tz.types.TypedArray)
            assert typed == name.startswith(("bits", "float4")), path
            if typed:
                assert actual.torch_dtype == name, path
            array = actual.array if typed else actual
            self._place(array, expected, path)
        wanted = expected_array(torch, expected)
        assert isinstance(array, np.ndarray), path
        assert array.dtype == wanted.dtype, path
        assert array.shape == wanted.shape, path
        assert array.tobytes() == wanted.tobytes(), path

    def _place(self, array: NDArray[Any], expected: Any, path: str) -> None:
        """Tensors on one storage must lie in one piece of memory, as far apart as there."""
        if not array.size or expected.is_conj() or expected.is_neg():
            return
        if self._mapped:
            assert not array.flags.writeable, path
        address = array.__array_interface__["data"][0]
        start = address - expected.storage_offset() * array.itemsize
        storage = expected.untyped_storage().data_ptr()
        assert self._places.setdefault(storage, start) == start, f"{path}: no longer shared"
        assert self._places_backwards.setdefault(start, storage) == storage, f"{path}: now shared"


def check_reading(
    torch: Any, data: bytes, tree: Any, path: pathlib.Path, *, mapped: bool = True
) -> None:
    """Read a file lazily, at once and by mmap; compare with the tree that is in it."""
    with tz.lazy_load(io.BytesIO(data)) as ckpt:
        lazy = _Reading(torch, lazy=True)
        lazy.check(ckpt.root, tree)
        ckpt.verify()
    path.write_bytes(data)
    eager = _Reading(torch, lazy=False)
    eager.check(tz.load(io.BytesIO(data)), tree)
    _Reading(torch, lazy=False, mapped=mapped).check(tz.load(path, mmap=True), tree)


@pytest.mark.parametrize("name", ALL)
def test_zip(torch: Any, name: str, tmp_path: pathlib.Path) -> None:
    """The format of ``torch.save`` since 1.6."""
    tree = ALL[name](torch)
    check_reading(torch, torch_bytes(torch, tree), tree, tmp_path / "m.pt")


@pytest.mark.parametrize("name", ALL)
def test_legacy(torch: Any, name: str, tmp_path: pathlib.Path) -> None:
    """The format before 1.6, which torch still writes when asked to."""
    tree = ALL[name](torch)
    data = torch_bytes(torch, tree, _use_new_zipfile_serialization=False)
    check_reading(torch, data, tree, tmp_path / "m.pt")


@pytest.mark.parametrize("name", ALL)
def test_newer_pickle_protocols(torch: Any, name: str, tmp_path: pathlib.Path) -> None:
    """Files that were saved with ``pickle_protocol`` 3, 4 and 5."""
    tree = ALL[name](torch)
    for protocol in (3, 4, 5):
        data = torch_bytes(torch, tree, pickle_protocol=protocol)
        check_reading(torch, data, tree, tmp_path / "m.pt")


@pytest.mark.parametrize("name", ALL)
def test_deflated(torch: Any, name: str, tmp_path: pathlib.Path) -> None:
    """Archives that another program has packed again."""
    tree = ALL[name](torch)
    data = deflated(torch_bytes(torch, tree))
    check_reading(torch, data, tree, tmp_path / "m.pt", mapped=False)


@pytest.mark.parametrize("name", ALL)
def test_without_crc(torch: Any, name: str, tmp_path: pathlib.Path) -> None:
    """Files that torch was told to write without CRCs."""
    tree = ALL[name](torch)
    with torch_settings(torch, alignment=16, crc32=False):
        data = torch_bytes(torch, tree)
    check_reading(torch, data, tree, tmp_path / "m.pt")


# Swapped indices point anywhere; torch does not look.
_SWAPPED = [name for name in ALL if name not in ("nested", "sparse")]


@pytest.mark.parametrize("name", _SWAPPED)
def test_other_byte_order(torch: Any, name: str, tmp_path: pathlib.Path) -> None:
    """Storages are swapped as torch swaps them: by the element of their class."""
    data = of_other_byte_order(torch_bytes(torch, ALL[name](torch)))
    tree = torch.load(io.BytesIO(data), weights_only=False)
    check_reading(torch, data, tree, tmp_path / "m.pt", mapped=False)


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

    data = rewritten(torch_bytes(torch, tree), change, zipfile.ZIP_STORED)
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


def test_random_trees(torch: Any, tmp_path: pathlib.Path) -> None:
    """Random trees in all formats."""
    for seed in some(range(300)):
        tree = random_tree(torch, random.Random(seed))
        data = torch_bytes(torch, tree)
        legacy = torch_bytes(torch, tree, _use_new_zipfile_serialization=False)
        try:
            check_reading(torch, data, tree, tmp_path / "m.pt")
            check_reading(torch, legacy, tree, tmp_path / "m.pt")
            check_reading(torch, deflated(data), tree, tmp_path / "m.pt", mapped=False)
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
    file = io.BytesIO()
    torch.save(tensors, file, _use_new_zipfile_serialization=is_zip)
    file.seek(0)
    expected = {name: str(tensor.dtype)[6:] for name, tensor in torch.load(file).items()}
    assert list(expected.values()) == names
    file.seek(0)
    with tz.lazy_load(file) as checkpoint:
        assert {name: tensor.torch_dtype for name, tensor in checkpoint.items()} == expected
    resaved = io.BytesIO()
    file.seek(0)
    tz.save(tz.load(file), resaved)
    resaved.seek(0)
    assert {name: str(tensor.dtype)[6:] for name, tensor in torch.load(resaved).items()} == expected


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
    packed = tz.lazy_load(io.BytesIO(deflated(data)))
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
    file = io.BytesIO()
    with tz.lazy_load(io.BytesIO(data)) as ckpt:
        tz.save(ckpt.root, file)
    return file.getvalue()


@pytest.mark.parametrize("name", ALL)
def test_resaved_is_equal_in_torch(torch: Any, name: str) -> None:
    """Strides, offsets, sharing, Parameters, attributes, foreign objects: all come back."""
    data = torch_bytes(torch, ALL[name](torch))
    load = functools.partial(torch.load, weights_only=False)
    assert_equal_in_torch(torch, load(io.BytesIO(resaved(data))), load(io.BytesIO(data)))


@pytest.mark.parametrize("name", ALL)
def test_resaved_from_legacy_is_equal_in_torch(torch: Any, name: str) -> None:
    """The same for what was in a legacy file, also where torch writes but cannot read it."""
    tree = ALL[name](torch)
    legacy = torch_bytes(torch, tree, _use_new_zipfile_serialization=False)
    load = functools.partial(torch.load, weights_only=False)
    expected = load(io.BytesIO(torch_bytes(torch, tree)))
    assert_equal_in_torch(torch, load(io.BytesIO(resaved(legacy))), expected)


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
