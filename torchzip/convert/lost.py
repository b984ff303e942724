"""What a target cannot hold, in words."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from torchzip.checkpoint.lazy import Checkpoint
from torchzip.checkpoint.lazy_tensor import LazyTensor, data_of
from torchzip.checkpoint.names import leading_to_leaves
from torchzip.checkpoint.walk import BUILT_IN, Label, attributes, children, holders, reach, ways
from torchzip.convert.casting import DtypeOf
from torchzip.convert.selection import Held, Selection
from torchzip.formats.base import Child
from torchzip.tensors.specs import TensorSpec, layout
from torchzip.tensors.storage import TensorStorage
from torchzip.types import ForeignObject, OtherTensor, Parameter, QuantizedTensor


def lost_values(
    checkpoint: Checkpoint, selection: Selection, whole: Iterable[Held] = ()
) -> Iterator[str]:
    """Yield what is in an object and is not a tensor with a name, where only those are written.

    All tensors that had a name are left aside, wanted or not; those in ``whole`` are written with
    their attributes. A list or dict of many values that holds numbers and strings and nothing else,
    however deep, is one line.
    """
    root = selection.around
    named = {_identity(held) for each in (selection.original, selection.tensors)
             for held in each.values()}  # fmt: skip
    arrays = {id(array) for array in checkpoint.arrays.values()}
    yield from lost_besides(checkpoint, selection)
    if isinstance(root, ForeignObject):
        yield f"the object itself, a {root.module}.{root.name}; its tensors are kept"
    kept = {id(each) for each in (*whole, *selection.unwrapped)}
    odd = leading_to_leaves(root, lambda value: True).leading  # to anything else

    def is_many(value: Any) -> bool:
        return type(value) in BUILT_IN and len(value) >= _MANY and id(value) not in odd

    def parts_of(value: Any) -> Iterable[Child]:
        return () if is_many(value) or id(data_of(value)) in kept else _lost_parts(value)

    for way, value in ways(root, parts_of):
        path = str(way or "")
        held = data_of(value)
        if isinstance(held, LazyTensor | OtherTensor):
            if _identity(held) not in named:
                yield f"{path}: a tensor that the state dict does not name"
        elif way is not None and isinstance(way.key, Label):
            yield path if way.before is not None else f"the root {path}"
        elif is_many(value):
            yield f"{path or 'the object itself'} ({len(value):,} items)"
        elif not _has_parts(value) and id(value) not in arrays:
            yield path or f"the object itself, a {type(value).__name__}"


#: Values from which on plain ones are counted and not named.
_MANY = 100


def _identity(held: Held) -> Any:
    """Return what the same tensor has in common wherever it stands."""
    return layout(held.spec) if isinstance(held, LazyTensor) else id(held)


def _has_parts(value: Any) -> bool:
    return isinstance(value, dict | list | tuple | Parameter) or (
        isinstance(value, ForeignObject) and value.how != "name"
    )


def _lost_parts(value: Any) -> Iterator[Child]:
    """Yield what has lines of its own: what hangs on a value has one, whatever is in it."""
    if _has_parts(value) or isinstance(value, LazyTensor | OtherTensor):
        yield from children(value)
        yield from attributes(value)


def lost_besides(checkpoint: Checkpoint, selection: Selection) -> Iterator[str]:
    """Yield what is lost whether the object around the tensors can be carried or not."""
    for index in range(len(checkpoint.constants)):
        yield f"constants.{index}: a constant of the code"
    if not selection.subclassed:
        return
    named = {id(held) for held in selection.original.values()}
    for name, value in selection.subclassed.items():
        # Said of what was looked at: a tensor of a class of its own may have none inside.
        inside = [each for each in reach(value) if isinstance(each, LazyTensor | OtherTensor)]
        kept = sum(id(each) in named for each in inside)
        if kept == len(inside):
            fate = "its inner tensors are kept" if kept else "it has no inner tensor to keep"
        else:
            fate = f"{kept:,} of its {len(inside):,} inner tensors are kept"
        yield f"{name or 'the object itself'}: the class of this tensor; {fate}"


def lost_metadata(keys: Iterable[str]) -> list[str]:
    """Name what a source has in its metadata, for a target without any."""
    return [f"{key!r} in the metadata of the file" for key in keys]


def lost_casts(root: Any, cast: Iterable[LazyTensor], dtype_of: DtypeOf) -> Iterator[str]:
    """Name tensors that keep their dtype though a rule gives them another.

    Those in ``cast`` have names of their own. Others are parts of tensors that are not dense,
    attributes, keys of dicts and items of sets. The parts of a quantized tensor are not weights.
    """
    named = {id(tensor.spec) for tensor in cast}

    def parts_of(value: Any) -> Iterable[Child]:
        return () if isinstance(value, QuantizedTensor) else holders(value)

    for way, value in ways(root, parts_of):
        if isinstance(value, LazyTensor) and id(value.spec) not in named:
            dtype = value.torch_dtype
            if dtype_of(str(way or ""), dtype) != dtype:
                yield f"{way}: it stays {dtype}; only tensors under names of their own are cast"


def lost_ties(tensors: dict[str, LazyTensor], sources: dict[str, TensorStorage]) -> list[str]:
    """Name tensors that share memory in part, and have copies of their own afterwards.

    An expanded one shares it with itself.
    """
    by_storage: dict[int, list[str]] = {}
    for name in sources:
        spec = tensors[name].spec
        if spec.numel:
            by_storage.setdefault(id(spec.storage), []).append(name)
    expanded = [
        f"{name}: elements that share memory, which become {tensors[name].spec.numel:,} apart"
        for name in sources
        if _is_expanded(tensors[name].spec)
    ]
    return expanded + [
        f"{', '.join(names[:5])}{', ...' if len(names) > 5 else ''}: views of one storage, "
        "which become tensors of their own"
        for names in by_storage.values()
        if len(names) > 1
    ]


def _is_expanded(spec: TensorSpec) -> bool:
    """Return whether elements of a tensor can be one in memory: expanded, or windows of a run."""
    reach = 0
    for step, size in sorted(zip(spec.stride, spec.shape, strict=True)):
        if size > 1:
            if step <= reach:
                return spec.numel > 0
            reach += step * (size - 1)
    return False
