"""The zip format of ``torch.save`` since 1.6: a pickle, and a record for each storage."""

from __future__ import annotations

import functools
from collections.abc import Iterator

import numpy as np

from torchzip.container.zip_layout import STORED
from torchzip.container.zip_reader import ZipReader
from torchzip.errors import ArchiveError, ErrorPlace, TensorError, listed, shown
from torchzip.files.crc import crc32, wrong_crc
from torchzip.formats.base import (
    Contents,
    FileContainer,
    Format,
    MakeFactory,
    Pickle,
    RecordCheck,
    measured_by,
    read_blocks,
    read_pickle,
    swap_nbytes,
)
from torchzip.formats.pickled import HEAD_NBYTES, may_be_pickle, stray_note
from torchzip.limits import Limits
from torchzip.tensors.rebuild import Rebuilder
from torchzip.tensors.storage import (
    Measure,
    OpenStorage,
    SpanStorage,
    StorageOpener,
    StreamStorage,
    TensorStorage,
)


class RecordOpener(StorageOpener):
    """Opens the storages in the records ``data/<key>``."""

    def __init__(self, container: ZipContainer) -> None:
        self._open = container.open_record
        self.many = container.open_storages

    def __call__(self, key: str, measure: Measure) -> TensorStorage:
        return self._open(f"data/{key}", measure)


def checked_blocks(archive: ZipReader, name: str) -> Iterator[bytes | memoryview]:
    """Yield the bytes of a record in order; raise ArchiveError at the end if its CRC is another."""
    span, crc = archive.stored_span(name), archive.entry(name).crc
    found = 0
    for block in archive.inflate(name) if span is None else read_blocks(archive.source, *span):
        yield block
        if crc:
            found = crc32(block, found)
    if crc and found != crc:
        raise wrong_crc(found, crc, name, archive.source.name)


OF_ANY_RELEASE = frozenset(["data.pkl", "version", ".data/version", ".data/serialization_id"])


class ZipFormat(Format):
    """What ``torch.save`` writes since 1.6, whole or damaged."""

    format = "zip"
    label = "PyTorch, zip"
    has_crcs = True
    keeps_root = True
    can_be_shard = True


class ZipContainer(ZipFormat, FileContainer):
    """What ``torch.save`` writes since 1.6, and whatever was zipped again."""

    pickle_record = "data.pkl"
    #: What an archive of this format must have.
    needed_record = pickle_record
    rebuilder_type: type[Rebuilder] = Rebuilder

    def __init__(self, archive: ZipReader, limits: Limits) -> None:
        super().__init__(archive.source)
        self._limits = limits
        self.archive = archive
        #: Records that begin like pickles, as far as they were checked.
        self._suspects: list[str] = []
        if self.needed_record not in archive:
            raise ArchiveError(
                f"a zip archive without {self.needed_record} is not a checkpoint; it has "
                f"{listed(list(archive))}",
                path=self.name,
            )
        with ErrorPlace(path=self.name):
            self._check_version()
            self._byteorder = self._read_byteorder()

    def _text(self, name: str) -> bytes:
        return self.archive.read(name, limit="text_nbytes")

    def _check_version(self) -> None:
        name = ".data/version" if ".data/version" in self.archive else "version"
        text = self._text(name).strip()
        digits = text[: len(text) - len(text.lstrip(b"0123456789"))]
        if not digits or not 1 <= int(digits) <= 10:
            raise ArchiveError(
                f"the format version is {shown(text, 20)}; 1 to 10 was expected", record=name
            )

    def _read_byteorder(self) -> str:
        if "byteorder" not in self.archive:
            # Releases before 2.1 wrote no such record. Where its name is damaged in the directory,
            # it is right beside its bytes: one bit must not byte-swap every number.
            for name in self.archive:
                if not name.startswith("data/") and name not in OF_ANY_RELEASE:
                    self.archive.data_offset(name)
            return "little"
        text = self._text("byteorder")
        if text not in (b"little", b"big"):
            raise ArchiveError(
                f"the byte order is {shown(text, 20)}; b'little' or b'big' was expected",
                record="byteorder",
            )
        return text.decode()

    def open_record(self, name: str, measure: Measure) -> TensorStorage:
        """Return the storage in a record, which must have its size."""
        nbytes, crc, method = self.archive.size_of(name)
        if nbytes != measure.nbytes:
            key = name.rpartition("/")[2]
            raise TensorError(
                f"storage {key} has {nbytes:,} bytes in the archive and {measure.nbytes:,} in the "
                "pickle",
                record=name,
            )
        unit = swap_nbytes(measure.torch_dtype, self._byteorder)
        if method == STORED:
            return SpanStorage(*measure, name, self.archive, crc or None, unit)
        self.archive.check_ratio(name)
        return StreamStorage(
            *measure,
            inflate=functools.partial(self.archive.inflate, name),
            crc=crc or None, swap_nbytes=unit, record=name,
        )  # fmt: skip

    def open_storages(
        self, keys: list[str], measures: list[Measure], which: list[int]
    ) -> list[TensorStorage] | None:
        """Return what `open_record` does for each of many keys; None if that is for it to do."""
        nbytes = np.array([measure.nbytes for measure in measures])[which]
        crcs = self.archive.crcs_of(keys, nbytes)
        if crcs is None:
            return None
        archive, order = self.archive, self._byteorder
        fields = [
            (each.torch_dtype, each.nbytes, each.location, swap_nbytes(each.torch_dtype, order))
            for each in measures
        ]
        return [
            SpanStorage(torch_dtype, size, location, "data/" + key, archive, crc or None, unit)
            for key, crc, (torch_dtype, size, location, unit) in zip(
                keys, crcs, [fields[place] for place in which], strict=True
            )
        ]

    def read(self, make_factory: MakeFactory) -> Contents:
        return self.run_pickle(self.pickle_record, RecordOpener(self), make_factory)

    def run_pickle(
        self, record: str, open_storage: OpenStorage, make_factory: MakeFactory
    ) -> Contents:
        """Return what the pickle in a record holds."""
        return read_pickle(
            self.archive.read(record), open_storage, make_factory, self._limits,
            path=self.name, record=record, rebuilder_type=self.rebuilder_type,
        )  # fmt: skip

    def pickles(self) -> Iterator[Pickle]:
        yield self._pickle(self.pickle_record)

    def _pickle(self, name: str, *, is_read: bool = True) -> Pickle:
        return Pickle(name, functools.partial(self.archive.read, name), is_read)

    def _used_records(self) -> set[str]:
        """Return the records with bytes of tensors, and others that are not pickles."""
        return {f"data/{key}" for each in measured_by(self.read) for key in each} | OF_ANY_RELEASE

    def _stray_notes(self) -> Iterator[str]:
        """Yield what is to be said of records that look like pickles and that nothing declares."""
        # A pickle in an archive inside a record has its place after that record's name.
        places = [each.place for each in self.pickles()]
        known = {*places, *(place.partition(": ")[0] for place in places)}
        suspects = [name for name in self._suspects if name not in known]
        known = self._used_records() if suspects else known
        for name in suspects:
            if name not in known:
                note = stray_note(name, self.archive.read(name), self._limits)
                if note is not None:
                    yield note

    def check_record(self, name: str) -> RecordCheck:
        """Read one record from end to end and compare its CRC."""
        entry = self.archive.entry(name)
        is_first = entry.nbytes <= self._limits.pickle_nbytes
        for block in checked_blocks(self.archive, name):
            if is_first and may_be_pickle(bytes(block[:HEAD_NBYTES])):
                self._suspects.append(name)
            is_first = False
        return RecordCheck(name, entry.nbytes, bool(entry.crc) or not entry.nbytes)

    def check_records(self) -> Iterator[RecordCheck]:
        self.source.will_read([(self.source, 0, self.source.size)])
        self._suspects.clear()
        for name in self.archive:
            yield self.check_record(name)
        self.notes = tuple(dict.fromkeys([*self.notes, *self._stray_notes()]))
