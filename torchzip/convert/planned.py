"""The tensors and the files of an output, as they are planned."""

from __future__ import annotations

from dataclasses import dataclass

from torchzip.tensors.specs import TensorSpec
from torchzip.tensors.storage import TensorStorage


@dataclass(frozen=True, slots=True)
class PlannedTensor:
    """One tensor of the output. ``nbytes`` is its data there; an alias takes none.

    An alias has the elements of another; in a zip, other views of one storage share its bytes too.
    A nested tensor has None in its shape where its sizes differ. ``source`` is its name before
    renaming, and ``file`` the path of the shard that has it.
    """

    name: str
    shape: tuple[int | None, ...]
    from_dtype: str
    to_dtype: str
    nbytes: int
    alias_of: str | None = None
    source: str = ""
    file: str = ""


@dataclass(slots=True)
class PlannedFile:
    """One file of the output: storage ``i`` begins at byte ``starts[i]``, ``nbytes`` in all."""

    path: str
    #: What `Output.finish` needs beside the data, as bytes that the format likes. For a zip it is
    #: the pickle, for safetensors everything before the data.
    head: bytes
    #: The storages in the order in which they are written.
    storages: list[TensorStorage]
    starts: list[int]
    nbytes: int
    #: The tensors of a storage that is cast or computed, as names and what the source has there.
    cast: dict[int, list[tuple[str, TensorSpec]]]
