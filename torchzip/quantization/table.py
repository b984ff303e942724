"""All schemes. The first whose names and dtypes are there takes a weight."""

from __future__ import annotations

from torchzip.quantization import blocks
from torchzip.quantization.scheme import Scheme

SCHEMES: tuple[Scheme, ...] = (*blocks.SCHEMES,)
