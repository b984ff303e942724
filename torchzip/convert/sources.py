"""What `convert` reads from: a file, a checkpoint that is open, or a mapping of tensors."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

from torchzip.checkpoint.lazy import Checkpoint, checkpoint_of
from torchzip.errors import shown
from torchzip.files.source import File
from torchzip.formats.base import Container, Contents, MakeFactory, RecordCheck
from torchzip.lazy import tensor_named
from torchzip.limits import Limits

#: What `convert` takes as its source.
Source = File | Checkpoint | Mapping[str, Any]


@contextlib.contextmanager
def opened(src: Source, limits: Limits | None, *, optimizer: bool = False) -> Iterator[Checkpoint]:
    """Give the checkpoint of a source. One that was open stays open."""
    if not isinstance(src, Mapping):
        with Checkpoint(src, optimizer=optimizer, limits=limits) as checkpoint:
            yield checkpoint
        return
    if limits is not None:
        raise ValueError("limits are for reading a file, and the source is open")
    yield src if isinstance(src, Checkpoint) else checkpoint_of(_Mapping(src), Limits())


class _Mapping(Container):
    """A mapping from names to tensors as a container. Its tensors have files of their own."""

    format = "mapping"
    label = "tensors by name"
    name = "<mapping>"

    def __init__(self, tensors: Mapping[str, Any]) -> None:
        made: dict[int, tuple[Any, Any]] = {}  # one tensor under two names stays one
        self._root: dict[str, Any] = {}
        for name, value in tensors.items():
            if not isinstance(name, str):
                raise TypeError(f"a tensor has the name {shown(name)}; a string was expected")
            if id(value) not in made:
                made[id(value)] = value, tensor_named(name, value)
            self._root[name] = made[id(value)][1]

    def read(self, make_factory: MakeFactory) -> Contents:
        return Contents(self._root, [], [], 0)

    def check_records(self) -> Iterator[RecordCheck]:
        return iter(())

    def close(self) -> None:
        """Do nothing: the files of its tensors belong to their openers."""
