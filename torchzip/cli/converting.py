"""``torchzip convert``: its options, its report, and its plan."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torchzip
from torchzip.checkpoint.quantities import count_text, name_text, nbytes_text, shape_text, some_of
from torchzip.cli.command import (
    BAD,
    DONE,
    JOIN_ARGUMENT,
    Command,
    exit_on_sigterm,
    opened,
    parse_renames,
    parse_rules,
    readable,
    reading_options,
    say,
    warnings_said,
)
from torchzip.cli.progress import progress_line
from torchzip.cli.rendering import fitted_table, screen
from torchzip.convert.outputs.registry import output_of
from torchzip.errors import printable

if TYPE_CHECKING:
    from torchzip.convert.planned import PlannedTensor
    from torchzip.convert.report import ConvertReport

#: What a command has that writes a converted checkpoint.
OUTPUT_ARGUMENTS: dict[str, str | dict[str, Any] | None] = {
    "--dtype [GLOB=]DTYPE ...": "new dtype of all floating tensors, or of those whose name "
    "matches (may be repeated, the first match wins)",
    "--rename REGEX=>REPL ...": "replace in names, as Python's re.sub does (may be repeated, "
    "applied in order)",
    "--include GLOB ...": "convert these tensors only",
    "--exclude GLOB ...": "leave these tensors out, or what is in a container of this name",
    "--metadata KEY=VALUE ...": "put this into the metadata of a .safetensors or .gguf file; for "
    "a .gguf VALUE is taken as JSON if it is valid JSON, else as a string (may be repeated)",
    "--max-shard-size SIZE": "write shards of at most this size, such as 5GB, and an index",
    "--jobs": {
        "type": int,
        "metavar": "N",
        "help": "share the work among N processes (default: one for each core, at most 4, if there "
        "is enough to do; 1 turns that off)",
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
    summary="convert to .pt, .safetensors, .gguf or .npz, with other dtypes or names, in shards",
    description="""\
Convert a checkpoint of any format. DST decides the target format: a .pt .pth .bin .ckpt .th
.pth.tar, .safetensors .sft, .gguf or .npz file, a directory (which gets a model.safetensors), or an
*.index.json (with shards beside it). DST is written completely or not at all, and may be SRC
itself. SRC may be -, for what comes on stdin, and DST -, for a .pt on stdout. SRC may be the
directory of all ranks of a training; with --join it is a pattern, in quotes, of shards.
""",
    examples=r"""
        torchzip convert model.pt model.safetensors --dtype bfloat16
        torchzip convert a.bin b.pt --dtype '*norm*=float32' --dtype float16
        torchzip convert model.pt model.gguf --dtype q8_0 --metadata general.architecture=gpt2
        torchzip convert run.ckpt model.safetensors --weights --strip-wrappers
        torchzip convert hf/ out/ --dtype float16
        torchzip convert model.pt out/ --max-shard-size 5GB --jobs 2
        torchzip convert --join llama 'consolidated.*.pth' model.safetensors
    """,
    arguments={
        "SRC": None,
        "DST": None,
        **JOIN_ARGUMENT,
        "--weights": "only the model's state dict out of a training checkpoint, without the way to "
        "it in names; says which it is. This and the next six come before all other rules",
        "--ema": "the same, with the averaged weights in place of the model's",
        "--strip-wrappers": "names without module., _orig_mod., _fsdp_wrapped_module., "
        "_checkpoint_wrapped_module., _forward_module. and _fpw_module., wherever they are",
        "--untie": "give each name data of its own",
        "--pack": "to a .pt: write of a storage only what its tensors reach",
        "--stack OLD=>NEW ...": "make one tensor of those that are numbered by {i}, as in "
        "'experts.{i}.w=>experts.w'; a star stands for anything but dots (may be repeated)",
        "--unstack OLD=>NEW ...": "take a tensor apart along its first axis, as in "
        "'experts.w=>experts.{i}.w' (may be repeated)",
        "--no-companions": "do not copy the small files beside the weights of a directory (config, "
        "tokenizer) to another directory",
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
    try:
        report = _converted(arguments)
    except BrokenPipeError:  # DST is -; half a checkpoint is none
        say(f"{_STDOUT}: its reader has gone before the checkpoint was written")
        return BAD
    show(report, arguments)
    return DONE


def _converted(arguments: argparse.Namespace) -> ConvertReport:
    with contextlib.ExitStack() as stack:
        dst = stack.enter_context(_writable(arguments))
        options = stack.enter_context(writing(arguments, dst))
        if arguments.join:
            source: Any = stack.enter_context(opened(arguments.src, arguments))
            options["limits"] = None  # it is open
        else:
            source = stack.enter_context(readable(arguments.src))
        report = torchzip.convert(
            source,
            dst,
            companions=not arguments.no_companions,
            weights=arguments.weights,
            ema=arguments.ema,
            untie=arguments.untie,
            pack=arguments.pack,
            strip_wrappers=arguments.strip_wrappers,
            stack=parse_renames(arguments.stack, "--stack"),
            unstack=parse_renames(arguments.unstack, "--unstack"),
            **options,
        )
        if dst != arguments.dst:
            report = dataclasses.replace(report, target=_STDOUT, files=(_STDOUT,))
    return report


_STDOUT = "<stdout>"


@contextlib.contextmanager
def _writable(arguments: argparse.Namespace) -> Iterator[str]:
    """Give the path that is written to; for ``-`` that of a temporary .pt, copied to stdout.

    A checkpoint is not written from its start to its end: what is around the data has its CRCs.
    """
    if arguments.dst != "-":
        yield arguments.dst
        return
    if arguments.json and not arguments.dry_run:
        raise ValueError(
            "DST is -, and so the checkpoint goes to stdout; --json would go there too"
        )
    if arguments.max_shard_size is not None:
        raise ValueError("DST is -, for one file; --max-shard-size needs a directory")
    if sys.stdout.isatty() and not arguments.dry_run:
        raise ValueError("DST is -, and stdout is a terminal; send it to a file or a command")
    with exit_on_sigterm(), tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "archive.pt")  # as torch names what it writes to a stream
        yield path
        if not arguments.dry_run:
            with open(path, "rb") as made:
                shutil.copyfileobj(made, sys.stdout.buffer, 1 << 20)
                sys.stdout.buffer.flush()


@contextlib.contextmanager
def writing(arguments: argparse.Namespace, dst: str) -> Iterator[dict[str, Any]]:
    """Give the options of `torchzip.convert` that a command line asks for; show the progress."""
    is_dry = arguments.dry_run
    watched = contextlib.nullcontext() if is_dry else progress_line()
    with exit_on_sigterm(), warnings_said(), watched as progress:
        yield {
            "metadata": parse_metadata(arguments.metadata, dst),
            "max_shard_size": arguments.max_shard_size,
            "jobs": "auto" if arguments.jobs is None else arguments.jobs,
            "verify": arguments.verify,
            "dequantize": arguments.dequantize,
            "progress": progress,
            "overwrite": arguments.force,
            "dry_run": is_dry,
            **reading_options(arguments),
            **rules_of(arguments),
        }


def parse_metadata(
    texts: Sequence[str], dst: str, *, can_drop: bool = False
) -> dict[str, Any] | None:
    """Return the metadata of ``KEY=VALUE`` for a destination: of JSON where that has types.

    With ``can_drop``, a key alone is to go.
    """
    output = output_of(dst) if texts else None
    values: dict[str, Any] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if can_drop and key and not equals:
            values[key] = None
            continue
        if not key or not equals:
            raise ValueError(f"--metadata {text!r}: KEY=VALUE was expected")
        values[key] = value
        if output is not None and output.has_typed_metadata:
            with contextlib.suppress(ValueError, RecursionError):
                values[key] = json.loads(value)
    return values or None


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
        "copied": report.copied,
        "refused": report.refused,
        "notes": report.notes,
    }


def _sums(report: ConvertReport) -> str:
    count, where = len(report.files), ""
    if report.target not in report.files:  # of several models
        where = f" in {count_text(count, 'file')}"
    elif count > 1:  # the last one is the index
        where = f" in {count_text(count - 1, 'shard')}"
    by = f", by {report.jobs} processes" if report.jobs > 1 else ""
    return f"{count_text(report.tensors, 'tensor')}{where}, {nbytes_text(report.nbytes)}{by}"


def _planned_text(report: ConvertReport) -> str:
    with_files = len(report.files) > 1
    rows = [["name", "dtype", "shape", "size", *(["file"] if with_files else [])]]
    rows += [_row(row, with_files) for row in report.rows]
    copied = [f"copied: {printable(path)}" for path in report.copied]
    lines = fitted_table(rows, screen(), (0, 3), right=(3,))
    return "\n".join([*lines, *copied, f"{_sums(report)} in all"])


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
    for note in report.notes:
        say(f"note: {note}")
    if report.taken:
        say(f"weights: {report.taken}")
    if report.copied:
        say(f"copied: {_first([os.path.basename(path) for path in report.copied])}")
    if report.tied:
        lines = [f"{name} has its data under {holder}" for name, holder in report.tied.items()]
        say(f"tied: {_first(lines)}")
    if report.dequantized:
        counts = Counter(report.dequantized.values())
        lines = [f"{count_text(count, 'weight')} ({scheme})" for scheme, count in counts.items()]
        say(f"dequantized: {_first(lines)}")
    if report.lost:
        say(f"not in the output: {_first(report.lost)}")
    if report.refused:
        reasons = sorted({reason for _, reason in report.refused})
        say("torch.load needs weights_only=False for the output, because of " + ", ".join(reasons))


def _first(lines: Sequence[str]) -> str:
    return some_of(lines, 10, "; ", "; and ")
