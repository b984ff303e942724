"""Measures what making one file of a ZeRO-3 directory takes: time and peak memory.

    python -m benchmarks.ranks --deepspeed PYTHON

PYTHON is an interpreter that has DeepSpeed, whose ``zero_to_fp32.py`` is measured beside torchzip.
Both are whole processes, from their start until the bytes are on the disk: the script does not sync
its file, so a sync is added to it. The files are read from the page cache; the target does not
exist. Rounds alternate, and the median counts. Every output is compared with the first one.
"""

from __future__ import annotations

import argparse
import hashlib
import multiprocessing
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.tasks import DISK, writing

_RANKS, _TENSORS, _COLUMNS = 4, 200, 4096
_SCRIPT, _SAFE = "zero_to_fp32.py", ", .safetensors"


def make_zero(folder: Path, size: float) -> None:
    """Write a directory of stage 3 with ``size`` GB of weights."""
    import torchzip
    from torchzip.types import Size

    rows = max(1, round(size * 1e9 / 4 / _COLUMNS / _TENSORS / _RANKS))
    shapes = OrderedDict(
        (f"model.layers.{i}.weight", Size((rows * _RANKS, _COLUMNS))) for i in range(_TENSORS)
    )
    empty = OrderedDict((name, np.empty(0, np.float32)) for name in shapes)
    tag = folder / "tag"
    tag.mkdir(parents=True)
    (folder / "latest").write_text("tag")
    for rank in range(_RANKS):
        rng = np.random.default_rng(rank)
        flat = rng.standard_normal(rows * _COLUMNS * _TENSORS, np.float32)
        start = tag / f"zero_pp_rank_{rank}_mp_rank_00_"
        model: dict[str, Any] = {
            "module": empty, "buffer_names": [], "param_shapes": [shapes], "shared_params": {},
            "frozen_param_shapes": None, "frozen_param_fragments": None, "ds_version": "0.19.8",
        }  # fmt: skip
        torchzip.save(model, f"{start}model_states.pt")
        states = {"zero_stage": 3, "partition_count": _RANKS, "fp32_flat_groups": [flat]}
        torchzip.save({"optimizer_state_dict": states}, f"{start}optim_states.pt")


def measured(command: list[str], environment: dict[str, str]) -> tuple[float, int]:
    """Return the seconds of a process and a sync of the disk, and the peak of its memory."""
    begin = time.perf_counter()
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    assert process.stderr is not None
    errors = process.stderr.read()
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    os.sync()
    seconds = time.perf_counter() - begin
    if status:
        raise RuntimeError(errors.decode(errors="replace"))
    return seconds, used.ru_maxrss << 10


def commands(source: Path, target: Path, deepspeed: str | None) -> dict[str, list[str]]:
    """Return what each tool is called with."""
    ours = [sys.executable, "-m", "torchzip", "convert", os.fspath(source)]
    found = {
        "torchzip": [*ours, f"{target}.bin"],
        "torchzip --jobs 2": [*ours, f"{target}.bin", "--jobs", "2"],
        f"torchzip{_SAFE}": [*ours, f"{target}.safetensors"],
        f"torchzip{_SAFE} --jobs 2": [*ours, f"{target}.safetensors", "--jobs", "2"],
    }
    if deepspeed is not None:
        script = [deepspeed, "-m", "deepspeed.utils.zero_to_fp32", os.fspath(source)]
        found[_SCRIPT] = [*script, os.fspath(target)]
        found[_SCRIPT + _SAFE] = [
            *script,
            os.fspath(target),
            "--safe_serialization",
        ]
    return found


def disk_alone(target: Path, nbytes: int) -> float:
    """Return the seconds that as many bytes take to the disk, past the cache and synced."""
    write = writing(target, nbytes)
    begin = time.perf_counter()
    write()
    os.sync()
    seconds = time.perf_counter() - begin
    target.unlink()
    return seconds


def read_all(folder: Path) -> None:
    """Read all files of a folder, so that they are in the page cache."""
    block = bytearray(16 << 20)
    for path in folder.rglob("*.pt"):
        with path.open("rb", buffering=0) as file:
            while file.readinto(block):
                pass


def digest(target: Path) -> str:
    """Return the hash of all tensors in an output, which goes."""
    import torchzip

    found = [path for path in target.parent.iterdir() if path.name.startswith(target.name)]
    (path,) = found
    file = next(each for each in path.iterdir() if "model" in each.name) if path.is_dir() else path
    made = hashlib.blake2b()
    with torchzip.lazy_load(file) as checkpoint:
        for name in sorted(checkpoint):
            made.update(name.encode())
            tensor = checkpoint[name]
            for row in range(0, tensor.shape[0], 256):
                made.update(tensor[row : row + 256].data)
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()
    return made.hexdigest()


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ranks", description=__doc__)
    parser.add_argument("--size", type=float, default=3, help="GB of weights (default 3)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--deepspeed", metavar="PYTHON")
    parser.add_argument("--folder", type=Path, help="where the files go for the while")
    arguments = parser.parse_args()
    environment = dict(os.environ, DS_ACCELERATOR="cpu", CUDA_VISIBLE_DEVICES="")
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        source, target = Path(name) / "in", Path(name) / "out" / "made"
        target.parent.mkdir()
        # Elsewhere: a process begins with the peak of the one that started it.
        maker = multiprocessing.get_context("spawn").Process(
            target=make_zero, args=(source, arguments.size)
        )
        maker.start()
        maker.join()
        os.sync()
        figures: dict[str, list[tuple[float, int]]] = {}
        digests = set()
        for _ in range(arguments.rounds):
            alone = disk_alone(target, round(arguments.size * 1e9))
            figures.setdefault(DISK, []).append((alone, 0))
            for tool, command in commands(source, target, arguments.deepspeed).items():
                read_all(source)
                figures.setdefault(tool, []).append(measured(command, environment))
                digests.add(digest(target))
        if len(digests) > 1:
            raise RuntimeError("the outputs differ")
    print(f"ZeRO-3, {_RANKS} ranks, {arguments.size:g} GB\n")
    print("| tool | seconds | peak | the script in the same round takes |\n|---|---|---|---|")
    for tool, rounds in figures.items():
        seconds = [each for each, _ in rounds]
        peak = max(nbytes for _, nbytes in rounds) / 1e6
        script = _SCRIPT + (_SAFE if _SAFE in tool else "")
        ratio = ""
        if script in figures and tool.startswith("torchzip"):
            times = [other / own for (other, _), own in zip(figures[script], seconds, strict=True)]
            ratio = f"{spread(times)} times as long"
        print(f"| {tool} | {spread(seconds)} | {peak:,.0f} MB | {ratio} |")


def spread(values: list[float]) -> str:
    """Return the median of values, the least and the greatest."""
    return f"{statistics.median(values):.1f} ({min(values):.1f} to {max(values):.1f})"


if __name__ == "__main__":
    main()
