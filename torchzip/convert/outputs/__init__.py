"""The formats that `convert` writes: one module each, listed in `registry`."""
