"""The writers that are tested in bad weather, and a folder for what they write."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import torchzip as tz
from torchzip.convert import work
from torchzip.files import direct, ranges, sink

OLD, NEW = 2, 3

#: What a writer may leave behind when its process is killed.
LEFT_OVER = re.compile(r"\.torchzip-[0-9a-f]{8}-[0-9a-f]{16}\.tmp")


def content(seed: int) -> dict[str, Any]:
    """Return a large array, one more, and small ones; even seeds have one small one more."""
    rng = np.random.default_rng(seed)
    made: dict[str, Any] = {
        "a": rng.standard_normal(9000).astype(np.float32),
        "b": rng.standard_normal(7001).astype(np.float32),
        "c": rng.standard_normal(50).astype(np.float32),
    }
    return made if seed % 2 else made | {"d": np.full(3, seed, np.int64)}


def write_save(folder: Path, seed: int) -> None:
    tz.save(content(seed), folder / "m.pt")


def _save_early(folder: Path, seed: int) -> None:
    made = content(seed)
    with tz.incremental_save(folder / "m.pt") as out:
        made["a"] = out.store_early(made["a"])
        out.save(made)


def _convert_to(name: str, **options: Any) -> Callable[[Path, int], None]:
    # One tensor is cast on its way, the other copied by the kernel if that can be done.
    options |= {"dtype": [("a", "float16")], "overwrite": True}

    def write(folder: Path, seed: int) -> None:
        tz.convert(folder.parent / f"source{seed}.pt", folder / name, **options)

    return write


@dataclass(frozen=True)
class Writer:
    """What is tested: ``write`` makes ``files`` in a folder, which are renamed in this order."""

    write: Callable[[Path, int], None]
    files: tuple[str, ...]

    def check(self, folder: Path, seed: int) -> None:
        """Load what there is, with all its CRCs, and compare it."""
        loaded = tz.load(folder / self.files[-1])
        for name, array in content(seed).items():
            is_cast = name == "a" and self.write not in (write_save, _save_early)
            expected = array.astype(np.float16) if is_cast else array
            assert np.array_equal(loaded.pop(name), expected)
        assert not loaded


_SHARDS = ("m-00001-of-00002.safetensors", "m-00002-of-00002.safetensors")
WRITERS = {
    "save": Writer(write_save, ("m.pt",)),
    "incremental_save": Writer(_save_early, ("m.pt",)),
    "convert to pt": Writer(_convert_to("m.pt"), ("m.pt",)),
    "convert to safetensors": Writer(_convert_to("m.safetensors"), ("m.safetensors",)),
    "convert to shards": Writer(
        _convert_to("m.safetensors.index.json", max_shard_size=28_300),
        (*_SHARDS, "m.safetensors.index.json"),
    ),
}


each_writer = pytest.mark.parametrize("writer", WRITERS.values(), ids=WRITERS)
over_what = pytest.mark.parametrize("is_there", [True, False], ids=["over a file", "no file"])


class Place:
    """A folder for a writer's files, and the bytes that they have before and afterwards."""

    def __init__(self, root: Path, writer: Writer, is_there: bool) -> None:
        self.folder = root / "target"
        self._writer = writer
        for seed in (OLD, NEW):
            tz.save(content(seed), root / f"source{seed}.pt")
        self.old = self._make(OLD) if is_there else [None] * len(writer.files)
        self.new = self._make(NEW)
        assert all(a != b for a, b in zip(self.old, self.new, strict=True))
        self.reset()

    def _make(self, seed: int) -> list[bytes | None]:
        self.reset([])
        self._writer.write(self.folder, seed)
        self._writer.check(self.folder, seed)
        assert sorted(os.listdir(self.folder)) == sorted(self._writer.files)
        return self.found()

    def reset(self, contents: Sequence[bytes | None] | None = None) -> None:
        """Put the old files there, and nothing else."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir()
        for name, data in zip(
            self._writer.files, self.old if contents is None else contents, strict=False
        ):
            if data is not None:
                (self.folder / name).write_bytes(data)

    def found(self) -> list[bytes | None]:
        """Return the bytes of each file, None where there is none."""
        paths = [self.folder / name for name in self._writer.files]
        return [path.read_bytes() if path.exists() else None for path in paths]

    def renamed(self) -> int:
        """Return how many files are new; raise if one is neither, or they are in another order."""
        found = self.found()
        count = sum(data == new for data, new in zip(found, self.new, strict=True))
        assert found == self.new[:count] + self.old[count:]
        return count

    def others(self) -> set[str]:
        """Return what is there beside the files."""
        return set(os.listdir(self.folder)) - set(self._writer.files)

    def write(self) -> None:
        """Write the new files."""
        self._writer.write(self.folder, NEW)


def make_small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make a few KB large: past the cache, in pieces, with a thread."""
    monkeypatch.setattr(sink, "_CACHED_NBYTES", 2 * direct.ALIGNMENT)
    monkeypatch.setattr(direct, "_BLOCK_NBYTES", 2 * direct.ALIGNMENT)
    monkeypatch.setattr(ranges, "_DIRECT_NBYTES", 1 << 14)
    monkeypatch.setattr(ranges, "_COPY_NBYTES", 1 << 14)
    monkeypatch.setattr(work, "_SMALL_NBYTES", 1 << 11)
    monkeypatch.setattr(work, "_PIECE_NBYTES", 1 << 14)
