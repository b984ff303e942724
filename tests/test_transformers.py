"""Shards with an index, as transformers reads them. Needs transformers, which is large."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import torchzip as tz

pytestmark = [pytest.mark.torch, pytest.mark.filterwarnings("ignore")]


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
@pytest.mark.parametrize("size", ["100KB", None])
def test_from_pretrained(torch: Any, tmp_path: Path, name: str, size: str | None) -> None:
    """A LLaMA with tied embeddings comes back whole, with nothing missing or left over."""
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        hidden_size=64, intermediate_size=128, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, vocab_size=200, tie_word_embeddings=True,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config)
    torch.save(model.state_dict(), tmp_path / "m.pt")
    folder = tmp_path / "folder"
    config.save_pretrained(folder)
    report = tz.convert(tmp_path / "m.pt", folder / name, max_shard_size=size)
    assert (len(report.files) > 2) is (size is not None)
    loaded, info = transformers.LlamaForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not any(info.values())
    state = loaded.state_dict()
    assert all(torch.equal(state[key], value) for key, value in model.state_dict().items())


@pytest.mark.parametrize("dtype", [None, "float16"])
def test_a_converted_directory(torch: Any, tmp_path: Path, dtype: str | None) -> None:
    """Shards of .bin with a config become a directory that loads without a further step."""
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        hidden_size=64, intermediate_size=128, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, vocab_size=200, tie_word_embeddings=True,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config)
    torch.save(model.state_dict(), tmp_path / "m.pt")
    source, out = tmp_path / "hf", tmp_path / "out"
    model.generation_config.save_pretrained(source)
    config.architectures = ["LlamaForCausalLM"]
    config.save_pretrained(source)
    tz.convert(tmp_path / "m.pt", source / "pytorch_model.bin.index.json", max_shard_size="200KB")
    report = tz.convert(source, f"{out}/", dtype=dtype)
    assert sorted(Path(path).name for path in report.copied) == [
        "config.json", "generation_config.json",
    ]  # fmt: skip
    loaded, info = transformers.AutoModelForCausalLM.from_pretrained(
        out, output_loading_info=True, dtype=torch.float16 if dtype else torch.float32
    )
    assert not any(info.values())
    state = loaded.state_dict()
    for key, value in model.state_dict().items():
        assert torch.equal(state[key], value.half() if dtype else value)
    assert transformers.AutoModel.from_pretrained(out).config.hidden_size == 64
