"""Specs: where a tensor lies in its storage, and what reading a part of it touches."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.lib.stride_tricks import as_strided

from tests.sampling import thorough
from torchzip.dtypes import DTYPES
from torchzip.errors import TensorError
from torchzip.tensors.numpy_dtypes import numpy_dtype
from torchzip.tensors.specs import (
    TensorSpec,
    check_spec,
    contiguous_stride,
    read_view,
    resolve_bits,
    slice_spec,
    span_of,
    view_of,
)
from torchzip.tensors.storage import ArrayStorage, Bytes, TensorStorage

#: Shape, stride and offset.
Layout = tuple[tuple[int, ...], tuple[int, ...], int]


class CountingStorage(TensorStorage):
    """Bytes in memory that say what is read: ``reads`` holds (start, stop)."""

    def __init__(self, array: np.ndarray[Any, Any], *, random_access: bool = True) -> None:
        self.data = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        self.nbytes = self.data.nbytes
        self.torch_dtype = None
        self.location = "cpu"
        self.random_access = random_access
        self.reads: list[tuple[int, int]] = []

    def read_into(self, start: int, out: Bytes) -> None:
        """Fill ``out``; reading past the end is an error here."""
        assert 0 <= start <= start + out.nbytes <= self.nbytes
        self.reads.append((start, start + out.nbytes))
        out[:] = self.data[start : start + out.nbytes]

    @property
    def nbytes_read(self) -> int:
        return sum(stop - start for start, stop in self.reads)


def read_part(spec: TensorSpec, key: Any) -> np.ndarray[Any, Any]:
    chosen = slice_spec(spec, key)
    assert chosen is not None
    return read_view(spec, *chosen)


def counted(
    values: np.ndarray[Any, Any], shape: tuple[int, ...], stride: Any = None, offset: int = 0
) -> tuple[CountingStorage, TensorSpec]:
    """Return the storage of some values and a tensor on it, contiguous unless it has a stride."""
    storage = CountingStorage(values)
    stride = contiguous_stride(shape) if stride is None else stride
    return storage, TensorSpec(values.dtype.name, shape, stride, offset, storage)


def spec_of(
    shape: Any, stride: Any, offset: Any = 0, *, nbytes: int = 400, dtype: str = "float32"
) -> TensorSpec:
    storage = ArrayStorage(np.zeros(nbytes, np.uint8), None)
    return TensorSpec(dtype, shape, stride, offset, storage)


# -- layouts that fit ----------------------------------------------------------------------------


@st.composite
def layouts(draw: st.DrawFn, max_dims: int = 4) -> Layout:
    """Return shape, stride and offset, as odd as a file may have them."""
    ndim = draw(st.integers(0, max_dims))
    shape = tuple(draw(st.integers(0, 5) | st.just(1)) for _ in range(ndim))
    kind = draw(st.sampled_from(["contiguous", "permuted", "any"]))
    if kind == "any":
        stride = tuple(draw(st.integers(0, 12)) for _ in range(ndim))
    else:
        order = list(range(ndim))
        if kind == "permuted":
            order = draw(st.permutations(order))
        step = draw(st.integers(1, 3))
        made = [0] * ndim
        for axis in reversed(order):
            made[axis] = step
            step *= max(shape[axis], 1)
        stride = tuple(made)
    return shape, stride, draw(st.integers(0, 7))


def _reach(shape: tuple[int, ...], stride: tuple[int, ...], offset: int) -> int:
    if 0 in shape:
        return 0
    return offset + 1 + sum((n - 1) * s for n, s in zip(shape, stride, strict=True))


def _oracle(
    values: np.ndarray[Any, Any], shape: tuple[int, ...], stride: tuple[int, ...], offset: int
) -> np.ndarray[Any, Any]:
    if 0 in shape:
        return np.empty(shape, values.dtype)
    return as_strided(
        values[offset:], shape, tuple(step * values.itemsize for step in stride), writeable=False
    )


@st.composite
def indices(draw: st.DrawFn, shape: tuple[int, ...]) -> Any:
    """Return a basic index that numpy takes for this shape."""
    items: list[Any] = []
    for size in shape[: draw(st.integers(0, len(shape)))]:
        part = st.integers(-size - 2, size + 2)
        ranges: st.SearchStrategy[Any] = st.builds(
            slice, st.none() | part, st.none() | part, st.none() | st.sampled_from([-3, -1, 1, 2])
        )
        items.append(draw(ranges | st.integers(-size, size - 1) if size else ranges))
        if draw(st.integers(0, 9)) == 0:
            items.append(None)
    if draw(st.booleans()):
        items.insert(draw(st.integers(0, len(items))), Ellipsis)
        # what follows the ellipsis counts from the end; keep only what fits there
        after = [item for item in items[items.index(Ellipsis) + 1 :] if item is not None]
        sizes = shape[len(shape) - len(after) :]
        for item, size in zip(after, sizes, strict=True):
            if isinstance(item, int) and not -size <= item < size:
                items.remove(item)
    if len(items) == 1 and draw(st.booleans()):
        return items[0]
    return tuple(items)


@thorough
@given(st.data(), layouts(), st.sampled_from(["float32", "uint8", "float64", "complex128"]))
def test_index_is_that_of_numpy(data: st.DataObject, layout: Layout, dtype: str) -> None:
    """Slicing a spec and reading the slice gives what numpy gives for the whole array."""
    shape, stride, offset = layout
    values = np.arange(max(_reach(*layout), 1) + 3).astype(dtype)
    spec = check_spec(counted(values, *layout)[1])
    key = data.draw(indices(shape))
    try:
        expected = _oracle(values, shape, stride, offset)[key]
    except IndexError:
        with pytest.raises(IndexError):
            slice_spec(spec, key)
        return
    made = read_part(spec, key)
    assert made.dtype == np.dtype(dtype)
    assert made.shape == np.shape(expected)
    np.testing.assert_array_equal(made, expected)


@given(layouts(5), st.booleans())
def test_whole_tensor_is_that_of_numpy(layout: Layout, random_access: bool) -> None:
    """Reading and viewing a tensor of any stride give the same, from streams too."""
    shape, stride, offset = layout
    values = np.arange(max(_reach(*layout), 1), dtype=np.int32)
    storage = CountingStorage(values, random_access=random_access)
    spec = check_spec(TensorSpec("int32", shape, stride, offset, storage))
    expected = _oracle(values, shape, stride, offset)
    made = read_view(spec, *layout)
    np.testing.assert_array_equal(made, expected)
    np.testing.assert_array_equal(view_of(storage.data, spec), expected)
    if made.size:
        made[...] = -1  # an array of its own, that its owner may change
        assert (storage.data.view(np.int32) == values).all()


@pytest.mark.parametrize(
    ("shape", "key"),
    [
        ((10,), np.s_[::2]),
        ((10,), np.s_[::-1]),
        ((10,), np.s_[::-3]),
        ((10,), np.s_[7:2:-2]),
        ((10, 10), np.s_[:, :1]),
        ((10, 10), np.s_[:, 3]),
        ((10, 10), np.s_[::3, ::3]),
        ((10, 10), np.s_[::-1, ::-1]),
        ((10, 10), np.s_[2:4, 3:5]),
        ((10, 10), np.s_[..., 0]),
        ((10, 10), np.s_[0, ..., None]),
        ((4, 5, 6), np.s_[:, 2, :]),
        ((4, 5, 6), np.s_[:, :, ::5]),
        ((4, 5, 6), np.s_[::3, ::2, ::-2]),
        ((4, 5, 6), np.s_[3, 4, 5]),
        ((4, 5, 6), np.s_[None, :, None, 1]),
        ((3, 3), np.int64(1)),  # an index that numpy made is an index
        ((3, 3), np.uint8(2)),
        ((3, 3), (np.int32(-1), 0)),
        ((), np.s_[...]),
        ((), ()),
        ((), None),
    ],
)
def test_ordinary_indices(shape: tuple[int, ...], key: Any) -> None:
    values = np.arange(math.prod(shape), dtype=np.float32)
    made = read_part(counted(values, shape)[1], key)
    expected = values.reshape(shape)[key]
    assert made.shape == np.shape(expected)
    np.testing.assert_array_equal(made, expected)


@pytest.mark.parametrize(
    "key",
    [[0], np.array([0]), (0, [1]), True, (True,), np.array([True, False, True]), 1.5, "a", {0}],
    ids=repr,
)
def test_other_indices_are_left_to_numpy(key: Any) -> None:
    """An index by lists, arrays or bools is no basic one."""
    assert slice_spec(spec_of((3, 3), (3, 1)), key) is None


@pytest.mark.parametrize(
    "key", [3, -4, (0, 3), (0, -4), (0, 0, 0), (..., ...), (0, 0, slice(None))], ids=repr
)
def test_indices_outside(key: Any) -> None:
    with pytest.raises(IndexError):
        np.zeros((3, 3))[key]
    with pytest.raises(IndexError):
        slice_spec(spec_of((3, 3), (3, 1)), key)


# -- bytes read ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "reads"),
    [
        (np.s_[5], 1),
        (np.s_[5:8], 1),
        (np.s_[10:20, :4], 10),
        (np.s_[10:20, 7], 10),
        (np.s_[-1, -1], 1),
        (np.s_[3:3], 0),
        (np.s_[:, 5:6], 100),
        (np.s_[::10, 2:4], 10),
    ],
)
def test_a_slice_reads_its_own_bytes(key: Any, reads: int) -> None:
    """With few runs, exactly the bytes of the slice are read, each run once."""
    storage, spec = counted(np.arange(100 * 64, dtype=np.float32), (100, 64))
    assert read_part(spec, key).nbytes == storage.nbytes_read
    assert len(storage.reads) == reads


def test_whole_rows_are_one_read() -> None:
    layout: Layout = ((4, 3, 2), (1, 4, 12), 0)
    storage, spec = counted(np.arange(24, dtype=np.int16), *layout)
    made = read_view(spec, *layout)
    assert storage.reads == [(0, 48)]
    assert made.tolist() == np.arange(24).reshape(2, 3, 4).transpose(2, 1, 0).tolist()


def test_many_small_runs_are_joined() -> None:
    """Thousands of runs become few reads, with small gaps read along."""
    storage, spec = counted(np.arange(5000 * 8, dtype=np.float32), (5000, 8))
    read_part(spec, np.s_[:, 3])
    assert len(storage.reads) < 10
    assert storage.nbytes_read <= storage.nbytes


def test_large_gaps_are_not_read() -> None:
    storage, spec = counted(np.zeros(2000 * 2048, np.float32), (2000, 2048))
    assert read_part(spec, np.s_[:, :2]).nbytes == storage.nbytes_read == 2000 * 8


def test_broadcast_axes_are_read_once() -> None:
    storage, spec = counted(np.arange(10, dtype=np.float32), (1000, 10), (0, 1))
    made = read_view(spec, (1000, 10), (0, 1), 0)
    assert made.shape == (1000, 10)
    assert (made == np.arange(10)).all()
    assert storage.nbytes_read == 40


def test_large_runs_are_cut() -> None:
    """A run with gaps is read in chunks of a few MB, and the values are right."""
    values = np.arange(3 << 20, dtype=np.float64)
    storage, spec = counted(values, (3 << 19,), (2,), 1)
    made = read_view(spec, (3 << 19,), (2,), 1)
    np.testing.assert_array_equal(made, values[1::2])
    assert max(stop - start for start, stop in storage.reads) <= 4 << 20


# -- spans and checks ----------------------------------------------------------------------------


@given(layouts())
def test_span(layout: Layout) -> None:
    """The span runs from the first to the last element that numpy reaches."""
    shape, stride, offset = layout
    values = np.arange(max(_reach(*layout), 1), dtype=np.int32)
    reached = _oracle(values, shape, stride, offset)
    if reached.size:
        assert span_of(shape, stride) == int(reached.max()) - int(reached.min()) + 1


@given(layouts(), st.integers(0, 400))
def test_check_is_exact(layout: Layout, nbytes: int) -> None:
    shape, stride, offset = layout
    spec = spec_of(shape, stride, offset, nbytes=nbytes)
    if _reach(*layout) * 4 <= nbytes:
        assert check_spec(spec) is spec
    else:
        with pytest.raises(TensorError, match="reaches to byte"):
            check_spec(spec)


@pytest.mark.parametrize(
    ("shape", "stride", "offset"),
    [
        ((1,), (1 << 62,), 0),
        ((1, 2), ((1 << 63) - 1, 1), 5),
        ((0,), (1 << 62,), 1 << 62),
        ((0, 5), (7, 7), 99),
        ((), (), 99),
        ((1 << 40, 1 << 20), (0, 0), 0),
        ((100,), (1,), 0),
        ([4], [1], 0),
        ((1,) * 64, (1,) * 64, 0),
    ],
)
def test_odd_layouts_that_are_right(shape: Any, stride: Any, offset: int) -> None:
    """Strides that are never used, and what stands in an empty tensor, do not matter."""
    spec = check_spec(spec_of(shape, stride, offset))
    view = view_of(np.zeros(400, np.uint8), spec)
    assert view.shape == tuple(shape)
    assert type(spec.shape) is type(spec.stride) is tuple


@pytest.mark.parametrize(
    ("shape", "stride", "offset"),
    [
        ((101,), (1,), 0), ((100,), (1,), 1), ((), (), 100), ((2,), (100,), 0), ((-1,), (1,), 0),
        ((1,), (-1,), 0), ((1,), (1,), -1), ((True,), (1,), 0), ((1,), (True,), 0),
        ((1,), (1,), True), ((1.0,), (1,), 0), ((1,), (1.0,), 0), ((1,), (1,), 0.0),
        ((1,), (1,), None), ((None,), (1,), 0), (("1",), (1,), 0), ((1, 2), (1,), 0), ((1,), (), 0),
        (1, 1, 0), ("1", "1", 0), ({1}, {1}, 0), (None, None, 0), ((1,) * 65, (1,) * 65, 0),
        ((1 << 62,), (0,), 0), ((1 << 20,) * 4, (0,) * 4, 0), ((0, 1 << 63), (1, 1), 0),
        ((0, 1 << 40, 1 << 40), (1, 1, 1), 0), ((np.int64(1),), (1,), 0), ((2,), (1 << 80,), 0),
    ],
)  # fmt: skip
def test_check_refuses(shape: Any, stride: Any, offset: Any) -> None:
    """Whatever is no number, is negative, or lies outside the storage."""
    with pytest.raises(TensorError):
        check_spec(spec_of(shape, stride, offset))


@pytest.mark.parametrize("dtype", DTYPES)
def test_bounds_count_items(dtype: str) -> None:
    itemsize = DTYPES[dtype].itemsize
    check_spec(spec_of((2,), (3,), 1, nbytes=5 * itemsize, dtype=dtype))
    with pytest.raises(TensorError):
        check_spec(spec_of((2,), (3,), 1, nbytes=5 * itemsize - 1, dtype=dtype))


@given(st.lists(st.integers(0, 6), max_size=5).map(tuple))
def test_contiguous_stride(shape: tuple[int, ...]) -> None:
    """The stride of a fresh tensor is that of a numpy array with no axis of length 0."""
    fresh = np.empty([max(size, 1) for size in shape], np.uint8)
    expected: list[int] = []
    step = 1
    for size in reversed(fresh.shape):
        expected.insert(0, step)
        step *= size
    assert contiguous_stride(shape) == tuple(expected)
    assert as_strided(fresh, fresh.shape, expected).flags.c_contiguous


def test_replace_copies() -> None:
    spec = spec_of((2,), (1,))
    spec.is_parameter = True
    changed = spec.replace(storage_offset=3)
    assert (spec.storage_offset, changed.storage_offset) == (0, 3)
    assert changed.storage is spec.storage
    assert changed.is_parameter
    assert changed.numel == 2


def test_conj_and_neg() -> None:
    values = np.array([1 + 2j, 3 - 4j], np.complex64)
    storage = ArrayStorage(values, "complex64")
    for conj in (False, True):
        for neg in (False, True):
            spec = TensorSpec("complex64", (2,), (1,), 0, storage, False, conj, neg)
            expected = (values.conj() if conj else values) * (-1 if neg else 1)
            assert resolve_bits(values, spec).tolist() == expected.tolist()


@pytest.mark.parametrize("conj", [False, True])
@pytest.mark.parametrize("neg", [False, True])
def test_signs_of_complex32(conj: bool, neg: bool) -> None:
    """A sign is turned and nothing else, also of a NaN with something in it."""
    halves = np.array([0x7E5A, 0xFC00, 0x8000, 0x7EE2, 0x3C00, 0x0001], np.uint16)
    array = halves.view(numpy_dtype("complex32")).reshape(3, 1)[::-1]
    spec = TensorSpec("complex32", (3, 1), (1, 1), 0, ArrayStorage(halves, None), False, conj, neg)
    signs = np.array([0x8000 * neg, 0x8000 * (neg != conj)], np.uint16)
    resolved = resolve_bits(array, spec)
    assert resolved.shape == (3, 1)
    assert resolved.tobytes() == (halves.reshape(3, 2)[::-1] ^ signs).tobytes()
    assert resolve_bits(array[0, 0:1].reshape(()), spec).shape == ()
