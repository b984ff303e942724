"""Tests of `torchzip.tensors`, none of which needs torch."""
