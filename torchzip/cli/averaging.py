"""``torchzip average``: the mean of checkpoints of one model."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

from torchzip import tools
from torchzip.checkpoint.quantities import count_text, some_of
from torchzip.cli.command import DONE, Command, say
from torchzip.cli.converting import OUTPUT_ARGUMENTS, show, writing

if TYPE_CHECKING:
    from torchzip.tools.merging import Merged

COMMAND = Command(
    name="average",
    summary="write the average of checkpoints of one model",
    description="""\
Write the average of checkpoints, of any formats, to OUT; convert says which formats that can be.
Floats are added up in the order of the files in float32 and rounded once, to the dtype of the first
file. Ints are divided with rounding down; with --weights they are those of the last file. All else
is that of the first: states of optimizers, epochs, arguments.
""",
    examples="""
        torchzip average last.pt before.pt best.pt -o mean.pt
        torchzip average a.safetensors b.pt -o mean.safetensors --weights 1,3 --dtype bfloat16
        torchzip average run/*.ckpt -o mean.pt --include 'state_dict.*'
    """,
    arguments={
        "file": {"metavar": "FILE", "nargs": "+"},
        "-o": {"metavar": "OUT", "dest": "out", "required": True, "help": "where to write it"},
        "--weights LIST": "a number for each file, such as 1,1,2",
        "--partial": "take what there is of tensors that a file lacks or has in another shape",
        **OUTPUT_ARGUMENTS,
    },
)


def run(arguments: argparse.Namespace) -> int:
    weights = None if arguments.weights is None else _parse_weights(arguments.weights)
    with writing(arguments, arguments.out) as options:
        merged = tools.average(
            arguments.file, arguments.out, weights=weights, partial=arguments.partial, **options
        )
    show(merged.converted, arguments)
    say_merged(merged)
    return DONE


def _parse_weights(text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise ValueError(f"--weights {text!r}: numbers with commas between were expected") from None


def say_merged(merged: Merged) -> None:
    """Print what was not computed, and what was computed in another way."""
    say(f"{count_text(merged.computed, 'tensor')} computed")
    if merged.counters:
        say(f"rounded down: {first_names(merged.counters)}")
    reasons: dict[str, list[str]] = {}
    for name, reason in merged.kept.items():
        reasons.setdefault(reason, []).append(name)
    for reason, names in reasons.items():
        say(f"not computed ({reason}): {first_names(names)}")
    if merged.left_out:
        say(f"not in the first file, left out: {first_names(merged.left_out)}")


def first_names(names: Sequence[str]) -> str:
    """Return the first names of what was not computed as usual."""
    return some_of(names, 5, last=", and ")
