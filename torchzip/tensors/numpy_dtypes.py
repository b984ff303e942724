"""Torch's dtype names and numpy's dtypes, each way."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from torchzip.dtypes import ALIASES, DTYPES


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


def parse_torch_dtype(name: str) -> str:
    """Return the canonical name of a torch dtype as users write it.

    >>> parse_torch_dtype("torch.half"), parse_torch_dtype("bfloat16")
    ('float16', 'bfloat16')

    Raises
    ------
    ValueError
        If torch has no such dtype.
    TypeError
        If it is not a string.
    """
    if not isinstance(name, str):
        raise TypeError(f"a dtype is given by torch's name of it, not by a {type(name).__name__}")
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
