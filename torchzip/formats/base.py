"""What a format gives to whoever opens a checkpoint: `Container`, and what its classes share.

A container gives a `Factory` the storages that it asks for and runs the pickle; what the
values are made of is the factory's affair.
"""

from __future__ import annotations

import gc
import math
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeVar

from torchzip.container.tensor_entry import TensorEntry
from torchzip.dtypes import DTYPES
from torchzip.errors import CUT_SHORT, ErrorPlace, LimitError, PickleError
from torchzip.files.opening import open_source
from torchzip.files.source import File, Source
from torchzip.leaf_types import ForeignObject
from torchzip.limits import DEFAULT_LIMITS, Limits
from torchzip.pickling.interpreter import Interpreter
from torchzip.pickling.opcodes import TruncatedPickleError
from torchzip.pickling.table import Name
from torchzip.tensors.persistent_ids import Factory
from torchzip.tensors.rebuild import Rebuilder
from torchzip.tensors.specs import TensorSpec, check_spec, contiguous_stride
from torchzip.tensors.storage import (
    Locator,
    Measure,
    MeasuredStorage,
    OpenStorage,
    SpanStorage,
    TensorStorage,
)

if TYPE_CHECKING:
    from torchzip.files.folder import Folder  # which few files need

#: A name, a place as messages show it, and what is there.
Child = tuple[str, str, Any]
#: What is named below an object that was not made; None for whatever it has.
PartsOf = Callable[[ForeignObject], Iterable[Child] | None]
MakeFactory = Callable[[OpenStorage], Factory]

_Made = TypeVar("_Made")

#: Bytes of a pickle from which on Python's collector of cycles waits until it is read.
_PAUSE_FROM = 1 << 16


@dataclass(slots=True, eq=False, repr=False)
class Contents:
    """What a container held: the object as it was saved, and what its pickle mentioned."""

    root: Any
    globals: list[Name]
    foreign: list[Name]
    pickle_nbytes: int
    metadata: dict[str, Any] | None = None
    #: What is named below an object that was not made; None: as in a pickled ``nn.Module``.
    parts_of: PartsOf | None = None
    #: Reads the constants of a TorchScript archive: a tuple, as the root of Contents of their own.
    read_constants: Callable[[], Contents] | None = None

    def add(self, parts: Iterable[Contents]) -> None:
        """Add the names and sizes of other pickles of the same checkpoint."""
        each = [self, *parts]
        self.globals = list(dict.fromkeys(name for part in each for name in part.globals))
        self.foreign = list(dict.fromkeys(name for part in each for name in part.foreign))
        self.pickle_nbytes = sum(part.pickle_nbytes for part in each)


class Pickle(NamedTuple):
    """A pickle that some loader of the file would run.

    ``place`` is the record as messages show it, ``data`` reads its bytes. ``is_read`` says that
    `Container.read` carries it out, so that its names are in `Contents`; ``knows`` says which names
    are not foreign in it, where those are others than in the pickle of an object.
    """

    place: str
    data: Callable[[], bytes]
    is_read: bool = True
    knows: Callable[[Name], bool] | None = None


class RecordCheck(NamedTuple):
    """One record that was read from end to end. ``crc_known`` is False if it has no CRC."""

    name: str
    nbytes: int
    crc_known: bool


class Format(Protocol):
    """What is so of every file of a format. The classes of containers say where theirs differs.

    * ``format`` is its name, ``label`` what a page for people calls it.
    * ``has_crcs``: it is a zip archive, whose records have CRC-32s.
    * ``has_code``: there is code in it, and there may be objects of classes that only this has.
    * ``is_script``: all of its object is of such classes, and means nothing in another file.
    * ``is_by_name``: it has tensors by their names and no object around them, but for one that
      `convert` may have put into the metadata.
    * ``lists_ties``: the metadata has strings, which may be ties (`container.safetensors`).
    * ``keeps_root``: `save` can write its object as it is.
    * ``can_be_shard``: an index may list it.
    * ``overhead`` is what the bytes of a file are called that are not of tensors.
    * ``torch_load`` is what ``torch.load`` does with any file of the format, in the words of
      `torchzip.tools.verify`, and ``torch_reason`` says why. Without a reason it goes by the
      pickles.
    """

    format: str
    label: str
    has_crcs: bool = False
    has_code: bool = False
    is_script: bool = False
    is_by_name: bool = False
    lists_ties: bool = False
    keeps_root: bool = False
    can_be_shard: bool = False
    overhead: str = "pickles and headers"
    torch_load: str = "accepts"
    torch_reason: str = ""


class Container(Format, Protocol):
    """A checkpoint of one format, open.

    ``name`` is what messages call it. ``notes`` say what is odd and changes no value; they are
    complete after `check_records`.
    """

    name: str
    notes: tuple[str, ...] = ()

    def read(self, make_factory: MakeFactory) -> Contents:
        """Return the object; ``make_factory`` is called once for each file that has storages."""
        ...

    def pickles(self) -> Iterator[Pickle]:
        """Yield every pickle that a loader of this format would run, whether `read` does or not."""
        return iter(())

    def check_records(self) -> Iterator[RecordCheck]:
        """Read every record from end to end; raise at the first that is damaged."""
        ...

    def check_parts(self) -> None:
        """Compare the CRCs of storages of which tensors have parts; whoever reads these cannot."""
        return

    def close(self) -> None:
        """Close what was opened. File objects belong to the caller."""
        ...


class Opener(NamedTuple):
    """Opens files of any format, for containers that have some inside: `formats.opening` gives it.

    ``optimizer`` asks for what the optimizer keeps as well, which ZeRO directories have.
    """

    limits: Limits
    open_container: Callable[[Source, Limits], Container]
    optimizer: bool = False

    def of_source(self, source: Source) -> Container:
        """Return the container that the bytes of a file are."""
        return self.open_container(source, self.limits)

    def of_file(self, file: File) -> Container:
        """Return the container that one file is; the file is closed again if it is not one."""
        source = open_source(file)
        try:
            return self.of_source(source)
        except BaseException:
            source.close()
            raise


class FileContainer(Container):
    """A container that is one file. ``end`` is the byte after it, where another may follow."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.name = source.name
        self.end = source.size

    def close(self) -> None:
        """Close the file, unless it was given as an object."""
        self.source.close()


class PlainContainer(FileContainer, Locator):
    """A file with the little-endian bytes of storages, which begin at ``offsets`` by their keys."""

    offsets: dict[str, int]

    def locate(self, record: str) -> tuple[Source, int]:
        return self.source, self.offsets[record]

    def extent(self, record: str, nbytes: int) -> tuple[Source, int, int]:
        return self.source, self.offsets[record], nbytes

    def open_storage(self, key: str, measure: Measure) -> TensorStorage:
        unit = swap_nbytes(measure.torch_dtype, "little")
        return SpanStorage(*measure, key, self, None, unit)


class NamedTensorsContainer(PlainContainer):
    """A file whose header has ``entries``, tensors by their names: a flat dict of them."""

    is_by_name = True
    keeps_root = True
    can_be_shard = True
    overhead = "header"
    torch_load = "does not apply"

    def __init__(
        self, source: Source, entries: Iterable[TensorEntry], metadata: dict[str, Any]
    ) -> None:
        super().__init__(source)
        self.entries = {entry.name: entry for entry in entries}
        self.offsets = {name: entry.begin for name, entry in self.entries.items()}
        self._metadata = metadata

    def open_storage(self, key: str, measure: Measure) -> TensorStorage:
        """Return the storage of the tensor that is called ``key``.

        The measure lacks the dtypes that have no storage class; the header has all of them.
        """
        unit = swap_nbytes(self.entries[key].torch_dtype, "little")
        return SpanStorage(*measure, key, self, None, unit)

    def read(self, make_factory: MakeFactory) -> Contents:
        factory = make_factory(self.open_storage)
        root: dict[str, Any] = {}
        for name, entry in self.entries.items():
            with ErrorPlace(path=self.name, record=name):
                root[name] = contiguous_tensor(factory, name, entry.torch_dtype, entry.shape)
        return Contents(root, [], [], 0, self._metadata)

    def check_records(self) -> Iterator[RecordCheck]:
        self.source.will_read([(self.source, 0, self.source.size)])
        for name, entry in self.entries.items():
            yield read_record(self.source, entry.begin, entry.end - entry.begin, name)


class FolderContainer(Container):
    """A container that is several files of a directory.

    ``containers`` are those files that are checkpoints themselves, as messages call them.
    """

    def __init__(self, folder: Folder, name: str) -> None:
        self.folder = folder
        self.name = name
        self.containers: dict[str, Container] = {}

    def pickles(self) -> Iterator[Pickle]:
        for place, container in self.containers.items():
            for each in container.pickles():
                yield each._replace(place=f"{place}: {each.place}")

    def check_records(self) -> Iterator[RecordCheck]:
        return self._check_parts(self.containers.items())

    def _check_parts(self, parts: Iterable[tuple[str, Container]]) -> Iterator[RecordCheck]:
        """Yield the checks of containers in this one, by their places; take over their notes."""
        for place, container in parts:
            for check in container.check_records():
                yield check._replace(name=f"{place}: {check.name}")
            notes = [f"{place}: {note}" for note in container.notes]
            self.notes = tuple(dict.fromkeys([*self.notes, *notes]))

    def close(self) -> None:
        self.folder.close()


class MeasuringFactory(Factory):
    """Notes what the pickle says of each storage, by key in its order."""

    def __init__(self) -> None:
        self.measured: dict[str, MeasuredStorage] = {}

    def storage(self, key: str, measure: Measure) -> TensorStorage:
        made = self.measured[key] = MeasuredStorage(*measure)
        return made


def measured_by(read: Callable[[MakeFactory], object]) -> list[dict[str, MeasuredStorage]]:
    """Return the storages, by key, that each pickle mentions for which ``read`` wants a factory."""
    made: list[MeasuringFactory] = []

    def measure(open_storage: OpenStorage) -> MeasuringFactory:
        made.append(MeasuringFactory())
        return made[-1]

    read(measure)
    return [factory.measured for factory in made]


def contiguous_tensor(
    factory: Factory,
    key: str,
    torch_dtype: str,
    shape: tuple[int, ...],
    requires_grad: bool = False,
    *,
    first_is_fastest: bool = False,
) -> Any:
    """Return what a factory makes of a contiguous tensor on the storage of a key, all of it.

    ``first_is_fastest``: the elements are in the order of Fortran.
    """
    row = DTYPES[torch_dtype]
    typed = torch_dtype if row.storage_class else None
    measure = Measure(typed, math.prod(shape) * row.itemsize, "cpu")
    storage = factory.storage(key, measure)
    stride = contiguous_stride(shape)
    if first_is_fastest:
        stride = contiguous_stride(shape[::-1])[::-1]
    spec = TensorSpec(torch_dtype, shape, stride, 0, storage, requires_grad)
    return factory.tensor(check_spec(spec))


def swap_nbytes(torch_dtype: str | None, byteorder: str) -> int:
    """Return the unit in which a storage of that byte order is swapped; 1 is not at all."""
    if byteorder == sys.byteorder or torch_dtype is None:
        return 1
    row = DTYPES[torch_dtype]
    return row.itemsize // 2 if row.kind == "complex" else row.itemsize


def read_pickle(
    data: bytes,
    open_storage: OpenStorage,
    make_factory: MakeFactory,
    limits: Limits,
    *,
    path: str,
    record: str | None = None,
    start: int = 0,
    rebuilder_type: type[Rebuilder] = Rebuilder,
) -> Contents:
    """Run the pickle that begins at ``start`` of ``data``."""
    rebuilder = rebuilder_type(make_factory(open_storage))
    interpreter = Interpreter(data, rebuilder.table, limits, record=record)
    try:
        with ErrorPlace(path=path), collector_paused(len(data) >= _PAUSE_FROM):
            root = interpreter.run(start)
    finally:
        rebuilder.finish()
    names = interpreter.globals
    foreign = [name for name in names if not rebuilder.table.knows(name)]
    return Contents(root, names, foreign, len(data) - start)


def run_on_more(
    source: Source, start: int, nbytes: int, limits: Limits, run: Callable[[bytes], _Made]
) -> _Made:
    """Return what ``run`` makes of the bytes from ``start`` on, in which pickles stand.

    It gets ``nbytes`` of them, and more as long as it finds a pickle cut short.
    """
    left = source.size - start
    nbytes = min(left, nbytes)
    while True:
        try:
            return run(bytes(source.read_at(start, nbytes)))
        except TruncatedPickleError as error:
            needed = nbytes + error.needed
            if needed > left:
                raise PickleError(
                    f"a pickle runs past the end, at byte {source.size:,}. {CUT_SHORT}",
                    path=source.name,
                ) from None
            if nbytes >= limits.pickle_nbytes:
                raise LimitError("pickle_nbytes", needed, limits.pickle_nbytes) from None
            nbytes = min(left, max(4 * nbytes, needed))


@contextmanager
def collector_paused(pause: bool) -> Iterator[None]:
    """Keep Python's collector of cycles from looking, if ``pause`` is true.

    For work whose results all stay: looking for cycles among them every so often may be half of
    the time.
    """
    pause = pause and gc.isenabled()
    if pause:
        gc.disable()
    try:
        yield
    finally:
        if pause:
            gc.enable()


def check_options(foreign: object, limits: object) -> Limits:
    """Return the limits, or the default ones for None; raise where an option is not valid.

    Raises
    ------
    ValueError, TypeError
        The mistake is the caller's.
    """
    if foreign not in ("keep", "raise"):
        raise ValueError(f"foreign must be 'keep' or 'raise', not {foreign!r}")
    if limits is None:
        return DEFAULT_LIMITS
    if not isinstance(limits, Limits):
        raise TypeError(f"limits must be Limits(...), not {type(limits).__name__}")
    return limits


def read_bounded(source: Source, limits: Limits, limit: str) -> bytes:
    """Return the bytes of a Source, at most as many as the bound that ``limit`` names."""
    bound: int = getattr(limits, limit)
    if source.size > bound:
        raise LimitError(limit, source.size, bound, path=source.name)
    return bytes(source.read_at(0, source.size))


def read_record(source: Source, offset: int, nbytes: int, name: str) -> RecordCheck:
    """Read a record that has no CRC from end to end."""
    for _ in read_blocks(source, offset, nbytes):
        pass
    return RecordCheck(name, nbytes, False)


def read_blocks(source: Source, offset: int, nbytes: int) -> Iterator[memoryview]:
    """Yield bytes of a file in order; a block is valid until the next one is taken."""
    buffer = memoryview(bytearray(min(nbytes, 1 << 20)))
    for start in range(offset, offset + nbytes, 1 << 20):
        block = buffer[: min(1 << 20, offset + nbytes - start)]
        source.read_into(start, block)
        yield block
