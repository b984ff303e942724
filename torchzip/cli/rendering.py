"""Numbers and names as a person reads them, and what a terminal shows of them."""

from __future__ import annotations

import os
import shutil
import sys
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

from torchzip.checkpoint.quantities import (
    count_text,
    name_text,
    nbytes_text,
    shape_text,
    some_of,
)

__all__ = [
    "Screen",
    "count_text",
    "fitted",
    "name_text",
    "nbytes_text",
    "screen",
    "shape_text",
    "shorten",
    "some_of",
    "table",
    "width_of",
]

#: Columns that are made narrower keep at least this much.
_LEAST_WIDTH = 16


@dataclass(frozen=True, slots=True)
class Screen:
    """Where text goes. ``width`` is None if it is no terminal: then nothing is cut or styled."""

    width: int | None = None
    has_style: bool = False

    def bold(self, text: str) -> str:
        return f"\x1b[1m{text}\x1b[0m" if self.has_style and text else text

    def dim(self, text: str) -> str:
        return f"\x1b[2m{text}\x1b[0m" if self.has_style and text else text


def screen() -> Screen:
    """Return what stdout is. Style is off with NO_COLOR set, or TERM=dumb."""
    if not sys.stdout.isatty():
        return Screen()
    has_style = not os.environ.get("NO_COLOR") and os.environ.get("TERM", "dumb") != "dumb"
    return Screen(max(20, shutil.get_terminal_size().columns), has_style)


def width_of(text: str) -> int:
    """Return how many columns of a terminal a text takes.

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
    """Return a text of at most so many columns, without its middle.

    More is left of its end: names begin alike.

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


def fitted(
    rows: Sequence[Sequence[str]], shrinking: Sequence[int], width: int | None
) -> Sequence[Sequence[str]]:
    """Return the rows of a `table` with cells shortened so that its lines have the width.

    Only columns in ``shrinking`` are made narrower, the first of them first. Where that is not
    enough, lines stay longer than the width.
    """
    if width is None or not rows:
        return rows
    widths = [max(_widths(column)) for column in zip(*rows, strict=True)]
    excess = sum(widths) + 2 * (len(widths) - 1) - width
    for column in shrinking:
        less = max(0, min(excess, widths[column] - _LEAST_WIDTH))
        widths[column] -= less
        excess -= less
    return [
        [
            shorten(cell, widths[column]) if column in shrinking else cell
            for column, cell in enumerate(row)
        ]
        for row in rows
    ]


def table(rows: Sequence[Sequence[str]], right: Sequence[int] = ()) -> list[str]:
    """Return rows as lines with aligned columns; those in ``right`` end together."""
    if not rows:
        return []
    columns = []
    for number, column in enumerate(zip(*rows, strict=True)):
        widths = _widths(column)
        most = max(widths)
        if number in right:
            columns.append([" " * (most - w) + c for c, w in zip(column, widths, strict=True)])
        else:
            columns.append([c + " " * (most - w) for c, w in zip(column, widths, strict=True)])
    return [line.rstrip() for line in map("  ".join, zip(*columns, strict=True))]
