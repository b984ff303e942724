"""What a conversion will do, decided before anything is written.

`make_plan` is pure: from an open checkpoint and the rules it works out the files, the name, dtype
and bytes of every tensor, where in which file they stand, the structure that goes around them, and
what the target cannot carry. It reads no tensor data.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field, replace
from typing import Any

from torchzip.checkpoint.lazy import Checkpoint, LazyTensor
from torchzip.checkpoint.saving import head_records
from torchzip.checkpoint.structure import Structure
from torchzip.container.safetensors import ALIASES_KEY, build_header
from torchzip.container.shard_index import build_index
from torchzip.container.zip_writer import archive_name, measure
from torchzip.convert.carried import OBJECT_KEY, Carried, carry
from torchzip.convert.casting import DtypeOf, StorageCasts, inner_tensors, layout
from torchzip.convert.lost import lost_besides, lost_ties, lost_values
from torchzip.convert.mapped import MappedTensors
from torchzip.convert.rules import Rules
from torchzip.convert.selection import Selection, select
from torchzip.convert.targets import Target
from torchzip.dtypes import DTYPES
from torchzip.errors import UnsupportedError
from torchzip.tensors.casts import CastStorage
from torchzip.tensors.memory import place_arrays
from torchzip.tensors.packing import ElementStorage
from torchzip.tensors.reduce import StorageKeys
from torchzip.tensors.storage import TensorStorage
from torchzip.types import OtherTensor


@dataclass(frozen=True, slots=True)
class PlannedTensor:
    """One tensor of the output. ``nbytes`` is its data there; an alias takes none.

    An alias has the elements of another; in a zip, other views of one storage share its bytes too.
    A nested tensor has None in its shape where its sizes differ. ``source`` is its name before
    renaming, and ``file`` the path of the shard that has it.
    """

    name: str
    shape: tuple[int | None, ...]
    from_dtype: str
    to_dtype: str
    nbytes: int
    alias_of: str | None = None
    source: str = ""
    file: str = ""


@dataclass(slots=True)
class PlannedFile:
    """One file of the output: storage ``i`` stands at byte ``starts[i]``, ``nbytes`` in all."""

    path: str
    #: For a zip: the pickle. For safetensors: everything before the data.
    head: bytes
    #: The storages in the order in which they are written.
    storages: list[TensorStorage]
    starts: list[int]
    nbytes: int


@dataclass(slots=True)
class Plan:
    """What will be written. ``lost`` names what the target cannot hold, with the reason."""

    format: str
    files: list[PlannedFile]
    tensors: list[PlannedTensor]
    lost: list[str] = field(default_factory=list)
    #: What torch's default loader will refuse: (path, reason).
    refused: list[tuple[str, str]] = field(default_factory=list)
    #: Rules that match nothing.
    unused: list[str] = field(default_factory=list)
    #: The path and the bytes of the index of shards.
    index: tuple[str, bytes] | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of all files."""
        return sum(file.nbytes for file in self.files) + len(self.index[1] if self.index else b"")


def make_plan(
    checkpoint: Checkpoint,
    target: Target,
    rules: Rules | None = None,
    *,
    max_shard_nbytes: int | None = None,
    mapping: MappedTensors | None = None,
) -> Plan:
    """Return the plan for writing a checkpoint to a target.

    The checkpoint's root is the plan's from then on: it has new keys where tensors have new names.

    Raises
    ------
    ValueError
        If two tensors would have one name.
    UnsupportedError
        If the target has no way to hold a tensor.
    """
    rules = rules if rules is not None else Rules()
    selection = select(checkpoint, rules, mapping)

    def dtype_of(name: str, torch_dtype: str) -> str:
        return rules.dtype_of(selection.sources[name], torch_dtype)

    make = _SafetensorsPlanner if target.format == "safetensors" else _ZipPlanner
    plan = make(checkpoint, selection, dtype_of).plan(target, max_shard_nbytes)
    plan.unused = rules.unused()
    return plan


class _Planner:
    """What both formats have in common: one file if that is enough, otherwise shards."""

    format: str

    def __init__(self, checkpoint: Checkpoint, selection: Selection, dtype_of: DtypeOf) -> None:
        self.checkpoint = checkpoint
        self.selection = selection
        self._rule = dtype_of
        #: Dtypes of tensors that are one with another and cannot part.
        self._bound: dict[str, str] = {}
        held = selection.tensors.items()
        self.tensors = {name: each for name, each in held if isinstance(each, LazyTensor)}
        self.others = {name: each for name, each in held if isinstance(each, OtherTensor)}
        self.inner = inner_tensors([*self.others.values(), *checkpoint.others.values()])
        self.rows: list[PlannedTensor] = []
        self.lost: list[str] = list(selection.lost)
        #: The object around the tensors as JSON, for targets that hold tensors by name.
        self.carried: str | None = None
        self.refused: list[tuple[str, str]] = []
        self._separate()

    def dtype_of(self, name: str, torch_dtype: str) -> str:
        """Return the dtype in the output."""
        return self._bound.get(name) or self._rule(name, torch_dtype)

    def _separate(self) -> None:
        """Make two tensors of one that has two names with different dtypes in the output."""
        made: dict[tuple[int, str], LazyTensor] = {}
        first: dict[int, tuple[str, str]] = {}
        parting: dict[str, LazyTensor] = {}
        for name, tensor in self.tensors.items():
            spec = tensor.spec
            if id(spec) in self.inner:
                continue
            target = self.dtype_of(name, spec.torch_dtype)
            _, known = first.setdefault(id(spec), (name, target))
            if known != target:
                copy = made.setdefault((id(spec), target), LazyTensor(spec.replace()))
                parting[name] = copy
        for name in self.selection.put(parting):
            other, dtype = first[id(self.tensors[name].spec)]
            self.lost.append(f"{name}: a dtype of its own; it is one tensor with {other}, {dtype}")
            del parting[name]
            self._bound[name] = dtype
        self.tensors |= parting

    def groups(self) -> list[tuple[int, list[str]]]:
        """Return what goes into one file together, in order: bytes of data, and names."""
        raise NotImplementedError

    def one_file(self, path: str) -> PlannedFile:
        """Return the file that has everything."""
        raise NotImplementedError

    def shard(self, path: str, names: list[str]) -> PlannedFile:
        """Return the file that has some of the tensors."""
        raise NotImplementedError

    def holder_of(self, name: str) -> str:
        """Return the tensor of the file that has the data of one."""
        return name

    def carry(self) -> None:
        """Put the object around the tensors into a text, and say what is not in it."""
        checkpoint, selection = self.checkpoint, self.selection
        # By identity first: tensors of one layout may have got different dtypes.
        named: dict[Any, str] = {}
        for name, tensor in reversed(self.tensors.items()):
            named[layout(tensor.spec)] = named[id(tensor.spec)] = self.holder_of(name)
        classes = {id(value) for value in checkpoint.others.values()}
        made = Carried()
        if not selection.is_flat:
            made = carry(
                selection.root,
                lambda tensor: named.get(id(tensor.spec)) or named.get(layout(tensor.spec)),
                names={name: name for name in self.tensors},
                is_listed=lambda value: isinstance(value, OtherTensor) or id(value) in classes,
            )
        self.carried = made.text
        self.lost += made.lost
        if made.text is None:
            self.lost += lost_values(checkpoint, selection.around, selection.original)
        else:
            self.lost += lost_besides(checkpoint)

    def plan(self, target: Target, max_shard_nbytes: int | None) -> Plan:
        groups = self.groups()
        total = sum(nbytes for nbytes, _ in groups)
        plan = Plan(self.format, [], self.rows, self.lost, self.refused)
        if not target.has_index and (max_shard_nbytes is None or total <= max_shard_nbytes):
            plan.files = [self.one_file(target.path)]
            return plan
        self.carry()
        shards = _split(groups, max_shard_nbytes)
        weight_map: dict[str, str] = {}
        for number, names in enumerate(shards, 1):
            path = target.shard_path(number, len(shards))
            plan.files.append(self.shard(path, names))
            weight_map |= dict.fromkeys(names, path)
        self._say_shards(weight_map)
        metadata: dict[str, Any] = {"total_size": total}
        if self.carried is not None:
            metadata[OBJECT_KEY] = self.carried
        listed = {
            row.name: os.path.basename(weight_map[row.name])
            for row in self.rows
            if row.name in weight_map
        }
        plan.index = (target.index_path, build_index(metadata, listed))
        return plan

    def _say_shards(self, weight_map: dict[str, str]) -> None:
        for index, row in enumerate(self.rows):
            holder = row.name if row.name in weight_map else row.alias_of or ""
            self.rows[index] = replace(row, file=weight_map[holder])


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


# -- safetensors -------------------------------------------------------------------------------


class _SafetensorsPlanner(_Planner):
    """A header and the elements of each tensor; one tensor of a tie has the data."""

    format = "safetensors"

    def __init__(self, checkpoint: Checkpoint, selection: Selection, dtype_of: DtypeOf) -> None:
        super().__init__(checkpoint, selection, dtype_of)
        self._aliases: dict[str, str] = {}
        self._storages: dict[str, TensorStorage] = {}
        self._nbytes: dict[str, int] = {}
        self._dtypes: dict[str, str] = {}
        holders: dict[Any, str] = {}
        for name, tensor in self.tensors.items():
            spec = tensor.spec
            same_dtype = id(spec) in self.inner
            dtype = spec.torch_dtype if same_dtype else self.dtype_of(name, spec.torch_dtype)
            holder = holders.setdefault((layout(spec), dtype), name) if spec.numel else name
            nbytes = spec.numel * DTYPES[dtype].itemsize if holder == name else 0
            self.rows.append(
                PlannedTensor(
                    name, spec.shape, spec.torch_dtype, dtype, nbytes,
                    None if holder == name else holder, selection.sources[name],
                )
            )  # fmt: skip
            if holder != name:
                self._aliases[name] = holder
                continue
            elements = ElementStorage(spec)
            self._storages[name] = (
                elements
                if dtype == spec.torch_dtype
                else CastStorage(elements, spec.torch_dtype, dtype)
            )
            self._nbytes[name] = nbytes
            self._dtypes[name] = dtype
        self.lost += [
            f"{name or 'the object itself'}: a {held.kind.replace('_', ' ')} tensor; safetensors "
            "holds dense ones only"
            for name, held in self.others.items()
        ]
        self.lost += lost_ties(self.tensors, self._storages)

    def holder_of(self, name: str) -> str:
        return self._aliases.get(name, name)

    def groups(self) -> list[tuple[int, list[str]]]:
        return [(nbytes, [name]) for name, nbytes in self._nbytes.items()]

    def one_file(self, path: str) -> PlannedFile:
        self.carry()
        metadata = {} if self.carried is None else {OBJECT_KEY: self.carried}
        return self._file(path, list(self._storages), metadata)

    def shard(self, path: str, names: list[str]) -> PlannedFile:
        return self._file(path, names, {})

    def _file(self, path: str, names: list[str], metadata: dict[str, str]) -> PlannedFile:
        metadata |= self.selection.metadata | {"format": "pt"}  # what transformers asks for
        held = set(names)
        aliases = {name: holder for name, holder in self._aliases.items() if holder in held}
        if aliases:
            metadata[ALIASES_KEY] = json.dumps(aliases, ensure_ascii=False, sort_keys=True)
        head, order = build_header(
            ((name, self._dtypes[name], self.tensors[name].shape) for name in names), metadata
        )
        starts = []
        at = len(head)
        for name in order:
            starts.append(at)
            at += self._nbytes[name]
        return PlannedFile(path, head, [self._storages[name] for name in order], starts, at)


# -- zip -----------------------------------------------------------------------------------------


class _ZipPlanner(_Planner):
    """A pickle and the storages, with all views and ties as they are."""

    format = "zip"

    def __init__(self, checkpoint: Checkpoint, selection: Selection, dtype_of: DtypeOf) -> None:
        super().__init__(checkpoint, selection, dtype_of)
        self._casts = StorageCasts(self.tensors, self.inner, self.dtype_of)
        self.lost += [f"{key!r} in the metadata of the file" for key in selection.metadata]
        holders: dict[Any, str] = {}
        for name, tensor in self.tensors.items():
            spec = self._casts.apply(tensor.spec)
            holder = holders.setdefault(layout(spec), name) if spec.numel else name
            nbytes = spec.numel * DTYPES[spec.torch_dtype].itemsize if holder == name else 0
            self.rows.append(
                PlannedTensor(
                    name, tensor.shape, tensor.torch_dtype, spec.torch_dtype, nbytes,
                    None if holder == name else holder, selection.sources[name],
                )
            )  # fmt: skip
        self.rows += [
            PlannedTensor(
                name, held.shape, held.torch_dtype, held.torch_dtype, held.nbytes,
                None, selection.sources[name],
            )
            for name, held in self.others.items()
        ]  # fmt: skip

    def groups(self) -> list[tuple[int, list[str]]]:
        """Return the tensors by their storages, which are not cut apart."""
        groups: dict[int, tuple[int, list[str]]] = {}
        for name, tensor in self.tensors.items():
            storage = self._casts.apply(tensor.spec).storage
            groups.setdefault(id(storage), (storage.nbytes, []))[1].append(name)
        return [*groups.values(), *((held.nbytes, [name]) for name, held in self.others.items())]

    def one_file(self, path: str) -> PlannedFile:
        if self.selection.is_flat:
            around, original = self.selection.around, self.selection.original
            self.lost += lost_values(self.checkpoint, around, original)
        return self._file(path, self.selection.root)

    def shard(self, path: str, names: list[str]) -> PlannedFile:
        return self._file(path, {name: self.selection.tensors[name] for name in names})

    def _file(self, path: str, root: Any) -> PlannedFile:
        keys = StorageKeys()
        try:
            structure = Structure(
                root, keys, place_arrays, spec_of=self._casts.apply,
                limits=self.checkpoint.limits.or_default(),
            )  # fmt: skip
        except (TypeError, ValueError) as error:
            # The object came from a file, so what cannot be written is the file's fault.
            raise UnsupportedError(f"the object in it cannot be written again: {error}") from None
        self.refused += structure.refused
        storages = keys.storages()
        around = head_records(structure.pickle)
        sizes = [(len(name), len(data)) for name, data in around]
        sizes += [(len(f"data/{key}"), storage.nbytes) for key, storage in enumerate(storages)]
        starts, nbytes = measure(archive_name(path), sizes)
        return PlannedFile(path, structure.pickle, storages, starts[len(around) :], nbytes)
