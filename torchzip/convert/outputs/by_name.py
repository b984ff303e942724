"""Outputs that hold dense tensors by their names and nothing else."""

from __future__ import annotations

import shlex
from typing import Any

from torchzip.checkpoint.lazy import Checkpoint
from torchzip.checkpoint.lazy_tensor import LazyTensor
from torchzip.convert.casting import DtypeOf, cast_elements
from torchzip.convert.lost import lost_metadata, lost_ties, lost_values
from torchzip.convert.outputs.base import Output
from torchzip.convert.planned import PlannedFile
from torchzip.convert.selection import Selection
from torchzip.convert.tied_names import preferred
from torchzip.convert.work import Work
from torchzip.errors import UnsupportedError, shown
from torchzip.tensors.casts import is_castable
from torchzip.tensors.packing import ElementStorage
from torchzip.tensors.specs import TensorSpec, layout
from torchzip.tensors.storage import SpanStorage, TensorStorage


class PlannerByName(Output):
    """Each tensor has its elements in C order in a storage of its own; one of a tie has them."""

    has_ties = False

    def __init__(self, checkpoint: Checkpoint, selection: Selection, dtype_of: DtypeOf) -> None:
        super().__init__(checkpoint, selection, dtype_of)
        for name, tensor in list(self.tensors.items()):
            reason = self.left_out(tensor.spec)
            if reason is not None:
                self.lost.append(f"{name}: {reason}")
                del self.tensors[name]
        #: The dtypes in the output, and the bytes of each tensor that has the data of its tie.
        self.dtypes: dict[str, str] = {}
        self.storages: dict[str, TensorStorage] = {}
        tied: dict[Any, list[str]] = {}
        for name, tensor in self.tensors.items():
            spec = tensor.spec
            same_dtype = id(spec) in self.inner
            dtype = spec.torch_dtype if same_dtype else self.dtype_of(name, spec.torch_dtype)
            self.dtypes[name] = dtype = self.stored_dtype(name, spec, dtype)
            if spec.numel:
                tied.setdefault((layout(spec), dtype), []).append(name)
        holders = {name: preferred(names) for names in tied.values() for name in names}
        self.aliases = {name: holder for name, holder in holders.items() if holder != name}
        for name, tensor in self.tensors.items():
            spec, dtype, nbytes = tensor.spec, self.dtypes[name], 0
            if name not in self.aliases:
                storage = self.stored(spec, dtype)
                self.storages[name] = storage
                nbytes = storage.nbytes
            self.add_row(name, tensor, dtype, nbytes, self.aliases.get(name), self.shape(tensor))
        self.lost += [
            f"{name or 'the object itself'}: a {held.kind.replace('_', ' ')} tensor; {self.format} "
            "holds dense ones only"
            for name, held in self.others.items()
        ]
        self.lost += lost_ties(self.tensors, self.storages)

    def shape(self, tensor: LazyTensor) -> tuple[int, ...]:
        """Return the shape that a tensor has in the file."""
        return tensor.shape

    def left_out(self, spec: TensorSpec) -> str | None:
        """Return why the format cannot hold a tensor that is left out; None for all others."""
        return None

    def stored_dtype(self, name: str, spec: TensorSpec, dtype: str) -> str:
        """Return the dtype that a tensor has in the file, given that which the rules want.

        Raises UnsupportedError where the format has none for it.
        """
        return dtype

    def stored(self, spec: TensorSpec, dtype: str) -> TensorStorage:
        """Return the bytes of a tensor in the file, in the dtype that `stored_dtype` gives."""
        return cast_elements(spec, dtype)

    def carry_nothing(self) -> None:
        """Name in ``lost`` all that is around the tensors, for a format without a place for it."""
        self.lost += lost_values(self.checkpoint, self.selection)
        if not self.has_metadata:
            self.lost += lost_metadata(self.selection.metadata)

    def no_dtype(self, name: str, dtype: str) -> UnsupportedError:
        """Return the error for a tensor whose dtype the format lacks."""
        if is_castable(dtype):
            advice = f"cast it to one that it has: --dtype {shlex.quote(name)}=float32"
        else:
            advice = f"leave the tensor out: --exclude {shlex.quote(name)}"
        return UnsupportedError(f"{name}: a .{self.format} file has no {dtype}; {advice}")

    def groups(self) -> list[tuple[int, list[str]]]:
        return [(storage.nbytes, [name]) for name, storage in self.storages.items()]

    def one_file(self, path: str) -> PlannedFile:
        self.carry_nothing()
        return self.shard(path, list(self.storages))

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

    @staticmethod
    def finish(work: Work) -> None:
        planned, file, starts = work.planned, work.file, work.planned.starts
        file.write_at(0, planned.head)
        for keys in work.batches():
            if not work.is_small(keys[0]):
                work.crc_of(keys[0])  # nothing keeps it, but damage of the source shows
                continue
            parts: list[bytes] = []
            at = starts[keys[0]]
            for key, data in zip(keys, work.contents_of(keys), strict=True):
                parts += [bytes(starts[key] - at), data]
                at = starts[key] + len(data)
            file.write_at(starts[keys[0]], b"".join(parts))
        file.write_at(planned.nbytes, b"")  # the zeros up to here


def name_bytes(name: str) -> bytes:
    """Return the name of a tensor in UTF-8; raise UnsupportedError if it is not Unicode."""
    try:
        return name.encode()
    except UnicodeEncodeError:
        raise UnsupportedError(f"{shown(name)} is not valid Unicode; rename the tensor") from None
