"""Tables of what is refused: a name, what is given, a part of the message, and the error."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest

#: The error stands in a row where it is not the usual one of its table.
Refusal = tuple[str, Any, str] | tuple[str, Any, str, type[Exception]]


def each_refusal(rows: Iterable[Refusal], usual: type[Exception]) -> pytest.MarkDecorator:
    """Give a test what each row has: ``given``, ``error`` and ``message``."""
    made = [
        pytest.param(given, error[0] if error else usual, message, id=name)
        for name, given, message, *error in rows
    ]
    return pytest.mark.parametrize(("given", "error", "message"), made)
