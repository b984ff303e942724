"""Tensors that are not dense, one kind a module: class, checks, dense form, pickle to and from."""
