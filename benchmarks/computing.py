"""Work on computed tensors: the average of checkpoints, and weights of float8 with their scales."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

#: Dequantizes whole arrays in the ``map`` of `convert`, as one does without expressions.
NUMPY_MAP = "numpy in map"
_COUNT = 3
_BLOCK = 128

Array = np.ndarray[Any, Any]


def prepare_average(folder: Path, size: float) -> None:
    """Write three checkpoints of one model, of ``size`` GB together."""
    import torchzip

    for number in range(_COUNT):
        path = folder / f"average{number}.pt"
        if path.exists():
            continue
        block = np.random.default_rng(number).standard_normal((1 << 20,), np.float32)
        with torchzip.incremental_save(path) as out:
            count = max(1, round(size * 1e9 / _COUNT / (11 * block.nbytes)))
            out.save(
                {
                    f"layer.{i}": out.store_chunks(
                        [block] * 11, shape=(11, 1 << 20), dtype="float32"
                    )
                    for i in range(count)
                }
            )


def average(tool: str, folder: Path, size: float) -> Callable[[], object]:
    """Return the average of the three, synced."""
    paths = [folder / f"average{number}.pt" for number in range(_COUNT)]
    target = folder / "out.pt"
    if tool.startswith("torchzip"):
        import torchzip

        jobs = 2 if "jobs=2" in tool else None
        return lambda: torchzip.tools.average(paths, target, overwrite=True, jobs=jobs)
    import os

    import torch

    def script() -> None:
        total = torch.load(paths[0], weights_only=True)
        for path in paths[1:]:
            for name, tensor in torch.load(path, weights_only=True).items():
                total[name] += tensor
        for tensor in total.values():
            tensor /= _COUNT
        torch.save(total, target)
        descriptor = os.open(target, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)

    return script


def prepare_float8(folder: Path, size: float) -> None:
    """Write two weights of float8 and their scales of 128 x 128, of a quarter of ``size`` GB."""
    import ml_dtypes

    import torchzip

    path = folder / "float8.pt"
    if path.exists():
        return
    rng = np.random.default_rng(0)
    rows = max(1, round((size * 1e9 / 8) ** 0.5 / _BLOCK)) * _BLOCK
    codes = rng.standard_normal((rows, rows), np.float32).astype(ml_dtypes.float8_e4m3fn)
    scale = rng.random((rows // _BLOCK, rows // _BLOCK), np.float32)
    torchzip.save({"0": codes, "1": codes.copy(), "scale": scale}, path)


def scaled(weight: Array, scale: Array, rows: tuple[int, int] = (0, 1 << 60)) -> Array:
    """Scale rows of a weight, in place."""
    first = rows[0] // _BLOCK * _BLOCK
    of_rows = np.repeat(scale, _BLOCK, axis=0)[rows[0] - first :][: len(weight)]
    weight.reshape(len(weight), -1, _BLOCK)[...] *= of_rows[:, :, None]
    return weight


def dequantize(tool: str, folder: Path, size: float) -> Callable[[], object]:
    """Return the conversion of the weights to bfloat16, synced."""
    import ml_dtypes

    import torchzip

    target = folder / "out.safetensors"

    def whole(name: str, tensor: torchzip.LazyTensor) -> Iterator[tuple[str, Array]]:
        if name != "scale":
            weight = scaled(tensor.numpy().astype(np.float32), loaded["scale"].numpy())
            yield name, weight.astype(ml_dtypes.bfloat16)

    def blocks() -> None:
        made = {
            name: torchzip.lazy.compute(
                scaled, loaded[name], loaded["scale"],
                rows=True, repeat=(1, _BLOCK), dtype="bfloat16",
            )
            for name in "01"
        }  # fmt: skip
        torchzip.convert(made, target, overwrite=True, jobs=2 if "jobs=2" in tool else None)

    loaded = torchzip.lazy_load(folder / "float8.pt")
    if tool == NUMPY_MAP:
        return lambda: torchzip.convert(folder / "float8.pt", target, map=whole, overwrite=True)
    return blocks
