"""What can be recovered of damaged files without CRCs: legacy streams and safetensors.

Whether bytes are in their place can be told, whether they are right cannot: all is unverified.
"""

from __future__ import annotations

import itertools
from typing import NamedTuple

from torchzip.container.damaged.marks import past_the_end
from torchzip.container.damaged.safetensors import read_damaged_header
from torchzip.errors import shown
from torchzip.files.source import Source
from torchzip.formats.base import NamedTensorsContainer, PlainContainer
from torchzip.formats.damaged.storages import LostStorage, SalvagedContainer
from torchzip.formats.legacy import LegacyContainer
from torchzip.formats.safetensors import SafetensorsContainer
from torchzip.limits import Limits
from torchzip.tensors.storage import Measure, TensorStorage


class _Row(NamedTuple):
    """One storage of a legacy stream; the count of its elements is in the 8 bytes before it."""

    key: str
    begin: int
    nbytes: int
    numel: int

    @property
    def end(self) -> int:
        return self.begin + self.nbytes


class _DamagedPlain(PlainContainer, SalvagedContainer):
    """What has lost some storages: ``_lost`` says why, by their keys."""

    _lost: dict[str, str]

    def open_storage(self, key: str, measure: Measure) -> TensorStorage:
        why = self._lost.get(key)
        if why is not None:
            return LostStorage(measure, key, why)
        return super().open_storage(key, measure)


class DamagedLegacy(_DamagedPlain, LegacyContainer):
    """A legacy stream that `LegacyContainer` refuses.

    Its five pickles have to be whole; they have no CRC. The sizes in them say where each storage
    begins, and the count of elements before each is what the place is checked by: bytes that were
    lost or added move all that follow.
    """

    def __init__(self, source: Source, limits: Limits) -> None:
        self.unverified: set[str] = set()
        self._lost: dict[str, str] = {}
        super().__init__(source, limits)
        self.notes = (
            "a legacy file has no CRCs: it is unknown whether names and values in it are right",
        )

    def locate(self, record: str) -> tuple[Source, int]:
        return self.source, self.offsets[record]  # a count may be what is damaged

    def _place_storages(self, keys: list[str]) -> None:
        rows: list[_Row] = []
        at = self._bounds[-1]
        listed = list(itertools.takewhile(self._measured.__contains__, keys))
        for key in listed:
            measured = self._measured[key]
            rows.append(_Row(key, at + 8, measured.nbytes, measured.numel))
            at = rows[-1].end
        unknown = keys[len(listed) :]
        for key in self._measured.keys() - set(listed):
            self._lost[key] = (
                f"it lies behind storage {shown(unknown[0])}, whose size is not known"
                if unknown
                else "the file does not list its storage"
            )
        self.end = min(at, self.source.size)
        self.is_cut = at > self.source.size
        # From the last to the first: whether something after a storage is in its place.
        has_place = not unknown and at == self.source.size
        has_next = False  # whether there is a whole count after it
        for row in reversed(rows):
            agrees = self._agrees(row)
            why = None
            if row.end > self.source.size:
                why = past_the_end(self.source, row.begin, row.nbytes)
            elif not has_place and has_next:
                why = (
                    "the counts after it are not in their place: bytes were lost, added or damaged"
                )
            elif not has_place and not agrees:
                why = "its count of elements is damaged, and so may be its place"
            if why is not None and row.nbytes:
                self._lost[row.key] = why
            else:
                self.offsets[row.key] = row.begin
                if row.nbytes:
                    self.unverified.add(row.key)
            # A count of 0 is what zeros look like, and says little.
            has_place = has_place or (agrees and row.numel > 0)
            has_next = has_next or (row.numel > 0 and row.begin <= self.source.size)

    def _agrees(self, row: _Row) -> bool:
        """Return whether the count in that place is right."""
        at = min(row.begin - 8, self.source.size)
        count = bytes(self.source.read_at(at, min(8, self.source.size - at)))
        return count == row.numel.to_bytes(8, "little")


class DamagedSafetensors(_DamagedPlain, SafetensorsContainer):
    """A safetensors file whose tensors are not where they should be; its JSON has to be whole."""

    def __init__(self, source: Source, limits: Limits) -> None:
        header = read_damaged_header(source, limits)
        NamedTensorsContainer.__init__(self, source, header.entries, header.metadata)
        self._lost = header.lost
        self.notes = (
            "a safetensors file has no CRCs: it is unknown whether names and values in it are "
            "right",
            *header.notes,
        )
        self.unverified = {
            entry.name
            for entry in self.entries.values()
            if entry.begin < entry.end and entry.name not in self._lost
        }
        self.end = max((entry.end for entry in self.entries.values()), default=source.size)
        self.is_cut = self.end > source.size
        if self.end < source.size:
            self.notes += (f"{source.size - self.end:,} bytes after the last tensor are left out",)
