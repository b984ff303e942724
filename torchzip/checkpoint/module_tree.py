"""The tree of modules that the names of tensors are, with sums at each level."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import groupby

from torchzip.checkpoint.outline import Outline, TensorRow
from torchzip.formats.base import collector_paused

#: Levels of a tree. What lies deeper has the rest of its name in one step, as a name of nothing but
#: dots may be as long as a file.
_MOST_LEVELS = 64
#: Modules that are alike and follow one another are two groups from this many on.
_ALIKE_FROM = 3


@dataclass(slots=True, eq=False)
class Module:
    """One level: ``name`` is its last step, and ``path`` all of it; both are empty for the root.

    A name that is a tensor's and a prefix of others has a ``row`` and ``children``. The sums are
    over all that is below, itself among it. ``nbytes`` and ``all_numel`` count ties as often as
    they have names. ``stored_nbytes`` counts the bytes of a storage once in the whole tree, where
    the first tensor in it is; ``numel`` does so with the elements of tied tensors. So the sums of
    the children are that of the parent.
    """

    name: str
    parent: Module | None = field(default=None, repr=False)
    row: TensorRow | None = None
    children: dict[str, Module] = field(default_factory=dict)
    tensors: int = 0
    numel: int = 0
    all_numel: int = 0
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

    def walk(self, depth: int = 1) -> Iterator[tuple[int, Module]]:
        """Yield all levels below and their depth, parents first, in the order of the file."""
        for module in self.children.values():
            yield depth, module
            yield from module.walk(depth + 1)


@collector_paused(True)
def module_tree(outline: Outline) -> Module:
    """Return the root of the tree of an outline's tensors.

    >>> import io, numpy as np, torchzip
    >>> from torchzip.checkpoint.outline import outline
    >>> buffer = io.BytesIO()
    >>> torchzip.save({"fc.weight": np.zeros((2, 3)), "fc.bias": np.zeros(2)}, buffer)
    >>> start = buffer.seek(0)
    >>> tree = module_tree(outline(torchzip.lazy_load(buffer)))
    >>> [(depth, m.path, m.tensors, m.numel, m.nbytes) for depth, m in tree.walk()]
    [(1, 'fc', 2, 8, 64), (2, 'fc.weight', 1, 6, 48), (2, 'fc.bias', 1, 2, 16)]
    """
    root = Module("")
    stored: set[int] = set()
    for row in outline.tensors:
        stored_nbytes = 0
        for number in row.storages:
            if number not in stored:
                stored.add(number)
                stored_nbytes += outline.storages[number].stored_nbytes
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
            module.all_numel += row.numel
            module.nbytes += row.nbytes
            module.stored_nbytes += stored_nbytes
    return root


class Groups:
    """The children of modules, those together that are one line of a listing.

    With ``fold``, of modules that follow one another, are numbered and alike (the same names
    below, with tensors of the same dtypes and shapes) the first is alone and the others are one
    group.
    """

    def __init__(
        self,
        root: Module,
        *,
        fold: bool = True,
        order: Callable[[Iterable[Module]], Iterable[Module]] = iter,
    ) -> None:
        self._forms = _forms(root) if fold else {}
        self._order = order

    def groups(self, module: Module) -> Iterator[list[Module]]:
        """Yield the children of a module in their order, one or more at a time."""

        def run_of(place: tuple[int, Module]) -> object:
            # Equal for numbers that go up by one, as their places do.
            form, number = self._forms.get(id(place[1])), _number(place[1])
            return place[0] if form is None or number is None else (form, number - place[0])

        children = enumerate(self._order(module.children.values()))
        for _, places in groupby(children, run_of):
            run = [child for _, child in places]
            if len(run) < _ALIKE_FROM:
                yield from ([child] for child in run)
            else:
                yield run[:1]
                yield run[1:]


def joined(module: Module) -> tuple[list[str], Module]:
    """Return steps with nothing beside them, and the module that they lead to."""
    names = [module.name]
    while module.row is None and len(module.children) == 1:
        (module,) = module.children.values()
        names.append(module.name)
    return names, module


def _number(module: Module) -> int | None:
    """Return the number that a module is called."""
    name = module.name
    is_number = name.isascii() and name.isdecimal() and len(name) < 10
    return int(name) if is_number and str(int(name)) == name else None


def _forms(root: Module) -> dict[int, int]:
    """Return a number for each module with something below, equal for those that are alike."""
    numbers: dict[object, int] = {}
    forms: dict[int, int] = {}
    modules = [module for _, module in root.walk()]
    for module in reversed(modules):
        own = None if module.row is None else _form(module.row)
        below = tuple((child.name, forms[id(child)]) for child in module.children.values())
        forms[id(module)] = numbers.setdefault((own, below), len(numbers))
    return {id(module): forms[id(module)] for module in modules if module.children}


def _form(row: TensorRow) -> object:
    return (
        row.kind, row.dtype, row.shape, row.stride, row.is_parameter, row.requires_grad,
        row.is_view, row.shares_storage_with is None, row.tied_to is None,
    )  # fmt: skip
