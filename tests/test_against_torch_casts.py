"""Casts equal those of torch: every value that is not NaN bit for bit, and NaN stays NaN.

Sources of 16 bits and fewer are tried whole. Of wider ones come the values at which the rounding to
the target turns: the middle between any two neighbours, one place of the source to each side of it,
and, from float64, the traps of rounding twice. torch has one way for whole vectors and another for
what is left over, so each array goes to torch both whole and in short pieces.
"""

from __future__ import annotations

from itertools import permutations
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from tests.sampling import costly
from tests.torch_oracle import array_dtype
from torchzip.dtypes import DTYPES
from torchzip.tensors.cast_steps import plain_cast
from torchzip.tensors.casts import Cast, is_castable

pytestmark = pytest.mark.torch

Values = NDArray[Any]

_FLOATS = [name for name in DTYPES if is_castable(name)]
_NARROW = [name for name in _FLOATS if DTYPES[name].itemsize <= 2]
#: Shorter than the vectors of torch's casts to 16 and 8 bits, and no multiple of any.
_PIECE = 13
#: So many elements are not cast the plain way.
_BLOCK = 20_001


def _torch_cast(torch: Any, values: Values, source: str, target: str, piece: int) -> Values:
    raw = torch.from_numpy(values.view(np.uint8)).view(getattr(torch, source))
    casts = [part.to(getattr(torch, target)).view(torch.uint8) for part in raw.split(piece)]
    made: Values = torch.cat(casts).numpy().view(array_dtype(target))
    return made


def _is_nan(values: Values) -> NDArray[np.bool_]:
    with np.errstate(all="ignore"):  # bfloat16 sees something invalid in NaN
        nan: NDArray[np.bool_] = np.isnan(values)
    return nan


def _check(torch: Any, values: Values, source: str, target: str) -> None:
    """Compare torch, in pieces too, with the plain way and with what a block goes through.

    The values are repeated until they make a block that is worth it, and an odd number.
    """
    values = np.resize(values, max(_BLOCK, values.size | 1))
    expected = _torch_cast(torch, values, source, target, values.size)
    nan = _is_nan(expected)
    assert nan[_is_nan(values)].all()
    with np.errstate(all="ignore"):
        plain = plain_cast(values, source, target)
    block = Cast(source, target)(values.view(np.uint8)).view(array_dtype(target))
    bits = np.dtype(f"u{expected.itemsize}")
    for way, made in {
        "torch in pieces": _torch_cast(torch, values, source, target, _PIECE),
        "plain": plain,
        "block": block,
    }.items():
        differ = np.where(nan, ~_is_nan(made), made.view(bits) != expected.view(bits))
        first = np.flatnonzero(differ)[:3]
        assert not first.size, (way, values[first], made[first], expected[first])


def _all_values(dtype: str) -> Values:
    nbytes = DTYPES[dtype].itemsize
    return np.arange(1 << 8 * nbytes, dtype=f"u{nbytes}").view(array_dtype(dtype))


def _specials(dtype: str) -> Values:
    """Return zeros, infinities, NaN, the ends of the range and of the subnormals."""
    info = np.finfo(dtype)
    least, normal, most = info.smallest_subnormal, info.smallest_normal, info.max
    ends = [0, least, 2 * least, normal - least, normal, normal + least]
    ends += [most, np.nextafter(most, info.dtype.type(0)), np.inf, np.nan, 1, 1 + info.eps]
    values = np.array(ends, dtype)
    return np.concatenate([values, -values])


def _values_and_ties(dtype: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return, exactly, what a dtype holds, a little more, and what is midway between any two."""
    with np.errstate(all="ignore"):
        wide = np.unique(_all_values(dtype).astype(np.float32).astype(np.float64))
    finite = wide[np.isfinite(wide)]
    finite = np.unique(np.concatenate([finite, -finite]))
    past = finite[-1] + np.arange(1, 4) * (finite[-1] - finite[-2])
    finite = np.concatenate([-past[::-1], finite, past])
    return finite, (finite[1:] + finite[:-1]) / 2


def _with_neighbours(values: Values) -> Values:
    infinity = values.dtype.type(np.inf)
    return np.concatenate([values, np.nextafter(values, infinity), np.nextafter(values, -infinity)])


@pytest.mark.few
@pytest.mark.parametrize(
    ("source", "target"), [pair for pair in permutations(_FLOATS, 2) if pair[0] in _NARROW]
)
def test_every_value_of_16_or_8_bits(torch: Any, source: str, target: str) -> None:
    """To every other dtype."""
    _check(torch, _all_values(source), source, target)


@pytest.mark.few
@pytest.mark.parametrize("target", _NARROW)
def test_turning_points_of_float32(torch: Any, target: str) -> None:
    """Each value of a narrow dtype, each tie between two, and its neighbours in float32."""
    values, ties = _values_and_ties(target)
    with np.errstate(all="ignore"):
        turns = [values.astype(np.float32), _with_neighbours(ties.astype(np.float32))]
    finite = np.concatenate(turns)
    finite = finite[np.isfinite(finite)]
    # By themselves first: what is too large, and NaN, changes the way of a block.
    _check(torch, finite[np.abs(finite) < 65520], "float32", target)
    _check(torch, finite, "float32", target)
    _check(torch, _specials("float32"), "float32", target)


@pytest.mark.few
@pytest.mark.parametrize("target", _NARROW)
def test_turning_points_of_float64(torch: Any, target: str) -> None:
    """The same in float64, and where float32 between the two makes a tie of what is none."""
    values, ties = _values_and_ties(target)
    with np.errstate(all="ignore"):
        beside = _with_neighbours(ties.astype(np.float32))[ties.size :].astype(np.float64)
        midway = (beside + np.tile(ties, 2)) / 2
    finite = np.concatenate([values, _with_neighbours(ties), beside, _with_neighbours(midway)])
    _check(torch, finite[np.isfinite(finite)], "float64", target)
    _check(torch, _specials("float64"), "float64", target)


@pytest.mark.long
def test_float64_to_float32(torch: Any) -> None:
    """Values of float32 over the whole range, ties between two, and their neighbours."""
    bits = np.random.default_rng(1).integers(0, 0x7F7FFFFF, 1 << 15).astype(np.uint32)
    exponents = np.arange(0xFF, dtype=np.uint32) << 23
    bits = np.concatenate([bits, exponents, exponents[1:] - 1, np.arange(100, dtype=np.uint32)])
    low = np.unique(bits).view(np.float32).astype(np.float64)
    high = np.nextafter(low.astype(np.float32), np.float32(np.inf)).astype(np.float64)
    past = (2.0 - 2.0**-24) * 2.0**127  # the tie between the greatest and infinity
    turns = np.concatenate([low, (low + high) / 2, [past]])
    turns = _with_neighbours(np.concatenate([turns, -turns]))
    _check(torch, np.concatenate([turns, _specials("float64")]), "float64", "float32")


def test_float32_to_float64(torch: Any) -> None:
    """Nothing is lost."""
    bits = np.random.default_rng(2).integers(0, 1 << 32, 1 << 15).astype(np.uint32)
    values = np.concatenate([bits.view(np.float32), _specials("float32")])
    _check(torch, values, "float32", "float64")


@costly
@given(st.sampled_from(list(permutations(_FLOATS, 2))), st.binary(min_size=8, max_size=400))
def test_any_bits(torch: Any, pair: tuple[str, str], data: bytes) -> None:
    """Any bits, between any two dtypes."""
    source, target = pair
    itemsize = DTYPES[source].itemsize
    raw = np.frombuffer(bytearray(data[: len(data) // itemsize * itemsize]), np.uint8)
    _check(torch, raw.view(array_dtype(source)), source, target)
