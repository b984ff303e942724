"""The zip of torch.save: a pickle and the storages, with all views and ties as they are."""

from __future__ import annotations

from typing import Any

from torchzip.checkpoint.lazy import Checkpoint
from torchzip.checkpoint.saving import head_records
from torchzip.checkpoint.structure import Structure
from torchzip.container.zip_writer import ZipWriter, archive_name, measure
from torchzip.convert.casting import DtypeOf, StorageCasts
from torchzip.convert.lost import lost_casts, lost_metadata, lost_values
from torchzip.convert.outputs.base import Output
from torchzip.convert.planned import PlannedFile
from torchzip.convert.selection import Selection
from torchzip.convert.work import Work
from torchzip.dtypes import DTYPES
from torchzip.errors import UnsupportedError
from torchzip.files.sink import GapSink
from torchzip.tensors.casts import CastStorage
from torchzip.tensors.chunks import ChunkedStorage
from torchzip.tensors.computed import ComputedStorage
from torchzip.tensors.memory import place_arrays
from torchzip.tensors.numpy_values import module_among
from torchzip.tensors.reduce import StorageKeys
from torchzip.tensors.specs import TensorSpec, layout


class ZipOutput(Output):
    """A pickle and the storages, with all views and ties as they are."""

    format = "zip"
    suffixes = (".pt", ".pth", ".bin", ".ckpt", ".pth.tar", ".th")
    has_crcs = True
    has_ties = True

    def __init__(self, checkpoint: Checkpoint, selection: Selection, dtype_of: DtypeOf) -> None:
        super().__init__(checkpoint, selection, dtype_of)
        self._put_cast_arrays()
        self._casts = StorageCasts(self.tensors, self.inner, self.dtype_of)
        self.lost += lost_metadata(selection.metadata)
        self._cast_tensors: dict[int, list[tuple[str, TensorSpec]]] = {}
        holders: dict[Any, str] = {}
        for name, tensor in self.tensors.items():
            spec = self._casts.apply(tensor.spec)
            holder = holders.setdefault(layout(spec), name) if spec.numel else name
            is_made = isinstance(spec.storage, CastStorage | ComputedStorage | ChunkedStorage)
            if holder == name and is_made:
                tensors = self._cast_tensors.setdefault(id(spec.storage), [])
                tensors.append((name, tensor.spec))
            nbytes = spec.numel * DTYPES[spec.torch_dtype].itemsize if holder == name else 0
            self.add_row(name, tensor, spec.torch_dtype, nbytes, None if holder == name else holder)
        for name, held in self.others.items():
            self.add_row(name, held, held.torch_dtype, held.nbytes)
        if self.others or any(row.from_dtype != row.to_dtype for row in self.rows):
            self.lost += lost_casts(selection.root, self.tensors.values(), dtype_of)

    def _put_cast_arrays(self) -> None:
        """Put tensors where arrays of numpy get another dtype; the others stay what they are."""
        cast = {
            name: tensor
            for name, tensor in self.tensors.items()
            if self.selection.sources[name] in self.selection.arrays
            and self.dtype_of(name, tensor.torch_dtype) != tensor.torch_dtype
        }
        for name in self.selection.put(cast):
            self.lost.append(f"{name}: another dtype; it is an array of numpy inside of an object")
            self._bound[name] = self.tensors[name].torch_dtype

    def groups(self) -> list[tuple[int, list[str]]]:
        """Return the tensors by their storages, which are not cut apart."""
        groups: dict[int, tuple[int, list[str]]] = {}
        for name, tensor in self.tensors.items():
            storage = self._casts.apply(tensor.spec).storage
            groups.setdefault(id(storage), (storage.nbytes, []))[1].append(name)
        return [*groups.values(), *((held.nbytes, [name]) for name, held in self.others.items())]

    def one_file(self, path: str) -> PlannedFile:
        selection = self.selection
        if selection.is_flat:
            self.lost += lost_values(self.checkpoint, selection, selection.tensors.values())
        return self._file(path, selection.root)

    def shard(self, path: str, names: list[str]) -> PlannedFile:
        return self._file(path, {name: self.selection.tensors[name] for name in names})

    def _file(self, path: str, root: Any) -> PlannedFile:
        keys = StorageKeys()
        try:
            structure = Structure(
                root, keys, place_arrays, spec_of=self._casts.apply,
                numpy_module=module_among(self.checkpoint.globals),
                limits=self.checkpoint.limits.or_default(),
            )  # fmt: skip
        except (TypeError, ValueError) as error:
            # The object came from a file, so what cannot be written is the file's fault.
            raise UnsupportedError(f"the object in it cannot be written again: {error}") from None
        self.refused += structure.refused
        storages = keys.storages()
        around = head_records(structure.pickle)
        sizes = [(len(name), len(data)) for name, data in around]
        sizes += [(len(f"data/{key}"), storage.nbytes) for key, storage in enumerate(storages)]
        starts, nbytes = measure(archive_name(path), sizes)
        cast = {
            key: self._cast_tensors[id(storage)]
            for key, storage in enumerate(storages)
            if id(storage) in self._cast_tensors
        }
        return PlannedFile(path, structure.pickle, storages, starts[len(around) :], nbytes, cast)

    @staticmethod
    def finish(work: Work) -> None:
        planned, file = work.planned, work.file
        writer = ZipWriter(GapSink(file), archive_name(planned.path))
        for name, data in head_records(planned.head):
            writer.write_record(name, data)
        for keys in work.batches():
            if work.is_small(keys[0]):
                names = [b"data/%d" % key for key in keys]
                writer.write_small_records(names, work.contents_of(keys))
                continue
            (key,) = keys
            storage = planned.storages[key]
            writer.begin_record(f"data/{key}", storage.nbytes)
            writer.flush()  # where the bytes come in order, those of the storage come now
            crc = work.crc_of(key)
            writer.skip(storage.nbytes, crc, file.read_back(planned.starts[key], 8))
            writer.end_record()
        writer.finish()
