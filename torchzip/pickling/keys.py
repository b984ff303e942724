"""Checks that keys of a dict, or items of a set, are cheap to hash.

The hash of a tuple is computed again each time, and each value with an equal hash costs a
comparison. With either, a small file could keep a reader busy for hours. So could numbers with
different hashes whose search in the table goes through thousands of occupied places, since
CPython's order of places is known.

So everything that is hashed and compared is counted, and the bound is proportional to the size of
the file: `Limits.key_values`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from torchzip.errors import LimitError, PickleError, UnsupportedError, shown
from torchzip.limits import DEFAULT_LIMITS, Limits

#: Values in keys allowed for each byte of a pickle. Pairs (state, action) need some 26: a state of
#: 361 ints is written once, and hashed with each of 362 actions.
_VALUES_PER_BYTE = 32

#: Keys that are added to a dict or set without a check, and at a time.
_UNWATCHED = 1024
#: Most places searched for one key (random keys need up to 50 in a table of millions); and for all
#: keys of a table, per key and in addition (random keys need 2).
_MAX_PLACES = 200
_MEAN_PLACES, _MORE_PLACES = 32, 50_000

_PLAIN_KEYS = frozenset([str, bytes, bool, type(None)])
#: Types that are as fast to hash and compare as a small int.
_PLAIN_ITEMS = _PLAIN_KEYS | {float}
#: A value of another type, such as a Decimal, a time or a fraction, counts as so many.
_OTHER_VALUE = 16


class KeyCheck:
    """Refuses keys that cannot be hashed, or whose cost exceeds the bound for the file.

    `allow` sets that bound; without it, the file counts as empty. ``stand_in`` may return a
    hashable replacement for a key that is not hashable.
    """

    def __init__(self, stand_in: Callable[[Any], Any] = lambda key: key) -> None:
        self._stand_in = stand_in
        # By the bytes of a hash, whose own hash is salted.
        self._by_hash: dict[bytes, list[Any]] = {}
        # With the dict or set of each id, to keep it alive.
        self._slots: dict[int, tuple[Any, _Slots]] = {}
        self.allow(DEFAULT_LIMITS, 0)

    def allow(self, limits: Limits, nbytes: int) -> None:
        """Set the bounds for the next input, which has so many bytes."""
        self._most_nested = limits.key_nesting
        self._most = self._left = limits.key_values + _VALUES_PER_BYTE * nbytes

    def finish(self) -> None:
        """Release all keys, and ``stand_in``."""
        self._by_hash.clear()
        self._slots.clear()
        del self._stand_in

    def __call__(self, key: Any) -> None:
        kind = type(key)
        if kind in _PLAIN_KEYS or (kind is int and -(1 << 60) < key < 1 << 60):
            return
        values = self._count(key, 0)
        try:
            own = hash(key)
        except TypeError:  # a signalling NaN, a numpy record
            raise UnsupportedError(
                f"{shown(key)} as a key of a dict or an item of a set; it has no hash"
            ) from None
        same = self._by_hash.setdefault(own.to_bytes(8, "little", signed=True), [])
        self._left -= values * (1 + len(same))
        if self._left < 0:
            raise self._too_many(0)
        try:
            known = key in same
        except ValueError:  # numpy compares a scalar with each item of a tuple of the same hash
            raise UnsupportedError(
                f"{shown(key)} as a key of a dict or an item of a set beside one of its hash"
            ) from None
        if not known:
            same.append(key)

    def checked(self, keys: Iterable[Any]) -> list[Any]:
        """Return the checked keys, with stand-ins for those that are not hashable."""
        usable = [self._stand_in(key) if type(key).__hash__ is None else key for key in keys]
        for key in usable:
            if type(key) is not str:
                self(key)
        return usable

    @property
    def is_watching(self) -> bool:
        """Whether there is a large dict or set with keys other than strings."""
        return bool(self._slots)

    def fill(self, target: dict[Any, Any], keys: Sequence[Any], values: Sequence[Any]) -> None:
        """Add checked keys to a dict, after checking that this does not take long."""
        for at in range(0, len(keys), _UNWATCHED):
            part = keys[at : at + _UNWATCHED]
            self.watch(target, part)
            for key, value in zip(part, values[at : at + _UNWATCHED], strict=True):
                target[key] = value

    def collect(self, target: set[Any], items: Sequence[Any]) -> None:
        """Add checked items to a set, as `fill` does."""
        for at in range(0, len(items), _UNWATCHED):
            part = items[at : at + _UNWATCHED]
            self.watch(target, part)
            target.update(part)

    def set_of(self, items: Sequence[Any]) -> set[Any]:
        """Return a set of checked items. Only later additions are checked further."""
        made: set[Any] = set()
        self.collect(made, items)
        self._slots.pop(id(made), None)
        return made

    def frozen(self, items: Sequence[Any]) -> frozenset[Any]:
        """Return a frozenset of checked items."""
        self.set_of(items)
        return frozenset(items)  # not of the set: the table of a copy has another size

    def watch(self, target: dict[Any, Any] | set[Any], keys: Sequence[Any]) -> None:
        """Raise PickleError if adding up to 1024 keys to a dict or set would take long."""
        known = self._slots.get(id(target))
        if known is None:
            if len(target) + len(keys) <= _UNWATCHED or all(type(key) is str for key in keys):
                return
            known = self._slots[id(target)] = (target, _Slots(target))
        slots = known[1]
        slots.add([key for key in dict.fromkeys(keys) if key not in target])

    def _count(self, key: Any, depth: int) -> int:
        """Return the number of values in a key; raise if it costs too much."""
        kind = type(key)
        if kind is int:
            bits: int = key.bit_length()
            return 1 + (bits >> 6)
        if kind in _PLAIN_ITEMS:
            return 1
        if kind.__hash__ is None or kind is slice:  # a slice has a hash since Python 3.12
            raise UnsupportedError(
                f"{shown(key)} as a key of a dict or an item of a set; it has no hash"
            )
        if not isinstance(key, tuple | frozenset):
            return _OTHER_VALUE
        # A frozenset caches its hash, but comparing equal ones compares their items.
        if depth >= self._most_nested:
            raise LimitError("key_nesting", depth + 1, self._most_nested)
        kinds = set(map(type, key))
        total = 0
        if kinds == {int}:
            total = len(key) + (sum(map(int.bit_length, key)) >> 6)
        elif kinds <= _PLAIN_ITEMS:
            total = len(key)
        else:
            for item in key:
                total += self._count(item, depth + 1)
                if total > self._left:
                    break
        if total > self._left:
            raise self._too_many(total)
        return total or 1

    def _too_many(self, more: int) -> LimitError:
        return LimitError("key_values", self._most - self._left + more, self._most)


class _Slots:
    """The places of keys in a dict or a set of CPython 3.11 to 3.14."""

    def __init__(self, held: dict[Any, Any] | set[Any]) -> None:
        self._is_set = isinstance(held, set)
        self._hashes: list[int] = []
        self._places = 0
        self._taken = bytearray(8)
        # A dict with only string keys has another kind of table.
        self._has_texts_only = not self._is_set
        self.add(held)

    def add(self, keys: Iterable[Any]) -> None:
        """Put new keys into the table."""
        for key in keys:
            used = len(self._hashes)
            size = len(self._taken)
            if self._has_texts_only and type(key) is not str:
                self._has_texts_only = False
                if used:
                    self._resize(3 * used - 1)
            elif not self._is_set and used >= 2 * size // 3:
                self._resize(3 * used - 1)
            own = hash(key)
            self._put(own)
            self._hashes.append(own)
            if self._is_set and 5 * (used + 1) >= 3 * (len(self._taken) - 1):
                self._resize((used + 1) * (2 if used + 1 > 50_000 else 4))

    def _resize(self, more_than: int) -> None:
        self._taken = bytearray(max(8, 1 << more_than.bit_length()))
        self._places = 0
        for own in self._hashes:
            self._put(own)

    def _put(self, own: int) -> None:
        taken = self._taken
        mask = len(taken) - 1
        place = own & mask
        if not taken[place]:
            taken[place] = 1
            return
        rest = own & 0xFFFF_FFFF_FFFF_FFFF
        most = (_MEAN_PLACES * len(self._hashes) + _MORE_PLACES) - self._places
        for _ in range(min(_MAX_PLACES, most)):
            if self._is_set and place + 9 <= mask:
                found = taken.find(0, place, place + 10)
                if found >= 0:
                    break
            elif not taken[place]:
                found = place
                break
            rest >>= 5
            place = (5 * place + rest + 1) & mask
            self._places += 1
        else:
            raise PickleError(
                "the keys of a dict or the items of a set are such that most places are taken "
                "where they are looked for; they do not come so by chance"
            )
        taken[found] = 1
