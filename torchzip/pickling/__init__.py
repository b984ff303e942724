"""Pickle: opcodes <-> plain values and symbolic nodes. Nothing is imported or called."""
