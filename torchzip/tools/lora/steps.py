"""Makes the steps that a module of an adapter is: which factors, which scale, which rounding.

The weights are those of ``merge_and_unload`` of peft on a CPU: a delta is the float32 product of
the factors times the scale; it is added to the base in float32 and rounded once. That of an
embedding is rounded to the dtype of the base first, as peft does it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from torchzip.checkpoint.lazy_tensor import LazyTensor
from torchzip.dtypes import DTYPES
from torchzip.errors import FormatError, shown
from torchzip.tensors.specs import Shape, TensorSpec
from torchzip.tensors.views import permuted, reshaped
from torchzip.tools.lora.adapters import Adapter, Module
from torchzip.tools.lora.deltas import (
    AddKronecker,
    AddProduct,
    AddScaled,
    Constant,
    Normalize,
    Step,
    as_rows,
    product,
    tucker,
    tucker_whole,
)


@dataclass(frozen=True, slots=True)
class Change:
    """The steps for a weight, in words, and whether they are those of its transpose."""

    kind: str
    steps: tuple[Step, ...]
    is_transposed: bool = False
    #: The parts of the module that were used.
    parts: tuple[str, ...] = ()


def change_of(
    adapter: Adapter, module: Module, weight: LazyTensor, factor: float, rounded: str | None = None
) -> Change:
    """Return what a module of an adapter does to the weight of the base.

    ``factor`` is the weight of the adapter among others, ``rounded`` a dtype that a delta of low
    rank is rounded to before it is added.

    Raises
    ------
    FormatError
        If parts are missing, or their shapes do not fit the weight.
    """
    parts = module.tensors
    if not weight.shape:
        raise _misfit(module, tuple(module.keys), weight)
    if "diff" in parts:
        return _whole(module, weight, factor)
    if "hada_w1_a" in parts:
        return _hadamard(adapter, module, weight, factor)
    if any(part.startswith("lokr_") for part in parts):
        return _kronecker(adapter, module, weight, factor)
    if "embedding_down" in parts:
        return _embedding(adapter, module, weight, factor)
    return _low_rank(adapter, module, weight, factor, rounded)


def needed(module: Module, *parts: str) -> list[LazyTensor]:
    """Return parts of a module, floats all of them."""
    for part in parts:
        if part not in module.tensors:
            others = ", ".join(map(shown, module.keys.values()))
            raise FormatError(f"{shown(module.name)} has no {part} beside {others}")
        tensor = module.tensors[part]
        if DTYPES[tensor.torch_dtype].kind != "float" or not tensor.shape:
            raise FormatError(
                f"{shown(module.keys[part])} is {tensor.torch_dtype} {list(tensor.shape)}; a "
                "tensor of floats was expected"
            )
    return [module.tensors[part] for part in parts]


def _misfit(module: Module, parts: Mapping[str, LazyTensor] | tuple[str, ...],
            weight: LazyTensor) -> FormatError:  # fmt: skip
    told = ", ".join(
        f"{shown(module.keys[part])} {list(module.tensors[part].shape)}" for part in parts
    )
    return FormatError(
        f"{told} do not fit the weight of {shown(module.name)} in the base, {list(weight.shape)}"
    )


def _matrix(tensor: LazyTensor) -> TensorSpec:
    """Return a tensor as a matrix of its rows."""
    shape = tensor.shape
    return reshaped(tensor.spec, (shape[0], math.prod(shape[1:])))


def _turned(spec: TensorSpec) -> TensorSpec:
    return permuted(spec, (1, 0))


def _is_transposed(
    adapter: Adapter, module: Module, parts: tuple[str, ...], delta: Shape, weight: LazyTensor
) -> bool:
    """Return whether a delta, as a matrix, is added to the transpose of a weight.

    That of a Conv1D of GPT-2, [in, out], is; the config says so where the shape does not. It is
    made of some parts of a module, which do not fit otherwise.
    """
    shape = weight.shape
    flat = shape[0], math.prod(shape[1:])
    is_square = len(shape) == 2 and flat[0] == flat[1]
    if delta == flat and not (is_square and (adapter.config or {}).get("fan_in_fan_out")):
        return False
    if len(shape) == 2 and delta == flat[::-1]:
        return True
    raise _misfit(module, parts, weight)


def _low_rank(
    adapter: Adapter, module: Module, weight: LazyTensor, factor: float, rounded: str | None
) -> Change:
    used: tuple[str, ...] = ("down", "up")
    down, up = needed(module, *used)
    rank = down.shape[0]
    left = reshaped(up.spec, (up.shape[0], up.spec.numel // max(up.shape[0], 1)))
    if "mid" in module.tensors:
        used = (*used, "mid")
        (core,) = needed(module, "mid")
        if len(core.shape) != 4 or core.shape[:2] != (left.shape[1], rank):
            raise _misfit(module, used, weight)
        constant = Constant(tucker, core.spec, _matrix(down))
        columns = down.spec.numel // max(rank, 1) * core.shape[2] * core.shape[3]
    else:
        if left.shape[1] != rank:
            raise _misfit(module, used, weight)
        constant = Constant(as_rows, down.spec)
        columns = down.spec.numel // max(rank, 1)
    turned = _is_transposed(adapter, module, used, (left.shape[0], columns), weight)
    scale = adapter.scale_of(module, rank) * factor
    steps: list[Step] = [AddProduct((left,), (constant,), scale, rounded)]
    kind = "lora"
    if "magnitude" in module.tensors:
        steps.append(_normalize(module, weight, left.shape[0]))
        kind, used = "dora", (*used, "magnitude")
    return Change(kind, tuple(steps), turned, (*used, "alpha"))


def _normalize(module: Module, weight: LazyTensor, rows: int) -> Normalize:
    (magnitude,) = needed(module, "magnitude")
    if magnitude.spec.numel != rows:
        raise _misfit(module, ("magnitude",), weight)
    return Normalize((reshaped(magnitude.spec, (rows, 1)),))


def _embedding(adapter: Adapter, module: Module, weight: LazyTensor, factor: float) -> Change:
    used: tuple[str, ...] = ("embedding_down", "embedding_up")
    down, up = needed(module, *used)
    rank = down.shape[0]
    if len(weight.shape) != 2 or (down.shape, up.shape) != (
        (rank, weight.shape[0]), (weight.shape[1], rank),
    ):  # fmt: skip
        raise _misfit(module, used, weight)
    scale = adapter.scale_of(module, rank) * factor
    if "magnitude" in module.tensors:  # one for each column, so of the transpose
        first = AddProduct((up.spec,), (Constant(as_rows, down.spec),), scale)
        steps = (first, _normalize(module, weight, up.shape[0]))
        return Change("dora", steps, True, (*used, "magnitude"))
    turned = Constant(as_rows, _turned(up.spec))
    step = AddProduct((_turned(down.spec),), (turned,), scale, weight.torch_dtype)
    return Change("lora of an embedding", (step,), False, used)


def _hadamard(adapter: Adapter, module: Module, weight: LazyTensor, factor: float) -> Change:
    used: tuple[str, ...] = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")
    one_a, one_b, two_a, two_b = needed(module, *used)
    rank = one_b.shape[0]
    lefts: list[TensorSpec] = []
    constants: list[Constant] = []
    columns: set[int] = set()
    for number, (left, right) in enumerate(((one_a, one_b), (two_a, two_b)), 1):
        core = module.tensors.get(f"hada_t{number}")
        if len(left.shape) != 2 or len(right.shape) < 2:
            raise _misfit(module, used, weight)
        if core is None:
            lefts.append(left.spec)
            constants.append(Constant(as_rows, right.spec))
            columns.add(math.prod(right.shape[1:]))
            fits = left.shape[1] == right.shape[0]
        else:  # [i, p] and [j, r] of a core [i, j, k, l]
            used = (*used, f"hada_t{number}")
            needed(module, f"hada_t{number}")
            lefts.append(_turned(left.spec))
            constants.append(Constant(tucker, core.spec, right.spec))
            columns.add(right.shape[1] * math.prod(core.shape[2:]))
            fits = core.shape[:2] == (left.shape[0], right.shape[0]) and len(core.shape) == 4
        if not fits:
            raise _misfit(module, used, weight)
    if len(columns) > 1 or lefts[0].shape[0] != lefts[1].shape[0]:
        raise _misfit(module, used, weight)
    turned = _is_transposed(adapter, module, used, (lefts[0].shape[0], *columns), weight)
    scale = adapter.scale_of(module, rank) * factor
    step = AddProduct(tuple(lefts), tuple(constants), scale)
    return Change("loha", (step,), turned, (*used, "alpha"))


def _kronecker(adapter: Adapter, module: Module, weight: LazyTensor, factor: float) -> Change:
    used: list[str] = []
    ranks: list[int] = []
    left, left_shape = _factor(module, 1, used, ranks)
    right, right_shape = _factor(module, 2, used, ranks)
    parts = tuple(used)
    delta = left_shape[0] * right_shape[0], left_shape[1] * right_shape[1]
    turned = _is_transposed(adapter, module, parts, delta, weight)
    rank = adapter.rank_of(module) if adapter.config is not None else (ranks or [0])[0]
    scale = adapter.scale_of(module, rank) * factor if rank else factor
    return Change("lokr", (AddKronecker(left, right, scale),), turned, (*parts, "alpha"))


def _factor(
    module: Module, number: int, used: list[str], ranks: list[int]
) -> tuple[Constant, tuple[int, int]]:
    """Return a factor of a Kronecker product, and its rows and columns; add what it is made of."""
    name = f"lokr_w{number}"
    if name in module.tensors:
        (whole,) = needed(module, name)
        used.append(name)
        return Constant(as_rows, whole.spec), (whole.shape[0], math.prod(whole.shape[1:]))
    names = (f"{name}_a", f"{name}_b")
    left, right = needed(module, *names)
    used.extend(names)
    core_name = f"lokr_t{number}"
    if core_name in module.tensors:
        (core,) = needed(module, core_name)
        used.append(core_name)
        if len(core.shape) != 4 or core.shape[:2] != (left.shape[0], right.shape[0]):
            raise _misfit(module, tuple(used), left)
        ranks.append(right.shape[0])
        constant = Constant(tucker_whole, core.spec, left.spec, right.spec)
        return constant, (left.shape[1], right.shape[1] * core.shape[2] * core.shape[3])
    if left.shape[-1] != right.shape[0] or len(left.shape) != 2:
        raise _misfit(module, tuple(used), left)
    ranks.append(right.shape[0])
    columns = math.prod(right.shape[1:])
    return Constant(product, left.spec, right.spec), (left.shape[0], columns)


def _whole(module: Module, weight: LazyTensor, factor: float) -> Change:
    (delta,) = needed(module, "diff")
    if delta.spec.numel != weight.spec.numel:
        raise _misfit(module, ("diff",), weight)
    step = AddScaled((reshaped(delta.spec, (weight.shape[0], -1)),), factor)
    return Change("diff", (step,), False, ("diff", "alpha"))
