"""File systems of fsspec, under any scheme that nothing else takes: here that in memory."""

from __future__ import annotations

import builtins
import errno
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import torchzip as tz

fsspec = pytest.importorskip("fsspec")

_TENSORS = {f"t{i}": np.full((100, 100), i, "f4") for i in range(5)}


@pytest.fixture
def memory() -> Iterator[Any]:
    """Return an empty file system in memory."""
    system = fsspec.filesystem("memory")
    system.store.clear()
    yield system
    system.store.clear()


def test_both_ways(memory: Any, path: Path) -> None:
    """A save, a conversion into shards, and a load of their folder."""
    tz.save(_TENSORS, "memory://a/m.pt")
    tz.save(_TENSORS, path)
    assert memory.cat_file("/a/m.pt") == path.read_bytes()
    tz.convert("memory://a/m.pt", "memory://b/", max_shard_size="90KB")
    with tz.lazy_load("memory://b/") as ckpt:
        assert ckpt.format == "sharded"
        copy = pickle.loads(pickle.dumps(ckpt["t3"]))
        assert np.array_equal(copy.numpy(), _TENSORS["t3"])
    with pytest.raises(FileExistsError):
        tz.convert("memory://a/m.pt", "memory://b/", max_shard_size="90KB")


def test_a_url_without_a_host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its slashes stay, and folders that are not there are made, as stores need none.

    Without them, ``local:/...`` would be a file below the current folder.
    """
    monkeypatch.chdir(tmp_path)
    folder = f"local://{tmp_path.as_posix()}/new/run/"
    report = tz.convert(_TENSORS, folder, max_shard_size="90KB")
    assert report.files[0] == f"{folder}model-00001-of-00003.safetensors"
    assert [each.name for each in tmp_path.iterdir()] == ["new"]
    with tz.lazy_load(folder) as ckpt:
        assert ckpt.path == f"{folder}model.safetensors.index.json"
        assert np.array_equal(ckpt["t3"].numpy(), _TENSORS["t3"])
    with pytest.raises(FileNotFoundError) as caught:
        tz.load(f"{folder}no.pt")
    assert caught.value.filename == f"{folder}no.pt"


def test_a_changed_file(memory: Any) -> None:
    """The state of a file is asked for with each read."""
    tz.save({"a": np.zeros(1_000_000), "b": np.ones(1_000_000)}, "memory://m.pt")
    with tz.lazy_load("memory://m.pt") as ckpt:
        tz.save({"a": np.ones(1_000_000), "b": np.ones(1_000_000)}, "memory://m.pt")
        with pytest.raises(tz.FormatError, match="replaced or changed"):
            ckpt["a"].numpy()


def test_all_or_nothing(memory: Any) -> None:
    """An exception leaves what is there."""
    memory.pipe_file("/m.pt", b"old")

    def fail() -> None:
        with tz.incremental_save("memory://m.pt") as out:
            out.store_early(np.zeros(1_000_000))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert memory.cat_file("/m.pt") == b"old"


def test_errors(memory: Any) -> None:
    """A missing file, an unknown scheme, options that the file system does not have."""
    with pytest.raises(FileNotFoundError, match="No such object") as caught:
        tz.load("memory://no.pt")
    assert caught.value.filename == "memory://no.pt"
    with pytest.raises(ValueError, match="knows the schemes"):
        tz.load("nonsense://me:SECRET@x/m.pt")
    memory.makedirs("/empty")
    with pytest.raises(tz.FormatError, match="nothing in it"):
        tz.load("memory://empty/")


def test_a_missing_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error names the extra that brings what is missing."""
    real = builtins.__import__

    def without(name: str, *arguments: Any) -> Any:
        if name.partition(".")[0] in ("obstore", "fsspec", "huggingface_hub"):
            raise ImportError(name)
        return real(name, *arguments)

    monkeypatch.setattr(builtins, "__import__", without)
    for url, package in (
        ("s3://bucket/m.pt", "obstore"), ("memory://m.pt", "fsspec"),
        ("hf://org/model", "huggingface_hub"),
    ):  # fmt: skip
        with pytest.raises(OSError, match=r"pip install 'torchzip\[remote\]'") as caught:
            tz.load(url)
        assert package in str(caught.value)
        assert caught.value.errno == errno.ENOSYS


def test_file_urls(path: Path) -> None:
    """They are paths of this computer, for reading and writing."""
    tz.save(_TENSORS, path.as_uri())
    assert tz.load(path.as_uri(), mmap=True)["t4"][0, 0] == 4
    with pytest.raises(TypeError, match="not a file object or a URL"):
        tz.load("memory://m.pt", mmap=True)


def test_a_folder_is_scanned() -> None:
    """A distributed checkpoint in it is one; an odd name is an error, as its URL is another's."""
    system = fsspec.filesystem("memory")
    tz.save(_TENSORS, "memory://scanned/sub/m.pt")
    system.pipe_file("/scanned/run/.metadata", b"cos\nsystem\n(S'ls'\ntR.")
    system.pipe_file("/scanned/run/__0_0.distcp", b"PK")
    found = tz.tools.scan("memory://scanned/").files
    assert [(file.path, file.verdict) for file in found] == [
        ("memory://scanned/run/", "foreign"), ("memory://scanned/sub/m.pt", "safe"),
    ]  # fmt: skip
    assert [each.name for each in found[0].findings if each.member == ".metadata"] == ["os.system"]
    system.pipe_file("/scanned/a\\b", b"x")
    with pytest.raises(tz.FormatError, match="a plain name"):
        tz.tools.scan("memory://scanned/")
    with pytest.raises(FileNotFoundError, match="No object is below") as caught:
        tz.tools.scan("memory://scaned/")
    assert caught.value.filename == "memory://scaned/"
    with pytest.raises(OSError, match="does not say what is in a folder"):
        tz.tools.scan("https://localhost/folder/")
