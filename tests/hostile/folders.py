"""Directories of many ranks: lies about sizes, meshes and offsets, and names that lead away."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from tests import builders as b
from tests.formats.rank_builder import dtensor, sharded_tensor
from tests.formats.tar_builder import tar_of
from tests.formats.zero_builder import Zero
from tests.hostile.parts import zipped
from tests.saved import quiet, saved
from torchzip.errors import FormatError, LimitError, TorchZipError, UnsupportedError
from torchzip.types import ForeignObject, Size


@dataclass(frozen=True)
class FolderAttack:
    """Files by their names in a directory, and the error that `load` must raise.

    ``opened`` is the file that is opened, or "" for the directory; None is an error of the system.
    """

    name: str
    files: Mapping[str, bytes]
    error: type[TorchZipError] | None = FormatError
    opened: str = ""


def _cycle() -> list[Any]:
    made: list[Any] = []
    made.append(made)
    return made


def _ring() -> dict[str, Any]:
    made: dict[str, Any] = {"a": {"b": [{}]}}
    made["a"]["b"][0]["c"] = made
    return made


def _many(depth: int = 9) -> Any:
    """Return a list that is 9**depth items long, if it is walked as a tree."""
    made: Any = 1
    for _ in range(depth):
        made = [made] * 9
    return made


# -- ZeRO ------------------------------------------------------------------------------------------

_HUGE = 1 << 62
_F4 = np.float32


def _files_of(roots: Mapping[str, Any]) -> dict[str, bytes]:
    with quiet():
        return {name: saved(root) for name, root in roots.items()}


def _zero(
    *, stage: int = 2, model: Any = None, optimizer: Any = None, **more: bytes
) -> dict[str, bytes]:
    """Return the files of two ranks with a tensor of 8 elements, changed."""
    zero = Zero(
        [{"a": np.arange(8, dtype=_F4)}], stage=stage, model=model or {}, optimizer=optimizer or {}
    )
    return _files_of(zero.roots()) | more


def _shapes(*size: Any) -> dict[str, Any]:
    return {"param_shapes": [{"a": Size(size)}]}


def _flats(*arrays: Any) -> dict[str, Any]:
    return {"single_partition_of_fp32_groups": list(arrays)}


_OPTIMIZER = "zero_pp_rank_{}_mp_rank_00_optim_states.pt"
_ONE = _OPTIMIZER.format(0)
_BASE = _zero()

_ZERO = (
    [
        FolderAttack(
            f"zero of ranks: {count!r}", _zero(optimizer={"partition_count": count}), error
        )
        for count, error in (
            (0, UnsupportedError),
            (-1, FormatError),
            (3, FormatError),
            (1 << 62, FormatError),
            (True, FormatError),
            (2.0, FormatError),
            ([2, 1 << 40], UnsupportedError),
            (_cycle(), FormatError),
            ([[2]], FormatError),
            ({}, FormatError),
        )
    ]
    + [
        FolderAttack(
            f"zero of stage {stage} of sizes: {size!r}", _zero(stage=stage, model=_shapes(*size))
        )
        for stage in (1, 3)
        for size in (
            (_HUGE,),
            (_HUGE, _HUGE),
            (_HUGE,) * 64,
            (1,) * 65,
            (9,),
            (3,),
            (-8,),
            (2, -4),
            (1 << 70,),
            (True,),
        )
    ]
    + [
        FolderAttack(f"zero with {name}", _zero(stage=stage, model=model, optimizer=optimizer))
        for name, stage, model, optimizer in (
            ("shapes in a ring", 2, {"param_shapes": _cycle()}, None),
            (
                "shapes that are used over and over",
                2,
                {"param_shapes": [{"a": Size((4,))}] * 9},
                None,
            ),
            ("a state dict in a ring", 2, {"module": {"b": _ring()}}, None),
            ("no flat buffers", 2, None, _flats()),
            ("flat buffers of many", 2, None, _flats(*[np.ones(4, _F4)] * 1000)),
            ("a flat buffer of another size", 2, None, _flats(np.ones(400, _F4))),
            ("an empty flat buffer", 2, None, _flats(np.ones(0, _F4))),
            ("paddings of huge size", 2, None, {"param_alignment_paddings": [[_HUGE]]}),
            ("paddings below 0", 2, None, {"param_alignment_paddings": [[-4]]}),
            ("slices of another size", 3, None, {"fp32_flat_groups": [np.ones(99, _F4)]}),
            ("slices of nothing", 3, None, {"fp32_flat_groups": [np.ones(0, _F4)]}),
            ("frozen slices that lack", 3, {"frozen_param_shapes": {"f": Size((6,))}}, None),
            (
                "frozen slices too short",
                3,
                {
                    "frozen_param_shapes": {"f": Size((_HUGE,))},
                    "frozen_param_fragments": {"f": np.ones(3, _F4)},
                },
                None,
            ),
        )
    ]
    + [
        FolderAttack(
            f"latest that names {tag[:20]!r} of {len(tag)} bytes", {"latest": tag, "x": b""}, error
        )
        for tag, error in (
            (b"..", FormatError),
            (b".", FormatError),
            (b"/", FormatError),
            (b"/etc", FormatError),
            (b"../given", FormatError),
            (b"a/../x", FormatError),
            (b"c:x", FormatError),
            (b"a\\x", FormatError),
            (b"x\0", FormatError),
            (b"", FormatError),
            (b"none", FormatError),
            (b"\xff\xfe", FormatError),
            (b"a" * 300, FormatError),
            (b"a" * (1 << 17), LimitError),
            (b"latest", None),
            (b"x", None),
        )
    ]
    + [
        FolderAttack(
            f"universal zero with {name!r}",
            _files_of(
                {
                    "mp_rank_00_model_states.pt": {
                        "module": {},
                        "param_shapes": [{name: Size((2,))}],
                    },
                    "zero/a/fp32.pt": np.ones(2, _F4),
                    "outside/fp32.pt": np.ones(2, _F4),
                }
            ),
        )
        for name in (
            "../outside",
            "..",
            ".",
            "/etc",
            "a/../../outside",
            "a\\..",
            "c:a",
            "b",
            "",
            "a\0",
        )
    ]
    + [
        FolderAttack(
            f"universal zero of {what}",
            _files_of(
                {
                    "mp_rank_00_model_states.pt": {
                        "module": {},
                        "param_shapes": [{"a": Size((2,))}],
                    },
                    "zero/a/fp32.pt": value,
                }
            ),
        )
        for what, value in (
            ("another size", np.ones(3, _F4)),
            ("a ring", _cycle()),
            ("words", {"param": "x"}),
            ("nothing", {}),
        )
    ]
    + [
        FolderAttack(
            "universal zero that lacks a file",
            {
                **_files_of(
                    {
                        "mp_rank_00_model_states.pt": {
                            "module": {},
                            "param_shapes": [{"a": Size((2,))}],
                        }
                    }
                ),
                "zero/a/x": b"",
            },
            None,
        ),
        FolderAttack(
            "universal zero of stride 0",
            {
                **_files_of(
                    {
                        "mp_rank_00_model_states.pt": {
                            "module": {},
                            "param_shapes": [{"a": Size((1 << 41,))}],
                        }
                    }
                ),
                "zero/a/fp32.pt": zipped(b.tensor(size=(1 << 40,), stride=(0,))),
            },
        ),
        FolderAttack(
            "zero of stride 0",
            {
                **_BASE,
                _ONE: zipped(
                    b.dict_of(
                        {
                            "optimizer_state_dict": b.dict_of(
                                {
                                    "partition_count": 2,
                                    "single_partition_of_fp32_groups": b.list_of(
                                        b.tensor(size=(1 << 40,), stride=(0,))
                                    ),
                                }
                            )
                        }
                    )
                ),
            },
        ),
        FolderAttack(
            "zero of the millionth rank", {**_BASE, _OPTIMIZER.format(999_999): _BASE[_ONE]}
        ),
        FolderAttack(
            "zero of more digits than ranks have",
            {"zero_pp_rank_9999999_mp_rank_00_optim_states.pt": b""},
        ),
        FolderAttack(
            "zero of the millionth part",
            {**_BASE, "zero_pp_rank_0_mp_rank_999999_optim_states.pt": b""},
            UnsupportedError,
        ),
        FolderAttack("zero of which a rank is there twice", {**_BASE, f"bf16_{_ONE}": _BASE[_ONE]}),
        FolderAttack(
            "zero of which a rank is another's",
            {**_BASE, _OPTIMIZER.format(1): _zero(optimizer=_flats(np.ones(3, _F4)))[_ONE]},
        ),
        FolderAttack("zero with a rank that is cut", {**_BASE, _ONE: _BASE[_ONE][:-30]}),
        FolderAttack("zero with a rank of nothing", {**_BASE, _ONE: b""}),
        FolderAttack(
            "zero with a rank of safetensors",
            {**_BASE, _ONE: b"\2\0\0\0\0\0\0\0{}"},
            UnsupportedError,
        ),
    ]
)


# -- parts with a place ----------------------------------------------------------------------------

_A = np.arange(12, dtype=_F4).reshape(6, 2)


def _ranks(make: Callable[[int], Any], count: int = 2, said: int | None = None) -> dict[str, bytes]:
    """Return the files of ranks whose object has what ``make`` gives for their numbers."""
    said = count if said is None else said
    return _files_of(
        {f"model_world_size_{said}_rank_{rank}.pt": make(rank) for rank in range(count)}
    )


def _part(rank: int, **changes: Any) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "part": _A[3 * rank : 3 * rank + 3],
        "shape": _A.shape,
        "mesh": [2],
        "placements": [0],
        "at": [rank],
    }
    return {"a": dtensor(**(fields | changes))}


def _in_state(rank: int, key: str, value: Any) -> dict[str, Any]:
    """Return a part of which one attribute is another."""
    made = _part(rank)
    made["a"].args[3][1]["_spec"].state[key] = value
    return made


def _with_mesh(rank: int, **state: Any) -> dict[str, Any]:
    mesh = ForeignObject(
        "torch.distributed.device_mesh", "DeviceMesh", (), how="new",
        state={"_coordinate_on_dim": (rank,), **state},
    )  # fmt: skip
    return _in_state(rank, "mesh", mesh)


def _layout(*sizes: Any) -> ForeignObject:
    module = "torch.distributed._mesh_layout"
    axes = tuple(
        ForeignObject(module, "_FlatLayout", (), how="new", state={"shape": s}) for s in sizes
    )
    return ForeignObject(module, "_MeshLayout", (), how="new", state={"axes": axes})


def _shard(rank: int, *offsets: Any, rows: int = 3) -> dict[str, Any]:
    return {"a": sharded_tensor(_A[:rows], _A, _A.shape, offsets or (3 * rank, 0))}


_PARTS: list[tuple[str, Callable[[int], Any], type[TorchZipError]]] = [
    ("sizes that are huge", lambda r: _part(r, shape=(_HUGE, 2)), FormatError),
    (
        "sizes that are huge and no part",
        lambda r: _part(r, shape=(_HUGE, _HUGE), part=_A[:0]),
        FormatError,
    ),
    ("sizes below 0", lambda r: _part(r, shape=(-6, 2)), FormatError),
    ("sizes of 65 dimensions", lambda r: _part(r, shape=(1,) * 65), FormatError),
    ("sizes of no dimension", lambda r: _part(r, shape=()), FormatError),
    ("a size for each rank", lambda r: _part(r, shape=(6 + r, 2)), FormatError),
    ("a mesh of 0", lambda r: _part(r, mesh=[0]), FormatError),
    ("a mesh of -2", lambda r: _part(r, mesh=[-2]), FormatError),
    ("a mesh of huge size", lambda r: _part(r, mesh=[_HUGE]), FormatError),
    ("a mesh of two axes", lambda r: _part(r, mesh=[2, 2]), FormatError),
    (
        "a mesh of 65 axes",
        lambda r: _part(r, mesh=[1] * 65, at=[0] * 65, placements=["R"] * 65),
        FormatError,
    ),
    ("a mesh of words", lambda r: _with_mesh(r, mesh="words"), FormatError),
    ("a mesh of nothing", lambda r: _with_mesh(r), FormatError),
    ("a mesh that is a ring", lambda r: _in_state(r, "mesh", _cycle()), FormatError),
    ("a layout of words", lambda r: _with_mesh(r, _layout="words"), FormatError),
    ("a layout of a ring", lambda r: _with_mesh(r, _layout=_layout(_cycle())), FormatError),
    ("a layout of many sizes", lambda r: _with_mesh(r, _layout=_layout((1,) * 1000)), FormatError),
    (
        "a layout of huge sizes",
        lambda r: _with_mesh(r, _layout=_layout((_HUGE,) * 64)),
        FormatError,
    ),
    ("a layout of bools", lambda r: _with_mesh(r, _layout=_layout((True, True))), FormatError),
    ("a place past the mesh", lambda r: _part(r, at=[2]), FormatError),
    ("a place below 0", lambda r: _part(r, at=[-1]), FormatError),
    ("a place of huge number", lambda r: _part(r, at=[_HUGE]), FormatError),
    ("a place of bools", lambda r: _part(r, at=[True]), FormatError),
    ("a place of no numbers", lambda r: _part(r, at=[]), FormatError),
    ("one place for all", lambda r: _part(r, at=[0]), FormatError),
    ("all, where each has a part", lambda r: _part(r, placements=["R"]), FormatError),
    ("a part cut along dimension 2", lambda r: _part(r, placements=[2]), FormatError),
    ("a part cut along dimension 2**62", lambda r: _part(r, placements=[_HUGE]), FormatError),
    ("sums", lambda r: _part(r, placements=["P"]), UnsupportedError),
    ("placements of words", lambda r: _in_state(r, "placements", ("words",)), FormatError),
    ("placements that are a ring", lambda r: _in_state(r, "placements", (_cycle(),)), FormatError),
    ("placements of a list", lambda r: _in_state(r, "placements", _cycle()), FormatError),
    ("placements of many", lambda r: _part(r, placements=["R"] * 1000), FormatError),
    ("an order of a ring", lambda r: _in_state(r, "shard_order", (_cycle(),)), FormatError),
    ("an order of others", lambda r: _in_state(r, "shard_order", ((9, (0,)),)), FormatError),
    ("a local tensor that is too long", lambda r: _part(r, part=_A), FormatError),
    ("another name in each file", lambda r: {f"a{r}": _A}, FormatError),
    ("an object that is a ring", lambda r: _cycle(), LimitError),
    ("a dict that is a ring", lambda r: _ring(), LimitError),
    ("a list that is long as a tree", lambda r: _many(), LimitError),
    ("names of endless length", lambda r: {"n" * 60_000: _many(4)}, LimitError),
    ("keys of tuples", lambda r: {(1, 2): _A}, FormatError),
    ("shards past the end", lambda r: _shard(r, 4, 0), FormatError),
    ("shards at a huge offset", lambda r: _shard(r, _HUGE, 0), FormatError),
    ("shards below 0", lambda r: _shard(r, -3, 0), FormatError),
    ("shards at one place", lambda r: _shard(r, 0, 0), FormatError),
    ("shards with a gap", lambda r: _shard(r, 3 * r, 0, rows=2), FormatError),
    ("shards of one dimension", lambda r: _shard(r, 3 * r), FormatError),
    ("shards of bools", lambda r: _shard(r, True, 0), FormatError),
]

_RANKS = [
    FolderAttack(f"ranks with {name}", _ranks(make), error) for name, make, error in _PARTS
] + [
    FolderAttack("a rank of a million", _ranks(_part, 1, said=999_999)),
    FolderAttack("a rank of none", _ranks(_part, 1, said=0)),
    FolderAttack("a rank too many", _ranks(_part, 2, said=1)),
    FolderAttack(
        "ranks of a mesh of four", _ranks(lambda r: _part(r, mesh=[4], part=_A[2 * r : 2 * r + 2]))
    ),
    FolderAttack(
        "ranks with a rank of nothing", {**_ranks(_part), "model_world_size_2_rank_1.pt": b""}
    ),
    FolderAttack(
        "ranks with a rank of words", {**_ranks(_part), "model_world_size_2_rank_1.pt": b"words"}
    ),
    FolderAttack(
        "ranks with a rank that is cut", {name: data[:-20] for name, data in _ranks(_part).items()}
    ),
    FolderAttack(
        "ranks of safetensors",
        dict.fromkeys(_ranks(_part), b"\2\0\0\0\0\0\0\0{}"),
        UnsupportedError,
    ),
    FolderAttack("ranks of two saves", {**_ranks(_part), **_ranks(_part, 1, said=3)}),
    FolderAttack("ranks beside zero", {**_ranks(_part), **_BASE}),
]


# -- tar files that have the weights ---------------------------------------------------------------


def _nemo(members: dict[str, bytes], error: type[TorchZipError] = FormatError) -> Any:
    return {"files": {"m.nemo": tar_of(members)}, "error": error, "opened": "m.nemo"}


_WEIGHTS = saved({"w": np.ones(2)})
_NEMO = [
    FolderAttack(f"nemo with {name}", **fields)
    for name, fields in (
        ("weights outside", _nemo({"../model_weights.ckpt": _WEIGHTS}, UnsupportedError)),
        ("weights at the root", _nemo({"/model_weights.ckpt": _WEIGHTS}, UnsupportedError)),
        (
            "weights in itself",
            _nemo(
                {"model_weights.ckpt": tar_of({"model_weights.ckpt": _WEIGHTS})}, UnsupportedError
            ),
        ),
        ("weights that are cut", _nemo({"model_weights.ckpt": _WEIGHTS[:-9]})),
        ("weights of nothing", _nemo({"model_weights.ckpt": b""})),
    )
]

FOLDERS: list[FolderAttack] = [*_ZERO, *_RANKS, *_NEMO]
