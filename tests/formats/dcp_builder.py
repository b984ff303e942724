"""Distributed checkpoints by hand, with a lie in any field that a test wants."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests import builders as b
from tests.saved import saved

MODULE = "torch.distributed.checkpoint.metadata"
FILESYSTEM = "torch.distributed.checkpoint.filesystem"

Box = tuple[Sequence[int], Sequence[int]]


def new(module: str, name: str, state: bytes | None = None) -> bytes:
    """Return an object without arguments, and its state."""
    made = b.name(module, name) + b")\x81"
    return made if state is None else made + state + b"b"


def size(*numbers: int) -> bytes:
    return b.call("torch.Size", (*numbers,))


def mapping(pairs: Iterable[tuple[bytes, bytes]]) -> bytes:
    """Return a dict with any keys."""
    return b"}(" + b"".join(key + value for key, value in pairs) + b"u"


def properties(
    dtype: str | bytes = "float32", *, layout: str = "torch.strided", **changes: bytes
) -> bytes:
    fields = {
        "dtype": b.name("torch", dtype) if isinstance(dtype, str) else dtype,
        "layout": b.call("torch.serialization._get_layout", layout),
        "requires_grad": b.FALSE,
        "memory_format": b.call(b.name(MODULE, "_MEM_FORMAT_ENCODING"), 0),
        "pin_memory": b.FALSE,
        **changes,
    }
    return new(MODULE, "TensorProperties", b.tuple_of(*fields.values()))


def tensor_metadata(
    shape: Sequence[int], boxes: Sequence[Box], props: bytes | None = None
) -> bytes:
    chunks = [
        new(MODULE, "ChunkStorageMetadata", b.dict_of({"offsets": size(*at), "sizes": size(*n)}))
        for at, n in boxes
    ]
    fields = {
        "properties": properties() if props is None else props,
        "size": size(*shape),
        "chunks": b.list_of(*chunks),
    }
    return new(MODULE, "TensorStorageMetadata", b.dict_of(fields))


BYTES = new(MODULE, "BytesStorageMetadata")


def index(name: str, offset: Sequence[int] | None, number: int = 0) -> bytes:
    state: dict[str, b.Value] = {"fqn": name, "index": number}
    if offset is not None:
        state["offset"] = size(*offset)
    return new(MODULE, "MetadataIndex", b.dict_of(state))


def info(file: str, offset: int, length: int, **more: bytes) -> bytes:
    state: dict[str, b.Value] = {"relative_path": file, "offset": offset, "length": length, **more}
    return new(FILESYSTEM, "_StorageInfo", b.dict_of(state))


@dataclass
class Builder:
    """A checkpoint in the making. Every field may be changed before `write`."""

    folder: Path
    items: dict[str, bytes] = field(default_factory=dict)
    places: list[tuple[bytes, bytes]] = field(default_factory=list)
    paths: dict[str, bytes] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    more: dict[str, bytes] = field(default_factory=dict)

    def put(self, file: str, name: str, offset: Sequence[int] | None, raw: bytes) -> None:
        """Append an item to a file."""
        before = self.files.get(file, b"")
        self.places.append((index(name, offset), info(file, len(before), len(raw))))
        self.files[file] = before + raw

    def tensor(
        self,
        name: str,
        array: NDArray[Any],
        boxes: Sequence[Box] | None = None,
        *,
        dtype: str = "float32",
        path: Sequence[str | int] | None = None,
        files: int = 4,
        props: bytes | None = None,
    ) -> None:
        """Add a tensor, cut into boxes, each in the file of another rank."""
        cut = [((0,) * array.ndim, array.shape)] if boxes is None else list(boxes)
        self.items[name] = tensor_metadata(array.shape, cut, props or properties(dtype))
        for number, (at, sizes) in enumerate(cut):
            inside = tuple(slice(a, a + n) for a, n in zip(at, sizes, strict=True))
            self.put(f"__{number % files}_0.distcp", name, at, saved(np.array(array[inside])))
        self._path(name, path)

    def value(self, name: str, value: Any, path: Sequence[str | int] | None = None) -> None:
        self.items[name] = BYTES
        self.put("__0_0.distcp", name, None, saved(value))
        self._path(name, path)

    def _path(self, name: str, path: Sequence[str | int] | None) -> None:
        self.paths[name] = b.tuple_of(*((name,) if path is None else path))

    def metadata(self) -> bytes:
        meta: dict[str, b.Value] = {
            "checkpoint_id": b.call("pathlib.PosixPath", "/", "run"),
            "save_id": "a-b",
            "load_id": b"N",
            "modules": b"]",
        }
        fields: dict[str, b.Value] = {
            "state_dict_metadata": b.dict_of(self.items),
            "planner_data": b.dict_of(self.paths),
            "storage_data": mapping(self.places),
            "storage_meta": new(MODULE, "StorageMeta", b.dict_of(meta)),
            "version": "1.0.0",
            **self.more,
        }
        return b.stream(new(MODULE, "Metadata", b.dict_of(fields)), protocol=4)

    def write(self, name: str = ".metadata") -> Path:
        self.folder.mkdir(exist_ok=True)
        for file, raw in self.files.items():
            (self.folder / file).write_bytes(raw)
        (self.folder / name).write_bytes(self.metadata())
        return self.folder


def safetensors_part(
    tensors: Mapping[str, tuple[Sequence[int], NDArray[np.float32]]],
    *,
    saved_info: str | None = None,
) -> bytes:
    """Return a safetensors file with parts of tensors, each with its offsets in the whole."""
    header: dict[str, Any] = {}
    data = b""
    for name, (_, array) in tensors.items():
        begin = len(data)
        data += struct.pack(f"<{math.prod(array.shape)}f", *array.reshape(-1).tolist())
        span = [begin, len(data)]
        header[name] = {"dtype": "F32", "shape": list(array.shape), "data_offsets": span}
    rows = {name: {"saved_offsets": list(at)} for name, (at, _) in tensors.items()}
    text = json.dumps(rows) if saved_info is None else saved_info
    header["__metadata__"] = {"DCP_SHARDING_INFO": text, "DCP_VERSION": "1.0", "format": "pt"}
    return b.safetensors(json.dumps(header).encode(), data)
