"""The tree of modules that the names of tensors are, with sums at each level."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from torchzip.checkpoint.outline import Outline, TensorRow
from torchzip.formats.base import collector_paused

#: Levels of a tree. What lies deeper has the rest of its name in one step, as a name of nothing but
#: dots may be as long as a file.
_MOST_LEVELS = 64
#: Tensors from which on Python's collector of cycles waits.
_PAUSE_FROM = 10_000


@dataclass(slots=True, eq=False)
class Module:
    """One level: ``name`` is its last step, and ``path`` all of it; both are empty for the root.

    A name that is a tensor's and a prefix of others has a ``row`` and ``children``. The sums are
    over all that is below, itself among it. ``nbytes`` counts ties as often as they have names.
    ``stored_nbytes`` counts the bytes of a storage once in the whole tree, where the first
    tensor in it is; ``numel`` does so with the elements of tied tensors. So the sums of the
    children are that of the parent.
    """

    name: str
    parent: Module | None = field(default=None, repr=False)
    row: TensorRow | None = None
    children: dict[str, Module] = field(default_factory=dict)
    tensors: int = 0
    numel: int = 0
    nbytes: int = 0
    stored_nbytes: int = 0

    @property
    def path(self) -> str:
        """The steps from the root, joined by dots."""
        steps = []
        module = self
        while module.parent is not None:
            steps.append(module.name)
            module = module.parent
        return ".".join(reversed(steps))

    def walk(self) -> Iterator[tuple[int, Module]]:
        """Yield all levels below and their depth, parents first, in the order of the file."""
        stack = [iter(self.children.values())]
        while stack:
            for module in stack[-1]:
                yield len(stack), module
                if module.children:
                    stack.append(iter(module.children.values()))
                    break
            else:
                stack.pop()


def module_tree(outline: Outline, rows: Iterable[TensorRow] | None = None) -> Module:
    """Return the root of the tree of an outline's tensors, or of some of them.

    >>> import io, numpy as np, torchzip
    >>> from torchzip.checkpoint.outline import outline
    >>> buffer = io.BytesIO()
    >>> torchzip.save({"fc.weight": np.zeros((2, 3)), "fc.bias": np.zeros(2)}, buffer)
    >>> start = buffer.seek(0)
    >>> tree = module_tree(outline(torchzip.lazy_load(buffer)))
    >>> [(depth, m.path, m.tensors, m.numel, m.nbytes) for depth, m in tree.walk()]
    [(1, 'fc', 2, 8, 64), (2, 'fc.weight', 1, 6, 48), (2, 'fc.bias', 1, 2, 16)]
    """
    with collector_paused(len(outline.tensors) >= _PAUSE_FROM):
        return _tree(outline, outline.tensors if rows is None else rows)


def _tree(outline: Outline, rows: Iterable[TensorRow]) -> Module:
    root = Module("")
    stored: set[int] = set()
    for row in rows:
        stored_nbytes = 0
        for number in row.storages:
            if number not in stored:
                stored.add(number)
                stored_nbytes += outline.storages[number].nbytes
        path = [root]
        module = root
        for step in row.name.split(".", _MOST_LEVELS - 1) if row.name else ():
            below = module.children.get(step)
            if below is None:
                below = module.children[step] = Module(step, module)
            path.append(below)
            module = below
        module.row = row
        numel = row.numel if row.tied_to is None else 0
        for module in path:
            module.tensors += 1
            module.numel += numel
            module.nbytes += row.nbytes
            module.stored_nbytes += stored_nbytes
    return root
