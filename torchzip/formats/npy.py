"""The .npy format of numpy: a header and the elements of one array, which is the whole object."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from torchzip.container import npy
from torchzip.dtypes import DTYPES
from torchzip.errors import TRUNCATED, ArchiveError, ErrorPlace
from torchzip.files.source import Source
from torchzip.formats.base import (
    Contents,
    MakeFactory,
    PlainContainer,
    RecordCheck,
    contiguous_tensor,
    read_record,
    swap_nbytes,
)
from torchzip.tensors.persistent_ids import Factory
from torchzip.tensors.storage import Measure, SpanStorage, TensorStorage

#: The one array of the file, as messages call it.
_KEY = "data"


class NpyContainer(PlainContainer):
    """What ``numpy.save`` writes: one array."""

    format = "npy"
    label = "numpy, one array"
    is_by_name = True
    keeps_root = True
    overhead = "header"
    torch_load = "does not apply"
    torch_reason = "a file of numpy; numpy.load reads it"

    def __init__(self, source: Source) -> None:
        super().__init__(source)
        head = bytes(source.read_at(0, min(source.size, npy.HEADER_NBYTES)))
        self._header = npy.parse_header(head)
        self.offsets = {_KEY: self._header.nbytes}
        nbytes = source.size - self._header.nbytes
        check_nbytes(self._header, nbytes)

    def open_storage(self, key: str, measure: Measure) -> TensorStorage:
        unit = swap_nbytes(measure.torch_dtype or self._header.torch_dtype, self._header.byteorder)
        return SpanStorage(*measure, key, self, None, unit)

    def read(self, make_factory: MakeFactory) -> Contents:
        with ErrorPlace(path=self.name):
            root = array_tensor(make_factory(self.open_storage), _KEY, self._header)
        return Contents(root, [], [], 0)

    def check_records(self) -> Iterator[RecordCheck]:
        start = self._header.nbytes
        yield read_record(self.source, start, self.source.size - start, _KEY)


def array_tensor(factory: Factory, key: str, header: npy.NpyHeader) -> Any:
    """Return what a factory makes of an array, whose storage it asks for by ``key``."""
    return contiguous_tensor(
        factory, key, header.torch_dtype, header.shape, first_is_fastest=header.fortran_order
    )


def check_nbytes(header: npy.NpyHeader, nbytes: int) -> None:
    """Raise ArchiveError unless an array has so many bytes after its header."""
    expected = math.prod(header.shape) * DTYPES[header.torch_dtype].itemsize
    if expected != nbytes:
        more = TRUNCATED if expected > nbytes else "Something was added after it."
        raise ArchiveError(
            f"an array of {header.torch_dtype} and shape {list(header.shape)} takes {expected:,} "
            f"bytes, and {nbytes:,} follow its header. {more}"
        )
