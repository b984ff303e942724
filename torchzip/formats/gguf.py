"""The GGUF format: tensors by name, and values beside them.

Blocks of codes are read as the float32 numbers that they stand for.
"""

from __future__ import annotations

from torchzip.container.gguf import parse_header
from torchzip.files.source import Source
from torchzip.formats.base import NamedTensorsContainer
from torchzip.limits import Limits
from torchzip.tensors.gguf_blocks import DecodedStorage
from torchzip.tensors.storage import Measure, SpanStorage, TensorStorage


class GgufContainer(NamedTensorsContainer):
    """A GGUF file: a flat dict of tensors, each with a storage of its own."""

    format = "gguf"
    label = "GGUF"
    torch_reason = "a GGUF file; llama.cpp and the gguf package read it"

    def __init__(self, source: Source, limits: Limits) -> None:
        entries, values = parse_header(source, limits)
        super().__init__(source, entries, values)
        end = entries[-1].end if entries else source.size
        if source.size - end > 1 << 20:  # more than any alignment
            self.notes = (f"{source.size - end:,} bytes follow the last tensor",)

    def open_storage(self, key: str, measure: Measure) -> TensorStorage:
        """Return the storage of the tensor that is called ``key``."""
        entry = self.entries[key]
        if entry.block is None:
            return super().open_storage(key, measure)
        codes = SpanStorage("uint8", entry.end - entry.begin, measure.location, key, self)
        return DecodedStorage(codes, entry.block)
