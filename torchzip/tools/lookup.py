"""What a checkpoint has under a name: a tensor, a part of one, or anything else."""

from __future__ import annotations

import contextlib
import difflib
from typing import Any

from torchzip.checkpoint.lazy import Checkpoint
from torchzip.checkpoint.plain_values import flat_values
from torchzip.checkpoint.quantities import count_text
from torchzip.checkpoint.walk import children
from torchzip.container.safetensors import parse_ties
from torchzip.errors import LimitError, TensorNotFoundError, shown
from torchzip.types import OtherTensor, Parameter, Storage

#: Names that a wrong one is compared with.
_MOST_NAMES = 10_000


def named_tensors(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return the tensors of a checkpoint by name, also those that are in it under another name."""
    tensors = dict(checkpoint.items())
    if checkpoint.container.lists_ties:
        ties = parse_ties(checkpoint.metadata, tensors)
        tensors |= {name: tensors[kept] for name, kept in ties.items()}
    return tensors


def look_up(checkpoint: Checkpoint, name: str) -> Any:
    """Return what a name or a path of keys leads to.

    The names of tensors come first, then their parts (``w.indices`` of a sparse tensor,
    ``w.crow_indices`` is ``w.indices.0``), then the keys from the root, joined by dots. A bare
    storage is its data.

    Raises
    ------
    TensorNotFoundError
        If there is nothing; the message has names that are near.
    FormatError
        If two tensors have this name.
    """
    if name in checkpoint:
        return checkpoint[name]
    for found in (_part(checkpoint, name), _below(checkpoint.root, name)):
        if found is not None:
            return found[0]
    known = [*checkpoint]
    with contextlib.suppress(LimitError):
        known += flat_values(checkpoint.root, checkpoint.limits)
    near = difflib.get_close_matches(name, known[:_MOST_NAMES], 3)
    hint = f"; did you mean {' or '.join(map(shown, near))}?" if near else ""
    count = count_text(len(checkpoint), "tensor")
    raise TensorNotFoundError(
        f"no tensor or value is called {shown(name)}, of {count}{hint}",
        path=checkpoint.path,
    )


def _part(checkpoint: Checkpoint, name: str) -> tuple[Any] | None:
    """Return the part of a tensor that is not dense, in a tuple."""
    pieces = name.split(".")
    for count in (1, 2):
        owner, path = ".".join(pieces[:-count]), pieces[-count:]
        if len(pieces) < count or owner not in checkpoint:
            continue
        tensor = checkpoint[owner]
        if not isinstance(tensor, OtherTensor) or path[0] not in tensor.PARTS:
            continue
        part = getattr(tensor, path[0])
        if count == 2:
            items = part if isinstance(part, tuple) else ()
            part = dict(zip(map(str, range(len(items))), items, strict=True)).get(path[1])
        if part is not None:
            return (part,)
    return None


def _below(root: Any, name: str) -> tuple[Any] | None:
    """Return what a path of keys leads to, in a tuple; keys may have dots of their own."""
    if not name:
        return (root,)
    todo = [(root, name)]
    seen = set()
    while todo:
        container, rest = todo.pop()
        if (id(container), rest) in seen:
            continue
        seen.add((id(container), rest))
        for key, _, child in children(container):
            if key == rest:
                return (child.data if isinstance(child, Parameter | Storage) else child,)
            if rest.startswith(f"{key}."):
                todo.append((child, rest[len(key) + 1 :]))
    return None
