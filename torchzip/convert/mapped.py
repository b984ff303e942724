"""What a user's ``map`` makes of tensors, kept on disk until the whole plan is known.

A plan needs every name, shape and dtype before the first byte of the target is written, and the
arrays that ``map`` gives are more than memory holds. So each is stored as it comes in a checkpoint
of their own beside the target, which goes when the conversion has ended. Tensors that ``map`` hands
through unread are not in it.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable, Iterable
from typing import Any

from torchzip.checkpoint.incremental import IncrementalWriter
from torchzip.checkpoint.lazy import Checkpoint
from torchzip.checkpoint.lazy_tensor import LazyTensor
from torchzip.files.platform_calls import set_mode

#: (name, tensor) -> the tensors of the output that it gives, as (name, array or LazyTensor)
Map = Callable[[str, LazyTensor], Iterable[tuple[str, Any]]]


class MappedTensors:
    """Calls ``map`` for tensor after tensor; `tensors` has what came of it.

    ``folder`` is where the arrays are kept; None is the one for temporary files.
    """

    def __init__(self, map: Map, folder: str | None) -> None:
        self._map = map
        self._folder = folder
        self._opened = contextlib.ExitStack()
        self._writer: IncrementalWriter | None = None
        self._stored: dict[str, Any] = {}
        self._kept: Checkpoint | None = None
        self._given: dict[str, tuple[str, LazyTensor | None]] = {}

    def add(self, name: str, tensor: LazyTensor) -> None:
        """Call ``map`` for a tensor.

        Raises
        ------
        ValueError
            If a name comes twice.
        TypeError
            If what comes is not a pair of a name and an array or tensor.
        """
        given = self._map(name, tensor)
        if not isinstance(given, Iterable):
            raise TypeError(
                f"map gives {type(given).__name__} for {name!r}; pairs (name, array) were expected"
            )
        for item in given:
            try:
                new, value = item
            except (TypeError, ValueError):
                raise TypeError(
                    f"map gives {type(item).__name__} for {name!r}; (name, array) was expected"
                ) from None
            if not isinstance(new, str):
                raise TypeError(
                    f"map gives {type(new).__name__} as a name for {name!r}; a string was expected"
                )
            if new in self._given:
                raise ValueError(f"map gives {new!r} for {self._given[new][0]!r} and for {name!r}")
            if isinstance(value, LazyTensor):
                self._given[new] = (name, value)
            else:
                self._store(new, value)
                self._given[new] = (name, None)

    def _store(self, name: str, array: Any) -> None:
        if self._writer is None:
            descriptor, self._path = tempfile.mkstemp(
                prefix=".torchzip-", suffix=".tmp", dir=self._folder
            )
            self._opened.callback(os.unlink, self._path)
            set_mode(descriptor, 0o600)  # it is opened again, whatever the umask says
            file = self._opened.enter_context(os.fdopen(descriptor, "wb", buffering=0))
            self._writer = IncrementalWriter(file)
            self._opened.callback(self._writer.close)
        try:
            self._stored[name] = self._writer.store_early(array)
        except (TypeError, ValueError) as error:
            raise type(error)(f"{name}: what map gives: {error}") from None

    def tensors(self) -> dict[str, Any]:
        """Return all tensors that came, by name, in that order."""
        if self._writer is not None:
            self._writer.save(self._stored)
            self._writer.close()
            self._kept = self._opened.enter_context(Checkpoint(self._path))
        return {
            name: tensor if tensor is not None or self._kept is None else self._kept[name]
            for name, (_, tensor) in self._given.items()
        }

    def close(self) -> None:
        """Take away what was kept."""
        self._opened.close()
