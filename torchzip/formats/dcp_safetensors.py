"""The safetensors variant of torch.distributed.checkpoint: parts of tensors in several files.

``HuggingFaceStorageWriter(save_distributed=True)`` of torch 2.13 has every rank write a
``shard-00001-model-00001-of-00001.safetensors``. Its ``__metadata__`` has ``DCP_SHARDING_INFO``, a
JSON object {tensor name: {"saved_offsets": [offset, ...]}}: where in the whole tensor the part in
this file begins. No file says how large the whole is: it ends where the last part ends. So a part
that is missing at the end cannot be seen; any other leaves a gap, and that is refused.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torchzip.container.json_objects import parse_json
from torchzip.container.safetensors import TensorEntry, parse_header
from torchzip.errors import ArchiveError, ErrorPlace, FormatError, TensorError, shown
from torchzip.files.folder import Folder
from torchzip.files.source import Source
from torchzip.formats.base import (
    Contents,
    FolderContainer,
    Format,
    MakeFactory,
    RecordCheck,
    contiguous_tensor,
    read_record,
    swap_nbytes,
)
from torchzip.limits import Limits, is_number
from torchzip.tensors.chunks import Chunk, ChunkedStorage, TilingCheck
from torchzip.tensors.persistent_ids import Factory
from torchzip.tensors.specs import TensorSpec
from torchzip.tensors.storage import FixedPlace, Measure, SpanStorage, TensorStorage

SHARDING_INFO = "DCP_SHARDING_INFO"


def saved_offsets(
    metadata: dict[str, str], limits: Limits, path: str
) -> dict[str, tuple[int, ...]]:
    """Return where the parts in a file begin, by the names of their tensors; {} for whole ones.

    Raises
    ------
    ArchiveError, LimitError
        If what should say so does not.
    """
    text = metadata.get(SHARDING_INFO)
    if text is None:
        return {}
    raw = text.encode("utf-8", "surrogatepass")
    made: dict[str, tuple[int, ...]] = {}
    for name, row in parse_json(raw, SHARDING_INFO, path, limits=limits).items():
        offsets = row.get("saved_offsets") if isinstance(row, dict) else None
        if not isinstance(offsets, list) or not all(map(is_number, offsets)):
            raise ArchiveError(
                f"{SHARDING_INFO} has {shown(offsets)} for the saved_offsets of {shown(name)}; a "
                "list of ints from 0 to 2**63 was expected",
                path=path,
            )
        made[name] = tuple(offsets)
    return made


class DcpFormat(Format):
    """What torch.distributed.checkpoint writes."""

    format = "dcp"
    label = "distributed checkpoint"
    torch_load = "does not apply"
    torch_reason = "a distributed checkpoint; torch.distributed.checkpoint reads it"


class SafetensorsPartsContainer(DcpFormat, FolderContainer):
    """The tensors of which the files of a directory have the parts: a flat dict."""

    def __init__(self, folder: Folder, names: list[str], limits: Limits) -> None:
        super().__init__(folder, folder.path)
        self._entries: list[tuple[Source, TensorEntry]] = []
        self._dtypes: dict[str, str] = {}
        self._chunks: dict[str, list[Chunk]] = {}
        folder.will_open(names)
        for name in names:
            self._add(folder.open(name), limits)
        check = TilingCheck()
        self._shapes: dict[str, tuple[int, ...]] = {}
        for name, chunks in self._chunks.items():
            # Chunks of a name were seen to have as many dimensions as one another.
            ends = [
                [at + size for at, size in zip(each.offsets, each.sizes, strict=True)]
                for each in chunks
            ]
            shape = self._shapes[name] = tuple(map(max, zip(*ends, strict=True)))
            chunks[:] = [chunk for chunk in chunks if 0 not in chunk.sizes]
            with ErrorPlace(path=self.name, record=name):
                check(shape, chunks)

    def _add(self, source: Source, limits: Limits) -> None:
        entries, metadata = parse_header(source, limits)
        if SHARDING_INFO not in metadata:
            raise FormatError(
                f"a safetensors file without {SHARDING_INFO}, and others in the directory have it. "
                "Give its own path to read it, or move it away to read the others.",
                path=source.name,
            )
        offsets = saved_offsets(metadata, limits, source.name)
        for entry in entries:
            offset = offsets.get(entry.name)
            if offset is None or len(offset) != len(entry.shape):
                raise TensorError(
                    f"{SHARDING_INFO} does not say where {shown(entry.name)}, of shape "
                    f"{list(entry.shape)}, begins",
                    path=source.name,
                )
            dtype = self._dtypes.setdefault(entry.name, entry.torch_dtype)
            chunks = self._chunks.setdefault(entry.name, [])
            if dtype != entry.torch_dtype or (chunks and len(chunks[0].sizes) != len(entry.shape)):
                raise TensorError(
                    f"{shown(entry.name)} is {entry.torch_dtype} of {len(entry.shape)} dimensions "
                    f"here and {dtype} of {len(chunks[0].sizes)} in {chunks[0].place}",
                    path=source.name,
                )
            chunks.append(Chunk(offset, entry.shape, source.name, _spec_of(source, entry)))
            self._entries.append((source, entry))

    def read(self, make_factory: MakeFactory) -> Contents:
        def open_storage(key: str, measure: Measure) -> TensorStorage:
            return ChunkedStorage(self._dtypes[key], self._shapes[key], self._chunks[key], key)

        factory = make_factory(open_storage)
        root: dict[str, Any] = {}
        for name, shape in self._shapes.items():
            with ErrorPlace(path=self.name, record=name):
                root[name] = contiguous_tensor(factory, name, self._dtypes[name], shape)
        return Contents(root, [], [], 0)

    def check_records(self) -> Iterator[RecordCheck]:
        for source, entry in self._entries:
            name = f"{source.name}: {entry.name}"
            yield read_record(source, entry.begin, entry.end - entry.begin, name)


def _spec_of(source: Source, entry: TensorEntry) -> TensorSpec:
    def open_storage(key: str, measure: Measure) -> TensorStorage:
        unit = swap_nbytes(entry.torch_dtype, "little")
        return SpanStorage(*measure, key, FixedPlace(source, entry.begin), None, unit)

    factory = Factory(open_storage)
    spec: TensorSpec = contiguous_tensor(factory, entry.name, entry.torch_dtype, entry.shape)
    return spec
