"""How many processes convert takes by itself: as many as pay, and the bytes of one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import torchzip as tz
from tests.cli.running import Capture
from tests.cli.running import run as command
from tests.convert.test_run import make_pieces_small, tree
from torchzip.convert import run
from torchzip.files.platform_calls import processors


@pytest.fixture(autouse=True)
def _many_cores_and_little_work(monkeypatch: pytest.MonkeyPatch) -> None:
    make_pieces_small(monkeypatch)
    monkeypatch.setattr(run, "_PAYING_NBYTES", 1000)
    monkeypatch.setattr(run, "processors", lambda: 3)


def jobs_of(source: Any, target: str | Path, **options: Any) -> int:
    """Return how many processes a conversion would take."""
    return tz.convert(source, target, jobs="auto", dry_run=True, **options).jobs


@pytest.mark.parametrize("suffix", [".pt", ".safetensors", ".npz"])
def test_the_bytes_are_those_of_one_process(tmp_path: Path, capsys: Capture, suffix: str) -> None:
    """The command takes several and says so; ``--jobs 1`` and the library take one."""
    tz.save(tree(3), tmp_path / "m.pt")
    made = {}
    for folder, options in (("several", ()), ("one", ("--jobs", "1"))):
        (tmp_path / folder).mkdir()
        made[folder] = tmp_path / folder / f"o{suffix}"
        status, _, err = command(
            capsys, "convert", tmp_path / "m.pt", made[folder], "--dtype", "float16", *options
        )
        assert status == 0
        assert err.endswith(", by 3 processes\n") == (folder == "several")
    (tmp_path / "library").mkdir()
    made["library"] = tmp_path / "library" / f"o{suffix}"
    assert tz.convert(tmp_path / "m.pt", made["library"], dtype="float16").jobs == 1
    assert len({path.read_bytes() for path in made.values()}) == 1


def test_how_many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One for each core, at most four, each with enough to do."""
    tz.save({"w": np.ones(2500 // 4, np.float32)}, tmp_path / "m.pt")  # twice what pays for one
    target = tmp_path / "o.safetensors"
    assert jobs_of(tmp_path / "m.pt", target, dtype="float64") == 3  # it has 5,000 bytes
    assert jobs_of(tmp_path / "m.pt", target, dtype="float16") == 1
    monkeypatch.setattr(run, "processors", lambda: 64)
    assert jobs_of(tmp_path / "m.pt", target, dtype="float64") == 4
    monkeypatch.setattr(run, "processors", lambda: 1)
    assert jobs_of(tmp_path / "m.pt", target, dtype="float64") == 1


def test_what_is_copied_is_for_one(tmp_path: Path) -> None:
    """Also with CRCs, which cost less than the disk; not if it is put into another order."""
    tz.save({"w": np.ones((50, 100), np.float32)}, tmp_path / "m.pt")
    for target in ("o.pt", "o.safetensors"):
        assert jobs_of(tmp_path / "m.pt", tmp_path / target) == 1
        assert jobs_of(tmp_path / "m.pt", tmp_path / target, verify=True) == 1
    with tz.lazy_load(tmp_path / "m.pt") as ckpt:
        rows, columns = ckpt["w"].lazy[:20], ckpt["w"].lazy[20:]
        target = str(tmp_path / "o.pt")
        assert jobs_of({"w": tz.lazy.cat([columns, rows])}, target) == 1
        assert jobs_of({"w": tz.lazy.cat([rows, columns * 2])}, target) == 3
        assert jobs_of({"w": ckpt["w"].T}, target) == 3


def test_files_of_a_directory(tmp_path: Path) -> None:
    """Shards are files like one alone."""
    tz.save({"w": np.ones(5000, np.float32), "v": np.ones(5000, np.float32)}, tmp_path / "m.pt")
    source, target = tmp_path / "m.safetensors.index.json", tmp_path / "o.pt"
    tz.convert(tmp_path / "m.pt", source, max_shard_size=20_480)
    assert jobs_of(source, target, dtype="float16") == 3
    assert jobs_of(source, target) == 1


def test_what_is_not_a_file_is_for_one(tmp_path: Path) -> None:
    """Another process does not have a file object."""
    tz.save({"w": np.ones(5000, np.float32)}, tmp_path / "m.pt")
    with open(tmp_path / "m.pt", "rb") as file:
        assert jobs_of(file, tmp_path / "o.pt", dtype="float16") == 1


def test_the_report_says_it(tmp_path: Path, capsys: Capture) -> None:
    """Also as JSON."""
    tz.save({"w": np.ones(5000, np.float32)}, tmp_path / "m.pt")
    words = ("convert", tmp_path / "m.pt", tmp_path / "o.pt", "--dtype", "float64", "--json")
    status, out, _ = command(capsys, *words)
    assert (status, json.loads(out)["jobs"]) == (0, 3)


def test_the_cores_are_those_that_the_process_may_use() -> None:
    """At least one."""
    assert processors() >= 1
