"""CRC-32: whatever way is taken, the number is zlib's."""

from __future__ import annotations

import threading
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.sampling import costly
from torchzip.files import crc as crc_module
from torchzip.files.crc import Crc32Meanwhile, RunningCrc32, crc32, crc32_combine, crc32_folded

_NEAR, _FAR = 99_922, 183_278
_BYTES = np.random.default_rng(1).integers(0, 256, 3 << 20, np.uint8).tobytes()

#: Folding begins with a block of this size.
_FIRST = 1 << 20

#: Around where folding begins, where steps on the ring end, and powers of two.
_SIZES = sorted(
    {
        max(0, base + delta)
        for base in (0, _NEAR, _FAR, _FAR + _NEAR, 2 * _FAR - _NEAR, 2 * _FAR, 8 * _FAR + _NEAR,
                     9 * _FAR, -_FIRST % _FAR, _NEAR - _FIRST % _FAR, 1 << 20, 2 << 20)
        for delta in (-3, -1, 0, 1, 2, 5)
        if base + delta <= 2 << 20
    }
)  # fmt: skip


@pytest.mark.parametrize("size", _SIZES)
def test_sizes_around_the_thresholds(size: int) -> None:
    """Folded, chosen and plain agree for each start value, at once and in two blocks."""
    data = _BYTES[:size]
    for value in (0, 1, 0xFFFFFFFF, 0x12345678):
        expected = zlib.crc32(data, value)
        assert crc32_folded(data, value) == expected
        assert crc32(data, value) == expected
        running = RunningCrc32(value, folds=True)
        running.update(_BYTES[:_FIRST])
        running.update(_BYTES[_FIRST : _FIRST + size])
        assert running.value() == zlib.crc32(_BYTES[: _FIRST + size], value)


@costly
@given(st.integers(0, len(_BYTES)), st.integers(0, len(_BYTES)), st.integers(0, 0xFFFFFFFF))
def test_any_part(start: int, stop: int, value: int) -> None:
    data = memoryview(_BYTES)[min(start, stop) : max(start, stop)]
    assert crc32_folded(data, value) == zlib.crc32(data, value)
    assert crc32(data, value) == zlib.crc32(data, value)


@pytest.mark.parametrize("fill", [0, 0xFF])
def test_uniform_bytes(fill: int) -> None:
    """Zeros fold to zeros, and the length still counts."""
    for size in (_FAR + _NEAR, 1 << 20, (1 << 20) + 1):
        data = bytes([fill]) * size
        assert crc32_folded(data) == zlib.crc32(data)


def test_kinds_of_buffers() -> None:
    raw = bytearray(_BYTES[: 1 << 20])
    before = bytes(raw)
    frozen = memoryview(before)
    expected = zlib.crc32(before)
    for data in (before, raw, memoryview(raw), frozen):
        assert crc32_folded(data) == crc32(data) == expected
    assert raw == before


def test_continued() -> None:
    value = 0
    for start in range(0, len(_BYTES), 700_001):
        value = crc32(_BYTES[start : start + 700_001], value)
    assert value == zlib.crc32(_BYTES)


def test_without_isal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crc_module, "_isal", None)
    for size in (0, 100, (1 << 20) - 1, 1 << 20, 2 << 20):
        assert crc32(_BYTES[:size], 5) == zlib.crc32(_BYTES[:size], 5)


@given(st.binary(max_size=300), st.binary(max_size=300))
def test_combine(first: bytes, second: bytes) -> None:
    made = crc32_combine(zlib.crc32(first), zlib.crc32(second), len(second))
    assert made == zlib.crc32(first + second)


def test_combine_over_long_distances() -> None:
    """Lengths of all sizes, more of them than are remembered."""
    for size in [*range(100), 1 << 10, 65_537, 1_000_003]:
        second = _BYTES[:size]
        made = crc32_combine(0xDEADBEEF, zlib.crc32(second), size)
        assert made == zlib.crc32(second, 0xDEADBEEF)
    # a distance that no test can write out, in two ways
    far = 1 << 45
    once = crc32_combine(7, 0, far)
    assert crc32_combine(crc32_combine(7, 0, far // 2), 0, far // 2) == once


@given(st.binary(max_size=3000), st.integers(0, 2**32 - 1))
def test_meanwhile(data: bytes, value: int) -> None:
    """A thread finds the same CRC, and ends."""
    before = threading.active_count()
    assert Crc32Meanwhile(data, value).result() == zlib.crc32(data, value)
    assert threading.active_count() == before


def test_meanwhile_without_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread that fails leaves the work to whoever asks for the result."""
    monkeypatch.setattr(Crc32Meanwhile, "_run", lambda self: None)
    assert Crc32Meanwhile(b"123456789").result() == 0xCBF43926


@pytest.mark.parametrize("folds", [True, False])
@costly
@given(
    st.sampled_from([0, _FIRST, _FIRST + 12_345]),
    st.lists(
        st.integers(0, 9) | st.integers(183_270, 183_290) | st.integers(0, 400_000), max_size=8
    ),
    st.integers(0, 0xFFFFFFFF),
)
def test_running_crc(folds: bool, first: int, sizes: list[int], value: int) -> None:
    """Blocks of any sizes give what zlib gives, and the value can be asked for between them."""
    sizes = [first, *sizes]
    data = _DATA[: sum(sizes)]
    running = RunningCrc32(value, folds=folds)
    at = 0
    for size in sizes:
        running.update(data[at : at + size])
        at += size
        assert running.value() == zlib.crc32(data[:at], value)
    assert running.value() == zlib.crc32(data, value)


_DATA = np.random.default_rng(11).bytes(4_300_000)
