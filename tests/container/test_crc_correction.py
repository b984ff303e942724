"""One damaged byte is found by a CRC; other damage is not taken for one."""

from __future__ import annotations

import random
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from torchzip.container.damaged.correction import MOST_BIT_NBYTES, MOST_BYTE_NBYTES, corrected


@given(data=st.binary(min_size=1, max_size=5000), place=st.integers(0), change=st.integers(1, 255))
def test_one_byte(data: bytes, place: int, change: int) -> None:
    """Wherever it is, and however it was changed."""
    place %= len(data)
    broken = bytearray(data)
    broken[place] ^= change
    found = corrected(bytes(broken), zlib.crc32(data))
    # Chance can have it that another byte would do as well: then there is none.
    assert found in ((data, place), None)
    if change.bit_count() == 1:
        assert found == (data, place)


@given(
    data=st.binary(max_size=3000), shift=st.sampled_from([0, 8, 16, 24]), change=st.integers(1, 255)
)
def test_the_crc_itself(data: bytes, shift: int, change: int) -> None:
    """A damaged byte of the CRC leaves the bytes as they are."""
    found = corrected(data, zlib.crc32(data) ^ change << shift)
    assert found in ((data, len(data)), None)
    if change.bit_count() == 1:
        assert found is not None


def test_whole() -> None:
    assert corrected(b"abc", zlib.crc32(b"abc")) is None


@pytest.mark.long
def test_other_damage() -> None:
    """Two damaged bytes look like one as often as chance has it, one time in 8,000 here."""
    rng = random.Random(1)
    data = rng.randbytes(2000)
    taken = 0
    for _ in range(3000):
        broken = bytearray(data)
        for place in rng.sample(range(2000), 2):
            broken[place] ^= rng.randint(1, 255)
        taken += corrected(bytes(broken), zlib.crc32(data)) is not None
    assert taken <= 3


@pytest.mark.parametrize("nbytes", [MOST_BYTE_NBYTES, MOST_BYTE_NBYTES + 1, MOST_BIT_NBYTES + 1])
def test_sizes(nbytes: int) -> None:
    """A bit is looked for in more bytes than a byte is, and neither in too many."""
    data = bytearray(nbytes)
    stored = zlib.crc32(data)
    data[5] ^= 1
    found = corrected(bytes(data), stored)
    assert (found is not None) == (nbytes <= MOST_BIT_NBYTES)
    data[5] ^= 1 ^ 0x18
    found = corrected(bytes(data), stored)
    assert (found is not None) == (nbytes <= MOST_BYTE_NBYTES)
