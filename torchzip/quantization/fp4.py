"""Floats of 4 bits (e2m1), two in a byte: MXFP4 and NVFP4; and of 6 bits: MXFP6.

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
compressed-tensors,    ``_packed`` [.., rows, columns * 3/4],  code * 2 ** (scale - 127)
MXFP6                  ``_scale`` uint8
=====================  =====================================  ===================================

Low nibbles come first. A group has 32 numbers in MXFP4 and MXFP6, which have the same names: the
bytes of a group, 16 or 24, say which it is. It has 16 numbers in NVFP4, and its scale is rounded to
float32 before the code is multiplied by it, as the libraries do. Codes of 6 bits are e2m3, four in
three bytes, little end first; those of torchao have a byte each, and may be e3m2.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from torchzip.quantization.arithmetic import (
    Array,
    Fp4,
    Numbers,
    Operand,
    Part,
    check_dtype,
    computed,
    exponents,
    misfit,
    scaled,
)
from torchzip.quantization.blocks import with_scale
from torchzip.quantization.scheme import Found, Plain, Scheme
from torchzip.quantization.words import unpacked
from torchzip.tensors.specs import TensorSpec
from torchzip.tensors.views import reshaped

#: The numbers that have one scale in all MX formats.
_MX_GROUP = 32
#: The dtypes of these scales.
_EXPONENTS = ("uint8", "float8_e8m0fnu")


def _six_bits(mantissa: int) -> Array:
    """Return the numbers that all codes of 6 bits are, with so many bits of mantissa.

    >>> _six_bits(3)[[1, 8, 31, 63]].tolist(), _six_bits(2)[[1, 31]].tolist()
    ([0.125, 1.0, 7.5, -7.5], [0.0625, 28.0])
    """
    exponent, fraction = np.divmod(np.arange(32), 1 << mantissa)
    bias = (1 << (4 - mantissa)) - 1
    whole = fraction + np.where(exponent > 0, 1 << mantissa, 0)
    positive = np.ldexp(whole.astype(np.float32), np.maximum(exponent, 1) - bias - mantissa)
    return np.concatenate([positive, -positive])


#: What codes of 6 bits are, by the names that torchao has for them.
FP6_VALUES = {"fp6_e2m3": _six_bits(3), "fp6_e3m2": _six_bits(2)}


class Fp6(Numbers):
    """Four numbers of 6 bits, e2m3, in three bytes."""

    def columns(self, codes: int) -> int:
        return codes * 4 // 3

    def __call__(self, codes: Array) -> Array:
        return FP6_VALUES["fp6_e2m3"][unpacked(codes, 6, self.columns(codes.shape[-1]))]


class Fp6Bytes(Numbers):
    """A number of 6 bits in each byte; the two highest bits of it are not used."""

    def __init__(self, name: str) -> None:
        self._values: Array = FP6_VALUES[name]

    def __call__(self, codes: Array) -> Array:
        values: Array = self._values[codes & 63]
        return values


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
        return scaled(flat, scale, (1, _MX_GROUP), "bfloat16", numbers=Fp4())
    operands = [
        Operand(
            codes.reshaped(count, rows, groups, 16)
            .permuted(0, 2, 1, 3)
            .reshaped(count * groups, rows, 16)
        ),
        Operand(
            scale.reshaped(count, rows, groups).permuted(0, 2, 1).reshaped(count * groups, rows)
        ),
    ]
    made = computed(Swapped(), operands, "bfloat16", count * groups, (_MX_GROUP, rows))
    return reshaped(made, (*leading, groups * _MX_GROUP, rows))


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
    codes: Part, scale: Part, common: Part | None = None, *, divides: bool = False,
    size: int | None = None,
) -> tuple[TensorSpec, str]:  # fmt: skip
    """Return the weight of codes along the last axis, and the words for its scheme.

    ``size`` is that of a group if more than the shapes says it.
    """
    check_dtype(scale, codes, "float", "uint8")
    if len(codes.shape) < 2 or len(scale.shape) != len(codes.shape):
        raise misfit(scale, codes, "a scale for each group in a row")
    width, groups = codes.shape[-1], scale.shape[-1]
    is_mx = scale.dtype in _EXPONENTS
    if is_mx and size is None:
        size = _MX_GROUP
    is_fp6 = is_mx and size == _MX_GROUP and width * 4 == groups * size * 3
    numbers = Fp6() if is_fp6 else Fp4()
    columns = numbers.columns(width)
    if size is None and groups and columns % groups == 0:
        size = columns // groups
    if size is None or columns != groups * size:
        expected = f"groups of {size} numbers" if size else f"groups that divide {columns:,}"
        raise misfit(scale, codes, f"a scale for each of the {expected} in a row")
    if common is not None:
        scale = rescaled(codes, scale, common, divides=divides)
    text = f"{('mxfp6' if is_fp6 else 'mxfp4') if is_mx else 'nvfp4'}, groups of {size}"
    return scaled(codes, scale, (1, size), "bfloat16", numbers=numbers), text


def _packed(found: Found, scale: str, common: str = "", *, divides: bool = False) -> Plain:
    parts = found.parts
    spec, text = packed_fp4(found.codes, parts[scale], parts.get(common), divides=divides)
    return Plain(text, "bfloat16", lambda: spec)


def _deepseek(found: Found) -> Plain:
    scale = found.parts["_scale_inv"]
    check_dtype(scale, found.codes, "float", "uint8")
    if found.codes.dtype == "int8" and scale.dtype not in _EXPONENTS:  # ints, not pairs of codes
        return with_scale(found, "_scale_inv")
    return _packed(found, "_scale_inv")


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
    Scheme("", ("int8", "float4_e2m1fn_x2"), ("_scale_inv",), _deepseek),
)  # fmt: skip
