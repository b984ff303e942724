"""The .npz format of numpy, a zip with a .npy for each array (docs/format.md, section 11.11)."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

from torchzip.container import npy
from torchzip.container.npz import SUFFIX, UTF8
from torchzip.container.zip_layout import STORED
from torchzip.container.zip_reader import ZipReader
from torchzip.errors import ArchiveError, ErrorPlace, listed, shown
from torchzip.files.crc import crc32, crc32_combine
from torchzip.formats.base import (
    Contents,
    MakeFactory,
    PlainContainer,
    RecordCheck,
    swap_nbytes,
)
from torchzip.formats.npy import array_tensor, check_nbytes
from torchzip.formats.zip import checked_blocks
from torchzip.tensors.storage import Measure, SpanStorage, StreamStorage, TensorStorage


class NpzContainer(PlainContainer):
    """What ``numpy.savez`` and ``savez_compressed`` write: arrays by their names."""

    format = "npz"
    label = "numpy, zip"
    is_by_name = True
    keeps_root = True
    can_be_shard = True
    overhead = "headers"
    torch_load = "does not apply"
    torch_reason = "a file of numpy; numpy.load reads it"

    def __init__(self, archive: ZipReader) -> None:
        super().__init__(archive.source)
        self.archive = archive
        others = [name for name in archive if not name.endswith(SUFFIX)]
        if others:
            raise ArchiveError(
                f"an archive of .npy files that has {listed(others)} as well; arrays alone were "
                "expected"
            )
        self.offsets = {}
        self._headers: dict[str, npy.NpyHeader] = {}
        self._records: dict[str, str] = {}
        #: The CRCs of the data, which follow from those of the records and of the headers.
        self._crcs: dict[str, int] = {}
        for record in archive:
            with ErrorPlace(path=self.name, record=record):
                self._add(record)

    def _add(self, record: str) -> None:
        nbytes, crc, method = self.archive.size_of(record)
        if method == STORED:
            at = self.archive.data_offset(record)
            head = bytes(self.source.read_at(at, min(nbytes, npy.USUAL_NBYTES)))
            needed = min(nbytes, npy.end_of_header(head), npy.HEADER_NBYTES)
            if needed > len(head):
                head = bytes(self.source.read_at(at, needed))
        else:
            at = 0
            self.archive.check_ratio(record)
            head = b""
            for block in self.archive.inflate(record):
                head += block[: npy.HEADER_NBYTES]
                if len(head) >= npy.HEADER_NBYTES:
                    break
        header = npy.parse_header(head)
        check_nbytes(header, nbytes - header.nbytes)
        name = _name_of(record, is_utf8=bool(self.archive.entry(record).flags & UTF8))
        if name in self._headers:
            raise ArchiveError(f"two arrays are called {shown(name)}")
        self._records[name] = record
        self._headers[name] = header
        self.offsets[name] = at + header.nbytes
        if crc:
            before = crc32(head[: header.nbytes])
            self._crcs[name] = crc ^ crc32_combine(before, 0, nbytes - header.nbytes)

    def open_storage(self, key: str, measure: Measure) -> TensorStorage:
        header, record = self._headers[key], self._records[key]
        unit = swap_nbytes(measure.torch_dtype or header.torch_dtype, header.byteorder)
        crc = self._crcs.get(key)
        if self.archive.size_of(record)[2] == STORED:
            return SpanStorage(*measure, key, self, crc, unit)
        return StreamStorage(
            *measure, inflate=partial(self._inflate, key), crc=crc, swap_nbytes=unit, record=record
        )

    def _inflate(self, key: str) -> Iterator[bytes]:
        """Yield the data of a deflated array."""
        left = self._headers[key].nbytes
        for block in self.archive.inflate(self._records[key]):
            if left < len(block):
                yield block[left:]
            left = max(0, left - len(block))

    def read(self, make_factory: MakeFactory) -> Contents:
        factory = make_factory(self.open_storage)
        root: dict[str, Any] = {}
        for name, header in self._headers.items():
            with ErrorPlace(path=self.name, record=self._records[name]):
                root[name] = array_tensor(factory, name, header)
        return Contents(root, [], [], 0)

    def check_records(self) -> Iterator[RecordCheck]:
        self.source.will_read([(self.source, 0, self.source.size)])
        for record in self.archive:
            for _ in checked_blocks(self.archive, record):
                pass
            nbytes, crc, _ = self.archive.size_of(record)
            yield RecordCheck(record, nbytes, bool(crc))


def _name_of(record: str, *, is_utf8: bool) -> str:
    """Return the name of an array, as Python's zipfile decodes that of its record.

    >>> _name_of("w.npy", is_utf8=False)
    'w'
    """
    raw = record.encode("latin-1")
    name = raw.decode("utf-8", "surrogateescape") if is_utf8 else raw.decode("cp437")
    return name.removesuffix(SUFFIX)
