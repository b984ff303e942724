"""Writes lightning.ckpt with Lightning 2.6 and torch 2.13: a training run that was stopped.

Run it in this folder, with both installed: ``python make_lightning_checkpoint.py``.
"""

import argparse

import lightning
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


class Classifier(lightning.LightningModule):  # type: ignore[misc]
    """Two linear layers."""

    def __init__(self, config: argparse.Namespace) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3))
        self.lr = config.lr

    def training_step(self, batch: list[torch.Tensor], index: int) -> torch.Tensor:
        """Return the loss."""
        values, classes = batch
        return nn.functional.cross_entropy(self.model(values), classes)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return Adam."""
        return torch.optim.AdamW(self.parameters(), self.lr)


lightning.seed_everything(1)
data = TensorDataset(torch.randn(32, 8), torch.randint(0, 3, (32,)))
trainer = lightning.Trainer(
    max_epochs=2, logger=False, enable_checkpointing=False, accelerator="cpu"
)
trainer.fit(Classifier(argparse.Namespace(lr=0.01, name="two layers")), DataLoader(data, 8))
trainer.save_checkpoint("lightning.ckpt")
