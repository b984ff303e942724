"""Which values may be keys of a dict or items of a set: those that are cheap to hash.

A hash is computed anew for a tuple each time, and equal hashes cost a comparison with each
value that has the same. A small file could make a reader work for hours with either.
"""

from __future__ import annotations

from typing import Any

from torchzip.errors import PickleError, UnsupportedError

#: One file may have so many integer keys past 2**60, which can be made to collide; real
#: files have none.
_MAX_LARGE_KEYS = 10_000
_MAX_ITEMS = 256
_MAX_DEPTH = 8

PLAIN_KEYS = frozenset([str, bytes, bool, float, type(None)])


class KeyCheck:
    """Refuses what cannot be hashed, or only at a cost that the file does not pay for.

    Takes str, bytes, bool, None, float, int, short tuples of those, and whatever has the hash of
    its identity.
    """

    def __init__(self) -> None:
        self._large = 0

    def __call__(self, key: Any, depth: int = 0) -> None:
        kind = type(key)
        if kind in PLAIN_KEYS:
            return
        if kind is int:
            if not -(1 << 60) < key < 1 << 60:
                self._large += 1
                if self._large > _MAX_LARGE_KEYS:
                    raise PickleError(f"more than {_MAX_LARGE_KEYS:,} keys are ints past 2**60")
        elif isinstance(key, tuple):
            if depth >= _MAX_DEPTH or len(key) > _MAX_ITEMS >> depth:
                raise PickleError("a tuple as a key is too long or nested too deeply")
            for item in key:
                self(item, depth + 1)
        elif kind.__hash__ is None:
            raise UnsupportedError(f"a {kind.__name__} as a key of a dict or an item of a set")
        elif kind is frozenset and len(key) > _MAX_ITEMS:
            raise PickleError("a frozenset as a key is too large")
