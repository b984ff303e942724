"""Rows over checkpoints as people have them: of a training run, a pickled module, a state dict.

Flat dicts of equal tiny arrays, which the other rows have, are the best case of whatever writes or
reads many tensors at once. These are made by torch itself, and have what a real one has: numbers
between the tensors, dicts in dicts, tensors of many shapes, attributes.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

TRAINING, STATE_DICT, MODULE = "training.pt", "state-dict.pt", "module.pt"
_LAYERS, _WIDTH = 25, 64


def prepare(folder: Path, size: float) -> None:
    """Write the three checkpoints; each has 300 parameters."""
    if (folder / MODULE).exists():
        return
    import torch
    from torch import nn

    def block() -> nn.Module:
        wide = 4 * _WIDTH
        linear = [nn.Linear(_WIDTH, _WIDTH) for _ in range(4)]
        return nn.ModuleList([*linear, nn.Linear(_WIDTH, wide), nn.Linear(wide, _WIDTH)])

    model = nn.ModuleList([block() for _ in range(_LAYERS)])
    optimizer = torch.optim.AdamW(model.parameters())
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    torch.save(model.state_dict(), folder / STATE_DICT)
    torch.save(
        {
            "epoch": 3,
            "global_step": 1234,
            "state_dict": model.state_dict(),
            "optimizer_states": [optimizer.state_dict()],
            "hyper_parameters": {"lr": 1e-3},
        },
        folder / TRAINING,
    )
    torch.save(model, folder / MODULE)


def opening(file: str, tool: str, folder: Path, size: float) -> Callable[[], object]:
    """Return the opening of a checkpoint, up to names, shapes and dtypes of all tensors."""
    path = folder / file
    if not tool.startswith("torchzip"):
        import torch

        # A pickled module is what the safe loader refuses.
        return lambda: torch.load(path, mmap=True, weights_only=file != MODULE)
    import torchzip

    def ours() -> object:
        with torchzip.lazy_load(path) as checkpoint:
            return [(name, t.shape, t.torch_dtype) for name, t in checkpoint.items()]

    return ours


def saving(file: str, tool: str, folder: Path, size: float) -> Callable[[], object]:
    """Return the saving of what is in a checkpoint to memory."""
    if tool.startswith("torchzip"):
        import torchzip

        values = torchzip.load(folder / file)
        return lambda: torchzip.save(values, io.BytesIO())
    import torch

    loaded = torch.load(folder / file)
    return lambda: torch.save(loaded, io.BytesIO())


def to_safetensors(
    tool: str, folder: Path, size: float, *, durable: bool = False
) -> Callable[[], object]:
    """Return the conversion of the big checkpoint to a safetensors file of bfloat16.

    With ``durable`` what others write is synced too.
    """
    source, target = folder / "big.pt", folder / "out.safetensors"
    if tool.startswith("torchzip"):
        import torchzip

        jobs = 2 if "jobs=2" in tool else None
        options: dict[str, Any] = {"dtype": "bfloat16", "overwrite": True, "jobs": jobs}
        return partial(torchzip.convert, source, target, **options)
    import torch
    from safetensors.torch import save_file

    def theirs() -> None:
        loaded = torch.load(source, mmap=True, weights_only=True)
        save_file({name: tensor.to(torch.bfloat16) for name, tensor in loaded.items()}, target)
        if durable:
            with open(target, "rb") as file:
                os.fsync(file.fileno())

    return theirs


def cold(tool: str, folder: Path, size: float) -> Callable[[], object]:
    """Return the reading of the big checkpoint whose bytes are not in the page cache."""
    path = folder / "big.pt"
    load: Callable[[], Any]
    if tool.startswith("torchzip"):
        import torchzip

        load = partial(torchzip.load, path)
    else:
        import torch

        load = partial(torch.load, path, weights_only=True)

    def work() -> Any:
        descriptor = os.open(path, os.O_RDONLY)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)
        return load()

    return work
