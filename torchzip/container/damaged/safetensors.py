"""Headers of damaged safetensors files, whose tensors are checked one by one.

A tensor is intact if its row of the header is valid and no other tensor claims a byte of it.
Gaps between tensors, and bytes after the last one, do no harm. The JSON itself must be intact.
"""

from __future__ import annotations

import json
from typing import Any, NamedTuple

from torchzip.container.damaged.marks import past_the_end
from torchzip.container.safetensors import METADATA, parse_entry, read_header
from torchzip.container.tensor_entry import TensorEntry
from torchzip.errors import LimitError, TorchZipError, shown
from torchzip.files.source import Source
from torchzip.limits import Limits

#: At most so many invalid rows are named.
_MOST_NAMED = 5


class DamagedHeader(NamedTuple):
    """What a header still describes. ``lost`` are the tensors of ``entries`` that are damaged."""

    entries: list[TensorEntry]
    lost: dict[str, str]
    metadata: dict[str, str]
    notes: list[str]


def read_damaged_header(source: Source, limits: Limits) -> DamagedHeader:
    """Return what can be read of a header, with its tensors in the order of their data.

    Raises
    ------
    ArchiveError
        If the file ends within its header, the header is not a JSON object, or no row is valid.
    """
    header, base = read_header(source, limits)
    metadata, notes = _metadata(header.pop(METADATA, {}))
    entries: list[TensorEntry] = []
    errors: list[TorchZipError] = []
    for name, row in header.items():
        try:
            entries.append(parse_entry(name, row, base, source.name))
        except LimitError:
            raise
        except TorchZipError as error:
            errors.append(error)
    if errors and not entries:
        raise errors[0]
    notes += [f"lost as well: {error.message}" for error in errors[:_MOST_NAMED]]
    if len(errors) > _MOST_NAMED:
        notes.append(f"lost as well: {len(errors) - _MOST_NAMED:,} more of the header's rows")
    entries.sort(key=lambda entry: (entry.begin, entry.end))
    lost = _overlapping(entries)
    for entry in entries:
        if entry.end > source.size:
            lost.setdefault(entry.name, past_the_end(source, entry.begin, entry.end - entry.begin))
    return DamagedHeader(entries, lost, metadata, notes)


def _metadata(found: Any) -> tuple[dict[str, str], list[str]]:
    """Return the metadata as strings, with notes about values that were not."""
    if not isinstance(found, dict):
        what = [] if found is None else [f"{METADATA} is left out: it is {shown(found)}"]
        return {}, what
    wrong = {name: json.dumps(value) for name, value in found.items() if not isinstance(value, str)}
    if not wrong:
        return found, []
    names = shown(list(wrong))
    return found | wrong, [f"values of {METADATA} that should be strings are now JSON: {names}"]


def _overlapping(entries: list[TensorEntry]) -> dict[str, str]:
    """Return the tensors that share bytes with others, since one of them has wrong offsets."""
    lost: dict[str, str] = {}
    furthest: TensorEntry | None = None
    for entry in entries:
        if entry.begin == entry.end:
            continue
        if furthest is not None and entry.begin < furthest.end:
            lost[entry.name] = f"its bytes are claimed by {shown(furthest.name)} as well"
            lost.setdefault(furthest.name, f"its bytes are claimed by {shown(entry.name)} as well")
        if furthest is None or entry.end > furthest.end:
            furthest = entry
    return lost
