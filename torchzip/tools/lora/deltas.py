"""What adapters add to a weight, row by row.

A weight is a matrix here, of the rows of its first axis. The factors that have a row for each of
its rows are operands; those that each row needs as a whole (the r rows of A, of any length) are
`Constant` s: small beside the weight, and read once for all rows.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from torchzip.checkpoint.lazy_tensor import LazyTensor
from torchzip.tensors.computed import ComputedStorage, computing_dtype, fresh_spec, operand_of
from torchzip.tensors.numpy_dtypes import numpy_dtype
from torchzip.tensors.specs import Shape, TensorSpec
from torchzip.tensors.views import reshaped

Array = NDArray[Any]

#: Elements of a block: more of them at once, and the factors are gone through less often.
_BLOCK_ELEMENTS = 1 << 20
#: Products of one call of BLAS. OpenBLAS shares more among threads, which wait for one another in a
#: loop: beside other work that took six times as long. A part of this size also stays in the cache.
_MOST_PRODUCTS = 1 << 18


class Constant:
    """Arrays that are made of a few small tensors when they are asked for.

    The last ones stay in memory, up to ``_MOST_NBYTES``: blocks follow one another.
    """

    _MOST_NBYTES: ClassVar[int] = 16 << 20
    _kept: ClassVar[OrderedDict[int, tuple[Constant, Array]]] = OrderedDict()
    _lock: ClassVar[threading.Lock] = threading.Lock()

    def __init__(self, make: Callable[..., Array], *specs: TensorSpec) -> None:
        self._make = make
        self._specs = specs

    def array(self) -> Array:
        with self._lock:
            if id(self) in self._kept:
                self._kept.move_to_end(id(self))
                return self._kept[id(self)][1]
        arrays = [LazyTensor(spec).numpy().astype(np.float32, copy=False) for spec in self._specs]
        made = np.ascontiguousarray(self._make(*arrays))
        with self._lock:
            self._kept[id(self)] = self, made
            while len(self._kept) > 1 and self._nbytes() > self._MOST_NBYTES:
                self._kept.popitem(last=False)
        return made

    @classmethod
    def forget(cls) -> None:
        """Free the memory of all."""
        with cls._lock:
            cls._kept.clear()

    def _nbytes(self) -> int:
        return sum(array.nbytes for _, array in self._kept.values())


def as_rows(array: Array) -> Array:
    """Return an array as a matrix of its rows."""
    return array.reshape(array.shape[0], -1)


def product(left: Array, right: Array) -> Array:
    """Return the product of two factors."""
    made: Array = left @ as_rows(right)
    return made


def tucker(core: Array, right: Array) -> Array:
    """Return [i, r * k * l] of a core [i, j, k, l] and a factor [j, r]."""
    return as_rows(np.einsum("ijkl,jr->irkl", core, right, optimize=True))


def tucker_whole(core: Array, left: Array, right: Array) -> Array:
    """Return [p, r * k * l] of a core [i, j, k, l] and factors [i, p] and [j, r]."""
    made: Array = left.T @ tucker(core, right)
    return made


class Step(Protocol):
    """One thing that an adapter does to the rows of a weight. ``operands`` have a row for each."""

    @property
    def operands(self) -> Sequence[TensorSpec]: ...

    def __call__(self, values: Array, blocks: Sequence[Array], first: int, stop: int) -> Array:
        """Return the rows ``first`` to ``stop`` after it; ``values`` may be changed."""
        ...


@dataclass(frozen=True, eq=False)
class AddProduct:
    """Add ``scale`` times the product of factors; of two pairs, the product of both by elements.

    ``rounded`` is a dtype that the sum of the products is rounded to before it is added.
    """

    operands: Sequence[TensorSpec]
    constants: Sequence[Constant]
    scale: float
    rounded: str | None = None

    def __call__(self, values: Array, blocks: Sequence[Array], first: int, stop: int) -> Array:
        factors = [
            (left, constant.array()) for left, constant in zip(blocks, self.constants, strict=True)
        ]
        costs = len(values) * max(left.shape[1] for left, _ in factors)
        columns = max(_MOST_PRODUCTS // max(costs, 1), 16)
        for begin in range(0, values.shape[1], columns):
            some = slice(begin, begin + columns)
            delta, *others = (left @ right[:, some] for left, right in factors)
            for each in others:
                delta *= each
            delta *= np.float32(self.scale)
            if self.rounded is not None:
                delta = delta.astype(numpy_dtype(self.rounded)).astype(np.float32)
            values[:, some] += delta
        return values


@dataclass(frozen=True, eq=False)
class AddKronecker:
    """Add ``scale`` times the Kronecker product of two matrices, of which each row needs one."""

    left: Constant
    right: Constant
    scale: float
    operands: Sequence[TensorSpec] = ()

    def __call__(self, values: Array, blocks: Sequence[Array], first: int, stop: int) -> Array:
        left, right = self.left.array(), self.right.array()
        rows = np.arange(first, stop)
        pairs = left[rows // len(right), :, None] * right[rows % len(right), None, :]
        pairs *= np.float32(self.scale)
        values += pairs.reshape(values.shape)
        return values


@dataclass(frozen=True, eq=False)
class AddScaled:
    """Add ``scale`` times a tensor of the weight's own size."""

    operands: Sequence[TensorSpec]
    scale: float

    def __call__(self, values: Array, blocks: Sequence[Array], first: int, stop: int) -> Array:
        delta = blocks[0]
        delta *= np.float32(self.scale)
        values += delta
        return values


@dataclass(frozen=True, eq=False)
class Normalize:
    """Give each row another length, its ``magnitude``, as DoRA does after the sum."""

    operands: Sequence[TensorSpec]

    def __call__(self, values: Array, blocks: Sequence[Array], first: int, stop: int) -> Array:
        factor = blocks[0].reshape(-1) / np.linalg.norm(values, axis=1)
        values *= factor[:, None]
        return values


@dataclass(frozen=True, eq=False)
class Merge:
    """A function of blocks (`tensors.computed.Function`): the steps, one after another."""

    steps: Sequence[Step]

    def __call__(self, blocks: list[Array], first: int, stop: int) -> Array:
        values, at = blocks[0], 1
        for step in self.steps:
            count = len(step.operands)
            values = step(values, blocks[at : at + count], first, stop)
            at += count
        return values


def merged(base: TensorSpec, steps: Sequence[Step]) -> TensorSpec:
    """Return a weight after some steps: computed in float32 and rounded once to its own dtype."""
    rows, row = base.shape[0], base.shape[1:]
    columns = int(np.prod(row))
    computed = computing_dtype(base.torch_dtype)
    specs = [reshaped(base, (rows, columns))]
    specs += [each for step in steps for each in step.operands]
    operands = [
        operand_of(spec, computing_dtype(spec.torch_dtype), spec.shape[1:]) for spec in specs
    ]
    storage = ComputedStorage(
        Merge(tuple(steps)),
        operands,
        dtype=base.torch_dtype,
        computed=computed,
        rows=rows,
        row=(columns,),
        block_rows=max(1, _BLOCK_ELEMENTS // max(columns, 1)),
    )
    shape: Shape = (rows, columns)
    return reshaped(fresh_spec(base.torch_dtype, shape, storage), base.shape)
