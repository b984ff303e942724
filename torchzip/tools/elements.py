"""Whether two tensors hold the same elements, block by block, in bounded memory.

Elements are compared by value: 0.0 is -0.0, and NaN is NaN whatever its bits. A bool is true if
its byte is not 0. Dtypes that numpy cannot calculate with are compared by their bits.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from torchzip.dtypes import DTYPES
from torchzip.errors import ErrorPlace, UnsupportedError
from torchzip.tensors.casts import CastStorage
from torchzip.tensors.gguf_blocks import DECODED
from torchzip.tensors.numpy_dtypes import complex_values, numpy_dtype
from torchzip.tensors.packing import ElementStorage
from torchzip.tensors.specs import TensorSpec, contiguous_stride
from torchzip.tensors.storage import Bytes, TensorStorage

Array = NDArray[Any]

#: Tensors may show each byte of their storages so many times, and that much beyond.
_MOST_OVERLAP = 64
_MOST_BEYOND = 1 << 30


@dataclass(frozen=True, slots=True)
class ElementDifference:
    """Elements that differ.

    ``max_abs`` is the largest difference of two numbers, an int for ints; None if there is none (a
    NaN on one side, bools, raw bits). ``max_rel`` is the largest in proportion to the number of the
    second tensor, where that is not 0. ``mean_abs`` is the mean difference of all elements, equal
    ones included. ``nans`` counts those that are NaN on one side only, ``first`` is the index of
    the first that differs.
    """

    count: int
    max_abs: float | None
    nans: int
    first: tuple[int, ...]
    max_rel: float | None = None
    mean_abs: float | None = None


@dataclass(frozen=True, slots=True)
class Tolerance:
    """How far numbers may be apart that count as equal: ``atol + rtol * abs(b)``, as in numpy."""

    atol: float = 0
    rtol: float = 0

    def __post_init__(self) -> None:
        for name in ("atol", "rtol"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise TypeError(f"{name} is a number, not {type(value).__name__}")
            if not 0 <= value < math.inf:
                raise ValueError(f"{name}={value}; a number from 0 on was expected")

    def allows(self, distances: Array, b: Array) -> Array:
        """Return which distances from numbers of the magnitudes ``b`` are small enough."""
        close: Array = distances <= self.atol + self.rtol * b
        return close & np.isfinite(distances)

    def __bool__(self) -> bool:
        return bool(self.atol or self.rtol)


class Compared(NamedTuple):
    """How the elements of two tensors differ, None if in nothing.

    ``same_bits`` and ``is_close`` say of those that do not differ whether all bits are the same,
    and whether they are equal because of a tolerance only.
    """

    difference: ElementDifference | None
    same_bits: bool
    is_close: bool = False


class Work:
    """How many bytes a comparison may go over.

    A few bytes of a file can describe thousands of tensors, each of them as large as can be, over
    one small storage. ``tell`` is called with the bytes that were gone over.
    """

    def __init__(
        self, stored_nbytes: int, tell: Callable[[int], None] = lambda nbytes: None
    ) -> None:
        self._left = _MOST_OVERLAP * stored_nbytes + _MOST_BEYOND
        self.tell = tell

    def charge(self, spec: TensorSpec, nbytes: int, path: str | None = None) -> None:
        """Take the bytes of a tensor off what is left; messages name the path of its file.

        Raises
        ------
        UnsupportedError
            If that is too little.
        """
        storage = spec.storage
        self._left -= nbytes if storage.random_access else max(nbytes, storage.nbytes)
        if self._left < 0:
            raise UnsupportedError(
                f"a tensor of {spec.numel:,} elements over a storage of "
                f"{storage.nbytes:,} bytes; the tensors overlap too much to be compared",
                path=path,
                record=storage.record,
            )


@dataclass(frozen=True, slots=True)
class Located:
    """A tensor, the file that messages name, and what is left to be done."""

    spec: TensorSpec
    path: str
    work: Work


def same_unread(a: TensorSpec, b: TensorSpec) -> bool:
    """Return whether two tensors are alike by what is known without their bytes.

    They are if both lie in the same way over storages of one size and one stored CRC. A storage
    that has to be swapped has none.
    """
    return (
        bool(a.storage.crc)
        and a.storage.crc == b.storage.crc
        and a.storage.nbytes == b.storage.nbytes
        and (a.torch_dtype, a.shape, a.stride, a.storage_offset, a.conj, a.neg)
        == (b.torch_dtype, b.shape, b.stride, b.storage_offset, b.conj, b.neg)
    )


def content_crc(spec: TensorSpec) -> int | None:
    """Return the stored CRC of a tensor's elements, if it is all of its storage in C order."""
    return spec.storage.crc or None if ElementStorage(spec).is_whole else None


def compare_elements(a: Located, b: Located, tolerance: Tolerance) -> Compared:
    """Return how the elements differ.

    The shapes are the same. Where the dtypes are not, ``a`` is cast to that of ``b``.

    Raises
    ------
    TorchZipError, OSError
        If the bytes are damaged, as far as that shows.
    """
    shape = a.spec.shape
    if 0 in shape or same_codes(a, b):
        return Compared(None, True)
    # Where both repeat one element, so does the difference.
    once = tuple(
        1 if one == other == 0 else size
        for size, one, other in zip(shape, a.spec.stride, b.spec.stride, strict=True)
    )
    repeated = math.prod(shape) // math.prod(once)
    dtype = b.spec.torch_dtype
    # Where both lie in one order that is not C's, they are read in that one, without a jump.
    axes = list(range(len(shape)))
    if a.spec.stride == b.spec.stride:
        axes.sort(key=lambda axis: -a.spec.stride[axis] if once[axis] > 1 else 0)
    found = _Found(dtype, once, axes, tolerance)
    for one, other in _side_by_side(_blocks(a, once, dtype, axes), _blocks(b, once, dtype, axes)):
        found.add(one, other)
    if not found.count:
        return Compared(None, found.same_bits, found.is_close)
    first = tuple(map(int, np.unravel_index(found.first, once)))
    difference = ElementDifference(
        found.count * repeated,
        found.max_abs,
        found.nans * repeated,
        first,
        found.max_rel,
        None if found.max_abs is None else found.sum_abs / math.prod(once),
    )
    return Compared(difference, False)


def undecoded(spec: TensorSpec) -> str | None:
    """Return the GGUF type of a tensor whose numbers are not decoded; None for any other."""
    block = spec.storage.block
    return None if block is None or block in DECODED else block


def same_codes(a: Located, b: Located) -> bool:
    """Return whether two tensors have the same codes of GGUF, which need not be decoded."""
    one, other = a.spec.storage, b.spec.storage
    lie_alike = (a.spec.shape, a.spec.stride, a.spec.storage_offset) == (
        b.spec.shape, b.spec.stride, b.spec.storage_offset,
    )  # fmt: skip
    if one.block is None or one.block != other.block or not lie_alike:
        return False
    if one.stored.nbytes != other.stored.nbytes:
        return False
    pairs = zip(one.stored.blocks(), other.stored.blocks(), strict=True)
    if not all(np.array_equal(mine, its) for mine, its in pairs):
        return False
    for each in (a, b):
        each.work.tell(each.spec.storage.nbytes)
    return True


def digest(tensor: Located) -> bytes:
    """Return 32 bytes that stand for a tensor's elements, each broadcast one taken once.

    Where these are not decoded, its codes stand for them.
    """
    spec = tensor.spec
    made = hashlib.blake2b(digest_size=32)
    if undecoded(spec):
        for block in spec.storage.stored.blocks():
            made.update(block.data)
        return made.digest()
    axes = list(range(len(spec.shape)))
    for block in _blocks(tensor, once_each(spec), spec.torch_dtype, axes):
        made.update(block.data)
    return made.digest()


def once_each(spec: TensorSpec) -> tuple[int, ...]:
    """Return a tensor's shape with one element on each broadcast axis (stride 0)."""
    if 0 in spec.shape:
        return spec.shape
    return tuple(size if step else 1 for size, step in zip(spec.shape, spec.stride, strict=True))


def _blocks(
    tensor: Located, shape: tuple[int, ...], torch_dtype: str, axes: list[int]
) -> Iterator[Bytes]:
    """Yield the elements of a part of a tensor, in another dtype perhaps.

    They come in C order of the axes as ``axes`` has them, the outermost first.
    """
    spec = tensor.spec.replace(
        shape=tuple(shape[axis] for axis in axes),
        stride=tuple(tensor.spec.stride[axis] for axis in axes),
    )
    elements: TensorStorage = ElementStorage(spec)
    tensor.work.charge(tensor.spec, elements.nbytes, tensor.path)
    if spec.torch_dtype != torch_dtype:
        elements = CastStorage(elements, spec.torch_dtype, torch_dtype)
    with ErrorPlace(path=tensor.path):
        for block in elements.checked_blocks():
            yield block
            tensor.work.tell(block.size)


def _side_by_side(a: Iterator[Bytes], b: Iterator[Bytes]) -> Iterator[tuple[Bytes, Bytes]]:
    """Yield blocks of equal sizes; both are taken to their ends, where CRCs are compared."""
    other = np.empty(0, np.uint8)
    for one in a:
        while one.size:
            if not other.size:
                other = next(b)
            nbytes = min(one.size, other.size)
            yield one[:nbytes], other[:nbytes]
            one, other = one[nbytes:], other[nbytes:]
    for _ in b:
        raise RuntimeError("two tensors of one shape have other numbers of elements")


class _Found:
    """What was found in the blocks so far."""

    def __init__(
        self, torch_dtype: str, shape: tuple[int, ...], axes: list[int], tolerance: Tolerance
    ) -> None:
        self._tolerance = tolerance
        # Innermost first: the size of each axis, and its step in the tensor's own C order.
        steps = contiguous_stride(shape)
        self._axes = [(shape[axis], steps[axis]) for axis in reversed(axes)]
        self._in_order = axes == sorted(axes)
        row = DTYPES[torch_dtype]
        self._torch_dtype = torch_dtype
        self._dtype = numpy_dtype(torch_dtype)
        self._compare = {
            "float": self._floats,
            "complex": self._complexes,
            "int": self._ints,
            "bool": self._bools,
            "quantized": self._bits if "x" in torch_dtype else self._ints,
        }.get(row.kind, self._bits)
        self._done = 0
        self.count = 0
        self.nans = 0
        self.first = 0
        self.max_abs: float | None = None
        self.max_rel: float | None = None
        self.sum_abs = 0.0
        self.same_bits = True
        self.is_close = False

    def add(self, a: Bytes, b: Bytes) -> None:
        """Compare two blocks, whose bytes are the same more often than not."""
        numel = a.size // self._dtype.itemsize
        if not np.array_equal(a, b):
            self.same_bits = False
            with np.errstate(all="ignore"):
                differ = self._compare(a, b)
            count = int(np.count_nonzero(differ))
            if count:
                self._see_first(differ)
            self.count += count
        self._done += numel

    def _see_first(self, differ: Array) -> None:
        if not self._in_order:
            places = np.flatnonzero(differ) + self._done
            own = np.zeros_like(places)
            for size, step in self._axes:
                own += places % size * step
                places //= size
            first = int(own.min())
            self.first = min(first, self.first) if self.count else first
        elif not self.count:
            self.first = self._done + int(np.argmax(differ))

    def _larger(self, difference: float, total: float) -> None:
        self.sum_abs += total
        self.max_abs = difference if self.max_abs is None else max(self.max_abs, difference)

    def _add_shares(self, distances: Array, magnitudes: Array) -> None:
        """Take distances in proportion to the numbers of the second tensor."""
        shares = distances[magnitudes > 0] / magnitudes[magnitudes > 0]
        shares = shares[~np.isnan(shares)]  # of two infinities
        if shares.size:
            self.max_rel = max(float(shares.max()), self.max_rel or 0.0)

    def _without_close(self, differ: Array, distances: Array, magnitudes: Array) -> Array:
        """Return what differs by more than the tolerance."""
        close = differ & self._tolerance.allows(distances, magnitudes)
        self.is_close = self.is_close or bool(close.any())
        return differ & ~close

    def _floats(self, a: Bytes, b: Bytes) -> Array:
        one, other = (block.view(self._dtype).astype(np.float64) for block in (a, b))
        return self._inexact([(one, other)], np.abs(other))

    def _complexes(self, a: Bytes, b: Bytes) -> Array:
        one, other = (complex_values(block, self._torch_dtype) for block in (a, b))
        return self._inexact([(one.real, other.real), (one.imag, other.imag)], np.abs(other))

    def _inexact(self, pairs: Sequence[tuple[Array, Array]], magnitudes: Array) -> Array:
        """Compare numbers by their parts: one, or the real and the imaginary one."""
        parts = []
        for x, y in pairs:
            same = (x == y) | (np.isnan(x) & np.isnan(y))
            parts.append(np.where(same, 0.0, np.abs(x - y)))  # of two equal infinities, too
        distances = parts[0] if len(parts) == 1 else np.hypot(*parts)
        differ: Array = np.logical_or.reduce([part != 0 for part in parts])
        if self._tolerance:
            differ = self._without_close(differ, distances, magnitudes)
        nans = differ & np.logical_or.reduce(list(map(np.isnan, parts)))
        self.nans += int(np.count_nonzero(nans))
        numbers = differ & ~nans
        if numbers.any():
            self._larger(float(distances[numbers].max()), float(distances[numbers].sum()))
            self._add_shares(distances[numbers], magnitudes[numbers])
        return differ

    def _ints(self, a: Bytes, b: Bytes) -> Array:
        one, other = a.view(self._dtype), b.view(self._dtype)
        differ: Array = one != other
        magnitudes = np.abs(other.astype(np.float64))
        distances = np.abs(one.astype(np.float64) - other.astype(np.float64))
        if self._tolerance:
            differ = self._without_close(differ, distances, magnitudes)
        if differ.any():
            self._add_shares(distances[differ], magnitudes[differ])
            one, other = one[differ], other[differ]
            # Modulo 2**64 the difference of the larger and the smaller is what it is.
            wide = np.uint64 if self._dtype.kind == "u" else np.int64
            high, low = (
                pick(one, other).astype(wide).view(np.uint64) for pick in (np.maximum, np.minimum)
            )
            differences = high - low
            self._larger(int(differences.max()), float(differences.sum(dtype=np.float64)))
        return differ

    def _bools(self, a: Bytes, b: Bytes) -> Array:
        differ: Array = (a != 0) != (b != 0)
        return differ

    def _bits(self, a: Bytes, b: Bytes) -> Array:
        itemsize = self._dtype.itemsize
        differ: Array = (a != b).reshape(-1, itemsize).any(axis=1)
        return differ
