"""The tree of modules as the page's script wants it: small, and of bounded size."""

from __future__ import annotations

import heapq
from typing import Any

from torchzip.checkpoint.module_tree import Module
from torchzip.errors import printable, shortened
from torchzip.tools.report_page.markup import shape_text

#: Levels that are opened, and what each shows of its parts.
_MOST_OPEN = 1500
_MOST_CHILDREN = 1000
_MOST_NODES = 6000
_MOST_CHARACTERS = 80


def size_tree(root: Module, dtypes: list[str]) -> list[Any]:
    """Return the tree as lists: the largest modules with what is in them, the others closed.

    A module is [name, bytes, tensors, parts], a tensor [name, bytes, place of its dtype in
    ``dtypes``, shape], and what is left out [``""``, bytes, tensors, 0, place of the dtype of most
    of it]; a module whose parts are left out has that place too. Bytes are those that are stored,
    each once; parts are sorted by them, what is left out comes last.
    """
    place = {dtype: index for index, dtype in enumerate(dtypes)}
    made = _node(root)
    # The largest modules are opened first, whatever their depth.
    waiting = [(-root.stored_nbytes, 0, root, made)]
    count = opened = nodes = 0
    while waiting and opened < _MOST_OPEN and nodes < _MOST_NODES:
        _, _, module, node = heapq.heappop(waiting)
        opened += 1
        parts = sorted(module.children.values(), key=lambda part: -part.stored_nbytes)
        if module.row is not None:
            node[3].append(_leaf(module, "(itself)" if module.children else "", place))
        for part in parts[:_MOST_CHILDREN]:
            if part.row is not None and not part.children:
                node[3].append(_leaf(part, part.name, place))
                continue
            below = _node(part)
            node[3].append(below)
            count += 1
            heapq.heappush(waiting, (-part.stored_nbytes, count, part, below))
        left = parts[_MOST_CHILDREN:]
        if left:
            nbytes = sum(part.stored_nbytes for part in left)
            count_left = sum(part.tensors for part in left)
            node[3].append(["", nbytes, count_left, 0, _main_dtype(left, place)])
        node[3].sort(key=lambda each: (each[3] == 0, -each[1]))
        nodes += len(node[3])
    for _, _, module, node in waiting:
        node.append(_main_dtype([module], place))
    return made


def _main_dtype(modules: list[Module], place: dict[str, int]) -> int:
    """Return the place of the dtype that most of some modules' bytes have."""
    sums = dict.fromkeys(place.values(), 0)
    for module in modules:
        for part in (module, *(part for _, part in module.walk())):
            if part.row is not None:
                sums[place[part.row.dtype]] += part.row.nbytes
    return max(sums, key=lambda each: sums[each])


def _node(module: Module) -> list[Any]:
    return [_name(module.name), module.stored_nbytes, module.tensors, []]


def _leaf(module: Module, name: str, place: dict[str, int]) -> list[Any]:
    row = module.row
    assert row is not None
    own = module.stored_nbytes - sum(part.stored_nbytes for part in module.children.values())
    shape = shape_text(row.shape) + ("" if row.tied_to is None else ", tied")
    return [_name(name) or "(the object itself)", own, place[row.dtype], shape]


def _name(name: str) -> str:
    return printable(shortened(name, _MOST_CHARACTERS))
