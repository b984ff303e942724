"""The incremental writer: one table of storages, and all or nothing whatever happens."""

from __future__ import annotations

import gc
import io
import os
import pickle
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import torchzip as tz
from tests import builders as b
from torchzip.types import Parameter, TypedArray

Array = np.ndarray[Any, Any]


def storages(path: Path) -> dict[str, int]:
    """Return for each tensor the number of its storage, by first mention."""
    seen: dict[int, int] = {}
    with tz.lazy_load(path) as checkpoint:
        return {
            name: seen.setdefault(id(checkpoint[name].spec.storage), len(seen))
            for name in checkpoint
        }


def test_tensors_one_by_one(path: Path) -> None:
    """What is stored early, in chunks, and at save all come back."""
    with tz.incremental_save(path) as out:
        state: dict[str, Any] = {}
        for index in range(5):
            state[f"w{index}"] = out.store_early(np.full((2, 3), index, np.float32))
        state["chunked"] = out.store_chunks(
            (np.arange(3) + 3 * i for i in range(4)), shape=(3, 4), dtype="int64"
        )
        state["late"] = np.arange(3.0)
        state["n"] = {"deep": [state["w2"], 7]}
        out.save(state)
    made = tz.load(path)
    for index in range(5):
        assert made[f"w{index}"].tolist() == np.full((2, 3), index).tolist()
    assert made["chunked"].tolist() == np.arange(12).reshape(3, 4).tolist()
    assert made["late"].tolist() == [0, 1, 2]
    assert made["n"]["deep"][0] is made["w2"]
    with tz.lazy_load(path) as checkpoint:
        checkpoint.verify()


def test_nothing_early_is_plain_save(tmp_path: Path) -> None:
    """Without early tensors the bytes are those of `save`."""
    state = {"w": np.arange(6.0).reshape(2, 3), "n": [1]}
    (tmp_path / "a").mkdir()
    with tz.incremental_save(tmp_path / "a" / "m.pt") as out:
        out.save(state)
    tz.save(state, tmp_path / "m.pt")
    assert (tmp_path / "a" / "m.pt").read_bytes() == (tmp_path / "m.pt").read_bytes()


def test_values_are_those_of_the_moment(path: Path) -> None:
    """The array can be changed and freed after it is stored."""
    array = np.arange(100_000.0)
    with tz.incremental_save(path) as out:
        early = out.store_early(array)
        array[:] = -1
        del array
        out.save({"w": early})
    assert tz.load(path)["w"].tolist() == list(range(100_000))


@pytest.mark.parametrize("crc32", [True, False])
@pytest.mark.parametrize("to_file", [True, False], ids=["path", "file object"])
def test_ties(path: Path, crc32: bool, to_file: bool) -> None:
    """A tie survives any mix of early twice, early and plain, whole and view."""
    base = np.arange(20.0).reshape(4, 5)
    file = io.BytesIO()
    with tz.incremental_save(path if to_file else file, crc32=crc32) as out:
        first = out.store_early(base)
        state = {
            "first": first,
            "second": out.store_early(base),
            "same": first,
            "row": out.store_early(base[1]),
            "plain": base,
            "transposed": base.T,
            "other": np.arange(20.0).reshape(4, 5),
        }
        out.save(state)
    if not to_file:
        path.write_bytes(file.getvalue())
    numbers = storages(path)
    shared = ["first", "second", "same", "plain"]
    if to_file:  # what was written can be read back only there
        shared += ["row", "transposed"]
    assert {numbers[name] for name in shared} == {0}
    assert numbers["other"] != 0
    made = tz.load(path)
    assert made["row"].tolist() == base[1].tolist()
    assert made["transposed"].tolist() == base.T.tolist()


def test_tie_of_packed_views(path: Path) -> None:
    """The same strided view twice is stored once, and holds only its elements."""
    base = np.zeros((1000, 1000))
    base[:, 3] = np.arange(1000)
    with tz.incremental_save(path) as out:
        column = base[:, 3]
        out.save({"a": out.store_early(column), "b": out.store_early(column), "c": column})
    assert set(storages(path).values()) == {0}
    assert path.stat().st_size < 12_000
    assert tz.load(path)["c"].tolist() == list(range(1000))


def test_changed_array_is_no_tie(path: Path) -> None:
    """An array that was changed in between is another tensor."""
    array = np.zeros(10)
    with tz.incremental_save(path) as out:
        before = out.store_early(array)
        array[3] = 1
        out.save({"before": before, "after": out.store_early(array), "plain": array})
    made = tz.load(path)
    assert made["before"].tolist() == [0] * 10
    assert made["after"][3] == made["plain"][3] == 1


def test_freed_address_is_no_identity(path: Path) -> None:
    """An array at the address of one that is gone is never taken for it."""
    state = {}
    with tz.incremental_save(path) as out:
        for index in range(50):
            state[f"w{index}"] = out.store_early(np.full(5000, 7.0 if index % 2 else 0.0))
        out.save(state)
    assert len(set(storages(path).values())) == 50


def test_view_stores_what_it_reaches(path: Path) -> None:
    """A view of 4 KB never drags its base along."""
    base = np.zeros(10 << 20, np.uint8)
    with tz.incremental_save(path) as out:
        out.save({"v": out.store_early(base[5000:9096])})
    assert path.stat().st_size < 8000


@pytest.mark.parametrize(
    "array",
    [
        np.arange(6.0)[::-1],
        np.arange(6, dtype=">i4"),
        np.arange(12.0).reshape(3, 4).T,
        np.array(7.0),
        np.zeros((0, 3)),
        np.broadcast_to(np.arange(3.0), (4, 3)),
        np.arange(5, dtype=ml_dtypes.bfloat16),
        np.zeros(5, "u1,f8")["f1"],
    ],
    ids=lambda a: f"{a.dtype}{a.shape}{a.strides}",
)
def test_odd_arrays(path: Path, array: Array) -> None:
    """Whatever the layout, the early tensor comes back equal."""
    with tz.incremental_save(path) as out:
        out.save([out.store_early(array), out.store_early(array), array])
    for made in tz.load(path):
        assert made.dtype == array.dtype.newbyteorder("=")
        np.testing.assert_array_equal(made, array)


def test_other_kinds(path: Path, tmp_path: Path) -> None:
    """Parameters, typed arrays and lazy tensors can be stored early as well."""
    tz.save({"w": Parameter(np.arange(4.0)), "v": np.arange(3.0)}, tmp_path / "source.pt")
    with tz.lazy_load(tmp_path / "source.pt") as source, tz.incremental_save(path) as out:
        lazy = out.store_early(source["w"])
        out.save(
            {
                "parameter": out.store_early(Parameter(np.ones(2), requires_grad=False)),
                "typed": out.store_early(TypedArray(np.arange(4, dtype=np.uint8), "bits8")),
                "lazy": lazy,
                "lazy again": out.store_early(source["w"]),
                "lazy at save": source.root["w"],
                "never early": source["v"],
                "early twice": out.store_early(lazy),
            }
        )
    with tz.lazy_load(path) as checkpoint:
        assert checkpoint["parameter"].is_parameter
        assert checkpoint["typed"].torch_dtype == "bits8"
        assert checkpoint["lazy"].is_parameter
        assert checkpoint["lazy at save"].numpy().tolist() == [0, 1, 2, 3]
        assert checkpoint["never early"].numpy().tolist() == [0, 1, 2]
    numbers = storages(path)
    assert len({numbers[name] for name in numbers if "lazy" in name or "twice" in name}) == 1


def test_proxy(path: Path) -> None:
    """The proxy has shape and dtype, and belongs to its writer."""
    with tz.incremental_save(path) as out:
        early = out.store_early(np.zeros((2, 3), np.int16))
        assert early.shape == (2, 3)
        assert early.torch_dtype == "int16"
        assert repr(early) == "EarlyTensor(int16, shape=[2, 3])"
        with pytest.raises(TypeError, match="cannot be pickled"):
            pickle.dumps(early)
        out.save(early)


@pytest.mark.parametrize("value", [None, [1, 2], "x", 1.5, np.float32(1)], ids=repr)
def test_what_cannot_be_stored_early(path: Path, value: Any) -> None:
    """It takes tensors; after the error the writer goes on."""
    with tz.incremental_save(path) as out:
        with pytest.raises(TypeError, match="an array or a tensor was expected"):
            out.store_early(value)
        with pytest.raises(TypeError, match="dtype"):
            out.store_early(np.array(["a"]))
        with pytest.raises(TypeError, match="items of 1 bytes"):
            out.store_early(TypedArray(np.zeros(2, np.uint8), "bits16"))
        out.save({"w": out.store_early(np.ones(2))})
    assert tz.load(path)["w"].tolist() == [1, 1]


# -- chunks --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [("float32", "f4"), ("torch.half", "f2"), (np.int8, "i1"), (np.dtype("c8"), "c8"), ("i4", "i4"),
     ("bfloat16", ml_dtypes.bfloat16), (bool, "?")],
    ids=str,
)  # fmt: skip
def test_chunk_dtypes(path: Path, dtype: Any, expected: Any) -> None:
    """A dtype is a torch name or what numpy takes."""
    values = np.arange(6).astype(expected)
    with tz.incremental_save(path) as out:
        early = out.store_chunks([values[:2], values[2:2], values[2:]], shape=[2, 3], dtype=dtype)
        out.save(early)
    made = tz.load(path)
    assert made.dtype == np.dtype(expected)
    assert made.tolist() == values.reshape(2, 3).tolist()


def test_chunks_of_any_shape(path: Path) -> None:
    """Blocks are taken in C order, whatever their shape and strides."""
    whole = np.arange(60, dtype=np.float32).reshape(10, 6)
    parts = [whole[:3], np.asfortranarray(whole[3:5]), whole[5:9][:, :], whole[9]]
    with tz.incremental_save(path) as out:
        out.save(out.store_chunks(iter(parts), shape=(10, 6), dtype=np.float32))
    np.testing.assert_array_equal(tz.load(path), whole)


@pytest.mark.parametrize(
    ("chunks", "shape", "dtype", "error"),
    [
        (None, (1,), "float64", TypeError),
        (5, (1,), "float64", TypeError),
        ([np.zeros(1)], (1,), None, TypeError),
        ([np.zeros(1)], (1,) * 65, "float64", ValueError),
    ],
)
def test_chunks_that_cannot_be_begun(
    path: Path, chunks: Any, shape: Any, dtype: Any, error: type[Exception]
) -> None:
    """What is wrong before the first block is said before a byte is written."""
    with tz.incremental_save(path) as out:
        with pytest.raises(error):
            out.store_chunks(chunks, shape=shape, dtype=dtype)
        out.save({"a": 1})
    assert tz.load(path) == {"a": 1}


def test_chunk_buffer_may_be_used_again(path: Path) -> None:
    """A generator may fill one buffer over and over."""

    def blocks() -> Iterator[Array]:
        buffer = np.empty(1000)
        for index in range(100):
            buffer[:] = index
            yield buffer

    with tz.incremental_save(path) as out:
        out.save(out.store_chunks(blocks(), shape=(100, 1000), dtype="float64"))
    np.testing.assert_array_equal(tz.load(path)[:, 7], np.arange(100))


def test_no_chunks_for_an_empty_tensor(path: Path) -> None:
    """An empty tensor needs no block."""
    with tz.incremental_save(path) as out:
        out.save([
            out.store_chunks([], shape=(0, 3), dtype="float32"),
            out.store_chunks([np.zeros((0, 3), "f4")], shape=(3, 0), dtype="float32"),
        ])  # fmt: skip
    assert [made.shape for made in tz.load(path)] == [(0, 3), (3, 0)]


class _StopError(Exception):
    pass


def _failing() -> Iterator[Array]:
    yield np.zeros(2, np.float32)
    raise _StopError("gone")


@pytest.mark.parametrize(
    ("chunks", "shape", "dtype", "error", "message"),
    [
        ([np.zeros(3, "f4")], (4,), "float32", ValueError, "the chunks have 3 elements"),
        ([], (1,), "float32", ValueError, "the chunks have 0 elements"),
        ([np.zeros(5, "f4")], (4,), "float32", ValueError, "more elements than the 4"),
        ([np.zeros(4, "f4"), np.zeros(1, "f4")], (4,), "float32", ValueError, "more elements"),
        ([np.zeros(4, "f8")], (4,), "float32", TypeError, "dtype float64; float32"),
        ([[1, 2]], (2,), "float32", TypeError, "float32 was announced"),
        ([["a"]], (1,), "float32", TypeError, "float32 was announced"),
        ([np.ma.zeros(4, "f4")], (4,), "float32", TypeError, "masked"),
        (_failing(), (4,), "float32", _StopError, "gone"),
    ],
)
@pytest.mark.parametrize("caught_inside", [True, False])
def test_chunks_that_do_not_fit(
    path: Path, chunks: Any, shape: Any, dtype: Any, error: Any, message: str, caught_inside: bool
) -> None:
    """The tensor was written in part, so the file cannot be completed; the target stays."""
    path.write_bytes(b"old")
    chunks = _failing() if error is _StopError else chunks

    def write() -> None:
        with tz.incremental_save(path) as out:
            if caught_inside:
                with pytest.raises(error, match=message):
                    out.store_chunks(chunks, shape=shape, dtype=dtype)
                out.save({})
            out.store_chunks(chunks, shape=shape, dtype=dtype)

    if caught_inside:
        error_outside, message_outside = ValueError, "written in part"
    else:
        error_outside, message_outside = error, message
    with pytest.raises(error_outside, match=message_outside):
        write()
    assert _is_as_it_was(path, b"old")


@pytest.mark.parametrize(
    ("shape", "dtype"), [((-1,), "float32"), ((2,), "float3"), ((2,), object), ((2,), "U2"),
                         (("a",), "float32"), (None, "float32"), ((2.5,), "float32"),
                         ("2", "float32"), ((1 << 63, 0), "float32"), ((1 << 62, 9), "float32")],
)  # fmt: skip
def test_wrong_announcements(path: Path, shape: Any, dtype: Any) -> None:
    """A wrong shape or dtype is found before anything is written; the writer goes on."""
    with tz.incremental_save(path) as out:
        with pytest.raises((TypeError, ValueError)):
            out.store_chunks([], shape=shape, dtype=dtype)
        out.save({"w": out.store_early(np.ones(2))})
    assert tz.load(path)["w"].tolist() == [1, 1]


# -- all or nothing ------------------------------------------------------------------------------


over_what = pytest.mark.parametrize("before", [b"old", None], ids=["over a file", "no file"])


def _put(path: Path, data: bytes | None) -> None:
    if data is not None:
        path.write_bytes(data)


def _is_as_it_was(path: Path, data: bytes | None) -> bool:
    left = {each.name: each.read_bytes() for each in path.parent.iterdir()}
    return left == ({} if data is None else {path.name: data})


@pytest.mark.parametrize("when", ["before", "between", "after save", "in chunks"])
@over_what
def test_exception_in_the_block(path: Path, when: str, before: bytes | None) -> None:
    """The old file is there, or none, and no temporary file, before and after `save`."""
    _put(path, before)

    def write() -> None:
        with tz.incremental_save(path) as out:
            if when == "before":
                raise _StopError
            early = out.store_early(np.ones(100_000))
            if when == "between":
                raise _StopError
            if when == "in chunks":
                out.store_chunks(_failing(), shape=(20,), dtype="float32")
            out.save({"w": early})
            raise _StopError

    with pytest.raises(_StopError):
        write()
    assert _is_as_it_was(path, before)


@over_what
def test_no_save(path: Path, before: bytes | None) -> None:
    """Without `save` nothing is written, and that is said."""
    _put(path, before)
    with (
        pytest.warns(UserWarning, match=r"save\(\) was never called") as caught,
        tz.incremental_save(path) as out,
    ):
        out.store_early(np.ones(2))
    assert caught[0].filename == __file__
    assert _is_as_it_was(path, before)


def test_warnings_that_are_errors(path: Path) -> None:
    """The temporary file is gone then too, while somebody still has the writer."""
    out = tz.incremental_save(path)
    with pytest.raises(UserWarning, match="never called"), out:  # as pytest is told to make them
        out.store_early(np.ones(2))
    assert os.listdir(path.parent) == []


def test_error_that_was_caught_in_the_block(path: Path) -> None:
    """Nothing is written, and that is said at the end."""
    path.write_bytes(b"old")
    with (
        pytest.warns(UserWarning, match="nothing was written, a tensor"),
        tz.incremental_save(path) as out,
        pytest.raises(ValueError, match="have 3 elements"),
    ):
        out.store_chunks([np.zeros(3)], shape=(4,), dtype="float64")
    assert _is_as_it_was(path, b"old")


class _Uses:
    """Uses the writer while it is being saved."""

    def __init__(self, use: Callable[[], object]) -> None:
        self._use = use

    def __reduce__(self) -> Any:
        self._use()
        return (OrderedDict, ())


def test_use_from_within_save(path: Path) -> None:
    """It is refused, with the path of whose ``__reduce__`` does it; the writer goes on."""
    with tz.incremental_save(path) as out:
        early = out.store_early(np.ones(2))
        uses: list[Callable[[], object]] = [
            lambda: out.store_early(np.ones(3)),
            lambda: out.store_chunks([], shape=(0,), dtype="float32"),
            lambda: out.save({}),
        ]
        for use in uses:
            with pytest.raises(TypeError, match=r"^x: .*save\(\) is at work"):
                out.save({"w": early, "x": _Uses(use)})
        out.save({"w": early})
    assert tz.load(path)["w"].tolist() == [1, 1]
    path.unlink()
    with tz.incremental_save(path) as out, pytest.raises(ValueError, match="closed"):
        out.save({"x": _Uses(out.close)})
    assert os.listdir(path.parent) == []


@over_what
def test_target_appears_at_the_end(path: Path, before: bytes | None) -> None:
    """Until the block ends there is the old file under the final name, or none."""
    _put(path, before)
    with tz.incremental_save(path) as out:
        out.save({"w": out.store_early(np.zeros(3))})
        assert (path.read_bytes() if path.exists() else None) == before
    assert tz.load(path)["w"].tolist() == [0, 0, 0]
    assert os.listdir(path.parent) == ["m.pt"]


def test_use_after_save_and_close(path: Path) -> None:
    """Each use that comes too late is a ValueError that says so."""
    with tz.incremental_save(path) as out:
        out.save({"w": np.ones(2)})
        for late in (lambda: out.store_early(np.ones(2)), lambda: out.save({})):
            with pytest.raises(ValueError, match="already"):
                late()
        with pytest.raises(ValueError, match="already"):
            out.store_chunks([], shape=(0,), dtype="float32")
    for late in (lambda: out.store_early(np.ones(2)), lambda: out.save({})):
        with pytest.raises(ValueError, match="closed"):
            late()
    out.close()
    assert tz.load(path)["w"].tolist() == [1, 1]


def test_without_a_with_statement(path: Path) -> None:
    """`close` completes the file; a writer that is forgotten leaves nothing."""
    out = tz.incremental_save(path)
    out.save({"w": out.store_early(np.ones(2))})
    out.close()
    out.close()
    before = path.read_bytes()
    forgotten = tz.incremental_save(path)
    forgotten.store_early(np.ones(100_000))
    del forgotten
    gc.collect()
    assert path.read_bytes() == before
    assert os.listdir(path.parent) == ["m.pt"]


def test_object_that_cannot_be_saved(path: Path) -> None:
    """The path is named; a corrected object can be saved after it."""
    with tz.incremental_save(path) as out:
        early = out.store_early(np.arange(3.0))
        with pytest.raises(TypeError, match=r"^x\.1: cannot save"):
            out.save({"w": early, "late": np.ones(2), "x": [0, lambda: 0]})
        out.save({"w": early, "late": np.ones(2)})
    made = tz.load(path)
    assert made["w"].tolist() == [0, 1, 2]
    assert made["late"].tolist() == [1, 1]


def test_lazy_tensor_after_an_object_that_cannot_be_saved(path: Path, tmp_path: Path) -> None:
    """No storage is thought to be written because a failed `save` has mentioned it."""
    tz.save({"w": np.arange(4.0)}, tmp_path / "source.pt")
    with tz.lazy_load(tmp_path / "source.pt") as source:
        with tz.incremental_save(path) as out:
            with pytest.raises(TypeError):
                out.save({"w": source["w"], "bad": lambda: 0})
            out.save({"w": source["w"]})
        assert tz.load(path)["w"].tolist() == [0, 1, 2, 3]


def test_records_are_numbered_without_a_break(path: Path) -> None:
    """Each storage has a record, from data/0 on, also after a `save` that failed."""
    with tz.incremental_save(path) as out:
        with pytest.raises(TypeError):
            out.save({"w": np.ones(3), "bad": lambda: 0})
        out.save({"w": np.ones(3)})
    assert b"m/data/0PK" in path.read_bytes()
    assert tz.load(path)["w"].tolist() == [1, 1, 1]


def test_tensor_of_another_writer(path: Path, tmp_path: Path) -> None:
    """A proxy means nothing in another file."""
    with tz.incremental_save(path) as out, tz.incremental_save(tmp_path / "other.pt") as other:
        foreign = other.store_early(np.ones(2))
        with pytest.raises(ValueError, match=r"^w\.0: stored by another writer"):
            out.save({"w": [foreign]})
        out.save({})
        other.save(foreign)


def test_dtype_conflict_at_save(path: Path) -> None:
    """Views of two dtypes on one memory are refused with their paths."""
    base = np.zeros(4, np.float32)[:]
    with tz.incremental_save(path) as out:
        out.store_early(np.ones(2))
        with pytest.raises(ValueError, match=r"a, b\.c: .*share memory"):
            out.save({"a": base, "b": {"c": base.view(np.int32)}})
        out.save({})


def test_two_dtypes_one_early(path: Path) -> None:
    """Another dtype on the memory of an early tensor has a storage of its own."""
    base = np.arange(4, dtype=np.float32)
    with tz.incremental_save(path) as out:
        early = out.store_early(base)
        out.save({"f": early, "i": base.view(np.int32)})
    made = tz.load(path)
    assert made["f"].tolist() == [0, 1, 2, 3]
    assert made["i"].tolist() == base.view(np.int32).tolist()


def test_deflated_source(path: Path) -> None:
    """A lazy tensor of a deflated record is stored as what it holds."""
    members = b.members_of(b.stream(b.tensor()))
    data = b.build_zip([b.Member(name=m.name, data=m.data, method=8) for m in members])
    with tz.lazy_load(io.BytesIO(data)) as source, tz.incremental_save(path) as out:
        out.save(out.store_early(source[""]))
    assert tz.load(path).tolist() == [1, 2, 3, 4]
