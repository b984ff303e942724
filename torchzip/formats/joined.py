"""Shards of a tensor-parallel model, put together by a rule (`formats.joins`).

* Meta: ``consolidated.<NN>.pth``, each a flat dict with the same names.
* Megatron's format ``torch``: ``mp_rank_<TT>[_<PPP>]/model_optim_rng.pt``, with the names of a
  model below ``model``, as one dict or several inside one another. Of a pipeline each stage (PPP)
  numbers its layers from 0, so those of the stages before are added.

Shards are in the order in which they are given; those of Megatron in that of the numbers in their
paths.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any

from torchzip.errors import ErrorPlace, FormatError, UnsupportedError, listed, shown
from torchzip.files.folder import Folder
from torchzip.formats.base import Opener
from torchzip.formats.joins import How, Join, how_of
from torchzip.formats.rank_files import (
    Joined,
    RankFilesContainer,
    check_dense,
    closed,
    differ,
)
from torchzip.tensors.chunks import Chunk
from torchzip.tensors.specs import Shape, TensorSpec
from torchzip.tensors.views import sliced

_STAGE = re.compile(r"mp_rank_(\d{1,4})(?:_(\d{1,4}))?", re.ASCII)
_LAYER = re.compile(r"(.*\blayers\.)(\d{1,6})(\..*)", re.ASCII | re.DOTALL)


class JoinedContainer(RankFilesContainer):
    """Shards as the flat dict of the whole tensors."""

    format = "joined"
    label = "shards of tensors"

    def __init__(self, folder: Folder, join: Join, opener: Opener) -> None:
        super().__init__(folder, opener)
        self._join = join
        folder.will_open(folder.names)
        is_megatron = join == "megatron"
        stages = _stages(folder.names) if is_megatron else [folder.names]
        before = 0
        for names in stages:
            shards = [self._shard(name, is_megatron) for name in names]
            before += self._add_stage(shards, names, before)
        if not self.tensors:
            raise FormatError("the files have no tensors to put together", path=self.name)

    def _shard(self, file: str, is_megatron: bool) -> tuple[dict[str, Any], Mapping[str, Any]]:
        """Return what a file has by name, and what is around that."""
        root = self.read_file(file)
        with ErrorPlace(path=file):
            if not isinstance(root, dict):
                raise FormatError(f"the object is {shown(root)}; a dict was expected")
            around: Mapping[str, Any] = root
            if is_megatron:
                if "model" not in root:
                    raise UnsupportedError(
                        f"the file has {listed(list(root))}; a dict called 'model' is read (a "
                        "pipeline of virtual stages has several)"
                    )
                root = root["model"]
            return dict(self.leaves(root)), around

    def _add_stage(
        self,
        shards: list[tuple[dict[str, Any], Mapping[str, Any]]],
        files: list[str],
        before: int,
    ) -> int:
        """Add the tensors of one stage of a pipeline; return how many layers it has."""
        layers: set[str] = set()
        first, around = shards[0]
        is_pipeline = len(files) < len(self.folder.names)
        for (held, _), file in zip(shards, files, strict=True):
            if held.keys() != first.keys():
                other = [*(first.keys() ^ held.keys())]
                raise FormatError(
                    f"{listed(sorted(other))} is not in the first shard and in this one; the same "
                    "names were expected",
                    path=file,
                )
        for name, value in first.items():
            if name.endswith("_extra_state"):
                continue
            if isinstance(value, bool | int | float | str | None):
                self.values.setdefault(name, value)
                continue
            parts = [
                check_dense(held[name], shown(name), file)
                for (held, _), file in zip(shards, files, strict=True)
            ]
            match = _LAYER.fullmatch(name)
            whole = name
            if match is not None and is_pipeline:
                layers.add(match[2])
                whole = f"{match[1]}{int(match[2]) + before}{match[3]}"
            if whole in self.tensors:
                raise FormatError(f"{shown(whole)} is in two stages of the pipeline")
            with ErrorPlace(path=self.name, record=name):
                how = how_of(name, self._join, parts, around)
                self.tensors[whole] = self._whole(whole, parts, files, how)
        return len(layers)

    def _whole(self, name: str, parts: list[TensorSpec], files: list[str], how: How) -> Joined:
        if how == "same":
            for part, file in zip(parts, files, strict=True):
                if differ(parts[0], part):
                    raise FormatError(
                        f"it is not what {files[0]} has; the rule says that all shards have the "
                        "same",
                        path=file,
                    )
            return self.alone(name, parts[0], files[0])
        axis, count = how if isinstance(how, tuple) else (how, 1)
        assert isinstance(axis, int)
        shape = _whole_shape(parts, files, axis, count)
        whole_axes = (slice(None),) * axis
        chunks: list[Chunk] = []
        at = 0
        for number in range(count):
            for part, file in zip(parts, files, strict=True):
                size = part.shape[axis] // count
                own = sliced(part, (*whole_axes, slice(number * size, (number + 1) * size)))
                offsets = tuple(at if each == axis else 0 for each in range(len(shape)))
                if own.numel:
                    chunks.append(Chunk(offsets, own.shape, file, closed(own, file)))
                at += size
        return self.join(name, parts[0].torch_dtype, shape, chunks)


def _whole_shape(parts: list[TensorSpec], files: list[str], axis: int, count: int) -> Shape:
    """Return the shape that parts make along an axis; see that they fit together."""
    first = parts[0]
    for part, file in zip(parts, files, strict=True):
        around = [
            size for each, size in enumerate(part.shape) if each != axis or axis >= len(first.shape)
        ]
        wanted = [size for each, size in enumerate(first.shape) if each != axis]
        if axis >= len(part.shape) or around != wanted or part.torch_dtype != first.torch_dtype:
            raise FormatError(
                f"{part.torch_dtype} of size {list(part.shape)} does not go along axis {axis} with "
                f"{first.torch_dtype} of size {list(first.shape)}",
                path=file,
            )
        if part.shape[axis] % count:
            raise FormatError(
                f"size {list(part.shape)} is not {count} parts along axis {axis}", path=file
            )
    total = sum(part.shape[axis] for part in parts)
    return (*first.shape[:axis], total, *first.shape[axis + 1 :])


def _stages(paths: list[str]) -> list[list[str]]:
    """Return the files of Megatron by the stages of the pipeline, each in order.

    Raises
    ------
    FormatError
        If the directories around them do not say it, or one is missing.
    """
    found: dict[int, dict[int, str]] = {}
    for path in paths:
        match = _STAGE.fullmatch(os.path.basename(os.path.dirname(os.path.abspath(path))))
        if match is None:
            raise FormatError(
                "the directory around the file is not called mp_rank_<TT> or mp_rank_<TT>_<PPP>, "
                "which says the place of the shard",
                path=path,
            )
        stage, rank = int(match[2] or 0), int(match[1])
        if found.setdefault(stage, {}).setdefault(rank, path) is not path:
            raise FormatError(f"two files are of rank {rank} of stage {stage}", path=path)
    ranks = max(len(shards) for shards in found.values())
    for stage in range(max(found) + 1):
        for rank in range(ranks):
            if rank not in found.get(stage, {}):
                raise FormatError(
                    f"no file of rank {rank:,} of stage {stage:,} is given, of {ranks:,} ranks in "
                    f"{max(found) + 1:,} stages"
                )
    return [[found[stage][rank] for rank in sorted(found[stage])] for stage in sorted(found)]
