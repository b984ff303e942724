"""Casts among the floating dtypes, block by block, as torch's ``.to()`` rounds.

To nearest, ties to even. What is too large becomes infinity, or NaN where the dtype has no
infinity; but float8_e4m3fn saturates at 448, infinity too, and float8_e8m0fnu keeps the magnitude
and takes 0 for its least value (all as torch 2.13 on x86). torch goes through float32 to every
dtype narrower than that, so float64 is rounded twice on its way to 16 or 8 bits, and so it is here.
NaN stays NaN; its sign and payload are those that ml_dtypes and numpy give (in bfloat16 0x7fc0
with the sign, where torch writes 0x7fc0 or 0xffff by its build).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property

import numpy as np

from torchzip.dtypes import DTYPES
from torchzip.tensors.cast_range import lack_of
from torchzip.tensors.cast_steps import (
    CHUNK,
    COPIED,
    Step,
    Values,
    copy,
    fast_steps,
    plain_cast,
)
from torchzip.tensors.numpy_dtypes import numpy_dtype
from torchzip.tensors.storage import (
    READER_NBYTES,
    Bytes,
    MadeStorage,
    Part,
    RangeCrc,
    Reader,
    TensorStorage,
)

#: Blocks of fewer elements are cast the plain way: many short steps cost more than one long one.
_FEW = 1 << 14


def is_castable(torch_dtype: str) -> bool:
    """Return whether a dtype is one of those that a conversion changes: the floating ones."""
    return DTYPES[torch_dtype].castable


class Cast:
    """Casts blocks of one dtype to another.

    ``out_of_range`` counts the elements so far that the target has no place for (`cast_range`). It
    keeps its working memory from block to block, so it serves one thread at a time.
    """

    def __init__(self, source: str, target: str) -> None:
        self._names = (source, target)
        self._source = numpy_dtype(source)
        self._target = numpy_dtype(target)
        self._made = np.empty(0, np.uint8)
        self._lack = lack_of(source, target)
        self.out_of_range = 0

    @cached_property
    def _steps(self) -> list[tuple[Step, Values | None]]:
        """The steps, each with the memory for what it makes; that of the last is given."""
        steps = fast_steps(*self._names)
        between = [np.empty(CHUNK, dtype) for _, dtype in steps[:-1]]
        return [(step, made) for (step, _), made in zip(steps, [*between, None], strict=True)]

    def into(self, block: Bytes, room: Bytes | memoryview) -> None:
        """Fill ``room`` with the cast of a block of whole elements, which it must not overlap.

        Raises
        ------
        ValueError
            If ``room`` does not have the size of the result.
        """
        values: Values = block.view(self._source)
        made: Values = np.asarray(room).view(self._target)
        if made.size != values.size:
            raise ValueError(f"{values.size} elements do not go into room for {made.size}")
        with np.errstate(all="ignore"):  # overflow to infinity is what is asked for
            for start in range(0, values.size, CHUNK):
                part, out = values[start : start + CHUNK], made[start : start + CHUNK]
                self._cast(part, out)
                if self._lack is not None:
                    self.out_of_range += self._lack.count(part, out)

    def _cast(self, values: Values, made: Values) -> None:
        if self._names in COPIED:
            copy(values, made)
        elif values.size < _FEW:
            made[:] = plain_cast(values, *self._names)
        else:
            for step, between in self._steps:
                out = made if between is None else between[: values.size]
                step(values, out)
                values = out

    def __call__(self, block: Bytes) -> Bytes:
        """Return the cast of a block of whole elements, valid until the next call."""
        nbytes = block.size // self._source.itemsize * self._target.itemsize
        if self._made.size < nbytes:
            self._made = np.empty(nbytes, np.uint8)
        made = self._made[:nbytes]
        self.into(block, made)
        return made


class CastStorage(MadeStorage):
    """A storage as it is after a cast: each element of ``base``, in another dtype."""

    def __init__(self, base: TensorStorage, source: str, target: str) -> None:
        self._in_nbytes = DTYPES[source].itemsize
        self._out_nbytes = DTYPES[target].itemsize
        super().__init__(target, base.nbytes // self._in_nbytes * self._out_nbytes, (base,))
        self.base = base
        self.source = source
        self.target = target
        self.location = base.location
        self.record = base.record

    @property
    def uncompared(self) -> Sequence[TensorStorage]:
        return self.base.uncompared

    def parts(self, start: int, stop: int) -> Iterator[Part]:
        first, last = start // self._out_nbytes, -(-stop // self._out_nbytes)
        return self.base.parts(first * self._in_nbytes, last * self._in_nbytes)

    def reader(self, start: int, stop: int, nbytes: int = READER_NBYTES) -> CastReader:
        return CastReader(self, start, stop, nbytes)

    def compared(self) -> list[TensorStorage]:
        return self.base.compared()


class CastReader(Reader):
    """Reads ranges of a cast storage, and counts what its dtype has no place for."""

    def __init__(self, storage: CastStorage, start: int, stop: int, nbytes: int) -> None:
        super().__init__(storage)
        self._in_nbytes = DTYPES[storage.source].itemsize
        self._out_nbytes = DTYPES[storage.target].itemsize
        first, last = start // self._out_nbytes, -(-stop // self._out_nbytes)
        self._base = storage.base.reader(first * self._in_nbytes, last * self._in_nbytes, nbytes)
        self._cast = Cast(storage.source, storage.target)
        self._block = np.empty(0, np.uint8)

    @property
    def out_of_range(self) -> int:  # type: ignore[override]
        return self._cast.out_of_range

    def crcs(self) -> list[RangeCrc]:
        return self._base.crcs()

    def read_into(self, start: int, out: Bytes) -> None:
        done = 0
        while done < out.size:
            first, skip = divmod(start + done, self._out_nbytes)
            count = min(2 * CHUNK, -(-(out.size - done + skip) // self._out_nbytes))
            if self._block.size < count * self._in_nbytes:
                self._block = np.empty(count * self._in_nbytes, np.uint8)
            block = self._block[: count * self._in_nbytes]
            self._base.read_into(first * self._in_nbytes, block)
            room = out[done : done + count * self._out_nbytes]
            if skip or room.size < count * self._out_nbytes:
                part = self._cast(block)[skip:][: room.size]
                out[done : done + part.size] = part
                done += part.size
            else:
                self._cast.into(block, room)
                done += room.size
