"""What a dtype has no place for is counted, element by element as numpy sees it."""

from __future__ import annotations

import itertools
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.sampling import thorough
from torchzip.dtypes import DTYPES
from torchzip.tensors.cast_range import lack_of
from torchzip.tensors.cast_steps import CHUNK
from torchzip.tensors.casts import Cast, CastStorage, is_castable
from torchzip.tensors.numpy_dtypes import numpy_dtype
from torchzip.tensors.storage import ArrayStorage

FLOATS = [name for name in DTYPES if is_castable(name)]
PAIRS = [pair for pair in itertools.product(FLOATS, FLOATS) if pair[0] != pair[1]]


def numpys_count(values: np.ndarray[Any, Any], target: str) -> int:
    """Count finite elements without a finite result, and infinite ones without an infinite one.

    By numpy's and ml_dtypes' own casts, which make NaN of what is too large for float8_e4m3fn, and
    of negative numbers in float8_e8m0fnu (of zero too, which is no change of kind here).
    """
    with np.errstate(all="ignore"):
        before = values.astype(np.float64)
        after = values.astype(np.float32) if DTYPES[target].itemsize < 4 else values
        after = after.astype(numpy_dtype(target)).astype(np.float64)
        if target == "float8_e8m0fnu":
            after[np.abs(before) < 2.0**-126] = 1
            after[before < 0] = np.nan
    changed = np.isfinite(before) & ~np.isfinite(after)
    changed |= np.isinf(before) & ~np.isinf(after)
    return int(np.count_nonzero(changed))


def count(values: np.ndarray[Any, Any], source: str, target: str) -> int:
    """Count by a cast of one block."""
    cast = Cast(source, target)
    cast(np.ascontiguousarray(values).view(np.uint8))
    return cast.out_of_range


def edges(source: str, target: str) -> np.ndarray[Any, Any]:
    """Return values around the ends of the target's range, with both signs, and what is special."""
    dtype = numpy_dtype(source)
    most = float(ml_dtypes.finfo(numpy_dtype(target)).max)  # type: ignore[no-untyped-call]
    with np.errstate(all="ignore"):
        tops = np.float64(most) * np.array([0.5, 0.99, 1, 1.01, 1.03, 1.06, 1.07, 1.2, 1.5, 2, 8])
        values = np.concatenate([tops, [0.0, 1.0, np.inf, np.nan, 2.0**-149, 1e-320]])
        values = np.concatenate([values, -values]).astype(dtype)
        codes = values.view(f"u{dtype.itemsize}")
        return np.concatenate([codes, codes + 1, codes - 1]).view(dtype)


@pytest.mark.parametrize("pair", PAIRS, ids=" to ".join)
def test_edges_of_each_cast(pair: tuple[str, str]) -> None:
    """Each value alone, and all of them in blocks of either way of casting."""
    values = edges(*pair)
    for index in range(values.size):
        one = values[index : index + 1]
        assert count(one, *pair) == numpys_count(one, pair[1]), one
    expected = numpys_count(values, pair[1])
    assert count(values, *pair) == expected
    many = np.tile(values, 2 * CHUNK // values.size + 1)
    assert count(many, *pair) == numpys_count(many, pair[1])
    assert (lack_of(*pair) is None) <= (expected == 0)


@pytest.mark.parametrize("source", [name for name in FLOATS if DTYPES[name].itemsize <= 2])
def test_every_value_of_16_and_8_bits(source: str) -> None:
    nbytes = DTYPES[source].itemsize
    values = np.arange(1 << 8 * nbytes, dtype=f"u{nbytes}").view(numpy_dtype(source))
    for target in FLOATS:
        if target != source:
            assert count(values, source, target) == numpys_count(values, target)


@thorough
@given(st.sampled_from(PAIRS), st.integers(0, 1 << 32), st.integers(0, 300))
def test_any_bits(pair: tuple[str, str], seed: int, size: int) -> None:
    """Random bits: of all magnitudes, infinite and NaN among them."""
    dtype = numpy_dtype(pair[0])
    values = np.frombuffer(np.random.default_rng(seed).bytes(size * dtype.itemsize), dtype)
    assert count(values, *pair) == numpys_count(values, pair[1])


@pytest.mark.parametrize("pair", PAIRS, ids=" to ".join)
def test_ordinary_weights_have_none(pair: tuple[str, str]) -> None:
    """Numbers as weights have them are in the range of every dtype (magnitudes for e8m0)."""
    weights = np.abs(np.random.default_rng(0).standard_normal(1000)).astype(numpy_dtype(pair[0]))
    assert count(weights, *pair) == 0


def test_counts_go_on() -> None:
    """From block to block, and over the blocks of a storage."""
    values = np.array([1e6, 1.0, -1e6, np.inf, np.nan], np.float32)
    cast = Cast("float32", "float16")
    cast(values.view(np.uint8))
    cast.into(values[:2].view(np.uint8), np.empty(4, np.uint8))
    assert cast.out_of_range == 3
    storage = CastStorage(ArrayStorage(np.tile(values, 70_000), "float32"), "float32", "float16")
    reader = storage.reader(0, storage.nbytes)
    assert sum(block.size for block in reader.blocks()) == storage.nbytes
    assert reader.out_of_range == 140_000
