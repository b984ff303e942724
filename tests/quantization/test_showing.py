"""What `ls` and `diff` say of quantized weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import torchzip as tz
from tests.cli.running import run
from tests.quantization import packers
from tests.quantization.test_blocks import random, same_bits
from torchzip import lazy, tools

Capture = pytest.CaptureFixture[str]
WRAPPERS = Path(__file__).parents[1] / "data" / "golden" / "wrappers"


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    """Write a model in bfloat16 and in float8, as safetensors and as .pt."""
    weight = random(300, 200, dtype=ml_dtypes.bfloat16)
    scale = np.full((3, 2), 0.0156, np.float32)
    codes = (weight.astype(np.float32) / 0.0156).astype(ml_dtypes.float8_e4m3fn)
    norm = np.ones(3, np.float32)
    tz.convert({"a.weight": weight, "norm": norm}, tmp_path / "one.safetensors")
    tz.save({"a.weight": codes, "a.weight_scale_inv": scale, "norm": norm}, tmp_path / "two.pt")
    return tmp_path / "one.safetensors", tmp_path / "two.pt"


def test_ls(pair: tuple[Path, Path], capsys: Capture) -> None:
    """The scheme is beside the codes; others have none."""
    lines = run.done(capsys, "ls", pair[1]).splitlines()
    assert lines[0].endswith("quantized, tied or view")
    assert lines[1].endswith("60.0 kB  fp8, 128x128 blocks, of bfloat16")
    assert lines[2].endswith("24 B")
    listed = json.loads(run.done(capsys, "ls", pair[1], "--json"))
    assert listed["quantized"] == {"a.weight": "fp8, 128x128 blocks, of bfloat16"}
    assert "fp8, 128x128" in run.done(capsys, "ls", pair[1], "--tree")
    assert "quantized" not in run.done(capsys, "ls", pair[0])


#: Packed by, and what `ls` says.
TEXTS: dict[str, tuple[Any, str]] = {
    "gptq": (packers.gptq(4, 64, 96, 32), "gptq int4, groups of 32, of float16"),
    "awq": (packers.awq(40, 96, 96), "awq int4, one scale a row, of float16"),
    "gpt-oss": (packers.gpt_oss((3,), 50, 5), "mxfp4, groups of 32, of bfloat16"),
    "nvfp4": (packers.nvfp4((30, 80), modelopt=True), "nvfp4, groups of 16, of bfloat16"),
    "nf4": (packers.bitsandbytes((33, 48), 64, "float16", nested=True), "nf4, groups of 64"),
    "int4": (packers.compressed(4, (7, 96), 32), "packed ints, 3 groups a row, of bfloat16"),
}


@pytest.mark.parametrize("case", TEXTS)
def test_schemes(case: str, tmp_path: Path, capsys: Capture) -> None:
    """No tensor is read: what only a tensor says is left out."""
    (parts, _), text = TEXTS[case]
    tz.save(parts, tmp_path / "m.pt")
    listed = json.loads(run.done(capsys, "ls", tmp_path / "m.pt", "--json"))
    assert list(listed["quantized"].values()) == [text]


def test_ls_of_what_lacks_a_part(tmp_path: Path, capsys: Capture) -> None:
    """Listed as it is; `--dequantize` says what is wrong."""
    tz.save({"a.weight": random(4, 4, dtype=ml_dtypes.float8_e4m3fn)}, tmp_path / "m.pt")
    assert "fp8" not in run.done(capsys, "ls", tmp_path / "m.pt")
    said = run.says(1, capsys, "convert", tmp_path / "m.pt", tmp_path / "o.pt", "--dequantize")
    assert "'a.weight' is float8_e4m3fn, codes of a weight" in said
    assert not (tmp_path / "o.pt").exists()


def test_diff(pair: tuple[Path, Path], capsys: Capture) -> None:
    """The largest and the mean difference for each tensor, of the plain weights."""
    found = tools.diff(*pair, dequantize=True)
    assert (found.equal, len(found.changed)) == (1, 1)
    assert found.added == found.removed == ()
    with tz.lazy_load(pair[0]) as one, tz.lazy_load(pair[1]) as two:
        plain = lazy.dequantized(two)["a.weight"].numpy().astype(np.float64)
        far = np.abs(one["a.weight"].numpy().astype(np.float64) - plain)
    values = found.changed[0].values
    assert values is not None
    assert values.max_abs == far.max()
    assert values.count == np.count_nonzero(far)
    assert values.mean_abs == pytest.approx(far.mean())
    status, out, _ = run(capsys, "diff", *pair, "--dequantize")
    assert status == 1
    assert f"max abs difference {far.max():.6g}, max relative" in out
    assert f"mean {far.mean():.3g}\n" in out
    tz.convert(pair[1], pair[1].with_name("plain.pt"), dequantize=True)
    assert tools.diff(pair[1], pair[1].with_name("plain.pt"), dequantize=True).is_equal


@pytest.mark.parametrize("name", ["Float8WeightOnlyConfig", "Int8WeightOnlyConfig"])
def test_wrappers_of_torchao(name: str, tmp_path: Path, capsys: Capture) -> None:
    """Files that torchao 0.18 wrote: listed, converted with their object kept, and compared."""
    source = WRAPPERS / f"{name}.pt"
    kind = name.removesuffix("WeightOnlyConfig")
    assert f"torchao {kind}Tensor, one scale a row, of bfloat16" in run.done(capsys, "ls", source)
    report = tz.convert(source, tmp_path / "o.pt", dequantize=True)
    assert not report.lost
    assert not report.refused
    made = tz.load(tmp_path / "o.pt")
    assert list(made) == ["0.weight", "0.bias", "1.weight"]
    with tz.lazy_load(source) as held:
        codes, scale = (held[f"0.weight.{part}"].numpy() for part in ("qdata", "scale"))
        want = (codes.astype(np.float32) * scale).astype(ml_dtypes.bfloat16)
        same_bits(made["0.weight"], want)
        same_bits(made["0.bias"], held["0.bias"].numpy())
    assert tools.diff(source, tmp_path / "o.pt", dequantize=True).is_equal
    renamed = tz.convert(
        source, tmp_path / "r.safetensors", dequantize=True, rename={"0.weight": "first"}
    )
    assert {row.name for row in renamed.rows} == {"first", "0.bias", "1.weight"}
    assert renamed.lost == ()
