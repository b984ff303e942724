"""Tar files as torch before 0.1.10 wrote them, by hand."""

from __future__ import annotations

import io
import struct
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from tests import builders as b


@dataclass(kw_only=True)
class OldStorage:
    """One storage; ``count`` is what the file says of its elements."""

    key: bytes
    data: bytes
    kind: bytes = b.name("torch", "FloatStorage")
    location: bytes = b.text("cpu")
    itemsize: int = 4
    count: int | None = None


@dataclass(kw_only=True)
class OldTensor:
    key: bytes
    storage: bytes
    size: Sequence[int]
    stride: Sequence[int]
    offset: int = 0
    kind: bytes = b.name("torch", "FloatTensor")
    ndim: int | None = None
    between: bytes = b"\xff\xee\xdd\xcc"  # these were never cleared


@dataclass(kw_only=True)
class OldCheckpoint:
    pickle: bytes
    storages: Sequence[OldStorage] = ()
    tensors: Sequence[OldTensor] = ()
    views: Sequence[Sequence[int]] = ()
    more: Mapping[str, bytes] = field(default_factory=dict)

    def members(self) -> dict[str, bytes]:
        storages = b.stream(b.integer(len(self.storages)))
        for each in self.storages:
            storages += b.stream(b.tuple_of(each.key, each.location, each.kind))
            count = len(each.data) // each.itemsize if each.count is None else each.count
            storages += struct.pack("<q", count) + each.data
        storages += b.stream(b.list_of(*(b.ints(*view) for view in self.views)))
        tensors = b.stream(b.integer(len(self.tensors)))
        for tensor in self.tensors:
            tensors += b.stream(b.tuple_of(tensor.key, tensor.storage, tensor.kind))
            ndim = len(tensor.size) if tensor.ndim is None else tensor.ndim
            tensors += struct.pack("<i", ndim) + tensor.between
            numbers = (*tensor.size, *tensor.stride, tensor.offset)
            tensors += struct.pack(f"<{len(numbers)}q", *numbers)
        info = b.stream(b.dict_of({"protocol_version": 1000, "little_endian": True}))
        made = {"sys_info": info, "pickle": self.pickle, "tensors": tensors, "storages": storages}
        return {**made, **self.more}

    def build(self) -> bytes:
        return tar_of(self.members())


def four_numbers() -> OldCheckpoint:
    """Return a checkpoint of a tensor of 1, 2, 3, 4."""
    return OldCheckpoint(
        storages=[OldStorage(key=b.integer(1), data=b.DATA)],
        tensors=[OldTensor(key=b.integer(2), storage=b.integer(1), size=(4,), stride=(1,))],
        pickle=b.stream(pid(2)),
    )


def tar_of(members: Mapping[str, bytes] | Sequence[tuple[str, bytes]]) -> bytes:
    """Return a tar of regular files, by their names or, where one is there twice, as pairs."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, data in members.items() if isinstance(members, Mapping) else members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            info.mtime = 1483228800
            tar.addfile(info, io.BytesIO(data))
    return file.getvalue()


def pid(key: int | str) -> bytes:
    """Return the persistent id of a tensor or storage."""
    return (b.text(str(key)) if isinstance(key, str) else b.integer(key)) + b"Q"
