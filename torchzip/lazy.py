"""Tensors that are computed from others when they are read, or put together of them.

What comes out is a `LazyTensor`: it is sliced, read, saved, converted and pickled as any other, and
costs the memory of its blocks alone. The views and operators of `LazyTensor` itself are the other
half of it; docs/lazy.md has both in ten minutes.

An array, or whatever else `save` takes for one, may stand wherever a LazyTensor may.
"""

from __future__ import annotations

import math
import operator
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import accumulate
from typing import Any, TypeVar

import numpy as np

from torchzip.checkpoint.lazy import Checkpoint
from torchzip.checkpoint.lazy_tensor import LazyTensor, data_of, tensor_of
from torchzip.checkpoint.structure import as_tensor
from torchzip.dtypes import DTYPES
from torchzip.errors import EnoughMemory, shown
from torchzip.tensors.arithmetic import broadcast_shape, converted, promoted
from torchzip.tensors.computed import (
    ComputedStorage,
    blocks_of,
    computing_dtype,
    fresh_spec,
    operand_of,
)
from torchzip.tensors.functions import UserFunction, takes_rows
from torchzip.tensors.numpy_dtypes import has_numpy_dtype, numpy_dtype, parse_torch_dtype
from torchzip.tensors.specs import TensorSpec, check_shape, whole_numbers
from torchzip.tensors.views import broadcast_spec, joined, padded, reshaped
from torchzip.types import OtherTensor

__all__ = ["cat", "compute", "dequantized", "pad", "reduce", "stack"]

A = TypeVar("A")


def cat(tensors: Sequence[Any], axis: int = 0) -> LazyTensor:
    """Return tensors one after another along an axis, in the dtype that numpy promotes theirs to.

    They are equal in all other axes. Unlike in torch, that goes for an empty one too.

    Examples
    --------
    >>> cat([np.zeros((1, 2), "float32"), np.ones((2, 2), "float32")]).numpy().tolist()
    [[0.0, 0.0], [1.0, 1.0], [1.0, 1.0]]
    """
    specs = _of_one_dtype(tensors)
    ndim = len(specs[0].shape)
    at = _axis(axis, ndim)
    for spec in specs:
        if len(spec.shape) != ndim or any(
            size != first
            for each, (size, first) in enumerate(zip(spec.shape, specs[0].shape, strict=True))
            if each != at
        ):
            raise ValueError(
                f"tensors of shapes {list(specs[0].shape)} and {list(spec.shape)} are not put "
                f"together along axis {at}"
            )
    starts = list(accumulate((spec.shape[at] for spec in specs), initial=0))
    shape = (*specs[0].shape[:at], starts[-1], *specs[0].shape[at + 1 :])
    parts = [
        ((*(0,) * at, start, *(0,) * (ndim - at - 1)), spec)
        for start, spec in zip(starts, specs, strict=False)
    ]
    return LazyTensor(joined(specs[0].torch_dtype, shape, parts))


def stack(tensors: Sequence[Any], axis: int = 0) -> LazyTensor:
    """Return tensors of one shape side by side along a new axis.

    Examples
    --------
    >>> stack([np.zeros(3, "int8"), np.ones(3, "int8")], axis=1).shape
    (3, 2)
    """
    specs = _of_one_dtype(tensors)
    shape = specs[0].shape
    for spec in specs:
        if spec.shape != shape:
            raise ValueError(
                f"tensors of shapes {list(shape)} and {list(spec.shape)} are not stacked"
            )
    at = _axis(axis, len(shape) + 1)
    longer = (*shape[:at], 1, *shape[at:])
    return cat([LazyTensor(reshaped(spec, longer)) for spec in specs], at)


def pad(tensor: Any, shape: Sequence[int], value: complex = 0) -> LazyTensor:
    """Return a tensor with ``value`` added at the end of each axis, up to a shape.

    Examples
    --------
    >>> pad(np.ones((1, 2), "float32"), (2, 3), value=-1).numpy().tolist()
    [[1.0, 1.0, -1.0], [-1.0, -1.0, -1.0]]
    """
    spec = _spec_of(tensor)
    return LazyTensor(padded(spec, shape, _one_element(value, spec.torch_dtype)))


def compute(
    fn: Callable[..., Any],
    *tensors: Any,
    dtype: Any = None,
    shape: Sequence[int] | None = None,
    rows: bool = False,
    repeat: Sequence[int] | None = None,
) -> LazyTensor:
    """Return the tensor that ``fn`` makes of others, block by block, when it is read.

    ``fn(*blocks)`` gets numpy arrays with the same elements of every tensor, in C order and one
    dimension, and returns an array of as many. Floats of up to 32 bits come as float32, others as
    they are. It gives float32 for a floating result of up to 32 bits, or that dtype itself: the
    result is rounded once, after all that is computed with it, where torch rounds each step. The
    arrays are used again for the next block: it may write into them, and keeps none of them. It
    may be called for any part, in any order, more than once, and in other processes if it pickles;
    numpy's warnings are off.

    * ``dtype`` is that of the result, as in `LazyTensor.to`; None: what numpy promotes theirs to.
    * ``shape`` is that of the result; None: what theirs are broadcast to, with ``rows`` that of the
      first.
    * ``rows``: blocks are whole rows of axis 0, and ``fn`` may have a parameter ``rows`` for the
      first and the one after the last.
    * ``repeat``, with ``rows``: how many rows of the result go with one row of each tensor. None:
      as many as divide the rows of the result evenly. A tensor with fewer rows gives those that
      touch the block. So scales of blocks of 128 rows have a ``repeat`` of 128, and ``fn`` finds
      by its ``rows`` where the first of them begins.

    Raises
    ------
    ValueError, TypeError
        If the shapes or dtypes do not go together; and when it is read, if ``fn`` raises an error
        or makes another shape or dtype.

    Examples
    --------
    >>> weight = np.arange(6, dtype="float32").reshape(3, 2)
    >>> compute(np.sqrt, weight, dtype="bfloat16")[0].tolist()
    [0.0, 1.0]
    >>> compute(lambda w: w / w.max(1, keepdims=True), weight * 2, rows=True)[0].tolist()
    [0.0, 1.0]
    """
    specs = _operands(fn, tensors)
    if dtype is None:
        target = promoted([each.torch_dtype for each in specs])
    else:
        target = parse_torch_dtype(dtype)
    computed = computing_dtype(target)
    asked = None if shape is None else whole_numbers("a shape", shape)
    if rows:
        made = specs[0].shape if asked is None else asked
        check_shape(made, target)
        if not made or any(not spec.shape for spec in specs):
            raise ValueError("a tensor without dimensions does not have rows")
        count, row = made[0], made[1:]
        every = _repeats(specs, count, repeat)
    else:
        if repeat is not None:
            raise ValueError("repeat says how rows go together; it needs rows=True")
        made = broadcast_shape([spec.shape for spec in specs]) if asked is None else asked
        specs = [_broadcast(spec, made) for spec in specs]
        count, row = math.prod(made), ()
        every = [1] * len(specs)
    operands = [
        operand_of(spec, computing_dtype(spec.torch_dtype), spec.shape[1:] if rows else (), times)
        for spec, times in zip(specs, every, strict=True)
    ]
    function = UserFunction(fn, target, computed, row, made, rows and takes_rows(fn))
    storage = ComputedStorage(
        function, operands, dtype=target, computed=computed, rows=count, row=row
    )
    return LazyTensor(fresh_spec(target, made, storage))


@EnoughMemory()
def reduce(fn: Callable[..., A], *tensors: Any, initial: Any = None) -> A:
    """Return what ``fn`` makes of all elements of tensors, in one pass, block by block.

    ``fn(accumulator, *blocks)`` gives the next accumulator; the first is ``initial``. The blocks
    are those of `compute`: in order, and used again for the next call. A file that is read from end
    to end is compared with its CRCs. So that a norm does not lose, add in float64.

    Examples
    --------
    >>> weight = np.arange(6, dtype="float32")
    >>> reduce(lambda most, block: max(most, abs(block).max()), weight, initial=0).item()
    5.0
    """
    specs = _operands(fn, tensors)
    shape = broadcast_shape([spec.shape for spec in specs])
    operands = [
        operand_of(_broadcast(spec, shape), computing_dtype(spec.torch_dtype)) for spec in specs
    ]
    accumulator = initial
    for blocks in blocks_of(operands, math.prod(shape)):
        accumulator = fn(accumulator, *blocks)
    return accumulator  # type: ignore[no-any-return]


@EnoughMemory()
def dequantized(
    checkpoint: Checkpoint | Mapping[str, Any],
    config: Mapping[str, Any] | str | os.PathLike[str] | None = None,
    *,
    transpose_experts: bool = True,
) -> dict[str, LazyTensor]:
    """Return the tensors of a checkpoint by name, with plain weights for the quantized ones.

    A weight that was kept as codes and scales is computed from them when it is read, in float32,
    and rounded once: to the dtype that its scheme records, else bfloat16. What it was kept in is
    not in the result, nor are scales of activations; all else is there as it is. docs/quantized.md
    lists the schemes, which are recognised by the names and dtypes of their tensors.

    ``config`` is the ``quantization_config`` of the model, as a mapping or the path of a
    ``config.json``; None: the one in the folder of the checkpoint, if there is one. With
    ``transpose_experts=False`` the experts of gpt-oss (MXFP4) keep the axes that they have in the
    file, which some loaders want; transformers wants the two last ones swapped.

    Raises
    ------
    FormatError
        If a weight lacks its scale, or has one that does not fit.
    UnsupportedError
        If a scheme is not known. Codes are never passed on as values.

    Examples
    --------
    >>> import ml_dtypes
    >>> codes = np.full((2, 2), 3, ml_dtypes.float8_e4m3fn)
    >>> quantized = {"a.weight": codes, "a.weight_scale_inv": np.full((1, 1), 0.5, "float32")}
    >>> dequantized(quantized)["a.weight"].numpy().tolist()
    [[1.5, 1.5], [1.5, 1.5]]
    """
    from torchzip.quantization.dequantizing import dequantized_checkpoint  # which few need

    if not isinstance(checkpoint, Checkpoint):
        if not isinstance(checkpoint, Mapping):
            raise TypeError(
                f"a checkpoint or a mapping was expected, not {type(checkpoint).__name__}"
            )
        checkpoint = {name: tensor_named(name, value) for name, value in checkpoint.items()}
    return dequantized_checkpoint(checkpoint, config, transposes=transpose_experts).tensors


def tensor_named(name: str, value: Any) -> LazyTensor | OtherTensor:
    """Return what stands for a tensor as one; what it says of any other value has the name."""
    try:
        return _tensor(value)
    except TypeError as error:
        raise TypeError(f"{name}: {error}") from None


def _tensor(value: Any) -> LazyTensor | OtherTensor:
    value = data_of(value)
    if not isinstance(value, LazyTensor | OtherTensor | np.ndarray):
        value = np.asarray(value) if isinstance(value, np.generic) else data_of(as_tensor(value))
    made: LazyTensor | OtherTensor | None
    made = tensor_of(value) if isinstance(value, np.ndarray) else value
    if made is None:
        raise TypeError(f"torch does not have the dtype {value.dtype}")
    return made


def _spec_of(value: Any) -> TensorSpec:
    made = _tensor(value)
    if not isinstance(made, LazyTensor):
        raise TypeError(f"a dense tensor was expected, not a {type(made).__name__}")
    return made.spec


def _operands(fn: Any, tensors: Sequence[Any]) -> list[TensorSpec]:
    """Return the tensors that a function is called with."""
    if not callable(fn):
        raise TypeError(f"fn must be a function, not {type(fn).__name__}")
    if not tensors:
        raise TypeError("a function and one tensor or more were expected, not the function alone")
    return [_spec_of(each) for each in tensors]


def _one_element(value: Any, torch_dtype: str) -> TensorSpec:
    """Return a number as a tensor without dimensions; floats round, and ints must fit."""
    if isinstance(value, np.generic | np.ndarray) and value.size == 1:
        value = value.item()
    if not isinstance(value, int | float | complex):
        raise TypeError(f"a tensor is padded with a number, not {shown(value)}")
    if not DTYPES[torch_dtype].has_numbers or not has_numpy_dtype(torch_dtype):
        raise TypeError(f"a tensor of {torch_dtype} cannot be padded: it has no numbers")
    is_whole = DTYPES[torch_dtype].kind in ("int", "bool")
    try:
        element = np.asarray(value, numpy_dtype(torch_dtype))
        fits = not is_whole or bool(element == value)
    except (TypeError, ValueError, OverflowError):
        fits = False
    if not fits:
        raise ValueError(f"{value} does not go into {torch_dtype}")
    made = tensor_of(element, torch_dtype)
    assert made is not None
    return made.spec


def _of_one_dtype(tensors: Iterable[Any]) -> list[TensorSpec]:
    if isinstance(tensors, LazyTensor | np.ndarray) or not isinstance(tensors, Iterable):
        found = type(tensors).__name__ if not isinstance(tensors, Iterable) else "one tensor"
        raise TypeError(f"a list of tensors was expected, not {found}")
    specs = [_spec_of(each) for each in tensors]
    if not specs:
        raise ValueError("there must be one tensor or more")
    dtypes = [each.torch_dtype for each in specs]
    dtype = dtypes[0] if len(set(dtypes)) == 1 else promoted(dtypes)
    return [converted(spec, dtype) for spec in specs]


def _axis(axis: Any, ndim: int) -> int:
    try:
        at = int(operator.index(axis))
    except TypeError:
        raise TypeError(f"an axis is an int, not {shown(axis)}") from None
    if not -ndim <= at < ndim:
        raise ValueError(f"axis {at} of tensors of {ndim} dimensions")
    return at % ndim


def _broadcast(spec: TensorSpec, shape: tuple[int, ...]) -> TensorSpec:
    if broadcast_shape([spec.shape, shape]) != shape:
        raise ValueError(
            f"a tensor of shape {list(spec.shape)} has more elements than {list(shape)}"
        )
    return broadcast_spec(spec, shape)


def _repeats(specs: Sequence[TensorSpec], rows: int, repeat: Sequence[int] | None) -> list[int]:
    """Return how many rows of the result go with one row of each tensor."""
    repeat = None if repeat is None else whole_numbers("repeat", repeat)
    if repeat is not None and len(repeat) != len(specs):
        raise ValueError(f"repeat has {len(repeat)} numbers for {len(specs)} tensors")
    found = []
    for number, spec in enumerate(specs):
        own = spec.shape[0]
        times = repeat[number] if repeat is not None else rows // own if own else 1
        if times < 1 or -(-rows // times) != own or (repeat is None and rows % max(own, 1)):
            raise ValueError(
                f"tensor {number} has {own:,} rows for the {rows:,} of the result; "
                + (f"{times} of these for each" if repeat is not None else "say by repeat= how")
            )
        found.append(times)
    return found
