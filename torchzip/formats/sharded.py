"""A checkpoint in several files, as Hugging Face writes them: docs/format.md, section 11.5.

Each shard is a checkpoint of its own, a flat dict from names to tensors: a zip, a legacy
stream or a safetensors file. The index says which file has which tensor, and must say it of
all: what would be out of reach or could be meant in two ways is an error that names it.

* a shard that is not there, or is not a regular file (symbolic links are followed);
* a shard of the same set (``model-00003-of-00003`` beside ``model-00001-of-00003``) that the index
  does not list;
* a name that the index puts into a shard which lacks it;
* a name in a shard that the index does not list, or puts into another shard;
* a safetensors shard with a part of a tensor only, as torch.distributed.checkpoint writes them.

A shard of another set (left from an earlier save) and a ``total_size`` that is wrong change no
value: `Sharded.notes` has them after the bytes were gone over, and `Checkpoint.verify` reports
them.

Without an index the names of the files say how many there are. All must be there, and no name may
be in two of them; the order is that of the shards.

All shards are opened and their structure is read at once; their tensors are not.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import islice
from typing import Any

from torchzip.container.hub_names import Shard, ShardSet, parse_shard
from torchzip.container.safetensors import ALIASES_KEY, parse_aliases
from torchzip.container.shard_index import ShardIndex, parse_index
from torchzip.errors import ErrorPlace, FormatError, UnsupportedError, listed, shown
from torchzip.files.folder import Folder, is_plain_name
from torchzip.formats.base import (
    Container,
    Contents,
    FolderContainer,
    MakeFactory,
    Opener,
    RecordCheck,
    measured_by,
)
from torchzip.formats.dcp_safetensors import SHARDING_INFO, saved_offsets

#: Missing shards that an error names.
_MOST_LISTED = 5


def open_index(folder: Folder, name: str, opener: Opener) -> ShardedContainer:
    """Return the shards that an index lists, in its order."""
    index = parse_index(folder.open(name), opener.limits)
    shards = list(dict.fromkeys(index.weight_map.values()))
    with ErrorPlace(path=folder.place(name)):
        notes = _check_files(folder, shards)
    made = ShardedContainer(folder, folder.place(name), index, shards, opener)
    made.notes = notes
    made.index_nbytes = folder.open(name).size
    return made


def open_shards(folder: Folder, shards: list[Shard], opener: Opener) -> ShardedContainer:
    """Return the shards of one set that has no index, in the order of their numbers."""
    return ShardedContainer(folder, folder.path, None, _in_order(shards), opener)


class ShardedContainer(FolderContainer):
    """Shards as one flat dict, in the order of the index or else of the shards."""

    format = "sharded"
    label = "shards"
    is_by_name = True
    lists_ties = True
    torch_load = "does not apply"
    torch_reason = "shards; each shard is a file of its own"
    #: Bytes of the index, 0 if there is none.
    index_nbytes = 0

    def __init__(
        self,
        folder: Folder,
        name: str,
        index: ShardIndex | None,
        shards: list[str],
        opener: Opener,
    ) -> None:
        super().__init__(folder, name)
        self._index = index
        self._listed: dict[str, list[str]] = {shard: [] for shard in shards}
        for tensor, shard in index.weight_map.items() if index is not None else ():
            self._listed[shard].append(tensor)
        self._limits = opener.limits
        folder.will_open(shards)
        for shard in shards:
            container = opener.of_source(folder.open(shard))
            if not container.can_be_shard:
                raise UnsupportedError(
                    f"the shard is of format {container.format}; a file of torch.save or "
                    "safetensors was expected",
                    path=container.name,
                )
            self.containers[shard] = container

    def read(self, make_factory: MakeFactory) -> Contents:
        made = Contents({}, [], [], 0)
        found: dict[str, dict[str, Any]] = {}
        parts: list[Contents] = []
        with ErrorPlace(path=self.name):
            for shard, container in self.containers.items():
                contents = container.read(make_factory)
                self._check_flat(shard, container, contents)
                if self._index is not None:
                    self._check_listed(shard, contents.root, self._index.weight_map)
                found[shard] = contents.root
                parts.append(contents)
            index = self._index if self._index is not None else _index_of(found)
        made.add(parts)
        made.root = {name: found[shard][name] for name, shard in index.weight_map.items()}
        made.metadata = _merged(index, [contents.metadata or {} for contents in parts])
        return made

    def _check_flat(self, shard: str, container: Container, contents: Contents) -> None:
        root = contents.root
        if not isinstance(root, dict) or not all(type(name) is str for name in root):
            raise FormatError(
                f"the shard holds {shown(root)}; one flat dict from names to tensors was expected",
                path=container.name,
            )
        offsets = saved_offsets(contents.metadata or {}, self._limits, container.name)
        parts = [name for name, offset in offsets.items() if any(offset)]
        if parts:
            raise FormatError(
                f"{shown(shard)} has a part only of {listed(parts)} (its {SHARDING_INFO} says "
                "so), and an index is for whole tensors",
            )

    def _check_listed(self, shard: str, root: dict[str, Any], weight_map: dict[str, str]) -> None:
        lacking = [name for name in self._listed[shard] if name not in root]
        if lacking:
            raise FormatError(
                f"the index puts {listed(lacking)} into {shown(shard)}, which has no tensor of "
                "that name",
            )
        for name in root:
            at = weight_map.get(name)
            if at is None:
                raise FormatError(
                    f"{shown(shard)} has {shown(name)}, which the index does not list. Open the "
                    "shard by its own path to read it.",
                )
            if at != shard:
                raise FormatError(
                    f"{shown(name)} is in {shown(shard)} and, by the index, in {shown(at)}; which "
                    "of the two counts cannot be told",
                )

    def check_records(self) -> Iterator[RecordCheck]:
        yield from super().check_records()
        total = None if self._index is None else self._index.total_size
        if total is None:
            return
        stored = sum(each.nbytes for shard in measured_by(self.read) for each in shard.values())
        if total != stored:
            wrong = (
                f"the index says total_size {total:,}, the storages of the shards have "
                f"{stored:,} bytes"
            )
            self.notes = tuple(dict.fromkeys([*self.notes, wrong]))


def _index_of(found: dict[str, dict[str, Any]]) -> ShardIndex:
    """Return the index that the shards would have."""
    weight_map: dict[str, str] = {}
    for shard, root in found.items():
        for name in root:
            other = weight_map.setdefault(name, shard)
            if other != shard:
                raise FormatError(
                    f"{shown(name)} is in {shown(other)} and in {shown(shard)}; which of the "
                    "two counts cannot be told without an index. Give the path of one of them.",
                )
    return ShardIndex(weight_map, {}, None)


def _check_files(folder: Folder, shards: list[str]) -> tuple[str, ...]:
    """Return what is odd about the files beside an index; raise unless its shards are there."""
    for shard in shards:
        if not is_plain_name(shard):
            raise FormatError(
                f"the index names the shard {shown(shard)}; a plain file name in the same "
                "directory was expected",
            )
    present = set(folder.names)
    missing = [shard for shard in shards if shard not in present and not folder.has(shard)]
    if missing:
        raise FormatError(
            f"{len(missing):,} of {len(shards):,} shards are not in the directory: "
            f"{listed(missing)}. Fetch them and put them beside the index.",
        )
    wanted = {_set_of(shard) for shard in shards} - {None}
    names = {(each.stem, each.suffix) for each in filter(None, wanted)}
    unlisted = present - set(shards)
    beside = sorted(name for name in unlisted if _set_of(name) in wanted)
    if beside:
        raise FormatError(
            f"the index does not list {listed(beside)}, which by its name belongs to the "
            "same checkpoint. The index and the shards are not of one save; fetch both again, "
            "or move away what does not belong.",
        )
    others = sorted(
        name
        for name in unlisted
        if (other := _set_of(name)) is not None and (other.stem, other.suffix) in names
    )
    return (f"shards of another set lie in the directory: {listed(others)}",) if others else ()


def _set_of(name: str) -> ShardSet | None:
    shard = parse_shard(name)
    return None if shard is None else shard.of


def _in_order(shards: list[Shard]) -> list[str]:
    """Return the names of the shards of a set by their numbers.

    Raises
    ------
    FormatError
        Unless they are all from 1 to the number that their names say, each of them once.
    """
    count = shards[0].of.total
    numbered: dict[int, str] = {}
    for shard in shards:
        number, name = shard.number, shard.name
        if not 1 <= number <= count:
            raise FormatError(
                f"{shown(name)} is number {number:,} of {count:,} by its name; 1 to {count:,} was "
                "expected",
            )
        if number in numbered:
            raise FormatError(
                f"{shown(numbered[number])} and {shown(name)} are both number {number:,} of "
                f"{count:,} by their names",
            )
        numbered[number] = name
    lacking = count - len(numbered)
    if lacking:
        first = (number for number in range(1, count + 1) if number not in numbered)
        names = [shards[0].other(number) for number in islice(first, _MOST_LISTED)]
        more = f" and {lacking - len(names):,} more" if lacking > len(names) else ""
        raise FormatError(
            f"{lacking:,} of {count:,} shards are not in the directory: {listed(names)}{more}. "
            "The index is missing as well. Fetch them and put them beside the others.",
        )
    return [numbered[number] for number in sorted(numbered)]


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
