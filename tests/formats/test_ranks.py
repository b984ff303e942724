"""Rank files with DTensors: real ones, a plain model of torch's rules, and files that lie."""

from __future__ import annotations

import pickle
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import torchzip as tz
from tests.formats.rank_builder import (
    dtensor,
    local,
    places,
    sharded_tensor,
    write_rank,
    write_ranks,
)
from tests.formats.test_zero import refused
from tests.saved import quiet, saved
from tests.test_cost import peak_below
from torchzip.types import ForeignObject

REAL = Path(__file__).parents[1] / "data" / "ranks"
_A = np.arange(88, dtype=np.float32).reshape(11, 8)


# -- real files --------------------------------------------------------------------------------


_REAL = [
    "fsdp2-w2", "fsdp-tp-w4", "torch-2.6/fsdp2-w2", "torch-2.6/fsdp-tp-w4", "torch-2.6/hsdp-w4",
    "torch-2.4/fsdp2-w2",
]  # fmt: skip


@pytest.mark.parametrize("folder", _REAL)
def test_real(folder: str, tmp_path: Path) -> None:
    """The tensors are those of the model before it was spread; ties stay, the order too."""
    full = REAL / Path(folder).parent / "full.pt"
    with tz.lazy_load(REAL / folder) as found, tz.lazy_load(full) as expected:
        assert (found.format, list(found)) == ("ranks", list(expected))
        for name, tensor in expected.items():
            assert found[name].torch_dtype == tensor.torch_dtype
            assert found[name].numpy().tobytes() == tensor.numpy().tobytes()
            assert found[name].shape == tensor.shape
        assert found["tied.weight"] is found["l1.weight"]
        assert found.foreign == []
        assert found.verify().notes == ()
    assert list(tz.load(REAL / folder, foreign="raise")) == list(tz.load(full))
    tz.convert(REAL / folder, tmp_path / "m.pt", dtype="bfloat16")
    tz.convert(full, tmp_path / "n.pt", dtype="bfloat16")
    one, other = tz.load(tmp_path / "m.pt"), tz.load(tmp_path / "n.pt")
    assert {name: array.tobytes() for name, array in one.items()} == {
        name: array.tobytes() for name, array in other.items()
    }


@pytest.mark.parametrize("release", ["torch-2.4", "torch-2.6"])
def test_real_placements(release: str) -> None:
    """Of a mesh of 2 x 2: repeated, cut along both axes, twice along one, and by a part of it."""
    expected = np.arange(77, dtype=np.float32).reshape(11, 7)
    with tz.lazy_load(REAL / release / "dtensor-w4") as checkpoint:
        assert list(checkpoint) == ["rr", "s01", "s00", "sub", "p"]
        for name in ("rr", "s01", "s00", "sub"):
            np.testing.assert_array_equal(checkpoint[name].numpy(), expected)
        assert checkpoint.verify().notes == ()


def test_real_optimizer() -> None:
    """Files of optimizers are given as a list; the names are those of their dicts."""
    paths = [REAL / "fsdp2-w2" / f"optim_world_size_2_rank_{rank}.pt" for rank in range(2)]
    with tz.lazy_load(paths) as checkpoint, tz.lazy_load(REAL / "fsdp2-w2") as model:
        shapes = [model[name].shape for name in model if name not in ("scalar", "buf")]
        moments = [name for name in checkpoint if name.endswith(".exp_avg")]
        assert [checkpoint[name].shape for name in moments] == shapes[: len(moments)]
        assert checkpoint[moments[0]].numpy().mean() == pytest.approx(0.1)


def test_a_lone_file() -> None:
    """It stays what it is: an object with the parts of one rank."""
    with tz.lazy_load(REAL / "fsdp2-w2" / "model_world_size_2_rank_1.pt") as checkpoint:
        assert checkpoint.format == "zip"
        assert isinstance(checkpoint.root["emb.weight"], ForeignObject)
        (note,) = checkpoint.verify().notes
        assert note.startswith("1 of 2 ranks: ")


# -- a plain model of the rules ------------------------------------------------------------------


@st.composite
def _cuts(draw: st.DrawFn) -> tuple[list[int], list[tuple[tuple[int, ...], list[str | int]]]]:
    mesh = draw(st.lists(st.integers(1, 4), min_size=1, max_size=3))
    made = []
    for _ in range(draw(st.integers(1, 3))):
        shape = tuple(draw(st.lists(st.integers(0, 9), min_size=1, max_size=3)))
        dims = st.integers(0, len(shape) - 1)
        cut: list[str | int] = [draw(st.one_of(st.just("R"), dims)) for _ in mesh]
        if len(mesh) > 1 and draw(st.booleans()):
            # What the last axes cut, an earlier one has cut as FSDP does.
            dim = draw(dims)
            cut = ["R"] * (len(mesh) - 2) + [-dim - 1, dim]
        made.append((shape, cut))
    return mesh, made


@given(cuts=_cuts(), old=st.booleans())
def test_any_placements(
    tmp_path_factory: pytest.TempPathFactory,
    cuts: tuple[list[int], list[tuple[tuple[int, ...], list[str | int]]]],
    old: bool,
) -> None:
    """However a tensor is cut and repeated over a mesh, it comes out whole."""
    mesh, made = cuts
    arrays = {}
    for number, (shape, cut) in enumerate(made):
        size = int(np.prod(shape))
        array = np.arange(1, size + 1, dtype=np.float32).reshape(shape) + 1000 * number
        arrays[f"t{number}"] = (array, cut)
    plain = {"one": np.ones(1, np.float64), "scalar": np.array(5, np.int32), "n": 3}
    folder = write_ranks(tmp_path_factory.mktemp("r"), arrays, mesh, plain=plain, old=old)
    loaded = tz.load(folder)
    assert {name: loaded[name].tolist() for name in arrays} == {
        name: array.tolist() for name, (array, _) in arrays.items()
    }
    assert all(loaded[name].shape == array.shape for name, (array, _) in arrays.items())
    assert (loaded["one"].shape, loaded["scalar"].shape, loaded["n"]) == ((1,), (), 3)


@pytest.mark.parametrize("ranks", [1, 2, 4, 8, 13])
def test_uneven(ranks: int, tmp_path: Path) -> None:
    """Eleven rows over any number of ranks, some of which have none; ones are not replicas."""
    arrays: dict[str, Any] = {"a": (_A, [0]), "norm": (np.ones(16, np.float32), [0])}
    with tz.lazy_load(write_ranks(tmp_path, arrays, [ranks])) as checkpoint:
        np.testing.assert_array_equal(checkpoint["a"].numpy(), _A)
        np.testing.assert_array_equal(checkpoint["a"][3:9, 2], _A[3:9, 2])
        assert checkpoint["norm"].shape == (16,)
        tensor = pickle.loads(pickle.dumps(checkpoint["a"]))
        np.testing.assert_array_equal(tensor.numpy(), _A)


def test_order_of_axes(tmp_path: Path) -> None:
    """Releases like torch 2.13 can say in which order the axes of a mesh cut a dimension."""
    mesh, cut = [2, 2], [0, 0]
    entry = ForeignObject("torch.distributed.tensor._dtensor_spec", "ShardOrderEntry", (0, (1, 0)))
    for rank, (row, column) in enumerate(places(mesh)):
        part = local(_A, mesh, cut, (column, row))
        value = dtensor(part, _A.shape, mesh, cut, (row, column), shard_order=(entry,))
        write_rank(tmp_path, rank, 4, {"a": value})
    np.testing.assert_array_equal(tz.load(tmp_path)["a"], _A)


def test_sharded_tensors(tmp_path: Path) -> None:
    """What FSDP1 and torchrec write: shards say their boxes, and a rank may have none."""
    for rank, (begin, end) in enumerate([(0, 4), (4, 11), (11, 11)]):
        part = _A[begin:end] if begin < end else None
        write_rank(tmp_path, rank, 3, {"a": sharded_tensor(part, _A, _A.shape, (begin, 0))})
    np.testing.assert_array_equal(tz.load(tmp_path)["a"], _A)


def test_nested(tmp_path: Path) -> None:
    """Names of what is in dicts and lists are joined by dots."""
    for rank in range(2):
        part = dtensor(_A[6 * rank : 6 * rank + 6], _A.shape, [2], [0], [rank])
        root = {
            "model": {"a": part},
            "list": [{"lr": 0.5, "of": (1, 2)}],
            "x": ForeignObject("m", "X"),
        }
        write_rank(tmp_path, rank, 2, root)
    with tz.lazy_load(tmp_path) as checkpoint:
        np.testing.assert_array_equal(checkpoint["model.a"].numpy(), _A)
        assert checkpoint.root["list.0.of.1"] == 2
        assert checkpoint.foreign == [("m", "X")]
        assert "left out: 'x'" in checkpoint.verify().notes[0]


# -- many of them ----------------------------------------------------------------------------------


def _thin(folder: Path, count: int) -> Path:
    """Write so many files, each with a row of a tensor."""
    folder.mkdir()
    with quiet():
        for rank in range(count):
            part = np.full((1, 2), rank, np.float32)
            root = {"a": dtensor(part, (count, 2), [count], [0], [rank]), "n": np.ones(2)}
            path = folder / f"model_world_size_{count}_rank_{rank}.pt"
            path.write_bytes(saved(root))
    return folder


def _calls(folder: Path) -> int:
    """Return how many calls of functions it takes to open a directory and to read its tensors."""
    count = 0

    def note(frame: Any, event: str, argument: Any) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        tz.load(folder)
    finally:
        sys.setprofile(before)
    return count


@pytest.mark.long
def test_work_is_linear(tmp_path: Path) -> None:
    """Twice the files are twice the work, as calls are counted."""
    counts = [_calls(_thin(tmp_path / str(count), count)) for count in (20, 100, 300)]
    assert counts[2] - counts[1] < 2.1 * 200 / 80 * (counts[1] - counts[0]) / 2
    assert counts[2] < 300 * 4_000


@pytest.mark.parametrize("count", [300, pytest.param(10_000, marks=pytest.mark.long)])
def test_thousands(count: int, tmp_path: Path) -> None:
    """More files than may be open at once are read in some kB for each."""
    folder = _thin(tmp_path / "r", count)
    with peak_below(1_000_000 + 16_000 * count), tz.lazy_load(folder) as checkpoint:
        assert checkpoint["a"].shape == (count, 2)
        assert checkpoint["a"][count - 1].tolist() == [count - 1] * 2
        np.testing.assert_array_equal(checkpoint["a"][:, 1].ravel(), np.arange(count))
    (folder / f"model_world_size_{count}_rank_{count // 2}.pt").unlink()
    refused(folder, f"files of 1 of {count:,} ranks...rank_{count // 2}.pt")


# -- replicas ------------------------------------------------------------------------------------


def test_replicas_that_differ(tmp_path: Path) -> None:
    """A part that two ranks have is one; what each rank has for itself is a note."""
    for rank in range(2):
        plain = {"mean": np.full(3, rank, np.float32), "same": np.ones(3)}
        write_rank(tmp_path / "plain", rank, 2, plain)
        value = dtensor(_A + rank, _A.shape, [2], ["R"], [rank])
        write_rank(tmp_path / "parts", rank, 2, {"a": value})
    with tz.lazy_load(tmp_path / "plain") as checkpoint:
        assert checkpoint["mean"].numpy().tolist() == [0, 0, 0]
        (note,) = checkpoint.verify().notes
        assert "different values of 'mean'," in note
    refused(tmp_path / "parts", "rank_1.pt...record a...not of one save")


# -- files that are missing, or lie ----------------------------------------------------------------


def _two(tmp_path: Path, one: Any, other: Any) -> Path:
    write_rank(tmp_path, 0, 2, one)
    write_rank(tmp_path, 1, 2, other)
    return tmp_path


def _part(rank: int, **changes: Any) -> ForeignObject:
    fields: dict[str, Any] = {
        "part": _A[6 * rank : 6 * rank + 6],
        "shape": _A.shape,
        "mesh": [2],
        "placements": [0],
        "at": [rank],
    }
    return dtensor(**(fields | changes))


def test_missing_and_strange(tmp_path: Path) -> None:
    """A missing file is named, and one of another save."""
    folder = write_ranks(tmp_path, {"a": (_A, [0])}, [3])
    (folder / "model_world_size_3_rank_1.pt").unlink()
    refused(folder, "1 of 3 ranks...'model_world_size_3_rank_1.pt'")
    write_rank(folder, 3, 4, {})
    refused(folder, "files of saves by 3, 4 ranks")
    (folder / "model_world_size_4_rank_3.pt").unlink()
    write_rank(folder, 5, 3, {})
    refused(folder, "rank 5 of 3")


_LIES: dict[str, tuple[Any, str]] = {
    "no such name": ({"b": _part(1)}, "rank_1.pt...'b', which the first rank lacks"),
    "a name less": ({}, "rank_1.pt...lacks 'a'"),
    "a part twice": ({"a": _part(0)}, "hold 48 of the 88"),
    "another size": (
        {"a": _part(1, shape=(12, 8), part=np.ones((6, 8), np.float32))},
        "rank_1.pt...of size [12, 8] here",
    ),
    "another dtype": ({"a": _part(1, part=_A[6:].astype(np.float64))}, "rank_1.pt...float64"),
    "a part too small": (
        {"a": _part(1, part=_A[7:])}, "rank_1.pt...by its place it is float32 of size [5, 8]",
    ),
    "a place outside": ({"a": _part(1, at=[2])}, "coordinates"),
    "a place below": ({"a": _part(1, at=[-1])}, "coordinates"),
    "a place of two": ({"a": _part(1, at=[1, 0])}, "2 coordinates"),
    "a mesh of nothing": ({"a": _part(1, mesh=[0])}, "coordinates"),
    "a mesh of many axes": ({"a": _part(1, mesh=[1 << 62] * 65)}, "65 dimensions"),
    "a huge mesh": ({"a": _part(1, mesh=[1 << 40])}, "by its place"),
    "a dimension too many": ({"a": _part(1, placements=[2])}, "dimension 2 of a tensor of 2"),
    "partial": ({"a": _part(1, placements=["P"])}, "the placement Partial"),
    "no placements": ({"a": _part(1, placements=())}, "0 placements"),
    "an order of others": ({"a": _part(1, shard_order=((1, (0,)),))}, "shard_order"),
    "an order of nothing": ({"a": _part(1, shard_order=(3,))}, "shard_order"),
    "no mesh": ({}, ""),
    "plain": ({"a": _A}, "the chunks at"),
    "words": ({"a": "words"}, "lacks 'a'"),
    "a cycle": ({}, ""),
    "a key of floats": ({1.5: _part(1)}, "1.5 for a key"),
}  # fmt: skip


@pytest.mark.parametrize("name", _LIES)
def test_lies(name: str, tmp_path: Path) -> None:
    """A file that lies about its part is named before a tensor is made."""
    other, message = _LIES[name]
    if name == "no mesh":
        other, message = {"a": _part(1)}, "the mesh of a DTensor"
        other["a"].args[3][1]["_spec"].state["mesh"] = 3
    if name == "a cycle":
        other = {"a": _part(1)}
        other["b"] = other
        refused(_two(tmp_path, other, other), "nesting")
        return
    refused(_two(tmp_path, {"a": _part(0)}, other), message)
