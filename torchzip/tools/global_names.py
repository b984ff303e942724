"""Every class and function that a checkpoint names, and who knows it."""

from __future__ import annotations

from typing import NamedTuple

from torchzip.checkpoint.lazy import Checkpoint
from torchzip.pickling.allowlist import is_torch_safe


class GlobalName(NamedTuple):
    """A class or function; ``torch_safe`` says whether torch.load accepts it by default."""

    module: str
    name: str
    foreign: bool
    torch_safe: bool


def global_names(checkpoint: Checkpoint) -> list[GlobalName]:
    """Return every name in a file, in file order."""
    foreign = set(checkpoint.foreign)
    return [GlobalName(*name, name in foreign, is_torch_safe(*name)) for name in checkpoint.globals]
