"""Computed tensors through `convert` and the writers: pieces, workers, CRCs, errors, folders."""

from __future__ import annotations

import contextlib
import io
import os
import pickle
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import torchzip as tz
from tests.child_process import python
from tests.convert.test_run import NeighbourProcess, make_pieces_small
from tests.formats.counting import Counted
from tests.systems import needs
from torchzip import lazy
from torchzip.tensors import computed

Array = np.ndarray[Any, Any]


@pytest.fixture(autouse=True)
def _short_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut what these tests write into many pieces, and blocks."""
    make_pieces_small(monkeypatch)
    monkeypatch.setattr(computed, "_BLOCK_ELEMENTS", 1 << 10)


@pytest.fixture
def arrays() -> dict[str, Array]:
    rng = np.random.default_rng(5)
    return {
        "w": rng.standard_normal((96, 128)).astype(np.float32),
        "v": rng.standard_normal((96, 128)).astype(np.float32),
        "half": rng.standard_normal((50, 77)).astype(ml_dtypes.bfloat16),
        "scale": rng.standard_normal((3, 4)).astype(np.float32),
    }


@pytest.fixture
def source(arrays: dict[str, Array], tmp_path: Path) -> Path:
    path = tmp_path / "m.pt"
    tz.save(arrays, path)
    return path


@pytest.fixture
def checkpoint(source: Path) -> Iterator[tz.Checkpoint]:
    with tz.lazy_load(source) as opened:
        yield opened


def scaled(w: Array, scale: Array, rows: tuple[int, int]) -> Array:
    """Scale blocks of 32 x 32: of a weight in rows, and those rows of scales that touch them."""
    index = np.arange(*rows) // 32 - rows[0] // 32
    return np.asarray(w * np.repeat(scale[index], 32, axis=1))


def made_of(checkpoint: Any) -> dict[str, Any]:
    """Return expressions of every kind."""
    w, v, half = checkpoint["w"], checkpoint["v"], checkpoint["half"]
    mean = (w + v) / 2
    return {
        "mean": mean,
        "tied": mean,
        "scaled": lazy.compute(
            scaled, w, checkpoint["scale"], rows=True, repeat=(1, 32), dtype="bfloat16"
        ),
        "half": half * 0.7,
        "joined": lazy.cat([w, mean.lazy[:10], v.T.reshape(-1, 128)]),
        "turned": w.T,
        "part": v.lazy[5:70, ::3],
        "slice": v.lazy[5:70],
        "as it is": v,
    }


def expected_of(arrays: dict[str, Array]) -> dict[str, Array]:
    w, v, half = arrays["w"], arrays["v"], arrays["half"]
    mean = (w + v) / 2
    return {
        "mean": mean,
        "tied": mean,
        "scaled": w * np.kron(arrays["scale"], np.ones((32, 32), np.float32)),
        "half": half.astype(np.float32) * np.float32(0.7),
        "joined": np.concatenate([w, mean[:10], v.T.reshape(-1, 128)]),
        "turned": w.T,
        "part": v[5:70, ::3],
        "slice": v[5:70],
        "as it is": v,
    }


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("dtype", [None, "float16", "float32"])
def test_of_a_mapping(
    checkpoint: tz.Checkpoint, arrays: dict[str, Array], tmp_path: Path, suffix: str, dtype: Any
) -> None:
    """Every element, rounded once to the dtype that is asked for; alone, by threads and workers."""
    contents = []
    for number, make in enumerate((contextlib.nullcontext, NeighbourProcess, ThreadPoolExecutor)):
        path = tmp_path / str(number) / f"made{suffix}"
        path.parent.mkdir()
        with make() as executor:
            report = tz.convert(made_of(checkpoint), path, dtype=dtype, executor=executor)
        contents.append(path.read_bytes())
        assert report.source == "<mapping>"
        assert report.nbytes == len(contents[-1])
    assert contents[0] == contents[1] == contents[2]
    with tz.lazy_load(path) as made:
        made.verify()
        for name, array in expected_of(arrays).items():
            own = "bfloat16" if name in ("scaled", "half") else "float32"
            wanted = array.astype(dtype or getattr(ml_dtypes, own, own))
            found = made[report.tied.get(name, name)].numpy()
            assert found.dtype == wanted.dtype
            assert found.tobytes() == wanted.tobytes(), name


def test_the_plan_is_what_is_written(checkpoint: tz.Checkpoint, tmp_path: Path) -> None:
    """To the byte, in shards as well; nothing is read for it."""
    target = tmp_path / "o.safetensors"
    told = tz.convert(made_of(checkpoint), target, max_shard_size=60_000, dry_run=True)
    done = tz.convert(made_of(checkpoint), target, max_shard_size=60_000)
    assert told == done
    assert len(done.files) > 3
    assert {row.name: row.shape for row in done.rows}["joined"] == (96 + 10 + 96, 128)


def test_of_an_open_checkpoint(source: Path, tmp_path: Path) -> None:
    """It stays open, and the report has its path."""
    with tz.lazy_load(source) as checkpoint:
        report = tz.convert(checkpoint, tmp_path / "a.safetensors", include="w")
        assert (report.source, report.tensors) == (str(source), 1)
        checkpoint["w"].numpy()
        with pytest.raises(ValueError, match="limits are for reading a file"):
            tz.convert(checkpoint, tmp_path / "b.pt", limits=tz.Limits())


def test_of_arrays_and_other_tensors(
    checkpoint: tz.Checkpoint, arrays: dict[str, Array], tmp_path: Path
) -> None:
    """Whatever `save` takes for a tensor; anything else is refused by its name."""
    w = checkpoint["w"]
    one = arrays["v"]
    mixed = {"a": one, "b": one, "c": tz.types.Parameter(w), "d": np.arange(6)[::2]}
    report = tz.convert(mixed, tmp_path / "a.safetensors")
    assert report.tied == {"b": "a"}
    made = tz.load(tmp_path / "a.safetensors")
    np.testing.assert_array_equal(made["c"], arrays["w"])
    np.testing.assert_array_equal(made["d"], [0, 2, 4])
    for value, message in (({}, "x: .*dict"), (3, "x: .*int"), (np.array(["a"]), "x: .*dtype")):
        with pytest.raises(TypeError, match=message):
            tz.convert({"x": value}, tmp_path / "b.pt")
    with pytest.raises(TypeError, match="the name 3"):
        tz.convert({3: w}, tmp_path / "b.pt")  # type: ignore[dict-item]


def test_map_writes_nothing_but_the_target(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Views and expressions that ``map`` gives need no file of their own."""
    made: list[str] = []
    before = os.open

    def watched(path: Any, flags: int, *args: Any, **options: Any) -> int:
        if flags & os.O_CREAT:
            made.append(str(path))
        return before(path, flags, *args, **options)

    monkeypatch.setattr(os, "open", watched)

    def split(name: str, tensor: tz.LazyTensor) -> list[tuple[str, Any]]:
        if name != "w":
            return []
        q, k, v = (tensor.lazy[first : first + 32] for first in (0, 32, 64))
        return [("q", q), ("k", k * 2), ("v", v.T), ("kv", lazy.cat([k, v]))]

    report = tz.convert(source, tmp_path / "o.pt", map=split)
    assert len(made) == 1
    assert report.tensors == 4
    assert sorted(os.listdir(tmp_path)) == ["m.pt", "o.pt"]


def test_a_slice_does_not_bring_the_whole_along(checkpoint: tz.Checkpoint, tmp_path: Path) -> None:
    """It is a tensor of its own in any file, and so is a transposed one."""
    tz.save({"part": checkpoint["w"].lazy[3:5], "turned": checkpoint["v"].T}, tmp_path / "a.pt")
    with tz.lazy_load(tmp_path / "a.pt") as made:
        assert made["part"].spec.storage.nbytes == 2 * 128 * 4
        assert made["turned"].stride == (96, 1)


def test_only_what_is_needed_is_read(
    checkpoint: tz.Checkpoint, arrays: dict[str, Array], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A slice of an expression reads the bytes of that slice; a view reads nothing."""
    mean = (checkpoint["w"] + checkpoint["v"]) / 2
    mean[0]  # looks for the places of the records
    counted = Counted(monkeypatch)
    np.testing.assert_array_equal(mean[7], ((arrays["w"] + arrays["v"]) / 2)[7])
    assert counted.nbytes == 2 * 128 * 4
    assert mean.T.lazy[3:9, ::2].shape == (6, 48)
    assert counted.nbytes == 2 * 128 * 4
    np.testing.assert_array_equal(mean[::40, 3], ((arrays["w"] + arrays["v"]) / 2)[::40, 3])
    assert counted.nbytes == 2 * 128 * 4 + 2 * 3 * 4


# -- CRCs ------------------------------------------------------------------------------------------


def damage(path: Path, array: Array) -> None:
    """Change some bytes of an array in a file."""
    data = path.read_bytes()
    needle = np.ascontiguousarray(array).tobytes()[4000:4040]
    assert data.count(needle) == 1
    path.write_bytes(data.replace(needle, bytes(len(needle))))


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("executor", [None, NeighbourProcess()])
@pytest.mark.parametrize("name", ["mean", "half", "scaled", "cast"])
def test_damage_shows_where_all_is_read(
    source: Path, arrays: dict[str, Array], tmp_path: Path, suffix: str, executor: Any, name: str
) -> None:
    """In order, in any number of pieces; by `convert` and by `save`."""
    damage(source, arrays["half" if name == "half" else "w"])
    with tz.lazy_load(source) as checkpoint:
        tensors = {name: made_of(checkpoint).get(name, (checkpoint["w"].to("float16") + 1).T.T)}
        with pytest.raises(tz.FormatError, match=r"m.pt.*CRC-32"):
            tz.convert(tensors, tmp_path / f"o{suffix}", executor=executor)
        with pytest.raises(tz.FormatError, match=r"m.pt.*CRC-32"):
            tz.save(tensors, tmp_path / "o.pt")
        with pytest.raises(tz.FormatError, match=r"m.pt.*CRC-32"):
            lazy.reduce(lambda total, block: None, *tensors.values())
    assert os.listdir(tmp_path) == ["m.pt"]


@pytest.mark.parametrize("name", ["turned", "slice", "part", "joined", "again"])
def test_verify_compares_first_where_reads_are_scattered(
    source: Path, arrays: dict[str, Array], tmp_path: Path, name: str
) -> None:
    """Such damage goes unseen without it, and is seen before anything is computed with it."""
    damage(source, arrays["w" if name == "turned" else "v"])
    with tz.lazy_load(source) as checkpoint:
        again = lazy.compute(np.add, checkpoint["v"].T, checkpoint["w"].T)
        tensors = {name: made_of(checkpoint).get(name, again)}
        with pytest.raises(tz.FormatError, match="CRC-32"):
            tz.convert(tensors, tmp_path / "o.pt", verify=True)
        assert os.listdir(tmp_path) == ["m.pt"]
        tz.convert(tensors, tmp_path / "o.pt")


def test_a_sound_file_passes_verify(checkpoint: tz.Checkpoint, tmp_path: Path) -> None:
    """Nothing is compared with the CRC of something else."""
    for suffix in (".pt", ".safetensors"):
        tz.convert(made_of(checkpoint), tmp_path / f"o{suffix}", verify=True)


# -- errors ----------------------------------------------------------------------------------------


def late(block: Array) -> Array:
    """Raise an error in the middle of a tensor."""
    if block[0] > 9000:
        raise KeyError("no such scale")
    return block


def shorter(block: Array) -> Array:
    return block[:-1]


def wider(block: Array) -> Array:
    return block.astype(np.float64)


def a_list(block: Array) -> Any:
    return [1.0]


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (late, r"x\.y: the function late raised KeyError: 'no such scale', for elements 9,190 to "
         r"10,214 of a tensor float32 \[12288\]"),
        (shorter, r"x\.y: the function shorter gave the shape \[1023\]; \[1024\] was expected"),
        (wider, r"x\.y: the function wider gave float64; float32 was expected"),
        (a_list, r"x\.y: the function a_list gave list, not an array"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("kind", ["here", "another process", "threads"])
def test_functions_that_fail(tmp_path: Path, function: Any, message: str, kind: str) -> None:
    """Nothing is left, and the message has the tensor and the block."""
    tensor = lazy.compute(function, np.arange(12288, dtype=np.float32))
    made = {"here": contextlib.nullcontext, "threads": ThreadPoolExecutor}
    with made.get(kind, NeighbourProcess)() as executor, pytest.raises(ValueError, match=message):
        tz.convert({"x.y": tensor}, tmp_path / "o.safetensors", executor=executor)
    with pytest.raises(ValueError, match=message.replace("9,190 to 10,214", "9,216 to 10,240")):
        tz.save({"x": {"y": tensor}}, tmp_path / "o.pt")
    assert os.listdir(tmp_path) == []


def test_a_function_that_cannot_be_sent(tmp_path: Path) -> None:
    """A worker does not get it; its tensors are computed here."""
    here = os.getpid()
    seen: set[int] = set()

    def local(block: Array) -> Array:
        seen.add(os.getpid())
        return block

    tensor = lazy.compute(local, np.arange(12288, dtype=np.float32))
    with pytest.raises(Exception, match="local"):
        pickle.dumps(tensor)
    options: dict[str, Any] = {"executor": NeighbourProcess(), "overwrite": True}
    told = tz.convert({"x": tensor}, tmp_path / "o.pt", dry_run=True, **options)
    assert told == tz.convert({"x": tensor}, tmp_path / "o.pt", **options)
    assert told.here == ("x",)
    assert seen == {here}


@needs("fork")
def test_a_function_that_is_inherited(
    source: Path, arrays: dict[str, Array], tmp_path: Path
) -> None:
    """Workers that are forked have what cannot be sent to others."""
    script = f"""
import os, sys, numpy as np, torchzip as tz
from torchzip.convert import conversion, work
conversion._WORTH_NBYTES = work._SMALL_NBYTES = 0
here = os.getpid()
with tz.lazy_load({str(source)!r}) as checkpoint:
    tensor = tz.lazy.compute(lambda block: block * 0 + (os.getpid() != here), checkpoint["w"])
    report = tz.convert({{"x": tensor}}, {str(tmp_path / "o.pt")!r}, jobs=2)
print(report.here, set(tz.load({str(tmp_path / "o.pt")!r})["x"].ravel().tolist()))
"""
    assert python("-c", script) == "() {1.0}\n"


def test_what_shapes_and_dtypes_refuse(checkpoint: tz.Checkpoint) -> None:
    """Where the expression is written down, before anything is read."""
    w, half = checkpoint["w"], checkpoint["half"]
    ints = np.arange(4)
    negative = lazy.cat([np.array([-1])])
    for wrong, message in (
        (lambda: w + half, r"\[96, 128\] and \[50, 77\]"),
        (lambda: lazy.cat([w, half]), r"\[96, 128\] and \[50, 77\]"),
        (lambda: lazy.cat([w, w], axis=2), "axis 2 of tensors of 2"),
        (lambda: lazy.cat([]), "one tensor or more"),
        (lambda: lazy.stack([w, w.T]), r"\[96, 128\] and \[128, 96\]"),
        (lambda: lazy.pad(w, (95, 128)), "not padded to"),
        (lambda: w.reshape(5, -1), r"does not become \[5, -1\]"),
        (lambda: w.permute(0, 0), "each of the 2 axes"),
        (lambda: lazy.compute(np.add, w, w, repeat=(1, 1)), "needs rows=True"),
        (lambda: lazy.compute(np.add, w, half, rows=True), "tensor 1 has 50 rows for the 96"),
        (lambda: lazy.compute(np.add, w, w, rows=True, repeat=(1, 2)), "tensor 1 has 96 rows"),
        (lambda: tz.lazy_load(io.BytesIO(b"")), "empty"),
        (lambda: w * 10**400, "out of the range of floats"),
        (lambda: negative.to("uint64").numpy(), "-1 does not go into uint64"),
        (lambda: lazy.cat([np.ones(1, np.uint8)]) + 300, "300 is out of the range"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            wrong()
    tensor = lazy.cat([ints])
    for wrong, message in (
        (lambda: tensor + w.lazy[0, :4], "loses large ints"),
        (lambda: tensor * 0.5, "loses large ints"),
        (lambda: w.to("int32"), "lazy.compute"),
        (lambda: w + "a", "unsupported operand"),
        (lambda: lazy.cat(w), "a list of tensors"),  # type: ignore[arg-type]
        (lambda: lazy.compute("add", w), "fn must be a function"),  # type: ignore[arg-type]
        (lambda: lazy.cat([np.array([True])]) - np.array([True]), "boolean subtract"),
    ):  # fmt: skip
        with pytest.raises(TypeError, match=message):
            wrong()
    with pytest.raises(ValueError, match="300 does not go into int8"):
        lazy.cat([np.array([1, 300])]).to("int8").numpy()
    with pytest.raises(IndexError, match="on axis 0 of size 96"):
        w.lazy[96]
    with pytest.raises(IndexError, match="ints, slices"):
        w.lazy[[1, 2]]


def test_dtypes_that_have_none_together(
    checkpoint: tz.Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ml_dtypes before 0.7 had none for bfloat16 and wide ints; other pairs may come."""

    def promote_types(*dtypes: object) -> None:
        raise TypeError

    monkeypatch.setattr(np, "promote_types", promote_types)
    with pytest.raises(TypeError, match="no dtype for bfloat16 and int16"):
        checkpoint["half"] + lazy.cat([np.ones(1, np.int16)])


def test_beside_arrays(checkpoint: tz.Checkpoint, arrays: dict[str, Array]) -> None:
    """Operators of arrays and scalars give tensors; all else that numpy does gets the data."""
    w, array = checkpoint["w"], arrays["w"]
    for made, expected in (
        (arrays["v"] + w, arrays["v"] + array),
        (arrays["v"][0] / w, arrays["v"][0] / array),
        (np.float32(2) * w, 2 * array),
        (np.float64(2) - w, 2 - array),
        (-w, -array),
    ):
        assert type(made) is tz.LazyTensor
        assert made.numpy().tobytes() == expected.tobytes()
    assert (array == w).all()
    assert not (array > w).any()
    assert np.sum(w) == array.sum()
    np.testing.assert_array_equal(array[0] @ w.T, array[0] @ array.T)
    np.testing.assert_array_equal(np.abs(w), abs(array))
    np.testing.assert_array_equal(np.add(w, 1, dtype=np.float64), array + np.float64(1))
    with pytest.raises(TypeError, match="unsupported operand"):
        w + object()
    assert tz.tools.statistics(w + arrays["v"]).max == (array + arrays["v"]).max()


def test_a_closed_operand(source: Path, tmp_path: Path) -> None:
    """It is an error to read it, with the name of the file; nothing is left."""
    with tz.lazy_load(source) as checkpoint:
        mean = (checkpoint["w"] + checkpoint["v"]) / 2
    with pytest.raises(ValueError, match=r"m\.pt: the checkpoint is closed"):
        mean.numpy()
    with pytest.raises(ValueError, match=r"m\.pt: the checkpoint is closed"):
        tz.convert({"mean": mean}, tmp_path / "o.pt")
    assert os.listdir(tmp_path) == ["m.pt"]


def test_a_source_that_is_cut_short(source: Path, tmp_path: Path) -> None:
    """As of any tensor, reading ends with an error of the file."""
    with tz.lazy_load(source) as checkpoint:
        mean = (checkpoint["w"] + checkpoint["v"]) / 2
        os.truncate(source, 30_000)
        with pytest.raises(tz.FormatError, match="cut it short"):
            mean.numpy()
        with pytest.raises(tz.FormatError, match=r"cut it short|written to"):
            tz.convert({"mean": mean}, tmp_path / "o.pt")


def test_of_deflated_records(source: Path, arrays: dict[str, Array], tmp_path: Path) -> None:
    """They are read in order, once, and need no memory of their own for that."""
    data = io.BytesIO()
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(data, "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
    data.seek(0)
    with tz.lazy_load(data) as checkpoint:
        tz.convert(made_of(checkpoint), tmp_path / "o.safetensors", dtype="float32")
        with tz.lazy_load(tmp_path / "o.safetensors") as made:
            for name, array in expected_of(arrays).items():
                found = made["mean" if name == "tied" else name].numpy()
                np.testing.assert_array_equal(found, array.astype(np.float32))


def test_overflow_of_expressions_is_counted(tmp_path: Path) -> None:
    """By the names of tensors, from what is computed to what is asked for."""
    large = np.full(3000, 60000, np.float32)
    large[:7] = 1
    tensor = lazy.cat([large]) * 2
    for suffix in (".pt", ".safetensors"):
        with pytest.warns(UserWarning, match="2,993 elements"):
            report = tz.convert({"x": tensor}, tmp_path / f"a{suffix}", dtype="float16")
        assert report.overflowed == {"x": 2993}
        with pytest.warns(UserWarning, match="2,993 elements"):
            report = tz.convert({"x": tensor.to("float16")}, tmp_path / f"b{suffix}")
        assert report.overflowed == {"x": 2993}


def test_a_giant_of_one_element(checkpoint: tz.Checkpoint, tmp_path: Path) -> None:
    """A file can describe an enormous tensor over one element; what it is part of stays bounded."""
    spec = checkpoint["w"].spec.replace(shape=(1 << 30, 1 << 20), stride=(0, 0))
    giant = tz.LazyTensor(spec)
    total = giant * 2 + lazy.cat([giant, giant], axis=1).lazy[:, : 1 << 20].T.T
    one = checkpoint["w"][0, 0]
    assert total[5, :3].tolist() == [one * 3] * 3
    assert total.T.lazy[-1, -2:].numpy().tolist() == [one * 3] * 2
    with pytest.raises(OSError, match="Not enough memory"):
        total.numpy()
    for suffix in (".pt", ".safetensors"):
        with pytest.raises(OSError, match="the disk has"):
            tz.convert({"giant": total}, tmp_path / f"o{suffix}")
    assert os.listdir(tmp_path) == ["m.pt"]
