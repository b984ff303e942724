"""Rank files by hand: parts of arrays as torch pickles them, by a plain model of its rules."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import torchzip as tz
from tests.saved import quiet
from torchzip.types import Dtype, ForeignObject, Size

#: ``"R"``, or the dimension that is cut: an int; with a minus sign before it and less 1, strided.
Placement = str | int

_TYPES = "torch.distributed.tensor.placement_types"
_OLD_TYPES = "torch.distributed._tensor.placement_types"


def _new(module: str, name: str, state: Any = None, args: tuple[Any, ...] = ()) -> ForeignObject:
    return ForeignObject(module, name, args, state=state, how="new")


def _piece(array: NDArray[Any], dim: int, count: int, number: int) -> NDArray[Any]:
    """Return one of the pieces that ``torch.chunk`` makes, or an empty one."""
    each = -(-array.shape[dim] // count)
    inside = [slice(None)] * array.ndim
    inside[dim] = slice(each * number, each * (number + 1))
    return array[tuple(inside)]


def local(
    array: NDArray[Any], mesh: Sequence[int], placements: Sequence[Placement], at: Sequence[int]
) -> NDArray[Any]:
    """Return what the rank at a place of a mesh has of an array."""
    axes = [axis for axis, each in enumerate(placements) if isinstance(each, int) and each >= 0]
    strided = [axis for axis, each in enumerate(placements) if isinstance(each, int) and each < 0]
    for axis in (*axes, *reversed(strided)):
        placement = placements[axis]
        assert isinstance(placement, int)
        dim = placement if placement >= 0 else -placement - 1
        array = _piece(array, dim, mesh[axis], at[axis])
    return array


def _placement(
    axis: int, mesh: Sequence[int], placements: Sequence[Placement], module: str
) -> ForeignObject:
    placement = placements[axis]
    if isinstance(placement, str):
        name = {"R": "Replicate", "P": "Partial"}[placement]
        return _new(module, name)
    if placement >= 0:
        return _new(module, "Shard", {"dim": placement})
    dim = -placement - 1
    later = [mesh[i] for i in range(axis + 1, len(mesh)) if placements[i] in (dim, placement)]
    factor = int(np.prod(later))
    return _new(module, "_StridedShard", {"dim": dim, "split_factor": factor})


def dtensor(
    part: NDArray[Any],
    shape: Sequence[int],
    mesh: Sequence[int],
    placements: Sequence[Placement],
    at: Sequence[int],
    *,
    old: bool = False,
    **changes: Any,
) -> ForeignObject:
    """Return a DTensor as torch 2.13 pickles it, or an ``old`` release."""
    module = _OLD_TYPES if old else _TYPES
    kind = ForeignObject(
        "torch.distributed._tensor" if old else "torch.distributed.tensor", "DTensor"
    )
    if old:
        ranks = np.arange(int(np.prod(mesh)), dtype=np.int64).reshape(mesh)
        state: dict[str, Any] = {
            "device_type": "cpu",
            "mesh": ranks,
            "_coordinate_on_dim": list(at),
        }
        device_mesh = _new("torch.distributed.device_mesh", "DeviceMesh", state)
    else:
        layout = "torch.distributed._mesh_layout"
        axes = [_new(layout, "_FlatLayout", {"shape": (size,), "stride": (1,)}) for size in mesh]
        state = {
            "_layout": _new(layout, "_MeshLayout", {"axes": tuple(axes)}),
            "_coordinate_on_dim": tuple(at),
        }
        device_mesh = _new("torch.distributed.device_mesh", "DeviceMesh", state)
    spec: dict[str, Any] = {
        "mesh": device_mesh,
        "placements": tuple(
            _placement(axis, mesh, placements, module) for axis in range(len(placements))
        ),
        **changes,
    }
    spec_module = module if old else "torch.distributed.tensor._dtensor_spec"
    held = {"_local_tensor": part, "_spec": _new(spec_module, "DTensorSpec", spec)}
    return _wrapper(kind, part, shape, held if old else (None, held))


def sharded_tensor(
    part: NDArray[Any] | None, dtype: NDArray[Any], shape: Sequence[int], offsets: Sequence[int]
) -> ForeignObject:
    """Return a ShardedTensor with one shard, or none."""
    api = "torch.distributed._shard"
    shards = []
    if part is not None:
        box = {"shard_offsets": list(offsets), "shard_sizes": list(part.shape)}
        held = {"tensor": part, "metadata": _new(f"{api}.metadata", "ShardMetadata", (None, box))}
        shards.append(_new(f"{api}.sharded_tensor.shard", "Shard", (None, held)))
    kind = ForeignObject(f"{api}.sharded_tensor.api", "ShardedTensor")
    return _wrapper(kind, dtype, shape, (shards, None, None, None, False))


def _wrapper(
    kind: ForeignObject, part: NDArray[Any], shape: Sequence[int], state: Any
) -> ForeignObject:
    arguments = (kind, Dtype(str(part.dtype)), Size(shape), (1,) * len(shape), 0)
    return ForeignObject(
        "torch._tensor",
        "_rebuild_from_type_v2",
        (ForeignObject("torch._utils", "_rebuild_wrapper_subclass"), kind, arguments, state),
        how="call",
    )


def places(mesh: Sequence[int]) -> Iterator[tuple[int, ...]]:
    """Yield the place of each rank, in the order of their numbers."""
    return itertools.product(*map(range, mesh))


def write_ranks(
    folder: Path,
    arrays: Mapping[str, tuple[NDArray[Any], Sequence[Placement]]],
    mesh: Sequence[int],
    *,
    plain: Mapping[str, Any] | None = None,
    old: bool = False,
) -> Path:
    """Write a file for each rank of a mesh, with its parts of some arrays, and plain values."""
    count = int(np.prod(mesh))
    for rank, at in enumerate(places(mesh)):
        root = {
            name: dtensor(
                np.ascontiguousarray(local(array, mesh, cut, at)),
                array.shape,
                mesh,
                cut,
                at,
                old=old,
            )
            for name, (array, cut) in arrays.items()
        }
        write_rank(folder, rank, count, {**root, **(plain or {})})
    return folder


def write_rank(folder: Path, rank: int, count: int, root: Any, **options: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"model_world_size_{count}_rank_{rank}.pt"
    with quiet():
        tz.save(root, path, **options)
    return path
