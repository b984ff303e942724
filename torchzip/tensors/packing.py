"""The elements of a tensor in C order, as a storage of their own."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

import numpy as np

from torchzip.dtypes import DTYPES
from torchzip.tensors.casts import whole_items
from torchzip.tensors.numpy_dtypes import numpy_dtype
from torchzip.tensors.specs import Shape, TensorSpec, is_contiguous, read_view, resolve_bits
from torchzip.tensors.storage import BLOCK_NBYTES, Bytes, TensorStorage, fill_from

#: A strided tensor is gathered in pieces of this size: large enough that a transposed
#: one is read in runs of kilobytes.
_GATHER_NBYTES = 32 << 20


class ElementStorage(TensorStorage):
    """What a tensor holds, without what else is in its storage, in C order.

    Conj and neg are carried out.
    """

    def __init__(self, spec: TensorSpec) -> None:
        self.spec = spec
        self._element_nbytes = DTYPES[spec.torch_dtype].itemsize
        self.nbytes = spec.numel * self._element_nbytes
        self.torch_dtype = spec.torch_dtype if DTYPES[spec.torch_dtype].storage_class else None
        self.location = spec.storage.location
        self.record = spec.storage.record
        self._contiguous = is_contiguous(spec.shape, spec.stride)

    @property
    def start(self) -> int:
        """The byte of the tensor's storage at which the tensor begins."""
        return self.spec.storage_offset * self._element_nbytes

    @property
    def is_range(self) -> bool:
        """Whether the elements are bytes of the tensor's storage as they are."""
        return self._contiguous and not (self.spec.conj or self.spec.neg)

    def made_of(self) -> Iterable[TensorStorage]:
        return (self.spec.storage,)

    def read_into(self, start: int, out: Bytes) -> None:
        fill_from(self.blocks(), start, out)

    def blocks(self, nbytes: int = BLOCK_NBYTES) -> Iterator[Bytes]:
        if not self.nbytes:
            return
        spec = self.spec
        if not self._contiguous:
            yield from self._gathered()
            return
        blocks = self._range(nbytes)
        if self.is_range:
            yield from blocks
            return
        dtype = numpy_dtype(spec.torch_dtype)
        for block in whole_items(blocks, self._element_nbytes):
            yield resolve_bits(block.view(dtype), spec).view(np.uint8)

    def _range(self, nbytes: int) -> Iterator[Bytes]:
        """Yield the bytes of a contiguous tensor."""
        storage = self.spec.storage
        start = self.start
        stop = start + self.nbytes
        if (start, stop) == (0, storage.nbytes):
            yield from storage.checked_blocks(nbytes)
        elif storage.random_access:
            buffer = np.empty(min(nbytes, self.nbytes), np.uint8)
            for at in range(start, stop, nbytes):
                block = buffer[: min(nbytes, stop - at)]
                storage.read_into(at, block)
                yield block
        else:
            at = 0
            for block in storage.blocks(nbytes):
                part = block[max(0, start - at) : max(0, stop - at)]
                if part.size:
                    yield part
                at += block.size

    def _gathered(self) -> Iterator[Bytes]:
        """Yield the bytes of a strided tensor, gathered piece by piece along its outer axes."""
        spec = self.spec
        dtype = numpy_dtype(spec.torch_dtype)
        if not spec.storage.random_access:
            pieces = iter([(spec.shape, spec.storage_offset)])
        else:
            pieces = _pieces(spec.shape, spec.stride, spec.storage_offset, dtype.itemsize)
        for shape, offset in pieces:
            stride = spec.stride[len(spec.shape) - len(shape) :]
            array = np.ascontiguousarray(read_view(spec, shape, stride, offset))
            yield array.reshape(-1).view(np.uint8)


def _pieces(shape: Shape, stride: Shape, offset: int, itemsize: int) -> Iterator[tuple[Shape, int]]:
    """Cut a tensor along its outer axes: (shape of the inner axes, storage offset)."""
    row = math.prod(shape[1:], start=itemsize)
    if not shape or row * shape[0] <= _GATHER_NBYTES:
        yield shape, offset
    elif row > _GATHER_NBYTES:
        for index in range(shape[0]):
            yield from _pieces(shape[1:], stride[1:], offset + index * stride[0], itemsize)
    else:
        rows = _GATHER_NBYTES // row
        for first in range(0, shape[0], rows):
            count = min(rows, shape[0] - first)
            yield (count, *shape[1:]), offset + first * stride[0]
