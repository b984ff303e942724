"""Computed tensors of files behind URLs: each byte is fetched once, ahead of the computation."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import torchzip as tz
from tests.convert.test_run import NeighbourProcess
from tests.remote.range_server import RangeServer, serving
from torchzip import lazy

Array = np.ndarray[Any, Any]

_NAMES = [f"w{number}" for number in range(8)]
_SHAPE = (2000, 1000)  # 8 MB each: together more than is kept


@pytest.fixture(scope="module")
def arrays() -> dict[str, Array]:
    rng = np.random.default_rng(3)
    made = {name: rng.standard_normal(_SHAPE).astype(np.float32) for name in _NAMES}
    return made | {"scale": rng.standard_normal((20, 1)).astype(np.float32)}


@pytest.fixture(scope="module")
def server(
    arrays: dict[str, Array], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RangeServer]:
    path = tmp_path_factory.mktemp("served") / "m.pt"
    tz.save(arrays, path)
    with serving({"m.pt": path.read_bytes(), "n.pt": path.read_bytes()}) as made:
        yield made


def _scaled(weight: Array, scale: Array, rows: tuple[int, int]) -> Array:
    return np.asarray(weight * scale[np.arange(*rows) // 100 - rows[0] // 100])


def _made_of(t: Any, form: str) -> Any:
    w0, w1 = t["w0"], t["w1"]
    if form == "mean of all":
        return lazy.compute(lambda *blocks: sum(blocks) / 8, *(t[name] for name in _NAMES))
    if form == "scaled by rows":
        return lazy.compute(_scaled, w0, t["scale"], rows=True, repeat=(1, 100))
    forms: dict[str, Callable[[], Any]] = {
        "sum": lambda: w0 + w1,
        "sum with a transposed one": lambda: w0.reshape(1000, 2000) + w1.T,
        "transposed": lambda: w0.T,
        "columns": lambda: lazy.cat([w0, w1], 1),
        "rounded": lambda: (w0 * w1).to("bfloat16"),
        "slice": lambda: (w0 - w1).lazy[500:1500],
    }
    return forms[form]()


#: How many of the tensors an expression reads.
_READ = {
    "mean of all": 8, "scaled by rows": 1, "sum": 2, "sum with a transposed one": 2,
    "transposed": 1, "columns": 2, "rounded": 2, "slice": 1,
}  # fmt: skip


@pytest.mark.parametrize("form", _READ)
@pytest.mark.parametrize("way", ["convert", "save", "numpy", "executor"])
def test_bytes_come_once(
    server: RangeServer, tmp_path: Path, arrays: dict[str, Array], form: str, way: str
) -> None:
    """In a few requests, whether they are written or read."""
    with (
        tz.lazy_load(server.url + "m.pt") as ckpt,
        tz.lazy_load("file://" + _local(tmp_path, arrays)) as local,
    ):
        expected = _made_of(local, form).numpy()
        made = _made_of(ckpt, form)
        requests, nbytes = len(server.requests), server.nbytes
        if way == "numpy":
            found = made.numpy()
        else:
            path = tmp_path / "o.pt"
            if way == "save":
                tz.save({"x": made}, path)
            else:
                executor = NeighbourProcess() if way == "executor" else None
                tz.convert({"x": made}, path, executor=executor)
            found = tz.load(path)["x"]
    assert found.tobytes() == expected.tobytes()
    read = _READ[form] * arrays["w0"].nbytes
    # The rows of scales, headers, and where a task begins in the middle of a range.
    assert server.nbytes - nbytes < read + 2e6
    assert len(server.requests) - requests <= 12 + read // 2e6


def _local(folder: Path, arrays: dict[str, Array]) -> str:
    path = folder / "m.pt"
    tz.save(arrays, path)
    return str(path)


def test_reduce(server: RangeServer, arrays: dict[str, Array]) -> None:
    """One pass, a few requests."""
    with tz.lazy_load(server.url + "m.pt") as ckpt:
        requests = len(server.requests)
        total = lazy.reduce(
            lambda total, a, b: total + float((a * b).sum(dtype=np.float64)),
            ckpt["w3"], ckpt["w4"], initial=0.0,
        )  # fmt: skip
        assert len(server.requests) - requests <= 6
    assert np.isclose(total, (arrays["w3"] * arrays["w4"]).sum(dtype=np.float64))


def test_of_two_files(server: RangeServer, tmp_path: Path, arrays: dict[str, Array]) -> None:
    """Each is fetched ahead by itself."""
    requests, nbytes = len(server.requests), server.nbytes
    tz.tools.average([server.url + "m.pt", server.url + "n.pt"], tmp_path / "o.safetensors")
    assert server.nbytes - nbytes < 2 * 8.1 * arrays["w0"].nbytes
    assert len(server.requests) - requests < 60
    assert np.array_equal(tz.load(tmp_path / "o.safetensors")["w7"], arrays["w7"])


@pytest.mark.parametrize("has_config", [False, True])
def test_quantized(has_config: bool, tmp_path: Path) -> None:
    """The config is looked for beside the file; a web server says only then that it has none."""
    codes = np.random.default_rng(0).integers(0, 100, (300, 200)).astype(np.uint8)
    scale = np.ones((3, 2) if not has_config else (5, 2), np.float32)
    weight = codes.view(ml_dtypes.float8_e4m3fn)
    tz.save({"a.weight": weight, "a.weight_scale_inv": scale}, tmp_path / "m.pt")
    files = {"m.pt": (tmp_path / "m.pt").read_bytes()}
    if has_config:
        config = {"quantization_config": {"weight_block_size": [64, 128]}}
        files["config.json"] = json.dumps(config).encode()
    with serving(files) as server, tz.lazy_load(server.url + "m.pt") as checkpoint:
        made = lazy.dequantized(checkpoint)["a.weight"]
        np.testing.assert_array_equal(made.numpy(), weight.astype(ml_dtypes.bfloat16))
