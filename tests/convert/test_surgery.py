"""The model out of a training checkpoint, under the names that it has without wrappers."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import torchzip as tz
from torchzip.tools import diff


def model(scale: float = 1, prefix: str = "") -> dict[str, Any]:
    """Return a state dict of two layers."""
    made = {f"layer.{n}.{kind}": np.arange(6.0) * scale + n for n in (0, 1) for kind in "wb"}
    return OrderedDict((prefix + name, array) for name, array in made.items())


def optimizer() -> dict[str, Any]:
    slots = {0: {"exp_avg": np.zeros(6), "step": np.zeros(())}, 1: {"exp_avg": np.ones(6)}}
    return {"state": slots, "param_groups": [{"lr": 0.1}]}


def converted(value: Any, folder: Path, **options: Any) -> tuple[dict[str, Any], Any]:
    """Return what is left of an object in each format, which is the same, and a report."""
    tz.save(value, folder / "a.pt")
    report = tz.convert(folder / "a.pt", folder / "b.safetensors", **options)
    assert tz.convert(folder / "a.pt", folder / "b.safetensors", dry_run=True, **options) == report
    tz.convert(folder / "a.pt", folder / "b.pt", **options)
    made = tz.load(folder / "b.pt")
    back = tz.load(folder / "b.safetensors")
    (folder / "b.pt").unlink()
    (folder / "b.safetensors").unlink()
    assert made.keys() == back.keys() | report.tied.keys()
    return made, report


def same(made: dict[str, Any], expected: dict[str, Any]) -> bool:
    return made.keys() == expected.keys() and all(
        np.array_equal(made[name], expected[name]) for name in expected
    )


@pytest.mark.parametrize(
    ("around", "way"),
    [
        (lambda m: {"state_dict": m, "epoch": 3, "optimizer_states": [optimizer()]}, "state_dict"),
        (
            lambda m: {"model_state_dict": m, "optimizer_state_dict": optimizer()},
            "model_state_dict",
        ),
        (lambda m: {"model": m, "optimizer": optimizer(), "loss": np.ones(())}, "model"),
        (lambda m: {"epoch": 3, "weights of it": m, "opt": optimizer()}, "weights of it"),
        (lambda m: {"module": m, "dp_world_size": 1, "optimizer": None}, "module"),
        (lambda m: {"run": {"state_dict": m, "step": 1}, "opt": optimizer()}, "run.state_dict"),
        (lambda m: {"model": m, "model_ema": model(2), "opt": optimizer()}, "model"),
        (lambda m: m, "the object itself"),
    ],
)
def test_weights(tmp_path: Path, around: Any, way: str) -> None:
    """The state dict of the model under its own names, wherever training loops put it."""
    made, report = converted(around(model()), tmp_path, weights=True)
    assert same(made, model())
    assert report.taken == f"4 tensors of {way}"


def test_modules_in_dicts_are_one_model(tmp_path: Path) -> None:
    """As trees of parameters of JAX are: nobody chooses among them."""
    tree = {"params": {"encoder": {"w": np.ones(3)}, "decoder": {"w": np.zeros(3)}}, "step": 1}
    made, _ = converted(tree, tmp_path, weights=True)
    assert list(made) == ["encoder.w", "decoder.w"]


def test_several_models_are_refused(tmp_path: Path) -> None:
    """Their names are listed; nothing is guessed, and nothing written."""
    tz.save({"generator": model(), "critic": model(2), "epoch": 1}, tmp_path / "a.pt")
    with pytest.raises(ValueError, match="'generator', 'critic' could each be the model"):
        tz.convert(tmp_path / "a.pt", tmp_path / "b.pt", weights=True)
    tz.save({"optimizer": optimizer()}, tmp_path / "c.pt")
    with pytest.raises(ValueError, match="no state dict"):
        tz.convert(tmp_path / "c.pt", tmp_path / "b.pt", weights=True)
    assert not (tmp_path / "b.pt").exists()


@pytest.mark.parametrize(
    ("around", "taken"),
    [
        (lambda m, e: {"model": m, "model_ema": e}, "4 tensors of model, 4 of them"),
        (lambda m, e: {"state_dict": m, "state_dict_ema": e}, "4 tensors of state_dict, 4 of"),
        (
            lambda m, e: {"model": m, "ema": {"decay": 0.9, "module": e}, "opt": optimizer()},
            "4 tensors of model, 4 of them",
        ),
    ],
)
def test_ema(tmp_path: Path, around: Any, taken: str) -> None:
    """The averaged tensors have the names of those that they are averages of."""
    made, report = converted(around(model(), model(2)), tmp_path, ema=True)
    assert same(made, model(2))
    assert report.taken.startswith(taken)


def test_buffers_beside_an_ema_stay(tmp_path: Path) -> None:
    """Only what both have is taken from the copy."""
    made, report = converted(
        {"model": model() | {"mean": np.ones(2)}, "ema": model(2)}, tmp_path, ema=True
    )
    assert same(made, {**model(2), "mean": np.ones(2)})
    assert report.taken == "5 tensors of model, 4 of them from the EMA copy"


def test_ema_of_stable_diffusion(tmp_path: Path) -> None:
    """LitEma keeps names without dots beside the model's own."""
    weights = model(prefix="model.")
    averages = {
        "model_ema." + name.removeprefix("model.").replace(".", ""): array * 3
        for name, array in weights.items()
    }
    around = {"state_dict": weights | averages | {"model_ema.decay": np.ones(())}, "step": 1}
    made, _ = converted(around, tmp_path, ema=True)
    assert same(made, {name: array * 3 for name, array in weights.items()})


def test_ema_alone(tmp_path: Path) -> None:
    """A checkpoint of averages only; counters beside them are not of the model."""
    averages = model(2, "ema_model.") | {"step": np.ones(()), "initted": np.ones(())}
    made, report = converted({"ema_model_state_dict": averages}, tmp_path, ema=True)
    assert same(made, model(2))
    assert report.taken == "4 tensors of ema_model_state_dict.ema_model, an EMA copy"


def test_no_ema(tmp_path: Path) -> None:
    """It is an error, and not the plain weights."""
    tz.save({"model": model()}, tmp_path / "a.pt")
    with pytest.raises(ValueError, match="no averaged copy"):
        tz.convert(tmp_path / "a.pt", tmp_path / "b.pt", ema=True)


def test_strip_wrappers(tmp_path: Path) -> None:
    """At every level; ``model.`` is none of them, and the object around the tensors stays."""
    names = {
        "module.model.a.weight": "model.a.weight",
        "_orig_mod.b._fsdp_wrapped_module.c._checkpoint_wrapped_module.weight": "b.c.weight",
        "_forward_module.module._orig_mod.d": "d",
        "e.module": "e.module",
        "modules.f": "modules.f",
    }
    weights = {old: np.full(3, number) for number, old in enumerate(names)}
    tz.save({"state_dict": weights, "epoch": 3}, tmp_path / "a.pt")
    tz.convert(tmp_path / "a.pt", tmp_path / "b.pt", strip_wrappers=True)
    made = tz.load(tmp_path / "b.pt")
    assert made["epoch"] == 3
    assert same(made["state_dict"], {new: weights[old] for old, new in names.items()})


def test_wrappers_that_names_need(tmp_path: Path) -> None:
    """Two names that would meet are refused."""
    tz.save({"module.a": np.ones(1), "a": np.ones(2)}, tmp_path / "a.pt")
    with pytest.raises(ValueError, match=r"'module\.a' and 'a' would both be called 'a'"):
        tz.convert(tmp_path / "a.pt", tmp_path / "b.pt", strip_wrappers=True)


def test_rules_see_the_new_names(tmp_path: Path) -> None:
    """Those of the steps that come first."""
    made, report = converted(
        {"state_dict": model(prefix="module."), "epoch": 1}, tmp_path, weights=True,
        strip_wrappers=True, include="layer.*", exclude="layer.1", rename=[("^layer", "block")],
        dtype={"layer.0.w": np.float16, "*": np.dtype("f4")},
    )  # fmt: skip
    assert {name: array.dtype.name for name, array in made.items()} == {
        "block.0.w": "float16", "block.0.b": "float32",
    }  # fmt: skip
    assert [row.source for row in report.rows] == [
        "state_dict.module.layer.0.w", "state_dict.module.layer.0.b",
    ]  # fmt: skip


def test_untie(tmp_path: Path) -> None:
    """Each name gets data of its own in every format; views of one storage too."""
    base = np.arange(12.0).reshape(3, 4)
    tree = {"a": base, "b": base, "rows": base[1:], "sub": {"columns": base.T}}
    tz.save(tree, tmp_path / "a.pt")
    report = tz.convert(tmp_path / "a.pt", tmp_path / "b.safetensors", untie=True)
    assert report.tied == {}
    assert len(tz.load(tmp_path / "b.safetensors")) == 4
    tz.convert(tmp_path / "a.pt", tmp_path / "b.pt", untie=True)
    with tz.lazy_load(tmp_path / "b.pt") as checkpoint:
        assert len({id(tensor.spec.storage) for tensor in checkpoint.values()}) == 4
        assert checkpoint.root["sub"].keys() == {"columns"}
    assert diff(tmp_path / "a.pt", tmp_path / "b.pt").is_equal


def test_pack(tmp_path: Path) -> None:
    """Bytes that nobody reaches go; views of one storage stay so, and so does the object."""
    base = np.arange(10_000.0)
    views = {"rows": base[1000:1600].reshape(60, 10), "part": base[1200:1210], "e": base[:0]}
    tz.save({"net": {**views, "other": np.ones(3)}, "all": base, "epoch": 3}, tmp_path / "a.pt")
    tz.convert(tmp_path / "a.pt", tmp_path / "b.pt", exclude="all")
    size = (tmp_path / "b.pt").stat().st_size
    assert size > base.nbytes
    report = tz.convert(tmp_path / "a.pt", tmp_path / "c.pt", exclude="all", pack=True)
    assert report.nbytes < 600 * 8 + 2500
    with tz.lazy_load(tmp_path / "c.pt") as checkpoint:
        root = checkpoint.root["net"]
        assert checkpoint.root["epoch"] == 3
        assert root["rows"].spec.storage is root["part"].spec.storage
        assert root["rows"].spec.storage.nbytes == 600 * 8
        for name, expected in views.items():
            np.testing.assert_array_equal(root[name].numpy(), expected)
    tz.convert(tmp_path / "a.pt", tmp_path / "d.pt", pack=True, dtype="float16")
    assert diff(tmp_path / "a.pt", tmp_path / "d.pt", cast=True).is_equal


def test_stack_and_unstack(tmp_path: Path) -> None:
    """Experts of each layer become one tensor, and come back."""
    experts = {
        f"layers.{layer}.experts.{i}.w": np.full((2, 3), 10.0 * layer + i)
        for i in (2, 0, 1)
        for layer in (0, 1)
    }
    tree = {"emb": np.ones(3), **experts}
    rule = ("layers.*.experts.{i}.w", "layers.*.experts.w")
    made, _ = converted(tree, tmp_path, stack=[rule], dtype="float32")
    assert list(made) == ["emb", "layers.0.experts.w", "layers.1.experts.w"]
    assert made["layers.1.experts.w"].shape == (3, 2, 3)
    assert made["layers.1.experts.w"].dtype == np.float32
    assert made["layers.1.experts.w"][:, 0, 0].tolist() == [10, 11, 12]
    made, _ = converted(made, tmp_path, unstack=[rule[::-1]], dtype="float64")
    assert same(made, tree)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stack": [("a.{i}.v", "a.v")]}, "matches no tensor"),
        ({"unstack": [("a.v", "a.{i}.v")]}, "matches no tensor"),
        ({"stack": [("b.{i}.w", "b.w")]}, "the numbers 0, 2; all from 0 on"),
        ({"stack": [("a.{i}.w", "one")]}, "two tensors would be called 'one'"),
        ({"stack": [("c.{i}.w", "c.w")]}, "'c.w': tensors of shapes"),
        ({"unstack": [("scalar", "s.{i}")]}, "not a dense tensor with an axis"),
        ({"stack": [("a.w", "a.{i}.w")]}, "two names such as"),
        ({"stack": [("a.*.{i}.w", "a.w")]}, "two names such as"),
    ],
)
def test_stack_refuses(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    """What has no answer, or not one."""
    tree = {"a.0.w": np.ones(2), "a.1.w": np.ones(2), "b.0.w": np.ones(2), "b.2.w": np.ones(2)}
    tree |= {"c.0.w": np.ones(2), "c.1.w": np.ones(3), "one": np.ones(1), "scalar": np.ones(())}
    tz.save(tree, tmp_path / "a.pt")
    with pytest.raises(ValueError, match=message):
        tz.convert(tmp_path / "a.pt", tmp_path / "b.pt", **options)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("rules", [{"include": "nothing.*"}, {"exclude": "*"}], ids=str)
def test_nothing_is_left(tmp_path: Path, rules: dict[str, Any]) -> None:
    """Rules that leave no tensor are an error, which names one that matches nothing."""
    tz.save({"a": np.ones(3)}, tmp_path / "a.pt")
    message = "no tensor is left of 1: " + ("the include rule" if "include" in rules else "the rul")
    with pytest.raises(ValueError, match=message):
        tz.convert(tmp_path / "a.pt", tmp_path / "b.pt", **rules)
    tz.save({"epoch": 3}, tmp_path / "a.pt")
    tz.convert(tmp_path / "a.pt", tmp_path / "b.pt")  # there were none


def test_exclude_takes_names_of_containers(tmp_path: Path) -> None:
    """As ``edit --drop`` does."""
    tree = {"optimizer": {"state": {"a": np.ones(2)}}, "optimizers": np.ones(3), "w": np.ones(1)}
    tz.save(tree, tmp_path / "a.pt")
    tz.convert(tmp_path / "a.pt", tmp_path / "b.safetensors", exclude=["optimizer", "w"])
    assert list(tz.load(tmp_path / "b.safetensors")) == ["optimizers"]
