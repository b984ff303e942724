"""Packs codes of few bits as quantizers do, one code at a time, and says what weight they are."""

from __future__ import annotations

import json
from typing import Any

import ml_dtypes
import numpy as np

from torchzip.quantization.arithmetic import FP4_VALUES
from torchzip.quantization.fp4 import FP6_VALUES

Array = np.ndarray[Any, Any]
Parts = dict[str, Array]
BF16 = ml_dtypes.bfloat16
_E4M3 = ml_dtypes.float8_e4m3fn
_AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)


def packed(codes: Array, bits: int) -> Array:
    """Return codes along the last axis in words of int32, bit after bit."""
    count = codes.shape[-1]
    words = -(-count * bits // 32)
    rows = []
    for row in codes.reshape(-1, count):
        number = sum(int(code) << (bits * index) for index, code in enumerate(row))
        rows.append(np.frombuffer(number.to_bytes(4 * words, "little"), "<i4"))
    return np.stack(rows).reshape(*codes.shape[:-1], words)


def gptq(
    bits: int, out: int, inner: int, size: int, *, v2: bool = False, sorts: bool = False,
    seed: int = 0,
) -> tuple[Parts, Array]:  # fmt: skip
    """Return a layer of GPTQ and its weight; with ``sorts`` groups of columns in any order."""
    rng = np.random.default_rng(seed)
    groups = -(-inner // size)
    codes = rng.integers(0, 1 << bits, (inner, out))
    zeros = rng.integers(0, (1 << bits) - 1, (groups, out))
    scales = rng.random((groups, out)).astype(np.float16)
    index = np.arange(inner) // size
    if sorts:
        rng.shuffle(index)
    weight = (codes - zeros[index] - (0 if v2 else 1)).astype(np.float32) * scales[index]
    parts = {
        "a.qweight": np.ascontiguousarray(packed(codes.T, bits).T),
        "a.qzeros": packed(zeros, bits),
        "a.scales": scales,
        "a.g_idx": index.astype(np.int32),
    }
    return parts, weight.astype(np.float16).T


def awq(out: int, inner: int, size: int, seed: int = 0) -> tuple[Parts, Array]:
    """Return a layer of AWQ and its weight."""
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, 16, (inner, out))
    zeros = rng.integers(0, 16, (inner // size, out))
    scales = rng.random((inner // size, out)).astype(np.float16)
    wide = np.repeat(zeros, size, 0), np.repeat(scales, size, 0)
    weight = ((codes - wide[0]).astype(np.float32) * wide[1]).astype(np.float16).T

    def words(values: Array) -> Array:
        eights = values.reshape(len(values), -1, 8)[:, :, list(_AWQ_ORDER)]
        return packed(eights.reshape(values.shape), 4)

    return {"a.qweight": words(codes), "a.qzeros": words(zeros), "a.scales": scales}, weight


def compressed(
    bits: int, shape: tuple[int, ...], size: int | None, *, zero: bool = False, sorts: bool = False,
    seed: int = 0,
) -> tuple[Parts, Array]:  # fmt: skip
    """Return a layer of compressed-tensors (pack-quantized) and its weight."""
    rng = np.random.default_rng(seed)
    *leading, rows, columns = shape
    size = size or columns
    groups = columns // size
    offset = 1 << (bits - 1)
    codes = rng.integers(0, 1 << bits, shape)
    scale = rng.random((*leading, rows, groups)).astype(BF16)
    points = rng.integers(0, 1 << bits, (*leading, rows, groups)) if zero else None
    index = np.arange(columns) // size
    if sorts:
        rng.shuffle(index)
    middle = points[..., index] if points is not None else offset
    weight = ((codes - middle).astype(np.float32) * scale.astype(np.float32)[..., index]).astype(
        BF16
    )
    parts = {
        "a.weight_packed": packed(codes, bits),
        "a.weight_scale": scale,
        "a.weight_shape": np.array(shape, np.int64),
    }
    if points is not None:
        parts["a.weight_zero_point"] = np.ascontiguousarray(
            packed(points.swapaxes(-1, -2), bits).swapaxes(-1, -2)
        )
    if sorts:
        parts["a.weight_g_idx"] = index.astype(np.int32)
    return parts, weight


def fp4_codes(shape: tuple[int, ...], rng: np.random.Generator) -> tuple[Array, Array]:
    """Return bytes of two codes each, and the numbers that they are."""
    codes = rng.integers(0, 16, shape).astype(np.uint8)
    return codes[..., ::2] | codes[..., 1::2] << 4, FP4_VALUES[codes]


def gpt_oss(leading: tuple[int, ...], rows: int, groups: int, seed: int = 0) -> tuple[Parts, Array]:
    """Return stacked experts of gpt-oss and their weights as transformers has them."""
    rng = np.random.default_rng(seed)
    blocks, numbers = fp4_codes((*leading, rows, groups, 32), rng)
    scales = rng.integers(110, 140, (*leading, rows, groups)).astype(np.uint8)
    weight = numbers * np.ldexp(np.float32(1), scales.astype(np.int32) - 127)[..., None]
    made = weight.reshape(*leading, rows, groups * 32).swapaxes(-1, -2).astype(BF16)
    return {"e.gate_up_proj_blocks": blocks, "e.gate_up_proj_scales": scales}, made


def mxfp6(shape: tuple[int, ...], seed: int = 0) -> tuple[Parts, Array]:
    """Return a layer of MXFP6, of compressed-tensors, and its weight."""
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, 64, shape)
    scales = rng.integers(110, 140, (*shape[:-1], shape[-1] // 32)).astype(np.uint8)
    wide = np.repeat(np.ldexp(np.float32(1), scales.astype(np.int32) - 127), 32, -1)
    weight = (FP6_VALUES["fp6_e2m3"][codes] * wide).astype(BF16)
    return {"a.weight_packed": packed(codes, 6).view(np.uint8), "a.weight_scale": scales}, weight


def nvfp4(shape: tuple[int, ...], *, modelopt: bool, seed: int = 0) -> tuple[Parts, Array]:
    """Return a layer of NVFP4, of modelopt or of compressed-tensors, and its weight."""
    rng = np.random.default_rng(seed)
    codes, numbers = fp4_codes(shape, rng)
    scale = (rng.random((*shape[:-1], shape[-1] // 16)) * 400).astype(_E4M3)
    common = np.array([0.0137], np.float32)
    wide = scale.astype(np.float32)
    wide = wide * common if modelopt else wide / common
    weight = (numbers * np.repeat(wide, 16, -1)).astype(BF16)
    if modelopt:
        names = ("a.weight", "a.weight_scale", "a.weight_scale_2")
        common = common.reshape(())
    else:
        names = ("a.weight_packed", "a.weight_scale", "a.weight_global_scale")
    return dict(zip(names, (codes, scale, common), strict=True)), weight


def bitsandbytes(
    shape: tuple[int, ...], size: int, dtype: str, *, nested: bool, kind: str = "nf4", seed: int = 0
) -> tuple[Parts, Array]:
    """Return a weight of bitsandbytes in 4 bits, and what it is."""
    rng = np.random.default_rng(seed)
    numel = int(np.prod(shape))
    codes = rng.integers(0, 16, numel + numel % 2).astype(np.uint8)
    table = np.sort(rng.standard_normal(16)).astype(np.float32)
    groups = -(-numel // size)
    state: dict[str, Any] = {
        "quant_type": kind, "blocksize": size, "dtype": dtype, "shape": list(shape),
    }  # fmt: skip
    parts = {"a.weight": (codes[::2] << 4 | codes[1::2])[:, None], "a.weight.quant_map": table}
    absmax = rng.random(groups).astype(np.float32)
    if nested:
        small = rng.integers(0, 256, groups).astype(np.uint8)
        inner = np.sort(rng.standard_normal(256)).astype(np.float32)
        outer = rng.random(-(-groups // 256)).astype(np.float32)
        state |= {"nested_blocksize": 256, "nested_dtype": "float32", "nested_offset": 0.37}
        absmax = inner[small] * np.repeat(outer, 256)[:groups] + np.float32(0.37)
        parts |= {
            "a.weight.absmax": small, "a.weight.nested_absmax": outer,
            "a.weight.nested_quant_map": inner,
        }  # fmt: skip
    else:
        parts["a.weight.absmax"] = absmax
    raw = json.dumps(state).encode()
    parts[f"a.weight.quant_state.bitsandbytes__{kind}"] = np.frombuffer(raw, np.uint8)
    weight = table[codes[:numel]] * np.repeat(absmax, size)[:numel]
    return parts, weight.astype(getattr(ml_dtypes, dtype, dtype)).reshape(shape)
