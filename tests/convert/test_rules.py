"""Rules: what they take, how they rename, and what they say of a rule that matches nothing."""

from __future__ import annotations

import io
from concurrent.futures import Executor, ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import torchzip as tz
from torchzip.container.hub_names import shard_name
from torchzip.convert.report import ConvertReport
from torchzip.convert.rules import Rules
from torchzip.convert.targets import parse_size, parse_target
from torchzip.types import ForeignObject, Parameter


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """Write a small checkpoint with a training state around the model."""
    path = tmp_path / "run.ckpt"
    weight = np.arange(6, dtype=np.float32).reshape(2, 3)
    state = {
        "model.a.weight": weight,
        "model.a.bias": np.ones(2, np.float32),
        "model.b.weight": weight,  # tied
        "model.ids": np.arange(3),
    }
    momentum = np.full((2, 3), 0.5, np.float32)
    optimizer = {"state": {0: {"exp_avg": momentum, "step": 7}}, "lr": 0.1}
    tz.save({"state_dict": state, "optimizer": optimizer, "epoch": 3}, path)
    return path


def convert(model: Path, **rules: Any) -> tuple[Any, ConvertReport]:
    target = model.with_name("out.pt")
    report = tz.convert(model, target, overwrite=True, **rules)
    return tz.load(target), report


def names(model: Path, **rules: Any) -> list[str]:
    convert(model, **rules)
    with tz.lazy_load(model.with_name("out.pt")) as ckpt:
        return list(ckpt)


def test_exclude_keeps_what_is_around(model: Path) -> None:
    """Tensors are taken out of their dicts; everything else stays."""
    loaded, report = convert(model, exclude=["optimizer.*", "*.bias"])
    assert list(loaded["state_dict"]) == ["model.a.weight", "model.b.weight", "model.ids"]
    assert loaded["optimizer"] == {"state": {0: {"step": 7}}, "lr": 0.1}
    assert loaded["epoch"] == 3
    assert report.tensors == 3
    assert report.lost == ()


def test_include(model: Path) -> None:
    """A tensor has to match one of them, and no exclusion."""
    assert names(model, include="state_dict.*", exclude="*.ids") == [
        "state_dict.model.a.weight", "state_dict.model.a.bias", "state_dict.model.b.weight",
    ]  # fmt: skip


def test_rename_in_its_dict(model: Path) -> None:
    """A name that stays below the same dict is a new key there, in the same place."""
    loaded, report = convert(
        model, rename=[(r"\.model\.", "."), (r"^state_dict\.b", "state_dict.c")]
    )
    assert list(loaded["state_dict"]) == ["a.weight", "a.bias", "c.weight", "ids"]
    assert loaded["epoch"] == 3
    assert report.lost == ()
    assert np.shares_memory(loaded["state_dict"]["a.weight"], loaded["state_dict"]["c.weight"])


def test_rename_to_the_top(model: Path) -> None:
    """Names that leave their dict make a flat dict; what was around is listed."""
    loaded, report = convert(
        model, include="state_dict.*", rename=[(r"^state_dict\.model\.(.*)", r"\1")]
    )
    assert list(loaded) == ["a.weight", "a.bias", "b.weight", "ids"]
    assert sorted(report.lost) == ["epoch", "optimizer.lr", "optimizer.state.0.step"]
    assert np.shares_memory(loaded["a.weight"], loaded["b.weight"])


def test_rename_by_table_and_function(model: Path) -> None:
    """A dict has whole names; None drops a tensor, in both forms."""
    table = {"state_dict.model.ids": "state_dict.ids", "state_dict.model.a.bias": None}
    loaded, _ = convert(model, rename=table)
    assert list(loaded["state_dict"]) == ["model.a.weight", "model.b.weight", "ids"]

    def upper(name: str) -> str | None:
        return None if "optimizer" in name else name.upper()

    assert names(model, rename=upper)[0] == "STATE_DICT.MODEL.A.WEIGHT"


def test_two_tensors_of_one_name(model: Path) -> None:
    """The error shows both; nothing is written."""
    for suffix in (".pt", ".safetensors"):
        with pytest.raises(
            ValueError, match=r"'state_dict.model.a.weight' and 'state_dict.model.b.weight'.*'x'"
        ):
            tz.convert(model, model.with_name("o" + suffix), rename=[(r".*weight$", "x")])
    assert sorted(path.name for path in model.parent.iterdir()) == [model.name]


def test_a_name_that_something_else_has(tmp_path: Path, path: Path) -> None:
    """A key that is taken by what is no tensor is not overwritten in silence."""
    tz.save({"a": np.ones(2), "b": 5}, path)
    report = tz.convert(path, tmp_path / "o.pt", rename={"a": "b"})
    assert tz.load(tmp_path / "o.pt")["b"].tolist() == [1, 1]
    assert report.lost == ("b",)


def test_names_in_lists_and_shared_dicts(tmp_path: Path) -> None:
    """What is in a list, or in a dict that has two names, can be renamed in a flat dict only."""
    shared = {"w": np.ones(2)}
    tz.save({"list": [np.zeros(1), np.ones(1)], "x": shared, "y": shared}, tmp_path / "m.pt")
    tz.convert(tmp_path / "m.pt", tmp_path / "a.pt", exclude="list.0")
    assert list(tz.load(tmp_path / "a.pt")) == ["list.1", "x.w", "y.w"]
    tz.convert(tmp_path / "m.pt", tmp_path / "b.pt", rename={"x.w": "x.v"})
    assert list(tz.load(tmp_path / "b.pt")) == ["list.0", "list.1", "x.v", "y.w"]
    loaded = tz.load(tmp_path / "b.pt")
    assert np.shares_memory(loaded["x.v"], loaded["y.w"])


@pytest.mark.filterwarnings("ignore:torch.load")
def test_a_dict_that_an_object_shares(tmp_path: Path) -> None:
    """A tensor that is left out under one of its names is there under the other."""
    path, shared = tmp_path / "m.pt", {"w": np.ones(3), "b": np.zeros(2)}
    trainer = ForeignObject("lib", "Trainer", (), state={"sd": shared})
    tz.save({"sd": shared, "trainer": trainer}, path)
    assert names(path, exclude="sd.w") == ["sd.b", "trainer.sd.w", "trainer.sd.b"]


def test_dtype_goes_by_the_old_name(model: Path) -> None:
    """The rules look at the names that `ls` shows."""
    _, report = convert(
        model, dtype=[("*.a.*", "float16"), ("*", "bfloat16")], rename=[(r"\.a\.", ".z.")]
    )
    with tz.lazy_load(report.target) as ckpt:
        assert ckpt["state_dict.model.z.bias"].torch_dtype == "float16"
        assert ckpt["optimizer.state.0.exp_avg"].torch_dtype == "bfloat16"
        assert ckpt["state_dict.model.ids"].torch_dtype == "int64"


@pytest.mark.parametrize("target", ["o.pt", "o.safetensors", "o.bin.index.json"])
def test_a_tie_with_two_dtypes(tmp_path: Path, path: Path, target: str) -> None:
    """Each name has what the rules say of it, be it one object there or two over a storage."""
    weight = np.linspace(-1, 1, 12, dtype=np.float32).reshape(3, 4)
    one = Parameter(weight)
    tz.save(
        {"embed": one, "net": {"head": [one], "copy": one}, "tail": weight[:], "last": weight}, path
    )
    rules = [("*head.0", "float32"), ("last", "float64"), ("tail", "float64"), ("*", "float16")]
    report = tz.convert(path, tmp_path / target, dtype=rules)
    if target == "o.pt":
        assert report.lost == ()
    made = tmp_path / "back.pt"
    tz.convert(report.target, made, overwrite=True)
    with tz.lazy_load(made) as checkpoint:
        found = {name: tensor.torch_dtype for name, tensor in checkpoint.items()}
        assert found == {
            "embed": "float16", "net.head.0": "float32", "net.copy": "float16", "tail": "float64",
            "last": "float64",
        }  # fmt: skip
        assert all(
            np.array_equal(tensor.numpy(), weight.astype(tensor.dtype))
            for tensor in checkpoint.values()
        )
        storages = {name: id(tensor.spec.storage) for name, tensor in checkpoint.items()}
        assert storages["embed"] == storages["net.copy"]
        assert storages["tail"] == storages["last"]
        assert isinstance(checkpoint.root["net"]["head"][0], Parameter)


def test_a_tie_in_a_tuple_that_cannot_part(tmp_path: Path) -> None:
    """What stays one tensor because its place cannot be changed is said."""
    weight = np.ones(3, np.float32)
    tz.save({"a": weight, "pair": (weight, 3)}, tmp_path / "m.pt")
    report = tz.convert(
        tmp_path / "m.pt", tmp_path / "o.pt", dtype=[("pair.*", "float64"), ("*", "float16")]
    )
    assert report.lost == ("pair.0: a dtype of its own; it is one tensor with a, float16",)
    assert tz.load(tmp_path / "o.pt")["pair"][0].dtype == np.float16


@pytest.mark.parametrize(
    ("rules", "line"),
    [
        ({"dtype": [("*.nothing", "float16")]}, "the dtype rule '*.nothing' matches no"),
        ({"dtype": [("*.ids", "float16")]}, "dtype rule '*.ids' matches no floating tensor"),
        ({"include": ["state_dict.*", "model.*"]}, "include rule 'model.*' matches no tensor"),
        ({"exclude": "model.*"}, "exclude rule 'model.*' matches no tensor"),
        ({"rename": [("^model", "x")]}, "rename rule '^model' matches no tensor"),
        ({"rename": {"model.a": "b"}}, "rename rule 'model.a' matches no tensor"),
    ],
)  # fmt: skip
def test_rules_without_use(model: Path, rules: Any, line: str) -> None:
    """A rule that matches nothing is a warning, and in the report."""
    with pytest.warns(UserWarning, match="rule|renamed") as caught:
        _, report = convert(model, **rules)
    assert [str(warning.message) for warning in caught] == list(report.unused)
    assert len(report.unused) == 1
    assert line in report.unused[0]


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ({"dtype": object}, "a dtype is a string such as 'bfloat16', or .* of numpy, not a"),
        ({"dtype": 16}, "a dtype is a string such as 'bfloat16', or .*, not 16"),
        ({"dtype": [("*", np.dtype("V2"))]}, "a dtype is a string such as 'bfloat16', or .*, not"),
        ({"dtype": ["float16"]}, "dtype takes one dtype, or a list of .*, and 'float16' is in it"),
        ({"rename": "a=>b"}, "rename takes a list of .regex, replacement., not str"),
        ({"rename": [("a", None)]}, "rename takes pairs .* of strings, not .str, NoneType"),
        ({"rename": [(b"a", b"b")]}, "rename takes pairs .* of strings, not .bytes, bytes"),
    ],
)
def test_rules_of_another_form(tmp_path: Path, rules: Any, message: str) -> None:
    """Misuse is a TypeError that says what was expected."""
    with pytest.raises(TypeError, match=message):
        tz.convert(tmp_path / "m.pt", tmp_path / "o.pt", **rules)


@pytest.mark.parametrize(
    "dtype",
    ["float16", "torch.half", np.float16, np.dtype("f2"), {"*": "float16"}, [("*", np.float16)]],
    ids=str,
)
def test_every_way_to_say_a_dtype(model: Path, dtype: Any) -> None:
    """Names, dtypes of numpy, one for all or by globs."""
    _, report = convert(model, dtype=dtype)
    floats = {row.to_dtype for row in report.rows if row.from_dtype.startswith("float")}
    assert floats == {"float16"}


def test_dtypes_of_others(model: Path) -> None:
    """ml_dtypes has types, and torch objects."""
    _, report = convert(model, dtype=ml_dtypes.bfloat16)
    assert "bfloat16" in {row.to_dtype for row in report.rows}
    torch_dtype = type("dtype", (), {"__module__": "torch", "__str__": lambda self: "torch.half"})
    _, report = convert(model, dtype=torch_dtype())
    assert "float16" in {row.to_dtype for row in report.rows}


def test_unused_names_are_in_the_order_of_the_rules(model: Path) -> None:
    """Not in that of their hashes, which is another in each process."""
    names = [f"no.{index}" for index in range(9)]
    with pytest.warns(UserWarning, match="matches no tensor"):
        _, report = convert(model, rename=dict.fromkeys(names, "x"))
    assert [line.split("'")[1] for line in report.unused] == names


def test_dtype_for_all_is_no_rule_without_use(tmp_path: Path) -> None:
    """A single dtype is for whatever there is."""
    tz.save({"ids": np.arange(3)}, tmp_path / "m.pt")
    assert tz.convert(tmp_path / "m.pt", tmp_path / "o.pt", dtype="bfloat16").unused == ()


@pytest.mark.parametrize(
    ("rules", "error"),
    [
        ({"dtype": "int8"}, ValueError),
        ({"dtype": [("*", "floaty")]}, ValueError),
        ({"dtype": np.int8}, ValueError),
        ({"dtype": "q8_0"}, ValueError),
        ({"rename": [("(", "x")]}, ValueError),
        ({"rename": [("a", r"\1")]}, ValueError),
        ({"rename": "a"}, TypeError),
        ({"rename": lambda name: 5}, TypeError),
        ({"include": [5]}, TypeError),
        ({"jobs": 0}, ValueError),
        ({"jobs": "2"}, TypeError),
        ({"jobs": 2, "executor": object()}, ValueError),
        ({"max_shard_size": "big"}, ValueError),
        ({"max_shard_size": 0}, ValueError),
        ({"max_shard_size": 1.5}, TypeError),
        ({"dtype": [("*", 16)]}, TypeError),
        ({"rename": [(1, "x")]}, TypeError),
        ({"rename": [("a", None)]}, TypeError),
        ({"executor": 5}, TypeError),
        ({"executor": ThreadPoolExecutor}, TypeError),
        ({"executor": Executor}, TypeError),
        ({"executor": ThreadPoolExecutor.submit}, TypeError),
        ({"executor": SimpleNamespace(submit=print)}, TypeError),
        ({"map": 5}, TypeError),
        ({"progress": 5}, TypeError),
    ],
)
def test_wrong_rules(model: Path, rules: Any, error: type[Exception]) -> None:
    """They are refused before anything is written."""
    with pytest.raises(error):
        convert(model, **rules)
    assert sorted(path.name for path in model.parent.iterdir()) == [model.name]


@pytest.mark.parametrize(
    ("size", "nbytes"),
    [("5GB", 5 * 10**9), ("200 mb", 2 * 10**8), ("1KiB", 1024), ("10", 10), ("1.5kB", 1500),
     ("3TB", 3 * 10**12), (123, 123), ("7B", 7)],
)  # fmt: skip
def test_sizes(size: int | str, nbytes: int) -> None:
    """Decimal units, as on the hub; binary ones by their names."""
    assert parse_size(size) == nbytes


def test_what_is_no_path(model: Path) -> None:
    """The destination is a path, the source may be a file object: said before a byte is written."""
    bad: list[tuple[Any, Any, str]] = [
        (bytes(model), model.with_name("out.pt"), "expected a path or a binary file object"),
        (io.StringIO("x"), model.with_name("out.pt"), "expected a path or a binary file object"),
        (model, io.BytesIO(), "dst must be a path, not "),
        (model, bytes(model), "dst must be a path, not "),
    ]
    for src, dst, message in bad:
        with pytest.raises(TypeError, match=message):
            tz.convert(src, dst, overwrite=True)
    assert sorted(path.name for path in model.parent.iterdir()) == [model.name]


def test_sizes_are_exact() -> None:
    """No number is too large to be taken, or rounded to that of a float."""
    assert parse_size("9" * 400 + "GB") == int("9" * 400) * 10**9
    assert parse_size("9007199254740993") == 9007199254740993
    assert parse_size("1.0015KB") == 1001


def test_targets(tmp_path: Path) -> None:
    """A directory and an index are destinations as well as files."""
    assert parse_target(tmp_path).path == str(tmp_path / "model.safetensors")
    assert parse_target(str(tmp_path / "new") + "/").path == str(
        tmp_path / "new" / "model.safetensors"
    )
    index = parse_target(tmp_path / "pytorch_model.bin.index.json")
    assert (index.output.format, index.has_index) == ("zip", True)
    assert shard_name(index.path, 2, 3) == str(tmp_path / "pytorch_model-00002-of-00003.bin")
    with pytest.raises(ValueError, match="suffix"):
        parse_target("x.index.json")


def test_keeps_counts_each_rule() -> None:
    """A rule is used if it matches, whatever another says of the tensor."""
    rules = Rules(include=["a*", "*b"], exclude=["*c", "a*"])
    assert [rules.keeps(name) for name in ("ab", "b", "c")] == [False, True, False]
    assert rules.unused() == []
