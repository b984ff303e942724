"""The sections of the page, each from the contents to HTML."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torchzip.checkpoint.outline import TensorRow
from torchzip.checkpoint.quantities import count_text, nbytes_text, share_text, some_of
from torchzip.tools.element_statistics import Number, Statistics
from torchzip.tools.report_page.contents import Contents, Distribution
from torchzip.tools.report_page.markup import (
    escaped,
    facts,
    histogram_svg,
    name_cell,
    name_of,
    section,
    shape_text,
    share_bar,
    size_cell,
    table,
)

#: Rows of the tables; what is left out is counted below them.
_MOST_TENSORS = 2000
_MOST_PARTS = 150
_MOST_ROWS = 200
_MOST_AT_ONCE = 40

_NUMBER = "num"


def summary(contents: Contents) -> str:
    """Return the figures at the top, and the verdicts."""
    outline = contents.outline
    figures = [
        (f"{len(outline.tensors):,}", "tensor" if len(outline.tensors) == 1 else "tensors"),
        (_short(contents.tree.numel), "elements" if contents.tree.numel != 1 else "element"),
        (nbytes_text(outline.stored_nbytes), "in tensors"),
    ]
    if contents.file_nbytes is not None:
        figures.append((nbytes_text(contents.file_nbytes), "file"))
    made = facts(((what, number) for number, what in figures), "figures")
    return f'{made}\n<ul class="verdicts">{"".join(_verdicts(contents))}</ul>'


def _verdicts(contents: Contents) -> Iterable[str]:
    found = contents.verified
    if contents.damage is not None:
        yield _verdict("bad", "Damaged", escaped(contents.damage, 400))
    elif found is None:
        yield _verdict("open", "Not verified", "the data was not read")
    else:
        compared = found.records - len(found.without_crc)
        told = f"{count_text(compared, 'CRC')} compared" if compared else "no CRC to compare"
        if compared and found.without_crc:
            told += f", {count_text(len(found.without_crc), 'record')} without one"
        yield _verdict("good", "Sound", told)
    if found is not None:
        if found.torch_load == "accepts":
            yield _verdict("good", "torch.load accepts it", "weights_only=True, the default")
        else:
            names = [*found.refused, *(f"opcode {name}" for name in found.refused_opcodes)]
            why = found.reason or f"because of {some_of(names, 3)}"
            yield _verdict("open", f"torch.load {found.torch_load}", escaped(why, 400))
    else:
        refused = sum(not each.torch_safe for each in contents.globals)
        if refused:
            yield _verdict("open", "torch.load", f"its safe loader refuses {refused:,} names")

    odd = [
        each.row.name
        for each in contents.distributions
        if each.found is not None and each.found.finite < each.found.count
    ]
    if odd:
        which = some_of([f"<code>{name_of(name)}</code>" for name in odd], 3)
        told = f"of the {len(contents.distributions)} largest tensors: {which}"
        yield _verdict("open", "NaN or infinite values", told)


def _verdict(kind: str, title: str, told: str) -> str:
    return f'<li class="{kind}"><strong>{title}</strong> <span>{told}</span></li>'


def _short(number: int) -> str:
    """Return a count as figures show it.

    >>> _short(950), _short(22_244_328)
    ('950', '22.2 M')
    """
    for unit, size in (("T", 10**12), ("B", 10**9), ("M", 10**6), ("k", 10**3)):
        if number >= size:
            return f"{number / size:.1f} {unit}"
    return f"{number}"


# -- sizes ---------------------------------------------------------------------------------------


def sizes(contents: Contents, dtypes: Sequence[str]) -> str:
    """Return the treemap's place and the table of what is in the module that it shows."""
    legend = "".join(
        f'<li><span class="swatch d{min(place, 7)}"></span>{escaped(dtype)}</li>'
        for place, dtype in enumerate(dtypes)
    )
    parts = sorted(contents.tree.children.values(), key=lambda part: -part.stored_nbytes)
    if contents.tree.row is not None:
        parts.insert(0, contents.tree)
    whole = max(contents.tree.stored_nbytes, 1)
    rows = [
        _share_row(name_of(part.name), part.tensors, part.stored_nbytes, whole)
        for part in parts[:_MOST_PARTS]
    ]
    left = len(parts) - len(rows)
    body = f"""<div class="map-head"><nav id="crumbs" aria-label="Module shown"></nav>
<ul class="legend" aria-label="Colours are dtypes">{legend}</ul></div>
<div id="map" class="map" hidden></div>
<p id="map-help" class="aside" hidden>Choose a module to go into it; Escape goes back.</p>
<div id="parts">{
        table(
            "Parts of the module shown",
            [("Part", ""), ("Tensors", _NUMBER), ("Stored", _NUMBER), ("Share", "share")],
            rows,
            more=f"and {left:,} more" if left > 0 else "",
        )
    }</div>"""
    lead = (
        "Bytes stored in the file, by module. What several tensors share counts once, with the "
        "first of them."
    )
    return section("sizes", "Where the bytes are", body, lead)


def _share_row(name: str, tensors: int, nbytes: int, whole: int) -> str:
    return (
        f'{name_cell(name)}<td class="num">{tensors:,}</td>{size_cell(nbytes)}'
        f"{share_bar(nbytes / whole)}"
    )


def by_dtype(contents: Contents) -> str:
    """Return the sums of each dtype."""
    sums = sorted(contents.outline.by_dtype.items(), key=lambda item: -item[1].nbytes)
    whole = max(contents.outline.nbytes, 1)
    rows = [_share_row(escaped(dtype), each.tensors, each.nbytes, whole) for dtype, each in sums]
    head = [("Dtype", ""), ("Tensors", _NUMBER), ("Size", _NUMBER), ("Share", "share")]
    return section("dtypes", "Dtypes", table("Dtypes", head, rows))


# -- distributions -------------------------------------------------------------------------------


def distributions(contents: Contents) -> str:
    """Return a card for each of the largest tensors."""
    cards = "\n".join(map(_card, contents.distributions))
    lead = (
        "Histograms have a linear scale and show finite values. The standard deviation is that of "
        "the population."
    )
    return section(
        "values", "What the largest tensors hold", f'<div class="cards">{cards}</div>', lead
    )


def _card(each: Distribution) -> str:
    row, found = each.row, each.found
    head = (
        f'<h3 class="name">{name_of(row.name)}</h3><p class="aside">{escaped(row.dtype)} · '
        f"{shape_text(row.shape)} · {nbytes_text(row.nbytes)}</p>"
    )
    if found is None:
        problem = escaped(each.problem or "", 400)
        return f'<article class="card">{head}<p class="problem">{problem}</p></article>'
    chart = ""
    if found.counts:
        low, high = number_text(found.min), number_text(found.max)
        label = f"Histogram from {low} to {high}, mean {number_text(found.mean)}"
        chart = f'{histogram_svg(found.counts, label)}<p class="axis" aria-hidden="true">' + (
            f"<span>{low}</span><span>{high}</span></p>" if low != high else f"{low}</p>"
        )
    of = "" if found.of == "values" else f'<p class="aside">of the {found.of}</p>'
    return f'<article class="card">{head}{chart}{of}{facts(_facts(found))}</article>'


def _facts(found: Statistics) -> Iterable[tuple[str, str]]:
    yield "mean", number_text(found.mean)
    yield "std", number_text(found.std)
    yield "zeros", share_text(found.zeros / found.count)
    if found.nans:
        yield "NaN", f'<b class="alarm">{found.nans:,}</b>'
    infinite = found.positive_infinities + found.negative_infinities
    if infinite:
        yield "infinite", f'<b class="alarm">{infinite:,}</b>'


def number_text(number: Number | None) -> str:
    """Return a number in few characters.

    >>> number_text(-0.0123456), number_text(12), number_text(None)
    ('-0.01235', '12', '–')
    """
    if number is None:
        return "–"
    return f"{number:,}" if isinstance(number, int) and abs(number) < 10**9 else f"{number:.4g}"


# -- what is shared, named, or no tensor ---------------------------------------------------------


def sharing(contents: Contents) -> str:
    """Return the ties and views; nothing if there are none."""
    outline = contents.outline
    rows = []
    for row in outline.tensors:
        if row.tied_to is not None:
            told = f"the same tensor as <code>{name_of(row.tied_to)}</code>"
        elif row.shares_storage_with is not None:
            told = f"shares the storage of <code>{name_of(row.shares_storage_with)}</code>"
        elif row.is_view and len(row.storages) == 1:
            held = outline.storages[row.storages[0]].nbytes
            told = f"a view of {nbytes_text(held)} that are stored"
        else:
            continue
        rows.append(f"{name_cell(name_of(row.name))}<td>{told}</td>{size_cell(row.nbytes)}")
    if not rows:
        return ""
    head = [("Tensor", ""), ("What it is", ""), ("Size", _NUMBER)]
    return section("shared", "Ties and views", _cut_table("Ties and views", head, rows))


def unreached(contents: Contents) -> str:
    """Return the storages with bytes that no tensor reaches; nothing if there are none."""
    if not contents.unreached:
        return ""
    rows = [
        f"{name_cell(name_of(each.name))}{size_cell(each.nbytes)}{size_cell(each.stored_nbytes)}"
        for each in contents.unreached
    ]
    head = [("First tensor in the storage", ""), ("Unreached", _NUMBER), ("Stored", _NUMBER)]
    title = "Bytes that no tensor reaches"
    return section("unreached", title, _cut_table(title, head, rows))


def names(contents: Contents) -> str:
    """Return the classes and functions that the file names; nothing if there are none."""
    if not contents.globals:
        return ""
    ordered = sorted(contents.globals, key=lambda each: (not each.foreign, each.torch_safe))
    rows = [
        name_cell(name_of(f"{each.module}.{each.name}"))
        + f"<td>{'foreign' if each.foreign else 'known'}</td>"
        + ("<td>accepts</td>" if each.torch_safe else '<td class="alarm">refuses</td>')
        for each in ordered
    ]
    foreign = sum(each.foreign for each in contents.globals)
    lead = "Classes and functions that the file names. None was imported or called; "
    if foreign:
        lead += f"{foreign:,} of them {'is' if foreign == 1 else 'are'} foreign to torchzip: inert."
    else:
        lead += "torchzip knows them all."
    head = [("Name", ""), ("torchzip", ""), ("torch.load by default", "")]
    body = _cut_table("Names", head, rows)
    own = [
        f'{name_cell(name_of(name))}<td class="name">{escaped(of)}</td>'
        for name, of in contents.outline.subclasses.items()
    ]
    if own:
        head = [("Tensor", ""), ("Its class", "")]
        body += "<h3>Tensors of a class of their own</h3>" + _cut_table("Classes", head, own)
    return section("names", "Classes and functions", body, lead)


def values(contents: Contents) -> str:
    """Return the values that are not tensors; nothing if there are none."""
    outline = contents.outline
    rows = [
        _value_row(name_of(each.path), escaped(each.type), each.value) for each in outline.values
    ]
    rows += [_value_row(escaped(key), "metadata", text) for key, text in outline.metadata.items()]
    notes = "".join(f'<p class="problem">{escaped(note, 400)}</p>' for note in outline.notes)
    if not rows and not notes:
        return ""
    head = [("Path", ""), ("Type", ""), ("Value", "")]
    return section("other", "Beside the tensors", notes + _cut_table("Other values", head, rows))


def _value_row(name: str, kind: str, text: str) -> str:
    return f'{name_cell(name)}<td>{kind}</td><td class="value">{escaped(text)}</td>'


def _cut_table(caption: str, head: Sequence[tuple[str, str]], rows: Sequence[str]) -> str:
    """Return a table of the first rows, to be opened if it is long."""
    left = len(rows) - _MOST_ROWS
    made = table(caption, head, rows[:_MOST_ROWS], more=f"and {left:,} more" if left > 0 else "")
    if len(rows) <= _MOST_AT_ONCE:
        return made
    shown = f"{len(rows):,}" if left <= 0 else f"{_MOST_ROWS:,} of {len(rows):,}"
    return f"<details><summary>Show {shown}</summary>{made}</details>"


def verification(contents: Contents) -> str:
    """Return what was read and compared."""
    found = contents.verified
    if found is None:
        body = "<p>The data of the tensors was not read.</p>"
        if contents.damage is not None:
            body = f'<p class="problem">{escaped(contents.damage, 1500)}</p>'
        return section("verification", "Verification", body)
    told = [
        ("Records", f"{found.records:,}"),
        ("Read", nbytes_text(found.nbytes)),
        ("CRCs compared", f"{found.records - len(found.without_crc):,}"),
        ("torch.load", escaped(found.torch_load)),
    ]
    if found.reason:
        told.append(("Reason", escaped(found.reason)))
    for what, names in (
        ("Refused names", found.refused),
        ("Refused opcodes", found.refused_opcodes),
        ("Without a CRC", found.without_crc),
    ):
        if names:
            told.append((what, some_of([f"<code>{escaped(name)}</code>" for name in names], 10)))
    told += [
        ("Note", escaped(note, 400)) for note in found.notes if note not in contents.outline.notes
    ]
    return section("verification", "Verification", facts(told, "facts"))


# -- all tensors ---------------------------------------------------------------------------------


def tensors(contents: Contents) -> str:
    """Return the table of all tensors; of very many the largest."""
    rows = list(contents.outline.tensors)
    left = len(rows) - _MOST_TENSORS
    order = {row.name: place for place, row in enumerate(rows)}
    more = ""
    if left > 0:
        rows.sort(key=lambda row: -row.nbytes)
        rest = sum(row.nbytes for row in rows[_MOST_TENSORS:])
        more = (
            f"These are the {_MOST_TENSORS:,} largest; {left:,} more have {nbytes_text(rest)} "
            "together. <code>torchzip ls</code> lists them all."
        )
        rows = sorted(rows[:_MOST_TENSORS], key=lambda row: order[row.name])
    made = [_tensor_row(row) for row in rows]
    head = [("Name", "sort"), ("Size", "num sort"), ("Dtype", "sort"), ("Shape", ""),
            ("Elements", "num sort"), ("Notes", "")]  # fmt: skip
    search = (
        '<p class="search" id="search-box" hidden><label for="search">Find</label>'
        '<input id="search" type="search" autocomplete="off" spellcheck="false" '
        'placeholder="part of a name, dtype or shape"> '
        '<output id="found" for="search" aria-live="polite"></output></p>'
    )
    body = f'{search}<div id="tensors-table">{table("All tensors", head, made, more=more)}</div>'
    return section("tensors", "All tensors", body)


def _tensor_row(row: TensorRow) -> str:
    return (
        f"{name_cell(name_of(row.name))}{size_cell(row.nbytes)}"
        f'<td>{escaped(row.dtype)}</td><td class="shape">{shape_text(row.shape)}</td>'
        f'<td class="num" data-v="{row.numel}">{row.numel:,}</td>'
        f'<td class="notes">{", ".join(_notes(row))}</td>'
    )


def _notes(row: TensorRow) -> Iterable[str]:
    if row.kind != "dense":
        yield escaped(row.kind)
    if row.is_parameter:
        yield "parameter"
    if row.tied_to is not None:
        yield "tied"
    elif row.is_view:
        yield "view"
    if row.subclass is not None:
        yield escaped(row.subclass)
