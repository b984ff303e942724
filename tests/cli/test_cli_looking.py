"""Looking at checkpoints: a part of the listing, several files, values as JSON, and odd words."""

from __future__ import annotations

import io
import json
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import torchzip as tz
from torchzip.cli.main import main
from torchzip.tools.value_json import json_value

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Write checkpoints into the current directory."""
    monkeypatch.chdir(tmp_path)
    tree = {
        "fc.weight": np.ones((2, 3), "f4"), "fc.bias": np.zeros(2, "f4"), "head": np.ones(4),
        "epoch": 3, "hyper": {"lr": (0.1, float("nan")), "sizes": [1, {"deep": None}], 5: b"x"},
    }  # fmt: skip
    tz.save(tree, "m.pt")
    return tmp_path


def test_no_words_print_the_help(capsys: Capture) -> None:
    """Alone, it says what there is, and that is no failure."""
    assert main([]) == 0
    out = capsys.readouterr().out
    assert out.startswith("usage: torchzip")
    assert "convert" in out


def test_names_that_begin_with_a_minus_sign(folder: Path, capsys: Capture) -> None:
    """They follow two of them, before or after options."""
    (folder / "m.pt").rename(folder / "-m.pt")
    assert main(["ls", "--", "-m.pt"]) == 0
    assert main(["ls", "--json", "--", "-m.pt", "head"]) == 0
    assert main(["convert", "--force", "--", "-m.pt", "--x.pt"]) == 0
    assert (folder / "--x.pt").exists()
    assert main(["cat", "--", "-m.pt", "head", "-1"]) == 0
    assert capsys.readouterr().out.endswith("1.\n")


def test_part_of_a_listing(folder: Path, capsys: Capture) -> None:
    """Names by globs; the totals are those of what is listed."""
    assert main(["ls", "m.pt", "fc.*", "epoch"]) == 0
    out = capsys.readouterr().out
    assert "fc.weight" in out
    assert "epoch" in out
    assert "head" not in out
    assert "hyper" not in out
    assert "2 tensors (2 float32 32 B), 32 B stored" in out
    assert main(["ls", "m.pt", "*.weight", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in found["tensors"]] == ["fc.weight"]
    assert main(["ls", "m.pt", "fc.*", "nothing*"]) == 2
    assert "nothing is called 'nothing*'" in capsys.readouterr().err


def test_values_as_json(folder: Path, capsys: Capture) -> None:
    """Of any depth, with what JSON has; tensors by dtype and shape."""
    assert main(["cat", "m.pt", "hyper", "--json"]) == 0
    hyper = {"lr": [0.1, "nan"], "sizes": [1, {"deep": None}], "5": "b'x'"}
    assert json.loads(capsys.readouterr().out) == hyper
    assert main(["cat", "m.pt", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["hyper"] == hyper
    assert found["fc.weight"] == {"torch_dtype": "float32", "shape": [2, 3]}
    assert main(["cat", "m.pt", "epoch", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == 3
    assert main(["cat", "m.pt", "head", "1:", "--json"]) == 2


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (OrderedDict(a=1), {"a": 1}), ({3, 1}, [1, 3]), (np.arange(3), [0, 1, 2]),
        (np.float64("inf"), "inf"), (1j, "a complex"), (np.array(["a"]), {"numpy_dtype": "<U1",
        "shape": [1]}), (tz.types.Size((2, 3)), "torch.Size([2, 3])"),
    ],
    ids=repr,
)  # fmt: skip
def test_odd_values(value: Any, expected: Any) -> None:
    """Each has something to stand for it, which JSON takes."""
    made = json_value(value)
    json.dumps(made, allow_nan=False)
    if not isinstance(expected, str):
        assert made == expected


def test_a_number_of_many_digits() -> None:
    """Python does not print it."""
    assert json_value([10**4000, -(10**5000)]) == [10**4000, "an int of 16,610 bits"]


@pytest.mark.long
def test_values_that_lead_to_themselves() -> None:
    """And those that are in too many places, or too deep, are refused."""
    loop: list[Any] = []
    loop.append(loop)
    bomb: Any = [0]
    for _ in range(40):
        bomb = [bomb, bomb]
    deep: Any = 0
    for _ in range(300):
        deep = [deep]
    for value, why in (
        (loop, "a part of it leads back to itself"),
        (bomb, "more than a million values"),
        (deep, "nested too deeply"),
        ([["x" * 1_000_000]] * 20, "more than 16 million characters"),
        ({"x" * 17_000_000: 1}, "more than 16 million characters"),
    ):
        with pytest.raises(tz.UnsupportedError, match=f"cannot be written as JSON: {why}"):
            json_value(value)


def test_several_files(folder: Path, capsys: Capture) -> None:
    """Each is checked whatever the others are; a directory stands for its checkpoints."""
    (folder / "sub").mkdir()
    tz.save({"w": np.arange(3000.0)}, folder / "sub" / "bad.pt")
    data = (folder / "sub" / "bad.pt").read_bytes()
    (folder / "sub" / "bad.pt").write_bytes(data.replace(np.arange(5.0, 9).tobytes(), bytes(32)))
    tz.convert("m.pt", "sub/good.safetensors")
    (folder / "sub" / "notes.txt").write_text("x")
    assert main(["verify", "m.pt", "sub"]) == 1
    out, err = capsys.readouterr()
    assert [line.split(":")[0] for line in out.splitlines() if "sound" in line] == [
        "m.pt", "sub/good.safetensors",
    ]  # fmt: skip
    assert "bad.pt" in err
    assert "CRC" in err
    (folder / "sub" / "bad.pt").unlink()
    assert main(["verify", "m.pt", "sub", "--json"]) == 0
    assert [each["format"] for each in json.loads(capsys.readouterr().out)] == [
        "zip",
        "safetensors",
    ]
    assert main(["verify", "m.pt", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["format"] == "zip"
    tz.convert("m.pt", "hub/", include="fc*")
    assert main(["verify", "hub"]) == 0
    assert main(["verify", "no such"]) == 1
    capsys.readouterr()
    for name in ("model.PT2", "model.nemo"):  # formats that are read and not written
        (folder / "sub" / name).write_bytes(b"x")
        assert main(["verify", "sub"]) == 1
        assert f"torchzip: {Path('sub', name)}: not a checkpoint" in capsys.readouterr().err
        (folder / "sub" / name).unlink()


def test_a_value_is_not_a_tensor(folder: Path) -> None:
    """The message says where it is."""
    with tz.lazy_load("m.pt") as checkpoint:
        with pytest.raises(KeyError, match=r"it is 3, which \.root\['epoch'\] has"):
            checkpoint["epoch"]
        assert checkpoint.root["epoch"] == 3


def test_options_of_torch(folder: Path) -> None:
    """Those that ask for what is done anyway are taken; others are told what to do."""
    cpu = type("device", (), {"__str__": lambda self: "cpu"})()
    for options in ({"map_location": "cpu"}, {"map_location": cpu}, {"weights_only": True}):
        assert tz.load("m.pt", **options)["epoch"] == 3
    with pytest.raises(TypeError, match="move what is loaded"):
        tz.load("m.pt", map_location="cuda")
    with pytest.raises(TypeError, match="never runs"):
        tz.load("m.pt", weights_only=False)


def test_values_that_are_not_finite(folder: Path, capsys: Capture) -> None:
    """NaN and infinities of all tensors, ties once; they are no fault of the file."""
    odd = np.array([1.0, np.nan, np.inf, -np.inf, np.nan])
    tree = {"odd": odd, "tied": odd, "h": odd[1:3].astype("f2"), "c": np.array([1j, np.nan])}
    tz.save({**tree, "fine": np.ones(70_000), "n": np.arange(3)}, "odd.pt")
    assert main(["verify", "odd.pt", "--values"]) == 0
    assert capsys.readouterr().out.splitlines()[-4:] == [
        "odd  2 NaN  2 infinite", "h    1 NaN  1 infinite", "c    1 NaN  0 infinite",
        "3 tensors with NaN or infinities",
    ]  # fmt: skip
    assert main(["verify", "odd.pt", "m.pt", "--values", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [each["odd_values"] for each in found] == [[["odd", 2, 2], ["h", 1, 1], ["c", 1, 0]], []]
    assert main(["verify", "m.pt", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["odd_values"] is None


def test_stdin(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    """A minus sign is what comes on stdin, also from a pipe that cannot go back."""
    data = Path("m.pt").read_bytes()
    for command in (["convert", "-", "out.safetensors"], ["ls", "-", "head"]):
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(data)))
        assert main(command) == 0
    assert tz.load("out.safetensors")["head"].tolist() == [1, 1, 1, 1]
    assert "<stdin>: zip, 1 tensor" in capsys.readouterr().out
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"x")))
    assert main(["convert", "-", "new.pt"]) == 1
    assert "<stdin>: not a checkpoint" in capsys.readouterr().err
    assert not Path("new.pt").exists()
