"""Tensors put together from chunks: equal to numpy, whatever the cut and whatever is asked for."""

from __future__ import annotations

import io
import itertools
import math
import pickle
import weakref
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import torchzip as tz
from tests.sampling import costly
from tests.tensors.test_specs import indices
from torchzip.checkpoint.lazy_tensor import LazyTensor
from torchzip.files.crc import crc32
from torchzip.files.source import FileObjectSource
from torchzip.tensors.chunks import Chunk, ChunkedStorage, TilingCheck, boxes
from torchzip.tensors.packing import ElementStorage
from torchzip.tensors.specs import TensorSpec, contiguous_stride
from torchzip.tensors.storage import FixedPlace, SpanStorage, compare_crcs

Shape = tuple[int, ...]
Array = np.ndarray[Any, Any]


def _chunk(array: Array, at: Shape, sizes: Shape, how: str = "C") -> Chunk:
    """Return a chunk with the elements of a box, laid out as ``how`` says."""
    part = array[tuple(slice(a, a + n) for a, n in zip(at, sizes, strict=True))]
    if how == "F":
        owner = np.array(part.T, order="C")
        laid_out = owner.T
    elif how == "gaps":
        owner = np.zeros((*sizes[:-1], 2 * sizes[-1] + 1) if sizes else 3, part.dtype)
        laid_out = owner[..., 1::2] if sizes else owner[1:2].reshape(())
        laid_out[...] = part
    else:
        owner = laid_out = np.array(part, order="C")
    stride = tuple(step // 4 for step in laid_out.strides)
    offset = 1 if how == "gaps" else 0
    data = owner.tobytes()
    place = FixedPlace(FileObjectSource(io.BytesIO(data)), 0)
    storage = SpanStorage("float32", len(data), "cpu", f"{at} {how}", place, crc32(data))
    return Chunk(at, sizes, f"{at}", TensorSpec("float32", sizes, stride, offset, storage))


@st.composite
def _cuts(draw: st.DrawFn, shape: Shape) -> list[tuple[Shape, Shape]]:
    """Cut a tensor again and again, each time along one axis of one part."""
    parts = [((0,) * len(shape), shape)]
    for _ in range(draw(st.integers(0, 6))):
        at, sizes = parts.pop(draw(st.integers(0, len(parts) - 1)))
        axis = draw(st.integers(0, len(shape) - 1)) if shape else 0
        if not shape or sizes[axis] < 2:
            parts.append((at, sizes))
            continue
        first = draw(st.integers(1, sizes[axis] - 1))
        low, high = list(sizes), list(sizes)
        low[axis], high[axis] = first, sizes[axis] - first
        moved = list(at)
        moved[axis] += first
        parts += [(at, tuple(low)), (tuple(moved), tuple(high))]
    return draw(st.permutations(parts))


def _made(data: st.DataObject) -> tuple[Array, ChunkedStorage, TensorSpec]:
    shape = tuple(data.draw(st.lists(st.integers(1, 5), max_size=4)))
    array = np.arange(math.prod(shape), dtype=np.float32).reshape(shape)
    ways = st.sampled_from(["C", "C", "F", "gaps"])
    chunks = [_chunk(array, *cut, data.draw(ways)) for cut in data.draw(_cuts(shape))]
    TilingCheck()(shape, chunks)
    storage = ChunkedStorage("float32", shape, chunks, "w")
    return array, storage, TensorSpec("float32", shape, contiguous_stride(shape), 0, storage)


@given(st.data())
def test_equals_the_whole(data: st.DataObject) -> None:
    """Bytes at any place, blocks of any size, slices of any step."""
    array, storage, spec = _made(data)
    raw = np.frombuffer(array.tobytes(), np.uint8)
    assert storage.nbytes == array.nbytes
    start = data.draw(st.integers(0, raw.size))
    stop = data.draw(st.integers(start, raw.size))
    np.testing.assert_array_equal(storage.read(start, stop), raw[start:stop])
    nbytes = 4 * data.draw(st.integers(1, 40))
    for blocks in (storage.blocks(nbytes), storage.checked_blocks(nbytes)):
        joined = [block.copy() for block in blocks]
        assert all(block.size <= nbytes for block in joined)
        np.testing.assert_array_equal(np.concatenate(joined), raw)
    lazy = LazyTensor(spec)
    np.testing.assert_array_equal(lazy.numpy(), array)
    key = data.draw(indices(array.shape))
    try:
        expected = array[key]
    except IndexError:
        return
    np.testing.assert_array_equal(lazy[key], expected)


@given(st.data(), st.booleans())
def test_ranges_compare_the_crcs(data: st.DataObject, is_damaged: bool) -> None:
    """Readers of ranges that follow one another take the CRC of each chunk together."""
    array, storage, _ = _made(data)
    in_order = storage.compared()
    assert len(in_order) + len(storage.uncompared) == len(storage.chunks)
    assert not any("C" in str(each.record) for each in storage.uncompared)
    if is_damaged and in_order:
        data.draw(st.sampled_from(in_order)).crc ^= 1  # type: ignore[operator]
    cuts = sorted({0, array.size, *data.draw(st.lists(st.integers(0, array.size), max_size=4))})
    crcs = []
    for first, last in itertools.pairwise(cuts):
        reader = storage.reader(4 * first, 4 * last, data.draw(st.sampled_from([0, 40, 1 << 20])))
        at = first
        while at < last:
            stop = data.draw(st.integers(at + 1, last))
            out = np.empty(4 * (stop - at), np.uint8)
            reader.read_into(4 * at, out)
            np.testing.assert_array_equal(out.view(np.float32), array.reshape(-1)[at:stop])
            at = stop
        crcs.append(reader.crcs())
    ranges = list(zip(*crcs, strict=True))
    if is_damaged and in_order:
        with pytest.raises(tz.FormatError, match="CRC"):
            compare_crcs(in_order, ranges)
    else:
        compare_crcs(in_order, ranges)
        for found, compared in zip(ranges, in_order, strict=True):
            assert [each.stop for each in found][-1] == compared.nbytes
            assert [each.start for each in found[1:]] == [each.stop for each in found[:-1]]


@pytest.mark.parametrize("how", ["C", "F"])
def test_the_memory_of_a_reader_goes_with_it(how: str) -> None:
    """At once: each piece of a large tensor has a reader, and a window."""
    array = np.arange(24, dtype=np.float32).reshape(4, 6)
    cuts: list[tuple[Shape, Shape]] = [((0, 0), (4, 2)), ((0, 2), (4, 4))]
    storage = ChunkedStorage("float32", (4, 6), [_chunk(array, *cut, how) for cut in cuts], "w")
    for each in (storage, ElementStorage(TensorSpec("float32", (6, 4), (1, 6), 0, storage))):
        reader = each.reader(0, each.nbytes)
        reader.read_into(0, np.empty(each.nbytes, np.uint8))
        kept = weakref.ref(reader)
        del reader
        assert kept() is None


@costly
@given(st.data())
def test_any_view_of_it(data: st.DataObject) -> None:
    """A strided view that is no slice of the tensor is read in runs, and as right."""
    array, storage, _ = _made(data)
    shape = tuple(data.draw(st.lists(st.integers(1, 4), max_size=3)))
    stride = tuple(data.draw(st.integers(0, 4)) for _ in shape)
    reach = sum((n - 1) * step for n, step in zip(shape, stride, strict=True))
    if reach >= array.size:
        return
    offset = data.draw(st.integers(0, array.size - 1 - reach))
    spec = TensorSpec("float32", shape, stride, offset, storage)
    flat = array.reshape(-1)[offset:]
    expected = np.lib.stride_tricks.as_strided(flat, shape, tuple(4 * step for step in stride))
    np.testing.assert_array_equal(LazyTensor(spec).numpy(), expected)
    joined = [block.copy() for block in ElementStorage(spec).blocks()]
    np.testing.assert_array_equal(np.concatenate(joined).view(np.float32), expected.reshape(-1))


@costly
@given(st.data())
def test_the_boxes_of_a_range(data: st.DataObject) -> None:
    """Boxes give the elements of the range, in order."""
    shape = tuple(data.draw(st.lists(st.integers(1, 4), max_size=4)))
    array = np.arange(math.prod(shape)).reshape(shape)
    first = data.draw(st.integers(0, array.size))
    last = data.draw(st.integers(first, array.size))
    found: list[int] = []
    for at, sizes in boxes(shape, first, last):
        part = array[tuple(slice(a, a + n) for a, n in zip(at, sizes, strict=True))]
        found += part.reshape(-1).tolist()
    assert found == list(range(first, last))


@pytest.mark.parametrize("how", ["C", "F", "gaps"])
def test_a_wrong_crc(how: str) -> None:
    """Damage is seen while blocks are read, or before."""
    array = np.arange(24, dtype=np.float32).reshape(4, 6)
    cuts: list[tuple[Shape, Shape]] = [((0, 0), (4, 2)), ((0, 2), (4, 4))]
    chunks = [_chunk(array, *cut, how) for cut in cuts]
    chunks[1].open().storage.crc ^= 1  # type: ignore[operator]
    storage = ChunkedStorage("float32", (4, 6), chunks, "w")
    with pytest.raises(tz.FormatError, match=r"\(0, 2\).*CRC"):
        list(storage.checked_blocks())
    assert len(list(storage.blocks())) == 1


def test_it_survives_pickle() -> None:
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    storage = ChunkedStorage("float32", (2, 3), [_chunk(array, (0, 0), (2, 3))], "w")
    again = pickle.loads(pickle.dumps(storage))
    np.testing.assert_array_equal(again.read(4, 12).view(np.float32), [1, 2])


# -- the tiling ------------------------------------------------------------------------------------


def _box(at: Shape, sizes: Shape) -> Chunk:
    return Chunk(at, sizes, f"at {at}")


@pytest.mark.parametrize(
    ("shape", "cut", "text"),
    [
        ((4,), [((0,), (3,))], "3 of the 4"),
        ((4,), [], "0 of the 4"),
        ((4,), [((0,), (5,))], "reaches out"),
        ((4,), [((5,), (1,))], "reaches out"),
        ((4,), [((0,), (2,)), ((1,), (2,))], "overlap"),
        ((4,), [((0,), (4,)), ((0,), (4,))], "overlap"),
        (
            (4, 4),
            [((0, 0), (2, 4)), ((2, 0), (2, 3)), ((1, 3), (1, 1)), ((2, 3), (1, 1))],
            "overlap",
        ),
        ((4, 4), [((0, 0), (4, 2)), ((0, 1), (4, 2))], "overlap"),
        ((4,), [((0, 0), (4, 1))], "dimensions"),
        ((), [((), ()), ((), ())], "several chunks"),
    ],
)  # fmt: skip
def test_no_tiling(shape: Shape, cut: list[tuple[Shape, Shape]], text: str) -> None:
    with pytest.raises(tz.FormatError, match=text):
        TilingCheck()(shape, [_box(*each) for each in cut])


@pytest.mark.long
def test_many_chunks_are_compared_quickly() -> None:
    """Rows of a large tensor cost a sort; a grid little more; the total is bounded."""
    check = TilingCheck()
    check((100_000, 4), [_box((row, 0), (1, 4)) for row in range(100_000)])
    grid = [_box((row, column), (1, 1)) for row in range(200) for column in range(200)]
    check((200, 200), grid)
    with pytest.raises(tz.UnsupportedError, match="too many"):
        TilingCheck(1000)((200, 200), grid)


def test_numbers_past_64_bits() -> None:
    big = (1 << 63) - 1
    TilingCheck()((big, 2), [_box((0, 0), (big, 1)), _box((0, 1), (big, 1))])
    with pytest.raises(tz.FormatError, match="of the"):
        TilingCheck()((big, big), [_box((0, 0), (big, big - 1))])
