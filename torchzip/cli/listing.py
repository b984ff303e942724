"""``torchzip ls``: what is in a checkpoint."""

from __future__ import annotations

import json
from typing import Any

from torchzip.checkpoint.lazy import Checkpoint, LazyTensor
from torchzip.cli.rendering import nbytes_text, printable, table
from torchzip.pickling.allowlist import is_torch_safe


def describe(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return what `ls` shows, as plain values for JSON."""
    tensors = []
    first_at: dict[int, str] = {}
    stored_nbytes = 0
    by_dtype: dict[str, dict[str, int]] = {}
    for name in checkpoint:
        tensor = checkpoint[name]
        storage = tensor.spec.storage
        holder = first_at.setdefault(id(storage), name)
        if holder == name:
            stored_nbytes += storage.nbytes
        sums = by_dtype.setdefault(tensor.torch_dtype, {"tensors": 0, "nbytes": 0})
        sums["tensors"] += 1
        sums["nbytes"] += tensor.nbytes
        tensors.append(_row(name, tensor, None if holder == name else holder))
    return {
        "file": checkpoint.path,
        "format": checkpoint.format,
        "tensors": tensors,
        "not_read_yet": {
            name: f"{call.module}.{call.name}" for name, call in checkpoint.others.items()
        },
        "by_dtype": by_dtype,
        "stored_nbytes": stored_nbytes,
        "foreign": [f"{module}.{name}" for module, name in checkpoint.foreign],
        "metadata": checkpoint.metadata,
        "constants": len(checkpoint.constants),
    }


def _row(name: str, tensor: LazyTensor, shares_with: str | None) -> dict[str, Any]:
    return {
        "name": name,
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
            row["dtype"] + (" param" if row["is_parameter"] else ""),
            str(row["shape"]),
            nbytes_text(row["nbytes"]),
        ]
        if long:
            cells += [
                str(row["stride"]),
                str(row["storage_offset"]),
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
    for name, call in listing["not_read_yet"].items():
        lines.append(f"{printable(name)}: {call}, a kind of tensor that is not read yet")
    if listing["constants"]:
        count = listing["constants"]
        lines.append(f"{count:,} constant{'' if count == 1 else 's'} of the code, without names")
    if listing["foreign"]:
        lines.append("foreign: " + ", ".join(map(printable, listing["foreign"])))
    return "\n".join(lines)


def describe_globals(checkpoint: Checkpoint) -> list[dict[str, Any]]:
    """Return every name that a file mentions, in its order, as plain values for JSON."""
    foreign = set(checkpoint.foreign)
    return [
        {
            "module": module,
            "name": name,
            "foreign": (module, name) in foreign,
            "torch_safe": is_torch_safe(module, name),
        }
        for module, name in checkpoint.globals
    ]


def globals_as_text(names: list[dict[str, Any]], place: str) -> str:
    """Return the names as a table with their sums below."""
    rows = [["name", "torchzip", "torch.load"]]
    for row in names:
        rows.append(
            [
                printable(f"{row['module']}.{row['name']}"),
                "foreign" if row["foreign"] else "known",
                "accepts" if row["torch_safe"] else "refuses",
            ]
        )
    lines = table(rows) if names else []
    foreign = sum(row["foreign"] for row in names)
    refused = sum(not row["torch_safe"] for row in names)
    lines.append(
        f"{printable(place)}, {len(names):,} names, {foreign:,} foreign, {refused:,} that "
        "torch.load refuses by default"
    )
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
