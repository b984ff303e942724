"""The blocks of codes of GGUF: a storage of numbers made of codes, and of two types the reverse.

A block stands for numbers of a row, 32 or 256 of them (`dtypes.BLOCKS`). Those that are written:

* q8_0: a scale ``d``, a float16, and 32 signed bytes; a number is ``d * code``. ``d`` is the
  greatest magnitude over 127, and a code is the number over ``d``, rounded to the nearest, halves
  away from zero;
* q4_0: ``d`` and 16 bytes with two codes each, number ``i`` in the low half of byte ``i`` and
  number ``i + 16`` in the high half; a number is ``d * (code - 8)``. ``d`` is the number of the
  greatest magnitude over -8, and a code is the number over ``d`` plus 8.5, cut, 15 at most.

Those that are only read are at their functions. The others (q8_k, iq1 to iq4, tq1, tq2, mxfp4) are
not decoded: such a tensor is listed, verified and copied to another file, and not read.

All is computed in float32, before ``d`` is rounded, as ggml and the ``gguf`` package do it: the
codes are theirs to the bit, and so are the numbers (`tests/test_against_gguf.py`).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from torchzip.dtypes import BLOCKS
from torchzip.errors import UnsupportedError
from torchzip.tensors.computed import ComputedStorage, Operand, operand_of
from torchzip.tensors.specs import TensorSpec
from torchzip.tensors.storage import TensorStorage

Array = NDArray[Any]


def fits(block: str, spec: TensorSpec) -> bool:
    """Return whether a tensor can have codes: it has rows, and each is a number of blocks."""
    return len(spec.shape) > 1 and spec.shape[-1] % BLOCKS[block].elements == 0


def encoded(spec: TensorSpec, block: str) -> TensorStorage:
    """Return the blocks that stand for the elements of a floating tensor, in C order."""
    row = BLOCKS[block]
    if spec.storage.block == block and spec.is_whole:
        return spec.storage.stored  # they came as these
    return ComputedStorage(
        partial(_of_one, _ENCODE[block]),
        [operand_of(spec, "float32", (row.elements,))],
        dtype="uint8",
        computed="uint8",
        rows=spec.numel // row.elements,
        row=(row.nbytes,),
    )


def _of_one(make: Callable[[Array], Array], blocks: list[Array], first: int, stop: int) -> Array:
    """Compute blocks of the one operand that there is."""
    return make(blocks[0])


class DecodedStorage(ComputedStorage):
    """The numbers, in float32, that blocks stand for."""

    def __init__(self, codes: TensorStorage, block: str) -> None:
        row = BLOCKS[block]
        super().__init__(
            partial(_of_one, _DECODE.get(block) or partial(_refuse, block, codes.record)),
            [Operand(codes, "uint8", "uint8", (row.nbytes,))],
            dtype="float32",
            computed="float32",
            rows=codes.nbytes // row.nbytes,
            row=(row.elements,),
        )
        self.block = block
        self.record = codes.record

    @property
    def stored(self) -> TensorStorage:
        return self.operands[0].elements


def _scales(greatest: Array, divisor: float) -> tuple[Array, Array]:
    """Return the scale of each block, and what its numbers are multiplied with."""
    scale: Array = greatest / np.float32(divisor)
    inverse = np.zeros_like(scale)
    np.divide(1, scale, out=inverse, where=scale != 0)
    return scale, inverse


def _blocks(scale: Array, codes: Array) -> Array:
    return np.concatenate([scale.astype(np.float16).view(np.uint8), codes.view(np.uint8)], axis=1)


def encode_q8_0(numbers: Array) -> Array:
    """Return blocks of q8_0 for rows of 32 numbers."""
    scale, inverse = _scales(np.abs(numbers).max(axis=1, keepdims=True), 127)
    numbers = numbers * inverse
    codes = np.trunc(numbers)
    numbers -= codes
    codes += np.copysign(np.abs(numbers) >= 0.5, numbers)
    return _blocks(scale, codes.astype(np.int8))


def encode_q4_0(numbers: Array) -> Array:
    """Return blocks of q4_0 for rows of 32 numbers."""
    place = np.abs(numbers).argmax(axis=1)[:, None]
    scale, inverse = _scales(np.take_along_axis(numbers, place, axis=1), -8)
    codes = (numbers * inverse + np.float32(8.5)).astype(np.uint8)
    np.minimum(codes, 15, out=codes)
    return _blocks(scale, codes[:, :16] | codes[:, 16:] << 4)


def _halves(raw: Array, first: int, stop: int) -> list[Array]:
    """Return the float16 numbers in bytes of each block, a column each, in float32."""
    numbers = np.ascontiguousarray(raw[:, first:stop]).view(np.float16).astype(np.float32)
    return np.split(numbers, numbers.shape[1], axis=1)


def _parts_of_bytes(raw: Array, bits: int, width: int) -> Array:
    """Return the codes in bytes: of ``width`` bytes all lowest bits, then all those above them."""
    shifts = np.arange(0, 8, bits, dtype=np.uint8)[:, None]
    parts = raw.reshape(len(raw), -1, 1, width) >> shifts & np.uint8((1 << bits) - 1)
    return parts.reshape(len(raw), -1)


def _scaled(codes: Array, scales: Array, least: Array | None = None) -> Array:
    """Return codes times scales, less ``least``; one of these goes with a run of the codes."""
    made: Array = codes.reshape(*scales.shape, -1) * scales[..., None]
    if least is not None:
        made -= least[..., None]
    return made.reshape(len(codes), -1)


def decode_q8_0(raw: Array) -> Array:
    """Return the numbers of blocks of q8_0."""
    (scale,) = _halves(raw, 0, 2)
    return raw[:, 2:].view(np.int8) * scale


def decode_q4_0(raw: Array) -> Array:
    """Return the numbers of blocks of q4_0."""
    (scale,) = _halves(raw, 0, 2)
    return (_parts_of_bytes(raw[:, 2:], 4, 16).view(np.int8) - np.int8(8)) * scale


def decode_q4_1(raw: Array) -> Array:
    """Return ``d * code + m``: after ``d`` and ``m`` the codes are as in q4_0."""
    scale, least = _halves(raw, 0, 4)
    return _parts_of_bytes(raw[:, 4:], 4, 16) * scale + least


def _five_bits(raw: Array) -> Array:
    """Return codes of five bits: bit ``i`` of four bytes goes above the ``i``-th of q4_0."""
    high: Array = np.unpackbits(raw[:, :4], axis=1, bitorder="little") << np.uint8(4)
    return _parts_of_bytes(raw[:, 4:], 4, 16) | high


def decode_q5_0(raw: Array) -> Array:
    """Return ``d * (code - 16)``."""
    (scale,) = _halves(raw, 0, 2)
    return (_five_bits(raw[:, 2:]).view(np.int8) - np.int8(16)) * scale


def decode_q5_1(raw: Array) -> Array:
    """Return ``d * code + m``."""
    scale, least = _halves(raw, 0, 4)
    return _five_bits(raw[:, 4:]) * scale + least


def decode_q2_k(raw: Array) -> Array:
    """Return ``d * s * code - m * t``; a byte has ``s`` (low) and ``t`` of 16 codes of two bits.

    The 16 bytes come first, then the codes, two bits of 32 bytes at a time, then ``d`` and ``m``.
    """
    scale, least = _halves(raw, 80, 84)
    small = raw[:, :16]
    codes = _parts_of_bytes(raw[:, 16:80], 2, 32)
    return _scaled(codes, scale * (small & 15), least * (small >> 4))


def decode_q3_k(raw: Array) -> Array:
    """Return ``d * (s - 32) * (code - 4)``.

    32 bytes have the third bits of the codes, bit ``i`` those of the ``i``-th 32; 64 bytes have the
    others as in q2_k; 12 bytes have ``s`` of each 16 codes, four low bits of each, then two high
    ones; ``d`` is last.
    """
    (scale,) = _halves(raw, 108, 110)
    low, high = _parts_of_bytes(raw[:, 96:104], 4, 8), _parts_of_bytes(raw[:, 104:108], 2, 4)
    small = (low | high << 4).view(np.int8) - np.int8(32)
    codes = _parts_of_bytes(raw[:, 32:96], 2, 32) | _parts_of_bytes(raw[:, :32], 1, 32) << 2
    return _scaled(codes.view(np.int8) - np.int8(4), scale * small)


def _scales_of_six_bits(raw: Array) -> tuple[Array, Array]:
    """Return what q4_k and q5_k have of each 32 codes: ``d * s`` and ``m * t``.

    ``d`` and ``m`` are first. Of the 12 bytes that follow, the first four have ``s`` of four runs
    and the next four ``t``; the last have the low halves of the other ``s`` (low) and ``t``, whose
    two high bits are above those of the first eight bytes.
    """
    scale, least = _halves(raw, 0, 4)
    s, t, others = np.split(raw[:, 4:16], 3, axis=1)
    made = (
        np.concatenate([s & 63, others & 15 | s >> 6 << 4], axis=1),
        np.concatenate([t & 63, others >> 4 | t >> 6 << 4], axis=1),
    )
    return scale * made[0], least * made[1]


def decode_q4_k(raw: Array) -> Array:
    """Return ``d * s * code - m * t``; the codes are halves of 32 bytes at a time."""
    return _scaled(_parts_of_bytes(raw[:, 16:], 4, 32), *_scales_of_six_bits(raw))


def decode_q5_k(raw: Array) -> Array:
    """Return what q4_k has; bit ``i`` of 32 bytes before the codes is above the ``i``-th 32."""
    high = _parts_of_bytes(raw[:, 16:48], 1, 32) << 4
    return _scaled(_parts_of_bytes(raw[:, 48:], 4, 32) | high, *_scales_of_six_bits(raw))


def decode_q6_k(raw: Array) -> Array:
    """Return ``d * s * (code - 32)``; ``s`` are signed bytes, one for 16 codes.

    128 bytes have the low halves of the codes, 64 at a time; 64 bytes have the two high bits, 32 at
    a time; ``s`` and ``d`` follow.
    """
    (scale,) = _halves(raw, 208, 210)
    low = _parts_of_bytes(raw[:, :128], 4, 64)
    codes = low | _parts_of_bytes(raw[:, 128:192], 2, 32) << 4
    return _scaled(codes.view(np.int8) - np.int8(32), scale * raw[:, 192:208].view(np.int8))


def _refuse(block: str, record: str | None, raw: Array) -> Array:
    raise UnsupportedError(
        f"numbers of the GGUF type {block} are not decoded; {', '.join(_DECODE)} are. Leave the "
        "tensor out, or convert to another .gguf file, which copies it",
        record=record,
    )


_ENCODE: dict[str, Callable[[Array], Array]] = {"q8_0": encode_q8_0, "q4_0": encode_q4_0}
_DECODE: dict[str, Callable[[Array], Array]] = {
    "q8_0": decode_q8_0, "q4_0": decode_q4_0, "q4_1": decode_q4_1, "q5_0": decode_q5_0,
    "q5_1": decode_q5_1, "q2_k": decode_q2_k, "q3_k": decode_q3_k, "q4_k": decode_q4_k,
    "q5_k": decode_q5_k, "q6_k": decode_q6_k,
}  # fmt: skip
#: What rules for dtypes may ask for.
ENCODED = tuple(_ENCODE)
#: Those whose numbers can be read.
DECODED = frozenset(_DECODE)
