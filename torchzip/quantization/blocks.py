"""Floats of 8 bits and ints, a whole number of bytes each, with scales for blocks of them.

==============================  =====================  ===========================================
written by                      scale                  one for
==============================  =====================  ===========================================
DeepSeek-V3, Qwen3-FP8, also    ``_scale_inv``         128x128, or ``weight_block_size``
int8 with scales of floats
MXFP8                           ``_scale_inv``         32 in a row, as an exponent (uint8, e8m0)
compressed-tensors              ``_scale``             tensor, row, group in a row, block
FBGEMM, modelopt                ``_scale``             row, tensor
ComfyUI                         ``scale_weight``       tensor
bitsandbytes, LLM.int8()        ``SCB``                row, and 127 times as large
==============================  =====================  ===========================================

The weight is ``code * scale``, or ``(code - zero_point) * scale``: despite its name, what is called
``scale_inv`` is multiplied. Blocks at the ends are cut off, as DeepSeek's kernel has them. Experts
may be stacked, with axes before the two of the weight. The products of codes with scales of 16 bits
are exact in float32, so that libraries which multiply in bfloat16 get the same bits.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from torchzip.quantization.arithmetic import (
    Array,
    Operand,
    Part,
    check_dtype,
    computed,
    misfit,
    scaled,
)
from torchzip.quantization.scheme import FLOAT8, Found, Plain, Scheme, read_small
from torchzip.tensors.specs import TensorSpec
from torchzip.tensors.views import reshaped

#: The blocks of DeepSeek, which most follow that have blocks.
_USUAL_BLOCK = (128, 128)
_FACTOR = np.float32(7.874015718698502e-3)  # 1 / 127 as bitsandbytes writes it


def block_text(block: tuple[int, int], shape: tuple[int, ...]) -> str:
    """Return what has one scale, in words.

    >>> block_text((128, 128), (300, 256)), block_text((1, 256), (300, 256))
    ('128x128 blocks', 'one scale a row')
    """
    rows, columns = math.prod(shape[:-1]), shape[-1]
    if block[0] >= rows > 1 and block[1] >= columns:
        return "one scale"
    if block[1] >= columns and block[0] == 1:
        return "one scale a row"
    return f"{block[0]}x{block[1]} blocks" if block[0] > 1 else f"groups of {block[1]}"


def block_of(codes: Part, scale: Part, told: tuple[int, int] | None) -> tuple[int, int]:
    """Return the rows and columns that one scale is for.

    ``told`` is what the config says. Without it the shapes say it, where they can.
    """
    *_, rows, columns = codes.shape
    if told is not None:
        return told
    have = scale.shape[-2:]
    if have[0] == rows and have[1] and columns % have[1] == 0:
        return 1, columns // have[1]
    if have == (1, 1):
        return rows, columns
    return _USUAL_BLOCK


def aligned(codes: Part, scale: Part) -> tuple[Part, Part] | None:
    """Return codes and scales with the same axes, where scales are for a tensor, or its rows.

    The last axis stays one of the codes, so that the rows that are computed at once are short; that
    of a convolution, which has more, is all but the first. None: they have other axes.
    """
    shape = codes.shape
    if len(shape) < 2:
        return None
    if math.prod(scale.shape) == 1:
        return codes.reshaped(1, math.prod(shape[:-1]), shape[-1]), scale.reshaped(1, 1, 1)
    if math.prod(scale.shape) == shape[0] and scale.shape[:1] == shape[:1]:
        middle, last = (shape[1], shape[2]) if len(shape) == 3 else (1, math.prod(shape[1:]))
        return codes.reshaped(shape[0], middle, last), scale.reshaped(shape[0], 1, 1)
    if scale.shape == shape[:-1]:
        scale = scale.reshaped(*scale.shape, 1)
    return (codes, scale) if len(scale.shape) == len(shape) else None


def _told(found: Found) -> tuple[int, int] | None:
    """Return the block that the config has for a weight."""
    weights: Mapping[str, Any] = found.config.weights_of(found.module)
    strategy = weights.get("strategy")
    if strategy == "block":
        return found.config.pair(weights.get("block_structure"), "block_structure")
    if strategy in ("tensor", "channel"):
        return None
    size = weights.get("group_size")
    if type(size) is int and size > 0:
        return 1, size
    return found.config.block


def with_scale(found: Found, ending: str) -> Plain:
    """Return codes times what the name with an ending has."""
    codes, scale, zero = found.codes, found.parts[ending], found.parts.get("_zero_point")
    check_dtype(scale, codes, "float", "uint8")
    if scale.dtype == "uint8" and ending == "scale_weight":
        raise misfit(scale, codes, "a scale of floats")
    both = aligned(codes, scale)
    if both is None:
        raise misfit(scale, codes, "a scale for each block, row or tensor")
    flat, scale = both
    is_whole = codes.shape != flat.shape or scale.shape[-2:] == (1, 1)
    is_row = scale.shape[-2:] == (flat.shape[-2], 1)
    block = block_of(flat, scale, None if is_whole or is_row else _told(found))
    if zero is not None:
        zero = zero.reshaped(*scale.shape) if zero.spec.numel == scale.spec.numel else zero
    spec = scaled(flat, scale, block, "bfloat16", zero=zero)
    kind = "fp8" if codes.dtype == "float8_e4m3fn" else codes.dtype
    text = f"{kind}, {block_text(block, codes.shape)}"
    made = reshaped(spec, codes.shape)
    return Plain(text, "bfloat16", lambda: made)


def _int8_of_bitsandbytes(found: Found) -> Plain:
    codes, scale = found.codes, found.parts["SCB"]
    layout = found.parts.get("weight_format")
    if len(codes.shape) != 2 or scale.shape != codes.shape[:1]:
        raise misfit(scale, codes, f"{list(codes.shape[:1])}, one for a row,")
    check_dtype(scale, codes, "float")

    def make() -> TensorSpec:
        if layout is not None and read_small(layout).any():
            raise misfit(layout, codes, "0, which is rows as they are,")
        operands = [Operand(codes), Operand(scale.reshaped(-1, 1))]
        return computed(times_127th, operands, "bfloat16", codes.shape[0], codes.shape[1:])

    return Plain("int8, one scale a row", "bfloat16", make)


def times_127th(blocks: list[Array], first: int, stop: int) -> Array:
    """Return int8 codes times 127ths of their scales; rounded after each of the two products."""
    values = blocks[0].astype(np.float32)
    values *= blocks[1]
    values *= _FACTOR
    return values


SCHEMES = (
    Scheme(
        "", FLOAT8, ("_scale_inv",), lambda found: with_scale(found, "_scale_inv"),
    ),
    Scheme(
        "", (*FLOAT8, "int8"), ("_scale",), lambda found: with_scale(found, "_scale"),
        may_have=("_zero_point",),
    ),
    Scheme(
        "weight", FLOAT8, ("scale_weight",), lambda found: with_scale(found, "scale_weight"),
        weight="weight", dropped=("scale_input",),
    ),
    Scheme(
        "weight", ("int8",), ("SCB",), _int8_of_bitsandbytes, may_have=("weight_format",),
        weight="weight",
    ),
)  # fmt: skip
