"""``torchzip verify``: its options, and its report as text."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from torchzip import tools
from torchzip.checkpoint.quantities import count_text, nbytes_text, some_of
from torchzip.cli.command import DONE, Command, print_found, reading_options
from torchzip.cli.progress import progress_line
from torchzip.errors import printable

if TYPE_CHECKING:
    from torchzip.tools.torch_verdict.verification import Verified

COMMAND = Command(
    name="verify",
    summary="check whether the file is intact, and whether torch.load accepts it",
    description="""\
Read a whole checkpoint, compare every CRC and check all bounds. Then say whether torch.load accepts
it by default (weights_only=True), needs weights_only=False, or refuses it, and why. A file that
torch.load refuses can still be sound.
""",
    examples="torchzip verify model.pt",
    arguments={
        "FILE": None,
        "--json": "print the result as JSON",
    },
)


def run(arguments: argparse.Namespace) -> int:
    with progress_line() as progress:
        found = tools.verify(arguments.file, progress=progress, **reading_options(arguments))
    print_found(found, arguments, check_as_text)
    return DONE


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
    return "\n".join(lines)


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
