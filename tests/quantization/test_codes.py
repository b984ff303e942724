"""Quantized checkpoints are told from others by the names and dtypes of their tensors."""

from __future__ import annotations

import time
import warnings
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

import torchzip as tz
from tests.cli.running import run
from torchzip.dtypes import DTYPES
from torchzip.quantization.codes import codes

Capture = pytest.CaptureFixture[str]

E4M3 = "float8_e4m3fn"
#: What each quantizer writes: the names of the codes first, then all others.
QUANTIZED = {
    "DeepSeek": {"a.weight": E4M3, "a.weight_scale_inv": "float32"},
    "DeepSeek's experts": {"e.gate_up_proj": E4M3, "e.gate_up_proj_scale_inv": "bfloat16"},
    "MXFP8": {"a.weight": E4M3, "a.weight_scale_inv": "uint8"},
    "MXFP8, e8m0": {"a.weight": E4M3, "a.weight_scale": "float8_e8m0fnu"},
    "compressed-tensors": {
        "a.weight": E4M3, "a.weight_scale": "bfloat16", "a.input_scale": "bfloat16",
    },
    "compressed-tensors, 4 bits": {
        "a.weight_packed": "int32", "a.weight_scale": "bfloat16", "a.weight_shape": "int64",
    },
    "compressed-tensors, NVFP4": {
        "a.weight_packed": "uint8", "a.weight_scale": E4M3, "a.weight_global_scale": "float32",
    },
    "compressed-tensors, 8 bits": {"a.weight": "int8", "a.weight_scale": "float32"},
    "modelopt, NVFP4": {
        "a.weight": "uint8", "a.weight_scale": E4M3, "a.weight_scale_2": "float32",
    },
    "ComfyUI": {"a.weight": E4M3, "a.scale_weight": "float32", "scaled_fp8": "float32"},
    "fp8 of AMD": {"a.weight": "float8_e4m3fnuz", "a.scale": "float32"},
    "gpt-oss": {
        "e.gate_up_proj_blocks": "uint8", "e.gate_up_proj_scales": "uint8",
        "e.gate_up_proj_bias": "bfloat16",
    },
    "GPTQ": {
        "a.qweight": "int32", "a.qzeros": "int32", "a.scales": "float16", "a.g_idx": "int32",
    },
    "bitsandbytes, nf4": {
        "a.weight": "uint8", "a.weight.absmax": "uint8", "a.weight.quant_map": "float32",
        "a.weight.nested_absmax": "float32", "a.weight.quant_state.bitsandbytes__nf4": "uint8",
    },
    "bitsandbytes, 8 bits": {"a.weight": "int8", "a.SCB": "float32", "a.weight_format": "uint8"},
    "torchao": {"a.weight.qdata": "int8", "a.weight.scale": "float32"},
    "torchao, fp8": {"a.weight.qdata": E4M3, "a.weight.scale": "float32"},
    "HQQ": {"a.W_q": "uint8", "a.scale": "float16", "a.zero": "float16"},
    "float4": {"a.weight": "float4_e2m1fn_x2", "a.weight_scale": "float8_e8m0fnu"},
    "no module": {"w": E4M3, "scale": "float32"},
    "no module, no weight": {"w": "float8_e5m2", "w_scale": "float32"},
}  # fmt: skip
#: What has such dtypes or such names, and is no code.
OTHERS = {
    "a model in fp8": {"a.weight": E4M3, "a.bias": E4M3, "norm.scale": E4M3, "norm.bias": E4M3},
    "scales elsewhere": {"a.weight": E4M3, "b.weight_scale": "float32"},
    "of activations": {"k": E4M3, "attn.k_scale": "float32", "attn.input_scale": "float32"},
    "scales alone": {"a.weight": "bfloat16", "a.weight_scale": "float32"},
    "a norm": {"norm.scale": "float32", "norm.weight": "float32", "ids": "int32"},
    "ints beside a scale": {"a.position_ids": "int32", "a.scale": "float32", "a.mask": "uint8"},
    "scale as a module": {"a.scale.weight": "float32", "a.weight": "int8"},
    "counters": {"bn.num_batches_tracked": "int64", "bn.scale": "float32"},
    "nothing": {},
}


@pytest.mark.parametrize("written_by", QUANTIZED)
def test_codes_are_found(written_by: str) -> None:
    """In any order of the names, in a model of many modules, with a prefix."""
    dtypes = QUANTIZED[written_by]
    name = next(iter(dtypes))
    for prefix in ("", "model.layers.0."):
        many = {prefix + each: dtype for each, dtype in dtypes.items()}
        for order in (many, dict(reversed(many.items()))):
            found = codes(order | {"model.embed_tokens.weight": "bfloat16"})
            assert list(found) == [prefix + name]
            assert found[prefix + name] in many


@pytest.mark.parametrize("kind", OTHERS)
def test_others_are_not(kind: str) -> None:
    """Dtypes alone say nothing, and names alone do not either."""
    assert codes(OTHERS[kind]) == {}


def test_warned_of_once(capsys: Capture, tmp_path: Path) -> None:
    """By convert and by its dry run, with a cast or without; not where `map` dequantizes."""
    arrays = {}
    for index in range(3):
        arrays[f"l.{index}.weight"] = np.ones((4, 4), ml_dtypes.float8_e4m3fn)
        arrays[f"l.{index}.weight_scale_inv"] = np.ones((1, 1), np.float32)
    source = tmp_path / "m.pt"
    tz.save(arrays, source)
    line = (
        "quantized weights: 'l.0.weight' and 2 more tensors are codes, which become weights with "
        "the scales that lie beside them ('l.0.weight_scale_inv'). "
    )
    for options in (["--dry-run"], ["--dtype", "bfloat16"]):
        status, _, err = run(capsys, "convert", source, tmp_path / "o.safetensors", *options)
        assert (status, err.count(f"torchzip: warning: {line}")) == (0, 1)
    with pytest.warns(UserWarning, match="codes") as told:
        tz.convert(source, tmp_path / "o.pt", rename=[("^l", "layers")])
    assert len(told) == 1
    with pytest.warns(UserWarning, match="codes"):  # more so without their scales
        tz.convert(source, tmp_path / "p.pt", exclude="*_scale_inv")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tz.convert(source, tmp_path / "q.pt", include="*_scale_inv")
        tz.convert(
            source,
            tmp_path / "r.pt",
            map=lambda name, tensor: [(name, tensor.numpy().astype(np.float32))],
        )


def test_names_that_would_cost_time() -> None:
    """A long name, and many scales of many codes, are looked at once."""
    before = time.process_time()
    for part in ("_", "weight_", "quant_state.", "scale_", "scale."):
        codes({part * (100_000 // len(part)) + "scale": "float32", "w": "int8"})
    dtypes = {f"w{index}": E4M3 for index in range(20_000)}
    scales = [f"{a}{b}{c}scale{d}" for a in ("", "block_") for b in ("", "global_")
              for c in ("", "weight_") for d in ("", "s", "_inv", "_2", "_weight")]  # fmt: skip
    codes(dtypes | dict.fromkeys(scales, "float32"))
    codes({f"l.{index}.{name}": dtype for index in range(20_000)
           for name, dtype in (("weight", "int8"), ("scale", "float32"))})  # fmt: skip
    assert time.process_time() - before < 3


def test_rows_have_dtypes_of_torch() -> None:
    """The tables above spell them right."""
    for rows in (QUANTIZED, OTHERS):
        assert {dtype for row in rows.values() for dtype in row.values()} <= DTYPES.keys()
