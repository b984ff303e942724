"""Codes of whole bytes with scales for blocks: the formula, shapes, companions, refusals."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import torchzip as tz
from tests.cli.running import run
from torchzip import lazy
from torchzip.quantization.configs import without_quantization
from torchzip.quantization.words import unpacked
from torchzip.tensors import computed

Array = np.ndarray[Any, Any]
E4M3 = ml_dtypes.float8_e4m3fn
BF16 = ml_dtypes.bfloat16


@pytest.fixture(autouse=True)
def _short_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compute few rows at once, so that blocks of rows and of scales part."""
    monkeypatch.setattr(computed, "_BLOCK_ELEMENTS", 1 << 9)


def random(*shape: int, dtype: Any = np.float32, seed: int = 0) -> Array:
    values = np.random.default_rng(seed).standard_normal(shape)
    return values.astype(np.float32).astype(dtype)


def expected(codes: Array, scale: Array, block: tuple[int, int]) -> Array:
    """Return the weight, as plain numpy makes it."""
    rows, columns = codes.shape[-2:]
    wide = np.repeat(np.repeat(scale.astype(np.float32), block[0], -2), block[1], -1)
    made: Array = (codes.astype(np.float32) * wide[..., :rows, :columns]).astype(BF16)
    return made


def same_bits(a: Array, b: Array) -> None:
    assert (a.dtype, a.shape) == (b.dtype, b.shape)
    raw = [np.ascontiguousarray(each).view(np.uint8) for each in (a, b)]
    np.testing.assert_array_equal(raw[0], raw[1])


def write_config(folder: Path, **config: Any) -> None:
    (folder / "config.json").write_text(json.dumps({"quantization_config": config}))


SHAPES = [(300, 200), (128, 256), (1, 1), (129, 1), (7, 130), (3, 130, 140), (2, 256, 129)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", [np.float32, BF16, ml_dtypes.float8_e8m0fnu], ids=str)
def test_blocks_of_deepseek(shape: tuple[int, ...], dtype: Any) -> None:
    """Any shape, with stacked experts, as a whole and in parts."""
    codes = random(*shape, dtype=E4M3)
    grid = (*shape[:-2], -(-shape[-2] // 128), -(-shape[-1] // 128))
    scale = np.abs(random(*grid, seed=1)).astype(dtype)
    made = lazy.dequantized({"a.weight": codes, "a.weight_scale_inv": scale})
    assert list(made) == ["a.weight"]
    want = expected(codes, scale, (128, 128))
    same_bits(made["a.weight"].numpy(), want)
    same_bits(made["a.weight"][..., ::3, 1:], want[..., ::3, 1:])


def test_rounded_once() -> None:
    """`to` goes on from float32."""
    codes, scale = random(5, 6, dtype=E4M3), np.full((1, 1), 0.3, np.float32)
    made = lazy.dequantized({"w": codes, "w_scale_inv": scale})["w"]
    np.testing.assert_array_equal(
        made.to("float32").numpy(), codes.astype(np.float32) * np.float32(0.3)
    )


#: A name, the dtype and shape of codes, what is beside them, and the block; None: of the config.
CASES: dict[str, tuple[str, Any, tuple[int, ...], tuple[int, ...], tuple[int, int]]] = {
    "a scalar": ("_scale", E4M3, (30, 40), (), (30, 40)),
    "one": ("_scale", E4M3, (30, 40), (1,), (30, 40)),
    "a row": ("_scale", E4M3, (30, 40), (30, 1), (1, 40)),
    "a row, one axis": ("_scale", np.int8, (30, 40), (30,), (1, 40)),
    "groups": ("_scale", np.int8, (30, 40), (30, 5), (1, 8)),
    "an expert": ("_scale", E4M3, (3, 30, 40), (3, 1, 1), (30, 40)),
    "rows of experts": ("_scale", E4M3, (3, 30, 40), (3, 30), (1, 40)),
    "blocks of ints": ("_scale_inv", np.int8, (300, 200), (3, 2), (128, 128)),
    "groups of ints": ("_scale_inv", np.int8, (30, 64), (30, 4), (1, 16)),
    "experts of DeepSeek": ("_scale_inv", E4M3, (3, 130, 40), (3, 2, 1), (128, 128)),
}


@pytest.mark.parametrize("case", CASES)
def test_scales_of_other_blocks(case: str) -> None:
    """The shapes say for what a scale is."""
    ending, dtype, shape, of_scale, block = CASES[case]
    codes = (random(*shape) * 50).astype(dtype)
    scale = np.abs(random(*of_scale, seed=1))
    made = lazy.dequantized({"m.up_proj": codes, "m.up_proj" + ending: scale})["m.up_proj"]
    wide = scale
    while wide.ndim < codes.ndim:
        wide = wide[..., None] if wide.shape == codes.shape[: wide.ndim] else wide[None]
    same_bits(made.numpy(), expected(codes, wide, block))


def test_a_convolution() -> None:
    """More than two axes, with one scale or one for each of the first axis."""
    codes = random(4, 5, 3, 3, dtype=E4M3)
    for scale in (np.float32(0.3), random(4), random(4, 1, 1, 1)):
        made = lazy.dequantized({"c.weight": codes, "c.weight_scale": np.asarray(scale)})
        wide = np.asarray(scale).reshape(-1, 1, 1, 1)
        want = (codes.astype(np.float32) * wide).astype(BF16)
        same_bits(made["c.weight"].numpy(), want)


def test_exponents() -> None:
    """MXFP8: 32 in a row have an exponent, of uint8 or e8m0."""
    codes = random(6, 96, dtype=E4M3)
    raw = np.random.default_rng(1).integers(100, 140, (6, 3)).astype(np.uint8)
    want = expected(codes, raw.view(ml_dtypes.float8_e8m0fnu), (1, 32))
    for scale in (raw, raw.view(ml_dtypes.float8_e8m0fnu)):
        made = lazy.dequantized({"a.weight": codes, "a.weight_scale_inv": scale})
        same_bits(made["a.weight"].numpy(), want)


def test_zero_points() -> None:
    """They are subtracted first."""
    rng = np.random.default_rng(0)
    codes = rng.integers(-128, 128, (30, 40)).astype(np.int8)
    zero = rng.integers(-128, 128, (30, 5)).astype(np.int8)
    scale = random(30, 5)
    parts = {"a.weight": codes, "a.weight_scale": scale, "a.weight_zero_point": zero}
    wide = [np.repeat(each.astype(np.float32), 8, 1) for each in (zero, scale)]
    want = ((codes - wide[0]) * wide[1]).astype(BF16)
    same_bits(lazy.dequantized(parts)["a.weight"].numpy(), want)


def test_int8_of_bitsandbytes() -> None:
    """127ths of a scale for each row."""
    codes = np.random.default_rng(0).integers(-127, 128, (30, 40)).astype(np.int8)
    scale = np.abs(random(30))
    parts = {"a.weight": codes, "a.SCB": scale, "a.weight_format": np.zeros((), np.uint8)}
    made = lazy.dequantized(parts)
    assert list(made) == ["a.weight"]
    want = codes.astype(np.float32) * scale[:, None] * np.float32(7.874015718698502e-3)
    same_bits(made["a.weight"].numpy(), want.astype(BF16))
    with pytest.raises(tz.FormatError, match=r"weight_format.*'a.weight'.*0"):
        lazy.dequantized(parts | {"a.weight_format": np.ones((), np.uint8)})


def test_comfyui() -> None:
    """The mark and the scale of inputs are dropped."""
    codes = random(30, 40, dtype=E4M3)
    parts = {
        "a.weight": codes, "a.scale_weight": np.array([0.3], np.float32),
        "a.scale_input": np.ones(1),
        "scaled_fp8": np.ones(0, E4M3), "a.bias": np.ones(30, np.float16),
    }  # fmt: skip
    made = lazy.dequantized(parts)
    assert list(made) == ["a.weight", "a.bias"]
    same_bits(made["a.weight"].numpy(), expected(codes, np.full((1, 1), 0.3, "f4"), (30, 40)))


def test_blocks_of_the_config(tmp_path: Path) -> None:
    """Beside the weights, as a mapping, or as a path."""
    codes, scale = random(100, 100, dtype=E4M3), np.abs(random(2, 4, seed=1))
    tz.save({"a.weight": codes, "a.weight_scale_inv": scale}, tmp_path / "m.pt")
    want = expected(codes, scale, (64, 32))
    config = {"quant_method": "fp8", "weight_block_size": [64, 32]}
    with tz.lazy_load(tmp_path / "m.pt") as checkpoint:
        with pytest.raises(tz.FormatError, match="128x128"):
            lazy.dequantized(checkpoint)
        same_bits(lazy.dequantized(checkpoint, config)["a.weight"].numpy(), want)
        write_config(tmp_path, **config)
        same_bits(lazy.dequantized(checkpoint)["a.weight"].numpy(), want)
        path = tmp_path / "config.json"
        same_bits(lazy.dequantized(checkpoint, path)["a.weight"].numpy(), want)


def test_companions_in_another_shard(tmp_path: Path) -> None:
    """The weight in one file, its scale in another; the index lists both."""
    codes, scale = random(200, 140, dtype=E4M3), np.abs(random(2, 2, seed=1))
    names = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    parts: list[dict[str, Array]] = [{"a.weight": codes}, {"a.weight_scale_inv": scale}]
    for name, part in zip(names, parts, strict=True):
        tz.convert(part, tmp_path / name)
    index = {"weight_map": {"a.weight": names[0], "a.weight_scale_inv": names[1]}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    report = tz.convert(tmp_path, tmp_path / "plain.safetensors", dequantize=True)
    assert report.dequantized == {"a.weight": "fp8, 128x128 blocks, of bfloat16"}
    with tz.lazy_load(tmp_path / "plain.safetensors") as plain:
        assert list(plain) == ["a.weight"]
        same_bits(plain["a.weight"].numpy(), expected(codes, scale, (128, 128)))


#: What is refused, and words of the message. ``a.weight`` is float8 unless it is there.
REFUSED: dict[str, tuple[dict[str, Any], list[str]]] = {
    "no scale": ({"a.weight": (4, 4)}, ["'a.weight'", "'a.weight_scale_inv'"]),
    "a scale alone": ({"a.weight_scale_inv": np.ones((1, 1), "f4")}, ["'a.weight'"]),
    "another shape": (
        {"a.weight": (300, 300), "a.weight_scale_inv": np.ones((2, 3), "f4")},
        ["'a.weight'", "'a.weight_scale_inv'", "[3, 3]", "[2, 3]"],
    ),
    "another number of axes": (
        {"a.weight": (300, 300), "a.weight_scale_inv": np.ones((3, 3, 1), "f4")},
        ["'a.weight'", "'a.weight_scale_inv'"],
    ),
    "a scale of ints": (
        {"a.weight": (4, 4), "a.weight_scale": np.ones((), "i4")}, ["'a.weight_scale'", "float"],
    ),
    "int8 without": ({"a.weight": np.ones((4, 4), "i1")}, ["'a.weight'", "int8"]),
    "both": (
        {"a.weight": (4, 4), "a.weight_scale_inv": np.ones((1, 1), "f4"),
         "a.weight_scale": np.ones((1, 1), "f4")},
        ["'a.weight_scale'"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case: str) -> None:
    """With both names, and never passed on as values."""
    parts, words = REFUSED[case]
    arrays = {
        name: np.ones(each, E4M3) if isinstance(each, tuple) else each
        for name, each in parts.items()
    }
    with pytest.raises(tz.FormatError) as caught:
        lazy.dequantized(arrays)
    for word in words:
        assert word in str(caught.value)


def test_an_unknown_scheme_is_refused() -> None:
    """With the names of both, and the method of the config."""
    parts = {"a.W_q": np.ones((4, 4), "u1"), "a.scale": np.ones(4, "f2"), "a.zero": np.ones(4)}
    with pytest.raises(tz.UnsupportedError, match=r"'a.W_q'.*'a.scale'.*'hqq'"):
        lazy.dequantized(parts, {"quant_method": "hqq"})


def test_a_wrong_config_is_named_with_its_folder(tmp_path: Path) -> None:
    """There may be one in each of many folders."""
    path = tmp_path / "unet" / "pytorch_model.bin"
    path.parent.mkdir()
    tz.save({"a.weight": np.ones((2, 3), E4M3), "a.weight_scale": np.ones(1, "f4")}, path)
    for file in (path, path.parent):
        (path.parent / "config.json").write_text("2")
        with pytest.raises(tz.FormatError, match="is 2 in JSON") as caught:
            tz.convert(file, tmp_path / "out.safetensors", dequantize=True)
        assert caught.value.path == str(path.parent / "config.json")


def test_convert(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A dry run and the conversion, to another dtype; the object around stays in a zip."""
    codes, scale = random(300, 200, dtype=E4M3), np.abs(random(3, 2, seed=1))
    model = {
        "a.weight": codes, "a.weight_scale_inv": scale, "a.input_scale": np.ones((), "f4"),
        "n": np.ones(2, "f4"),
    }  # fmt: skip
    source, target = tmp_path / "m.pt", tmp_path / "o.pt"
    tz.save({"model": model, "epoch": 3}, source)
    dry = tz.convert(source, target, dequantize=True, dtype="float32", dry_run=True)
    assert [(row.name, row.to_dtype) for row in dry.rows] == [
        ("model.a.weight", "float32"), ("model.n", "float32"),
    ]  # fmt: skip
    assert dry.lost == ("model.a.input_scale: of the quantization, and not for plain weights",)
    options = ("--dequantize", "--dtype", "float32")
    status, _, said = run(capsys, "convert", source, target, *options)
    assert status == 0
    assert "dequantized: 1 weight (fp8, 128x128 blocks, of bfloat16)" in said
    made = tz.load(target)
    assert made["epoch"] == 3
    assert list(made["model"]) == ["a.weight", "n"]
    want = codes.astype("f4") * np.repeat(np.repeat(scale, 128, 0), 128, 1)[:300, :200]
    same_bits(made["model"]["a.weight"], want)
    assert target.stat().st_size == dry.nbytes


def test_convert_with_rules(tmp_path: Path) -> None:
    """Rules and `map` get plain weights, and ties stay."""
    codes, scale = random(30, 20, dtype=E4M3), np.abs(random(1, 1, seed=1))
    source = tmp_path / "m.pt"
    tz.save(
        {
            "a": {"weight": codes, "weight_scale_inv": scale},
            "b": {"weight": codes, "weight_scale_inv": scale},
        },
        source,
    )
    target = tmp_path / "o.safetensors"
    report = tz.convert(source, target, dequantize=True, rename={"a.weight": "c"}, jobs=2)
    assert report.tied == {"c": "b.weight"} or report.tied == {"b.weight": "c"}
    with tz.lazy_load(target) as made:
        assert made.metadata["format"] == "pt"
        (name,) = made
        same_bits(made[name].numpy(), expected(codes, scale, (128, 128)))

    def halves(name: str, tensor: Any) -> Any:
        yield name, tensor.lazy[:15]

    tz.convert(source, tmp_path / "h.safetensors", dequantize=True, map=halves)
    with tz.lazy_load(tmp_path / "h.safetensors") as made:
        same_bits(made["a.weight"].numpy(), expected(codes, scale, (128, 128))[:15])


def test_nothing_to_do(tmp_path: Path) -> None:
    """What is not quantized is handed on, with a warning of `convert`."""
    tz.save({"w": np.ones(3, np.float32)}, tmp_path / "m.pt")
    with pytest.warns(UserWarning, match="no tensor that is converted is quantized"):
        tz.convert(tmp_path / "m.pt", tmp_path / "o.pt", dequantize=True)


def test_the_config_beside_plain_weights(tmp_path: Path) -> None:
    """It says nothing of quantization, and the report says that; all else is copied as it is."""
    source = tmp_path / "quantized"
    source.mkdir()
    codes = np.ones((128, 128), ml_dtypes.float8_e4m3fn)
    scale = np.ones((1, 1), np.float32)
    tz.save({"w.weight": codes, "w.weight_scale_inv": scale}, source / "pytorch_model.bin")
    config = {
        "a": 1.5,
        "quantization_config": {"quant_method": "fp8", "weight_block_size": [128] * 2},
    }
    raw = json.dumps(config).encode()
    for name in ("config.json", "quantize_config.json", "generation_config.json"):
        (source / name).write_bytes(raw)
    plain, same = tmp_path / "plain", tmp_path / "same"
    report = tz.convert(source, f"{plain}/", dequantize=True)
    names = ["config.json", "generation_config.json"]
    assert sorted(os.path.basename(path) for path in report.copied) == names
    assert json.loads((plain / "config.json").read_bytes()) == {"a": 1.5}
    assert (plain / "generation_config.json").read_bytes() == raw
    left = {line.partition(":")[0] for line in report.lost}
    assert left >= {"config.json", "quantize_config.json"}
    with pytest.warns(UserWarning, match="quantized weights"):
        tz.convert(source, f"{same}/")
    assert all((same / name).read_bytes() == raw for name in [*names, "quantize_config.json"])


def test_without_quantization() -> None:
    """Also in the configs of parts."""
    config = {
        "a": 1, "quantization_config": {"b": 2},
        "text_config": {"c": 3, "quantization_config": {"d": 4}},
    }  # fmt: skip
    assert without_quantization(config) == {"a": 1, "text_config": {"c": 3}}


@pytest.mark.parametrize("bits", range(1, 9))
def test_unpacked(bits: int) -> None:
    """Codes across the borders of words."""
    codes = np.random.default_rng(bits).integers(0, 1 << bits, (3, 37)).astype(np.uint8)
    rows = []
    for row in codes:
        number = sum(int(code) << (bits * index) for index, code in enumerate(row))
        rows.append(np.frombuffer(number.to_bytes(4 * -(-37 * bits // 32), "little"), "<u4"))
    np.testing.assert_array_equal(unpacked(np.array(rows), bits, 37), codes)
