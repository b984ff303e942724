"""Tests of `torchzip.checkpoint`, none of which needs torch."""
