"""Conversion: `plan` says what will be written, `run` writes it."""
