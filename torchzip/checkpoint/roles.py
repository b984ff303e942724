"""What tensors are there for, told by structure: optimizer state, and copies that look like an EMA.

An optimizer's ``state_dict()`` is a dict with "state" and "param_groups", wherever it stands. An
EMA copy is a set of tensors under a prefix such as ``ema`` whose names go on as those of another
set do, with the same shapes and dtypes. No value is looked at, so a copy "looks like" one.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from torchzip.checkpoint.module_tree import Module, module_tree
from torchzip.checkpoint.outline import Outline, TensorRow
from torchzip.checkpoint.walk import children, is_plain, ways
from torchzip.formats.base import Child

#: Steps of names under which averaged weights are kept.
EMA = re.compile(r"(?i)(?:^|[^a-z])(?:ema|swa|averaged?|avg|shadow)(?:[^a-z]|$)|ema_?model")
#: Tensors from which on a set counts as a copy.
_LEAST_TENSORS = 2
#: Sets that are looked at, each beside all other names.
_MOST_TRIED = 64


@dataclass(frozen=True, slots=True)
class Role:
    """Tensors with one purpose: all whose names begin with ``prefix`` and a dot.

    ``kind`` is "optimizer state" or "EMA copy"; ``of`` is the prefix of what an EMA copy looks
    like.
    """

    kind: str
    prefix: str
    names: tuple[str, ...]
    of: str | None = None


def find_roles(root: Any, outline: Outline) -> list[Role]:
    """Return the optimizers and the EMA copies in an object, given its outline.

    >>> import io, numpy as np, torchzip
    >>> from torchzip.checkpoint.outline import outline
    >>> buffer = io.BytesIO()
    >>> slots = {0: {"exp_avg": np.zeros(2)}}
    >>> torchzip.save({"opt": {"state": slots, "param_groups": []}, "w": np.ones(2)}, buffer)
    >>> start = buffer.seek(0)
    >>> checkpoint = torchzip.lazy_load(buffer)
    >>> find_roles(checkpoint.root, outline(checkpoint))
    [Role(kind='optimizer state', prefix='opt.state', names=('opt.state.0.exp_avg',), of=None)]
    """
    tree = module_tree(outline)
    found = []
    for prefix in _optimizers(root):
        module = _at(tree, prefix)
        if module is not None and module.tensors:
            names = tuple(row.name for row in _rows(module))
            found.append(Role("optimizer state", prefix, names))
    return [*found, *_copies(tree)]


def _optimizers(root: Any) -> Iterator[str]:
    """Yield the prefixes of the states of optimizers; each object is looked at once."""

    def is_optimizer(value: Any) -> bool:
        return isinstance(value, dict) and "state" in value and "param_groups" in value

    def parts_of(value: Any) -> Iterable[Child]:
        return () if is_optimizer(value) or is_plain(value) else children(value)

    for way, value in ways(root, parts_of):
        if is_optimizer(value):
            yield "state" if way is None else f"{way}.state"


def _at(tree: Module, prefix: str) -> Module | None:
    module: Module | None = tree
    for step in prefix.split("."):
        module = module.children.get(step) if module is not None else None
    return module


def _rows(module: Module) -> Iterator[TensorRow]:
    if module.row is not None:
        yield module.row
    for _, below in module.walk():
        if below.row is not None:
            yield below.row


def _copies(tree: Module) -> Iterator[Role]:
    """Yield the sets of tensors that look like a copy of another set."""
    by_name = {row.name: row for row in _rows(tree)}
    taken: tuple[str, ...] = ()
    tried = 0
    for _, module in tree.walk():
        is_set = module.row is None and module.tensors >= _LEAST_TENSORS
        if not is_set or not EMA.search(module.name) or module.path.startswith(taken):
            continue
        tried += 1
        if tried > _MOST_TRIED:
            return
        of = _original(module, by_name)
        if of is not None:
            taken += (f"{module.path}.",)
            yield Role("EMA copy", module.path, tuple(row.name for row in _rows(module)), of)


def _original(module: Module, by_name: dict[str, TensorRow]) -> str | None:
    """Return the prefix under which the same names go on; None if there is none.

    Steps that all names have in common, such as the ``module`` of a wrapper, may be missing there.
    """
    inner = module
    while True:
        path = inner.path + "."
        tails = [(row.name[len(path) :], row) for row in _rows(inner)]
        if any(not tail for tail, _ in tails):
            return None
        first = tails[0][0]
        for name in by_name:
            if not name.endswith(first) or name.startswith(module.path + "."):
                continue
            prefix = name[: len(name) - len(first)]
            if (not prefix or prefix.endswith(".")) and all(
                (like := by_name.get(prefix + tail)) is not None
                and (like.kind, like.dtype, like.shape) == (row.kind, row.dtype, row.shape)
                for tail, row in tails
            ):
                return prefix.removesuffix(".")
        if inner.row is not None or len(inner.children) != 1:
            return None
        (inner,) = inner.children.values()
