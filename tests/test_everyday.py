"""Fifteen everyday tasks, as a new user would go about them: one or two commands each.

Where another test, or a transcript that is run again, shows all of it, the table has that. `SHOWN`
is read by the last test here, which looks whether it is all there.

| task | shown by |
|---|---|
| shards of Hugging Face to safetensors | `test_shards_of_a_hub` |
| weights for JAX and Flax | `test_for_flax` |
| the model out of Lightning, without a prefix | `test_lightning` |
| an average | `test_average` |
| a LoRA adapter merged | `test_lora` |
| fp16, with norms in fp32 | `test_half_with_norms` |
| make it smaller | `test_shrink` |
| compare two | `test_compare` |
| rename keys | `test_rename` |
| one tensor behind a URL | `tests/remote/test_stores.py::test_commands` |
| several processes | `tests/convert/test_jobs.py::test_the_bytes_are_those_of_one_process` |
| write a file for torch | `test_for_torch` |
| Ctrl-C | `tests/convert/test_run.py::test_ctrl_c` |
| pipes | `test_pipes` |
| wrong usage | `test_wrong_usage` |
"""

from __future__ import annotations

import ast
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import torchzip as tz
from tests.cli.running import Capture, run, usage

ROOT = Path(__file__).parents[1]
#: What shows each task.
SHOWN = re.findall(r"^\| .+ \| `(.+)` \|$", __doc__ or "", re.MULTILINE)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make an empty directory the current one."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def weights(scale: float = 1.0) -> dict[str, Any]:
    """Return a small model's state dict, with an embedding that is tied."""
    rng = np.random.default_rng(7)
    made = {
        "embed.weight": rng.standard_normal((20, 8)), "norm.weight": np.ones(8),
        "fc.weight": rng.standard_normal((8, 8)), "fc.bias": rng.standard_normal(8),
    }  # fmt: skip
    state: dict[str, Any] = {k: (v * scale).astype(np.float32) for k, v in made.items()}
    return state | {"head.weight": state["embed.weight"]}


def test_shards_of_a_hub(folder: Path, capsys: Capture) -> None:
    """The directory has all that a reader needs, under the names that it looks for.

    That transformers reads it is in `tests/test_transformers.py::test_a_converted_directory`.
    """
    os.mkdir("hf")
    tz.save(weights(), "whole.pt")
    tz.convert("whole.pt", "hf/pytorch_model.bin.index.json", max_shard_size=700)
    for name in ("config.json", "tokenizer.json", "vocab.txt"):
        Path("hf", name).write_text("{}")
    err = run.says(0, capsys, "convert", "hf/", "out/")
    assert "copied: config.json; tokenizer.json; vocab.txt" in err
    names = ["config.json", "model.safetensors", "tokenizer.json", "vocab.txt"]
    assert sorted(os.listdir("out")) == names
    run.done(capsys, "verify", "out")
    loaded = tz.load("out/model.safetensors")
    assert np.array_equal(loaded["fc.weight"], weights()["fc.weight"])


def test_for_flax(folder: Path, capsys: Capture) -> None:
    """Names with slashes, in one .npz that numpy opens; kernels are the other way round."""
    tz.save(weights(), "m.pt")
    rename = ("--rename", r"\.weight$=>.kernel", "--rename", r"\.=>/")
    run.says(0, capsys, "convert", "m.pt", "plain.npz", *rename, "--untie")
    with np.load("plain.npz") as arrays:
        assert np.array_equal(arrays["fc/kernel"], weights()["fc.weight"])

    def flax(name: str, tensor: Any) -> Any:
        is_kernel = name == "fc.weight"
        yield name.replace("weight", "kernel").replace(".", "/"), tensor.T if is_kernel else tensor

    tz.convert("m.pt", "flax.npz", map=flax)
    with np.load("flax.npz") as arrays:
        assert np.array_equal(arrays["fc/kernel"], weights()["fc.weight"].T)
        assert np.array_equal(arrays["fc/bias"], weights()["fc.bias"])


def test_lightning(folder: Path, capsys: Capture) -> None:
    """One option takes the state dict, another what its names begin with."""
    source = ROOT / "examples" / "lightning.ckpt"
    err = run.says(
        0, capsys, "convert", source, "model.safetensors", "--weights", "--rename", r"^model\.=>"
    )
    assert "weights: 4 tensors of state_dict" in err
    with tz.lazy_load("model.safetensors") as model, tz.lazy_load(source) as training:
        names = {name for name in training if name.startswith("state_dict.")}
        assert {f"state_dict.model.{name}" for name in model} == names


def test_average(folder: Path, capsys: Capture) -> None:
    """Of two epochs; what is around is that of the first."""
    tz.save({"model": weights(1), "epoch": 8}, "a.pt")
    tz.save({"model": weights(3), "epoch": 9}, "b.pt")
    run.says(0, capsys, "average", "a.pt", "b.pt", "-o", "mean.pt")
    mean = tz.load("mean.pt")
    assert mean["epoch"] == 8
    np.testing.assert_allclose(mean["model"]["fc.bias"], weights(2)["fc.bias"], rtol=1e-6)


def test_lora(folder: Path, capsys: Capture) -> None:
    """An adapter as peft saves it goes into the weight that it names."""
    tz.save(weights(), "base.pt")
    os.mkdir("adapter")
    down, up = np.ones((2, 8), np.float32), np.full((8, 2), 0.5, np.float32)
    tensors = {f"base_model.model.fc.lora_{n}.weight": a for n, a in (("A", down), ("B", up))}
    tz.save(tensors, "adapter/adapter_model.bin")
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["fc"]}
    Path("adapter/adapter_config.json").write_text(json.dumps(config))
    run.says(0, capsys, "merge-lora", "base.pt", "adapter", "-o", "merged.safetensors")
    merged = tz.load("merged.safetensors")
    np.testing.assert_allclose(
        merged["fc.weight"], weights()["fc.weight"] + 2 * up @ down, rtol=1e-6
    )


def test_half_with_norms(folder: Path, capsys: Capture) -> None:
    """The first rule that matches wins."""
    tz.save(weights(), "m.pt")
    rules = ("--dtype", "*norm*=float32", "--dtype", "float16")
    run.says(0, capsys, "convert", "m.pt", "half.pt", *rules)
    with tz.lazy_load("half.pt") as half:
        dtypes = {name: tensor.torch_dtype for name, tensor in half.items()}
    assert dtypes.pop("norm.weight") == "float32"
    assert set(dtypes.values()) == {"float16"}


def test_shrink(folder: Path, capsys: Capture) -> None:
    """why-big says where the bytes are, and the command that it names frees them."""
    moments = {name: array * 0.1 for name, array in weights().items()}
    tz.save({"model": weights(), "optimizer": {"exp_avg": moments}}, "m.pt")
    found = json.loads(run.done(capsys, "why-big", "m.pt", "--json"))
    assert any("--exclude" in saving["command"] for saving in found["savings"])
    options = ("--exclude", "optimizer", "--dtype", "bfloat16")
    run.says(0, capsys, "convert", "m.pt", "small.pt", *options)
    with tz.lazy_load("small.pt") as small:
        assert set(small) == {f"model.{name}" for name in weights()}
        assert small["model.fc.weight"].torch_dtype == "bfloat16"
    assert Path("small.pt").stat().st_size < Path("m.pt").stat().st_size


def test_compare(folder: Path, capsys: Capture) -> None:
    """Status 0 for what is equal, in another format too, and 1 for what is not."""
    tz.save(weights(), "a.pt")
    run(capsys, "convert", "a.pt", "a.safetensors")
    assert "are equal" in run.done(capsys, "diff", "a.pt", "a.safetensors")
    tz.save({**weights(), "fc.bias": np.zeros(8, np.float32)}, "b.pt")
    status, out, _ = run(capsys, "diff", "a.pt", "b.pt")
    assert (status, out.split()[:2]) == (1, ["changed", "fc.bias"])


def test_rename(folder: Path, capsys: Capture) -> None:
    """In place: no tensor moves."""
    tz.save(weights(), "m.pt")
    before = Path("m.pt").stat()
    run.done(capsys, "edit", "m.pt", "--rename", "^fc=>mlp.0")
    assert Path("m.pt").stat().st_ino == before.st_ino
    assert "mlp.0.weight" in tz.load("m.pt")


@pytest.mark.torch
def test_for_torch(torch: Any, folder: Path) -> None:
    """Arrays that are written are tensors that torch loads by default, tied as they were."""
    tz.save(weights(), "m.pt")
    loaded = torch.load("m.pt")
    assert torch.equal(loaded["fc.weight"], torch.tensor(weights()["fc.weight"]))
    assert loaded["head.weight"].data_ptr() == loaded["embed.weight"].data_ptr()


def test_pipes(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    """A checkpoint from stdin, one and a tensor to stdout, and a reader that has seen enough."""
    tz.save(weights(), "m.pt")
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(Path("m.pt").read_bytes())))
    run.says(0, capsys, "convert", "-", "out.safetensors")
    assert len(tz.load("out.safetensors")) == 4  # of tied ones, one
    command = [sys.executable, "-m", "torchzip"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [*command, "cat", "m.pt", "fc.bias", "--npy", "-"],
        capture_output=True, check=True, env=environment,
    )  # fmt: skip
    assert np.array_equal(np.load(io.BytesIO(done.stdout)), weights()["fc.bias"])
    with open("copy.pt", "wb") as out:
        half = [*command, "convert", "m.pt", "-", "--dtype", "float16"]
        done = subprocess.run(half, stdout=out, stderr=subprocess.PIPE, env=environment)
    assert (done.returncode, done.stderr[:22]) == (0, b"torchzip: <stdout>: 5 ")
    tz.convert("m.pt", "archive.pt", dtype="float16")
    assert Path("copy.pt").read_bytes() == Path("archive.pt").read_bytes()
    assert "go there too" in run.says(2, capsys, "convert", "m.pt", "-", "--json")
    assert "needs a directory" in run.says(2, capsys, "convert", "m.pt", "-", "--max-shard-size=1")
    tz.save({f"layer.{n}": np.ones(1, np.float32) for n in range(5000)}, "many.pt")
    with subprocess.Popen(
        [*command, "ls", "many.pt"], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env=environment,
    ) as child:  # fmt: skip
        assert child.stdout is not None
        assert child.stderr is not None
        assert child.stdout.readline().startswith(b"name")
        child.stdout.close()
        assert (child.stderr.read(), child.wait()) == (b"", 0)


def test_wrong_usage(folder: Path, capsys: Capture) -> None:
    """Status 2 with what would be right, and 1 for a file that is not there or not whole."""
    tz.save(weights(), "m.pt")
    assert "invalid choice: 'konvert'" in usage(capsys, "konvert", "m.pt")
    assert "exists; --force overwrites it" in run.says(2, capsys, "convert", "m.pt", "m.pt")
    assert "REGEX=>REPL" in run.says(2, capsys, "convert", "m.pt", "o.pt", "--rename", "a")
    assert "m.xyz" in run.says(2, capsys, "convert", "m.pt", "m.xyz")
    assert "No such file" in run.says(1, capsys, "ls", "n.pt")
    assert "did you mean 'fc.bias'" in run.says(1, capsys, "cat", "m.pt", "fc.bais")
    assert os.listdir() == ["m.pt"]


def test_all_fifteen_are_shown() -> None:
    """Each task has a test, and what the table names is there."""
    assert len(SHOWN) == 15
    for reference in SHOWN:
        file, _, name = reference.rpartition("::")
        tree = ast.parse((ROOT / file if file else Path(__file__)).read_text())
        assert name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
