"""The tar files of torch before 0.1.10: lies in the headers of members, and in their streams."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from tests import builders as b
from tests.formats.tar_builder import four_numbers
from tests.hostile.attack import Row, attacks
from torchzip.errors import (
    ArchiveError,
    FormatError,
    LimitError,
    PickleError,
    TensorError,
    UnsupportedError,
)

_GOOD = four_numbers()


def _of_storage(**changes: Any) -> bytes:
    return replace(_GOOD, storages=[replace(_GOOD.storages[0], **changes)]).build()


def _of_tensor(**changes: Any) -> bytes:
    return replace(_GOOD, tensors=[replace(_GOOD.tensors[0], **changes)]).build()


def _of_views(*views: Sequence[int]) -> bytes:
    return replace(_GOOD, views=views).build()


def _member(
    name: bytes,
    data: bytes = b"",
    *,
    size: bytes | None = None,
    kind: bytes = b"0",
    link: bytes = b"",
    prefix: bytes = b"",
    magic: bytes = b"ustar\x0000",
    checksum: bytes | None = None,
) -> bytes:
    """Return a header and the data of a member; the checksum is right unless it is given."""
    header = bytearray(512)

    def put(at: int, raw: bytes) -> None:
        header[at : at + len(raw)] = raw

    put(0, name)
    put(100, b"0000644\0")
    put(124, b"%011o\0" % len(data) if size is None else size)
    put(136, b"00000000000\0")
    put(148, b" " * 8)
    put(156, kind)
    put(157, link)
    put(257, magic)
    put(345, prefix)
    put(148, b"%06o\0 " % sum(header) if checksum is None else checksum)
    return bytes(header) + data + bytes(-len(data) % 512)


_ALL = _GOOD.members()
_TAIL = bytes(1024)


def _tar(*before: bytes, tail: bytes = _TAIL, **instead: bytes) -> bytes:
    """Return a tar of the four members, some of them given as whole members."""
    members = [instead.get(name, _member(name.encode(), data)) for name, data in _ALL.items()]
    return b"".join([*before, *members]) + tail


def _storages(data: bytes = _ALL["storages"], **changes: Any) -> bytes:
    return _tar(storages=_member(b"storages", data, **changes))


def _pax(texts: Mapping[str, str] | bytes, kind: bytes = b"x") -> bytes:
    raw = texts if isinstance(texts, bytes) else b""
    for key, value in {} if isinstance(texts, bytes) else texts.items():
        rest = f" {key}={value}\n".encode("utf-8", "surrogateescape")
        length = len(rest) + 1
        while len(str(length)) + len(rest) != length:
            length += 1
        raw += str(length).encode() + rest
    return _member(b"PaxHeader", raw, kind=kind)


def _with_pax(texts: Mapping[str, str] | bytes, kind: bytes = b"x", **changes: Any) -> bytes:
    """Return a tar with an extended header before its storages."""
    member = _member(b"storages", _ALL["storages"], **changes)
    return _tar(storages=_pax(texts, kind) + member)


_SIZE = len(_ALL["storages"])
_FILES: list[Row] = [
    # sizes
    ("a size of blanks", _storages(size=b" " * 12)),
    ("a size of zero bytes", _storages(size=bytes(12))),
    ("a size below 0", _storages(size=b"-0000000020\0")),
    ("a size with an 8", _storages(size=b"00000000080\0")),
    ("a size in full-width digits", _storages(size="０００1".encode() + b"\0")),
    ("a size with an underscore", _storages(size=b"0000000_200\0")),
    ("a size of twelve digits", _storages(size=b"%012o" % _SIZE), None),
    ("a size behind blanks", _storages(size=b"%11o\0" % _SIZE), None),
    ("a size in binary", _storages(size=b"\x80" + _SIZE.to_bytes(11, "big")), None),
    ("a size in binary of 2**63", _storages(size=b"\x80" + (1 << 63).to_bytes(11, "big"))),
    ("a size in binary of -1", _storages(size=b"\xff" * 12)),
    ("a size of 8 GiB", _storages(size=b"77777777777\0")),
    ("a size that is too small", _storages(size=b"%011o\0" % (_SIZE - 1)), FormatError),
    ("a size of 0", _storages(size=b"00000000000\0"), FormatError),
    ("a size that swallows the next member", _tar(
        pickle=_member(b"pickle", _ALL["pickle"], size=b"%011o\0" % (512 * 3)))),
    # checksums
    ("a checksum of 0", _storages(checksum=b"000000\0 ")),
    ("a checksum of blanks", _storages(checksum=b" " * 8)),
    ("a checksum that is no number", _storages(checksum=b"\xff" * 8)),
    # kinds
    ("storages that are a hard link", _storages(kind=b"1", link=b"pickle")),
    ("storages that are a symbolic link", _storages(kind=b"2", link=b"/etc/passwd")),
    ("storages that are a character device", _storages(kind=b"3")),
    ("storages that are a block device", _storages(kind=b"4")),
    ("storages that are a folder", _storages(kind=b"5")),
    ("storages that are a FIFO", _storages(kind=b"6")),
    ("storages that are sparse", _storages(kind=b"S")),
    ("storages of a kind that is not known", _storages(kind=b"Z")),
    ("storages of the oldest kind", _storages(kind=b"\0"), None),
    ("storages that are contiguous", _storages(kind=b"7")),
    ("links beside the members", _tar(
        _member(b"a", kind=b"2", link=b"../x"), _member(b"a", kind=b"1", link=b"/")), None),
    ("a symbolic link before the storages", _tar(_member(b"storages", kind=b"2", link=b"../x"))),
    ("a symbolic link behind the storages", _tar(
        tail=_member(b"storages", kind=b"2", link=b"../x") + _TAIL)),
    ("a contiguous file behind the storages", _tar(
        tail=_member(b"storages", b"other", kind=b"7") + _TAIL)),
    ("a file of a kind that is not known behind the storages", _tar(
        tail=_member(b"storages", b"other", kind=b"Z") + _TAIL)),
    ("a folder behind the storages", _tar(tail=_member(b"storages", kind=b"5") + _TAIL)),
    ("a folder before the storages", _tar(_member(b"storages", kind=b"5")), None),
    # names
    ("storages in a folder", _tar(storages=_member(b"a/storages", _ALL["storages"]))),
    ("storages in the folder dot", _tar(storages=_member(b"./storages", _ALL["storages"]))),
    ("storages by an absolute name", _tar(storages=_member(b"/storages", _ALL["storages"]))),
    ("storages by a prefix", _storages(prefix=b"../..")),
    ("storages in capitals", _tar(storages=_member(b"STORAGES", _ALL["storages"]))),
    ("storages with bytes behind the name", _tar(
        storages=_member(b"storages\0junk", _ALL["storages"])), None),
    ("storages twice", _tar(_member(b"storages", _ALL["storages"]))),
    ("storages twice, by a zero byte", _tar(_member(b"storages\0x", b"other"))),
    ("members whose names climb", _tar(
        _member(b"../../etc/passwd", b"x"), _member(b"/etc/passwd", b"x")), None),
    ("a member without name", _tar(_member(b"", b"x")), None),
    ("a long name of GNU", _tar(storages=_member(b"././@LongLink", b"storages\0", kind=b"L")
                                + _member(b"x", _ALL["storages"])), UnsupportedError),
    ("a long name of GNU that hides a member", _tar(
        _member(b"././@LongLink", b"x\0", kind=b"L")), UnsupportedError),
    ("a long name of a link of GNU", _tar(_member(b"././@LongLink", b"x\0", kind=b"K")), None),
    # extended headers
    ("a size in an extended header", _with_pax({"size": str(_SIZE)}, size=b"00000000000\0"), None),
    ("a size in an extended header that lies", _with_pax({"size": "5"}), FormatError),
    ("a size in an extended header past the file", _with_pax({"size": "9" * 24})),
    ("a size in an extended header of 4,000 digits", _with_pax({"size": "9" * 3000})),
    ("a size in an extended header below 0", _with_pax({"size": "-1"})),
    ("a size in an extended header of 1e3", _with_pax({"size": "1e3"})),
    ("a size in an extended header of nothing", _with_pax({"size": ""})),
    ("a name in an extended header", _tar(
        storages=_pax({"path": "storages"}) + _member(b"x", _ALL["storages"])), None),
    ("a name in an extended header that is another", _with_pax({"path": "../storages"})),
    ("a name in an extended header that is there already", _tar(
        _pax({"path": "storages"}) + _member(b"x", b"other"))),
    ("a sparse file in an extended header", _with_pax(
        {"GNU.sparse.major": "1", "GNU.sparse.realsize": "99999999999"}), UnsupportedError),
    ("a size for all members", _with_pax({"size": "5"}, kind=b"g")),
    ("a name for all members", _with_pax({"path": "storages"}, kind=b"g")),
    ("a comment for all members", _with_pax({"comment": "x"}, kind=b"g"), None),
    ("an extended header of an extended header", _with_pax({"size": str(_SIZE)}) .replace(_TAIL,
     _pax({"a": "b"}) + _pax({"a": "b"}) + _TAIL)),
    ("an extended header of Solaris", _with_pax({"size": str(_SIZE)}, kind=b"X"), UnsupportedError),
    ("an extended header of a link", _tar(
        _pax({"path": "x"}) + _member(b"storages", kind=b"2")), None),
    ("an extended header that calls a link by the name of a file", _tar(
        _pax({"path": "storages"}) + _member(b"x", kind=b"2"))),
    ("an extended header with a slash behind the name", _tar(
        tail=_pax({"path": "storages/"}) + _member(b"x", b"other") + _TAIL)),
    ("an extended header of nothing", _with_pax(b""), None),
    ("an extended header without a line break", _with_pax(b"8 a=bcd")),
    ("an extended header of length 0", _with_pax(b"0 a=b\n")),
    ("an extended header of a length past its end", _with_pax(b"99 a=b\n")),
    ("an extended header of a length below 0", _with_pax(b"-6 a=b\n")),
    ("an extended header of a length that is too small", _with_pax(b"3 a=b\n")),
    ("an extended header without a key", _with_pax(b"5 =b\n"), None),
    ("an extended header without a value", _with_pax(b"5 ab\n")),
    ("an extended header of many digits", _with_pax(b"9" * 400)),
    ("an extended header of 5,000 bytes", _with_pax({"comment": "x" * 5000}), LimitError),
    ("an extended header and no member behind it", _tar(tail=_pax({"size": "5"})), None),
    # the end
    ("no blocks at the end", _tar(tail=b""), None),
    ("one block at the end", _tar(tail=bytes(512)), None),
    ("part of a block at the end", _tar(tail=bytes(100)), None),
    ("a header that is cut at the end", _tar(tail=_member(b"x")[:511]), None),
    ("bytes behind the end", _tar(tail=_TAIL + b"junk"), None),
    ("an archive behind the end", _tar(tail=_TAIL + b.checkpoint(b.stream(b"N"))), None),
    ("a member behind the end", _tar(tail=_TAIL + _member(b"storages", b"other")), None),
    ("junk where a header should be", _tar(b"x" * 257 + b"ustar" + b"x" * 250)),
    ("zeros before the members", bytes(512) + _tar(), FormatError),
    ("a tar in a tar", _member(b"pickle", _tar()) + _TAIL),
    # what the members hold
    ("a storage of more elements", _of_storage(count=5), FormatError),
    ("a storage of 2**61 elements", _of_storage(count=1 << 61), TensorError),
    ("a storage of -1 elements", _of_storage(count=-1), TensorError),
    ("a storage of a class that is called",
     _of_storage(kind=b.call("os.system", "x")), UnsupportedError),
    ("a storage key of 21 digits", _of_storage(key=b.text("1" * 21)), PickleError),
    ("a storage key of 2**64", _of_storage(key=b.integer(1 << 64)), PickleError),
    ("a storage key that is true", _of_storage(key=b.TRUE), PickleError),
    ("a tensor with the key of a storage", _of_tensor(key=b.integer(1)), FormatError),
    ("a tensor on a tensor", _of_tensor(storage=b.integer(2)), PickleError),
    ("a tensor of 65 dimensions", _of_tensor(size=(1,) * 65, stride=(1,) * 65), TensorError),
    ("a tensor of -1 dimensions", _of_tensor(size=(), stride=(), ndim=-1), TensorError),
    ("a tensor of 2**63 - 1", _of_tensor(size=((1 << 63) - 1,)), TensorError),
    ("a tensor of -4", _of_tensor(size=(-4,)), TensorError),
    ("a tensor with a stride of -1", _of_tensor(stride=(-1,)), TensorError),
    ("a tensor from -1", _of_tensor(offset=-1), TensorError),
    ("a window of a window", _of_views((3, 1, 0, 2), (4, 3, 0, 1)), TensorError),
    ("a window that is its storage", _of_views((1, 1, 0, 4)), FormatError),
    ("a window of 2**63 elements", _of_views((3, 1, 0, 1 << 63)), TensorError),
    ("a count of storages of 2**31", _storages(b.stream(b.integer(1 << 31))), PickleError),
    ("a count of storages that is true", _storages(b.stream(b.TRUE)), PickleError),
    ("a count of tensors past their member", _tar(tensors=_member(
        b"tensors", b.stream(b.integer(1 << 30)))), PickleError),
    ("a system of big-endian", _tar(sys_info=_member(b"sys_info", b.stream(
        b.dict_of({"little_endian": False})))), None),
    ("a system that is no pickle", _tar(sys_info=_member(b"sys_info", b"\xff" * 9)), None),
    ("no system", _tar(sys_info=b""), None),
]  # fmt: skip

ROWS = attacks(_FILES, ArchiveError, prefix="tar: ")
