"""The pickle machine itself: memo, lengths, depth, cycles, the stack."""

from __future__ import annotations

from tests.hostile.attack import Attack

ROWS: list[Attack] = []
