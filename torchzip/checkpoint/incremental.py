"""The incremental writer: each tensor as soon as it is ready, the structure last."""

from __future__ import annotations

import contextlib
import math
import os
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Self

import numpy as np

from torchzip.checkpoint.destination import refuse_other_format
from torchzip.checkpoint.lazy_tensor import LazyTensor, data_of
from torchzip.checkpoint.saving import Archive, reading, warn_refused
from torchzip.checkpoint.stored_memory import EarlyStorage, StoredMemory
from torchzip.checkpoint.structure import Structure, as_tensor
from torchzip.checkpoint.survey import EarlyTensor
from torchzip.dtypes import ALIASES, DTYPES
from torchzip.errors import EnoughMemory
from torchzip.files.crc import crc32 as compute_crc32
from torchzip.files.location import StorageOptions, located
from torchzip.files.source import File
from torchzip.tensors.array_likes import TorchStorage, array_kind
from torchzip.tensors.memory import (
    Array,
    Placement,
    extent_of,
    memory_span,
    packed,
    place_arrays,
    storage_kind,
    torch_dtype_to_save,
)
from torchzip.tensors.numpy_dtypes import numpy_dtype, parse_torch_dtype
from torchzip.tensors.reduce import StorageKeys
from torchzip.tensors.specs import TensorSpec, check_shape, contiguous_stride, whole_numbers
from torchzip.tensors.storage import Bytes, MeasuredStorage, TensorStorage
from torchzip.types import OtherTensor, Parameter, QuantizedTensor, TypedArray


class IncrementalWriter:
    """Stores tensors as soon as they are ready, and the structure last. See `incremental_save`."""

    def __init__(
        self,
        file: File,
        *,
        alignment: int = 64,
        crc32: bool = True,
        storage_options: StorageOptions = None,
    ) -> None:
        file = located(file, storage_options)
        refuse_other_format(file)
        self._archive = Archive(file, alignment, crc32)
        self._keys = StorageKeys()
        self._memory = StoredMemory()
        self._lazy: dict[int, tuple[TensorStorage, EarlyStorage]] = {}
        self._lock = threading.RLock()
        self._pid = os.getpid()
        self._state = "open"

    @contextlib.contextmanager
    def _at_work(self) -> Iterator[None]:
        """Let threads take turns; raise ValueError where nothing can be written."""
        if os.getpid() != self._pid:  # in a forked child the holder of the lock may be missing
            raise ValueError("the writer belongs to the process that opened it")
        with self._lock:
            self._check()
            yield

    def _check(self) -> None:
        if self._state != "open":
            raise ValueError(
                {
                    "saved": "save() was called already; nothing can follow it",
                    "broken": "a tensor was written in part; the file cannot be completed",
                    "saving": "save() is at work; nothing else can be written meanwhile",
                    "closed": "the writer is closed",
                }[self._state]
            )

    @EnoughMemory()
    def store_early(self, array: Any) -> Any:
        """Write an array now; return the proxy that takes its place in the object.

        The values are those of this moment; the array can be freed or changed afterwards. An array
        that shares memory with one that was stored before, and has the same values still, becomes a
        view of the same storage. Takes arrays and what gives one (``__array__``, ``__dlpack__``),
        LazyTensors, TypedArrays, torch tensors, and Parameters of these; of a sparse, quantized or
        nested tensor the parts are stored. Of a torch tensor, the whole storage is.
        """
        with self._at_work():
            if isinstance(array, Parameter):
                return Parameter(self.store_early(array.data), array.requires_grad, array.state)
            if isinstance(array, EarlyTensor):
                return array
            if isinstance(array, OtherTensor):
                return self._store_parts(array)
            if isinstance(array, LazyTensor):
                storage = self._store_lazy(array.spec.storage)
                return EarlyTensor(array.spec.replace(storage=storage), self)
            if isinstance(array, TypedArray):
                torch_dtype = parse_torch_dtype(array.torch_dtype)
                array = array.array
                if array.itemsize != DTYPES[torch_dtype].itemsize:
                    raise TypeError(f"items of {array.itemsize} bytes are not {torch_dtype}")
            elif isinstance(array, np.ndarray):
                torch_dtype = torch_dtype_to_save(array)
            elif array_kind(type(array)) in ("torch tensor", "array"):
                return self.store_early(as_tensor(array, self._store_lazy))
            else:
                raise TypeError(f"an array or a tensor was expected, not {type(array).__name__}")
            place = self._find_early(array, torch_dtype) or self._store_array(array, torch_dtype)
            spec = TensorSpec(
                torch_dtype, array.shape, place.stride, place.storage_offset, place.storage
            )
            return EarlyTensor(spec, self)

    def _store_parts(self, tensor: OtherTensor) -> OtherTensor:
        tensor.check_to_write()
        if isinstance(tensor, QuantizedTensor) and isinstance(tensor.int_repr, np.ndarray):
            tensor = tensor.replace(int_repr=TypedArray(tensor.int_repr, tensor.torch_dtype))
        return tensor.with_parts(self.store_early)

    def store_chunks(
        self, chunks: Iterable[Any], *, shape: Iterable[int], dtype: Any
    ) -> EarlyTensor:
        """Write a tensor larger than memory, given as consecutive blocks of its elements.

        ``chunks`` yields arrays of ``dtype`` of any shape, whose elements in C order are those of
        the tensor. ``dtype`` is a dtype of numpy or torch, or its name.

        Raises
        ------
        TypeError, ValueError
            If a block has another dtype, or all together do not have the number of elements of
            ``shape``. The file cannot be completed then.
        """
        with self._at_work():
            sizes = whole_numbers("a shape", shape)
            chunks = iter(chunks)  # what cannot be gone over is refused before a byte is written
            torch_dtype = _parse_dtype(dtype)
            check_shape(sizes, torch_dtype)
            nbytes = math.prod(sizes) * DTYPES[torch_dtype].itemsize
            blocks = _checked_chunks(chunks, torch_dtype, sizes)
            early = self._store(_ChunkStorage(torch_dtype, nbytes, blocks))
            spec = TensorSpec(torch_dtype, sizes, contiguous_stride(sizes), 0, early)
            return EarlyTensor(spec, self)

    def save(self, obj: Any) -> None:
        """Write what is not stored yet, and the structure. Once, and last."""
        with self._at_work():
            already = len(self._keys.order)
            keys = self._keys.copy()  # an object that cannot be saved leaves no trace
            self._state = "saving"  # for what an object's own ``__reduce__`` may do
            try:
                with EnoughMemory():
                    structure = Structure(
                        obj, keys, self._place, self._spec_of, self._storage_of, self,
                        in_bulk=False,
                    )  # fmt: skip
                warn_refused(structure)
            finally:
                if self._state == "saving":
                    self._state = "open"
            self._check()
            archive = self._archive
            with EnoughMemory(), self._breaking():
                # With early storages in front, all storages come before the structure: torch's
                # computed offsets follow the keys from the first storage on without a break.
                if not already:
                    archive.write_head(structure.pickle)
                archive.write_storages(keys.order, already, obj)
                if already:
                    archive.write_head(structure.pickle)
                archive.writer.finish()
            self._state = "saved"

    def close(self) -> None:
        """Complete the file if `save` was called; otherwise leave everything as it was."""
        if os.getpid() != self._pid:
            return
        with self._lock:
            if self._state == "closed":
                return
            saved = self._state == "saved"
            self._state = "closed"
            if saved:
                self._archive.commit()
            else:
                self._archive.sink.abort()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if os.getpid() != self._pid:
            return
        if error is not None and self._state == "saved":
            self._state = "open"  # an exception in the block: nothing is to be kept
        try:
            if error is None and self._state in ("open", "broken"):
                reason = (
                    "save() was never called"
                    if self._state == "open"
                    else "a tensor could be written in part only, or save() failed"
                )
                warnings.warn(
                    f"{self._archive.sink.name}: nothing was written, {reason}",
                    UserWarning,
                    stacklevel=2,
                )
        finally:  # a warning can be an error
            self.close()

    @contextlib.contextmanager
    def _breaking(self) -> Iterator[None]:
        """While it is entered, an exception leaves the archive incomplete for good."""
        try:
            yield
        except BaseException:
            self._state = "broken"
            raise

    def _store(self, storage: TensorStorage) -> EarlyStorage:
        """Write a storage now, under the next key."""
        early = EarlyStorage(storage.torch_dtype, storage.nbytes, storage.location)
        writer = self._archive.writer
        with self._breaking():
            key = int(self._keys.key_of(early))
            writer.begin_record(f"data/{key}", storage.nbytes, crc=storage.crc)
            early.position = writer.position
            keep_crc = not self._archive.with_crc and not self._can_read_back()
            crc = 0
            with reading([storage]) as blocks_of:
                for block in blocks_of(storage):
                    writer.write(block.data)
                    if keep_crc:
                        crc = compute_crc32(block.data, crc)
            stored = writer.end_record()
            early.bytes_crc = crc if keep_crc else stored
        return early

    def _store_array(self, array: Array, torch_dtype: str) -> Placement:
        extent = extent_of(array, torch_dtype)
        if extent is None or extent.has_gaps:
            place = packed(array, torch_dtype)
            early = self._store(place.storage)
            self._memory.add_packed(array, torch_dtype, early)
        else:
            (place,) = place_arrays([(array, torch_dtype)])
            early = self._store(place.storage)
            if early.nbytes:
                self._memory.add(extent, early)
        return place._replace(storage=early)

    def _store_lazy(self, storage: TensorStorage) -> EarlyStorage:
        known = self._storage_of(storage)
        if isinstance(known, EarlyStorage):
            return known
        early = self._store(storage)
        if isinstance(storage, TorchStorage):
            self._memory.add_torch(storage, early)
        else:
            self._lazy[id(storage)] = (storage, early)
        return early

    def _spec_of(self, spec: TensorSpec) -> TensorSpec:
        storage = self._storage_of(spec.storage)
        return spec if storage is spec.storage else spec.replace(storage=storage)

    def _storage_of(self, storage: TensorStorage) -> TensorStorage:
        """Return where a storage was stored, if it was and has not changed since; else itself."""
        if isinstance(storage, TorchStorage):
            early = self._memory.find_torch(storage)
            same = early is not None and self._is_stored(early, 0, storage.blocks(), storage.nbytes)
            return early if early is not None and same else storage
        return self._lazy.get(id(storage), (storage, storage))[1]

    def _place(
        self, arrays: list[tuple[Array, str]], path_of: Callable[[int], str]
    ) -> list[Placement]:
        """Place arrays at save: in what was stored early where they are part of it."""
        early = [self._find_early(array, torch_dtype) for array, torch_dtype in arrays]
        rest = [index for index, place in enumerate(early) if place is None]
        placed = place_arrays([arrays[index] for index in rest], lambda index: path_of(rest[index]))
        for index, place in zip(rest, placed, strict=True):
            early[index] = place
        return [place for place in early if place is not None]

    def _find_early(self, array: Array, torch_dtype: str) -> Placement | None:
        """Return where an array was stored before, if it was and has not changed since."""
        extent = extent_of(array, torch_dtype)
        if extent is None or extent.has_gaps:
            storage = self._memory.find_packed(array, torch_dtype)
            if storage is not None:
                place = packed(array, torch_dtype)
                if self._is_stored(storage, 0, place.storage.blocks(), array.nbytes):
                    return Placement(storage, 0, place.stride)
            if extent is None:
                return None
        region = self._memory.find(extent) if extent.stop > extent.start else None
        if region is None or storage_kind(region.torch_dtype) != storage_kind(torch_dtype):
            return None
        first = extent.start - region.start
        itemsize = DTYPES[torch_dtype].itemsize
        if first % itemsize:
            return None
        if self._can_read_back():
            now = memory_span(extent.start, extent.stop, keep=array)
            same = self._is_stored(region.storage, first, iter([now]), now.nbytes)
        else:
            now = memory_span(region.start, region.stop, keep=array)
            same = compute_crc32(now.data) == region.storage.bytes_crc
        return Placement(region.storage, first // itemsize, extent.stride) if same else None

    def _can_read_back(self) -> bool:
        return self._archive.sink.read_back(0, 0) is not None

    def _is_stored(
        self, storage: EarlyStorage, first: int, blocks: Iterator[Bytes], nbytes: int
    ) -> bool:
        """Return whether the archive has these bytes from byte ``first`` of a storage on."""
        if not self._can_read_back():
            crc = 0
            for block in blocks:
                crc = compute_crc32(block.data, crc)
            return nbytes == storage.nbytes and crc == storage.bytes_crc
        self._archive.writer.flush()
        at = storage.position + first
        for block in blocks:
            view = block.data
            for start in range(0, view.nbytes, 1 << 20):
                part = view[start : start + (1 << 20)]
                if (self._archive.sink.read_back(at, part.nbytes) or b"") != bytes(part):
                    return False
                at += part.nbytes
        return True


class _ChunkStorage(MeasuredStorage):
    """Bytes that come once and in order, from an iterator."""

    def __init__(self, torch_dtype: str, nbytes: int, blocks: Iterator[Bytes]) -> None:
        super().__init__(torch_dtype, nbytes, "cpu")
        self._blocks = blocks

    def blocks(self, nbytes: int = 0) -> Iterator[Bytes]:
        return self._blocks


def _parse_dtype(dtype: Any) -> str:
    """Return torch's name of a dtype; numpy's codes, such as ``"<f4"``, are names as well."""
    with contextlib.suppress(TypeError):
        if isinstance(dtype, str) and dtype not in ALIASES and dtype not in DTYPES:
            dtype = np.dtype(dtype)
    return parse_torch_dtype(dtype)


def _checked_chunks(
    chunks: Iterable[Any], torch_dtype: str, shape: tuple[int, ...]
) -> Iterator[Bytes]:
    """Yield the bytes of blocks; raise if they are not the elements of the shape and the dtype."""
    expected, numel = numpy_dtype(torch_dtype), math.prod(shape)
    done = 0
    for chunk in chunks:
        if isinstance(chunk, np.ma.MaskedArray):
            raise TypeError("a masked array as a chunk; torch has no mask. Fill it first")
        if array_kind(type(chunk)) in ("torch tensor", "array"):
            chunk = data_of(as_tensor(chunk))
        chunk_dtype = getattr(chunk, "torch_dtype", torch_dtype)
        array = np.asarray(chunk)
        if array.dtype != expected or chunk_dtype != torch_dtype:
            found = array.dtype if array.dtype != expected else chunk_dtype
            raise TypeError(f"a chunk of dtype {found}; {torch_dtype} was announced")
        done += array.size
        if done > numel:
            raise ValueError(f"more elements than the {numel:,} of shape {list(shape)}")
        yield np.ascontiguousarray(array, expected.newbyteorder("=")).reshape(-1).view(np.uint8)
    if done < numel:
        raise ValueError(
            f"the chunks have {done:,} elements, the shape {list(shape)} has {numel:,}"
        )


def incremental_save(
    file: File,
    *,
    alignment: int = 64,
    crc32: bool = True,
    storage_options: StorageOptions = None,
) -> IncrementalWriter:
    """Write a checkpoint tensor by tensor, with memory for one tensor at a time.

    ``file`` is a path, a URL (docs/remote.md) or a binary file object with ``write``.

    A context manager. `IncrementalWriter.store_early` and `IncrementalWriter.store_chunks` write
    now and return a proxy for the tensor's place; `IncrementalWriter.save` writes the
    structure, once and last. An exception in the block, or no ``save()``, leaves nothing at the
    target and an existing file as it was.

    Examples
    --------
    >>> import numpy as np, os, tempfile
    >>> path = os.path.join(tempfile.mkdtemp(), "m.pt")
    >>> with incremental_save(path) as out:
    ...     state = {f"layers.{i}": out.store_early(np.full(4, i)) for i in range(3)}
    ...     state["tied"] = state["layers.0"]
    ...     out.save(state)
    """
    return IncrementalWriter(
        file, alignment=alignment, crc32=crc32, storage_options=storage_options
    )
