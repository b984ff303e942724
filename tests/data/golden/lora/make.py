"""Writes the models of this folder with transformers and peft."""

from __future__ import annotations

from typing import Any

CONFIGS: dict[str, dict[str, Any]] = {
    "plain": {"target_modules": ["q_proj", "v_proj", "down_proj"]},
    "dora": {"target_modules": ["q_proj", "v_proj"], "use_dora": True},
    "emb": {"target_modules": ["q_proj", "embed_tokens"], "modules_to_save": ["lm_head"]},
}


def main() -> None:
    import torch
    from peft import LoraConfig, PeftModel, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    def loaded() -> Any:
        return LlamaForCausalLM.from_pretrained("base", dtype=torch.bfloat16)

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=128, hidden_size=64, intermediate_size=128, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=False,
    )  # fmt: skip
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained("base", max_shard_size="60KB")
    for name, options in CONFIGS.items():
        model = get_peft_model(loaded(), LoraConfig(r=8, lora_alpha=16, **options))
        for parameter in model.parameters():
            if parameter.requires_grad:
                torch.nn.init.normal_(parameter, std=0.05)
        model.save_pretrained(name)
        merged = PeftModel.from_pretrained(loaded(), name).merge_and_unload()
        merged.save_pretrained(f"{name}_merged")


if __name__ == "__main__":
    main()
