"""``torchzip repair``: its text, JSON and exit statuses, and that torch reads what it writes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import torchzip as tz
from tests.cli.running import Capture, run
from tests.saved import flipped


@pytest.fixture
def broken(tmp_path: Path) -> Path:
    """Return a file of three tensors, cut within the last, whose name has a line break."""
    path = tmp_path / "broken.pt"
    value = {"a": np.arange(300, dtype=np.float32), "b": np.ones(4, np.int64), "c\n": np.ones(500)}
    tz.save(value, path)
    data = path.read_bytes()
    path.write_bytes(data[: data.index(np.ones(500).tobytes()) + 100])
    return path


def test_text(capsys: Capture, tmp_path: Path, broken: Path) -> None:
    """The sums, what is wrong, and a line for each lost tensor; a name moves no cursor."""
    out = tmp_path / "out.pt"
    text = run.done(capsys, "repair", broken, out)
    lines = text.splitlines()
    assert lines[0] == f"{out}: 2 of 3 tensors, {out.stat().st_size / 1000:.1f} kB"
    assert lines[1].startswith(f"damage: {broken}: no zip directory in the last ")
    assert lines[1].endswith("the place it came from.")  # with no advice to do what was done
    assert lines[2].startswith("lost  c\\n  float64 [500]  the file ends at byte ")
    assert len(lines) == 3
    assert list(tz.load(out)) == ["a", "b"]


def test_json(capsys: Capture, tmp_path: Path, broken: Path) -> None:
    """The same as JSON."""
    out = tmp_path / "out.pt"
    status, text, err = run(capsys, "repair", broken, out, "--json")
    found = json.loads(text)
    assert (status, err) == (0, "")
    assert found.pop("damage").startswith(str(broken))
    (lost,) = found.pop("lost")
    assert lost.pop("why").startswith("the file ends at byte ")
    assert lost == {"name": "c\n", "torch_dtype": "float64", "shape": [500]}
    assert found == {
        "broken": str(broken), "out": str(out), "format": "zip", "tensors": 2, "unverified": [],
        "notes": [], "nbytes": out.stat().st_size,
    }  # fmt: skip


def test_sound_and_unverified(capsys: Capture, tmp_path: Path) -> None:
    """That nothing is wrong is said, or that nothing can be seen where there are no CRCs."""
    path, out = tmp_path / "m.pt", tmp_path / "out.pt"
    tz.save({"a": np.ones(3)}, path)
    _, text, _ = run(capsys, "repair", path, out)
    assert text.splitlines()[1:] == [f"nothing is wrong with {path}"]
    assert out.read_bytes().count(b"PK\3\4") == path.read_bytes().count(b"PK\3\4")
    tz.save({f"a{i}": np.ones(3) for i in range(12)}, path, crc32=False)
    _, text, _ = run(capsys, "repair", path, out, "--force")
    assert text.splitlines()[1:] == [
        f"no damage can be seen in {path}",
        "unverified, since they have no CRC: 12 tensors: "
        "a0, a1, a2, a3, a4, a5, a6, a7, a8, a9 and 2 more",
    ]


def test_statuses(capsys: Capture, tmp_path: Path, broken: Path) -> None:
    """1 if nothing can be recovered, and nothing is written; 2 if OUT is there."""
    out = tmp_path / "out.pt"
    nothing = tmp_path / "nothing.pt"
    nothing.write_bytes(broken.read_bytes()[:200])
    err = run.says(1, capsys, "repair", nothing, out)
    assert err.startswith(f"torchzip: {nothing}: nothing can be recovered: data.pkl ")
    assert not out.exists()
    out.write_bytes(b"mine")
    for target in (out, broken):
        assert run(capsys, "repair", broken, target) == (
            2, "", f"torchzip: {target} exists; --force overwrites it\n",
        )  # fmt: skip
    assert out.read_bytes() == b"mine"
    assert run(capsys, "repair", tmp_path / "none.pt", tmp_path / "x.pt")[0] == 1
    err = run.says(2, capsys, "repair", broken, tmp_path / "x.gguf")
    assert err.startswith(f"torchzip: {tmp_path / 'x.gguf'}: .gguf is the suffix of GGUF")


@pytest.mark.torch
@pytest.mark.filterwarnings("default")
def test_torch_reads_it(capsys: Capture, tmp_path: Path, broken: Path) -> None:
    """What is written is for torch.load, by default, by mmap, and with ties and Parameters."""
    torch = pytest.importorskip("torch")
    model = torch.nn.Sequential(torch.nn.Linear(30, 30), torch.nn.Linear(30, 30))
    model[1].weight = model[0].weight
    state = {"model": model.state_dict(), "parameter": model[0].bias, "step": 3}
    path, out = tmp_path / "m.pt", tmp_path / "out.pt"
    torch.save(state, path)
    data = path.read_bytes()
    path.write_bytes(flipped(data, data.index(model[1].bias.detach().numpy().tobytes())))
    text = run.done(capsys, "repair", path, out)
    assert "lost  model.1.bias  float32 [30]" in text
    for mmap in (False, True):
        found = torch.load(out, mmap=mmap)
        assert list(found["model"]) == ["0.weight", "0.bias", "1.weight"]
        assert found["model"]._metadata == state["model"]._metadata
        assert found["step"] == 3
        assert isinstance(found["parameter"], torch.nn.Parameter)
        for name in found["model"]:
            assert torch.equal(found["model"][name], state["model"][name])
        shared = {found["model"][name].data_ptr() for name in ("0.weight", "1.weight")}
        assert len(shared) == 1
