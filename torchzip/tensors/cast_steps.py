"""What a cast is made of: a plain way for each pair of dtypes, and quicker ways that equal it.

The plain way is `astype`, through float32 where torch goes through it. A quicker way is a list of
`Step`: each fills an array of one dtype from an array of another, at most `CHUNK` elements at
once, with working memory of its own. So a step serves one thread; its tables are shared.

Three steps are more than a copy:

* `Table`: 16 bits, of one element or of two of 8 bits, are an index into 65,536 results.
* `OddTable`: from float32 to 8 bits. Its upper 16 bits, the last of them set if any bit below was,
  are rounded to odd; that loses nothing that a second rounding to fewer than 6 bits of mantissa
  could see, so the table of bfloat16 finishes it.
* `ToFloat16`: from float32, by an addition that leaves the rounded mantissa in the low bits.

GB/s of input on one core, in blocks of 256 KiB of numbers as weights have them, against `astype`
(numpy 2.4, ml_dtypes 0.6, AVX2): float32 to float16 2.0 (1.1), to float8 2.2 (0.45), to bfloat16
7.1 in either way; float16 to float32 1.7 (0.95), to bfloat16 1.8 (0.8); bfloat16 to float16 1.8
(0.55); float16 and bfloat16 to float8 1.9 (0.2); float8 to bfloat16 1.6 (0.1). All that numpy does
here lets go of the GIL.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from torchzip.dtypes import DTYPES
from torchzip.tensors.numpy_dtypes import numpy_dtype

Values = NDArray[Any]
Step = Callable[[Values, Values], None]

#: Elements that a step takes at once: all of a block, if they have 16 bits or more. Shorter runs
#: would stay nearer in the cache, but each call of numpy costs some 2,000 elements.
CHUNK = 1 << 17

#: The pairs that numpy and ml_dtypes cast at the speed of memory.
COPIED = frozenset([
    ("float64", "float32"), ("float32", "float64"),
    ("float32", "bfloat16"), ("bfloat16", "float32"), ("bfloat16", "float64"),
])  # fmt: skip

_U32 = np.uint32
_E4M3FN_MAX = np.float32(448)


def plain_cast(values: Values, source: str, target: str) -> Values:
    """Return an array cast as torch casts it, in new memory.

    numpy's warnings of overflow are the caller's to silence.
    """
    names = [target]
    narrow = DTYPES[target].itemsize < 4 or DTYPES[source].itemsize < 4
    if narrow and "float32" not in (source, target):
        names.insert(0, "float32")
    for name in names:
        if name == "float8_e4m3fn":
            values = np.clip(values, -_E4M3FN_MAX, _E4M3FN_MAX)
        elif name == "float8_e8m0fnu":
            values = _exponents(values)
            continue
        values = values.astype(numpy_dtype(name))
    return values


def _exponents(values: Values) -> Values:
    """Return the magnitudes of float32 values as torch rounds them to float8_e8m0fnu.

    A normal rounds up from 1.5 times a power of two on. Of the subnormals, which have no leading
    one, those above 2**-127 do, and zero is 2**-127. ml_dtypes differs, and from release to
    release.
    """
    bits = values.view(_U32) & _U32(0x7FFFFFFF)
    codes = (bits + _U32(0x400000) - (bits < _U32(0x800000))) >> _U32(23)
    made: Values = np.minimum(codes, _U32(255)).astype(np.uint8)  # 255 is NaN, for infinity too
    return made.view(numpy_dtype("float8_e8m0fnu"))


def fast_steps(source: str, target: str) -> list[tuple[Step, np.dtype[Any]]]:
    """Return the steps from one dtype to another, each with the dtype that it makes."""
    in_nbytes, out_nbytes = DTYPES[source].itemsize, DTYPES[target].itemsize
    step: Step
    if (source, target) in COPIED:
        step = copy
    elif 8 in (in_nbytes, out_nbytes) and "float32" not in (source, target):
        return fast_steps(source, "float32") + fast_steps("float32", target)
    elif in_nbytes <= 2:
        step = Table(source, target)
    elif out_nbytes == 1:
        step = OddTable(target)
    else:
        step = ToFloat16()
    return [(step, numpy_dtype(target))]


def copy(values: Values, out: Values) -> None:
    """Let numpy or ml_dtypes cast, into memory that is there."""
    np.copyto(out, values, casting="unsafe")


@cache
def _results(source: str, target: str) -> NDArray[np.uint8]:
    """Return the bytes of the cast of all 16 bits: a row for each, in the order of their codes."""
    codes = np.arange(1 << 16, dtype=np.uint16).view(numpy_dtype(source))
    rows = plain_cast(codes, source, target).view(np.uint8).reshape(1 << 16, -1)
    rows.setflags(write=False)
    return rows


class Table:
    """From 16 or 8 bits to 32 or fewer, by a table of all results (at most 512 KiB)."""

    def __init__(self, source: str, target: str) -> None:
        self._rows = _results(source, target)
        self._index = np.empty(CHUNK, np.intp)

    def __call__(self, values: Values, out: Values) -> None:
        raw, made = values.view(np.uint8), out.view(np.uint8)
        count, width = raw.size // 2, self._rows.shape[1]
        self.look_up(raw[: 2 * count].view(np.uint16), made[: count * width])
        if raw.size % 2:  # the last of an odd number of elements of 8 bits, with any after it
            pair = np.repeat(raw[-1:], 2).view(np.uint16)
            made[count * width :] = self._rows[pair[0], : width // 2]

    def look_up(self, codes: NDArray[np.unsignedinteger[Any]], made: NDArray[np.uint8]) -> None:
        """Fill ``made`` with the results of ``codes``, which are below 65,536."""
        index = self._index[: codes.size]
        np.copyto(index, codes)
        rows = made.reshape(codes.size, self._rows.shape[1])
        # "clip" has nothing to clip here; "raise" would make a copy of `rows` first.
        np.take(self._rows, index, axis=0, out=rows, mode="clip")


class OddTable:
    """From float32 to 8 bits: rounded to odd at 16 bits, then by the table of bfloat16."""

    def __init__(self, target: str) -> None:
        self._table = Table("bfloat16", target)
        self._codes = np.empty(CHUNK, _U32)

    def __call__(self, values: Values, out: Values) -> None:
        bits = values.view(_U32)
        codes = self._codes[: bits.size]
        np.bitwise_and(bits, _U32(0xFFFF), out=codes)
        np.add(codes, _U32(0xFFFF), out=codes)  # carries into bit 16 if any bit below is set
        np.bitwise_or(codes, bits, out=codes)
        np.right_shift(codes, _U32(16), out=codes)
        self._table.look_up(codes, out.view(np.uint8))


@cache
def _least_normals() -> NDArray[np.float32]:
    """Return the least normal of float16, many times: numpy's maximum with a scalar is slow."""
    return np.full(CHUNK, 2.0**-14, np.float32)


class ToFloat16:
    """From float32 to float16.

    Let E be the exponent of x, but no less than -14, the least of float16. The last place of
    float16 is then 2**(E-10), and so is that of a float32 from 2**(E+13) to 2**(E+14). So in
    x + 2**(E+13) x is rounded as float16 rounds it (the addend's mantissa is even), and
    k = x / 2**(E-10) is what the mantissa holds. The code is k + ((E+14) << 10): for subnormals
    (E+14 is 0), for a k that was rounded up to the next exponent, and for 65536, which is infinity.
    The sign is added last. A chunk that has NaN in it is left to numpy.
    """

    def __init__(self) -> None:
        self._sums = np.empty(CHUNK, _U32)
        self._exponents = np.empty(CHUNK, _U32)

    def __call__(self, values: Values, out: Values) -> None:
        bits = values.view(_U32)
        sums, exponents = self._sums[: bits.size], self._exponents[: bits.size]
        np.bitwise_and(bits, _U32(0x7FFFFFFF), out=sums)
        magnitudes = sums.view(np.float32)
        top = magnitudes.max()
        if np.isnan(top):
            copy(values, out)
            return
        if top > 65536:
            np.minimum(magnitudes, np.float32(65536), out=magnitudes)
        np.bitwise_and(sums, _U32(0x7F800000), out=exponents)
        powers = exponents.view(np.float32)
        np.maximum(powers, _least_normals()[: bits.size], out=powers)
        # Shifted by 13, the exponent of the addend is (E + 13 + 127) << 10, which is 126 << 10
        # too much; 0x800 more in the mantissa makes that a multiple of 2**16, to be cut off.
        np.add(exponents, _U32((13 << 23) + 0x800), out=exponents)
        np.add(magnitudes, powers, out=magnitudes)
        np.right_shift(exponents, _U32(13), out=exponents)
        np.add(sums, exponents, out=sums)
        np.right_shift(bits, _U32(16), out=exponents)
        np.bitwise_and(exponents, _U32(0x8000), out=exponents)
        np.add(sums, exponents, out=sums)
        copy(sums, out.view(np.uint16))
