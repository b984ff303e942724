"""Tests of `torchzip.container`, none of which needs torch."""
