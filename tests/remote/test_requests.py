"""What reading behind a URL costs in requests and bytes: the table of docs/remote.md.

A clock decides nothing here. The benchmark of the same name measures the times.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

import torchzip as tz
from tests.remote.range_server import RangeServer, serving

_MANY = 100_000


class _Cost(NamedTuple):
    requests: int
    nbytes: int


class _Counted:
    """Counts what happens in a block."""

    def __init__(self, server: RangeServer) -> None:
        self._server = server

    def __enter__(self) -> _Counted:
        self._before = len(self._server.requests), self._server.nbytes
        return self

    def __exit__(self, *exc: object) -> None:
        requests, nbytes = self._before
        self.cost = _Cost(len(self._server.requests) - requests, self._server.nbytes - nbytes)

    def check(self, requests: int, nbytes: float) -> None:
        assert self.cost.requests <= requests, self.cost
        assert self.cost.nbytes <= nbytes, self.cost


@pytest.fixture(scope="module")
def tensors() -> dict[str, Any]:
    """Return 300 tensors of 30 MB together, the half of them small."""
    rng = np.random.default_rng(0)
    return {
        f"model.layers.{i // 2}.{'weight' if i % 2 else 'norm'}": rng.standard_normal(
            (250, 200) if i % 2 else (250,)
        ).astype("f4")
        for i in range(300)
    }


@pytest.fixture(scope="module")
def server(
    tensors: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RangeServer]:
    """Serve one model in several formats."""
    folder = tmp_path_factory.mktemp("model")
    tz.save(tensors, folder / "m.pt")
    tz.convert(folder / "m.pt", folder / "m.safetensors")
    (folder / "shards").mkdir()
    tz.convert(folder / "m.pt", f"{folder}/shards/", max_shard_size="2900KB")
    files = {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }
    assert len(files) == 2 + 11 + 1
    with serving(files) as made:
        yield made


@pytest.mark.parametrize("name", ["m.pt", "m.safetensors"])
def test_names_and_shapes(server: RangeServer, name: str, tensors: dict[str, Any]) -> None:
    """Two requests, 0.6 MB."""
    with _Counted(server) as counted, tz.lazy_load(server.url + name) as ckpt:
        assert {key: ckpt[key].shape for key in ckpt} == {
            key: each.shape for key, each in tensors.items()
        }
    counted.check(2, 0.6e6)


@pytest.mark.parametrize("name", ["m.pt", "m.safetensors", "shards/model.safetensors.index.json"])
def test_one_tensor(server: RangeServer, name: str, tensors: dict[str, Any]) -> None:
    """A small one, and a slice of a large one, take one request."""
    with tz.lazy_load(server.url + name) as ckpt:
        with _Counted(server) as counted:
            key = "model.layers.70.norm"
            assert np.array_equal(ckpt[key].numpy(), tensors[key])
        counted.check(1, 0.2e6)
        with _Counted(server) as counted:
            key = "model.layers.30.weight"
            assert np.array_equal(ckpt[key][5:7], tensors[key][5:7])
        counted.check(1, 0.2e6)


def test_shards(server: RangeServer) -> None:
    """Two for each of 11 shards and two for the index."""
    url = f"{server.url}shards/model.safetensors.index.json"
    with _Counted(server) as counted, tz.lazy_load(url) as ckpt:
        assert len(ckpt) == 300
    counted.check(24, 5e6)


@pytest.mark.parametrize("name", ["m.pt", "m.safetensors", "shards/model.safetensors.index.json"])
def test_load(server: RangeServer, name: str, tensors: dict[str, Any]) -> None:
    """Everything comes in ranges of some MB, each byte once."""
    is_sharded = name.startswith("shards")
    with _Counted(server) as counted:
        loaded = tz.load(server.url + name)
    assert loaded.keys() == tensors.keys()
    assert all(np.array_equal(loaded[key], tensors[key]) for key in tensors)
    counted.check(24 + 11 if is_sharded else 2 + 5, 30.2e6 + (5e6 if is_sharded else 0.6e6))


@pytest.mark.parametrize("name", ["m.pt", "m.safetensors"])
@pytest.mark.parametrize("target", ["o.pt", "o.safetensors", "shards/"])
def test_convert(server: RangeServer, tmp_path: Path, name: str, target: str) -> None:
    """A conversion fetches each byte once, in whatever order its target has the tensors."""
    with _Counted(server) as counted:
        tz.convert(
            server.url + name, f"{tmp_path}/{target}", dtype="bfloat16",
            max_shard_size="5MB" if target == "shards/" else None,
        )  # fmt: skip
    counted.check(30 if target == "shards/" else 12, 30.2e6 + 1.6e6)


@pytest.mark.parametrize("name", ["m.pt", "m.safetensors"])
def test_verify_and_diff(server: RangeServer, name: str) -> None:
    """All records in order; of two files what their CRCs do not tell."""
    with _Counted(server) as counted:
        tz.tools.verify(server.url + name)
    counted.check(10, 31.5e6)
    with _Counted(server) as counted:
        assert tz.tools.diff(server.url + name, server.url + "m.safetensors").is_equal
    counted.check(25, 63e6)


def test_diff_by_crcs(server: RangeServer) -> None:
    """Of two zip archives nothing but the ends is read."""
    with _Counted(server) as counted:
        assert tz.tools.diff(server.url + "m.pt", server.url + "m.pt").is_equal
    counted.check(4, 1e6)


def test_save_of_lazy_tensors(server: RangeServer, path: Path) -> None:
    """What is saved of a remote checkpoint is fetched as `convert` does it."""
    with tz.lazy_load(server.url + "m.pt") as ckpt, _Counted(server) as counted:
        tz.save(ckpt.root, path)
    assert path.read_bytes() == server.files["m.pt"]
    counted.check(6, 30.5e6)


@pytest.mark.long
def test_many_tensors(tmp_path: Path) -> None:
    """The directory and the pickle of 100,000 tensors: six requests; to load all, few more."""
    tz.save({f"p{i}": np.full(4, i, "f4") for i in range(_MANY)}, tmp_path / "m.pt")
    with serving({"m.pt": (tmp_path / "m.pt").read_bytes()}) as server:
        with _Counted(server) as counted, tz.lazy_load(server.url + "m.pt") as ckpt:
            assert len(ckpt) == _MANY
        counted.check(6, 17e6)
        with _Counted(server) as counted:
            tz.load(server.url + "m.pt")
        counted.check(9, 30e6)


@pytest.mark.torch
def test_legacy(tensors: dict[str, Any], path: Path, torch: Any) -> None:
    """The pickles come in one request after the ends; the counts are read with the storages."""
    values = {key: torch.from_numpy(each) for key, each in tensors.items()}
    torch.save(values, path, _use_new_zipfile_serialization=False)
    with serving({"m.bin": path.read_bytes()}) as server:
        with _Counted(server) as counted, tz.lazy_load(server.url + "m.bin") as ckpt:
            with _Counted(server) as opening:
                assert len(ckpt) == 300
            opening.check(0, 0)
            key = "model.layers.70.norm"
            assert np.array_equal(ckpt[key].numpy(), tensors[key])
        counted.check(4, 1.8e6)
        with _Counted(server) as counted:
            loaded = tz.load(server.url + "m.bin")
        assert all(np.array_equal(loaded[key], tensors[key]) for key in tensors)
        counted.check(8, 31.8e6)
        with _Counted(server) as counted:
            tz.tools.verify(server.url + "m.bin")
        counted.check(13, 33.5e6)


def test_imports() -> None:
    """``import torchzip`` and reading a path bring nothing of it."""
    from tests.child_process import python

    code = (
        "import sys, io, torchzip; file = io.BytesIO(); torchzip.save({}, file); file.seek(0); "
        "torchzip.load(file); print([name for name in sys.modules if name.partition('.')[0] in "
        "('obstore', 'fsspec', 'http', 'ssl', 'huggingface_hub') or 'remote' in name])"
    )
    assert python("-c", code).strip() == "[]"
