"""The GGUF container: values by key, a table of tensors, and their bytes.

Layout (docs/format.md, section 11.10; this is version 3, 2 is the same, 1 is not read). All numbers
are little-endian, and a string is its length as u64 and UTF-8::

    "GGUF", u32 version, u64 tensors, u64 values
    each value: key, u32 type, value
    each tensor: name, u32 dimensions, u64 sizes (the fastest axis first), u32 type, u64 offset
    zeros up to a multiple of the alignment, where the data begins; offsets count from there
    each tensor's bytes, and zeros up to the next multiple

Types of values are in `_TYPES`; 8 is a string, 9 an array: the type of its items as u32, their
number as u64, the items. The alignment is the value ``general.alignment``, 32 without one. Types of
tensors are in `dtypes` (``gguf``), some of them with blocks of codes (`dtypes.BLOCKS`).

As ggml does, this reader wants tensors that follow one another in the order of the table, names and
keys that occur once, and four dimensions at most.

A value is a bool, a str, a number of numpy, an array of numpy or a list of str: each type of the
format is one of these, so a file that is written again has the same types. Bytes of a string that
are not UTF-8 are kept as surrogates.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from torchzip.container.tensor_entry import TensorEntry
from torchzip.dtypes import BLOCKS, DTYPES, GGUF
from torchzip.errors import (
    TRUNCATED,
    ArchiveError,
    ErrorPlace,
    LimitError,
    UnsupportedError,
    shown,
)
from torchzip.files.source import Source
from torchzip.limits import Limits

MAGIC = b"GGUF"
ALIGNMENT_KEY = "general.alignment"
#: What ggml reads: bytes of a tensor's name, and its dimensions.
MOST_NAME_NBYTES = 63
MOST_NDIM = 4

_VERSION = 3
_ALIGNMENT = 32
_STRING, _ARRAY = 8, 9
_BOOL = 7
_TYPES = {
    0: "uint8", 1: "int8", 2: "uint16", 3: "int16", 4: "uint32", 5: "int32", 6: "float32",
    _BOOL: "bool", 10: "uint64", 11: "int64", 12: "float64",
}  # fmt: skip
_NUMBERS = {np.dtype(name): number for number, name in _TYPES.items()}
#: The fewest bytes of a value and of a tensor in the header.
_VALUE_NBYTES, _TENSOR_NBYTES = 13, 24
_CHUNK_NBYTES = 1 << 18
_BY_NUMBER = {row.gguf: row for row in BLOCKS.values()}
_KNOWN = ", ".join([*(row.name for row in GGUF.values()), *BLOCKS])


def stored_nbytes(dtype: str, shape: tuple[int, ...]) -> int:
    """Return the bytes of a tensor of a dtype, or of blocks.

    >>> stored_nbytes("float16", (2, 32)), stored_nbytes("q8_0", (2, 32))
    (128, 68)
    """
    numel = math.prod(shape)
    if dtype in BLOCKS:
        return numel // BLOCKS[dtype].elements * BLOCKS[dtype].nbytes
    return numel * DTYPES[dtype].itemsize


def alignment_of(values: Mapping[str, Any]) -> int:
    """Return the alignment that values ask for.

    Raises
    ------
    ValueError
        If it is not one.
    """
    alignment = values.get(ALIGNMENT_KEY, _ALIGNMENT)
    is_whole = isinstance(alignment, int | np.integer) and not isinstance(alignment, bool)
    number = int(alignment) if is_whole else 0
    if not 8 <= number <= 1 << 20 or number & (number - 1):
        raise ValueError(
            f"{ALIGNMENT_KEY} is {shown(plain_value(alignment))}; a power of two from 8 to 2**20 "
            "was expected"
        )
    return number


def plain_value(value: Any) -> Any:
    """Return a value without the types of numpy: as JSON has it."""
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else value


def value_text(value: Any, most: int | None = None) -> str:
    """Return a value as a string: one as it is, all others as JSON, lists cut to ``most`` items.

    >>> value_text("llama"), value_text(np.uint32(7)), value_text(["a", "b", "c"], 2)
    ('llama', '7', '["a", "b"] and 1 more')
    """
    if isinstance(value, str):
        return value
    plain = plain_value(value)
    more = len(plain) - most if most is not None and isinstance(plain, list) else 0
    text = json.dumps(plain if more <= 0 else plain[:most], ensure_ascii=False)
    return f"{text} and {more:,} more" if more > 0 else text


def build_header(
    values: Mapping[str, Any], tensors: Iterable[tuple[str, str, tuple[int, ...]]]
) -> tuple[bytes, list[int], int]:
    """Return the bytes before the data, where each tensor begins, and the size of the file.

    ``tensors`` are (name, dtype or blocks, shape), in the order of their data. A plain int among
    the values becomes a u32, or an i32, u64 or i64 where it has to; one in a list an i32 or i64; a
    plain float an f32.

    Raises
    ------
    ValueError, TypeError
        If a value has no type in the format.
    """
    rows = list(tensors)
    alignment = alignment_of(values)
    parts = [struct.pack("<4sIQQ", MAGIC, _VERSION, len(rows), len(values))]
    for key, value in values.items():
        parts += [_text(key), _packed(key, value)]
    starts, at = [], 0
    for name, dtype, shape in rows:
        number = BLOCKS[dtype].gguf if dtype in BLOCKS else DTYPES[dtype].gguf
        parts.append(_text(name))
        parts.append(struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape[::-1], number, at))
        starts.append(at)
        at = _round_up(at + stored_nbytes(dtype, shape), alignment)
    head = b"".join(parts)
    head += bytes(-len(head) % alignment)
    return head, [len(head) + start for start in starts], len(head) + at


def _text(text: str) -> bytes:
    raw = text.encode("utf-8", "surrogateescape")
    return len(raw).to_bytes(8, "little") + raw


def _round_up(value: int, step: int) -> int:
    return -(-value // step) * step


def _packed(key: str, value: Any) -> bytes:
    """Return a value with its type before it."""
    if isinstance(value, str):
        return struct.pack("<I", _STRING) + _text(value)
    if isinstance(value, list | tuple) and all(isinstance(item, str) for item in value):
        return struct.pack("<IIQ", _ARRAY, _STRING, len(value)) + b"".join(map(_text, value))
    try:
        array = _as_numbers(value)
        number = _NUMBERS[array.dtype]
    except (ValueError, TypeError, OverflowError, KeyError):
        raise TypeError(
            f"the metadata {shown(key)} is {shown(plain_value(value))}; GGUF takes a string, a "
            "bool, a number, or a list of one of these"
        ) from None
    raw = array.astype(array.dtype.newbyteorder("<")).tobytes()
    if array.ndim:
        return struct.pack("<IIQ", _ARRAY, number, array.size) + raw
    return struct.pack("<I", number) + raw


def _as_numbers(value: Any) -> np.ndarray[Any, np.dtype[Any]]:
    """Return numbers as an array of no or one dimension, of the dtype in which they are written."""
    if isinstance(value, np.ndarray | np.generic):
        array = np.asarray(value)
        if array.ndim > 1:
            raise ValueError
        return array.astype(array.dtype.newbyteorder("="))
    items = value if isinstance(value, list | tuple) else [value]
    kinds = {bool if isinstance(item, bool) else type(item) for item in items}
    if kinds == {bool}:
        dtype = "bool"
    elif kinds == {int}:
        wanted = ["int32", "int64"] if isinstance(value, list | tuple) else ["uint32", "int32"]
        wanted += ["uint64", "int64"]
        fitting = [
            each
            for each in wanted
            if all(np.iinfo(each).min <= item <= np.iinfo(each).max for item in items)
        ]
        dtype = fitting[0] if fitting else "int64"  # into which numpy refuses to put it
    elif kinds <= {int, float}:
        dtype = "float32"
    else:
        raise TypeError
    return np.array(value, dtype)


def parse_header(source: Source, limits: Limits) -> tuple[list[TensorEntry], dict[str, Any]]:
    """Return the tensors in the order of their data, and the values.

    Raises
    ------
    ArchiveError
        If the header is invalid or its tensors do not follow one another.
    UnsupportedError
        If a tensor is of a type that is not in `dtypes`, or the file is big-endian.
    """
    with ErrorPlace(path=source.name):
        return _parse(_Cursor(source, limits), source.size)


class _Cursor:
    """Takes the bytes of a header in order; it reads on as they are needed."""

    def __init__(self, source: Source, limits: Limits) -> None:
        self._source = source
        self._most = limits.header_nbytes
        self._data = b""
        self._at = 0  # in the data
        self._base = 0  # where the data begins in the file

    @property
    def position(self) -> int:
        return self._base + self._at

    @property
    def left(self) -> int:
        """The bytes of the file that follow."""
        return self._source.size - self.position

    def take(self, nbytes: int, what: str) -> bytes:
        """Return the next bytes, which messages call ``what``."""
        if nbytes > len(self._data) - self._at:
            if nbytes > self.left:
                raise ArchiveError(
                    f"the header ends within {what}, which takes {nbytes:,} bytes; the file has "
                    f"{self.left:,} more. {TRUNCATED}",
                    offset=self.position,
                )
            if self.position + nbytes > self._most:
                raise LimitError("header_nbytes", self.position + nbytes, self._most)
            self._base, rest = self.position, self._data[self._at :]
            start = self._base + len(rest)
            more = min(max(nbytes, _CHUNK_NBYTES), self.left) - len(rest)
            self._data, self._at = rest + bytes(self._source.read_at(start, more)), 0
        self._at += nbytes
        return self._data[self._at - nbytes : self._at]

    def number(self, nbytes: int, what: str) -> int:
        return int.from_bytes(self.take(nbytes, what), "little")

    def count(self, what: str, least: int) -> int:
        """Return a number of things that have ``least`` bytes or more each."""
        found = self.number(8, f"the number of {what}")
        if found * least > self.left:
            raise ArchiveError(
                f"{found:,} {what} cannot be in the {self.left:,} bytes that follow. {TRUNCATED}",
                offset=self.position,
            )
        return found

    def text(self, what: str) -> str:
        nbytes = self.number(8, f"the length of {what}")
        return self.take(nbytes, what).decode("utf-8", "surrogateescape")


def _parse(cursor: _Cursor, size: int) -> tuple[list[TensorEntry], dict[str, Any]]:
    cursor.take(4, "the magic")
    version = cursor.number(4, "the version")
    if version & 0xFFFF == 0:
        raise UnsupportedError("a big-endian GGUF file; only little-endian ones are read")
    if version not in (2, 3):
        raise UnsupportedError(f"version {version:,} of GGUF; 2 or 3 was expected")
    tensors = cursor.count("tensors", _TENSOR_NBYTES)
    values: dict[str, Any] = {}
    for _ in range(cursor.count("values", _VALUE_NBYTES)):
        at = cursor.position
        key = cursor.text("a key")
        if key in values:
            raise ArchiveError(f"the key {shown(key)} occurs twice", offset=at)
        values[key] = _parse_value(cursor, key)
    try:
        alignment = alignment_of(values)
    except ValueError as error:
        raise ArchiveError(str(error)) from None
    if tensors * _TENSOR_NBYTES > cursor.left:
        raise ArchiveError(
            f"{tensors:,} tensors cannot be in the {cursor.left:,} bytes that follow. {TRUNCATED}"
        )
    found: dict[str, TensorEntry] = {}
    expected = 0
    for _ in range(tensors):
        entry = _parse_tensor(cursor)
        if entry.name in found:
            raise ArchiveError(f"the tensor {shown(entry.name)} occurs twice")
        if entry.begin != expected:
            raise ArchiveError(
                f"the data of {shown(entry.name)} begins at byte {entry.begin:,} of the data, and "
                f"that before it ends at byte {expected:,}"
            )
        found[entry.name] = entry
        expected = _round_up(entry.end, alignment)
    base = _round_up(cursor.position, alignment)
    made = [replace(each, begin=base + each.begin, end=base + each.end) for each in found.values()]
    end = made[-1].end if made else 0
    if end > size:
        raise ArchiveError(
            f"the tensors end at byte {end:,}, the file has {size:,} bytes. {TRUNCATED}"
        )
    return made, values


def _parse_value(cursor: _Cursor, key: str) -> Any:
    what = f"the value of {shown(key)}"
    number = cursor.number(4, what)
    if number == _STRING:
        return cursor.text(what)
    if number != _ARRAY:
        return _parse_numbers(cursor, number, 1, what)[0]
    number = cursor.number(4, what)
    if number == _STRING:
        return [cursor.text(what) for _ in range(cursor.count(f"strings of {shown(key)}", 8))]
    return _parse_numbers(cursor, number, cursor.count(f"items of {shown(key)}", 1), what)


def _parse_numbers(cursor: _Cursor, number: int, count: int, what: str) -> Any:
    if number not in _TYPES:
        raise UnsupportedError(
            f"{what} has type {number:,}; strings, numbers, bools and lists of these are read",
            offset=cursor.position,
        )
    dtype = np.dtype(_TYPES[number]).newbyteorder("<")
    raw = np.frombuffer(cursor.take(count * dtype.itemsize, what), np.uint8)
    if number == _BOOL and (raw > 1).any():
        raise ArchiveError(f"{what} has a bool that is neither 0 nor 1", offset=cursor.position)
    made = raw.view(dtype).astype(dtype.newbyteorder("="))
    return made.tolist() if number == _BOOL and count == 1 else made


def _parse_tensor(cursor: _Cursor) -> TensorEntry:
    """Return one row of the table; its data begins at a place that counts from the first."""
    at = cursor.position
    name = cursor.text("the name of a tensor")
    what = f"the entry of {shown(name)}"
    ndim = cursor.number(4, what)
    if ndim > MOST_NDIM:
        raise ArchiveError(
            f"{shown(name)} has {ndim:,} dimensions; GGUF has {MOST_NDIM} at most", offset=at
        )
    shape = tuple(cursor.number(8, what) for _ in range(ndim))[::-1]
    number = cursor.number(4, what)
    begin = cursor.number(8, what)
    numel = 1
    for size in shape:
        numel *= size or 1
        if numel >= 1 << 60:
            raise ArchiveError(
                f"{shown(name)} has shape {shown(list(shape))}, which is too large", offset=at
            )
    if number in GGUF:
        dtype, block = GGUF[number].name, None
    elif number in _BY_NUMBER:
        row = _BY_NUMBER[number]
        dtype, block = "float32", row.name
        if not shape or shape[-1] % row.elements:
            raise ArchiveError(
                f"{shown(name)} has shape {list(shape)} in blocks of {row.elements}; a last size "
                "that they divide was expected",
                offset=at,
            )
    else:
        raise UnsupportedError(
            f"{shown(name)} has numbers of type {number:,}, whose size is unknown; {_KNOWN} are "
            "known",
            offset=at,
        )
    end = begin + stored_nbytes(block or dtype, shape)
    return TensorEntry(name, dtype, shape, begin, end, block)
