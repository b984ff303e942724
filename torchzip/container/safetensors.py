"""The safetensors container: a length, a JSON header, and the tensors' bytes.

Layout (safetensors 0.8; docs/format.md, section 11.7): u64 header length; the header, a JSON object
padded with spaces to a multiple of 8 bytes; the data. The header maps each name to ``dtype``,
``shape`` and ``data_offsets`` (from the end of the header), and ``__metadata__`` to an object of
strings, or to null. Tensors are in order of descending dtype rank, then name, without gaps, in C
order.

This reader accepts and refuses what the safetensors package does, whose JSON parser is Rust's
``serde_json``. It is stricter in four ways:

* names must be unique (the package takes the last);
* an entry must be an object, and a dtype a string (the package also takes a list of the three
  fields, and ``{"F32": null}``);
* torch must have the dtype;
* sizes and dimensions must be possible in torch and numpy.

This module does not use the package, since that cannot write incrementally. For contiguous input
both write the same bytes, except for several metadata entries: the package writes these in random
order, and this module sorts them.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Container, Iterable, Mapping
from functools import partial
from typing import Any

from torchzip.container.json_objects import is_plain_text, parse_json
from torchzip.container.tensor_entry import TensorEntry
from torchzip.dtypes import DTYPES, SAFETENSORS
from torchzip.errors import (
    MAX_NDIM,
    TRUNCATED,
    ArchiveError,
    LimitError,
    UnsupportedError,
    shown,
    too_many_dimensions,
)
from torchzip.files.source import Source
from torchzip.limits import DEFAULT_LIMITS, Limits, is_number

METADATA = "__metadata__"
#: The metadata key under which `convert` keeps ties, as JSON.
ALIASES_KEY = "torchzip.aliases"
#: Metadata about the file: ``format`` of the package, the totals of a shard index. Values of other
#: keys may be ties.
FILE_KEYS = frozenset({"format", "total_size", "total_parameters"})

_FIELDS = ("dtype", "shape", "data_offsets")
# Fast to search for, since it begins with a rare character; -0 may be part of a name.
_MINUS_ZERO = re.compile(rb"-0(?<=[\[:,\s]-0)")
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
#: Most levels of nested lists and objects that serde_json reads.
_MAX_DEPTH = 127


def data_order(name: str, torch_dtype: str) -> tuple[int, bytes]:
    """Return the sort key of a tensor in a file."""
    return -DTYPES[torch_dtype].safetensors_rank, name.encode("utf-8", "surrogatepass")


def build_header(
    tensors: Iterable[tuple[str, str, tuple[int, ...]]], metadata: Mapping[str, str] | None = None
) -> tuple[bytes, list[str]]:
    """Return the bytes before the data, and the names in the order of their data.

    ``tensors`` are (name, torch dtype, shape).

    Raises
    ------
    UnsupportedError
        If the format has no code for a dtype, or the header is too long for readers.
    """
    rows = []
    for name, torch_dtype, shape in tensors:
        row = DTYPES[torch_dtype]
        code = row.safetensors
        if code is None or (row.safetensors_per_element > 1 and not shape):
            raise UnsupportedError(
                f"{name}: safetensors has no dtype for torch.{torch_dtype}; exclude the tensor, "
                "give it another dtype, or write a .pt"
            )
        if name == METADATA:
            raise UnsupportedError(
                f"safetensors cannot hold a tensor called {METADATA}; rename or exclude it, or "
                "write a .pt"
            )
        rows.append((code, name, torch_dtype, shape))
    rows.sort(key=lambda row: data_order(row[1], row[2]))
    parts = []
    if metadata:
        texts = {key: metadata[key] for key in sorted(metadata)}
        parts.append(f"{_json(METADATA)}:{_json(texts)}")
    begin = 0
    for code, name, torch_dtype, shape in rows:
        row = DTYPES[torch_dtype]
        end = begin + math.prod(shape) * row.itemsize
        sizes = list(shape)
        if row.safetensors_per_element > 1:  # float4: the header counts values, torch pairs
            sizes[-1] *= row.safetensors_per_element
        entry = {"dtype": code, "shape": sizes, "data_offsets": [begin, end]}
        parts.append(f"{_json(name)}:{_json(entry)}")
        begin = end
    try:
        header = ("{" + ",".join(parts) + "}").encode()
    except UnicodeEncodeError:
        wrong = [shown(row[1]) for row in rows if not is_plain_text(row[1])]
        what = f"tensor name ({wrong[0]})" if wrong else "string of the metadata"
        raise UnsupportedError(
            f"a {what} is not valid Unicode, and safetensors stores UTF-8; rename or exclude it, "
            "or write a .pt"
        ) from None
    header += b" " * (-len(header) % 8)
    most = DEFAULT_LIMITS.header_nbytes
    if len(header) > most:
        raise UnsupportedError(
            f"the header of {len(rows):,} tensors would take {len(header):,} bytes, and readers of "
            f"safetensors stop at {most:,}; give the tensors shorter names, write shards, or write "
            "a .pt"
        )
    return len(header).to_bytes(8, "little") + header, [row[1] for row in rows]


def parse_aliases(metadata: Mapping[str, str]) -> dict[str, str]:
    """Return the ties that `convert` has listed: names without data -> names with it.

    >>> parse_aliases({ALIASES_KEY: '{"head": "embed", "x": 1}'}), parse_aliases({ALIASES_KEY: "?"})
    ({'head': 'embed'}, {})
    """
    try:
        aliases = json.loads(metadata.get(ALIASES_KEY, "{}"))
    except (ValueError, RecursionError):
        return {}
    if not isinstance(aliases, dict):
        return {}
    return {name: kept for name, kept in aliases.items() if isinstance(kept, str)}


def parse_ties(metadata: Mapping[str, Any], names: Container[str]) -> dict[str, str]:
    """Return the ties that metadata lists: names without data -> those of ``names`` with it.

    Values that are not strings, as GGUF has, are not ties.

    They come from `convert`, or from the safetensors package, which puts them among the other
    strings (``save_model``: ``{"head": "embed"}``). The package does the same for views of a part
    of a tensor, and the file does not say which of the two is meant.

    >>> parse_ties({"head": "embed", "format": "pt"}, {"embed"})
    {'head': 'embed'}
    """
    listed = {
        name: kept
        for name, kept in metadata.items()
        if type(kept) is str and name not in FILE_KEYS and not name.startswith("torchzip.")
    }
    listed |= parse_aliases(metadata)
    return {name: kept for name, kept in listed.items() if kept in names and name not in names}


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def read_header(source: Source, limits: Limits) -> tuple[dict[str, Any], int]:
    """Return the header as parsed JSON, and the offset at which the data begins.

    Raises
    ------
    ArchiveError
        If the file ends within its header, or the header is not a JSON object.
    """
    broken = partial(ArchiveError, path=source.name)
    if source.size < 8:
        raise broken(f"a safetensors file has 8 bytes or more, this has {source.size}. {TRUNCATED}")
    nbytes = int.from_bytes(source.read_at(0, 8), "little")
    if nbytes > limits.header_nbytes:
        raise LimitError("header_nbytes", nbytes, limits.header_nbytes, path=source.name)
    if 8 + nbytes > source.size:
        raise broken(
            f"the header takes {nbytes:,} bytes after the first 8, and the file has "
            f"{source.size:,} bytes in all. {TRUNCATED}"
        )
    return _parse_json(bytes(source.read_at(8, nbytes)), source.name), 8 + nbytes


def parse_header(source: Source, limits: Limits) -> tuple[list[TensorEntry], dict[str, str]]:
    """Return the tensors in the order of their data, and the metadata.

    Raises
    ------
    ArchiveError
        If the header is invalid, or its tensors overlap, leave gaps, or do not end with the file.
    """
    broken = partial(ArchiveError, path=source.name)
    header, base = read_header(source, limits)
    metadata = header.pop(METADATA, None)
    if metadata is None:
        metadata = {}
    if not isinstance(metadata, dict) or not all(
        isinstance(text, str) for text in metadata.values()
    ):
        raise broken(f"{METADATA} of the header should map strings to strings and does not")
    entries = [parse_entry(name, row, base, source.name) for name, row in header.items()]
    entries.sort(key=lambda entry: (entry.begin, entry.end))
    at = base
    for entry in entries:
        if entry.begin != at:
            raise broken(
                f"the data of {shown(entry.name)} begins at byte {entry.begin:,}, and the data "
                f"before it ends at byte {at:,}"
            )
        at = entry.end
    if at != source.size:
        raise broken(
            f"the tensors end at byte {at:,}, the file has {source.size:,} bytes. "
            + (TRUNCATED if at > source.size else "Something was added after them.")
        )
    return entries, metadata


def _parse_json(raw: bytes, path: str) -> dict[str, Any]:
    """Return the header's object; raise ArchiveError for numbers that only Python's parser reads.

    Unknown fields are left to `_check_unknown`.
    """

    def no_constant(name: str) -> Any:
        raise ArchiveError(f"the header has {name}, which is not a number in JSON", path=path)

    def parse_int(digits: str) -> int | float:
        return -0.0 if digits == "-0" else int(digits)

    has_zero = _MINUS_ZERO.search(raw) is not None
    header = parse_json(
        raw, "the header", path,
        parse_int=parse_int if has_zero else None, parse_constant=no_constant,
    )  # fmt: skip
    if _SURROGATE.search(raw):
        metadata = header.get(METADATA)
        texts = [*header, *(metadata.items() if isinstance(metadata, dict) else ())]
        _check_unknown(texts, 0, path)
    return header


def _check_unknown(value: Any, depth: int, path: str) -> None:
    """Raise ArchiveError for values that serde_json refuses anywhere in a header.

    These are strings with half of a surrogate pair, numbers past the range of a float, and lists
    and objects that are nested too deeply. ``depth`` is how many are around the value.
    """
    todo = [(value, depth)]
    for part, above in todo:  # grows during the loop
        wrong = None
        if isinstance(part, str):
            wrong = None if is_plain_text(part) else "has half of a surrogate pair"
        elif isinstance(part, dict | list | tuple):
            todo += [(inner, above + 1) for inner in part]
            if isinstance(part, dict):
                todo += [(inner, above + 1) for inner in part.values()]
            if above >= _MAX_DEPTH:
                wrong = f"is nested in more than {_MAX_DEPTH} lists and objects"
        elif isinstance(part, int | float) and _is_past_floats(part):
            wrong = "is past the range of a float"
        if wrong is not None:
            raise ArchiveError(f"{shown(part)} in the header {wrong}", path=path)


def _is_past_floats(number: float) -> bool:
    try:
        return math.isinf(number)
    except OverflowError:  # an int
        return True


def parse_entry(name: str, row: Any, base: int, path: str) -> TensorEntry:
    """Return the tensor of one row of the header; its offsets count from ``base``.

    Raises
    ------
    ArchiveError, UnsupportedError
        If the row does not describe a tensor.
    """
    broken = partial(ArchiveError, path=path)
    try:
        code, shape, (begin, end) = row["dtype"], row["shape"], row["data_offsets"]
    except (TypeError, KeyError, ValueError):
        raise broken(
            f"the header entry of {shown(name)} is {shown(row)}; an object with dtype, shape and "
            "two data_offsets was expected"
        ) from None
    if len(row) > len(_FIELDS):
        _check_unknown({key: row[key] for key in row if key not in _FIELDS}, 1, path)
    if not isinstance(shape, list):
        raise broken(
            f"the header entry of {shown(name)} has {shown(shape)} for its shape; a list was "
            "expected"
        )
    numbers = [begin, end, *shape]
    # Numbers past 2**63 are refused before they are used: they could not even be printed.
    if not all(map(is_number, numbers)):
        wrong = next(shown(number) for number in numbers if not is_number(number))
        raise broken(
            f"the header entry of {shown(name)} has {wrong} in its shape or data_offsets; ints "
            "from 0 to 2**63 were expected"
        )
    if len(shape) > MAX_NDIM:
        raise too_many_dimensions(shown(name), len(shape), path=path)
    dtype = SAFETENSORS.get(code) if isinstance(code, str) else None
    if dtype is None:
        raise UnsupportedError(
            f"{shown(name)} has dtype {shown(code)}, which torch does not have", path=path
        )
    times = dtype.safetensors_per_element
    if times > 1:
        if not shape or shape[-1] % times:
            raise UnsupportedError(
                f"{shown(name)} has shape {shape} of 4-bit values; an even last size was expected",
                path=path,
            )
        shape = [*shape[:-1], shape[-1] // times]
    nbytes = math.prod(shape) * dtype.itemsize
    if not nbytes and math.prod(shape[: shape.index(0)]) >= 1 << 64:
        raise broken(f"{shown(name)} has shape {shown(shape)}, whose product passes 2**64")
    if end - begin != nbytes:
        raise broken(
            f"{shown(name)} of shape {shape} and dtype {code} takes {nbytes:,} bytes, its "
            f"offsets give it {end - begin:,}"
        )
    return TensorEntry(name, dtype.name, tuple(shape), base + begin, base + end)
