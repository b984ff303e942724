"""The .npz format of numpy, a zip with a .npy for each array (docs/format.md, section 11.11)."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

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


class _Array(NamedTuple):
    """A .npy file in the archive. The CRC is that of its data, or 0."""

    record: str
    header: npy.NpyHeader
    crc: int


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
        self._arrays: dict[str, _Array] = {}
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
        if name in self._arrays:
            raise ArchiveError(f"two arrays are called {shown(name)}")
        if crc:
            crc ^= crc32_combine(crc32(head[: header.nbytes]), 0, nbytes - header.nbytes)
        self._arrays[name] = _Array(record, header, crc)
        self.offsets[name] = at + header.nbytes

    def open_storage(self, key: str, measure: Measure) -> TensorStorage:
        record, header, crc = self._arrays[key]
        unit = swap_nbytes(measure.torch_dtype or header.torch_dtype, header.byteorder)
        if self.archive.size_of(record)[2] == STORED:
            return SpanStorage(*measure, key, self, crc or None, unit)
        return StreamStorage(
            *measure, inflate=partial(self._inflate, record, header.nbytes), crc=crc or None,
            swap_nbytes=unit, record=record,
        )  # fmt: skip

    def _inflate(self, record: str, left: int) -> Iterator[bytes]:
        """Yield the data of a deflated array, which begins after ``left`` bytes."""
        for block in self.archive.inflate(record):
            if left < len(block):
                yield block[left:]
            left = max(0, left - len(block))

    def read(self, make_factory: MakeFactory) -> Contents:
        factory = make_factory(self.open_storage)
        root: dict[str, Any] = {}
        for name, array in self._arrays.items():
            with ErrorPlace(path=self.name, record=array.record):
                root[name] = array_tensor(factory, name, array.header)
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
