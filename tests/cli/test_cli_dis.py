"""``torchzip dis``: the opcodes, one a line, up to where they break."""

from __future__ import annotations

import contextlib
import io
import json
import pickle
import pickletools
import zipfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests import builders as b
from tests.cli.running import Capture, run
from tests.formats.tar_builder import tar_of
from tests.pickling.test_disassembly import OPCODE_BYTES
from torchzip.cli.main import main
from torchzip.tools import pickles

ZIPS = [path for path in sorted(b.GOLDEN.glob("*.pt")) if "legacy" not in path.name]


def places(out: str) -> list[tuple[int, str]]:
    """Return the offsets and opcodes of a listing."""
    lines = [line.split() for line in out.splitlines() if not line.startswith("pickle ")]
    return [(int(line[0]), line[1]) for line in lines]


def expected(data: bytes, start: int = 0) -> list[tuple[int, str]]:
    """Return what pickletools finds."""
    file = io.BytesIO(data)
    file.seek(start)
    return [(position or 0, opcode.name) for opcode, _, position in pickletools.genops(file)]


@pytest.mark.parametrize("path", ZIPS, ids=lambda path: path.name)
def test_golden_files(capsys: Capture, path: Path) -> None:
    """The opcodes of data.pkl, as pickletools finds them."""
    out = run.done(capsys, "dis", path)
    with zipfile.ZipFile(path) as archive:
        name = next(name for name in archive.namelist() if name.endswith("/data.pkl"))
        assert places(out) == expected(archive.read(name))
    assert all(line.isprintable() for line in out.split("\n"))


def test_legacy(capsys: Capture) -> None:
    """Five pickles in turn, and not the storages behind them."""
    path = b.GOLDEN / "views-legacy.pt"
    out = run.done(capsys, "dis", path)
    data, at, all_places = path.read_bytes(), 0, []
    for _ in range(5):
        all_places += expected(data, at)
        at = all_places[-1][0] + 1
    assert places(out) == all_places
    assert [line for line in out.splitlines() if line.startswith("pickle ")] == [
        f"pickle {number}" for number in range(5)
    ]


def test_json(capsys: Capture) -> None:
    """The same as JSON."""
    _, out, _ = run(capsys, "dis", b.GOLDEN / "views-legacy.pt")
    as_json = run.done(capsys, "dis", "--json", b.GOLDEN / "views-legacy.pt")
    told = json.loads(as_json)
    assert told["error"] is None
    assert len(told["pickles"]) == 5
    rows = [row for rows in told["pickles"] for row in rows]
    assert [(row["offset"], row["opcode"]) for row in rows] == places(out)


def test_notes(capsys: Capture, path: Path) -> None:
    """A name that torch refuses is marked, and what is called is said."""
    evil = b.call("posix.system", "echo \x1b[2J")
    path.write_bytes(b.checkpoint(b.stream(b.list_of(evil, b.tensor()))))
    out = run.done(capsys, "dis", path)
    assert (
        "GLOBAL           posix system          # name posix.system; torch.load refuses it" in out
    )
    assert "# call of posix.system(...)" in out
    assert "# persistent id ('storage', torch.FloatStorage, '0', 'cpu', 4, ())" not in out
    assert "# persistent id ('storage', torch.FloatStorage, '0', 'cpu', 4)" in out
    assert "\x1b" not in out
    assert out.count("torch.load refuses") == 1


def test_record(capsys: Capture, tmp_path: Path) -> None:
    """Another record, and one that is not there."""
    path = b.GOLDEN / "script.pt"
    out = run.done(capsys, "dis", path, "constants.pkl")
    assert places(out)[0] == (0, "PROTO")
    err = run.says(1, capsys, "dis", path, "no.pkl")
    assert "no record is called 'no.pkl'; of pickles it has " in err


def test_deflated(capsys: Capture, path: Path) -> None:
    """A record that is deflated."""
    members = b.members_of(b.stream(b.tensor()))
    path.write_bytes(b.build_zip([b.Member(name=m.name, data=m.data, method=8) for m in members]))
    out = run.done(capsys, "dis", path)
    assert places(out) == expected(b.stream(b.tensor()))


def test_broken(capsys: Capture, path: Path) -> None:
    """What can be read is shown, then the error with its place; JSON stays whole."""
    path.write_bytes(b.checkpoint(b"\x80\2]\xff."))
    status, out, err = run(capsys, "dis", path)
    assert status == 1
    assert places(out) == [(0, "PROTO"), (2, "EMPTY_LIST")]
    assert "record data.pkl, byte 3: byte 0xff is not an opcode" in err
    status, out, _ = run(capsys, "dis", "--json", path)
    assert status == 1
    told = json.loads(out)
    assert [row["opcode"] for row in told["pickles"][0]] == ["PROTO", "EMPTY_LIST"]
    assert "is not an opcode" in told["error"]


def test_wrong_crc(capsys: Capture, path: Path) -> None:
    """A damaged pickle is shown, and said to be damaged."""
    data = b.checkpoint(b.stream(b.text("abc")))
    path.write_bytes(data.replace(b"abc", b"abd"))
    status, out, err = run(capsys, "dis", path)
    assert status == 1
    assert "'abd'" in out
    assert "CRC" in err


def test_windows(capsys: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stream is read in pieces; where they end does not show."""
    path = tmp_path / "m.pkl"
    data = pickle.dumps([list(range(500)), "x" * 300, {"k": b"y" * 70}], 2)
    path.write_bytes(data)
    for nbytes in (1, 2, 7, 64):
        monkeypatch.setattr(pickles, "_WINDOW_NBYTES", nbytes)
        out = run.done(capsys, "dis", path)
        assert places(out) == expected(data)


def test_no_pickle(capsys: Capture, tmp_path: Path) -> None:
    """A safetensors file has none, nor has a text; an empty file ends at once."""
    path = tmp_path / "m"
    for data, said in (
        (b.safetensors(b"{}"), "safetensors"),
        (b"<html>", "no pickle"),
        (b"", "without STOP"),
    ):
        path.write_bytes(data)
        status, _, err = run(capsys, "dis", path)
        assert (status, said in err) == (1, True)
    assert run(capsys, "dis", tmp_path)[0] == 1


@given(st.binary() | OPCODE_BYTES, st.sampled_from(["as it is", "zip", "legacy", "cut"]))
def test_any_bytes(path: Path, data: bytes, kind: str) -> None:
    """Whatever the bytes: a status, and JSON that is whole."""
    if kind in ("zip", "cut"):
        data = b.checkpoint(data)
    if kind == "cut":
        data = data[: len(data) // 2]
    if kind == "legacy":
        data = b.legacy(data, b"", b"")
    path.write_bytes(data)
    with contextlib.redirect_stderr(io.StringIO()):
        with contextlib.redirect_stdout(io.StringIO()) as text:
            status = main(["dis", str(path)])
        with contextlib.redirect_stdout(io.StringIO()) as as_json:
            assert main(["dis", "--json", str(path)]) == status
    assert status in (0, 1)
    assert all(line.isprintable() for line in text.getvalue().split("\n"))
    assert (json.loads(as_json.getvalue())["error"] is None) == (status == 0)


def test_tar(capsys: Capture, path: Path) -> None:
    """Of the old tar files the member that is the object, or another."""
    members = {"storages": b.stream(b"K\0") + b.stream(b"]"), "pickle": b.stream(b"}")}
    path.write_bytes(tar_of(members))
    out = run.done(capsys, "dis", path)
    assert places(out) == [(0, "PROTO"), (2, "EMPTY_DICT"), (3, "STOP")]
    status, out, _ = run(capsys, "dis", path, "storages")
    assert (status, out.count("STOP")) == (0, 2)
    assert run(capsys, "dis", path, "no")[0] == 1
