"""What each byte of one file is there for."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from torchzip.container.zip_extra import PADDING, ZIP64, all_fields
from torchzip.container.zip_layout import LOCAL, STORED
from torchzip.container.zip_reader import Entry, ZipReader
from torchzip.files.source import Source
from torchzip.formats.base import Container, OpenStorage, SpecFactory
from torchzip.formats.zip import ZipContainer
from torchzip.tensors.specs import TensorSpec
from torchzip.tensors.storage import Measure, TensorStorage
from torchzip.tools.file_size.reach import reached_nbytes

#: What a tensor is for if it is nothing else.
TENSORS = "tensors"
UNNAMED = "tensors without a name in the state dict"
_PICKLES = ("data.pkl", "constants.pkl")
#: Records that every archive of torch may have.
_MARKS = frozenset(["version", "byteorder", ".format_version", ".storage_alignment"])


@dataclass(frozen=True, slots=True)
class Known:
    """What an outline says of the storages of a file, by record (by key in other formats).

    ``kinds`` is what they are there for, ``names`` the first tensor in each; those in ``whole``
    are in the object by themselves, so that all their bytes can be reached.
    """

    kinds: dict[str, str]
    names: dict[str, str]
    whole: frozenset[str]


@runtime_checkable
class OneFile(Container, Protocol):
    """A container that is one file, up to ``end``."""

    source: Source
    end: int


@dataclass(frozen=True, slots=True)
class Part:
    """Bytes of the file that are there for one thing, in so many pieces."""

    kind: str
    nbytes: int
    count: int


@dataclass(frozen=True, slots=True)
class Unreached:
    """A storage that has bytes which no tensor reaches. ``name`` is the first tensor in it."""

    name: str
    record: str
    nbytes: int
    stored_nbytes: int


@dataclass(slots=True)
class Account:
    """The bytes of one file by what they are for; ``parts`` together are its size.

    ``storages`` are those that are in it, each with the name of the first tensor in it.
    """

    size: int
    parts: dict[str, Part] = field(default_factory=dict)
    storages: list[tuple[TensorStorage, str]] = field(default_factory=list)
    unreached: list[Unreached] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def add(self, kind: str, nbytes: int, count: int = 1) -> None:
        if nbytes:
            known = self.parts.get(kind, Part(kind, 0, 0))
            self.parts[kind] = Part(kind, known.nbytes + nbytes, known.count + count)


class _Mentions(SpecFactory):
    """Takes note of the storages that a pickle mentions, and of the tensors in them."""

    def __init__(self, open_storage: OpenStorage, counted: _Counted) -> None:
        super().__init__(open_storage)
        self._counted = counted

    def storage(self, key: str, measure: Measure) -> TensorStorage:
        storage = super().storage(key, measure)
        self._counted.opened.setdefault(storage.record or key, storage)
        return storage

    def tensor(self, spec: TensorSpec) -> Any:
        self._counted.specs.setdefault(id(spec.storage), []).append(spec)
        return spec


def account_of(container: OneFile, known: Known) -> Account:
    """Return what the bytes of a file are for.

    Of a deflated storage the parts that no tensor reaches are not told apart: its bytes in the
    file are not those of its elements.

    Raises
    ------
    TorchZipError, OSError
    """
    counted = _Counted(container, known)
    made = counted.account
    if isinstance(container, ZipContainer):
        counted.add_zip(container.archive)
    else:
        for record, storage in counted.opened.items():
            counted.add_storage(record, storage, storage.nbytes)
        data = sum(storage.nbytes for storage in counted.opened.values())
        made.add("dead bytes", made.size - container.end)
        made.add(container.overhead, container.end - data)
    return made


class _Counted:
    """A file whose bytes are counted: the storages in it by record, and the tensors in each."""

    def __init__(self, container: OneFile, known: Known) -> None:
        self.account = Account(container.source.size)
        self.opened: dict[str, TensorStorage] = {}
        self.specs: dict[int, list[TensorSpec]] = {}
        self._known = known
        contents = container.read(lambda open_storage: _Mentions(open_storage, self))
        if contents.read_constants is not None:
            contents.read_constants()

    def add_storage(self, record: str, storage: TensorStorage, nbytes: int) -> None:
        """Add the ``nbytes`` of a storage that lie in the file as they are.

        Those may be fewer than it has: an archive of torch.export can leave out zeros.
        """
        made, known = self.account, self._known
        made.storages.append((storage, known.names.get(record, record)))
        specs = self.specs.get(id(storage), [])
        is_whole = record in known.whole
        if not specs and not is_whole:
            made.add("storages without a tensor", nbytes)
            return
        reached = storage.nbytes if is_whole else reached_nbytes(specs, storage.nbytes)
        if reached is None:
            made.notes.append(f"{record}: its tensors have strides whose union would take too long")
            reached = storage.nbytes
        left = max(0, nbytes - reached)
        made.add(known.kinds.get(record, TENSORS), nbytes - left)
        if left:
            made.add("bytes that no tensor reaches", left)
            made.unreached.append(Unreached(known.names.get(record, ""), record, left, nbytes))

    def add_zip(self, archive: ZipReader) -> None:
        made, known = self.account, self._known
        at = 0
        entries = sorted(map(archive.entry, archive), key=lambda each: each.header_offset)
        for entry in entries:
            name = entry.name
            made.add("dead bytes", entry.header_offset - at)
            at = _add_entry(made, archive, entry)
            storage = self.opened.get(name)
            if storage is None:
                made.add(_kind_of_record(name), entry.compressed_nbytes)
            elif entry.method == STORED:
                self.add_storage(name, storage, entry.nbytes)
            else:
                made.storages.append((storage, known.names.get(name, name)))
                made.add(f"{known.kinds.get(name, TENSORS)}, deflated", entry.compressed_nbytes)
        directory = max(entry.end for entry in entries)
        made.add("dead bytes", directory - at)
        made.add("directory", made.size - directory)


def _kind_of_record(name: str) -> str:
    if name in _PICKLES:
        return "pickle"
    if name in _MARKS or name.startswith(".data/"):
        return "marks of the format"
    if name.startswith("code/"):
        return "code"
    if name.startswith("data/") and name[5:].isdecimal():
        return "storages that nothing mentions"
    return "other records"


def _add_entry(made: Account, archive: ZipReader, entry: Entry) -> int:
    """Add the header, padding and descriptor of a record; return where it ends."""
    begin = archive.data_offset(entry.name)
    header = bytes(archive.source.read_at(entry.header_offset, begin - entry.header_offset))
    _, _, flags, *_, name_nbytes, _ = LOCAL.unpack_from(header)
    fields = all_fields(header[LOCAL.size + name_nbytes :])
    padding = sum(4 + len(content) for kind, content in fields if kind == PADDING)
    has_zip64 = any(kind == ZIP64 for kind, _ in fields)
    end = begin + entry.compressed_nbytes
    descriptor = _descriptor_nbytes(archive, entry, end, has_zip64) if flags & 8 else 0
    made.add("headers", begin - entry.header_offset - padding + descriptor)
    made.add("alignment", padding)
    return end + descriptor


def _descriptor_nbytes(archive: ZipReader, entry: Entry, end: int, has_zip64: bool) -> int:
    """Return the bytes of what follows a record, with its CRC and its sizes."""
    room = entry.end - end
    head = bytes(archive.source.read_at(end, min(4, room)))
    nbytes = (4 if head == b"PK\7\x08" else 0) + (20 if has_zip64 else 12)
    return min(nbytes, room)
