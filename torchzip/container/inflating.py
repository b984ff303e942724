"""Inflates deflated records, in blocks and to an exact size."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator

from torchzip.errors import ArchiveError
from torchzip.files.source import Buffer, Source

#: The most bytes that one deflated byte can give: a match of 258 bytes takes two bits.
MAX_RATIO = 1032


class DeflatedStream:
    """A deflated stream that begins at ``offset`` and may extend to ``end``.

    ``window`` is what zlib calls so; with 31 it is a gzip file, whose CRC is compared.

    Iterating yields its content in blocks, up to one byte more than ``most``, so that the caller
    sees a record that is too long. Then ``is_whole`` says whether the stream has ended, and
    ``stop`` where.
    """

    def __init__(self, source: Source, offset: int, end: int, most: int, window: int = -15) -> None:
        self._source = source
        self._offset = offset
        self._end = end
        self._left = most + 1
        self._machine = zlib.decompressobj(window)

    def __iter__(self) -> Iterator[bytes]:
        machine = self._machine
        pending: Buffer = b""
        while self._left and not machine.eof:
            if not pending and self._offset < self._end:
                count = min(1 << 18, self._end - self._offset)
                pending = self._source.read_at(self._offset, count)
                self._offset += count
            block = machine.decompress(pending, min(self._left, 1 << 20))
            pending = machine.unconsumed_tail
            self._left -= len(block)
            if block:
                yield block
            elif not pending and self._offset == self._end:
                return

    @property
    def is_whole(self) -> bool:
        return self._machine.eof

    @property
    def stop(self) -> int:
        return self._offset - len(self._machine.unused_data)


def inflate_span(
    source: Source, offset: int, end: int, nbytes: int, broken: Callable[[str], ArchiveError]
) -> Iterator[bytes]:
    """Yield the content of deflated bytes in blocks: ``nbytes`` in all.

    The stream must fill the bytes from ``offset`` to ``end`` exactly; ``broken`` makes the error
    to raise otherwise.
    """
    stream = DeflatedStream(source, offset, end, nbytes)
    done = 0
    try:
        for block in stream:
            done += len(block)
            if done > nbytes:
                raise broken(
                    f"the deflated bytes continue after the {nbytes:,} that the directory says"
                )
            yield block
    except zlib.error as error:
        raise broken(f"the deflated bytes are damaged ({error})") from None
    if not stream.is_whole:
        raise broken(
            f"the deflated bytes are cut short after {done:,} of the {nbytes:,} bytes that the "
            "directory says"
        )
    if stream.stop < end:
        raise broken("other bytes follow the deflated ones, within the size of the directory")
    if done < nbytes:
        raise broken(f"the deflated bytes come to {done:,}, the directory says {nbytes:,}")


def measure_deflated(
    source: Source, offset: int, end: int, most: int
) -> tuple[int, int, int] | None:
    """Return the size of a deflated stream, and the size and CRC of its content.

    Other bytes may follow it before ``end``. None if it is damaged, truncated, or has more than
    ``most`` bytes of content.
    """
    stream = DeflatedStream(source, offset, end, most)
    nbytes = crc = 0
    try:
        for block in stream:
            nbytes += len(block)
            crc = zlib.crc32(block, crc)
    except zlib.error:
        return None
    return (stream.stop - offset, nbytes, crc) if stream.is_whole and nbytes <= most else None
