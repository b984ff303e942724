"""Distributed checkpoints, made by hand: what is read, and in which bytes."""

from __future__ import annotations

import io
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import torchzip as tz
from tests import builders as b
from tests.formats import dcp_builder as d
from tests.formats.counting import Counted
from tests.saved import saved
from tests.test_cost import peak_below
from torchzip.cli.main import main

_ROWS: list[d.Box] = [((0, 0), (3, 4)), ((3, 0), (3, 4)), ((6, 0), (1, 4))]
_COLUMNS: list[d.Box] = [((0, 0), (7, 1)), ((0, 1), (7, 3))]
_GRID: list[d.Box] = [((r, c), (h, w)) for r, h in ((0, 4), (4, 3)) for c, w in ((0, 2), (2, 2))]
_PINWHEEL: list[d.Box] = [
    ((0, 0), (5, 2)), ((0, 2), (2, 2)), ((5, 0), (2, 3)), ((2, 3), (5, 1)), ((2, 2), (3, 1)),
]  # fmt: skip
A = np.arange(28, dtype=np.float32).reshape(7, 4)
_CUTS = {"rows": _ROWS, "columns": _COLUMNS, "grid": _GRID, "pinwheel": _PINWHEEL, "whole": None}


def _example(tmp_path: Path) -> d.Builder:
    made = d.Builder(tmp_path / "ckpt")
    for name, cut in _CUTS.items():
        made.tensor(f"model.{name}", A, cut, path=("model", name))
    made.tensor("model.scalar", np.array(3, np.float32), path=("model", "scalar"))
    made.tensor("model.half", A.astype(np.float16), _GRID, dtype="float16", path=("model", "half"))
    made.tensor("opt.1.t", A[:2], path=("opt", 1, "t"))
    made.value("opt.0", {"lr": 0.5, "w": np.arange(3.0)}, path=("opt", 0))
    made.value("step", 7)
    made.value("nothing", None)
    return made


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return the directory of the example."""
    return _example(tmp_path).write()


@pytest.fixture
def made(tmp_path: Path) -> d.Builder:
    """Return a checkpoint of nothing yet."""
    return d.Builder(tmp_path / "c")


def test_reads_what_was_saved(folder: Path) -> None:
    with tz.lazy_load(folder) as checkpoint:
        assert checkpoint.format == "dcp"
        assert checkpoint.root["step"] == 7
        assert checkpoint.root["nothing"] is None
        assert checkpoint.root["opt"][0]["lr"] == 0.5
        assert list(checkpoint.root) == ["model", "opt", "step", "nothing"]
        for name in _CUTS:
            tensor = checkpoint[f"model.{name}"]
            assert (tensor.shape, tensor.stride, tensor.torch_dtype) == ((7, 4), (4, 1), "float32")
            np.testing.assert_array_equal(tensor, A)
        assert checkpoint["model.half"].numpy().dtype == np.float16
        assert checkpoint["model.scalar"].numpy() == 3
        assert checkpoint["opt.0.w"].numpy().tolist() == [0, 1, 2]
        assert checkpoint.metadata == {
            "version": "1.0.0", "checkpoint_id": "/run", "save_id": "a-b",
        }  # fmt: skip
        report = checkpoint.verify()
        assert report.notes == ()
        assert report.without_crc == ()
        assert (d.MODULE, "Metadata") in checkpoint.globals
        assert checkpoint.foreign == []
    made = tz.load(folder)
    for name in _CUTS:
        np.testing.assert_array_equal(made["model"][name], A)
    made["model"]["rows"][0] = 9  # an array of its own, to write into
    assert made["opt"][1]["t"].tolist() == A[:2].tolist()
    assert tz.load(folder / ".metadata")["step"] == 7


@pytest.mark.parametrize("name", _CUTS)
def test_slices(folder: Path, name: str) -> None:
    with tz.lazy_load(folder) as checkpoint:
        tensor = checkpoint[f"model.{name}"]
        for key in (
            np.s_[0], np.s_[-1, -1], np.s_[2:6], np.s_[:, 1:3], np.s_[::2, ::-1], np.s_[5:1:-2],
            np.s_[3:3], np.s_[..., None, 2], np.s_[1::3, 3], np.s_[::-1, ::3],
        ):  # fmt: skip
            np.testing.assert_array_equal(tensor[key], A[key])


def test_mmap(folder: Path) -> None:
    """A tensor that is one span of a file is a view of it; others are put together."""
    made = tz.load(folder, mmap=True)
    assert not made["model"]["whole"].flags.writeable
    assert made["model"]["rows"].flags.writeable
    for name in _CUTS:
        np.testing.assert_array_equal(made["model"][name], A)


def test_survives_pickle(folder: Path) -> None:
    with tz.lazy_load(folder) as checkpoint:
        sent = pickle.dumps([checkpoint["model.grid"], checkpoint])
        tensor, again = pickle.loads(sent)
        np.testing.assert_array_equal(tensor[2:5], A[2:5])
        assert list(again) == list(checkpoint)
        again.close()


def test_convert(tmp_path: Path, folder: Path) -> None:
    tz.convert(folder, tmp_path / "m.pt")
    made = tz.load(tmp_path / "m.pt")
    np.testing.assert_array_equal(made["model"]["pinwheel"], A)
    assert made["opt"][0]["lr"] == 0.5
    report = tz.convert(folder, tmp_path / "m.safetensors", dtype="float64")
    assert report.lost == ()
    np.testing.assert_array_equal(tz.load(tmp_path / "m.safetensors")["model.columns"], A)
    tz.convert(tmp_path / "m.safetensors", tmp_path / "back.pt")
    back = tz.load(tmp_path / "back.pt")
    assert (back["opt"][0]["lr"], back["step"]) == (made["opt"][0]["lr"], made["step"])
    np.testing.assert_array_equal(back["model"]["pinwheel"], A)


def test_saving_the_root_again(tmp_path: Path, folder: Path) -> None:
    with tz.lazy_load(folder) as checkpoint:
        tz.save(checkpoint.root, tmp_path / "m.pt")
    np.testing.assert_array_equal(tz.load(tmp_path / "m.pt")["model"]["grid"], A)


def test_requires_grad_and_empty_chunks(made: d.Builder) -> None:
    """What a rank has that got no rows is nothing; requires_grad is what was saved."""
    props = d.properties(requires_grad=b.TRUE)
    boxes: list[d.Box] = [((0, 0), (7, 4)), ((7, 0), (0, 4)), ((7, 0), (0, 4))]
    made.tensor("w", A, boxes, props=props)
    made.tensor("none", np.empty((0, 3), np.float32), [((0, 0), (0, 3))])
    made.items["unsaved"] = d.tensor_metadata((0, 3), [])
    with tz.lazy_load(made.write()) as checkpoint:
        assert checkpoint["w"].requires_grad
        assert checkpoint["none"].shape == checkpoint["unsaved"].numpy().shape == (0, 3)
        assert checkpoint.verify().notes == ()


def test_chunks_in_other_orders(made: d.Builder) -> None:
    """A chunk that was saved transposed, or in the other byte order, has its values in place."""
    made.items["w"] = d.tensor_metadata((4, 4), [((0, 0), (2, 4)), ((2, 0), (2, 4))])
    whole = np.arange(16, dtype=np.float32).reshape(4, 4)
    made.put("__0_0.distcp", "w", (0, 0), saved(np.asfortranarray(whole[:2])))
    members = b.members_of(
        b.stream(b.tensor(b.persistent(numel=8), size=(2, 4), stride=(4, 1))),
        {"0": whole[2:].astype(">f4").tobytes()},
        byteorder=b"big",
    )
    made.put("__1_0.distcp", "w", (2, 0), b.build_zip(members))
    folder = made.write()
    np.testing.assert_array_equal(tz.load(folder)["w"], whole)
    np.testing.assert_array_equal(tz.load(folder, mmap=True)["w"], whole)
    with tz.lazy_load(folder) as checkpoint:
        np.testing.assert_array_equal(checkpoint["w"][1:3, 1:], whole[1:3, 1:])


# -- cost ------------------------------------------------------------------------------------------


def _large(tmp_path: Path, boxes: list[d.Box]) -> tuple[Path, np.ndarray[Any, Any]]:
    array = np.arange(2000 * 600, dtype=np.float32).reshape(2000, 600)
    made = d.Builder(tmp_path / "c")
    made.tensor("w", array, boxes)
    return made.write(), array


_LARGE: dict[str, list[d.Box]] = {
    "rows": [((r, 0), (500, 600)) for r in range(0, 2000, 500)],
    "columns": [((0, c), (2000, 150)) for c in range(0, 600, 150)],
}


@pytest.mark.parametrize("cut", _LARGE)
def test_opening_reads_the_metadata(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cut: str
) -> None:
    folder, _ = _large(tmp_path, _LARGE[cut])
    counted = Counted(monkeypatch)
    with tz.lazy_load(folder) as checkpoint:
        assert checkpoint["w"].nbytes == 4_800_000
        assert repr(checkpoint["w"])
    assert counted.names == {str(folder / ".metadata")}


@pytest.mark.parametrize(
    ("cut", "key", "files", "nbytes"),
    [
        ("rows", np.s_[10:20, :4], "0", 10 * 4 * 4),
        ("rows", np.s_[499:501], "01", 2 * 2400),
        ("rows", np.s_[1999, 599], "3", 4),
        ("rows", np.s_[::1000, 0], "02", 2 * 4),
        ("columns", np.s_[7], "0123", 2400),
        ("columns", np.s_[:, :4], "0", None),
        ("columns", np.s_[5:9, 149:151], "01", 4 * 2 * 4),
        ("columns", np.s_[:, 450:], "3", 2000 * 150 * 4),
        ("rows", np.s_[3:3], "", 0),
    ],
)
def test_a_slice_reads_what_it_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cut: str, key: Any, files: str, nbytes: Any
) -> None:
    """The chunks that it meets are opened, and of those its own bytes are read."""
    folder, array = _large(tmp_path, _LARGE[cut])
    counted = Counted(monkeypatch)
    with tz.lazy_load(folder) as checkpoint:
        counted.forget()
        np.testing.assert_array_equal(checkpoint["w"][key], array[key])
        assert counted.names == {str(folder / f"__{rank}_0.distcp") for rank in files}
        assert counted.nbytes < len(files) * (0xFFFF + 22 + 2000) + (nbytes or 1_200_000)
        counted.forget()
        np.testing.assert_array_equal(checkpoint["w"][key], array[key])
        if nbytes is not None:
            assert counted.nbytes == nbytes


@pytest.mark.parametrize("cut", _LARGE)
def test_conversion_costs_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cut: str) -> None:
    """A tensor streams through, each byte read once, in constant memory."""
    folder, array = _large(tmp_path, _LARGE[cut])
    counted = Counted(monkeypatch)
    with peak_below(4_000_000):
        tz.convert(folder, tmp_path / "m.safetensors")
    assert counted.nbytes < array.nbytes + 500_000
    np.testing.assert_array_equal(tz.load(tmp_path / "m.safetensors")["w"], array)


def test_loading_costs_the_tensors(tmp_path: Path) -> None:
    folder, array = _large(tmp_path, _LARGE["columns"])
    with peak_below(array.nbytes + 2_500_000):
        tz.load(folder)


@pytest.mark.parametrize("name", ["rows", "columns", "pinwheel"])
def test_damage_is_seen(tmp_path: Path, folder: Path, name: str) -> None:
    """A changed byte of a chunk fails its CRC: in `load`, `verify` and conversions."""
    path = folder / "__0_0.distcp"
    data = bytearray(path.read_bytes())
    part = {"rows": A[0], "columns": A[:, 0], "pinwheel": A[:5, :2]}[name]
    data[data.find(part.tobytes())] ^= 1
    path.write_bytes(data)
    for check in (
        lambda: tz.load(folder),
        lambda: tz.convert(folder, tmp_path / "m.pt"),
        lambda: tz.convert(folder, tmp_path / "m.safetensors", dtype="float64"),
    ):
        with pytest.raises(tz.FormatError, match=r"__0_0\.distcp.*CRC"):
            check()
    with tz.lazy_load(folder) as checkpoint, pytest.raises(tz.FormatError, match="CRC"):
        checkpoint.verify()
    assert os.listdir(tmp_path) == ["ckpt"]
    tz.load(folder, verify=False)


# -- one metadata for each rank --------------------------------------------------------------------


def _write_rank(folder: Path, rank: int, name: str) -> None:
    made = d.Builder(folder)
    made.items[name] = d.tensor_metadata((7, 4), [((0, 0), (7, 4))])
    made.put(f"__{rank}_0.distcp", name, (0, 0), saved(A + rank))
    made.write(f"__{rank}.metadata")


def test_a_metadata_of_each_rank(tmp_path: Path) -> None:
    """What ranks saved apart is one, as long as no name is in two."""
    for rank in (0, 10, 2):
        _write_rank(tmp_path, rank, f"w{rank}")
    made_of_all = tz.load(tmp_path)
    assert list(made_of_all) == ["w0", "w2", "w10"]
    np.testing.assert_array_equal(made_of_all["w10"], A + 10)
    assert list(tz.load(tmp_path / "__2.metadata")) == ["w2"]


def test_ranks_with_the_same_names(tmp_path: Path) -> None:
    """Then each rank has a checkpoint of its own, and one of them must be given."""
    for rank in (0, 1):
        _write_rank(tmp_path, rank, "w")
    with pytest.raises(tz.FormatError, match=r"'w' is in __0\.metadata and in __1\.metadata"):
        tz.load(tmp_path)
    np.testing.assert_array_equal(tz.load(tmp_path / "__1.metadata")["w"], A + 1)


def test_ranks_that_speak_of_one_another(tmp_path: Path) -> None:
    """A rank can neither move nor replace what another saved."""
    one = d.Builder(tmp_path)
    one.tensor("w", A)
    one.write("__0.metadata")
    other = d.Builder(tmp_path)
    other.value("v", 5)
    other.paths["w"] = b.tuple_of("elsewhere")
    other.files = {"__1_0.distcp": other.files["__0_0.distcp"]}
    length = len(other.files["__1_0.distcp"])
    other.places = [(d.index("v", None), d.info("__1_0.distcp", 0, length))]
    other.write("__1.metadata")
    assert list(tz.load(tmp_path)) == ["w", "v"]
    other.put("__1_0.distcp", "w", (0, 0), saved(-A))
    other.write("__1.metadata")
    with pytest.raises(tz.FormatError, match=r"'w' has a place in __1\.metadata"):
        tz.load(tmp_path)


def test_two_kinds_in_a_directory(folder: Path) -> None:
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {}}')
    with pytest.raises(tz.FormatError, match=r"index\.json', '\.metadata'"):
        tz.load(folder)
    assert tz.load(folder / ".metadata")["step"] == 7


def test_spare_items_are_noted(made: d.Builder) -> None:
    """An item that nothing needs changes no value."""
    made.tensor("w", A)
    made.put("__1_0.distcp", "old", (0, 0), saved(A))
    with tz.lazy_load(made.write()) as checkpoint:
        (note,) = checkpoint.verify().notes
    assert "'old'" in note


def test_gaps_of_lists_are_none(made: d.Builder) -> None:
    """An empty container in a list leaves nothing in the file; torch gives None for it."""
    made.value("l.2", 5, path=("l", 2))
    made.value("l.0", 3, path=("l", 0))
    assert tz.load(made.write()) == {"l": [3, None, 5]}


def test_without_planner_data(made: d.Builder) -> None:
    """Then the names are the keys; so they are for a name that it lacks."""
    made.tensor("a.w", A)
    made.more["planner_data"] = b"N"
    assert list(tz.load(made.write())) == ["a.w"]
    made.more["planner_data"] = b"}"
    assert list(tz.load(made.write())) == ["a.w"]


def test_foreign_objects(made: d.Builder) -> None:
    """An object may have classes of its own; foreign="raise" lists them."""
    made.items["config"] = d.BYTES
    item = b.checkpoint(b.stream(b.call("my.config.Config")), {})
    made.put("__0_0.distcp", "config", None, item)
    folder = made.write()
    assert tz.load(folder)["config"].name == "Config"
    with pytest.raises(tz.UnsafeGlobalError, match=r"my\.config\.Config"):
        tz.load(folder, foreign="raise")


def test_any_byte_of_the_metadata_changed(folder: Path) -> None:
    data = (folder / ".metadata").read_bytes()
    rng = np.random.default_rng(5)
    for at in rng.integers(0, len(data), 300):
        changed = bytearray(data)
        changed[at] ^= int(rng.integers(1, 256))
        (folder / ".metadata").write_bytes(changed)
        try:
            tz.load(folder)
        except (tz.TorchZipError, OSError):
            continue


def test_the_names_of_old_releases(made: d.Builder) -> None:
    """Until 2.2 the properties had another module; Python 3.13 has another for paths."""
    old = "torch.distributed._shard.sharded_tensor.metadata"
    props = d.properties().replace(
        f"c{d.MODULE}\nTensorProperties".encode(), f"c{old}\nTensorProperties".encode()
    )
    props = props.replace(f"c{d.MODULE}\n_MEM_FORMAT".encode(), f"c{old}\nMEM_FORMAT".encode())
    made.tensor("w", A, props=props)
    made.more["version"] = b.call("pathlib._local.WindowsPath", "C:/")
    assert tz.load(made.write())["w"].shape == (7, 4)


def test_a_file_of_items_by_itself(folder: Path) -> None:
    """It is no checkpoint; the directory is."""
    with pytest.raises(tz.FormatError, match=r"__0_0\.distcp: .*path of the directory"):
        tz.load(folder / "__0_0.distcp")


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = str(_example(tmp_path).write())
    assert main(["ls", folder]) == 0
    listed = capsys.readouterr().out
    assert "model.columns" in listed
    assert f"{folder}: dcp, 9 tensors" in listed
    target = tmp_path / "m.safetensors"
    assert main(["convert", folder, str(target), "--dry-run"]) == 0
    assert main(["convert", folder, str(target)]) == 0
    assert "9 tensors" in capsys.readouterr().err
    np.testing.assert_array_equal(tz.load(target)["model.grid"], A)
    assert main(["ls", str(tmp_path)]) == 1
    assert "index.json" in capsys.readouterr().err


def test_members_of_enums_by_name(made: d.Builder) -> None:
    """Python 3.11.2 writes them with getattr, which here is good for nothing else."""
    enum = b.name(d.MODULE, "_MEM_FORMAT_ENCODING")
    member = b.call("builtins.getattr", enum, "TORCH_CONTIGUOUS_FORMAT")
    made.tensor("w", A, props=d.properties(memory_format=member))
    np.testing.assert_array_equal(tz.load(made.write())["w"], A)


# -- parts in safetensors --------------------------------------------------------------------------


def _parts(folder: Path, *files: bytes) -> Path:
    folder.mkdir(exist_ok=True)
    for number, data in enumerate(files, 1):
        name = f"shard-{number:05}-model-00001-of-00001.safetensors"
        (folder / name).write_bytes(data)
    return folder


def test_safetensors_parts(tmp_path: Path) -> None:
    """Parts in several files are one tensor, sliced and mapped as others are."""
    folder = _parts(
        tmp_path,
        d.safetensors_part({"a": ((0, 0), A[:3]), "b": ((), np.array(4, np.float32))}),
        d.safetensors_part({"a": ((3, 0), A[3:, :1])}),
        d.safetensors_part({"a": ((3, 1), A[3:, 1:]), "c": ((0,), np.empty(0, np.float32))}),
    )
    with tz.lazy_load(folder) as checkpoint:
        assert checkpoint.format == "dcp"
        assert list(checkpoint) == ["a", "b", "c"]
        np.testing.assert_array_equal(checkpoint["a"], A)
        np.testing.assert_array_equal(checkpoint["a"][2:5, ::2], A[2:5, ::2])
        assert checkpoint["c"].shape == (0,)
        assert checkpoint.verify().records == 5
        tensor = pickle.loads(pickle.dumps(checkpoint["a"]))
    np.testing.assert_array_equal(tensor, A)
    made = tz.load(folder, mmap=True)
    np.testing.assert_array_equal(made["a"], A)
    assert not made["b"].flags.writeable


def test_hostile_safetensors_parts(tmp_path: Path) -> None:
    """Gaps, overlaps, files without offsets and offsets that are none are said by name."""
    whole = d.safetensors_part({"a": ((0, 0), A)})
    plain = b.safetensors(b'{"b":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}', b"x")

    def info(text: str) -> bytes:
        return d.safetensors_part({"a": ((0, 0), A)}, saved_info=text)

    rows: list[tuple[list[bytes], type[Exception], str]] = [
        ([d.safetensors_part({"a": ((1, 0), A)})], tz.FormatError, "28 of the 32"),
        ([whole, d.safetensors_part({"a": ((2, 0), A[:1])})], tz.FormatError, "overlap"),
        ([whole, plain], tz.FormatError, "without DCP_SHARDING_INFO"),
        ([whole, d.safetensors_part({"a": ((7,), A[0])})], tz.FormatError, "dimensions"),
        ([info("{}")], tz.FormatError, "does not say where 'a'"),
        ([info("[")], tz.FormatError, "not valid JSON"),
        ([info("[]")], tz.FormatError, "an object was expected"),
        ([info('{"a": 1}')], tz.FormatError, "saved_offsets"),
        ([info('{"a": {"saved_offsets": [0, -1]}}')], tz.FormatError, "saved_offsets"),
        ([info('{"a": {"saved_offsets": [0, 1.5]}}')], tz.FormatError, "saved_offsets"),
        ([info('{"a": {"saved_offsets": [0]}}')], tz.FormatError, "does not say where"),
        ([info(f'{{"a": {{"saved_offsets": [0, {1 << 62}]}}}}')], tz.FormatError, "of the"),
        ([whole, b"{"], tz.FormatError, "8 bytes or more"),
    ]
    for number, (files, error, text) in enumerate(rows):
        folder = _parts(tmp_path / str(number), *files)
        with pytest.raises(error, match=text):
            tz.load(folder)


def test_a_file_of_parts_by_itself(tmp_path: Path) -> None:
    """By its own path it is an ordinary safetensors file, and its metadata says what it has."""
    data = d.safetensors_part({"a": ((3, 0), A[3:])})
    with tz.lazy_load(io.BytesIO(data)) as checkpoint:
        assert checkpoint["a"].shape == (4, 4)
        assert "DCP_SHARDING_INFO" in checkpoint.metadata
