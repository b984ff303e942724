"""``torchzip ls``: tables, trees, values and sums, piped and on a terminal."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import torchzip as tz
from tests import builders as b
from tests.cli.running import Capture, Command
from tests.cli.terminal import on_terminal, unstyled
from torchzip.cli import rendering
from torchzip.cli.main import main
from torchzip.types import Parameter

run = Command("ls").done


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Write a model of five blocks, four of them alike, and go to its folder."""
    monkeypatch.chdir(tmp_path)
    state: dict[str, Any] = {"embed": {"weight": Parameter(np.zeros((10, 4), np.float32))}}
    state["layers"] = [
        {"fc": {"weight": np.zeros((4, 4), np.float32), "bias": np.zeros(4, np.float32)}}
        for _ in range(5)
    ]
    state["layers"][4]["fc"]["bias"] = np.zeros(4, np.float64)
    state["head"] = state["embed"]["weight"].data
    state["rows"] = state["head"][2:4]
    state["step"] = 7
    tz.save(state, "m.pt")
    return "m.pt"


FLAT = """\
name                dtype          shape     size  tied or view
embed.weight        float32 param  [10, 4]  160 B
layers.0.fc.weight  float32        [4, 4]    64 B
layers.0.fc.bias    float32        [4]       16 B
layers.1.fc.weight  float32        [4, 4]    64 B
layers.1.fc.bias    float32        [4]       16 B
layers.2.fc.weight  float32        [4, 4]    64 B
layers.2.fc.bias    float32        [4]       16 B
layers.3.fc.weight  float32        [4, 4]    64 B
layers.3.fc.bias    float32        [4]       16 B
layers.4.fc.weight  float32        [4, 4]    64 B
layers.4.fc.bias    float64        [4]       32 B
head                float32        [10, 4]  160 B  = embed.weight
rows                float32        [2, 4]    32 B  view of embed.weight

step  7

m.pt: zip, 13 tensors (12 float32 736 B, 1 float64 32 B), 576 B stored
"""

TREE = """\
name          dtype          shape, elements   size  tied or view
embed.weight  float32 param  [10, 4]          160 B
layers        10 tensors     100              416 B
  0.fc        2 tensors      20                80 B
    weight    float32        [4, 4]            64 B
    bias      float32        [4]               16 B
  1 … 3       6 tensors      60               240 B  3 like 0, 80 B each
  4.fc        2 tensors      20                96 B
    weight    float32        [4, 4]            64 B
    bias      float64        [4]               32 B
head          float32        [10, 4]          160 B  = embed.weight
rows          float32        [2, 4]            32 B  view of embed.weight

step  7

m.pt: zip, 13 tensors (12 float32 736 B, 1 float64 32 B), 576 B stored
"""


def test_flat(capsys: Capture, model: str) -> None:
    """A row for each tensor with its ties and views, the other values, the sums."""
    assert run(capsys, model) == FLAT


def test_tree(capsys: Capture, model: str) -> None:
    """Each module with its sums; blocks that are alike are one line."""
    assert run(capsys, model, "--tree") == TREE


def test_the_whole_tree(capsys: Capture, model: str) -> None:
    """With ``--all`` no block is left out."""
    out = run(capsys, model, "--tree", "--all")
    assert [line.split()[0] for line in out.splitlines() if line.startswith("  ")].count(
        "weight"
    ) == 5
    assert "…" not in out


def test_depth(capsys: Capture, model: str) -> None:
    """So many levels, and the tree is meant."""
    out = run(capsys, model, "--depth", 1)
    names = [line.split()[0] for line in out.splitlines()[1:5]]
    assert names == ["embed.weight", "layers", "head", "rows"]
    assert run(capsys, model, "--depth", 1, "--tree") == out
    assert run(capsys, model, "--depth", 99) == run(capsys, model, "--tree")


@pytest.mark.parametrize("depth", ["0", "-1"])
def test_no_depth(capsys: Capture, model: str, depth: str) -> None:
    """There is no tree of none."""
    assert main(["ls", model, "--depth", depth]) == 2
    assert "--depth must be 1 or more" in capsys.readouterr().err


def test_sort(capsys: Capture, model: str) -> None:
    """By name, or by size with the largest first; equal ones stay in the order of the file."""
    rows = json.loads(run(capsys, model, "--json"))["tensors"]
    names = [row["name"] for row in rows]
    for how, expected in [
        ("name", sorted(names)),
        ("size", [row["name"] for row in sorted(rows, key=lambda row: -row["nbytes"])]),
    ]:
        lines = run(capsys, model, "--sort", how).splitlines()[1:14]
        assert [line.split()[0] for line in lines] == expected
        listing = json.loads(run(capsys, model, "--sort", how, "--json"))
        assert [row["name"] for row in listing["tensors"]] == expected
    tree = run(capsys, model, "--tree", "--sort", "size").splitlines()
    assert tree[1].startswith("layers")
    assert tree[2].startswith("  4.fc")


def test_alike_only_if_they_follow(capsys: Capture, tmp_path: Path) -> None:
    """Numbers with a gap, names and blocks of other shapes are not put together."""

    def block(size: int) -> dict[str, Any]:
        return {"w": np.zeros(size), "v": np.zeros(1)}

    state: dict[str, Any] = {str(index): block(2) for index in (0, 1, 2, 5, 6)}
    state |= {name: block(3) for name in ("a", "b", "c")} | {"7": block(4), "8": block(4)}
    tz.save(state, tmp_path / "m.pt")
    lines = run(capsys, tmp_path / "m.pt", "--tree").splitlines()
    top = [line.split("  ")[0] for line in lines[1:-1] if not line.startswith(" ")]
    assert top == ["0", "1 … 2", "5", "6", "a", "b", "c", "7", "8"]


def test_a_block_with_ties_is_not_alike(capsys: Capture, tmp_path: Path) -> None:
    """One whose tensors are those of another says so itself."""
    one = {"w": np.zeros(2), "v": np.zeros(1)}
    tz.save([one, dict(one), {"w": np.ones(2), "v": np.ones(1)}], tmp_path / "m.pt")
    out = run(capsys, tmp_path / "m.pt", "--tree")
    assert "…" not in out
    assert "= 0.w" in out


def test_a_tensor_above_others(capsys: Capture, tmp_path: Path) -> None:
    """A name that begins others is both a tensor and a level."""
    tz.save({"a": np.zeros(2), "a.b": np.zeros(3), "a.c": np.zeros(1)}, tmp_path / "m.pt")
    out = run(capsys, tmp_path / "m.pt", "--tree").splitlines()
    assert [line.split("  ")[0] or line.split()[0] for line in out[1:4]] == ["a", "b", "c"]
    out = run(capsys, tmp_path / "m.pt", "--depth", 1).splitlines()
    assert [line.split()[:3] for line in out[1:3]] == [
        ["a", "float64", "[2]"], ["a.…", "2", "tensors"],
    ]  # fmt: skip


def test_names_of_steps(capsys: Capture, tmp_path: Path) -> None:
    """An empty step and a control character are shown."""
    tz.save({"a..b": np.zeros(2), "a..c": np.zeros(2), "": np.zeros(1)}, tmp_path / "m.pt")
    out = run(capsys, tmp_path / "m.pt", "--tree")
    assert "a." in out
    assert "(the object itself)" in out
    tz.save({"x\n.y": np.zeros(2), "x\n.\x1b[2J": np.zeros(2)}, tmp_path / "m.pt")
    out = run(capsys, tmp_path / "m.pt", "--tree")
    assert "\\x1b[2J" in out
    assert all(line.isprintable() for line in out.split("\n"))


def test_many_values(capsys: Capture, tmp_path: Path) -> None:
    """The first twenty that are not empty, and how many more there are; all with ``--all``."""
    state = {f"v{index}": [] if index % 2 else "x" * 300 for index in range(100)}
    tz.save(state, tmp_path / "m.pt")
    lines = run(capsys, tmp_path / "m.pt").splitlines()
    assert [line.split()[0] for line in lines[:20]] == [f"v{2 * index}" for index in range(20)]
    assert lines[0] == "v0   '" + "x" * 100 + "'..."
    assert lines[20] == "and 80 more values; --all shows them"
    assert len(run(capsys, tmp_path / "m.pt", "--all").splitlines()) == 102


def test_metadata(capsys: Capture, tmp_path: Path) -> None:
    """The texts of a safetensors file are among the values."""
    tz.save({"w": np.zeros(2)}, tmp_path / "m.pt")
    tz.convert(tmp_path / "m.pt", tmp_path / "m.safetensors")
    out = run(capsys, tmp_path / "m.safetensors")
    assert "metadata format  'pt'" in out


def test_json_has_everything(capsys: Capture, model: str) -> None:
    """Rows, storages, values and notes; ASCII, a row a line."""
    out = run(capsys, model, "--json")
    listing = json.loads(out)
    assert listing["values"] == [{"path": "step", "type": "int", "value": 7}]
    rows = {row["name"]: row for row in listing["tensors"]}
    assert rows["head"]["tied_to"] == "embed.weight"
    assert rows["rows"]["span"] == [32, 64]
    assert rows["rows"]["is_view"]
    storage = listing["storages"][rows["rows"]["storages"][0]]
    assert (storage["record"], storage["nbytes"], storage["tensors"]) == ("data/0", 160, 3)
    assert sum(line.startswith('    {"name"') for line in out.splitlines()) == 13


def test_json_values_have_their_types(capsys: Capture, path: Path) -> None:
    """Numbers, strings and lists are those of JSON; anything else is what the table says."""
    state: dict[str, Any] = {
        "epoch": 3, "lr": 0.5, "loss": float("nan"), "on": True, "none": None, "text": "x" * 300,
        "betas": (0.9, 0.99), "empty": {},
        "bytes": b"x", "many": list(range(1_000_001)), "size": tz.types.Size((2,)),
    }  # fmt: skip
    tz.save(state, path)
    listing = json.loads(run(capsys, path, "--json"))
    found = {row["path"]: row["value"] for row in listing["values"]}
    assert found.pop("many") == "[0, 1, 2, 3, ...]"
    assert found == {
        "epoch": 3, "lr": 0.5, "loss": "nan", "on": True, "none": None, "text": "x" * 300,
        "betas": [0.9, 0.99], "empty": "an empty dict", "bytes": "b'x'",
        "size": "(2)",
    }  # fmt: skip


# -- the terminal ----------------------------------------------------------------------------------


@pytest.fixture
def wide(tmp_path: Path) -> Path:
    """Write names of many columns, some of two for a character."""
    names = ["model.encoder.layers.10.self_attention.in_proj_weight", "重み.層", "e\u0301 accent"]
    shared = np.zeros((3, 4), np.float32)
    state: dict[str, Any] = dict.fromkeys(names, shared)
    state["text"] = "a long text " * 8
    tz.save(state, tmp_path / "m.pt")
    return tmp_path / "m.pt"


@pytest.mark.few
@pytest.mark.parametrize("width", [40, 80, 200])
@pytest.mark.parametrize("options", [[], ["--tree"]])
def test_widths(wide: Path, width: int, options: list[str]) -> None:
    """No line of the tables is wider than the terminal, and the columns stand below each other."""
    out = unstyled(on_terminal(width, "ls", *options, wide))
    lines = out.splitlines()
    assert all(rendering.width_of(line) <= width for line in lines[:-1])
    at = {rendering.width_of(line.split("[3, 4]")[0]) for line in lines if "[3, 4]" in line}
    assert len(at) == 1
    # On the narrowest the marks are below, whole: what is tied to it names it there.
    assert ("self_attention.in_proj_weight" in out) == (width != 80)
    assert ("…" in out) == (width < 200)


def test_style(wide: Path) -> None:
    """The head is bold on a terminal; not with NO_COLOR, on a dumb one, or in a pipe."""
    assert "\x1b[1mname" in on_terminal(80, "ls", wide)
    for environment in ({"NO_COLOR": "1"}, {"TERM": "dumb"}):
        assert "\x1b" not in on_terminal(80, "ls", wide, **environment)
    assert "\x1b[1mname" in on_terminal(80, "ls", wide, NO_COLOR="")


def test_a_pipe_has_whole_names(capsys: Capture, wide: Path, monkeypatch: Any) -> None:
    """Nothing is cut where nobody looks, whatever the width of the terminal that started it."""
    monkeypatch.setenv("COLUMNS", "20")
    out = run(capsys, wide)
    assert "model.encoder.layers.10.self_attention.in_proj_weight" in out
    assert "\x1b" not in out
    at = {rendering.width_of(line.split("float32")[0]) for line in out.splitlines()[1:4]}
    assert len(at) == 1


@pytest.mark.parametrize(
    ("text", "width", "expected"),
    [
        ("abc", 3, "abc"), ("abcdef", 4, "a…ef"), ("重み重み", 7, "重…重み"), ("", 5, ""),
        ("abcdef", 1, "…"), ("重み重み", 5, "…重み"),
    ],
)  # fmt: skip
def test_shorten(text: str, width: int, expected: str) -> None:
    """The middle goes, and the width is kept."""
    assert rendering.shorten(text, width) == expected
    assert rendering.width_of(rendering.shorten(text, width)) <= width


def test_fitted_shrinks_one_after_the_other() -> None:
    """Columns that may shrink do so down to a few characters, others stay."""
    rows = [["n" * 60, "d" * 10, "m" * 30]]
    for width in (102, 80, 50, 46, 10):
        made = rendering.fitted_table(rows, rendering.Screen(width), (2, 0))
        assert len(made[0]) == max(width, 4 + 2 + 4 + 2 + 4)
        assert ("d" * 10 in made[0]) == (width >= 46)
    (line,) = rendering.fitted_table(rows, rendering.Screen(80), (2, 0))
    first, _, last = line.split("  ")
    assert (len(first), len(last)) == (50, 16)
    assert rendering.fitted_table(rows, rendering.Screen(), (2, 0)) == ["  ".join(rows[0])]


def test_ls_torchscript(capsys: Capture) -> None:
    """An archive of TorchScript is listed by the names of its state dict."""
    out = run(capsys, b.GOLDEN / "script.pt")
    lines = out.splitlines()
    assert [line.split()[0] for line in lines[1:6]] == [
        "steps", "fc.weight", "fc.bias", "seq.0.weight", "seq.0.bias",
    ]  # fmt: skip
    assert lines[6] == ""
    assert any("torchscript, 5 tensors" in line for line in lines)
    assert not any("constant" in line for line in lines)


def test_ls_of_a_bare_tensor(capsys: Capture, tmp_path: Path) -> None:
    """A tensor without a name is listed as what it is."""
    tz.save(np.ones(3), tmp_path / "m.pt")
    out = run(capsys, tmp_path / "m.pt")
    assert "(the object itself)" in out
    assert "1 tensor (" in out


def test_ls_of_nothing(capsys: Capture, tmp_path: Path) -> None:
    """A checkpoint without tensors has no table."""
    tz.save({"lr": 0.5}, tmp_path / "m.pt")
    out = run(capsys, tmp_path / "m.pt")
    assert out == f"lr  0.5\n\n{tmp_path / 'm.pt'}: zip, 0 tensors, 0 B stored\n"


def test_ls_of_other_kinds(capsys: Capture) -> None:
    """What is not dense, and what is foreign, is said."""
    out = run(capsys, b.GOLDEN / "sparse.pt")
    rows = [line.split() for line in out.splitlines()]
    assert ["s", "float32", "sparse_coo", "[3,", "3]", "60", "B"] in rows
    out = run(capsys, "--json", b.GOLDEN / "quant.pt")
    quantized, _ = json.loads(out)["tensors"]
    row = [quantized[key] for key in ("kind", "dtype", "shape")]
    assert row == ["quantized", "qint8", [4]]
    out = run(capsys, b.GOLDEN / "whole-module.pt")
    assert "foreign: " in out
    assert "__main__.Net" in out


@pytest.mark.parametrize("options", [[], ["-l"]])
def test_names_with_control_characters(capsys: Capture, path: Path, options: list[str]) -> None:
    """A name cannot move the cursor, end a line or clear the screen."""
    names = ["a\nb", "\x1b[2J", "c\rd", "\u202eflip", "tab\there", "\ud800", "é fine"]
    made = b.dict_of({name: b.tensor() for name in names})
    path.write_bytes(b.checkpoint(b.stream(made)))
    out = run(capsys, *options, path)
    assert all(line.isprintable() for line in out.split("\n"))
    for shown in ("a\\nb", "\\x1b[2J", "c\\rd", "\\u202eflip", "tab\\there", "\\ud800", "é fine"):
        assert shown in out
    out = run(capsys, "--json", path)
    assert out.isascii()
    assert [row["name"] for row in json.loads(out)["tensors"]] == names


def test_foreign_names_with_control_characters(capsys: Capture, path: Path) -> None:
    """Nor can the name of a class or a device."""
    location = b.persistent(location="cu\x1bda")
    made = b.list_of(b.name("m\x1b", "C\r"), b.tensor(location))
    path.write_bytes(b.checkpoint(b.stream(made)))
    out = run(capsys, "-l", path)
    assert all(line.isprintable() for line in out.split("\n"))
    assert "cu\\x1bda" in out


def test_conflicting_names(capsys: Capture, path: Path) -> None:
    """Two tensors of one name: the listing fails with the reason, or shows both."""
    inner = b.dict_of({"b": b.tensor(offset=1, size=(1,))})
    path.write_bytes(b.checkpoint(b.stream(b.dict_of({"a.b": b.tensor(), "a": inner}))))
    err = Command("ls").says(1, capsys, path)
    assert "two tensors are called 'a.b'" in err
