"""One attack: a file, and what must come of it."""

from __future__ import annotations

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


#: An attack without an option, as most tables have them.
Row = tuple[str, bytes, type[TorchZipError] | None]
