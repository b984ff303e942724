"""Commands on checkpoints of many ranks: they follow without knowing of them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import torchzip as tz
from tests.cli.running import Capture, Command
from tests.formats.rank_builder import write_ranks

RANKS = Path(__file__).parents[1] / "data" / "ranks"
each_folder = pytest.mark.parametrize(
    "folder", ["zero-2-bf16", "zero-3-fp32", "fsdp2-w2", "fsdp-tp-w4", "mcore"]
)


@each_folder
def test_commands(folder: str, capsys: Capture, tmp_path: Path) -> None:
    """List, verify, weigh, show, report, convert, compare."""
    path = RANKS / folder
    listing = json.loads(Command("ls").done(capsys, path, "--json"))
    assert len(listing["tensors"]) in (2, 10, 11)
    assert "sound" in Command("verify", "--fail-on", "never").done(capsys, path)
    weighed = json.loads(Command("why-big").done(capsys, path, "--json"))
    assert weighed["nbytes"] == sum(part["nbytes"] for part in weighed["parts"]) > 0
    name = listing["tensors"][-1]["name"]
    assert name in Command("cat").done(capsys, path, name)
    assert Command("report")(capsys, path, "-o", tmp_path / "page.html")[0] == 0
    assert Command("convert")(capsys, path, tmp_path / "m.pt", "--dtype", "bfloat16")[0] == 0
    assert len(tz.load(tmp_path / "m.pt")) > 0
    assert Command("convert")(capsys, path, tmp_path / "same.pt")[0] == 0
    assert "equal" in Command("diff").done(capsys, path, tmp_path / "same.pt")


def test_optimizer(capsys: Capture, tmp_path: Path) -> None:
    """What it keeps of each weight is shown and converted when it is asked for."""
    path, name = RANKS / "zero-3-fp32", "optimizer.l1.bias.exp_avg"
    assert "optimizer" not in Command("ls").done(capsys, path)
    assert name in Command("ls").done(capsys, path, "--optimizer")
    assert "float32 [16]" in Command("cat").done(capsys, path, name)
    target = tmp_path / "m.safetensors"
    assert Command("convert")(capsys, path, target, "--include", "optimizer.*.bias.*")[0] == 0
    assert name in tz.load(target)
    assert all(each.startswith("optimizer.") for each in tz.load(target))


def test_join(capsys: Capture, tmp_path: Path) -> None:
    """Shards are given by a pattern, and go by the numbers in their names."""
    array = np.arange(24.0).reshape(12, 2)
    for rank in range(12):
        tz.save({"w": array[rank : rank + 1].copy(), "n": np.ones(2)}, tmp_path / f"s.{rank}.pt")
    target, pattern = tmp_path / "m.safetensors", tmp_path / "s.*.pt"
    rules = ["--join", "n=same", "--join", "w=0"]
    assert Command("convert")(capsys, pattern, target, *rules)[0] == 0
    np.testing.assert_array_equal(tz.load(target)["w"], array)
    assert "[12, 2]" in Command("ls").done(capsys, pattern, *rules)
    assert "No file matches" in Command("ls").says(1, capsys, tmp_path / "x*", *rules)
    assert "GLOB=AXIS" in Command("ls").says(2, capsys, pattern, "--join", "w=x", "--join", "n=0")
    assert "llama" in Command("ls").says(2, capsys, pattern, "--join", "gpt")
    assert "does not say" in Command("ls").says(1, capsys, pattern, "--join", "llama")


def test_notes(capsys: Capture, tmp_path: Path) -> None:
    """What ranks have each for themselves is said by verify."""
    write_ranks(tmp_path, {}, [2], plain={"x": np.ones(2)})
    tz.save({"x": np.zeros(2)}, tmp_path / "model_world_size_2_rank_1.pt")
    assert "different values of 'x'" in Command("verify").done(capsys, tmp_path)
