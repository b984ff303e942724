"""``torchzip convert``: its options, its report, and its plan."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torchzip
from torchzip.cli.command import (
    DONE,
    add_command,
    add_repeated,
    exit_on_sigterm,
    limits_of,
    parse_renames,
    parse_rules,
    say,
    warnings_said,
)
from torchzip.cli.progress import progress_line
from torchzip.cli.rendering import count_text, name_text, nbytes_text, shape_text, table
from torchzip.errors import ErrorPlace

if TYPE_CHECKING:
    from torchzip.convert.plan import Plan
    from torchzip.convert.planned import PlannedTensor

_DESCRIPTION = """\
Convert a checkpoint of any format. DST decides the target format: a .pt .pth .bin .ckpt or
.safetensors file, a directory (which gets a model.safetensors), or an *.index.json (with shards
beside it). DST is written completely or not at all, and may be SRC itself.
"""

#: Options that may be given several times.
_RULES = {
    "--dtype [GLOB=]DTYPE": "new dtype of all floating tensors, or of those whose name "
    "matches (may be repeated, the first match wins)",
    "--rename REGEX=>REPL": "replace in names, as Python's re.sub does (may be repeated, applied "
    "in order)",
    "--include GLOB": "convert these tensors only",
    "--exclude GLOB": "leave these tensors out",
}


def add_parser(commands: Any) -> None:
    """Add the command to the command line."""
    parser = add_command(
        commands,
        "convert",
        _run,
        summary="convert to .pt or .safetensors, with other dtypes or names, in shards",
        description=_DESCRIPTION,
        examples=r"""
            torchzip convert model.pt model.safetensors --dtype bfloat16
            torchzip convert a.bin b.pt --dtype '*norm*=float32' --dtype float16
            torchzip convert run.ckpt model.pt --include 'state_dict.*' --rename '^state_dict\.=>'
            torchzip convert model.pt out/ --max-shard-size 5GB --jobs 2
        """,
    )
    parser.add_argument("src", metavar="SRC")
    parser.add_argument("dst", metavar="DST")
    add_repeated(parser, _RULES)
    parser.add_argument(
        "--max-shard-size",
        metavar="SIZE",
        help="write shards of at most this size, such as 5GB, and an index",
    )
    parser.add_argument(
        "--jobs", type=int, metavar="N", help="share the work among N processes (default 1)"
    )
    parser.add_argument(
        "--verify",
        action="store_true",
        help="also check the CRCs of bytes that are only copied",
    )
    parser.add_argument("--dry-run", action="store_true", help="show the plan and write nothing")
    parser.add_argument("--force", action="store_true", help="overwrite DST")
    parser.add_argument("--json", action="store_true", help="print the report as JSON on stdout")


def rules_of(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the rules of a command line as `torchzip.convert` takes them."""
    return {
        "dtype": parse_rules(arguments.dtype),
        "rename": parse_renames(arguments.rename) or None,
        "include": arguments.include,
        "exclude": arguments.exclude,
    }


def _run(arguments: argparse.Namespace) -> int:
    with exit_on_sigterm():
        if arguments.dry_run:
            _dry_run(arguments)
        else:
            _convert(arguments)
    return DONE


def _convert(arguments: argparse.Namespace) -> None:
    with warnings_said(), progress_line() as progress:
        report = torchzip.convert(
            arguments.src,
            arguments.dst,
            max_shard_size=arguments.max_shard_size,
            jobs=arguments.jobs,
            verify=arguments.verify,
            progress=progress,
            overwrite=arguments.force,
            limits=limits_of(arguments),
            **rules_of(arguments),
        )
    if arguments.json:
        print(json.dumps(dataclasses.asdict(report), indent=2))
    _say_tied(report.tied)
    _say_lost(report.lost, report.refused)
    shards = len(report.files) - 1
    where = f" in {count_text(shards, 'shard')}" if shards else ""
    tensors = count_text(report.tensors, "tensor")
    say(f"{report.target}: {tensors}{where}, {nbytes_text(report.nbytes)}")


def _dry_run(arguments: argparse.Namespace) -> None:
    from torchzip.convert.plan import make_plan  # slow to import, and only needed here
    from torchzip.convert.rules import Rules
    from torchzip.convert.targets import parse_size, parse_target

    target = parse_target(arguments.dst)
    rules = Rules(**rules_of(arguments))
    size = arguments.max_shard_size
    max_shard_nbytes = None if size is None else parse_size(size)
    opened = torchzip.lazy_load(arguments.src, limits=limits_of(arguments))
    with opened as checkpoint, ErrorPlace(path=checkpoint.path):
        plan = make_plan(checkpoint, target, rules, max_shard_nbytes=max_shard_nbytes)
    for line in plan.warnings:
        say(f"warning: {line}")
    print(json.dumps(_plan_values(plan), indent=2) if arguments.json else _plan_text(plan))
    _say_tied(plan.tied)
    _say_lost(plan.lost, plan.refused)


def _plan_values(plan: Plan) -> dict[str, Any]:
    files = {file.path: file.nbytes for file in plan.files}
    if plan.index is not None:
        files[plan.index[0]] = len(plan.index[1])
    return {
        "format": plan.output.format,
        "nbytes": plan.nbytes,
        "files": files,
        "tensors": [dataclasses.asdict(row) for row in plan.tensors],
        "tied": plan.tied,
        "lost": plan.lost,
        "refused": plan.refused,
    }


def _plan_text(plan: Plan) -> str:
    with_files = plan.index is not None
    rows = [["name", "dtype", "shape", "size", *(["file"] if with_files else [])]]
    rows += [_row(row, with_files) for row in plan.tensors]
    lines = table(rows, right=(3,))
    where = f" in {count_text(len(plan.files), 'shard')}" if with_files else ""
    tensors = count_text(len(plan.tensors), "tensor")
    lines.append(f"{tensors}{where}, {nbytes_text(plan.nbytes)} in all")
    return "\n".join(lines)


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


def _say_tied(tied: Mapping[str, str]) -> None:
    if tied:
        lines = [f"{name} has its data under {holder}" for name, holder in tied.items()]
        say(f"tied: {_first(lines)}")


def _first(lines: Sequence[str]) -> str:
    more = f"; and {len(lines) - 10:,} more" if len(lines) > 10 else ""
    return "; ".join(lines[:10]) + more


def _say_lost(lost: Sequence[str], refused: Sequence[tuple[str, str]]) -> None:
    if lost:
        say(f"not in the output: {_first(lost)}")
    if refused:
        reasons = sorted({reason for _, reason in refused})
        say("torch.load needs weights_only=False for the output, because of " + ", ".join(reasons))
