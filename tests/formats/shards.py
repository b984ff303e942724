"""Shards and their index, by hand; and what directories are refused for."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

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


def refused(path: Path, *expected: str, error: type[Exception] = tz.FormatError) -> str:
    """Return the message of the error, which must say all that is expected."""
    with pytest.raises(error) as caught:
        tz.load(path)
    with pytest.raises(error):
        tz.lazy_load(path)
    message = str(caught.value)
    for text in expected:
        assert text in message
    return message
