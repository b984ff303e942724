"""Lazy checkpoints: the structure is read, the tensors are not."""

from __future__ import annotations

import contextlib
import os
from collections import Counter
from collections.abc import Callable, ItemsView, Iterator, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any, BinaryIO, Literal, NamedTuple, Self, cast

import numpy as np
from numpy.typing import NDArray

from torchzip.checkpoint.lazy_tensor import (
    LazyFactory,
    LazyTensor,
    data_of,
    is_weight,
    storages_of,
    tensor_of,
)
from torchzip.checkpoint.names import NameTable
from torchzip.errors import (
    EnoughMemory,
    ErrorPlace,
    LimitError,
    TensorNotFoundError,
    TorchZipError,
    UnsupportedError,
    shortened,
    shown,
)
from torchzip.files.location import Location, StorageOptions, join, located
from torchzip.files.opening import is_folder, open_around, open_folder
from torchzip.files.source import File, position_of
from torchzip.formats.base import Container, PartsOf, check_options
from torchzip.formats.opening import Files, open_checkpoint
from torchzip.leaf_types import ForeignObject
from torchzip.limits import Limits
from torchzip.pickling.table import Name
from torchzip.tensors.kinds.base import OtherTensor
from torchzip.tensors.kinds.parts import Checked

if TYPE_CHECKING:
    from typing_extensions import TypeVar  # of the type checker: one with a default

    from torchzip.formats.joins import Join  # which few files need

    T_co = TypeVar("T_co", covariant=True, default=LazyTensor)
else:
    from typing import TypeVar

    T_co = TypeVar("T_co", covariant=True)

Foreign = Literal["keep", "raise"]


class VerifyReport(NamedTuple):
    """What `Checkpoint.verify` has read and compared."""

    records: int
    nbytes: int
    tensors: int
    #: Records without a CRC: their bytes are there, but it is unknown whether they are right.
    without_crc: tuple[str, ...]
    #: What is odd in a checkpoint of several files and changes no value.
    notes: tuple[str, ...] = ()


class Checkpoint(Mapping[str, T_co]):
    """A checkpoint whose tensors are read one by one: a mapping from flat names to LazyTensors.

    A sparse, quantized, nested or meta tensor is one of the types of that name in
    `torchzip.types`, with LazyTensors as its parts. To a type checker ``Checkpoint`` alone is
    ``Checkpoint[LazyTensor]``, which most are; annotated as ``Checkpoint[LazyTensor |
    types.OtherTensor]``, it has you handle both.

    ``root`` is the object as it was saved, every tensor in it a LazyTensor (inside a
    `types.Parameter` where it was one). ``format`` is the kind of file, ``globals`` every (module,
    name) that a pickle of it mentions, ``foreign`` those that torchzip does not know (of formats
    that have pickles beside the object's, these two read them: before it is closed), ``metadata``
    the strings of a safetensors file, of an index of shards, or of a distributed checkpoint, or the
    values of a GGUF file (bools, strings, numbers and arrays of numpy, lists of strings).
    ``constants`` are those of a TorchScript archive, which its code refers to by their position and
    which have no names; an empty tuple for other formats. ``limits`` are the bounds that the file
    is read within. ``container`` reads it; its class says what is so of the format
    (`formats.base.Format`).

    It holds its files open; `close` it, or use it as a context manager. Tensors cannot be read
    after that. It survives ``pickle``, and so do its tensors, if it was opened by a path, or on a
    file object that does.
    """

    @EnoughMemory()
    def __init__(
        self,
        file: File | Files,
        *,
        join: Join | None = None,
        optimizer: bool = False,
        foreign: Foreign = "keep",
        limits: Limits | None = None,
        storage_options: StorageOptions = None,
    ) -> None:
        limits = check_options(foreign, limits)
        file = located(file, storage_options)
        # What ``pickle`` takes along: of a path where it is now, whatever folder is current then.
        origin: tuple[Any, ...]
        if isinstance(file, list | tuple):
            file = [located(each, storage_options) for each in file]
            origin = (list(map(_lasting, file)), None, join, optimizer, foreign, limits)
        elif isinstance(file, str | os.PathLike):
            origin = (_lasting(file), None, join, optimizer, foreign, limits)
        else:
            origin = (file, position_of(cast(BinaryIO, file)), join, optimizer, foreign, limits)
        container = open_checkpoint(file, limits, join, optimizer=optimizer)
        self._read(container, foreign, limits, origin)

    def _read(
        self,
        container: Container,
        foreign: Foreign,
        limits: Limits,
        origin: tuple[Any, ...] | None,
    ) -> None:
        self._origin = origin
        self.limits = limits
        self.container = container
        try:
            self._other_tensors: list[OtherTensor] = []  # to `verify`
            contents = container.read(
                lambda open_storage: LazyFactory(open_storage, self._other_tensors)
            )
            constants = contents.read_constants() if contents.read_constants is not None else None
            if constants is not None:
                contents.add([constants])
            if foreign == "raise":
                from torchzip.checkpoint.foreign import refuse_objects  # which few ask for

                refuse_objects(container, contents, limits, constants and constants.root)
        except BaseException:
            container.close()
            raise
        self.path: str = container.name
        self.root: Any = contents.root
        self._contents = contents
        self.metadata: dict[str, Any] = contents.metadata or {}
        self.constants: tuple[Any, ...] = () if constants is None else constants.root
        self.format: str = container.format

    @property
    def globals(self) -> list[Name]:
        """Every (module, name) in the pickles that a loader of the file would run."""
        return self._all_names[0]

    @property
    def foreign(self) -> list[Name]:
        """Those of `globals` that torchzip does not know."""
        return self._all_names[1]

    @property
    def foreign_in_root(self) -> list[Name]:
        """Those of `foreign` that ``root`` and ``constants`` mention."""
        return self._contents.foreign

    @cached_property
    def _all_names(self) -> tuple[list[Name], list[Name]]:
        from torchzip.formats.pickled import all_names

        return all_names(self.container, self._contents, self.limits)

    @cached_property
    def _names(self) -> NameTable:
        contents = self._contents
        with EnoughMemory(), ErrorPlace(path=self.path):
            return named_tensors(self.root, self.limits, contents.pickle_nbytes, contents.parts_of)

    def __getitem__(self, name: str) -> T_co:
        """Return the LazyTensor of a name, or the tensor of another kind."""
        table = self._names
        leaf = table.names.get(name)
        if type(leaf) is LazyTensor and not table.conflicts:
            return leaf  # type: ignore[return-value]  # whoever annotates says what T_co is
        if leaf is None and name in table.subclassed:
            raise UnsupportedError(
                f"{shown(name)} is a tensor of a class that only its own code can make; it is a "
                "ForeignObject in the checkpoint's root, and its inner tensors have names of their "
                "own",
                path=self.path,
            )
        if leaf is None:
            import difflib  # for the message alone

            close = difflib.get_close_matches(str(name), list(table.names)[:10_000], 3)
            hint = f"; did you mean {' or '.join(map(shown, close))}?" if close else ""
            if isinstance(self.root, dict) and name in self.root:
                hint = f"; it is {shown(self.root[name])}, which .root[{name!r}] has"
            raise TensorNotFoundError(
                f"no tensor is called {shown(name)}, of {len(table.names):,}{hint}", path=self.path
            )
        with ErrorPlace(path=self.path):
            table.check(name)
        tensor: T_co = data_of(leaf)
        return tensor

    def __contains__(self, name: object) -> bool:
        return name in self._names.names

    def __iter__(self) -> Iterator[str]:
        return iter(self._names.names)

    def __len__(self) -> int:
        return len(self._names.names)

    def items(self) -> ItemsView[str, T_co]:
        """Return the names and their tensors."""
        table = self._names
        if table.conflicts:
            return super().items()  # which asks for each by its name
        if table.are_all_dense:
            return table.names.items()
        return {name: data_of(leaf) for name, leaf in table.names.items()}.items()

    @property
    def arrays(self) -> Mapping[str, NDArray[Any]]:
        """The tensors that are arrays of numpy in ``root``, by their names."""
        return self._names.arrays

    @property
    def subclassed(self) -> Mapping[str, ForeignObject]:
        """Tensors of classes of their own, which stay ForeignObjects, by their names."""
        return self._names.subclassed

    @EnoughMemory()
    def verify(self, progress: Callable[[int, int], None] | None = None) -> VerifyReport:
        """Read every record and compare its CRC; check the indices of sparse and nested tensors.

        The bounds of all tensors were checked before. What passes here, `load` reads.

        ``progress`` is called with the bytes read so far and those in all, as far as is known.

        Raises
        ------
        TorchZipError
            At the first record that is damaged.
        """
        records = 0
        nbytes = 0
        without = []
        total = 0 if progress is None else self._stored_nbytes()
        for check in self.container.check_records():
            records += 1
            nbytes += check.nbytes
            if progress is not None:
                progress(nbytes, max(nbytes, total))
            if not check.crc_known:
                without.append(check.name)
        self.check_indices()
        return VerifyReport(records, nbytes, len(self), tuple(without), self.container.notes)

    def check_indices(self) -> None:
        """Read the indices of sparse and nested tensors, and raise TensorError for wrong ones."""
        checked = Checked()
        with ErrorPlace(path=self.path):
            for tensor in self._other_tensors:
                tensor.check_values(checked)

    def beside(self, name: str) -> bytes | None:
        """Return what is in a small file in the folder of the checkpoint; None if there is none.

        The folder is that of the path that was opened, or that path itself. A checkpoint that was
        opened as a file object does not have one.

        Raises
        ------
        LimitError
            If the file is longer than `Limits` allow for headers.
        """
        file = self._origin[0] if self._origin is not None else None
        if not isinstance(file, str | os.PathLike):
            return None
        folder = open_folder(file) if is_folder(file) else open_around(file)[0]
        with contextlib.closing(folder):
            if not folder.has(name):
                return None
            try:
                source = folder.open(name)
            except FileNotFoundError:  # a web server does not say before
                return None
            if source.size > self.limits.header_nbytes:
                raise LimitError(
                    "header_nbytes", source.size, self.limits.header_nbytes, path=source.name
                )
            return bytes(source.read_at(0, source.size))

    def _stored_nbytes(self) -> int:
        leaves = self._names.names.values()
        storages = {id(storage): storage for leaf in leaves for storage in storages_of(leaf)}
        return sum(storage.stored.nbytes for storage in storages.values())

    def close(self) -> None:
        """Close the file; one that was given as an object stays open, and is read no more."""
        self.container.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Checkpoint {self.path!r}, {self.format}, {self._summary}>"

    @cached_property
    def _summary(self) -> str:
        """Return how many tensors there are, of what dtypes, in how many bytes."""
        from torchzip.checkpoint.quantities import count_text, nbytes_text

        try:
            leaves = self._names.names.values()
        except TorchZipError as error:  # whoever asks for a tensor gets it; a repr does not raise
            return f"without names: {shortened(error.message, 150)}"
        dtypes = Counter(data_of(leaf).torch_dtype for leaf in leaves)
        counts = ", ".join(f"{count:,} {dtype}" for dtype, count in sorted(dtypes.items()))
        counts = f" ({counts})" if counts else ""
        stored = nbytes_text(self._stored_nbytes())
        return f"{count_text(len(leaves), 'tensor')}{counts}, {stored} stored"

    def _repr_html_(self) -> str:
        """Return what a notebook shows of it: the tensors by module, and their sums."""
        from torchzip.checkpoint.notebook import as_html  # which few programs need

        return as_html(self)

    def __reduce__(self) -> tuple[Any, ...]:
        if self._origin is None:
            raise TypeError("a Checkpoint of a damaged file cannot be pickled")
        return (_open_again, self._origin)

    def __eq__(self, other: object) -> bool:
        return object.__eq__(self, other)  # not that of a Mapping

    __hash__ = object.__hash__


def checkpoint_of(container: Container, limits: Limits) -> Checkpoint:
    """Return the checkpoint of a container that is open; it is closed with it."""
    made = Checkpoint.__new__(Checkpoint)
    made._read(container, "keep", limits, None)
    return made


def place_beside(checkpoint: Checkpoint, name: str) -> str:
    """Return a file in the folder of a checkpoint (`Checkpoint.beside`), as messages show it."""
    path = checkpoint.path
    return join(path if is_folder(path) else os.path.dirname(path), name)


def named_tensors(
    root: Any, limits: Limits, pickle_nbytes: int = 0, parts_of: PartsOf | None = None
) -> NameTable:
    """Return the tensors in an object like `Checkpoint.root`, by their flat names.

    Numeric arrays of numpy are tensors too: a LazyTensor stands for each in ``names``, and the
    array itself is in ``arrays``.
    """
    table = NameTable(root, is_weight, limits, pickle_nbytes, parts_of)
    if table.are_all_dense:
        return table
    made: dict[int, LazyTensor | None] = {}
    for name, leaf in table.names.items():
        if isinstance(leaf, np.ndarray):
            table.arrays[name] = leaf
            if id(leaf) not in made:
                made[id(leaf)] = tensor_of(leaf)
            table.names[name] = made[id(leaf)]
    return table


def _lasting(file: str | os.PathLike[str]) -> str | Location:
    """Return what leads to a file, whatever folder is current."""
    return file if isinstance(file, Location) else os.path.abspath(os.fsdecode(file))


def _open_again(
    file: Any,
    start: int | None,
    join: Join | None,
    optimizer: bool,
    foreign: Foreign,
    limits: Limits,
) -> Checkpoint:
    """Open what was pickled: a path, or a file object from where its checkpoint began."""
    if start is not None:
        file.seek(start)
    return Checkpoint(file, join=join, optimizer=optimizer, foreign=foreign, limits=limits)


def lazy_load(
    file: File | Files,
    *,
    join: Join | None = None,
    optimizer: bool = False,
    foreign: Foreign = "keep",
    limits: Limits | None = None,
    storage_options: StorageOptions = None,
) -> Checkpoint:
    """Open a checkpoint without reading its tensors.

    ``file`` is a path, or a binary file object with ``read`` and ``seek``, read from where it
    stands: of several legacy streams in one file it takes that one. Where the object stands
    afterwards is unspecified (`load` leaves it behind what it took). The path may be that of an
    ``*.index.json``, or of a directory, with such an index and its shards, or all shards without
    one, a ``model.safetensors`` or what else Hugging Face calls a whole file, the ``.metadata`` of
    torch.distributed.checkpoint, or the files that each rank of DeepSpeed's ZeRO or of FSDP wrote:
    the names are those of the whole model, and its tensors are views of all files.

    ``file`` may also be a list of paths, of the files of all ranks. ``join`` says how their tensors
    were cut, where they do not say it themselves (as a DTensor does): ``"llama"``, ``"mistral"``,
    ``"megatron"``, or a mapping from globs to an axis, to ``(axis, parts)`` or to ``"same"``, of
    which the first that matches counts.

    A ZeRO directory has its weights; with ``optimizer=True`` also what the optimizer keeps of each,
    as ``optimizer.<name>.exp_avg`` and so on. (`convert` reads these if a glob of ``include``
    begins with ``optimizer.``.)

    Wherever a path is taken, a URL is too, of a store, a web server or the Hugging Face hub
    (docs/remote.md); that of a folder ends with a slash. ``storage_options`` are passed to what
    reads it.

    Names outside torchzip's table become inert `types.ForeignObject` s; with ``foreign="raise"``
    they are an error that lists them all, and so is whatever else would be such an object.

    Raises
    ------
    TorchZipError, OSError
        Whatever the bytes; nothing else.

    Examples
    --------
    >>> import numpy as np, os, tempfile
    >>> path = os.path.join(tempfile.mkdtemp(), "m.pt")
    >>> save({"layer": {"weight": np.arange(6.0).reshape(2, 3)}}, path)
    >>> with lazy_load(path) as ckpt:
    ...     list(ckpt), ckpt["layer.weight"].shape, ckpt["layer.weight"][1, :2].tolist()
    (['layer.weight'], (2, 3), [3.0, 4.0])
    """
    return Checkpoint(
        file,
        join=join,
        optimizer=optimizer,
        foreign=foreign,
        limits=limits,
        storage_options=storage_options,
    )
