"""Writes small_model.pt with torch 2.13: the state dict of a two-layer transformer, with a tie.

Run it in this folder, with torch installed: ``python make_small_model.py``.
"""

import torch
from torch import nn

torch.manual_seed(1)
model = nn.ModuleDict(
    {
        "embed": nn.Embedding(96, 32),
        "layers": nn.ModuleList(
            nn.TransformerEncoderLayer(32, 4, 64, batch_first=True) for _ in range(2)
        ),
        "norm": nn.LayerNorm(32),
        "head": nn.Linear(32, 96, bias=False),
    }
)
model["head"].weight = model["embed"].weight
torch.save(model.state_dict(), "small_model.pt")
