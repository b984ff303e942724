"""Which format a file has, and where its pickle and its storages are.

A container gives a `Factory` the storages that it asks for and runs the pickle; what the
values are made of is the factory's affair. A new format is a class here with the same three
members: ``format``, `read` and `check_records`.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from torchzip.container.safetensors import parse_header
from torchzip.container.zip_reader import STORED, ZipReader
from torchzip.dtypes import DTYPES
from torchzip.errors import (
    ArchiveError,
    FormatError,
    LimitError,
    PickleError,
    TensorError,
    TorchZipError,
    UnsafeGlobalError,
    UnsupportedError,
)
from torchzip.files.crc import crc32, wrong_crc
from torchzip.files.source import Source
from torchzip.limits import Limits
from torchzip.pickling.interpreter import Interpreter, TruncatedPickleError
from torchzip.pickling.table import Name, Table
from torchzip.tensors.rebuild import Factory, Rebuilder
from torchzip.tensors.specs import TensorSpec, check_spec, contiguous_stride
from torchzip.tensors.storage import SpanStorage, StreamStorage, TensorStorage

#: (key, dtype of a typed storage, bytes, location) -> the storage in the file
OpenStorage = Callable[[str, str | None, int, str], TensorStorage]
MakeFactory = Callable[[OpenStorage], Factory]


@dataclass(slots=True)
class Contents:
    """What a container held: the object as it was saved, and what its pickle mentioned."""

    root: Any
    globals: list[Name]
    foreign: list[Name]
    pickle_nbytes: int
    metadata: dict[str, str] | None = None


@dataclass(frozen=True, slots=True)
class RecordCheck:
    """One record that was read from end to end. ``crc_known`` is False if it has no CRC."""

    name: str
    nbytes: int
    crc_known: bool


class Container(Protocol):
    """``end`` is the byte behind the checkpoint, where another may follow."""

    format: str
    source: Source
    end: int

    def read(self, make_factory: MakeFactory) -> Contents: ...

    def check_records(self) -> Iterator[RecordCheck]:
        """Read every record from end to end; raise at the first that is damaged."""
        ...


def open_container(source: Source, limits: Limits) -> Container:
    """Return the container that a file is, told by its content.

    Raises
    ------
    FormatError
        If it is no checkpoint; the message says what it looks like.
    """
    head = bytes(source.read_at(0, min(source.size, 512)))
    if head.startswith(b"PK\3\4"):
        return ZipContainer(source, limits)
    if head[:1] in (b"\x80", b"L") and _first_value(head, limits) == _LEGACY_MAGIC:
        return LegacyContainer(source, limits)
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= max(source.size, 1 << 27):
        return SafetensorsContainer(source, limits)
    if head.startswith(b"PYTORCH1"):
        raise UnsupportedError(
            "a preview format of 2018, which torch itself refuses", path=source.name
        )
    if head[257:262] == b"ustar":
        raise UnsupportedError(
            "a tar file, as torch before 0.1.10 wrote; these are not read yet", path=source.name
        )
    raise FormatError(f"not a checkpoint: {_looks_like(head, source.size)}", path=source.name)


def _looks_like(head: bytes, size: int) -> str:
    if not size:
        return "the file is empty"
    for magic, what in (
        (b"version https://git-lfs", "a Git LFS pointer; the real file was not fetched"),
        (b"GGUF", "a GGUF file"),
        (b"\x89HDF", "an HDF5 file"),
        (b"\x93NUMPY", "a .npy file; numpy.load reads it"),
        (b"\x1f\x8b", "gzip-compressed; decompress it first"),
        (b"PK\5\6", "an empty zip archive"),
        (b"Rar!", "a RAR archive"),
        (b"7z\xbc\xaf", "a 7z archive"),
    ):
        if head.startswith(magic):
            return what
    if head[:1] == b"\x80" and head[1:2] <= b"\5":
        return "a pickle, but not one that torch.save wrote"
    if head.lstrip()[:1] == b"<":
        return "a web page or XML; the download may have failed"
    return f"it begins with {head[:8]!r}"


def _first_value(head: bytes, limits: Limits) -> Any:
    try:
        return Interpreter(head, Table(), limits).run()
    except TorchZipError:
        return None


def _swap_nbytes(torch_dtype: str | None, byteorder: str) -> int:
    """Return the unit in which a storage of that byte order is swapped; 1 is not at all."""
    if byteorder == sys.byteorder or torch_dtype is None:
        return 1
    row = DTYPES[torch_dtype]
    return row.itemsize // 2 if row.kind == "complex" else row.itemsize


def _finish(
    interpreter: Interpreter, rebuilder: Rebuilder, root: Any, pickle_nbytes: int
) -> Contents:
    names = interpreter.globals
    foreign = [name for name in names if not rebuilder.table.knows(name)]
    return Contents(root, names, foreign, pickle_nbytes)


def refuse_foreign(contents: Contents, path: str) -> None:
    """Raise UnsafeGlobalError if the file names anything outside the table."""
    if contents.foreign:
        raise UnsafeGlobalError(contents.foreign, path=path)


class ZipContainer:
    """What ``torch.save`` writes since 1.6, and whatever was zipped again."""

    format = "zip"

    def __init__(self, source: Source, limits: Limits) -> None:
        self.source = source
        self.end = source.size
        self._limits = limits
        self._zip = archive = ZipReader(source, limits)
        if "constants.pkl" in archive:
            raise UnsupportedError(
                "a TorchScript archive (torch.jit.save); these are not read yet", path=source.name
            )
        if "archive_format" in archive:
            raise UnsupportedError(
                "a .pt2 archive (torch.export.save); these are not read yet", path=source.name
            )
        if "data.pkl" not in archive:
            raise ArchiveError(
                "a zip archive without data.pkl is no checkpoint; it has "
                + ", ".join(list(archive)[:5]),
                path=source.name,
            )
        self._check_version()
        self._byteorder = self._read_byteorder()
        self._is_native = self._byteorder == sys.byteorder

    def _text(self, name: str) -> bytes:
        return self._zip.read(name, limit="text_nbytes")

    def _check_version(self) -> None:
        name = ".data/version" if ".data/version" in self._zip else "version"
        text = self._text(name).strip()
        digits = text[: len(text) - len(text.lstrip(b"0123456789"))]
        if not digits or not 1 <= int(digits) <= 10:
            raise ArchiveError(
                f"format version {text[:20]!r}; versions 1 to 10 are known",
                path=self.source.name,
                record=name,
            )

    def _read_byteorder(self) -> str:
        if "byteorder" not in self._zip:
            return "little"  # releases before 2.1 wrote no such record
        text = self._text("byteorder")
        if text not in (b"little", b"big"):
            raise ArchiveError(
                f"byte order {text[:20]!r}; 'little' or 'big' was expected",
                path=self.source.name,
                record="byteorder",
            )
        return text.decode()

    def open_storage(
        self, key: str, torch_dtype: str | None, nbytes: int, location: str
    ) -> TensorStorage:
        """Return the storage in record ``data/<key>``, whose size must be ``nbytes``."""
        name = f"data/{key}"
        stored_nbytes, crc, method = self._zip.size_of(name)
        if stored_nbytes != nbytes:
            raise TensorError(
                f"storage {key} has {stored_nbytes:,} bytes, the pickle says {nbytes:,}",
                record=name,
            )
        swap_nbytes = 1 if self._is_native else _swap_nbytes(torch_dtype, self._byteorder)
        if method == STORED:
            return SpanStorage(
                torch_dtype, nbytes, location, name, self._zip, crc or None, swap_nbytes
            )
        self._zip.check_ratio(name)
        return StreamStorage(
            torch_dtype, nbytes, location,
            inflate=functools.partial(self._zip.inflate, name),
            crc=crc or None, swap_nbytes=swap_nbytes, record=name,
        )  # fmt: skip

    def read(self, make_factory: MakeFactory) -> Contents:
        data = self._zip.read("data.pkl")
        rebuilder = Rebuilder(make_factory(self.open_storage))
        interpreter = Interpreter(data, rebuilder.table, self._limits, record="data.pkl")
        try:
            root = interpreter.run()
        except TorchZipError as error:
            error.at(path=self.source.name)
            raise
        return _finish(interpreter, rebuilder, root, len(data))

    def check_record(self, name: str) -> RecordCheck:
        """Read one record from end to end and compare its CRC."""
        entry = self._zip.entry(name)
        span = self._zip.stored_span(name)
        blocks = self._zip.inflate(name) if span is None else _read_blocks(self.source, *span)
        found = 0
        for block in blocks:
            if entry.crc:
                found = crc32(block, found)
        if entry.crc and found != entry.crc:
            raise wrong_crc(found, entry.crc, name, self.source.name)
        return RecordCheck(name, entry.nbytes, bool(entry.crc) or not entry.nbytes)

    def check_records(self) -> Iterator[RecordCheck]:
        for name in self._zip:
            yield self.check_record(name)


def _read_blocks(source: Source, offset: int, nbytes: int) -> Iterator[memoryview]:
    buffer = memoryview(bytearray(min(nbytes, 1 << 20)))
    for start in range(offset, offset + nbytes, 1 << 20):
        block = buffer[: min(1 << 20, offset + nbytes - start)]
        source.read_into(start, block)
        yield block


# -- the legacy stream -------------------------------------------------------------------------

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_VERSION = 1001


class LegacyContainer:
    """What ``torch.save`` wrote from 0.1.10 to 1.5: pickles, then storages, without framing.

    The magic number, the version, a description of the writer, the object, the list of
    storage keys: five pickles. Then for each key, in the order of that list, an i64 number of
    elements and the bytes, little-endian. Their sizes are known from the persistent ids only,
    so the object is interpreted once to find them and again to make it.
    """

    format = "legacy"

    def __init__(self, source: Source, limits: Limits) -> None:
        self.source = source
        self._limits = limits
        self._offsets: dict[str, int] = {}
        self._sizes: dict[str, int] = {}
        try:
            self._find_storages()
        except TorchZipError as error:
            error.at(path=source.name)
            raise

    def _find_storages(self) -> None:
        nbytes = min(self.source.size, 1 << 20)
        while True:
            data = bytes(self.source.read_at(0, nbytes))
            try:
                keys, itemsizes = self._run_pickles(data)
                break
            except TruncatedPickleError as error:
                if nbytes + error.needed > self.source.size:
                    raise PickleError(
                        f"the pickles run past the end of the file ({self.source.size:,} bytes). "
                        "It looks truncated; compare its size with the place it came from."
                    ) from None
                if nbytes >= self._limits.pickle_nbytes:
                    raise LimitError(
                        "pickle_nbytes", nbytes + error.needed, self._limits.pickle_nbytes
                    ) from None
                nbytes = min(self.source.size, max(nbytes * 4, nbytes + error.needed))
        self._data = data[: self._pickle_end]
        at = self._end
        for key in keys:
            if key not in self._sizes:
                raise FormatError(f"the file lists storage {key[:100]!r}, which its object has not")
            count = int.from_bytes(self.source.read_at(at, 8), "little", signed=True)
            expected = self._sizes[key] // itemsizes[key]
            if count != expected:
                raise TensorError(
                    f"storage {key} has {count:,} elements in the file and {expected:,} in the "
                    "pickle",
                    offset=at,
                )
            self._offsets[key] = at + 8
            at += 8 + self._sizes[key]
        missing = self._sizes.keys() - self._offsets.keys()
        if missing:
            raise FormatError(f"the file lacks storage {min(missing)!r}")
        if at > self.source.size:
            raise FormatError(
                f"the storages end at byte {at:,}, the file has {self.source.size:,} bytes. It "
                "looks truncated; compare its size with the place it came from."
            )
        self.end = at

    def _run_pickles(self, data: bytes) -> tuple[list[str], dict[str, int]]:
        """Interpret the five pickles; return the keys and the item size of each storage."""
        header = Interpreter(data, Table(), self._limits)
        header.run()
        version = header.run(header.position)
        if type(version) is not int or version != _LEGACY_VERSION:
            raise FormatError("the version of the legacy format is not 1001")
        header.run(header.position)
        self._pickle_start = header.position
        locating = _LocatingFactory(self.source.size)
        interpreter = Interpreter(data, Rebuilder(locating).table, self._limits)
        interpreter.run(self._pickle_start)
        listed = Interpreter(data, Table(), self._limits)
        keys = listed.run(interpreter.position)
        self._pickle_end = interpreter.position
        if type(keys) is not list or not all(type(key) is str for key in keys):
            raise PickleError("the list of storage keys is no list of texts")
        if len(set(keys)) != len(keys):
            raise PickleError("the list of storage keys has a key twice")
        self._end = listed.position
        self._sizes = locating.sizes
        return keys, locating.itemsizes

    def open_storage(
        self, key: str, torch_dtype: str | None, nbytes: int, location: str
    ) -> TensorStorage:
        swap_nbytes = _swap_nbytes(torch_dtype, "little")
        return SpanStorage(torch_dtype, nbytes, location, key, self, None, swap_nbytes)

    def locate(self, record: str) -> tuple[Source, int]:
        """Return the Source and the offset of a storage."""
        return self.source, self._offsets[record]

    def read(self, make_factory: MakeFactory) -> Contents:
        rebuilder = Rebuilder(make_factory(self.open_storage))
        interpreter = Interpreter(self._data, rebuilder.table, self._limits)
        try:
            root = interpreter.run(self._pickle_start)
        except TorchZipError as error:
            error.at(path=self.source.name)
            raise
        return _finish(interpreter, rebuilder, root, self._pickle_end - self._pickle_start)

    def check_records(self) -> Iterator[RecordCheck]:
        for key, nbytes in self._sizes.items():
            for _ in _read_blocks(self.source, self._offsets[key], nbytes):
                pass
            yield RecordCheck(f"storage {key}", nbytes, False)


class _LocatingFactory:
    """Makes nothing of the values; notes which storages there are."""

    def __init__(self, size: int) -> None:
        self.sizes: dict[str, int] = {}
        self.itemsizes: dict[str, int] = {}
        self._left = size

    def storage(
        self, key: str, torch_dtype: str | None, nbytes: int, location: str
    ) -> TensorStorage:
        self._left -= nbytes
        if self._left < 0:
            raise TensorError(
                f"storage {key} of {nbytes:,} bytes is more than the file still has. It looks "
                "truncated; compare its size with the place it came from."
            )
        storage = SpanStorage(torch_dtype, nbytes, location, key, self)
        self.sizes[key] = nbytes
        self.itemsizes[key] = storage.itemsize
        return storage

    def locate(self, record: str) -> tuple[Source, int]:
        raise RuntimeError("the storage is not located yet")

    def tensor(self, spec: TensorSpec) -> Any:
        return spec

    def spec_of(self, tensor: Any) -> TensorSpec | None:
        return tensor if isinstance(tensor, TensorSpec) else None

    def parameter(self, tensor: Any, requires_grad: bool, state: Any) -> Any:
        return tensor

    def other(self, name: Name, what: str, args: tuple[Any, ...]) -> Any:
        return None


# -- safetensors -------------------------------------------------------------------------------


class SafetensorsContainer:
    """A safetensors file: a flat dict of tensors, each with a storage of its own."""

    format = "safetensors"

    def __init__(self, source: Source, limits: Limits) -> None:
        self.source = source
        self.end = source.size
        self._entries, self._metadata = parse_header(source, limits)
        self._rows = {entry.name: entry for entry in self._entries}

    def locate(self, record: str) -> tuple[Source, int]:
        """Return the Source and the offset of a tensor."""
        return self.source, self._rows[record].begin

    def read(self, make_factory: MakeFactory) -> Contents:
        def open_storage(
            key: str, torch_dtype: str | None, nbytes: int, location: str
        ) -> TensorStorage:
            swap_nbytes = _swap_nbytes(self._rows[key].torch_dtype, "little")
            return SpanStorage(torch_dtype, nbytes, location, key, self, None, swap_nbytes)

        factory = make_factory(open_storage)
        root: dict[str, Any] = {}
        for entry in self._entries:
            typed = entry.torch_dtype if DTYPES[entry.torch_dtype].storage_class else None
            storage = factory.storage(entry.name, typed, entry.end - entry.begin, "cpu")
            stride = contiguous_stride(entry.shape)
            spec = TensorSpec(entry.torch_dtype, entry.shape, stride, 0, storage)
            try:
                root[entry.name] = factory.tensor(check_spec(spec))
            except TorchZipError as error:
                error.at(path=self.source.name, record=entry.name)
                raise
        return Contents(root, [], [], 0, self._metadata)

    def check_records(self) -> Iterator[RecordCheck]:
        for entry in self._entries:
            nbytes = entry.end - entry.begin
            for _ in _read_blocks(self.source, entry.begin, nbytes):
                pass
            yield RecordCheck(entry.name, nbytes, False)
