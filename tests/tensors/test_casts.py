"""Casts: to nearest even, block by block, at any offset."""

from __future__ import annotations

import warnings
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.test_cost import peak_below
from torchzip.dtypes import DTYPES
from torchzip.tensors.cast_steps import CHUNK, fast_steps, plain_cast
from torchzip.tensors.casts import Cast, CastStorage, is_castable
from torchzip.tensors.numpy_dtypes import numpy_dtype
from torchzip.tensors.storage import ArrayStorage, Bytes, TensorStorage

_FLOATS = [name for name in DTYPES if is_castable(name)]


class Pieces(TensorStorage):
    """Bytes that come in pieces of a given size, at odd addresses."""

    def __init__(self, data: Bytes, piece: int) -> None:
        self.data = data
        self.piece = piece
        self.nbytes = data.nbytes
        self.torch_dtype = None
        self.location = "cpu"

    def read_into(self, start: int, out: Bytes) -> None:
        """Fill ``out``."""
        out[:] = self.data[start : start + out.nbytes]

    def blocks(self, nbytes: int = 0) -> Any:
        """Yield the pieces, each one byte off any alignment."""
        for start in range(0, self.nbytes, self.piece):
            part = self.data[start : start + self.piece]
            shifted = np.empty(part.size + 1, np.uint8)
            shifted[1:] = part
            yield shifted[1:]


def cast(values: np.ndarray[Any, Any], source: str, target: str) -> np.ndarray[Any, Any]:
    block = np.ascontiguousarray(values).view(np.uint8)
    return Cast(source, target)(block).copy().view(numpy_dtype(target))


def _quietly(values: np.ndarray[Any, Any], dtype: np.dtype[Any]) -> np.ndarray[Any, Any]:
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return values.astype(dtype)


def _same_bits(ours: np.ndarray[Any, Any], theirs: np.ndarray[Any, Any]) -> None:
    """Compare bit for bit, but any NaN is as good as another."""
    kind = np.dtype(f"u{ours.itemsize}")
    nan = np.isnan(_quietly(theirs, np.dtype(np.float64)))
    np.testing.assert_array_equal(np.isnan(_quietly(ours, np.dtype(np.float64))), nan)
    np.testing.assert_array_equal(ours.view(kind)[~nan], theirs.view(kind)[~nan])


def _check_bfloat16(values: np.ndarray[Any, Any]) -> None:
    ours = cast(values, "float32", "bfloat16")
    theirs = _quietly(values, np.dtype(ml_dtypes.bfloat16))
    np.testing.assert_array_equal(ours.view(np.uint16), theirs.view(np.uint16))


@pytest.mark.parametrize("low", [0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF])
def test_bfloat16_of_every_upper_half(low: int) -> None:
    """All 65,536 upper halves, at the places where rounding turns, NaN too, equal ml_dtypes."""
    bits = (np.arange(1 << 16, dtype=np.uint32) << 16) | low
    values = bits.view(np.float32)
    _check_bfloat16(values)
    # and each alone, where no NaN in the block changes the way
    _check_bfloat16(values[~np.isnan(values)])


@given(st.lists(st.integers(0, 0xFFFFFFFF), max_size=50))
def test_bfloat16_of_any_bits(bits: list[int]) -> None:
    """Any 32 bits, in blocks of any length, equal ml_dtypes bit for bit."""
    _check_bfloat16(np.array(bits, np.uint32).view(np.float32))


@pytest.mark.parametrize("target", _FLOATS)
def test_every_float16(target: str) -> None:
    """All 65,536 values of float16 and bfloat16 go to each dtype as ml_dtypes or torch rounds."""
    for source in ("float16", "bfloat16"):
        values = np.arange(1 << 16, dtype=np.uint16).view(numpy_dtype(source))
        expected = _quietly(values, np.dtype(np.float32))
        if target == "float8_e4m3fn":
            expected = np.clip(expected, np.float32(-448), np.float32(448))
        if source == target:
            continue
        rounded = _quietly(expected, numpy_dtype(target))
        if target == "float8_e8m0fnu":
            rounded = _exponents(expected).view(rounded.dtype)
        _same_bits(cast(values, source, target), rounded)


def _exponents(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Return the codes of float8_e8m0fnu by torch's rule, which ml_dtypes does not have."""
    finite = np.where(np.isfinite(values), values, np.float32(1.75 * 2.0**127))
    magnitudes = np.abs(finite).astype(np.float64)
    fractions, exponents = np.frexp(magnitudes)  # from 0.5 to 1
    normal = exponents + 126 + (fractions >= 0.75)
    codes = np.where(magnitudes < 2.0**-126, magnitudes > 2.0**-127, normal)
    return codes.astype(np.uint8)


@pytest.mark.parametrize("source", [name for name in _FLOATS if DTYPES[name].itemsize == 1])
def test_every_float8_to_wider(source: str) -> None:
    """A cast to a wider dtype loses nothing."""
    values = np.arange(256, dtype=np.uint8).view(numpy_dtype(source))
    for target in ("float32", "float64"):
        _same_bits(cast(values, source, target), _quietly(values, numpy_dtype(target)))


def test_float64_goes_through_float32() -> None:
    """As torch does it: a value is rounded twice on its way to 16 bits."""
    twice = np.array([1 + 2.0**-8 + 2.0**-40])  # just above a tie of bfloat16
    assert cast(twice, "float64", "bfloat16").astype(float).tolist() == [1.0]
    assert cast(twice, "float64", "float32").astype(float).tolist() == [1 + 2.0**-8]


@pytest.mark.parametrize(
    ("target", "value", "expected"),
    [
        ("float16", 65519.0, 65504.0),
        ("float16", 65520.0, np.inf),
        ("float16", 2.0**-25, 0.0),
        ("float16", 2.0**-24, 2.0**-24),
        ("bfloat16", 3.395e38, 3.3895313892515355e38),
        ("bfloat16", 3.4028235e38, np.inf),
        ("float8_e4m3fn", 1000.0, 448.0),
        ("float8_e4m3fn", np.inf, 448.0),
        ("float8_e4m3fn", -np.inf, -448.0),
        ("float8_e5m2", 1e9, np.inf),
        ("float8_e8m0fnu", -3.0, 4.0),
        ("float8_e8m0fnu", 0.0, 2.0**-127),
    ],
)
def test_edges(target: str, value: float, expected: float) -> None:
    made = cast(np.array([value], np.float32), "float32", target)
    assert made.astype(np.float64).tolist() == [expected]


@pytest.mark.parametrize("target", _FLOATS)
@pytest.mark.parametrize("source", _FLOATS)
def test_nan_stays_nan(source: str, target: str) -> None:
    """Between all pairs of dtypes that have NaN, also beside other values."""
    values = _quietly(np.array([1.0, np.nan, 2.0]), numpy_dtype(source))
    if source != target and np.isnan(values[1].astype(float)):
        made = cast(values, source, target).astype(np.float64)
        assert np.isnan(made).tolist() == [False, True, False]


def _plain(values: np.ndarray[Any, Any], source: str, target: str) -> Bytes:
    """Cast without any of the quicker ways."""
    with np.errstate(all="ignore"):
        return plain_cast(values, source, target).view(np.uint8)


def _check_steps(values: np.ndarray[Any, Any], source: str, target: str) -> None:
    """Cast by the quicker ways, however few the values are, and compare."""
    expected = _plain(values, source, target)
    with np.errstate(all="ignore"):
        for step, dtype in fast_steps(source, target):
            made = np.empty(values.size, dtype)
            step(values, made)
            values = made
    np.testing.assert_array_equal(values.view(np.uint8), expected)


@pytest.mark.parametrize("source", [name for name in _FLOATS if DTYPES[name].itemsize <= 2])
def test_steps_equal_the_plain_way_for_16_and_8_bits(source: str) -> None:
    """All values, to all dtypes, bit for bit, NaN too; of 8 bits in all pairs, and an odd one."""
    codes = np.arange(1 << 16, dtype=np.uint16).view(numpy_dtype(source))
    for target in _FLOATS:
        if target != source:
            for values in (codes, codes[:1], codes[-3:]):
                _check_steps(values, source, target)


@pytest.mark.parametrize("low", [0, 1, 0xFFF, 0x1000, 0x1001, 0x7FFF, 0x8000, 0x8001, 0xFFFF])
def test_steps_equal_the_plain_way_for_float32(low: int) -> None:
    """All upper halves of float32, to all dtypes, with NaN and without."""
    values = ((np.arange(1 << 16, dtype=np.uint32) << 16) | low).view(np.float32)
    magnitudes = np.abs(values)
    for target in _FLOATS:
        if target != "float32":
            for some in (values, values[magnitudes >= 0], values[magnitudes < 65536]):
                _check_steps(some, "float32", target)


@given(st.sampled_from(["float32", "float64"]), st.sampled_from(_FLOATS), st.integers(0, 1 << 32))
def test_steps_equal_the_plain_way_for_any_bits(source: str, target: str, seed: int) -> None:
    """Random bits, and random numbers of the magnitudes that float16 has."""
    if source != target:
        random = np.random.default_rng(seed)
        dtype = numpy_dtype(source)
        bits = np.frombuffer(random.bytes(100 * dtype.itemsize), dtype)
        scale = 2.0 ** random.integers(-30, 18, 100)
        numbers = (random.standard_normal(100) * scale).astype(dtype)
        for values in (bits, numbers):
            _check_steps(values, source, target)


@pytest.mark.parametrize(
    "size", [0, 1, 5, 16383, 16384, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK + 7]
)
@pytest.mark.parametrize(
    ("source", "target"),
    [("float32", "float16"), ("float64", "bfloat16"), ("float8_e5m2", "float32"),
     ("float8_e4m3fn", "float64"), ("float16", "bfloat16"), ("float64", "float8_e4m3fn")],
)  # fmt: skip
def test_into_given_memory(source: str, target: str, size: int) -> None:
    """Blocks of any length, between any addresses, fill an array or a memoryview."""
    machine = Cast(source, target)
    numbers = np.random.default_rng(size).standard_normal(size) * 100
    values = _quietly(numbers, numpy_dtype(source))
    expected = _plain(values, source, target)
    for offset in (0, DTYPES[source].itemsize, 1):
        block = np.empty(values.nbytes + offset, np.uint8)[offset:]
        block[:] = values.view(np.uint8)
        room = np.full(expected.size + offset + 1, 0xA5, np.uint8)
        machine.into(block, room[offset:-1].data if offset else room[:-1])
        np.testing.assert_array_equal(room[offset:-1], expected)
        assert room[-1] == 0xA5
        np.testing.assert_array_equal(machine(block), expected)


def test_into_the_wrong_size() -> None:
    for nbytes in (8, 12):
        with pytest.raises(ValueError, match="5 elements do not go into room"):
            Cast("float32", "bfloat16").into(np.zeros(20, np.uint8), np.empty(nbytes, np.uint8))


@pytest.mark.parametrize("source", _FLOATS)
def test_into_allocates_nothing_large(source: str) -> None:
    """Once a block has been cast, the next one needs no memory to speak of."""
    block = np.ones((1 << 18) // DTYPES[source].itemsize, numpy_dtype(source)).view(np.uint8)
    for target in _FLOATS:
        if target != source:
            machine = Cast(source, target)
            out = np.empty(machine(block).size, np.uint8)
            with peak_below(20_000):
                machine.into(block, out)


def test_working_memory_is_used_again() -> None:
    """A result is valid until the next call, and blocks of other sizes follow."""
    machine = Cast("float32", "bfloat16")
    for size in (5, 1000, 3, 0, 1001, 5000, 4):
        values = np.linspace(0, 1, size, dtype=np.float32)
        made = machine(values.view(np.uint8)).view(ml_dtypes.bfloat16)
        np.testing.assert_array_equal(made, values.astype(ml_dtypes.bfloat16))


def test_blocks_of_a_storage_share_memory() -> None:
    """One buffer serves all blocks, and ranges come out as they are in the whole."""
    values = np.linspace(-5, 5, 300_000, dtype=np.float32)
    storage = CastStorage(ArrayStorage(values, "float32"), "float32", "float16")
    assert (storage.base.nbytes, storage.source, storage.target) == (
        1_200_000,
        "float32",
        "float16",
    )
    blocks = [(block.ctypes.data, block.tobytes()) for block in storage.blocks()]
    assert len({address for address, _ in blocks}) == 1
    assert len(blocks) > 2
    whole = _plain(values, "float32", "float16").tobytes()
    assert b"".join(data for _, data in blocks) == whole
    assert storage.read(0, storage.nbytes).tobytes() == whole
    assert storage.read(10_001, 500_001).tobytes() == whole[10_001:500_001]


@pytest.mark.parametrize("piece", [1, 3, 4, 7, 64, 1000])
@pytest.mark.parametrize(
    ("source", "target"),
    [("float32", "bfloat16"), ("bfloat16", "float32"), ("float64", "float16"),
     ("float16", "float8_e5m2")],
)  # fmt: skip
def test_storage_in_pieces(source: str, target: str, piece: int) -> None:
    """Whatever the pieces of the base, the whole is the cast of the whole."""
    values = np.linspace(-5, 5, 250).astype(numpy_dtype(source))
    whole = cast(values, source, target).tobytes()
    storage = CastStorage(Pieces(values.view(np.uint8), piece), source, target)
    assert storage.nbytes == len(whole)
    assert b"".join(block.tobytes() for block in storage.blocks()) == whole


@given(st.sampled_from(_FLOATS), st.sampled_from(_FLOATS), st.integers(0, 40), st.integers(0, 40))
def test_storage_at_any_offset(source: str, target: str, first: int, second: int) -> None:
    """Reading a range of bytes gives that range of the whole, in the middle of elements too."""
    values = _quietly(np.linspace(0.25, 3, 12), numpy_dtype(source))
    storage = CastStorage(ArrayStorage(values, source), source, target)
    whole = b"".join(block.tobytes() for block in storage.blocks())
    assert storage.nbytes == len(whole) == 12 * DTYPES[target].itemsize
    start, stop = sorted((min(first, len(whole)), min(second, len(whole))))
    assert storage.read(start, stop).tobytes() == whole[start:stop]


def test_storage_says_what_it_is() -> None:
    """It has the dtype of the target, and no CRC of the source."""
    base = ArrayStorage(np.zeros(10, np.uint8), None)
    base.location = "cuda:1"
    base.crc = 7
    typed = CastStorage(base, "float32", "float16")
    assert (typed.torch_dtype, typed.nbytes, typed.location) == ("float16", 4, "cuda:1")
    assert typed.crc is None
    assert CastStorage(base, "float32", "float8_e5m2").torch_dtype is None
