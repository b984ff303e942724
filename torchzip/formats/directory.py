"""Which checkpoint a directory is, by the names of its files.

* ``*.index.json``, or that of a variant: shards with an index (Hugging Face);
* ``.metadata``, or ``__<rank>.metadata``: torch.distributed.checkpoint;
* ``*.safetensors`` with a ``DCP_SHARDING_INFO``: the safetensors variant of the same;
* one of the names of `hub_names.WHOLE_FILES`, or that of a variant: that file;
* shards of one set without an index, if all are there;
* ``*_model_states.pt`` and ``*_optim_states.pt``: DeepSpeed's ZeRO. ``latest`` names the directory
  that has them; where something else is beside it, the path of that file itself means ZeRO;
* ``model_world_size_<W>_rank_<R>.pt``: the parts of all ranks.

A directory that has more than one of these is refused, with all their names: which of them is meant
depends on who reads it. transformers 5.24 (``_get_resolved_checkpoint_files``) takes the first that
is there of ``model.safetensors``, its index, ``pytorch_model.bin``, its index; diffusers 0.42
(``ModelMixin.from_pretrained``) looks for an index first; and both take a variant only if asked to.
Each of the files can be named itself, which settles the matter.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial

from torchzip.container.hub_names import (
    INDEX_SUFFIX,
    WHOLE_FILES,
    Shard,
    ShardSet,
    is_index,
    is_whole,
    parse_shard,
)
from torchzip.container.safetensors import parse_header
from torchzip.container.shard_index import parse_index
from torchzip.errors import ErrorPlace, FormatError, listed, shown
from torchzip.files.folder import Folder, is_plain_name
from torchzip.files.opening import is_folder, open_around, open_folder
from torchzip.formats.base import Container, Opener, read_bounded
from torchzip.formats.dcp import METADATA_NAME, RANK_METADATA, DcpContainer, is_metadata
from torchzip.formats.dcp_safetensors import SHARDING_INFO, SafetensorsPartsContainer
from torchzip.formats.not_checkpoints import folder_error
from torchzip.formats.ranks import RanksContainer, ranks_in
from torchzip.formats.sharded import open_index, open_shards
from torchzip.formats.zero import open_zero
from torchzip.formats.zero_files import is_zero

#: What names the tag of a DeepSpeed checkpoint, the directory that has its files.
LATEST = "latest"
_LATEST = (LATEST, "latest_universal")

_UNDERSTOOD = (
    f"A directory is read that has one of: shards, with an *{INDEX_SUFFIX} or all of them; "
    f"{', '.join(WHOLE_FILES)}; the .metadata or the *.safetensors of "
    "torch.distributed.checkpoint; the *_states.pt of DeepSpeed's ZeRO, or a latest that names "
    "their directory; the model_world_size_*.pt of all ranks. For a single file give its own path."
)


def is_part_of_directory(file: str | os.PathLike[str]) -> bool:
    """Return whether a path is a directory, or the file that says what a directory holds."""
    name = os.path.basename(os.fsdecode(file))
    return name in _LATEST or is_index(name) or is_metadata(name) or is_folder(file)


def open_directory(file: str | os.PathLike[str], opener: Opener) -> Container:
    """Return the container that a directory is, or the one that the named file describes."""
    folder, name = (open_folder(file), "") if is_folder(file) else open_around(file)
    try:
        with ErrorPlace(path=folder.path or "."):
            if not name:
                return _open_folder(folder, opener)
            if not folder.has(name):
                raise FileNotFoundError(2, "No such file or directory", os.fsdecode(file))
            if is_index(name):
                return open_index(folder, name, opener)
            if name in _LATEST:
                return _open_latest(folder, name, opener)
            return DcpContainer(folder, [name], opener.limits)
    except BaseException:
        folder.close()
        raise


def _open_folder(folder: Folder, opener: Opener) -> Container:
    """Return the one container that a directory is.

    Raises
    ------
    FormatError
        If it is not one, or could be several.
    """
    limits = opener.limits
    indices = [name for name in folder.names if is_index(name)]
    own = [name for name in folder.names if RANK_METADATA.fullmatch(name)]
    found: dict[str, Callable[[], Container]] = {
        name: partial(open_index, folder, name, opener) for name in indices
    }
    if METADATA_NAME in folder.names:
        found[METADATA_NAME] = partial(DcpContainer, folder, [METADATA_NAME], limits)
    if own:
        found[own[0]] = partial(DcpContainer, folder, own, limits)
    if not found:
        parts = [name for name in folder.names if name.endswith(".safetensors")]
        folder.will_open(parts)
        if any(SHARDING_INFO in parse_header(folder.open(name), limits)[1] for name in parts):
            return SafetensorsPartsContainer(folder, parts, limits)
        # No reader looks for shards without an index, so with one they do not count.
        sets: dict[ShardSet, list[Shard]] = {}
        for shard in filter(None, map(parse_shard, folder.names)):
            if shard.of.is_loadable:
                sets.setdefault(shard.of, []).append(shard)
        for shards in sets.values():
            found[shards[0].name] = partial(open_shards, folder, shards, opener)
    if is_zero(folder.names):
        found["*_states.pt"] = partial(open_zero, folder, opener)
    ranks = ranks_in(folder.names)
    if ranks:
        found[ranks[0]] = partial(RanksContainer, folder, ranks, opener)
    whole = [name for name in folder.names if is_whole(name)]
    if whole and len(indices) == 1:
        listed_there = parse_index(folder.open(indices[0]), limits).weight_map.values()
        whole = sorted({*whole} - {*listed_there})
    for name in whole:
        found[name] = partial(_open_whole, folder, name, opener)
    if not found and LATEST in folder.names:
        return _open_latest(folder, LATEST, opener)
    if not found:
        raise folder_error(folder.path, folder.names, _UNDERSTOOD)
    if len(found) > 1:
        raise FormatError(
            f"a directory with several checkpoints: {listed(list(found), 10)}. Give the path of "
            "the one that you mean, or move the others away."
        )
    return found.popitem()[1]()


def _open_latest(folder: Folder, name: str, opener: Opener) -> Container:
    """Return the ZeRO checkpoint in the directory that a ``latest`` names."""
    raw = read_bounded(folder.open(name), opener.limits, "text_nbytes")
    tag = raw.decode("utf-8", "replace").strip()
    if not is_plain_name(tag) or not folder.has(tag):
        raise FormatError(
            f"it names {shown(tag)}; a directory beside it was expected", path=folder.place(name)
        )
    inner = folder.within(tag)
    folder.close()
    try:
        return open_zero(inner, opener)
    except BaseException:
        inner.close()
        raise


def _open_whole(folder: Folder, name: str, opener: Opener) -> Container:
    folder.close()
    return opener.of_file(folder.file(name))
