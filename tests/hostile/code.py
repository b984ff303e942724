"""Opcodes and names that would run code in a reader that trusts them."""

from __future__ import annotations

from tests.hostile.attack import Attack

ROWS: list[Attack] = []
