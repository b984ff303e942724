"""Tests of `torchzip.pickling`, none of which needs torch."""
