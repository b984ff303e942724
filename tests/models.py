"""Models and training checkpoints as people save them, made anew by each call."""

from __future__ import annotations

import argparse
import dataclasses
import enum
import pathlib
import random
from collections import OrderedDict, defaultdict
from collections.abc import Callable
from typing import Any

import numpy as np


class Phase(enum.Enum):
    """Where a training is."""

    WARMUP = "warmup"
    DONE = "done"


@dataclasses.dataclass
class Settings:
    """What a training was started with."""

    width: int = 4
    rate: float = 1e-3
    folder: pathlib.Path = dataclasses.field(default_factory=lambda: pathlib.Path("runs/1"))


def net_class(torch: Any) -> Any:
    """Return the class of a model with one of everything, found as ``tests.models.Net``."""
    nn = torch.nn

    class Net(nn.Module):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(5, 4)
            self.block = nn.Sequential(
                nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(), nn.Linear(4, 4, bias=False)
            )
            self.head = nn.Linear(4, 5)
            self.head.weight = self.embed.weight  # tied
            self.scales = nn.ParameterList([nn.Parameter(torch.ones(i)) for i in range(3)])
            self.by_name = nn.ParameterDict({"ab": nn.Parameter(torch.zeros(2))})
            self.register_buffer("kept", torch.arange(3))
            self.register_buffer("skipped", torch.arange(4), persistent=False)
            self.register_buffer("nothing", None)
            self.register_parameter("absent", None)
            self.missing = None
            self.plain = torch.ones(2)  # an attribute, and no part of the state dict
            self.frozen = nn.Parameter(torch.full((2,), 3.0), requires_grad=False)
            self.phase = Phase.WARMUP

        def forward(self, x: Any) -> Any:
            return self.head(x)

    Net.__module__, Net.__qualname__ = __name__, "Net"
    globals()["Net"] = Net
    return Net


def _buffered(torch: Any) -> Any:
    model = torch.nn.Linear(2, 2)
    model.extra = torch.nn.Buffer(torch.ones(2))
    model.more = torch.nn.Buffer(torch.ones(2), persistent=False)
    return model


MODELS: dict[str, Callable[[Any], Any]] = {
    "everything": lambda torch: net_class(torch)(),
    "lstm": lambda torch: torch.nn.LSTM(3, 4, num_layers=2, bidirectional=True),
    "transformer": lambda torch: torch.nn.TransformerEncoderLayer(4, 2, 8).half(),
    "parallel": lambda torch: torch.nn.DataParallel(
        torch.nn.Sequential(OrderedDict(a=torch.nn.Linear(2, 2)))
    ),
    "spectral norm": lambda torch: torch.nn.utils.spectral_norm(torch.nn.Linear(3, 3)),
    "buffers": _buffered,
    "empty": lambda torch: torch.nn.Identity(),
    "shared twice": lambda torch: torch.nn.ModuleList([torch.nn.Linear(1, 1)] * 3),
}


def _stepped(torch: Any, optimizer: Any, model: Any) -> Any:
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    return optimizer


def training_checkpoint(torch: Any) -> dict[str, Any]:
    """Return a checkpoint like those of Lightning: weights, optimizer, states, settings."""
    model = net_class(torch)()
    optimizer = _stepped(torch, torch.optim.AdamW(model.parameters(), amsgrad=True), model)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 10)
    return {
        "epoch": 3,
        "global_step": np.int64(1200),
        "pytorch-lightning_version": "2.4.0",
        "state_dict": model.state_dict(),
        "loops": {"fit_loop": {"state_dict": {}, "progress": {"total": {"ready": 1}}}},
        "callbacks": {"ModelCheckpoint{'monitor': 'loss'}": {"best": torch.tensor(0.25)}},
        "optimizer_states": [optimizer.state_dict()],
        "lr_schedulers": [scheduler.state_dict()],
        "hyper_parameters": argparse.Namespace(rate=0.1, layers=[1, 2], settings=Settings()),
        "phase": Phase.DONE,
        "loss": np.float32(0.5),
        "history": defaultdict(list, train=[0.5, 0.25]),
        "rng": {
            "torch": torch.get_rng_state(),
            "numpy": np.random.RandomState(3).get_state(),
            "python": random.Random(4).getstate(),
        },
        "counts": np.arange(6).reshape(2, 3),
    }
