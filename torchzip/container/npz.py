"""The zip archive around the arrays of an .npz file, as it is written: one .npy file for each.

Every record is stored::

    local header 30 | name + ".npy" | zip64 field if needed | header of the .npy | data

The header of the .npy is long enough for the data to begin on a multiple of 64 bytes in the
archive, where it can be mapped. The CRC is of both, and precedes them. The directory ends like
that of torch (`zip_end.build_end`). All times are those of ``numpy.savez``: 1980-01-01.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import NamedTuple

from torchzip.container import npy
from torchzip.container.zip_end import build_end
from torchzip.container.zip_layout import BIG, CENTRAL, LOCAL
from torchzip.files.crc import crc32, crc32_combine

SUFFIX = ".npy"
#: The flag of a name in UTF-8.
UTF8 = 0x0800
_DATE = 0x21
_VERSION, _VERSION_64 = 20, 45


class Member(NamedTuple):
    """An array in the archive: ``head`` is what precedes its data at ``start``, without the CRC."""

    head: bytes
    start: int
    nbytes: int

    @property
    def at(self) -> int:
        """Where the record begins."""
        return self.start - len(self.head)

    def with_crc(self, crc: int) -> tuple[bytes, bytes]:
        """Return the head and the row of the directory, given the CRC of the data."""
        fields = list(LOCAL.unpack_from(self.head))
        name = self.head[LOCAL.size : LOCAL.size + fields[9]]
        inner = self.head[LOCAL.size + fields[9] + fields[10] :]
        fields[6] = crc32_combine(crc32(inner), crc, self.nbytes)
        size, at = len(inner) + self.nbytes, self.at
        big = [size, size] if size >= BIG else []
        extra = _zip64(big + [at] * (at >= BIG))
        version, capped = _VERSION_64 if extra else _VERSION, min(size, BIG)
        row = CENTRAL.pack(
            b"PK\1\2", version, version, UTF8, 0, 0, _DATE, fields[6], capped, capped,
            len(name), len(extra), 0, 0, 0, 0, min(at, BIG),
        )  # fmt: skip
        return LOCAL.pack(*fields) + self.head[LOCAL.size :], row + name + extra


def build_member(
    name: str, torch_dtype: str, shape: tuple[int, ...], nbytes: int, at: int
) -> Member:
    """Return what is written at byte ``at`` for an array whose data has ``nbytes``."""
    record = (name + SUFFIX).encode()
    # Where the size is not below 4 GiB whatever the header of the .npy takes.
    is_big = nbytes + npy.HEADER_NBYTES >= BIG
    extra_nbytes = 20 if is_big else 0
    inner = npy.build_header(torch_dtype, shape, at + LOCAL.size + len(record) + extra_nbytes)
    size = len(inner) + nbytes
    capped = BIG if is_big else size
    local = LOCAL.pack(
        b"PK\3\4", _VERSION_64 if is_big else _VERSION, UTF8, 0, 0, _DATE, 0, capped, capped,
        len(record), extra_nbytes,
    )  # fmt: skip
    head = local + record + (_zip64([size, size]) if is_big else b"") + inner
    return Member(head, at + len(head), nbytes)


def end_nbytes(members: Sequence[Member]) -> int:
    """Return the bytes of the directory and of what follows it."""
    rows = [member.with_crc(0)[1] for member in members]
    return len(build_directory(rows, 0))


def build_directory(rows: Sequence[bytes], at: int) -> bytes:
    """Return the directory, which begins at byte ``at``, and the end of the archive."""
    directory = b"".join(rows)
    if not rows:
        return b"PK\5\6" + bytes(18)  # by which numpy recognises an empty archive
    return directory + build_end(len(rows), len(directory), at)


def _zip64(values: list[int]) -> bytes:
    return struct.pack(f"<HH{len(values)}Q", 1, 8 * len(values), *values) if values else b""
