"""Deflated records, inflated in blocks and to an exact size."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator

from torchzip.errors import ArchiveError
from torchzip.files.source import Buffer, Source


def inflate_span(
    source: Source, offset: int, end: int, nbytes: int, broken: Callable[[str], ArchiveError]
) -> Iterator[bytes]:
    """Yield the content of deflated bytes in blocks: ``nbytes`` in all.

    The stream must fill the bytes from ``offset`` to ``end``; ``broken`` makes the error that is
    raised where it does not.
    """
    machine = zlib.decompressobj(-15)
    left = nbytes
    pending: Buffer = b""
    while not machine.eof:
        if not pending and offset < end:
            count = min(1 << 18, end - offset)
            pending = source.read_at(offset, count)
            offset += count
        try:
            # One byte more than is left shows a record that goes on too long.
            block = machine.decompress(pending, min(left + 1, 1 << 20))
        except zlib.error as error:
            raise broken(f"the deflated bytes are damaged ({error})") from None
        if not block and not machine.eof and not machine.unconsumed_tail and offset == end:
            raise broken(
                f"the deflated bytes are cut short after {nbytes - left:,} of the "
                f"{nbytes:,} bytes that the directory says"
            )
        pending = machine.unconsumed_tail
        if len(block) > left:
            raise broken(f"the deflated bytes go on after the {nbytes:,} that the directory says")
        left -= len(block)
        if block:
            yield block
    if machine.unused_data or offset < end:
        raise broken("other bytes follow the deflated ones, within the size of the directory")
    if left:
        raise broken(f"the deflated bytes come to {nbytes - left:,}, the directory says {nbytes:,}")


def measure_deflated(
    source: Source, offset: int, end: int, most: int
) -> tuple[int, int, int] | None:
    """Return how many bytes a deflated stream takes, and what it comes to with which CRC.

    Other bytes may follow it before ``end``. None if it is damaged, cut short, or comes to more
    than ``most`` bytes.
    """
    machine = zlib.decompressobj(-15)
    start = offset
    nbytes = crc = 0
    pending: Buffer = b""
    while not machine.eof:
        if not pending and offset < end:
            count = min(1 << 18, end - offset)
            pending = source.read_at(offset, count)
            offset += count
        try:
            block = machine.decompress(pending, min(most - nbytes + 1, 1 << 20))
        except zlib.error:
            return None
        if not block and not machine.eof and not machine.unconsumed_tail and offset == end:
            return None
        pending = machine.unconsumed_tail
        nbytes += len(block)
        if nbytes > most:
            return None
        crc = zlib.crc32(block, crc)
    return offset - start - len(machine.unused_data), nbytes, crc
