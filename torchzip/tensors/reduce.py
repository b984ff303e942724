"""Specs and leaf types -> the opcodes that torch writes for them.

The counterpart of `rebuild`. Everything here is reached through `Emitter.save`, by the
type of the value.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from copy import copy
from typing import Any, Self

from numpy.typing import NDArray

from torchzip.dtypes import DTYPES, NAME_ONLY, QSCHEMES
from torchzip.leaf_types import Device, Dtype, Layout, QScheme, Size
from torchzip.pickling.emitter import Emitter, Writer
from torchzip.pickling.opcodes import get_opcode
from torchzip.tensors.numpy_dtypes import torch_dtype_of
from torchzip.tensors.specs import TensorSpec
from torchzip.tensors.storage import ArrayStorage, TensorStorage

_PACK_U32 = struct.Struct("<I").pack

# Literals of the same names in a user's code are these objects: CPython interns them, and
# torch's writer has its own as literals too.
_STORAGE = "storage"
_PLAIN_LOCATIONS = {"cpu": "cpu", "mps": "mps", "meta": "meta"}


def _fresh(text: str) -> str:
    """Return an equal string that is an object of its own (one character is always shared)."""
    return text[:1] + text[1:] if len(text) > 1 else text


Stored = TensorStorage | NDArray[Any]


def as_storage(stored: Stored) -> TensorStorage:
    """Return what is stored as a storage."""
    if isinstance(stored, TensorStorage):
        return stored
    return ArrayStorage(stored, torch_dtype_of(stored.dtype))


class StorageKeys:
    """Hands out storage keys in the order of first mention: '0', '1', ...

    ``order`` holds by key what is stored: a storage, or an array that stands for the storage of its
    bytes. There may be a hundred thousand of these, and an object more for each would show.
    """

    def __init__(self) -> None:
        self.order: list[Stored] = []
        self._keys: dict[int, str] = {}

    def copy(self) -> Self:
        """Return the same keys, to be given up if what they are for comes to nothing."""
        made = copy(self)
        made.order, made._keys = self.order[:], self._keys.copy()
        return made

    def storages(self) -> list[TensorStorage]:
        """Return the storages by key."""
        return list(map(as_storage, self.order))

    def are_new(self, storages: Sequence[Stored]) -> bool:
        """Return whether no storage among these has a key, and none is there twice."""
        ids = set(map(id, storages))
        return len(ids) == len(storages) and self._keys.keys().isdisjoint(ids)

    def add(self, storages: Sequence[Stored]) -> list[str]:
        """Give new storages the next keys, and return these."""
        first = len(self.order)
        keys = list(map(str, range(first, first + len(storages))))
        self._keys.update(zip(map(id, storages), keys, strict=True))
        self.order += storages
        return keys

    def key_of(self, storage: TensorStorage) -> str:
        """Return the key of a storage: the same string object each time."""
        key = self._keys.get(id(storage))
        if key is None:
            key = self._keys[id(storage)] = str(len(self.order))
            self.order.append(storage)
        return key


class DenseWriter:
    """Writes dense tensors and bare storages."""

    def __init__(self, keys: StorageKeys) -> None:
        self._keys = keys
        self._prefixes: dict[str, Prefix] = {}

    def persistent_id(
        self, emitter: Emitter, storage: TensorStorage, torch_dtype: str | None
    ) -> None:
        """Write the persistent id of a storage as a tensor of ``torch_dtype`` mentions it.

        None stands for an untyped storage.
        """
        emitter.write(b"(")
        emitter.string(_STORAGE)
        row = DTYPES[torch_dtype] if torch_dtype is not None else None
        if row is not None and row.storage_class is not None:
            emitter.name("torch", row.storage_class)
            numel = storage.nbytes // row.itemsize
        else:
            emitter.name("torch.storage", "UntypedStorage")
            numel = storage.nbytes
        emitter.string(self._keys.key_of(storage))
        location = storage.location
        # Locations with an index are built each time in torch, so never found again.
        emitter.string(_PLAIN_LOCATIONS.get(location) or _fresh(location))
        emitter.save(numel)
        emitter.write(b"t")
        emitter.put(None)
        emitter.write(b"Q")

    def tensor(self, emitter: Emitter, spec: TensorSpec) -> None:
        """Write the reduction of a plain tensor, up to its REDUCE and without its put."""
        self.function(emitter, spec.torch_dtype)
        self.arguments(emitter, spec)
        emitter.write(b"R")

    def function(self, emitter: Emitter, torch_dtype: str) -> None:
        """Write the name of the function that rebuilds a tensor of this dtype."""
        version = "v2" if DTYPES[torch_dtype].storage_class else "v3"
        emitter.name("torch._utils", f"_rebuild_tensor_{version}")

    def arguments(self, emitter: Emitter, spec: TensorSpec) -> None:
        """Write the argument tuple of that function."""
        emitter.write(b"(")
        self.persistent_id(emitter, spec.storage, spec.torch_dtype)
        emitter.save(spec.storage_offset)
        emitter.save((*spec.shape,))  # new objects each time
        emitter.save((*spec.stride,))
        emitter.save(spec.requires_grad)
        empty_ordered_dict(emitter)
        if not DTYPES[spec.torch_dtype].storage_class:
            emitter.name("torch", spec.torch_dtype)
        if spec.conj or spec.neg:
            metadata = {}
            if spec.neg:
                metadata[_fresh("neg")] = True  # a new string object, as in torch
            if spec.conj:
                metadata[_fresh("conj")] = True
            emitter.save(metadata)
        emitter.write(b"t")
        emitter.put(None)

    def prefix(self, emitter: Emitter, torch_dtype: str) -> Prefix | None:
        """Return what tensors of a dtype begin with, once all of it has memo numbers."""
        prefix = self._prefixes.get(torch_dtype)
        storage_class = DTYPES[torch_dtype].storage_class
        if prefix is not None or storage_class is None:
            return prefix
        keys = (
            ("torch._utils", "_rebuild_tensor_v2"),
            id(_STORAGE),
            ("torch", storage_class),
            id(_PLAIN_LOCATIONS["cpu"]),
            ("collections", "OrderedDict"),
        )
        if not all(key in emitter.memo for key in keys):
            return None
        function, storage, kind, location, hooks = (get_opcode(emitter.memo[key]) for key in keys)
        prefix = (function + b"((" + storage + kind, location, hooks + b")R")
        self._prefixes[torch_dtype] = prefix
        return prefix


#: What a tensor begins with: up to its key, its location, its hooks up to their put.
Prefix = tuple[bytes, bytes, bytes]


def int_opcode(value: int) -> bytes:
    """Return the opcode of an int that is not negative."""
    if value < 256:
        return b"K%c" % value
    if value < 65536:
        return b"M" + value.to_bytes(2, "little")
    if value < 0x80000000:
        return b"J" + _PACK_U32(value)
    raw = value.to_bytes((value.bit_length() >> 3) + 1, "little")
    return b"\x8a%c" % len(raw) + raw


def ints_opcodes(values: tuple[int, ...]) -> bytes:
    """Return the opcodes of a tuple of ints that are not negative, without its put."""
    opcodes = b"".join(map(int_opcode, values))
    return opcodes + _CLOSE_TUPLE[len(values)] if len(values) <= 3 else b"(" + opcodes + b"t"


_CLOSE_TUPLE = (b")", b"\x85", b"\x86", b"\x87")


def empty_ordered_dict(emitter: Emitter) -> None:
    """Write the backward hooks of every tensor: a new, empty OrderedDict."""
    emitter.name("collections", "OrderedDict")
    emitter.write(b")R")
    emitter.put(None)


# -- leaf types ------------------------------------------------------------------------------


def _size(emitter: Emitter, value: Size) -> None:
    if not emitter.written(id(value)):
        emitter.call("torch", "Size", (tuple(value),))
        emitter.put_object(value)


def _dtype(emitter: Emitter, value: Dtype) -> None:
    if value.name not in DTYPES and value.name not in NAME_ONLY:
        raise ValueError(
            f"{emitter.where()}: torch writes no dtype {value.name!r}; a name like 'float32' was "
            "expected"
        )
    emitter.name("torch", value.name)


def _qscheme(emitter: Emitter, value: QScheme) -> None:
    if value.name not in QSCHEMES:
        raise ValueError(
            f"{emitter.where()}: torch has no qscheme {value.name!r}; one of "
            f"{', '.join(QSCHEMES)} was expected"
        )
    emitter.name("torch", value.name)


def _device(emitter: Emitter, value: Device) -> None:
    if not emitter.written(id(value)):
        kind = _fresh(value.type)  # a new string each time, as in torch
        emitter.call("torch", "device", (kind,) if value.index is None else (kind, value.index))
        emitter.put_object(value)


#: Those of torch 2.13.
_LAYOUTS = frozenset(
    "strided sparse_coo sparse_csr sparse_csc sparse_bsr sparse_bsc _mkldnn jagged".split()
)


def _layout(emitter: Emitter, value: Layout) -> None:
    key = ("torch layout", value.name)  # one object each in torch
    if not emitter.written(key):
        if value.name not in _LAYOUTS:
            emitter.refuse(f"the layout {value.name}")
        emitter.call("torch.serialization", "_get_layout", (f"torch.{value.name}",))
        emitter.put(key)


#: Writers for the leaf types that need no storage.
LEAF_WRITERS: dict[type, Writer] = {
    Size: _size,
    Dtype: _dtype,
    QScheme: _qscheme,
    Device: _device,
    Layout: _layout,
}
