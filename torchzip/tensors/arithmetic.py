"""Arithmetic of tensors that nobody has read: which dtype comes out, and what computes it.

The rules are numpy's. Of two dtypes comes what `numpy.promote_types` gives, of ints and bools what
the operation gives; a number has no dtype of its own and takes that of the tensor, as in torch.
Ints and bools divided are float32. Shapes are broadcast. What numpy would do with loss is refused:
64-bit ints become floats only by a division, or where `converted` is asked for that.

How it rounds: floats of up to 32 bits are computed in float32 and rounded once, at the end of the
whole expression; torch rounds after each operation (``(a + b) / 2`` of bfloat16 twice). Of float32
both give the same bits. Ints are divided in float64, and rounded to float32 then; torch divides
float32. float64 and complex are computed in their own dtype, and ints wrap around, as in both.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from torchzip.dtypes import DTYPES
from torchzip.tensors.casts import CastStorage, is_castable
from torchzip.tensors.computed import (
    ComputationError,
    ComputedStorage,
    Function,
    computing_dtype,
    fresh_spec,
    operand_of,
    unrounded,
)
from torchzip.tensors.numpy_dtypes import has_numpy_dtype, numpy_dtype, torch_dtype_of
from torchzip.tensors.packing import elements_of
from torchzip.tensors.specs import TensorSpec
from torchzip.tensors.views import broadcast_spec

Array = NDArray[Any]
Number = int | float | complex


@dataclass(frozen=True, slots=True)
class Arithmetic:
    """One operation on two operands. A number is one of them if it is not None."""

    ufunc: np.ufunc
    left: Number | None = None
    right: Number | None = None

    def __call__(self, blocks: list[Array], first: int, stop: int) -> Array:
        left = blocks[0] if self.left is None else self.left
        right = blocks[-1] if self.right is None else self.right
        made: Array = self.ufunc(left, right, out=blocks[0])
        return made


def arithmetic(
    ufunc: np.ufunc, left: TensorSpec | Number, right: TensorSpec | Number
) -> TensorSpec:
    """Return ``ufunc(left, right)``; at least one of them is a tensor.

    Raises
    ------
    TypeError
        If the dtypes do not go together without loss.
    ValueError
        If the shapes do not go together, or a number is out of the range of the tensor's dtype.
    """
    specs = [each for each in (left, right) if isinstance(each, TensorSpec)]
    numbers = [None if isinstance(each, TensorSpec) else each for each in (left, right)]
    dtype = _result_dtype(ufunc, left, right)
    computed = computing_dtype(dtype)
    if dtype == "float32" and all(
        DTYPES[each.torch_dtype].kind in ("int", "bool") for each in specs
    ):
        computed = "float64"
    if DTYPES[computed].kind == "float":
        try:
            numbers = [None if each is None else float(each.real) for each in numbers]
        except OverflowError:
            raise ValueError("an int is out of the range of floats") from None
    shape = broadcast_shape([spec.shape for spec in specs])
    operands = [operand_of(broadcast_spec(spec, shape), computed) for spec in specs]
    storage = ComputedStorage(
        Arithmetic(ufunc, *numbers), operands, dtype=dtype, computed=computed,
        rows=math.prod(shape),
    )  # fmt: skip
    return fresh_spec(dtype, shape, storage)


def broadcast_shape(shapes: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    """Return the shape that tensors of several shapes have together."""
    made = []
    for axis in range(-max(map(len, shapes), default=0), 0):
        sizes = {shape[axis] for shape in shapes if len(shape) >= -axis} - {1}
        if len(sizes) > 1:
            shown = " and ".join(str(list(shape)) for shape in dict.fromkeys(shapes))
            raise ValueError(f"tensors of shapes {shown} do not go together")
        made.append(sizes.pop() if sizes else 1)
    return tuple(made)


def promoted(dtypes: Sequence[str]) -> str:
    """Return the dtype that tensors of several dtypes have together, as numpy has it.

    Raises
    ------
    TypeError
        If numpy has none, or one that would lose something.
    """
    made = dtypes[0]
    for other in dtypes[1:]:
        if other == made:
            continue
        both = f"{made} and {other}"
        try:
            found = torch_dtype_of(np.promote_types(_numbers(made), _numbers(other)))
        except TypeError:
            found = None
        if found is None:
            raise TypeError(
                f"numpy has no dtype for {both} together; give one of them another with .to()"
            )
        kinds = [DTYPES[made], DTYPES[other]]
        if DTYPES[found].kind not in ("int", "bool") and any(
            row.kind == "int" and row.itemsize == 8 for row in kinds
        ):
            raise TypeError(
                f"{both} together are {found}, which loses large ints; give one of them another "
                "dtype with .to()"
            )
        made = found
    return made


def _numbers(torch_dtype: str) -> np.dtype[Any]:
    """Return the numpy dtype of numbers; raise TypeError if numpy cannot calculate with them."""
    if not (DTYPES[torch_dtype].has_numbers and has_numpy_dtype(torch_dtype)):
        raise TypeError(f"numpy cannot calculate with {torch_dtype}")
    return numpy_dtype(torch_dtype)


def _result_dtype(ufunc: np.ufunc, left: TensorSpec | Number, right: TensorSpec | Number) -> str:
    sides = [each.torch_dtype if isinstance(each, TensorSpec) else each for each in (left, right)]
    dtypes = [each for each in sides if isinstance(each, str)]
    numbers = [each for each in sides if not isinstance(each, str)]
    for each in dtypes:
        _numbers(each)
    kinds = {DTYPES[each].kind for each in dtypes}
    are_whole = kinds <= {"int", "bool"}
    if are_whole and ufunc is np.divide and not any(isinstance(each, complex) for each in numbers):
        return "float32"
    if not numbers and not are_whole:
        return promoted(dtypes)
    if not are_whole:
        wide = "complex64" if dtypes[0] != "float64" else "complex128"
        return wide if isinstance(numbers[0], complex) and kinds == {"float"} else dtypes[0]
    # What the operation gives of ints: that of bools may be none, or other than the promotion.
    if len(dtypes) == 2:
        promoted(dtypes)
    ones = [np.ones(1, numpy_dtype(each)) if isinstance(each, str) else each for each in sides]
    try:
        found = torch_dtype_of(ufunc(*ones).dtype)
    except OverflowError:
        raise ValueError(f"{numbers[0]} is out of the range of {dtypes[0]}") from None
    if found is None or (DTYPES[found].kind not in ("int", "bool") and _is_long(dtypes)):
        raise TypeError(
            f"{dtypes[0]} with {numbers[0]} is {found}, which loses large ints; use .to() first"
        )
    return found


def _is_long(dtypes: Sequence[str]) -> bool:
    return any(DTYPES[each].itemsize == 8 for each in dtypes)


@dataclass(frozen=True, slots=True)
class Converted:
    """Ints, and what becomes of them in another dtype of ints, or as bools."""

    torch_dtype: str

    def __call__(self, blocks: list[Array], first: int, stop: int) -> Array:
        (block,) = blocks
        made = block.astype(numpy_dtype(self.torch_dtype))
        if made.dtype != np.bool and not (made == block).all():
            lost = block[np.flatnonzero(made != block)[0]]
            raise ComputationError(f"{lost} does not go into {self.torch_dtype}")
        return made


def converted(spec: TensorSpec, torch_dtype: str) -> TensorSpec:
    """Return a tensor in another dtype; an expression is rounded once, to that dtype.

    Floats round as torch's ``.to()`` rounds. Ints become floats that are nearest to them, and other
    ints if they fit: it is an error when they are read, if they do not.

    Raises
    ------
    TypeError
        If it would lose more than that: floats to ints, complex to real numbers.
    """
    if spec.torch_dtype == torch_dtype:
        return spec
    spec = unrounded(spec)
    if spec.torch_dtype == torch_dtype:
        return spec
    source, target = DTYPES[spec.torch_dtype], DTYPES[torch_dtype]
    if is_castable(spec.torch_dtype) and is_castable(torch_dtype):
        storage = CastStorage(elements_of(spec), spec.torch_dtype, torch_dtype)
        return fresh_spec(torch_dtype, spec.shape, storage)
    order = ("bool", "int", "float", "complex")
    if not (source.has_numbers and target.has_numbers) or (
        order.index(source.kind) > order.index(target.kind) and source.kind != "int"
    ):
        raise TypeError(
            f"{spec.torch_dtype} does not become {torch_dtype} without loss; say how with "
            "lazy.compute"
        )
    function: Function
    if source.kind in ("bool", "int") and target.kind in ("bool", "int"):
        function, computed, given = Converted(torch_dtype), torch_dtype, spec.torch_dtype
    else:
        wide = "float64" if target.kind == "float" else torch_dtype
        function, computed, given = _same, wide, wide
    made = ComputedStorage(
        function, [operand_of(spec, given)], dtype=torch_dtype, computed=computed, rows=spec.numel
    )
    if made.computed != made.dtype:  # what is rounded here is what was asked for
        storage = CastStorage(made.unrounded(), computed, torch_dtype)
        return fresh_spec(torch_dtype, spec.shape, storage)
    return fresh_spec(torch_dtype, spec.shape, made)


def _same(blocks: list[Array], first: int, stop: int) -> Array:
    return blocks[0]
