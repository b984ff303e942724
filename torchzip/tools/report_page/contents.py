"""What a report says of a checkpoint, as plain data; nothing in it is HTML yet."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

from torchzip.checkpoint.lazy import Checkpoint
from torchzip.checkpoint.lazy_tensor import LazyTensor
from torchzip.checkpoint.module_tree import Module, module_tree
from torchzip.checkpoint.outline import Outline, TensorRow, outline
from torchzip.convert.meter import Meter, Progress
from torchzip.dtypes import BLOCKS, DTYPES
from torchzip.errors import TorchZipError
from torchzip.files.source import File
from torchzip.formats.base import FileContainer
from torchzip.limits import Limits
from torchzip.tools.element_statistics import Statistics, statistics
from torchzip.tools.elements import Work
from torchzip.tools.file_size.accounts import Unreached, unreached_of
from torchzip.tools.global_names import GlobalName, global_names
from torchzip.tools.torch_verdict.verification import Verified, verified

#: Tensors with a histogram.
_MOST_HISTOGRAMS = 24


@dataclass(frozen=True, slots=True)
class Distribution:
    """The statistics of a tensor, or why there are none."""

    row: TensorRow
    found: Statistics | None
    problem: str | None


@dataclass(frozen=True, slots=True)
class Contents:
    """All that a report shows. ``verified`` and ``damage`` are None if the data was not read.

    ``file`` is the last part of the path, ``label`` what its format is called, ``file_nbytes`` the
    size of a file that is one. ``unreached`` are the storages with bytes that no tensor reaches.
    """

    file: str
    label: str
    file_nbytes: int | None
    outline: Outline
    tree: Module
    distributions: tuple[Distribution, ...]
    globals: tuple[GlobalName, ...]
    verified: Verified | None
    damage: str | None
    unreached: tuple[Unreached, ...]


def read_contents(
    file: File, *, read_data: bool, limits: Limits | None, progress: Progress | None = None
) -> Contents:
    """Read what a report shows.

    Damage that is found in the data is part of the report.

    Raises
    ------
    TorchZipError, OSError
        If the structure cannot be read.
    """
    verified_as = damage = None
    with Checkpoint(file, limits=limits) as checkpoint:
        found = outline(checkpoint)
        container = checkpoint.container
        rows = _largest(found) if read_data else []
        before = sum(row.nbytes for row in rows)
        meter = Meter(before + found.stored_nbytes, progress)
        distributions = tuple(_distributions(checkpoint, found, rows, meter))
        names = tuple(global_names(checkpoint))
        if read_data:
            try:
                verified_as = verified(checkpoint, file, _after(before, progress))
            except TorchZipError as error:
                damage = _without_path(error)
        unreached = unreached_of(checkpoint, found)
    return Contents(
        file=os.path.basename(os.path.normpath(found.path)) or found.path,
        label=container.label,
        file_nbytes=container.source.size if isinstance(container, FileContainer) else None,
        outline=found,
        tree=module_tree(found),
        distributions=distributions,
        globals=names,
        verified=verified_as,
        damage=damage,
        unreached=tuple(sorted(unreached, key=lambda each: -each.nbytes)),
    )


def _largest(found: Outline) -> list[TensorRow]:
    """Return the largest tensors of which numpy has numbers."""
    rows = [
        row
        for row in found.tensors
        if row.kind == "dense"
        and row.tied_to is None
        and row.numel > 1
        and (row.dtype in BLOCKS or DTYPES[row.dtype].has_numbers)
    ]
    rows.sort(key=lambda row: -row.nbytes)  # those of one size stay in the order of the file
    return rows[:_MOST_HISTOGRAMS]


def _distributions(
    checkpoint: Checkpoint, found: Outline, rows: list[TensorRow], meter: Meter
) -> list[Distribution]:
    """Return the statistics of some tensors."""
    work = Work(sum(storage.nbytes for storage in found.storages))
    made = []
    for row in rows:
        tensor: Any = checkpoint[row.name]
        assert isinstance(tensor, LazyTensor)
        try:
            made.append(Distribution(row, statistics(tensor, work=work), None))
        except TorchZipError as error:
            made.append(Distribution(row, None, _without_path(error)))
        meter.add(row.nbytes)
    return made


def _after(before: int, progress: Progress | None) -> Progress | None:
    """Return what is called with the bytes that follow others."""
    if progress is None:
        return None
    return lambda done, total: progress(before + done, before + total)


def _without_path(error: TorchZipError) -> str:
    """Return a message without the path: the page is the same wherever the file lies."""
    place = "" if error.record is None else f"record {error.record}: "
    return place + error.message
