"""Write the rank files of DTensors here: ``torchrun --nproc-per-node 4 make_dtensors.py FOLDER``.

Of two ranks only the first is made. With torch 2.4 ``fully_shard`` is that of
``torch.distributed._composable.fsdp``, and the states of two axes are not written by it.
"""

from __future__ import annotations

import os
import sys
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    parallelize_module,
)


class Model(nn.Module):  # type: ignore[misc]
    """Uneven rows, buffers, and one module under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.emb = nn.Embedding(11, 8)
        self.l1 = nn.Linear(8, 16)
        self.norm = nn.LayerNorm(16)
        self.l2 = nn.Linear(16, 7, bias=False)
        self.register_buffer("scalar", torch.tensor(3.0))
        self.register_buffer("buf", torch.arange(5.0))
        self.tied = self.l1


def new_model() -> Model:
    """Return the same model in each rank."""
    torch.manual_seed(0)
    return Model()


def write(folder: str, state: dict[str, Any]) -> None:
    """Write what this rank has."""
    os.makedirs(folder, exist_ok=True)
    count, rank = dist.get_world_size(), dist.get_rank()
    torch.save(state, f"{folder}/model_world_size_{count}_rank_{rank}.pt")


def main() -> None:
    """Write one folder for each way to cut."""
    out = sys.argv[1]
    dist.init_process_group("gloo")
    count = dist.get_world_size()
    if dist.get_rank() == 0:
        os.makedirs(out, exist_ok=True)
        torch.save({name: each.clone() for name, each in new_model().state_dict().items()},
                   f"{out}/full.pt")  # fmt: skip
    model = new_model()
    mesh = init_device_mesh("cpu", (count,), mesh_dim_names=("fsdp",))
    fully_shard(model.l1, mesh=mesh)
    fully_shard(model, mesh=mesh)
    write(f"{out}/fsdp2-w{count}", model.state_dict())
    if count == 4:
        numbers = torch.arange(77.0).reshape(11, 7)
        mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("a", "b"))
        cuts = {
            "rr": distribute_tensor(numbers, mesh, [Replicate(), Shard(0)]),
            "s01": distribute_tensor(numbers, mesh, [Shard(0), Shard(1)]),
            "s00": distribute_tensor(numbers, mesh, [Shard(0), Shard(0)]),
            "sub": distribute_tensor(numbers, mesh["b"], [Shard(1)]),
            "p": torch.ones(3),
        }
        write(f"{out}/dtensor-w4", cuts)
        model = new_model()
        fully_shard(model, mesh=init_device_mesh("cpu", (2, 2), mesh_dim_names=("ddp", "fsdp")))
        write(f"{out}/hsdp-w4", model.state_dict())
        model = new_model()
        mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("fsdp", "tp"))
        cut = {"l1": ColwiseParallel(), "l2": RowwiseParallel()}
        parallelize_module(model, mesh["tp"], cut)
        fully_shard(model, mesh=mesh["fsdp"])
        write(f"{out}/fsdp-tp-w4", model.state_dict())
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
