"""Torch's dtype names and numpy's dtypes, each way."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np

from torchzip.dtypes import ALIASES, DTYPES, NUMPY


def _dtype(name: str) -> np.dtype[Any]:
    return np.dtype(getattr(ml_dtypes, name, None) or name)


_TO_NUMPY: dict[str, np.dtype[Any]] = {
    row.name: _dtype(row.numpy or row.raw) for row in DTYPES.values()
}
_TO_TORCH: dict[np.dtype[Any], str] = {_dtype(name): row.name for name, row in NUMPY.items()}


def numpy_dtype(torch_dtype: str) -> np.dtype[Any]:
    """Return the numpy dtype that carries a torch dtype: its own, or one of the same size.

    >>> numpy_dtype("bfloat16"), numpy_dtype("bits16")
    (dtype(bfloat16), dtype('uint16'))
    """
    return _TO_NUMPY[torch_dtype]


def has_numpy_dtype(torch_dtype: str) -> bool:
    """Return whether numpy (with ml_dtypes) has a type of this meaning."""
    return DTYPES[torch_dtype].numpy is not None


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
        If it is no text.
    """
    if not isinstance(name, str):
        raise TypeError(f"a dtype is given by torch's name of it, not by a {type(name).__name__}")
    short = name.removeprefix("torch.")
    short = ALIASES.get(short, short)
    if short not in DTYPES:
        raise ValueError(f"{name!r} is no torch dtype; try one of {', '.join(DTYPES)}")
    return short
