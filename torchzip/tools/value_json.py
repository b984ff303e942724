"""A value of any depth as what JSON has: for programs that read a checkpoint's settings."""

from __future__ import annotations

import math
from collections import deque
from typing import Any

import numpy as np

from torchzip.checkpoint.lazy_tensor import LazyTensor, data_of
from torchzip.checkpoint.walk import children, key_text
from torchzip.errors import UnsupportedError, shown
from torchzip.types import ForeignObject, OtherTensor

_MOST_DEPTH = 200
#: Values that are written, and characters of strings; one that is in many places counts each time.
_MOST_VALUES = 1_000_000
_MOST_CHARACTERS = 16_000_000
#: Python refuses to print integers of 4,300 digits and more, which is a little above.
_MOST_BITS = 14_000


def json_value(value: Any) -> Any:
    """Return a value as JSON has it.

    Keys become strings; tuples, sets and deques lists; numbers that JSON lacks, bytes and words of
    torch their repr. A tensor is an object with its dtype and shape, and one of a class that was
    not made has ``class`` and what is in it.

    Raises
    ------
    UnsupportedError
        If it is nested too deeply, leads to itself, or has too many values or characters.

    Examples
    --------
    >>> json_value({"lr": (0.1, float("inf")), 3: np.float32(1)})
    {'lr': [0.1, 'inf'], '3': 1.0}
    """
    return JsonValues().of(value)


class JsonValues:
    """Values as JSON has them. The bounds for one value hold for all of them together."""

    def __init__(self) -> None:
        self._left = _MOST_VALUES
        self._characters = _MOST_CHARACTERS

    def of(self, value: Any) -> Any:
        """Return what `json_value` returns, and raise what it raises."""
        return self._of(value, ())

    def _of(self, value: Any, above: tuple[int, ...]) -> Any:
        """Return a value that is in those of these ids."""
        self._left -= 1
        if self._left < 0 or len(above) > _MOST_DEPTH or id(value) in above:
            reason = "more than a million values" if self._left < 0 else "nested too deeply"
            if id(value) in above:
                reason = "a part of it leads back to itself"
            raise _refused(reason)
        held = data_of(value)
        if isinstance(held, LazyTensor | OtherTensor):
            return {"torch_dtype": held.torch_dtype, "shape": list(held.shape)}
        if isinstance(value, str):
            return self._text(value)
        if isinstance(value, int):
            return value if value.bit_length() < _MOST_BITS else shown(value)
        if value is None:
            return value
        if isinstance(value, float):
            return value if math.isfinite(value) else repr(value)
        if isinstance(value, np.ndarray | np.generic):
            return self._array(np.asarray(value), above)
        inside = (*above, id(value))
        if isinstance(value, dict):
            return {
                self._text(key_text(key)): self._of(item, inside) for key, item in value.items()
            }
        if isinstance(value, list | tuple | deque):
            return [self._of(item, inside) for item in value]
        if isinstance(value, set | frozenset):
            return [self._of(item, inside) for item in sorted(value, key=repr)]
        if isinstance(value, ForeignObject):
            made: dict[str, Any] = {"class": f"{value.module}.{value.name}"}
            made |= {name: self._of(child, inside) for name, _, child in children(value)}
            return made
        return shown(value) if isinstance(value, complex | bytes) else str(value)

    def _text(self, text: str) -> str:
        self._characters -= len(text)
        if self._characters < 0:
            raise _refused("more than 16 million characters")
        return text

    def _array(self, array: Any, above: tuple[int, ...]) -> Any:
        if array.dtype.kind in "biuf" and array.size <= self._left:
            self._left -= array.size
            plain = array.astype(np.float64) if array.dtype.kind == "f" else array
            return _finite(plain.tolist())
        return {"numpy_dtype": str(array.dtype), "shape": list(array.shape)}


def _refused(reason: str) -> UnsupportedError:
    return UnsupportedError(f"a value cannot be written as JSON: {reason}")


def _finite(value: Any) -> Any:
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return repr(value) if isinstance(value, float) and not math.isfinite(value) else value
