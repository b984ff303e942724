"""Quantized weights: how each scheme is recognised, and the plain weights that it stands for."""
