"""A checkpoint as a notebook shows it: a small piece of HTML, without scripts or colours."""

from __future__ import annotations

import html
from collections.abc import Iterator

from torchzip.checkpoint.module_tree import Groups, Module, joined, module_tree
from torchzip.checkpoint.outline import Outline, Outlined, TensorRow, outline
from torchzip.checkpoint.quantities import (
    count_text,
    name_text,
    nbytes_text,
    shape_text,
    some_of,
)
from torchzip.errors import TorchZipError, printable

#: Tensors and modules, and other values, that are shown at most.
_MOST_ROWS = 300
_MOST_VALUES = 50
#: Rows of the tree up to which it is shown open.
_OPEN_UP_TO = 30

# Inline, as a notebook has styles of its own and the piece must not change the page around it.
_CELL = "text-align:left;padding:0 1em 0 0"
_FAINT = "opacity:.65"
_BELOW = "margin-left:1.2em"


def as_html(checkpoint: Outlined) -> str:
    """Return the tensors of a checkpoint by module, what is tied, other values, and sums.

    At most some hundreds of rows; what is left out is counted. No tensor is read, and a name from
    the file is never more than text. Where there is no outline, the reason is shown.
    """
    try:
        found = outline(checkpoint)
    except TorchZipError as error:
        return f"<div><code>{_text(repr(checkpoint))}</code><br>{_text(error.message)}</div>"
    parts = [*_Tree(found).lines(), *_values(found)]
    if found.foreign:
        names = some_of(list(map(_text, found.foreign)), 10)
        parts.append(f'<div style="{_FAINT}">foreign: {names}</div>')
    parts += [f"<div>{_text(note)}</div>" for note in found.notes]
    is_open = " open" if parts else ""
    summary = f"<summary><b>{_text(found.path)}</b>: {_text(found.sums_text)}</summary>"
    return f"<div><details{is_open}>{summary}{''.join(parts)}</details></div>"


def _text(text: str) -> str:
    return html.escape(printable(text))


class _Tree:
    """The tensors by module, until there are enough rows."""

    def __init__(self, found: Outline) -> None:
        self._root = module_tree(found)
        self._groups = Groups(self._root)
        self._left = _MOST_ROWS
        self._is_open = sum(1 for _ in self._root.walk()) <= _OPEN_UP_TO

    def lines(self) -> Iterator[str]:
        if self._root.row is not None:
            yield _table([_row(name_text(""), self._root.row)])
        yield from self._below(self._root)

    def _below(self, module: Module) -> Iterator[str]:
        """Yield what is below a module: its tensors in tables, modules as pieces that open."""
        rows: list[str] = []
        left_out = 0
        for group in self._groups.groups(module):
            if not self._left:
                left_out += sum(each.tensors for each in group)
                continue
            self._left -= 1
            names, inner = joined(group[0])
            name = _text(".".join(names)) or '""'
            if len(group) == 1 and inner.row is not None:
                rows.append(_row(name, inner.row))
            if len(group) == 1 and not inner.children:
                continue
            if rows:
                yield _table(rows)
                rows = []
            yield self._alike(group) if len(group) > 1 else self._module(name, inner)
        if rows:
            yield _table(rows)
        if left_out:
            yield f'<div style="{_BELOW};{_FAINT}">and {count_text(left_out, "more tensor")}</div>'

    def _module(self, name: str, module: Module) -> str:
        is_open = " open" if self._is_open else ""
        below = "".join(self._below(module))
        return (
            f'<details{is_open} style="{_BELOW}"><summary>{name} {_sums([module])}</summary>'
            f"{below}</details>"
        )

    def _alike(self, group: list[Module]) -> str:
        names = f"{_text(group[0].name)} … {_text(group[-1].name)}"
        like = f"{len(group)} like {int(group[0].name) - 1}"
        return f'<div style="{_BELOW}">{names} {_sums(group, like)}</div>'


def _table(rows: list[str]) -> str:
    return f'<table style="{_BELOW}">{"".join(rows)}</table>'


def _sums(modules: list[Module], more: str = "") -> str:
    tensors = count_text(sum(module.tensors for module in modules), "tensor")
    nbytes = nbytes_text(sum(module.nbytes for module in modules))
    inside = ", ".join(filter(None, (more, tensors, nbytes)))
    return f'<span style="{_FAINT}">{inside}</span>'


def _row(name: str, row: TensorRow) -> str:
    """Return a row of a table; ``name`` is HTML."""
    mark = row.sharing_text or ("view" if row.is_view else "")
    kind, size = _text(row.kind_text), nbytes_text(row.nbytes)
    return _cells(name, kind, shape_text(row.shape), size, _text(mark))


def _cells(*cells: str) -> str:
    return "<tr>" + "".join(f'<td style="{_CELL}">{cell}</td>' for cell in cells) + "</tr>"


def _values(found: Outline) -> Iterator[str]:
    values = [(name_text(row.path), row.value) for row in found.values]
    values += [(f"metadata {name}", repr(text[:200])) for name, text in found.metadata.items()]
    if not values:
        return
    rows = [_cells(_text(name), _text(value)) for name, value in values[:_MOST_VALUES]]
    left = len(values) - _MOST_VALUES
    more = f'<div style="{_FAINT}">and {count_text(left, "more value")}</div>' if left > 0 else ""
    count = count_text(len(values), "other value")
    summary = f"<summary>{count}</summary>"
    yield f'<details style="{_BELOW}">{summary}{_table(rows)}{more}</details>'
