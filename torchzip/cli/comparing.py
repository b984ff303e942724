"""``torchzip diff``: its options, and the differences as text or JSON."""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
from typing import TYPE_CHECKING

from torchzip import tools
from torchzip.checkpoint.quantities import count_text, name_text, shape_text, some_of
from torchzip.cli.command import BAD, DONE, Command, print_verdict, reading_options
from torchzip.cli.progress import progress_line
from torchzip.cli.rendering import fitted_table, screen
from torchzip.errors import printable

if TYPE_CHECKING:
    from torchzip.tools.differences import Diff, TensorChange, TensorSummary, ValueChange

COMMAND = Command(
    name="diff",
    summary="show what differs between two checkpoints",
    description="""\
Show what differs between two checkpoints of any format: tensors that were added, removed, renamed
or changed, and plain values. Tensors with the same size and the same stored CRC in both files are
not read. Others are compared by value (NaN equals NaN, 0.0 equals -0.0), in constant memory.

Exit status: 0 equal, 1 different or a bad file, 2 wrong usage.
""",
    examples="""
        torchzip diff before.pt after.pt
        torchzip diff model.pt model-bf16.safetensors --cast --rtol 0.01
        torchzip diff run1.ckpt run2.ckpt --tensors-only --exclude optimizer_states
        torchzip diff model/ model-fp8/ --dequantize
    """,
    arguments={
        "A": None,
        "B": None,
        "--include GLOB ...": "compare these tensors and values only",
        "--exclude GLOB ...": "leave these out, or what is in a container of this name",
        "--tensors-only": "compare tensors and nothing else",
        "--atol X": "numbers are equal if they are not further apart than X + Y * |b|",
        "--rtol Y": "see --atol; both are 0 by default",
        "--cast": "cast floating tensors of A to their dtype in B, as convert does, before "
        "comparing",
        "--dequantize": "compare plain weights in the place of quantized ones, of both files",
        "--read": "compare the bytes of all tensors, even if the stored CRCs are equal",
        "--json": "print the differences as JSON",
    },
)


def run(arguments: argparse.Namespace) -> int:
    with progress_line() as progress:
        found = tools.diff(
            arguments.a,
            arguments.b,
            include=arguments.include,
            exclude=arguments.exclude,
            tensors_only=arguments.tensors_only,
            cast=arguments.cast,
            atol=_number("--atol", arguments.atol),
            rtol=_number("--rtol", arguments.rtol),
            read=arguments.read,
            dequantize=arguments.dequantize,
            progress=progress,
            **reading_options(arguments),
        )
    print_verdict(as_json(found) if arguments.json else as_text(found))
    return DONE if found.is_equal else BAD


def _number(option: str, text: str | None) -> float:
    try:
        return float(text or 0)
    except ValueError:
        raise ValueError(f"{option} {text!r}: a number was expected") from None


def as_json(found: Diff) -> str:
    """Return the differences as JSON. NaN and the infinities, which JSON lacks, become strings."""
    values = {"is_equal": found.is_equal, **dataclasses.asdict(found)}
    for change in values["changed"]:
        difference = change["values"]
        for key in ("max_abs", "max_rel", "mean_abs") if difference is not None else ():
            number = difference[key]
            if isinstance(number, float) and not math.isfinite(number):
                difference[key] = str(number)
    return json.dumps(values, indent=2)


def as_text(found: Diff) -> str:
    """Return the differences as a table with a summary below."""
    rows = [["changed", *_changed(change)] for change in found.changed]
    rows += [
        ["renamed", f"{name_text(old.name)} -> {name_text(new.name)}", _tensor(old), ""]
        for old, new in found.renamed
    ]
    rows += [["removed", name_text(row.name), _tensor(row), ""] for row in found.removed]
    rows += [["added", name_text(row.name), _tensor(row), ""] for row in found.added]
    where = screen()
    lines = fitted_table(rows, where, (3, 1))
    # In a separate table, as strings may be long; names are aligned with those of the tensors.
    values = [["value".ljust(7), name_text(each.name), _value(each)] for each in found.values]
    lines += fitted_table(values, where, (2, 1))
    if found.other_bits:
        first = some_of(list(map(name_text, found.other_bits)), 10)
        lines.append(f"equal in value, with zeros of another sign or other NaNs: {first}")
    if found.close:
        first = some_of(list(map(name_text, found.close)), 10)
        lines.append(f"equal within the tolerance: {first}")
    return "\n".join([*lines, _sums(found)])


def _tensor(row: TensorSummary) -> str:
    kind = f" {row.kind}" if row.kind != "dense" else ""
    return f"{row.torch_dtype}{kind} {shape_text(row.shape)}"


def _changed(change: TensorChange) -> list[str]:
    before, after = _tensor(change.before), _tensor(change.after)
    tensor = before if before == after else f"{before} -> {after}"
    name = name_text(change.before.name) + (f" ({change.part})" if change.part else "")
    difference = change.values
    if difference is None:
        return [name, tensor, ", ".join(change.what)]
    told = [f"{count_text(difference.count, 'element')}, first at {list(difference.first)}"]
    if difference.max_abs is not None:
        number = difference.max_abs
        shown = f"{number:,}" if isinstance(number, int) else f"{number:.6g}"
        told.append(f"max abs difference {shown}")
        if difference.max_rel is not None:
            told.append(f"max relative {difference.max_rel:.2g}")
    if difference.mean_abs is not None and difference.count > 1:
        told.append(f"mean {difference.mean_abs:.3g}")
    if difference.nans:
        told.append(f"NaN on one side in {difference.nans:,}")
    return [name, tensor, ", ".join(told)]


def _value(change: ValueChange) -> str:
    if change.before is None:
        return f"added: {printable(change.after or '')}"
    if change.after is None:
        return f"removed: {printable(change.before)}"
    if change.before == change.after:
        return f"another {printable(change.before)}"
    return f"{printable(change.before)} -> {printable(change.after)}"


def _sums(found: Diff) -> str:
    changed = len({change.before.name for change in found.changed})
    counts = [(changed, "changed"), (len(found.renamed), "renamed")]
    counts += [(len(found.removed), "removed"), (len(found.added), "added")]
    parts = [f"{count:,} {what}" for count, what in counts if count]
    unread = f" ({found.unread:,} by their CRCs, unread)" if found.unread else ""
    parts.insert(0, f"{count_text(found.equal, 'tensor')} equal{unread}")
    if found.values:
        differ = "differs" if len(found.values) == 1 else "differ"
        parts.append(f"{count_text(len(found.values), 'value')} {differ}")
    verdict = "are equal" if found.is_equal else "differ"
    return f"{printable(found.a)} and {printable(found.b)} {verdict}: {', '.join(parts)}"
