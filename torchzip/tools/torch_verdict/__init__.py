"""Whether a checkpoint is whole, and what torch.load would do with it."""
