"""``torchzip globals``: every class and function that a file names."""

from __future__ import annotations

import argparse
import json

import torchzip
from torchzip.checkpoint.quantities import count_text
from torchzip.cli.command import DONE, Command, reading_options
from torchzip.cli.rendering import table
from torchzip.errors import printable
from torchzip.tools.global_names import GlobalName, global_names

COMMAND = Command(
    name="globals",
    summary="list every class and function that the file names",
    description="""\
List every class and function that a checkpoint names, in any pickle that a loader of its format
runs. Foreign ones are unknown to torchzip and kept as inert objects. Nothing is ever imported or
called. The last column shows what torch.load accepts by default (weights_only=True).
""",
    examples="torchzip globals model.ckpt",
    arguments={
        "FILE": None,
        "--json": "print the names as JSON",
    },
)


def run(arguments: argparse.Namespace) -> int:
    with torchzip.lazy_load(arguments.file, **reading_options(arguments)) as checkpoint:
        names = global_names(checkpoint)
    if arguments.json:
        print(json.dumps([row._asdict() for row in names], indent=2))
    else:
        print(globals_as_text(names, f"{checkpoint.path}: {checkpoint.format}"))
    return DONE


def globals_as_text(names: list[GlobalName], place: str) -> str:
    rows = [
        (
            printable(f"{row.module}.{row.name}"),
            "foreign" if row.foreign else "known",
            "accepts" if row.torch_safe else "refuses",
        )
        for row in names
    ]
    lines = table([("name", "torchzip", "torch.load"), *rows]) if names else []
    foreign = sum(row.foreign for row in names)
    refused = sum(not row.torch_safe for row in names)
    count = count_text(len(names), "name")
    lines.append(
        f"{printable(place)}, {count}, {foreign:,} foreign, {refused:,} that torch.load refuses by "
        "default"
    )
    return "\n".join(lines)
