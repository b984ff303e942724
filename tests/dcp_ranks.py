"""Writes distributed checkpoints with torch, from four processes on this machine.

Run as ``python -m tests.dcp_ranks FOLDER``; it needs torch. In FOLDER it leaves a directory for
each way of saving, and ``expected.pt`` with the whole tensors.
"""

from __future__ import annotations

import os
import sys
import tempfile
import warnings
from typing import Any

WORLD = 4


def whole(torch: Any) -> dict[str, Any]:
    """Return the tensors as they are before they are dealt out."""

    def ramp(*shape: int) -> Any:
        return torch.arange(torch.Size(shape).numel(), dtype=torch.float32).reshape(shape)

    return {
        "rows": ramp(10, 6),
        "columns": ramp(5, 8) + 0.5,
        "grid": ramp(6, 5, 4),
        "few": ramp(3, 2),
        "replicated": ramp(4).to(torch.bfloat16),
        "half": ramp(4, 4).to(torch.float16),
        "long": ramp(9, 2).to(torch.int64),
    }


def deal(tensors: dict[str, Any]) -> dict[str, Any]:
    """Return what this rank has of each tensor."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor

    line = init_device_mesh("cpu", (WORLD,))
    square = init_device_mesh("cpu", (2, 2))
    places: dict[str, Any] = {
        "rows": (line, [Shard(0)]),
        "columns": (line, [Shard(1)]),
        "grid": (square, [Shard(0), Shard(2)]),
        "few": (line, [Shard(0)]),
        "replicated": (line, [Replicate()]),
        "half": (square, [Replicate(), Shard(1)]),
        "long": (square, [Shard(0), Shard(0)]),
    }
    return {name: distribute_tensor(tensors[name], *place) for name, place in places.items()}


def sharded(rank: int) -> Any:
    """Return a ShardedTensor of 8 x 2, two rows a rank, in the order of the ranks reversed."""
    import torch
    from torch.distributed._shard.sharded_tensor import Shard, init_from_local_shards

    first = 2 * (WORLD - 1 - rank)
    rows = torch.arange(16.0).reshape(8, 2)[first : first + 2].clone()
    return init_from_local_shards([Shard.from_tensor_and_offsets(rows, [first, 0], rank)], 8, 2)


def run(rank: int, folder: str, store: str) -> None:
    """Save everything, as one rank."""
    import torch
    import torch.distributed as dist
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter

    warnings.simplefilter("ignore")
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=WORLD)
    full = whole(torch)
    parts = deal(full)
    nested = {
        "model": parts,
        "sharded": sharded(rank),
        "plain": {
            "transposed": full["rows"].t(),
            "scalar": torch.tensor(3),
            "view": full["rows"][2],
        },
        "empty": torch.zeros(0, 3),
        "optim": {
            "groups": [{"lr": 0.1, "params": [0, 1]}, {"t": torch.ones(2)}],
            "step": 7,
            "nothing": None,
            "no": {},
        },
        "list": [torch.ones(2), {"a": torch.zeros(1)}, (1, 2)],
        "bytes": b"abc",
        "size": torch.Size([2, 3]),
    }
    dcp.save(nested, checkpoint_id=os.path.join(folder, "dcp"))
    threads = dcp.FileSystemWriter(os.path.join(folder, "threads"), thread_count=2)
    dcp.save(nested, storage_writer=threads)
    files = dcp.FileSystemWriter(os.path.join(folder, "files"), single_file_per_rank=False)
    dcp.save({"model": parts}, storage_writer=files)
    own = {"a": full["rows"] * rank, f"own{rank}": full["few"], "rank": rank}
    alone = dcp.FileSystemWriter(os.path.join(folder, "alone"))
    dcp.save(own, storage_writer=alone, use_collectives=False)
    hub = HuggingFaceStorageWriter(os.path.join(folder, "hub"), save_distributed=True)
    dcp.save(parts, storage_writer=hub)
    floats = {name: part for name, part in parts.items() if name != "long"}
    numbers = {name: 1 + number % 2 for number, name in enumerate(floats)}
    joined = HuggingFaceStorageWriter(
        os.path.join(folder, "joined"), numbers, save_distributed=True, enable_consolidation=True
    )
    dcp.save(floats, storage_writer=joined)
    if rank == 0:
        torch.save(full, os.path.join(folder, "expected.pt"))
    dist.destroy_process_group()


def main() -> None:
    import torch
    import torch.distributed.checkpoint
    import torch.distributed.tensor

    torch.set_num_threads(1)
    folder = sys.argv[1]
    with tempfile.TemporaryDirectory() as place:
        torch.multiprocessing.start_processes(
            run, (folder, os.path.join(place, "store")), WORLD, start_method="fork"
        )


if __name__ == "__main__":
    main()
