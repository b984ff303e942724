"""The tar files of ``torch.save`` before 0.1.10: docs/format.md, section 11.2.

Three members count. Of ``sys_info``, which is a pickle as well, only the names are looked at.
Numbers are little-endian.

* ``storages``: a pickled count; for each a pickled (key, location, storage class), i64 elements,
  the data; then a pickled list of (view key, root key, offset, elements), windows of storages.
* ``tensors``: a pickled count; for each a pickled (key, storage key, tensor class), i32
  dimensions, 4 bytes of no meaning, sizes and strides as i64, and the i64 offset.
* ``pickle``: the object. A persistent id is the key of a tensor or a storage, a number or its
  digits; or a tuple for a class with its source, of which the class is taken.

The pickles stand among the data without a length, so each is interpreted to find where it ends.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any

from torchzip.container.tar import find_members
from torchzip.dtypes import DTYPES, STORAGE_CLASSES
from torchzip.errors import (
    MAX_NDIM,
    TRUNCATED,
    ArchiveError,
    ErrorPlace,
    FormatError,
    PickleError,
    TensorError,
    UnsupportedError,
    listed,
    shown,
    too_many_dimensions,
)
from torchzip.files.source import PartSource, Source
from torchzip.formats.base import (
    Contents,
    MakeFactory,
    Pickle,
    PlainContainer,
    RecordCheck,
    read_bounded,
    read_record,
    run_on_more,
)
from torchzip.formats.not_checkpoints import around_checkpoints
from torchzip.formats.pickled import HEAD_NBYTES, may_be_pickle, stray_note
from torchzip.limits import Limits
from torchzip.pickling.interpreter import Interpreter
from torchzip.pickling.table import Name, Table
from torchzip.tensors.persistent_ids import BareStorage, Factory, unknown_storage_class
from torchzip.tensors.rebuild import Rebuilder
from torchzip.tensors.specs import TensorSpec, check_spec, span_of
from torchzip.tensors.storage import Measure, MeasuredStorage
from torchzip.types import ForeignObject

_MEMBERS = ("storages", "tensors", "pickle")
_MODULES = ("torch", "torch.cuda")


@dataclasses.dataclass(frozen=True, slots=True)
class _StoredTensor:
    storage_key: str
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int


class TarContainer(PlainContainer):
    """What ``torch.save`` wrote before 0.1.10."""

    format = "tar"
    label = "PyTorch before 0.1.10, tar"
    keeps_root = True
    torch_load = "needs weights_only=False"
    torch_reason = "a tar file of before torch 0.1.10"

    def __init__(self, source: Source, limits: Limits) -> None:
        super().__init__(source)
        self._limits = limits
        self.offsets = {}
        self.storages: dict[str, MeasuredStorage] = {}
        # Windows: the key of the storage, first element, elements.
        self.views: dict[str, tuple[str, int, int]] = {}
        self.tensors: dict[str, _StoredTensor] = {}
        members, self.end = find_members(source, limits)
        missing = [name for name in _MEMBERS if name not in members]
        if missing:
            around = around_checkpoints(list(members))
            raise ArchiveError(
                f"a tar file without {' and '.join(missing)} is not a checkpoint; it has "
                + (listed(list(members)) or "no file")
                if around is None
                else f"a tar file {around}"
            )
        self._members = {
            name: PartSource(source, *place, source.name) for name, place in members.items()
        }
        storages, tensors = (
            _Stream(self._members[name], name, limits) for name in ("storages", "tensors")
        )
        with ErrorPlace(record="storages"):
            self._find_storages(storages)
        with ErrorPlace(record="tensors"):
            self._find_tensors(tensors)
        self._globals = storages.names | tensors.names
        # Where the pickles are that stand among data: member, first byte, bytes.
        self._between = storages.spans + tensors.spans

    def _find_storages(self, stream: _Stream) -> None:
        for _ in range(_count(stream.value())):
            wanted = "(key, location, class) was expected"
            row = _row(stream.value(), 3, "a storage", wanted)
            key, location = _key(row[0]), _text(row[1])
            torch_dtype = _dtype_of(row[2])
            count = stream.integer(8)
            nbytes = count * DTYPES[torch_dtype].itemsize
            if count < 0 or nbytes > stream.left:
                raise TensorError(
                    f"storage {key} has {count:,} elements of {torch_dtype}, and {stream.left:,} "
                    f"bytes are left. {TRUNCATED}"
                )
            self._see_new(key)
            self.offsets[key] = self._members["storages"].start + stream.position
            self.storages[key] = MeasuredStorage(torch_dtype, nbytes, location)
            stream.position += nbytes
        self._find_views(stream.value())

    def _find_views(self, views: Any) -> None:
        if type(views) is not list:
            raise PickleError(f"the storage views are {shown(views)}; a list was expected")
        for view in views:
            _row(view, 4, "a storage view", "four numbers were expected")
            key, root = _key(view[0]), _key(view[1])
            first, count = int(_key(view[2])), int(_key(view[3]))
            if root not in self.storages:
                raise TensorError(f"a storage view is of storage {root}, which is not there")
            numel = self.storages[root].numel
            if first + count > numel:
                raise TensorError(
                    f"a storage view has elements {first:,} to {first + count:,} of a storage of "
                    f"{numel:,}"
                )
            self._see_new(key)
            self.views[key] = (root, first, count)

    def _find_tensors(self, stream: _Stream) -> None:
        for _ in range(_count(stream.value())):
            wanted = "(key, storage key, class) was expected"
            row = _row(stream.value(), 3, "a tensor", wanted, ForeignObject)
            key, storage_key, kind = _key(row[0]), _key(row[1]), row[2]
            if kind.module not in _MODULES or kind.how != "name":
                raise UnsupportedError(
                    f"tensor {key} is of class {shown(kind)}; such tensors are not read yet"
                )
            ndim = stream.integer(4)
            stream.integer(4)  # once the number had eight bytes; what is in these was not cleared
            if not 0 <= ndim <= MAX_NDIM:
                raise too_many_dimensions(f"tensor {key}", ndim)
            numbers = [stream.integer(8) for _ in range(2 * ndim + 1)]
            self._see_new(key)
            self.tensors[key] = _StoredTensor(
                storage_key, tuple(numbers[:ndim]), tuple(numbers[ndim : 2 * ndim]), numbers[-1]
            )

    def _see_new(self, key: str) -> None:
        if key in self.storages or key in self.views or key in self.tensors:
            raise FormatError(f"two values have the key {key}")

    def read(self, make_factory: MakeFactory) -> Contents:
        data = read_bounded(self._members["pickle"], self._limits, "pickle_nbytes")
        factory = make_factory(self.open_storage)
        values = _Values(self, factory)
        # The shortcut would go around these persistent ids.
        table = dataclasses.replace(Rebuilder(factory).table, persistent=values.get, shortcut=None)
        interpreter = Interpreter(data, table, self._limits, record="pickle")
        with ErrorPlace(path=self.name):
            root = interpreter.run()
        names = interpreter.globals
        made = list(self._globals | dict.fromkeys(names))
        foreign = [name for name in made if not table.knows(name)]
        return Contents(root, made, foreign, len(data))

    def pickles(self) -> Iterator[Pickle]:
        spans = [(f"{record}, byte {at:,}", record, at, size) for record, at, size in self._between]
        for record in ("sys_info", "pickle"):
            if record in self._members:
                spans.append((record, record, 0, self._members[record].size))
        for place, record, start, nbytes in spans:
            part = PartSource(self._members[record], start, nbytes, self.name)
            read = functools.partial(read_bounded, part, self._limits, "pickle_nbytes")
            yield Pickle(place, read, is_read=place != "sys_info")

    def check_records(self) -> Iterator[RecordCheck]:
        for key, stored in self.storages.items():
            yield read_record(self.source, self.offsets[key], stored.nbytes, f"storage {key}")
        self.notes = tuple(self._stray_notes())

    def _stray_notes(self) -> Iterator[str]:
        for name, part in self._members.items():
            if name in (*_MEMBERS, "sys_info") or part.size > self._limits.pickle_nbytes:
                continue
            if may_be_pickle(bytes(part.read_at(0, min(part.size, HEAD_NBYTES)))):
                note = stray_note(name, bytes(part.read_at(0, part.size)), self._limits)
                if note is not None:
                    yield note


class _Values:
    """What persistent ids stand for; each is made once."""

    def __init__(self, container: TarContainer, factory: Factory) -> None:
        self._container = container
        self._factory = factory
        self._made: dict[str, Any] = {}
        self._whole: dict[str, BareStorage] = {}

    def get(self, pid: Any) -> Any:
        """Return the tensor, storage or class of a persistent id."""
        if type(pid) is tuple and pid and type(pid[0]) is ForeignObject:
            return pid[0]
        key = _key(pid)
        if key not in self._made:
            stored = self._container.tensors.get(key)
            self._made[key] = self._storage(key) if stored is None else self._tensor(key, stored)
        return self._made[key]

    def _storage(self, key: str) -> BareStorage:
        window = self._container.views.get(key)
        root = key if window is None else window[0]
        whole = self._whole.get(root)
        if whole is None:
            stored = self._container.storages.get(root)
            if stored is None:
                raise PickleError(f"nothing in the file has the key {root}")
            measure = Measure(stored.torch_dtype, stored.nbytes, stored.location)
            storage = self._factory.storage(root, measure)
            whole = self._whole[root] = BareStorage(storage, self._factory, 0, stored.numel)
        if window is None:
            return whole
        return BareStorage(whole.storage, self._factory, *window[1:])

    def _tensor(self, key: str, stored: _StoredTensor) -> Any:
        bare = self._made.get(stored.storage_key)
        if type(bare) is not BareStorage:
            bare = self._made[stored.storage_key] = self._storage(stored.storage_key)
        spec = TensorSpec(
            bare.torch_dtype or "uint8", stored.shape, stored.stride, stored.offset, bare.storage
        )
        check_spec(spec)
        if 0 not in spec.shape:
            last = spec.storage_offset + span_of(spec.shape, spec.stride) - 1
            if last >= bare.count:
                raise TensorError(
                    f"tensor {key} reaches to element {last:,} of a storage of {bare.count:,} "
                    "elements"
                )
        spec.storage_offset += bare.first
        return self._factory.tensor(check_spec(spec))


class _Stream:
    """A member that mixes pickles and bytes, read from its start.

    ``names`` are what the pickles mentioned, ``spans`` where they were: member, first byte, bytes.
    """

    def __init__(self, source: PartSource, record: str, limits: Limits) -> None:
        self._source = source
        self._record = record
        self._limits = limits
        self._table = Table(names=_NAMES)
        self.position = 0
        self.names: dict[Name, None] = {}
        self.spans: list[tuple[str, int, int]] = []

    @property
    def left(self) -> int:
        """Bytes that are still to come."""
        return self._source.size - self.position

    def value(self) -> Any:
        return run_on_more(self._source, self.position, 4096, self._limits, self._run)

    def _run(self, data: bytes) -> Any:
        interpreter = Interpreter(data, self._table, self._limits)
        value = interpreter.run()
        self.spans.append((self._record, self.position, interpreter.position))
        self.names |= dict.fromkeys(interpreter.globals)
        self.position += interpreter.position
        return value

    def integer(self, nbytes: int) -> int:
        raw = self._source.read_at(self.position, nbytes)
        self.position += nbytes
        return int.from_bytes(raw, "little", signed=True)


#: The names in the two members: classes, which mean something in their place only.
_NAMES = frozenset((module, row) for module in _MODULES for row in STORAGE_CLASSES)


def _row(value: Any, length: int, what: str, wanted: str, last: type = object) -> tuple[Any, ...]:
    """Return a tuple of a pickle, whose last item has a type."""
    if type(value) is not tuple or len(value) != length or not isinstance(value[-1], last):
        raise PickleError(f"{what} is {shown(value)}; {wanted}")
    return value


def _count(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 1 << 31:
        raise PickleError(f"a count is {shown(value)}; an int from 0 to 2**31 was expected")
    return value


def _key(value: Any) -> str:
    """Return a key, a number or its digits, as digits: they have a hash that nobody can choose."""
    if type(value) is str and value.isascii() and value.isdigit() and len(value) <= 20:
        value = int(value)
    if type(value) is not int or not 0 <= value < 1 << 64:
        raise PickleError(f"a key is {shown(value)}; an int from 0 to 2**64 was expected")
    return str(value)


def _text(value: Any) -> str:
    if type(value) is not str:
        raise PickleError(f"the location of a storage is {shown(value)}; a string was expected")
    return value


def _dtype_of(kind: Any) -> str:
    row = None
    if type(kind) is ForeignObject and kind.how == "name" and kind.module in _MODULES:
        row = STORAGE_CLASSES.get(kind.name)
    if row is None:
        raise unknown_storage_class("a storage", kind)
    return row.name
