"""Files of torch.save, one for each rank of a training, of which one flat dict is made.

Each file is a checkpoint of its own: a zip or a legacy stream. Its pickle is read at once, its
tensors are not. What a layout knows is where in the whole tensors those of the files belong; it
says so with boxes (`tensors.chunks.Chunk`), which must fill each tensor once. A box may be a run of
a flat buffer, in which a framework laid many tensors one after another.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable, Collection, Iterator, Sequence
from itertools import accumulate, islice
from typing import Any, NamedTuple

from torchzip.errors import (
    MAX_NDIM,
    ErrorPlace,
    FormatError,
    LimitError,
    TensorError,
    UnsupportedError,
    listed,
    shown,
    too_many_dimensions,
)
from torchzip.files.folder import Folder
from torchzip.formats.base import (
    Contents,
    FolderContainer,
    MakeFactory,
    Opener,
    Pickle,
    contiguous_tensor,
)
from torchzip.leaf_types import Size
from torchzip.limits import is_number
from torchzip.pickling.table import Name
from torchzip.tensors.chunks import Chunk, ChunkedStorage, TilingCheck
from torchzip.tensors.computed import fresh_spec
from torchzip.tensors.packing import elements_of
from torchzip.tensors.persistent_ids import Factory
from torchzip.tensors.specs import Shape, TensorSpec
from torchzip.tensors.storage import Measure, TensorStorage
from torchzip.tensors.views import sliced

#: Missing files that an error names.
_MOST_LISTED = 5


class Joined(NamedTuple):
    """A tensor that is put together. Its boxes are those of ``box_shape``, which has its elements.

    One object under two names is one tensor: a tie.
    """

    torch_dtype: str
    shape: Shape
    box_shape: Shape
    chunks: list[Chunk]


class ChunkedContainer(FolderContainer):
    """Several files, in which the ``tensors`` lie in boxes: a flat dict of their names."""

    def __init__(self, folder: Folder, name: str) -> None:
        super().__init__(folder, name)
        self._check = TilingCheck()
        self.tensors: dict[str, Joined] = {}

    def join(
        self,
        name: str,
        torch_dtype: str,
        shape: Shape,
        chunks: list[Chunk],
        box_shape: Shape | None = None,
    ) -> Joined:
        """Return the tensor that boxes make, none of them empty; see that they fill it."""
        made = Joined(torch_dtype, shape, shape if box_shape is None else box_shape, chunks)
        with ErrorPlace(path=self.name, record=name):
            self._check(made.box_shape, chunks)
        return made

    def open_storage(self, key: str, measure: Measure) -> TensorStorage:
        """Return the storage of the tensor that is called ``key``."""
        found = self.tensors[key]
        return ChunkedStorage(found.torch_dtype, found.box_shape, found.chunks, key)

    def read(self, make_factory: MakeFactory) -> Contents:
        factory = make_factory(self.open_storage)
        made = Contents({}, [], [], 0)
        known: dict[int, Any] = {}
        for name, found in self.tensors.items():
            with ErrorPlace(path=self.name, record=name):
                if id(found) not in known:
                    known[id(found)] = contiguous_tensor(
                        factory, name, found.torch_dtype, found.shape
                    )
                made.root[name] = known[id(found)]
        return made


class RankFilesContainer(ChunkedContainer):
    """Several files as one flat dict. A subclass reads files and fills ``tensors``, by its names.

    ``values`` are what belongs into the dict and is not a tensor. ``knows`` says which names of the
    pickles a layout knows, where those are more than in any file.
    """

    torch_load = "does not apply"
    torch_reason = "files of many ranks; torch.load reads each by itself"
    knows: Callable[[Name], bool] | None = None

    def __init__(self, folder: Folder, opener: Opener) -> None:
        super().__init__(folder, folder.path or ".")
        self._opener = opener
        self._read: list[Contents] = []
        self._pickle_nbytes = 0
        self.values: dict[str, Any] = {}

    def read_file(self, name: str, folder: Folder | None = None) -> Any:
        """Return the object of a file; its tensors are `TensorSpec` s."""
        source = (self.folder if folder is None else folder).open(name)
        container = self._opener.of_source(source)
        if not container.keeps_root or container.is_by_name:
            raise UnsupportedError(
                f"the file is of format {container.format}; a file of torch.save was expected",
                path=container.name,
            )
        contents = container.read(Factory)
        self._pickle_nbytes += contents.pickle_nbytes
        most = self._opener.limits.pickle_nbytes
        if self._pickle_nbytes > most:
            raise LimitError("pickle_nbytes", self._pickle_nbytes, most, path=container.name)
        self.containers[name] = container
        root, contents.root = contents.root, None
        self._read.append(contents)
        return root

    def leaves(self, root: Any) -> Iterator[tuple[str, Any]]:
        """Yield what is in the dicts, lists and tuples of the file that was read last, by names.

        An object that is used over and over, or inside itself, is bounded by the names that it
        makes.
        """
        limits = self._opener.limits
        most = limits.shared_names + self._read[-1].pickle_nbytes
        count = characters = 0
        todo: list[tuple[str, Any, int]] = [("", root, 0)]
        while todo:
            name, value, depth = todo.pop()
            if isinstance(value, dict):
                inner = list(value.items())
            elif isinstance(value, list | tuple):
                inner = list(enumerate(value))
            else:
                yield name, value
                continue
            count += len(inner)
            if count > most:
                raise LimitError("shared_names", count, limits.shared_names)
            if depth > limits.nesting:
                raise LimitError("nesting", depth, limits.nesting)
            for key, item in reversed(inner):
                if type(key) not in (str, int):
                    raise FormatError(f"a dict has {shown(key)} for a key; a string was expected")
                todo.append((f"{name}.{key}" if name else str(key), item, depth + 1))
                characters += len(todo[-1][0])
                if characters > max(limits.names_nbytes, self._read[-1].pickle_nbytes):
                    raise LimitError("names_nbytes", characters, limits.names_nbytes)

    def alone(self, name: str, spec: TensorSpec, place: str, shape: Shape | None = None) -> Joined:
        """Return a tensor that one file has whole, with its own shape or another."""
        shape = spec.shape if shape is None else shape
        chunk = Chunk((0,) * len(spec.shape), spec.shape, place, closed(spec, place))
        return self.join(name, spec.torch_dtype, shape, [chunk] if spec.numel else [], spec.shape)

    def read(self, make_factory: MakeFactory) -> Contents:
        made = super().read(make_factory)
        made.add(self._read)
        made.foreign = []  # of what is in the files beside the dict, `pickles` has the names
        made.root |= self.values
        return made

    def pickles(self) -> Iterator[Pickle]:
        for each in super().pickles():
            yield each._replace(is_read=False, knows=self.knows)

    def check_parts(self) -> None:
        checked: set[int] = set()
        for chunk in (chunk for joined in self.tensors.values() for chunk in joined.chunks):
            for storage in chunk.open().storage.made_of():  # none if the chunk is all of it
                if storage.crc and id(storage) not in checked:
                    checked.add(id(storage))
                    with ErrorPlace(path=chunk.place):
                        storage.check()


class Flat:
    """A flat buffer: one or more tensors of one dimension, one after another, with their places."""

    def __init__(self, parts: Sequence[tuple[TensorSpec, str]]) -> None:
        first, first_place = parts[0]
        for spec, place in parts:
            if spec.torch_dtype != first.torch_dtype:
                raise TensorError(
                    f"a part of a flat buffer is {spec.torch_dtype}; {first.torch_dtype} was "
                    f"expected, as in {first_place}",
                    path=place,
                )
        self.torch_dtype = first.torch_dtype
        self._parts = [(spec, place) for spec, place in parts if spec.numel]
        self._ends = list(accumulate(spec.numel for spec, _ in self._parts))
        self.numel = self._ends[-1] if self._ends else 0

    def runs(self, first: int, count: int, at: int = 0) -> Iterator[Chunk]:
        """Yield what holds ``count`` elements from ``first`` on, as boxes from ``at`` on."""
        index = bisect.bisect_right(self._ends, first)
        while count > 0:
            spec, place = self._parts[index]
            begin = first - (self._ends[index] - spec.numel)
            taken = min(count, spec.numel - begin)
            yield RunChunk(at, taken, place, spec, begin)
            first, at, count = first + taken, at + taken, count - taken
            index += 1


class RunChunk(Chunk):
    """A run of elements of a tensor of one dimension.

    There are as many as ranks for each tensor, so the tensor of a run is made when it is needed.
    """

    __slots__ = ("_first",)

    def __init__(self, at: int, count: int, place: str, spec: TensorSpec, first: int) -> None:
        super().__init__((at,), (count,), place, spec)
        self._first = first

    def open(self) -> TensorSpec:
        whole = super().open()
        return closed(sliced(whole, slice(self._first, self._first + self.sizes[0])), self.place)


def closed(spec: TensorSpec, place: str) -> TensorSpec:
    """Return a tensor without what else is in its storage.

    A storage whose CRC is known would be read once for every tensor in it to compare that.
    """
    if not spec.storage.random_access:
        raise UnsupportedError(
            "a part of a tensor lies in a deflated record; parts are read from stored ones only",
            path=place,
        )
    return fresh_spec(spec.torch_dtype, spec.shape, elements_of(spec))


def check_dense(value: Any, what: str, path: str | None = None) -> TensorSpec:
    """Return a value of a file if it is a dense tensor."""
    if type(value) is not TensorSpec:
        raise TensorError(f"{what} is {shown(value)}; a dense tensor was expected", path=path)
    return value


def check_shape(value: Any, what: str, path: str | None = None) -> Shape:
    """Return a shape from a file as a tuple."""
    if type(value) is not Size:
        raise FormatError(f"{what} is {shown(value)}; a torch.Size was expected", path=path)
    if not all(map(is_number, value)):
        raise FormatError(f"{what} is {shown(value)}; sizes were expected", path=path)
    if len(value) > MAX_NDIM:
        raise too_many_dimensions(what, len(value), path=path)
    return tuple(value)


def lacking(found: Collection[int], count: int, pattern: str) -> FormatError:
    """Return the error of a directory without the files, called so, of some of its ranks."""
    missing = islice((rank for rank in range(count) if rank not in found), _MOST_LISTED)
    return FormatError(
        f"the directory lacks the files of {count - len(found):,} of {count:,} ranks, among them "
        f"{listed([pattern.format(rank) for rank in missing])}. Fetch them."
    )


def identity(spec: TensorSpec) -> tuple[Any, ...]:
    """Return what is the same of two tensors of a file that are one."""
    return id(spec.storage), spec.storage_offset, spec.shape, spec.stride, spec.torch_dtype


def differ(one: TensorSpec, other: TensorSpec) -> bool:
    """Return whether two tensors are known to be different; their bytes by the CRCs alone."""
    if (one.torch_dtype, one.shape) != (other.torch_dtype, other.shape):
        return True
    crcs = [each.storage.crc for each in (one, other)]
    whole = all(elements_of(each) is each.storage for each in (one, other))
    return all(crcs) and whole and crcs[0] != crcs[1]
