"""The safetensors format: a JSON header, and the bytes of tensors."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torchzip.container.safetensors import TensorEntry, parse_header
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
from torchzip.tensors.storage import Measure, SpanStorage, TensorStorage


class SafetensorsContainer(PlainContainer):
    """A safetensors file: a flat dict of tensors, each with a storage of its own."""

    format = "safetensors"
    label = "safetensors"
    is_by_name = True
    lists_ties = True
    keeps_root = True
    can_be_shard = True
    overhead = "header"
    torch_load = "does not apply"
    torch_reason = (
        "a safetensors file; safetensors.torch.load_file reads it, and torch.load since 2.13 if "
        "its name ends in .safetensors"
    )

    def __init__(self, source: Source, limits: Limits) -> None:
        super().__init__(source)
        self._entries, self._metadata = self._parse_header(limits)
        self._rows = {entry.name: entry for entry in self._entries}
        self.offsets = {entry.name: entry.begin for entry in self._entries}

    def _parse_header(self, limits: Limits) -> tuple[list[TensorEntry], dict[str, str]]:
        return parse_header(self.source, limits)

    def open_storage(self, key: str, measure: Measure) -> TensorStorage:
        """Return the storage of the tensor that is called ``key``."""
        unit = swap_nbytes(self._rows[key].torch_dtype, "little")
        return SpanStorage(*measure, key, self, None, unit)

    def read(self, make_factory: MakeFactory) -> Contents:
        factory = make_factory(self.open_storage)
        root: dict[str, Any] = {}
        for entry in self._entries:
            with ErrorPlace(path=self.name, record=entry.name):
                root[entry.name] = contiguous_tensor(
                    factory, entry.name, entry.torch_dtype, entry.shape
                )
        return Contents(root, [], [], 0, self._metadata)

    def check_records(self) -> Iterator[RecordCheck]:
        self.source.will_read([(self.source, 0, self.source.size)])
        for entry in self._entries:
            yield read_record(self.source, entry.begin, entry.end - entry.begin, entry.name)
