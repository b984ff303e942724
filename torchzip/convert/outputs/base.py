"""What a format must do to be written by `convert`, and what all of them do the same way."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from typing import Any, ClassVar

from torchzip.checkpoint.lazy import Checkpoint
from torchzip.checkpoint.lazy_tensor import LazyTensor
from torchzip.convert.carried import carry, carry_order
from torchzip.convert.casting import DtypeOf, inner_tensors
from torchzip.convert.lost import lost_besides, lost_values
from torchzip.convert.planned import PlannedFile, PlannedTensor
from torchzip.convert.selection import Held, Selection
from torchzip.convert.work import Work
from torchzip.errors import listed, shown
from torchzip.limits import DEFAULT_LIMITS
from torchzip.tensors.specs import layout
from torchzip.types import OtherTensor

#: Bytes of an array of numpy up to which its values are in the text that carries the object.
_MOST_IN_TEXT = 1 << 16


class Output(ABC):
    """A format that `convert` writes. An object of the class plans one conversion.

    Planning reads no tensor data and leaves the checkpoint as it is. The same input gives the same
    plan, and the files have exactly the bytes that the plan says. `tests/convert/test_outputs.py`
    has the tests that every registered class passes.

    * ``format`` is the name in reports.
    * ``suffixes`` are those of its files, in lower case and with the dot. No two outputs share one.
    * ``has_crcs``: the files have a CRC-32 of each storage, so that bytes that are copied unread
      need one.
    * ``has_metadata``: the files have metadata, into which ``selection.metadata`` goes.
    * ``has_typed_metadata``: it has numbers, bools and lists as well as strings.
    * ``blocks``: what rules for dtypes may ask for beside the floating dtypes (`dtypes.BLOCKS`).
    * ``has_ties``: every name of a tensor that has several is in the file. Otherwise one of them
      has the data, and the report lists the others as ``tied``.
    * ``rows`` are the tensors of the output, one for each name of the selection that it can hold.
    * ``lost`` and ``refused`` say what the format cannot hold and what torch's default loader will
      not take. They are complete when all files are planned.
    """

    format: ClassVar[str]
    suffixes: ClassVar[tuple[str, ...]]
    has_crcs: ClassVar[bool]
    has_ties: ClassVar[bool]
    has_metadata: ClassVar[bool] = False
    has_typed_metadata: ClassVar[bool] = False
    blocks: ClassVar[Collection[str]] = ()

    def __init__(self, checkpoint: Checkpoint, selection: Selection, dtype_of: DtypeOf) -> None:
        """Decide for each tensor of a selection what becomes of it.

        ``dtype_of`` says what the rules want. Raises UnsupportedError where a tensor can be neither
        held nor named in ``lost``.
        """
        self.checkpoint = checkpoint
        self.selection = selection
        self._rule = dtype_of
        #: Dtypes of tensors that are one with another and cannot part.
        self._bound: dict[str, str] = {}
        #: Names whose tensor has its data under another -> that one.
        self.aliases: dict[str, str] = {}
        held = selection.tensors.items()
        self.tensors = {name: each for name, each in held if isinstance(each, LazyTensor)}
        self.others = {name: each for name, each in held if isinstance(each, OtherTensor)}
        self.inner = inner_tensors([*self.others.values(), *selection.subclassed.values()])
        self.rows: list[PlannedTensor] = []
        self.lost: list[str] = list(selection.lost)
        self.refused: list[tuple[str, str]] = []
        self._separate()

    @abstractmethod
    def groups(self) -> list[tuple[int, list[str]]]:
        """Return what must be in one file together, in order: the bytes of its data, its names.

        Every name with data is in exactly one group.
        """

    @abstractmethod
    def one_file(self, path: str) -> PlannedFile:
        """Return the file that has everything, with the object around the tensors if it can.

        Its storages are in the order of their places and do not overlap; one that is cast starts
        at a multiple of its element size.
        """

    @abstractmethod
    def shard(self, path: str, names: list[str]) -> PlannedFile:
        """Return the file that has the tensors of some groups, as a reader of them alone has it."""

    @staticmethod
    @abstractmethod
    def finish(work: Work) -> None:
        """Write all of a file that is not yet there, and compare every CRC of the source.

        The file has its size, and the large storages are in their places. `Work.batches` gives the
        keys of all storages in order: of a large one `Work.crc_of` must be called, as this is where
        damage of the source shows; small ones are `Work.contents_of`, and go to their ``starts``.
        """

    @classmethod
    def check_metadata(cls, metadata: Mapping[str, Any]) -> None:
        """Raise ValueError or TypeError for metadata of a user that the format cannot hold."""
        if not isinstance(metadata, Mapping) or not all(isinstance(key, str) for key in metadata):
            raise TypeError("metadata is a mapping from strings to values")
        if metadata and not cls.has_metadata:
            raise ValueError(f"a {cls.suffixes[0]} file has no place for metadata")
        for key in metadata:
            if key.startswith("torchzip."):
                raise ValueError(f"the metadata {shown(key)} is for torchzip itself")
        for key, value in metadata.items():
            if value is not None:
                cls.check_value(key, value)

    @classmethod
    def check_value(cls, key: str, value: Any) -> None:
        """Raise TypeError or ValueError for a value of the metadata that the format lacks."""
        raise NotImplementedError  # of a format that has metadata

    def dtype_of(self, name: str, torch_dtype: str) -> str:
        """Return the dtype in the output."""
        return self._bound.get(name) or self._rule(name, torch_dtype)

    def add_row(
        self, name: str, held: Held, dtype: str, nbytes: int, alias_of: str | None = None,
        shape: tuple[int | None, ...] | None = None,
    ) -> None:  # fmt: skip
        """Add a tensor of the output to ``rows``; its shape is that of the source by default."""
        shape = held.shape if shape is None else shape
        source = self.selection.sources[name]
        row = PlannedTensor(name, shape, held.torch_dtype, dtype, nbytes, alias_of, source)
        self.rows.append(row)

    def _separate(self) -> None:
        """Make two tensors of one that has two names with different dtypes in the output."""
        made: dict[tuple[int, str], LazyTensor] = {}
        first: dict[int, tuple[str, str]] = {}
        parting: dict[str, LazyTensor] = {}
        for name, tensor in self.tensors.items():
            spec = tensor.spec
            if id(spec) in self.inner:
                continue
            target = self.dtype_of(name, spec.torch_dtype)
            _, known = first.setdefault(id(spec), (name, target))
            if known != target:
                parting[name] = made.setdefault((id(spec), target), LazyTensor(spec.replace()))
        for name in self.selection.put(parting):
            other, dtype = first[id(self.tensors[name].spec)]
            self.lost.append(f"{name}: a dtype of its own; it is one tensor with {other}, {dtype}")
            del parting[name]
            self._bound[name] = dtype
        self.tensors |= parting

    def carry(self, in_file: list[str]) -> str | None:
        """Return the object around the tensors as JSON, and add what is not in it to ``lost``.

        ``in_file`` are the names as a reader of the file or files gets them. None: that reader
        makes the same object without it, or it cannot be carried at all. With shards, it goes into
        their index.
        """
        in_file = [name for name in in_file if name in self.tensors]
        checkpoint, selection = self.checkpoint, self.selection
        # By identity first: tensors of one layout may have got different dtypes.
        named: dict[Any, str] = {}
        for name, tensor in reversed(self.tensors.items()):
            named[layout(tensor.spec)] = named[id(tensor.spec)] = self.aliases.get(name, name)
        arrays = {
            id(array): self.aliases.get(name, name)
            for name, old in selection.sources.items()
            if (array := selection.arrays.get(old)) is not None
            and not self._is_in_text(name, array)
        }

        def name_of(value: Any) -> str | None:
            if isinstance(value, LazyTensor):
                return named.get(id(value.spec)) or named.get(layout(value.spec))
            return arrays.get(id(value))

        if selection.is_flat:
            made = carry_order(list(self.tensors), in_file, DEFAULT_LIMITS)
        else:
            made = carry(
                selection.root,
                name_of,
                names=self.tensors.keys(),
                listed={id(value) for value in selection.subclassed.values()},
                in_file=in_file,
            )
        self.lost += made.lost
        if arrays:
            self.lost.append(
                f"{listed([*arrays.values()], 3)}: arrays of numpy, which become tensors"
            )
        if made.text is None or selection.is_flat:
            self.lost += lost_values(checkpoint, selection)
        else:
            self.lost += lost_besides(checkpoint, selection)
        return made.text

    def _is_in_text(self, name: str, array: Any) -> bool:
        """Return whether an array of numpy comes back as one: it is small, and not cast."""
        dtype = self.selection.tensors[name].torch_dtype
        return array.nbytes <= _MOST_IN_TEXT and self.dtype_of(name, dtype) == dtype
