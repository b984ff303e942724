"""Checkpoints of many ranks behind URLs: what their directories are, as on this computer."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import torchzip as tz
from tests.remote.range_server import serving
from tests.remote.s3_store import serving_s3
from tests.saved import saved

REAL = Path(__file__).parents[1] / "data" / "ranks"
_FOLDERS = {
    "zero-2-bf16/": "zero",
    "zero-2-bf16/latest": "zero",
    "zero-2-bf16/universal/": "zero",
    "zero-3-fp32/global_step2/": "zero",
    "fsdp-tp-w4/": "ranks",
    "mcore/": "dcp",
}


@pytest.fixture(scope="module", params=["memory", "s3"])
def place(request: pytest.FixtureRequest) -> Iterator[tuple[str, dict[str, Any]]]:
    """Put the real directories into a store; return its URL, and the options for it."""
    files = {
        path.relative_to(REAL).as_posix(): path.read_bytes()
        for path in REAL.rglob("*")
        if path.is_file()
    }
    if request.param == "memory":
        fsspec = pytest.importorskip("fsspec")
        system = fsspec.filesystem("memory")
        system.store.clear()
        system.pipe({f"/ranks/{name}": data for name, data in files.items()})
        yield "memory://ranks/", {}
        system.store.clear()
        return
    for module in ("obstore", "moto.server", "boto3"):
        pytest.importorskip(module)
    with serving_s3() as store:
        for name, data in files.items():
            store[f"ranks/{name}"] = data
        yield store.url("ranks/"), store.options


def _same(one: tz.Checkpoint, other: tz.Checkpoint) -> None:
    assert (one.format, list(one)) == (other.format, list(other))
    for name in one:
        assert one[name].torch_dtype == other[name].torch_dtype
        assert one[name].numpy().tobytes() == other[name].numpy().tobytes()


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
@pytest.mark.parametrize("folder", _FOLDERS)
def test_folders(folder: str, place: tuple[str, dict[str, Any]], tmp_path: Path) -> None:
    """What is there is read, converted and taken to other processes as from a directory."""
    url, options = place
    with (
        tz.lazy_load(f"{url}{folder}", storage_options=options) as far,
        tz.lazy_load(REAL / folder) as near,
    ):
        assert far.format == _FOLDERS[folder]
        _same(far, near)
        name = list(near)[-1]
        tensor = pickle.loads(pickle.dumps(far[name]))
        assert tensor.numpy().tobytes() == near[name].numpy().tobytes()
        with pickle.loads(pickle.dumps(far)) as again:
            _same(again, near)
    target = tmp_path / "m.safetensors"
    tz.convert(f"{url}{folder}", target, dtype="bfloat16", storage_options=options)
    tz.convert(REAL / folder, tmp_path / "n.safetensors", dtype="bfloat16")
    assert target.read_bytes() == (tmp_path / "n.safetensors").read_bytes()


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
def test_lists(place: tuple[str, dict[str, Any]], tmp_path: Path) -> None:
    """A list of URLs is one as a list of paths is; the two are not mixed."""
    url, options = place
    names = [f"fsdp-tp-w4/model_world_size_4_rank_{rank}.pt" for rank in range(4)]
    with (
        tz.lazy_load([f"{url}{name}" for name in names], storage_options=options) as far,
        tz.lazy_load([REAL / name for name in names]) as near,
    ):
        _same(far, near)
        with pickle.loads(pickle.dumps(far)) as again:
            _same(again, near)
    with pytest.raises(ValueError, match="paths or one of URLs"):
        tz.lazy_load([f"{url}{names[0]}", REAL / names[1]], storage_options=options)


def test_a_web_server() -> None:
    """It says nothing of what is in a folder, but files can be given one by one."""
    array = np.arange(24.0).reshape(6, 4)
    files = {f"{rank}.pt": saved({"w": array[2 * rank : 2 * rank + 2]}) for rank in range(3)}
    with serving({**files, "latest": b"tag"}) as server:
        urls = [f"{server.url}{rank}.pt" for rank in range(3)]
        with tz.lazy_load(urls, join={"*": 0}) as checkpoint:
            np.testing.assert_array_equal(checkpoint["w"].numpy(), array)
        with pytest.raises(OSError, match="does not say what is in a folder"):
            tz.lazy_load(f"{server.url}x/")
        with pytest.raises(OSError, match="does not say what is in a folder"):
            tz.lazy_load(f"{server.url}latest")
