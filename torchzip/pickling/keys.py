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
#: Values in one key, and how deep they are in it.
_MAX_VALUES = 256
_MAX_DEPTH = 8

_PLAIN_KEYS = frozenset([str, bytes, bool, type(None)])


class KeyCheck:
    """Refuses what cannot be hashed, or only at a cost that the file does not pay for.

    Takes str, bytes, bool, None, float, int, short tuples and frozensets of those, and whatever has
    the hash of its identity.
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

    def _check_cost(self, key: Any, depth: int) -> int:
        """Return how many values a key consists of; raise if it costs too much."""
        kind = type(key)
        if kind.__hash__ is None or kind is slice:  # a slice has a hash since Python 3.12
            raise UnsupportedError(
                f"{shown(key)} as a key of a dict or an item of a set; it has no hash"
            )
        if not isinstance(key, tuple | frozenset):
            return 1
        # A frozenset knows its hash, but is compared with an equal one by what is in both.
        total = 0
        for item in key:
            if depth < _MAX_DEPTH:
                total += self._check_cost(item, depth + 1)
            if depth >= _MAX_DEPTH or total > _MAX_VALUES:
                raise PickleError(
                    f"a {kind.__name__} as a key of a dict or an item of a set has more than "
                    f"{_MAX_VALUES} values or {_MAX_DEPTH} levels"
                )
        return total or 1
