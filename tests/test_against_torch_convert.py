"""Conversions as torch sees them: there and back, in shards, in other dtypes, under other names."""

from __future__ import annotations

import argparse
import datetime as dt
import json
import math
import pathlib
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import torchzip as tz
from tests import builders as b
from tests.comparing import assert_equal_in_torch
from tests.models import MODELS, training_checkpoint
from tests.saved import quiet
from tests.torch_oracle import asks_torch
from tests.trees import CASES
from torchzip.checkpoint.lazy_tensor import LazyTensor
from torchzip.convert import conversion, work
from torchzip.convert.carried import carry
from torchzip.convert.restored import restore

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


# -- the object around the tensors -----------------------------------------------------------------


def layout(tensor: LazyTensor) -> Any:
    """Return what says which tensor of a file it is."""
    spec = tensor.spec
    return (id(spec.storage), spec.torch_dtype, spec.shape, spec.stride, spec.storage_offset)


def through_safetensors(source: Path, folder: Path) -> tuple[Any, list[str]]:
    """Carry a checkpoint through a safetensors file; return what torch could load, and the lost."""
    middle, target = folder / "middle.safetensors", folder / "target.pt"
    tz.convert(source, middle)
    with tz.lazy_load(source) as ckpt:
        names = {layout(ckpt[name]): name for name in ckpt if isinstance(ckpt[name], LazyTensor)}
        carried = carry(
            ckpt.root,
            lambda value: names.get(layout(value)) if type(value) is LazyTensor else None,
            names={name: name for name in ckpt},
        )
    assert carried.text is not None
    with tz.lazy_load(middle) as ckpt:
        aliases = json.loads(ckpt.metadata.get("torchzip.aliases", "{}"))
        tensors = {name: ckpt[name] for name in ckpt}
        tensors |= {name: tensors[kept] for name, kept in aliases.items()}
        with quiet():  # of what is no affair of torch's safe loader
            tz.save(restore(carried.text, tensors.get), target)
    return target, carried.lost


def odd_model(torch: Any) -> Any:
    """Return a model with weights whose memory is not in C order."""
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.Conv2d(1, 2, 1))
    model = model.to(memory_format=torch.channels_last)
    model.turned = torch.nn.Parameter(torch.arange(6.0).view(2, 3).t())
    return model


TORCH_CASES: dict[str, Any] = {
    "state dict": lambda torch: MODELS["everything"](torch).state_dict(),
    "keeping parameters": lambda torch: MODELS["everything"](torch).state_dict(keep_vars=True),
    "channels last": lambda torch: odd_model(torch).state_dict(),
    "channels last, parameters": lambda torch: dict(odd_model(torch).named_parameters()),
    "lstm": lambda torch: [*MODELS["lstm"](torch).parameters()],
    "buffers": lambda torch: MODELS["buffers"](torch).state_dict(keep_vars=True),
    "one tensor": lambda torch: torch.ones(2, 3).t(),
    "leaves": lambda torch: {"x": torch.ones(2, requires_grad=True), "n": torch.ones(2)},
    "flat, with ties": lambda torch: (lambda x: {"b": x, "a": x, "c": x[:]})(torch.ones(3)),
    "empty": lambda torch: [torch.ones(2, 0, 3).permute(2, 0, 1), torch.ones(0)],
    "odd strides": lambda torch: {"x": torch.ones(3).as_strided((1, 3), (1, 1)), "l": []},
    "plain values": lambda torch: {
        "sizes": [torch.Size([1, 2])] * 2,
        "dtype": torch.bfloat16,
        "device": torch.device("cuda", 1),
        "layout": torch.strided,
        "scheme": torch.per_tensor_affine,
        "numbers": (1, -(2**80), 0.1, math.inf, True, None, 1j),
        "np": [np.float64(0.5), np.arange(3), np.bool_(1), np.random.RandomState(3).get_state()],
        "python": random.Random(3).getstate(),
        "time": dt.datetime(2024, 1, 2, tzinfo=dt.UTC),
        "path": pathlib.Path("runs/1"),
        3: {None: {1.5: "x"}, ("a", 1): b"y"},
    },
}


@pytest.mark.parametrize("name", TORCH_CASES)
def test_torch_gets_it_back(torch: Any, tmp_path: Path, name: str) -> None:
    """Real objects are equal in torch: values, types, strides, order, attributes, identity."""
    torch.save(TORCH_CASES[name](torch), tmp_path / "source.pt")
    target, lost = through_safetensors(tmp_path / "source.pt", tmp_path)
    assert lost == []
    expected = torch.load(tmp_path / "source.pt", weights_only=False)
    assert_equal_in_torch(torch, torch.load(target, weights_only=False), expected)


def test_training_checkpoint(torch: Any, tmp_path: Path) -> None:
    """A checkpoint of a training is equal in torch, but for the objects that are named as lost."""
    model = odd_model(torch)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    root = {
        **training_checkpoint(torch),
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "lr": 1e-3,
        "betas": (0.9, 0.999),
        "args": argparse.Namespace(rate=0.1),
        "module": torch.nn.Linear(2, 2),
    }
    source = tmp_path / "source.pt"
    torch.save(root, source)
    target, lost = through_safetensors(source, tmp_path)
    assert [line.partition(":")[0] for line in lost] == [
        "hyper_parameters",
        "phase",
        "args",
        "module",
    ]
    made = torch.load(target, weights_only=False)
    expected = torch.load(source, weights_only=False)
    for name in ("hyper_parameters", "phase", "args", "module"):
        gone = expected.pop(name)
        if name == "module":
            module = made.pop(name)
            assert set(module) == {"weight", "bias"}
            assert torch.equal(module["weight"], gone.weight)
    assert_equal_in_torch(torch, made, expected)
    model.load_state_dict(made["model"])
    optimizer.load_state_dict(made["optimizer"])


def test_golden_files(torch: Any, tmp_path: Path) -> None:
    """Files of torch come back equal, where safetensors holds what is in them."""
    for name in ("list", "module-state", "param", "train"):
        source = b.GOLDEN / f"{name}.pt"
        (tmp_path / name).mkdir()
        target, lost = through_safetensors(source, tmp_path / name)
        assert lost == []
        expected = torch.load(source, weights_only=False)
        assert_equal_in_torch(torch, torch.load(target, weights_only=False), expected)
