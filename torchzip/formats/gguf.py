"""The GGUF format: tensors by name, and values beside them.

Blocks of codes are read as the float32 numbers that they stand for.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torchzip.container.gguf import parse_header
from torchzip.dtypes import BLOCKS
from torchzip.errors import ErrorPlace
from torchzip.files.source import Source
from torchzip.formats.base import (
    Contents,
    MakeFactory,
    PlainContainer,
    RecordCheck,
    contiguous_tensor,
    read_record,
    swap_nbytes,
)
from torchzip.limits import Limits
from torchzip.tensors.gguf_blocks import DecodedStorage
from torchzip.tensors.storage import Measure, SpanStorage, TensorStorage


class GgufContainer(PlainContainer):
    """A GGUF file: a flat dict of tensors, each with a storage of its own."""

    format = "gguf"
    label = "GGUF"
    is_by_name = True
    keeps_root = True
    can_be_shard = True
    overhead = "header"
    torch_load = "does not apply"
    torch_reason = "a GGUF file; llama.cpp and the gguf package read it"

    def __init__(self, source: Source, limits: Limits) -> None:
        super().__init__(source)
        entries, self._values = parse_header(source, limits)
        self._entries = {entry.name: entry for entry in entries}
        self.offsets = {entry.name: entry.begin for entry in entries}
        end = entries[-1].begin + entries[-1].nbytes if entries else source.size
        if source.size - end > 1 << 20:  # more than any alignment
            self.notes = (f"{source.size - end:,} bytes follow the last tensor",)

    def open_storage(self, key: str, measure: Measure) -> TensorStorage:
        """Return the storage of the tensor that is called ``key``."""
        entry = self._entries[key]
        if entry.dtype in BLOCKS:
            codes = SpanStorage("uint8", entry.nbytes, measure.location, key, self)
            return DecodedStorage(codes, entry.dtype)
        unit = swap_nbytes(entry.dtype, "little")
        return SpanStorage(*measure, key, self, None, unit)

    def read(self, make_factory: MakeFactory) -> Contents:
        factory = make_factory(self.open_storage)
        root: dict[str, Any] = {}
        for name, entry in self._entries.items():
            dtype = "float32" if entry.dtype in BLOCKS else entry.dtype
            with ErrorPlace(path=self.name, record=name):
                root[name] = contiguous_tensor(factory, name, dtype, entry.shape)
        return Contents(root, [], [], 0, self._values)

    def check_records(self) -> Iterator[RecordCheck]:
        self.source.will_read([(self.source, 0, self.source.size)])
        for entry in self._entries.values():
            yield read_record(self.source, entry.begin, entry.nbytes, entry.name)
