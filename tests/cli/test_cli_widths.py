"""Tables of all commands on narrow terminals: none is wider, and a pipe gets everything."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import torchzip as tz
from tests import builders as b
from tests.cli.running import Capture, run
from torchzip.cli.rendering import width_of

_LONG = "model.encoder.layers.{}.self_attention.in_proj_weight"


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """Write two checkpoints of long names that differ, a damaged one, and one with long globals."""
    shared = np.ones((30, 40), np.float32)
    state: dict[str, Any] = {_LONG.format(n): shared * n for n in range(4)}
    state |= {_LONG.format("tied"): state[_LONG.format(1)], "text": "a long text " * 9}
    tz.save(state, tmp_path / "a.pt")
    state[_LONG.format(2)] = shared * np.float32("nan")
    state["text"] = "another long text " * 9
    state[_LONG.format(77)] = shared[1:]
    tz.save(state, tmp_path / "b.pt")
    data = (tmp_path / "b.pt").read_bytes()
    (tmp_path / "cut.pt").write_bytes(data[: len(data) * 2 // 3])
    named = b.list_of(b.name("a_package.with.long.names", "AndAClassWithALongName"), b.tensor())
    (tmp_path / "named.pt").write_bytes(b.checkpoint(b.stream(named)))
    return tmp_path


#: Commands with a table, and what those lines of their output match that are sentences.
COMMANDS = {
    "ls a.pt": r"/.*: zip, ",
    "ls -l a.pt": r"/.*: zip, ",
    "ls -l --tree a.pt": r"/.*: zip, ",
    "ls --tree a.pt": r"/.*: zip, ",
    "ls --tree --depth 2 a.pt": r"/.*: zip, ",
    "globals named.pt": r"/.*: zip, ",
    "diff a.pt b.pt": r"/.* differ: ",
    "scan named.pt": r"  foreign-global, |1 file: ",
    "convert a.pt new.pt --dry-run --dtype bfloat16": r".* in all$",
    "convert a.pt new.safetensors.index.json --dry-run --max-shard-size 10KB": r".* in all$",
    "verify --values b.pt": r"/.*: sound; |torch.load accepts|.* compared|.* with NaN",
    "repair cut.pt whole.pt": r"/.*: |damage: |unverified, |note: ",
    "why-big b.pt": r".*: zip, |.*: |.* left: |    |[a-z ]+$|.* of ",
}


@pytest.mark.parametrize("width", [40, 60])
@pytest.mark.parametrize("command", COMMANDS)
def test_tables_fit(
    files: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch, command: str, width: int
) -> None:
    """Cells are shortened, numbers are not; sentences are for the terminal to wrap."""
    words = [str(files / word) if "." in word or "/" in word else word for word in command.split()]
    _, piped, _ = run(capsys, *words)
    (files / "whole.pt").unlink(missing_ok=True)
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    _, shown, _ = run(capsys, *words)
    lines = shown.splitlines()
    if " -l" in command:  # what does not fit beside goes below
        assert len(lines) > len(piped.splitlines())
        assert "  stride [40, 1], offset 0, device cpu," in shown
    elif command.startswith("ls"):
        assert len(lines) >= len(piped.splitlines())
    else:
        assert len(lines) == len(piped.splitlines())
    tables = [line for line in lines if not re.match(COMMANDS[command], line)]
    assert tables
    for line in tables:
        assert width_of(line) <= width, line
    assert "…" in shown or command.startswith("why-big")
    assert "…" not in piped or "--tree" in command


def test_marks_go_below_before_names_are_cut(
    tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A list of names of which six letters are left says nothing."""
    tied = np.ones((50, 8), np.float32)
    tz.save({"embedding.weight": tied, "head.weight": tied}, tmp_path / "a.pt")
    monkeypatch.setenv("COLUMNS", "42")
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    _, shown, _ = run(capsys, "ls", tmp_path / "a.pt")
    assert shown.splitlines()[:-1] == [
        "name              dtype    shape      size",
        "embedding.weight  float32  [50, 8]  1.6 kB",
        "head.weight       float32  [50, 8]  1.6 kB",
        "  tied or view = embedding.weight",
    ]
