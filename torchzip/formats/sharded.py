"""A checkpoint in several files with an index, as Hugging Face writes them (format, 11.5).

Each shard is a checkpoint of its own, a flat dict from names to tensors: a zip, a legacy
stream or a safetensors file. The index says which file has which tensor, and must say it of
all: what would be out of reach or could be meant in two ways is an error that names it.

* a shard that is not there, or is no regular file (symbolic links are followed);
* a shard of the same set (``model-00003-of-00003`` beside ``model-00001-of-00003``) that the index
  does not list;
* a name that the index puts into a shard which lacks it;
* a name in a shard that the index does not list, or puts into another shard;
* a safetensors shard with a part of a tensor only, as torch.distributed.checkpoint writes them.

A shard of another set (left from an earlier save) and a ``total_size`` that is wrong change no
value: `Sharded.notes` has them after the bytes were gone over, and `Checkpoint.verify` reports
them.

All shards are opened and their structure is read at once; their tensors are not.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from torchzip.container.safetensors import ALIASES_KEY, parse_aliases
from torchzip.container.shard_index import ShardIndex, parse_index
from torchzip.errors import FormatError, UnsupportedError, listed, shown
from torchzip.files.folder import Folder, is_plain_name
from torchzip.formats.base import (
    Container,
    Contents,
    MakeFactory,
    OpenContainer,
    OpenStorage,
    Pickle,
    RecordCheck,
)
from torchzip.formats.dcp_safetensors import SHARDING_INFO, saved_offsets
from torchzip.limits import Limits
from torchzip.tensors.persistent_ids import Factory
from torchzip.tensors.storage import TensorStorage

#: ``model-00001-of-00003.safetensors``: the set's name, the number, how many, what follows.
_SHARD_NAME = re.compile(r"(.{0,200})-(\d{1,9})-of-(\d{1,9})(\..{1,40})", re.ASCII | re.DOTALL)
_FORMATS = ("zip", "legacy", "safetensors")


class ShardedContainer:
    """The shards of an index, as one flat dict in the order of the index."""

    format = "sharded"

    def __init__(
        self, folder: Folder, index_name: str, limits: Limits, open_container: OpenContainer
    ) -> None:
        self._folder = folder
        self.name = folder.place(index_name)
        self._limits = limits
        self._stored_nbytes = 0
        self.notes: tuple[str, ...] = ()
        self._index = parse_index(folder.open(index_name), limits)
        self._listed: dict[str, list[str]] = {}
        for name, shard in self._index.weight_map.items():
            self._listed.setdefault(shard, []).append(name)
        shards = list(self._listed)
        self._check_files(shards)
        self._containers: dict[str, Container] = {}
        for shard in shards:
            container = open_container(folder.open(shard), limits)
            if container.format not in _FORMATS:
                raise UnsupportedError(
                    f"the shard is of format {container.format}; a file of torch.save or "
                    "safetensors was expected",
                    path=container.name,
                )
            self._containers[shard] = container

    @property
    def shards(self) -> list[Container]:
        """The shards, open, in the order of the index."""
        return list(self._containers.values())

    def _check_files(self, shards: list[str]) -> None:
        for shard in shards:
            if not is_plain_name(shard):
                raise FormatError(
                    f"the index names the shard {shown(shard)}; a plain file name in the same "
                    "directory was expected",
                    path=self.name,
                )
        present = set(self._folder.names)
        missing = [shard for shard in shards if shard not in present]
        if missing:
            raise FormatError(
                f"{len(missing):,} of {len(shards):,} shards are not in the directory: "
                f"{listed(missing)}. Fetch them and put them beside the index.",
                path=self.name,
            )
        wanted = {_set_of(shard) for shard in shards} - {None}
        names = {(prefix, suffix) for prefix, _, suffix in filter(None, wanted)}
        unlisted = present - set(shards)
        beside = sorted(name for name in unlisted if _set_of(name) in wanted)
        if beside:
            raise FormatError(
                f"the index does not list {listed(beside)}, which by its name belongs to the "
                "same checkpoint. The index and the shards are not of one save; fetch both again, "
                "or move away what does not belong.",
                path=self.name,
            )
        others = sorted(
            name
            for name in unlisted
            if (other := _set_of(name)) is not None and (other[0], other[2]) in names
        )
        if others:
            self.notes = (f"shards of another set lie in the directory: {listed(others)}",)

    def read(self, make_factory: MakeFactory) -> Contents:
        def count(open_storage: OpenStorage) -> Factory:
            def counted(
                key: str, torch_dtype: str | None, nbytes: int, location: str
            ) -> TensorStorage:
                self._stored_nbytes += nbytes
                return open_storage(key, torch_dtype, nbytes, location)

            return make_factory(counted)

        self._stored_nbytes = 0
        made = Contents({}, [], [], 0)
        found: dict[str, dict[str, Any]] = {}
        texts: list[dict[str, str]] = []
        for shard, container in self._containers.items():
            contents = container.read(count)
            self._check_shard(shard, container, contents)
            found[shard] = contents.root
            texts.append(contents.metadata or {})
            made.globals += contents.globals
            made.foreign += contents.foreign
            made.pickle_nbytes += contents.pickle_nbytes
        made.globals = list(dict.fromkeys(made.globals))
        made.foreign = list(dict.fromkeys(made.foreign))
        made.root = {name: found[shard][name] for name, shard in self._index.weight_map.items()}
        made.metadata = _merged(self._index, texts)
        return made

    def _check_shard(self, shard: str, container: Container, contents: Contents) -> None:
        root = contents.root
        if not isinstance(root, dict) or not all(type(name) is str for name in root):
            raise FormatError(
                f"the shard holds {shown(root)}; one flat dict from names to tensors was expected",
                path=container.name,
            )
        weight_map = self._index.weight_map
        lacking = [name for name in self._listed[shard] if name not in root]
        if lacking:
            raise FormatError(
                f"the index puts {listed(lacking)} into {shown(shard)}, which has no tensor of "
                "that name",
                path=self.name,
            )
        for name in root:
            at = weight_map.get(name)
            if at is None:
                raise FormatError(
                    f"{shown(shard)} has {shown(name)}, which the index does not list. Open the "
                    "shard by its own path to read it.",
                    path=self.name,
                )
            if at != shard:
                raise FormatError(
                    f"{shown(name)} is in {shown(shard)} and, by the index, in {shown(at)}; which "
                    "of the two counts cannot be told",
                    path=self.name,
                )
        offsets = saved_offsets(contents.metadata or {}, self._limits, container.name)
        parts = [name for name, offset in offsets.items() if any(offset)]
        if parts:
            raise FormatError(
                f"{shown(shard)} has a part only of {listed(parts)} (its {SHARDING_INFO} says "
                "so), and an index is for whole tensors",
                path=self.name,
            )

    def pickles(self) -> Iterator[Pickle]:
        for shard, container in self._containers.items():
            for each in container.pickles():
                yield each._replace(place=f"{shard}: {each.place}")

    def check_records(self) -> Iterator[RecordCheck]:
        for shard, container in self._containers.items():
            for check in container.check_records():
                yield RecordCheck(f"{shard}: {check.name}", check.nbytes, check.crc_known)
            notes = [f"{shard}: {note}" for note in container.notes]
            self.notes = tuple(dict.fromkeys([*self.notes, *notes]))
        total = self._index.total_size
        if total is not None and total != self._stored_nbytes:
            wrong = (
                f"the index says total_size {total:,}, the storages of the shards have "
                f"{self._stored_nbytes:,} bytes"
            )
            if wrong not in self.notes:
                self.notes = (*self.notes, wrong)

    def close(self) -> None:
        self._folder.close()


def _set_of(name: str) -> tuple[str, int, str] | None:
    """Return what the files of one save have in common: name, how many, suffix."""
    match = _SHARD_NAME.fullmatch(name)
    return None if match is None else (match[1], int(match[3]), match[4])


def _merged(index: ShardIndex, texts: list[dict[str, str]]) -> dict[str, str]:
    """Return the metadata of the index, and what the shards say unless they disagree.

    Ties that `convert` lists in each shard are put together.
    """
    merged: dict[str, str] = {}
    for name in {name: None for each in texts for name in each}:
        values = {each[name] for each in texts if name in each}
        if len(values) == 1:
            merged[name] = values.pop()
        elif name == ALIASES_KEY:
            merged[name] = _joined(values)
    merged.pop(SHARDING_INFO, None)
    return merged | index.metadata


def _joined(values: set[str]) -> str:
    joined: dict[str, str] = {}
    for text in sorted(values):
        joined |= parse_aliases({ALIASES_KEY: text})
    return json.dumps(joined, ensure_ascii=False, sort_keys=True)
