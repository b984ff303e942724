"""Floats of 4 bits (e2m1), two in a byte: MXFP4 and NVFP4.

=====================  =====================================  ===================================
written by             names                                  the weight
=====================  =====================================  ===================================
gpt-oss                ``_blocks`` [.., rows, groups, 16],    code * 2 ** (scale - 127), the axes
                       ``_scales`` [.., rows, groups] uint8   swapped: [.., 32 * groups, rows]
compressed-tensors,    ``_packed`` [.., rows, columns / 2],   code * 2 ** (scale - 127)
MXFP4                  ``_scale`` uint8
compressed-tensors,    ``_packed``, ``_scale`` float8,        code * (scale / global scale)
NVFP4                  ``_global_scale`` float32
modelopt, NVFP4        the weight's own name, uint8,          code * (scale * second scale)
                       ``_scale`` float8, ``_scale_2``
DeepSeek, MXFP4        the weight's own name, int8 or float4,  code * scale
                       ``_scale_inv`` e8m0
=====================  =====================================  ===================================

Low nibbles come first. A group has 32 numbers in MXFP4 and 16 in NVFP4. The scale of a group of
NVFP4 is rounded to float32 before the code is multiplied by it, as the libraries do.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from torchzip.quantization.arithmetic import (
    Array,
    Fp4,
    Operand,
    Part,
    check_dtype,
    computed,
    exponents,
    misfit,
    scaled,
)
from torchzip.quantization.scheme import Found, Plain, Scheme
from torchzip.tensors.specs import TensorSpec
from torchzip.tensors.views import reshaped

_MXFP4_GROUP = 32


@dataclass(frozen=True)
class Swapped:
    """Groups of the rows of a matrix, as rows of it transposed."""

    def __call__(self, blocks: list[Array], first: int, stop: int) -> Array:
        codes, scale = blocks
        values = Fp4()(codes)
        values *= (exponents(scale) if scale.dtype == np.uint8 else scale)[..., None]
        return values.swapaxes(1, 2)


def gpt_oss(codes: Part, scale: Part, *, transposes: bool) -> TensorSpec:
    """Return stacked experts in bfloat16, with the last two axes swapped or as they are.

    The codes are transposed, and not the weights, which are four times as large: what is computed
    for a row of the result is one group of each row.
    """
    *leading, rows, groups, _ = codes.shape
    count = math.prod(leading)
    if not transposes:
        flat = codes.reshaped(*leading, rows, 16 * groups)
        return scaled(flat, scale, (1, _MXFP4_GROUP), "bfloat16", numbers=Fp4())
    operands = [
        Operand(
            codes.reshaped(count, rows, groups, 16).permuted(0, 2, 1, 3).reshaped(-1, rows, 16)
        ),
        Operand(scale.reshaped(count, rows, groups).permuted(0, 2, 1).reshaped(-1, rows)),
    ]
    made = computed(Swapped(), operands, "bfloat16", count * groups, (_MXFP4_GROUP, rows))
    return reshaped(made, (*leading, groups * _MXFP4_GROUP, rows))


def _gpt_oss(found: Found) -> Plain:
    codes, scale = found.codes, found.parts["_scales"]
    check_dtype(scale, codes, "uint8", "float8_e8m0fnu")
    if len(codes.shape) < 3 or codes.shape[-1] != 16 or scale.shape != codes.shape[:-1]:
        raise misfit(scale, codes, f"{list(codes.shape[:-1])}, for groups of 16 bytes,")
    spec = gpt_oss(codes, scale, transposes=found.transposes)
    return Plain("mxfp4, groups of 32", "bfloat16", lambda: spec)


@dataclass(frozen=True)
class Rescaled:
    """Scales times, or divided by, one that so many rows of them have in common."""

    rows: int
    divides: bool

    def __call__(self, blocks: list[Array], first: int, stop: int) -> Array:
        step = np.divide if self.divides else np.multiply
        common = blocks[1][np.arange(first, stop) // self.rows - first // self.rows]
        return step(blocks[0], common, out=blocks[0])


def rescaled(codes: Part, scale: Part, common: Part, *, divides: bool) -> Part:
    """Return scales with what they have in common: all of them, or those of each expert."""
    check_dtype(common, codes, "float")
    check_dtype(scale, codes, "float")
    *leading, rows, columns = scale.shape
    count = math.prod(leading)
    if common.spec.numel not in (1, count) or not common.spec.numel:
        raise misfit(common, codes, "one number for all")
    flat = common.reshaped(common.spec.numel, 1)
    each = max(count * rows // common.spec.numel, 1)
    operands = [Operand(scale.reshaped(count * rows, columns)), Operand(flat, each)]
    made = computed(Rescaled(each, divides), operands, "float32", count * rows, (columns,))
    return Part(scale.name, reshaped(made, scale.shape))


def packed_fp4(
    codes: Part, scale: Part, common: Part | None = None, *, divides: bool = False
) -> tuple[TensorSpec, str]:
    """Return the weight of codes along the last axis, and the words for its scheme."""
    check_dtype(scale, codes, "float", "uint8")
    if len(codes.shape) < 2 or len(scale.shape) != len(codes.shape):
        raise misfit(scale, codes, "a scale for each group in a row")
    columns, groups = 2 * codes.shape[-1], scale.shape[-1]
    if not groups or columns % groups:
        raise misfit(scale, codes, f"a number of groups that divides {columns:,}")
    size = columns // groups
    if common is not None:
        scale = rescaled(codes, scale, common, divides=divides)
    is_mx = scale.dtype in ("uint8", "float8_e8m0fnu")
    text = f"{'mxfp4' if is_mx else 'nvfp4'}, groups of {size}"
    return scaled(codes, scale, (1, size), "bfloat16", numbers=Fp4()), text


def _packed(found: Found, scale: str, common: str = "", *, divides: bool = False) -> Plain:
    parts = found.parts
    spec, text = packed_fp4(found.codes, parts[scale], parts.get(common), divides=divides)
    return Plain(text, "bfloat16", lambda: spec)


SCHEMES = (
    Scheme("_blocks", ("uint8",), ("_scales",), _gpt_oss),
    Scheme(
        "_packed", ("uint8",), ("_scale",),
        lambda found: _packed(found, "_scale", "_global_scale", divides=True),
        may_have=("_global_scale",),
    ),
    Scheme(
        "", ("uint8",), ("_scale", "_scale_2"), lambda found: _packed(found, "_scale", "_scale_2")
    ),
    Scheme(
        "", ("int8", "float4_e2m1fn_x2"), ("_scale_inv",),
        lambda found: _packed(found, "_scale_inv"),
    ),
)  # fmt: skip
