"""``torchzip convert``: its options, its report, and its plan."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torchzip
from torchzip.checkpoint.quantities import count_text, name_text, nbytes_text, shape_text
from torchzip.cli.command import (
    DONE,
    Command,
    exit_on_sigterm,
    parse_renames,
    parse_rules,
    reading_options,
    say,
    warnings_said,
)
from torchzip.cli.progress import progress_line
from torchzip.cli.rendering import table

if TYPE_CHECKING:
    from torchzip.convert.conversion import ConvertReport
    from torchzip.convert.planned import PlannedTensor

#: What a command has that writes a converted checkpoint.
OUTPUT_ARGUMENTS: dict[str, str | dict[str, Any] | None] = {
    "--dtype [GLOB=]DTYPE ...": "new dtype of all floating tensors, or of those whose name "
    "matches (may be repeated, the first match wins)",
    "--rename REGEX=>REPL ...": "replace in names, as Python's re.sub does (may be repeated, "
    "applied in order)",
    "--include GLOB ...": "convert these tensors only",
    "--exclude GLOB ...": "leave these tensors out",
    "--max-shard-size SIZE": "write shards of at most this size, such as 5GB, and an index",
    "--jobs": {
        "type": int,
        "metavar": "N",
        "help": "share the work among N processes (default 1)",
    },
    "--verify": "also check the CRCs of bytes that are only copied",
    "--dequantize": "write plain weights in the place of quantized ones (fp8, int4, nf4, ...), "
    "in bfloat16 or the dtype that their scheme has; --dtype gives another",
    "--dry-run": "show the plan and write nothing",
    "--force": "overwrite DST",
    "--json": "print the report as JSON on stdout",
}

COMMAND = Command(
    name="convert",
    summary="convert to .pt or .safetensors, with other dtypes or names, in shards",
    description="""\
Convert a checkpoint of any format. DST decides the target format: a .pt .pth .bin .ckpt or
.safetensors file, a directory (which gets a model.safetensors), or an *.index.json (with shards
beside it). DST is written completely or not at all, and may be SRC itself.
""",
    examples=r"""
        torchzip convert model.pt model.safetensors --dtype bfloat16
        torchzip convert a.bin b.pt --dtype '*norm*=float32' --dtype float16
        torchzip convert run.ckpt model.pt --include 'state_dict.*' --rename '^state_dict\.=>'
        torchzip convert model.pt out/ --max-shard-size 5GB --jobs 2
    """,
    arguments={
        "SRC": None,
        "DST": None,
        **OUTPUT_ARGUMENTS,
    },
)


def rules_of(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the rules of a command line as `torchzip.convert` takes them."""
    return {
        "dtype": parse_rules(arguments.dtype),
        "rename": parse_renames(arguments.rename) or None,
        "include": arguments.include,
        "exclude": arguments.exclude,
    }


def run(arguments: argparse.Namespace) -> int:
    with writing(arguments) as options:
        report = torchzip.convert(arguments.src, arguments.dst, **options)
    show(report, arguments)
    return DONE


@contextlib.contextmanager
def writing(arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Give the options of `torchzip.convert` that a command line asks for; show the progress."""
    is_dry = arguments.dry_run
    watched = contextlib.nullcontext() if is_dry else progress_line()
    with exit_on_sigterm(), warnings_said(), watched as progress:
        yield {
            "max_shard_size": arguments.max_shard_size,
            "jobs": arguments.jobs,
            "verify": arguments.verify,
            "dequantize": arguments.dequantize,
            "progress": progress,
            "overwrite": arguments.force,
            "dry_run": is_dry,
            **reading_options(arguments),
            **rules_of(arguments),
        }


def show(report: ConvertReport, arguments: argparse.Namespace) -> None:
    """Print what a conversion did, or would do."""
    is_dry = arguments.dry_run
    if arguments.json:
        print(json.dumps(_planned_values(report) if is_dry else _values(report), indent=2))
    elif is_dry:
        print(_planned_text(report))
    _say_notes(report)
    if not is_dry:
        say(f"{report.target}: {_sums(report)}")


def _values(report: ConvertReport) -> dict[str, Any]:
    """Return the report without its longest parts, which a dry run shows."""
    names = [field.name for field in dataclasses.fields(report)]
    return {name: getattr(report, name) for name in names if name not in ("rows", "file_nbytes")}


def _planned_values(report: ConvertReport) -> dict[str, Any]:
    return {
        "format": report.format,
        "nbytes": report.nbytes,
        "files": dict(zip(report.files, report.file_nbytes, strict=True)),
        "tensors": [dataclasses.asdict(row) for row in report.rows],
        "tied": report.tied,
        "dequantized": report.dequantized,
        "lost": report.lost,
        "refused": report.refused,
    }


def _sums(report: ConvertReport) -> str:
    shards = len(report.files) - 1  # the last one is their index
    where = f" in {count_text(shards, 'shard')}" if shards else ""
    return f"{count_text(report.tensors, 'tensor')}{where}, {nbytes_text(report.nbytes)}"


def _planned_text(report: ConvertReport) -> str:
    with_files = len(report.files) > 1
    rows = [["name", "dtype", "shape", "size", *(["file"] if with_files else [])]]
    rows += [_row(row, with_files) for row in report.rows]
    return "\n".join([*table(rows, right=(3,)), f"{_sums(report)} in all"])


def _row(row: PlannedTensor, with_file: bool) -> list[str]:
    name = name_text(row.name)
    if row.source != row.name:
        name = f"{name_text(row.source)} -> {name}"
    dtype = row.to_dtype
    if row.from_dtype != row.to_dtype:
        dtype = f"{row.from_dtype} -> {row.to_dtype}"
    size = nbytes_text(row.nbytes) if row.alias_of is None else f"= {name_text(row.alias_of)}"
    cells = [name, dtype, shape_text(row.shape), size]
    return [*cells, os.path.basename(row.file)] if with_file else cells


def _say_notes(report: ConvertReport) -> None:
    if report.tied:
        lines = [f"{name} has its data under {holder}" for name, holder in report.tied.items()]
        say(f"tied: {_first(lines)}")
    if report.dequantized:
        counts = Counter(report.dequantized.values())
        lines = [f"{count_text(count, 'weight')} ({scheme})" for scheme, count in counts.items()]
        say(f"dequantized: {_first(lines)}; remove the quantization_config of a copied config.json")
    if report.lost:
        say(f"not in the output: {_first(report.lost)}")
    if report.refused:
        reasons = sorted({reason for _, reason in report.refused})
        say("torch.load needs weights_only=False for the output, because of " + ", ".join(reasons))


def _first(lines: Sequence[str]) -> str:
    more = f"; and {len(lines) - 10:,} more" if len(lines) > 10 else ""
    return "; ".join(lines[:10]) + more
