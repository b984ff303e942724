"""Conversions as torch sees them: there and back, in shards, in other dtypes, under other names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import torchzip as tz
from tests.comparing import assert_equal_in_torch
from tests.models import MODELS, training_checkpoint
from tests.torch_oracle import asks_torch
from tests.trees import CASES
from torchzip.convert import conversion, work

pytestmark = asks_torch(
    "torch.load", "enable_nested_tensor", ".*weight_norm", "Couldn't retrieve source",
    ".*lr_scheduler.step", "TypedStorage is deprecated", "ComplexHalf support",
)  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_what_is_not_lost_is_equal(torch: Any, name: str, tmp_path: Path) -> None:
    """From .pt to .safetensors to .pt: if nothing is said to be lost, torch sees no difference."""
    tree = CASES[name](torch)
    torch.save(tree, tmp_path / "m.pt")
    try:
        there = tz.convert(tmp_path / "m.pt", tmp_path / "m.safetensors")
    except tz.TorchZipError:
        return  # names or dtypes that safetensors cannot hold
    back = tz.convert(tmp_path / "m.safetensors", tmp_path / "back.pt")
    loaded = torch.load(tmp_path / "back.pt", weights_only=False)
    if not there.lost:
        assert back.lost == ()
        assert_equal_in_torch(torch, in_order_of(tree, loaded), tree)


def in_order_of(tree: Any, loaded: Any) -> Any:
    """Return what was loaded in the order of a plain dict of tensors.

    That order is the one thing that is not kept, so that the file is the package's own.
    """
    if type(tree) is dict and type(loaded) is dict and tree.keys() == loaded.keys():
        return {name: loaded[name] for name in tree}
    return loaded


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("suffix", ["safetensors", "safetensors.index.json", "bin.index.json"])
def test_state_dicts_there_and_back(torch: Any, name: str, suffix: str, tmp_path: Path) -> None:
    """A real state dict with its ``_metadata``, through each kind of file that holds names."""
    state = MODELS[name](torch).state_dict()
    torch.save(state, tmp_path / "m.pt")
    there = tz.convert(tmp_path / "m.pt", tmp_path / f"t.{suffix}", max_shard_size="2KB")
    tz.convert(there.target, tmp_path / "back.pt")
    loaded = torch.load(tmp_path / "back.pt", weights_only=False)
    if there.lost or suffix.startswith("bin"):
        assert state.keys() == loaded.keys()
        return
    assert_equal_in_torch(torch, loaded, state)


def test_training_checkpoint_there_and_back(torch: Any, tmp_path: Path) -> None:
    """Of a checkpoint with everything, what JSON cannot carry is listed; all else is equal."""
    tree = training_checkpoint(torch)
    torch.save(tree, tmp_path / "m.pt")
    there = tz.convert(tmp_path / "m.pt", tmp_path / "m.safetensors")
    assert [line.partition(":")[0] for line in there.lost] == ["hyper_parameters", "phase"]
    tz.convert(tmp_path / "m.safetensors", tmp_path / "back.pt")
    loaded = torch.load(tmp_path / "back.pt", weights_only=False)
    del tree["hyper_parameters"], tree["phase"]
    assert_equal_in_torch(torch, loaded, tree)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float8_e4m3fn", "float64"])
@pytest.mark.parametrize("jobs", [1, 2])
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.filterwarnings("ignore:.* out of the range:UserWarning")
def test_casts_of_a_model(
    torch: Any, dtype: str, jobs: int, suffix: str, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Every tensor is bit for bit what ``.to()`` gives, whoever has written which piece."""
    monkeypatch.setattr(conversion, "_WORTH_NBYTES", 0)
    monkeypatch.setattr(work, "_PIECE_NBYTES", 1 << 16)
    torch.manual_seed(0)
    state = {f"w{i}": torch.randn(300, 70 + i) * 10.0 ** (i - 4) for i in range(9)}
    state |= {"transposed": state["w3"].T, "tied": state["w5"], "ids": torch.arange(5)}
    state["double"] = torch.randn(20_000, dtype=torch.float64)
    torch.save(state, tmp_path / "m.pt")
    tz.convert(tmp_path / "m.pt", tmp_path / f"o{suffix}", dtype=dtype, jobs=jobs)
    tz.convert(tmp_path / f"o{suffix}", tmp_path / "back.pt")
    loaded = torch.load(tmp_path / "back.pt")
    assert loaded.keys() == state.keys()
    for name, expected in state.items():
        if expected.is_floating_point():
            expected = expected.to(getattr(torch, dtype))
        raw = torch.uint8 if expected.element_size() == 1 else expected.dtype
        assert loaded[name].dtype == expected.dtype
        assert torch.equal(loaded[name].view(raw), expected.view(raw)), name
    assert loaded["tied"].data_ptr() == loaded["w5"].data_ptr()


def test_renamed_state_dict_keeps_its_metadata(torch: Any, tmp_path: Path) -> None:
    """The OrderedDict and its attributes stay, and the order of the names."""
    state = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4)).state_dict()
    torch.save(state, tmp_path / "m.pt")
    tz.convert(tmp_path / "m.pt", tmp_path / "o.pt", rename=[(r"^(\d)", r"net.\1")])
    loaded = torch.load(tmp_path / "o.pt")
    assert list(loaded) == [f"net.{name}" for name in state]
    assert loaded._metadata == state._metadata
