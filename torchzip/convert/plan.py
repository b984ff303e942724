"""What a conversion will do, decided before anything is written.

`make_plan` is pure: from an open checkpoint and the rules it works out the files, the name, dtype
and bytes of every tensor, where in which file they stand, the structure that goes around them, and
what the target cannot carry. It reads no tensor data.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torchzip.checkpoint.lazy import Checkpoint
from torchzip.checkpoint.lazy_tensor import LazyTensor
from torchzip.container.hub_names import shard_name
from torchzip.container.shard_index import build_index
from torchzip.convert.carried import OBJECT_KEY
from torchzip.convert.companions import Companion
from torchzip.convert.mapped import MappedTensors
from torchzip.convert.outputs.base import Output
from torchzip.convert.planned import PlannedFile, PlannedTensor
from torchzip.convert.rules import Rules
from torchzip.convert.selection import Selection, select
from torchzip.convert.surgery import Surgery
from torchzip.convert.targets import Target
from torchzip.files.place import LocalPlace, StorePlace
from torchzip.quantization.codes import codes, sentence


@dataclass(slots=True)
class Plan:
    """What will be written. ``lost`` names what the target cannot hold, with the reason."""

    output: type[Output]
    place: LocalPlace | StorePlace
    files: list[PlannedFile]
    tensors: list[PlannedTensor]
    lost: list[str] = field(default_factory=list)
    #: What torch's default loader will refuse: (path, reason).
    refused: list[tuple[str, str]] = field(default_factory=list)
    #: Rules that match nothing.
    unused: list[str] = field(default_factory=list)
    #: What is to be said before anything is written.
    warnings: list[str] = field(default_factory=list)
    #: The weights that were quantized, and how.
    dequantized: dict[str, str] = field(default_factory=dict)
    #: The path and the bytes of the index of shards.
    index: tuple[str, bytes] | None = None
    #: Which part of the source was chosen, in words.
    taken: str = ""
    #: What is copied beside the files.
    companions: Sequence[Companion] = ()

    @property
    def tied(self) -> dict[str, str]:
        """Names that the files lack -> the name of the same tensor, which has the data."""
        if self.output.has_ties:
            return {}
        return {row.name: row.alias_of for row in self.tensors if row.alias_of is not None}

    @property
    def sizes(self) -> dict[str, int]:
        """The paths of all files and their bytes, the index last."""
        index = {} if self.index is None else {self.index[0]: len(self.index[1])}
        return {file.path: file.nbytes for file in self.files} | index

    @property
    def nbytes(self) -> int:
        """Bytes of all files."""
        return sum(self.sizes.values())


def make_plan(
    checkpoint: Checkpoint,
    target: Target,
    rules: Rules | None = None,
    *,
    max_shard_nbytes: int | None = None,
    mapping: MappedTensors | None = None,
    metadata: Mapping[str, Any] | None = None,
    surgery: Surgery | None = None,
    dequantize: bool = False,
) -> Plan:
    """Return the plan for writing a checkpoint to a target.

    ``metadata`` is added to that of the source; None takes a key away. The checkpoint stays as it
    is.

    Raises
    ------
    ValueError
        If two tensors would have one name.
    UnsupportedError
        If the target has no way to hold a tensor.
    """
    rules = rules if rules is not None else Rules()
    selection = select(checkpoint, rules, mapping, surgery, dequantize=dequantize)
    merged = selection.metadata | dict(metadata or {})
    selection.metadata = {key: value for key, value in merged.items() if value is not None}

    def dtype_of(name: str, torch_dtype: str) -> str:
        return rules.dtype_of(selection.seen_as.get(name, name), torch_dtype)

    _refuse_nothing(selection, rules)
    output = target.output(checkpoint, selection, dtype_of)
    plan = Plan(target.output, target.place, [], output.rows, output.lost, output.refused)
    plan.taken = selection.taken
    groups = output.groups()
    total = sum(nbytes for nbytes, _ in groups)
    if target.has_index or (max_shard_nbytes is not None and total > max_shard_nbytes):
        _add_shards(plan, output, target, _split(groups, max_shard_nbytes), total)
    else:
        plan.files.append(output.one_file(target.path))
    plan.unused = rules.unused()
    found = _codes(selection)
    plan.warnings = plan.unused + ([sentence(found)] if found else [])
    plan.dequantized = selection.dequantized
    if dequantize and not plan.dequantized:
        plan.warnings.append("dequantize: no tensor that is converted is quantized")
    return plan


def _refuse_nothing(selection: Selection, rules: Rules) -> None:
    """Raise ValueError if rules leave no tensor of a checkpoint that has some."""
    if selection.original and not selection.tensors:
        reasons = rules.unused()
        raise ValueError(
            f"no tensor is left of {len(selection.original):,}: "
            + ("; ".join(reasons) or "the rules for names leave out all of them")
        )


def _codes(selection: Selection) -> dict[str, str]:
    """Return what the output has of the source's codes of quantized weights."""
    before = {
        name: held.torch_dtype
        for name, held in selection.original.items()
        if isinstance(held, LazyTensor)
    }
    # By other dtypes, ``map`` has made weights of them.
    after = {selection.sources[new]: held.torch_dtype for new, held in selection.tensors.items()}
    found = codes(before)
    return {name: scale for name, scale in found.items() if after.get(name) == before[name]}


def _add_shards(
    plan: Plan, output: Output, target: Target, shards: list[list[str]], total: int
) -> None:
    """Add the shards and their index, and say of each tensor which shard has it."""
    tied = plan.tied
    carried = output.carry(
        [row.name for row in plan.tensors if row.name not in tied] + sorted(tied)
    )
    paths: dict[str, str] = {}
    for number, names in enumerate(shards, 1):
        path = shard_name(target.path, number, len(shards))
        plan.files.append(output.shard(path, names))
        paths |= dict.fromkeys(names, path)
    weight_map = {
        row.name: os.path.basename(paths[row.name]) for row in plan.tensors if row.name in paths
    }
    plan.tensors[:] = [
        replace(row, file=paths[row.name if row.name in paths else row.alias_of or ""])
        for row in plan.tensors
    ]
    metadata: dict[str, Any] = {"total_size": total}
    if carried is not None:
        metadata[OBJECT_KEY] = carried
    plan.index = (target.index_path, build_index(metadata, weight_map))


def _split(groups: list[tuple[int, list[str]]], max_nbytes: int | None) -> list[list[str]]:
    """Return the names of each shard: filled in order, and a larger tensor alone in one."""
    shards: list[list[str]] = [[]]
    filled = 0
    for nbytes, names in groups:
        if max_nbytes is not None and filled and filled + nbytes > max_nbytes:
            shards.append([])
            filled = 0
        shards[-1] += names
        filled += nbytes
    return shards
