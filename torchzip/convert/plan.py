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

from torchzip.checkpoint.lazy import Checkpoint
from torchzip.checkpoint.lazy_tensor import LazyTensor
from torchzip.checkpoint.saving import head_records
from torchzip.checkpoint.structure import Structure
from torchzip.container.safetensors import ALIASES_KEY, build_header, data_order
from torchzip.container.shard_index import build_index
from torchzip.container.zip_writer import archive_name, measure
from torchzip.convert.carried import OBJECT_KEY, carry
from torchzip.convert.carried_text import carry_order
from torchzip.convert.casting import DtypeOf, StorageCasts, inner_tensors, layout
from torchzip.convert.lost import lost_besides, lost_casts, lost_ties, lost_values
from torchzip.convert.mapped import MappedTensors
from torchzip.convert.quantized import codes, sentence
from torchzip.convert.rules import Rules
from torchzip.convert.selection import Selection, select
from torchzip.convert.targets import Target
from torchzip.convert.tied_names import preferred
from torchzip.dtypes import DTYPES
from torchzip.errors import UnsupportedError, listed
from torchzip.tensors.casts import CastStorage
from torchzip.tensors.memory import place_arrays
from torchzip.tensors.numpy_values import module_among
from torchzip.tensors.packing import ElementStorage
from torchzip.tensors.reduce import StorageKeys
from torchzip.tensors.specs import TensorSpec
from torchzip.tensors.storage import TensorStorage
from torchzip.types import OtherTensor

#: Bytes of an array of numpy up to which its values are in the text that carries the object.
_MOST_IN_TEXT = 1 << 16


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
    #: The tensors of a storage that is cast, as names and what the source has under them.
    cast: dict[int, list[tuple[str, TensorSpec]]]


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
    #: Tensors that are no weights by themselves -> a scale that belongs to each.
    codes: dict[str, str] = field(default_factory=dict)
    #: The path and the bytes of the index of shards.
    index: tuple[str, bytes] | None = None

    @property
    def warnings(self) -> list[str]:
        """What is to be said before anything is written."""
        return self.unused + ([sentence(self.codes)] if self.codes else [])

    @property
    def tied(self) -> dict[str, str]:
        """Names that the files lack -> the name of the same tensor, which has the data."""
        if self.format != "safetensors":
            return {}
        return {row.name: row.alias_of for row in self.tensors if row.alias_of is not None}

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
        return rules.dtype_of(selection.sources.get(name, name), torch_dtype)

    make = _SafetensorsPlanner if target.format == "safetensors" else _ZipPlanner
    plan = make(checkpoint, selection, dtype_of).plan(target, max_shard_nbytes)
    plan.unused = rules.unused()
    plan.codes = _codes(selection)
    return plan


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

    def carry(self, in_file: list[str]) -> None:
        """Put the object around the tensors into a text, and say what is not in it.

        ``in_file`` are the names as a reader of the file or files gets them.
        """
        checkpoint, selection = self.checkpoint, self.selection
        # By identity first: tensors of one layout may have got different dtypes.
        named: dict[Any, str] = {}
        for name, tensor in reversed(self.tensors.items()):
            named[layout(tensor.spec)] = named[id(tensor.spec)] = self.holder_of(name)
        classes = {id(value) for value in checkpoint.others.values()}
        arrays = {
            id(array): self.holder_of(name)
            for name, old in selection.sources.items()
            if (array := selection.arrays.get(old)) is not None
            and not self._is_in_text(name, array)
        }
        if selection.is_flat:
            made = carry_order(list(self.tensors), in_file)
        else:
            made = carry(
                selection.root,
                lambda tensor: named.get(id(tensor.spec)) or named.get(layout(tensor.spec)),
                names={name: name for name in self.tensors},
                is_listed=lambda value: isinstance(value, OtherTensor) or id(value) in classes,
                name_of_array=lambda array: arrays.get(id(array)),
                in_file=in_file,
            )
        self.carried = made.text
        self.lost += made.lost
        if arrays:
            self.lost.append(
                f"{listed([*arrays.values()], 3)}: arrays of numpy, which become tensors"
            )
        if made.text is None or selection.is_flat:
            self.lost += lost_values(checkpoint, selection.around, selection.original)
        else:
            self.lost += lost_besides(checkpoint, selection.original)

    def _is_in_text(self, name: str, array: Any) -> bool:
        """Return whether an array of numpy comes back as one: it is small, and not cast."""
        tensor = self.selection.tensors[name]
        dtype = tensor.torch_dtype
        return array.nbytes <= _MOST_IN_TEXT and self.dtype_of(name, dtype) == dtype

    def plan(self, target: Target, max_shard_nbytes: int | None) -> Plan:
        groups = self.groups()
        total = sum(nbytes for nbytes, _ in groups)
        plan = Plan(self.format, [], self.rows, self.lost, self.refused)
        if not target.has_index and (max_shard_nbytes is None or total <= max_shard_nbytes):
            plan.files = [self.one_file(target.path)]
            return plan
        tied = plan.tied
        self.carry([name for name in self.tensors if name not in tied] + sorted(tied))
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
        dtypes: dict[str, str] = {}
        tied: dict[Any, list[str]] = {}
        for name, tensor in self.tensors.items():
            spec = tensor.spec
            same_dtype = id(spec) in self.inner
            dtype = spec.torch_dtype if same_dtype else self.dtype_of(name, spec.torch_dtype)
            dtypes[name] = dtype
            if spec.numel:
                tied.setdefault((layout(spec), dtype), []).append(name)
        holders = {name: preferred(names) for names in tied.values() for name in names}
        for name, tensor in self.tensors.items():
            spec, dtype, holder = tensor.spec, dtypes[name], holders.get(name, name)
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
        order = sorted(self._storages, key=lambda name: data_order(name, self._dtypes[name]))
        self.carry(order + sorted(self._aliases))
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
        storages = [self._storages[name] for name in order]
        cast = {
            key: [(name, self.tensors[name].spec)]
            for key, name in enumerate(order)
            if isinstance(storages[key], CastStorage)
        }
        return PlannedFile(path, head, storages, starts, at, cast)


# -- zip -----------------------------------------------------------------------------------------


class _ZipPlanner(_Planner):
    """A pickle and the storages, with all views and ties as they are."""

    format = "zip"

    def __init__(self, checkpoint: Checkpoint, selection: Selection, dtype_of: DtypeOf) -> None:
        super().__init__(checkpoint, selection, dtype_of)
        self._put_cast_arrays()
        self._casts = StorageCasts(self.tensors, self.inner, self.dtype_of)
        self.lost += [f"{key!r} in the metadata of the file" for key in selection.metadata]
        self._cast_tensors: dict[int, list[tuple[str, TensorSpec]]] = {}
        holders: dict[Any, str] = {}
        for name, tensor in self.tensors.items():
            spec = self._casts.apply(tensor.spec)
            holder = holders.setdefault(layout(spec), name) if spec.numel else name
            if holder == name and isinstance(spec.storage, CastStorage):
                tensors = self._cast_tensors.setdefault(id(spec.storage), [])
                tensors.append((name, tensor.spec))
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
        if self.others or any(row.from_dtype != row.to_dtype for row in self.rows):
            self.lost += lost_casts(selection.root, self.tensors.values(), dtype_of)

    def _put_cast_arrays(self) -> None:
        """Put tensors where arrays of numpy get another dtype; the others stay what they are."""
        cast = {
            name: tensor
            for name, tensor in self.tensors.items()
            if self.selection.sources[name] in self.selection.arrays
            and self.dtype_of(name, tensor.torch_dtype) != tensor.torch_dtype
        }
        for name in self.selection.put(cast):
            self.lost.append(f"{name}: another dtype; it is an array of numpy inside of an object")
            self._bound[name] = self.tensors[name].torch_dtype

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
            self.lost += lost_values(
                self.checkpoint, around, original, self.selection.tensors.values()
            )
        return self._file(path, self.selection.root)

    def shard(self, path: str, names: list[str]) -> PlannedFile:
        return self._file(path, {name: self.selection.tensors[name] for name in names})

    def _file(self, path: str, root: Any) -> PlannedFile:
        keys = StorageKeys()
        try:
            structure = Structure(
                root, keys, place_arrays, spec_of=self._casts.apply,
                numpy_module=module_among(self.checkpoint.globals),
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
        cast = {
            key: self._cast_tensors[id(storage)]
            for key, storage in enumerate(storages)
            if id(storage) in self._cast_tensors
        }
        return PlannedFile(path, structure.pickle, storages, starts[len(around) :], nbytes, cast)
