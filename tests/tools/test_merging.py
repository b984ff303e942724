"""Averages and formulas of checkpoints: the numbers, what is matched, and what is kept."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import torchzip as tz
from tests.cli.running import run
from torchzip.tools.formula import Formula

Array = np.ndarray[Any, Any]


def model(seed: int) -> dict[str, Any]:
    """Return a training checkpoint with a tie, a counter, an optimizer's state and plain values."""
    rng = np.random.default_rng(seed)
    weight = rng.standard_normal((40, 30)).astype(np.float32)
    return {
        "model": OrderedDict(
            weight=weight,
            head=weight,
            half=rng.standard_normal(50).astype(ml_dtypes.bfloat16),
            double=rng.standard_normal(7),
            batches=np.array(7 + seed),
            mask=np.array([seed > 1, True]),
        ),
        "optimizer_state": {"m": rng.standard_normal(3)},
        "epoch": seed,
    }


@pytest.fixture
def paths(tmp_path: Path) -> list[Path]:
    made = []
    for seed in range(3):
        made.append(tmp_path / f"{seed}.pt")
        tz.save(model(seed), made[-1])
    return made


def test_average(paths: list[Path], tmp_path: Path) -> None:
    """Floats in order, in float32; counters rounded down; the object of the first, ties and all."""
    merged = tz.tools.average(paths, tmp_path / "o.pt")
    a, b, c = (model(seed)["model"] for seed in range(3))
    made = tz.load(tmp_path / "o.pt")
    assert list(made) == ["model", "optimizer_state", "epoch"]
    assert made["epoch"] == 0
    found = made["model"]
    assert type(found) is OrderedDict
    np.testing.assert_array_equal(
        found["weight"], (a["weight"] + b["weight"] + c["weight"]) / np.float32(3)
    )
    assert np.shares_memory(found["weight"], found["head"])
    wide = [each["half"].astype(np.float32) for each in (a, b, c)]
    expected = ((wide[0] + wide[1] + wide[2]) / np.float32(3)).astype(ml_dtypes.bfloat16)
    assert found["half"].tobytes() == expected.tobytes()
    np.testing.assert_array_equal(found["double"], (a["double"] + b["double"] + c["double"]) / 3)
    assert found["batches"] == (7 + 8 + 9) // 3
    assert found["mask"].tolist() == [True, True]
    np.testing.assert_array_equal(made["optimizer_state"]["m"], model(0)["optimizer_state"]["m"])
    assert merged.counters == ("model.batches",)
    assert merged.kept == {
        "model.mask": "of the last source: ints and bools have no weighted average",
        "optimizer_state.m": "the state of an optimizer",
    }
    assert merged.converted.format == "zip"


def test_weights_and_options(paths: list[Path], tmp_path: Path) -> None:
    """Weights, the rules of `convert`, other formats as sources and as the target."""
    tz.convert(paths[1], tmp_path / "1.safetensors")
    merged = tz.tools.average(
        [paths[0], tmp_path / "1.safetensors"], tmp_path / "o.safetensors", weights=[1, 3],
        include="model.*", dtype="float32", rename=[("^model.", "")],
    )  # fmt: skip
    a, b = (model(seed)["model"] for seed in (0, 1))
    made = tz.load(tmp_path / "o.safetensors")
    for name in ("weight", "half"):
        wide = [each[name].astype(np.float32) for each in (a, b)]
        np.testing.assert_array_equal(made[name], (wide[0] + wide[1] * np.float32(3)) / 4)
    assert made["batches"] == 8
    assert merged.converted.tied == {"head": "weight"}


@pytest.mark.parametrize("weights", [[1], [1, -1], [1, float("nan")]])
def test_weights_that_are_none(paths: list[Path], tmp_path: Path, weights: list[float]) -> None:
    """As many as sources, and something to divide by."""
    with pytest.raises(ValueError, match=r"the weights are \[1.0"):
        tz.tools.average(paths[:2], tmp_path / "o.pt", weights=weights)


def test_what_does_not_match(paths: list[Path], tmp_path: Path) -> None:
    """An error lists it; with ``partial`` those are averaged that there are."""
    odd = model(1)
    del odd["model"]["double"]
    odd["model"]["half"] = np.ones(51, np.float32)
    odd["model"]["more"] = np.ones(2, np.float32)
    odd["model"]["head"] = odd["model"]["head"] + 1
    odd["model"]["batches"] = np.ones((), np.float32)
    tz.save(odd, paths[1])
    with pytest.raises(ValueError, match="5 tensors do not match") as caught:
        tz.tools.average(paths, tmp_path / "o.pt")
    for line in (
        f"model.double is not in source 2 ({paths[1]})",
        f"model.half is bfloat16 [50], and float32 [51] in source 2 ({paths[1]})",
        f"model.more is not in source 1 ({paths[0]})",
        f"model.head is tied to model.weight, and is not in source 2 ({paths[1]})",
        "model.batches is int64 [], and float32 [] in",
    ):
        assert line in str(caught.value)
    assert not (tmp_path / "o.pt").exists()
    merged = tz.tools.average(paths, tmp_path / "o.pt", partial=True)
    made = tz.load(tmp_path / "o.pt")["model"]
    a, c = model(0)["model"], model(2)["model"]
    np.testing.assert_array_equal(made["double"], (a["double"] + c["double"]) / 2)
    assert made["half"].tobytes() == a["half"].tobytes()
    assert merged.left_out == ("model.more",)
    assert merged.kept["model.half"] == f"float32 [51] in source 2 ({paths[1]})"
    tz.tools.average(paths, tmp_path / "o.pt", include="model.weight", overwrite=True)


def test_combine(paths: list[Path], tmp_path: Path) -> None:
    """In float32, and rounded once; ints and what is around them are those of the first."""
    sources = dict(zip("abc", paths, strict=True))
    merged = tz.tools.combine("a + 0.7*(b - c)", sources, tmp_path / "o.pt")
    a, b, c = (model(seed)["model"] for seed in range(3))
    made = tz.load(tmp_path / "o.pt")
    for name in ("weight", "half"):
        wide = [each[name].astype(np.float32) for each in (a, b, c)]
        expected = (wide[0] + np.float32(0.7) * (wide[1] - wide[2])).astype(a[name].dtype)
        assert made["model"][name].tobytes() == expected.tobytes()
    assert made["model"]["batches"] == 7
    assert (made["epoch"], merged.computed) == (0, 4)
    assert merged.kept["model.batches"] == "not a floating tensor"


def test_combine_with_what_does_not_match(paths: list[Path], tmp_path: Path) -> None:
    """It is an error, or taken from the first."""
    odd = model(1)
    odd["model"]["half"] = odd["model"]["half"][:3]
    del odd["model"]["double"]
    tz.save(odd, paths[1])
    sources = {"x": paths[0], "y": paths[1]}
    with pytest.raises(ValueError, match="2 tensors do not match"):
        tz.tools.combine("x - y", sources, tmp_path / "o.pt")
    merged = tz.tools.combine("x - y", sources, tmp_path / "o.pt", partial=True)
    made = tz.load(tmp_path / "o.pt")["model"]
    np.testing.assert_array_equal(made["double"], model(0)["model"]["double"])
    assert merged.kept["model.double"] == "not in every source"


@pytest.mark.parametrize(
    ("text", "value"),
    [("a", 8), ("-a + 2", -6), ("a - b - 1", 4), ("a/b/2", 4 / 3), ("2*(a - b)", 10),
     (" a*.5e1 ", 40), ("--a", 8), ("a*-b", -24), ("(((a)))", 8)],
)  # fmt: skip
def test_formulas(text: str, value: float) -> None:
    """As Python reads them."""
    assert Formula(text).of({"a": 8, "b": 3}) == value


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "a name or a number was expected after ''"),
        ("a +", r"expected after 'a \+'"),
        ("a b", "an operation was expected after 'a'"),
        ("(a", "a closing parenthesis was expected"),
        ("a)", "an operation was expected after 'a'"),
        ("a**b", "a name or a number was expected"),
        ("a.b", "a name, a number"),
        ("__import__('os')", "a closing|an operation|a name"),
        ("(" * 99 + "a" + ")" * 99, "50 parentheses"),
        ("-" * 99 + "a", "50 parentheses"),
    ],
)
def test_what_is_not_a_formula(text: str, message: str) -> None:
    """The message has the place; nothing is ever run."""
    with pytest.raises(ValueError, match=message):
        Formula(text)


def test_formulas_that_do_not_fit(paths: list[Path], tmp_path: Path) -> None:
    """Names without a file, files without a name, numbers alone, a division by 0."""
    for text, sources, message in (
        ("a + b", {"a": paths[0]}, "'b' has no checkpoint"),
        ("a", {"a": paths[0], "b": paths[1]}, "'b' is not in the formula"),
        ("1/(1 - 1)*a", {"a": paths[0]}, "divides by 0"),
        ("a/(1 - 1)", {"a": paths[0]}, "divides by 0"),
    ):
        with pytest.raises(ValueError, match=message):
            tz.tools.combine(text, sources, tmp_path / "o.pt")
    with pytest.raises(ValueError, match="list of paths"):
        tz.tools.average(str(paths[0]), tmp_path / "o.pt")
    with pytest.raises(TypeError, match="a source is a path"):
        tz.tools.average([3], tmp_path / "o.pt")  # type: ignore[list-item]


def test_commands(paths: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The same files as of the functions; what was not averaged is on stderr."""
    out = tmp_path / "cli.safetensors"
    said = run.says(0, capsys, "average", *paths, "-o", out, "--include", "model.*")
    tz.tools.average(paths, tmp_path / "f.safetensors", include="model.*")
    assert out.read_bytes() == (tmp_path / "f.safetensors").read_bytes()
    assert "rounded down: model.batches" in said
    assert "not computed (of the last source: ints" in said
    named = [f"{name}={path}" for name, path in zip("abc", paths, strict=True)]
    run.says(0, capsys, "combine", "a + 0.7*(b - c)", *named, "-o", tmp_path / "cli.pt", "--jobs",
             "2")  # fmt: skip
    tz.tools.combine("a+0.7*(b-c)", dict(zip("abc", paths, strict=True)), tmp_path / "f.pt")
    assert tz.tools.diff(tmp_path / "cli.pt", tmp_path / "f.pt").is_equal
    status, plan, _ = run(capsys, "average", *paths, "-o", tmp_path / "no.pt", "--dry-run")
    assert status == 0
    assert "model.weight" in plan
    assert not (tmp_path / "no.pt").exists()
    assert "exists; --force" in run.says(2, capsys, "average", *paths, "-o", out)
    for wrong, message in (
        (["average", *paths, "-o", tmp_path / "x.pt", "--weights", "1,a"], "numbers with commas"),
        (["combine", "a", "a", "-o", tmp_path / "x.pt"], "NAME=FILE"),
        (["combine", "a", f"a={paths[0]}", f"a={paths[0]}", "-o", tmp_path / "x.pt"], "two files"),
    ):
        assert message in run.says(2, capsys, *wrong)


@pytest.mark.torch
def test_rules_of_others(torch: Any, tmp_path: Path) -> None:
    """Averages of fairseq and timm and deltas of FastChat, by their own words, bit for bit."""
    paths, states = [], []
    for seed in range(3):
        rng = torch.Generator().manual_seed(seed)
        states.append(
            {
                "w": torch.randn(33, 17, generator=rng),
                "half": torch.randn(100, generator=rng).half(),
                "steps": torch.tensor(7 + seed),
            }
        )
        paths.append(tmp_path / f"{seed}.pt")
        torch.save(states[-1], paths[-1])

    # fairseq, scripts/average_checkpoints.py: half becomes float, ints are divided by //.
    sums: dict[str, Any] = {}
    for state in states:
        for name, tensor in state.items():
            tensor = tensor.float() if tensor.dtype == torch.half else tensor
            sums[name] = sums[name] + tensor if name in sums else tensor.clone()
    for tensor in sums.values():
        if tensor.is_floating_point():
            tensor.div_(len(states))
        else:
            tensor //= len(states)
    tz.tools.average(paths, tmp_path / "fairseq.pt", dtype="float32")
    found = torch.load(tmp_path / "fairseq.pt", weights_only=True)
    for name, tensor in sums.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor)

    # timm, avg_checkpoints.py: in float64, and float32 at the end.
    wide: dict[str, Any] = {}
    for state in states:
        for name, tensor in state.items():
            more = tensor.clone().to(dtype=torch.float64)
            wide[name] = wide[name] + more if name in wide else more
    sources = [tz.lazy_load(path) for path in paths]
    tz.convert(
        {
            name: (
                (sources[0][name].to("float64") + sources[1][name].to("float64")
                 + sources[2][name].to("float64")) / 3
            ).to("float32")
            for name in sources[0]
        },
        tmp_path / "timm.pt",
    )  # fmt: skip
    found = torch.load(tmp_path / "timm.pt", weights_only=True)
    for name, tensor in wide.items():
        assert torch.equal(found[name], tensor.div_(3).to(torch.float32)), name

    # FastChat, apply_delta.py: the base grows by rows of zeros, and is added in float16.
    base = {"embed": torch.randn(32, 8).half(), "q": torch.randn(8, 8).half()}
    delta = {"embed": torch.randn(33, 8).half(), "q": torch.randn(8, 8).half()}
    torch.save(base, tmp_path / "base.pt")
    torch.save(delta, tmp_path / "delta.pt")
    with tz.lazy_load(tmp_path / "base.pt") as b, tz.lazy_load(tmp_path / "delta.pt") as d:
        tz.convert(
            {name: d[name] + tz.lazy.pad(b[name], d[name].shape) for name in d},
            tmp_path / "vicuna.pt",
        )
    grown = torch.zeros(33, 8).half()
    grown[:32] = base["embed"]
    found = torch.load(tmp_path / "vicuna.pt", weights_only=True)
    assert torch.equal(found["embed"], delta["embed"] + grown)
    assert torch.equal(found["q"], delta["q"] + base["q"])
    for source in sources:
        source.close()
