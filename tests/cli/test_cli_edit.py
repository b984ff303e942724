"""``torchzip edit``: its options, what it says, and its exit statuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import torchzip as tz
from tests.cli.running import Capture, Command
from tests.systems import needs
from torchzip.cli.main import build_parser, main
from torchzip.files.in_place import InPlaceFile

run = Command("edit")


def test_compact_says_what_it_keeps(capsys: Capture, tmp_path: Path) -> None:
    """Bytes that no tensor reaches, and what leaves them out."""
    rows = np.ones((10, 1000))
    tz.save({"w": rows[:3], "gone": rows}, tmp_path / "m.pt")
    out = run.done(capsys, tmp_path / "m.pt", "--drop", "gone", "--compact")
    assert "\n56.0 kB of 81." in out
    assert out.endswith(
        " are kept though no tensor reaches them; torchzip convert --pack leaves them out\n"
    )


@pytest.fixture
def path(tmp_path: Path) -> Path:
    made = tmp_path / "m.pt"
    tz.save(
        {
            "module": {"w": np.ones(4, np.float32), "b": np.zeros(1000, np.int64)},
            "config": {"name": "small"},
            "epoch": 3,
        },
        made,
    )
    return made


def test_all_rules(capsys: Capture, path: Path) -> None:
    """What was done, and what is left to be freed."""
    size = path.stat().st_size
    out = run.done(
        capsys, path, "--rename", "^module=>net", "--drop", "*.b", "--set", "epoch=4",
        "--set", "config.name=big", "--set", 'note={"a": [1, null]}', "--requires-grad", "true",
        "--device", "cuda",
    )  # fmt: skip
    lines = out.splitlines()
    assert lines[:6] == [
        "renamed  module -> net",
        "dropped  module.b",
        "set      epoch",
        "set      config.name",
        "set      note",
        f"{path}: 1 renamed, 1 dropped, 3 set, requires_grad of 1 tensor, device of 1 storage, "
        f"{(path.stat().st_size - size) / 1000:.1f} kB appended",
    ]
    assert lines[6].endswith("are used by nothing; --compact frees them")
    assert len(lines) == 7
    loaded = tz.load(path)
    assert (loaded["epoch"], loaded["config"]) == (4, {"name": "big"})
    assert loaded["note"] == {"a": [1, None]}
    with tz.lazy_load(path) as checkpoint:
        assert checkpoint["net.w"].requires_grad
        assert checkpoint["net.w"].spec.storage.location == "cuda:0"
    out = run.done(capsys, path, "--compact")
    assert out == f"{path}: rewritten, {path.stat().st_size / 1000:.1f} kB\n"


@pytest.mark.parametrize(
    ("text", "value"),
    [("1", 1), ("1e3", 1000.0), ("true", True), ("null", None), ('"1"', "1"), ("", ""),
     ("x=y", "x=y"), ("[1, 2", "[1, 2"), ('{"a": {}}', {"a": {}}), ("NaN?", "NaN?")],
)  # fmt: skip
def test_set(capsys: Capture, path: Path, text: str, value: Any) -> None:
    """JSON is what it says, and anything else a text."""
    assert run(capsys, path, "--set", f"epoch={text}")[0] == 0
    assert tz.load(path)["epoch"] == value
    assert type(tz.load(path)["epoch"]) is type(value)


def test_rules_for_some(capsys: Capture, path: Path) -> None:
    """GLOB=... takes the place of all; the first match wins."""
    assert run(capsys, path, "--device", "*.w=cuda:1", "--device", "mps")[0] == 0
    assert run(capsys, path, "--requires-grad", "*.w=true", "--requires-grad", "false")[0] == 0
    with tz.lazy_load(path) as checkpoint:
        places = [tensor.spec.storage.location for tensor in checkpoint.values()]
        assert places == ["cuda:1", "mps"]
        assert checkpoint["module.w"].requires_grad


def test_dry_run_and_json(capsys: Capture, path: Path) -> None:
    """Nothing is done, and the same is said."""
    before = path.read_bytes()
    out = run.done(capsys, path, "--drop", "epoch", "--dry-run")
    assert out.splitlines()[1].startswith(f"{path}: 1 dropped, ")
    assert out.splitlines()[1].endswith("to append")
    told = json.loads(run(capsys, path, "--drop", "epoch", "--dry-run", "--json")[1])
    assert path.read_bytes() == before
    done = json.loads(run(capsys, path, "--drop", "epoch", "--json")[1])
    assert done == told
    assert done["dropped"] == ["epoch"]
    out = run(capsys, path, "--compact", "--dry-run")[1]
    assert "to be rewritten" in out


def test_rules_that_match_nothing(capsys: Capture, path: Path) -> None:
    """They are said on stderr, nothing is written, and the status is that of a failure."""
    before = path.read_bytes()
    status, out, err = run(capsys, path, "--drop", "x*", "--rename", "y=>z", "--device", "q=cpu")
    assert status == 1
    assert out == f"{path}: nothing to change\n"
    assert err.splitlines() == [
        "torchzip: warning: the drop rule 'x*' matches no item of a dict",
        "torchzip: warning: the device rule 'q' matches no tensor",
        "torchzip: warning: the rename rule 'y' matches no item of a dict",
    ]
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--rename", "x"], "REGEX=>REPL was expected"),
        (["--set", "x"], "PATH=JSON was expected"),
        (["--set", "module=1"], "holds a tensor"),
        (["--requires-grad", "yes"], "true or false was expected"),
        (["--device", "gpu"], "cuda[:N]"),
        (["--rename", "(=>"], "rename"),
        (["--rename", "^module.w=>w"], "torchzip convert"),
    ],
)
def test_wrong_usage(capsys: Capture, path: Path, arguments: list[str], message: str) -> None:
    """One line on stderr, and exit status 2."""
    before = path.read_bytes()
    status, out, err = run(capsys, path, *arguments)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert message in err
    assert path.read_bytes() == before


def test_bad_files(capsys: Capture, path: Path, tmp_path: Path) -> None:
    """Exit status 1: not there, or not of this kind."""
    err = run.says(1, capsys, tmp_path / "none.pt", "--drop", "x")
    assert "No such file" in err
    tz.convert(path, tmp_path / "m.safetensors")
    err = run.says(1, capsys, tmp_path / "m.safetensors", "--drop", "x")
    assert "torchzip convert" in err


@needs("fcntl")
def test_a_file_that_is_edited(capsys: Capture, path: Path) -> None:
    """Exit status 1: it is in other hands."""
    with InPlaceFile(path):
        status, out, err = run(capsys, path, "--drop", "epoch")
    assert (status, out) == (1, "")
    assert "being edited by another process" in err


def test_names_from_the_file_are_printed_as_text(capsys: Capture, tmp_path: Path) -> None:
    """Escapes of a terminal and line breaks are shown, not sent."""
    path = tmp_path / "m.pt"
    tz.save({"a\x1b[2J\nb": 1}, path)
    out = run(capsys, path, "--drop", "*")[1]
    assert out.splitlines()[0] == r"dropped  a\x1b[2J\nb"


def test_long_lists_are_cut(capsys: Capture, tmp_path: Path) -> None:
    """The first are shown, and how many more there are."""
    path = tmp_path / "m.pt"
    tz.save({f"a{index}": index for index in range(1030)}, path)
    lines = run(capsys, path, "--rename", "^a=>b")[1].splitlines()
    assert lines[20] == "         and 1,010 more"
    assert lines[21].startswith(f"{path}: 1,030 renamed, ")


def test_help_has_examples(capsys: Capture) -> None:
    """They are commands that the parser takes."""
    with pytest.raises(SystemExit):
        main(["edit", "--help"])
    out = capsys.readouterr().out
    assert out.count("\n  torchzip edit ") == 6
    assert build_parser().parse_args(["edit", "m.pt"]).file == "m.pt"
