"""Numbers and names as a person reads them."""

from __future__ import annotations

from collections.abc import Sequence

from torchzip.checkpoint.quantities import count_text, nbytes_text

__all__ = ["count_text", "nbytes_text", "table"]


def table(rows: Sequence[Sequence[str]], right: Sequence[int] = ()) -> list[str]:
    """Return rows as lines with aligned columns; those in ``right`` end together."""
    if not rows:
        return []
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  ".join(
            cell.rjust(width) if column in right else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
