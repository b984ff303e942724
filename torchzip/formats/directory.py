"""Which checkpoint a directory is, told by the names of its files.

* ``*.index.json``: shards with an index (Hugging Face);
* ``.metadata``, or ``__<rank>.metadata``: torch.distributed.checkpoint;
* ``*.safetensors`` with a ``DCP_SHARDING_INFO``: the safetensors variant of the same;
* ``model.safetensors`` or ``pytorch_model.bin``, without an index: that file (Hugging Face).

Each of those files can be named itself, which settles the matter where a directory has several.
"""

from __future__ import annotations

import os

from torchzip.container.shard_index import INDEX_SUFFIX
from torchzip.errors import FormatError, listed
from torchzip.files.folder import Folder
from torchzip.formats.base import Container, OpenContainer, open_file
from torchzip.formats.dcp import METADATA_NAME, RANK_METADATA, DcpContainer, is_metadata
from torchzip.formats.dcp_safetensors import SafetensorsPartsContainer, has_sharding_info
from torchzip.formats.sharded import ShardedContainer
from torchzip.limits import Limits

#: What Hugging Face calls a checkpoint that is one file.
_WHOLE_FILES = ("model.safetensors", "pytorch_model.bin")

_UNDERSTOOD = (
    f"A directory is read that has one *{INDEX_SUFFIX} and its shards, {' or '.join(_WHOLE_FILES)},"
    " or the .metadata or the *.safetensors of torch.distributed.checkpoint. For a single file "
    "give its own path."
)


def is_part_of_directory(path: str) -> bool:
    """Return whether a path is a directory, or the file that says what a directory holds."""
    name = os.path.basename(path)
    return name.endswith(INDEX_SUFFIX) or is_metadata(name) or os.path.isdir(path)


def open_directory(path: str, limits: Limits, open_container: OpenContainer) -> Container:
    """Return the container that a directory is, or the one that the named file describes."""
    if os.path.isdir(path):
        folder, name = Folder(path), ""
    else:
        parent, name = os.path.split(path)
        folder = Folder(parent)
    try:
        if not name:
            chosen = _chosen(folder)
        else:
            chosen = [name]
            if name not in folder.names:
                raise FileNotFoundError(2, "No such file or directory", path)
        if chosen and chosen[0].endswith(INDEX_SUFFIX):
            return ShardedContainer(folder, chosen[0], limits, open_container)
        if chosen:
            return DcpContainer(folder, chosen, limits)
        parts = [each for each in folder.names if each.endswith(".safetensors")]
        if any(has_sharding_info(folder.open(each), limits) for each in parts):
            return SafetensorsPartsContainer(folder, parts, limits)
        whole = [each for each in _WHOLE_FILES if each in folder.names]
        if len(whole) > 1:
            raise _several(folder, whole)
        if whole:
            folder.close()
            return open_file(folder.place(whole[0]), limits, open_container)
        raise FormatError(
            "a directory, and not one checkpoint: it has "
            f"{listed(folder.names, 10) or 'nothing in it'}. {_UNDERSTOOD}",
            path=path,
        )
    except BaseException:
        folder.close()
        raise


def _chosen(folder: Folder) -> list[str]:
    """Return the file that describes the directory, or none; several are one for each rank.

    Raises
    ------
    FormatError
        If there are two that contradict one another.
    """
    indices = [name for name in folder.names if name.endswith(INDEX_SUFFIX)]
    whole = [name for name in folder.names if name == METADATA_NAME]
    ranks = [name for name in folder.names if RANK_METADATA.fullmatch(name)]
    kinds = [*indices, *whole, *ranks[:1]]
    if len(kinds) > 1:
        raise _several(folder, kinds)
    return ranks or kinds


def _several(folder: Folder, names: list[str]) -> FormatError:
    return FormatError(
        f"a directory with several checkpoints: {listed(names, 10)}. Give the path of the one that "
        "you mean.",
        path=folder.path,
    )
