"""Times and memory of torchzip beside torch and other tools: ``python -m benchmarks``."""
