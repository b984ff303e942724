"""How `diff` compares the elements of two tensors, beside numpy."""

from __future__ import annotations

import io
import math
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import torchzip as tz
from tests import builders as b
from tests.tools.test_diff import between, file_of, values_of
from torchzip.tools import diff
from torchzip.types import TypedArray

Array = np.ndarray[Any, Any]

_FLOATS = [
    np.dtype(name)
    for name in (
        "float64", "float32", "float16", ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn,
        ml_dtypes.float8_e4m3fnuz, ml_dtypes.float8_e5m2, ml_dtypes.float8_e5m2fnuz,
    )
]  # fmt: skip
_INTS = [np.dtype(f"{sign}int{bits}") for sign in ("", "u") for bits in (8, 16, 32, 64)]
_COMPLEX = [np.dtype(name) for name in ("complex64", "complex128")]
_ALL = [*_FLOATS, *_INTS, *_COMPLEX, np.dtype(bool)]


def numbers(dtype: np.dtype[Any], shape: tuple[int, ...], rng: np.random.Generator) -> Array:
    """Return numbers of all bits, NaNs and infinities among them."""
    count = math.prod(shape)
    if dtype.kind == "b":
        return rng.integers(0, 2, count).astype(bool).reshape(shape)
    return np.frombuffer(rng.bytes(count * dtype.itemsize), dtype).reshape(shape).copy()


def plainly(one: Array, other: Array) -> tuple[int, float | None, int, tuple[int, ...]] | None:
    """Return count, largest difference, NaNs and first index, element by element."""
    found = []
    nans = 0
    largest: float | None = None
    with np.errstate(all="ignore"):
        for index in np.ndindex(one.shape):
            x, y = one[index].item(), other[index].item()
            if one.dtype.kind == "c":
                parts = [(x.real, y.real), (x.imag, y.imag)]
                if all(p == q or (p != p and q != q) for p, q in parts):
                    continue
                gaps = [0.0 if p == q or (p != p and q != q) else abs(p - q) for p, q in parts]
                gap: Any = float(np.hypot(gaps[0], gaps[1]))
                nan = any(each != each for each in gaps)
            else:
                if x == y or (x != x and y != y):
                    continue
                nan = x != x or y != y
                gap = abs(x - y)
            found.append(index)
            if nan:
                nans += 1
            elif one.dtype != bool:
                largest = gap if largest is None else max(largest, gap)
    return (len(found), largest, nans, found[0]) if found else None


@pytest.mark.parametrize("dtype", _ALL, ids=str)
@pytest.mark.parametrize("seed", range(8))
def test_against_numpy(dtype: np.dtype[Any], seed: int) -> None:
    """Count, largest difference, NaNs on one side and the first index, of random numbers."""
    rng = np.random.default_rng(seed)
    shape = tuple(int(size) for size in rng.integers(1, 9, int(rng.integers(0, 4))))
    one = numbers(dtype, shape, rng)
    other = np.where(rng.random(shape) < 0.7, one, numbers(dtype, shape, rng)).astype(dtype)
    found = between({"x": one}, {"x": other})
    expected = plainly(one, other)
    if expected is None:
        assert found.is_equal
        assert found.equal == 1
        return
    values = values_of(found)
    assert (values.count, values.nans, values.first) == (expected[0], expected[2], expected[3])
    if expected[1] is None:
        assert values.max_abs is None
    elif dtype.kind in "iu":
        assert type(values.max_abs) is int
        assert values.max_abs == expected[1]
    else:
        assert values.max_abs == pytest.approx(expected[1], rel=1e-15)


@pytest.mark.parametrize("seed", range(12))
def test_views(seed: int) -> None:
    """Tensors are compared by what they show, however each lies in its storage."""
    rng = np.random.default_rng(seed)
    one = rng.integers(-3, 3, (6, 5, 4)).astype(np.int32)
    other = one.copy()
    for _ in range(seed % 4):
        other[tuple(rng.integers(0, one.shape))] += 1
    order = tuple(rng.permutation(3))
    inverse = tuple(np.argsort(order))
    lying = np.ascontiguousarray(other.transpose(order)).transpose(inverse)
    wide = np.zeros((12, 5, 4), np.int32)
    wide[::2] = other
    for way in (other, lying, wide[::2]):
        found = between({"x": one}, {"x": way, "whole": wide} if way.base is wide else {"x": way})
        expected = plainly(one, other)
        if expected is None:
            assert not found.changed
        else:
            values = values_of(found)
            assert (values.count, values.max_abs, values.nans, values.first) == expected


@pytest.mark.parametrize("seed", range(12))
def test_views_of_one_order(seed: int) -> None:
    """Tensors that lie in one order that is not C's are read in it; the index is the tensor's."""
    rng = np.random.default_rng(seed)
    lying = rng.integers(-3, 3, (7, 1, 4, 5)).astype(np.int32)
    changed = lying.copy()
    for _ in range(4):
        changed[tuple(rng.integers(0, lying.shape))] += 1
    order = tuple(rng.permutation(4))
    for part in (np.s_[:], np.s_[1:6], np.s_[:, :, 1:3], np.s_[..., ::2]):
        one, other = (array[part].transpose(order) for array in (lying, changed))
        found = diff(
            *(file_of([array, whole]) for array, whole in ((one, lying), (other, changed)))
        )
        values = [each.values for each in found.changed if each.before.name == "0"]
        expected = plainly(one, other)
        got = [(v.count, v.max_abs, v.nans, v.first) for v in values if v is not None]
        assert got == ([] if expected is None else [expected])


def test_broadcast() -> None:
    """A tensor of 2**60 elements over one is compared by that one."""
    files = []
    for value in (1.0, 1.5):
        made = b.tensor(b.persistent(numel=1), size=(1 << 30, 1 << 30), stride=(0, 0))
        data = np.float32(value).tobytes()
        files.append(io.BytesIO(b.checkpoint(b.stream(b.dict_of({"x": made})), {"0": data})))
    values = values_of(diff(*files))
    assert (values.count, values.max_abs, values.first) == (1 << 60, 0.5, (0, 0))


def test_overlapping_without_end() -> None:
    """Windows that show 64 elements 2**58 times are an error, and no week of work."""
    files = []
    for value in (1, 2):
        made = b.tensor(b.persistent(numel=64), size=(2,) * 58, stride=(1,) * 58)
        data = np.full(64, value, np.float32).tobytes()
        files.append(io.BytesIO(b.checkpoint(b.stream(b.dict_of({"x": made})), {"0": data})))
    assert diff(files[0], io.BytesIO(files[0].getvalue())).is_equal  # by its CRC
    files[0].seek(0)
    with pytest.raises(tz.UnsupportedError, match="overlap too much"):
        diff(*files)


def test_several_blocks() -> None:
    """The first index and the sums are those of the whole, over blocks of different lengths."""
    one = np.arange(3_000_001, dtype=np.float32)
    other = one.copy()
    other[[70_000, 2_999_999]] += [2, 64]
    base = np.zeros(3_000_008, np.float32)
    base[5:-2] = other
    found = between({"x": one, "y": one[::-1]}, {"x": base[5:-2], "y": one[::-1], "base": base})
    values = values_of(found)
    assert (values.count, values.max_abs, values.first) == (2, 64.0, (70_000,))
    assert found.equal == 1


# -- dtypes ----------------------------------------------------------------------------------------


def test_dtype_is_a_change() -> None:
    """Without `cast` it is said, and the values are not compared."""
    one, other = np.ones(3, np.float32), np.zeros(3, np.float16)
    (change,) = between({"x": one}, {"x": other}).changed
    assert (change.what, change.values) == (("dtype",), None)
    assert (change.before.torch_dtype, change.after.torch_dtype) == ("float32", "float16")


@pytest.mark.parametrize("target", ["bfloat16", "float16", "float8_e4m3fn", "float64"])
def test_cast(tmp_path: Path, target: str) -> None:
    """What `convert` makes of a file is equal under `cast`, and a change in it is found."""
    rng = np.random.default_rng(1)
    tz.save({"x": rng.standard_normal((200, 300)).astype(np.float32)}, tmp_path / "a.pt")
    tz.convert(tmp_path / "a.pt", tmp_path / "b.safetensors", dtype=target)
    found = diff(tmp_path / "a.pt", tmp_path / "b.safetensors", cast=True)
    assert (found.is_equal, found.equal) == (True, 1)
    assert not diff(tmp_path / "a.pt", tmp_path / "b.safetensors").is_equal
    changed = tz.load(tmp_path / "b.safetensors")
    changed["x"][7, 9] = 16
    tz.save(changed, tmp_path / "c.pt")
    assert values_of(diff(tmp_path / "a.pt", tmp_path / "c.pt", cast=True)).first == (7, 9)


def test_cast_is_for_floats() -> None:
    """An int is no float, with `cast` either."""
    found = between({"x": np.ones(3, np.int32)}, {"x": np.ones(3, np.float32)}, cast=True)
    assert found.changed[0].what == ("dtype",)


def test_zeros_and_nans() -> None:
    """Zeros of either sign are equal, and NaNs of any bits; that is said."""
    nan = np.array([0x7FC00000, 0x7FC00001], np.uint32).view(np.float32)
    one = {"zero": np.array([0.0]), "nan": nan, "same": np.ones(1)}
    other = {"zero": np.array([-0.0]), "nan": nan[::-1].copy(), "same": np.ones(1)}
    found = between(one, other)
    assert (found.is_equal, found.equal, found.other_bits) == (True, 3, ("zero", "nan"))


def test_one_nan_against_a_number() -> None:
    """It differs, and no difference of numbers comes of it."""
    values = values_of(between([np.array([1.0, np.nan])], [np.array([1.0, 2.0])]))
    assert (values.count, values.max_abs, values.nans) == (1, None, 1)


def test_ints_are_exact() -> None:
    """The whole range of 64 bits, which no float has."""
    low, high = -(1 << 63), (1 << 63) - 1
    values = values_of(between([np.array([low, 5])], [np.array([high, 5])]))
    assert values.max_abs == (1 << 64) - 1
    values = values_of(between([np.array([0], "uint64")], [np.array([(1 << 64) - 1], "uint64")]))
    assert values.max_abs == (1 << 64) - 1


def test_raw_bits() -> None:
    """A dtype that numpy has not is compared by its bits."""
    one, other = np.array([1, 2, 3], np.uint16), np.array([1, 7, 3], np.uint16)
    values = values_of(between([TypedArray(one, "bits16")], [TypedArray(other, "bits16")]))
    assert (values.count, values.max_abs, values.first) == (1, None, (1,))
