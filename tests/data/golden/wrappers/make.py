"""Writes the state dicts of this folder with torchao."""

from __future__ import annotations


def main() -> None:
    import torch
    import torchao.quantization
    from torch import nn

    for name in ("Float8WeightOnlyConfig", "Int8WeightOnlyConfig"):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(128, 64), nn.Linear(64, 128, bias=False))
        model = model.to(torch.bfloat16)
        torchao.quantization.quantize_(model, getattr(torchao.quantization, name)())
        torch.save(model.state_dict(), f"{name}.pt")


if __name__ == "__main__":
    main()
