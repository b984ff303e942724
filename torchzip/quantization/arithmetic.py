"""What the formulas of the schemes are made of: codes into numbers, numbers times their scales.

Everything is computed in float32, in blocks of rows (`tensors.computed`), and rounded once. A
function here gets blocks of codes and of what goes with them, and may write into them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from torchzip.dtypes import DTYPES
from torchzip.errors import FormatError, shown
from torchzip.tensors.computed import (
    ComputedStorage,
    Function,
    computing_dtype,
    fresh_spec,
    operand_of,
)
from torchzip.tensors.specs import Shape, TensorSpec
from torchzip.tensors.views import joined, permuted, reshaped, sliced

Array = NDArray[Any]


class Part(NamedTuple):
    """A tensor that a weight is made from, with its name for messages."""

    name: str
    spec: TensorSpec

    @property
    def shape(self) -> Shape:
        return self.spec.shape

    @property
    def dtype(self) -> str:
        return self.spec.torch_dtype

    def reshaped(self, *shape: int) -> Part:
        return Part(self.name, reshaped(self.spec, shape))

    def permuted(self, *axes: int) -> Part:
        return Part(self.name, permuted(self.spec, axes))

    def at(self, index: int) -> Part:
        """Return what is under an index of the first axis."""
        return Part(self.name, sliced(self.spec, index))

    def __str__(self) -> str:
        return f"{shown(self.name)} ({self.dtype} {list(self.shape)})"


class Operand(NamedTuple):
    """A part whose row, along its first axis, goes with ``repeat`` rows of the result."""

    part: Part
    repeat: int = 1


def misfit(part: Part, codes: Part, expected: str) -> FormatError:
    """Return the error for a companion that does not fit its codes."""
    return FormatError(f"{part} does not fit {codes}; {expected} was expected")


def check_dtype(part: Part, codes: Part, *kinds: str) -> None:
    """Raise FormatError if a companion is not of one of some kinds, or dtypes."""
    if part.dtype not in kinds and DTYPES[part.dtype].kind not in kinds:
        raise misfit(part, codes, f"the dtype {' or '.join(kinds)}")


def computed(
    function: Function, operands: Sequence[Operand], dtype: str, rows: int, row: Shape
) -> TensorSpec:
    """Return the tensor of ``rows`` rows of the shape ``row`` that a function makes of operands."""
    made = [
        operand_of(part.spec, computing_dtype(part.dtype), part.shape[1:], max(repeat, 1))
        for part, repeat in operands
    ]
    storage = ComputedStorage(function, made, dtype=dtype, computed="float32", rows=rows, row=row)
    return fresh_spec(dtype, (rows, *row), storage)


def of_each(
    make: Callable[..., TensorSpec], dtype: str, shape: Shape, *parts: Part | None
) -> TensorSpec:
    """Return what ``make`` gives of the last two axes of parts, one by one of those before.

    That is of each expert, mostly. ``shape`` is that of all together; a part may be missing.
    """
    count, matrix = math.prod(shape[:-2]), shape[-2:]
    flat = [None if part is None else part.reshaped(count, *part.shape[-2:]) for part in parts]
    made = [
        make(*(None if part is None else part.at(number) for part in flat))
        for number in range(count)
    ]
    boxes = [((number, 0, 0), reshaped(spec, (1, *matrix))) for number, spec in enumerate(made)]
    return reshaped(joined(dtype, (count, *matrix), boxes), shape)


class Numbers:
    """Makes float32 of a block of codes: of floats and ints, the numbers that they are."""

    def columns(self, codes: int) -> int:
        """Return how many numbers so many codes in a row are."""
        return codes

    def __call__(self, codes: Array) -> Array:
        return codes.astype(np.float32, copy=False)


#: What a nibble is in e2m1: a sign, two bits of exponent, one of mantissa.
_E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], np.float32)
FP4_VALUES = np.concatenate([_E2M1, -_E2M1])


def pairs_of(values: Array, *, high_first: bool = False) -> Array:
    """Return the two numbers of each byte, of a table of 16: 256 of them in 64 bits each.

    To take 64 bits at once is the quickest way to look up both.
    """
    byte = np.arange(256)
    nibbles = (byte >> 4, byte & 15) if high_first else (byte & 15, byte >> 4)
    pairs = np.stack([values[each] for each in nibbles], axis=1).astype(np.float32)
    return pairs.view(np.uint64).reshape(256)


_FP4_PAIRS = pairs_of(FP4_VALUES)


class Fp4(Numbers):
    """Two numbers of 4 bits in a byte, the low ones first."""

    def columns(self, codes: int) -> int:
        return 2 * codes

    def __call__(self, codes: Array) -> Array:
        return np.take(_FP4_PAIRS, codes.view(np.uint8)).view(np.float32)


def exponents(codes: Array) -> Array:
    """Return 2 ** (code - 127) of uint8 codes, as e8m0 has it: 255 is NaN."""
    table = np.ldexp(np.float32(1), np.arange(-127, 129))
    table[255] = np.nan
    return table[codes]


@dataclass(frozen=True)
class Scaled:
    """Codes times scales, of which there is one for a block of ``rows`` x ``columns`` numbers.

    The blocks at the end may be cut off. A third operand, of the shape of the scales, is subtracted
    from the codes first. Scales of uint8 are exponents.
    """

    rows: int
    columns: int
    numbers: Numbers

    def __call__(self, blocks: list[Array], first: int, stop: int) -> Array:
        values = self.numbers(blocks[0])
        scale, *zero = blocks[1:]
        if zero:
            in_blocks(np.subtract, values, self._of_rows(zero[0], first, stop), self.columns)
        if scale.dtype == np.uint8:
            scale = exponents(scale)
        in_blocks(np.multiply, values, self._of_rows(scale, first, stop), self.columns)
        return values

    def _of_rows(self, each: Array, first: int, stop: int) -> Array:
        """Return what goes with each row."""
        each = each.astype(np.float32, copy=False)
        if self.rows == 1:
            return each
        return each[np.arange(first, stop) // self.rows - first // self.rows]


def in_blocks(step: np.ufunc, values: Array, other: Array, columns: int) -> None:
    """Change values in place: one of ``other`` goes with ``columns`` of them in a row."""
    whole = values.shape[1] // columns
    if whole:
        inside = values[:, : whole * columns].reshape(len(values), whole, columns)
        step(inside, other[:, :whole, None], out=inside)
    if whole * columns < values.shape[1]:
        rest = values[:, whole * columns :]
        step(rest, other[:, whole : whole + 1], out=rest)


def scaled(
    codes: Part,
    scale: Part,
    block: tuple[int, int],
    dtype: str,
    *,
    numbers: Numbers | None = None,
    zero: Part | None = None,
) -> TensorSpec:
    """Return codes of the shape [..., rows, columns] times the scales of their blocks.

    Raises
    ------
    FormatError
        If scales or zero points are not of the shape that the blocks need.
    """
    numbers = numbers or Numbers()
    *leading, rows, inner = codes.shape
    columns = numbers.columns(inner)
    blocks = f"blocks of {block[0]}x{block[1]}"
    block = (max(1, min(block[0], rows)), max(1, min(block[1], columns)))
    needed = (*leading, -(-rows // block[0]), -(-columns // block[1]))
    companions = [scale] if zero is None else [scale, zero]
    for each in companions:
        if each.shape != needed:
            raise misfit(each, codes, f"{list(needed)}, for {blocks},")
    count = math.prod(leading)
    if count == 1 or rows % block[0] == 0:
        flat = [Operand(codes.reshaped(count * rows, inner))]
        flat += [
            Operand(each.reshaped(count * needed[-2], needed[-1]), block[0]) for each in companions
        ]
        made = computed(Scaled(*block, numbers), flat, dtype, count * rows, (columns,))
        return reshaped(made, (*leading, rows, columns))
    return of_each(
        lambda codes, scale, zero: scaled(codes, scale, block, dtype, numbers=numbers, zero=zero),
        dtype, (*leading, rows, columns), codes, scale, zero,
    )  # fmt: skip
