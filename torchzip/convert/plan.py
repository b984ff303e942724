"""What a conversion will do, decided before anything is written.

`make_plan` is pure: from an open checkpoint and the rules it works out the name, dtype and bytes
of every tensor, the structure that goes around them, and what the target cannot carry.
It reads no tensor data.
"""

from __future__ import annotations

import fnmatch
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from torchzip.checkpoint.lazy import Checkpoint, LazyTensor
from torchzip.checkpoint.names import children
from torchzip.checkpoint.structure import Structure
from torchzip.container.safetensors import ALIASES_KEY, build_header
from torchzip.dtypes import DTYPES
from torchzip.errors import UnsupportedError
from torchzip.tensors.casts import CastStorage, is_castable
from torchzip.tensors.memory import place_arrays
from torchzip.tensors.numpy_dtypes import parse_torch_dtype
from torchzip.tensors.packing import ElementStorage
from torchzip.tensors.rebuild import BareStorage
from torchzip.tensors.reduce import StorageKeys
from torchzip.tensors.specs import TensorSpec, contiguous_stride
from torchzip.tensors.storage import TensorStorage
from torchzip.types import ForeignObject, NestedTensor, OtherTensor, Parameter

#: One dtype for all floating tensors, or (glob, dtype) rules of which the first match wins.
DtypeRules = str | Sequence[tuple[str, str]] | None

ZIP_SUFFIXES = (".pt", ".pth", ".bin", ".ckpt")

#: Sources of which a zip gets the tensors by their names: the object around them is none, or is
#: made of classes that exist in its own archive only, and torch.load could not make it.
_STATE_DICTS_ONLY = ("safetensors", "sharded", "torchscript")


@dataclass(frozen=True, slots=True)
class PlannedTensor:
    """One tensor of the output. ``nbytes`` is its data there; an alias takes none.

    A nested tensor has None in its shape where its sizes differ.
    """

    name: str
    shape: tuple[int | None, ...]
    from_dtype: str
    to_dtype: str
    nbytes: int
    alias_of: str | None = None


@dataclass(slots=True)
class Plan:
    """What will be written. ``lost`` names what the target cannot hold, with the reason."""

    format: str
    tensors: list[PlannedTensor]
    lost: list[str] = field(default_factory=list)
    #: For a zip: the pickle. For safetensors: everything before the data.
    head: bytes = b""
    #: The storages in the order in which they are written.
    storages: list[TensorStorage] = field(default_factory=list)
    #: What torch's default loader will refuse: (path, reason).
    refused: list[tuple[str, str]] = field(default_factory=list)

    @property
    def nbytes(self) -> int:
        """Bytes of data that will be written, without what is around them."""
        return len(self.head) + sum(storage.nbytes for storage in self.storages)


def target_format(path: str | os.PathLike[str]) -> str:
    """Return what a destination's suffix asks for: ``"zip"`` or ``"safetensors"``.

    Raises
    ------
    ValueError
        If it asks for neither.
    """
    suffix = os.path.splitext(os.fspath(path))[1].lower()
    if suffix == ".safetensors":
        return "safetensors"
    if suffix in ZIP_SUFFIXES:
        return "zip"
    raise ValueError(
        f"{os.fspath(path)}: the suffix says what to write, and {suffix or 'none'} is not one of "
        f"{' '.join(ZIP_SUFFIXES)} .safetensors"
    )


def make_plan(checkpoint: Checkpoint, format: str, *, dtype: DtypeRules = None) -> Plan:
    """Return the plan for writing a checkpoint as ``format`` (``"zip"`` or ``"safetensors"``).

    Raises
    ------
    ValueError
        If a rule names no torch dtype.
    UnsupportedError
        If the target has no way to hold a tensor.
    """
    rule = _dtype_rule(dtype)
    named = {name: checkpoint[name] for name in checkpoint}
    others = {name: held for name, held in named.items() if isinstance(held, OtherTensor)}
    tensors = {name: held for name, held in named.items() if name not in others}
    if checkpoint.format in ("safetensors", "sharded"):
        tensors |= _restored_aliases(checkpoint, tensors)
    if format == "safetensors":
        return _plan_safetensors(checkpoint, tensors, others, rule)
    return _plan_zip(checkpoint, tensors, others, rule)


def _dtype_rule(dtype: DtypeRules) -> Callable[[str, str], str]:
    """Return the function (name, dtype) -> dtype of the output."""
    rules = [("*", dtype)] if isinstance(dtype, str) else list(dtype or ())
    parsed = [(glob, parse_torch_dtype(target)) for glob, target in rules]
    for _, target in parsed:
        if not is_castable(target):
            raise ValueError(f"tensors are cast to floating dtypes only, not to {target}")

    def target_of(name: str, torch_dtype: str) -> str:
        if is_castable(torch_dtype):
            for glob, target in parsed:
                if fnmatch.fnmatchcase(name, glob):
                    return target
        return torch_dtype

    return target_of


def _restored_aliases(
    checkpoint: Checkpoint, tensors: dict[str, LazyTensor]
) -> dict[str, LazyTensor]:
    """Return the tied tensors that a safetensors file lists in its metadata."""
    try:
        aliases = json.loads(checkpoint.metadata.get(ALIASES_KEY, "{}"))
    except ValueError:
        return {}
    if not isinstance(aliases, dict):
        return {}
    return {
        name: tensors[kept]
        for name, kept in aliases.items()
        if isinstance(kept, str) and kept in tensors and name not in tensors
    }


# -- safetensors -------------------------------------------------------------------------------


def _plan_safetensors(
    checkpoint: Checkpoint,
    tensors: dict[str, LazyTensor],
    others: dict[str, OtherTensor],
    rule: Callable[[str, str], str],
) -> Plan:
    inner = _inner_tensors(checkpoint, others)
    kept: dict[Any, str] = {}
    aliases: dict[str, str] = {}
    planned: list[PlannedTensor] = []
    sources: dict[str, TensorStorage] = {}
    for name, tensor in tensors.items():
        spec = tensor.spec
        target = spec.torch_dtype if id(spec) in inner else rule(name, spec.torch_dtype)
        same = (
            id(spec.storage), spec.storage_offset, spec.shape, spec.stride, spec.torch_dtype,
            spec.conj, spec.neg, target,
        )  # fmt: skip
        holder = kept.get(same) if spec.numel else None
        nbytes = 0 if holder else spec.numel * DTYPES[target].itemsize
        planned.append(PlannedTensor(name, spec.shape, spec.torch_dtype, target, nbytes, holder))
        if holder is not None:
            aliases[name] = holder
            continue
        kept[same] = name
        elements = ElementStorage(spec)
        sources[name] = (
            elements
            if target == spec.torch_dtype
            else CastStorage(elements, spec.torch_dtype, target)
        )
    metadata = {"format": "pt"}  # what transformers asks for
    if aliases:
        metadata[ALIASES_KEY] = json.dumps(aliases, ensure_ascii=False, sort_keys=True)
    head, order = build_header(
        (
            (row.name, row.to_dtype, tensors[row.name].shape)
            for row in planned
            if row.alias_of is None
        ),
        metadata,
    )
    lost = [
        f"{name or 'the object itself'}: a {held.kind.replace('_', ' ')} tensor; safetensors holds "
        "dense ones only"
        for name, held in others.items()
    ]
    lost += [*_lost_values(checkpoint, tensors, others), *_lost_ties(tensors, sources)]
    return Plan("safetensors", planned, lost, head, [sources[name] for name in order])


def _lost_values(
    checkpoint: Checkpoint, tensors: dict[str, LazyTensor], others: dict[str, OtherTensor]
) -> Iterator[str]:
    """Yield what is in the object and is no tensor with a name: only those can be written."""
    if checkpoint.format == "safetensors":
        return
    named = {_layout(tensor.spec) for tensor in tensors.values()}
    for index in range(len(checkpoint.constants)):
        yield f"constants.{index}: a constant of the code"
    named_others = {id(held) for held in others.values()}
    for name in checkpoint.others:
        yield f"{name or 'the object itself'}: the class of this tensor; its inner tensors are kept"
    foreign = {id(value) for value in checkpoint.others.values()}
    seen: set[int] = set()
    todo: list[tuple[str, Any]] = [("", checkpoint.root)]
    while todo:
        path, value = todo.pop()
        held = value.data if isinstance(value, Parameter) else value
        if (isinstance(held, LazyTensor) and _layout(held.spec) not in named) or (
            isinstance(held, OtherTensor) and id(held) not in named_others
        ):
            yield f"{path}: a tensor that the state dict does not name"
        if isinstance(value, LazyTensor | OtherTensor | Parameter) or id(value) in foreign:
            continue
        if isinstance(value, dict | list | tuple) or (
            isinstance(value, ForeignObject) and value.how != "name"
        ):
            if id(value) in seen:
                continue
            seen.add(id(value))
            below = [
                (f"{path}.{name}" if path else name, child) for name, _, child in children(value)
            ]
            todo += reversed(below)
            attributes = getattr(value, "__dict__", None)
            if attributes:
                todo += [(f"{path or 'the root'} ({key})", None) for key in attributes]
        else:
            yield path or f"the object itself, a {type(value).__name__}"


def _lost_ties(tensors: dict[str, LazyTensor], sources: dict[str, TensorStorage]) -> list[str]:
    """Name tensors that share memory in part, and have copies of their own afterwards."""
    by_storage: dict[int, list[str]] = {}
    for name in sources:
        spec = tensors[name].spec
        if spec.numel:
            by_storage.setdefault(id(spec.storage), []).append(name)
    return [
        f"{', '.join(names[:5])}{', ...' if len(names) > 5 else ''}: views of one storage, "
        "which become tensors of their own"
        for names in by_storage.values()
        if len(names) > 1
    ]


# -- zip -----------------------------------------------------------------------------------------


def _plan_zip(
    checkpoint: Checkpoint,
    tensors: dict[str, LazyTensor],
    others: dict[str, OtherTensor],
    rule: Callable[[str, str], str],
) -> Plan:
    casts = _Casts(tensors, _inner_tensors(checkpoint, others), rule)
    root = checkpoint.root
    lost: list[str] = []
    if checkpoint.format in _STATE_DICTS_ONLY:
        root = {name: checkpoint[name] for name in checkpoint} | tensors
        lost += _lost_values(checkpoint, tensors, others)
    keys = StorageKeys()
    try:
        structure = Structure(root, keys, place_arrays, spec_of=casts.apply)
    except (TypeError, ValueError) as error:
        # The object came from a file, so what cannot be written is the file's fault.
        raise UnsupportedError(f"the object in it cannot be written again: {error}") from None
    planned = []
    seen: dict[int, str] = {}
    for name, tensor in tensors.items():
        target = casts.apply(tensor.spec)
        holder = seen.setdefault(id(target.storage), name)
        planned.append(
            PlannedTensor(
                name, tensor.shape, tensor.torch_dtype, target.torch_dtype,
                tensor.spec.numel * DTYPES[target.torch_dtype].itemsize,
                None if holder == name else holder,
            )
        )  # fmt: skip
    planned += [
        PlannedTensor(name, held.shape, held.torch_dtype, held.torch_dtype, held.nbytes)
        for name, held in others.items()
    ]
    return Plan("zip", planned, lost, structure.pickle, keys.storages(), structure.refused)


class _Casts:
    """Which storages are cast, and to what.

    A storage whose tensors all have one dtype and one target is cast as a whole, so that
    views and ties stay as they are. One whose tensors part ways gives each a storage of
    its own. Tensors inside of others (scales, indices), ``inner`` by the id of their spec, stay
    as they are.
    """

    def __init__(
        self,
        tensors: dict[str, LazyTensor],
        inner: dict[int, TensorSpec | BareStorage],
        rule: Callable[[str, str], str],
    ) -> None:
        self._inner = inner
        self._whole: dict[int, tuple[TensorStorage, str, TensorStorage]] = {}
        self._single: dict[Any, tuple[TensorSpec, TensorSpec]] = {}
        wanted: dict[int, set[tuple[str, str]]] = {}
        storages: dict[int, TensorStorage] = {}
        for name, tensor in tensors.items():
            spec = tensor.spec
            pair = (spec.torch_dtype, rule(name, spec.torch_dtype))
            wanted.setdefault(id(spec.storage), set()).add(pair)
            storages[id(spec.storage)] = spec.storage
        pinned = {id(held.storage) for held in inner.values()}
        for own, pairs in wanted.items():
            if len(pairs) == 1 and own not in pinned:
                ((source, target),) = pairs
                if source != target:
                    storage = storages[own]
                    cast = CastStorage(storage, source, target)
                    self._whole[own] = (storage, target, cast)
        for name, tensor in tensors.items():
            spec = tensor.spec
            if id(spec.storage) not in self._whole and id(spec) not in inner:
                target = rule(name, spec.torch_dtype)
                if target != spec.torch_dtype:
                    elements = ElementStorage(spec)
                    alone = spec.replace(
                        torch_dtype=target,
                        storage=CastStorage(elements, spec.torch_dtype, target),
                        storage_offset=0, stride=contiguous_stride(spec.shape), neg=False,
                    )  # fmt: skip
                    self._single.setdefault(_layout(spec), (spec, alone))

    def apply(self, spec: TensorSpec) -> TensorSpec:
        """Return a tensor's spec in the output."""
        if id(spec) in self._inner:
            return spec
        whole = self._whole.get(id(spec.storage))
        if whole is not None:
            return spec.replace(torch_dtype=whole[1], storage=whole[2])
        single = self._single.get(_layout(spec))
        if single is not None:
            alone = single[1]
            return spec.replace(
                torch_dtype=alone.torch_dtype, storage=alone.storage, storage_offset=0,
                stride=alone.stride, neg=False,
            )  # fmt: skip
        return spec


def _layout(spec: TensorSpec) -> Any:
    return (
        id(spec.storage), spec.torch_dtype, spec.shape, spec.stride, spec.storage_offset, spec.neg
    )  # fmt: skip


def _inner_tensors(
    checkpoint: Checkpoint, others: dict[str, OtherTensor]
) -> dict[int, TensorSpec | BareStorage]:
    """Return the specs of all tensors that others are made of, and their bare storages, by id."""
    found: dict[int, TensorSpec | BareStorage] = {}
    seen: set[int] = set()
    todo: list[Any] = [*others.values(), *checkpoint.others.values()]
    while todo:
        value = todo.pop()
        if isinstance(value, Parameter):
            value = value.data
        if isinstance(value, LazyTensor):
            found[id(value.spec)] = value.spec
            todo.append(value.spec.attributes)
        elif isinstance(value, BareStorage):
            found[id(value)] = value
        elif id(value) not in seen:
            seen.add(id(value))
            if isinstance(value, OtherTensor):
                todo += [*value.parts, value.attributes]
                todo.append(value.constructor if isinstance(value, NestedTensor) else None)
            else:
                todo += [child for _, _, child in children(value)]
    return found
