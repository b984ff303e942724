"""What numbers a tensor holds, found block by block in bounded memory.

The elements are gone over twice: once for the counts, the extremes and the mean, and once, when
these are known, for the standard deviation and the histogram. So nothing is lost to rounding that
one pass would have to guess: sums of ints are exact, the sum of floats is exact from block to
block, and deviations are taken from the mean. Numbers near the ends of float64 are scaled by a
power of two, so that no square is infinite or zero.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from torchzip.checkpoint.lazy_tensor import LazyTensor, tensor_of
from torchzip.dtypes import DTYPES
from torchzip.errors import EnoughMemory, UnsupportedError
from torchzip.tensors.casts import Cast
from torchzip.tensors.numpy_dtypes import complex_values, numpy_dtype
from torchzip.tensors.packing import ElementStorage
from torchzip.tensors.specs import TensorSpec
from torchzip.tensors.storage import Bytes
from torchzip.tools.elements import Work, once_each

Array = NDArray[Any]
Number = int | float

_WORD = (1 << 64) - 1
#: Past these exponents, either way, squares of float64 are not to be trusted.
_FAR_EXPONENT = 400
_MOST_BINS = 1 << 16


@dataclass(frozen=True, slots=True)
class Statistics:
    """What the elements of a tensor are.

    ``min``, ``max``, ``mean`` and ``std`` are of the finite ones, None if there is none; ``std`` is
    that of the population, as numpy has it. ``zeros`` has ``negative_zeros`` in it. ``edges`` and
    ``counts`` are a histogram of the finite elements: each bin holds its lower edge, the last one
    both. ``of`` is "values"; "absolute values" for complex numbers, whose zeros and NaNs are those
    of their absolute values too, and which are infinite where that is past the largest float64.
    """

    count: int
    finite: int
    min: Number | None
    max: Number | None
    mean: float | None
    std: float | None
    nans: int
    positive_infinities: int
    negative_infinities: int
    zeros: int
    negative_zeros: int
    edges: tuple[Number, ...]
    counts: tuple[int, ...]
    of: str = "values"


@EnoughMemory()
def statistics(tensor: Any, *, bins: int = 64, work: Work | None = None) -> Statistics:
    """Return what numbers a tensor holds: a LazyTensor, or what numpy makes an array of.

    A LazyTensor is read twice, block by block. A bool counts as 0 or 1. Of a broadcast tensor
    each element is read once and counted as often as it is repeated. ``work``, if given, is what
    many tensors may cost together.

    Raises
    ------
    UnsupportedError
        If numpy has no numbers of the dtype (packed or raw bits), or if the elements overlap so
        much that a small file would take hours.
    TorchZipError, OSError
        If the bytes are damaged, as far as that shows.
    ValueError
        If ``bins`` is less than 1 or more than 65,536.

    Examples
    --------
    >>> found = statistics(np.array([1.0, 2.0, 3.0, np.nan]), bins=2)
    >>> found.finite, found.mean, found.nans, found.edges, found.counts
    (3, 2.0, 1, (1.0, 2.0, 3.0), (1, 2))
    """
    if isinstance(bins, bool) or not isinstance(bins, int):
        raise TypeError(f"bins is a number of them, not {type(bins).__name__}")
    if not 1 <= bins <= _MOST_BINS:
        raise ValueError(f"bins must be from 1 to {_MOST_BINS:,}, not {bins}")
    lazy = tensor if isinstance(tensor, LazyTensor) else tensor_of(np.asarray(tensor))
    if lazy is None:
        raise UnsupportedError(f"torch has no dtype for an array of {np.asarray(tensor).dtype}")
    spec = lazy.spec
    kind = DTYPES[spec.torch_dtype].kind
    if not DTYPES[spec.torch_dtype].has_numbers:
        raise UnsupportedError(f"numpy has no numbers of dtype {spec.torch_dtype}")
    once = _in_order_of_file(spec)
    work = work or Work(spec.storage.nbytes)
    made = (_IntStatistics if kind in ("int", "bool") else _FloatStatistics)(bins)
    for block in _blocks(once, work):
        made.see(block)
    if made.finite:
        made.begin_second_pass()
        for block in _blocks(once, work):
            made.see_again(block)
    times = spec.numel // once.numel if once.numel else 1
    return made.result(times, "absolute values" if kind == "complex" else "values")


def _in_order_of_file(spec: TensorSpec) -> TensorSpec:
    """Return a tensor of the same elements, without repetition, in the order in which they lie."""
    offset = spec.storage_offset
    axes = []
    for size, step in zip(once_each(spec), spec.stride, strict=True):
        if step < 0:  # of a slice
            offset += (size - 1) * step
        axes.append((size, abs(step) if size > 1 else 0))
    if 0 in spec.shape:
        return spec
    axes.sort(key=lambda axis: -axis[1])
    shape = tuple(size for size, _ in axes)
    return spec.replace(shape=shape, stride=tuple(step for _, step in axes), storage_offset=offset)


def _blocks(spec: TensorSpec, work: Work) -> Iterator[Array]:
    """Yield the elements of a tensor as arrays that numpy calculates with."""
    itemsize = DTYPES[spec.torch_dtype].itemsize
    work.charge(spec, spec.numel * itemsize)
    numbers = _numbers_of(spec.torch_dtype)
    for block in ElementStorage(spec).checked_blocks():
        yield numbers(block)


def _numbers_of(torch_dtype: str) -> Callable[[Bytes], Array]:
    """Return what makes numbers of a block: ints of any size, float32 or float64."""
    dtype = numpy_dtype(torch_dtype)
    kind = DTYPES[torch_dtype].kind
    if kind == "float" and dtype.itemsize <= 2:
        cast = Cast(torch_dtype, "float32")
        return lambda block: cast(block).view(np.float32)
    if kind == "complex":
        return lambda block: np.abs(complex_values(block, torch_dtype))
    if kind == "bool":
        return lambda block: (block != 0).view(np.uint8)
    return lambda block: block.view(dtype)


class _Statistics:
    """What both kinds of numbers have in common. The sum is exact, from block to block at least."""

    def __init__(self, bins: int) -> None:
        self.finite = 0
        self._bins = bins
        self._nans = 0
        self._positive_infinities = 0
        self._negative_infinities = 0
        self._zeros = 0
        self._negative_zeros = 0
        self._min: Any = math.inf
        self._max: Any = -math.inf
        self._sum = Fraction(0)
        self._squares = 0.0
        self._counts = np.zeros(0, np.int64)

    def _see_finite(self, block: Array) -> tuple[Number, Number]:
        """Count a block of finite numbers, of one or more; return its extremes."""
        self.finite += block.size
        zeros = block.size - int(np.count_nonzero(block))
        if zeros:
            self._zeros += zeros
            self._negative_zeros += int(np.count_nonzero(np.signbit(block[block == 0])))
        low, high = block.min().item(), block.max().item()
        self._min, self._max = min(self._min, low), max(self._max, high)
        return low, high

    def _mean_and_std(self) -> tuple[float, float]:
        raise NotImplementedError

    def _edges_of_bins(self) -> list[Number]:
        raise NotImplementedError

    def result(self, times: int, of: str) -> Statistics:
        """Return what was found; each element counts as often as it is repeated."""
        n = self.finite
        mean, std = self._mean_and_std() if n else (None, None)
        others = self._nans + self._positive_infinities + self._negative_infinities
        return Statistics(
            count=(n + others) * times,
            finite=n * times,
            min=self._min if n else None,
            max=self._max if n else None,
            mean=mean,
            std=std,
            nans=self._nans * times,
            positive_infinities=self._positive_infinities * times,
            negative_infinities=self._negative_infinities * times,
            zeros=self._zeros * times,
            negative_zeros=self._negative_zeros * times,
            edges=tuple(self._edges_of_bins()) if n else (),
            counts=tuple(int(count) * times for count in self._counts),
            of=of,
        )


class _IntStatistics(_Statistics):
    """Statistics of ints: exact, but for the last rounding."""

    def see(self, block: Array) -> None:
        """Count a block."""
        self._see_finite(block)
        if block.itemsize < 8:
            self._sum += int(block.sum(dtype=np.int64))
        else:  # in halves, whose sums do not overflow
            high, low = block >> 32, block & block.dtype.type(0xFFFFFFFF)
            self._sum += (int(high.sum()) << 32) + int(low.sum())

    def begin_second_pass(self) -> None:
        """Choose the bins: all of one whole width."""
        self._center = round(self._sum / self.finite)
        size = self._max - self._min + 1
        self._width = -(-size // self._bins)
        self._counts = np.zeros(-(-size // self._width), np.int64)

    def see_again(self, block: Array) -> None:
        """Add a block's deviations, and put it into the bins."""
        wide = block.astype(np.uint64 if block.dtype == np.uint64 else np.int64)
        bits = wide.view(np.uint64)
        # Modulo 2**64 a difference is what it is, if the larger number comes first.
        above = bits - np.uint64(self._center & _WORD)
        distance = np.where(wide >= self._center, above, ~above + np.uint64(1)).astype(np.float64)
        self._squares += float((distance * distance).sum())
        if self._counts.size == 1:  # whose width may be 2**64
            self._counts += block.size
            return
        place = (bits - np.uint64(self._min & _WORD)) // np.uint64(self._width)
        self._counts += np.bincount(place.astype(np.int64), minlength=self._counts.size)

    def _mean_and_std(self) -> tuple[float, float]:
        mean = self._sum / self.finite
        beside = float(mean - self._center)
        return float(mean), math.sqrt(max(self._squares / self.finite - beside * beside, 0.0))

    def _edges_of_bins(self) -> list[Number]:
        return [self._min + place * self._width for place in range(self._counts.size + 1)]


class _FloatStatistics(_Statistics):
    """Statistics of float32 and float64."""

    def __init__(self, bins: int) -> None:
        super().__init__(bins)
        self._exponent = 0
        self._deviations = 0.0
        self._is_even = True

    def see(self, block: Array) -> None:
        """Count a block."""
        finite = _finite(block)
        if finite.size < block.size:
            self._nans += int(np.count_nonzero(np.isnan(block)))
            self._positive_infinities += int(np.count_nonzero(block == np.inf))
            self._negative_infinities += int(np.count_nonzero(block == -np.inf))
        if not finite.size:
            return
        low, high = self._see_finite(finite)
        if max(-low, high) > 2.0**960:  # the sum of a block could be infinite
            self._sum += Fraction(float(np.ldexp(finite, -64).sum())) * 2**64
        else:
            self._sum += Fraction(float(finite.sum(dtype=np.float64)))

    def begin_second_pass(self) -> None:
        """Choose the scale and the bins."""
        exponent = math.frexp(max(-self._min, self._max))[1]
        self._exponent = exponent if abs(exponent) > _FAR_EXPONENT else 0
        self._center = math.ldexp(float(self._sum / self.finite), -self._exponent)
        low, high = (math.ldexp(end, -self._exponent) for end in (self._min, self._max))
        self._edges = np.linspace(low, high, self._bins + 1)
        self._edges[-1] = high
        as_shown = np.ldexp(self._edges, self._exponent)
        if not (np.diff(as_shown) > 0).all():  # there are fewer floats than bins
            self._is_even = False
            self._edges = np.ldexp(np.unique(as_shown), -self._exponent)
        if low == high:
            self._edges = np.array([low, high])
        self._counts = np.zeros(self._edges.size - 1, np.int64)

    def see_again(self, block: Array) -> None:
        """Add a block's deviations, and put it into the bins."""
        finite = _finite(block).astype(np.float64)
        if self._exponent:
            finite = np.ldexp(finite, -self._exponent)
        low, high = self._edges[0], self._edges[-1]
        if low == high:
            self._counts[0] += finite.size
        elif self._is_even:
            self._counts += np.histogram(finite, self._counts.size, (low, high))[0]
        else:
            self._counts += np.histogram(finite, self._edges)[0]
        finite -= self._center
        self._deviations += float(finite.sum())
        finite *= finite
        self._squares += float(finite.sum())

    def _mean_and_std(self) -> tuple[float, float]:
        beside = self._deviations / self.finite  # what the first pass has rounded away
        std = math.sqrt(max(self._squares / self.finite - beside * beside, 0.0))
        mean = math.ldexp(self._center + beside, self._exponent)
        return min(max(mean, self._min), self._max), math.ldexp(std, self._exponent)

    def _edges_of_bins(self) -> list[Number]:
        edges = np.ldexp(self._edges, self._exponent).tolist()
        return [self._min, *edges[1:-1], self._max]


def _finite(block: Array) -> Array:
    finite = np.isfinite(block)
    return block if finite.all() else block[finite]
