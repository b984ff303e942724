"""Which arrays share a storage, and what of a buffer is saved."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.sampling import thorough
from torchzip.tensors.memory import (
    Placement,
    extent_of,
    owner_of,
    packed,
    place_arrays,
    torch_dtype_to_save,
)
from torchzip.tensors.numpy_dtypes import numpy_dtype
from torchzip.tensors.specs import TensorSpec, check_spec, view_of

Array = np.ndarray[Any, Any]


def place(*arrays: Array) -> list[Placement]:
    """Place arrays by their own dtypes."""
    return place_arrays([(array, torch_dtype_to_save(array)) for array in arrays])


def content(placement: Placement, array: Array) -> Array:
    """Return what a reader would see of an array at its placement."""
    data = placement.storage.read(0, placement.storage.nbytes)
    blocks = [block.copy() for block in placement.storage.blocks()]
    joined = np.concatenate(blocks) if blocks else np.empty(0, np.uint8)
    assert joined.tobytes() == data.tobytes()
    spec = TensorSpec(
        torch_dtype_to_save(array), array.shape, placement.stride, placement.storage_offset,
        placement.storage,
    )  # fmt: skip
    return view_of(data, check_spec(spec))


def check(*arrays: Array) -> list[Placement]:
    """Place arrays; every reader must see what they hold."""
    places = place(*arrays)
    for array, placement in zip(arrays, places, strict=True):
        native = array.astype(array.dtype.newbyteorder("="))
        np.testing.assert_array_equal(content(placement, array), native)
    return places


def storages(places: list[Placement]) -> list[int]:
    """Number the storages by first mention."""
    seen: dict[int, int] = {}
    return [seen.setdefault(id(place.storage), len(seen)) for place in places]


def test_array_alone() -> None:
    """An array that owns its memory is its storage, and is not copied."""
    array = np.arange(6.0).reshape(2, 3)
    (placed,) = check(array)
    assert placed.storage.nbytes == 48
    assert (placed.storage_offset, placed.stride) == (0, (3, 1))
    assert placed.storage.torch_dtype == "float64"
    (block,) = placed.storage.blocks()
    assert np.shares_memory(block, array)


_LINE = np.arange(100.0)
_GRID = np.arange(20.0).reshape(4, 5)
_WIDE = np.arange(1000.0).reshape(100, 10)
_LARGE = np.zeros(1 << 20)
_RAW = np.zeros(16, np.uint8)

#: Arrays; the storage and the offset of each; the bytes of each storage.
_PLACES: dict[str, tuple[list[Array], list[tuple[int, int]], list[int]]] = {
    "an array and a view of it: a tie stays a tie":
        ([_LINE, _LINE[:]], [(0, 0), (0, 0)], [800]),
    "two views of it first":
        ([_LINE[:], _LINE[:], _LINE], [(0, 0), (0, 0), (0, 0)], [800]),
    "arrays of their own memory":
        ([np.zeros(3), np.zeros(3), np.zeros(0)], [(0, 0), (1, 0), (2, 0)], [24, 24, 0]),
    "views that overlap, of which a storage spans what they reach":
        ([_LINE[10:20], _LINE[15:30], _LINE[12:14]], [(0, 0), (0, 5), (0, 2)], [160]),
    "views that do not meet: what lies between is not saved":
        ([_LINE[:10], _LINE[50:60]], [(0, 0), (1, 0)], [80, 80]),
    "views side by side, which are of one storage in torch too":
        ([*_GRID], [(0, 0), (0, 5), (0, 10), (0, 15)], [160]),
    "a transposed view, with its strides": ([_GRID, _GRID.T], [(0, 0), (0, 0)], [160]),
    "what is broadcast is saved as what it repeats":
        ([np.broadcast_to(np.arange(3.0), (1000, 3))], [(0, 0)], [24]),
    "a small view never drags its base along": ([_LARGE[5000:5512]], [(0, 0)], [4096]),
    "nor one with gaps": ([_LARGE[::2048]], [(0, 0)], [4096]),
    "nor a column": ([_LARGE.reshape(1024, 1024)[:, 7]], [(0, 0)], [8192]),
    "columns share no element, and are packed alone":
        ([_WIDE[:, 0], _WIDE[:, 1], _WIDE[:, 5]], [(0, 0), (1, 0), (2, 0)], [800] * 3),
    "columns beside their whole base are views of it":
        ([_GRID[:, 1], _GRID, _GRID[::2, 3]], [(0, 1), (0, 0), (0, 3)], [160]),
    "a view with gaps under two names is packed once":
        ([_LINE[::7], _LINE[::7]], [(0, 0), (0, 0)], [120]),
    "views with gaps that meet in an element":
        ([_LINE[::2], _LINE[::3]], [(0, 0), (0, 0)], [800]),
    "views with gaps that do not": ([_LINE[::2], _LINE[1::2]], [(0, 0), (1, 0)], [400, 400]),
    "a reversed view has no place in a storage of torch: a copy":
        ([_LINE, _LINE[::-1]], [(0, 0), (1, 0)], [800, 800]),
    "empty arrays touch no memory, so they share none":
        ([_GRID, _GRID[:0], _GRID[2:2], np.zeros(0)], [(n, 0) for n in range(4)], [160, 0, 0, 0]),
    "two dtypes side by side in one buffer":
        ([_RAW[:8].view(np.float32), _RAW[8:].view(np.int64)], [(0, 0), (1, 0)], [8, 8]),
}  # fmt: skip


@pytest.mark.parametrize("name", _PLACES)
def test_places(name: str) -> None:
    """Which arrays share a storage, and what is in it."""
    arrays, expected, nbytes = _PLACES[name]
    places = check(*arrays)
    numbers = storages(places)
    assert [(n, place.storage_offset) for n, place in zip(numbers, places, strict=True)] == expected
    assert [places[numbers.index(n)].storage.nbytes for n in range(max(numbers) + 1)] == nbytes


def test_many_interleaved_views() -> None:
    """More views than are compared pair by pair are right all the same."""
    base = np.arange(100.0 * 100).reshape(100, 100)
    check(*[base[:, index] for index in range(100)])


@pytest.mark.parametrize(
    "array",
    [
        np.arange(6.0)[::-1],
        np.arange(12.0).reshape(3, 4)[:, ::-1],
        np.arange(12.0).reshape(3, 4)[::-2, ::-1],
        np.arange(6.0).astype(">f8"),
        np.arange(6).astype(">i4")[::-2],
        np.zeros(4, "u1,f4,u1")["f1"],
        np.frombuffer(b"x" + np.arange(3.0).tobytes(), np.float64, offset=1),
        np.array(7.0),
        np.array(7.0, ">f4"),
        np.zeros((0, 3)),
        np.zeros((3, 0), ">i2"),
        np.arange(24.0).reshape(2, 3, 4).transpose(2, 0, 1),
        np.arange(6.0, dtype=ml_dtypes.bfloat16)[::2],
        np.array([True, False, True])[::-1],
        np.arange(4, dtype=np.complex64)[::-1],
        np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    ],
    ids=lambda array: f"{array.dtype}{array.shape}{array.strides}",
)
def test_odd_arrays(array: Array) -> None:
    """Other byte orders, negative and odd strides, no elements: what is saved is equal."""
    readonly = array.view()
    readonly.flags.writeable = False
    for each in (array, readonly):
        (placed,) = check(each)
        assert placed.storage.nbytes == each.nbytes
        assert packed(each, torch_dtype_to_save(each)).storage.nbytes == each.nbytes


@pytest.mark.parametrize("other", [np.int64, np.complex64, np.uint8, ml_dtypes.bfloat16])
def test_two_dtypes_on_one_memory(other: Any) -> None:
    """What torch cannot save either is refused with both paths."""
    base = np.zeros(8, np.float32)
    view = base.view(other)
    pairs = [(base, "float32"), (view, torch_dtype_to_save(view))]
    with pytest.raises(ValueError, match=r"layer\.a, layer\.b: .*share memory") as caught:
        place_arrays(pairs, ["layer.a", "layer.b"].__getitem__)
    assert "float32" in str(caught.value)


@pytest.mark.parametrize("other", [np.uint16, ml_dtypes.float8_e5m2, np.uint64])
def test_two_dtypes_that_torch_counts_as_bytes(other: Any) -> None:
    """Dtypes without a storage class of their own may share memory with bytes."""
    base = np.zeros(16, np.uint8)
    assert storages(check(base, base.view(other)[:1])) == [0, 0]


@pytest.mark.parametrize(
    "array",
    [
        np.zeros(2, "u1,f4"),
        np.array(["a"]),
        np.array([b"a"]),
        np.array([object()], dtype=object),
        np.array(["2020"], "M8[D]"),
        np.zeros(2, "m8[s]"),
        np.zeros(2, np.longdouble),
        np.zeros(2, np.clongdouble),
        np.zeros(2, "V4"),
        np.zeros(2, ml_dtypes.int4),
    ],
    ids=lambda array: str(array.dtype),
)
def test_dtypes_that_torch_has_not(array: Array) -> None:
    """A dtype that torch has not is a TypeError with its name."""
    with pytest.raises(TypeError, match="cannot save an array of dtype"):
        torch_dtype_to_save(array)


def test_masked_array() -> None:
    """A mask would be lost."""
    with pytest.raises(TypeError, match="masked"):
        torch_dtype_to_save(np.ma.masked_array([1.0], [True]))


def test_owner() -> None:
    """The owner of memory is found behind views of views and memoryviews."""
    base = np.zeros(10)
    assert owner_of(base[1:][2:].reshape(7, 1).T) is base
    raw = bytearray(16)
    assert owner_of(np.frombuffer(memoryview(raw), np.uint8)[3:]) is raw


def test_extent() -> None:
    """Start, stop and gaps of what an array spans."""
    base = np.zeros((4, 6), np.int16)
    start = base.__array_interface__["data"][0]
    extent = extent_of(base[1:3, ::2], "int16")
    assert extent is not None
    assert (extent.start - start, extent.stop - start) == (12, 12 + 2 * 11)
    assert (extent.stride, extent.has_gaps) == ((6, 2), True)
    assert extent_of(base[::-1], "int16") is None
    assert extent_of(base.astype(">i2"), "int16") is None


def test_memory_is_kept_alive() -> None:
    """A placement keeps its bytes though the arrays are gone."""
    places = place(*(np.full((3, 2), 7.0)[:, :1] for _ in range(3)))
    joined = place(*np.arange(200.0).reshape(2, 100))
    junk = [np.full(100, -1.0) for _ in range(50)]
    assert [placed.storage.read(0, 8).view(np.float64)[0] for placed in places] == [7.0] * 3
    assert joined[0].storage.read(0, 1600).view(np.float64).tolist() == list(range(200))
    assert len(junk) == 50


@st.composite
def views(draw: st.DrawFn) -> list[Array]:
    """Return views of a few buffers, in any order."""
    bases = [np.arange(60, dtype=np.int32).reshape(6, 10) + 1000 * i for i in range(2)]
    made = []
    for _ in range(draw(st.integers(1, 8))):
        base = draw(st.sampled_from(bases))
        part = st.integers(0, 10)
        rows = slice(draw(part), draw(part), draw(st.sampled_from([None, 1, 2, -1, 3])))
        columns = slice(draw(part), draw(part), draw(st.sampled_from([None, 1, 2, -1, 5])))
        view = base[rows, columns]
        if draw(st.booleans()):
            view = view.T
        made.append(view)
    return made


@thorough
@given(views())
def test_any_views(arrays: list[Array]) -> None:
    """Values are right, shared elements stay shared, and no byte is saved that nobody reaches."""
    places = check(*arrays)
    numbers = storages(places)
    for first, a in enumerate(arrays):
        for second, other in enumerate(arrays[:first]):
            if (
                np.shares_memory(a, other)
                and min(a.strides + other.strides) >= 0
                and a.size
                and other.size
            ):
                assert numbers[first] == numbers[second]
    for number in set(numbers):
        together = [a for a, n in zip(arrays, numbers, strict=True) if n == number]
        nbytes = places[numbers.index(number)].storage.nbytes
        if len(together) == 1:
            assert nbytes == together[0].nbytes


def test_numpy_dtype_of_each_placement() -> None:
    """The storage has the torch dtype of its arrays."""
    for name in ("float32", "int64", "bool", "bfloat16", "uint16", "float8_e5m2"):
        array = np.zeros(4, numpy_dtype(name))
        (placed,) = place(array)
        assert placed.storage.torch_dtype == name
