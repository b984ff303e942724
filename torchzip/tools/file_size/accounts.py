"""What each byte of a checkpoint is there for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from torchzip.checkpoint.lazy import Checkpoint, checkpoint_of
from torchzip.checkpoint.lazy_tensor import storages_of
from torchzip.checkpoint.outline import Outline, outline
from torchzip.checkpoint.roles import Role, find_roles
from torchzip.container.zip_extra import PADDING, ZIP64, all_fields
from torchzip.container.zip_layout import LOCAL
from torchzip.container.zip_reader import Entry, ZipReader
from torchzip.convert.casting import inner_tensors
from torchzip.formats.base import FileContainer, FolderContainer
from torchzip.formats.nemo import NemoContainer
from torchzip.formats.npz import NpzContainer
from torchzip.formats.rank_files import RankFilesContainer
from torchzip.formats.sharded import ShardedContainer
from torchzip.formats.zip import ZipContainer
from torchzip.tensors.persistent_ids import BareStorage
from torchzip.tensors.specs import TensorSpec
from torchzip.tensors.storage import StreamStorage, TensorStorage
from torchzip.tools.file_size.reach import reached_nbytes

#: What a tensor is for if it is nothing else.
TENSORS = "tensors"
UNNAMED = "tensors without a name in the state dict"
_PICKLES = ("data.pkl", "constants.pkl")
#: Records that every archive of torch may have.
_MARKS = frozenset(["version", "byteorder", ".format_version", ".storage_alignment"])


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
    """The bytes of a checkpoint by what they are for; ``parts`` together are its size.

    ``storages`` are those that are in it, each with the name of the first tensor in it.
    """

    size: int = 0
    parts: dict[str, Part] = field(default_factory=dict)
    storages: list[tuple[TensorStorage, str]] = field(default_factory=list)
    unreached: list[Unreached] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def add(self, kind: str, nbytes: int, count: int = 1) -> None:
        if nbytes:
            known = self.parts.get(kind, Part(kind, 0, 0))
            self.parts[kind] = Part(kind, known.nbytes + nbytes, known.count + count)


def kinds_of(roles: Sequence[Role], found: Outline) -> dict[str, str]:
    """Return what tensors are for, by their names."""
    kinds = {name: role.kind for role in reversed(roles) for name in role.names}
    return kinds | {row.name: UNNAMED for row in found.unnamed if row.name not in kinds}


def account_of(checkpoint: Checkpoint, found: Outline, kinds: Mapping[str, str]) -> Account:
    """Return what the bytes of a checkpoint are for; ``kinds`` says it of tensors by their names.

    Of a deflated storage the parts that no tensor reaches are not told apart: its bytes in the
    file are not those of its elements. Headers of records are read, one by one.

    Raises
    ------
    TorchZipError, OSError
    """
    made = Account()
    container = checkpoint.container
    if isinstance(container, ShardedContainer):
        made.size = container.index_nbytes
        made.add("index of shards", container.index_nbytes)
    elif isinstance(container, FolderContainer) and not isinstance(container, RankFilesContainer):
        _add_folder(made, checkpoint, kinds)
    for counted in _files(made, checkpoint, found, kinds):
        counted.add_all()
    return made


def unreached_of(checkpoint: Checkpoint, found: Outline) -> list[Unreached]:
    """Return the storages with bytes that no tensor reaches, as `account_of` finds them.

    They follow from the structure: neither data nor the header of a record is read.

    Raises
    ------
    TorchZipError, OSError
    """
    made = Account()
    for counted in _files(made, checkpoint, found, {}):
        counted.add_storages()
    return made.unreached


def _add_folder(made: Account, checkpoint: Checkpoint, kinds: Mapping[str, str]) -> None:
    """Add the bytes of a distributed checkpoint: those of tensors, and all others together."""
    assert isinstance(checkpoint.container, FolderContainer)
    folder = checkpoint.container.folder
    own = [name for name in folder.names if name.endswith((".distcp", ".metadata"))]
    own = own or [name for name in folder.names if name.endswith(".safetensors")]
    folder.will_open(own)
    made.size = around = sum(folder.open(name).size for name in own)
    seen: set[int] = set()
    for name, tensor in checkpoint.items():
        for storage in storages_of(tensor):
            if id(storage) not in seen:
                seen.add(id(storage))
                made.storages.append((storage, name))
                made.add(kinds.get(name, TENSORS), storage.nbytes)
                around -= storage.nbytes
    made.add("pickles, headers and padding", around, len(own))


def _files(
    made: Account, checkpoint: Checkpoint, found: Outline, kinds: Mapping[str, str]
) -> Iterator[_Counted]:
    """Yield the files of a checkpoint whose storages are records of them; others have none."""
    container = checkpoint.container
    if isinstance(container, ShardedContainer):
        for shard in container.containers.values():
            its = checkpoint_of(shard, checkpoint.limits)
            yield _Counted(made, its, outline(its, plain=False), kinds)
    elif isinstance(container, RankFilesContainer):
        for file in container.containers.values():
            its = checkpoint_of(file, checkpoint.limits)
            inside = outline(its, plain=False)
            yield _Counted(made, its, inside, kinds_of(find_roles(its.root, inside), inside))
    elif isinstance(container, FileContainer):
        yield _Counted(made, checkpoint, found, kinds)


class _Counted:
    """A file whose bytes are counted: by record, its storages and what is known of them."""

    def __init__(
        self, account: Account, checkpoint: Checkpoint, found: Outline, kinds: Mapping[str, str]
    ) -> None:
        container = checkpoint.container
        assert isinstance(container, FileContainer)
        self.account = account
        self._container = container
        self._opened: dict[str, TensorStorage] = {}
        self._specs: dict[str, list[TensorSpec]] = {}
        #: Those that are in the object by themselves, so that all their bytes can be reached.
        self._whole: set[str] = set()
        for held in inner_tensors([checkpoint.root, *checkpoint.constants]).values():
            record = held.storage.record or ""
            self._opened[record] = held.storage
            if isinstance(held, BareStorage):
                self._whole.add(record)
            else:
                self._specs.setdefault(record, []).append(held)
        self._names = {row.record or "": row.first_name for row in found.storages}
        self._kinds: dict[str, str] = {}
        for row in (*found.tensors, *found.unnamed, *found.constants):
            kind = kinds.get(row.name, TENSORS)
            for number in row.storages:
                record = found.storages[number].record or ""
                # A tensor of the model that shares its storage counts before others.
                if record not in self._kinds or kind == TENSORS:
                    self._kinds[record] = kind

    def add_storages(self) -> int:
        """Add the storages; return the bytes of the file that they take. It reads none of them.

        Those that the file does not have are left out: zeros that torch.export wrote no bytes for,
        and what is in an archive inside of a record.
        """
        container = self._container
        inside = container.inner if isinstance(container, NemoContainer) else container
        archive = inside.archive if isinstance(inside, ZipContainer | NpzContainer) else None
        whole = 0
        for record, storage in self._opened.items():
            if isinstance(container, ZipContainer) and record not in container.archive:
                continue
            if archive is not None and isinstance(storage, StreamStorage):
                nbytes = archive.entry(record).compressed_nbytes
                self._add_deflated(record, storage, nbytes)
            else:
                nbytes = storage.stored.nbytes
                self._add_storage(record, storage, nbytes)
            whole += nbytes
        return whole

    def _add_storage(self, record: str, storage: TensorStorage, nbytes: int) -> None:
        """Add a storage whose ``nbytes`` lie in the file as they are."""
        made, name = self.account, self._names.get(record, record)
        made.storages.append((storage, name))
        reached: int | None = nbytes
        if record not in self._whole and storage.block is None:
            reached = reached_nbytes(self._specs[record], nbytes)
        if reached is None:
            made.notes.append(f"{record}: its tensors have strides whose union would take too long")
            reached = nbytes
        left = nbytes - reached
        made.add(self._kinds.get(record, TENSORS), reached)
        if left:
            made.add("bytes that no tensor reaches", left)
            made.unreached.append(Unreached(name, record, left, nbytes))

    def _add_deflated(self, record: str, storage: TensorStorage, nbytes: int) -> None:
        """Add a storage that takes ``nbytes`` of the file, which are not those of its elements."""
        self.account.storages.append((storage, self._names.get(record, record)))
        self.account.add(f"{self._kinds.get(record, TENSORS)}, deflated", nbytes)

    def add_all(self) -> None:
        """Add all bytes of the file: of an archive the headers of its records are read for that."""
        made, container = self.account, self._container
        made.size += container.source.size
        data = self.add_storages()
        if isinstance(container, ZipContainer):
            self._add_around(container.archive)
        else:
            made.add("dead bytes", container.source.size - container.end)
            made.add(container.overhead, container.end - data)

    def _add_around(self, archive: ZipReader) -> None:
        """Add what an archive has beside storages."""
        made = self.account
        at = 0
        entries = sorted(map(archive.entry, archive), key=lambda each: each.header_offset)
        for entry in entries:
            made.add("dead bytes", entry.header_offset - at)
            at = _add_entry(made, archive, entry)
            if entry.name not in self._opened:
                made.add(_kind_of_record(entry.name), entry.compressed_nbytes)
        directory = max(entry.end for entry in entries)
        made.add("dead bytes", directory - at)
        made.add("directory", archive.source.size - directory)


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
