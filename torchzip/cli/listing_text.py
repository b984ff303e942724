"""What `ls` prints: a flat table or a tree of tensors, the other values, the totals."""

from __future__ import annotations

import functools
import textwrap
from collections.abc import Iterable, Iterator, Mapping
from typing import TypeVar

from torchzip.checkpoint.module_tree import Groups, Module, joined, module_tree
from torchzip.checkpoint.outline import Outline, TensorRow
from torchzip.checkpoint.quantities import count_text, name_text, nbytes_text, shape_text
from torchzip.cli.command import in_options
from torchzip.cli.rendering import Screen, fitted_table, width_of
from torchzip.errors import listed, printable, shown

#: At most so many values are shown without --all.
_VALUES = 20
#: At most so many foreign names are shown.
_FOREIGN = 8

_HEAD = ("name", "dtype", "shape", "size")
_SIZE = 3
#: What is left of names and marks before columns go below.
_LEAST_WIDTH = 16


class _Cells:
    """The cells of a tensor. Shapes and sizes that many tensors share are made once."""

    def __init__(self, outline: Outline, schemes: Mapping[str, str], long: bool) -> None:
        self._outline = outline
        self._schemes = schemes
        self._long = long
        self._shape = functools.cache(shape_text)
        self._size = functools.cache(nbytes_text)

    def head(self) -> list[str]:
        more = ["stride", "offset", "device", "grad", "record"] if self._long else []
        return [*_HEAD, *more, "quantized, tied or view" if self._schemes else "tied or view"]

    def of(self, name: str, row: TensorRow) -> list[str]:
        cells = [name, row.kind_text, self._shape(row.shape), self._size(row.nbytes)]
        if self._long:
            cells += [
                "" if row.stride is None else self._shape(row.stride),
                "" if row.storage_offset is None else str(row.storage_offset),
                printable(row.location),
                "yes" if row.requires_grad else "no",
                self._records(row),
            ]
        cells.append(self._mark(row))
        return cells

    def sums(self, name: str, modules: list[Module], mark: str = "") -> list[str]:
        cells = [name, *[""] * (len(self.head()) - 2), mark]
        cells[1] = count_text(sum(module.tensors for module in modules), "tensor")
        cells[2] = f"{sum(module.all_numel for module in modules):,}"
        cells[_SIZE] = nbytes_text(sum(module.nbytes for module in modules))
        return cells

    def _records(self, row: TensorRow) -> str:
        records = [self._outline.storages[number].record or "" for number in row.storages]
        return printable(", ".join(dict.fromkeys(records)))

    def _mark(self, row: TensorRow) -> str:
        scheme = self._schemes.get(row.name)
        if scheme is not None:
            return f"{row.sharing_text}, {scheme}" if row.sharing_text else scheme
        if row.sharing_text or not row.is_view:
            return row.sharing_text
        stored = sum(self._outline.storages[number].nbytes for number in row.storages)
        return f"view of {nbytes_text(stored)}"


def flat_lines(
    outline: Outline,
    rows: list[TensorRow],
    screen: Screen,
    schemes: Mapping[str, str],
    *,
    long: bool,
) -> Iterator[str]:
    """Yield a table of tensors, one per line; nothing if there are none."""
    if not rows:
        return
    cells = _Cells(outline, schemes, long)
    made = [cells.head(), *(cells.of(name_text(row.name), row) for row in rows)]
    head, *lines = _table(made, screen)
    yield screen.bold(head)
    yield from lines


def _table(rows: list[list[str]], screen: Screen) -> list[str]:
    shrinking = [len(rows[0]) - 1, 0]
    if not any(row[-1] for row in rows[1:]):
        rows, shrinking = [row[:-1] for row in rows], [0]
    head, first = rows[0], _SIZE + 1
    if screen.width is None or len(head) == first or _fits(rows, shrinking, screen.width):
        return fitted_table(rows, screen, shrinking, right=(_SIZE,))
    # What does not fit beside the size goes below, with its head before it.
    lines = fitted_table([row[:first] for row in rows], screen, (0,), right=(_SIZE,))
    for number, row in enumerate(rows[1:], 1):
        below = ", ".join(f"{a} {b}" for a, b in zip(head[first:], row[first:], strict=True) if b)
        lines[number] += "".join(f"\n  {line}" for line in textwrap.wrap(below, screen.width - 2))
    return lines


def _fits(rows: list[list[str]], shrinking: list[int], width: int) -> bool:
    """Return whether a table fits if all but some columns stay whole."""
    widths = [max(map(width_of, column)) for column in zip(*rows, strict=True)]
    for column in shrinking:
        widths[column] = min(widths[column], _LEAST_WIDTH)
    return sum(widths) + 2 * (len(widths) - 1) <= width


def tree_lines(
    outline: Outline,
    screen: Screen,
    schemes: Mapping[str, str],
    *,
    depth: int | None,
    sort: str | None,
    fold: bool,
    long: bool,
) -> Iterator[str]:
    """Yield the tree of modules down to a depth, each with the totals of everything below it.

    With ``fold``, a run of numbered modules with equal contents is shown as the first of them and
    one line for the others. Nothing is yielded if there are no tensors.
    """
    root = module_tree(outline)
    if not root.tensors:
        return
    cells = _Cells(outline, schemes, long)
    head = cells.head()
    head[2] = "shape, elements"
    rows = [(True, head)]
    if root.row is not None:
        rows.append((False, cells.of(name_text(""), root.row)))
    tree = Groups(root, fold=fold, order=lambda found: sorted_by(sort, found))
    rows += _tree_rows(tree, root, cells, depth)
    lines = _table([row for _, row in rows], screen)
    for (is_bold, _), line in zip(rows, lines, strict=True):
        yield screen.bold(line) if is_bold else line


def _tree_rows(
    tree: Groups, above: Module, cells: _Cells, depth: int | None, level: int = 1
) -> Iterator[tuple[bool, list[str]]]:
    """Yield the rows below a module, and whether each has the sums of one."""
    indent = "  " * (level - 1)
    is_shown = depth is None or level < depth
    for first, *more in tree.groups(above):
        if more:
            alike = [first, *more]
            mark = f"{len(alike)} like {int(first.name) - 1}, {nbytes_text(first.nbytes)} each"
            yield False, cells.sums(f"{indent}{first.name} … {more[-1].name}", alike, mark)
            continue
        names, module = joined(first)
        name = indent + (printable(".".join(names)) or '""')
        if module.row is not None:
            yield False, cells.of(name, module.row)
            name += ".…"  # the totals below, where that level is not shown
        if module.children and (module.row is None or not is_shown):
            below = [module] if module.row is None else list(module.children.values())
            yield True, cells.sums(name, below)
        if module.children and is_shown:
            yield from _tree_rows(tree, module, cells, depth, level + 1)


def value_lines(outline: Outline, screen: Screen, *, everything: bool) -> list[str]:
    """Return the values that are not tensors, one per line: all, or the first few."""
    listed_values = outline.values
    if not everything:  # every state dict of torch has a version for each of its modules
        listed_values = tuple(row for row in listed_values if "(_metadata)" not in row.path)
    values = [(name_text(row.path), row.value) for row in listed_values]
    if not everything:
        values = [row for row in values if not row[1].startswith("an empty ")][:_VALUES]
    values += [(f"metadata {name}", shown(text)) for name, text in outline.metadata.items()]
    rows = [[printable(name), printable(text)] for name, text in values]
    lines = fitted_table(rows, screen, (1, 0))
    left = len(listed_values) + len(outline.metadata) - len(values)
    if left:
        lines.append(screen.dim(f"and {count_text(left, 'more value')}; --all shows them"))
    return lines


def sum_lines(outline: Outline) -> list[str]:
    """Return the totals and the notes."""
    lines = [f"{printable(outline.path)}: {outline.sums_text}"]
    for name, kind in outline.subclasses.items():
        lines.append(f"{printable(name)}: a tensor of class {printable(kind)}, kept unchanged")
    if outline.unnamed:
        nbytes = nbytes_text(sum(row.nbytes for row in outline.unnamed))
        names = listed([row.name for row in outline.unnamed], 3)
        count = count_text(len(outline.unnamed), "tensor")
        lines.append(f"{count} without a name in the state dict, {nbytes}: {names}")
    if outline.constant_count:
        count = count_text(outline.constant_count, "constant")
        lines.append(f"{count} of the code, without names")
    if outline.foreign:
        left = len(outline.foreign) - _FOREIGN
        more = f" and {left:,} more; torchzip globals lists them" if left > 0 else ""
        lines.append("foreign: " + ", ".join(map(printable, outline.foreign[:_FOREIGN])) + more)
    return lines + [f"note: {printable(in_options(note))}" for note in outline.notes]


Sortable = TypeVar("Sortable", Module, TensorRow)


def sorted_by(sort: str | None, rows: Iterable[Sortable]) -> list[Sortable]:
    """Return tensors or modules sorted by name, or the largest first; None keeps their order."""
    if sort == "name":
        return sorted(rows, key=lambda row: row.name)
    if sort == "size":
        return sorted(rows, key=lambda row: -row.nbytes)
    return list(rows)
