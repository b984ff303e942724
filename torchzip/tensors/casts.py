"""Casts among the floating dtypes, block by block, as torch's ``.to()`` rounds.

To nearest, ties to even. What is too large becomes infinity, or NaN where the dtype has no
infinity; but float8_e4m3fn saturates at 448, infinity too, and float8_e8m0fnu keeps the magnitude
and takes 0 for its least value (all as torch 2.13 on x86). torch goes through float32 to every
dtype narrower than that, so float64 is rounded twice on its way to 16 or 8 bits, and so it is here.
NaN stays NaN; its sign and payload are those that ml_dtypes and numpy give (in bfloat16 0x7fc0
with the sign, where torch writes 0x7fc0 or 0xffff by its build).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from torchzip.dtypes import DTYPES
from torchzip.tensors.numpy_dtypes import numpy_dtype
from torchzip.tensors.storage import BLOCK_NBYTES, Bytes, TensorStorage

_E4M3FN = numpy_dtype("float8_e4m3fn")
_E4M3FN_MAX = np.float32(448)
_E8M0FNU = numpy_dtype("float8_e8m0fnu")
_E8M0FNU_MIN = np.float32(2.0**-127)


def is_castable(torch_dtype: str) -> bool:
    """Return whether a dtype is one of those that a conversion changes: the floating ones."""
    return DTYPES[torch_dtype].kind == "float"


class Cast:
    """Casts blocks of one dtype to another.

    ml_dtypes 0.6 rounds float32 to bfloat16 at 8 GB/s on blocks that stay in the cache; the same by
    integer arithmetic in numpy comes to 5.
    """

    def __init__(self, source: str, target: str) -> None:
        self.source = numpy_dtype(source)
        self.target = numpy_dtype(target)
        self._steps = [numpy_dtype(target)]
        narrow = DTYPES[target].itemsize < 4 or DTYPES[source].itemsize < 4
        if narrow and "float32" not in (source, target):
            self._steps.insert(0, numpy_dtype("float32"))

    def __call__(self, block: Bytes) -> Bytes:
        """Return the cast of a block of whole elements."""
        values: NDArray[Any] = block.view(self.source)
        with np.errstate(all="ignore"):  # overflow to infinity is what is asked for
            for dtype in self._steps:
                if dtype == _E4M3FN:
                    values = np.clip(values, -_E4M3FN_MAX, _E4M3FN_MAX)
                elif dtype == _E8M0FNU:
                    values = np.maximum(np.abs(values), _E8M0FNU_MIN)
                values = values.astype(dtype)
        return values.view(np.uint8)

    def into(self, block: Bytes, out: Bytes) -> None:
        out[:] = self(block)


def whole_items(blocks: Iterator[Bytes], itemsize: int) -> Iterator[Bytes]:
    """Yield the same bytes in blocks of whole elements, each aligned as numpy wants it."""
    rest = np.empty(0, np.uint8)
    for block in blocks:
        if rest.size:
            block = np.concatenate([rest, block])
        whole = block.size // itemsize * itemsize
        rest = block[whole:].copy()
        for start in range(0, whole, BLOCK_NBYTES):
            part = block[start : min(start + BLOCK_NBYTES, whole)]
            if part.ctypes.data % itemsize:
                part = part.copy()
            yield part


class CastStorage(TensorStorage):
    """A storage as it is after a cast: each element of ``base``, in another dtype."""

    def __init__(self, base: TensorStorage, source: str, target: str) -> None:
        self.base = base
        self.source = source
        self.target = target
        self._in_nbytes = DTYPES[source].itemsize
        self._out_nbytes = DTYPES[target].itemsize
        self.nbytes = base.nbytes // self._in_nbytes * self._out_nbytes
        self.torch_dtype = target if DTYPES[target].storage_class else None
        self.location = base.location
        self.record = base.record
        self.random_access = base.random_access

    def read_into(self, start: int, out: Bytes) -> None:
        first = start // self._out_nbytes
        last = -(-(start + out.nbytes) // self._out_nbytes)
        block = self.base.read(first * self._in_nbytes, last * self._in_nbytes)
        cast = Cast(self.source, self.target)(block)
        skip = start - first * self._out_nbytes
        out[:] = cast[skip : skip + out.nbytes]

    def blocks(self, nbytes: int = BLOCK_NBYTES) -> Iterator[Bytes]:
        cast = Cast(self.source, self.target)
        for block in whole_items(self.base.checked_blocks(nbytes), self._in_nbytes):
            yield cast(block)
