"""Which elements a dtype has no place for: found and counted while they are cast.

A cast rounds; but past the greatest number of a dtype there is nothing to round to, and the value
changes its kind. A finite one becomes infinite, or NaN where the dtype has no infinity (float8 of
the kinds ``fnuz`` and e8m0fnu), or the greatest number (float8_e4m3fn, where torch saturates).
Infinity becomes NaN or the greatest number where there is none. float8_e8m0fnu drops signs.

The codes of floats, without their sign, have the order of their values, so these elements are those
with codes from a first to a last, which `lack_of` finds. Of most blocks only the result is looked
at, which has the fewer bytes: two reductions show that there is nothing to count.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import ml_dtypes
import numpy as np

from torchzip.tensors.cast_steps import Values, plain_cast
from torchzip.tensors.numpy_dtypes import numpy_dtype

#: Has no signs.
_MAGNITUDES = "float8_e8m0fnu"

_UNSIGNED, _SIGNED = ({size: np.dtype(f"{kind}{size}") for size in (1, 2, 4, 8)} for kind in "ui")


@dataclass(frozen=True, slots=True)
class Lack:
    """The elements of one dtype that another has no place for, as codes without their sign.

    Those from ``first``, or with a sign from ``first_negative``, to ``last``; none if that is less.
    """

    first: int
    first_negative: int
    last: int
    #: What comes of the first, as a code. NaN and what else comes of such elements is not below it.
    result: int

    def count(self, values: Values, made: Values) -> int:
        """Return how many there are in a block that was cast to ``made``."""
        if not values.size or not self._is_near(values, made):
            return 0
        codes, sign = values.view(_UNSIGNED[values.itemsize]), _sign(values)
        found = 0
        for first, last in (
            (self.first, self.last), (sign | self.first_negative, sign | self.last)
        ):  # fmt: skip
            if first <= last:  # less than the first wraps around, and is more than the last
                least, span = codes.dtype.type(first), codes.dtype.type(last - first)
                found += int(np.count_nonzero(codes - least <= span))
        return found

    def _is_near(self, values: Values, made: Values) -> bool:
        """Return whether there can be any, from the greatest codes alone."""
        codes, signed = made.view(_UNSIGNED[made.itemsize]), made.view(_SIGNED[made.itemsize])
        sign = _sign(made)
        if self.first_negative < self.first:
            lowest = np.minimum.reduce(values.view(_SIGNED[values.itemsize]))
            return bool(lowest < 0 or np.maximum.reduce(codes) >= self.result)
        if self.result == sign:  # the code of NaN where there is no -0
            return bool(np.minimum.reduce(signed) == -sign)
        return bool(
            np.maximum.reduce(signed) >= self.result
            or np.maximum.reduce(codes) >= sign | self.result
        )


def _sign(values: Values) -> int:
    return 1 << (8 * values.itemsize - 1)


@cache
def lack_of(source: str, target: str) -> Lack | None:
    """Return what there is to count in a cast; None if the target has a place for everything."""
    dtype = numpy_dtype(source)
    most = ml_dtypes.finfo(dtype).max  # type: ignore[no-untyped-call]
    last = _code(np.array([most], dtype))
    if _has_infinity(source) and not _has_infinity(target):
        last += 1  # the code of infinity
    first, end = 0, last + 1
    while first < end:
        middle = (first + end) // 2
        if _has_place(_value(middle, dtype), source, target):
            first = middle + 1
        else:
            end = middle
    first_negative = first
    if source == _MAGNITUDES:
        first_negative = last + 1
    elif target == _MAGNITUDES:
        first_negative = 1
    if last < min(first, first_negative):
        return None
    with np.errstate(all="ignore"):
        made = plain_cast(_value(first, dtype), source, target)
    return Lack(first, first_negative, last, _code(made))


def _value(code: int, dtype: np.dtype[Any]) -> Values:
    return np.array([code], _UNSIGNED[dtype.itemsize]).view(dtype)


def _code(value: Values) -> int:
    return int(value.view(_UNSIGNED[value.itemsize])[0])


def _has_place(value: Values, source: str, target: str) -> bool:
    """Return whether a value without a sign has a finite one in the target."""
    with np.errstate(all="ignore"):
        if target == "float8_e4m3fn":  # which is clipped: NaN is what would come of it otherwise
            wide = value if source == "float32" else plain_cast(value, source, "float32")
            made = wide.astype(numpy_dtype(target))
        else:
            made = plain_cast(value, source, target)
        return bool(np.isfinite(made.astype(np.float64))[0])


def _has_infinity(torch_dtype: str) -> bool:
    with np.errstate(all="ignore"):
        infinity = np.array([np.inf]).astype(numpy_dtype(torch_dtype))
        return bool(np.isinf(infinity.astype(np.float64))[0])
