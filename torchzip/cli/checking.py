"""``torchzip verify``: its options, and its report as text."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torchzip
from torchzip import tools
from torchzip.checkpoint.quantities import count_text, name_text, nbytes_text, some_of
from torchzip.cli.command import (
    BAD,
    DONE,
    Command,
    error_text,
    limits_of,
    print_verdict,
    reading_options,
    say,
)
from torchzip.cli.naming import POLICY_ARGUMENTS, gate_of
from torchzip.cli.progress import progress_line
from torchzip.cli.rendering import fitted_table, screen
from torchzip.container.hub_names import is_index
from torchzip.convert.outputs.registry import output_of
from torchzip.errors import FormatError, TorchZipError, printable
from torchzip.limits import Limits

if TYPE_CHECKING:
    from torchzip.tools.odd_values import OddValues
    from torchzip.tools.torch_verdict.verification import Verified

COMMAND = Command(
    name="verify",
    summary="check whether the file is intact, and whether torch.load accepts it",
    description="""\
Read a whole checkpoint, compare every CRC and check all bounds. Then say whether torch.load accepts
it by default (weights_only=True), needs weights_only=False, or refuses it, and why. A file that
torch.load refuses can still be sound. Of a directory that is not one checkpoint, every file in it
with a suffix of checkpoints is checked. The exit status is 1 if one of the files is bad, or names
something that torch.load refuses by default; with --fail-on never, only if it is bad.
""",
    examples="""
        torchzip verify model.pt
        torchzip verify run/*.ckpt other/ --allow lightning
    """,
    arguments={
        "files": {"metavar": "FILE", "nargs": "+"},
        **POLICY_ARGUMENTS,
        "--values": "also look for NaN and infinities in all tensors, which are not a fault of it",
        "--json": "print the result as JSON",
    },
)

#: Suffixes of checkpoints that `convert` does not write.
_READ_ALONE = (".pt2", ".ptl", ".nemo")


def run(arguments: argparse.Namespace) -> int:
    gate = gate_of(arguments)
    files = [
        each for file in arguments.files for each in checkpoints_in(file, limits_of(arguments))
    ]
    status, made = DONE, []
    for file in files:
        try:
            with progress_line() as progress:
                found = tools.verify(
                    file, values=arguments.values, progress=progress, **reading_options(arguments)
                )
        except (TorchZipError, OSError) as error:
            if len(files) == 1:
                raise
            say(error_text(error))
            status = BAD
            continue
        made.append(found)
        if not arguments.json:
            print_verdict(check_as_text(found))
        status = max(status, gate(found.file, found.refused))
    if arguments.json:
        values = [dataclasses.asdict(found) for found in made]
        print_verdict(json.dumps(values[0] if len(files) == 1 else values, indent=2))
    return status


def checkpoints_in(file: str, limits: Limits) -> list[str]:
    """Return what a path stands for: itself, or the checkpoints of a directory that is not one."""
    if not os.path.isdir(file) or any(
        is_index(name) or name.endswith(".metadata") for name in os.listdir(file)
    ):
        return [file]
    try:
        with torchzip.lazy_load(file, limits=limits):
            return [file]
    except FormatError as error:
        unread: list[str] = []  # not what is known to have none
        found = [
            os.path.join(folder, name)
            for folder, _, names in sorted(
                os.walk(file, onerror=lambda e: unread.append(e.filename))
            )
            for name in sorted(names)
            if _is_checkpoint(name) and not name.startswith(".")
        ]
        found += unread
        if not found:
            raise error
        return found


def _is_checkpoint(name: str) -> bool:
    return output_of(name) is not None or name.lower().endswith(_READ_ALONE)


def check_as_text(found: Verified) -> str:
    without = found.without_crc
    compared = found.records - len(without)
    lines = [
        f"{printable(found.file)}: sound; {found.format}, "
        f"{count_text(found.tensors, 'tensor')}, {count_text(found.records, 'record')}, "
        f"{nbytes_text(found.nbytes)} read",
        f"{count_text(compared, 'CRC')} compared" + (", all right" if compared else ""),
    ]
    if without:
        shown = some_of(list(map(printable, without)), 10)
        lines.append(f"{count_text(len(without), 'record')} without a CRC: {shown}")
    lines += [f"note: {printable(note)}" for note in found.notes]
    lines.append(_torch_line(found))
    if found.odd_values is not None:
        lines += _value_lines(found.odd_values)
    return "\n".join(lines)


def _value_lines(odd: Sequence[OddValues]) -> list[str]:
    """Return lines about the tensors that have NaN or infinities."""
    rows = [
        [name_text(each.name), f"{each.nans:,} NaN", f"{each.infinities:,} infinite"]
        for each in odd
    ]
    lines = fitted_table(rows, screen(), (0,), right=(1, 2))
    return [*lines, f"{count_text(len(odd), 'tensor')} with NaN or infinities"]


def _torch_line(found: Verified) -> str:
    reason = printable(found.reason or "")
    if found.torch_load == "accepts":
        line = "torch.load accepts (weights_only=True)"
        return f"{line}, {reason}" if reason else line
    why = [reason] if reason else []
    if found.refused:
        why.append(f"torch's safe loader refuses {', '.join(map(printable, found.refused))}")
    if found.refused_opcodes:
        why.append(f"its safe loader does not know the opcodes {', '.join(found.refused_opcodes)}")
    return f"torch.load {found.torch_load}: {'; '.join(why)}"
