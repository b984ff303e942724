"""What one rank has of a tensor: DTensor and ShardedTensor as ``torch.save`` pickles them.

Both are a call of ``_rebuild_from_type_v2(_rebuild_wrapper_subclass, class, (class, dtype, size,
stride, offset, layout, device, requires_grad), state)``, with the size of the whole tensor. A state
is a dict, or (None, dict) where a class has slots.

A DTensor has ``_local_tensor`` and ``_spec``: a mesh, the place of this rank in it, and one
placement for each axis of the mesh. Which box that is:

* It begins as the whole tensor. ``Shard(d)`` on a mesh axis of m ranks cuts dimension d into pieces
  of ``ceil(size / m)``, the last of which may be shorter or empty, and takes that of this rank. The
  axes come from left to right.
* ``_StridedShard(d, split_factor=s)`` is cut after the later axes that cut d, of which s is the
  number of ranks; of several of these the last comes first. So FSDP writes what tensor parallelism
  has cut before.
* ``Replicate`` cuts nothing: ranks that differ in that axis alone have the same box.

The mesh is a ``_layout`` in torch 2.13, and an int tensor ``mesh`` of the numbers of ranks before.

A ShardedTensor has a list of shards, each with the offsets and sizes of its box.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

from torchzip.errors import (
    MAX_NDIM,
    FormatError,
    TensorError,
    UnsupportedError,
    shown,
    too_many_dimensions,
)
from torchzip.formats.pickled import knows
from torchzip.formats.rank_files import check_dense, check_shape
from torchzip.leaf_types import Dtype, ForeignObject, Size
from torchzip.limits import is_number
from torchzip.pickling.table import Name
from torchzip.tensors.specs import Shape, TensorSpec

_CALL = ("torch._tensor", "_rebuild_from_type_v2")
_FUNCTION = ("torch._utils", "_rebuild_wrapper_subclass")
#: Where classes of placements are, by releases.
_PLACEMENTS = (
    "torch.distributed.tensor.placement_types",
    "torch.distributed._tensor.placement_types",
)
_SPEC = "torch.distributed.tensor._dtensor_spec"
_SHARDED = "torch.distributed._shard.sharded_tensor"
_LAYOUT = "torch.distributed._mesh_layout"
#: The classes of what is in these tensors, and the modules that they were in.
_CLASSES: dict[str, tuple[str, ...]] = {
    "DTensor": (
        "torch.distributed.tensor", "torch.distributed._tensor", "torch.distributed._tensor.api",
    ),
    "DTensorSpec": (_SPEC, *_PLACEMENTS),
    "TensorMeta": (_SPEC, *_PLACEMENTS),
    "ShardOrderEntry": (_SPEC,),
    **dict.fromkeys(("Shard", "_StridedShard", "Replicate", "Partial"), _PLACEMENTS),
    "DeviceMesh": ("torch.distributed.device_mesh", "torch.distributed._tensor.device_mesh"),
    "_MeshLayout": (_LAYOUT,),
    "_FlatLayout": (_LAYOUT,),
    "ShardedTensor": (f"{_SHARDED}.api",),
    "ShardedTensor.ProcessGroupState": (f"{_SHARDED}.api",),
    "ShardedTensorMetadata": (f"{_SHARDED}.metadata",),
    "TensorProperties": (f"{_SHARDED}.metadata",),
    "MEM_FORMAT_ENCODING": (f"{_SHARDED}.metadata",),
    "ShardMetadata": ("torch.distributed._shard.metadata",),
    "ChunkShardingSpec": ("torch.distributed._shard.sharding_spec.chunk_sharding_spec",),
    "EnumerableShardingSpec": ("torch.distributed._shard.sharding_spec.api",),
    "_remote_device": ("torch.distributed.remote_device",),
}  # fmt: skip
_NAMES = frozenset((module, name) for name, modules in _CLASSES.items() for module in modules) | {
    (f"{_SHARDED}.shard", "Shard")
}


def knows_in_parts(name: Name) -> bool:
    """Return whether a name is one that a rank file of torch has."""
    return name in _NAMES or knows(name)


#: Tensors that are spread over ranks.
_BOTH = ("DTensor", "ShardedTensor")


class Part(NamedTuple):
    """A box of a tensor of size ``shape``, and what fills it."""

    torch_dtype: str
    shape: Shape
    offsets: Shape
    spec: TensorSpec


def wrapper_subclass(value: Any) -> tuple[ForeignObject, Any, Any] | None:
    """Return the class of a tensor that is made of others, its arguments and its state.

    None for any value that is not a call as at the top of this module.
    """
    args = value.args if type(value) is ForeignObject else None
    if args is None or (value.module, value.name) != _CALL or len(args) != 4:
        return None
    function, kind, arguments, state = args
    if any(type(each) is not ForeignObject or each.how != "name" for each in (function, kind)):
        return None
    return (kind, arguments, state) if (function.module, function.name) == _FUNCTION else None


def parts_of(value: Any) -> list[Part] | None:
    """Return what a rank has of a tensor that is spread over ranks; None for any other value.

    Raises
    ------
    FormatError
        If it lies about itself: its numbers do not give the size of the tensor that is there.
    UnsupportedError
        If it is spread in a way that is not read.
    """
    made = wrapper_subclass(value)
    if made is None or made[0].name not in _BOTH or made[0].module not in _CLASSES[made[0].name]:
        return None
    kind, arguments, state = made
    if type(arguments) is not tuple or len(arguments) < 3 or type(arguments[1]) is not Dtype:
        raise FormatError(f"a {kind.name} is made of {shown(arguments)}; a dtype and a size miss")
    shape = _shape(arguments[2], f"the size of a {kind.name}")
    dtype = arguments[1].name
    if kind.name == "ShardedTensor":
        return list(_shards(state, dtype, shape))
    return [_local(state, dtype, shape)]


def _local(state: Any, dtype: str, shape: Shape) -> Part:
    held = _attributes(state, "a DTensor")
    spec = check_dense(held.get("_local_tensor"), "the _local_tensor of a DTensor")
    layout = _attributes(held.get("_spec"), "the _spec of a DTensor")
    placements = layout.get("placements")
    if type(placements) is not tuple:
        raise FormatError(
            f"the placements of a DTensor are {shown(placements)}; a tuple was expected"
        )
    mesh, place = _mesh(layout.get("mesh"))
    if not len(mesh) == len(place) == len(placements):
        raise FormatError(
            f"a DTensor with {len(placements):,} placements on a mesh of {len(mesh):,} axes, in "
            f"which its rank has {len(place):,} coordinates; as many of each were expected"
        )
    offsets, sizes = [0] * len(shape), [*shape]
    for axis, dim in _order(placements, mesh, layout.get("shard_order"), len(shape)):
        each = -(-sizes[dim] // mesh[axis])
        low = min(sizes[dim], each * place[axis])
        offsets[dim] += low
        sizes[dim] = min(sizes[dim] - low, each)
    _check_part(spec, dtype, tuple(sizes))
    return Part(dtype, shape, tuple(offsets), spec)


def _check_part(spec: TensorSpec, dtype: str, sizes: Shape) -> None:
    if (spec.torch_dtype, spec.shape) != (dtype, sizes):
        raise TensorError(
            f"the part of a rank is {spec.torch_dtype} of size {list(spec.shape)}; by its place it "
            f"is {dtype} of size {list(sizes)}"
        )


# -- placements ------------------------------------------------------------------------------


def _order(
    placements: tuple[Any, ...], mesh: Shape, shard_order: Any, ndim: int
) -> Iterator[tuple[int, int]]:
    """Yield the axes of a mesh that cut, in their order, each with the dimension that it cuts."""
    plain: list[tuple[int, int]] = []
    strided: list[tuple[int, int]] = []
    for axis, placement in enumerate(placements):
        if type(placement) is not ForeignObject or placement.module not in _PLACEMENTS:
            raise FormatError(f"a placement is {shown(placement)}; one of torch's was expected")
        if placement.name == "Replicate":
            continue
        if placement.name not in ("Shard", "_StridedShard"):
            raise UnsupportedError(
                f"a DTensor with the placement {placement.name}; a tensor that is cut or repeated "
                "is read"
            )
        held = _attributes(placement, "a placement")
        dim = held.get("dim")
        if not is_number(dim) or dim >= ndim:
            raise FormatError(
                f"a placement cuts dimension {shown(dim)} of a tensor of {ndim:,} dimensions"
            )
        (plain if placement.name == "Shard" else strided).append((axis, dim))
        if placement.name == "_StridedShard":
            later = _later(placements, mesh, axis, dim)
            if held.get("split_factor") != later:
                raise UnsupportedError(
                    f"a _StridedShard with split_factor {shown(held.get('split_factor'))}; "
                    f"{later:,} is read, as FSDP over tensor parallelism has it"
                )
    if not strided and type(shard_order) is tuple:
        plain = _reordered(plain, shard_order)
    yield from plain
    yield from reversed(strided)


def _later(placements: tuple[Any, ...], mesh: Shape, axis: int, dim: int) -> int:
    """Return the ranks of the later axes that cut a dimension as well."""
    return math.prod(
        size
        for other, size in zip(placements[axis + 1 :], mesh[axis + 1 :], strict=True)
        if type(other) is ForeignObject and _attributes(other, "a placement").get("dim") == dim
    )


def _reordered(plain: list[tuple[int, int]], shard_order: tuple[Any, ...]) -> list[tuple[int, int]]:
    """Return axes in the order that torch 2.13 says, by dimensions: (dim, (axis, ...))."""
    made: list[tuple[int, int]] = []
    for entry in shard_order:
        args = entry.args if type(entry) is ForeignObject else entry
        if type(args) is not tuple or len(args) != 2 or type(args[1]) is not tuple:
            raise FormatError(f"the shard_order of a DTensor has {shown(entry)}")
        made += [(axis, args[0]) for axis in args[1] if type(axis) is int]
    if len(made) != len(plain) or not all(pair in made for pair in plain):
        raise FormatError("the shard_order of a DTensor is not that of its placements")
    return made


# -- meshes ----------------------------------------------------------------------------------


def _mesh(value: Any) -> tuple[Shape, Shape]:
    """Return the shape of a mesh, and the place of the file's rank in it."""
    held = _attributes(value, "the mesh of a DTensor")
    if "_layout" in held:
        layout = _attributes(held["_layout"], "the layout of a mesh")
        sizes: Any = layout.get("axes", layout.get("shape"))
        axes = sizes if type(sizes) in (tuple, list) else (sizes,)
        if len(axes) > MAX_NDIM:
            raise too_many_dimensions("a mesh", len(axes))
        shape = tuple(_axis_size(axis) for axis in axes)
    else:
        shape = check_dense(held.get("mesh"), "the ranks of a mesh").shape
    place: Any = held.get("_coordinate_on_dim")
    if (
        type(place) not in (tuple, list)
        or not all(map(is_number, place))
        or not all(at < size for at, size in zip(place, shape, strict=False))
    ):
        raise FormatError(
            f"the place of a rank in a mesh of {list(shape)} is {shown(place)}; its coordinates "
            "were expected"
        )
    return shape, tuple(place)


def _axis_size(axis: Any) -> int:
    """Return the ranks along one axis of a mesh, which may be made of several."""
    if type(axis) is ForeignObject:
        axis = _attributes(axis, "an axis of a mesh").get("shape")
    sizes: Any = axis if type(axis) in (tuple, list) else (axis,)
    if len(sizes) > MAX_NDIM or not all(map(is_number, sizes)):
        raise FormatError(f"the size of a mesh is {shown(axis)}; numbers of ranks were expected")
    return math.prod(sizes)


# -- ShardedTensor -----------------------------------------------------------------------------


def _shards(state: Any, dtype: str, shape: Shape) -> Iterator[Part]:
    shards = state[0] if type(state) is tuple and state else None
    if type(shards) is not list:
        raise FormatError(
            f"a ShardedTensor has {shown(shards)} for its shards; a list was expected"
        )
    for shard in shards:
        held = _attributes(shard, "a shard")
        spec = check_dense(held.get("tensor"), "the tensor of a shard")
        box = _attributes(held.get("metadata"), "the metadata of a shard")
        offsets, sizes = (
            _shape(box.get(f"shard_{each}"), f"the {each} of a shard")
            for each in ("offsets", "sizes")
        )
        _check_part(spec, dtype, sizes)
        yield Part(dtype, shape, offsets, spec)


# -- objects -----------------------------------------------------------------------------------


def _attributes(value: Any, what: str) -> dict[str, Any]:
    """Return the attributes of an object that was not made; those in slots are in a second dict."""
    state = value.state if type(value) is ForeignObject else value
    if type(state) is tuple and len(state) == 2 and state[0] is None:
        state = state[1]
    if state is None and type(value) is ForeignObject:
        state = {}
    if not isinstance(state, dict):
        raise FormatError(f"{what} has {shown(state)} for its attributes; a dict was expected")
    return state


def _shape(value: Any, what: str) -> Shape:
    is_shape = type(value) in (tuple, list, Size) and all(type(size) is int for size in value)
    return check_shape(Size(value) if is_shape else value, what)
