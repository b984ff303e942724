"""Train a tiny model with DeepSpeed, and write its checkpoint.

``DS_ACCELERATOR=cpu torchrun --nproc-per-node 3 make_zero.py STAGE fp32|bf16|fp16 FOLDER [JSON]``,
where JSON is more for ``zero_optimization``. DeepSpeed puts its ``zero_to_fp32.py`` into FOLDER.
"""

from __future__ import annotations

import contextlib
import json
import sys
from typing import Any

import deepspeed
import torch
from torch import nn


class Model(nn.Module):  # type: ignore[misc]
    """Two groups of parameters, frozen ones, buffers with and without dimensions, a tied head."""

    def __init__(self) -> None:
        super().__init__()
        self.emb = nn.Embedding(11, 8)
        self.frozen = nn.Linear(8, 5)
        self.l1 = nn.Linear(8, 16)
        self.norm = nn.LayerNorm(16)
        self.l2 = nn.Linear(16, 8, bias=False)
        self.head = nn.Linear(8, 11, bias=False)
        self.head.weight = self.emb.weight
        self.register_buffer("scalar", torch.tensor(3.0))
        self.register_buffer("buf", torch.arange(5.0))
        for parameter in self.frozen.parameters():
            parameter.requires_grad = False

    def forward(self, words: Any) -> Any:
        """Return a loss."""
        hidden = self.emb(words)
        hidden = hidden + self.frozen(hidden).sum(-1, keepdim=True)
        hidden = self.l2(torch.relu(self.norm(self.l1(hidden))))
        return self.head(hidden).float().logsumexp(-1).mean()


def main() -> None:
    """Make two steps."""
    stage, dtype, out = int(sys.argv[1]), sys.argv[2], sys.argv[3]
    more = json.loads(sys.argv[4]) if len(sys.argv) > 4 else {}
    deepspeed.init_distributed("gloo")
    torch.manual_seed(0)
    zero = {"stage": stage, "stage3_param_persistence_threshold": 20, **more}
    config: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": 2,
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
    }
    if dtype != "fp32":
        config[dtype] = {"enabled": True}
    sliced = deepspeed.zero.Init(config_dict_or_path=config) if stage == 3 else None
    with sliced or contextlib.nullcontext():
        model = Model()
    groups: dict[bool, list[Any]] = {True: [], False: []}
    for parameter in model.parameters():
        if parameter.requires_grad:
            shape = parameter.ds_shape if stage == 3 else parameter.shape
            groups[len(shape) > 1].append(parameter)
    optimizer = torch.optim.AdamW(
        [
            {"params": groups[True], "weight_decay": 0.1},
            {"params": groups[False], "weight_decay": 0.0},
        ],
        lr=1e-2,
    )
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config)
    for _ in range(2):
        engine.backward(engine(torch.randint(0, 11, (2, 3))))
        engine.step()
    engine.save_checkpoint(out, client_state={"step": 2})
    torch.distributed.barrier()


if __name__ == "__main__":
    main()
