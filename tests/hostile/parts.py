"""What hostile files are made of, beyond `tests.builders`."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from tests import builders as b
from tests.formats.tar_builder import OldCheckpoint


def zipped(*parts: bytes) -> bytes:
    """Return a checkpoint whose pickle is made of these parts."""
    return b.checkpoint(b.stream(*parts))


def good_members(root: bytes = b.tensor()) -> list[b.Member]:
    """Return the records of a good checkpoint: a tensor of 1, 2, 3, 4."""
    return b.members_of(b.stream(root))


def with_record(member: bytes, *, root: bytes = b.tensor(), **changes: Any) -> bytes:
    """Return a good checkpoint with one record changed."""
    return b.build_zip(
        [
            replace(each, **changes) if each.name == b"archive/" + member else each
            for each in good_members(root)
        ]
    )


def and_record(name: bytes, data: bytes = b"", **fields: Any) -> bytes:
    """Return a good checkpoint with one more record."""
    more = b.Member(name=b"archive/" + name, data=data, **fields)
    return b.build_zip([*good_members(), more])


def and_records(**more: bytes) -> bytes:
    """Return a good checkpoint with more records."""
    members = [
        b.Member(name=f"archive/{name.replace('__', '.')}".encode(), data=data)
        for name, data in more.items()
    ]
    return b.build_zip([*good_members(), *members])


def doubling(depth: int = 40) -> bytes:
    """Return a list that is 2**depth items long, if it is walked as a tree."""
    return b"]" + b"2\x86" * depth


HUGE = b"\x8b" + struct.pack("<i", 3000) + b"\xff" * 2999 + b"\x7f"
HUGE_NEGATIVE = b"\x8b" + struct.pack("<i", 3000) + b"\0" * 2999 + b"\x80"
DTYPE = b.name("torch", "uint16")
UNTYPED = b.name("torch.storage", "UntypedStorage")
V3 = b.name("torch._utils", "_rebuild_tensor_v3")
PARAMETER = b.name("torch._utils", "_rebuild_parameter")
FROM_TYPE = b.name("torch._tensor", "_rebuild_from_type_v2")


def tensor_on(key: str = "0", *, size: bytes | Sequence[b.Value] = (4,), **fields: Any) -> bytes:
    """Return a tensor on a storage with these fields in its persistent id."""
    return b.tensor(b.persistent(key, **fields), size=size)


def v3(dtype: bytes | str, **changes: Any) -> bytes:
    """Return a tensor of 16 bytes, as torch writes newer dtypes."""
    bytes_16 = b.persistent(numel=16, kind=UNTYPED)
    dtype = b.name("torch", dtype) if isinstance(dtype, str) else dtype
    return b.tensor(bytes_16, function=V3, extra=dtype, **changes)


def byte_array(argument: b.Value) -> bytes:
    return b.call("builtins.bytearray", argument)


def legacy(
    *, keys: bytes = b.list_of("0"), count: int = 4, data: bytes = b.DATA,
    root: bytes = b.tensor(), **more: bytes,
) -> bytes:  # fmt: skip
    """Return a checkpoint of the legacy format, with a lie in any part of it."""
    storages = struct.pack("<q", count) + data
    return b.legacy(b.stream(root), b.stream(keys), storages, **more)


SYSTEM = b.name("os", "system")


def changed(data: bytes, at: int, raw: bytes) -> bytes:
    """Return bytes of which some are others, from ``at``, or from there before the end."""
    begin = at if at >= 0 else len(data) + at
    return data[:begin] + raw + data[begin + len(raw) :]


def in_directory(data: bytes, member: bytes, at: int, raw: bytes) -> bytes:
    """Return an archive with a change in the header of one record in its directory."""
    return changed(data, data.rindex(b"archive/" + member) - 46 + at, raw)


def short_text(value: str) -> bytes:
    """Return SHORT_BINUNICODE, or BINUNICODE for a long one."""
    raw = value.encode("utf-8", "surrogatepass")
    return b"\x8c" + bytes([len(raw)]) + raw if len(raw) < 256 else b.text(value)


def by_stack(module: str, attribute: str) -> bytes:
    """Return STACK_GLOBAL with its two texts."""
    return short_text(module) + short_text(attribute) + b"\x93"


def tar_of(
    *, root: bytes = b.stream(b"N"), storages: bytes | None = None, tensors: bytes | None = None,
    description: bytes | None = None,
) -> bytes:  # fmt: skip
    """Return a checkpoint of torch before 0.1.10, some of its members given whole."""
    given = {"storages": storages, "tensors": tensors, "sys_info": description}
    more = {name: data for name, data in given.items() if data is not None}
    return OldCheckpoint(pickle=root, more=more).build()


def torchscript(
    pickle: bytes, *, constants: bytes = b.stream(b")"), source: bytes = b"class Net(Module):\n"
) -> bytes:
    """Return an archive as ``torch.jit.save`` lays it out."""
    records = {
        "data.pkl": pickle, "code/__torch__.py": source, "constants.pkl": constants,
        "version": b"3\n", "byteorder": b"little",
    }  # fmt: skip
    return b.zip_of(records)
