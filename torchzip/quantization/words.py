"""Codes of few bits in words of int32, and scales for groups of columns."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from torchzip.checkpoint.lazy_tensor import tensor_of
from torchzip.errors import FormatError, shown
from torchzip.quantization.arithmetic import (
    Array,
    Numbers,
    Operand,
    Part,
    check_dtype,
    computed,
    in_blocks,
    misfit,
    pairs_of,
    scaled,
)
from torchzip.tensors.specs import TensorSpec
from torchzip.tensors.views import padded, reshaped, sliced


def unpacked(words: Array, bits: int, count: int) -> Array:
    """Return codes that are packed along the last axis: little end first, without gaps.

    A code may lie across the border of two words of 32 bits.

    >>> unpacked(np.array([[0x87654321]], np.uint32), 4, 8).tolist()
    [[1, 2, 3, 4, 5, 6, 7, 8]]
    """
    raw = np.ascontiguousarray(words).view(np.uint8)
    if 8 % bits == 0:
        per_byte = 8 // bits
        shifts = np.arange(per_byte, dtype=np.uint8) * np.uint8(bits)
        codes = (raw[..., None] >> shifts) & np.uint8((1 << bits) - 1)
        return codes.reshape(*raw.shape[:-1], -1)[..., :count]
    begin = np.arange(count) * bits
    pair = np.concatenate([raw, np.zeros((*raw.shape[:-1], 1), np.uint8)], axis=-1).astype("<u2")
    both = pair[..., begin // 8] | (pair[..., begin // 8 + 1] << 8)
    made: Array = (both >> (begin % 8).astype(np.uint16)) & np.uint16((1 << bits) - 1)
    return made.astype(np.uint8)


class Packed(Numbers):
    """Codes of ``bits`` in words of int32 along the rows: ``count`` of them, less ``offset``."""

    def __init__(self, bits: int, count: int, offset: int = 0) -> None:
        self.bits, self.count, self.offset = bits, count, offset
        if bits == 4:
            self._pairs = pairs_of(np.arange(16) - offset)

    def columns(self, codes: int) -> int:
        return self.count

    def __call__(self, codes: Array) -> Array:
        if self.bits == 4:
            return np.take(self._pairs, codes.view(np.uint8)).view(np.float32)[:, : self.count]
        values = unpacked(codes, self.bits, self.count).astype(np.float32)
        values -= self.offset
        return values


@dataclass(frozen=True)
class PackedRows:
    """Makes float32 rows of codes of ``bits`` that are packed along the first axis.

    A block of it has ``words`` of int32, and gives as many rows as whole codes are in these. In
    ``order`` is where in the words each of the rows is.
    """

    bits: int
    offset: int
    order: tuple[int, ...] = ()

    def __call__(self, blocks: list[Array], first: int, stop: int) -> Array:
        words = blocks[0].swapaxes(1, 2)
        codes = unpacked(words, self.bits, 32 * words.shape[2] // self.bits)
        values = codes.astype(np.float32)
        values -= self.offset
        if self.order:
            values = values[..., list(self.order)]
        return values.swapaxes(1, 2)


def packed_rows(
    part: Part, bits: int, rows: int, *, offset: int = 0, order: tuple[int, ...] = ()
) -> Part:
    """Return the numbers, float32, of codes that are packed along the first of two axes."""
    at_once = 32 // math.gcd(32, bits)
    words = at_once * bits // 32
    have, columns = part.shape
    spec = part.spec
    if have % words:
        zero = tensor_of(np.zeros(1, np.int32))
        assert zero is not None
        spec = padded(spec, (have + -have % words, columns), zero.spec)
    blocks = Part(part.name, reshaped(spec, (spec.shape[0] // words, words, columns)))
    made = computed(
        PackedRows(bits, offset, order),
        [Operand(blocks)],
        "float32",
        blocks.shape[0],
        (at_once, columns),
    )
    flat = reshaped(made, (blocks.shape[0] * at_once, columns))
    return Part(part.name, flat if flat.shape[0] == rows else sliced(flat, slice(0, rows)))


@dataclass(frozen=True)
class Grouped:
    """Codes less zero points, times scales, where a group of columns has one of each.

    The last operand says of each column in which group it is. ``size`` columns that follow one
    another are one, mostly; quantizers that sort the columns by their importance put them anywhere.
    """

    size: int
    numbers: Numbers
    name: str

    def __call__(self, blocks: list[Array], first: int, stop: int) -> Array:
        codes, scale, *zero, (index,) = blocks
        values = self.numbers(codes)
        if np.array_equal(index, np.arange(index.size) // self.size):
            if zero:
                in_blocks(np.subtract, values, zero[0], self.size)
            in_blocks(np.multiply, values, scale, self.size)
            return values
        if index.min() < 0 or index.max() >= scale.shape[1]:
            raise FormatError(
                f"{shown(self.name)} has numbers of groups from {index.min():,} to "
                f"{index.max():,}; there are {scale.shape[1]:,} groups"
            )
        if zero:
            values -= zero[0][:, index]
        values *= scale[:, index]
        return values


def grouped(
    codes: Part,
    scale: Part,
    dtype: str,
    numbers: Numbers,
    *,
    size: int | None,
    zero: Part | None = None,
    index: Part | None = None,
) -> TensorSpec:
    """Return codes of the shape [rows, columns] scaled by groups of columns.

    ``size`` is that of a group if it is known, ``index`` the group of each column if they are not
    in order.
    """
    rows, inner = codes.shape
    columns = numbers.columns(inner)
    groups = scale.shape[-1]
    if size is None:
        size = columns // groups if groups and columns % groups == 0 else 0
    if scale.shape != (rows, -(-columns // size) if size else -1):
        raise misfit(
            scale, codes, f"one for each of {rows:,} rows and group of {columns:,} columns"
        )
    if zero is not None and zero.shape != scale.shape:
        raise misfit(zero, codes, f"{list(scale.shape)}, as the scales have,")
    if index is None:
        return scaled(codes, scale, (1, size), dtype, numbers=numbers, zero=zero)
    if index.shape != (columns,):
        raise misfit(index, codes, f"{[columns]}, the group of each column,")
    check_dtype(index, codes, "int")
    operands = [Operand(codes), Operand(scale)]
    operands += [] if zero is None else [Operand(zero)]
    operands += [Operand(index.reshaped(1, columns), rows)]
    return computed(Grouped(size, numbers, index.name), operands, dtype, rows, (columns,))
