""".pt2 archives: the weights and constants of what ``torch.export.save`` writes.

Three layouts, of which the first is observed (torch 2.13) and the others are what torch 2.13 itself
still loads, confirmed by public descriptions of files of torch 2.1 to 2.7:

* docs/format.md, section 11.4: a record ``archive_format``, a program ``models/<name>.json`` for
  each model, and for its weights and its constants a config, a JSON object that lays tensors over
  records of raw bytes. (`Pt2Container`)
* The same with ``data/weights/<name>.pt`` and ``data/constants/<name>.pt`` in place of the configs:
  files of ``torch.save``, each a dict.
* Torch 2.1 to 2.7: an archive of Python's ``zipfile``, whose records lie in no folder:
  ``serialized_exported_program.json``, then ``serialized_state_dict.pt`` and
  ``serialized_constants.pt``, files of ``torch.save`` as well (in 2.1 with the suffix ``.json``).
  Its ``version`` is that of the program's schema. (`OldPt2Container`)

The root is a dict: the names of a model's weights, then those of its constants. An archive of
several models is a dict of such dicts. Programs and what AOTInductor compiled are not read. Sample
inputs are files of ``torch.save`` that ``torch.export.load`` runs without asking; the names in them
are read, and in every other record that holds such a file or a pickle by its name.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any, NoReturn

import numpy as np

from torchzip.container.json_objects import parse_json
from torchzip.container.zip_reader import ZipReader
from torchzip.dtypes import PT2
from torchzip.errors import (
    ArchiveError,
    ErrorPlace,
    FormatError,
    LimitError,
    TensorError,
    UnsupportedError,
    shown,
)
from torchzip.files.opening import open_source
from torchzip.files.source import PartSource, Source
from torchzip.formats.base import (
    Contents,
    MakeFactory,
    Opener,
    Pickle,
    measured_by,
)
from torchzip.formats.zip import OF_ANY_RELEASE, ZipContainer
from torchzip.limits import Limits, is_number
from torchzip.tensors.persistent_ids import Factory
from torchzip.tensors.script import ScriptRebuilder
from torchzip.tensors.specs import TensorSpec, check_spec
from torchzip.tensors.storage import ArrayStorage, Measure, TensorStorage

_STRIDED = 7
#: How records begin that are pickles of Python, outside of any archive.
_OPAQUE = "opaque_obj_"
_OLD_CONSTANTS = "serialized_constants.json"
#: Configs together are smaller than the file, unless it is very small: they are in it as text.
_CONFIGS_NBYTES = 2 << 20


class _Pt2Archive(ZipContainer):
    """What the layouts have in common."""

    format = "pt2"
    label = "torch.export, .pt2"
    has_code = True
    keeps_root = False
    can_be_shard = False
    torch_load = "does not apply"
    torch_reason = "an archive of torch.export; torch.export.load reads it"

    def __init__(self, archive: ZipReader, opener: Opener) -> None:
        super().__init__(archive, opener.limits)
        self._opener = opener
        #: Records with a pickle or a file with pickles, and those with the bytes of a tensor, as
        #: far as they were read.
        self.read_records: set[str] = set()
        self.payloads: set[str] = set()

    def _is_pickled(self, record: str) -> bool:
        """Return whether a record is a file of ``torch.save`` or a pickle, by its name."""
        raise NotImplementedError

    def pickles(self) -> Iterator[Pickle]:
        for record in self.archive:
            pickled = record in self.read_records or self._is_pickled(record)
            if pickled and self.archive.size_of(record)[0]:
                yield from self._pickles_of(record)

    def _pickles_of(self, record: str) -> Iterator[Pickle]:
        is_read = record in self.read_records
        if record.rpartition("/")[2].startswith(_OPAQUE):
            yield self._pickle(record, is_read=is_read)
            return
        source: Source | None = self.part(record)
        if source is None:
            source = open_source(io.BytesIO(self.archive.read(record)))
        for each in self._opener.of_source(source).pickles():
            yield each._replace(place=f"{record}: {each.place}", is_read=is_read and each.is_read)

    def part(self, record: str) -> PartSource | None:
        """Return the bytes of a record as a file; None if they are deflated."""
        span = self.archive.stored_span(record)
        return None if span is None else PartSource(self.source, *span, f"{self.name}: {record}")

    def _used_records(self) -> set[str]:
        """Return the records that configs call bytes of tensors."""
        measured_by(self.read)
        return self.payloads | OF_ANY_RELEASE

    def open_payload(self, record: str, measure: Measure) -> TensorStorage:
        """Return the storage in a record; where that is empty, as many zeros as are wanted."""
        if measure.nbytes and not self.archive.size_of(record)[0]:
            return ArrayStorage(np.zeros(measure.nbytes, np.uint8), measure.torch_dtype)
        return self.open_record(record, measure)


class Pt2Container(_Pt2Archive):
    """What ``torch.export.save`` and ``package_pt2`` write since 2.8.

    Names that share a record share a storage. A record is read as one dtype; for a name that gives
    it another, it is a storage of its own. An empty record is zeros of the size that is given (an
    export of fake tensors): one element, laid out with strides of 0. Tensor subclasses and custom
    objects, which are pickled, are what a file of ``torch.save`` would give for them.
    """

    needed_record = "archive_format"

    def __init__(self, archive: ZipReader, opener: Opener) -> None:
        super().__init__(archive, opener)
        for record, what, wanted in (
            ("archive_format", "the archive is of format", b"pt2"),
            ("archive_version", "the version of the .pt2 archive is", b"0"),
        ):
            found = self._text(record).strip() if record in archive else wanted
            if found != wanted:
                raise UnsupportedError(
                    f"{what} {shown(found)}; {wanted!r} was expected", record=record
                )
        self._models = [
            record.removeprefix("models/").removesuffix(".json")
            for record in archive
            if record.startswith("models/") and record.endswith(".json")
        ]
        if not self._models:
            raise UnsupportedError(
                "a .pt2 archive without an exported program (no models/*.json); what AOTInductor "
                "compiled is not read"
            )

    def _is_pickled(self, record: str) -> bool:
        folder, _, base = record.rpartition("/")
        return folder == "data/sample_inputs" or (
            folder in ("data/weights", "data/constants")
            and (base.endswith(".pt") or base.startswith(("custom_obj_", _OPAQUE)))
        )

    def read(self, make_factory: MakeFactory) -> Contents:
        reader = _Payloads(self, make_factory, self._limits)
        models = {name: reader.model(name) for name in self._models}
        root: Any = next(iter(models.values())) if len(models) == 1 else models
        return reader.contents(root)


class OldPt2Container(_Pt2Archive):
    """What ``torch.export.save`` wrote from 2.1 to 2.7: a program and files of ``torch.save``."""

    needed_record = "serialized_exported_program.json"

    def _check_version(self) -> None:
        """Nothing: the record says which schema the program has, which is not read."""

    def _is_pickled(self, record: str) -> bool:
        return record.endswith(".pt") or record in ("serialized_state_dict.json", _OLD_CONSTANTS)

    def read(self, make_factory: MakeFactory) -> Contents:
        reader = _Payloads(self, make_factory, self._limits)
        root: dict[str, Any] = {}
        for part in ("state_dict", "constants"):
            records = [f"serialized_{part}.pt", f"serialized_{part}.json"]
            found = [record for record in records if record in self.archive]
            if found:
                reader.add_file(root, found[0])
            elif part == "state_dict":
                raise ArchiveError(
                    f"a .pt2 archive with neither {' nor '.join(records)}", path=self.name
                )
        return reader.contents(root)


class _ScriptObject(ZipContainer):
    """A custom object of TorchScript, pickled by itself in C++ (``custom_obj_<i>``)."""

    rebuilder_type = ScriptRebuilder


class _Payloads:
    """Reads the weights and constants of an archive's models."""

    def __init__(self, archive: _Pt2Archive, make_factory: MakeFactory, limits: Limits) -> None:
        self._archive = archive
        self._zip = archive.archive
        self._limits = limits
        self._make_factory = make_factory
        self._factory: Factory = make_factory(archive.open_payload)
        self._storages: dict[tuple[str, str, int], TensorStorage] = {}
        self._files: list[Contents] = []
        self._configs_nbytes = 0
        self._bound = min(limits.header_nbytes, max(archive.source.size, _CONFIGS_NBYTES))

    def contents(self, root: Any) -> Contents:
        """Return the whole, with what the files inside it mentioned."""
        made = Contents(root, [], [], self._configs_nbytes)
        made.add(self._files)
        return made

    def model(self, name: str) -> dict[str, Any]:
        """Return the weights and the constants of a model by their names."""
        made: dict[str, Any] = {}
        for kind in ("weights", "constants"):
            file = f"data/{kind}/{name}.pt"
            if file in self._zip:
                self.add_file(made, file)
            else:
                self._add_config(made, kind, f"data/{kind}/{name}_{kind}_config.json")
        return made

    def add_file(self, made: dict[str, Any], record: str) -> None:
        """Add the items of the dict in a file of ``torch.save``."""
        root = self._file(record)
        with ErrorPlace(path=self._archive.name, record=record):
            if not isinstance(root, dict) or not all(type(name) is str for name in root):
                raise FormatError(
                    f"the object is {shown(root)}; a dict from names to tensors was expected"
                )
            for name, value in root.items():
                _add(made, name, value)

    def _file(self, record: str, kind: type[ZipContainer] = ZipContainer) -> Any:
        """Return the object of a checkpoint in a record; an empty record holds an empty dict."""
        if not self._zip.size_of(record)[0]:
            return {}
        self._archive.read_records.add(record)
        part = self._archive.part(record)
        if part is None:
            raise UnsupportedError(
                "a deflated record with a file of torch.save in it; make the archive "
                "again with stored records",
                path=self._archive.name,
                record=record,
            )
        inner = kind(ZipReader(part, self._limits), self._limits)
        self._files.append(inner.read(self._make_factory))
        return self._files[-1].root

    def _add_config(self, made: dict[str, Any], kind: str, config: str) -> None:
        with ErrorPlace(path=self._archive.name, record=config):
            payloads = self._parse(config)
            for name in payloads:
                what = shown(name)
                payload = _get(payloads, name, dict, "the config")
                record = f"data/{kind}/{_get(payload, 'path_name', str, what)}"
                is_param = _get(payload, "is_param", bool, what)
                if _get(payload, "use_pickle", bool, what):
                    value = self._pickled(record)
                else:
                    meta = _get(payload, "tensor_meta", dict, what)
                    value = self._tensor(record, what, meta, is_param)
                _add(made, name, value)

    def _parse(self, record: str) -> dict[str, Any]:
        nbytes = self._zip.size_of(record)[0]
        self._configs_nbytes += nbytes
        if self._configs_nbytes > self._bound:
            raise LimitError("header_nbytes", self._configs_nbytes, self._bound)
        whole = parse_json(self._zip.read(record), "the config", self._archive.name)
        config: dict[str, Any] = _get(whole, "config", dict, "the JSON")
        return config

    def _pickled(self, record: str) -> Any:
        """Return a tensor subclass, a custom object of C++, or one of Python."""
        base = record.rpartition("/")[2]
        if base.startswith(_OPAQUE):
            self._archive.read_records.add(record)
            self._files.append(self._archive.run_pickle(record, _no_storage, self._make_factory))
            return self._files[-1].root
        return self._file(record, _ScriptObject if base.startswith("custom_obj_") else ZipContainer)

    def _tensor(self, record: str, what: str, meta: dict[str, Any], is_param: bool) -> Any:
        number = _get(meta, "dtype", int, what)
        if number not in PT2:
            raise UnsupportedError(f"{what}: dtype number {number}, which torch 2.13 does not have")
        torch_dtype, itemsize = PT2[number][:2]
        layout = _get(meta, "layout", int, what)
        if layout != _STRIDED:
            raise UnsupportedError(
                f"{what}: layout number {layout}; {_STRIDED} (strided) was expected"
            )
        shape, stride = (
            tuple([_as_int(value, key, what) for value in _get(meta, key, list, what)])
            for key in ("sizes", "strides")
        )
        offset = _as_int(meta.get("storage_offset"), "storage_offset", what)
        requires_grad = _get(meta, "requires_grad", bool, what)
        device = _get(meta, "device", dict, what)
        location = _get(device, "type", str, what)
        if device.get("index") is not None:
            location += f":{_get(device, 'index', int, what)}"
        self._archive.payloads.add(record)
        nbytes = self._zip.size_of(record)[0]
        if not nbytes and 0 not in shape:
            nbytes, stride, offset = itemsize, (0,) * len(shape), 0
        if nbytes % itemsize:
            raise TensorError(
                f"{what}: record {shown(record)} has {nbytes:,} bytes, which are not a "
                f"whole number of {torch_dtype}"
            )
        key = (record, torch_dtype, nbytes)
        storage = self._storages.get(key)
        if storage is None:
            measure = Measure(torch_dtype, nbytes, location)
            storage = self._factory.storage(record, measure)
            self._storages[key] = storage
        spec = TensorSpec(
            torch_dtype, shape, stride, offset, storage, requires_grad and not is_param
        )
        tensor = self._factory.tensor(check_spec(spec))
        return self._factory.parameter(tensor, requires_grad, None) if is_param else tensor


def _add(made: dict[str, Any], name: str, value: Any) -> None:
    if name in made:
        raise FormatError(f"{shown(name)} is both a weight and a constant")
    made[name] = value


def _no_storage(key: str, measure: Measure) -> NoReturn:
    raise FormatError(f"a pickle without storages mentions storage {shown(key)}")


_WANTED: dict[type, str] = {
    str: "a string", bool: "true or false", int: "a number", dict: "an object", list: "a list",
}  # fmt: skip


def _get(fields: dict[str, Any], key: str, kind: type, what: str) -> Any:
    """Return a field of a JSON object, of one of these types."""
    value = fields.get(key)
    if type(value) is not kind or value == "" or (kind is int and not is_number(value)):
        raise FormatError(f"{what}: {key} is {shown(value)}; {_WANTED[kind]} was expected")
    return value


def _as_int(value: Any, key: str, what: str) -> int:
    """Return a number that is written as ``{"as_int": n}``."""
    if isinstance(value, dict) and "as_expr" in value:
        raise UnsupportedError(f"{what}: {key} has a symbolic size; numbers are read")
    found: Any = value.get("as_int") if isinstance(value, dict) else None
    if not is_number(found):
        raise FormatError(f'{what}: {key} has {shown(value)}; {{"as_int": number}} was expected')
    return found
