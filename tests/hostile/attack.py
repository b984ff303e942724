"""One attack: a file, and what must come of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

from torchzip.errors import TorchZipError


@dataclass(frozen=True)
class Attack:
    """A hostile file by name, and the error that `load` must raise.

    Where ``error`` is None the file is legal and `load` must give a value: what it tries has no
    effect. ``foreign`` is the option of `load`.
    """

    name: str
    data: bytes
    error: type[TorchZipError] | None
    foreign: Literal["keep", "raise"] = "keep"


#: A row of a table: its error stands in it where that is not the usual one of the table.
Row = tuple[str, bytes] | tuple[str, bytes, type[TorchZipError] | None]


def attacks(
    rows: Iterable[Row],
    usual: type[TorchZipError],
    file_of: Callable[[bytes], bytes] = bytes,
    prefix: str = "",
) -> list[Attack]:
    """Return the attacks of a table; ``file_of`` makes the file of what a row has."""
    return [
        Attack(prefix + row[0], file_of(row[1]), row[2] if len(row) > 2 else usual) for row in rows
    ]
