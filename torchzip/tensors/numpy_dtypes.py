"""Torch's dtype names and numpy's dtypes, each way."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from torchzip.dtypes import ALIASES, DTYPES
from torchzip.errors import shown


def _dtype(name: str) -> np.dtype[Any] | None:
    """Return a dtype of numpy or ml_dtypes; None if neither has it, as complex32 before 0.6."""
    try:
        return np.dtype(getattr(ml_dtypes, name, None) or name)
    except TypeError:
        return None


#: By numpy's own names.
_NAMED: dict[str, np.dtype[Any]] = {
    row.numpy: dtype
    for row in DTYPES.values()
    if row.numpy is not None and (dtype := _dtype(row.numpy)) is not None
}
_TO_NUMPY: dict[str, np.dtype[Any]] = {
    row.name: _NAMED.get(row.numpy or "", np.dtype(row.raw)) for row in DTYPES.values()
}
_TO_TORCH: dict[np.dtype[Any], str] = {
    _NAMED[row.numpy]: row.name for row in DTYPES.values() if row.numpy in _NAMED
}


def numpy_dtype(torch_dtype: str) -> np.dtype[Any]:
    """Return the numpy dtype that carries a torch dtype: its own, or one of the same size.

    >>> numpy_dtype("bfloat16"), numpy_dtype("bits16")
    (dtype(bfloat16), dtype('uint16'))
    """
    return _TO_NUMPY[torch_dtype]


def has_numpy_dtype(torch_dtype: str) -> bool:
    """Return whether numpy (with ml_dtypes) has a type of this meaning."""
    return DTYPES[torch_dtype].numpy in _NAMED


def named_dtype(name: str) -> np.dtype[Any] | None:
    """Return the dtype that numpy or ml_dtypes calls so, if torch has it too."""
    return _NAMED.get(name)


def complex_values(raw: NDArray[np.uint8], torch_dtype: str) -> NDArray[np.complex128]:
    """Return the bytes of whole complex elements, of any size, as complex128."""
    half = np.dtype(f"f{DTYPES[torch_dtype].itemsize // 2}")
    return raw.view(half).astype(np.float64).view(np.complex128)


def torch_dtype_of(dtype: np.dtype[Any]) -> str | None:
    """Return torch's name of a numpy dtype in native byte order; None if torch has none."""
    return _TO_TORCH.get(dtype)


def dtype_name(dtype: Any) -> str:
    """Return the name of a dtype of numpy, ml_dtypes or torch; a string as it is.

    >>> dtype_name("half"), dtype_name(np.float16), dtype_name(np.dtype("f8"))
    ('half', 'float16', 'float64')
    """
    if isinstance(dtype, str):
        return dtype
    if type(dtype).__module__ == "torch":
        return str(dtype)
    try:
        found = torch_dtype_of(np.dtype(dtype)) if isinstance(dtype, type | np.dtype) else None
    except TypeError:
        found = None
    if found is None:
        raise TypeError(
            f"a dtype is a string such as 'bfloat16', or a dtype of numpy, not {shown(dtype)}"
        )
    return found


def parse_torch_dtype(dtype: Any) -> str:
    """Return the canonical name of a torch dtype as users give it.

    >>> parse_torch_dtype("torch.half"), parse_torch_dtype(ml_dtypes.bfloat16)
    ('float16', 'bfloat16')

    Raises
    ------
    ValueError
        If torch has no such dtype.
    TypeError
        If it is neither a string nor a dtype of numpy, ml_dtypes or torch.
    """
    name = dtype_name(dtype)
    short = name.removeprefix("torch.")
    short = ALIASES.get(short, short)
    if short not in DTYPES:
        raise ValueError(f"{name!r} is not a torch dtype; try one of {', '.join(DTYPES)}")
    return short


def as_dtype(array: NDArray[Any], torch_dtype: str) -> NDArray[Any] | None:
    """Return numbers as an array of another dtype; None if either has none in numpy."""
    if torch_dtype_of(array.dtype.newbyteorder("=")) is None or not has_numpy_dtype(torch_dtype):
        return None
    return np.asarray(array).view(np.ndarray).astype(numpy_dtype(torch_dtype))
