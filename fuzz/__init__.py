"""Fuzzing: any bytes give a value, a `TorchZipError` or an `OSError`, within limits."""
