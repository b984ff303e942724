"""``torchzip repair``: its options, and what was recovered and what was lost."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from torchzip import tools
from torchzip.checkpoint.quantities import count_text, name_text, nbytes_text, some_of
from torchzip.cli.command import (
    DONE,
    Command,
    in_options,
    print_found,
    reading_options,
    warnings_said,
)
from torchzip.cli.rendering import fitted_table, screen
from torchzip.errors import printable

if TYPE_CHECKING:
    from torchzip.tools.repairing.repair import LostTensor, Repaired

COMMAND = Command(
    name="repair",
    summary="recover what is intact in a damaged file",
    description="""\
Write everything that can be recovered from a truncated or damaged checkpoint to a new .pt or
.safetensors file. Every tensor whose bytes are intact keeps its name; lost tensors are listed.
Nothing is guessed: a CRC-32 must match, and a tensor without one is listed as unverified.

Exit status: 0 something was recovered (losses are listed), 1 nothing could be recovered and nothing
was written, 2 wrong usage.
""",
    examples="""
        torchzip repair broken.pt saved.pt
        torchzip repair broken.pt saved.pt --json
    """,
    arguments={
        "BROKEN": None,
        "OUT": "a .pt or .safetensors file, written completely or not at all",
        "--force": "overwrite OUT",
        "--json": "print the result as JSON",
    },
)
#: At most so many unverified tensors are shown; --json has all.
_MOST_UNVERIFIED = 10


def run(arguments: argparse.Namespace) -> int:
    with warnings_said():
        found = tools.repair(
            arguments.broken,
            arguments.out,
            overwrite=arguments.force,
            **reading_options(arguments),
        )
    print_found(found, arguments, as_text)
    return DONE


def as_text(found: Repaired) -> str:
    """Return the result as lines: a summary first, then a line for each lost tensor."""
    whole = found.tensors + len(found.lost)
    count = f"{found.tensors:,} of {count_text(whole, 'tensor')}"
    lines = [f"{printable(found.out)}: {count}, {nbytes_text(found.nbytes)}"]
    if found.damage is None:
        seen = "no damage can be seen in" if found.unverified else "nothing is wrong with"
        lines.append(f"{seen} {printable(found.broken)}")
    else:
        lines.append(f"damage: {printable(in_options(found.damage))}")
    lines += fitted_table([_row(lost) for lost in found.lost], screen(), (3, 1))
    if found.unverified:
        count = count_text(len(found.unverified), "tensor")
        shown = some_of(list(map(name_text, found.unverified)), _MOST_UNVERIFIED)
        lines.append(f"unverified, since they have no CRC: {count}: {shown}")
    lines += [f"note: {printable(note)}" for note in found.notes]
    return "\n".join(lines)


def _row(lost: LostTensor) -> tuple[str, ...]:
    shape = ", ".join("?" if size is None else str(size) for size in lost.shape)
    return ("lost", name_text(lost.name), f"{lost.torch_dtype} [{shape}]", printable(lost.why))
