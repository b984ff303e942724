"""``torchzip ls``: what is in a checkpoint."""

from __future__ import annotations

import argparse
import dataclasses
import json
from typing import Any

import torchzip
from torchzip.checkpoint.lazy import Checkpoint
from torchzip.checkpoint.outline import TensorRow, outline
from torchzip.cli.command import DONE, add_command
from torchzip.cli.rendering import nbytes_text, table
from torchzip.errors import printable


def add_parser(commands: Any) -> None:
    """Add the command to the command line."""
    parser = add_command(
        commands,
        "ls",
        _run,
        summary="names, dtypes, shapes and sizes",
        description="List the tensors of a checkpoint: names, dtypes, shapes, sizes, totals.",
        examples="torchzip ls -l model.pt",
    )
    parser.add_argument("file", metavar="FILE")
    parser.add_argument(
        "-l", dest="long", action="store_true", help="also strides, devices and what shares memory"
    )
    parser.add_argument("--json", action="store_true", help="everything, as JSON")


def _run(arguments: argparse.Namespace) -> int:
    with torchzip.lazy_load(arguments.file) as checkpoint:
        listing = describe(checkpoint)
    print(as_json(listing) if arguments.json else as_text(listing, long=arguments.long))
    return DONE


def describe(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return what `ls` shows, as plain values for JSON."""
    found = outline(checkpoint)
    return {
        "file": found.path,
        "format": found.format,
        "tensors": list(map(_tensor, found.tensors)),
        "subclasses": found.subclasses,
        "by_dtype": {dtype: dataclasses.asdict(sums) for dtype, sums in found.by_dtype.items()},
        "stored_nbytes": found.stored_nbytes,
        "foreign": list(found.foreign),
        "metadata": found.metadata,
        "constants": found.constant_count,
        "values": [row._asdict() for row in found.values],
        "constant_tensors": list(map(_tensor, found.constants)),
        "storages": [row._asdict() for row in found.storages],
        "notes": list(found.notes),
    }


def _tensor(row: TensorRow) -> dict[str, Any]:
    return {
        "name": row.name,
        "kind": row.kind,
        "dtype": row.dtype,
        "shape": list(row.shape),
        "nbytes": row.nbytes,
        "stride": None if row.stride is None else list(row.stride),
        "storage_offset": row.storage_offset,
        "requires_grad": row.requires_grad,
        "is_parameter": row.is_parameter,
        "location": row.location,
        "shares_storage_with": row.shares_storage_with,
    }


def as_json(listing: dict[str, Any]) -> str:
    return json.dumps(listing, indent=2, ensure_ascii=True)


def as_text(listing: dict[str, Any], *, long: bool) -> str:
    """Return the listing as a table with its sums below."""
    head = ["name", "dtype", "shape", "size"]
    if long:
        head += ["stride", "offset", "device", "grad", "shares storage with"]
    rows = [head]
    for row in listing["tensors"]:
        cells = [
            printable(row["name"]) or "(the object itself)",
            row["dtype"]
            + (f" {row['kind']}" if row["kind"] != "dense" else "")
            + (" param" if row["is_parameter"] else ""),
            str(row["shape"]).replace("None", "*"),
            nbytes_text(row["nbytes"]),
        ]
        if long:
            cells += [
                "" if row["stride"] is None else str(row["stride"]),
                "" if row["storage_offset"] is None else str(row["storage_offset"]),
                printable(row["location"]),
                "yes" if row["requires_grad"] else "no",
                printable(row["shares_storage_with"] or ""),
            ]
        rows.append(cells)
    lines = table(rows, right=(3,)) if len(rows) > 1 else []
    lines.append(_sums(listing))
    shared = [row for row in listing["tensors"] if row["shares_storage_with"] is not None]
    if shared:
        lines.append(f"{len(shared)} share the storage of another; -l shows which")
    for name, kind in listing["subclasses"].items():
        lines.append(f"{printable(name)}: a tensor of class {printable(kind)}, kept as it is")
    if listing["constants"]:
        count = listing["constants"]
        lines.append(f"{count:,} constant{'' if count == 1 else 's'} of the code, without names")
    if listing["foreign"]:
        lines.append("foreign: " + ", ".join(map(printable, listing["foreign"])))
    return "\n".join(lines)


def _sums(listing: dict[str, Any]) -> str:
    parts = [
        f"{sums['tensors']:,} {dtype} {nbytes_text(sums['nbytes'])}"
        for dtype, sums in sorted(listing["by_dtype"].items())
    ]
    count = len(listing["tensors"])
    inside = f" ({', '.join(parts)})" if parts else ""
    return (
        f"{printable(listing['file'])}: {listing['format']}, {count:,} "
        f"tensor{'' if count == 1 else 's'}{inside}, {nbytes_text(listing['stored_nbytes'])} stored"
    )
