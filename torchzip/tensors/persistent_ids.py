"""Persistent ids of a checkpoint's pickle -> storages.

Every tensor of a file mentions its storage by an id of its own: ('storage', class, key, location,
number of elements). The first mention of a key opens the storage; whatever others say besides the
key does not count, as in torch.

A storage without bytes is the exception: tensors of several dtypes may view it. ``torch.save``
writes it once, with the dtype of each tensor in its own mention, and ``torch.load`` makes another
empty storage of each mention (it keeps none whose memory is at address 0). So there the class
of each mention counts.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from torchzip.dtypes import STORAGE_CLASSES
from torchzip.errors import PickleError, TensorError, UnsupportedError, shown
from torchzip.leaf_types import ForeignObject, Storage
from torchzip.limits import is_number
from torchzip.pickling.table import Name
from torchzip.tensors.kinds.base import OtherTensor
from torchzip.tensors.specs import TensorSpec
from torchzip.tensors.storage import Measure, OpenMany, OpenStorage, TensorStorage

#: What a persistent id must be.
_PID = "('storage', class, key, location, number of elements) was expected"


class Factory:
    """What the values of a checkpoint are made of.

    This one leaves tensors as the specs that they are, for whoever looks at a pickle and makes
    nothing. Those that make lazy tensors or arrays are subclasses.
    """

    #: What opens many storages at once, if there is such a way.
    storages: OpenMany | None = None

    def __init__(self, open_storage: OpenStorage) -> None:
        self.open_storage = open_storage

    def storage(self, key: str, measure: Measure) -> TensorStorage:
        """Return the storage of a key; called once for each."""
        return self.open_storage(key, measure)

    def tensor(self, spec: TensorSpec) -> Any:
        return spec

    def spec_of(self, tensor: Any) -> TensorSpec | None:
        """Return the spec that `tensor` was given, or None for anything else."""
        return tensor if isinstance(tensor, TensorSpec) else None

    def parameter(self, tensor: Any, requires_grad: bool, state: Any) -> Any:
        return tensor

    def on_device(self, data: Any, torch_dtype: str, device: str, requires_grad: bool) -> Any:
        """Return the tensor that an array or a tensor on the CPU has the values of.

        None if it is neither, or of another dtype that numpy cannot cast.
        """
        return data if isinstance(data, TensorSpec | np.ndarray) else None

    def is_tensor(self, value: Any) -> bool:
        """Return whether `tensor` made a value."""
        return isinstance(value, TensorSpec)

    def other(self, tensor: OtherTensor) -> Any:
        """Return what stands for a tensor that is not dense; its values are unread."""
        return tensor

    def key(self, value: Any) -> Any:
        """Return what stands for a value without a hash as a key of a dict: itself, or a tensor."""
        return value


class BareStorage(Storage):
    """A storage as the pickle mentions it; left in the tree it is a bare `types.Storage`.

    ``first`` and ``count`` are a window in elements, as the views of old legacy files have it.
    ``torch_dtype`` is that of the mention, which may be another than that of an empty storage.
    """

    __slots__ = ("count", "factory", "first", "storage")

    # One is made for every storage of a file, so the quick way to set a slot.
    __setattr__ = object.__setattr__  # type: ignore[assignment]

    def __init__(self, storage: TensorStorage, factory: Factory, first: int, count: int) -> None:
        self.storage: TensorStorage = storage
        self.factory: Factory = factory
        self.first: int = first
        self.count: int = count
        self.torch_dtype: str | None = storage.torch_dtype

    @property
    def location(self) -> str:  # type: ignore[override]
        return self.storage.location

    @property
    def data(self) -> Any:
        dtype = self.torch_dtype or "uint8"
        spec = TensorSpec(dtype, (self.count,), (1,), self.first, self.storage)
        made: Any = self.factory.tensor(spec)
        return made


class PersistentIds:
    """The storages of one file, by the ids that mention them.

    ``classes`` are the storage classes: the dtype of each, and the bytes of one element.
    """

    def __init__(self, factory: Factory) -> None:
        self._factory = factory
        self._bare: dict[Any, BareStorage] = {}
        # Storages that only tensors were made of so far, and that no `BareStorage` is around.
        self._stored: dict[str, TensorStorage] = {}
        self.classes: dict[Name, tuple[str | None, int]] = {
            (module, row.storage_class): (row.name, row.itemsize)
            for module in ("torch", "torch.cuda")
            for row in STORAGE_CLASSES.values()
            if row.storage_class is not None
        }
        for module in ("torch", "torch.storage", "torch.cuda"):
            # Before 2.0 the class went by other names (seen: torch 1.13, torch.storage).
            self.classes[module, "UntypedStorage"] = (None, 1)
            self.classes[module, "_UntypedStorage"] = (None, 1)

    def finish(self) -> None:
        """Let go of the storages, and of what makes them."""
        self._bare.clear()
        self._stored.clear()
        del self._factory

    def find(self, pid: Any) -> Any:
        """Return the storage (or the class, for a pickled module) of a persistent id."""
        what = pid[0] if type(pid) is tuple and pid else None
        if type(what) is bytes:
            what = what.decode("latin-1")
        what = what if type(what) is str else ""
        if what == "module" and len(pid) == 4 and isinstance(pid[1], ForeignObject):
            return pid[1]  # legacy files store a class with its source, which is not needed
        if what != "storage" or len(pid) not in (5, 6):
            raise PickleError(f"a persistent id is {shown(pid)}; {_PID}")
        _, kind, key, location, numel = pid[:5]
        if type(key) is not str or not _is_plain_key(key):
            raise PickleError(
                f"a storage key is {shown(key)}; one plain component of a path was expected"
            )
        if len(pid) == 6 and pid[5] is not None:
            return self._window(pid[:5], pid[5])
        if key not in self._bare and ("view", key) in self._bare:
            raise _two_meanings(key)
        return self.known(kind, key, location, numel)

    def measure(self, kind: Any, key: str, location: Any, numel: Any) -> Measure:
        """Return what a persistent id says of a storage."""
        if type(numel) is not int or not 0 <= numel < 1 << 63:
            raise TensorError(
                f"storage {key} has {shown(numel)} for its number of elements; an int from 0 to "
                "2**63 was expected"
            )
        if type(location) is not str:
            raise PickleError(
                f"storage {key} has {shown(location)} for its location; a string was expected"
            )
        if type(kind) is not ForeignObject:
            raise PickleError(
                f"storage {key} has {shown(kind)} for its class; a class was expected"
            )
        row = self.classes.get((kind.module, kind.name)) if kind.how == "name" else None
        if row is None:
            raise unknown_storage_class(f"storage {key}", kind)
        return Measure(row[0], numel * row[1], location)

    def _window(self, pid: tuple[Any, ...], view: Any) -> BareStorage:
        """Return a window of a storage, as legacy files before torch 0.4 have them."""
        is_view = type(view) is tuple and len(view) == 3
        view_key, first, count = view if is_view else (None, 0, 0)
        are_numbers = is_number(first) and is_number(count)
        if type(view_key) not in (str, int) or not are_numbers:
            raise (PickleError if are_numbers else TensorError)(
                f"the view of a storage is {shown(view)}; (key, offset, size), the key a string or "
                "an int, the others from 0 to 2**63, was expected"
            )
        root: BareStorage = self.find(pid)
        if first + count > root.storage.numel:
            raise TensorError(
                f"a storage view has elements {first:,} to {first + count:,} of a storage of "
                f"{root.storage.numel:,}"
            )
        if view_key in self._bare:
            same = self._bare[view_key].storage is root.storage
            if same and (first, count) == (0, root.storage.numel):
                return root
            raise _two_meanings(view_key)
        known = self._bare.get(("view", view_key))
        if known is None:
            known = BareStorage(root.storage, self._factory, first, count)
            known.torch_dtype = root.torch_dtype
            self._bare["view", view_key] = known
        return known

    def known(self, kind: Any, key: str, location: Any, numel: Any) -> BareStorage:
        """Return the storage of a key, as `find` does for an id without a view."""
        bare = self._bare.get(key)
        if bare is not None and bare.count:
            return bare
        stored = self._stored.pop(key, None) if bare is None else bare.storage
        if stored is not None and stored.nbytes:
            made = BareStorage(stored, self._factory, 0, stored.numel)
        else:  # mentioned for the first time, or without bytes: then of the dtype given here
            measure = self.measure(kind, key, location, numel)
            if stored is None:
                stored = self._factory.storage(key, measure)
            elif measure.nbytes:
                raise TensorError(
                    f"storage {key} has 0 bytes by its first mention and {measure.nbytes:,} by "
                    "another; the same size was expected"
                )
            made = BareStorage(stored, self._factory, 0, stored.numel)
            made.torch_dtype = measure.torch_dtype
        if bare is None:
            self._bare[key] = made
        return made

    def many(
        self, keys: list[str], measures: list[Measure], which: list[int]
    ) -> list[TensorStorage] | None:
        """Return the storages of keys, given the measures and which of them each has.

        None if they have to be taken one by one.
        """
        open_many = self._factory.storages
        if (
            open_many is None
            or len(set(keys)) < len(keys)
            or not self._stored.keys().isdisjoint(keys)
            or not self._bare.keys().isdisjoint(keys)
        ):
            return None
        storages = open_many(keys, measures, which)
        if storages is not None:
            self._stored.update(zip(keys, storages, strict=True))
        return storages


def unknown_storage_class(what: str, kind: ForeignObject) -> UnsupportedError:
    """Return the error of a storage whose class is not one of torch's."""
    return UnsupportedError(f"{what} is of class {shown(kind)}, which torch 2.13 does not have")


def _two_meanings(key: Any) -> PickleError:
    # For torch the first of them counts.
    return PickleError(f"{shown(key)} is the key of a storage and of a view of a storage")


def _is_plain_key(key: str) -> bool:
    return len(key) <= 255 and (
        key.isalnum()
        or (bool(key) and key not in (".", "..") and not any(c in key for c in "/\\\0\n"))
    )
