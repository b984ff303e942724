"""Metadata of .safetensors and .gguf files: given to `convert`, kept from the source, edited."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import torchzip as tz
from torchzip.cli.main import main
from torchzip.tools import edit


def metadata_of(path: Path) -> dict[str, Any]:
    with tz.lazy_load(path) as checkpoint:
        return dict(checkpoint.metadata)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Write a safetensors file with two strings, ties and an object around its tensors."""
    w = np.arange(6.0)
    tz.save({"model": {"w": w, "tied": w}, "epoch": 3}, tmp_path / "a.pt")
    path = tmp_path / "a.safetensors"
    tz.convert(tmp_path / "a.pt", path, metadata={"author": "me", "note": "1.10"})
    return path


def test_it_is_kept(source: Path, tmp_path: Path) -> None:
    """From format to format, with what is added; the types of GGUF are kept in GGUF."""
    tz.convert(source, tmp_path / "b.gguf", metadata={"general.architecture": "x", "n": 7})
    found = metadata_of(tmp_path / "b.gguf")
    assert found == {"author": "me", "note": "1.10", "general.architecture": "x", "n": 7}
    assert found["n"].dtype == np.uint32
    extra = {"tokens": ["a", "b"], "note": None}
    tz.convert(tmp_path / "b.gguf", tmp_path / "c.gguf", metadata=extra)
    assert metadata_of(tmp_path / "c.gguf").keys() == (found.keys() | {"tokens"}) - {"note"}
    report = tz.convert(tmp_path / "c.gguf", tmp_path / "d.safetensors")
    assert metadata_of(tmp_path / "d.safetensors").items() >= {"author": "me", "n": "7"}.items()
    assert report.lost == ("'tokens' in the metadata of the file",)
    report = tz.convert(source, tmp_path / "e.npz")
    assert "'author' in the metadata of the file" in report.lost


@pytest.mark.parametrize(
    ("name", "metadata", "error"),
    [
        ("x.pt", {"a": "b"}, ValueError), ("x.npz", {"a": "b"}, ValueError),
        ("x.safetensors", {"a": 1}, TypeError), ("x.safetensors", {1: "a"}, TypeError),
        ("x.safetensors", {"torchzip.object": "{}"}, ValueError), ("x.gguf", {"a": {}}, TypeError),
        ("x.gguf", {"a": [1, "b"]}, TypeError), ("x.gguf", {"a": 1 << 64}, TypeError),
        ("x.gguf", {"general.alignment": 5}, ValueError), ("x.gguf", ["a"], TypeError),
    ],
)  # fmt: skip
def test_refused(tmp_path: Path, name: str, metadata: Any, error: type[Exception]) -> None:
    """What the target has no place for; before the source is opened."""
    with pytest.raises(error, match=r"metadata|alignment"):
        tz.convert(tmp_path / "no such file", tmp_path / name, metadata=metadata)


def test_edit(source: Path) -> None:
    """Keys are set and taken away; all else of the file stays."""
    before = metadata_of(source)
    found = edit(source, metadata={"note": None, "author": "you", "new": "x"}, dry_run=True)
    assert metadata_of(source) == before
    assert edit(source, metadata={"note": None, "author": "you", "new": "x"}) == found
    assert (found.how, found.dropped, found.set) == ("rewritten", ("note",), ("author", "new"))
    assert found.nbytes == source.stat().st_size
    expected = before | {"author": "you", "new": "x"}
    del expected["note"]
    assert metadata_of(source) == expected
    tz.convert(source, source.with_name("b.pt"))
    assert tz.tools.diff(source.with_name("a.pt"), source.with_name("b.pt")).is_equal


def test_edit_keeps_codes(tmp_path: Path) -> None:
    """Of a GGUF file, of which nothing else changes; the key of another writer's format stays."""
    path = tmp_path / "a.gguf"
    values = {"general.architecture": "x", "k": np.float64(0.5)}
    tz.convert({"w": np.arange(64.0).reshape(2, 32)}, path, dtype="q4_0", metadata=values)
    once = path.read_bytes()
    edit(path, metadata={"general.name": "n"})
    assert path.read_bytes() != once
    edit(path, metadata={"general.name": None})
    assert path.read_bytes() == once
    tz.convert({"w": np.ones(3)}, tmp_path / "a.safetensors", metadata={"format": "mlx"})
    edit(tmp_path / "a.safetensors", metadata={"a": "b"})
    assert metadata_of(tmp_path / "a.safetensors") == {"format": "mlx", "a": "b"}


def test_edit_refuses(source: Path) -> None:
    """Other formats, other changes with it, and wrong values; the file stays."""
    with pytest.raises(tz.UnsupportedError, match="format zip; metadata is set in"):
        edit(source.with_name("a.pt"), metadata={"a": "b"})
    before = source.read_bytes()
    with pytest.raises(ValueError, match="by itself"):
        edit(source, metadata={"a": "b"}, drop="w")
    with pytest.raises(TypeError, match="safetensors holds strings"):
        edit(source, metadata={"a": 1})
    assert edit(source, metadata={"author": "me"}).how == "unchanged"
    assert edit(source, metadata={"no": None}).unused == ("the metadata has no 'no'",)
    assert source.read_bytes() == before


def test_commands(source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """KEY=VALUE; JSON for a .gguf only; KEY alone in edit; a typo is exit status 1."""
    out = str(source.with_name("b"))
    options = ["--metadata", "n=1.10", "--metadata", "general.architecture=x=y"]
    assert main(["convert", str(source), f"{out}.gguf", *options]) == 0
    found = metadata_of(Path(f"{out}.gguf"))
    assert (found["n"], found["general.architecture"]) == (np.float32(1.1), "x=y")
    assert main(["convert", str(source), f"{out}.safetensors", *options]) == 0
    assert metadata_of(Path(f"{out}.safetensors"))["n"] == "1.10"
    assert main(["convert", str(source), f"{out}.npz", "--metadata", "novalue"]) == 2
    assert main(["convert", str(source), f"{out}.npz", "--metadata", "a=b"]) == 2
    assert main(["edit", str(source), "--metadata", "note", "--metadata", "a=b"]) == 0
    assert metadata_of(source).items() >= {"a": "b"}.items()
    assert "note" not in metadata_of(source)
    assert main(["edit", str(source), "--metadata", "note"]) == 1
    assert "the metadata has no 'note'" in capsys.readouterr().err
