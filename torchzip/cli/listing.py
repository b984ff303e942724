"""``torchzip ls``: what is in a checkpoint."""

from __future__ import annotations

import argparse
import json
from typing import Any

import torchzip
from torchzip.checkpoint.lazy import Checkpoint, LazyTensor
from torchzip.cli.command import DONE, add_command
from torchzip.cli.rendering import nbytes_text, table
from torchzip.errors import printable
from torchzip.types import ForeignObject, MetaTensor, OtherTensor


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
    tensors = []
    first_at: dict[int, str] = {}
    stored_nbytes = 0
    by_dtype: dict[str, dict[str, int]] = {}
    for name in checkpoint:
        tensor = checkpoint[name]
        holder = name
        for part in tensor.parts if isinstance(tensor, OtherTensor) else [tensor]:
            storage = part.spec.storage
            if id(storage) not in first_at:
                stored_nbytes += storage.nbytes
            first = first_at.setdefault(id(storage), name)
            holder = holder if first == name else first
        sums = by_dtype.setdefault(tensor.torch_dtype, {"tensors": 0, "nbytes": 0})
        sums["tensors"] += 1
        sums["nbytes"] += tensor.nbytes
        tensors.append(_row(name, tensor, None if holder == name else holder))
    return {
        "file": checkpoint.path,
        "format": checkpoint.format,
        "tensors": tensors,
        "subclasses": {name: _class_of(call) for name, call in checkpoint.others.items()},
        "by_dtype": by_dtype,
        "stored_nbytes": stored_nbytes,
        "foreign": [f"{module}.{name}" for module, name in checkpoint.foreign],
        "metadata": checkpoint.metadata,
        "constants": len(checkpoint.constants),
    }


def _row(name: str, tensor: LazyTensor | OtherTensor, shares_with: str | None) -> dict[str, Any]:
    if isinstance(tensor, OtherTensor):
        parts = tensor.parts
        return {
            "name": name,
            "kind": tensor.kind,
            "dtype": tensor.torch_dtype,
            "shape": list(tensor.shape),
            "nbytes": tensor.nbytes,
            "stride": list(tensor.stride) if isinstance(tensor, MetaTensor) else None,
            "storage_offset": None,
            "requires_grad": tensor.requires_grad,
            "is_parameter": tensor.is_parameter,
            "location": parts[0].spec.storage.location if parts else "meta",
            "shares_storage_with": shares_with,
        }
    return {
        "name": name,
        "kind": "dense",
        "dtype": tensor.torch_dtype,
        "shape": list(tensor.shape),
        "nbytes": tensor.nbytes,
        "stride": list(tensor.stride),
        "storage_offset": tensor.storage_offset,
        "requires_grad": tensor.requires_grad,
        "is_parameter": tensor.is_parameter,
        "location": tensor.spec.storage.location,
        "shares_storage_with": shares_with,
    }


def _class_of(call: ForeignObject) -> str:
    """Return the class of a tensor that stays foreign, or else what rebuilds it."""
    named = [arg for arg in call.args or () if isinstance(arg, ForeignObject) and arg.how == "name"]
    of = named[-1] if named else call
    return f"{of.module}.{of.name}"


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
