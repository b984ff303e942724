"""What `repair` saves of files without CRCs: archives, legacy files, safetensors."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import torchzip as tz
from tests.sampling import some
from tests.saved import flipped, legacy, saved
from tests.systems import open_files_can_go
from tests.tools.damage import GOLDEN, Original, end_of_pickle, judge, judge_some, repaired, twenty
from torchzip.errors import FormatError, TorchZipError
from torchzip.tools import repair


def test_cuts_without_crcs(tmp_path: Path) -> None:
    """Without CRCs, what lies in its place comes back and is said to be unverified."""
    original = Original(saved(twenty(), crc32=False))
    rng = random.Random(3)
    for _ in some(range(100)):
        cut = rng.randrange(end_of_pickle(original.data), len(original.data))
        found = judge_some(original, original.data[:cut], original.before(cut), tmp_path)
        assert set(found.unverified) == original.before(cut) - {"model.empty"}
        assert any("no CRCs" in note for note in found.notes)


def _legacy_tensors() -> dict[str, Any]:
    rng = np.random.default_rng(5)
    made: dict[str, Any] = {}
    for index in range(20):
        dtype = [np.float32, np.int16, np.uint8][index % 3]
        made[f"t{index}"] = rng.integers(0, 200, rng.integers(1, 90)).astype(dtype)
    return made


def test_legacy_cuts(tmp_path: Path) -> None:
    """Of a legacy file every storage before the cut comes back, unverified."""
    original = Original(legacy(_legacy_tensors()))
    first = min(start for spans in original.spans.values() for start, _ in spans)
    rng = random.Random(4)
    for _ in some(range(200)):
        cut = rng.randrange(first, len(original.data))
        must = original.before(cut)
        if not must:
            with pytest.raises(FormatError, match="nothing can be recovered"):
                repaired(original.data[:cut], tmp_path)
            continue
        found = judge_some(original, original.data[:cut], must, tmp_path)
        assert (
            set(found.unverified)
            == must
            == set(original.values) - {lost.name for lost in found.lost}
        )


@pytest.mark.parametrize("path", [p for p in GOLDEN if "legacy" in p.name], ids=str)
def test_golden_legacy(path: Path, tmp_path: Path) -> None:
    """Legacy files of four releases of torch, cut anywhere behind their pickles."""
    original = Original(path.read_bytes())
    first = min(start for spans in original.spans.values() for start, _ in spans)
    for cut in some(range(first, len(original.data), 7)):
        if original.before(cut):
            judge(original, original.data[:cut], original.before(cut), tmp_path)


def test_legacy_counts(tmp_path: Path) -> None:
    """A damaged count loses nothing: those behind it are in their place."""
    original = Original(legacy(_legacy_tensors()))
    for name in ("t0", "t7", "t19"):
        ((start, _),) = original.spans[name]
        data = flipped(original.data, start - 8, 0x55)
        judge(original, data, set(original.values), tmp_path)


def test_legacy_lost_bytes(tmp_path: Path) -> None:
    """Where bytes are missing, what is behind has no place any more."""
    original = Original(legacy(_legacy_tensors()))
    ((start, stop),) = original.spans["t7"]
    data = original.data[: start + 2] + original.data[stop - 1 :]
    must = {f"t{index}" for index in range(7)}
    found, checkpoint = repaired(data, tmp_path)
    assert set(checkpoint) == must
    assert "bytes were lost" in found.lost[0].why


def test_legacy_pickles(tmp_path: Path) -> None:
    """Without its pickles a legacy file is nothing."""
    data = legacy(_legacy_tensors())
    for cut in (40, 200, data.index(b"t19")):
        with pytest.raises(TorchZipError):
            repaired(data[:cut], tmp_path)


def test_safetensors_cuts(tmp_path: Path) -> None:
    """Of a safetensors file the tensors before the cut come back, unverified."""
    tz.save({f"t{i}": np.full(10 + i, i, np.float32) for i in range(9)}, tmp_path / "broken.pt")
    tz.convert(tmp_path / "broken.pt", tmp_path / "m.safetensors")
    data = (tmp_path / "m.safetensors").read_bytes()
    (tmp_path / "m.safetensors").unlink()
    original = Original(data)
    first = min(start for spans in original.spans.values() for start, _ in spans)
    for cut in range(first + 1, len(data), 13):
        must = original.before(cut)
        if must:
            found = judge_some(original, data[:cut], must, tmp_path)
            assert set(found.unverified) == must


@open_files_can_go
def test_safetensors_ties(tmp_path: Path) -> None:
    """What convert lists as tied comes back, tied, or is lost with what has the data."""
    folder = tmp_path / "repaired"
    folder.mkdir()
    embed = np.arange(8, dtype=np.float32)
    tz.save({"embed": embed, "head": embed, "z": np.ones(4, np.float32)}, tmp_path / "m.pt")
    whole = tmp_path / "m.safetensors"
    tz.convert(tmp_path / "m.pt", whole)
    for data, names in (
        (whole.read_bytes(), "embed head z"),
        (whole.read_bytes()[:-4], "embed head"),
    ):
        found, checkpoint = repaired(data, folder)
        assert found.tensors == len(names.split())
        assert sorted(checkpoint) == sorted(names.split())
        assert checkpoint["head"].spec.storage is checkpoint["embed"].spec.storage
        assert np.array_equal(checkpoint["head"], embed)
    tz.convert(tmp_path / "m.pt", whole, exclude="z", overwrite=True)
    with pytest.raises(TorchZipError, match="all of its tensors are lost, 2 in number"):
        repaired(whole.read_bytes()[:-4], folder)
    tz.convert(tmp_path / "m.pt", f"{tmp_path}/s/", max_shard_size=32)
    assert repair(tmp_path / "s", tmp_path / "s.pt").tensors == 3
    loaded = tz.load(tmp_path / "s.pt")
    assert np.shares_memory(loaded["head"], loaded["embed"])
