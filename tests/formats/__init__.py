"""Tests of `torchzip.formats`, none of which needs torch."""
