"""Tensors of torchao: classes whose inner tensors are the codes, the scales and the zero points.

In a .pt a weight is an object of its class (`Checkpoint.subclassed`), and its inner tensors have
names below its own: ``weight.qdata``, ``weight.scale``. In the safetensors files that torchao 0.14
and later write, they are ``_weight_qdata`` and ``_weight_scale``, and the metadata has the class
and the attributes of ``weight`` as JSON.

=========================  =====================================================================
class                      the weight
=========================  =====================================================================
Float8Tensor               qdata * scale, in blocks of ``block_size``
Int8Tensor                 (qdata - zero_point) * scale, the same
IntxUnpackedToInt8Tensor   the same
MXTensor                   qdata * scale, of the ``elem_dtype``, in groups of ``block_size``
NVFP4Tensor                qdata * (scale * per_tensor_scale), e2m1
=========================  =====================================================================

The dtype is that of the wrapper. With ``is_swizzled_scales`` the scales are in the layout of
cuBLAS: tiles of 128 rows and 4 groups, in which row r is at ``r % 32, r // 32``. Other classes are
refused.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torchzip.checkpoint.lazy_tensor import LazyTensor
from torchzip.container.json_objects import parse_json
from torchzip.dtypes import DTYPES
from torchzip.errors import FormatError, UnsupportedError, shown
from torchzip.formats.rank_parts import wrapper_subclass
from torchzip.leaf_types import Dtype, ForeignObject
from torchzip.quantization.arithmetic import Part, check_dtype, misfit, scaled
from torchzip.quantization.fp4 import FP6_VALUES, Fp6Bytes, packed_fp4, rescaled
from torchzip.quantization.scheme import Plain
from torchzip.tensors.specs import TensorSpec
from torchzip.tensors.views import sliced

_BY_BLOCKS = ("Float8Tensor", "Int8Tensor", "IntxUnpackedToInt8Tensor")
_KNOWN = (*_BY_BLOCKS, "MXTensor", "NVFP4Tensor")
#: Parts that no weight is made from.
_OF_ACTIVATIONS = ("act_quant_scale", "act_quant_zero_point", "act_per_tensor_scale")


@dataclass(frozen=True, slots=True)
class Wrapper:
    """A tensor of torchao: its class, its dtype, its inner tensors and other attributes."""

    name: str
    kind: str
    dtype: str
    parts: Mapping[str, Part]
    attributes: Mapping[str, Any]
    call: ForeignObject | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """The names of its inner tensors, the codes first."""
        return tuple(
            dict.fromkeys(part.name for part in (self.parts["qdata"], *self.parts.values()))
        )


def wrappers(
    tensors: Mapping[str, Any],
    subclassed: Mapping[str, ForeignObject],
    metadata: Mapping[str, str],
) -> Iterator[Wrapper]:
    """Yield the tensors of torchao in a checkpoint."""
    for name, call in subclassed.items():
        found = _of_call(name, call, tensors)
        if found is not None:
            yield found
    if "tensor_names" in metadata:
        for name, text in metadata.items():
            found = _of_metadata(name, text, tensors)
            if found is not None:
                yield found


def _of_call(name: str, call: ForeignObject, tensors: Mapping[str, Any]) -> Wrapper | None:
    """Return the tensor that a call of ``_rebuild_from_type_v2`` makes; None if not of torchao."""
    made = wrapper_subclass(call)
    if made is None or not made[0].module.startswith("torchao."):
        return None
    kind, arguments, state = made
    if not (isinstance(state, dict) and isinstance(arguments, tuple) and len(arguments) > 1):
        raise FormatError(f"{shown(name)}: a {kind.name} without its attributes")
    dtype = arguments[1]
    names = {id(held): each for each, held in tensors.items()}
    parts = {
        key: Part(names.get(id(value), f"{name}.{key}"), value.spec)
        for key, value in state.items()
        if isinstance(value, LazyTensor)
    }
    return _wrapper(
        name, kind.name, dtype.name if isinstance(dtype, Dtype) else "", parts, state, call
    )


def _of_metadata(name: str, text: str, tensors: Mapping[str, Any]) -> Wrapper | None:
    """Return the tensor that the metadata of a safetensors file describes under its name."""
    if not text.startswith('{"_type"'):
        return None
    values = parse_json(text.encode(), f"the metadata of {shown(name)}", name)
    attributes, own = values.get("_data"), values.get("_tensor_data_names")
    if not isinstance(attributes, dict) or not isinstance(own, list):
        return None
    module, dot, last = name.rpartition(".")
    prefix = f"{module}{dot}_{last}_"
    parts = {
        key: Part(prefix + key, held.spec)
        for key in map(str, own)
        if isinstance(held := tensors.get(prefix + key), LazyTensor)
    }
    if not parts:
        return None  # in another shard
    dtype = attributes.get("dtype", attributes.get("orig_dtype"))
    dtype = dtype.get("_data") if isinstance(dtype, dict) else None
    return _wrapper(name, str(values["_type"]), str(dtype), parts, attributes)


def _wrapper(
    name: str, kind: str, dtype: str, parts: Mapping[str, Part], attributes: Mapping[str, Any],
    call: ForeignObject | None = None,
) -> Wrapper:  # fmt: skip
    if kind not in _KNOWN:
        raise UnsupportedError(
            f"{shown(name)} is a {shown(kind)} of torchao; one of {', '.join(_KNOWN)} was expected"
        )
    for key in ("qdata", "scale"):
        if key not in parts:
            raise FormatError(f"{shown(name)}: a {kind} without {key}")
    if dtype not in DTYPES or DTYPES[dtype].kind != "float":
        raise FormatError(f"{shown(name)}: a {kind} of the dtype {shown(dtype)}")
    return Wrapper(name, kind, dtype, parts, attributes, call)


def plain_of(found: Wrapper) -> Plain:
    """Return the plain weight."""
    codes = found.parts["qdata"]
    extra = found.parts.keys() - {"qdata", "scale", "zero_point", "per_tensor_scale"}
    extra -= {*_OF_ACTIVATIONS}
    if extra:
        part = found.parts[min(extra)]
        raise UnsupportedError(f"{part} beside {codes}: no formula of torchzip has it")
    spec, text = _by_blocks(found) if found.kind in _BY_BLOCKS else _by_groups(found)
    made = LazyTensor(spec).to(found.dtype).spec
    return Plain(f"torchao {found.kind}, {text}", found.dtype, lambda: made)


def _by_blocks(found: Wrapper) -> tuple[TensorSpec, str]:
    codes, scale, zero = found.parts["qdata"], found.parts["scale"], found.parts.get("zero_point")
    check_dtype(scale, codes, "float")
    block = found.attributes.get("block_size")
    shape = codes.shape
    if (
        not isinstance(block, list | tuple)
        or len(block) != len(shape)
        or len(shape) < 2
        or not all(type(size) is int and size > 0 for size in block)
        or any(size > 1 for size in block[:-2])
    ):
        raise FormatError(
            f"{codes} of a {found.kind} with the block_size {shown(block)}; a size for each axis "
            "was expected, and 1 for all but the last two"
        )
    grid = tuple(-(-size // each) for size, each in zip(shape, block, strict=True))
    parts = [each for each in (scale, zero) if each is not None]
    for each in parts:
        if each.spec.numel != math.prod(grid):
            raise misfit(each, codes, f"{list(grid)}, for blocks of {list(block)},")
    scale, *others = (each.reshaped(*grid) for each in parts)
    rows, columns = block[-2], block[-1]
    spec = scaled(codes, scale, (rows, columns), found.dtype, zero=others[0] if others else None)
    inside = "one scale a row" if (rows, columns) == (1, shape[-1]) else f"{rows}x{columns} blocks"
    return spec, inside


def _by_groups(found: Wrapper) -> tuple[TensorSpec, str]:
    codes, scale = found.parts["qdata"], found.parts["scale"]
    common = found.parts.get("per_tensor_scale")
    size = found.attributes.get("block_size")
    if type(size) is not int or size < 1 or len(codes.shape) < 2:
        raise FormatError(f"{codes} of a {found.kind} with the block_size {shown(size)}")
    element = found.attributes.get("elem_dtype")
    is_fp6 = isinstance(element, str) and element in FP6_VALUES
    is_fp4 = codes.dtype == "uint8" and not is_fp6
    if found.attributes.get("is_swizzled_scales"):
        columns = codes.shape[-1] * (2 if is_fp4 else 1)
        scale = _in_rows(scale, codes, -(-columns // size))
    if is_fp4:
        return packed_fp4(codes, scale, common, size=size)
    if is_fp6:
        check_dtype(codes, scale, "uint8")
        numbers = Fp6Bytes(str(element))
        made = scaled(codes, scale, (1, size), found.dtype, numbers=numbers)
        return made, f"{element}, groups of {size}"
    check_dtype(codes, scale, "float")
    if common is not None:
        scale = rescaled(codes, scale, common, divides=False)
    return scaled(codes, scale, (1, size), found.dtype), f"{codes.dtype}, groups of {size}"


def _in_rows(scale: Part, codes: Part, groups: int) -> Part:
    """Return scales in the layout of cuBLAS as one for each row and group."""
    rows = math.prod(codes.shape[:-1])
    down, across = -(-rows // 128), -(-groups // 4)
    if scale.spec.numel != down * across * 512:
        raise misfit(scale, codes, f"{down * across:,} tiles of 512 scales")
    tiles = scale.reshaped(down, across, 32, 4, 4).permuted(0, 3, 2, 1, 4)
    spec = tiles.reshaped(down * 128, across * 4).spec
    inside = sliced(spec, (slice(0, rows), slice(0, groups)))
    return Part(scale.name, inside).reshaped(*codes.shape[:-1], groups)
