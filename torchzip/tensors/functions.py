"""Functions of users that compute blocks, and what is checked of what they give."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from torchzip.errors import TorchZipError
from torchzip.tensors.computed import ComputationError
from torchzip.tensors.numpy_dtypes import numpy_dtype, torch_dtype_of
from torchzip.tensors.specs import Shape

Array = NDArray[Any]


@dataclass(frozen=True, slots=True)
class UserFunction:
    """A function of a user, which gets blocks as arguments and gives a block.

    ``row`` is the shape of a row of the result, ``shape`` that of all of it. With ``takes_rows`` it
    gets the rows of the block as the keyword ``rows``.
    """

    function: Callable[..., Any]
    dtype: str
    computed: str
    row: Shape
    shape: Shape
    takes_rows: bool

    def __call__(self, blocks: list[Array], first: int, stop: int) -> Array:
        options = {"rows": (first, stop)} if self.takes_rows else {}
        try:
            made = self.function(*blocks, **options)
        except (TorchZipError, OSError, MemoryError):
            raise
        except Exception as error:
            kind = type(error).__name__
            raise self._error(f"raised {kind}: {error}", first, stop) from error
        if not isinstance(made, np.ndarray | np.generic):
            raise self._error(f"gave {type(made).__name__}, not an array", first, stop)
        expected = (stop - first, *self.row)
        if made.shape != expected:
            raise self._error(
                f"gave the shape {list(made.shape)}; {list(expected)} was expected", first, stop
            )
        given = torch_dtype_of(made.dtype) or str(made.dtype)
        if given not in (self.dtype, self.computed):
            wanted = " or ".join(dict.fromkeys((self.computed, self.dtype)))
            raise self._error(f"gave {given}; {wanted} was expected", first, stop)
        return made.astype(numpy_dtype(self.computed), copy=False)

    def _error(self, what: str, first: int, stop: int) -> ComputationError:
        name = getattr(self.function, "__name__", type(self.function).__name__)
        of = "rows" if self.row or (len(self.shape) == 1 and self.takes_rows) else "elements"
        return ComputationError(
            f"the function {name} {what}, for {of} {first:,} to {stop:,} of a tensor {self.dtype} "
            f"{list(self.shape)}"
        )


def takes_rows(function: Callable[..., Any]) -> bool:
    """Return whether a function has a parameter that is called ``rows``."""
    try:
        found = inspect.signature(function).parameters.get("rows")
    except (TypeError, ValueError):  # one of C that does not say
        return False
    return found is not None and found.kind in (found.KEYWORD_ONLY, found.POSITIONAL_OR_KEYWORD)
