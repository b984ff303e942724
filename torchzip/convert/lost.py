"""What a target cannot hold, in words."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torchzip.checkpoint.lazy import Checkpoint
from torchzip.checkpoint.lazy_tensor import LazyTensor, data_of
from torchzip.checkpoint.walk import children
from torchzip.convert.casting import layout
from torchzip.convert.selection import Held
from torchzip.tensors.specs import TensorSpec
from torchzip.tensors.storage import TensorStorage
from torchzip.types import ForeignObject, OtherTensor, Parameter


def lost_values(checkpoint: Checkpoint, root: Any, original: Mapping[str, Held]) -> Iterator[str]:
    """Yield what is in an object and is no tensor with a name, where only those are written.

    ``original`` are all tensors that had one, wanted or not.
    """
    named = {layout(held.spec) for held in original.values() if isinstance(held, LazyTensor)}
    named_others = {id(held) for held in original.values() if isinstance(held, OtherTensor)}
    yield from lost_besides(checkpoint)
    if isinstance(root, ForeignObject):
        yield f"the object itself, a {root.module}.{root.name}; its tensors are kept"
    foreign = {id(value) for value in checkpoint.others.values()}
    seen: set[int] = set()
    todo: list[tuple[str, Any]] = [("", root)]
    while todo:
        path, value = todo.pop()
        held = data_of(value)
        if (isinstance(held, LazyTensor) and layout(held.spec) not in named) or (
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


def lost_besides(checkpoint: Checkpoint) -> Iterator[str]:
    """Yield what is lost whether the object around the tensors can be carried or not."""
    for index in range(len(checkpoint.constants)):
        yield f"constants.{index}: a constant of the code"
    for name in checkpoint.others:
        yield f"{name or 'the object itself'}: the class of this tensor; its inner tensors are kept"


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
