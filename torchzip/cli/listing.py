"""``torchzip ls``: what is in a checkpoint."""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Iterator, Mapping
from typing import Any

from torchzip.checkpoint.lazy import Checkpoint
from torchzip.checkpoint.outline import Outline, ValueRow, chosen, outline
from torchzip.cli.command import DONE, JOIN_ARGUMENT, Command, opened
from torchzip.cli.listing_text import flat_lines, sorted_by, sum_lines, tree_lines, value_lines
from torchzip.cli.rendering import Screen, screen
from torchzip.errors import UnsupportedError
from torchzip.formats.base import collector_paused
from torchzip.quantization.codes import codes
from torchzip.tools.value_json import JsonValues

COMMAND = Command(
    name="ls",
    summary="list names, dtypes, shapes and sizes",
    description="""\
List what is in a checkpoint: its tensors, which of them are tied or views, its other values, and
totals. No tensor is read. The table is the same on a terminal and in a pipe, except that names are
shortened to the width of a terminal.
""",
    examples="""
        torchzip ls model.pt
        torchzip ls --tree --depth 2 --sort size model.pt
        torchzip ls -l model.pt
        torchzip ls --join llama 'consolidated.*.pth'
        torchzip ls model.pt '*.bias' epoch
    """,
    arguments={
        "FILE": None,
        "globs": {
            "metavar": "GLOB",
            "nargs": "*",
            "default": [],
            "help": "list only the tensors and values whose names match one of these",
        },
        "--tree": "show a tree of modules; equal blocks are folded",
        "--depth": {"type": int, "metavar": "N", "help": "show the tree down to N levels"},
        "--sort": {
            "choices": ["name", "size"],
            "help": "order by name, or largest first (default: as saved)",
        },
        "-l": {
            "dest": "long",
            "action": "store_true",
            "help": "also show strides, devices and records",
        },
        "--all": "show all values, and every block of the tree",
        **JOIN_ARGUMENT,
        "--optimizer": "of a ZeRO directory, also what the optimizer keeps of each weight",
        "--json": "print everything as JSON",
    },
)


def run(arguments: argparse.Namespace) -> int:
    depth = arguments.depth
    if depth is not None and depth < 1:
        raise ValueError(f"--depth must be 1 or more, not {depth}")
    with collector_paused(True):  # of 100,000 tensors, nothing is garbage until the end
        with opened(arguments.file, arguments, optimizer=arguments.optimizer) as checkpoint:
            found = chosen(outline(checkpoint), arguments.globs)
            schemes = _schemes(checkpoint)
        if arguments.json:
            print(as_json(describe(found, schemes, sort=arguments.sort)))
            return DONE
        lines = text_lines(
            found,
            screen(),
            schemes=schemes,
            tree=arguments.tree or depth is not None,
            depth=depth,
            sort=arguments.sort,
            long=arguments.long,
            everything=arguments.all,
        )
        print("\n".join(lines))
    return DONE


def text_lines(
    found: Outline,
    where: Screen,
    *,
    schemes: Mapping[str, str] | None = None,
    tree: bool = False,
    depth: int | None = None,
    sort: str | None = None,
    long: bool = False,
    everything: bool = False,
) -> Iterator[str]:
    """Yield the listing: the tensors, flat or as a tree, the values, the totals."""
    if tree:
        yield from tree_lines(
            found, where, schemes or {}, depth=depth, sort=sort, fold=not everything, long=long
        )
    else:
        yield from flat_lines(
            found, sorted_by(sort, found.tensors), where, schemes or {}, long=long
        )
    values = value_lines(found, where, everything=everything)
    if values:
        yield from ["", *values, ""] if found.tensors else [*values, ""]
    yield from sum_lines(found)


def _schemes(checkpoint: Checkpoint) -> dict[str, str]:
    """Return how weights are quantized, by the names of their codes."""
    dtypes = {name: tensor.torch_dtype for name, tensor in checkpoint.items()}
    if not (codes(dtypes) or checkpoint.subclassed or "tensor_names" in checkpoint.metadata):
        return {}
    from torchzip.quantization.dequantizing import schemes_of  # with all schemes

    return schemes_of(checkpoint)


def describe(
    found: Outline, schemes: Mapping[str, str] | None = None, *, sort: str | None = None
) -> dict[str, Any]:
    values = JsonValues()
    return {
        "file": found.path,
        "format": found.format,
        "tensors": [row._asdict() for row in sorted_by(sort, found.tensors)],
        "subclasses": found.subclasses,
        "quantized": dict(schemes or {}),
        "by_dtype": {dtype: dataclasses.asdict(sums) for dtype, sums in found.by_dtype.items()},
        "stored_nbytes": found.stored_nbytes,
        "foreign": list(found.foreign),
        "metadata": found.metadata,
        "unnamed_tensors": [row._asdict() for row in found.unnamed],
        "constants": found.constant_count,
        "values": [
            {"path": row.path, "type": row.type, "value": _typed(row, values)}
            for row in found.values
        ],
        "constant_tensors": [row._asdict() for row in found.constants],
        "storages": [row._asdict() for row in found.storages],
        "notes": list(found.notes),
    }


def _typed(row: ValueRow, values: JsonValues) -> Any:
    """Return a value as JSON has it; what JSON does not have is a string, as in the table."""
    if row.data is None:
        return None if row.type == "NoneType" else row.value
    try:
        return values.of(row.data)
    except UnsupportedError:  # it is too large, alone or with those before it
        return row.value


def as_json(listing: dict[str, Any]) -> str:
    """Return the listing as JSON with one row per line: readable, and as fast as without lines."""
    parts = []
    for key, value in listing.items():
        if isinstance(value, list) and value:
            items = ",\n    ".join(map(json.dumps, value))
            text = f"[\n    {items}\n  ]"
        else:
            text = json.dumps(value)
        parts.append(f"  {json.dumps(key)}: {text}")
    return "{\n" + ",\n".join(parts) + "\n}"
