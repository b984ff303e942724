"""The pickles in a file of any format, as opcodes that are not carried out."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from torchzip.container.tar import find_members
from torchzip.container.zip_reader import ZipReader
from torchzip.errors import FormatError, LimitError, TorchZipError, UnsupportedError, listed, shown
from torchzip.files.opening import open_source
from torchzip.files.source import PartSource, Source
from torchzip.formats.legacy import is_legacy
from torchzip.formats.opening import is_safetensors
from torchzip.limits import Limits
from torchzip.pickling.disassembly import Step, parse_step
from torchzip.pickling.opcodes import BY_CODE, TruncatedPickleError

#: Magic number, version, the writer's machine, the object, the storage keys.
_LEGACY_PICKLES = 5
_WINDOW_NBYTES = 1 << 20


class PicklePlace(NamedTuple):
    """Bytes with pickles in turn, at most ``most``; ``finish`` is called after the last."""

    record: str | None
    source: Source
    most: int | None
    finish: Callable[[], Any] = lambda: None


def find_pickles(source: Source, record: str | None, limits: Limits) -> PicklePlace:
    """Return where the pickles of a file are."""
    head = bytes(source.read_at(0, min(source.size, 512)))
    if head.startswith(b"PK\3\4"):
        # The name in the local header that the archive begins with.
        first = head[30 : 30 + int.from_bytes(head[26:28], "little")]
        if record is None and first.endswith(b".npy"):
            raise UnsupportedError("a .npz file of numpy, which has no pickle", path=source.name)
        return _in_zip(ZipReader(source, limits), record or "data.pkl", limits)
    if head[257:262] == b"ustar":
        members, _ = find_members(source, limits)
        record = record or "pickle"
        if record not in members:
            raise FormatError(f"no member is called {shown(record)}", path=source.name)
        part = PartSource(source, *members[record], source.name)
        return PicklePlace(record, part, 1 if record == "pickle" else None)
    if record is not None:
        raise FormatError("only an archive has records", path=source.name)
    if is_safetensors(head, source.size):
        raise UnsupportedError("a safetensors file, which has no pickle", path=source.name)
    if head[:1] and head[0] not in BY_CODE:
        raise FormatError(f"no pickle: it begins with {head[:8]!r}", path=source.name)
    return PicklePlace(None, source, _LEGACY_PICKLES if is_legacy(head, limits) else None)


def _in_zip(archive: ZipReader, record: str, limits: Limits) -> PicklePlace:
    name = archive.source.name
    if record not in archive:
        pickles = [other for other in archive if other.endswith(".pkl")]
        has = listed(pickles) or "none that ends in .pkl"
        raise FormatError(
            f"no record is called {shown(record)}; of pickles it has {has}", path=name
        )
    span = archive.stored_span(record)
    if span is not None:
        # Shown before its CRC is compared: of a damaged pickle, too, the beginning can be seen.
        part: Source = PartSource(archive.source, *span, name)
        return PicklePlace(record, part, 1, lambda: archive.read(record))
    return PicklePlace(record, open_source(io.BytesIO(archive.read(record))), 1)


def _steps(place: PicklePlace, start: int, path: str, limits: Limits) -> Iterator[Step]:
    """Yield the steps of the pickle at ``start``, reading what they need."""
    source = place.source
    at, nbytes = start, _WINDOW_NBYTES
    while True:
        data = bytes(source.read_at(at, min(nbytes, source.size - at)))
        position = 0
        try:
            while True:
                step = parse_step(data, position, at)
                yield step
                if step.opcode.name == "STOP":
                    return
                position = step.end - at
        except TorchZipError as error:
            is_short = isinstance(error, TruncatedPickleError)
            if not is_short or at + len(data) >= source.size:
                error.at(path=path, record=place.record)
                error.offset = at + position
                raise
            needed = getattr(error, "needed", 1)
        nbytes = max(_WINDOW_NBYTES, len(data) - position + needed)
        if position == 0:
            nbytes = max(nbytes, 4 * len(data))
        if len(data) - position + needed > limits.pickle_nbytes:
            raise LimitError(
                "pickle_nbytes", len(data) + needed, limits.pickle_nbytes,
                path=path, record=place.record, offset=at + position,
            )  # fmt: skip
        at += position


def numbered_steps(place: PicklePlace, path: str, limits: Limits) -> Iterator[tuple[int, Step]]:
    """Yield the steps of each pickle with its number."""
    at = number = 0
    while number != place.most and (at < place.source.size or not number):
        for step in _steps(place, at, path, limits):
            yield number, step
        at = step.end
        number += 1
    place.finish()
