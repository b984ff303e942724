"""The example for LLaMA: the same file as in torch, in constant memory."""

from __future__ import annotations

import importlib.util
import json
import tracemalloc
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

import torchzip as tz
from tests.child_process import python

EXAMPLE = Path(__file__).parent.parent / "examples" / "convert_llama.py"

HEADS = 4


def weights(hidden: int, layers: int, key_value_heads: int = HEADS) -> dict[str, Any]:
    """Return a small LLaMA in Hugging Face's layout, of float16, by its names there."""
    rng = np.random.default_rng(3)

    def weight(*shape: int) -> Any:
        return rng.standard_normal(shape, np.float32).astype(np.float16)

    head_size, inner, vocabulary = hidden // HEADS, hidden * 8 // 3 + 1, 97
    state = {"model.embed_tokens.weight": weight(vocabulary, hidden)}
    for i in range(layers):
        layer = f"model.layers.{i}."
        state |= {
            layer + "self_attn.q_proj.weight": weight(hidden, hidden),
            layer + "self_attn.k_proj.weight": weight(key_value_heads * head_size, hidden),
            layer + "self_attn.v_proj.weight": weight(key_value_heads * head_size, hidden),
            layer + "self_attn.o_proj.weight": weight(hidden, hidden),
            layer + "self_attn.rotary_emb.inv_freq": weight(head_size // 2).astype(np.float32),
            layer + "mlp.gate_proj.weight": weight(inner, hidden),
            layer + "mlp.up_proj.weight": weight(inner, hidden),
            layer + "mlp.down_proj.weight": weight(hidden, inner),
            layer + "input_layernorm.weight": weight(hidden),
            layer + "post_attention_layernorm.weight": weight(hidden),
        }
    state["model.norm.weight"] = weight(hidden)
    state["lm_head.weight"] = weight(vocabulary, hidden)
    return state


def write_folder(folder: Path, state: dict[str, Any], save: Any) -> None:
    """Write the folder as it comes from the hub: two shards, split inside a layer, and JSON."""
    names = list(state)
    cut = len(names) // 2 - 2
    weight_map: dict[str, str] = {}
    for number, part in enumerate((names[:cut], names[cut:]), 1):
        file = f"pytorch_model-0000{number}-of-00002.bin"
        save({name: state[name] for name in part}, folder / file)
        weight_map |= dict.fromkeys(part, file)
    index = {"metadata": {"total_size": 0}, "weight_map": weight_map}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    config = {
        "hidden_size": len(state["model.norm.weight"]),
        "num_attention_heads": HEADS,
        "num_hidden_layers": 3,
    }
    (folder / "config.json").write_text(json.dumps(config))


@pytest.fixture(scope="module")
def example() -> ModuleType:
    spec = importlib.util.spec_from_file_location("convert_llama", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def converted_by_torch(torch: Any, state: dict[str, Any], layers: int, dtype: Any) -> Any:
    """Return lit-llama's state dict, by torch and by the words of its own converter."""

    def permuted(weight: Any) -> Any:
        rows, columns = weight.shape
        pairs = weight.view(HEADS, 2, rows // HEADS // 2, columns).transpose(1, 2)
        return pairs.reshape(rows, columns)

    found = {
        "transformer.wte.weight": state["model.embed_tokens.weight"],
        "transformer.ln_f.scale": state["model.norm.weight"],
        "lm_head.weight": state["lm_head.weight"],
    }
    for i in range(layers):
        block, layer = f"transformer.h.{i}.", f"model.layers.{i}."
        q, k, v, o = (state[f"{layer}self_attn.{part}_proj.weight"] for part in "qkvo")
        found |= {
            block + "rms_1.scale": state[layer + "input_layernorm.weight"],
            block + "attn.c_attn.weight": torch.cat([permuted(q), permuted(k), v]),
            block + "attn.c_proj.weight": o,
            block + "rms_2.scale": state[layer + "post_attention_layernorm.weight"],
            block + "mlp.c_fc1.weight": state[layer + "mlp.gate_proj.weight"],
            block + "mlp.c_fc2.weight": state[layer + "mlp.up_proj.weight"],
            block + "mlp.c_proj.weight": state[layer + "mlp.down_proj.weight"],
        }
    return {name: tensor.to(dtype) for name, tensor in found.items()}


@pytest.mark.torch
@pytest.mark.parametrize("options", [[], ["--dtype", "float32"]])
def test_equals_torch(torch: Any, tmp_path: Path, options: list[str]) -> None:
    """From torch's shards, and read by torch, it is bit for bit what torch makes of them."""
    state = {name: torch.from_numpy(array) for name, array in weights(64, 3).items()}
    write_folder(tmp_path, state, torch.save)
    python("-W", "error", EXAMPLE, tmp_path, tmp_path / "lit.pt", *options)
    found = torch.load(tmp_path / "lit.pt", weights_only=True)
    dtype = torch.float32 if options else torch.bfloat16
    expected = converted_by_torch(torch, state, 3, dtype)
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype == dtype, name
        assert found[name].shape == tensor.shape, name
        assert found[name].is_contiguous()
        bits = [each.contiguous().view(torch.uint8) for each in (found[name], tensor)]
        assert torch.equal(*bits), name


@pytest.mark.parametrize("key_value_heads", [HEADS, 2])
def test_attention_is_the_same(tmp_path: Path, example: ModuleType, key_value_heads: int) -> None:
    """Scores by Hugging Face's rotary embedding are those by lit-llama's, after the conversion."""
    state = weights(64, 1, key_value_heads)
    write_folder(tmp_path, state, tz.save)
    example.convert(tmp_path, tmp_path / "lit.pt", "float32")
    fused = tz.load(tmp_path / "lit.pt")["transformer.h.0.attn.c_attn.weight"]
    size, rows = 16, key_value_heads * 16
    rng = np.random.default_rng(4)
    at, to = rng.standard_normal((2, 64))
    angles = np.outer([3.0, 8.0], 10000.0 ** (-np.arange(size // 2) / (size // 2)))

    def by_halves(heads: Any, angle: Any) -> Any:
        left, right = heads[:, : size // 2], heads[:, size // 2 :]
        cos, sin = np.cos(angle), np.sin(angle)
        return np.concatenate([left * cos - right * sin, right * cos + left * sin], 1)

    def by_pairs(heads: Any, angle: Any) -> Any:
        even, odd = heads[:, 0::2], heads[:, 1::2]
        cos, sin = np.cos(angle), np.sin(angle)
        return np.stack([even * cos - odd * sin, odd * cos + even * sin], 2).reshape(heads.shape)

    def scores(q: Any, k: Any, rotate: Any) -> Any:
        turned = rotate((q @ at).reshape(-1, size), angles[0])
        other = rotate((k @ to).reshape(-1, size), angles[1])
        return np.einsum("hi,hi->h", turned, np.repeat(other, HEADS // key_value_heads, 0))

    layer = "model.layers.0.self_attn."
    q, k = (state[f"{layer}{part}_proj.weight"].astype(np.float64) for part in "qk")
    expected = scores(q, k, by_halves)
    found = scores(fused[:64].astype(np.float64), fused[64 : 64 + rows], by_pairs)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    np.testing.assert_array_equal(fused[64 + rows :], state[layer + "v_proj.weight"])


@pytest.mark.long
def test_memory_is_constant(tmp_path: Path, example: ModuleType) -> None:
    """The peak stays the same with four times the layers, and with larger tensors."""
    peaks: list[int] = []
    for layers, hidden in ((2, 512), (2, 512), (8, 512), (1, 2048)):  # one for what is made once
        folder = tmp_path / f"{len(peaks)}"
        folder.mkdir()
        state = weights(hidden, layers)
        write_folder(folder, state, tz.save)
        model_nbytes = sum(array.nbytes for array in state.values())
        del state
        tracemalloc.start()
        example.convert(folder, folder / "lit.pt", "bfloat16")
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert layers == 2 or model_nbytes > 40_000_000
    assert peaks[2] < peaks[1] + 1_000_000
    assert peaks[3] < 45_000_000  # of which the windows on q and k, in another order, are most


def test_short() -> None:
    """It fits on a page, which is what it is to show."""
    assert len(EXAMPLE.read_text().splitlines()) < 60
