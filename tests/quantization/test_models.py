"""Tiny models as gpt-oss and DeepSeek are published: made plain here, they load in transformers.

Their logits are those of the weights as transformers dequantizes them on a CPU. Skipped without it.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import torchzip as tz
from tests.quantization.packers import Array
from torchzip.quantization.arithmetic import FP4_VALUES

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytestmark = [pytest.mark.torch, pytest.mark.filterwarnings("ignore")]


def fp4(weight: Array) -> tuple[Array, Array]:
    """Return blocks and scales of gpt-oss for experts [.., in, out]."""
    rows = weight.swapaxes(-1, -2).astype(np.float32)  # [.., out, in]
    groups = rows.reshape(*rows.shape[:-1], -1, 32)
    exponent = np.ceil(np.log2(np.abs(groups).max(-1, keepdims=True) / 6)).astype(np.int32)
    scaled = groups / np.ldexp(np.float32(1), exponent)
    codes = np.abs(scaled[..., None] - FP4_VALUES).argmin(-1).astype(np.uint8)
    return codes[..., ::2] | codes[..., 1::2] << 4, (exponent[..., 0] + 127).astype(np.uint8)


def fp8(weight: Array) -> tuple[Array, Array]:
    """Return codes and scales of DeepSeek for a matrix, of any size."""
    rows, columns = (-(-size // 128) for size in weight.shape)
    scale = np.ones((rows, columns), np.float32)
    codes = np.zeros(weight.shape, ml_dtypes.float8_e4m3fn)
    for i in range(rows):
        for j in range(columns):
            block = np.s_[i * 128 : (i + 1) * 128, j * 128 : (j + 1) * 128]
            values = weight[block].astype(np.float32)
            scale[i, j] = np.abs(values).max() / 448
            codes[block] = (values / scale[i, j]).astype(ml_dtypes.float8_e4m3fn)
    return codes, scale


def gpt_oss() -> Any:
    config = transformers.GptOssConfig(
        vocab_size=128, hidden_size=64, intermediate_size=64, num_hidden_layers=2, head_dim=16,
        num_attention_heads=4, num_key_value_heads=2, num_local_experts=4, num_experts_per_tok=2,
        max_position_embeddings=128,
    )  # fmt: skip
    return transformers.GptOssForCausalLM(config)


def deepseek() -> Any:
    config = transformers.DeepseekV3Config(
        vocab_size=128, hidden_size=256, intermediate_size=384, moe_intermediate_size=128,
        num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=4, n_routed_experts=8,
        n_group=2, topk_group=1, num_experts_per_tok=2, n_shared_experts=1, kv_lora_rank=128,
        q_lora_rank=128, qk_rope_head_dim=64, qk_nope_head_dim=64, v_head_dim=64,
        first_k_dense_replace=1, max_position_embeddings=128,
    )  # fmt: skip
    return transformers.DeepseekV3ForCausalLM(config)


def quantized(model: Any, folder: Path, kind: str) -> Path:
    """Write a model as it is published; its routers, norms and embeddings stay as they are."""
    plain = folder / "original"
    model.to(torch.bfloat16).save_pretrained(plain)
    parts: dict[str, Any] = {}
    with tz.lazy_load(plain) as held:
        for name, tensor in held.items():
            array = tensor.numpy()
            if kind == "mxfp4" and name.endswith(("gate_up_proj", "down_proj")):
                parts[f"{name}_blocks"], parts[f"{name}_scales"] = fp4(array)
            elif kind == "fp8" and name.endswith("proj.weight"):
                parts[name], parts[f"{name}_scale_inv"] = fp8(array)
            else:
                parts[name] = array
    made = folder / "quantized"
    made.mkdir()
    tz.convert(parts, made / "model.safetensors")
    config = json.loads((plain / "config.json").read_text())
    config["quantization_config"] = {
        "mxfp4": {"quant_method": "mxfp4", "modules_to_not_convert": []},
        "fp8": {
            "quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic",
            "weight_block_size": [128, 128],
        },
    }[kind]  # fmt: skip
    (made / "config.json").write_text(json.dumps(config))
    return made


def logits(model: Any) -> Any:
    with torch.no_grad():
        return model.eval()(torch.arange(20)[None]).logits


@pytest.mark.parametrize(("make", "kind"), [(gpt_oss, "mxfp4"), (deepseek, "fp8")])
def test_model(make: Any, kind: str, tmp_path: Path) -> None:
    """From quantized to plain to transformers."""
    torch.manual_seed(0)
    source = quantized(make(), tmp_path, kind)
    plain = tmp_path / "plain"
    report = tz.convert(source, f"{plain}/", dequantize=True, max_shard_size="500KB")
    assert report.dequantized
    assert [os.path.basename(path) for path in report.copied] == ["config.json"]
    ours = transformers.AutoModelForCausalLM.from_pretrained(plain, dtype=torch.bfloat16)
    options = {"mxfp4": "Mxfp4Config", "fp8": "FineGrainedFP8Config"}[kind]
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        source, dtype=torch.bfloat16,
        quantization_config=getattr(transformers, options)(dequantize=True),
    )  # fmt: skip
    own, other = ours.state_dict(), theirs.state_dict()
    assert set(own) == set(other)
    for name, tensor in own.items():
        torch.testing.assert_close(tensor, other[name], rtol=0, atol=0, msg=name)
    torch.testing.assert_close(logits(ours), logits(theirs), rtol=0, atol=0)
