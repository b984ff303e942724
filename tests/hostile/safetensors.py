"""The JSON header of a safetensors file, wrong in every way."""

from __future__ import annotations

import json
import struct
from typing import Any

from tests import builders as b
from tests.hostile.attack import Row, attacks
from torchzip.errors import ArchiveError, FormatError, LimitError, TensorError, UnsupportedError


def _entry(
    dtype: Any = "F32", shape: Any = (4,), offsets: Any = (0, 16), **more: Any
) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets, **more}


def _file(header: Any, data: bytes = b.DATA) -> bytes:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return b.safetensors(raw, data)


def _with(**changes: Any) -> bytes:
    """Return a file of one tensor of 1, 2, 3, 4 with a lie in its entry."""
    return _file({"x": _entry(**changes)})


def _raw(dtype: bytes = b'"F32"', shape: bytes = b"[4]", offsets: bytes = b"[0,16]") -> bytes:
    return _file(b'{"x":{"dtype":%s,"shape":%s,"data_offsets":%s}}' % (dtype, shape, offsets))


_X = b'"x":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}'


def _of_length(nbytes: int) -> bytes:
    """Return a good file but for the length of its header."""
    return b.safetensors(b"{" + _X + b"}", b.DATA, nbytes=nbytes)


def _metadata(text: bytes) -> bytes:
    return _file(b'{"__metadata__":' + text + b"," + _X + b"}")


def _and_empty(at: int) -> bytes:
    """Return a file of a good tensor and of an empty one at this place."""
    return _file({"x": _entry(), "y": _entry(shape=[0], offsets=[at, at])})


def _two(one: Any, other: Any, data: bytes = b.DATA) -> bytes:
    """Return a file of two tensors of two numbers, at these places."""
    rows = {"x": _entry(shape=[2], offsets=one), "y": _entry(shape=[2], offsets=other)}
    return _file(rows, data)


_FILES: list[Row] = [
    # the length
    ("a length of 0", _of_length(0)),
    ("a length of one byte fewer", _of_length(len(_X) + 1)),
    ("a length of one byte more", _of_length(len(_X) + 3)),
    ("a length past the file", _of_length(1000)),
    ("a length past the limit", _of_length(100_000_001), LimitError),
    ("a length of 2**63", _of_length(1 << 63), FormatError),
    ("a length of 2**64 - 1", _of_length((1 << 64) - 1), FormatError),
    ("a length of the whole file", _of_length(len(_X) + 2 + 16)),
    ("a length in big-endian", struct.pack(">Q", len(_X) + 2) + b"{" + _X + b"}" + b.DATA,
     FormatError),
    ("a length and a brace", struct.pack("<Q", 1) + b"{"),
    # the text
    ("a header behind a byte order mark", _file(b"\xef\xbb\xbf{" + _X + b"}"), FormatError),
    ("a header behind blanks", _file(b"  {" + _X + b"}"), None),
    ("a header behind 100,000 blanks", _file(b"\t\r\n " * 25_000 + b"{" + _X + b"}"), None),
    ("a header behind a form feed", _file(b"\x0c{" + _X + b"}"), FormatError),
    ("a header behind a no-break space", _file(b"\xc2\xa0{" + _X + b"}"), FormatError),
    ("a header of blanks", _file(b" " * 1000)),
    ("a header with blanks behind it", _file(b"{" + _X + b"}" + b" " * 99), None),
    ("a header with line breaks in it", _file(b"{\r\n\t" + _X + b"\n}\n"), None),
    ("a header with zeros behind it", _file(b"{" + _X + b"}\0\0")),
    ("two headers", _file(b"{" + _X + b"}{}")),
    ("a header in UTF-16", _file(("{" + _X.decode() + "}").encode("utf-16-le"))),
    ("a header that is no UTF-8", _file(b'{"\xff' + _X[1:] + b"}")),
    ("a header with an overlong letter", _file(b'{"\xc0\x80' + _X[1:] + b"}")),
    ("a header with a raw surrogate", _file(b'{"\xed\xa0\x80' + _X[1:] + b"}")),
    ("a header with a comment", _file(b"{/* */" + _X + b"}")),
    ("a header with a comma too many", _file(b"{" + _X + b",}")),
    ("a header with a raw line break in a name", _file(b'{"\n' + _X[1:] + b"}")),
    ("a header nested 100,000 deep", _file(b'{"x":' + b"[" * 100_000 + b"]" * 100_000 + b"}")),
    ("a header nested without end", _file(b'{"x":' * 50_000)),
    ("a header of nothing", _file(b"{}")),
    # names
    ("a tensor twice", _file(b"{" + _X + b"," + _X + b"}")),
    ("a tensor twice by an escape",
     _file(b"{" + _X + b"," + _X.replace(b"x", b"\\u0078", 1) + b"}")),
    ("a dtype twice", _file(b'{"x":{"dtype":"U8",' + _X[5:] + b"}")),
    ("metadata twice", _metadata(b'{},"__metadata__":{}')),
    ("a text twice in the metadata", _metadata(b'{"a":"1","a":"2"}')),
    ("a tensor without name", _file({"": _entry()}), None),
    ("a tensor called by a path", _file({"../../etc/passwd": _entry()}), None),
    ("a tensor called by a terminal command", _file({"\x1b[2J\x1b]0;x\7": _entry()}), None),
    ("a tensor called by a surrogate", _file(b'{"\\ud800' + _X[2:] + b"}")),
    ("a tensor called by a pair in reverse", _file(b'{"\\ude00\\ud83d' + _X[2:] + b"}")),
    ("a tensor called by a pair", _file(b'{"\\ud83d\\ude00' + _X[2:] + b"}"), None),
    ("a tensor with a name of a megabyte", _file({"x" * (1 << 20): _entry()}), None),
    ("a tensor in the place of the metadata", _file({"__metadata__": _entry()})),
    # metadata
    ("metadata of numbers", _metadata(b'{"a":1}')),
    ("metadata of null", _metadata(b'{"a":null}')),
    ("metadata of metadata", _metadata(b'{"a":{"b":"c"}}')),
    ("metadata that is a list", _metadata(b'[]')),
    ("metadata that is null", _metadata(b'null'), None),
    ("metadata of a surrogate", _metadata(b'{"a":"\\udfff"}')),
    ("metadata under a surrogate", _metadata(b'{"\\udfff":"a"}')),
    ("metadata that is text", _metadata(b'"a"')),
    ("ties that are none", _metadata(b'{"torchzip.aliases":"["}'), None),
    ("ties of a tensor with itself", _metadata(b'{"torchzip.aliases":"{\\"x\\":\\"x\\"}"}'), None),
    ("ties with a tensor that is not there",
     _metadata(b'{"torchzip.aliases":"{\\"y\\":\\"z\\"}"}'), None),
    ("parts of a tensor that is not there", _metadata(b'{"DCP_SHARDING_INFO":"{"}'), None),
    # entries
    ("an entry that is null", _file({"x": None})),
    ("an entry that is a number", _file({"x": 1})),
    ("an entry that is a list", _file({"x": ["F32", [4], [0, 16]]})),
    ("an entry that is text", _file({"x": "dtype"})),
    ("an entry without dtype", _file({"x": {"shape": [4], "data_offsets": [0, 16]}})),
    ("an entry without shape", _file({"x": {"dtype": "F32", "data_offsets": [0, 16]}})),
    ("an entry without offsets", _file({"x": {"dtype": "F32", "shape": [4]}})),
    ("an entry with more", _with(strides=[2], is_parameter=True), None),
    *[(f"an entry with {what}", _file(b'{%s,"more":%s}}' % (_X[:-1], raw))) for what,
     raw in (("NaN", b"NaN"), ("Infinity", b"[Infinity]"), ("-Infinity", b'{"a":-Infinity}'),
     ("1e99999", b"1e99999"), ("an int of 400 digits", b"9" * 400),
     ("a surrogate", b'"\\ud800"'), ("a key of a surrogate", b'{"\\ud800":1}'),
     ("126 lists", b"[" * 126 + b"]" * 126), ("900 objects", b'{"a":' * 900 + b"1" + b"}" * 900))],
    ("an entry with 125 lists", _file(b'{%s,"more":%s}}' % (
        _X[:-1], b"[" * 125 + b"]" * 125)), None),
    ("a dtype that is not known", _with(dtype="F128"), UnsupportedError),
    ("a dtype in small letters", _with(dtype="f32"), UnsupportedError),
    ("a dtype of nothing", _with(dtype=""), UnsupportedError),
    ("a dtype of numpy", _with(dtype="<f4"), UnsupportedError),
    ("a dtype that is a list", _with(dtype=["F32"]), UnsupportedError),
    ("a dtype that is null", _with(dtype=None), UnsupportedError),
    ("a dtype of a megabyte", _with(dtype="F" * (1 << 20)), UnsupportedError),
    ("a dtype of half bytes that is odd", _with(dtype="F4", shape=[31]), UnsupportedError),
    ("a dtype of half bytes without shape", _with(dtype="F4", shape=[]), UnsupportedError),
    ("a dtype of another size", _with(dtype="F16")),
    ("a dtype of 6 bits", _with(dtype="F6_E2M3"), UnsupportedError),
    # shapes
    ("a shape of -4", _with(shape=[-4])),
    ("a shape of -2 and -2", _with(shape=[-2, -2])),
    ("a shape of 4.0", _raw(shape=b"[4.0]")),
    ("a shape of 4e0", _raw(shape=b"[4e0]")),
    ("a shape of true", _file({"x": _entry(dtype="U8", shape=[True], offsets=[0, 1])}, b"x")),
    ("a shape of text", _with(shape=["4"])),
    ("a shape that is text", _with(shape="4")),
    ("a shape that is a number", _with(shape=4)),
    ("a shape that is null", _with(shape=None)),
    ("a shape in a shape", _with(shape=[[4]])),
    ("a shape of NaN", _raw(shape=b"[NaN]")),
    ("a shape of infinity", _raw(shape=b"[Infinity]")),
    ("a shape of 1e999", _raw(shape=b"[1e999]")),
    ("a shape of 2**63", _with(shape=[1 << 63])),
    ("a shape of 2**64 + 4", _with(shape=[(1 << 64) + 4])),
    ("a shape whose product wraps to 4", _with(shape=[(1 << 62) + 1, 4])),
    ("a shape whose bytes wrap to 16", _with(shape=[(1 << 62) + 4])),
    ("a shape of 5,000 digits", _raw(shape=b"[" + b"9" * 5000 + b"]")),
    ("a shape with a leading zero", _raw(shape=b"[04]")),
    ("a shape with a plus", _raw(shape=b"[+4]")),
    ("a shape of -0", _raw(shape=b"[4,-0]")),
    ("a shape of -0 and no bytes", _file(
        b'{"x":{"dtype":"F32","shape":[-0],"data_offsets":[0,0]}}', b"")),
    ("a shape whose product passes 2**64 before a 0",
     _file({"x": _entry(shape=[1 << 40, 1 << 40, 0], offsets=[0, 0])}, b"")),
    ("a shape of 100,000 ones", _with(shape=[1] * 100_000), TensorError),
    ("a shape that is too small", _with(shape=[3])),
    ("a shape of an empty giant",
     _file({"x": _entry(shape=[0, (1 << 63) - 1], offsets=[0, 0])}, b""), FormatError),
    # offsets
    ("offsets of text", _with(offsets=["0", "16"])),
    ("offsets of floats", _raw(offsets=b"[0.0,16.0]")),
    ("offsets from -0", _raw(offsets=b"[-0,16]")),
    ("offsets of bools", _raw(offsets=b"[false,true]")),
    ("offsets of NaN", _raw(offsets=b"[NaN,NaN]")),
    ("offsets of null", _with(offsets=None)),
    ("offsets that are one", _with(offsets=[16])),
    ("offsets that are three", _with(offsets=[0, 16, 16])),
    ("offsets that are a text of two", _with(offsets="01")),
    ("offsets that are an object of two", _with(offsets={"0": 0, "16": 16})),
    ("offsets below 0", _with(offsets=[-16, 0])),
    ("offsets that run backwards", _with(offsets=[16, 0])),
    ("offsets from 1", _with(offsets=[1, 17])),
    ("offsets past the file", _with(offsets=[16, 32])),
    ("offsets of 2**63", _with(offsets=[1 << 63, (1 << 63) + 16])),
    ("offsets of 2**62", _with(offsets=[1 << 62, (1 << 62) + 16])),
    ("offsets that wrap around", _with(offsets=[(1 << 64) - 16, 0])),
    ("two tensors at one place", _two((0, 8), (0, 8))),
    ("two tensors that overlap", _two((0, 8), (4, 12), b.DATA[:12])),
    ("two tensors with a gap", _two((0, 8), (12, 20), bytes(20))),
    ("two tensors with a gap before them", _two((4, 12), (12, 20), bytes(20))),
    ("an empty tensor in the middle of another", _and_empty(8)),
    ("an empty tensor past the file", _and_empty(17)),
    ("an empty tensor at the end", _and_empty(16), None),
    # the data
    ("no data", _file({"x": _entry()}, b"")),
    ("data cut by a byte", _file({"x": _entry()}, b.DATA[:-1])),
    ("a byte behind the data", _file({"x": _entry()}, b.DATA + b"x")),
    ("a file behind the file", _file({"x": _entry()}) * 2),
    ("an archive behind the data", _file({"x": _entry()}) + b.checkpoint(b.stream(b"N"))),
    ("entries in another order than the data", _file(
        {"y": _entry(shape=[2], offsets=[16, 24]), "x": _entry()}, b.DATA + bytes(8)), None),
]  # fmt: skip

ROWS = attacks(_FILES, ArchiveError, prefix="safetensors: ")
