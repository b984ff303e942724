"""What `edit` makes of names, values and marks, what it reads and writes, and what it refuses.

tests/tools/test_edit_crash.py has what a failure leaves, tests/test_against_torch_edit.py what
torch reads.
"""

from __future__ import annotations

import dataclasses
import io
import json
import os
import shutil
import stat
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import torchzip as tz
from tests import builders as b
from tests.container.memory import BytesSink
from tests.faults import descriptors
from tests.hostile.every import ATTACKS
from tests.saved import GOLDEN_FILES, flipped, quiet, zipped_again
from tests.test_big import HoleyFile
from torchzip.checkpoint.structure import Structure
from torchzip.container.zip_reader import ZipReader
from torchzip.container.zip_writer import ZipWriter
from torchzip.files.in_place import InPlaceFile
from torchzip.files.opening import open_source
from torchzip.files.source import FileSource
from torchzip.tensors.memory import place_arrays
from torchzip.tensors.reduce import StorageKeys
from torchzip.tools import Edited, diff, edit, verify
from torchzip.tools.edit_rules import parse_device
from torchzip.types import ForeignObject, MetaTensor, Parameter, QuantizedTensor, SparseTensor

Array = np.ndarray[Any, Any]


def tree() -> dict[str, Any]:
    """Return a training checkpoint in small."""
    weight = np.arange(12, dtype=np.float32).reshape(3, 4)
    model = OrderedDict(
        [
            ("head.weight", weight),
            ("head.bias", np.ones(3, np.float32)),
            ("steps", np.array(7)),
            ("tied", weight),
        ]
    )
    vars(model)["_metadata"] = OrderedDict([("", {"version": 1}), ("head", {"version": 1})])
    return {
        "model": model,
        "optimizer": {"state": {0: {"m": np.zeros(5)}, 1: {"m": np.full(5, 2.0)}}, "lr": 0.1},
        "groups": [{"lr": 0.1}, {"lr": 0.2}],
        "epoch": 3,
    }


@pytest.fixture
def path(tmp_path: Path) -> Path:
    made = tmp_path / "m.pt"
    tz.save(tree(), made)
    return made


def plain(value: Any) -> Any:
    """Return what a loaded value is, with arrays as lists."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, Parameter):
        return ("parameter", value.requires_grad, plain(value.data))
    if isinstance(value, tz.LazyTensor):
        value = value.numpy()
    return (str(value.dtype), value.tolist()) if isinstance(value, np.ndarray) else value


def read(path: Path) -> Any:
    """Return what a file holds, Parameters as such."""
    with tz.lazy_load(path) as checkpoint:
        return plain(checkpoint.root)


def archive_of(path: Path) -> ZipReader:
    return ZipReader(FileSource(path), tz.Limits())


def records(path: Path) -> list[str]:
    """Return the names of the records, in the order of the directory."""
    return list(archive_of(path))


# -- names -----------------------------------------------------------------------------------------


def test_rename(path: Path) -> None:
    """Keys, containers, items of dicts in lists; order, class, attributes and ties stay."""
    found = edit(path, rename={"model.head.weight": "model.head.w", "optimizer": "opt"})
    assert found.renamed == (("model.head.weight", "model.head.w"), ("optimizer", "opt"))
    assert (found.how, found.dropped, found.unused) == ("appended", (), ())
    loaded = tz.load(path)
    model = loaded["model"]
    assert type(model) is OrderedDict
    assert list(model) == ["head.w", "head.bias", "steps", "tied"]
    assert vars(model) == vars(tree()["model"])
    assert model["tied"] is model["head.w"]
    assert list(loaded) == ["model", "opt", "groups", "epoch"]
    assert edit(path, rename={"groups.0.lr": "groups.0.rate"}).renamed
    assert plain(tz.load(path)["groups"]) == [{"rate": 0.1}, {"lr": 0.2}]


def test_int_keys_stay_ints(path: Path) -> None:
    """Those that get a number; others become texts."""
    edit(path, rename={"optimizer.state.0": "optimizer.state.12"})
    assert list(tz.load(path)["optimizer"]["state"]) == [12, 1]
    edit(path, rename={"optimizer.state.12": "optimizer.state.012"})
    assert list(tz.load(path)["optimizer"]["state"]) == ["012", 1]


@pytest.mark.parametrize(
    ("rules", "names"),
    [
        ([("^model", "net")], ["net.head.weight", "net.head.bias", "net.steps", "net.tied"]),
        ([(r"^model\.", "net.")], ["net.head.weight", "net.head.bias", "net.steps", "net.tied"]),
        ([(r"^model(\.|$)", r"net\1"), ("head", "top")],
         ["net.top.weight", "net.top.bias", "net.steps", "net.tied"]),
        ([("head", "neck"), ("neck", "top")],
         ["model.top.weight", "model.top.bias", "model.steps", "model.tied"]),
        (lambda name: name.replace("head.", "", 1),
         ["model.weight", "model.bias", "model.steps", "model.tied"]),
        (lambda name: None if name == "model.tied" else name,
         ["model.head.weight", "model.head.bias", "model.steps"]),
        ({"model": "net", "model.tied": "net.t"},
         ["net.head.weight", "net.head.bias", "net.steps", "net.t"]),
        ({"model": "net", "model.tied": "model.t"},
         ["net.head.weight", "net.head.bias", "net.steps", "net.t"]),
        ({"model.tied": None}, ["model.head.weight", "model.head.bias", "model.steps"]),
        ({"model": "a.b"}, ["a.b.head.weight", "a.b.head.bias", "a.b.steps", "a.b.tied"]),
    ],
)  # fmt: skip
def test_rename_rules(path: Path, rules: Any, names: list[str]) -> None:
    """Expressions, functions and tables, about containers and about what is in them."""
    edit(path, rename=rules)
    with tz.lazy_load(path) as checkpoint:
        assert list(checkpoint)[: len(names)] == names


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ({"rename": {"model.tied": "model.steps"}}, "'model.tied' would both be called"),
        ({"rename": {"model": "epoch"}}, "would both be called 'epoch'"),
        ({"rename": {"optimizer.state.0": "optimizer.state.1"}}, "would both be called"),
        ({"rename": {"epoch": "model.steps"}}, "both be called 'model.steps'"),
        ({"rename": {"model.tied": "tied"}}, "torchzip convert"),
        ({"rename": [("model.", "")]}, "torchzip convert"),
        ({"set_values": {"model.tied": 1}}, "a value cannot take its place"),
        ({"set_values": {"model": 1}}, "a value cannot take its place"),
        ({"set_values": {"epoch.x": 1}}, "'epoch' is not a dict"),
        ({"set_values": {"groups.x": 1}}, "'groups' is not a dict"),
        ({"set_values": {"groups.0": 1}}, "not an item of a dict"),
        ({"set_values": {"optimizer.x": 1}, "drop": "optimizer"}, "'optimizer' is dropped"),
        ({"set_values": {"new": 1}, "rename": {"epoch": "new"}}, "would both be called 'new'"),
        ({"rename": [("(", "")]}, "rename"),
        ({"device": "gpu"}, "cuda"),
        ({"device": "cpu:0"}, "cpu"),
        ({"device": "meta"}, "meta"),
        ({"device": [("model.tied", "cpu"), ("*", "cuda:0")]}, "share one storage"),
        ({"requires_grad": [("model.tied", True), ("*", False)]}, "are one tensor"),
    ],
)  # fmt: skip
def test_refused(path: Path, rules: dict[str, Any], message: str) -> None:
    """Nothing is written then."""
    before = path.read_bytes()
    with pytest.raises(ValueError, match=message.replace("(", r"\(")):
        edit(path, **rules)
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    "rules",
    [
        {"rename": "a"}, {"rename": ["a"]}, {"rename": lambda name: 3}, {"drop": 3}, {"drop": [3]},
        {"set_values": [1]}, {"set_values": {1: 2}}, {"set_values": {"a": (1,)}},
        {"set_values": {"a": [np.float32(1)]}}, {"set_values": {"a": {(1,): 2}}},
        {"requires_grad": "yes"}, {"requires_grad": [("*", 1)]}, {"device": 3},
        {"device": [("*", 3)]}, {"limits": 3},
    ],
)  # fmt: skip
def test_wrong_types(path: Path, rules: dict[str, Any]) -> None:
    """They are the caller's mistake."""
    before = path.read_bytes()
    with pytest.raises(TypeError):
        edit(path, **rules)
    assert path.read_bytes() == before


def test_names_that_are_odd(tmp_path: Path) -> None:
    """Dots, spaces, line breaks, escapes, keys of other types, and keys that look alike."""
    path = tmp_path / "m.pt"
    value: Any = {"a.b": 1, "a": {"c d": 2}, "x\ny": 3, "\x1b[2J": 4, (1, 2): 5, None: 6, 0: 7,
                  "": 8, True: 9, 1.5: 10, b"k": 11, "\u00e9": 12, "0": 13}  # fmt: skip
    tz.save(value, path)
    found = edit(path, rename={"x\ny": "x", "\x1b[2J": "clear", "(1, 2)": "pair", "": "empty"},
                 drop=["None", "a.c*"], set_values={"True": 0, "1.5": 0})  # fmt: skip
    expected: dict[Any, Any] = {"a.b": 1, "a": {}, "x": 3, "clear": 4, "pair": 5, 0: 7, "empty": 8,
                                True: 0, 1.5: 0, b"k": 11, "\u00e9": 12, "0": 13}  # fmt: skip
    loaded = tz.load(path)
    assert list(loaded.items()) == list(expected.items())
    assert [type(key) for key in loaded] == [type(key) for key in expected]
    assert len(found.renamed) == 4
    with pytest.raises(ValueError, match="both be called"):
        edit(path, rename={"0": "zero"})  # an int and a text
    with pytest.raises(ValueError, match="two items are called '0'"):
        edit(path, set_values={"0": 3})


def test_one_dict_in_two_places(tmp_path: Path) -> None:
    """Rules must say the same of both, or of none."""
    path = tmp_path / "m.pt"
    shared = {"w": np.ones(2), "v": 1}
    tz.save({"model": shared, "ema": shared}, path)
    for rules in ({"rename": {"model.w": "model.x"}}, {"drop": "ema.*"}):
        with pytest.raises(ValueError, match="'model' and 'ema' are one dict"):
            edit(path, **rules)
    edit(path, rename=[(r"\.w$", ".x")], set_values={"model.v": 2})
    loaded = tz.load(path)
    assert loaded["model"] is loaded["ema"]
    assert (list(loaded["ema"]), loaded["ema"]["v"]) == (["x", "v"], 2)
    edit(path, drop="model")
    assert list(tz.load(path)["ema"]) == ["x", "v"]


def test_cycle(tmp_path: Path) -> None:
    """A dict that is in itself is gone over once."""
    path = tmp_path / "m.pt"
    value: dict[str, Any] = {"a": 1}
    value["self"] = value
    tz.save(value, path)
    edit(path, rename={"a": "b"})
    loaded = tz.load(path)
    assert loaded["self"] is loaded
    assert loaded["b"] == 1


# -- what is dropped and set -----------------------------------------------------------------------


def test_drop(path: Path) -> None:
    """Tensors, values and containers; storages that nothing mentions leave the directory."""
    size = path.stat().st_size
    found = edit(path, drop=["optimizer", "model.head.bias", "epoch", "nothing.*"])
    assert found.dropped == ("model.head.bias", "optimizer", "epoch")
    assert found.unused == ("the drop rule 'nothing.*' matches no item of a dict",)
    assert found.dropped_nbytes == 12 + 2 * 40
    assert path.stat().st_size == found.nbytes == size + found.appended_nbytes
    assert list(tz.load(path)) == ["model", "groups"]
    assert [name for name in records(path) if name.startswith("data/")] == ["data/0", "data/2"]
    assert verify(path).torch_load == "accepts"
    # A tie is there as long as one of its names is.
    assert edit(path, drop="model.head.weight").dropped_nbytes == 0
    assert edit(path, drop="model.tied").dropped_nbytes == 48


def test_dead_bytes_and_compact(tmp_path: Path) -> None:
    """What nothing uses is counted to the byte, and freed: the file is what `save` writes."""
    path, other = tmp_path / "m.pt", tmp_path / "new" / "m.pt"
    other.parent.mkdir()
    tz.save({"a": np.zeros(1000), "b": np.ones(500)}, path)
    assert edit(path).dead_nbytes == 0
    found = edit(path, drop="b")
    tz.save({"a": np.zeros(1000)}, other)
    assert found.dead_nbytes == path.stat().st_size - other.stat().st_size > 4000
    assert edit(path).dead_nbytes == found.dead_nbytes
    assert edit(path, compact=True, dry_run=True).nbytes == other.stat().st_size
    done = edit(path, compact=True)
    assert (done.how, done.nbytes, done.dead_nbytes) == ("rewritten", other.stat().st_size, 0)
    assert path.read_bytes() == other.read_bytes()
    assert os.listdir(tmp_path) in (["m.pt", "new"], ["new", "m.pt"])


def test_compact_with_rules(path: Path, tmp_path: Path) -> None:
    """Both at once give what `save` writes of the edited object."""
    edited = tmp_path / "other" / "m.pt"
    edited.parent.mkdir()
    shutil.copy(path, edited)
    rules: dict[str, Any] = {"rename": {"model": "net"}, "drop": "optimizer", "device": "cuda:0"}
    edit(edited, **rules)
    again = tmp_path / "again" / "m.pt"
    again.parent.mkdir()
    with tz.lazy_load(edited) as checkpoint:
        tz.save(checkpoint.root, again)
    found = edit(path, compact=True, **rules)
    assert found.dropped_nbytes == 80
    assert path.read_bytes() == again.read_bytes()


def test_compact_finds_damage(path: Path) -> None:
    """All CRCs are compared, and the file stays as it is."""
    data = path.read_bytes()
    data = flipped(data, data.index(np.arange(12, dtype=np.float32).tobytes()) + 5)
    path.write_bytes(data)
    with pytest.raises(tz.FormatError, match="CRC"):
        edit(path, compact=True)
    assert path.read_bytes() == data
    assert edit(path, drop="epoch").how == "appended"  # which reads no tensor


def test_set_values(path: Path) -> None:
    """Items of any dict get a value, and dicts new items."""
    nested = {"a": [1, 2.5, None, {"b": "c"}], "\u00e9": True}
    found = edit(
        path,
        set_values={
            "epoch": 4, "optimizer.lr": 0.5, "groups.1.lr": "x", "groups.1.new": 1,
            "model.note": "n", "a.b.c": nested, "optimizer.state.2": {},
        },
    )  # fmt: skip
    assert len(found.set) == 7
    loaded = tz.load(path)
    assert (loaded["epoch"], loaded["optimizer"]["lr"], loaded["a.b.c"]) == (4, 0.5, nested)
    assert loaded["groups"] == [{"lr": 0.1}, {"lr": "x", "new": 1}]
    assert loaded["model"]["note"] == "n"
    assert loaded["optimizer"]["state"]["2"] == {}
    assert edit(path, set_values={"epoch": 4, "a.b.c": nested}).how == "unchanged"
    assert edit(path, set_values={"epoch": True}).set == ("epoch",)
    assert edit(path, set_values={"optimizer.state.2.x": 1}).set == ("optimizer.state.2.x",)
    assert tz.load(path)["optimizer"]["state"]["2"] == {"x": 1}


def test_set_with_other_rules(path: Path) -> None:
    """All go by the names before the edit; what is dropped can be set anew."""
    edit(
        path,
        rename={"epoch": "step", "model": "net"},
        drop="optimizer",
        set_values={"epoch": 9, "optimizer": None, "model.version": 2},
    )
    loaded = tz.load(path)
    assert list(loaded) == ["net", "groups", "step", "optimizer"]
    assert (loaded["step"], loaded["optimizer"], loaded["net"]["version"]) == (9, None, 2)


def test_the_given_value_is_copied(path: Path) -> None:
    """A value that is deep, or in itself, is refused."""
    value: list[Any] = []
    value.append(value)
    with pytest.raises(ValueError, match="nested more than"):
        edit(path, set_values={"x": value})


def test_root_that_is_no_dict(tmp_path: Path) -> None:
    """A bare tensor, a list, a number."""
    path = tmp_path / "m.pt"
    values: list[Any] = [np.ones(3), [np.ones(2), {"a": 1}], 7, (1, 2)]
    for value in values:
        tz.save(value, path)
        with pytest.raises(ValueError, match="cannot be set"):
            edit(path, set_values={"x": 1})
        assert edit(path, drop="nothing").how == "unchanged"
        found = edit(path, requires_grad=True, device="cuda:0")
        has_tensor = not isinstance(value, int | tuple)
        assert (found.requires_grad, found.device) == (int(has_tensor), int(has_tensor))
        assert plain(tz.load(path)) == plain(value)
    tz.save([{"a": np.ones(1)}], path)
    edit(path, rename={"0.a": "0.b"})
    assert plain(tz.load(path)) == [{"b": ("float64", [1.0])}]
    tz.save({}, path)
    edit(path, set_values={"x": 1})
    assert tz.load(path) == {"x": 1}


# -- marks of tensors ------------------------------------------------------------------------------


def _kinds() -> dict[str, Any]:
    return {
        "plain": np.ones(2, np.float32),
        "int": np.ones(2, np.int64),
        "complex": np.ones(2, np.complex64),
        "parameter": Parameter(np.ones(2, np.float32)),
        "frozen": Parameter(np.ones(2, np.float32), False),
        "ints": Parameter(np.ones(2, np.int8), False),
        "meta": MetaTensor("float32", (2,)),
        "sparse": SparseTensor("sparse_coo", np.zeros((1, 2), np.int64), np.ones(2), (3,)),
        "quantized": QuantizedTensor(np.array([3, 4], "uint8"), 0.5, 3),
    }


def test_requires_grad(tmp_path: Path) -> None:
    """Of floating and complex tensors, in and outside of Parameters; others stay."""
    path = tmp_path / "m.pt"
    tz.save(_kinds(), path)
    assert _gradients_of(path) == {"parameter"}
    assert edit(path, requires_grad=True).requires_grad == 4
    assert _gradients_of(path) == {"plain", "complex", "parameter", "frozen", "meta"}
    found = edit(path, requires_grad=[("p*", False), ("frozen", False), ("int*", True)])
    assert found.requires_grad == 3
    assert found.unused == ("the requires_grad rule 'int*' matches no floating tensor",)
    assert _gradients_of(path) == {"complex", "meta"}
    assert edit(path, requires_grad=False).requires_grad == 2
    assert _gradients_of(path) == set()
    assert edit(path, requires_grad=False).how == "unchanged"


def _gradients_of(path: Path) -> set[str]:
    with tz.lazy_load(path) as checkpoint:
        return {name for name, value in checkpoint.root.items() if value.requires_grad}


def _locations(path: Path) -> dict[str, str]:
    with tz.lazy_load(path) as checkpoint:
        return {
            name: value.spec.storage.location
            for name, value in checkpoint.items()
            if isinstance(value, tz.LazyTensor)
        }


def test_device(path: Path) -> None:
    """The tag of a storage, which all its views have."""
    found = edit(path, device="cuda")
    assert found.device == 5
    assert set(_locations(path).values()) == {"cuda:0"}
    found = edit(path, device=[("model.*", "cuda:1"), ("nothing", "cpu"), ("opt*", "cpu")])
    assert found.device == 5
    assert found.unused == ("the device rule 'nothing' matches no tensor",)
    assert _locations(path) == {
        "model.head.weight": "cuda:1", "model.head.bias": "cuda:1", "model.steps": "cuda:1",
        "model.tied": "cuda:1", "optimizer.state.0.m": "cpu", "optimizer.state.1.m": "cpu",
    }  # fmt: skip
    assert edit(path, device="cpu", drop="optimizer").device == 3
    assert edit(path, device="cpu").how == "unchanged"
    assert plain(tz.load(path)["model"]) == plain(tree()["model"])


def test_devices_that_torch_knows() -> None:
    """The tags that it writes."""
    assert [parse_device(name) for name in ("mps", "xpu", "hpu:3", "mtia:0")] == [
        "mps", "xpu:0", "hpu:3", "mtia:0",
    ]  # fmt: skip
    for name in ("", "cuda:", "cuda:-1", "mps:0", "CUDA", "cuda:0 ", "cuda:\u0660"):
        with pytest.raises(ValueError, match="torch restores no storage"):
            parse_device(name)


def test_foreign_objects_stay(tmp_path: Path) -> None:
    """Also where what is inside them is renamed, by the names that `Checkpoint` gives."""
    path = tmp_path / "m.pt"
    module = ForeignObject(
        "net", "Model", (), how="new",
        state={"_parameters": {"w": Parameter(np.ones(2))}, "_buffers": {"b": np.zeros(2)},
               "_modules": {"sub": ForeignObject("net", "Sub", (), how="new", state={"x": 1})},
               "training": True},
    )  # fmt: skip
    with quiet():
        tz.save({"model": module, "step": 1}, path)
    # Without a warning: torch refused it before.
    found = edit(path, rename={"model.w": "model.v", "model.sub.x": "model.sub.y"})
    assert len(found.renamed) == 2
    state = tz.load(path)["model"].state
    assert list(state["_parameters"]) == ["v"]
    assert state["_modules"]["sub"].state == {"y": 1}
    assert state["training"] is True


# -- the file --------------------------------------------------------------------------------------


def test_result(path: Path) -> None:
    """A frozen dataclass of plain values."""
    found = edit(path, rename={"epoch": "step"})
    assert type(found) is Edited
    assert json.loads(json.dumps(dataclasses.asdict(found)))["path"] == str(path)
    with pytest.raises(dataclasses.FrozenInstanceError):
        found.nbytes = 0  # type: ignore[misc]


def test_dry_run(path: Path) -> None:
    """The same is said, and nothing done; it needs no right to write."""
    before = path.read_bytes()
    rules: dict[str, Any] = {"rename": {"epoch": "step"}, "drop": "optimizer"}
    path.chmod(0o400)
    told = edit(path, dry_run=True, **rules)
    assert path.read_bytes() == before
    path.chmod(0o600)
    assert edit(path, **rules) == told


def test_nothing_to_change(path: Path) -> None:
    """Nothing is written."""
    before = path.read_bytes(), path.stat().st_mtime_ns
    for rules in ({}, {"rename": {"epoch": "epoch"}}, {"drop": "x"}, {"device": "cpu"}):
        assert edit(path, **rules).how == "unchanged"
    assert (path.read_bytes(), path.stat().st_mtime_ns) == before


def test_the_new_structure_is_what_save_writes(path: Path) -> None:
    """The pickle that stands at the end is that of the edited object; the rest does not move."""
    before = path.read_bytes()
    edit(path, rename={"model": "net"}, set_values={"epoch": 4})
    data = path.read_bytes()
    assert data[: len(before) - 22] == before[:-22]
    archive = archive_of(path)
    with tz.lazy_load(path) as checkpoint:
        structure = Structure(checkpoint.root, StorageKeys(), place_arrays)
    assert archive.read("data.pkl") == structure.pickle
    # All is what torch's writer would have put at that place.
    offset = archive.entry("data.pkl").header_offset
    assert offset == len(before)
    sink = BytesSink()
    writer = ZipWriter(sink, "m", start=offset)
    writer.write_record("data.pkl", structure.pickle)
    writer.write_record(".data/serialization_id", archive.read(".data/serialization_id"))
    writer.flush()
    assert data[offset:].startswith(sink.data)
    rows = dict(zip(archive, archive.rows(), strict=True))
    old = ZipReader(open_source(io.BytesIO(before)), tz.Limits())
    for name, row in zip(old, old.rows(), strict=True):
        assert (rows[name] == row) == (name not in ("data.pkl", ".data/serialization_id"))
    assert list(rows) == list(old)


def test_serialization_id(path: Path) -> None:
    """It is that of a file with these names and CRCs, so it is another one each time."""

    def identity() -> bytes:
        return archive_of(path).read(".data/serialization_id")

    first = identity()
    edit(path, set_values={"epoch": 4})
    second = identity()
    edit(path, set_values={"epoch": 3})
    assert second != first
    assert identity() == first  # the same pickle again
    assert first.isdigit()


def test_inode_mode_and_symlinks(path: Path, tmp_path: Path) -> None:
    """All of them stay, and a symlink is followed."""
    path.chmod(0o640)
    link = tmp_path / "link.pt"
    link.symlink_to(path)
    before = path.stat()
    edit(link, set_values={"epoch": 4})
    after = path.stat()
    assert (after.st_ino, after.st_mode) == (before.st_ino, before.st_mode)
    edit(link, compact=True)
    assert link.is_symlink()
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert tz.load(path)["epoch"] == 4


def test_what_is_open_keeps_its_tensors(path: Path) -> None:
    """A lazy checkpoint, a mapping, and what they read later."""
    lazy = tz.lazy_load(path)
    mapped = tz.load(path, mmap=True)
    edit(path, drop=["model.head.weight", "model.tied", "optimizer"])
    edit(path, set_values={"epoch": 5})
    assert plain(mapped) == plain(tree())
    assert plain(lazy.root) == plain(tree())
    lazy.close()


def test_two_editors(path: Path) -> None:
    """The second is told so at once."""
    before = path.read_bytes()
    with InPlaceFile(path), pytest.raises(OSError, match="edited by another process"):
        edit(path, drop="epoch")
    assert path.read_bytes() == before
    assert edit(path, drop="epoch").how == "appended"


@pytest.mark.parametrize("compact", [False, True])
def test_the_file_changes_meanwhile(path: Path, compact: bool) -> None:
    """What was read must be what is written to."""
    other = path.with_suffix(".other")
    tz.save({"other": 1}, other)

    def replaces(name: str) -> str:
        if other.exists():
            other.replace(path)
        return name

    with pytest.raises(tz.FormatError, match="replaced or changed"):
        edit(path, rename=replaces, drop="epoch", compact=compact)
    assert tz.load(path) == {"other": 1}

    def appends(name: str) -> str:
        with path.open("ab") as file:
            file.write(b"x")
        return f"{name}.x"

    with pytest.raises(tz.FormatError, match="replaced or changed"):
        edit(path, rename=appends, compact=compact)


def test_files_that_are_none(tmp_path: Path) -> None:
    """Folders, file objects, what is not there or may not be written."""
    with pytest.raises(IsADirectoryError):
        edit(tmp_path, drop="x")
    with pytest.raises(FileNotFoundError):
        edit(tmp_path / "none.pt", drop="x")
    with pytest.raises(TypeError, match="path"):
        edit(io.BytesIO(), drop="x")  # type: ignore[arg-type]
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    with pytest.raises(OSError, match="regular"):
        edit(fifo, drop="x")
    if os.geteuid():
        path = tmp_path / "m.pt"
        tz.save({"x": 1}, path)
        path.chmod(0o400)
        with pytest.raises(PermissionError):
            edit(path, drop="x")


@pytest.mark.parametrize("name", ["views-legacy.pt", "script.pt", "m.safetensors"])
def test_other_formats(tmp_path: Path, name: str) -> None:
    """They are named, with what to do."""
    path = tmp_path / name
    if name.endswith(".pt"):
        shutil.copy(b.GOLDEN / name, path)
    else:
        tz.save({"a": np.ones(2)}, tmp_path / "m.pt")
        tz.convert(tmp_path / "m.pt", path)
    before, count = path.read_bytes(), descriptors()
    with pytest.raises(tz.UnsupportedError, match="torchzip convert"):
        edit(path, drop="x")
    assert path.read_bytes() == before
    assert descriptors() == count


def _zipped_again(path: Path, compression: int, comment: bytes = b"") -> None:
    path.write_bytes(zipped_again(path.read_bytes(), compression))
    with zipfile.ZipFile(path, "a") as archive:
        archive.comment = comment


@pytest.mark.parametrize(
    "change",
    [
        lambda path: _zipped_again(path, zipfile.ZIP_STORED),
        lambda path: _zipped_again(path, zipfile.ZIP_DEFLATED),
        lambda path: _zipped_again(path, zipfile.ZIP_STORED, b"a comment"),
        lambda path: path.write_bytes(path.read_bytes() + b"tail"),
    ],
    ids=["stored", "deflated", "with a comment", "with a tail"],
)
def test_archives_that_cannot_grow(path: Path, change: Callable[[Path], Any]) -> None:
    """They are rewritten, all or nothing, and that is said."""
    change(path)
    before = path.read_bytes()
    told = edit(path, rename={"epoch": "step"}, dry_run=True)
    assert path.read_bytes() == before
    found = edit(path, rename={"epoch": "step"})
    assert found == told
    assert (found.how, found.nbytes, found.appended_nbytes) == ("rewritten", path.stat().st_size, 0)
    assert "rewritten" in found.notes[0]
    expected = tree()
    expected["step"] = expected.pop("epoch")
    assert plain(tz.load(path)) == plain(expected)
    assert edit(path, drop="step").how == "appended"


def test_zeros_behind_the_archive(path: Path) -> None:
    """They are what a power cut may leave, and go."""
    before = path.read_bytes()
    path.write_bytes(before + bytes(5000))
    assert edit(path, set_values={"epoch": 4}).how == "appended"
    assert path.stat().st_size < len(before) + 5000


def test_files_without_some_records(tmp_path: Path) -> None:
    """Older files have no serialization id, alignment or CRCs; nothing is added."""
    members = b.members_of(b.stream(b.dict_of({"w": b.tensor(), "s": 3})))
    path = tmp_path / "m.pt"
    path.write_bytes(b.build_zip(members, b.End(zip64=True)))
    names = records(path)
    found = edit(path, rename={"w": "v"})
    assert (found.how, records(path)) == ("appended", names)
    assert list(tz.load(path)) == ["v", "s"]
    tz.save(tree(), path, crc32=False, alignment=4096)
    assert edit(path, drop="epoch").how == "appended"
    archive = archive_of(path)
    assert archive.data_offset("data.pkl") % 4096 == 0
    assert archive.entry("data.pkl").crc
    assert "epoch" not in tz.load(path)


def test_byte_order_stays(tmp_path: Path) -> None:
    """A big-endian file is one afterwards."""
    data = np.arange(4, dtype=">f4").tobytes()
    members = b.members_of(b.stream(b.dict_of({"w": b.tensor()})), {"0": data}, byteorder=b"big")
    path = tmp_path / "m.pt"
    path.write_bytes(b.build_zip(members, b.End(zip64=True)))
    before = plain(tz.load(path))
    edit(path, set_values={"x": 1})
    assert plain(tz.load(path)) == {**before, "x": 1}
    assert archive_of(path).read("byteorder") == b"big"


def test_a_text_like_the_end_of_an_archive(path: Path) -> None:
    """What would make the file ambiguous is not appended."""
    text = (b"PK\5\6" + bytes(18)).decode("latin-1")
    assert edit(path, set_values={"x": text}).how == "appended"  # leads nowhere
    assert tz.load(path)["x"] == text


# -- what it costs ---------------------------------------------------------------------------------


class _Counting:
    """Stands for ``os``, and counts what is read and written."""

    def __init__(self) -> None:
        self.calls = self.read = self.written = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    def pread(self, descriptor: int, nbytes: int, offset: int) -> bytes:
        data = os.pread(descriptor, nbytes, offset)
        self.calls, self.read = self.calls + 1, self.read + len(data)
        return data

    def pwrite(self, descriptor: int, data: Any, offset: int) -> int:
        done = os.pwrite(descriptor, data, offset)
        self.calls, self.written = self.calls + 1, self.written + done
        return done

    def fsync(self, descriptor: int) -> None:
        self.calls += 1


def write_sparse(path: Path, count: int, nbytes: int) -> None:
    """Write a checkpoint whose storages are holes."""
    file: Any = HoleyFile(path)
    zeros = {f"layers.{n}.weight": np.zeros(nbytes // 4, np.float32) for n in range(count)}
    tz.save(zeros, file, crc32=False)
    file.close()


def test_cost_of_5_gb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some KB are read and written, in some calls; and that past 4 GiB, too."""
    path = tmp_path / "m.pt"
    write_sparse(path, 100, 50_000_000)
    size = path.stat().st_size
    assert size > 5_000_000_000
    if path.stat().st_blocks * 512 > size // 2:
        pytest.skip("this file system has no sparse files")
    counting = _Counting()
    for module in ("in_place", "new_file", "source"):
        monkeypatch.setattr(f"torchzip.files.{module}.os", counting)
    found = edit(path, rename=[("^layers", "blocks")], drop="layers.7.*")
    assert (found.how, found.dropped_nbytes) == ("appended", 50_000_000)
    assert counting.calls < 60
    assert counting.read < 500_000
    assert counting.written < found.appended_nbytes + 200 < 50_000
    with tz.lazy_load(path) as checkpoint:
        assert len(checkpoint) == 99
        assert checkpoint["blocks.99.weight"][-3:].tolist() == [0, 0, 0]
    assert edit(path, set_values={"x": 1}).how == "appended"
    archive = archive_of(path)
    assert all(archive.data_offset(name) for name in archive)


@pytest.mark.long
def test_many_tensors(tmp_path: Path) -> None:
    """The keys stay those that the file has, so no storage is written."""
    path = tmp_path / "m.pt"
    zeros = np.zeros((20_000, 2), np.float32)
    tz.save({f"a.{index}": row.copy() for index, row in enumerate(zeros)}, path)
    found = edit(path, rename=[("^a", "b")])
    assert len(found.renamed) == 20_000
    assert ".format_version" in records(path)
    found = edit(path, drop="b.777")
    assert ".format_version" not in records(path)
    assert len(found.notes) == 1
    assert len(tz.load(path)) == 19_999


# -- any files -------------------------------------------------------------------------------------


@pytest.mark.parametrize("golden", GOLDEN_FILES, ids=lambda path: f"{path.parent.name}-{path.name}")
def test_golden(tmp_path: Path, golden: Path) -> None:
    """Files of all releases: what is not edited stays, and so does every tensor."""
    path = tmp_path / golden.name
    shutil.copy(golden, path)
    with tz.lazy_load(path) as checkpoint:
        root, is_zip = checkpoint.root, checkpoint.format == "zip"
    rules: dict[str, Any] = {"device": "cuda:1"}
    if isinstance(root, dict):
        rules = {"set_values": {"zz": 1}}
    if not is_zip:
        with pytest.raises(tz.UnsupportedError):
            edit(path, **rules)
        return
    assert edit(path, **rules).how in ("appended", "unchanged")
    found = diff(golden, path)
    assert [change.name for change in found.values] == (["zz"] if isinstance(root, dict) else [])
    assert (found.changed, found.added, found.removed, found.renamed) == ((), (), (), ())


def _rebuilt(data: bytes) -> bytes | None:
    """Return an archive with the same records and zip64 end records; None where that fails."""
    try:
        archive = ZipReader(open_source(io.BytesIO(data)), tz.Limits())
        members = [
            b.Member(name=f"{archive.root}/{name}".encode("latin-1"), data=archive.read(name))
            for name in archive
        ]
    except (tz.TorchZipError, UnicodeError):
        return None
    return b.build_zip(members, b.End(zip64=True))


@pytest.mark.long
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_attacks(tmp_path: Path) -> None:
    """Any bytes are edited or refused, by the errors of the reader; what was read is read again."""
    path = tmp_path / "m.pt"
    done = 0
    for attack in ATTACKS[::6]:
        data = _rebuilt(attack.data) or attack.data
        path.write_bytes(data)
        try:
            found = edit(path, device="cuda:1", requires_grad=True)
        except (tz.TorchZipError, OSError):
            assert path.read_bytes() == data, attack.name
            continue
        if attack.error is None and found.how != "unchanged":
            tz.load(path)
            done += 1
    assert done > 10


# -- any object and any rules ----------------------------------------------------------------------

_KEYS = st.sampled_from(["a", "b", "c.d", "weight", "x y", "\u00e9", 0, 7, ""])
_LEAVES = st.one_of(
    st.none(), st.booleans(), st.integers(-5, 1 << 40), st.text(max_size=3),
    st.integers(0, 7).map(lambda seed: np.arange(seed, dtype=np.float32)),
    st.integers(1, 3).map(lambda seed: np.full((seed, 2), seed, np.int64)),
    st.integers(1, 3).map(lambda seed: Parameter(np.full(seed, seed, np.float64))),
)  # fmt: skip
_TREES = st.recursive(
    _LEAVES,
    lambda inner: st.one_of(
        st.dictionaries(_KEYS, inner, max_size=4), st.lists(inner, max_size=3),
        st.dictionaries(_KEYS, inner, max_size=3).map(OrderedDict),
    ),
    max_leaves=12,
)  # fmt: skip


def _paths(value: Any, prefix: str = "") -> list[tuple[str, Any, bool]]:
    """Return the paths of a tree: each with its value, and whether it is an item of a dict."""
    found = []
    pairs = list(value.items()) if isinstance(value, dict) else []
    if isinstance(value, list):
        pairs = list(enumerate(value))
    for key, item in pairs:
        found.append((f"{prefix}{key}", item, isinstance(value, dict)))
        found += _paths(item, f"{prefix}{key}.")
    return found


def _expected(value: Any, rules: dict[str, Any], prefix: str = "") -> Any:
    """Apply rules as the documentation has them, by another way than torchzip."""
    if isinstance(value, list):
        return [_expected(item, rules, f"{prefix}{at}.") for at, item in enumerate(value)]
    if not isinstance(value, dict):
        wanted = rules["requires_grad"].get(prefix[:-1])
        if wanted is not None and isinstance(value, Parameter):
            return Parameter(value.data, wanted)
        return value
    made = type(value)()
    for key, item in value.items():
        path = f"{prefix}{key}"
        if path in rules["drop"]:
            continue
        new = rules["rename"].get(path)
        key = key if new is None else new[len(prefix) :]
        if path in rules["set_values"]:
            made[key] = rules["set_values"][path]
        else:
            made[key] = _expected(item, rules, f"{path}.")
    return made


@given(_TREES.filter(lambda tree: isinstance(tree, dict)), st.data())
def test_any_edit(tmp_path_factory: pytest.TempPathFactory, root: Any, data: st.DataObject) -> None:
    """The file holds what the rules make of the object, by a plain implementation of them."""
    paths = _paths(root)
    counts = [path for path, _, _ in paths]
    items = [(path, item) for path, item, is_item in paths if is_item and counts.count(path) == 1]
    names = [path for path, _ in items]
    chosen = data.draw(st.lists(st.sampled_from(names), unique=True)) if names else []
    rules: dict[str, Any] = {"rename": {}, "drop": [], "set_values": {}, "requires_grad": {}}
    for number, path in enumerate(chosen):
        item = dict(items)[path]
        what = data.draw(st.sampled_from(["rename", "drop", "set", "grad"]))
        if what == "rename":
            # The last key, as the paths of its containers say.
            keys = [each for each in ["", *counts] if path.startswith(f"{each}.") or not each]
            parent = max((each for each in keys if each != path), key=len, default="")
            if _is_within(root, parent, path):
                rules["rename"][path] = (f"{parent}." if parent else "") + f"new{number}"
        elif what == "drop":
            rules["drop"].append(path)
        elif what == "set" and not isinstance(item, dict | list | np.ndarray | Parameter):
            rules["set_values"][path] = data.draw(st.sampled_from([None, 1, "x", [1, {"a": 2}]]))
        elif what == "grad" and isinstance(item, Parameter):
            rules["requires_grad"][path] = data.draw(st.booleans())
    # What is set below something that is dropped would be added elsewhere.
    gone = tuple(f"{path}." for path in rules["drop"])
    rules["set_values"] = {
        path: value
        for path, value in rules["set_values"].items()
        if path not in rules["drop"] and not path.startswith(gone or ("\0",))
    }
    file = tmp_path_factory.mktemp("any") / "m.pt"
    tz.save(root, file)
    found = edit(
        file,
        rename=rules["rename"],
        drop=list(map(_literal, rules["drop"])),
        set_values=rules["set_values"],
        requires_grad=[(_literal(name), on) for name, on in rules["requires_grad"].items()],
    )
    assert found.how in ("appended", "unchanged")
    assert read(file) == plain(_expected(root, rules))
    edit(file, compact=True)
    assert read(file) == plain(_expected(root, rules))


def _literal(name: str) -> str:
    """Return the glob that matches one name."""
    return "".join(f"[{letter}]" for letter in name)


def _is_within(root: Any, parent: str, path: str) -> bool:
    """Return whether the item of a path is directly in the container of another."""
    found = root if not parent else {each: item for each, item, _ in _paths(root)}.get(parent)
    rest = path[len(parent) + 1 :] if parent else path
    return isinstance(found, dict) and rest in map(str, found)
