"""The ``.data/serialization_id`` of an archive, computed from its names and CRCs.

See docs/format.md, section 3. Two 64-bit numbers, each printed with 20 digits. The first folds in
the hash of every record name, in the order in which a ``std::unordered_set<std::string>`` of
libstdc++ iterates over them; the second folds in the CRC of every record, in file order. torch only
reports the id, but a file that is identical to torch's needs the same one.

*Hash*: MurmurHash2-64A with seed 0xc70f6907.

*Order*: the set keeps its elements in one linked list. An element whose bucket is
empty goes to the head of the list; any other goes in front of its bucket's elements. So
after inserting a sequence into B buckets, the buckets are in the reverse order of
their first insertion, and so do the elements within each. A rehash walks the list and inserts each
element into the new buckets by the same rule. The order is therefore computed in phases, one for
each bucket count: the elements so far, in their present order, and then the names that are added
before the next rehash, are all inserted at once.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

_MASK = 0xFFFFFFFFFFFFFFFF
_MUL = 0xC6A4A7935BD1E995
_SEED = 0xC70F6907

#: Bucket counts of libstdc++, as an empty set grows.
_BUCKETS = (
    13, 29, 59, 127, 257, 541, 1109, 2357, 5087, 10273, 20753, 42043, 85229, 172933, 351061,
    712697, 1447153, 2938679, 5967347, 12117689, 24607243, 49969847, 101473717, 206062531,
)  # fmt: skip


def murmur(name: bytes) -> int:
    """Return the hash that libstdc++ gives a string.

    >>> hex(murmur(b"data.pkl"))
    '0x44943d565847b09e'
    """
    state = _SEED ^ (len(name) * _MUL & _MASK)
    whole = len(name) & ~7
    for start in range(0, whole, 8):
        word = int.from_bytes(name[start : start + 8], "little") * _MUL & _MASK
        word = (word ^ word >> 47) * _MUL & _MASK
        state = (state ^ word) * _MUL & _MASK
    if whole < len(name):
        state = (state ^ int.from_bytes(name[whole:], "little")) * _MUL & _MASK
    state = (state ^ state >> 47) * _MUL & _MASK
    return state ^ state >> 47


def murmur_all(names: Sequence[bytes]) -> NDArray[np.uint64]:
    """Return `murmur` of every name, equal lengths together in one vectorised step."""
    lengths = np.fromiter(map(len, names), np.int64, len(names))
    starts = np.cumsum(lengths) - lengths
    text = np.frombuffer(b"".join(names), np.uint8)
    result = np.empty(len(names), np.uint64)
    mul, shift = np.uint64(_MUL), np.uint64(47)
    for length in np.unique(lengths).tolist():
        members = np.flatnonzero(lengths == length)
        if len(members) < 8:
            for index in members.tolist():
                result[index] = murmur(names[index])
            continue
        padded = np.zeros((len(members), -(-length // 8) * 8), np.uint8)
        padded[:, :length] = text[starts[members][:, None] + np.arange(length)]
        words = padded.view("<u8")
        state = np.full(len(members), _SEED ^ (length * _MUL & _MASK), np.uint64)
        for column in range(length // 8):
            word = words[:, column] * mul
            word = (word ^ word >> shift) * mul
            state = (state ^ word) * mul
        if length % 8:
            state = (state ^ words[:, -1]) * mul
        state = (state ^ state >> shift) * mul
        result[members] = state ^ state >> shift
    return result


def set_order(hashes: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Return the positions of ``hashes`` in the order in which the set iterates."""
    order = np.empty(0, np.int64)
    inserted = 0
    for buckets in _BUCKETS:
        # The set holds `buckets` elements before it grows, and has one bucket at first.
        arriving = np.arange(inserted, min(len(hashes), buckets), dtype=np.int64)
        sequence = np.concatenate([order, arriving])
        bucket = (hashes[sequence] % np.uint64(buckets)).astype(np.int64)
        place = np.arange(len(sequence), dtype=np.int64)
        first = np.empty(buckets, np.int64)
        first[bucket[::-1]] = place[::-1]  # the first place of each bucket is written last
        order = sequence[np.argsort(-(first[bucket] * len(sequence) + place))]
        inserted += len(arriving)
        if inserted == len(hashes):
            break
    return order


def serialization_id(names: Sequence[bytes], crcs: Iterable[int]) -> str:
    """Return the id of an archive.

    ``names`` are all record names so far without the archive name, in file order; ``crcs``
    the CRCs of the data descriptors in file order, with the additions that `zip_writer` explains.

    >>> names = b"data.pkl .format_version .storage_alignment byteorder data/0 version".split()
    >>> crcs = [0x07974E78, 0x83DCEFB7, 0xE971773F, 0x19E33D85, 0x02C7FCA5, 0x55679ED1]
    >>> serialization_id(names, crcs)
    '1572819951185464302603100366165701790911'
    """
    hashes = murmur_all(names)
    in_order = hashes[set_order(hashes)]
    return f"{_fold(in_order):020d}{_fold(np.array([*crcs], np.uint64)):020d}"


def _fold(values: NDArray[np.uint64]) -> int:
    """Mix values into one number, in their order, modulo 2**64."""
    seed = 0
    for value in (values + np.uint64(0x9E3779B9)).tolist():
        # seed * 257 >> 2 is (seed << 6) + (seed >> 2), in one step.
        seed ^= value + (257 * seed >> 2) & _MASK
    return seed
