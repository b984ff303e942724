"""Archives with lies in their headers, over records that may be right."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import replace
from random import Random
from typing import Any

from tests import builders as b

_LIES = [0, 1, 2, 4, 8, 63, 64, 65, 255, 4096, 2**16 - 1, 2**31, 2**32 - 2, 2**32 - 1]
_LIES_64 = [*_LIES, 2**32, 2**48, 2**63 - 1, 2**63, 2**64 - 1]
_NAMES = [
    b"", b"archive", b"archive/", b"archive/data.pkl", b"archive/data/0", b"ARCHIVE/data/0",
    b"archive/data/../0", b"/archive/data/0", b"archive\\data\\0", b"archive/data/0\0",
    b"other/data.pkl", b"archive/.data/serialization_id", b"archive/byteorder", b"archive/version",
    b"archive/.format_version", b"archive/.storage_alignment", b"archive/code/__torch__.py",
    b"archive/constants.pkl", b"archive/archive_format", b"\xff\xfe", b"x" * 300,
]  # fmt: skip
_NUMBERS = [
    "flags", "crc", "nbytes", "compressed", "offset", "disk", "local_flags", "local_nbytes",
    "local_compressed", "local_crc", "local_extra_nbytes",
]  # fmt: skip
_END_NUMBERS = [
    "count", "on_disk", "nbytes", "offset", "disk", "first_disk", "comment_nbytes", "zip64_count",
    "zip64_nbytes", "zip64_offset", "zip64_length", "locator_offset", "locator_disks",
]  # fmt: skip


def with_lies(rng: Random, members: Sequence[b.Member]) -> bytes:
    """Return an archive of these records in which one to three things are not as they should be."""
    made = list(members)
    end = b.End(zip64=rng.random() < 0.3)
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        at = rng.randrange(len(made))
        way = rng.randrange(9)
        if way < 5:
            made[at] = replace(made[at], **_lie(rng, made[at]))
        elif way == 5:
            made.insert(rng.randrange(len(made) + 1), made[at])
        elif way == 6 and len(made) > 1:
            del made[at]
        else:
            end = replace(end, **_lie_of_the_end(rng))
    if rng.random() < 0.1:
        rng.shuffle(made)
    data = b.build_zip(made, end)
    if rng.random() < 0.05:
        data = replace_tail(rng, data)
    return data


def replace_tail(rng: Random, data: bytes) -> bytes:
    """Return the bytes with something behind or before them."""
    other = data[-rng.randrange(1, 80) :]
    return rng.choice([data + other, other + data, data + data, data + bytes(rng.randrange(99))])


def _lie(rng: Random, member: b.Member) -> dict[str, Any]:
    way = rng.randrange(10)
    if way < 4:
        name = rng.choice(_NUMBERS)
        return {name: rng.choice(_LIES) & (0xFFFF if "flags" in name or name in _SHORT else -1)}
    if way == 4:
        return {rng.choice(["name", "local_name"]): rng.choice(_NAMES)}
    if way == 5:
        return {"method": rng.choice([0, 8, 8, 8, 9, 12, 93, 99])}
    if way == 6:
        return {"local_method": rng.choice([0, 8])}
    if way == 7:
        data = bytearray(member.data or b"\0")
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        return {"data": bytes(data)}
    if way == 8:
        extra = struct.pack("<HH", rng.choice([1, 1, 0x4246]), rng.choice([0, 8, 16, 24, 28, 40]))
        extra += b"".join(struct.pack("<Q", rng.choice(_LIES_64)) for _ in range(rng.randrange(4)))
        return {rng.choice(["extra", "local_extra"]): extra, rng.choice(_ZIP64): 0xFFFFFFFF}
    stored = b.deflate(member.data)
    cut = stored[: rng.randrange(len(stored) + 1)] + bytes(rng.randrange(3))
    return {"method": 8, "stored": rng.choice([stored, cut]), "nbytes": rng.choice(_LIES)}


_SHORT = frozenset(["disk", "local_extra_nbytes"])
_ZIP64 = ["nbytes", "compressed", "offset"]


def _lie_of_the_end(rng: Random) -> dict[str, Any]:
    way = rng.randrange(6)
    if way == 0:
        comment = rng.choice([b"PK\5\6" + bytes(18), b"x" * 30, b"PK\6\7" + bytes(40)])
        return {rng.choice(["comment", "between"]): comment}
    name = rng.choice(_END_NUMBERS)
    lies = _LIES_64 if name.startswith("zip64") or name == "locator_offset" else _LIES
    is_short = name in ("count", "on_disk", "disk", "first_disk", "comment_nbytes")
    value = rng.choice(lies) & (0xFFFF if is_short else -1)
    return {name: value, "zip64": name.startswith(("zip64", "locator")) or rng.random() < 0.3}
