"""The dense tensors that a sparse, quantized or nested tensor is made of, and its sizes.

They are arrays, TypedArrays or LazyTensors.
"""

from __future__ import annotations

import errno
import os
from typing import Any

import numpy as np
from numpy.typing import NDArray

from torchzip.dtypes import DTYPES
from torchzip.errors import MAX_NDIM, TensorError, shown, too_many_dimensions
from torchzip.leaf_types import TypedArray
from torchzip.limits import is_number
from torchzip.tensors.numpy_dtypes import torch_dtype_of

#: What a size, a stride or an int of 64 bits is less than.
MAX = 1 << 63

Array = NDArray[Any]


def is_part(value: Any) -> bool:
    """Return whether the value of a field is a tensor, not a number or a list of numbers."""
    return value is not None and not isinstance(value, int | float | list)


def bare(part: Any) -> Any:
    """Return a part without the name of its dtype that a TypedArray adds."""
    return part.array if isinstance(part, TypedArray) else part


def as_array(part: Any) -> Array:
    """Return a part as an array, which is read if it is a LazyTensor."""
    return np.asarray(bare(part))


def shape_of(part: Any) -> tuple[int, ...]:
    """Return the shape of a part that is an array or a tensor, as `dtype_of` sees to."""
    shape: tuple[int, ...] = bare(part).shape
    return shape


def dtype_name(part: Any) -> str:
    """Return the name of the dtype of a part, which torch may lack."""
    name = getattr(part, "torch_dtype", None)
    if name is None:  # numpy and ml_dtypes call a dtype as torch does
        name = getattr(part.dtype, "name", None) or str(part.dtype).removeprefix("torch.")
    return str(name)


def dtype_of(part: Any) -> str:
    """Return torch's name of the dtype of a part, or raise TensorError if torch has no such."""
    name = getattr(part, "torch_dtype", None)
    if name is None and isinstance(part, np.ndarray):
        name = torch_dtype_of(part.dtype.newbyteorder("="))
    if name not in DTYPES:
        what = part.dtype if isinstance(part, np.ndarray) else type(part).__name__
        raise TensorError(f"a part of a tensor is of dtype {what}, which torch does not have")
    return str(name)


def sizes_of(value: Any, what: str) -> tuple[int, ...]:
    """Return a shape or stride as a tuple, or raise TensorError if torch can have no such."""
    if not isinstance(value, tuple | list) or not all(map(is_number, value)):
        raise TensorError(f"{what} is {shown(value)}; a tuple of ints from 0 to 2**63 was expected")
    if len(value) > MAX_NDIM:
        raise too_many_dimensions(what, len(value))
    return tuple(value)


def check_memory(nbytes: int, what: str) -> None:
    """Raise OSError if an array is larger than the memory of the machine, where that is known.

    Systems that hand out more memory than they have would end the process later.
    """
    try:
        available = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        available = 1 << 62
    if nbytes > available > 0:
        raise OSError(
            errno.ENOMEM,
            f"{what} does not fit: it needs {nbytes:,} bytes, the machine has {available:,}. "
            "Take its parts instead",
        )
