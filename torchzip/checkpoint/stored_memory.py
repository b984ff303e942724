"""What an incremental writer has stored, by where it lay in memory.

An array that is stored twice is one storage, and a view of a stored array is a view of its
storage. The owner of the memory decides: while it lives, the same addresses are the same array.
"""

from __future__ import annotations

import bisect
import weakref
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from torchzip.tensors.array_likes import TorchStorage
from torchzip.tensors.memory import Extent, owner_of
from torchzip.tensors.storage import MeasuredStorage

Array = NDArray[Any]


class EarlyStorage(MeasuredStorage):
    """A storage whose bytes are in the archive already, from byte ``position`` on."""

    is_read = False
    position = 0
    bytes_crc = 0


@dataclass(slots=True)
class Region:
    """Memory that was stored: to be found again while its owner lives."""

    start: int
    stop: int
    torch_dtype: str
    storage: EarlyStorage
    owner: weakref.ref[Any]

    def is_alive(self) -> bool:
        """Return whether the owner still owns this memory."""
        owner = self.owner()
        if owner is None:
            return False
        if isinstance(owner, np.ndarray) and owner.base is None:
            begin = owner.__array_interface__["data"][0]  # ndarray.resize moves it
            return bool(begin <= self.start and self.stop <= begin + owner.nbytes)
        return True


class StoredMemory:
    """What was stored early, by where it lay in memory.

    An owner that is gone takes its regions with it, so an address that another array has
    taken since is never mistaken for what was there before.
    """

    def __init__(self) -> None:
        self._exact: dict[tuple[int, int], Region] = {}
        # For each owner the regions that no other contains, sorted by start (and so by stop).
        self._by_owner: dict[int, list[Region]] = {}
        self._packed: dict[Any, tuple[weakref.ref[Any], EarlyStorage]] = {}
        self._torch: dict[int, tuple[weakref.ref[Any], EarlyStorage]] = {}

    def find(self, extent: Extent) -> Region | None:
        region = self._exact.get((extent.start, extent.stop))
        if region is None:
            regions = self._by_owner.get(extent.owner, [])
            at = bisect.bisect_right(regions, extent.start, key=lambda each: each.start)
            region = regions[at - 1] if at else None
            if region is None or region.stop < extent.stop:
                return None
        return region if region.is_alive() else None

    def add(self, extent: Extent, storage: EarlyStorage) -> None:
        region = Region(
            extent.start, extent.stop, extent.torch_dtype, storage, _reference(extent.array)
        )
        self._exact[extent.start, extent.stop] = region
        kept = [
            each
            for each in self._by_owner.get(extent.owner, ())
            if not (extent.start <= each.start and each.stop <= extent.stop) and each.is_alive()
        ]
        bisect.insort(kept, region, key=lambda each: each.start)
        self._by_owner[extent.owner] = kept

    def find_torch(self, storage: TorchStorage) -> EarlyStorage | None:
        """Return where a storage of torch was stored, if it was."""
        reference, early = self._torch.get(storage.storage._cdata, (None, None))
        return early if reference is not None and reference() is storage.storage else None

    def add_torch(self, storage: TorchStorage, early: EarlyStorage) -> None:
        self._torch[storage.storage._cdata] = (weakref.ref(storage.storage), early)

    def find_packed(self, array: Array, torch_dtype: str) -> EarlyStorage | None:
        reference, storage = self._packed.get(_layout(array, torch_dtype), (None, None))
        return storage if reference is not None and reference() is not None else None

    def add_packed(self, array: Array, torch_dtype: str, storage: EarlyStorage) -> None:
        self._packed[_layout(array, torch_dtype)] = (_reference(array), storage)


def _layout(array: Array, torch_dtype: str) -> Any:
    return (array.__array_interface__["data"][0], array.shape, array.strides, torch_dtype)


def _reference(array: Array) -> weakref.ref[Any]:
    """Return a weak reference to what owns an array's memory, as near to it as possible."""
    owner = owner_of(array)
    try:
        return weakref.ref(owner)
    except TypeError:  # bytes, bytearray: the array that was made from it
        nearest: Any = array
        while isinstance(nearest.base, np.ndarray):
            nearest = nearest.base
        return weakref.ref(nearest)
