"""What a header says of a tensor that it has under a name (`container.safetensors`, `gguf`)."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """One tensor of a header. ``begin`` and ``end`` are bytes from the file's start.

    ``block`` is None, or the row of `dtypes.BLOCKS` whose codes these are.
    """

    name: str
    torch_dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int
    block: str | None = None
