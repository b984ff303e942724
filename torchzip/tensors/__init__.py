"""Tensors: symbolic nodes <-> specs <-> numpy arrays."""
