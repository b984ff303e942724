"""Numbers and names in readable form, fitted to the width of a terminal."""

from __future__ import annotations

import os
import shutil
import sys
import unicodedata
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from operator import add

#: A column that is made narrower keeps at least this width: one after the other, until all fits.
_LEAST_WIDTHS = (16, 12, 8, 6, 4)


@dataclass(frozen=True, slots=True)
class Screen:
    """Where text is printed. Without a terminal ``width`` is None: nothing is cut or styled."""

    width: int | None = None
    has_style: bool = False

    def bold(self, text: str) -> str:
        return f"\x1b[1m{text}\x1b[0m" if self.has_style and text else text

    def dim(self, text: str) -> str:
        return f"\x1b[2m{text}\x1b[0m" if self.has_style and text else text


def screen() -> Screen:
    """Return the output that stdout is. NO_COLOR or TERM=dumb turn styles off."""
    if not sys.stdout.isatty():
        return Screen()
    has_style = not os.environ.get("NO_COLOR") and os.environ.get("TERM", "dumb") != "dumb"
    return Screen(max(20, shutil.get_terminal_size().columns), has_style)


def width_of(text: str) -> int:
    """Return how many columns of a terminal a string takes.

    >>> width_of("weight"), width_of("重み"), width_of("e\\u0301")
    (6, 4, 1)
    """
    if text.isascii():
        return len(text)
    return sum(map(_width, text))


def _width(character: str) -> int:
    if unicodedata.category(character) in ("Mn", "Me"):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def shorten(text: str, width: int) -> str:
    """Return a string with its middle cut out, so that it takes at most ``width`` columns.

    More of its end is kept, since names begin alike.

    >>> shorten("model.layers.0.weight", 12)
    'mod…0.weight'
    """
    if width_of(text) <= width:
        return text
    head = _beginning(text, (width - 1) // 3)
    tail = _beginning(text[::-1], width - 1 - width_of(head))[::-1]
    return f"{head}…{tail}"


def _beginning(text: str, width: int) -> str:
    for count, character in enumerate(text):
        width -= _width(character)
        if width < 0:
            return text[:count]
    return text


def _widths(column: Sequence[str]) -> list[int]:
    return list(map(len if "".join(column).isascii() else width_of, column))


def fitted_table(
    rows: Sequence[Sequence[str]],
    where: Screen,
    shrinking: Sequence[int],
    right: Sequence[int] = (),
) -> list[str]:
    """Return rows as lines with aligned columns, those in ``right`` to the right, for a screen.

    Where lines would be too long, columns in ``shrinking`` are made narrower first, in that order.
    If that is not enough, all are, step by step, but for those in ``right`` alone: they have
    numbers, and stay whole. Lines stay longer than the screen only if that is not enough either.
    """
    if not rows:
        return []
    if where.width is not None:
        rows = _fitted(rows, where.width, shrinking, {*right}.difference(shrinking))
    columns = []
    for number, column in enumerate(zip(*rows, strict=True)):
        widths = _widths(column)
        most = max(widths)
        pads = [" " * (most - width) for width in widths]
        columns.append(map(add, pads, column) if number in right else map(add, column, pads))
    return [line.rstrip() for line in map("  ".join, zip(*columns, strict=True))]


def _fitted(
    rows: Sequence[Sequence[str]], width: int, shrinking: Sequence[int], whole: Collection[int]
) -> Sequence[Sequence[str]]:
    """Return rows with cells shortened, but for those of the columns in ``whole``."""
    widths = [max(_widths(column)) for column in zip(*rows, strict=True)]
    excess = sum(widths) + 2 * (len(widths) - 1) - width
    others = [column for column in range(len(widths)) if column not in {*shrinking, *whole}]
    steps = [(column, _LEAST_WIDTHS[0]) for column in shrinking]
    steps += [(column, least) for least in _LEAST_WIDTHS for column in (*shrinking, *others)]
    for column, least in steps:
        less = max(0, min(excess, widths[column] - least))
        widths[column] -= less
        excess -= less
    return [
        [
            cell if column in whole else shorten(cell, widths[column])
            for column, cell in enumerate(row)
        ]
        for row in rows
    ]
