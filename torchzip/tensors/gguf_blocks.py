"""The blocks of codes of GGUF, each way: a storage of codes made of numbers, and of numbers.

A block stands for 32 numbers of a row. It begins with a scale ``d``, a float16, and then has

* q8_0: 32 signed bytes; a number is ``d * code``. ``d`` is the greatest magnitude over 127, and a
  code is the number over ``d``, rounded to the nearest, halves away from zero;
* q4_0: 16 bytes with two codes each, number ``i`` in the low half of byte ``i`` and number
  ``i + 16`` in the high half; a number is ``d * (code - 8)``. ``d`` is the number of the greatest
  magnitude over -8, and a code is the number over ``d`` plus 8.5, cut, 15 at most.

All is computed in float32, before ``d`` is rounded, as ggml and the ``gguf`` package do it: the
codes are theirs to the bit (`tests/test_against_gguf.py`).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from torchzip.dtypes import BLOCKS
from torchzip.tensors.computed import ComputedStorage, Function, Operand, operand_of
from torchzip.tensors.specs import TensorSpec, is_contiguous
from torchzip.tensors.storage import TensorStorage

Array = NDArray[Any]


def fits(block: str, spec: TensorSpec) -> bool:
    """Return whether a tensor can have codes: it has rows, and each is a number of blocks."""
    return len(spec.shape) > 1 and spec.shape[-1] % BLOCKS[block].elements == 0


def encoded(spec: TensorSpec, block: str) -> TensorStorage:
    """Return the blocks that stand for the elements of a floating tensor, in C order."""
    row = BLOCKS[block]
    if isinstance(spec.storage, DecodedStorage) and spec.storage.is_whole(spec, block):
        return spec.storage.codes  # they came as these
    return ComputedStorage(
        _ENCODE[block],
        [operand_of(spec, "float32", (row.elements,))],
        dtype="uint8",
        computed="uint8",
        rows=spec.numel // row.elements,
        row=(row.nbytes,),
    )


class DecodedStorage(ComputedStorage):
    """The numbers, in float32, that blocks stand for."""

    def __init__(self, codes: TensorStorage, block: str) -> None:
        row = BLOCKS[block]
        super().__init__(
            _DECODE[block],
            [Operand(codes, "uint8", "uint8", (row.nbytes,))],
            dtype="float32",
            computed="float32",
            rows=codes.nbytes // row.nbytes,
            row=(row.elements,),
        )
        self.codes = codes
        self.block = block

    def is_whole(self, spec: TensorSpec, block: str) -> bool:
        """Return whether a tensor has all numbers in their order, and these blocks are wanted."""
        elements = spec.numel * 4 == self.nbytes and spec.storage_offset == 0
        return block == self.block and elements and is_contiguous(spec.shape, spec.stride)


def _scales(greatest: Array, divisor: float) -> tuple[Array, Array]:
    """Return the scale of each block, and what its numbers are multiplied with."""
    scale = greatest / np.float32(divisor)
    inverse = np.zeros_like(scale)
    np.divide(1, scale, out=inverse, where=scale != 0)
    return scale, inverse


def _blocks(scale: Array, codes: Array) -> Array:
    return np.concatenate([scale.astype(np.float16).view(np.uint8), codes.view(np.uint8)], axis=1)


def encode_q8_0(blocks: list[Array], first: int, stop: int) -> Array:
    """Return blocks of q8_0 for rows of 32 numbers."""
    (numbers,) = blocks
    scale, inverse = _scales(np.abs(numbers).max(axis=1, keepdims=True), 127)
    numbers = numbers * inverse
    codes = np.trunc(numbers)
    numbers -= codes
    codes += np.copysign(np.abs(numbers) >= 0.5, numbers)
    return _blocks(scale, codes.astype(np.int8))


def encode_q4_0(blocks: list[Array], first: int, stop: int) -> Array:
    """Return blocks of q4_0 for rows of 32 numbers."""
    (numbers,) = blocks
    place = np.abs(numbers).argmax(axis=1)[:, None]
    scale, inverse = _scales(np.take_along_axis(numbers, place, axis=1), -8)
    codes = (numbers * inverse + np.float32(8.5)).astype(np.uint8)
    np.minimum(codes, 15, out=codes)
    return _blocks(scale, codes[:, :16] | codes[:, 16:] << 4)


def decode_q8_0(blocks: list[Array], first: int, stop: int) -> Array:
    """Return the numbers of blocks of q8_0."""
    (raw,) = blocks
    scale = np.ascontiguousarray(raw[:, :2]).view(np.float16).astype(np.float32)
    return raw[:, 2:].view(np.int8) * scale


def decode_q4_0(blocks: list[Array], first: int, stop: int) -> Array:
    """Return the numbers of blocks of q4_0."""
    (raw,) = blocks
    scale = np.ascontiguousarray(raw[:, :2]).view(np.float16).astype(np.float32)
    codes = np.concatenate([raw[:, 2:] & 15, raw[:, 2:] >> 4], axis=1)
    return (codes.astype(np.int8) - np.int8(8)) * scale


_ENCODE: dict[str, Function] = {"q8_0": encode_q8_0, "q4_0": encode_q4_0}
_DECODE: dict[str, Function] = {"q8_0": decode_q8_0, "q4_0": decode_q4_0}
