"""Computed tensors equal numpy's arrays, whatever they are computed from and however read."""

from __future__ import annotations

import itertools
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import torchzip as tz
from tests.lazy.trees import Both, expressions, is_inside, rounded, same
from tests.sampling import costly, thorough
from tests.tensors.test_specs import indices
from torchzip.files.source import FileObjectSource
from torchzip.tensors import computed, packing, specs
from torchzip.tensors.arithmetic import converted
from torchzip.tensors.numpy_dtypes import numpy_dtype, torch_dtype_of


@pytest.fixture(autouse=True, scope="module")
def _short_blocks() -> Iterator[None]:
    """Have blocks of a few elements, so that small tensors have many."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(computed, "_BLOCK_ELEMENTS", 7)
        patch.setattr(packing, "_SMALL_GATHER_NBYTES", 24)
        patch.setattr(packing, "_LONG_RUN_NBYTES", 8)
        patch.setattr(specs, "_FAR_GAP_NBYTES", 8)
        yield


@thorough
@given(expressions())
def test_is_what_numpy_has(both: Both) -> None:
    """Shape, dtype and every bit: views, operations, tensors put together, any dtypes."""
    same(both.lazy.numpy(), both.array)
    assert both.lazy.shape == both.wide.shape


@thorough
@given(st.data())
def test_a_slice_is_one_of_the_whole(data: st.DataObject) -> None:
    """Read at once, or as a view."""
    both = data.draw(expressions())
    key = data.draw(indices(both.lazy.shape))
    if not is_inside(both.array, key):
        with pytest.raises(IndexError):
            both.lazy[key]
        with pytest.raises(IndexError):
            both.lazy.lazy[key]
        return
    same(both.lazy[key], np.asarray(both.array[key]))
    same(both.lazy.lazy[key].numpy(), np.asarray(both.array[key]))


@thorough
@given(st.data())
def test_any_split_of_reads(data: st.DataObject) -> None:
    """Reads that begin and end in the middle of elements give the bytes of one read."""
    both = data.draw(expressions())
    storage = packing.elements_of(both.lazy.spec)
    expected = both.array.tobytes()
    assert storage.nbytes == len(expected)
    whole = storage.read(0, storage.nbytes).tobytes()
    cuts = data.draw(st.lists(st.integers(0, storage.nbytes), max_size=6))
    edges = [0, *sorted(cuts), storage.nbytes]
    begin = data.draw(st.integers(0, len(edges) - 2))
    stop = edges[-1]
    reader = storage.reader(edges[begin], stop, data.draw(st.sampled_from([0, 20, 1 << 20])))
    made = b""
    for start, end in zip(edges[begin:], edges[begin + 1 :], strict=False):
        out = np.empty(end - start, np.uint8)
        reader.read_into(start, out)
        made += out.tobytes()
        assert storage.read(start, end).tobytes() == out.tobytes()
    assert made == whole[edges[begin] :]
    blocks = b"".join(block.tobytes() for block in storage.checked_blocks(11))
    assert blocks == whole


@thorough
@given(st.data())
def test_parts_are_what_is_read(data: st.DataObject) -> None:
    """What is announced of a range has every byte that is read for it, beside headers."""
    storage = packing.elements_of(data.draw(expressions()).lazy.spec)
    storage.read(0, storage.nbytes)  # looks for the places of the records
    start, stop = sorted(data.draw(st.integers(0, storage.nbytes)) for _ in range(2))
    announced: set[tuple[int, int]] = set()
    for part in storage.parts(start, stop):
        source, offset, nbytes = part[0].extent(*part[1:])
        announced |= {(id(source), at) for at in range(offset, offset + nbytes)}
    read: set[tuple[int, int]] = set()
    read_into = FileObjectSource.read_into

    def noted(source: FileObjectSource, offset: int, out: memoryview) -> None:
        read.update((id(source), at) for at in range(offset, offset + out.nbytes))
        read_into(source, offset, out)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FileObjectSource, "read_into", noted)
        reader = storage.reader(start, stop, data.draw(st.sampled_from([20, 1 << 20])))
        at_once = data.draw(st.integers(1, 40))
        for at in range(start, stop, at_once):
            reader.read_into(at, np.empty(min(at_once, stop - at), np.uint8))
    assert read <= announced


@given(expressions(), st.sampled_from(["bfloat16", "float16", "float32", "float8_e4m3fn"]))
def test_is_rounded_once(both: Both, dtype: str) -> None:
    """``.to()`` begins with what an expression is before it is rounded to its own dtype."""
    if torch_dtype_of(both.wide.dtype) in ("float32", "float64", "bfloat16", "float16"):
        expected = both.array
        if both.lazy.torch_dtype != dtype:
            expected = rounded(both.wide, dtype)
        same(both.lazy.to(dtype).numpy(), expected)
        assert converted(both.lazy.spec, dtype).torch_dtype == dtype


@costly
@given(expressions(), st.sampled_from([".pt", ".safetensors"]))
def test_is_saved_and_converted(
    tmp_path_factory: pytest.TempPathFactory, both: Both, suffix: str
) -> None:
    """As any other tensor is: by `save`, `store_early` and `convert`."""
    folder = tmp_path_factory.mktemp("made")
    tree = {"a": both.lazy, "b": [both.lazy]}
    tz.save(tree, folder / "saved.pt")
    with tz.incremental_save(folder / "early.pt") as out:
        out.save({"a": out.store_early(both.lazy), "b": [both.lazy]})
    for name in ("saved.pt", "early.pt"):
        made = tz.load(folder / name)
        same(made["a"], both.array)
        assert made["a"] is made["b"][0] or np.shares_memory(made["a"], made["b"][0])
    if suffix == ".pt" or both.array.dtype.kind != "V":
        report = tz.convert({"x": both.lazy, "y": both.lazy}, folder / f"made{suffix}")
        with tz.lazy_load(folder / f"made{suffix}") as checkpoint:
            same(checkpoint["x"].numpy(), both.array)
        assert report.tied == ({"y": "x"} if suffix == ".safetensors" and both.array.size else {})


@given(expressions())
def test_pickles(both: Both) -> None:
    """With all that it is made of, as a LazyTensor of a file object does."""
    try:
        data = pickle.dumps(both.lazy)
    except TypeError:  # an old BytesIO cannot
        return
    same(pickle.loads(data).numpy(), both.array)


def test_deep_expressions_end_before_the_stack(tmp_path: Path) -> None:
    """A hundred steps can be read and pickled; more are refused where they are written down."""
    array = np.arange(40, dtype="float32")
    tz.save({"t": array}, tmp_path / "t.pt")
    with tz.lazy_load(tmp_path / "t.pt") as checkpoint:
        total = checkpoint["t"]
        for _ in range(100):
            total = total + checkpoint["t"]
        same(total.numpy(), array * 101)
        same(pickle.loads(pickle.dumps(total))[3:5], array[3:5] * 101)
        with pytest.raises(ValueError, match="100 steps"):
            total + 1


@thorough
@given(
    st.integers(1, 30), st.integers(0, 4), st.integers(1, 7),
    st.lists(st.integers(0, 500), max_size=5), st.sampled_from(["float32", "bfloat16", "int16"]),
)  # fmt: skip
def test_by_rows(count: int, columns: int, repeat: int, cuts: list[int], torch_dtype: str) -> None:
    """Rows of an operand that has fewer, whichever part is read; the last may stand for fewer."""
    rng = np.random.default_rng(count)
    weight = rng.integers(-99, 99, (count, columns)).astype(np.float32)
    scale = rng.integers(1, 9, -(-count // repeat)).astype(np.float32)

    def scaled(block: Any, of_rows: Any, rows: tuple[int, int]) -> Any:
        assert len(block) == rows[1] - rows[0]
        which = np.arange(*rows) // repeat - rows[0] // repeat
        return (block * of_rows[which][:, None]).astype(numpy_dtype(torch_dtype))

    made = tz.lazy.compute(scaled, weight, scale, rows=True, repeat=(1, repeat), dtype=torch_dtype)
    expected = rounded(weight * np.repeat(scale, repeat)[:count, None], torch_dtype)
    same(made.numpy(), expected)
    storage = made.spec.storage
    edges = [0, *sorted(min(cut, storage.nbytes) for cut in cuts), storage.nbytes]
    reader = storage.reader(0, storage.nbytes)
    for start, end in itertools.pairwise(edges):
        out = np.empty(end - start, np.uint8)
        reader.read_into(start, out)
        assert out.tobytes() == expected.tobytes()[start:end] == storage.read(start, end).tobytes()


def test_reduce() -> None:
    """In order, over all elements of tensors that are broadcast; nothing of none."""
    array = np.arange(50, dtype=np.float32).reshape(10, 5)
    seen: list[float] = []

    def note(total: float | None, block: Any, other: Any) -> float:
        seen.extend(block.tolist())
        return (total or 0.0) + float((block * other).sum())

    found = tz.lazy.reduce(note, array.T, np.arange(10, dtype=np.int64))
    assert found == float((array.T * np.arange(10)).sum())
    assert seen == array.T.ravel().tolist()
    assert tz.lazy.reduce(note, array[:0]) is None
    assert tz.lazy.reduce(note, array[:0], initial=3) == 3
