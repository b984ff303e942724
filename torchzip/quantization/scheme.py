"""What a scheme is: how its weights are named, and what makes plain ones of them.

A scheme is a row: how the name of its codes ends, what ends the names of the tensors beside them
with the same beginning, and a function that makes the weight. `table` has all rows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from torchzip.checkpoint.lazy_tensor import LazyTensor
from torchzip.errors import FormatError
from torchzip.quantization.arithmetic import Array, Part
from torchzip.quantization.configs import QuantizationConfig
from torchzip.tensors.specs import TensorSpec

FLOAT8 = ("float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz")
#: What is read at once, to know what a weight is: shapes, and the JSON of bitsandbytes.
_MOST_READ = 1 << 16


class Plain(NamedTuple):
    """What a quantized weight is. ``make`` may read the few bytes that say so.

    ``scheme`` is "fp8, 128x128 blocks", say; ``dtype`` that of the weight, None as long as only a
    tensor says it.
    """

    scheme: str
    dtype: str | None
    make: Callable[[], TensorSpec]

    @property
    def text(self) -> str:
        return self.scheme if self.dtype is None else f"{self.scheme}, of {self.dtype}"


@dataclass(frozen=True, slots=True)
class Found:
    """A weight that a scheme has recognised: its parts by the endings of their names.

    ``codes`` is one of them, ``module`` what the weight's name has before its last component.
    """

    codes: Part
    parts: Mapping[str, Part]
    module: str
    config: QuantizationConfig
    #: Ask for the layout that a loader wants which does not transpose experts (gpt-oss).
    transposes: bool = True


@dataclass(frozen=True, slots=True)
class Scheme:
    """One scheme. Names end in ``codes``, or in what ``needs`` and ``may_have`` list instead.

    ``dtypes`` are those of the codes, ``weight`` is how the name of the weight ends, and
    ``dropped`` lists what is of no use for it.
    """

    codes: str
    dtypes: tuple[str, ...]
    needs: tuple[str, ...]
    make: Callable[[Found], Plain]
    may_have: tuple[str, ...] = ()
    dropped: tuple[str, ...] = ()
    weight: str = ""


def read_small(part: Part) -> Array:
    """Read a tensor of a few numbers.

    Raises
    ------
    FormatError
        If it has more than that.
    """
    tensor = LazyTensor(part.spec)
    if tensor.nbytes > _MOST_READ:
        raise FormatError(f"{part} says what a weight is; fewer numbers were expected")
    return np.asarray(tensor.numpy())
