"""Decompresses a gzip file, which cannot be read at any place, into a temporary file, which can."""

from __future__ import annotations

import os
import shutil
import tempfile
import zlib
from typing import BinaryIO

from torchzip.container.inflating import DeflatedStream
from torchzip.errors import CUT_SHORT, ArchiveError, LimitError
from torchzip.files.source import Source
from torchzip.limits import Limits

#: Bytes that a small file may have whatever its ratio; the same as for deflated records.
_FREE_NBYTES = 64 << 20


def decompressed(source: Source, limits: Limits) -> str:
    """Return the path of a file with the content of a gzip file, in a folder of its own.

    Raises
    ------
    ArchiveError
        If the file is damaged or cut short, or other bytes follow.
    LimitError
        If the content is more than ``limits.deflate_ratio`` allows.
    """
    # Not a temporary file: on Windows that could not be opened by its name again.
    folder = tempfile.mkdtemp(prefix="torchzip-")
    path = os.path.join(folder, "content")
    try:
        with open(path, "wb") as out:
            _decompress(source, limits, out)
    except zlib.error as error:
        remove(path)
        raise ArchiveError(f"the compressed bytes are damaged ({error})") from None
    except BaseException:
        remove(path)
        raise
    return path


def remove(path: str) -> None:
    """Remove what `decompressed` has made, unless the system keeps it because it is open."""
    shutil.rmtree(os.path.dirname(path), ignore_errors=True)


def _decompress(source: Source, limits: Limits, out: BinaryIO) -> None:
    most = max(_FREE_NBYTES, limits.deflate_ratio * source.size)
    stream = DeflatedStream(source, 0, source.size, most, window=31)
    nbytes = 0
    for block in stream:
        nbytes += len(block)
        if nbytes > most:
            ratio = -(-nbytes // source.size)
            raise LimitError("deflate_ratio", ratio, limits.deflate_ratio)
        out.write(block)
    if not stream.is_whole:
        raise ArchiveError(f"the gzip file ends after {nbytes:,} bytes of its content. {CUT_SHORT}")
    if stream.stop < source.size:
        raise ArchiveError(
            "other bytes follow the compressed ones in a gzip file; one stream was expected"
        )
