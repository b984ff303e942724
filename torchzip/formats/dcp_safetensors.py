"""The safetensors variant of torch.distributed.checkpoint: parts of tensors in several files.

``HuggingFaceStorageWriter(save_distributed=True)`` of torch 2.13 has every rank write a
``shard-00001-model-00001-of-00001.safetensors``. Its ``__metadata__`` has ``DCP_SHARDING_INFO``, a
JSON object {tensor name: {"saved_offsets": [offset, ...]}}: where in the whole tensor the part in
this file begins. No file says how large the whole is: it ends where the last part ends. So a part
that is missing at the end cannot be seen; any other leaves a gap, and that is refused.
"""

from __future__ import annotations

from torchzip.container.json_objects import parse_json
from torchzip.errors import ArchiveError, ErrorPlace, FormatError, TensorError, shown
from torchzip.files.folder import Folder
from torchzip.formats.base import Format
from torchzip.formats.rank_files import ChunkedContainer
from torchzip.formats.safetensors import SafetensorsContainer
from torchzip.limits import Limits, is_number
from torchzip.tensors.chunks import Chunk
from torchzip.tensors.persistent_ids import Factory

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


class SafetensorsPartsContainer(DcpFormat, ChunkedContainer):
    """The tensors of which the files of a directory have the parts: a flat dict."""

    def __init__(self, folder: Folder, names: list[str], limits: Limits) -> None:
        super().__init__(folder, folder.path)
        folder.will_open(names)
        found: dict[str, list[Chunk]] = {}
        dtypes: dict[str, str] = {}
        for name in names:
            file = SafetensorsContainer(folder.open(name), limits)
            with ErrorPlace(path=file.name):
                self._add(file, limits, found, dtypes)
        for name, chunks in found.items():
            # Chunks of a name were seen to have as many dimensions as one another.
            ends = [
                [at + size for at, size in zip(each.offsets, each.sizes, strict=True)]
                for each in chunks
            ]
            shape = tuple(map(max, zip(*ends, strict=True)))
            filled = [chunk for chunk in chunks if 0 not in chunk.sizes]
            self.tensors[name] = self.join(name, dtypes[name], shape, filled)

    def _add(
        self,
        file: SafetensorsContainer,
        limits: Limits,
        found: dict[str, list[Chunk]],
        dtypes: dict[str, str],
    ) -> None:
        """Take over the parts that a file has."""
        contents = file.read(Factory)
        metadata = contents.metadata or {}
        if SHARDING_INFO not in metadata:
            raise FormatError(
                f"a safetensors file without {SHARDING_INFO}, and others in the directory have it. "
                "Give its own path to read it, or move it away to read the others."
            )
        self.containers[file.name] = file
        offsets = saved_offsets(metadata, limits, file.name)
        for name, spec in contents.root.items():
            offset = offsets.get(name)
            if offset is None or len(offset) != len(spec.shape):
                raise TensorError(
                    f"{SHARDING_INFO} does not say where {shown(name)}, of shape "
                    f"{list(spec.shape)}, begins"
                )
            dtype = dtypes.setdefault(name, spec.torch_dtype)
            chunks = found.setdefault(name, [])
            if dtype != spec.torch_dtype or (chunks and len(chunks[0].sizes) != len(spec.shape)):
                raise TensorError(
                    f"{shown(name)} is {spec.torch_dtype} of {len(spec.shape)} dimensions "
                    f"here and {dtype} of {len(chunks[0].sizes)} in {chunks[0].place}"
                )
            chunks.append(Chunk(offset, spec.shape, file.name, spec))
