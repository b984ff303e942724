"""The work that is timed. ``python -m benchmarks.tasks ROW TOOL FOLDER SIZE`` does one piece once.

It prints the seconds that the work took in a warm process, imports not counted, and the peak
memory of the process by the operating system's account. Short tasks are repeated in the process
and give their median.
"""

from __future__ import annotations

import io
import json
import os
import resource
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

Work = Callable[[], object]

PREPARE = "prepare"
MISSING = 3  # the exit status where a tool is not installed


@dataclass(frozen=True)
class Row:
    """One line of the table. ``make`` returns the work of a tool, ready to be timed."""

    name: str
    target: str
    tools: list[str]
    prepare: Callable[[Path, float], None]
    make: Callable[[str, Path, float], Work]
    repeat: int = 1


def small_arrays(count: int) -> dict[str, np.ndarray[Any, Any]]:
    """Return many tiny arrays under names like those of a model."""
    return {
        f"model.layers.{i}.attention.weight": np.full((4, 3), i, np.float32) for i in range(count)
    }


def big_arrays(size: float) -> dict[str, np.ndarray[Any, Any]]:
    """Return float32 arrays of 14 MB that are ``size`` GB together."""
    rng = np.random.default_rng(1)
    block = rng.standard_normal((1280, 2800), np.float32)
    count = max(1, round(size * 1e9 / block.nbytes))
    return {f"model.layers.{i}.mlp.weight": block + np.float32(i) for i in range(count)}


def as_tensors(arrays: dict[str, np.ndarray[Any, Any]]) -> dict[str, Any]:
    """Return the same as torch tensors."""
    import torch

    return {name: torch.from_numpy(array) for name, array in arrays.items()}


def write_once(path: Path, make: Callable[[], dict[str, np.ndarray[Any, Any]]]) -> None:
    """Write a checkpoint that the rows read, unless it is there."""
    import torchzip

    if not path.exists():
        torchzip.save(make(), path)


def prepare_small(folder: Path, size: float) -> None:
    write_once(folder / "small.pt", lambda: small_arrays(1000))


def prepare_big(folder: Path, size: float) -> None:
    write_once(folder / "big.pt", lambda: big_arrays(size))


def prepare_nothing(folder: Path, size: float) -> None:
    pass


def open_small(tool: str, folder: Path, size: float) -> Work:
    path = folder / "small.pt"
    if tool == "torchzip":
        import torchzip

        def ours() -> object:
            with torchzip.lazy_load(path) as checkpoint:
                return checkpoint["model.layers.999.attention.weight"]

        return ours
    if tool == "zipslicer":
        import zipslicer

        return lambda: zipslicer.load(path)
    import torch

    return lambda: torch.load(path, mmap=True, weights_only=True)


def save_small(tool: str, folder: Path, size: float) -> Work:
    return _save(tool, small_arrays(1000), folder / f"out-{tool.split()[0]}.pt", durable=False)


def save_small_durably(tool: str, folder: Path, size: float) -> Work:
    return _save(tool, small_arrays(1000), folder / f"out-{tool.split()[0]}.pt", durable=True)


def save_small_file_object(tool: str, folder: Path, size: float) -> Work:
    arrays = small_arrays(1000)
    if tool == "torchzip":
        import torchzip

        return lambda: torchzip.save(arrays, io.BytesIO())
    import torch

    tensors = as_tensors(arrays)
    return lambda: torch.save(tensors, io.BytesIO())


def save_big(tool: str, folder: Path, size: float) -> Work:
    return _save(tool, big_arrays(size), folder / f"out-{tool.split()[0]}", durable=False)


def save_big_durably(tool: str, folder: Path, size: float) -> Work:
    return _save(tool, big_arrays(size), folder / f"out-{tool.split()[0]}", durable=True)


def save_big_file_object(tool: str, folder: Path, size: float) -> Work:
    arrays = big_arrays(size)
    path = folder / f"out-{tool.split()[0]}"
    if tool == "torchzip":
        import torchzip

        def ours() -> None:
            with open(path, "wb") as file:
                torchzip.save(arrays, file)

        return ours
    return _save(tool, arrays, path, durable=False)


def _save(tool: str, arrays: dict[str, np.ndarray[Any, Any]], path: Path, *, durable: bool) -> Work:
    """Return the saving of arrays; ``durable`` gives the others the fsync that torchzip does."""
    if tool == "torchzip":
        import torchzip

        return lambda: torchzip.save(arrays, path)
    if tool.startswith("torch "):
        import torch

        tensors = as_tensors(arrays)

        def theirs() -> None:
            torch.save(tensors, path)
            if durable:
                _sync(path)

        return theirs
    from safetensors.numpy import save_file

    def package() -> None:
        save_file(arrays, path)
        if durable:
            _sync(path)

    return package


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)


def load_big(tool: str, folder: Path, size: float) -> Work:
    path = folder / "big.pt"
    if tool == "torchzip":
        import torchzip

        return lambda: torchzip.load(path)
    if tool == "ptloader":
        import ptloader

        return lambda: ptloader.load(path)
    import torch

    return lambda: torch.load(path, weights_only=True)


def convert_big(tool: str, folder: Path, size: float) -> Work:
    source, target = folder / "big.pt", folder / f"out-{tool.split()[0]}.pt"
    if tool == "torchzip":
        import torchzip

        return lambda: torchzip.convert(source, target, dtype="bfloat16", overwrite=True)
    import torch

    def theirs() -> None:
        loaded = torch.load(source, mmap="mmap" in tool, weights_only=True)
        torch.save({name: tensor.to(torch.bfloat16) for name, tensor in loaded.items()}, target)

    return theirs


ROWS = [
    Row(
        "open 1k tensors lazily", "5",
        ["torchzip", "torch mmap", "zipslicer"], prepare_small, open_small, 15,
    ),
    Row(
        "save 1k tiny tensors (torchzip with fsync, torch without)", "5",
        ["torchzip", "torch save"], prepare_nothing, save_small, 15,
    ),
    Row(
        "save 1k tiny tensors, all with fsync", "5",
        ["torchzip", "torch save"], prepare_nothing, save_small_durably, 15,
    ),
    Row(
        "save 1k tiny tensors to memory", "5",
        ["torchzip", "torch save"], prepare_nothing, save_small_file_object, 15,
    ),
    Row(
        "save big (torchzip with fsync, the others without)", "2",
        ["torchzip", "torch save", "safetensors"], prepare_nothing, save_big,
    ),
    Row(
        "save big, all with fsync", "2",
        ["torchzip", "torch save", "safetensors"], prepare_nothing, save_big_durably,
    ),
    Row(
        "save big to an open file, none with fsync", "2",
        ["torchzip", "torch save"], prepare_nothing, save_big_file_object,
    ),
    Row(
        "load big into own memory", "",
        ["torchzip", "torch load", "ptloader"], prepare_big, load_big,
    ),
    Row(
        "convert big to bfloat16", "1",
        ["torchzip", "torch mmap", "torch plain"], prepare_big, convert_big,
    ),
]  # fmt: skip


def main() -> int:
    """Do one piece of work once and print its figures as JSON."""
    name, tool, folder, size = sys.argv[1:]
    row = next(row for row in ROWS if row.name == name)
    if tool == PREPARE:
        row.prepare(Path(folder), float(size))
        print("{}")
        return 0
    try:
        work = row.make(tool, Path(folder), float(size))
        work()  # warm: files in the page cache, memory touched, modules imported
    except ImportError:
        return MISSING
    seconds = []
    for _ in range(row.repeat):
        if row.repeat == 1:
            # Into a new file, and freeing an old one is no part of it; nor is writing back what
            # was written before.
            for old in Path(folder).glob("out-*"):
                old.unlink()
            os.sync()
        started = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - started)
    print(json.dumps({"seconds": statistics.median(seconds), "peak_mb": peak_nbytes() / 1e6}))
    return 0


def peak_nbytes() -> int:
    """Return the most memory that this process has had, by the operating system's account.

    On Linux from VmHWM, which counts this program alone: ru_maxrss also counts what the
    process was before it started it.
    """
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    line = next(line for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    raise SystemExit(main())
