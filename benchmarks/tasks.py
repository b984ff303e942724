"""The rows of the table: what is timed, with which tools, and what torchzip should reach.

"Big" is a checkpoint of float32 tensors of 14 MB, ``size`` GB together; "tiny" tensors have 12
elements. A row names the ways in which torchzip does it, each with what it is compared to:
``torchzip jobs=2`` is a conversion with two worker processes, ``torchzip[fast]`` has isal, which
is hidden from all others.
"""

from __future__ import annotations

import io
import mmap
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import checkpoints, computing, quantized

Arrays = dict[str, np.ndarray[Any, Any]]
Work = Callable[[], object]
#: The other tool -> how many times faster torchzip should be; None if there is no such aim.
Targets = dict[str, float | None]


def prepare_nothing(folder: Path, size: float) -> None:
    """For rows that read no file."""


@dataclass(frozen=True)
class Row:
    """A piece of work, and who does it.

    ``make`` returns the work of a tool, ready to be timed in a warm process; or, if ``fresh`` is
    true, the script of a process that is timed from outside, its start and its imports included.
    ``extra_ms`` is for a tool that does only a part: how much longer torchzip may take.
    """

    name: str
    ours: dict[str, Targets]
    make: Callable[[str, Path, float], Any]
    prepare: Callable[[Path, float], None] = prepare_nothing
    repeat: int = 1
    fresh: bool = False
    extra_ms: dict[str, float | None] = field(default_factory=dict)

    @property
    def tools(self) -> list[str]:
        """All tools, torchzip's ways first."""
        rivals = [rival for targets in self.ours.values() for rival in targets]
        return list(dict.fromkeys([*self.ours, *rivals, *self.extra_ms]))


def with_fast(ours: dict[str, Targets], better: Targets | None = None) -> dict[str, Targets]:
    """Add the same with isal, ``better`` being what is expected of it beyond the rest."""
    fast = {
        tool.replace("torchzip", "torchzip[fast]"): targets | (better or {})
        for tool, targets in ours.items()
    }
    return ours | fast


def is_ours(tool: str) -> bool:
    return tool.startswith("torchzip")


# -- what is written and read -------------------------------------------------------------------


def tiny_arrays(count: int) -> Arrays:
    """Return many tiny arrays under names like those of a model."""
    return {
        f"model.layers.{i}.attention.weight": np.full((4, 3), i, np.float32) for i in range(count)
    }


def big_block() -> np.ndarray[Any, Any]:
    return np.random.default_rng(1).standard_normal((1280, 2800), np.float32)


def big_names(size: float) -> list[str]:
    """Return the names of as many 14 MB tensors as make ``size`` GB, one at least."""
    count = max(1, round(size * 1e9 / (1280 * 2800 * 4)))
    return [f"model.layers.{i}.mlp.weight" for i in range(count)]


def big_arrays(size: float) -> Arrays:
    block = big_block()
    return {name: block + np.float32(i) for i, name in enumerate(big_names(size))}


def as_tensors(arrays: Arrays) -> dict[str, Any]:
    """Return the same as torch tensors."""
    import torch

    return {name: torch.from_numpy(array) for name, array in arrays.items()}


def prepare_big(folder: Path, size: float) -> None:
    """Write the big checkpoint, tensor by tensor."""
    import torchzip

    path = folder / "big.pt"
    if not path.exists():
        block = big_block()
        with torchzip.incremental_save(path) as out:
            out.save(
                {
                    name: out.store_chunks(
                        [block + np.float32(i)], shape=block.shape, dtype="float32"
                    )
                    for i, name in enumerate(big_names(size))
                }
            )


def prepare_tiny(count: int) -> Callable[[Path, float], None]:
    """Return what writes a checkpoint of tiny tensors, and safetensors' own file of them."""

    def prepare(folder: Path, size: float) -> None:
        import torchzip

        torchzip.save(tiny_arrays(count), folder / f"{count}.pt")
        try:
            from safetensors.numpy import save_file
        except ImportError:
            return
        save_file(tiny_arrays(count), folder / f"{count}.safetensors")

    return prepare


def sync(path: Path) -> None:
    """Wait until a file is on the disk, as torchzip does before it calls a file complete."""
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)


#: As many bytes as the file of the row, past the cache, synced: no durable file is written sooner.
DISK = "the disk alone"


def writing(path: Path, nbytes: float) -> Work:
    """Return the writing of a file of that size, and nothing else."""
    block = mmap.mmap(-1, 8 << 20)
    block[:] = os.urandom(len(block))
    direct = getattr(os, "O_DIRECT", 0)

    def write() -> None:
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | direct, 0o666)
        except OSError:  # a file system without
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
        for _ in range(max(1, round(nbytes / len(block)))):
            os.write(descriptor, block)
        os.fsync(descriptor)
        os.close(descriptor)

    return write


# -- convert and rename -------------------------------------------------------------------------


def converting(tool: str, source: Path, target: Path, *, durable: bool = False) -> Work:
    """Return the conversion of a checkpoint to bfloat16 by a tool."""
    if is_ours(tool):
        import torchzip

        options: dict[str, Any] = {"jobs": 2} if "jobs=2" in tool else {}
        return lambda: torchzip.convert(source, target, dtype="bfloat16", overwrite=True, **options)
    import torch

    def theirs() -> None:
        loaded = torch.load(source, mmap="mmap" in tool, weights_only=True)
        torch.save({name: tensor.to(torch.bfloat16) for name, tensor in loaded.items()}, target)
        if durable:
            sync(target)

    return theirs


def convert(tool: str, folder: Path, size: float) -> Work:
    if tool == DISK:
        return writing(folder / "out.pt", size * 1e9 / 2)
    return converting(tool, folder / "big.pt", folder / "out.pt")


def convert_durably(tool: str, folder: Path, size: float) -> Work:
    return converting(tool, folder / "big.pt", folder / "out.pt", durable=True)


def rename(tool: str, folder: Path, size: float) -> Work:
    if tool == DISK:
        return writing(folder / "out.pt", size * 1e9)
    source, target = folder / "big.pt", folder / "out.pt"
    if is_ours(tool):
        import torchzip

        options: dict[str, Any] = {"rename": [(r"^model\.", "net.")]}
        return lambda: torchzip.convert(source, target, overwrite=True, **options)
    import torch

    def theirs() -> None:
        loaded = torch.load(source, mmap=True, weights_only=True)
        torch.save(
            {re.sub(r"^model\.", "net.", name): tensor for name, tensor in loaded.items()}, target
        )

    return theirs


def prepare_edited(folder: Path, size: float) -> None:
    """Write the big checkpoint, and once more for the tool that changes it."""
    prepare_big(folder, size)
    if not (folder / "edited.pt").exists():
        shutil.copyfile(folder / "big.pt", folder / "edited.pt")


def rename_in_place(tool: str, folder: Path, size: float) -> Work:
    if not is_ours(tool):
        return rename(tool, folder, size)
    from torchzip.tools import edit

    def other_name(name: str) -> str:
        first, _, rest = name.partition(".")
        return f"{'model' if first == 'net' else 'net'}.{rest}"

    return lambda: edit(folder / "edited.pt", rename=other_name)


# -- save and load ------------------------------------------------------------------------------


def saving(tool: str, arrays: Arrays, path: Path, *, durable: bool) -> Work:
    """Return the saving of arrays; ``durable`` gives the others the fsync that torchzip does."""
    if is_ours(tool):
        import torchzip

        return lambda: torchzip.save(arrays, path)
    write: Callable[[], object]
    if tool == "safetensors":
        from safetensors.numpy import save_file

        write = partial(save_file, arrays, path)
    else:
        import torch

        write = partial(torch.save, as_tensors(arrays), path)

    def theirs() -> None:
        write()
        if durable:
            sync(path)

    return theirs


def save_big(tool: str, folder: Path, size: float) -> Work:
    if tool == DISK:
        return writing(folder / "out.pt", size * 1e9)
    return saving(tool, big_arrays(size), folder / "out.pt", durable=False)


def save_big_durably(tool: str, folder: Path, size: float) -> Work:
    return saving(tool, big_arrays(size), folder / "out.pt", durable=True)


def save_big_to_open_file(tool: str, folder: Path, size: float) -> Work:
    arrays = big_arrays(size)
    if not is_ours(tool):
        return saving(tool, arrays, folder / "out.pt", durable=False)
    import torchzip

    def ours() -> None:
        with open(folder / "out.pt", "wb") as file:
            torchzip.save(arrays, file)

    return ours


def save_tiny(count: int, *, durable: bool) -> Callable[[str, Path, float], Work]:
    return lambda tool, folder, size: saving(
        tool, tiny_arrays(count), folder / "out.pt", durable=durable
    )


def save_tiny_to_memory(tool: str, folder: Path, size: float) -> Work:
    arrays = tiny_arrays(1000)
    if is_ours(tool):
        import torchzip

        return lambda: torchzip.save(arrays, io.BytesIO())
    import torch

    tensors = as_tensors(arrays)
    return lambda: torch.save(tensors, io.BytesIO())


def load_big(tool: str, folder: Path, size: float) -> Work:
    path = folder / "big.pt"
    if is_ours(tool):
        import torchzip

        return lambda: torchzip.load(path)
    if tool == "ptloader":
        import ptloader

        return lambda: ptloader.load(path)
    import torch

    return lambda: torch.load(path, weights_only=True)


# -- open ---------------------------------------------------------------------------------------


def open_tiny(count: int) -> Callable[[str, Path, float], Work]:
    """Return the opening of a file of tiny tensors, up to names, shapes and dtypes of all."""
    return lambda tool, folder, size: opening(tool, folder / f"{count}.pt")


def opening(tool: str, path: Path) -> Work:
    if is_ours(tool):
        import torchzip

        def ours() -> object:
            with torchzip.lazy_load(path) as checkpoint:
                return [(name, t.shape, t.torch_dtype) for name, t in checkpoint.items()]

        return ours
    if tool == "safetensors":
        from safetensors import safe_open

        def package() -> object:
            with safe_open(path.with_suffix(".safetensors"), "numpy") as file:
                slices = [(name, file.get_slice(name)) for name in file.keys()]  # noqa: SIM118
                return [(name, part.get_shape(), part.get_dtype()) for name, part in slices]

        return package
    if tool == "zipslicer":
        import zipslicer

        def slicer() -> object:
            lazy = zipslicer.load(path)
            return [(name, lazy.get_meta(name)) for name in lazy.keys()]  # noqa: SIM118

        return slicer
    import torch

    def theirs() -> object:
        loaded = torch.load(path, mmap=True, weights_only=True)
        return [(name, tensor.shape, tensor.dtype) for name, tensor in loaded.items()]

    return theirs


# -- processes that are timed from outside --------------------------------------------------------


def read_one(tool: str, folder: Path, size: float) -> str:
    """Return the script that reads one tensor of the big file into memory of its own."""
    path, names = str(folder / "big.pt"), big_names(size)
    name = names[len(names) // 2]
    if is_ours(tool):
        return (
            "import torchzip\n"
            f"with torchzip.lazy_load({path!r}) as checkpoint:\n"
            f"    checkpoint[{name!r}].numpy()\n"
        )
    return (
        "import torch\n"
        f"torch.load({path!r}, mmap=True, weights_only=True)[{name!r}].clone()\n"
    )  # fmt: skip


def import_it(tool: str, folder: Path, size: float) -> str:
    return f"import {NUMPY if tool == NUMPY else tool}\n"


def import_for_reading(tool: str, folder: Path, size: float) -> str:
    script = import_it(tool, folder, size)
    # Names of torchzip are imported when they are asked for.
    return script + "torchzip.load, torchzip.lazy_load\n" if is_ours(tool) else script


NUMPY = "numpy, ml_dtypes"


def _rows() -> list[Row]:
    both = with_fast(
        {
            "torchzip": {"torch mmap": 1.5, "torch plain": None},
            "torchzip jobs=2": {"torch mmap": 2.5, "torch plain": 5},
        }
    )
    with_disk = {tool: targets | {DISK: None} for tool, targets in both.items()}
    save = with_fast({"torchzip": {"torch save": 3, "safetensors": 1}}, {"torch save": 4})
    save_with_disk = {tool: targets | {DISK: None} for tool, targets in save.items()}
    save_to_file = with_fast({"torchzip": {"torch save": 3}}, {"torch save": 4})
    alone = "torchzip alone with fsync"
    rows = [
        Row(f"convert big to bfloat16, {alone}", with_disk, convert, prepare_big),
        Row("convert big to bfloat16, all with fsync", both, convert_durably, prepare_big),
        Row(f"save big, {alone}", save_with_disk, save_big),
        Row("save big, all with fsync", save, save_big_durably),
        Row("save big to an open file, none with fsync", save_to_file, save_big_to_open_file),
    ]
    for count, name, target, repeat in ((1000, "1k", 8, 15), (100_000, "100k", 12, 1)):
        tiny: dict[str, Targets] = {"torchzip": {"torch save": target}}
        rows += [
            Row(
                f"save {name} tiny tensors, {alone}",
                tiny, save_tiny(count, durable=False), repeat=repeat,
            ),
            Row(
                f"save {name} tiny tensors, all with fsync",
                tiny, save_tiny(count, durable=True), repeat=repeat,
            ),
        ]  # fmt: skip
    rows += [
        Row(
            "save 1k tiny tensors to memory",
            {"torchzip": {"torch save": 8}}, save_tiny_to_memory, repeat=15,
        ),
        Row(
            "load big into own memory",
            with_fast({"torchzip": {"torch load": 2, "ptloader": None}}), load_big, prepare_big,
        ),
    ]  # fmt: skip
    for count, name, target, repeat in (
        (300, "300", 8, 15), (1000, "1k", 12, 15), (100_000, "100k", 20, 1),
    ):  # fmt: skip
        others: Targets = {"torch mmap": target, "safetensors": 1}
        if count <= 1000:  # it takes as long as torch
            others["zipslicer"] = None
        rows.append(
            Row(
                f"open {name} tensors lazily: names, shapes, dtypes",
                {"torchzip": others}, open_tiny(count), prepare_tiny(count), repeat,
            )
        )  # fmt: skip
    rows += [
        Row(
            "read one 14 MB tensor of big, the whole process",
            {"torchzip": {"torch mmap": 9}}, read_one, prepare_big, fresh=True,
        ),
        Row(
            f"rename the keys of big, file copied, {alone}",
            {"torchzip": {"torch mmap": 3, DISK: None}}, rename, prepare_big,
        ),
        Row(
            f"rename the keys of big in place, {alone}",
            {"torchzip": {"torch mmap": None}}, rename_in_place, prepare_edited,
        ),
        Row(
            "import, the whole process",
            {"torchzip": {"torch": None}}, import_it, repeat=3, fresh=True, extra_ms={NUMPY: 15},
        ),
        Row(
            "import all that reading needs, the whole process",
            {"torchzip": {"torch": None}}, import_for_reading,
            repeat=3, fresh=True, extra_ms={NUMPY: None},
        ),
    ]  # fmt: skip
    real: list[tuple[str, str, float | None]] = [
        (checkpoints.TRAINING, "a training checkpoint of 300 parameters", 10),
        (checkpoints.STATE_DICT, "a state dict of 300 parameters", None),
        (checkpoints.MODULE, "a pickled module of 300 parameters", None),
    ]
    rows += [
        Row(
            f"open {what}: names, shapes, dtypes", {"torchzip": {"torch mmap": target}},
            partial(checkpoints.opening, file), checkpoints.prepare, repeat=15,
        )
        for file, what, target in real
    ]  # fmt: skip
    rows += [
        Row(
            f"save {what} to memory", {"torchzip": {"torch save": 3}},
            partial(checkpoints.saving, file), checkpoints.prepare, repeat=15,
        )
        for file, what, _ in real
        if file != checkpoints.MODULE  # which only code of its own can make
    ]  # fmt: skip
    rows += [
        Row(
            f"convert big to a .safetensors of bfloat16, {alone}",
            {"torchzip": {"torch mmap": 2.5}, "torchzip jobs=2": {"torch mmap": 2.5}},
            checkpoints.to_safetensors, prepare_big,
        ),
        Row(
            "convert big to a .safetensors of bfloat16, all with fsync",
            {"torchzip": {"torch mmap": 2.5}, "torchzip jobs=2": {"torch mmap": 2.5}},
            partial(checkpoints.to_safetensors, durable=True), prepare_big,
        ),
        Row(
            "load big, which is not in the page cache",
            {"torchzip": {"torch load": None}}, checkpoints.cold, prepare_big,
        ),
    ]  # fmt: skip
    rows += [
        Row(
            "average three checkpoints, all with fsync",
            {"torchzip": {"torch script": 2}, "torchzip jobs=2": {"torch script": 2}},
            computing.average, computing.prepare_average,
        ),
        Row(
            "dequantize float8 with scales of blocks to bfloat16, all with fsync",
            {"torchzip": {computing.NUMPY_MAP: 3.5}, "torchzip jobs=2": {computing.NUMPY_MAP: 3.5}},
            computing.dequantize, computing.prepare_float8,
        ),
    ]  # fmt: skip
    rows += [
        Row(
            name, {"torchzip": {"torch script": 1}, "torchzip jobs=2": {"torch script": 1}},
            make, prepare,
        )
        for name, make, prepare in quantized.rows()
    ]  # fmt: skip
    return rows


ROWS = _rows()
