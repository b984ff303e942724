"""What `formats.base.Container` promises, asked of each format with the same tests."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import torchzip as tz
from tests.formats.test_pickled import FILES
from torchzip.formats.base import Container
from torchzip.formats.opening import open_checkpoint


def _safetensors(folder: Path) -> Path:
    tz.save({"w": np.arange(4.0), "v": np.ones(3, "int8")}, folder / "a.pt")
    tz.convert(folder / "a.pt", folder / "a.safetensors")
    return folder / "a.safetensors"


def _pickled(kind: str) -> Callable[[Path], Path]:
    return lambda folder: FILES[kind](folder, lambda place, data: data)


def _numpy(name: str) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        path, w, v = folder / name, np.arange(4.0), np.ones(3, "int8")
        if name.endswith(".npy"):
            np.save(path, w)
        else:
            {"a.npz": np.savez, "b.npz": np.savez_compressed}[name](path, w=w, v=v)
        return path

    return write


def _gguf(folder: Path) -> Path:
    path = folder / "a.gguf"
    tensors = {"w": np.arange(64.0).reshape(2, 32), "v": np.ones(3, "int8")}
    tz.convert(tensors, path, dtype="q8_0", metadata={"general.architecture": "llama"})
    return path


_MADE = {kind: _pickled(kind) for kind in FILES} | {
    "safetensors": _safetensors,
    "npy": _numpy("a.npy"),
    "npz": _numpy("a.npz"),
    "npz, compressed": _numpy("b.npz"),
    "gguf": _gguf,
}


@pytest.fixture(params=_MADE)
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Return a file, or a directory, of each format."""
    return _MADE[request.param](tmp_path)


@pytest.fixture
def container(path: Path) -> Container:
    """Return what reads it."""
    return open_checkpoint(path, tz.Limits())


class TestContainer:
    """Every class of formats/."""

    def test_words(self, container: Container, path: Path) -> None:
        """It is called as its path is, and its words are there for pages and messages."""
        assert Path(container.name) in (path, path.parent)  # that of a .metadata is its folder
        for words in (container.format, container.label, container.overhead, container.torch_load):
            assert words == words.strip() != ""
        assert container.torch_load == "accepts" or container.torch_reason

    def test_flags(self, container: Container) -> None:
        """What follows from one another does."""
        assert container.has_code or not container.is_script
        assert not (container.is_by_name and container.has_crcs)
        known = [check.crc_known for check in container.check_records()]
        assert not (container.has_crcs and not any(known))

    def test_records(self, container: Container, path: Path) -> None:
        """Records have names of their own, come again, and are no more than the files have."""
        checks = list(container.check_records())
        assert checks == list(container.check_records())
        assert len({check.name for check in checks}) == len(checks) > 0
        files = path.parent.rglob("*") if path.is_file() else path.rglob("*")
        assert sum(check.nbytes for check in checks) <= sum(
            file.stat().st_size for file in files if file.is_file()
        )
        assert container.notes == tuple(dict.fromkeys(container.notes))

    def test_pickles(self, container: Container) -> None:
        """Each has a place of its own, and bytes that do not change."""
        pickles = list(container.pickles())
        assert len({each.place for each in pickles}) == len(pickles)
        for each in pickles:
            assert bytes(each.data()) == bytes(each.data()) != b""

    def test_read(self, path: Path) -> None:
        """What is read twice is equal; names are a list without repetitions, foreign ones part."""
        with tz.lazy_load(path) as first, tz.lazy_load(path) as second:
            assert list(first) == list(second)
            assert first.globals == second.globals == list(dict.fromkeys(first.globals))
            assert set(first.foreign) <= set(first.globals)
            assert isinstance(first.container, type(second.container))

    def test_close(self, container: Container) -> None:
        """Twice is as good as once, and nothing is read afterwards."""
        container.close()
        container.close()
        with pytest.raises(ValueError, match="closed"):
            list(container.check_records())
