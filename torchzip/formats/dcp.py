"""Distributed checkpoints: a directory that torch.distributed.checkpoint wrote.

See docs/format.md, section 11.6.

``.metadata`` says which tensors there are, in which chunks, and where each chunk lies; with
``use_collectives=False`` every rank writes a ``__<rank>.metadata`` of its own. A file
``__<rank>_<n>.distcp`` is a concatenation of items, and each is a whole ``torch.save`` archive: of
a chunk, or of an object that is not a tensor. An item is opened when its tensor is touched; objects
are read at once.

``planner_data`` has the path of each value in the object as it was saved. Dicts without values and
the class of a container are not in the file, and a position of a list without a value is None,
as in torch. Ties are not kept either: torch saves each name by itself.
"""

from __future__ import annotations

import functools
import itertools
import math
import re
from collections.abc import Iterator
from typing import Any

from torchzip.container.zip_reader import ZipReader
from torchzip.dtypes import DTYPES
from torchzip.errors import (
    TRUNCATED,
    ArchiveError,
    ErrorPlace,
    FormatError,
    LimitError,
    TensorError,
    UnsupportedError,
    listed,
    shown,
)
from torchzip.files.folder import Folder
from torchzip.files.source import PartSource, Source
from torchzip.formats.base import (
    Contents,
    MakeFactory,
    Pickle,
    RecordCheck,
    contiguous_tensor,
    read_bounded,
)
from torchzip.formats.dcp_metadata import (
    DcpMetadata,
    ItemKey,
    Path,
    Place,
    knows_in_metadata,
    parse_metadata,
)
from torchzip.formats.dcp_safetensors import DcpFormat
from torchzip.formats.rank_files import ChunkedContainer
from torchzip.formats.zip import ZipContainer
from torchzip.limits import Limits
from torchzip.tensors.chunks import Chunk
from torchzip.tensors.persistent_ids import Factory
from torchzip.tensors.specs import TensorSpec
from torchzip.types import OtherTensor

METADATA_NAME = ".metadata"
RANK_METADATA = re.compile(r"__\d{1,9}\.metadata", re.ASCII)

#: What an archive has at least, besides the bytes of its storage.
_ITEM_NBYTES = 22


class DcpContainer(DcpFormat, ChunkedContainer):
    """A distributed checkpoint. ``metadata_names`` are its ``.metadata``, or those of the ranks."""

    def __init__(self, folder: Folder, metadata_names: list[str], limits: Limits) -> None:
        super().__init__(folder, folder.path or ".")
        self._limits = limits
        self._metadata_names = metadata_names
        self._parts: dict[ItemKey, PartSource] = {}
        self._used: set[ItemKey] = set()
        self._metadata = self._read_metadata(metadata_names)
        self._open_items()
        self._find_chunks()
        spare = sorted({name for name, _ in self._parts.keys() - self._used})
        if spare:
            what = f"{len(spare):,} names have items that nothing needs, as {shown(spare[0])}"
            self.notes = (what,)

    # -- the metadata ------------------------------------------------------------------------

    def _read_metadata(self, names: list[str]) -> DcpMetadata:
        merged = DcpMetadata()
        origin: dict[str, str] = {}
        self.folder.will_open(names)
        for name in sorted(names, key=lambda each: (len(each), each)):
            source = self.folder.open(name)
            if source.size > self._limits.pickle_nbytes - merged.nbytes:
                raise LimitError(
                    "pickle_nbytes", source.size + merged.nbytes, self._limits.pickle_nbytes,
                    path=source.name,
                )  # fmt: skip
            made = parse_metadata(bytes(source.read_at(0, source.size)), self._limits, source.name)
            for item in made.items:
                if item in origin:
                    raise FormatError(
                        f"{shown(item)} is in {origin[item]} and in {name}: each rank saved a "
                        "checkpoint of its own. Give the path of one of those files."
                    )
                origin[item] = name
            twice = merged.places.keys() & made.places.keys()
            if twice:
                raise FormatError(
                    f"{shown(min(twice, key=str)[0])} has a place in {name} and in another "
                    "metadata. Give the path of one of those files."
                )
            merged.items |= made.items
            merged.places |= made.places
            merged.paths |= {item: path for item, path in made.paths.items() if item in made.items}
            merged.texts |= made.texts
            merged.globals = list(dict.fromkeys(merged.globals + made.globals))
            merged.foreign = list(dict.fromkeys(merged.foreign + made.foreign))
            merged.nbytes += made.nbytes
        return merged

    # -- the items ---------------------------------------------------------------------------

    def _open_items(self) -> None:
        """Find the file of each item, and see that items lie in it and apart."""
        files = {place.file for place in self._metadata.places.values()}
        missing = {name for name in files if not self.folder.has(name)}
        self.folder.will_open(sorted(files - missing))
        if missing:
            first = min(missing)
            names = sorted(
                {k for (k, _), place in self._metadata.places.items() if place.file == first}
            )
            raise FormatError(
                f"the directory lacks {len(missing):,} of its files, among them {shown(first)}, "
                f"which has {listed(names, 3)}. Fetch them again."
            )
        by_file: dict[str, list[tuple[Place, str]]] = {}
        for (name, offset), place in self._metadata.places.items():
            by_file.setdefault(place.file, []).append((place, name))
            source = self.folder.open(place.file)
            if place.offset + place.nbytes > source.size:
                raise FormatError(
                    f"{shown(name)} is at bytes {place.offset:,} to "
                    f"{place.offset + place.nbytes:,} of a file of {source.size:,} bytes. "
                    f"{TRUNCATED}",
                    path=source.name,
                )
            called = f"{source.name}, {shown(name)}" + (f" at {list(offset)}" if offset else "")
            self._parts[name, offset] = PartSource(source, place.offset, place.nbytes, called)
        for file, places in by_file.items():
            places.sort(key=lambda each: each[0].offset)
            for (one, name), (other, other_name) in itertools.pairwise(places):
                if one.offset + one.nbytes > other.offset:
                    raise FormatError(
                        f"{shown(name)} and {shown(other_name)} overlap at byte {other.offset:,}",
                        path=self.folder.place(file),
                    )

    def _find_chunks(self) -> None:
        for name, item in self._metadata.items.items():
            if item is None:
                if (name, None) not in self._parts:
                    raise FormatError(f"the metadata does not say where {shown(name)} lies")
                self._used.add((name, None))
                continue
            itemsize = DTYPES[item.torch_dtype].itemsize
            chunks: list[Chunk] = []
            for offsets, sizes in item.chunks:
                self._used.add((name, offsets))
                if 0 in sizes:
                    continue  # what a rank has that got no part
                part = self._parts.get((name, offsets))
                if part is None:
                    raise FormatError(
                        f"the metadata does not say where the chunk at {list(offsets)} of "
                        f"{shown(name)} lies"
                    )
                chunks.append(ItemChunk(offsets, sizes, part, item.torch_dtype, self._limits))
            self.tensors[name] = self.join(name, item.torch_dtype, item.shape, chunks)
            for chunk in chunks:
                # Torch stores what it writes here, so the bytes are there or they are not.
                nbytes = itemsize * math.prod(chunk.sizes)
                if nbytes > self._parts[name, chunk.offsets].size - _ITEM_NBYTES:
                    raise TensorError(
                        f"a chunk of {nbytes:,} bytes lies in an item of "
                        f"{self._parts[name, chunk.offsets].size:,} bytes, which cannot hold it",
                        path=chunk.place,
                    )

    # -- the object --------------------------------------------------------------------------

    def read(self, make_factory: MakeFactory) -> Contents:
        factory = make_factory(self.open_storage)
        made = Contents({}, list(self._metadata.globals), [], self._metadata.nbytes)
        made.metadata = self._metadata.texts
        objects: list[Contents] = []
        nest = _Nest(self._metadata.nbytes, self._limits)
        for name, item in self._metadata.items.items():
            with ErrorPlace(path=self.name, record=name):
                if item is not None:
                    value = contiguous_tensor(
                        factory, name, item.torch_dtype, item.shape, item.requires_grad
                    )
                else:
                    contents = _open_item(self._parts[name, None], self._limits).read(make_factory)
                    value = contents.root
                    objects.append(contents)
                nest.put(name, self._metadata.paths.get(name, (name,)), value)
        with ErrorPlace(path=self.name):
            made.root = nest.finish()
        made.add(objects)
        return made

    def pickles(self) -> Iterator[Pickle]:
        """Yield every metadata in the directory, chosen or not, and the pickle of every item.

        torch 2.13 loads an item that is a tensor with its safe loader; releases before 2.4 called
        what it names.
        """
        for name in self.folder.names:
            if is_metadata(name):
                file = self.folder.open(name)
                read = functools.partial(read_bounded, file, self._limits, "pickle_nbytes")
                # The object has none of the names that mean nothing in it.
                is_read = name in self._metadata_names and not self._metadata.foreign
                yield Pickle(name, read, is_read, knows_in_metadata)
        for (name, offset), part in self._parts.items():
            is_object = offset is None and (name, None) in self._used
            for each in _open_item(part, self._limits).pickles():
                yield each._replace(
                    place=f"{part.name}: {each.place}", is_read=each.is_read and is_object
                )

    def check_records(self) -> Iterator[RecordCheck]:
        for joined in self.tensors.values():
            for chunk in joined.chunks:
                chunk.open()  # its dtype and shape
        parts = self._parts.values()
        yield from self._check_parts((part.name, _open_item(part, self._limits)) for part in parts)


def is_metadata(name: str) -> bool:
    """Return whether a file says what a distributed checkpoint has, by its name."""
    return name == METADATA_NAME or RANK_METADATA.fullmatch(name) is not None


class _Nest:
    """Puts values at their paths. Lists grow as dicts of positions and become lists at the end."""

    def __init__(self, nbytes: int, limits: Limits) -> None:
        self._root: dict[Any, Any] = {}
        self._limits = limits
        self._room = nbytes

    def put(self, name: str, path: Path, value: Any) -> None:
        """Put a value at a path.

        Raises
        ------
        FormatError
            If another value is there or on the way.
        """
        if len(path) > self._limits.nesting:
            raise LimitError("nesting", len(path), self._limits.nesting)
        held = self._root
        for step in path[:-1]:
            held = held.setdefault(step, _Branch())
            if type(held) is not _Branch:
                raise FormatError(f"the path of {shown(name)} goes through another value")
        if path[-1] in held:
            raise FormatError(f"the path of {shown(name)} is that of another value too")
        held[path[-1]] = value

    def finish(self) -> dict[Any, Any]:
        """Return the object. May be called once."""
        order: list[tuple[dict[Any, Any], Any, _Branch]] = []
        todo: list[dict[Any, Any]] = [self._root]
        while todo:
            held = todo.pop()
            for key, value in held.items():
                if type(value) is _Branch:
                    order.append((held, key, value))
                    todo.append(value)
        for held, key, branch in reversed(order):  # what lies deeper first
            kinds = set(map(type, branch))
            if len(kinds) > 1:
                raise FormatError(
                    f"paths go through {shown(key)} as a dict, and as a container of another kind, "
                    "a list"
                )
            held[key] = self._as_list(branch) if kinds == {int} else dict(branch)
        return self._root

    def _as_list(self, branch: _Branch) -> list[Any]:
        length = max(branch) + 1
        self._room -= length - len(branch)
        if self._room < 0:  # gaps are where empty containers were; no pickle is that short
            raise FormatError(
                f"a list has {len(branch):,} values and its last is at position {length - 1:,}; "
                "the metadata is too short for so many gaps"
            )
        return [branch.get(position) for position in range(length)]


class _Branch(dict[Any, Any]):
    """A container that is not complete; its own class, so that no value is taken for one."""


# -- items -----------------------------------------------------------------------------------


class ItemChunk(Chunk):
    """A chunk that is an item of a ``.distcp``: opened when it is needed, and kept."""

    __slots__ = ("_limits", "_part", "_torch_dtype")

    def __init__(
        self,
        offsets: tuple[int, ...],
        sizes: tuple[int, ...],
        part: PartSource,
        torch_dtype: str,
        limits: Limits,
    ) -> None:
        super().__init__(offsets, sizes, part.name)
        self._part = part
        self._torch_dtype = torch_dtype
        self._limits = limits

    def open(self) -> TensorSpec:
        """Return the tensor of the item.

        Raises
        ------
        TorchZipError
            If it is not what the ``.metadata`` says: a tensor of that dtype and size.
        """
        if self._spec is None:
            with ErrorPlace(path=self.place):
                self._spec = self._checked(_open_item(self._part, self._limits).read(Factory).root)
        return self._spec

    def _checked(self, spec: Any) -> TensorSpec:
        if isinstance(spec, OtherTensor):
            kind = spec.kind.replace("_", " ")
            raise UnsupportedError(
                f"a {kind} tensor in a distributed checkpoint; these are not read yet"
            )
        if type(spec) is not TensorSpec:
            raise TensorError(f"the item is {shown(spec)}; a tensor was expected")
        if spec.torch_dtype != self._torch_dtype or spec.shape != self.sizes:
            raise TensorError(
                f"the item is {spec.torch_dtype} of size {list(spec.shape)}, the metadata says "
                f"{self._torch_dtype} of size {list(self.sizes)}"
            )
        if not spec.storage.random_access:
            raise UnsupportedError(
                "a chunk lies in a deflated record; chunks are read from stored ones only"
            )
        return spec

    def __reduce__(self) -> tuple[Any, ...]:
        fields = (self.offsets, self.sizes, self._part, self._torch_dtype, self._limits)
        return (ItemChunk, fields)


def _open_item(part: Source, limits: Limits) -> ZipContainer:
    head = bytes(part.read_at(0, min(part.size, 4)))
    if head != b"PK\3\4":
        raise ArchiveError(
            f"an item begins with {head!r}; an archive of torch.save was expected", path=part.name
        )
    return ZipContainer(ZipReader(part, limits), limits)
