"""The storages of a damaged file: those that are whole, and those that are lost."""

from __future__ import annotations

from typing import Protocol

from torchzip.errors import TensorError
from torchzip.formats.base import Container
from torchzip.tensors.storage import Bytes, Measure, MeasuredStorage


class SalvagedContainer(Container, Protocol):
    """A damaged file of which some is left.

    The storages of its tensors may be `LostStorage` s. ``unverified`` has the records of those
    whose bytes are where they should be, while it is unknown whether they are right. ``damage`` is
    what is wrong with the file as a whole, None if its first error says it well enough; ``is_cut``
    whether it ends before what it announces. ``end`` is the byte after the checkpoint.
    """

    unverified: set[str]
    damage: str | None = None
    is_cut: bool
    end: int

    def other_checkpoints(self) -> list[str]:
        """Return what there is to say of others in the file that do not follow it directly."""
        return []


class LostStorage(MeasuredStorage):
    """A storage that is lost; ``why`` says so."""

    def __init__(self, measure: Measure, record: str, why: str) -> None:
        super().__init__(*measure)
        self.record = record
        self.why = why

    def read_into(self, start: int, out: Bytes) -> None:
        raise TensorError(f"the storage is lost: {self.why}", record=self.record)
