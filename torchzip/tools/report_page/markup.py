"""Pieces of HTML. Whatever comes from a file goes through `escaped` or `json_text`."""

from __future__ import annotations

import html
import json
from collections.abc import Iterable, Sequence
from typing import Any

from torchzip.checkpoint.quantities import nbytes_text, share_text
from torchzip.errors import printable, shortened

#: Characters of a name or a value that are shown.
_MOST_CHARACTERS = 200
#: Of a histogram, in units that the page stretches.
_WIDTH, _HEIGHT = 256, 64


def escaped(text: str, most: int = _MOST_CHARACTERS) -> str:
    """Return text as it may stand between tags and in a quoted attribute, cut if it is long.

    >>> escaped("</script><b onclick='x'>")
    '&lt;/script&gt;&lt;b onclick=&#x27;x&#x27;&gt;'
    """
    return html.escape(printable(shortened(text, most)))


def name_of(name: str) -> str:
    """Return the name of a tensor as HTML, which may be broken after its dots."""
    return (
        escaped(name).replace(".", ".<wbr>")
        if name
        else '<span class="aside">(the object itself)</span>'
    )


def json_text(value: Any) -> str:
    """Return JSON that is safe in a script element: no tag can begin or end in it."""
    text = json.dumps(value, separators=(",", ":"), ensure_ascii=True)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def shape_text(shape: Sequence[int | None]) -> str:
    """Return a shape as people write it; an axis of several sizes is a star.

    >>> shape_text((2, None, 3)), shape_text(())
    ('2 × * × 3', 'scalar')
    """
    return " × ".join("*" if size is None else f"{size}" for size in shape) or "scalar"


def name_cell(html_of_name: str) -> str:
    """Return the cell that a row begins with."""
    return f'<th scope="row" class="name">{html_of_name}</th>'


def size_cell(nbytes: int) -> str:
    """Return a cell with a size, followed by its exact bytes."""
    return f'<td class="num" data-v="{nbytes}" title="{nbytes:,} bytes">{nbytes_text(nbytes)}</td>'


def share_bar(share: float) -> str:
    """Return a cell with a bar and a percentage."""
    return (
        f'<td class="share"><svg class="bar" aria-hidden="true" focusable="false">'
        f'<rect class="track" width="100%" height="100%" rx="2"/>'
        f'<rect class="fill" width="{100 * share:.1f}%" height="100%" rx="2"/></svg>'
        f"<span>{share_text(share)}</span></td>"
    )


def table(
    caption: str, head: Iterable[tuple[str, str]], rows: Iterable[str], *, more: str = ""
) -> str:
    """Return a table that scrolls by itself where it is wider than the page.

    ``head`` has the titles of the columns and their classes, ``rows`` the cells of each row.
    """
    columns = "".join(
        (f'<th scope="col" class="{of}">' if of else '<th scope="col">') + f"{title}</th>"
        for title, of in head
    )
    body = "\n".join(f"<tr>{row}</tr>" for row in rows)
    label = html.escape(caption)
    return (
        f'<div class="scroll" role="region" aria-label="{label}" tabindex="0">'
        f'<table><caption class="hidden">{label}</caption>'
        f"<thead><tr>{columns}</tr></thead>\n<tbody>\n{body}\n</tbody></table></div>"
        + (f'<p class="aside">{more}</p>' if more else "")
    )


def facts(pairs: Iterable[tuple[str, str]], of: str = "") -> str:
    """Return a list of what and how much, of a class if it has one."""
    inside = "".join(f"<div><dt>{what}</dt><dd>{told}</dd></div>" for what, told in pairs)
    return f'<dl class="{of}">{inside}</dl>' if of else f"<dl>{inside}</dl>"


def section(anchor: str, title: str, body: str, lead: str = "") -> str:
    """Return a section with its heading, and a sentence below it."""
    told = f'<p class="lead">{lead}</p>' if lead else ""
    return (
        f'<section id="{anchor}" aria-labelledby="{anchor}-title">'
        f'<h2 id="{anchor}-title">{title}</h2>{told}\n{body}\n</section>'
    )


def histogram_svg(counts: Sequence[int], label: str) -> str:
    """Return bars as one path; a bin that is not empty has a height that can be seen."""
    most = max(counts)
    if len(counts) == 1:  # one value is a line, not a block
        counts = (0, 0, 0, 0, 0, *counts, 0, 0, 0, 0, 0)
    step = _WIDTH / len(counts)
    gap = 0.5 if len(counts) > 16 else 2.0
    bars = []
    for place, count in enumerate(counts):
        if count:
            height = max(1.0, count / most * _HEIGHT)
            bars.append(
                f"M{place * step:.4g} {_HEIGHT}v-{height:.3g}h{step - gap:.4g}v{height:.3g}z"
            )
    return (
        f'<svg class="histogram" viewBox="0 0 {_WIDTH} {_HEIGHT}" preserveAspectRatio="none" '
        f'role="img" aria-label="{printable(label)}"><path d="{"".join(bars)}"/></svg>'
    )
