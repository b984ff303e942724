"""``torchzip diff``: what differs, as a user sees it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import torchzip as tz
from tests import builders as b
from tests.cli.running import Capture, Command
from tests.saved import flipped
from torchzip.types import SparseTensor

#: The second weight of the pair; two of its numbers are others in the first.
WEIGHT = np.array([[0, 1, 2.25], [3, 4, 3]])

run = Command("diff")


def sparse(value: float) -> SparseTensor:
    """Return a sparse tensor with one value."""
    return SparseTensor("sparse_coo", np.array([[1]]), np.array([value]), (4,), True)


@pytest.fixture
def pair(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Write two files that differ in every way, and go to their folder."""
    monkeypatch.chdir(tmp_path)
    one = {
        "same": np.ones(2), "w": np.arange(6.0).reshape(2, 3),
        "n": np.array([1 << 40, 2]), "half": np.ones(3, "f4"),
        "moved": np.arange(5), "gone": np.zeros((1, 2)), "nan": np.array([1.0, np.nan]),
        "s": sparse(1.0), "zero": np.array([0.0]), "step": 7, "opt": {"lr": 0.1},
    }  # fmt: skip
    other = {
        "same": np.ones(2), "w": WEIGHT, "n": np.array([2, 2]),
        "half": np.ones(3, "f2"), "moved.to": np.arange(5), "new": np.zeros(2, bool),
        "nan": np.array([1.0, 3.0]), "s": sparse(3.0), "zero": np.array([-0.0]), "step": 8,
        "name": "b",
    }  # fmt: skip
    tz.save(one, "a.pt")
    tz.save(other, "b.pt")
    return tmp_path


TEXT = """\
changed  w                  float64 [2, 3]              2 elements, first at [0, 2], max abs difference 2, max relative 0.67, mean 0.375
changed  n                  int64 [2]                   1 element, first at [0], max abs difference 1,099,511,627,774, max relative 5.5e+11
changed  half               float32 [3] -> float16 [3]  dtype
changed  nan                float64 [2]                 1 element, first at [1], NaN on one side in 1
changed  s (values)         float64 sparse_coo [4]      1 element, first at [0], max abs difference 2, max relative 0.67
renamed  moved -> moved.to  int64 [5]
removed  gone               float64 [1, 2]
added    new                bool [2]
value    step    7 -> 8
value    opt.lr  removed: 0.1
value    name    added: 'b'
equal in value, with zeros of another sign or other NaNs: zero
a.pt and b.pt differ: 2 tensors equal (1 by their CRCs, unread), 5 changed, 1 renamed, 1 removed, 1 added, 3 values differ
"""  # noqa: E501


def test_text(capsys: Capture, pair: Path) -> None:
    """A row for each difference, the sums, and status 1."""
    status, out, err = run(capsys, "a.pt", "b.pt")
    assert (status, err) == (1, "")
    assert out == TEXT


def test_cast(capsys: Capture, pair: Path) -> None:
    """With --cast the dtype is no difference."""
    status, out, _ = run(capsys, "a.pt", "b.pt", "--cast")
    assert status == 1
    assert "half" not in out
    assert "3 tensors equal (1 by their CRCs, unread), 4 changed" in out


def test_equal(capsys: Capture, pair: Path) -> None:
    """Status 0 and one line, across formats too."""
    tz.save({"w": np.ones(3, "f4"), "n": 1}, "c.pt")
    tz.convert("c.pt", "c.safetensors")
    tz.convert("c.pt", "d.safetensors", dtype="bfloat16")
    assert run(capsys, "c.pt", "c.safetensors") == (
        0, "c.pt and c.safetensors are equal: 1 tensor equal\n", "",
    )  # fmt: skip
    assert run(capsys, "c.pt", "d.safetensors")[0] == 1
    assert run(capsys, "c.pt", "d.safetensors", "--cast")[0] == 0


def test_json(capsys: Capture, pair: Path) -> None:
    """The same as JSON."""
    status, out, err = run(capsys, "a.pt", "b.pt", "--json")
    assert (status, err) == (1, "")
    found = json.loads(out)
    assert {name: len(rows) for name, rows in found.items() if isinstance(rows, list)} == {
        "added": 1, "removed": 1, "renamed": 1, "changed": 5, "values": 3, "other_bits": 1,
        "close": 0,
    }  # fmt: skip
    assert (found["is_equal"], found["a"], found["b"], found["equal"]) == (False, "a.pt", "b.pt", 2)
    row = {"name": "w", "kind": "dense", "torch_dtype": "float64", "shape": [2, 3]}
    assert found["changed"][0] == {
        "before": row, "after": row, "what": ["values"], "part": None,
        "values": {
            "count": 2, "max_abs": 2.0, "nans": 0, "first": [0, 2], "max_rel": pytest.approx(2 / 3),
            "mean_abs": 2.25 / 6,
        },
    }  # fmt: skip
    assert found["renamed"][0][1]["name"] == "moved.to"
    assert found["values"][1] == {"name": "opt.lr", "before": "0.1", "after": None}


def test_infinity_in_json(capsys: Capture, pair: Path) -> None:
    """JSON has no infinity."""
    tz.save([np.array([0.0])], "c.pt")
    tz.save([np.array([np.inf])], "d.pt")
    _, out, _ = run(capsys, "c.pt", "d.pt", "--json")
    found = json.loads(out, parse_constant=pytest.fail)
    assert found["changed"][0]["values"]["max_abs"] == "inf"


def test_a_bare_tensor(capsys: Capture, pair: Path) -> None:
    """A tensor that is the whole object has no name."""
    tz.save(np.zeros(2), "c.pt")
    tz.save(np.ones(2), "d.pt")
    assert run(capsys, "c.pt", "d.pt")[1].startswith("changed  (the object itself)  float64 [2]")


def test_values_that_differ_far_inside(capsys: Capture, pair: Path) -> None:
    """Of long texts and lists the beginning is shown, and that they are not the same."""
    tz.save({"text": "x" * 200, "list": [1, 2, 3, 4, 5]}, "c.pt")
    tz.save({"text": "x" * 199 + "y", "list": [1, 2, 3, 4, 6]}, "d.pt")
    assert run(capsys, "c.pt", "d.pt")[1].splitlines() == [
        f"value    text  another '{'x' * 100}'...",
        "value    list  another [1, 2, 3, 4, ...]",
        "c.pt and d.pt differ: 0 tensors equal, 2 values differ",
    ]


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_hostile_names(capsys: Capture, pair: Path, options: list[str]) -> None:
    """No name or text of a file moves the cursor or ends a line."""
    evil = "a\x1b[31m\nb\u202e"
    tz.save({evil: np.zeros(2), "x" + evil: evil, "r": np.arange(3), "z" + evil: [1]}, "c.pt")
    tz.save({evil: np.ones(2), "r" + evil: np.arange(3), "new" + evil: np.ones(1)}, "d.pt")
    status, out, err = run(capsys, *options, "c.pt", "d.pt")
    assert (status, err) == (1, "")
    assert all(character == "\n" or character.isprintable() for character in out)
    if not options:
        assert len(out.splitlines()) == 6
        assert "a\\x1b[31m\\nb\\u202e" in out


def test_bad_files(capsys: Capture, pair: Path) -> None:
    """A file that is none, is missing or is damaged: status 1, and which it is."""
    Path("no.pt").write_bytes(b"<html>")
    for one, other, named in (
        ("a.pt", "no.pt", "no.pt"),
        ("no.pt", "a.pt", "no.pt"),
        ("a.pt", "missing.pt", "missing.pt"),
    ):
        err = run.says(1, capsys, one, other)
        assert err.startswith(f"torchzip: {named}")
    data = Path("b.pt").read_bytes()
    Path("b.pt").write_bytes(flipped(data, data.index(WEIGHT.tobytes())))
    err = run.says(1, capsys, "a.pt", "b.pt")
    assert err.startswith("torchzip: b.pt, record data/")
    assert "CRC" in err


def test_conflicting_names(capsys: Capture, pair: Path) -> None:
    """Two tensors of one name cannot be compared by it; both places are shown."""
    made = b.dict_of({"a.b": b.tensor(), "a": {"b": b.tensor(offset=0)}})
    Path("c.pt").write_bytes(b.checkpoint(b.stream(made)))
    err = run.says(1, capsys, "c.pt", "a.pt")
    assert "two tensors are called 'a.b'" in err
