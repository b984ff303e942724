"""Archives and pickles made by hand, with a lie in any field that a test wants.

Nothing of torchzip is used here: a writer that is wrong must not hide a reader that is wrong in
the same way.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

GOLDEN = Path(__file__).parent / "data" / "golden" / "torch-2.13.0"

# -- pickles -------------------------------------------------------------------------------------


#: What stands for opcodes: plain Python values, and bytes, which are opcodes already.
Value = bytes | str | int | float | None | Sequence["Value"] | Mapping[str, "Value"]


def opcodes(value: Value) -> bytes:
    """Return the opcodes of a plain value; bytes are opcodes already."""
    match value:
        case bytes():
            return value
        case str():
            return text(value)
        case None:
            return b"N"
        case bool():
            return TRUE if value else FALSE
        case int():
            return integer(value)
        case float():
            return b"G" + struct.pack(">d", value)
        case Mapping():
            return dict_of(value)
        case tuple():
            return tuple_of(*value)
        case _:
            return list_of(*value)


def text(value: str) -> bytes:
    """Return BINUNICODE."""
    raw = value.encode("utf-8", "surrogatepass")
    return b"X" + struct.pack("<I", len(raw)) + raw


def integer(value: int) -> bytes:
    """Return BININT or LONG1."""
    if -(1 << 31) <= value < 1 << 31:
        return b"J" + struct.pack("<i", value)
    raw = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(raw)]) + raw


def name(module: str, attribute: str) -> bytes:
    """Return GLOBAL."""
    return f"c{module}\n{attribute}\n".encode()


def tuple_of(*items: Value) -> bytes:
    """Return MARK, items, TUPLE."""
    return b"(" + b"".join(map(opcodes, items)) + b"t"


def list_of(*items: Value) -> bytes:
    """Return EMPTY_LIST, MARK, items, APPENDS."""
    return b"](" + b"".join(map(opcodes, items)) + b"e"


def dict_of(items: Mapping[str, Value]) -> bytes:
    """Return EMPTY_DICT, MARK, keys and values, SETITEMS."""
    return b"}(" + b"".join(text(key) + opcodes(value) for key, value in items.items()) + b"u"


def call(function: bytes | str, *arguments: Value) -> bytes:
    """Return a REDUCE of a function, which may be given by its dotted name."""
    if isinstance(function, str):
        module, _, attribute = function.rpartition(".")
        function = name(module, attribute)
    return function + tuple_of(*arguments) + b"R"


def stream(*parts: bytes, protocol: int = 2) -> bytes:
    return b"\x80" + bytes([protocol]) + b"".join(parts) + b"."


def ints(*values: int) -> bytes:
    return tuple_of(*values)


FALSE = b"\x89"
TRUE = b"\x88"
HOOKS = call("collections.OrderedDict")


def persistent(
    key: str = "0",
    *,
    numel: Value = 4,
    kind: bytes | str = "FloatStorage",
    location: Value = "cpu",
    raw_key: bytes | None = None,
    extra: Value = b"",
) -> bytes:
    """Return a storage's persistent id; a kind that is no opcodes is a class of torch."""
    shown = key if raw_key is None else raw_key
    kind = name("torch", kind) if isinstance(kind, str) else kind
    return tuple_of("storage", kind, shown, location, numel, extra) + b"Q"


def tensor(
    storage: bytes | None = None,
    *,
    offset: Value = 0,
    size: bytes | Sequence[Value] = (4,),
    stride: bytes | Sequence[Value] = (1,),
    requires_grad: Value = False,
    hooks: bytes = HOOKS,
    extra: Value = b"",
    function: bytes | str = "torch._utils._rebuild_tensor_v2",
) -> bytes:
    return call(
        function,
        persistent() if storage is None else storage,
        offset,
        size if isinstance(size, bytes) else tuple(size),
        stride if isinstance(stride, bytes) else tuple(stride),
        requires_grad,
        hooks,
        extra,
    )


# -- archives ------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Member:
    """One record of an archive. A field that is None is what the bytes are."""

    name: bytes
    data: bytes = b""
    method: int = 0
    flags: int = 0
    crc: int | None = None
    stored: bytes | None = None  # the bytes in the file, where they are not the data
    nbytes: int | None = None
    compressed: int | None = None
    offset: int | None = None
    disk: int = 0
    extra: bytes = b""
    comment: bytes = b""
    local_magic: bytes = b"PK\3\4"
    local_name: bytes | None = None
    local_method: int | None = None
    local_flags: int | None = None
    local_nbytes: int | None = None
    local_compressed: int | None = None
    local_crc: int | None = None
    local_extra: bytes = b""
    local_extra_nbytes: int | None = None


@dataclass(frozen=True, kw_only=True)
class End:
    """What the end records say. A field that is None is the truth."""

    count: int | None = None
    on_disk: int | None = None
    nbytes: int | None = None
    offset: int | None = None
    disk: int = 0
    first_disk: int = 0
    comment: bytes = b""
    comment_nbytes: int | None = None
    zip64: bool = False
    zip64_count: int | None = None
    zip64_nbytes: int | None = None
    zip64_offset: int | None = None
    zip64_length: int = 44
    locator_offset: int | None = None
    locator_disks: int = 1
    between: bytes = b""  # between directory and end record


def deflate(data: bytes) -> bytes:
    """Return raw deflated bytes, as zip archives hold them."""
    machine = zlib.compressobj(9, zlib.DEFLATED, -15)
    return machine.compress(data) + machine.flush()


def _given(value: int | None, truth: int) -> int:
    return truth if value is None else value


def build_zip(members: Sequence[Member], end: End | None = None) -> bytes:
    last = end if end is not None else End()
    body = bytearray()
    directory = bytearray()
    for member in members:
        stored = member.stored
        if stored is None:
            stored = deflate(member.data) if member.method == 8 else member.data
        crc = _given(member.crc, zlib.crc32(member.data))
        nbytes = _given(member.nbytes, len(member.data))
        compressed = _given(member.compressed, len(stored))
        offset = _given(member.offset, len(body))
        local_name = member.name if member.local_name is None else member.local_name
        body += struct.pack(
            "<4sHHHHHLLLHH",
            member.local_magic, 20,
            _given(member.local_flags, member.flags), _given(member.local_method, member.method),
            0, 0, _given(member.local_crc, crc),
            _given(member.local_compressed, compressed) & 0xFFFFFFFF,
            _given(member.local_nbytes, nbytes) & 0xFFFFFFFF,
            len(local_name), _given(member.local_extra_nbytes, len(member.local_extra)),
        )  # fmt: skip
        body += local_name + member.local_extra + stored
        directory += struct.pack(
            "<4sHHHHHHLLLHHHHHLL",
            b"PK\1\2", 20, 20, member.flags, member.method, 0, 0, crc,
            min(compressed, 0xFFFFFFFF), min(nbytes, 0xFFFFFFFF),
            len(member.name), len(member.extra), len(member.comment), member.disk, 0, 0,
            min(offset, 0xFFFFFFFF),
        )  # fmt: skip
        directory += member.name + member.extra + member.comment
    start = len(body)
    body += directory
    count = _given(last.count, len(members))
    directory_nbytes = _given(last.nbytes, len(directory))
    offset = _given(last.offset, start)
    if last.zip64:
        end_64 = len(body)
        count_64 = _given(last.zip64_count, count)
        body += struct.pack(
            "<4sQHHLLQQQQ", b"PK\6\6", last.zip64_length, 45, 45, 0, 0, count_64, count_64,
            _given(last.zip64_nbytes, directory_nbytes), _given(last.zip64_offset, offset),
        )  # fmt: skip
        body += struct.pack(
            "<4sLQL", b"PK\6\7", 0, _given(last.locator_offset, end_64), last.locator_disks
        )
    body += last.between
    body += struct.pack(
        "<4sHHHHLLH", b"PK\5\6", last.disk, last.first_disk,
        min(_given(last.on_disk, count), 0xFFFF), min(count, 0xFFFF),
        directory_nbytes & 0xFFFFFFFF, offset & 0xFFFFFFFF,
        _given(last.comment_nbytes, len(last.comment)),
    )  # fmt: skip
    return bytes(body + last.comment)


def zip_of(
    records: Mapping[str, bytes | None], *, root: str = "archive/", method: int = 0
) -> bytes:
    """Return an archive of records by name; one that is None is left out."""
    return build_zip(
        [
            Member(name=(root + name).encode(), data=data, method=method)
            for name, data in records.items()
            if data is not None
        ]
    )


#: What `tensor` and `persistent` describe by default: four float32.
DATA = struct.pack("<4f", 1, 2, 3, 4)


def members_of(
    pickle: bytes,
    storages: Mapping[str, bytes] | None = None,
    *,
    root: str = "archive",
    version: bytes | None = b"3\n",
    byteorder: bytes | None = b"little",
) -> list[Member]:
    """Return the records of a checkpoint; four float32 are storage 0 unless others are given."""
    records = {"data.pkl": pickle}
    if byteorder is not None:
        records["byteorder"] = byteorder
    for key, data in ({"0": DATA} if storages is None else storages).items():
        records[f"data/{key}"] = data
    if version is not None:
        records["version"] = version
    return [Member(name=f"{root}/{record}".encode(), data=data) for record, data in records.items()]


def checkpoint(pickle: bytes, storages: Mapping[str, bytes] | None = None) -> bytes:
    return build_zip(members_of(pickle, storages))


#: The number that a checkpoint of the legacy format begins with.
MAGIC = b"\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19"


def legacy(
    pickle: bytes,
    keys: bytes,
    storages: bytes,
    *,
    magic: bytes = MAGIC,
    version: bytes = integer(1001),
    system: bytes = b"}",
) -> bytes:
    return stream(magic) + stream(version) + stream(system) + pickle + keys + storages


def safetensors(header: bytes, data: bytes = b"", *, nbytes: int | None = None) -> bytes:
    return struct.pack("<Q", len(header) if nbytes is None else nbytes) + header + data
