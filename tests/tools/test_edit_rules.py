"""What `edit` makes of names, values and marks of tensors, and which rules it refuses."""

from __future__ import annotations

import os
import shlex
import shutil
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import torchzip as tz
from tests.saved import flipped, quiet
from tests.tools.test_edit import plain, records, tree
from torchzip.cli.main import main
from torchzip.tools import edit, verify
from torchzip.tools.edit_rules import parse_device
from torchzip.types import ForeignObject, MetaTensor, Parameter, QuantizedTensor, SparseTensor


@pytest.fixture
def path(path: Path) -> Path:
    tz.save(tree(), path)
    return path


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


def test_compact_says_what_it_keeps(path: Path) -> None:
    """Storages stay whole: rows beside a slice are counted, those of tied slices together."""
    rows = np.zeros((10, 100))
    tz.save({"a": rows[:3], "b": rows[2:5], "gone": rows, "whole": np.ones(9)}, path)
    assert edit(path).unreached_nbytes == 0  # only counted where all is written
    for is_dry in (True, False):
        found = edit(path, drop="gone", compact=True, dry_run=is_dry)
        assert found.unreached_nbytes == rows.nbytes // 2
    assert path.stat().st_size > rows.nbytes


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


def test_the_command_that_is_advised_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the file is called: what a message says to type is words of a shell."""
    monkeypatch.chdir(tmp_path)
    tz.convert({"w": np.ones(3)}, "-my model.safetensors")
    with pytest.raises(tz.UnsupportedError) as caught:
        edit("-my model.safetensors", drop="w")
    words = shlex.split(str(caught.value).partition("Convert it first: torchzip ")[2])
    assert main(words) == 0
    assert tz.load("new.pt")["w"].tolist() == [1, 1, 1]


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


def read(path: Path) -> Any:
    """Return what a file holds, Parameters as such."""
    with tz.lazy_load(path) as checkpoint:
        return plain(checkpoint.root)


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
