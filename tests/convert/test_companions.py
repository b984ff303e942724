"""A directory of weights with their config and tokenizer, converted to another directory."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ml_dtypes import float8_e4m3fn

import torchzip as tz
from torchzip.convert import companions

_SMALL = {
    "config.json": b'{"a": 1}',
    "generation_config.json": b"{}",
    "tokenizer.model": b"\0\1\2",
    "merges.txt": b"a b\n",
    "README.md": b"# model",
    "chat_template.jinja": b"{{ x }}",
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Write a directory with weights in two shards, small files, and files that stay behind."""
    path = tmp_path / "hf"
    path.mkdir()
    weights = {"a": np.arange(4000.0), "b": np.ones(3000)}
    tz.convert(weights, path / "pytorch_model.bin.index.json", max_shard_size="30KB")
    for name, data in _SMALL.items():
        (path / name).write_bytes(data)
    for name in (".hidden.json", "notes.pdf", "tf_model.h5", "flax_model.msgpack"):
        (path / name).write_bytes(b"x")
    (path / "sub.json").mkdir()
    return path


def names_in(path: Path) -> set[str]:
    return {each.name for each in path.iterdir()}


@pytest.mark.parametrize("exists", [False, True])
def test_small_files_are_copied(folder: Path, tmp_path: Path, exists: bool) -> None:
    """They have their bytes, and nothing of another format of weights comes along."""
    out = tmp_path / "out"
    if exists:
        out.mkdir()
    planned = tz.convert(folder, f"{out}/", dry_run=True)
    assert exists == out.exists()
    report = tz.convert(folder, f"{out}/")
    assert planned == report
    assert {os.path.basename(path) for path in report.copied} == _SMALL.keys()
    assert names_in(out) == {"model.safetensors", *_SMALL}
    assert all((out / name).read_bytes() == data for name, data in _SMALL.items())
    assert tz.load(out)["b"].tolist() == [1] * 3000


def test_without(folder: Path, tmp_path: Path) -> None:
    """They stay if asked, and if the target is a file or the source is one."""
    options: list[tuple[dict[str, Any], Path, str]] = []
    options += [({"companions": False}, folder, f"{tmp_path}/a/")]
    options += [({}, folder, f"{tmp_path}/c.safetensors")]
    options += [({}, folder / "pytorch_model.bin.index.json", f"{tmp_path}/b/")]
    for option, source, target in options:
        assert tz.convert(source, target, **option).copied == ()
    assert names_in(tmp_path / "a") == names_in(tmp_path / "b") == {"model.safetensors"}


def test_in_its_own_directory(folder: Path) -> None:
    """There is nothing to copy."""
    assert tz.convert(folder, folder).copied == ()
    assert (folder / "config.json").read_bytes() == _SMALL["config.json"]


def test_nothing_is_overwritten(folder: Path, tmp_path: Path) -> None:
    """A config that is there stays, and no weights are written beside it, unless asked."""
    out = tmp_path / "out"
    out.mkdir()
    (out / "config.json").write_bytes(b"mine")
    with pytest.raises(FileExistsError, match=r"config\.json"):
        tz.convert(folder, out)
    assert names_in(out) == {"config.json"}
    assert (out / "config.json").read_bytes() == b"mine"
    tz.convert(folder, out, overwrite=True)
    assert (out / "config.json").read_bytes() == _SMALL["config.json"]


def test_all_or_nothing(folder: Path, tmp_path: Path) -> None:
    """Damage of the weights leaves no config behind."""
    shard = folder / "pytorch_model-00001-of-00002.bin"
    needle = np.arange(100.0, 110.0).tobytes()
    shard.write_bytes(shard.read_bytes().replace(needle, needle[::-1]))
    with pytest.raises(tz.TorchZipError, match="CRC"):
        tz.convert(folder, f"{tmp_path}/out/")
    assert not (tmp_path / "out").exists()


def test_too_large(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that is too large for a config is left out, which the report says."""
    monkeypatch.setattr(companions, "_MOST_NBYTES", 7)
    report = tz.convert(folder, f"{tmp_path}/out/")
    assert report.lost == ("config.json: a file of 8 bytes, too large to be a config",)
    assert "config.json" not in names_in(tmp_path / "out")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("pytorch_model.bin", "model.safetensors"),
        ("diffusion_pytorch_model.bin", "diffusion_pytorch_model.safetensors"),
        ("diffusion_pytorch_model.fp16.bin", "diffusion_pytorch_model.safetensors"),
        ("adapter_model.bin", "adapter_model.safetensors"),
    ],
)
def test_the_name_that_readers_look_for(tmp_path: Path, name: str, expected: str) -> None:
    """It goes by that of the source."""
    (tmp_path / "a").mkdir()
    tz.save({"w": np.ones(3)}, tmp_path / "a" / name)
    report = tz.convert(tmp_path / "a", f"{tmp_path}/b/")
    assert names_in(tmp_path / "b") == {expected}
    assert report.target == f"{tmp_path}/b/{expected}"


def pipeline(folder: Path) -> Path:
    """Write a pipeline of diffusers: two models, a scheduler, a tokenizer."""
    path = folder / "sd"
    for name, files in {
        ".": {"model_index.json": b"{}", "README.md": b"x"},
        "unet": {"config.json": b"1"},
        "text_encoder": {"config.json": b"2"},
        "scheduler": {"scheduler_config.json": b"3"},
        "tokenizer": {"vocab.json": b"4", "merges.txt": b"5"},
        "empty": {},
    }.items():
        (path / name).mkdir(parents=True, exist_ok=True)
        for file, data in files.items():
            (path / name / file).write_bytes(data)
    tz.save({"a": np.arange(4.0)}, path / "unet" / "diffusion_pytorch_model.bin")
    tz.save({"b": np.ones(3), "c": np.ones(5)}, path / "text_encoder" / "pytorch_model.bin")
    return path


def files_in(path: Path) -> set[str]:
    return {str(each.relative_to(path)) for each in path.rglob("*") if each.is_file()}


_OF_PIPELINE = {
    "model_index.json", "README.md", "unet/config.json", "text_encoder/config.json",
    "scheduler/scheduler_config.json", "tokenizer/vocab.json", "tokenizer/merges.txt",
}  # fmt: skip


@pytest.mark.parametrize("exists", [False, True])
def test_a_pipeline(tmp_path: Path, exists: bool) -> None:
    """Each model is converted in its place, under the name that its reader looks for."""
    source, out = pipeline(tmp_path), tmp_path / "out"
    if exists:
        out.mkdir()
    planned = tz.convert(source, f"{out}/", dtype="float16", dry_run=True)
    assert out.exists() is exists
    report = tz.convert(source, f"{out}/", dtype="float16")
    assert report == planned
    assert report.tensors == 3
    assert [row.name for row in report.rows] == ["text_encoder.b", "text_encoder.c", "unet.a"]
    weights = {
        "unet/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors",
    }  # fmt: skip
    assert files_in(out) == weights | _OF_PIPELINE
    assert {os.path.relpath(path, out) for path in report.files} == weights
    assert {os.path.relpath(path, out) for path in report.copied} == _OF_PIPELINE
    assert tz.load(out / "unet")["a"].tolist() == [0, 1, 2, 3]
    assert tz.load(out / "unet")["a"].dtype == np.float16
    with pytest.raises(FileExistsError):
        tz.convert(source, out)
    tz.convert(source, out, overwrite=True)
    assert {each.name for each in tmp_path.iterdir()} == {"sd", "out"}


def test_what_is_said_of_the_parts_of_a_pipeline(tmp_path: Path) -> None:
    """What each conversion says is said of all, with the component's name before it."""
    source = pipeline(tmp_path)
    codes = {"a.weight": np.ones((2, 3), float8_e4m3fn), "a.weight_scale": np.full(1, 2, "f4")}
    tz.save(codes, source / "unet" / "diffusion_pytorch_model.bin")
    encoder = source / "text_encoder"
    for name in ("unet", "text_encoder"):
        (source / name / "config.json").write_text("{}")
    index = encoder / "model.safetensors.index.json"
    tz.convert(encoder / "pytorch_model.bin", index, max_shard_size=30)
    (encoder / "pytorch_model.bin").unlink()
    (encoder / "model-00001-of-00009.safetensors").write_bytes(b"")
    with pytest.warns(UserWarning, match="no tensor that is converted is quantized"):
        report = tz.convert(source, f"{tmp_path}/out/", dequantize=True)
    assert set(report.dequantized) == {"unet.a.weight"}
    (note,) = report.notes
    assert note.startswith("text_encoder: ")


def test_a_pipeline_is_new_or_not_there(tmp_path: Path) -> None:
    """Damage of one model leaves nothing; a file is not a target, nor the source itself."""
    source = pipeline(tmp_path)
    for target, message in ((tmp_path / "a.safetensors", "directory"), (source, "another")):
        with pytest.raises(ValueError, match=message):
            tz.convert(source, target)
    broken = source / "unet" / "diffusion_pytorch_model.bin"
    broken.write_bytes(broken.read_bytes().replace(np.arange(2.0, 4).tobytes(), bytes(16)))
    with pytest.raises(tz.TorchZipError, match="CRC"):
        tz.convert(source, f"{tmp_path}/out/", dtype="float16")
    assert {each.name for each in tmp_path.iterdir()} == {"sd"}
