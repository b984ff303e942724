"""Shards with an index: one checkpoint, whatever lies in the directory."""

from __future__ import annotations

import json
import os
import pickle
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import torchzip as tz
from tests import builders as b
from tests.faults import descriptors
from tests.formats.counting import Counted
from torchzip.files import folder as folder_module
from torchzip.files.folder import LocalFolder
from torchzip.files.source import FileSource

_A = np.arange(12, dtype=np.float32).reshape(3, 4)
_B = np.arange(4, dtype=np.int64)
_C = np.ones((2, 2), np.float64)


def _names(kind: str, count: int = 2, stem: str = "model") -> list[str]:
    return [f"{stem}-{i:05}-of-{count:05}.{kind}" for i in range(1, count + 1)]


def write_shard(path: Path, tensors: Mapping[str, Any]) -> None:
    """Write a shard, of the kind that its suffix says."""
    path.parent.mkdir(exist_ok=True)
    scratch = path.with_name("scratch.pt")
    tz.save(dict(tensors), scratch)
    if path.suffix == ".safetensors":
        tz.convert(scratch, path)
        scratch.unlink()
    else:
        scratch.rename(path)


def _index(folder: Path, kind: str, weight_map: Any, **more: Any) -> Path:
    stem = "pytorch_model" if kind == "bin" else "model"
    path = folder / f"{stem}.{kind}.index.json"
    path.write_text(json.dumps({"metadata": {"total_size": 144}, "weight_map": weight_map, **more}))
    return path


def _make(folder: Path, kind: str = "safetensors") -> Path:
    """Write two shards and their index; return the index."""
    first, second = _names(kind)
    folder.mkdir(exist_ok=True)
    write_shard(folder / first, {"a": _A, "b.bias": _B})
    write_shard(folder / second, {"c": _C, "d": _A[:2]})
    total = _A.nbytes + _B.nbytes + _C.nbytes + _A[:2].nbytes
    weight_map = {"d": second, "a": first, "c": second, "b.bias": first}
    return _index(folder, kind, weight_map, metadata={"total_size": total, "author": "me"})


@pytest.mark.parametrize("kind", ["bin", "safetensors"])
@pytest.mark.parametrize("by", ["directory", "index"])
def test_is_one_checkpoint(tmp_path: Path, kind: str, by: str) -> None:
    """The directory and the index give the same: a dict in the order of the index."""
    index = _make(tmp_path / "m", kind)
    with tz.lazy_load(tmp_path / "m" if by == "directory" else index) as checkpoint:
        assert checkpoint.format == "sharded"
        assert checkpoint.path == str(index)
        assert type(checkpoint.root) is dict
        assert list(checkpoint.root) == list(checkpoint) == ["d", "a", "c", "b.bias"]
        np.testing.assert_array_equal(checkpoint["a"][1:, 2], _A[1:, 2])
        np.testing.assert_array_equal(checkpoint["b.bias"], _B)
        assert checkpoint.metadata["author"] == "me"
        report = checkpoint.verify()
        assert report.tensors == 4
        assert report.notes == ()
    made = tz.load(tmp_path / "m")
    assert list(made) == ["d", "a", "c", "b.bias"]
    np.testing.assert_array_equal(made["d"], _A[:2])
    mapped = tz.load(os.fspath(index), mmap=True)
    np.testing.assert_array_equal(mapped["c"], _C)
    assert not mapped["c"].flags.writeable


def test_relative_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An index named without a directory is beside its shards."""
    index = _make(tmp_path)
    monkeypatch.chdir(tmp_path)
    for path in (".", index.name):
        assert len(tz.load(path)) == 4


def test_legacy_shards(tmp_path: Path) -> None:
    pickle_ = b.stream(b.dict_of({"w": b.tensor(b.persistent(extra=b"N"))}))
    data = b.legacy(pickle_, b.stream(b.list_of("0")), b"\4" + bytes(7) + b.DATA)
    (tmp_path / "x.bin").write_bytes(data)
    _index(tmp_path, "bin", {"w": "x.bin"})
    assert tz.load(tmp_path)["w"].tolist() == [1, 2, 3, 4]


def test_ties_and_containers_of_a_shard(tmp_path: Path) -> None:
    """Ties within a shard stay; an OrderedDict is a flat dict too."""
    tz.save(OrderedDict(a=_A, b=_A), tmp_path / "x.bin")
    _index(tmp_path, "bin", {"a": "x.bin", "b": "x.bin"}, metadata={})
    with tz.lazy_load(tmp_path) as checkpoint:
        assert checkpoint["a"].spec.storage is checkpoint["b"].spec.storage
        assert checkpoint.metadata == {}
    made = tz.load(tmp_path)
    assert np.shares_memory(made["a"], made["b"])


def test_convert(tmp_path: Path) -> None:
    tz.save({"a": _A, "b": _A}, tmp_path / "t.pt")
    (tmp_path / "m").mkdir()
    tz.convert(tmp_path / "t.pt", tmp_path / "m" / "x.safetensors")
    write_shard(tmp_path / "m" / "y.safetensors", {"c": _C, "d": _C})
    _index(tmp_path / "m", "safetensors", {"a": "x.safetensors", "c": "y.safetensors"})
    tz.convert(tmp_path / "m", tmp_path / "one.pt")
    made = tz.load(tmp_path / "one.pt")
    assert sorted(made) == ["a", "b", "c", "d"]
    assert np.shares_memory(made["a"], made["b"])
    assert np.shares_memory(made["c"], made["d"])
    report = tz.convert(tmp_path / "m", tmp_path / "one.safetensors", dtype="bfloat16")
    assert report.lost == ()
    assert str(tz.load(tmp_path / "one.safetensors")["c"].dtype) == "bfloat16"


def test_symbolic_links_are_followed(tmp_path: Path) -> None:
    """The cache of the hub has links to files elsewhere."""
    _make(tmp_path / "blobs")
    (tmp_path / "snapshot").mkdir()
    for path in (tmp_path / "blobs").iterdir():
        (tmp_path / "snapshot" / path.name).symlink_to(path)
    assert len(tz.load(tmp_path / "snapshot")) == 4


def test_survives_pickle(tmp_path: Path) -> None:
    _make(tmp_path)
    with tz.lazy_load(tmp_path) as checkpoint:
        tensor = pickle.loads(pickle.dumps(checkpoint["a"]))
        np.testing.assert_array_equal(tensor, _A)
        with pickle.loads(pickle.dumps(checkpoint)) as again:
            assert list(again) == list(checkpoint)


def test_close(tmp_path: Path) -> None:
    _make(tmp_path)
    with tz.lazy_load(tmp_path) as checkpoint:
        tensor = checkpoint["a"]
    with pytest.raises(ValueError, match="closed"):
        tensor.numpy()


@pytest.mark.parametrize("kind", ["bin", "safetensors"])
def test_opening_reads_no_tensor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Headers only, and of a slice its own bytes."""
    first, second = _names(kind)
    big = np.zeros((1000, 500), np.float32)
    big[5] = 7
    write_shard(tmp_path / first, {"a": big})
    write_shard(tmp_path / second, {"b": big})
    _index(tmp_path, kind, {"a": first, "b": second})
    counted = Counted(monkeypatch)
    with tz.lazy_load(tmp_path) as checkpoint:
        list(checkpoint)
        assert counted.nbytes < 2 * (0xFFFF + 22 + 2000)
        checkpoint["a"][0]
        counted.forget()
        assert checkpoint["a"][5:7, :3].tolist() == [[7, 7, 7], [0, 0, 0]]
        assert counted.nbytes == 24


def test_few_files_are_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """More shards than may be open at once are opened again when they are read."""
    monkeypatch.setattr(folder_module, "_OPEN_FILES", 3)
    names = _names("safetensors", 12)
    for i, name in enumerate(names):
        write_shard(tmp_path / name, {f"w{i}": np.full(300_000, i, np.float32)})
    _index(tmp_path, "safetensors", {f"w{i}": name for i, name in enumerate(names)})
    before = descriptors()
    with tz.lazy_load(tmp_path) as checkpoint:
        assert [float(tensor[5]) for tensor in checkpoint.values()] == list(range(12))
        assert descriptors() <= before + 3
        tensor = checkpoint["w0"]
        (tmp_path / names[0]).write_bytes((tmp_path / names[1]).read_bytes())
        with pytest.raises(tz.FormatError, match="replaced or changed"):
            tensor.numpy()


def test_loading_in_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`load` reads in two threads, through few open files."""
    monkeypatch.setattr(folder_module, "_OPEN_FILES", 1)
    names = _names("safetensors", 4)
    for i, name in enumerate(names):
        write_shard(tmp_path / name, {f"w{i}{k}": np.full(400_000, i, np.float64) for k in "xy"})
    weight_map = {f"w{i}{k}": name for i, name in enumerate(names) for k in "xy"}
    _index(tmp_path, "safetensors", weight_map)
    for name, array in tz.load(tmp_path).items():
        assert (array == int(name[1])).all()


# -- what is said ----------------------------------------------------------------------------------


def refused(path: Path, *expected: str, error: type[Exception] = tz.FormatError) -> str:
    """Return the message of the error, which must say all that is expected."""
    with pytest.raises(error) as caught:
        tz.load(path)
    with pytest.raises(error), tz.lazy_load(path):
        pass
    message = str(caught.value)
    for text in expected:
        assert text in message
    return message


def test_a_missing_shard(tmp_path: Path) -> None:
    """Its name is said, before anything is read."""
    _make(tmp_path)
    (tmp_path / _names("safetensors")[1]).unlink()
    refused(tmp_path, "1 of 2 shards", "'model-00002-of-00002.safetensors'")


def test_an_extra_shard(tmp_path: Path) -> None:
    """A shard of the same set that the index does not list would be left out."""
    _make(tmp_path)
    write_shard(tmp_path / "model-00003-of-00002.safetensors", {"z": _A})
    refused(tmp_path, "does not list 'model-00003-of-00002.safetensors'")


def test_shards_of_another_save_are_noted(tmp_path: Path) -> None:
    """They change no value; `verify` has them. Other files are nobody's business."""
    _make(tmp_path)
    write_shard(tmp_path / "model-00003-of-00003.safetensors", {"z": _A})
    write_shard(tmp_path / "adapter.safetensors", {"z": _A})
    (tmp_path / "config.json").write_text("{}")
    with tz.lazy_load(tmp_path) as checkpoint:
        (note,) = checkpoint.verify().notes
    assert "'model-00003-of-00003.safetensors'" in note


def test_total_size_is_noted(tmp_path: Path) -> None:
    """A total_size that is wrong is said by `verify`, once."""
    first, second = _names("safetensors")
    _make(tmp_path)
    weight_map = {"d": second, "a": first, "c": second, "b.bias": first}
    _index(tmp_path, "safetensors", weight_map, metadata={"total_size": 99})
    with tz.lazy_load(tmp_path) as checkpoint:
        checkpoint.verify()
        (note,) = checkpoint.verify().notes
        assert checkpoint.metadata["total_size"] == "99"
    assert "total_size 99" in note
    assert "144" in note


@pytest.mark.parametrize(
    ("shards", "weight_map", "expected"),
    [
        ({"x.bin": "a"}, {"a": "x.bin", "b": "x.bin"}, ["puts 'b' into 'x.bin'"]),
        ({"x.bin": ["a", "hidden"]}, {"a": "x.bin"}, ["'x.bin' has 'hidden'"]),
        ({"x.bin": "ab", "y.bin": "b"}, {"a": "x.bin", "b": "y.bin"}, ["'x.bin'", "'y.bin'"]),
    ],
    ids=["a name that its shard lacks", "a tensor that is not listed", "a tensor in two shards"],
)
def test_an_index_of_other_tensors(
    tmp_path: Path, shards: dict[str, Any], weight_map: Any, expected: list[str]
) -> None:
    """What is not there, what would be out of reach, and what cannot be told."""
    for name, tensors in shards.items():
        write_shard(tmp_path / name, dict.fromkeys(tensors, _A))
    _index(tmp_path, "bin", weight_map)
    refused(tmp_path, *expected)


def test_two_indices(tmp_path: Path) -> None:
    """Both are named; either can be given itself."""
    one, other = _make(tmp_path, "bin"), _make(tmp_path, "safetensors")
    refused(tmp_path, one.name, other.name)
    assert len(tz.load(one)) == len(tz.load(other)) == 4


def test_a_shard_with_a_part_of_a_tensor(tmp_path: Path) -> None:
    """A part must not pass for the whole."""
    info = json.dumps({"a": {"saved_offsets": [2]}})
    header = {
        "__metadata__": {"DCP_SHARDING_INFO": info},
        "a": {"dtype": "U8", "shape": [2], "data_offsets": [0, 2]},
    }
    (tmp_path / "x.safetensors").write_bytes(b.safetensors(json.dumps(header).encode(), b"ab"))
    _index(tmp_path, "safetensors", {"a": "x.safetensors"})
    refused(tmp_path, "a part only of 'a'")


@pytest.mark.parametrize(
    "content", [b.integer(5), b.list_of(b.tensor()), b"}" + b.integer(1) + b"Ns"]
)
def test_a_shard_that_is_no_flat_dict(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.bin").write_bytes(b.checkpoint(b.stream(content)))
    _index(tmp_path, "bin", {"a": "x.bin"})
    refused(tmp_path, "flat dict")


@pytest.mark.parametrize(
    "name", ["../x.bin", "/etc/passwd", "a/x.bin", "a\\x.bin", "..", ".", "", "x\0.bin", "\ud800",
             "x" * 256]
)  # fmt: skip
def test_names_that_are_more_than_names(tmp_path: Path, name: str) -> None:
    """Nothing outside the directory is ever opened."""
    (tmp_path / "a").mkdir()
    for place in (tmp_path, tmp_path / "a", tmp_path.parent):
        write_shard(place / "x.bin", {"a": _A})
    _index(tmp_path, "bin", {"a": name})
    refused(tmp_path, "plain file name")


@pytest.mark.parametrize(
    "make", [getattr(os, "mkfifo", os.mkdir), os.mkdir, lambda path: path.symlink_to("nowhere")],
    ids=["FIFO", "directory", "dead link"],
)  # fmt: skip
def test_no_regular_file(tmp_path: Path, make: Callable[[Path], object]) -> None:
    """What stands under a shard's name raises at once."""
    make(tmp_path / "x.bin")
    refused(_index(tmp_path, "bin", {"a": "x.bin"}), error=OSError)


_TEXTS: dict[str, bytes] = {
    "empty": b"",
    "no JSON": b"{",
    "a list": b"[]",
    "text": b'"x"',
    "no UTF-8": b'{"weight_map": {"\xff": "x.bin"}}',
    "no weight_map": b'{"metadata": {}}',
    "a list of weights": b'{"weight_map": []}',
    "numbers for files": b'{"weight_map": {"a": 1}}',
    "null for a file": b'{"weight_map": {"a": null}}',
    "a list for metadata": b'{"metadata": [1], "weight_map": {"a": "x.bin"}}',
    "a name twice": b'{"weight_map": {"a": "x.bin", "a": "x.bin"}}',
    "weight_map twice": b'{"weight_map": {}, "weight_map": {"a": "x.bin"}}',
    "deep": b"[" * 100_000,
    "deep metadata": b'{"weight_map": {"a": "x.bin"}, "metadata": {"x": ' + b"[" * 50_000,
    "a long number": b'{"weight_map": {"a": "x.bin"}, "metadata": {"x": ' + b"9" * 5000 + b"}}",
}


@pytest.mark.parametrize("name", _TEXTS)
def test_hostile_indices(tmp_path: Path, name: str) -> None:
    write_shard(tmp_path / "x.bin", {"a": _A})
    (tmp_path / "m.bin.index.json").write_bytes(_TEXTS[name])
    refused(tmp_path, "m.bin.index.json")


def test_odd_numbers_for_total_size(tmp_path: Path) -> None:
    """What is no number of bytes is left alone, and kept as text."""
    write_shard(tmp_path / "x.bin", {"a": _A})
    for text in ("NaN", "1e400", "-5", "true", '"many"', "1e3", "9" * 4000, "[1]"):
        raw = f'{{"metadata": {{"total_size": {text}}}, "weight_map": {{"a": "x.bin"}}}}'
        (tmp_path / "m.bin.index.json").write_text(raw)
        with tz.lazy_load(tmp_path) as checkpoint:
            assert len(checkpoint.verify().notes) == (text == "1e3")
            assert isinstance(checkpoint.metadata["total_size"], str)


def test_limits_of_an_index(tmp_path: Path) -> None:
    write_shard(tmp_path / "x.bin", {"a": _A})
    index = _index(tmp_path, "bin", {"a": "x.bin"})
    with pytest.raises(tz.LimitError, match="header_nbytes"):
        tz.load(index, limits=tz.Limits(header_nbytes=10))
    index.write_text('{"weight_map": {}, "x": [%s0]}' % ("[]," * 1_000_000))
    with pytest.raises(tz.LimitError, match="containers"):
        tz.load(index)


def test_an_empty_index(tmp_path: Path) -> None:
    assert tz.load(_index(tmp_path, "bin", {})) == {}


# -- directories -----------------------------------------------------------------------------------


@pytest.mark.parametrize("names", [[], ["weights.safetensors"], [f"f{i}" for i in range(20)]])
def test_a_directory_that_is_no_checkpoint(tmp_path: Path, names: list[str]) -> None:
    """It says what is there, and what would be understood."""
    for name in names:
        if name.endswith("safetensors"):
            write_shard(tmp_path / name, {"a": _A})
        else:
            (tmp_path / name).touch()
    first = sorted(names)[0] if names else "nothing in it"
    more = ["and 10 more"] if len(names) > 10 else []
    refused(tmp_path, str(tmp_path), first, "index.json", ".metadata", *more)


def test_paths_that_are_not_there(tmp_path: Path) -> None:
    for name in ("m.index.json", "no/m.index.json", "no/.metadata", ".metadata"):
        with pytest.raises(FileNotFoundError):
            tz.load(tmp_path / name)


def test_an_index_is_no_file_object(tmp_path: Path) -> None:
    """A file object has no directory: the error says what it looks like."""
    with (
        _make(tmp_path).open("rb") as file,
        pytest.raises(tz.FormatError, match="not a checkpoint"),
    ):
        tz.load(file)


# -- the folder -----------------------------------------------------------------------------------


def test_folder_sources(tmp_path: Path) -> None:
    """A Source of a folder reads as its file does, is itself each time, and survives pickle."""
    (tmp_path / "f").write_bytes(b"0123456789")
    folder = LocalFolder(tmp_path)
    source = folder.open("f")
    assert folder.open("f") is source
    assert source.read_at(3, 4) == b"3456"
    out = bytearray(2)
    source.read_into(8, memoryview(out))
    assert out == b"89"
    with pytest.raises(tz.FormatError, match="in all"):
        source.read_at(8, 3)
    again = pickle.loads(pickle.dumps(source))
    assert isinstance(again, FileSource)
    assert again.read_at(0, 2) == b"01"
    again.close()
    folder.close()
    with pytest.raises(ValueError, match="closed"):
        source.read_at(0, 1)


def test_a_file_in_use_is_not_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Making room and closing wait for whoever reads."""
    monkeypatch.setattr(folder_module, "_OPEN_FILES", 1)
    for name in "ab":
        (tmp_path / name).write_bytes(name.encode())
    folder = LocalFolder(tmp_path)
    one, other = folder.open("a"), folder.open("b")
    with folder.borrow(one) as number:
        assert other.read_at(0, 1) == b"b"
        folder.close()
        assert os.pread(number, 1, 0) == b"a"
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(number)
    for source in (one, other):
        with pytest.raises(ValueError, match="closed"):
            source.read_at(0, 1)


# -- directories that say odd things of themselves ------------------------------------------------


def _bare_index(folder: Path, weight_map: Any, name: str = "m.bin.index.json") -> Path:
    path = folder / name
    path.write_text(json.dumps({"weight_map": weight_map}))
    return path


@pytest.mark.parametrize(
    "name", ["m.bin.index.json", "other.index.json", ".metadata", "x.distcp", "M.BIN.INDEX.JSON"]
)
def test_an_index_of_no_shard(tmp_path: Path, name: str) -> None:
    """An index that names itself, or another file that is no shard, is an error and no circle."""
    _bare_index(tmp_path, {"a": "m.bin.index.json"}, "other.index.json")
    (tmp_path / ".metadata").write_bytes(b.stream(b"}"))
    (tmp_path / "x.distcp").write_bytes(b.checkpoint(b.stream(b.tensor())))
    with pytest.raises(tz.FormatError):
        tz.load(_bare_index(tmp_path, {"a": name}))


def test_two_indices_that_name_one_another(tmp_path: Path) -> None:
    """Neither is a shard."""
    for name, other in (("a", "b"), ("b", "a")):
        _bare_index(tmp_path, {"x": f"{other}.index.json"}, f"{name}.index.json")
    for path in (tmp_path / "a.index.json", tmp_path):
        with pytest.raises(tz.FormatError):
            tz.load(path)


@pytest.mark.parametrize("target", ["../secret.pt", "self.bin", "/dev/stdin", "/proc/self/environ"])
def test_links_out_of_the_directory(tmp_path: Path, target: str) -> None:
    """A link leads where its directory's owner says, and what is no shard there is no shard."""
    folder = tmp_path / "c"
    folder.mkdir()
    (tmp_path / "secret.pt").write_bytes(b.checkpoint(b.stream(b.integer(5))))
    (folder / "self.bin").symlink_to(target)
    with pytest.raises((OSError, tz.TorchZipError)):
        tz.load(_bare_index(folder, {"a": "self.bin"}))


@pytest.mark.long
@pytest.mark.usefixtures("soon")
@pytest.mark.parametrize(
    "shard_of", [lambda i: "x.bin", lambda i: f"{i}.bin", lambda i: "../x.bin"],
    ids=["one shard", "a shard for each", "one outside"],
)  # fmt: skip
def test_an_index_of_half_a_million_tensors(tmp_path: Path, shard_of: Callable[[int], str]) -> None:
    """It costs its own size, and the message names a few."""
    (tmp_path / "x.bin").write_bytes(b.checkpoint(b.stream(b"}")))
    path = _bare_index(tmp_path, {f"layer.{i}": shard_of(i) for i in range(500_000)})
    with pytest.raises(tz.FormatError) as caught:
        tz.load(path)
    assert len(str(caught.value)) < 2000
