"""Undoes text mode: restores a binary file in which each LF was replaced by CR LF.

Windows' text mode puts a CR before every LF. That can be undone exactly, and it is recognised by
there being no other LF: in a binary file, only about one LF in 256 has a CR before it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from typing import Any, BinaryIO

from torchzip.files.source import Source

_BLOCK_NBYTES = 1 << 18


def count_text_lines(source: Source) -> int:
    """Return how many LFs a file has if each has a CR before it, else 0.

    In most files the first LF settles it.
    """
    count = 0
    for block in _blocks(source):
        feeds = block.count(b"\n")
        if feeds != block.count(b"\r\n"):
            return 0
        count += feeds
    return count


def before_text(source: Source, folder: str) -> BinaryIO:
    """Return the original bytes of such a file, as a temporary one in a folder."""
    file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115
    named: Any = file
    named.raw.name = source.name  # as messages show it
    if named.name != source.name:  # on Windows the file has a wrapper
        named.name = source.name
    for block in _blocks(source):
        file.write(block.replace(b"\r\n", b"\n"))
    file.seek(0)
    return file


def _blocks(source: Source) -> Iterator[bytes]:
    """Yield a file in blocks, with each CR LF in one of them."""
    before = b""
    for start in range(0, source.size, _BLOCK_NBYTES):
        block = before + bytes(source.read_at(start, min(_BLOCK_NBYTES, source.size - start)))
        before = b"\r" if block.endswith(b"\r") else b""
        yield block.removesuffix(before)
    yield before
