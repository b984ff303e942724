"""The index of a sharded checkpoint: which file holds which tensor.

``pytorch_model.bin.index.json`` or ``model.safetensors.index.json``, a JSON object:
``{"metadata": {"total_size": bytes}, "weight_map": {tensor name: file name}}`` (docs/format.md,
section 11.5). Other keys are ignored. The files are beside the index; their names are checked when
they are opened. The names of indices are in `hub_names`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from torchzip.container.json_objects import check_containers, parse_json
from torchzip.errors import ArchiveError, LimitError, UnsupportedError, shown
from torchzip.files.source import Source
from torchzip.limits import DEFAULT_LIMITS, Limits, is_number


@dataclass(frozen=True, slots=True)
class ShardIndex:
    """``weight_map``: tensor name -> file name, in file order. ``metadata``: all values as strings.

    Values that are not strings are given as JSON. ``total_size`` is the bytes of all tensors, if
    the index has it.
    """

    weight_map: dict[str, str]
    metadata: dict[str, str]
    total_size: int | None


def build_index(metadata: dict[str, Any], weight_map: dict[str, str]) -> bytes:
    """Return the bytes of an index.

    Raises
    ------
    UnsupportedError
        If the index is too long for readers.
    """
    raw = (json.dumps({"metadata": metadata, "weight_map": weight_map}, indent=2) + "\n").encode()
    try:
        _check_size(len(raw), DEFAULT_LIMITS, "")
        check_containers(raw, DEFAULT_LIMITS, "")
    except LimitError as error:
        raise UnsupportedError(
            f"the index of {len(weight_map):,} tensors would be refused by readers: "
            f"{error.limit} would be {error.actual:,}, past {error.bound:,}; give the tensors "
            "other names, or write one file"
        ) from None
    return raw


def _check_size(nbytes: int, limits: Limits, path: str) -> None:
    if nbytes > limits.header_nbytes:
        raise LimitError("header_nbytes", nbytes, limits.header_nbytes, path=path)


def parse_index(source: Source, limits: Limits) -> ShardIndex:
    """Return the content of an index.

    Raises
    ------
    ArchiveError, LimitError
        If it is not an index. Its size is bounded by ``limits.header_nbytes``.
    """
    _check_size(source.size, limits, source.name)
    raw = bytes(source.read_at(0, source.size))
    content = parse_json(raw, "the index", source.name, limits=limits)
    weight_map = content.get("weight_map")
    if not isinstance(weight_map, dict) or not all(
        isinstance(file, str) for file in weight_map.values()
    ):
        raise ArchiveError(
            f"weight_map is {shown(weight_map)} in the index; a map from tensor names to file "
            "names was expected",
            path=source.name,
        )
    metadata = content.get("metadata") or {}
    if not isinstance(metadata, dict):
        raise ArchiveError(
            f"the metadata of the index is {shown(metadata)}; an object was expected",
            path=source.name,
        )
    total = metadata.get("total_size")
    if isinstance(total, float) and total.is_integer() and total < 1 << 63:
        total = int(total)  # transformers wrote 1.0e9 for a while
    try:
        texts = {
            name: value if isinstance(value, str) else json.dumps(value)
            for name, value in metadata.items()
        }
    except RecursionError:
        raise ArchiveError(
            "the metadata of the index is nested too deeply", path=source.name
        ) from None
    return ShardIndex(weight_map, texts, total if is_number(total) else None)
