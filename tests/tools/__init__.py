"""Tests of `torchzip.tools`, none of which needs torch."""
