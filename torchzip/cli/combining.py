"""``torchzip combine``: what a formula makes of checkpoints."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from torchzip import tools
from torchzip.cli.averaging import say_merged
from torchzip.cli.command import DONE, Command
from torchzip.cli.converting import OUTPUT_ARGUMENTS, show, writing

COMMAND = Command(
    name="combine",
    summary="write what a formula makes of checkpoints: deltas, task arithmetic, interpolation",
    description="""\
Compute a formula of checkpoints for every floating tensor and write it to OUT; convert says which
formats that can be. FORMULA has names, numbers, + - * / and parentheses; NAME=FILE says what a name
stands for. It is computed in float32 and rounded once, to the dtype of the first file. All else is
that of the first file.
""",
    examples="""
        torchzip combine 'a + 0.7*(b - c)' a=base.pt b=tuned.pt c=old.pt -o out.pt
        torchzip combine 'base + delta' delta=delta.pt base=llama.pt -o vicuna.safetensors
        torchzip combine '0.3*x + 0.7*y' x=a.safetensors y=b.safetensors -o mix.safetensors
    """,
    arguments={
        "formula": {"metavar": "FORMULA"},
        "file": {"metavar": "NAME=FILE", "nargs": "+"},
        "-o": {"metavar": "OUT", "dest": "out", "required": True, "help": "where to write it"},
        "--partial": "take from the first file what another lacks or has in another shape",
        **OUTPUT_ARGUMENTS,
    },
    takes_negatives=True,  # a formula such as -1*a
)


def run(arguments: argparse.Namespace) -> int:
    sources = _parse_sources(arguments.file)
    with writing(arguments, arguments.out) as options:
        merged = tools.combine(
            arguments.formula, sources, arguments.out, partial=arguments.partial, **options
        )
    show(merged.converted, arguments)
    say_merged(merged)
    return DONE


def _parse_sources(texts: Sequence[str]) -> dict[str, str]:
    """Return the files by name."""
    sources: dict[str, str] = {}
    for text in texts:
        name, equals, path = text.partition("=")
        if not equals or not path or not name.isidentifier():
            raise ValueError(f"{text!r}: NAME=FILE was expected")
        if name in sources:
            raise ValueError(f"{name} stands for two files")
        sources[name] = path
    return sources
