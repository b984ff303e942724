"""A value that is not a tensor, as lines of text."""

from __future__ import annotations

from collections import deque
from itertools import islice
from typing import Any

import numpy as np

from torchzip.checkpoint.lazy_tensor import LazyTensor, data_of
from torchzip.checkpoint.walk import children
from torchzip.errors import printable, shown
from torchzip.tools.array_text import array_text
from torchzip.types import ForeignObject, OtherTensor

#: Children of a container that are listed, items of a list and characters that are printed.
_MOST_CHILDREN = 100
_MOST_ITEMS = 1000
_MOST_CHARACTERS = 100_000

_SCALARS = (int, float, complex, str, bytes, type(None))


def value_lines(value: Any) -> list[str]:
    """Return a plain value as a person reads it, with nothing in it that moves a cursor.

    Of a container the keys are listed with what is under each, in short.
    """
    if isinstance(value, str):
        return [printable(line) for line in _cut(value).split("\n")]
    if isinstance(value, np.ndarray | np.generic):
        return _array_lines(np.asarray(value))
    if isinstance(value, ForeignObject) or (
        isinstance(value, dict | list | tuple | deque | set | frozenset) and not _is_flat(value)
    ):
        return _container_lines(value)
    return [printable(_cut(_scalar(value)))]


def _array_lines(array: Any) -> list[str]:
    try:
        text = array_text(array)
    except (ArithmeticError, RecursionError, ValueError):  # of what is in an array of objects
        text = shown(array)
    return [printable(line) for line in _cut(text).split("\n")]


def _is_flat(value: Any) -> bool:
    if isinstance(value, dict):
        return not value
    return len(value) <= _MOST_ITEMS and all(isinstance(item, _SCALARS) for item in value)


def _scalar(value: Any) -> str:
    try:
        if isinstance(value, set | frozenset) and value:
            return f"{{{', '.join(sorted(map(repr, value)))}}}"
        if isinstance(value, list | tuple | deque | set | frozenset):
            return repr(tuple(value) if isinstance(value, tuple) else list(value))
        if isinstance(value, dict):
            return "{}"
        # The others are words of torch's, dates, paths, ...
        return repr(value) if isinstance(value, _SCALARS) else str(value)
    except (ArithmeticError, RecursionError, ValueError):  # such as an int of too many digits
        return shown(value)


def _cut(text: str) -> str:
    if len(text) <= _MOST_CHARACTERS:
        return text
    return f"{text[:_MOST_CHARACTERS]}... ({len(text):,} characters)"


def _in_short(value: Any) -> str:
    held = data_of(value)
    if isinstance(held, LazyTensor):
        return f"{held.torch_dtype} {list(held.shape)}"
    return printable(repr(held)) if isinstance(held, OtherTensor) else shown(value)


def _container_lines(value: Any) -> list[str]:
    if isinstance(value, set | frozenset):
        first = [shown(item) for item in islice(value, _MOST_CHILDREN)]
        return [f"{type(value).__name__} of {len(value):,}", *(f"  {item}" for item in first)]
    items = list(islice(children(value), _MOST_CHILDREN + 1))
    is_foreign = isinstance(value, ForeignObject)
    head = shown(value) if is_foreign else f"{type(value).__name__} of {len(value):,}"
    rows = [(printable(key), _in_short(child)) for key, _, child in items[:_MOST_CHILDREN]]
    width = min(max((len(key) for key, _ in rows), default=0), 60)
    lines = [head, *(f"  {key:<{width}}  {text}" for key, text in rows)]
    if len(items) > _MOST_CHILDREN:
        lines.append("  ...")
    return lines
