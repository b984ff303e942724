"""Storages whose bytes are the same: found by size and CRC, proved by reading them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable

from torchzip.tensors.storage import TensorStorage


def equal_storages(storages: Iterable[TensorStorage]) -> list[list[TensorStorage]]:
    """Return the groups of storages with the same bytes, each of two or more.

    Only those are read that have the size of another, and its CRC where all of that size have one.
    They are compared by a cryptographic hash of their bytes, as CRCs can be forged.

    >>> import numpy as np
    >>> from torchzip.tensors.storage import ArrayStorage
    >>> made = [ArrayStorage(np.full(4, n, np.uint8), "uint8") for n in (1, 2, 1)]
    >>> [[storage.array[0].item() for storage in group] for group in equal_storages(made)]
    [[1, 1]]
    """
    found: list[list[TensorStorage]] = []
    some = (each for each in storages if each.nbytes)
    for alike in _groups(some, lambda each: (each.block, each.stored.nbytes)):
        have_crcs = all(storage.crc for storage in alike)
        for group in _groups(alike, lambda each: each.crc) if have_crcs else [alike]:
            found += _groups(group, _digest)
    return found


def _groups(
    storages: Iterable[TensorStorage], key: Callable[[TensorStorage], object]
) -> list[list[TensorStorage]]:
    """Return the storages with one key together, where there are two or more."""
    found: dict[object, list[TensorStorage]] = {}
    for storage in storages:
        found.setdefault(key(storage), []).append(storage)
    return [group for group in found.values() if len(group) > 1]


def _digest(storage: TensorStorage) -> bytes:
    digest = hashlib.sha256()
    for block in storage.stored.blocks():
        digest.update(block.data)
    return digest.digest()
