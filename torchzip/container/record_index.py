"""Maps the names of records to rows of the directory of a zip archive.

torch names storages ``data/0``, ``data/1`` and so on. 100,000 of them are kept as numbers, without
a string for each. Duplicate names, also those that differ only in ASCII case, are refused. So are
names that some readers change: they cut them at a zero byte, or normalise them as file paths.
"""

from __future__ import annotations

import re

import numpy as np
from numpy.typing import NDArray

from torchzip.errors import ArchiveError

#: Most digits of the number in a name ``data/<number>``: what an int64 holds.
_MOST_DIGITS = 18
_POWERS = 10 ** np.arange(1, _MOST_DIGITS + 1)
#: A zero byte, a backslash, or a path component that is empty, "." or "..".
_CHANGED = re.compile(rb"[\0\\]|(?:^|/)(?:\.{0,2}/|\.{1,2}\Z)")


class RecordIndex:
    """The row of the directory for each name.

    ``numbers`` has, for each row, the number in a name ``data/<number>``, or -1 for other names,
    which are in ``others``.
    """

    def __init__(self, numbers: NDArray[np.int64], others: dict[str, int]) -> None:
        self._numbers = numbers
        self._others = others
        self._order = np.argsort(numbers, kind="stable")
        self._sorted = numbers[self._order]

    def find(self, name: str) -> int | None:
        """Return the row of a name, or None."""
        row = self._others.get(name)
        digits = name[5:] if row is None and name.startswith("data/") else ""
        if digits.isdecimal() and digits.isascii() and len(digits) <= _MOST_DIGITS:
            number = int(digits)
            place = number + len(self._others)  # as torch numbers them
            if place >= len(self._sorted) or self._sorted[place] != number:
                place = int(self._sorted.searchsorted(number))
            # With leading zeros it is another name with the same number.
            is_there = place < len(self._sorted) and self._sorted[place] == number
            if is_there and (digits[0] != "0" or (number == 0 and len(digits) == 1)):
                row = int(self._order[place])
        return row

    def find_keys(self, keys: list[str]) -> NDArray[np.int64] | None:
        """Return the rows of the names ``data/<key>``; None unless all are known by number."""
        text = "".join(keys)
        lengths = list(map(len, keys))
        if max(lengths) > _MOST_DIGITS or not (text.isascii() and text.isdecimal()) or 0 in lengths:
            return None
        numbers = np.fromiter(map(int, keys), np.int64, len(keys))
        # With leading zeros it is another name with the same number.
        if int(_digits(numbers).sum()) != len(text):
            return None
        places = np.searchsorted(self._sorted, numbers)
        places[places == len(self._sorted)] = 0
        if (self._sorted[places] != numbers).any():
            return None
        rows: NDArray[np.int64] = self._order[places]
        return rows

    def names(self) -> list[str]:
        """Return all names in directory order."""
        names = [f"data/{number}" for number in self._numbers.tolist()]
        for name, row in self._others.items():
            names[row] = name
        return names


def _digits(numbers: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return how many decimal digits each number has."""
    found: NDArray[np.int64] = np.searchsorted(_POWERS, numbers, "right") + 1
    return found


def index_fast(
    data: bytes, begins: NDArray[np.int64], ends: NDArray[np.int64]
) -> RecordIndex | None:
    """Return the rows of all names, by number where they have one.

    None if two of them may be equal, or differ in ASCII case only, or one must be refused.
    """
    raw = np.frombuffer(data, np.uint8)
    count = ends - begins - len(b"data/")
    numbered = (count >= 1) & (count <= _MOST_DIGITS)
    for index, byte in enumerate(b"data/"):
        # A header precedes each name, and shorter names have no number.
        numbered &= raw[np.minimum(begins + index, len(raw) - 1)] == byte
    rows = np.flatnonzero(numbered)
    at, count = begins[rows] + len(b"data/"), count[rows]
    numbers = np.zeros(len(rows), np.int64)
    good = np.ones(len(rows), np.bool_)
    for index in range(int(count.max()) if len(rows) else 0):
        inside = index < count
        digit = raw[np.where(inside, at + index, at)] - np.uint8(0x30)
        good &= digit <= 9
        numbers = np.where(inside, numbers * 10 + digit, numbers)
    good &= _digits(numbers) == count  # no leading zeros
    rows, numbers = rows[good], numbers[good]
    all_numbers = np.full(len(begins), -1, np.int64)
    all_numbers[rows] = numbers
    if (np.diff(np.sort(numbers)) == 0).any():
        return None
    others: dict[str, int] = {}
    folded = set()
    for row in np.flatnonzero(all_numbers < 0).tolist():
        # Latin-1 can decode any bytes; relevant names are ASCII.
        name = data[begins[row] : ends[row]]
        others[name.decode("latin-1")] = row
        folded.add(name.lower())  # changes ASCII letters only
        if is_changed(name):
            return None
    if len(folded) + len(numbers) != len(begins) or any(
        name.startswith(b"data/") and name[5:].isdigit() for name in folded
    ):
        return None
    return RecordIndex(all_numbers, others)


def index_plainly(data: bytes, begins: NDArray[np.int64], ends: NDArray[np.int64]) -> RecordIndex:
    """Return the rows of all names, one by one."""
    names = [data[a:b] for a, b in zip(begins.tolist(), ends.tolist(), strict=True)]
    seen: set[bytes] = set()
    for name in names:
        check_name(name)
        if name.lower() in seen:
            raise ArchiveError(f"two records are called {shown_name(name)}")
        seen.add(name.lower())
    others = {name.decode("latin-1"): row for row, name in enumerate(names)}
    return RecordIndex(np.full(len(names), -1, np.int64), others)


def is_changed(name: bytes) -> bool:
    """Return whether readers other than torch may change a name."""
    return _CHANGED.search(name) is not None


def check_name(name: bytes) -> None:
    """Raise ArchiveError if readers other than torch may change a name.

    A slash at the end is fine: it marks a folder.

    >>> check_name(b"archive/data/"), check_name(b"archive/.data/version")
    (None, None)
    """
    if is_changed(name):
        raise ArchiveError(
            f"a record is called {shown_name(name)}, a name that some readers change. "
            "Components that are not empty, '.' or '..', without zero bytes and backslashes, were "
            "expected"
        )


def shown_name(name: bytes) -> str:
    """Return a name as messages show it."""
    return repr(name[:100].decode("utf-8", "backslashreplace"))
