"""Whole files as bytes: what `save` makes of a value, and archives as other programs pack them."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable
from typing import Any

import torchzip as tz


def saved(value: Any, **options: Any) -> bytes:
    """Return the file of a value."""
    file = io.BytesIO()
    tz.save(value, file, **options)
    return file.getvalue()


def zipped_again(
    data: bytes,
    method: int = zipfile.ZIP_STORED,
    change: Callable[[str, bytes], bytes] = lambda record, content: content,
    *,
    level: int = 6,
) -> bytes:
    """Return an archive as Python's zipfile makes it from another: no zip64, sizes in front.

    ``change`` takes the name of a record within the root, and its bytes.
    """
    made = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(data)) as old,
        zipfile.ZipFile(made, "w", method, compresslevel=level) as new,
    ):
        for name in old.namelist():
            new.writestr(name, change(name.partition("/")[2], old.read(name)))
    return made.getvalue()


def big_endian(data: bytes) -> bytes:
    """Return an archive whose byte order says big; its numbers are others for it."""
    return zipped_again(data, change=lambda name, raw: b"big" if name == "byteorder" else raw)
