"""Tests of checkpoints behind URLs. Servers are on loopback; stores and clusters may be missing."""
