"""Undoes text mode: restores a binary file in which each LF was replaced by CR LF.

Windows' text mode puts a CR before every LF. That can be undone exactly, and it is recognised by
there being no other LF: in a binary file, only about one LF in 256 has a CR before it.
"""

from __future__ import annotations

import bisect
import io
import os
from typing import Any

from torchzip.files.source import Source

_BLOCK_NBYTES = 1 << 18


def count_text_lines(source: Source) -> int:
    """Return how many LFs a file has if each has a CR before it, else 0.

    In most files the first LF settles it.
    """
    count = 0
    before = b""
    for start in range(0, source.size, _BLOCK_NBYTES):
        block = before + bytes(source.read_at(start, min(_BLOCK_NBYTES, source.size - start)))
        feeds = block.count(b"\n", len(before))
        if feeds != block.count(b"\r\n"):
            return 0
        count += feeds
        before = b"\r" if block.endswith(b"\r") else b""
    return count


def before_text(source: Source) -> io.BufferedReader:
    """Return the original bytes of such a file, as a file object."""
    return io.BufferedReader(_BeforeText(source))


class _BeforeText(io.RawIOBase):
    def __init__(self, source: Source) -> None:
        self.name = source.name
        self._source = source
        self._place = 0
        self._starts: list[int] = []  # offsets of the restored blocks
        self._held: tuple[int, bytes] = (-1, b"")
        self._nbytes = 0
        for index in range(-(-source.size // _BLOCK_NBYTES)):
            self._starts.append(self._nbytes)
            self._nbytes += len(self._block(index))

    def _block(self, index: int) -> bytes:
        """Return the restored bytes of a block. A CR at its end may belong to the next block."""
        if self._held[0] != index:
            start = index * _BLOCK_NBYTES
            nbytes = min(_BLOCK_NBYTES + 1, self._source.size - start)
            block = bytes(self._source.read_at(start, nbytes))
            block, after = block[:_BLOCK_NBYTES], block[_BLOCK_NBYTES:]
            if after == b"\n" and block.endswith(b"\r"):
                block = block[:-1]
            self._held = (index, block.replace(b"\r\n", b"\n"))
        return self._held[1]

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._place, os.SEEK_END: self._nbytes}[whence]
        self._place = base + offset
        return self._place

    def readinto(self, out: Any) -> int:
        view = memoryview(out).cast("B")
        done = 0
        while done < len(view) and self._place < self._nbytes:
            index = bisect.bisect_right(self._starts, self._place) - 1
            block = self._block(index)
            start = self._place - self._starts[index]
            part = block[start : start + len(view) - done]
            view[done : done + len(part)] = part
            done += len(part)
            self._place += len(part)
        return done
