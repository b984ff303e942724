"""Tests of `torchzip.files`, none of which needs torch."""
