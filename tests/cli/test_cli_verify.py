"""``torchzip verify``: sound or damaged, and what torch's safe loader says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import torchzip as tz
from tests import builders as b
from tests.cli.running import Capture, run
from tests.saved import GOLDEN_FILES, flipped

each_golden = pytest.mark.parametrize(
    "path", GOLDEN_FILES, ids=lambda path: f"{path.parent.name}/{path.name}"
)


def found(capsys: Capture, path: Path) -> dict[str, Any]:
    out = run.done(capsys, "verify", "--json", "--fail-on", "never", path)
    values: dict[str, Any] = json.loads(out)
    return values


@pytest.fixture
def tensors() -> dict[str, Any]:
    return {"a": np.arange(300, dtype=np.float32), "b": np.ones(4, np.int64)}


def test_sound(capsys: Capture, path: Path, tensors: dict[str, Any]) -> None:
    """Records, bytes, tensors, CRCs, and that torch accepts it."""
    tz.save(tensors, path)
    out = run.done(capsys, "verify", path)
    lines = out.splitlines()
    assert lines[0].startswith(f"{path}: sound; zip, 2 tensors, ")
    assert lines[1].endswith(" CRCs compared, all right")
    assert lines[2:] == ["torch.load accepts (weights_only=True)"]


def test_json(capsys: Capture, path: Path, tensors: dict[str, Any]) -> None:
    """The same as JSON."""
    tz.save(tensors, path)
    values = found(capsys, path)
    assert values.pop("records") >= 4
    assert values.pop("nbytes") > 1232
    assert values == {
        "file": str(path),
        "format": "zip",
        "tensors": 2,
        "without_crc": [],
        "notes": [],
        "torch_load": "accepts",
        "refused": [],
        "refused_opcodes": [],
        "reason": None,
        "odd_values": None,
    }


def test_damaged(capsys: Capture, path: Path, tensors: dict[str, Any]) -> None:
    """One wrong bit of a tensor: status 1, and the record is named."""
    tz.save(tensors, path)
    data = path.read_bytes()
    path.write_bytes(flipped(data, data.index(tensors["a"].tobytes()) + 700, 4))
    for options in ([], ["--json"]):
        err = run.says(1, capsys, "verify", *options, path)
        assert f"{path}, record data/0" in err
        assert "CRC" in err


def test_without_crcs(capsys: Capture, path: Path) -> None:
    """A record that has no CRC is counted and named, and is no fault."""
    members = b.members_of(b.stream(b.dict_of({"a": b.tensor()})))
    made = [
        b.Member(name=m.name, data=m.data, crc=0 if b"data/" in m.name else None) for m in members
    ]
    path.write_bytes(b.build_zip(made))
    out = run.done(capsys, "verify", path)
    assert "3 CRCs compared, all right\n1 record without a CRC: data/0\n" in out


def test_legacy(capsys: Capture) -> None:
    """A legacy stream has no CRCs at all; torch loads it."""
    out = run.done(capsys, "verify", b.GOLDEN / "views-legacy.pt")
    assert "0 CRCs compared\n3 records without a CRC: storage " in out
    assert out.endswith("torch.load accepts (weights_only=True)\n")


def test_truncated(capsys: Capture, path: Path) -> None:
    """A stream that is cut short is damaged, though it has no CRC."""
    path.write_bytes((b.GOLDEN / "views-legacy.pt").read_bytes()[:-1])
    err = run.says(1, capsys, "verify", path)
    assert "looks truncated" in err


def test_safetensors(capsys: Capture, tmp_path: Path, tensors: dict[str, Any]) -> None:
    """torch.load has nothing to do with it, unless its name says what it is."""
    tz.save(tensors, tmp_path / "m.pt")
    tz.convert(tmp_path / "m.pt", tmp_path / "m.safetensors")
    out = run.done(capsys, "verify", tmp_path / "m.safetensors")
    assert "0 CRCs compared" in out
    assert "torch.load accepts (weights_only=True), as the name of the file ends in" in out
    (tmp_path / "m.safetensors").rename(tmp_path / "m.bin")
    _, out, _ = run(capsys, "verify", tmp_path / "m.bin")
    assert "torch.load does not apply: a safetensors file" in out
    (tmp_path / "m.pt").rename(tmp_path / "m.safetensors")
    _, out, _ = run(capsys, "verify", tmp_path / "m.safetensors")
    assert "torch.load refuses: a zip file whose name ends in .safetensors" in out


def test_shards(capsys: Capture, tmp_path: Path, tensors: dict[str, Any]) -> None:
    """A directory, as one checkpoint; a shard that is missing is damage."""
    tz.save(tensors, tmp_path / "m.pt")
    out = tmp_path / "out"
    out.mkdir()
    tz.convert(tmp_path / "m.pt", out / "model.safetensors.index.json", max_shard_size="1KB")
    values = found(capsys, out)
    assert (values["format"], values["tensors"], values["torch_load"]) == (
        "sharded", 2, "does not apply",
    )  # fmt: skip
    next(out.glob("*-00002-*")).unlink()
    err = run.says(1, capsys, "verify", out)
    assert "00002" in err


def test_foreign_names(capsys: Capture, path: Path) -> None:
    """Names that torch refuses are listed, and cannot move the cursor."""
    made = b.list_of(b.name("my.models", "Net"), b.name("m\x1b", "C"), b.tensor())
    path.write_bytes(b.checkpoint(b.stream(made)))
    status, out, err = run(capsys, "verify", path)
    assert status == 1
    assert err.startswith(f"torchzip: {path}: exit status 1, as torch.load refuses names in it")
    last = out.splitlines()[-1]
    assert last == (
        "torch.load needs weights_only=False: torch's safe loader refuses my.models.Net, m\\x1b.C"
    )
    assert found(capsys, path)["refused"] == ["my.models.Net", "m\x1b.C"]


@pytest.mark.parametrize("command", ["verify", "globals"])
def test_a_gate_for_names(capsys: Capture, tmp_path: Path, command: str) -> None:
    """Status 1 for names that torch.load refuses, unless a policy allows all or nobody asks."""
    tz.save({"w": np.ones(2)}, tmp_path / "plain.pt")
    named = tmp_path / "named.pt"
    made = b.list_of(b.name("argparse", "Namespace"), b.name("my.models", "Net"))
    named.write_bytes(b.checkpoint(b.stream(made)))
    policy = tmp_path / "policy.txt"
    policy.write_text("my.models.*  # ours\n")
    lightning, ours = ("--allow", "lightning"), ("--allow", policy)
    for options, expected in (
        ((), 1), (lightning, 1), (ours, 1), ((*lightning, *ours), 0), (("--fail-on", "never"), 0),
    ):  # fmt: skip
        assert run(capsys, command, named, *options)[0] == expected
        assert run(capsys, command, named, "--json", *options)[0] == expected
        assert run(capsys, command, tmp_path / "plain.pt", *options)[0] == 0
    why = "exit status 1, as torch.load refuses names in it by default; --allow"
    assert f"{named}: {why} lightning accepts" in run(capsys, command, named, *ours)[2]
    assert f"{named}: {why} FILE accepts" in run(capsys, command, named)[2]
    assert "lightning accepts" in run(capsys, "scan", named, *ours)[2]
    if command == "verify":
        assert run(capsys, command, tmp_path / "plain.pt", named)[0] == 1
    assert "nothing.txt" in run.says(1, capsys, command, named, "--allow", "nothing.txt")


def test_opcodes_that_torch_refuses(capsys: Capture) -> None:
    """Not a name blocks a pickle of protocol 4, but its opcodes."""
    path = b.GOLDEN / "proto4.pt"
    values = found(capsys, path)
    assert (values["torch_load"], values["refused"]) == ("needs weights_only=False", [])
    assert values["refused_opcodes"] == ["FRAME", "MEMOIZE", "SHORT_BINUNICODE", "STACK_GLOBAL"]
    _, out, _ = run(capsys, "verify", path)
    assert "does not know the opcodes FRAME, MEMOIZE, SHORT_BINUNICODE, STACK_GLOBAL" in out


@each_golden
def test_golden_files(capsys: Capture, path: Path) -> None:
    """All are sound."""
    assert found(capsys, path)["tensors"] > 0


def test_not_a_checkpoint(capsys: Capture, tmp_path: Path) -> None:
    """What is none, or is not there, is bad."""
    (tmp_path / "m.pt").write_bytes(b"<html>")
    for path in (tmp_path / "m.pt", tmp_path / "no.pt"):
        err = run.says(1, capsys, "verify", path)
        assert str(path) in err


@pytest.mark.torch
@pytest.mark.filterwarnings("ignore")
@each_golden
def test_torch_agrees(torch: Any, capsys: Capture, path: Path) -> None:
    """What torch's default loader does is what is said of it."""
    try:
        torch.load(path, weights_only=True)
        loads = True
    except Exception:
        loads = False
    assert loads == (found(capsys, path)["torch_load"] == "accepts")
