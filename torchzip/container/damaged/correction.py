"""Finds the damaged byte of a record by its CRC-32.

A CRC is linear: changing a byte changes the CRC by an amount that depends only on the byte's place
and on the change. So the difference between the stored CRC and the computed one is traced back from
the end, byte by byte, until it is one that a change of a single byte makes at that place.

How certain is that? CRC-32 distinguishes all changes of one bit, in up to 2**32 bits. But damage of
another kind gives a random difference. It looks like one of the ``8 * n`` changes of a bit with
a chance of ``8 * n / 2**32``, and like one of the ``255 * n`` changes of a byte with ``255 * n /
2**32``. `MOST_BIT_NBYTES` and `MOST_BYTE_NBYTES` keep both chances below one in 250. Callers must
also check that the corrected bytes make sense: a pickle that can be read and whose storages exist.

Deflated records cannot be corrected: a change of the deflated bytes is not linear in the content.
"""

from __future__ import annotations

import zlib

#: 8 * 2**20 / 2**32 and 255 * 2**16 / 2**32: one in 500, and one in 260.
MOST_BIT_NBYTES = 1 << 20
MOST_BYTE_NBYTES = 1 << 16


#: The register after a byte, starting from 0; and the byte that gives a register this highest byte.
_TABLE = [zlib.crc32(bytes([byte ^ 0xFF])) ^ 0xFF000000 for byte in range(256)]
_BYTE_OF = {value >> 24: byte for byte, value in enumerate(_TABLE)}


def corrected(data: bytes, stored_crc: int) -> tuple[bytes, int] | None:
    """Return the bytes that match a CRC, and the position of the corrected byte, or None.

    A change of one bit is tried first, then one of a byte. The position is ``len(data)`` if the
    data is correct and a byte of the stored CRC itself is damaged.

    >>> corrected(b"hellO world", zlib.crc32(b"hello world"))
    (b'hello world', 4)
    >>> corrected(b"hello world", zlib.crc32(b"hello world") ^ 0x3000)
    (b'hello world', 11)
    >>> corrected(b"HELLO world", zlib.crc32(b"hello world")) is None
    True
    """
    difference = zlib.crc32(data) ^ stored_crc
    if not difference or len(data) > MOST_BIT_NBYTES:
        return None
    found = []
    in_crc = sum(1 for shift in (0, 8, 16, 24) if difference >> shift & 0xFF)
    if in_crc == 1:
        found.append((len(data), difference))
    register = difference
    for place in range(len(data) - 1, -1, -1):
        change = _BYTE_OF[register >> 24]
        if _TABLE[change] == register:
            found.append((place, change))
        # Undo one zero byte.
        register = (register ^ _TABLE[change]) << 8 & 0xFFFFFFFF | change
    bits = [each for each in found if each[1].bit_count() == 1]
    if not bits and len(data) > MOST_BYTE_NBYTES:
        return None
    chosen = bits or found
    if len(chosen) != 1:
        return None
    place, change = chosen[0]
    if place == len(data):
        return data, place
    return data[:place] + bytes([data[place] ^ change]) + data[place + 1 :], place
