"""Which values may be keys of a dict or items of a set: those that are cheap to hash.

A hash is computed anew for a tuple each time, and equal hashes cost a comparison with each
value that has the same. A small file could make a reader work for hours with either.
"""

from __future__ import annotations

from typing import Any

from torchzip.errors import PickleError, UnsupportedError, shown

#: So many different keys of one file may have the same hash; real files have two at most
#: (-1 and -2). Strings and bytes cannot be made to collide: their hash is salted.
_MAX_EQUAL_HASHES = 100
_MAX_ITEMS = 256
_MAX_DEPTH = 8

_PLAIN_KEYS = frozenset([str, bytes, bool, type(None)])


class KeyCheck:
    """Refuses what cannot be hashed, or only at a cost that the file does not pay for.

    Takes str, bytes, bool, None, float, int, short tuples of those, and whatever has the hash of
    its identity.
    """

    def __init__(self) -> None:
        self._by_hash: dict[int, list[Any]] = {}

    def __call__(self, key: Any) -> None:
        kind = type(key)
        if kind in _PLAIN_KEYS or (kind is int and -(1 << 60) < key < 1 << 60):
            return
        self._check_cost(key, 0)
        try:
            own = hash(key)
        except TypeError:  # a signalling NaN, a numpy record
            raise UnsupportedError(
                f"{shown(key)} as a key of a dict or an item of a set; it has no hash"
            ) from None
        same = self._by_hash.setdefault(own, [])
        try:
            known = key in same
        except ValueError:  # numpy compares a scalar with each item of a tuple of the same hash
            raise UnsupportedError(
                f"{shown(key)} as a key of a dict or an item of a set beside one of its hash"
            ) from None
        if not known:
            if len(same) >= _MAX_EQUAL_HASHES:
                raise PickleError(f"more than {_MAX_EQUAL_HASHES} keys have the same hash")
            same.append(key)

    def _check_cost(self, key: Any, depth: int) -> None:
        kind = type(key)
        if isinstance(key, tuple):
            if depth >= _MAX_DEPTH or len(key) > _MAX_ITEMS >> depth:
                raise PickleError(
                    f"a tuple as a key of a dict or an item of a set has more than {_MAX_ITEMS} "
                    "items "
                    f"or {_MAX_DEPTH} levels"
                )
            for item in key:
                self._check_cost(item, depth + 1)
        elif kind.__hash__ is None:
            raise UnsupportedError(
                f"{shown(key)} as a key of a dict or an item of a set; it has no hash"
            )
        elif kind is frozenset and len(key) > _MAX_ITEMS:
            raise PickleError(
                f"a frozenset as a key of a dict or an item of a set has more than {_MAX_ITEMS} "
                "items"
            )
