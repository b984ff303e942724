"""nf4 and fp4 of bitsandbytes: codes of 4 bits, high nibbles first, in groups of all elements.

Beside ``weight`` (uint8, two elements in a byte, whatever the weight's shape):

* ``weight.absmax``: a float32 for each group of ``blocksize`` elements in C order;
* ``weight.quant_map``: the 16 numbers that the codes stand for;
* ``weight.quant_state.bitsandbytes__nf4`` (or ``fp4``): JSON as uint8 with the shape, the dtype and
  ``blocksize`` of the weight;
* if ``absmax`` is quantized as well (uint8): ``weight.nested_quant_map`` with 256 numbers and
  ``weight.nested_absmax``, one for ``nested_blocksize`` of them, and ``nested_offset`` in the JSON.

The weight is ``quant_map[code] * absmax``, where a nested absmax is
``nested_quant_map[code] * nested_absmax + nested_offset``, rounded after each step.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from torchzip.container.json_objects import parse_json
from torchzip.errors import FormatError, shown
from torchzip.quantization.arithmetic import (
    Array,
    Operand,
    Part,
    check_dtype,
    computed,
    misfit,
    pairs_of,
)
from torchzip.quantization.scheme import Found, Plain, Scheme, read_small
from torchzip.tensors.specs import TensorSpec
from torchzip.tensors.views import reshaped, sliced

_DTYPES = ("bfloat16", "float16", "float32")


@dataclass(frozen=True)
class Pairs:
    """Looks up the two elements of each byte; ``half`` bytes have one scale."""

    half: int

    def __call__(self, blocks: list[Array], first: int, stop: int) -> Array:
        codes, absmax, table = blocks
        values = np.take(pairs_of(table[0], high_first=True), codes).view(np.float32)
        pairs: Array = values.reshape(-1, 2)
        pairs *= absmax[np.arange(first, stop) // self.half - first // self.half, None]
        return pairs


@dataclass(frozen=True)
class Nested:
    """Looks up the scales that are codes themselves; ``size`` of them have one scale."""

    size: int
    offset: float

    def __call__(self, blocks: list[Array], first: int, stop: int) -> Array:
        codes, absmax, table = blocks
        values: Array = table[0][codes]
        values *= absmax[np.arange(first, stop) // self.size - first // self.size]
        values += np.float32(self.offset)
        return values


def _four_bits(found: Found, kind: str) -> Plain:
    codes, absmax = found.codes, found.parts[".absmax"]
    groups = absmax.spec.numel
    size = 1 << max(2 * codes.spec.numel // max(groups, 1) - 1, 0).bit_length()
    text = f"{kind}, groups of {size}" if groups > 1 else kind
    return Plain(text, None, lambda: _weight(found, kind))


def _weight(found: Found, kind: str) -> TensorSpec:
    codes, absmax, table = found.codes, found.parts[".absmax"], found.parts[".quant_map"]
    state_part = found.parts[f".quant_state.bitsandbytes__{kind}"]
    check_dtype(state_part, codes, "uint8")
    state = parse_json(read_small(state_part).tobytes(), "the quant_state", state_part.name)
    size = _positive(state, "blocksize", state_part)
    shape, dtype = state.get("shape"), state.get("dtype")
    if not isinstance(shape, list) or not all(type(each) is int and each >= 0 for each in shape):
        raise FormatError(f"{state_part}: a shape of {shown(shape)}")
    if dtype not in _DTYPES:
        raise FormatError(f"{state_part}: a dtype of {shown(dtype)}; one of {', '.join(_DTYPES)} "
                          "was expected")  # fmt: skip
    numel = math.prod(shape)
    if size % 2 or codes.spec.numel != -(-numel // 2):
        raise misfit(codes, state_part, f"{-(-numel // 2):,} bytes, for the shape {shape},")
    groups = -(-numel // size)
    check_dtype(table, codes, "float32")
    if table.spec.numel != 16:
        raise misfit(table, codes, "16 numbers")
    if absmax.spec.numel != groups:
        raise misfit(absmax, codes, f"{groups:,} numbers, for groups of {size},")
    flat = absmax.reshaped(groups)
    if absmax.dtype == "uint8":
        flat = _nested(found, flat, state, state_part)
    else:
        check_dtype(absmax, codes, "float32")
    rows = codes.spec.numel
    operands = [
        Operand(codes.reshaped(rows)),
        Operand(flat, size // 2),
        Operand(table.reshaped(1, 16), rows),
    ]
    pairs = reshaped(computed(Pairs(size // 2), operands, str(dtype), rows, (2,)), (2 * rows,))
    return reshaped(pairs if numel == 2 * rows else sliced(pairs, slice(0, numel)), shape)


def _nested(found: Found, codes: Part, state: Mapping[str, Any], where: Part) -> Part:
    """Return scales that are kept as codes."""
    size = _positive(state, "nested_blocksize", where)
    offset = state.get("nested_offset")
    if not isinstance(offset, int | float):
        raise FormatError(f"{where}: a nested_offset of {shown(offset)}; a number was expected")
    absmax, table = found.parts.get(".nested_absmax"), found.parts.get(".nested_quant_map")
    if absmax is None or table is None:
        raise FormatError(
            f"{codes} are codes themselves, and '.nested_absmax' or '.nested_quant_map' of "
            f"{shown(found.codes.name)} is not there"
        )
    groups = -(-codes.spec.numel // size)
    if absmax.spec.numel != groups or table.spec.numel != 256:
        raise misfit(absmax, codes, f"{groups:,} numbers, and 256 in {shown(table.name)},")
    check_dtype(absmax, codes, "float32")
    check_dtype(table, codes, "float32")
    count = codes.spec.numel
    operands = [
        Operand(codes),
        Operand(absmax.reshaped(groups), size),
        Operand(table.reshaped(1, 256), count),
    ]
    return Part(codes.name, computed(Nested(size, float(offset)), operands, "float32", count, ()))


def _positive(state: Mapping[str, Any], key: str, where: Part) -> int:
    value = state.get(key)
    if type(value) is not int or value < 1:
        raise FormatError(f"{where}: a {key} of {shown(value)}; 1 or more was expected")
    return value


def _scheme(kind: str) -> Scheme:
    return Scheme(
        "", ("uint8",), (".absmax", ".quant_map", f".quant_state.bitsandbytes__{kind}"),
        lambda found: _four_bits(found, kind),
        may_have=(".nested_absmax", ".nested_quant_map"),
    )  # fmt: skip


SCHEMES = (_scheme("nf4"), _scheme("fp4"))
