"""Outputs that hold dense tensors by their names and nothing else."""

from __future__ import annotations

from typing import Any

from torchzip.checkpoint.lazy import Checkpoint
from torchzip.convert.casting import DtypeOf, cast_elements
from torchzip.convert.lost import lost_ties
from torchzip.convert.outputs.base import Output
from torchzip.convert.planned import PlannedFile
from torchzip.convert.selection import Selection
from torchzip.convert.tied_names import preferred
from torchzip.tensors.packing import ElementStorage
from torchzip.tensors.specs import layout
from torchzip.tensors.storage import SpanStorage, TensorStorage


class PlannerByName(Output):
    """Each tensor has its elements in C order in a storage of its own; one of a tie has them."""

    has_ties = False

    def __init__(self, checkpoint: Checkpoint, selection: Selection, dtype_of: DtypeOf) -> None:
        super().__init__(checkpoint, selection, dtype_of)
        #: The dtypes in the output, and the bytes of each tensor that has the data of its tie.
        self.dtypes: dict[str, str] = {}
        self.storages: dict[str, TensorStorage] = {}
        tied: dict[Any, list[str]] = {}
        for name, tensor in self.tensors.items():
            spec = tensor.spec
            same_dtype = id(spec) in self.inner
            dtype = spec.torch_dtype if same_dtype else self.dtype_of(name, spec.torch_dtype)
            self.dtypes[name] = dtype
            if spec.numel:
                tied.setdefault((layout(spec), dtype), []).append(name)
        holders = {name: preferred(names) for names in tied.values() for name in names}
        self.aliases = {name: holder for name, holder in holders.items() if holder != name}
        for name, tensor in self.tensors.items():
            spec, dtype, nbytes = tensor.spec, self.dtypes[name], 0
            if name not in self.aliases:
                storage = cast_elements(spec, dtype)
                self.storages[name] = storage
                nbytes = storage.nbytes
            self.add_row(name, tensor, dtype, nbytes, self.aliases.get(name))
        self.lost += [
            f"{name or 'the object itself'}: a {held.kind.replace('_', ' ')} tensor; {self.format} "
            "holds dense ones only"
            for name, held in self.others.items()
        ]
        self.lost += lost_ties(self.tensors, self.storages)

    def groups(self) -> list[tuple[int, list[str]]]:
        return [(storage.nbytes, [name]) for name, storage in self.storages.items()]

    def file(
        self, path: str, head: bytes, names: list[str], starts: list[int], nbytes: int
    ) -> PlannedFile:
        """Return a file of ``nbytes`` that has the data of each name at the byte of its start."""
        storages = [self.storages[name] for name in names]
        cast = {
            key: [(name, self.tensors[name].spec)]
            for key, name in enumerate(names)
            if not isinstance(storages[key], SpanStorage | ElementStorage)
        }
        return PlannedFile(path, head, storages, starts, nbytes, cast)
