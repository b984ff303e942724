"""Elements that a new dtype has no place for are counted on every way, and said once."""

from __future__ import annotations

import json
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import torchzip as tz
from tests.cli.running import run
from tests.convert.test_run import NeighbourProcess, make_pieces_small, write_source
from tests.sampling import costly
from tests.saved import quiet
from tests.tensors.test_cast_range import FLOATS, numpys_count
from torchzip.tensors.numpy_dtypes import numpy_dtype

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def _small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    make_pieces_small(monkeypatch)


def wild(rng: np.random.Generator, count: int, source: str) -> np.ndarray[Any, Any]:
    """Return numbers of which some are past the range of any narrower dtype, in any place."""
    values = rng.standard_normal(count)
    for scale in (1e3, 1e6, 1e39, np.inf, np.nan):
        places = rng.integers(0, max(count, 1), rng.integers(0, 4))
        values[places[places < count]] *= scale
    with np.errstate(all="ignore"):
        return values.astype(numpy_dtype(source))


def tree(seed: int, source: str) -> dict[str, np.ndarray[Any, Any]]:
    """Return small and large tensors, ties, views, strides, and storages with more in them."""
    rng = np.random.default_rng(seed)
    made = {f"layer.{i}": wild(rng, int(rng.integers(0, 9000)), source) for i in range(6)}
    made["small"] = wild(rng, 30, source)
    base = wild(rng, 64 * 96, source).reshape(64, 96)
    made |= {"base": base, "tied": base, "view": base[3:20], "strided": base[::2].T}
    made["part"] = wild(rng, 5000, source)[1000:4000:2]
    made["alone"] = wild(rng, 600, source).reshape(20, 30).T
    made["expanded"] = np.broadcast_to(wild(rng, 40, source), (3, 40))
    return made


@costly
@given(
    st.integers(0, 1000), st.sampled_from(FLOATS), st.sampled_from(FLOATS),
    st.sampled_from(["o.pt", "o.safetensors", "o.safetensors.index.json", "o.bin.index.json"]),
    st.sampled_from(["zip", "deflated", "no crc", "safetensors"]),
    st.sampled_from(["here", "threads", "processes"]),
)  # fmt: skip
@pytest.mark.usefixtures("_small_pieces")
def test_counts_are_numpys(
    tmp_path_factory: pytest.TempPathFactory, seed: int, source: str, target: str, dst: str,
    kind: str, way: str,
) -> None:  # fmt: skip
    """Whatever the dtypes, the file and who does it; a name that has no data has no count."""
    folder = tmp_path_factory.mktemp("overflow")
    arrays = tree(seed, source)
    with quiet():
        path = write_source(arrays, folder, kind)
    expected = {} if source == target else {
        name: numpys_count(array, target) for name, array in arrays.items()
    }  # fmt: skip
    expected = {name: count for name, count in expected.items() if count and name != "tied"}
    with ThreadPoolExecutor(2) as threads, warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        executor = {"here": None, "threads": threads, "processes": NeighbourProcess()}[way]
        sharded = 9000 if dst.endswith(".json") else None
        report = tz.convert(
            path, folder / dst, dtype=target, executor=executor, max_shard_size=sharded
        )
    assert report.overflowed == expected
    lines = [str(each.message) for each in told if "out of the range" in str(each.message)]
    assert len(lines) == (1 if expected else 0)
    if expected:
        assert lines[0].startswith(f"{sum(expected.values()):,} elements are out of the range")


@pytest.mark.usefixtures("_small_pieces")
def test_workers_count(tmp_path: Path) -> None:
    """A pool of processes gives the counts of its pieces back."""
    arrays = tree(3, "float32")
    tz.save(arrays, tmp_path / "m.pt")
    with pytest.warns(UserWarning, match="out of the range") as told:
        report = tz.convert(tmp_path / "m.pt", tmp_path / "o.pt", dtype="float16", jobs=2)
    assert told[0].filename == __file__
    assert report.overflowed["base"] == numpys_count(arrays["base"], "float16") > 0


def test_said_once(capsys: Capture, tmp_path: Path) -> None:
    """On one line of stderr, the largest count first; all counts are in the JSON."""
    arrays = {f"w.{i}": np.full(i + 1, 1e6, np.float32) for i in range(8)}
    tz.save(arrays | {"fine": np.ones(3, np.float32)}, tmp_path / "m.pt")
    options = ("--dtype", "float16", "--json")
    status, out, err = run(capsys, "convert", tmp_path / "m.pt", tmp_path / "o.pt", *options)
    (line,) = [line for line in err.splitlines() if "range" in line]
    assert status == 0
    assert line.startswith("torchzip: warning: 36 elements are out of the range of their new dtype")
    assert "'w.7' (8, float16), 'w.6' (7, float16)," in line
    assert "and 3 more tensors" in line
    assert json.loads(out)["overflowed"] == {f"w.{i}": i + 1 for i in range(8)}


def test_nothing_is_said_of_sound_casts(tmp_path: Path) -> None:
    """Neither of rounding, nor of what was infinite or NaN before, nor of a wider dtype."""
    values = np.array([1e-30, 65519, np.inf, -np.inf, np.nan, 0])
    tz.save({"w": values}, tmp_path / "m.pt")
    for dtype in ("float16", "bfloat16", "float32", "float64"):
        report = tz.convert(tmp_path / "m.pt", tmp_path / "o.pt", dtype=dtype, overwrite=True)
        assert report.overflowed == {}


def test_a_warning_as_an_error_undoes_all(tmp_path: Path) -> None:
    """It comes before any file has its name."""
    tz.save({"w": np.array([1e6])}, tmp_path / "m.pt")
    with pytest.raises(UserWarning, match="out of the range"):  # as pytest is told to make them
        tz.convert(tmp_path / "m.pt", tmp_path / "o.pt", dtype="float16")
    assert [path.name for path in tmp_path.iterdir()] == ["m.pt"]


@pytest.mark.torch
@pytest.mark.parametrize("target", ["float16", "bfloat16", "float8_e5m2", "float8_e4m3fnuz"])
def test_torch_sees_them(torch: Any, tmp_path: Path, target: str) -> None:
    """As many elements are finite in torch before, and are not after ``.to()``."""
    array = wild(np.random.default_rng(7), 70_000, "float32")
    array[-4:] = 1e6, -3.4e38, np.inf, -np.inf
    tz.save({"w": array}, tmp_path / "m.pt")
    with quiet():
        report = tz.convert(tmp_path / "m.pt", tmp_path / "o.pt", dtype=target)
    before = torch.from_numpy(array)
    after = before.to(getattr(torch, target)).float()
    lost = before.isfinite() & ~after.isfinite()
    if target == "float8_e4m3fnuz":
        lost |= before.isinf()
    assert report.overflowed["w"] == int(lost.sum())
