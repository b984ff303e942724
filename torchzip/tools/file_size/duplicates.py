"""Storages whose bytes are the same: found by size and CRC, proved by reading them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

from torchzip.tensors.storage import TensorStorage


def equal_storages(storages: Iterable[TensorStorage]) -> list[list[TensorStorage]]:
    """Return the groups of storages with the same bytes, each of two or more.

    Only those are read that have the size of another, and its CRC where both have one. They are
    compared block by block; where CRCs are missing, by a cryptographic hash of the bytes.

    >>> import numpy as np
    >>> from torchzip.tensors.storage import ArrayStorage
    >>> made = [ArrayStorage(np.full(4, n, np.uint8), "uint8") for n in (1, 2, 1)]
    >>> [[storage.array[0].item() for storage in group] for group in equal_storages(made)]
    [[1, 1]]
    """
    by_size: dict[int, list[TensorStorage]] = {}
    for storage in storages:
        if storage.nbytes:
            by_size.setdefault(storage.nbytes, []).append(storage)
    found: list[list[TensorStorage]] = []
    for group in by_size.values():
        if len(group) < 2:
            continue
        if all(storage.crc for storage in group):
            by_crc: dict[int | None, list[TensorStorage]] = {}
            for storage in group:
                by_crc.setdefault(storage.crc, []).append(storage)
            for same_crc in by_crc.values():
                found += _compared(same_crc)
        else:
            found += _hashed(group)
    return found


def _compared(group: Sequence[TensorStorage]) -> list[list[TensorStorage]]:
    classes: list[list[TensorStorage]] = []
    if len(group) < 2:
        return classes
    for storage in group:
        for known in classes:  # one, but for bytes that are made to have one CRC
            if _is_equal(known[0], storage):
                known.append(storage)
                break
        else:
            classes.append([storage])
    return [known for known in classes if len(known) > 1]


def _is_equal(one: TensorStorage, other: TensorStorage) -> bool:
    # Blocks need not be of the same sizes: those of deflated bytes are as they come.
    a, b = one.blocks(), other.blocks()
    left, right = next(a, None), next(b, None)
    while left is not None and right is not None:
        size = min(left.size, right.size)
        if left[:size].tobytes() != right[:size].tobytes():
            return False
        left = left[size:] if size < left.size else next(a, None)
        right = right[size:] if size < right.size else next(b, None)
    return left is None and right is None


def _hashed(group: Sequence[TensorStorage]) -> list[list[TensorStorage]]:
    by_hash: dict[bytes, list[TensorStorage]] = {}
    for storage in group:
        digest = hashlib.sha256()
        for block in storage.blocks():
            digest.update(block.data)
        by_hash.setdefault(digest.digest(), []).append(storage)
    return [same for same in by_hash.values() if len(same) > 1]
