"""The page of `torchzip report`: what is in a checkpoint, for a person."""
