"""``torchzip convert``: its options, its report, and what it would do."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torchzip
from torchzip.cli.command import DONE, add_command, exit_on_sigterm, parse_renames, say
from torchzip.cli.progress import progress_line
from torchzip.cli.rendering import count_text, nbytes_text, table
from torchzip.convert.rules import Rules
from torchzip.convert.targets import parse_size, parse_target
from torchzip.errors import TorchZipError, printable

if TYPE_CHECKING:
    from torchzip.convert.plan import Plan, PlannedTensor

_DESCRIPTION = """\
Convert a checkpoint of any kind. DST says to what: a .pt .pth .bin .ckpt or .safetensors file, a
directory (model.safetensors in it), or an *.index.json (shards beside it). It appears complete or
not at all, and may be SRC itself.
"""


def add_parser(commands: Any) -> None:
    """Add the command to the command line."""
    parser = add_command(
        commands,
        "convert",
        _run,
        summary="to .pt or .safetensors, in another dtype, under other names, in shards",
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
    parser.add_argument(
        "--dtype",
        action="append",
        default=[],
        metavar="[GLOB=]DTYPE",
        help="for all floating tensors, or for those whose name matches (may be repeated, the "
        "first match wins)",
    )
    parser.add_argument(
        "--rename",
        action="append",
        default=[],
        metavar="REGEX=>REPL",
        help="replace in names, as Python's re.sub does (may be repeated, applied in turn)",
    )
    parser.add_argument(
        "--include", action="append", default=[], metavar="GLOB", help="take these tensors only"
    )
    parser.add_argument(
        "--exclude", action="append", default=[], metavar="GLOB", help="leave these tensors out"
    )
    parser.add_argument(
        "--max-shard-size",
        metavar="SIZE",
        help="write shards of at most this size, such as 5GB, with an index",
    )
    parser.add_argument(
        "--jobs", type=int, metavar="N", help="share the work among N processes (default 1)"
    )
    parser.add_argument(
        "--verify", action="store_true", help="check the CRC of unchanged bytes too"
    )
    parser.add_argument("--dry-run", action="store_true", help="show what would be written")
    parser.add_argument("--force", action="store_true", help="overwrite DST")
    parser.add_argument("--json", action="store_true", help="the report, as JSON on stdout")


def rules_of(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the rules of a command line as `torchzip.convert` takes them."""
    dtypes = []
    for text in arguments.dtype:
        glob, equals, dtype = text.rpartition("=")
        dtypes.append((glob if equals else "*", dtype))
    renames = parse_renames(arguments.rename)
    return {
        "dtype": dtypes[0][1] if len(dtypes) == 1 and dtypes[0][0] == "*" else dtypes,
        "rename": renames or None,
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
    with warnings.catch_warnings(record=True) as caught, progress_line() as progress:
        warnings.simplefilter("always")
        report = torchzip.convert(
            arguments.src,
            arguments.dst,
            max_shard_size=arguments.max_shard_size,
            jobs=arguments.jobs,
            verify=arguments.verify,
            progress=progress,
            overwrite=arguments.force,
            **rules_of(arguments),
        )
    for warning in caught:
        say(f"warning: {warning.message}")
    if arguments.json:
        print(json.dumps(dataclasses.asdict(report), indent=2))
    _say_lost(report.lost, report.refused)
    shards = len(report.files) - 1
    where = f" in {count_text(shards, 'shard')}" if shards else ""
    tensors = count_text(report.tensors, "tensor")
    say(f"{report.target}: {tensors}{where}, {nbytes_text(report.nbytes)}")


def _dry_run(arguments: argparse.Namespace) -> None:
    from torchzip.convert.plan import make_plan  # what other commands need not wait for

    target = parse_target(arguments.dst)
    rules = Rules(**rules_of(arguments))
    size = arguments.max_shard_size
    max_shard_nbytes = None if size is None else parse_size(size)
    with torchzip.lazy_load(arguments.src) as checkpoint:
        try:
            plan = make_plan(checkpoint, target, rules, max_shard_nbytes=max_shard_nbytes)
        except TorchZipError as error:
            error.at(path=checkpoint.path)
            raise
    for line in plan.unused:
        say(f"warning: {line}")
    print(json.dumps(_plan_values(plan), indent=2) if arguments.json else _plan_text(plan))
    _say_lost(plan.lost, plan.refused)


def _plan_values(plan: Plan) -> dict[str, Any]:
    files = {file.path: file.nbytes for file in plan.files}
    if plan.index is not None:
        files[plan.index[0]] = len(plan.index[1])
    return {
        "format": plan.format,
        "nbytes": plan.nbytes,
        "files": files,
        "tensors": [dataclasses.asdict(row) for row in plan.tensors],
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
    name = _name(row.name)
    if row.source != row.name:
        name = f"{_name(row.source)} -> {name}"
    dtype = row.to_dtype
    if row.from_dtype != row.to_dtype:
        dtype = f"{row.from_dtype} -> {row.to_dtype}"
    shape = str(list(row.shape)).replace("None", "*")
    size = nbytes_text(row.nbytes) if row.alias_of is None else f"= {_name(row.alias_of)}"
    return [name, dtype, shape, size, *([os.path.basename(row.file)] if with_file else [])]


def _name(name: str) -> str:
    return printable(name) or "(the object itself)"


def _say_lost(lost: Sequence[str], refused: Sequence[tuple[str, str]]) -> None:
    if lost:
        shown = "; ".join(lost[:10]) + (f"; and {len(lost) - 10:,} more" if len(lost) > 10 else "")
        say(f"not in the output: {shown}")
    if refused:
        reasons = sorted({reason for _, reason in refused})
        say("torch.load needs weights_only=False for the output, because of " + ", ".join(reasons))
