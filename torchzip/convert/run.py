"""Carries a plan out: reads, casts and writes, block by block."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from dataclasses import dataclass

from torchzip.checkpoint.lazy import Checkpoint
from torchzip.checkpoint.saving import Archive
from torchzip.convert.plan import DtypeRules, Plan, make_plan, target_format
from torchzip.errors import TorchZipError
from torchzip.files.sink import open_sink

Progress = Callable[[int, int], None]

_PROGRESS_NBYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class ConvertReport:
    """What `convert` did. ``lost`` names what the target could not hold.

    ``refused`` is what torch's default loader will not take from a .pt: (path, reason).
    """

    source: str
    target: str
    format: str
    tensors: int
    nbytes: int
    lost: tuple[str, ...]
    refused: tuple[tuple[str, str], ...]


def convert(
    src: str | os.PathLike[str],
    dst: str | os.PathLike[str],
    *,
    dtype: DtypeRules = None,
    progress: Progress | None = None,
    overwrite: bool = False,
) -> ConvertReport:
    """Convert a checkpoint to ``dst``, a zip (.pt .pth .bin .ckpt) or a .safetensors file.

    ``src`` is told by its content; it may be a directory of shards with their index, or a
    distributed checkpoint. ``dtype`` is a torch dtype's name for all floating tensors, or
    a list of ``(glob, dtype)`` rules of which the first match wins; others keep theirs.
    ``progress`` is called with the bytes written so far and in all. The target appears complete or
    not at all, and may be the source itself.

    The memory needed is a constant, whatever the size of a tensor or of the file. Two kinds of
    source need more, one tensor at a time: a strided tensor in a deflated record.

    Raises
    ------
    FileExistsError
        If ``dst`` exists and ``overwrite`` is false.
    TorchZipError, OSError, ValueError

    Examples
    --------
    >>> import numpy as np, os, tempfile
    >>> folder = tempfile.mkdtemp()
    >>> save({"weight": np.ones((2, 2), "float32")}, os.path.join(folder, "a.pt"))
    >>> report = convert(
    ...     os.path.join(folder, "a.pt"), os.path.join(folder, "a.safetensors"), dtype="bfloat16"
    ... )
    >>> report.tensors, report.lost
    (1, ())
    """
    format = target_format(dst)
    if not overwrite and os.path.lexists(dst):
        raise FileExistsError(
            errno.EEXIST, "Exists already; overwriting must be asked for", os.fspath(dst)
        )
    with Checkpoint(src) as checkpoint:
        try:
            plan = make_plan(checkpoint, format, dtype=dtype)
            run(plan, dst, progress)
        except TorchZipError as error:
            error.at(path=checkpoint.path)
            raise
    return ConvertReport(
        os.fspath(src), os.fspath(dst), plan.format, len(plan.tensors), plan.nbytes,
        tuple(plan.lost), tuple(plan.refused),
    )  # fmt: skip


def run(plan: Plan, dst: str | os.PathLike[str], progress: Progress | None = None) -> None:
    """Write a plan's output to ``dst``, all or nothing."""
    meter = _Meter(plan.nbytes, progress)
    if plan.format == "zip":
        with Archive(dst) as archive:
            archive.write_head(plan.head)
            meter.add(len(plan.head))
            for key, storage in enumerate(plan.storages):
                archive.write_storage(key, storage, meter.add)
            archive.writer.finish()
            archive.commit()
    else:
        sink = open_sink(dst)
        try:
            sink.write(plan.head)
            meter.add(len(plan.head))
            for storage in plan.storages:
                for block in storage.blocks():
                    sink.write(block.data)
                    meter.add(block.nbytes)
            sink.commit()
        finally:
            sink.abort()
    meter.finish()


class _Meter:
    """Tells a callback how far the writing is, not oftener than it is worth."""

    def __init__(self, total: int, progress: Progress | None) -> None:
        self._total = total
        self._progress = progress
        self._done = 0
        self._told = -_PROGRESS_NBYTES

    def add(self, nbytes: int) -> None:
        self._done += nbytes
        if self._progress is not None and self._done - self._told >= _PROGRESS_NBYTES:
            self._told = self._done
            self._progress(self._done, self._total)

    def finish(self) -> None:
        if self._progress is not None:
            self._progress(self._total, self._total)
