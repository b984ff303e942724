"""The serialization id equals that of a plain model of ``std::unordered_set``."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.sampling import some
from torchzip.container.serialization_id import murmur, murmur_all, serialization_id, set_order

_MASK = (1 << 64) - 1

#: The growth list of libstdc++, as far as `_next_prime` needs it here.
_PRIMES = (2, 5, 11, 13, 17, 19, 23, 29, 31, 37, 41, 43, 47, 53, 59, 61, 67, 71, 73, 79, 83, 89, 97,
           103, 109, 113, 127, 137, 139, 149, 157, 167, 179, 193, 199, 211, 227, 241, 257, 277, 293,
           313, 337, 359, 383, 409, 439, 467, 503, 541, 577, 619, 661, 709, 761, 823, 887, 953,
           1031, 1109, 1193, 1289, 1381, 1493, 1613, 1741, 1879, 2029, 2179, 2357)  # fmt: skip


class _UnorderedSet:
    """One list in which a value goes before the first of its bucket, or else to the front.

    It is the linked list of libstdc++ (format.md, 3), which is linked anew when the buckets grow.
    """

    def __init__(self) -> None:
        self.values: list[int] = []
        self.places: list[int] = []
        self.buckets = 1
        self.capacity = 0

    def insert(self, value: int) -> None:
        count = len(self.values)
        if count + 1 > self.capacity:
            wanted = max(count + 2, 2 * self.buckets, 12 if not count else 0)
            self.buckets = self.capacity = min(prime for prime in _PRIMES if prime >= wanted)
            before, self.values, self.places = self.values, [], []
            for each in before:
                self._link(each)
        self._link(value)

    def _link(self, value: int) -> None:
        place = value % self.buckets
        at = self.places.index(place) if place in self.places else 0
        self.values.insert(at, value)
        self.places.insert(at, place)


def _fold(seed: int, value: int) -> int:
    return seed ^ (value + 0x9E3779B9 + (seed << 6) + (seed >> 2)) & _MASK


def _murmur_plainly(data: bytes) -> int:
    mul = 0xC6A4A7935BD1E995
    h = 0xC70F6907 ^ (len(data) * mul & _MASK)
    while len(data) >= 8:
        k = int.from_bytes(data[:8], "little") * mul & _MASK
        k = (k ^ k >> 47) * mul & _MASK
        h = (h ^ k) * mul & _MASK
        data = data[8:]
    if data:
        h = (h ^ int.from_bytes(data, "little")) * mul & _MASK
    h = (h ^ h >> 47) * mul & _MASK
    return h ^ h >> 47


def _model(names: list[bytes], crcs: list[int]) -> str:
    hashes = _UnorderedSet()
    for name in names:
        hashes.insert(_murmur_plainly(name))
    first = second = 0
    for value in hashes.values:
        first = _fold(first, value)
    for crc in crcs:
        second = _fold(second, crc)
    return f"{first:020d}{second:020d}"


def _names_of(storages: int) -> list[bytes]:
    text = b"data.pkl .format_version .storage_alignment byteorder".split()
    return text + [b"data/%d" % key for key in range(storages)] + [b"version"]


def test_every_number_of_names() -> None:
    """From none to 700 names, past six rehashes, the order is that of the linked list."""
    crcs = random.Random(1).sample(range(1 << 32), 700)
    names = _names_of(695)
    for count in some(range(701)):
        given_names = names[:count]
        assert serialization_id(given_names, crcs[:count]) == _model(given_names, crcs[:count])


@pytest.mark.parametrize("count", [1108, 1109, 1110, 2357])
def test_around_later_rehashes(count: int) -> None:
    """The later growth steps are those of the list of primes."""
    names = _names_of(count)[:count]
    assert serialization_id(names, []) == _model(names, [])


@given(st.lists(st.binary(max_size=40), unique=True, max_size=80))
def test_any_names(names: list[bytes]) -> None:
    assert serialization_id(names, [1, 2]) == _model(names, [1, 2])


def test_example_of_the_format() -> None:
    """One storage gives the first half that section 3 of docs/format.md has."""
    assert serialization_id(_names_of(1), [])[:20] == "15728199511854643026"


def test_nothing_is_all_zeros() -> None:
    assert serialization_id([], []) == "0" * 40
    assert len(serialization_id([b""], [0])) == 40


@given(st.lists(st.binary(max_size=33), max_size=60))
def test_vectorised_hash(names: list[bytes]) -> None:
    assert murmur_all(names).tolist() == [murmur(name) for name in names]
    assert [murmur(name) for name in names] == [_murmur_plainly(name) for name in names]


def test_order_with_equal_buckets() -> None:
    """Hashes that meet in a bucket come out in reverse, the buckets too."""
    hashes = [5, 18, 31, 6, 19]  # 13 buckets: 5 5 5 6 6
    model = _UnorderedSet()
    for value in hashes:
        model.insert(value)
    order = set_order(np.array(hashes, np.uint64)).tolist()
    assert [hashes[place] for place in order] == model.values == [19, 6, 31, 18, 5]
