"""An index as a user types it, such as ``3,:,::2``."""

from __future__ import annotations

import re
from types import EllipsisType

from torchzip.errors import MAX_NDIM, shown

Item = int | slice | EllipsisType | None

_INTEGER = re.compile(r"[+-]?[0-9]{1,19}", re.ASCII)
_EXAMPLES = "examples: 0   :10   3,:,::2   -1   ...,0"


def parse_index(text: str) -> tuple[Item, ...]:
    """Return the index that the text between the brackets of ``array[...]`` means.

    The text may include the brackets. It is numpy's basic indexing: integers, slices, ``...`` and
    ``None``.

    >>> parse_index("[3, :, ::2]"), parse_index("...,-1")
    ((3, slice(None, None, None), slice(None, None, 2)), (Ellipsis, -1))

    Raises
    ------
    ValueError
        If the text is anything else.
    """
    inner = text.strip()
    if inner.startswith("[") or inner.endswith("]"):
        if not (inner.startswith("[") and inner.endswith("]") and len(inner) > 1):
            raise ValueError(f"the index {shown(text)} has an unmatched bracket")
        inner = inner[1:-1]
    items = inner.split(",")
    if len(items) > 1 and not items[-1].strip():
        items.pop()  # (3,)
    if len(items) > MAX_NDIM:
        raise ValueError(f"an index of {len(items)} items; arrays have {MAX_NDIM} dimensions")
    made = tuple(_item(item.strip(), text) for item in items)
    if made.count(Ellipsis) > 1:
        raise ValueError(f"the index {shown(text)} has more than one '...'")
    return made


def _item(item: str, text: str) -> Item:
    if item == "...":
        return Ellipsis
    if item in ("None", "newaxis"):
        return None
    if ":" not in item:
        return _integer(item, text)
    ends = [part.strip() for part in item.split(":")]
    if len(ends) > 3:
        raise ValueError(
            f"{shown(item)} in the index {shown(text)} has {len(ends) - 1} colons; a slice is "
            "start:stop:step"
        )
    numbers = [_integer(part, text) if part else None for part in ends]
    if numbers[2:] == [0]:
        raise ValueError(f"the step of {shown(item)} in the index {shown(text)} is 0")
    return slice(*numbers)


def _integer(item: str, text: str) -> int:
    if not item:
        raise ValueError(f"an item of the index {shown(text)} is empty; {_EXAMPLES}")
    if not _INTEGER.fullmatch(item):
        what = "too large" if re.fullmatch(r"[+-]?[0-9]+", item) else "not an integer or a slice"
        raise ValueError(f"{shown(item)} in the index {shown(text)} is {what}; {_EXAMPLES}")
    return int(item)
