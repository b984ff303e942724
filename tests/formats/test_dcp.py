"""Distributed checkpoints, made by hand: what is read, in which bytes, and what is refused."""

from __future__ import annotations

import io
import os
import pickle
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import torchzip as tz
from tests import builders as b
from tests.formats import dcp_builder as d
from tests.formats.counting import Counted
from tests.refusals import Refusal, each_refusal
from tests.saved import saved
from tests.test_cost import peak_below
from torchzip.cli.main import main

_ROWS: list[d.Box] = [((0, 0), (3, 4)), ((3, 0), (3, 4)), ((6, 0), (1, 4))]
_COLUMNS: list[d.Box] = [((0, 0), (7, 1)), ((0, 1), (7, 3))]
_GRID: list[d.Box] = [((r, c), (h, w)) for r, h in ((0, 4), (4, 3)) for c, w in ((0, 2), (2, 2))]
_PINWHEEL: list[d.Box] = [
    ((0, 0), (5, 2)), ((0, 2), (2, 2)), ((5, 0), (2, 3)), ((2, 3), (5, 1)), ((2, 2), (3, 1)),
]  # fmt: skip
_A = np.arange(28, dtype=np.float32).reshape(7, 4)
_CUTS = {"rows": _ROWS, "columns": _COLUMNS, "grid": _GRID, "pinwheel": _PINWHEEL, "whole": None}


def _example(tmp_path: Path) -> d.Builder:
    made = d.Builder(tmp_path / "ckpt")
    for name, cut in _CUTS.items():
        made.tensor(f"model.{name}", _A, cut, path=("model", name))
    made.tensor("model.scalar", np.array(3, np.float32), path=("model", "scalar"))
    made.tensor("model.half", _A.astype(np.float16), _GRID, dtype="float16", path=("model", "half"))
    made.tensor("opt.1.t", _A[:2], path=("opt", 1, "t"))
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
            np.testing.assert_array_equal(tensor, _A)
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
        np.testing.assert_array_equal(made["model"][name], _A)
    made["model"]["rows"][0] = 9  # an array of its own, to write into
    assert made["opt"][1]["t"].tolist() == _A[:2].tolist()
    assert tz.load(folder / ".metadata")["step"] == 7


@pytest.mark.parametrize("name", _CUTS)
def test_slices(folder: Path, name: str) -> None:
    with tz.lazy_load(folder) as checkpoint:
        tensor = checkpoint[f"model.{name}"]
        for key in (
            np.s_[0], np.s_[-1, -1], np.s_[2:6], np.s_[:, 1:3], np.s_[::2, ::-1], np.s_[5:1:-2],
            np.s_[3:3], np.s_[..., None, 2], np.s_[1::3, 3], np.s_[::-1, ::3],
        ):  # fmt: skip
            np.testing.assert_array_equal(tensor[key], _A[key])


def test_mmap(folder: Path) -> None:
    """A tensor that is one span of a file is a view of it; others are put together."""
    made = tz.load(folder, mmap=True)
    assert not made["model"]["whole"].flags.writeable
    assert made["model"]["rows"].flags.writeable
    for name in _CUTS:
        np.testing.assert_array_equal(made["model"][name], _A)


def test_survives_pickle(folder: Path) -> None:
    with tz.lazy_load(folder) as checkpoint:
        sent = pickle.dumps([checkpoint["model.grid"], checkpoint])
        tensor, again = pickle.loads(sent)
        np.testing.assert_array_equal(tensor[2:5], _A[2:5])
        assert list(again) == list(checkpoint)
        again.close()


def test_convert(tmp_path: Path, folder: Path) -> None:
    tz.convert(folder, tmp_path / "m.pt")
    made = tz.load(tmp_path / "m.pt")
    np.testing.assert_array_equal(made["model"]["pinwheel"], _A)
    assert made["opt"][0]["lr"] == 0.5
    report = tz.convert(folder, tmp_path / "m.safetensors", dtype="float64")
    assert report.lost == ()
    np.testing.assert_array_equal(tz.load(tmp_path / "m.safetensors")["model.columns"], _A)
    tz.convert(tmp_path / "m.safetensors", tmp_path / "back.pt")
    back = tz.load(tmp_path / "back.pt")
    assert (back["opt"][0]["lr"], back["step"]) == (made["opt"][0]["lr"], made["step"])
    np.testing.assert_array_equal(back["model"]["pinwheel"], _A)


def test_saving_the_root_again(tmp_path: Path, folder: Path) -> None:
    with tz.lazy_load(folder) as checkpoint:
        tz.save(checkpoint.root, tmp_path / "m.pt")
    np.testing.assert_array_equal(tz.load(tmp_path / "m.pt")["model"]["grid"], _A)


def test_requires_grad_and_empty_chunks(made: d.Builder) -> None:
    """What a rank has that got no rows is nothing; requires_grad is what was saved."""
    props = d.properties(requires_grad=b.TRUE)
    boxes: list[d.Box] = [((0, 0), (7, 4)), ((7, 0), (0, 4)), ((7, 0), (0, 4))]
    made.tensor("w", _A, boxes, props=props)
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
    part = {"rows": _A[0], "columns": _A[:, 0], "pinwheel": _A[:5, :2]}[name]
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
    made.put(f"__{rank}_0.distcp", name, (0, 0), saved(_A + rank))
    made.write(f"__{rank}.metadata")


def test_a_metadata_of_each_rank(tmp_path: Path) -> None:
    """What ranks saved apart is one, as long as no name is in two."""
    for rank in (0, 10, 2):
        _write_rank(tmp_path, rank, f"w{rank}")
    made_of_all = tz.load(tmp_path)
    assert list(made_of_all) == ["w0", "w2", "w10"]
    np.testing.assert_array_equal(made_of_all["w10"], _A + 10)
    assert list(tz.load(tmp_path / "__2.metadata")) == ["w2"]


def test_ranks_with_the_same_names(tmp_path: Path) -> None:
    """Then each rank has a checkpoint of its own, and one of them must be given."""
    for rank in (0, 1):
        _write_rank(tmp_path, rank, "w")
    with pytest.raises(tz.FormatError, match=r"'w' is in __0\.metadata and in __1\.metadata"):
        tz.load(tmp_path)
    np.testing.assert_array_equal(tz.load(tmp_path / "__1.metadata")["w"], _A + 1)


def test_ranks_that_speak_of_one_another(tmp_path: Path) -> None:
    """A rank can neither move nor replace what another saved."""
    one = d.Builder(tmp_path)
    one.tensor("w", _A)
    one.write("__0.metadata")
    other = d.Builder(tmp_path)
    other.value("v", 5)
    other.paths["w"] = b.tuple_of("elsewhere")
    other.files = {"__1_0.distcp": other.files["__0_0.distcp"]}
    length = len(other.files["__1_0.distcp"])
    other.places = [(d.index("v", None), d.info("__1_0.distcp", 0, length))]
    other.write("__1.metadata")
    assert list(tz.load(tmp_path)) == ["w", "v"]
    other.put("__1_0.distcp", "w", (0, 0), saved(-_A))
    other.write("__1.metadata")
    with pytest.raises(tz.FormatError, match=r"'w' has a place in __1\.metadata"):
        tz.load(tmp_path)


def test_two_kinds_in_a_directory(folder: Path) -> None:
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {}}')
    with pytest.raises(tz.FormatError, match=r"index\.json', '\.metadata'"):
        tz.load(folder)
    assert tz.load(folder / ".metadata")["step"] == 7


# -- hostile ---------------------------------------------------------------------------------------

Change = Callable[[d.Builder], None]


def _no_tensor(**changes: Any) -> Change:
    """Return what gives tensor ``w`` another description."""

    def change(made: d.Builder) -> None:
        given = {"shape": (7, 4), "boxes": [((0, 0), (7, 4))], **changes}
        made.items["w"] = d.tensor_metadata(given["shape"], given["boxes"], given.get("props"))

    return change


def _place(*arguments: Any, **more: Any) -> Change:
    def change(made: d.Builder) -> None:
        made.places[0] = (d.index("w", (0, 0)), d.info(*arguments, **more))

    return change


def _also(index: bytes, info: bytes) -> Change:
    return lambda made: made.places.append((index, info))


def _items(**items: bytes) -> Change:
    return lambda made: made.items.update(items)


def _metadata(**more: bytes) -> Change:
    return lambda made: made.more.update(more)


def _path(*steps: str | int) -> Change:
    def change(made: d.Builder) -> None:
        made.tensor("w", _A, path=steps)
        del made.places[0]

    return change


def _paths(**paths: bytes) -> Change:
    def change(made: d.Builder) -> None:
        made.paths = {**made.paths, **paths}

    return change


def _item(value: Any) -> Change:
    """Return what puts another item in the place of tensor ``w``."""

    def change(made: d.Builder) -> None:
        raw = value if isinstance(value, bytes) else saved(value)
        made.files["__0_0.distcp"] = raw
        made.places[0] = (d.index("w", (0, 0)), d.info("__0_0.distcp", 0, len(raw)))

    return change


def _properties(**changes: Any) -> Change:
    return _no_tensor(props=d.properties(**changes))


def _mixed(made: d.Builder) -> None:
    made.value("x", 1, ("l", 0))
    made.value("y", 2, ("l", "a"))


_BIG = 1 << 62
_HOSTILE: list[Refusal] = [
    # the tensor and its chunks
    ("a chunk is missing", _no_tensor(boxes=[((0, 0), (3, 4))]), "12 of the 28 elements"),
    ("no chunk", _no_tensor(boxes=[]), "0 of the 28"),
    ("chunks overlap", _no_tensor(boxes=[((0, 0), (7, 4)), ((1, 0), (2, 2))]),
     "does not say where"),
    ("a chunk reaches out", _no_tensor(boxes=[((0, 0), (8, 4))]), "reaches out"),
    ("a chunk of one dimension", _no_tensor(boxes=[((0,), (28,))]), "does not say where"),
    ("a huge tensor", _no_tensor(shape=(_BIG, 4), boxes=[((0, 0), (_BIG, 4))]), "an item of"),
    ("a huge empty tensor", _no_tensor(shape=(0, _BIG, _BIG), boxes=[]), "stride"),
    ("many dimensions", _no_tensor(shape=(1,) * 65, boxes=[]), "65 dimensions"),
    ("a size of 2**64", _no_tensor(shape=(1 << 64,), boxes=[]), "Size"),
    ("a negative size", _no_tensor(shape=(-1, 4), boxes=[]), "Size"),
    ("another dtype", _properties(dtype=b.name("torch", "int32")), "int32"),
    ("another size", _no_tensor(shape=(4, 7), boxes=[((0, 0), (4, 7))]), r"\[4, 7\]"),
    ("a dtype that is none", _properties(dtype=b.integer(5)), "dtype"),
    ("a dtype without tensors", _properties(dtype=b.name("torch", "int4")), "dtype"),
    ("sparse", _no_tensor(props=d.properties(layout="torch.sparse_coo")),
     "sparse_coo", tz.UnsupportedError),
    ("a layout that is none", _no_tensor(props=d.properties(layout="strided")), "a name like"),
    ("requires_grad 1", _properties(requires_grad=b.integer(1)), "requires_grad"),
    ("six properties", _properties(more=b"N"), "five"),
    # where the items are
    ("a file that is not there", _place("__9_0.distcp", 0, 9), "__9_0.distcp"),
    ("a path", _place("../__0_0.distcp", 0, 9), "plain name"),
    ("an absolute path", _place("/etc/passwd", 0, 9), "plain name"),
    ("a file name with NUL", _place("a\0b", 0, 9), "plain name"),
    ("past the file", _place("__0_0.distcp", 0, 1 << 40), "truncated"),
    ("an offset of 2**70", _place("__0_0.distcp", 1 << 70, 9), "an int from 0"),
    ("a negative length", _place("__0_0.distcp", 0, -1), "an int from 0"),
    ("compressed", _place("__0_0.distcp", 0, 9, transform_descriptors=b.list_of("zstd.1")),
     r"'w' is encoded \(zstd\.1\)", tz.UnsupportedError),
    ("transforms that are none", _place("__0_0.distcp", 0, 9, transform_descriptors=b.integer(3)),
     "a list was expected"),
    ("items overlap", _also(d.index("v", None), d.info("__0_0.distcp", 40, 30)), "overlap"),
    ("nothing says where", lambda made: made.places.clear(), "does not say where"),
    ("an object without a place", _items(x=d.BYTES), "does not say where 'x'"),
    ("a place under no index", _also(b.text("w"), d.info("__0_0.distcp", 0, 9)), "MetadataIndex"),
    ("an index without a name", _also(d.new(d.MODULE, "MetadataIndex",
     b.dict_of({})), d.info("__0_0.distcp", 0, 9)), "the name of a MetadataIndex"),
    ("an index without a state", _also(d.new(d.MODULE, "MetadataIndex"),
     d.info("__0_0.distcp", 0, 9)), "MetadataIndex"),
    # the items
    ("an item that is no archive", _item(bytes(300)), "begins with"),
    ("an item that is a list", _item([1] * 40), "a tensor was expected"),
    ("an item of another shape", _item(_A.T), r"\[4, 7\]"),
    ("an item that is small", _item(b"PK\3\4" + bytes(20)), "an item of 24"),
    ("an item that is cut", _item(saved(_A)[:-30]), "__0_0.distcp, 'w'"),
    # the nesting
    ("a path of nothing", _paths(w=b")"), "not made of keys"),
    ("a path that is a list", _paths(w=b.list_of("w")), "a tuple was expected"),
    ("a path of floats", _paths(w=b.tuple_of("a", b"G" + struct.pack(">d", 1.0))), "path"),
    ("a path that begins with a position", _path(0, "a"), "path"),
    ("a negative position", _path("a", -1), "path"),
    ("a huge position", _path("a", 1 << 40), "a list has 1 values"),
    ("a deep path", _path("a", *[0] * 900), "nesting", tz.LimitError),
    ("a very deep path", _path(*["a"] * 50_000), "nesting", tz.LimitError),
    ("a path twice", lambda made: made.value("w2", 5, path=("w",)), "that of another value"),
    ("a path through a value", lambda made: made.value("w2", 5, path=("w", "x")),
     "through another value"),
    ("a dict that is a list", _mixed, "another kind"),
    ("planner_data that is none", _metadata(planner_data=b.integer(3)), "planner"),
    # the classes
    ("a foreign name", _metadata(version=b.call("os.system", "ls")),
     "os.system", tz.UnsafeGlobalError),
    ("a foreign class for the root", _metadata(storage_meta=d.new(d.MODULE, "Metadata", b"}")),
     "StorageMeta"),
    ("getattr", _metadata(version=b.call("builtins.getattr", "x", "y")),
     "getattr", tz.UnsafeGlobalError),
    ("getattr of a class", _metadata(version=b.call("builtins.getattr",
     b.name(d.MODULE, "Metadata"), "y")), "getattr", tz.UnsafeGlobalError),
    ("a persistent id", _metadata(version=b.persistent()), "persistent"),
    ("a tensor in the metadata", _metadata(version=b.name("torch._utils", "_rebuild_tensor_v2")),
     "_rebuild_tensor_v2", tz.UnsafeGlobalError),
    ("no dict of tensors", _metadata(state_dict_metadata=b"]"), "a dict"),
    ("no dict of places", _metadata(storage_data=b"N"), "storage_data"),
    ("a number for a tensor", _items(w=b.integer(1)), "TensorStorageMetadata"),
    ("a tensor with arguments",
     _items(w=b.name(d.MODULE, "TensorStorageMetadata")
     + b.ints(1) + b"\x81" + b"}b"), "TensorStorageMetadata"),
    ("a called class",
     _items(w=b.call(b.name(d.MODULE, "BytesStorageMetadata"))), "BytesStorageMetadata"),
    ("a memory format of text", _properties(memory_format=b.call(
     b.name(d.MODULE, "_MEM_FORMAT_ENCODING"), "x")), "memory format"),
    ("a path of numbers", _metadata(version=b.call("pathlib.PosixPath", 1)), "strings"),
]  # fmt: skip


@each_refusal(_HOSTILE, tz.FormatError)
def test_hostile(
    made: d.Builder, given: Change, error: type[tz.TorchZipError], message: str
) -> None:
    made.tensor("w", _A)
    given(made)
    folder = made.write()
    with peak_below(40_000_000), pytest.raises(error, match=message) as caught:
        tz.load(folder)
    assert str(folder) in str(caught.value)
    with pytest.raises(error), tz.lazy_load(folder) as checkpoint:
        checkpoint.verify()


def test_overlapping_chunks(made: d.Builder) -> None:
    """Two boxes that share an element are refused when the checkpoint is opened."""
    made.tensor("w", _A, [((0, 0), (4, 4)), ((3, 0), (3, 4))])
    with pytest.raises(tz.FormatError, match=r"w: .*overlap"), tz.lazy_load(made.write()):
        pass


def test_a_deflated_chunk(made: d.Builder) -> None:
    """Torch never deflates; reading parts of such a chunk would inflate it over and over."""
    made.items["w"] = d.tensor_metadata((4,), [((0,), (4,))])
    members = b.members_of(b.stream(b.tensor()))
    members = [replace(each, method=8 * each.name.endswith(b"data/0")) for each in members]
    made.put("__0_0.distcp", "w", (0,), b.build_zip(members))
    with pytest.raises(tz.UnsupportedError, match=r"'w'.*deflated"):
        tz.load(made.write())


def test_spare_items_are_noted(made: d.Builder) -> None:
    """An item that nothing needs changes no value."""
    made.tensor("w", _A)
    made.put("__1_0.distcp", "old", (0, 0), saved(_A))
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
    made.tensor("a.w", _A)
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


_PLAN = d.new("torch.distributed.checkpoint.planner", "SavePlan", b.dict_of({"items": b"]"}))


def test_attributes_of_others(made: d.Builder) -> None:
    """Megatron-Core puts plans into the metadata. They are skipped, and their names are said."""
    made.tensor("w", _A)
    member = b.call("builtins.getattr", b.name("torch.distributed.checkpoint.planner", "W"), "x")
    made.more = {"all_local_plans": b.list_of(_PLAN, member), "mcore_data": b.dict_of({"w": 1})}
    folder = made.write()
    np.testing.assert_array_equal(tz.load(folder)["w"], _A)
    with tz.lazy_load(folder) as checkpoint:
        assert ("torch.distributed.checkpoint.planner", "SavePlan") in checkpoint.foreign
        assert checkpoint.foreign_in_root == []
    with pytest.raises(tz.UnsafeGlobalError, match="SavePlan"):
        tz.load(folder, foreign="raise")


@pytest.mark.parametrize(
    "more",
    [
        {"all_local_plans": _PLAN, "version": _PLAN},
        {"all_local_plans": _PLAN, "version": b.call("os.system", "ls")},
        {"all_local_plans": _PLAN, "storage_meta": d.new(d.MODULE, "StorageMeta", _PLAN)},
        {"all_local_plans": b.name("os", "system") + b"0N"},
        {"all_local_plans": b.integer(1), "version": b.call("builtins.getattr", _PLAN, "x")},
    ],
    ids=["in both", "beside", "deeper", "dropped", "getattr"],
)
def test_foreign_names_elsewhere(made: d.Builder, more: dict[str, bytes]) -> None:
    """A foreign name is refused wherever a reader looks, and where nobody sees what it is for."""
    made.tensor("w", _A)
    made.more = more
    with pytest.raises(tz.UnsafeGlobalError):
        tz.load(made.write())


def test_megatron() -> None:
    """A real checkpoint of Megatron-Core: layers are stacked, and objects are values."""
    ranks = Path(__file__).parents[1] / "data" / "ranks"
    expected = tz.load(ranks / "mcore-full.pt")
    with tz.lazy_load(ranks / "mcore") as found:
        assert found.format == "dcp"
        stacked = found["decoder.layers.self_attention.linear_qkv.weight"].numpy()
        for layer, array in expected["layers"].items():
            np.testing.assert_array_equal(stacked[layer], array)
        embedding = found["embedding.word_embeddings.weight"].numpy()
        np.testing.assert_array_equal(embedding, expected["emb"])
        assert found.root["decoder.layers.self_attention._extra_state/shard_2_4"] == [{"l": 2}]
        assert found.verify().tensors == 2


def test_used_over_and_over(made: d.Builder) -> None:
    """One list of chunks in two bytes each time is no way to make a reader work."""
    state = b.dict_of({"offsets": d.size(0), "sizes": d.size(0)})
    chunk = d.new(d.MODULE, "ChunkStorageMetadata", state) + b"q\x62"
    fields = {
        "properties": d.properties(),
        "size": d.size(0),
        "chunks": b"](" + chunk + b"h\x62" * 50_000 + b"e",
    }
    first = d.new(d.MODULE, "TensorStorageMetadata", b.dict_of(fields))
    made.items = {"t0": first + b"q\x61"}
    made.items |= {f"t{i}": b"h\x61" for i in range(1, 2000)}
    with pytest.raises(tz.FormatError, match="over and over"):
        tz.load(made.write())


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
    made.tensor("w", _A, props=props)
    made.more["version"] = b.call("pathlib._local.WindowsPath", "C:/")
    assert tz.load(made.write())["w"].shape == (7, 4)


def test_a_file_of_items_by_itself(folder: Path) -> None:
    """It is no checkpoint; the directory is."""
    with pytest.raises(tz.FormatError, match=r"__0_0\.distcp: .*path of the directory"):
        tz.load(folder / "__0_0.distcp")


def test_one_file_does_not_spoil_another(tmp_path: Path) -> None:
    """What the check of keys remembers ends with the file."""
    colliding = [
        (b.integer(i * ((1 << 61) - 1)), d.info("__0_0.distcp", 0, 9)) for i in range(1, 99)
    ]
    for number in range(3):
        made = d.Builder(tmp_path / str(number))
        made.tensor("w", _A)
        made.places += colliding
        with pytest.raises(tz.FormatError, match="MetadataIndex"):
            tz.load(made.write())


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
    np.testing.assert_array_equal(tz.load(target)["model.grid"], _A)
    assert main(["ls", str(tmp_path)]) == 1
    assert "index.json" in capsys.readouterr().err


def test_members_of_enums_by_name(made: d.Builder) -> None:
    """Python 3.11.2 writes them with getattr, which here is good for nothing else."""
    enum = b.name(d.MODULE, "_MEM_FORMAT_ENCODING")
    member = b.call("builtins.getattr", enum, "TORCH_CONTIGUOUS_FORMAT")
    made.tensor("w", _A, props=d.properties(memory_format=member))
    np.testing.assert_array_equal(tz.load(made.write())["w"], _A)


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
        d.safetensors_part({"a": ((0, 0), _A[:3]), "b": ((), np.array(4, np.float32))}),
        d.safetensors_part({"a": ((3, 0), _A[3:, :1])}),
        d.safetensors_part({"a": ((3, 1), _A[3:, 1:]), "c": ((0,), np.empty(0, np.float32))}),
    )
    with tz.lazy_load(folder) as checkpoint:
        assert checkpoint.format == "dcp"
        assert list(checkpoint) == ["a", "b", "c"]
        np.testing.assert_array_equal(checkpoint["a"], _A)
        np.testing.assert_array_equal(checkpoint["a"][2:5, ::2], _A[2:5, ::2])
        assert checkpoint["c"].shape == (0,)
        assert checkpoint.verify().records == 5
        tensor = pickle.loads(pickle.dumps(checkpoint["a"]))
    np.testing.assert_array_equal(tensor, _A)
    made = tz.load(folder, mmap=True)
    np.testing.assert_array_equal(made["a"], _A)
    assert not made["b"].flags.writeable


def test_hostile_safetensors_parts(tmp_path: Path) -> None:
    """Gaps, overlaps, files without offsets and offsets that are none are said by name."""
    whole = d.safetensors_part({"a": ((0, 0), _A)})
    plain = b.safetensors(b'{"b":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}', b"x")

    def info(text: str) -> bytes:
        return d.safetensors_part({"a": ((0, 0), _A)}, saved_info=text)

    rows: list[tuple[list[bytes], type[Exception], str]] = [
        ([d.safetensors_part({"a": ((1, 0), _A)})], tz.FormatError, "28 of the 32"),
        ([whole, d.safetensors_part({"a": ((2, 0), _A[:1])})], tz.FormatError, "overlap"),
        ([whole, plain], tz.FormatError, "without DCP_SHARDING_INFO"),
        ([whole, d.safetensors_part({"a": ((7,), _A[0])})], tz.FormatError, "dimensions"),
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
    data = d.safetensors_part({"a": ((3, 0), _A[3:])})
    with tz.lazy_load(io.BytesIO(data)) as checkpoint:
        assert checkpoint["a"].shape == (4, 4)
        assert "DCP_SHARDING_INFO" in checkpoint.metadata
