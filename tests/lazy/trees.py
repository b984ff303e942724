"""Expressions as trees that hypothesis draws: of tensors of a file, and of what numpy has there.

Beside each LazyTensor is the array of what it is before it is rounded to its dtype: the array in
the dtype that it is computed in.
"""

from __future__ import annotations

import io
import math
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
from hypothesis import strategies as st

import torchzip as tz
from tests.tensors.test_specs import indices
from torchzip.dtypes import DTYPES
from torchzip.tensors.arithmetic import promoted
from torchzip.tensors.cast_steps import plain_cast
from torchzip.tensors.computed import computing_dtype
from torchzip.tensors.numpy_dtypes import numpy_dtype, torch_dtype_of

Array = np.ndarray[Any, Any]

FLOATS = ("float32", "bfloat16", "float16", "float64", "float8_e4m3fn", "float8_e5m2")
DTYPES_OF_LEAVES = (*FLOATS, "int8", "int32", "int64", "uint8", "bool", "complex64")


def rounded(array: Array, torch_dtype: str) -> Array:
    """Return an array in the dtype of a result, as a cast of torchzip rounds."""
    source = torch_dtype_of(array.dtype)
    assert source is not None
    if source == torch_dtype:
        return array
    with np.errstate(all="ignore"):
        if DTYPES[source].castable and DTYPES[torch_dtype].castable:
            return np.asarray(plain_cast(array, source, torch_dtype))
        return array.astype(numpy_dtype(torch_dtype))


@dataclass
class Both:
    """A tensor, and the array that it stands for before it is rounded to its dtype."""

    lazy: tz.LazyTensor
    wide: Array

    @property
    def array(self) -> Array:
        """The array that it is to be."""
        return rounded(self.wide, self.lazy.torch_dtype)


@st.composite
def leaves(draw: st.DrawFn, dtypes: tuple[str, ...], shape: tuple[int, ...] | None = None) -> Both:
    """Draw a tensor of a file, laid out in any way."""
    if shape is None:
        shape = tuple(draw(st.lists(st.integers(1, 6), min_size=0, max_size=3)))
    torch_dtype = draw(st.sampled_from(dtypes))
    dtype = numpy_dtype(torch_dtype)
    numbers = np.random.default_rng(draw(st.integers(0, 99)))
    values: Array = numbers.integers(-90, 90, math.prod(shape)) / 8
    if DTYPES[torch_dtype].kind in ("int", "bool"):
        values = numbers.integers(0, 2 if torch_dtype == "bool" else 20, math.prod(shape))
    elif DTYPES[torch_dtype].kind == "complex":
        values = values + 1j * values[::-1]
    array = values.reshape(shape).astype(dtype)
    layout = draw(st.sampled_from(["C", "F", "gaps", "broadcast"]))
    if layout == "F" and shape:
        array = np.asfortranarray(array)
    elif layout == "gaps" and shape:
        spaced = np.zeros((*shape[:-1], 2 * shape[-1]), dtype)
        spaced[..., ::2] = array
        array = spaced[..., ::2]
    elif layout == "broadcast" and shape:
        array = np.broadcast_to(array[:1], shape)
    file = io.BytesIO()
    tz.save({"t": array}, file)
    file.seek(0)
    return Both(tz.lazy_load(file)["t"], array)


def _wide(both: Both, torch_dtype: str) -> Array:
    """Return what an operation of this dtype takes of an operand."""
    return rounded(both.wide, torch_dtype)


_UFUNCS = {"+": np.add, "-": np.subtract, "*": np.multiply, "/": np.divide}


@st.composite
def sums(draw: st.DrawFn, left: Both, right: Both) -> Both:
    """Draw an operation of two tensors whose dtypes go together."""
    ufunc = _UFUNCS[draw(st.sampled_from("+-*/"))]
    made: tz.LazyTensor = {
        np.add: lambda a, b: a + b, np.subtract: lambda a, b: a - b,
        np.multiply: lambda a, b: a * b, np.divide: lambda a, b: a / b,
    }[ufunc](left.lazy, right.lazy)  # fmt: skip
    kinds = {DTYPES[each.lazy.torch_dtype].kind for each in (left, right)}
    wide = computing_dtype(made.torch_dtype)
    if ufunc is np.divide and kinds <= {"int", "bool"}:
        wide = "float64"
    with np.errstate(all="ignore"):
        return Both(made, ufunc(_wide(left, wide), _wide(right, wide)))


@st.composite
def views(draw: st.DrawFn, both: Both) -> Both:
    """Draw a view of a tensor."""
    lazy, wide = both.lazy, both.wide
    kind = draw(st.sampled_from(["slice", "T", "permute", "reshape", "to"]))
    if kind == "slice":
        key = draw(indices(lazy.shape).filter(lambda key: is_inside(wide, key)))
        return Both(lazy.lazy[key], np.asarray(wide[key]))
    if kind == "T":
        return Both(lazy.T, wide.T)
    if kind == "permute":
        axes = draw(st.permutations(range(lazy.ndim)))
        return Both(lazy.permute(*axes), wide.transpose(axes))
    if kind == "reshape":
        numel = math.prod(lazy.shape)
        divisors = [n for n in range(1, numel + 1) if numel % n == 0]
        shape = (draw(st.sampled_from(divisors)), -1) if numel else (0, 3)
        return Both(lazy.reshape(*shape), wide.reshape(shape))
    if lazy.torch_dtype in FLOATS:
        dtype = draw(st.sampled_from(FLOATS))
        if dtype != lazy.torch_dtype:
            return Both(lazy.to(dtype), rounded(wide, dtype))
    return both


@st.composite
def joins(draw: st.DrawFn, both: Both, dtypes: tuple[str, ...]) -> Both:
    """Draw what several tensors make together."""
    lazy, wide = both.lazy, both.wide
    if draw(st.booleans()):
        shape = tuple(size + draw(st.integers(0, 2)) for size in lazy.shape)
        made = tz.lazy.pad(lazy, shape, 1)
        expected = np.ones(shape, wide.dtype)
        expected[tuple(slice(size) for size in lazy.shape)] = wide
        return Both(made, expected)
    others = [draw(leaves(dtypes, lazy.shape)) for _ in range(draw(st.integers(0, 2)))]
    parts = [both, *others]
    if lazy.ndim and draw(st.booleans()):
        axis = draw(st.integers(0, lazy.ndim - 1))
        joined = tz.lazy.cat([each.lazy for each in parts], axis)
        dtype = joined.torch_dtype
        wides = [_wide_of_part(each, dtype) for each in parts]
        return Both(joined, np.concatenate(_alike(wides), axis))
    axis = draw(st.integers(0, lazy.ndim))
    stacked = tz.lazy.stack([each.lazy for each in parts], axis)
    wides = [_wide_of_part(each, stacked.torch_dtype) for each in parts]
    return Both(stacked, np.stack(_alike(wides), axis))


def _wide_of_part(both: Both, torch_dtype: str) -> Array:
    return both.wide if both.lazy.torch_dtype == torch_dtype else rounded(both.wide, torch_dtype)


def _alike(wides: list[Array]) -> list[Array]:
    """Return parts as they are before they are rounded, all in the widest dtype among them."""
    wide = max((each.dtype for each in wides), key=lambda dtype: dtype.itemsize)
    return [each.astype(wide) for each in wides]


@st.composite
def expressions(draw: st.DrawFn) -> Both:
    """Draw an expression of a few steps."""
    # float8 goes with float32 and itself alone in numpy, and 64-bit ints with no float.
    dtypes = draw(
        st.sampled_from(
            [("float32", "bfloat16"), ("float32", "float16", "float64"), ("float8_e4m3fn",),
             ("float8_e5m2", "float32"), ("int8", "int32", "uint8", "bool"), ("int64",),
             ("complex64", "float32"), ("bfloat16",)]
        )
    )  # fmt: skip
    both = draw(leaves(dtypes))
    for _ in range(draw(st.integers(1, 4))):
        kind = draw(st.sampled_from(["view", "view", "sum", "number", "join"]))
        if kind == "view":
            both = draw(views(both))
        elif kind == "join" and both.lazy.ndim < 4:
            both = draw(joins(both, _that_go_with(both, dtypes)))
        elif kind == "sum":
            shape = draw(st.sampled_from([both.lazy.shape, both.lazy.shape[-1:], ()]))
            other = draw(leaves(_that_go_with(both, dtypes), shape))
            if "bool" not in (both.lazy.torch_dtype, other.lazy.torch_dtype):
                both = draw(sums(*draw(st.permutations([both, other]))))
        elif kind == "number" and both.lazy.torch_dtype != "bool":
            number = draw(st.sampled_from([2, 3, 0.7]))
            if DTYPES[both.lazy.torch_dtype].kind == "int":
                number = 2
            made = both.lazy * number
            wide = _wide(both, computing_dtype(made.torch_dtype))
            with np.errstate(all="ignore"):
                both = Both(made, wide * wide.dtype.type(number))
    return both


def _that_go_with(both: Both, dtypes: tuple[str, ...]) -> tuple[str, ...]:
    found = []
    for each in dtypes:
        try:
            promoted([both.lazy.torch_dtype, each])
        except TypeError:
            continue
        found.append(each)
    return tuple(found) or (both.lazy.torch_dtype,)


def is_inside(array: Array, key: Any) -> bool:
    """Return whether an index points into an array."""
    try:
        array[key]
    except IndexError:
        return False
    return True


def same(found: Any, expected: Array) -> None:
    """Compare two arrays bit for bit; NaN is equal to NaN."""
    found = np.asarray(found)
    assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
    wide = np.complex128 if np.iscomplexobj(found) else np.float64
    if found.dtype in (np.int64, np.uint64):
        wide = found.dtype.type
    np.testing.assert_array_equal(found.astype(wide), expected.astype(wide))


BF16 = np.dtype(ml_dtypes.bfloat16)
