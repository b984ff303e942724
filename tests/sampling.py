"""Rows of which a sample is tried in each run, and all in a long one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest


def sampled(
    rows: Sequence[Any], every: int, *, first: int = 0, ids: Sequence[str] | None = None
) -> list[Any]:
    """Return what `parametrize` takes: each ``every``-th row from ``first`` on, the others `long`.

    For what is tried in full by another test, in another way. ``python -m pytest -m ""`` runs all.
    """
    return [
        pytest.param(
            row,
            id=str(row) if ids is None else ids[index],
            marks=[] if index % every == first else [pytest.mark.long],
        )
        for index, row in enumerate(rows)
    ]
