"""Arguments and exit codes: 0 done, 1 the file is bad, 2 wrong usage."""

from __future__ import annotations

import argparse
import dataclasses
import io
import json
import os
import sys
import warnings
from collections.abc import Sequence
from typing import Any

import torchzip
from torchzip.cli.listing import (
    as_json,
    as_text,
    describe,
    describe_globals,
    globals_as_text,
)
from torchzip.cli.progress import progress_line
from torchzip.cli.rendering import nbytes_text, printable, table
from torchzip.convert.plan import Plan, make_plan, target_format
from torchzip.errors import TorchZipError

_DONE, _BAD, _USAGE = 0, 1, 2


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(
        prog="torchzip",
        description="Look at and convert PyTorch checkpoints, without PyTorch.",
        epilog="Exit status: 0 done, 1 the file is bad, 2 wrong usage.",
    )
    parser.add_argument("--version", action="version", version=f"torchzip {torchzip.__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    ls = commands.add_parser(
        "ls",
        help="names, dtypes, shapes and sizes",
        description="List the tensors of a checkpoint: names, dtypes, shapes, sizes, totals.",
        epilog="example: torchzip ls -l model.pt",
    )
    ls.add_argument("file")
    ls.add_argument(
        "-l", dest="long", action="store_true", help="also strides, devices and what shares memory"
    )
    ls.add_argument("--json", action="store_true", help="everything, as JSON")
    ls.set_defaults(run=_ls)

    names = commands.add_parser(
        "globals",
        help="every class and function that the file names",
        description="List every class and function that a checkpoint names, and which of them are "
        "foreign: not known to torchzip, kept as inert objects. None is ever imported or called. "
        "The last column says what torch.load accepts by default (weights_only=True).",
        epilog="example: torchzip globals model.ckpt",
    )
    names.add_argument("file")
    names.add_argument("--json", action="store_true", help="the names, as JSON")
    names.set_defaults(run=_globals)

    convert = commands.add_parser(
        "convert",
        help="to .pt or .safetensors, in another dtype",
        description="Convert a checkpoint. The suffix of DST says to what: .pt .pth .bin .ckpt or "
        ".safetensors.",
        epilog="examples: torchzip convert model.pt model.safetensors --dtype bfloat16; "
        "torchzip convert a.bin b.pt --dtype '*norm*=float32' --dtype float16",
    )
    convert.add_argument("src")
    convert.add_argument("dst")
    convert.add_argument(
        "--dtype",
        action="append",
        default=[],
        metavar="DTYPE",
        help="for all floating tensors; or GLOB=DTYPE for those whose name matches (may be "
        "repeated, the first match wins)",
    )
    convert.add_argument("--dry-run", action="store_true", help="show what would be written")
    convert.add_argument("--force", action="store_true", help="overwrite DST")
    convert.add_argument("--json", action="store_true", help="the report, as JSON on stdout")
    convert.set_defaults(run=_convert)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status."""
    arguments = build_parser().parse_args(argv)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # names may have what the terminal has not
            stream.reconfigure(errors="backslashreplace")
    try:
        status: int = arguments.run(arguments)
        sys.stdout.flush()
        return status
    except BrokenPipeError:
        # The reader of our output has gone; keep the interpreter from noticing it again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _DONE
    except KeyboardInterrupt:
        _say("interrupted; nothing was written")
        return 130
    except FileExistsError as error:
        _say(f"{error.filename} exists; --force overwrites it")
        return _USAGE
    except TorchZipError as error:
        _say(str(error))
        return _BAD
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        _say(f"{place}{error.strerror or error}")
        return _BAD
    except ValueError as error:
        _say(str(error))
        return _USAGE


def _say(text: str) -> None:
    print(f"torchzip: {printable(text)}", file=sys.stderr)


def _ls(arguments: argparse.Namespace) -> int:
    with torchzip.lazy_load(arguments.file) as checkpoint:
        listing = describe(checkpoint)
    print(as_json(listing) if arguments.json else as_text(listing, long=arguments.long))
    return _DONE


def _globals(arguments: argparse.Namespace) -> int:
    with torchzip.lazy_load(arguments.file) as checkpoint:
        names = describe_globals(checkpoint)
        place = f"{checkpoint.path}: {checkpoint.format}"
    print(json.dumps(names, indent=2) if arguments.json else globals_as_text(names, place))
    return _DONE


def _dtype_rules(texts: Sequence[str]) -> list[tuple[str, str]]:
    rules = []
    for text in texts:
        glob, equals, dtype = text.rpartition("=")
        rules.append((glob if equals else "*", dtype))
    return rules


def _convert(arguments: argparse.Namespace) -> int:
    rules = _dtype_rules(arguments.dtype)
    if arguments.dry_run:
        return _dry_run(arguments, rules)
    with warnings.catch_warnings(), progress_line() as progress:
        warnings.simplefilter("always")
        report = torchzip.convert(
            arguments.src, arguments.dst, dtype=rules, progress=progress, overwrite=arguments.force
        )
    if arguments.json:
        print(json.dumps(dataclasses.asdict(report), indent=2))
    _say_lost(report.lost, report.refused)
    _say(f"{report.target}: {report.tensors:,} tensors, {nbytes_text(report.nbytes)}")
    return _DONE


def _dry_run(arguments: argparse.Namespace, rules: list[tuple[str, str]]) -> int:
    format = target_format(arguments.dst)
    with torchzip.lazy_load(arguments.src) as checkpoint:
        plan = make_plan(checkpoint, format, dtype=rules)
        print(json.dumps(_plan_values(plan), indent=2) if arguments.json else _plan_text(plan))
    _say_lost(plan.lost, plan.refused)
    return _DONE


def _plan_values(plan: Plan) -> dict[str, Any]:
    return {
        "format": plan.format,
        "nbytes": plan.nbytes,
        "tensors": [dataclasses.asdict(row) for row in plan.tensors],
        "lost": plan.lost,
        "refused": plan.refused,
    }


def _plan_text(plan: Plan) -> str:
    rows = [["name", "dtype", "shape", "size"]]
    for row in plan.tensors:
        dtype = row.to_dtype
        if row.from_dtype != row.to_dtype:
            dtype = f"{row.from_dtype} -> {row.to_dtype}"
        size = f"= {printable(row.alias_of)}" if row.alias_of else nbytes_text(row.nbytes)
        rows.append([printable(row.name), dtype, str(list(row.shape)).replace("None", "*"), size])
    lines = table(rows, right=(3,))
    lines.append(f"{len(plan.tensors):,} tensors, {nbytes_text(plan.nbytes)} in all")
    return "\n".join(lines)


def _say_lost(lost: Sequence[str], refused: Sequence[tuple[str, str]]) -> None:
    if lost:
        shown = "; ".join(lost[:10]) + (f"; and {len(lost) - 10:,} more" if len(lost) > 10 else "")
        _say(f"not in the output, which holds tensors only: {shown}")
    if refused:
        reasons = sorted({reason for _, reason in refused})
        _say("torch.load needs weights_only=False for the output, because of " + ", ".join(reasons))
