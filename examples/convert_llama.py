"""Converts a Hugging Face LLaMA folder (.bin shards) to one lit-llama file, block by block.

Run it as ``python examples/convert_llama.py SRC_DIR OUT.pt``; torch is not needed.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import torchzip
from torchzip import lazy

RENAMES = {
    "model.embed_tokens": "transformer.wte",
    "model.layers": "transformer.h",
    "model.norm.weight": "transformer.ln_f.scale",
    "input_layernorm.weight": "rms_1.scale",
    "post_attention_layernorm.weight": "rms_2.scale",
    "self_attn.q_proj": "attn.c_attn",  # q, k and v in one tensor
    "self_attn.o_proj": "attn.c_proj",
    "mlp.gate_proj": "mlp.c_fc1",
    "mlp.up_proj": "mlp.c_fc2",
    "mlp.down_proj": "mlp.c_proj",
}
LEFT_OUT = "k_proj.weight", "v_proj.weight", "inv_freq"  # go with q; are computed by lit-llama


def interleaved(weight: Any, head_size: int) -> Any:
    # Rotary embeddings turn row i of a head together with row i + half in Hugging Face's q and k,
    # but row 2i with row 2i + 1 in Meta's and lit-llama's.
    halves = weight.reshape(-1, 2, head_size // 2, weight.shape[1])
    return halves.permute(0, 2, 1, 3).reshape(weight.shape)


def convert(source: Path, target: Path, dtype: str) -> None:
    config = json.loads((source / "config.json").read_text())
    size = config["hidden_size"] // config["num_attention_heads"]
    with torchzip.lazy_load(source) as hf:
        state = {}
        for name in (name for name in hf if not name.endswith(LEFT_OUT)):
            weight = hf[name]
            if "q_proj" in name:
                k, v = (hf[name.replace("q_proj", x)] for x in ("k_proj", "v_proj"))
                weight = lazy.cat([interleaved(weight, size), interleaved(k, size), v])
            for theirs, ours in RENAMES.items():
                name = name.replace(theirs, ours)
            state[name] = weight
        torchzip.convert(state, target, dtype=dtype, overwrite=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("source", "target"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--dtype", default="bfloat16")
    convert(**vars(parser.parse_args()))
