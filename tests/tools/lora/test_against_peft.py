"""Adapters merged here and by ``merge_and_unload`` of peft, on tiny models.

Equal, or at most one unit in the last place in at most 0.1% of the elements of bfloat16 and
float16: sums of products are added up in another order. Skipped without peft and transformers.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import torchzip as tz

torch = pytest.importorskip("torch")
peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")

pytestmark = [pytest.mark.torch, pytest.mark.filterwarnings("ignore")]
Make = Callable[[], Any]


def llama(*, is_tied: bool = False) -> Any:
    config = transformers.LlamaConfig(
        vocab_size=128, hidden_size=64, intermediate_size=96, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=is_tied,
        attention_bias=True,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config)


def tied_llama() -> Any:
    return llama(is_tied=True)


def gpt2() -> Any:
    config = transformers.GPT2Config(
        vocab_size=96, n_embd=48, n_layer=2, n_head=4, n_positions=32, tie_word_embeddings=False
    )
    return transformers.GPT2LMHeadModel(config)


class Convolutions(torch.nn.Module):  # type: ignore[misc, name-defined]
    """A model with convolutions of one and two dimensions."""

    def __init__(self) -> None:
        super().__init__()
        self.flat = torch.nn.Conv1d(8, 12, 3)
        self.first = torch.nn.Conv2d(12, 16, 3)
        self.second = torch.nn.Conv2d(16, 24, 1)
        self.head = torch.nn.Linear(24, 10)


_LLAMA: dict[str, Any] = {"r": 8, "lora_alpha": 16, "target_modules": ["q_proj", "down_proj"]}
_CONV: dict[str, Any] = {"r": 4, "lora_alpha": 6, "target_modules": ["first", "second", "head"]}
_HALF: dict[str, Any] = {"r": 4, "alpha": 8, "target_modules": ["q_proj", "down_proj"]}
_HALF_CONV: dict[str, Any] = {"r": 4, "alpha": 8, "target_modules": ["first", "second", "head"]}
#: The model, the class of the config, its arguments.
CASES: dict[str, tuple[Make, str, dict[str, Any]]] = {
    "plain": (llama, "LoraConfig", _LLAMA),
    "all": (llama, "LoraConfig", {"target_modules": "all-linear", "use_rslora": True}),
    "patterns": (
        llama, "LoraConfig",
        _LLAMA | {"rank_pattern": {"q_proj": 4}, "alpha_pattern": {"layers.1.mlp.down_proj": 32}},
    ),
    "dora": (llama, "LoraConfig", _LLAMA | {"use_dora": True}),
    "lora_bias": (llama, "LoraConfig", _LLAMA | {"target_modules": ["q_proj"], "lora_bias": True}),
    "bias, all": (llama, "LoraConfig", _LLAMA | {"bias": "all"}),
    "bias, lora_only": (llama, "LoraConfig", _LLAMA | {"bias": "lora_only"}),
    "bias, all, of a saved module": (
        Convolutions, "LoraConfig", _CONV | {"bias": "all", "modules_to_save": ["head"]}
        | {"target_modules": ["first"]},
    ),
    "mica": (llama, "LoraConfig", _LLAMA | {"init_lora_weights": "mica"}),
    "parameters": (
        llama, "LoraConfig",
        _LLAMA | {"target_modules": ["q_proj"], "target_parameters": ["down_proj.weight"]},
    ),
    "saved, tied": (
        tied_llama, "LoraConfig",
        _LLAMA | {"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True},
    ),
    "embedding": (
        llama, "LoraConfig",
        _LLAMA | {"target_modules": ["q_proj", "embed_tokens"], "modules_to_save": ["lm_head"]},
    ),
    "dora of an embedding": (
        llama, "LoraConfig", _LLAMA | {"target_modules": ["embed_tokens"], "use_dora": True},
    ),
    "gpt2": (
        gpt2, "LoraConfig", {"target_modules": ["c_attn", "c_proj", "c_fc"], "fan_in_fan_out": True}
    ),
    "gpt2, dora": (
        gpt2, "LoraConfig",
        {"target_modules": ["c_attn", "c_proj"], "fan_in_fan_out": True, "use_dora": True},
    ),
    "convolutions": (Convolutions, "LoraConfig", _CONV),
    "convolution, one axis": (Convolutions, "LoraConfig", _CONV | {"target_modules": ["flat"]}),
    "convolutions, dora": (Convolutions, "LoraConfig", _CONV | {"use_dora": True}),
    "loha": (llama, "LoHaConfig", _HALF),
    "loha, convolutions": (Convolutions, "LoHaConfig", _HALF_CONV),
    "loha, cores": (Convolutions, "LoHaConfig", _HALF_CONV | {"use_effective_conv2d": True}),
    "lokr": (llama, "LoKrConfig", _HALF),
    "lokr, both": (llama, "LoKrConfig", _HALF | {"decompose_both": True, "r": 2}),
    "lokr, alphas": (llama, "LoKrConfig", _HALF | {"alpha_pattern": {"q_proj": 3}}),
    "lokr, convolutions": (Convolutions, "LoKrConfig", _HALF_CONV),
    "lokr, cores": (
        Convolutions, "LoKrConfig", _HALF_CONV | {"use_effective_conv2d": True, "r": 2},
    ),
}  # fmt: skip


def saved(folder: Path, case: str, dtype: str) -> tuple[Path, list[Path], Make]:
    """Write a base and an adapter with random factors; return what loads the base again."""
    make, kind, options = CASES[case]
    torch.manual_seed(0)
    model = make().to(getattr(torch, dtype))
    state = {name: each.clone() for name, each in model.state_dict().items()}
    torch.save(state, folder / "base.pt")

    def base() -> Any:
        fresh = make().to(getattr(torch, dtype))
        fresh.load_state_dict(state)
        return fresh

    adapted = peft.get_peft_model(base(), getattr(peft, kind)(**options))
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.05)
    adapted.save_pretrained(folder / "adapter")
    return folder / "base.pt", [folder / "adapter"], base


def compare(path: Path, model: Any, dtype: str) -> None:
    """Compare a file with a model of peft after merging."""
    want = model.state_dict()
    with tz.lazy_load(path) as made:
        assert set(made) == set(want)
        for name, tensor in want.items():
            got = torch.from_numpy(made[name].to("float32").numpy())
            if dtype == "float32":
                torch.testing.assert_close(got, tensor.float(), rtol=1e-6, atol=1e-7)
                continue
            away = (ordered(got.to(tensor.dtype)) - ordered(tensor)).abs()
            assert int(away.max()) <= 1, name
            assert int((away > 0).sum()) <= max(0.001 * away.numel(), 1), name


def ordered(tensor: Any) -> Any:
    """Return ints that differ by one where floats of 16 bits are next to each other."""
    raw = tensor.contiguous().view(torch.int16).int()
    return torch.where(raw < 0, -(raw & 0x7FFF), raw)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize("case", CASES)
def test_merged(case: str, dtype: str, tmp_path: Path) -> None:
    """Every kind, for a base of each dtype."""
    base, adapters, load = saved(tmp_path, case, dtype)
    merged = tz.tools.merge_lora(base, adapters, tmp_path / "o.pt")
    assert merged.left_out == {}
    want = peft.PeftModel.from_pretrained(load(), adapters[0]).merge_and_unload()
    compare(tmp_path / "o.pt", want, dtype)


@pytest.mark.parametrize("stored", ["bfloat16", "float16"])
def test_factors_of_16_bits(stored: str, tmp_path: Path) -> None:
    """Peft makes float32 of them when it reads them, and so they are here."""
    base, (adapter,), load = saved(tmp_path, "plain", "bfloat16")
    tz.convert(
        adapter / "adapter_model.safetensors", adapter / "adapter_model.safetensors",
        dtype=stored, overwrite=True,
    )  # fmt: skip
    tz.tools.merge_lora(base, adapter, tmp_path / "o.pt")
    want = peft.PeftModel.from_pretrained(load(), adapter).merge_and_unload()
    compare(tmp_path / "o.pt", want, "bfloat16")


def test_two_adapters(tmp_path: Path) -> None:
    """Added up and rounded once: in float32 that is what peft makes one after another."""
    base, (first,), load = saved(tmp_path, "plain", "float32")
    (tmp_path / "other").mkdir()
    _, (second,), _ = saved(tmp_path / "other", "patterns", "float32")
    tz.tools.merge_lora(base, [first, second], tmp_path / "o.pt")
    model = peft.PeftModel.from_pretrained(load(), first).merge_and_unload()
    want = peft.PeftModel.from_pretrained(model, second).merge_and_unload()
    compare(tmp_path / "o.pt", want, "float32")


def test_a_weight(tmp_path: Path) -> None:
    """Half of an adapter is the mean of the base and the base with all of it."""
    base, (adapter,), load = saved(tmp_path, "plain", "float32")
    tz.tools.merge_lora(base, [adapter], tmp_path / "o.pt", weights=[0.5])
    whole = peft.PeftModel.from_pretrained(load(), adapter).merge_and_unload().state_dict()
    with tz.lazy_load(tmp_path / "o.pt") as made:
        for name, tensor in load().state_dict().items():
            np.testing.assert_allclose(
                made[name].numpy(), ((tensor + whole[name]) / 2).numpy(), rtol=1e-5, atol=1e-6
            )


def test_model_of_transformers(tmp_path: Path) -> None:
    """What is written loads, and gives the logits of the merged model."""
    base, (adapter,), load = saved(tmp_path, "plain", "float32")
    load().save_pretrained(tmp_path / "base")
    (tmp_path / "merged").mkdir()
    tz.tools.merge_lora(tmp_path / "base", adapter, tmp_path / "merged" / "model.safetensors")
    config = (tmp_path / "base" / "config.json").read_bytes()
    (tmp_path / "merged" / "config.json").write_bytes(config)
    made = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    want = peft.PeftModel.from_pretrained(load(), adapter).merge_and_unload()
    tokens = torch.arange(10)[None]
    with torch.no_grad():
        torch.testing.assert_close(made(tokens).logits, want(tokens).logits)
    assert base.exists()
