"""Containers: bytes <-> named records. No tensors here."""
