"""A checkpoint as a page for a person."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import BinaryIO

from torchzip.convert.meter import Progress
from torchzip.errors import EnoughMemory
from torchzip.files.location import StorageOptions, located
from torchzip.files.opening import open_sink, refuse_existing
from torchzip.files.source import File
from torchzip.limits import Limits
from torchzip.tools.report_page.contents import read_contents
from torchzip.tools.report_page.page import build_page


@dataclass(frozen=True, slots=True)
class Report:
    """What `report` has written: the bytes of the page, and the tensors that it is about.

    ``damage`` is what is wrong with the data of the checkpoint; None if nothing is, or if it was
    not read.
    """

    nbytes: int
    tensors: int
    damage: str | None


@EnoughMemory()
def report(
    file: File,
    out: str | os.PathLike[str] | BinaryIO,
    *,
    read_data: bool = True,
    overwrite: bool = False,
    progress: Progress | None = None,
    limits: Limits | None = None,
    storage_options: StorageOptions = None,
) -> Report:
    """Write a page about a checkpoint: sizes by module, dtypes, histograms, ties, names, values.

    It is one HTML file that loads nothing and can be read without JavaScript. The same file gives
    the same page. All data is read, to verify it and for the histograms of the largest tensors,
    unless ``read_data`` is false; damage that is found is said in the page. Of very many tensors
    the largest are listed, so that the page stays below a megabyte or two. ``progress`` is called
    with the bytes read so far and those in all.

    Raises
    ------
    TorchZipError, OSError
        If the structure of the checkpoint cannot be read.
    FileExistsError
        If ``out`` is a path that is there, and ``overwrite`` is false.

    Examples
    --------
    >>> import io, numpy as np, torchzip
    >>> checkpoint, page = io.BytesIO(), io.BytesIO()
    >>> torchzip.save({"fc.weight": np.zeros((2, 3))}, checkpoint)
    >>> start = checkpoint.seek(0)
    >>> made = report(checkpoint, page)
    >>> made.tensors, made.damage, page.getvalue()[:15]
    (1, None, b'<!doctype html>')
    """
    file, out = located(file, storage_options), located(out, storage_options)
    if isinstance(out, str | os.PathLike) and not overwrite:
        refuse_existing(out)
    contents = read_contents(file, read_data=read_data, limits=limits, progress=progress)
    page = build_page(contents).encode()
    sink = open_sink(out)
    try:
        sink.write(page)
        sink.commit()
    finally:
        sink.abort()
    return Report(len(page), len(contents.outline.tensors), contents.damage)
