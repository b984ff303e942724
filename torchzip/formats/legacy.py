"""The legacy stream of ``torch.save`` from 0.1.10 to 1.5: docs/format.md, section 11.1."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from itertools import pairwise

from torchzip.container.json_objects import repeated
from torchzip.errors import (
    CUT_SHORT,
    ErrorPlace,
    FormatError,
    LimitError,
    PickleError,
    TensorError,
    TorchZipError,
    shown,
)
from torchzip.files.source import Source
from torchzip.formats.base import (
    Contents,
    MakeFactory,
    MeasuringFactory,
    Pickle,
    PlainContainer,
    RecordCheck,
    read_pickle,
    read_record,
)
from torchzip.formats.pickled import knows
from torchzip.limits import Limits
from torchzip.pickling.interpreter import Interpreter
from torchzip.pickling.opcodes import TruncatedPickleError
from torchzip.pickling.table import Table
from torchzip.tensors.rebuild import Rebuilder
from torchzip.tensors.storage import TensorStorage

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_VERSION = 1001
#: The pickles, as messages call them.
_PICKLES = ("magic number", "version", "sys_info", "object", "storage keys")


def is_legacy(head: bytes, limits: Limits) -> bool:
    """Return whether a file that begins so is a legacy stream."""
    try:
        return bool(Interpreter(head, Table(), limits).run() == LEGACY_MAGIC)
    except TorchZipError:
        return False


class LegacyContainer(PlainContainer):
    """What ``torch.save`` wrote from 0.1.10 to 1.5: pickles, then storages, without framing.

    The magic number, the version, a description of the writer, the object, the list of
    storage keys: five pickles. Then for each key, in the order of that list, an i64 number of
    elements and the bytes, little-endian. Their sizes are known from the persistent ids only,
    so the object is interpreted once to find them and again to make it.
    """

    format = "legacy"
    label = "PyTorch before 1.6"
    keeps_root = True
    can_be_shard = True

    def __init__(self, source: Source, limits: Limits) -> None:
        super().__init__(source)
        self._limits = limits
        self.offsets = {}
        #: Storages whose number of elements was compared.
        self._counted: set[str] = set()
        with ErrorPlace(path=source.name):
            self._place_storages(self._read_pickles())

    def _storages_room(self) -> int:
        """Return the bytes that all storages may have together."""
        return self.source.size

    def _read_pickles(self) -> list[str]:
        """Return the keys in the order of the file; note the size of each storage."""
        nbytes = min(self.source.size, 1 << 20)
        while True:
            data = bytes(self.source.read_at(0, nbytes))
            try:
                return self._run_pickles(data)
            except TruncatedPickleError as error:
                if nbytes + error.needed > self.source.size:
                    raise PickleError(
                        f"the pickles run past the end of the file, at byte {self.source.size:,}. "
                        f"{CUT_SHORT}"
                    ) from None
                if nbytes >= self._limits.pickle_nbytes:
                    raise LimitError(
                        "pickle_nbytes", nbytes + error.needed, self._limits.pickle_nbytes
                    ) from None
                nbytes = min(self.source.size, max(nbytes * 4, nbytes + error.needed))

    def _place_storages(self, keys: list[str]) -> None:
        at = self._end
        for key in keys:
            if key not in self._measured:
                raise FormatError(
                    f"the file lists storage {shown(key)}, which its object does not mention",
                    offset=at,
                )
            self.offsets[key] = at + 8
            at += 8 + self._measured[key].nbytes
        missing = self._measured.keys() - self.offsets.keys()
        if missing:
            raise FormatError(
                f"the object mentions storage {shown(min(missing))}, which the file does not list",
                offset=at,
            )
        if at > self.source.size:
            raise FormatError(
                f"the storages end at byte {at:,}, the file has {self.source.size:,} bytes. "
                f"{CUT_SHORT}"
            )
        self.end = at

    def locate(self, record: str) -> tuple[Source, int]:
        """Return where the bytes of a storage are, after a look at the count before them."""
        offset = self.offsets[record]
        if record not in self._counted:
            at = offset - 8
            count = int.from_bytes(self.source.read_at(at, 8), "little", signed=True)
            expected = self._measured[record].numel
            if count != expected:
                raise TensorError(
                    f"storage {record} has {count:,} elements in the file and {expected:,} in the "
                    "pickle",
                    path=self.name,
                    offset=at,
                )
            self._counted.add(record)
        return self.source, offset

    def extent(self, record: str, nbytes: int) -> tuple[Source, int, int]:
        return self.source, self.offsets[record] - 8, nbytes + 8

    def _run_pickles(self, data: bytes) -> list[str]:
        """Interpret the five pickles; return the keys, and note the size of each storage."""
        header = Interpreter(data, Table(), self._limits)
        header.run()
        at = header.position
        bounds = [0, at]
        version = header.run(at)
        if type(version) is not int or version != _LEGACY_VERSION:
            raise FormatError(
                f"the version of the legacy format is {shown(version)}; {_LEGACY_VERSION:,} was "
                "expected",
                offset=at,
            )
        bounds.append(header.position)
        header.run(header.position)
        self._pickle_start = header.position
        locating = _LocatingFactory(self._storages_room())
        interpreter = Interpreter(data, Rebuilder(locating).table, self._limits)
        interpreter.run(self._pickle_start)
        listed = Interpreter(data, Table(), self._limits)
        keys = listed.run(interpreter.position)
        self._pickle_end = interpreter.position
        if type(keys) is not list or not all(type(key) is str for key in keys):
            raise PickleError(
                f"the list of storage keys is {shown(keys)}; a list of strings was expected",
                offset=self._pickle_end,
            )
        twice = repeated(keys)
        if twice is not None:
            raise PickleError(
                f"the list of storage keys has {shown(twice)} twice", offset=self._pickle_end
            )
        self._end = listed.position
        self._data = data[: self._end]
        self._bounds = [*bounds, self._pickle_start, self._pickle_end, self._end]
        # The pickles around the object: a loader that calls what they name calls it there, too.
        self._names = [*header.globals, *listed.globals]
        self._measured = locating.measured
        return keys

    def read(self, make_factory: MakeFactory) -> Contents:
        made = read_pickle(
            self._data[: self._pickle_end], self.open_storage, make_factory, self._limits,
            path=self.name, start=self._pickle_start,
        )  # fmt: skip
        unknown = [name for name in self._names if not knows(name)]
        made.add([Contents(None, self._names, unknown, 0)])
        return made

    def pickles(self) -> Iterator[Pickle]:
        for place, (start, end) in zip(_PICKLES, pairwise(self._bounds), strict=True):
            yield Pickle(place, partial(self._part, start, end))

    def _part(self, start: int, end: int) -> bytes:
        return self._data[start:end]

    def check_records(self) -> Iterator[RecordCheck]:
        self.source.will_read([(self.source, 0, self.source.size)])
        for key, each in self._measured.items():
            yield read_record(*self.locate(key), each.nbytes, f"storage {key}")


class _LocatingFactory(MeasuringFactory):
    """Notes which storages there are, as long as the file has room for them."""

    def __init__(self, room: int) -> None:
        super().__init__()
        self._left = room

    def storage(
        self, key: str, torch_dtype: str | None, nbytes: int, location: str
    ) -> TensorStorage:
        self._left -= nbytes
        if self._left < 0:
            raise TensorError(
                f"storage {key} of {nbytes:,} bytes is more than the file has left. {CUT_SHORT}"
            )
        return super().storage(key, torch_dtype, nbytes, location)
