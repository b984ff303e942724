"""The statistics of a tensor, against numpy on the whole array."""

from __future__ import annotations

import io
import math
from fractions import Fraction
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

import torchzip as tz
from tests import builders as b
from tests.formats.counting import Counted
from tests.saved import flipped
from tests.test_cost import peak_below
from torchzip.errors import ArchiveError, UnsupportedError
from torchzip.tensors.specs import TensorSpec
from torchzip.tensors.storage import BLOCK_NBYTES, ArrayStorage
from torchzip.tools import Statistics, statistics

Array = NDArray[Any]

INTS = ["int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"]
SMALL_FLOATS = [
    "float16", "bfloat16", "float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz",
    "float8_e8m0fnu",
]  # fmt: skip


def dtype_of(name: str) -> np.dtype[Any]:
    return np.dtype(getattr(ml_dtypes, name, None) or name)


def check_floats(array: Array, found: Statistics) -> None:
    """Compare with sums that do not round, in any order."""
    with np.errstate(invalid="ignore"):  # of a signalling NaN
        values = array.reshape(-1).astype(np.float64)
    finite = values[np.isfinite(values)]
    assert (found.count, found.finite) == (values.size, finite.size)
    assert found.nans == np.isnan(values).sum()
    assert found.positive_infinities == (values == np.inf).sum()
    assert found.negative_infinities == (values == -np.inf).sum()
    assert found.zeros == (values == 0).sum()
    assert found.negative_zeros == ((values == 0) & np.signbit(values)).sum()
    assert sum(found.counts) == finite.size
    if not finite.size:
        assert (found.min, found.max, found.mean, found.std) == (None, None, None, None)
        assert (found.edges, found.counts) == ((), ())
        return
    assert (found.min, found.max) == (finite.min(), finite.max())
    assert (found.edges[0], found.edges[-1]) == (found.min, found.max)
    exact = [Fraction(float(value)) for value in finite]
    mean = sum(exact, Fraction(0)) / len(exact)
    size = max(abs(found.min or 0.0), abs(found.max or 0.0))
    assert found.mean is not None
    assert found.std is not None
    least = Fraction(5e-324)
    assert abs(Fraction(found.mean) - mean) <= Fraction(size) * Fraction(1e-15) + least
    variance = sum(((value - mean) ** 2 for value in exact), Fraction(0)) / len(exact)
    # Relative to the deviations themselves, however far from zero they lie, down to the
    # rounding of the values.
    tolerance = variance * Fraction(1e-12) + (Fraction(size) * Fraction(1e-15)) ** 2
    assert (
        abs(Fraction(found.std) ** 2 - variance)
        <= tolerance + 4 * max(Fraction(found.std), least) * least
    )


floats = st.one_of(
    st.floats(width=64),
    st.floats(-1, 1, width=64),
    st.sampled_from([0.0, -0.0, math.inf, -math.inf, math.nan, 1e308, -1.7e308, 5e-324, 1e-200]),
)


@given(st.lists(floats, max_size=40))
def test_float64(values: list[float]) -> None:
    """Any floats: extremes do not overflow, the least ones do not vanish."""
    array = np.array(values, np.float64)
    check_floats(array, statistics(array))


@given(st.sampled_from(["float32", *SMALL_FLOATS]), st.binary(max_size=120))
def test_other_floats(name: str, data: bytes) -> None:
    """Any bits of the narrower dtypes."""
    dtype = dtype_of(name)
    array = np.frombuffer(data[: len(data) // dtype.itemsize * dtype.itemsize], dtype)
    check_floats(array, statistics(array))


@given(st.sampled_from(INTS), st.data(), st.integers(1, 70))
def test_ints(name: str, data: st.DataObject, bins: int) -> None:
    """Ints are exact, at the ends of their dtype too."""
    bounds = np.iinfo(name)
    low, high = int(bounds.min), int(bounds.max)
    numbers = st.one_of(
        st.integers(low, high), st.sampled_from([low, high, 0]), st.integers(high - 3, high)
    )
    values = data.draw(st.lists(numbers, max_size=40))
    found = statistics(np.array(values, name), bins=bins)
    assert found.count == found.finite == len(values)
    assert found.zeros == values.count(0)
    if not values:
        assert (found.min, found.mean, found.counts) == (None, None, ())
        return
    mean = Fraction(sum(values), len(values))
    variance = sum((value - mean) ** 2 for value in values) / len(values)
    assert (found.min, found.max) == (min(values), max(values))
    assert found.mean == float(mean)
    assert found.std == pytest.approx(math.sqrt(variance), rel=1e-14, abs=0)
    assert len(found.counts) <= bins
    assert len(found.edges) == len(found.counts) + 1
    assert list(found.counts) == [
        sum(start <= value < stop for value in values)
        for start, stop in zip(found.edges, found.edges[1:], strict=False)
    ]


@given(st.lists(st.floats(-1e100, 1e100), min_size=1, max_size=60), st.integers(1, 70))
def test_histogram(values: list[float], bins: int) -> None:
    """Each finite element is in the bin whose edges are around it."""
    found = statistics(np.array(values), bins=bins)
    if found.min == found.max:
        assert found.counts == (len(values),)
        return
    assert list(found.counts) == np.histogram(values, np.array(found.edges))[0].tolist()


def test_many_blocks() -> None:
    """A tensor of many blocks, far from zero: numpy on the whole array agrees."""
    rng = np.random.default_rng(0)
    array = rng.standard_normal(BLOCK_NBYTES) + 1e9
    found = statistics(array)
    whole = array.astype(np.longdouble)
    assert found.mean == pytest.approx(float(whole.mean()), rel=1e-15)
    assert found.std == pytest.approx(float(whole.std()), rel=1e-10)
    assert list(found.counts) == np.histogram(array, 64)[0].tolist()


def test_extremes() -> None:
    """The mean of numbers near the largest float is not infinite, nor is their deviation."""
    found = statistics(np.full(100_000, 1.7e308))
    assert (found.mean, found.std) == (1.7e308, 0.0)
    found = statistics(np.tile([-1.7e308, 1.7e308], 50_000))
    assert found.mean == pytest.approx(0, abs=1e292)
    assert found.std == pytest.approx(1.7e308)
    assert (found.counts[0], found.counts[-1], sum(found.counts)) == (50_000, 50_000, 100_000)
    found = statistics(np.array([0.0, 5e-324]))
    assert found.std in (0.0, 5e-324)
    assert sum(found.counts) == 2


def test_neighbours() -> None:
    """Two floats side by side have no room for 64 bins."""
    found = statistics(np.array([1.0, np.nextafter(1.0, 2), 1.0]))
    assert found.edges == (1.0, np.nextafter(1.0, 2))
    assert found.counts == (3,)


def test_bool_and_complex() -> None:
    """Bools are 0 and 1; of complex numbers the absolute values count."""
    found = statistics(np.array([True, False, True, True]))
    assert (found.mean, found.min, found.max, found.counts) == (0.75, 0, 1, (1, 3))
    for half in (np.float16, np.float32, np.float64):
        data = np.array([3, 4, 0, 0, 0, math.nan], half)
        dtype = f"complex{16 * data.itemsize}"
        spec = TensorSpec(dtype, (3,), (1,), 0, ArrayStorage(data, None))
        found = statistics(tz.LazyTensor(spec))
        assert found.of == "absolute values"
        assert (found.min, found.max, found.mean, found.nans) == (0, 5, 2.5, 1)


def test_strange_bools(path: Path) -> None:
    """A byte that is neither 0 nor 1 is true, as in torch."""
    storage = b.persistent(numel=3, kind=b.name("torch", "BoolStorage"))
    made = b.dict_of({"m": b.tensor(storage, size=(3,))})
    path.write_bytes(b.checkpoint(b.stream(made), {"0": b"\x00\x02\xff"}))
    with tz.lazy_load(path) as checkpoint:
        assert statistics(checkpoint["m"]).counts == (1, 2)


def views() -> dict[str, Array]:
    base = np.arange(2 * 3 * 40 * 50, dtype=np.float32).reshape(6, 40, 50)
    return {
        "transposed": base.transpose(2, 0, 1),
        "every other": base[::2, 1::3, ::7],
        "broadcast": np.broadcast_to(base[:, :1], (6, 40, 50)),
        "one element": np.broadcast_to(base[0, 0, 7], (1000, 1000)),
        "scalar": base[1, 2, 3, ...],
        "empty": base[:0],
        "plain": base,
    }


@pytest.mark.parametrize("name", views())
def test_lazy(name: str, tmp_path: Path) -> None:
    """Strides, views and broadcast axes change nothing."""
    array = views()[name]
    tz.save({"x": array}, tmp_path / "m.pt")
    with tz.lazy_load(tmp_path / "m.pt") as checkpoint:
        found = statistics(checkpoint["x"])
    expected = statistics(array.copy())
    for field in ("std", "mean"):
        one, other = getattr(found, field), getattr(expected, field)
        assert one == other or one == pytest.approx(other, rel=1e-12)
    assert found.counts == expected.counts
    assert (found.count, found.min, found.max) == (expected.count, expected.min, expected.max)


def test_reads_twice_in_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tensor is read two times, and a broadcast one no more than its elements."""
    array = np.ones((1000, 1000), np.float32)
    tz.save({"x": array, "y": np.broadcast_to(np.float32(3), (10**6, 10**6))}, tmp_path / "m.pt")
    with tz.lazy_load(tmp_path / "m.pt") as checkpoint:
        tensors = [checkpoint["x"], checkpoint["y"]]
        counted = Counted(monkeypatch)
        statistics(tensors[0])
        assert counted.nbytes <= 2 * array.nbytes + 10_000
        counted.forget()
        found = statistics(tensors[1])
        assert counted.nbytes < 10_000
    assert (found.count, found.mean, found.counts) == (10**12, 3.0, (10**12,))


def test_memory(tmp_path: Path) -> None:
    """A tensor of 64 MB goes through two."""
    with open(tmp_path / "m.safetensors", "wb") as file:
        header = b'{"w":{"dtype":"F32","shape":[4096,4096],"data_offsets":[0,67108864]}}'
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + (64 << 20))
    with tz.lazy_load(tmp_path / "m.safetensors") as checkpoint:
        statistics(np.zeros(1000))  # what is imported or kept for good
        with peak_below(2 << 20):
            found = statistics(checkpoint["w"])
    assert (found.zeros, found.counts) == (1 << 24, (1 << 24,))


def test_damaged(tmp_path: Path) -> None:
    """A tensor that is all of its record is checked on the way."""
    array = np.arange(1000.0)
    tz.save({"x": array}, tmp_path / "m.pt")
    data = (tmp_path / "m.pt").read_bytes()
    data = flipped(data, data.index(array.tobytes()))
    with tz.lazy_load(io.BytesIO(data)) as checkpoint, pytest.raises(ArchiveError, match="CRC"):
        statistics(checkpoint["x"])


def test_overlap() -> None:
    """A small storage under a tensor of 2**34 elements is refused, not read for years."""
    made = b.tensor(b.persistent(numel=1 << 18), size=(1 << 17, 1 << 17), stride=(1, 1))
    data = b.checkpoint(b.stream(made), {"0": bytes(1 << 20)})
    with (
        tz.lazy_load(io.BytesIO(data)) as checkpoint,
        pytest.raises(UnsupportedError, match="overlap"),
    ):
        statistics(checkpoint[""])


@pytest.mark.parametrize("dtype", ["bits8", "float4_e2m1fn_x2"])
def test_raw_bits(dtype: str, tmp_path: Path) -> None:
    """Packed values are no numbers."""
    tz.save({"x": tz.types.TypedArray(np.zeros(4, np.uint8), dtype)}, tmp_path / "m.pt")
    with (
        tz.lazy_load(tmp_path / "m.pt") as checkpoint,
        pytest.raises(UnsupportedError, match=dtype),
    ):
        statistics(checkpoint["x"])


def test_arguments() -> None:
    """What is no tensor, and no bins."""
    with pytest.raises(UnsupportedError, match="<U1"):
        statistics(np.array(["a"]))
    for bins in (0, 65_537):
        with pytest.raises(ValueError, match="bins"):
            statistics(np.zeros(1), bins=bins)
    assert sum(statistics(np.arange(9), bins=65_536).counts) == 9
    assert statistics(np.arange(3, dtype=">i4")).max == 2
    assert statistics([1, 2]).mean == 1.5
