"""Shards and their index, by hand."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torchzip as tz


def write(path: Path, tensors: Mapping[str, Any]) -> None:
    """Write a checkpoint of the kind that the suffix says."""
    path.parent.mkdir(exist_ok=True)
    scratch = path.parent / "scratch.pt"
    tz.save(dict(tensors), scratch)
    if path.suffix == ".safetensors":
        tz.convert(scratch, path)
        scratch.unlink()
    else:
        scratch.rename(path)


def write_index(path: Path, weight_map: Any, **metadata: Any) -> Path:
    """Write an index; return its path."""
    path.write_text(json.dumps({"metadata": metadata, "weight_map": weight_map}))
    return path
