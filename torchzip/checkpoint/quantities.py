"""Sizes, counts and names as a person reads them."""

from __future__ import annotations

from collections.abc import Sequence

from torchzip.errors import printable


def nbytes_text(nbytes: int) -> str:
    """Return a size in decimal units, as file managers and model hubs give it.

    >>> nbytes_text(999), nbytes_text(88_991_291), nbytes_text(4_300_000_000)
    ('999 B', '89.0 MB', '4.3 GB')
    """
    if nbytes < 1000:
        return f"{nbytes} B"
    size, unit = nbytes / 1000, "kB"
    for larger in ("MB", "GB", "TB"):
        if size < 999.95:
            break
        size, unit = size / 1000, larger
    return f"{size:.1f} {unit}"


def count_text(count: int, noun: str) -> str:
    """Return a number of things.

    >>> count_text(1, "shard"), count_text(1200, "tensor")
    ('1 shard', '1,200 tensors')
    """
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def name_text(name: str) -> str:
    """Return the name of a tensor or a value; the root of a checkpoint has none."""
    return printable(name) or "(the object itself)"


def shape_text(shape: Sequence[int | None]) -> str:
    """Return a shape or a stride; an axis of several sizes is a star.

    >>> shape_text((2, None, 3))
    '[2, *, 3]'
    """
    return str(list(shape)).replace("None", "*")


def some_of(texts: Sequence[str], most: int, joint: str = ", ", last: str = " and ") -> str:
    """Return the first of some strings, and how many more there are.

    >>> some_of(["a", "b", "c"], 2), some_of(["a", "b", "c"], 2, "; ", "; and ")
    ('a, b and 1 more', 'a; b; and 1 more')
    """
    more = f"{last}{len(texts) - most:,} more" if len(texts) > most else ""
    return joint.join(texts[:most]) + more


def share_text(share: float) -> str:
    """Return a share of a whole.

    >>> share_text(0), share_text(0.0001), share_text(0.123)
    ('0 %', '< 0.1 %', '12.3 %')
    """
    if not share:
        return "0 %"
    return f"{100 * share:.1f} %" if share >= 0.0005 else "< 0.1 %"
