"""A directory with several models, as diffusers writes it: each is converted in its own place.

Such a pipeline has a ``model_index.json``, and a directory for each component: models with weights,
and schedulers and tokenizers that are small files alone. A new directory appears as a whole; in one
that is there, the components are written one after the other.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
import tempfile
from collections.abc import Callable
from typing import Any

from torchzip.container.hub_names import is_index, is_whole, parse_shard
from torchzip.convert.companions import companions as find_companions
from torchzip.convert.companions import copy
from torchzip.convert.report import ConvertReport
from torchzip.errors import FormatError
from torchzip.files.folder import LocalFolder
from torchzip.files.location import Location
from torchzip.files.new_file import NewFile
from torchzip.files.opening import refuse_existing
from torchzip.files.platform_calls import sync_folder

_INDEX = "model_index.json"


def is_pipeline(src: str | os.PathLike[str]) -> bool:
    """Return whether a path is that of a directory with several models."""
    return not isinstance(src, Location) and os.path.isfile(os.path.join(src, _INDEX))


def convert_pipeline(
    convert: Callable[..., ConvertReport], src: str | os.PathLike[str],
    dst: str | os.PathLike[str], *, overwrite: bool, dry_run: bool, companions: bool,
    **options: Any,
) -> ConvertReport:  # fmt: skip
    """Convert each component by ``convert(src, dst, ...)``; return one report of all.

    Raises
    ------
    FormatError
        If no component has weights.
    ValueError
        If the target is not a directory of this computer, or the source itself.
    """
    source, target = os.fsdecode(src), os.fsdecode(dst)
    is_folder = os.path.isdir(target) or target.endswith(("/", os.sep))
    if isinstance(dst, Location) or not is_folder:
        raise ValueError(
            f"{target}: {source} has several models; the path of a directory was expected, which "
            "ends with a slash if it is new"
        )
    if os.path.realpath(source) == os.path.realpath(target):
        raise ValueError(f"{target}: several models are converted to another directory")
    with contextlib.ExitStack() as until_done:
        place = target
        if not dry_run and not os.path.isdir(target):
            parent, name = os.path.split(os.path.abspath(target))
            place = tempfile.mkdtemp(prefix=".torchzip-", suffix=".tmp", dir=parent)
            os.chmod(place, 0o777 & ~_umask())
            until_done.callback(shutil.rmtree, place, ignore_errors=True)
        reports: dict[str, ConvertReport] = {}
        copied: list[str] = []
        for name in ["", *sorted(os.listdir(source))]:
            inner = os.path.join(source, name)
            if not os.path.isdir(inner) or name.startswith("."):
                continue
            if name and _has_weights(inner):
                reports[name] = convert(
                    inner, os.path.join(place, name, ""), overwrite=overwrite, dry_run=dry_run,
                    companions=companions, **options,
                )  # fmt: skip
            elif companions:
                copied += _copied(inner, os.path.join(place, name), overwrite, dry_run)
        if not reports:
            raise FormatError(
                f"it has a {_INDEX}, and no component has weights in a file of a usual name",
                path=source,
            )
        if place != target:
            os.rename(place, target.rstrip("/" + os.sep))
            sync_folder(os.path.dirname(place))
            until_done.pop_all()
    return _joined(source, target, reports, copied, place)


def _has_weights(folder: str) -> bool:
    return any(
        is_whole(name) or is_index(name) or parse_shard(name) is not None
        for name in os.listdir(folder)
    )


def _copied(folder: str, target: str, overwrite: bool, dry_run: bool) -> list[str]:
    """Copy the small files of a component without weights; return where they go."""
    with contextlib.closing(LocalFolder(folder)) as opened:
        found, _ = find_companions(opened, target)
        if not dry_run and found:
            os.makedirs(target, exist_ok=True)
        for companion in found:
            if dry_run:
                continue
            if not overwrite:
                refuse_existing(companion.path)
            file = NewFile(companion.path)
            try:
                copy(companion, file)
                file.commit()
            finally:
                file.abort()
    return [companion.path for companion in found]


def _umask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def _joined(
    source: str, target: str, reports: dict[str, ConvertReport], copied: list[str], place: str
) -> ConvertReport:
    """Return the report of all components, whose names precede what is said of each."""

    def final(path: str) -> str:
        return os.path.join(target, os.path.relpath(path, place)) if path else ""

    each = reports.items()
    return ConvertReport(
        source, target, next(iter(reports.values())).format,
        sum(report.tensors for report in reports.values()),
        sum(report.nbytes for report in reports.values()),
        tuple(f"{name}: {line}" for name, report in each for line in report.lost),
        tuple((f"{name}.{path}", why) for name, report in each for path, why in report.refused),
        files=tuple(final(file) for report in reports.values() for file in report.files),
        unused=tuple(f"{name}: {line}" for name, report in each for line in report.unused),
        tied={f"{name}.{k}": f"{name}.{v}" for name, r in each for k, v in r.tied.items()},
        overflowed={f"{name}.{k}": n for name, r in each for k, n in r.overflowed.items()},
        here=tuple(f"{name}.{each}" for name, report in each for each in report.here),
        copied=tuple(
            final(path) for path in [*copied, *(p for r in reports.values() for p in r.copied)]
        ),
        taken="; ".join(f"{name}: {report.taken}" for name, report in each if report.taken),
        rows=tuple(
            dataclasses.replace(row, name=f"{name}.{row.name}", file=final(row.file))
            for name, report in each
            for row in report.rows
        ),
        file_nbytes=tuple(nbytes for report in reports.values() for nbytes in report.file_nbytes),
        dequantized={f"{name}.{k}": how for name, r in each for k, how in r.dequantized.items()},
        jobs=max(report.jobs for report in reports.values()),
        notes=tuple(f"{name}: {note}" for name, report in each for note in report.notes),
    )  # fmt: skip
