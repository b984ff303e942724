"""Which byte of a record is damaged, told by its CRC-32.

A CRC is linear: a changed byte changes it by an amount that depends on the byte's place and on the
change, and on nothing else. So the difference between the CRC that was stored and that of the bytes
as they are is followed back from the end, byte by byte, until it is one that a change of a
single byte makes just there.

How sure is that? CRC-32 tells any two changes of one bit apart, in up to 2**32 bits. But damage of
another kind has a random difference, which looks like one of the ``8 * n`` changes of a bit with
a chance of ``8 * n / 2**32``, and like one of the ``255 * n`` changes of a byte with ``255 * n /
2**32``. `MOST_BIT_NBYTES` and `MOST_BYTE_NBYTES` keep either chance below one in 250, and whoever
uses a correction has to see as well that what comes out makes sense: a pickle that can be read,
with the storages that are there.

Of a deflated record nothing is put right: a change before inflation is not linear behind it.
"""

from __future__ import annotations

import zlib

#: 8 * 2**20 / 2**32 and 255 * 2**16 / 2**32: one in 500, and one in 260.
MOST_BIT_NBYTES = 1 << 20
MOST_BYTE_NBYTES = 1 << 16


def _make_table() -> list[int]:
    table = []
    for byte in range(256):
        register = byte
        for _ in range(8):
            register = register >> 1 ^ (0xEDB88320 if register & 1 else 0)
        table.append(register)
    return table


#: What a byte makes of an empty register, and which byte makes a register with this highest byte.
_TABLE = _make_table()
_BYTE_OF = {value >> 24: byte for byte, value in enumerate(_TABLE)}


def corrected(data: bytes, stored_crc: int) -> tuple[bytes, int] | None:
    """Return the bytes that have a CRC, and which of them was changed; None if none is sure.

    A change of one bit is looked for first, then one of a byte. The changed one is ``len(data)`` if
    the bytes are right and a byte of the stored CRC itself is not.

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
        # One byte of zeros back.
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
