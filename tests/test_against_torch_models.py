"""Whole models and training checkpoints: the names and bits of torch, and torch gets them back."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest

import torchzip as tz
from tests.comparing import assert_equal_in_torch, assert_same_tensor
from tests.models import MODELS, training_checkpoint
from tests.saved import saved
from tests.torch_oracle import asks_torch, torch_bytes

pytestmark = asks_torch(
    "torch.load", "enable_nested_tensor", ".*weight_norm", "Couldn't retrieve source",
    ".*lr_scheduler.step",
)  # fmt: skip

#: How torch can write: (zip or legacy, pickle protocol). Protocol 0 cannot carry its ids.
FORMATS = [(new, protocol) for new in (True, False) for protocol in (2, 1, 3, 4, 5)]


def written(torch: Any, tree: Any, new: bool, protocol: int) -> bytes:
    """Return a file of torch in one of its formats."""
    return torch_bytes(torch, tree, pickle_protocol=protocol, _use_new_zipfile_serialization=new)


def check_saved_again(torch: Any, ckpt: tz.Checkpoint, data: bytes) -> None:
    """Compare what torch makes of a checkpoint's object, saved again, and of its file."""
    with pytest.warns(UserWarning, match="weights_only"):
        again = torch.load(io.BytesIO(saved(ckpt.root)), weights_only=False)
    assert_equal_in_torch(torch, again, torch.load(io.BytesIO(data), weights_only=False))


@pytest.mark.parametrize(("new", "protocol"), FORMATS)
@pytest.mark.parametrize("name", MODELS)
def test_pickled_model(torch: Any, name: str, new: bool, protocol: int) -> None:
    """The names are exactly those of its state dict, in its order; torch gets its object back."""
    model = MODELS[name](torch)
    data = written(torch, model, new, protocol)
    with tz.lazy_load(io.BytesIO(data)) as ckpt:
        state = model.state_dict()
        assert list(ckpt) == list(state)
        for key, tensor in state.items():
            assert_same_tensor(ckpt[key], tensor, key)
        check_saved_again(torch, ckpt, data)


def test_model_inside_a_checkpoint(torch: Any) -> None:
    """A model in a dict has its names below the key."""
    model = MODELS["everything"](torch)
    data = written(torch, {"ema": model, "epoch": 1}, True, 2)
    with tz.lazy_load(io.BytesIO(data)) as ckpt:
        assert list(ckpt) == [f"ema.{name}" for name in model.state_dict()]
        assert ckpt["ema.head.weight"].is_parameter
        assert ckpt["ema.head.weight"].requires_grad
        assert not ckpt["ema.frozen"].requires_grad


@pytest.mark.parametrize(("new", "protocol"), FORMATS)
def test_training_checkpoint(torch: Any, new: bool, protocol: int) -> None:
    """Weights, optimizer, scheduler, random states and settings of somebody's own classes."""
    tree = training_checkpoint(torch)
    data = written(torch, tree, new, protocol)
    with tz.lazy_load(io.BytesIO(data)) as ckpt:
        assert [name for name in ckpt if name.startswith("state_dict.")] == [
            f"state_dict.{name}" for name in tree["state_dict"]
        ]
        for name, tensor in tree["state_dict"].items():
            assert_same_tensor(ckpt[f"state_dict.{name}"], tensor, name)
        moments = tree["optimizer_states"][0]["state"]
        for index, held in moments.items():
            for key, tensor in held.items():
                name = f"optimizer_states.0.state.{index}.{key}"
                assert_same_tensor(ckpt[name], tensor, name)
        root = ckpt.root
        assert root["global_step"] == np.int64(1200)
        assert type(root["loss"]) is np.float32
        assert root["history"] == {"train": [0.5, 0.25]}
        assert root["hyper_parameters"].state["rate"] == 0.1
        assert root["phase"].args == ("done",)
        assert root["rng"]["numpy"][1].dtype == np.uint32
        assert root["counts"].tolist() == [[0, 1, 2], [3, 4, 5]]
        check_saved_again(torch, ckpt, data)
        assert ("argparse", "Namespace") in ckpt.foreign


@pytest.mark.filterwarnings("ignore:.*quantiz")
# Protocol 1 makes torch 2.13 abort on an object of C++.
@pytest.mark.parametrize(("new", "protocol"), [row for row in FORMATS if row[1] > 1])
def test_quantized_model(torch: Any, new: bool, protocol: int) -> None:
    """Packed weights have the names that they have in a saved state dict, pickled whole or not."""
    nn, quantization = torch.nn, torch.ao.quantization
    model = quantization.quantize_dynamic(
        nn.Sequential(nn.Linear(4, 3), nn.LSTM(3, 2)), {nn.Linear, nn.LSTM}, dtype=torch.qint8
    )
    state, whole = model.state_dict(), written(torch, model, new, protocol)
    with (
        tz.lazy_load(io.BytesIO(written(torch, state, new, protocol))) as of_state,
        tz.lazy_load(io.BytesIO(whole)) as of_model,
    ):
        # The scales are plain numbers in the model, and tensors in its state dict only.
        assert list(of_model) == [name for name in of_state if name[2:] not in _SCALES]
        weight, bias = state["0._packed_params._packed_params"]
        for ckpt in (of_state, of_model):
            packed: Any = ckpt["0._packed_params._packed_params.0"]
            assert packed.dequantize().tobytes() == weight.dequantize().numpy().tobytes()
            held = ckpt["0._packed_params._packed_params.1"]
            assert held.numpy().tobytes() == bias.detach().numpy().tobytes()


_SCALES = ("scale", "zero_point")


def test_every_foreign_name_is_listed(torch: Any) -> None:
    """With ``foreign="raise"`` the error names all at once."""
    data = written(torch, training_checkpoint(torch), True, 2)
    with pytest.raises(tz.UnsafeGlobalError) as caught:
        tz.lazy_load(io.BytesIO(data), foreign="raise")
    assert set(caught.value.names) == {
        ("argparse", "Namespace"), ("tests.models", "Settings"), ("tests.models", "Phase"),
    }  # fmt: skip


@pytest.mark.parametrize("new", [True, False])
def test_protocol_0(torch: Any, new: bool) -> None:
    """What torch can write at protocol 0: whatever has no tensor in it."""
    tree = training_checkpoint(torch)
    tree = {key: tree[key] for key in ("epoch", "hyper_parameters", "phase", "loss", "history")}
    data = written(torch, tree, new, 0)
    with tz.lazy_load(io.BytesIO(data)) as ckpt:
        assert ckpt.root["hyper_parameters"].state["settings"].name == "Settings"
        assert (type(ckpt.root["loss"]), ckpt.root["loss"]) == (np.float32, 0.5)
        check_saved_again(torch, ckpt, data)


def test_load_gives_arrays_in_foreign_objects(torch: Any) -> None:
    """`load` of a pickled model: the tree of its objects, with arrays."""
    model = MODELS["everything"](torch)
    loaded = tz.load(io.BytesIO(written(torch, model, True, 2)))
    weight = loaded.state["_modules"]["head"].state["_parameters"]["weight"]
    assert isinstance(weight, np.ndarray)
    assert weight is loaded.state["_modules"]["embed"].state["_parameters"]["weight"]
    assert weight.tolist() == model.head.weight.tolist()
