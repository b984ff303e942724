"""Storages whose elements are computed when they are read, block by block.

A block is a run of elements in C order, or of whole rows of the first axis. Its operands are read
into memory that is used again for the next block and stays in the processor's cache; what the
function makes of them is rounded to the dtype of the result and copied to where it is wanted. So a
read may begin and end anywhere, and needs the memory of one block whatever the size of the tensor.

A function gets floats of up to 32 bits as float32, all others as they are, and gives float32 too.
An operand that is computed itself comes as it was before it was rounded (`unrounded`): a chain of
operations is one pass over its sources, and rounds once, at its end.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from torchzip.dtypes import DTYPES
from torchzip.tensors.casts import Cast, CastStorage, is_castable
from torchzip.tensors.chunks import ChunkedStorage
from torchzip.tensors.numpy_dtypes import numpy_dtype
from torchzip.tensors.packing import ElementStorage, elements_of
from torchzip.tensors.specs import Shape, TensorSpec, check_shape, contiguous_stride
from torchzip.tensors.storage import (
    READER_NBYTES,
    BlockReader,
    Bytes,
    MadeStorage,
    Part,
    RangeCrc,
    Reader,
    TensorStorage,
    compare_crcs,
    will_read,
)

Array = NDArray[Any]

#: Elements of a block, and the bytes that those of all operands may take together.
_BLOCK_ELEMENTS = 1 << 16
_BLOCKS_NBYTES = 8 << 20
#: Storages that may be inside one another: to read one is a call inside of a call.
_MOST_DEPTH = 100


class ComputationError(ValueError):
    """A function of a user that raised an error, or made something else than a block."""


@contextlib.contextmanager
def names_tensor(name: str) -> Iterator[None]:
    """Add the name of a tensor to the errors of functions that compute it."""
    try:
        yield
    except ComputationError as error:
        raise ComputationError(f"{name}: {error}") from error.__cause__


class Function(Protocol):
    """Makes a block of a result. One that pickles can be carried out by another process."""

    def __call__(self, blocks: list[Array], first: int, stop: int) -> Array:
        """Return the rows ``first`` to ``stop``, in the dtype that the result is computed in.

        ``blocks`` belong to the function until it returns: it may change them and return one.
        """
        ...


def computing_dtype(torch_dtype: str) -> str:
    """Return the dtype in which tensors of a dtype are computed.

    >>> computing_dtype("bfloat16"), computing_dtype("float64"), computing_dtype("int8")
    ('float32', 'float64', 'int8')
    """
    row = DTYPES[torch_dtype]
    return "float32" if row.kind == "float" and row.itemsize < 4 else torch_dtype


@dataclass(frozen=True, eq=False, repr=False)
class Operand:
    """A tensor that something is computed from.

    Its blocks have the dtype ``computed``. A row of it has the shape ``row``, and stands for
    ``repeat`` rows of the result.
    """

    elements: TensorStorage
    torch_dtype: str
    computed: str
    row: Shape = ()
    repeat: int = 1

    @property
    def row_nbytes(self) -> int:
        return math.prod(self.row) * DTYPES[self.torch_dtype].itemsize

    def rows(self, first: int, stop: int) -> tuple[int, int]:
        """Return which of its rows go with rows of the result."""
        return first // self.repeat, -(-stop // self.repeat)


def operand_of(spec: TensorSpec, computed: str, row: Shape = (), repeat: int = 1) -> Operand:
    """Return a tensor as an operand, as it was before it was rounded."""
    spec = unrounded(spec)
    elements, dtype = elements_of(spec), spec.torch_dtype
    if dtype != computed and is_castable(dtype) and is_castable(computed):
        elements, dtype = CastStorage(elements, dtype, computed), computed
    return Operand(elements, dtype, computed, row, repeat)


class ComputedStorage(MadeStorage):
    """What a function makes of operands: ``rows`` rows of the shape ``row``, in C order.

    It is computed in the dtype ``computed`` and rounded to ``dtype``, as `Cast` rounds. Rows
    without axes are elements, and each can be computed by itself; others are always computed
    in the same blocks, whichever part is read: of ``block_rows``, or as many as fit in the cache.
    """

    def __init__(
        self,
        function: Function,
        operands: Sequence[Operand],
        *,
        dtype: str,
        computed: str,
        rows: int,
        row: Shape = (),
        block_rows: int | None = None,
    ) -> None:
        self.function = function
        self.operands = tuple(operands)
        self.dtype = dtype
        self.computed = computed
        self.rows = rows
        self.row = row
        self.row_nbytes = math.prod(row) * DTYPES[dtype].itemsize
        super().__init__(dtype, rows * self.row_nbytes, [each.elements for each in operands])
        self.block_rows = block_rows or rows_of_block(operands, row)

    def unrounded(self) -> ComputedStorage:
        """Return the same elements in the dtype in which they are computed."""
        if self.dtype == self.computed:
            return self
        return ComputedStorage(
            self.function, self.operands, dtype=self.computed, computed=self.computed,
            rows=self.rows, row=self.row, block_rows=self.block_rows,
        )  # fmt: skip

    def first_block(self, row: int) -> int:
        """Return the row where the block begins that has a row."""
        return row // self.block_rows * self.block_rows if self.row else row

    def parts(self, start: int, stop: int) -> Iterator[Part]:
        row_nbytes = max(self.row_nbytes, 1)
        first, last = self.first_block(start // row_nbytes), -(-stop // row_nbytes)
        if self.row:
            last = min(self.first_block(last + self.block_rows - 1), self.rows)
        return _parts(self.operands, first, last)

    def read_into(self, start: int, out: Bytes) -> None:
        reader = self.reader(start, start + out.nbytes)
        reader.read_into(start, out)
        if out.nbytes == self.nbytes:
            compare_crcs(self.compared(), [[each] for each in reader.crcs()])

    def reader(self, start: int, stop: int, nbytes: int = READER_NBYTES) -> Reader:
        return _ComputedReader(self, start, stop, nbytes)

    def compared(self) -> list[TensorStorage]:
        return _compared(self.operands)


def rows_of_block(operands: Sequence[Operand], row: Shape = ()) -> int:
    """Return how many rows of a result are computed at once."""
    widest = max([math.prod(row), *(math.prod(each.row) for each in operands)])
    room = min(_BLOCK_ELEMENTS, _BLOCKS_NBYTES // (8 * max(len(operands), 1)))
    return max(1, room // max(widest, 1))


def _compared(operands: Iterable[Operand]) -> list[TensorStorage]:
    """Return what is read once with operands, but for those of which rows are repeated."""
    return [
        each for operand in operands if operand.repeat == 1 for each in operand.elements.compared()
    ]


def _parts(operands: Sequence[Operand], first: int, stop: int) -> Iterator[Part]:
    """Yield what is read of files for rows of a result: some of each operand in turn, each once."""
    share = READER_NBYTES // max(len(operands), 1)
    at_once = max(1, share // max((each.row_nbytes for each in operands), default=1))
    done = [0] * len(operands)
    for at in range(first, stop, at_once):
        for number, operand in enumerate(operands):
            begin, end = operand.rows(at, min(at + at_once, stop))
            begin, done[number] = max(begin, done[number]), end
            if begin < end:
                nbytes = operand.row_nbytes
                yield from operand.elements.parts(begin * nbytes, end * nbytes)


def blocks_of(operands: Sequence[Operand], rows: int) -> Iterator[list[Array]]:
    """Yield blocks of the same elements of operands, in order; compare CRCs at the end.

    Their memory is used again for the next.
    """
    at_once = rows_of_block(operands)
    will_read([each.elements for each in operands], _parts(operands, 0, rows))
    share = READER_NBYTES // max(len(operands), 1)
    readers = [OperandReader(operand, 0, rows, share) for operand in operands]
    for first in range(0, rows, at_once):
        stop = min(first + at_once, rows)
        yield [reader.read(first, stop) for reader in readers]
    crcs = [[each] for reader in readers for each in reader.crcs()]
    compare_crcs(_compared(operands), crcs)


class _ComputedReader(BlockReader):
    """Computes block after block."""

    def __init__(self, storage: ComputedStorage, start: int, stop: int, nbytes: int) -> None:
        super().__init__(storage)
        self._computed = storage
        row_nbytes = max(storage.row_nbytes, 1)
        self._stop = -(-stop // row_nbytes)
        first = -(-start // row_nbytes)
        if storage.first_block(first) < first:  # that block is compared by the reader before
            first = storage.first_block(first) + storage.block_rows
        last = self._stop
        if storage.row:
            last = min(storage.first_block(last + storage.block_rows - 1), storage.rows)
        share = nbytes // max(len(storage.operands), 1)
        self._operands = [
            OperandReader(operand, min(first, last), last, share) for operand in storage.operands
        ]
        self._goes_on = nbytes > 0
        self._cast = None
        if storage.computed != storage.dtype:
            self._cast = Cast(storage.computed, storage.dtype)
        self._dtype = numpy_dtype(storage.computed)

    def crcs(self) -> list[RangeCrc]:
        return [each for operand in self._operands for each in operand.crcs()]

    def move(self, start: int, stop: int) -> None:
        storage, row_nbytes = self._computed, self._computed.row_nbytes
        first, asked = storage.first_block(start // row_nbytes), -(-stop // row_nbytes)
        # Of elements no more than will be read; rows are computed in the same blocks each time.
        last = min(first + storage.block_rows, storage.rows)
        if not storage.row:
            last = min(last, max(self._stop if self._goes_on else asked, first + 1))
        self._block = self._block[:0]  # until it is made
        blocks = [operand.read(first, last) for operand in self._operands]
        with np.errstate(all="ignore"):
            made = storage.function(blocks, first, last)
        raw = np.ascontiguousarray(made, self._dtype).reshape(-1).view(np.uint8)
        self._block = raw if self._cast is None else self._cast(raw)
        self._at = first * row_nbytes


class OperandReader:
    """Reads what goes with rows ``first`` to ``stop`` of a result, block by block.

    The memory of a block is used again for the next.
    """

    def __init__(self, operand: Operand, first: int, stop: int, nbytes: int) -> None:
        self._operand = operand
        begin, end = (each * operand.row_nbytes for each in operand.rows(first, stop))
        self._reader = operand.elements.reader(begin, end, nbytes)
        self._from = numpy_dtype(operand.torch_dtype)
        self._raw = np.empty(0, self._from)
        self._values = np.empty(0, numpy_dtype(operand.computed))

    def crcs(self) -> list[RangeCrc]:
        return self._reader.crcs() if self._operand.repeat == 1 else []

    def read(self, first: int, stop: int) -> Array:
        """Return what goes with rows of the result."""
        operand = self._operand
        first, stop = operand.rows(first, stop)
        count = (stop - first) * math.prod(operand.row)
        if self._values.size < count:
            self._values = np.empty(count, self._values.dtype)
        values = self._values[:count]
        is_same = operand.torch_dtype == operand.computed
        if not is_same and self._raw.size < count:
            self._raw = np.empty(count, self._from)
        raw = values if is_same else self._raw[:count]
        self._reader.read_into(first * operand.row_nbytes, raw.view(np.uint8))
        if not is_same:
            values[...] = raw
        return values.reshape(stop - first, *operand.row)


def unrounded(spec: TensorSpec) -> TensorSpec:
    """Return a tensor as it was before it was rounded, if it is computed: in a wider dtype maybe.

    That of views of an expression, and of several put together, are such views too.
    """
    storage = spec.storage
    if isinstance(storage, ComputedStorage):
        return spec.replace(torch_dtype=storage.computed, storage=storage.unrounded())
    if isinstance(storage, ElementStorage):
        inner = unrounded(storage.spec)
        if inner is not storage.spec:
            return spec.replace(torch_dtype=inner.torch_dtype, storage=ElementStorage(inner))
    if isinstance(storage, ChunkedStorage) and storage.depth:  # which is not of a file
        parts = [unrounded(part) for part in storage.tensors]
        wide = max((part.torch_dtype for part in parts), key=lambda each: DTYPES[each].itemsize)
        if wide != spec.torch_dtype:
            made = storage.with_tensors(wide, [_widened(part, wide) for part in parts])
            return spec.replace(torch_dtype=wide, storage=made)
    return spec


def _widened(spec: TensorSpec, wide: str) -> TensorSpec:
    """Return a tensor in a dtype that has a place for all of its elements."""
    if spec.torch_dtype == wide:
        return spec
    storage = CastStorage(elements_of(spec), spec.torch_dtype, wide)
    return fresh_spec(wide, spec.shape, storage)


def fresh_spec(torch_dtype: str, shape: Shape, storage: TensorStorage) -> TensorSpec:
    """Return the tensor that all of a storage is, in C order.

    Raises
    ------
    ValueError
        If there are so many storages inside one another that they could not be read, or no tensor
        has such a shape.
    """
    check_shape(shape, torch_dtype)
    if storage.depth > _MOST_DEPTH:
        raise ValueError(
            f"an expression of more than {_MOST_DEPTH} steps, each on the one before; compute it "
            "by one function with lazy.compute, or save what there is so far"
        )
    return TensorSpec(torch_dtype, shape, contiguous_stride(shape), 0, storage)
