"""Where the bytes of a checkpoint go: to the byte, and what each suggestion saves."""

from __future__ import annotations

import io
import json
import os
import shlex
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import torchzip as tz
from tests import builders as b
from tests.cli.running import Command
from tests.formats.dcp_builder import Builder
from tests.formats.pt2_builder import payload, weights
from tests.formats.test_tar import _example
from tests.saved import GOLDEN_FILES, saved, zipped_again
from tests.test_memory import peak_mb
from torchzip.cli.main import main
from torchzip.tensors.specs import TensorSpec
from torchzip.tensors.storage import ArrayStorage, SpanStorage
from torchzip.tools import WhyBig, why_big
from torchzip.tools.file_size.accounts import Part, Unreached
from torchzip.tools.file_size.duplicates import equal_storages
from torchzip.tools.file_size.findings import Duplicates
from torchzip.tools.file_size.reach import reached_nbytes
from torchzip.types import MetaTensor, Parameter, SparseTensor, Storage

run = Command("why-big")


def of(obj: Any) -> WhyBig:
    data = saved(obj)
    return checked(why_big(io.BytesIO(data)), len(data))


def checked(found: WhyBig, nbytes: int) -> WhyBig:
    """Return what was found, after a look at its sum."""
    assert found.nbytes == nbytes
    assert sum(part.nbytes for part in found.parts) == nbytes
    assert all(part.nbytes > 0 and part.count > 0 for part in found.parts)
    sizes = [part.nbytes for part in found.parts]
    assert sizes == sorted(sizes, reverse=True)
    return found


def kinds(found: WhyBig) -> dict[str, int]:
    return {part.kind: part.nbytes for part in found.parts}


# -- parts -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", GOLDEN_FILES, ids=lambda path: "-".join(path.parts[-2:]))
def test_parts_of_golden_files(path: Path) -> None:
    """All parts together are the file, whatever wrote it."""
    checked(why_big(path), path.stat().st_size)


def test_parts_of_a_zip() -> None:
    """Tensors, each header, the padding, the pickle, the directory."""
    found = of({"w": np.zeros((2, 3), np.float32), "v": np.zeros(5, np.float64)})
    assert kinds(found)["tensors"] == 24 + 40
    assert next(part for part in found.parts if part.kind == "tensors").count == 2
    assert set(kinds(found)) == {
        "tensors", "pickle", "headers", "alignment", "directory", "marks of the format",
    }  # fmt: skip


def _legacy(folder: Path) -> Path:
    path = folder / "legacy.pt"
    path.write_bytes((b.GOLDEN / "views-legacy.pt").read_bytes() + bytes(100))
    return path


def _tar(folder: Path) -> Path:
    path = folder / "old.pt"
    path.write_bytes(_example().build())
    return path


def _safetensors(folder: Path) -> Path:
    path = folder / "m.safetensors"
    tz.convert(b.GOLDEN / "train.pt", path)
    return path


def _shards(folder: Path) -> Path:
    tz.convert(b.GOLDEN / "train.pt", folder / "m.safetensors.index.json", max_shard_size=64)
    return folder


def _dcp(folder: Path) -> Path:
    builder = Builder(folder / "dcp")
    builder.tensor("w", np.zeros((4, 3), np.float32), [((0, 0), (2, 3)), ((2, 0), (2, 3))])
    builder.tensor("v", np.zeros(5, np.float32))
    builder.value("step", 7)
    return builder.write()


def _size(path: Path) -> int:
    return sum(each.stat().st_size for each in ([path] if path.is_file() else path.iterdir()))


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (_legacy, {"dead bytes": 100}), (_tar, {}), (_safetensors, {"optimizer state": 88}),
        (_shards, {"optimizer state": 88}), (_dcp, {"tensors": 48 + 20}),
    ],
)  # fmt: skip
def test_parts_of_other_formats(
    tmp_path: Path, make: Callable[[Path], Path], expected: dict[str, int]
) -> None:
    """What applies of them; the sum is always the size."""
    path = make(tmp_path)
    found = checked(why_big(path), _size(path))
    assert kinds(found).items() >= expected.items()


_ARRAYS = st.lists(st.sampled_from("biqfd"), max_size=6)


@given(_ARRAYS, st.integers(0, 30), st.booleans())
def test_parts_of_any_zip(codes: list[str], length: int, deflated: bool) -> None:
    """Also of one that Python's zipfile has written again, deflated or not."""
    state = {str(i): np.zeros(i * length, code) for i, code in enumerate(codes)}
    again = zipped_again(saved(state), zipfile.ZIP_DEFLATED if deflated else zipfile.ZIP_STORED)
    found = checked(why_big(io.BytesIO(again)), len(again))
    stored = sum(array.nbytes for array in state.values())
    if deflated and stored:
        assert "tensors, deflated" in kinds(found)
    else:
        assert kinds(found).get("tensors", 0) == stored


def _with_zipfile(path: Path, change: Callable[[zipfile.ZipFile], None]) -> None:
    with zipfile.ZipFile(path, "a") as archive:
        change(archive)


def test_records_that_nothing_mentions(path: Path) -> None:
    """A storage that the pickle has not, and a record that no checkpoint has."""
    tz.save({"w": np.zeros(4)}, path)

    def add(archive: zipfile.ZipFile) -> None:
        archive.writestr("m/data/77", bytes(1000))
        archive.writestr("m/notes.txt", bytes(50))

    _with_zipfile(path, add)
    found = checked(why_big(path), path.stat().st_size)
    assert kinds(found)["storages that nothing mentions"] == 1000
    assert kinds(found)["other records"] == 50


def test_dead_bytes(path: Path) -> None:
    """What stands between records and is in none, as an editor in place leaves it."""
    tz.save({"w": np.zeros(4)}, path)
    _with_zipfile(path, lambda archive: archive.writestr("m/data/9", bytes(1000)))

    def drop(archive: zipfile.ZipFile) -> None:
        archive.filelist.remove(archive.NameToInfo.pop("m/data/9"))
        archive.writestr("m/x", b"")

    _with_zipfile(path, drop)
    found = checked(why_big(path), path.stat().st_size)
    assert kinds(found)["dead bytes"] == 1000 + 30 + len("m/data/9")
    (saving,) = [each for each in found.savings if each.what.startswith("rewrite it")]
    assert saving.saved > 800  # the new directory has records for other readers


def test_storages_that_are_thrown_away(tmp_path: Path) -> None:
    """One that the pickle mentions in a value it throws away."""
    gone = b.persistent("1") + b"0"
    raw = b.checkpoint(b.stream(gone, b.tensor()), {"0": b.DATA, "1": b.DATA})
    (tmp_path / "m.pt").write_bytes(raw)
    found = checked(why_big(tmp_path / "m.pt"), len(raw))
    assert kinds(found)["storages that nothing mentions"] == 16
    assert kinds(found)["tensors"] == 16


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_an_archive_in_an_archive(tmp_path: Path, method: int) -> None:
    """What a storage takes of the file is what it takes of the archive inside."""
    path = tmp_path / "m.nemo"
    weights = zipped_again(saved({"w": np.ones(9000)}), method)
    with tarfile.open(path, "w") as tar:
        member = tarfile.TarInfo("model_weights.ckpt")
        member.size = len(weights)
        tar.addfile(member, io.BytesIO(weights))
    found = kinds(checked(why_big(path), path.stat().st_size))
    is_stored = method == zipfile.ZIP_STORED
    assert (found.get("tensors") == 72_000) == is_stored
    assert (found.get("tensors, deflated", 72_000) < 1000) != is_stored


def test_bare_storages_and_other_kinds() -> None:
    """A storage in the object by itself is reached; so are the parts of a sparse tensor."""
    sparse = SparseTensor("sparse_coo", np.array([[0, 2]]), np.array([1.0, 2.0]), (4,), True)
    meta = MetaTensor("float16", (2, 3))
    found = of([Storage(np.zeros(6, np.float32), "float32"), sparse, meta, np.zeros(0)])
    assert kinds(found)["tensors"] == 24 + 32
    assert not found.unreached


# -- what no tensor reaches ------------------------------------------------------------------------


def test_unreached() -> None:
    """The bytes that views leave out, by storage; overlaps count once."""
    data = np.arange(100, dtype=np.float32).tobytes()

    def view(offset: int, size: int, stride: int = 1) -> bytes:
        pid = b.persistent("0", numel=100)
        return b.tensor(pid, offset=offset, size=(size,), stride=(stride,))

    items = {"a": view(10, 20), "b": view(20, 20), "c": view(60, 5, 2), "d": view(0, 0)}
    raw = b.checkpoint(b.stream(b.dict_of(items)), {"0": data})
    found = checked(why_big(io.BytesIO(raw)), len(raw))
    assert kinds(found)["tensors"] == 4 * (30 + 5)
    assert found.unreached == (Unreached("a", "data/0", 4 * 65, 400),)


_SPECS = st.lists(
    st.tuples(
        st.integers(0, 30), st.lists(st.tuples(st.integers(0, 4), st.integers(0, 9)), max_size=3)
    ),
    max_size=4,
)


@given(_SPECS, st.integers(1, 60))
def test_reach_is_exact(drawn: list[tuple[int, list[tuple[int, int]]]], numel: int) -> None:
    """The union of all elements, counted one by one, whatever the strides."""
    storage = ArrayStorage(np.zeros(2 * numel, np.uint8), "int16")
    specs = []
    truth = set()
    for offset, axes in drawn:
        shape = tuple(size for size, _ in axes)
        stride = tuple(step for _, step in axes)
        indices = [sum(i * s for i, s in zip(at, stride, strict=True)) for at in np.ndindex(*shape)]
        if max((offset + each for each in indices), default=0) < numel:
            specs.append(TensorSpec("int16", shape, stride, offset, storage))
            truth |= {offset + each for each in indices}
    assert reached_nbytes(specs, 2 * numel) == 2 * len(truth)


@pytest.mark.long
def test_reach_of_enormous_storages() -> None:
    """A terabyte is told without a terabyte of marks; what would take years is not told."""
    storage = SpanStorage("float32", 1 << 40, "cpu", "data/0", None)  # type: ignore[arg-type]
    every_other = TensorSpec("float32", (1 << 37,), (2,), 0, storage)
    assert reached_nbytes([every_other], 1 << 40) == 1 << 39
    odd = TensorSpec("float32", (1 << 12, 1 << 12, 1 << 12), (1 << 20, 3, 5), 0, storage)
    assert reached_nbytes([odd, every_other], 1 << 40) is None
    near = TensorSpec("float32", (1 << 10, 1 << 10, 1 << 10), (1 << 11, 3, 5), 0, storage)
    assert reached_nbytes([near, every_other], 1 << 40) is None
    many = [TensorSpec("float32", (3,), (1,), 100 * i, storage) for i in range(100_000)]
    apart = TensorSpec("float32", (1 << 20,), (1 << 10,), 7, storage)
    assert reached_nbytes([apart, *many], 1 << 40) is None


# -- duplicates ------------------------------------------------------------------------------------


def test_duplicates() -> None:
    """Storages of the same bytes, whatever their dtypes and shapes; ties are none."""
    ones = np.ones((2, 3))
    found = of({"a": ones, "tied": ones, "b": np.ones(6), "c": np.zeros(6), "d": np.ones(6)})
    assert found.duplicates == (Duplicates(48, ("a", "b", "d")),)
    assert found.duplicates[0].spare_nbytes == 96


def test_equal_crcs_are_not_enough() -> None:
    """Bytes decide: what is made to have one CRC is not the same."""
    made = [ArrayStorage(np.full(9, n, np.uint8), "uint8") for n in (1, 2, 1, 2, 3)]
    for storage in made:
        storage.crc = 5
    groups = [[int(each.read(0, 1)[0]) for each in group] for group in equal_storages(made)]
    assert groups == [[1, 1], [2, 2]]


def test_duplicates_without_crcs() -> None:
    """Told by a hash of the bytes, if one of one size has no CRC."""
    made = [ArrayStorage(np.full(9, n, np.uint8), "uint8") for n in (1, 2, 1)]
    made[0].crc = 77
    assert [[each is made[0] or each is made[2] for each in g] for g in equal_storages(made)] == [
        [True, True]
    ]


def test_only_candidates_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A storage that has no other of its size and CRC beside it is never read."""
    state = {
        "a": np.ones(100), "b": np.ones(100), "c": np.arange(100.0), "big": np.ones(1000, "f4"),
    }  # fmt: skip
    tz.save(state, tmp_path / "m.pt")
    read: set[str] = set()
    plain = SpanStorage.read_into

    def noted(self: SpanStorage, start: int, out: Any) -> None:
        read.add(self.record)
        plain(self, start, out)

    monkeypatch.setattr(SpanStorage, "read_into", noted)
    assert why_big(tmp_path / "m.pt").duplicates == (Duplicates(800, ("a", "b")),)
    assert read == {"data/0", "data/1"}


@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_duplicates_in_shards(tmp_path: Path, suffix: str) -> None:
    """Also across the files of a checkpoint."""
    state = {"a": np.ones(100), "b": np.zeros(100), "c": np.ones(100)}
    tz.save(state, tmp_path / "m.pt")
    index = tmp_path / "s" / f"m.{suffix}.index.json"
    index.parent.mkdir()
    tz.convert(tmp_path / "m.pt", index, max_shard_size=800)
    assert len(list(index.parent.iterdir())) == 4
    assert why_big(index).duplicates == (Duplicates(800, ("a", "c")),)


# -- optimizers and EMA ----------------------------------------------------------------------------


def _model(dtype: str = "f4") -> dict[str, Any]:
    return {"fc.weight": np.ones((30, 20), dtype), "fc.bias": np.zeros(30, dtype)}


def _optimizer() -> dict[str, Any]:
    slots = {
        n: {"step": np.array(3.0, "f4"), "exp_avg": np.ones(size, "f4")}
        for n, size in enumerate([(30, 20), (30,)])
    }
    return {"state": slots, "param_groups": [{"lr": 0.1, "params": [0, 1]}]}


def test_optimizers() -> None:
    """Found by structure wherever they are: in a list, at the root, among objects."""
    found = of({"model": _model(), "optimizers": [_optimizer(), {"state": {}}]})
    (copy,) = found.copies
    assert (copy.kind, copy.prefix, copy.tensors) == ("optimizer state", "optimizers.0.state", 4)
    assert copy.slots == {"step": 8, "exp_avg": 4 * 630}
    assert kinds(found)["optimizer state"] == copy.nbytes == 8 + 4 * 630
    assert [copy.prefix for copy in of(_optimizer()).copies] == ["state"]
    assert of({"state": {"w": np.ones(2)}, "lr": 1}).copies == ()


def test_a_weight_in_the_optimizer_is_a_weight() -> None:
    """What the model has too is not the optimizer's."""
    weight = np.ones(100)
    optimizer = {"state": {0: {"z": weight, "m": np.ones(10)}}, "param_groups": []}
    found = of({"optimizer": optimizer, "model": {"w": weight}})
    assert kinds(found)["tensors"] == 800
    assert kinds(found)["optimizer state"] == 80


@pytest.mark.parametrize(
    ("state", "prefix", "original"),
    [
        ({"model": _model(), "ema": _model()}, "ema", "model"),
        ({"model": _model(), "model_ema": {"module": _model()}}, "model_ema", "model"),
        ({**_model(), "averaged": _model()}, "averaged", ""),
        ({"m": {"net": _model()}, "c": {"ema_state_dict": _model()}}, "c.ema_state_dict", "m.net"),
    ],
)  # fmt: skip
def test_ema(state: Any, prefix: str, original: str) -> None:
    """A set under such a prefix whose names, shapes and dtypes are those of another."""
    found = of(state)
    assert [(c.kind, c.prefix, c.of) for c in found.copies] == [("EMA copy", prefix, original)]
    assert kinds(found)["EMA copy"] == kinds(found)["tensors"] == 4 * 630


@pytest.mark.parametrize(
    "state",
    [
        {"model": _model(), "ema": _model("f8")},
        {"model": _model(), "ema": {"other.weight": np.ones(3), "other.bias": np.ones(3)}},
        {"model": _model(), "schema": _model()},
        {"ema": _model()},
        {"model": _model(), "copy": _model()},
        {"net": _model(), "x": {"shadow_params": [*_model().values()]}},
    ],
)
def test_no_ema(state: Any) -> None:
    """Other dtypes, names, prefixes, no names, or nothing that it would be a copy of."""
    assert of(state).copies == ()


# -- savings ---------------------------------------------------------------------------------------


def _views(folder: Path) -> Path:
    data = np.arange(1000, dtype=np.float32).tobytes()
    pid = b.persistent("0", numel=1000)
    items = {"a": b.tensor(pid, size=(20,)), "b": b.tensor(b.persistent("1"))}
    path = folder / "views.pt"
    path.write_bytes(b.checkpoint(b.stream(b.dict_of(items)), {"0": data, "1": b.DATA}))
    return path


def _training(folder: Path) -> Path:
    path = folder / "a run's [best] *.ckpt"
    state = {"model": {k: Parameter(v) for k, v in _model().items()}, "ema": _model()}
    tz.save({**state, "optimizer": _optimizer(), "[x]": _optimizer(), "step": 3}, path)
    return path


def _spare(folder: Path) -> Path:
    path = folder / "spare.pth"
    tz.save(_model(), path)
    _with_zipfile(path, lambda archive: archive.writestr("spare/data/9", bytes(5000)))
    return path


def _deflated(folder: Path) -> Path:
    path = folder / "deflated.pt"
    data = saved({"w": np.random.default_rng(1).standard_normal(1000)})
    path.write_bytes(zipped_again(data, zipfile.ZIP_DEFLATED))
    return path


_EXPECTED = {
    _views: {"each tensor by itself, without what no tensor reaches"},
    _training: {
        "leave out the optimizer state", "leave out what looks like an EMA copy",
        "leave out both the optimizer state and the EMA copy",
        "round floating tensors to bfloat16",
    },
    _spare: {"rewrite it, without what nothing needs", "round floating tensors to bfloat16"},
    _deflated: {"round floating tensors to bfloat16"},
    _legacy: set(),
    _safetensors: {"leave out the optimizer state"},
    _shards: {"leave out the optimizer state"},
    _dcp: {"round floating tensors to bfloat16"},
}  # fmt: skip


@pytest.mark.parametrize(("make", "expected"), _EXPECTED.items())
def test_each_command_saves_what_it_says(
    tmp_path: Path, make: Callable[[Path], Path], expected: set[str]
) -> None:
    """Run as printed, it ends well, and its output has exactly that many bytes."""
    path = make(tmp_path)
    before = _size(path)
    found = why_big(path)
    assert {saving.what for saving in found.savings} >= expected
    for saving in found.savings:
        program, *arguments = shlex.split(saving.command)
        assert program == "torchzip"
        there = set(os.listdir(tmp_path))
        assert main(arguments) == 0
        (new,) = set(os.listdir(tmp_path)) - there
        assert (tmp_path / new).stat().st_size == saving.nbytes == before - saving.saved
        assert saving.saved > 0
        assert saving.is_lossy == ("bfloat16" in saving.what)
        with tz.lazy_load(tmp_path / new) as made:
            assert len(made)
            if "optimizer" in saving.what:
                assert not [name for name in made if "exp_avg" in name]
        (tmp_path / new).unlink()


def test_commands_work_from_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the path that was given, also one that looks like an option; names in use are not."""
    monkeypatch.chdir(tmp_path)
    tz.save(_model(), "-x.pt")
    Path("-x-bfloat16.pt").write_bytes(b"in use")
    (saving,) = why_big("-x.pt").savings
    assert saving.command == "torchzip convert ./-x.pt ./-x-bfloat16-2.pt --dtype bfloat16"
    assert main(shlex.split(saving.command)[1:]) == 0
    assert Path("-x-bfloat16-2.pt").stat().st_size == saving.nbytes
    os.rename("-x.pt", "x.pth.tar")
    assert why_big("x.pth.tar").savings[0].command.split()[3] == "x-bfloat16.pth.tar"


def test_no_commands() -> None:
    """A file object has no name, code would be lost, and what grows is no saving."""
    assert of(_model()).savings == ()
    found = why_big(b.GOLDEN / "script.pt")
    assert found.savings == ()
    assert "without the code" in found.notes[0]


def test_a_name_that_no_shell_shows(tmp_path: Path) -> None:
    """There is no command for a path with a line break."""
    path = tmp_path / "a\nb.pt"
    tz.save(_model(), path)
    assert why_big(path).savings == ()


# -- the command -----------------------------------------------------------------------------------


def test_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    """Largest first, what is a copy of what, and commands."""
    monkeypatch.chdir(tmp_path)
    state = {"model": _model(), "ema": _model(), "optimizer": _optimizer()}
    tz.save(state, "run.pt")
    out = run.done(capsys, "run.pt")
    lines = out.splitlines()
    size = Path("run.pt").stat().st_size
    assert lines[0] == f"run.pt: zip, {size / 1000:.1f} kB ({size:,} bytes)"
    assert lines[1].endswith("2.5 kB  optimizer state")
    assert "optimizer state: optimizer.state, exp_avg 2.5 kB, step 8 B" in lines
    assert "ema looks like an EMA copy of those of model: 2 tensors, 2.5 kB" in lines
    assert "2.4 kB  2 × 2.4 kB  model.fc.weight, ema.fc.weight" in out or "3 × 2.4 kB" in out
    assert (
        "    torchzip convert run.pt run-model.pt --exclude 'optimizer.state.*' --exclude 'ema.*'"
        in lines
    )


def test_json(tmp_path: Path, capsys: Any) -> None:
    """Everything."""
    tz.save(_model(), tmp_path / "m.pt")
    listing = json.loads(run.done(capsys, "--json", tmp_path / "m.pt"))
    assert sum(part["nbytes"] for part in listing["parts"]) == listing["nbytes"]
    assert listing["savings"][0]["is_lossy"]
    assert listing["parts"][0] == {"kind": "tensors", "nbytes": 4 * 630, "count": 2}


def test_bad_files(tmp_path: Path, capsys: Any) -> None:
    """Status 1 and a line."""
    (tmp_path / "m.pt").write_bytes(b"PK\3\4" + bytes(100))
    assert run.says(1, capsys, tmp_path / "m.pt").startswith("torchzip: ")
    with pytest.raises(tz.TorchZipError):
        why_big(tmp_path / "m.pt")


def test_a_file_object_in_the_middle() -> None:
    """It is read from where it stands."""
    buffer = io.BytesIO()
    buffer.write(b"before")
    tz.save({"w": np.zeros(3)}, buffer)
    buffer.seek(6)
    found = checked(why_big(buffer), len(buffer.getvalue()) - 6)
    assert Part("tensors", 24, 1) in found.parts


def test_zeros_that_are_not_stored(tmp_path: Path) -> None:
    """An archive of torch.export can leave out the zeros of a storage; they take no byte."""
    path = tmp_path / "m.pt2"
    path.write_bytes(weights({"w": payload()}, {"weight_0": b""}))
    found = checked(why_big(path), path.stat().st_size)
    assert "tensors" not in kinds(found)


@pytest.mark.long
def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    """Duplicates are compared block by block, gaps counted a window at a time."""
    large = np.zeros((6_000_000, 4), np.float32)
    state = {"a": np.ones(20_000_000), "b": np.ones(20_000_000), "c": large[:, :1], "d": large[9:]}
    tz.save(state, tmp_path / "m.pt")
    script = """
import sys
from torchzip.tools import why_big
found = why_big(sys.argv[1])
assert found.duplicates[0].nbytes == 160_000_000
assert found.unreached[0].nbytes == 9 * 12
"""
    assert peak_mb(script, tmp_path / "m.pt") < 120
