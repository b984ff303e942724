"""All schemes. The first whose names and dtypes are there takes a weight."""

from __future__ import annotations

from torchzip.quantization import bitsandbytes, blocks, fp4, packed_ints
from torchzip.quantization.scheme import Scheme

SCHEMES: tuple[Scheme, ...] = (
    *bitsandbytes.SCHEMES,
    *fp4.SCHEMES,
    *packed_ints.SCHEMES,
    *blocks.SCHEMES,
)
