"""The legacy stream of ``torch.save`` from 0.1.10 to 1.5: docs/format.md, section 11.1."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from itertools import pairwise
from typing import Any

from torchzip.container.json_objects import repeated
from torchzip.errors import (
    CUT_SHORT,
    ErrorPlace,
    FormatError,
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
    run_on_more,
)
from torchzip.formats.pickled import knows
from torchzip.limits import Limits
from torchzip.pickling.interpreter import Interpreter
from torchzip.pickling.table import Table
from torchzip.tensors.rebuild import Rebuilder

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
            keys = run_on_more(source, 0, 1 << 20, limits, self._run_pickles)
            self._place_storages(keys)

    def _place_storages(self, keys: list[str]) -> None:
        at = self._bounds[-1]
        nbytes = sum(each.nbytes for each in self._measured.values())
        if nbytes > self.source.size - at:
            raise TensorError(
                f"the object has storages of {nbytes:,} bytes, and the file has "
                f"{self.source.size - at:,} bytes after it. {CUT_SHORT}",
                offset=at,
            )
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
        locating = MeasuringFactory()
        of_object = Interpreter(data, Rebuilder(locating).table, self._limits)
        others = Interpreter(data, Table(), self._limits)
        bounds = [0]
        keys: Any = None  # of the last one
        for place in _PICKLES:
            interpreter, at = of_object if place == "object" else others, bounds[-1]
            keys = interpreter.run(at)
            if place == "version" and (type(keys) is not int or keys != _LEGACY_VERSION):
                raise FormatError(
                    f"the version of the legacy format is {shown(keys)}; {_LEGACY_VERSION:,} was "
                    "expected",
                    offset=at,
                )
            bounds.append(interpreter.position)
        if type(keys) is not list or not all(type(key) is str for key in keys):
            raise PickleError(
                f"the list of storage keys is {shown(keys)}; a list of strings was expected",
                offset=at,
            )
        twice = repeated(keys)
        if twice is not None:
            raise PickleError(f"the list of storage keys has {shown(twice)} twice", offset=at)
        self._data, self._bounds = data[: bounds[-1]], bounds
        # The pickles around the object: a loader that calls what they name calls it there, too.
        self._names = others.globals
        self._measured = locating.measured
        return keys

    def read(self, make_factory: MakeFactory) -> Contents:
        start, end = self._bounds[3:5]
        made = read_pickle(
            self._data[:end], self.open_storage, make_factory, self._limits,
            path=self.name, start=start,
        )  # fmt: skip
        unknown = [name for name in self._names if not knows(name)]
        made.add([Contents(None, self._names, unknown, 0)])
        return made

    def pickles(self) -> Iterator[Pickle]:
        for place, (start, end) in zip(_PICKLES, pairwise(self._bounds), strict=True):
            yield Pickle(place, partial(bytes, memoryview(self._data)[start:end]))

    def check_records(self) -> Iterator[RecordCheck]:
        self.source.will_read([(self.source, 0, self.source.size)])
        for key, each in self._measured.items():
            yield read_record(*self.locate(key), each.nbytes, f"storage {key}")
