"""Whole checkpoints: every tensor an array, read at once."""

from __future__ import annotations

import errno
import functools
import os
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from torchzip.checkpoint.lazy import Foreign
from torchzip.errors import EnoughMemory, ErrorPlace
from torchzip.files.crc import CHECKED_NBYTES, crc32, wrong_crc
from torchzip.files.location import Location, StorageOptions, located
from torchzip.files.platform_calls import processors
from torchzip.files.source import (
    File,
    FileObjectSource,
    FileSource,
    Identity,
    MmapSource,
    file_place,
)
from torchzip.formats.base import FileContainer, check_options
from torchzip.formats.opening import open_checkpoint
from torchzip.leaf_types import TypedArray
from torchzip.limits import Limits
from torchzip.tensors.kinds.base import OtherTensor
from torchzip.tensors.kinds.parts import Checked
from torchzip.tensors.numpy_dtypes import (
    as_dtype,
    has_numpy_dtype,
    numpy_dtype,
    torch_dtype_of,
)
from torchzip.tensors.numpy_values import PickledArray
from torchzip.tensors.persistent_ids import Factory
from torchzip.tensors.specs import TensorSpec, resolve_bits, view_of
from torchzip.tensors.storage import (
    ArrayStorage,
    Measure,
    OpenStorage,
    SpanStorage,
    TensorStorage,
    will_read,
)

#: Below this, and with one processor, a second thread costs more than it gives. (Python in a
#: browser has one processor and no threads.)
_THREADS_FROM = 8 << 20


class EagerStorage(ArrayStorage):
    """Memory for a storage, and where its bytes come from."""

    def __init__(self, origin: TensorStorage, data: NDArray[np.uint8]) -> None:
        super().__init__(data, origin.torch_dtype)
        self.location = origin.location
        self.origin = origin


class EagerFactory(Factory):
    """Makes arrays over memory that `fill` reads into afterwards.

    With ``map_file``, stored bytes are views of the mapped files, read-only. ``name`` is that of
    the checkpoint.
    """

    def __init__(
        self,
        open_storage: OpenStorage,
        map_file: Callable[[str, Identity], MmapSource] | None,
        name: str,
    ) -> None:
        super().__init__(open_storage)
        self._map_file = map_file
        self._name = name
        self._to_fill: list[EagerStorage] = []
        self._to_resolve: list[tuple[NDArray[Any], NDArray[Any], TensorSpec]] = []
        self._to_check: list[OtherTensor] = []
        self._keys: dict[int, TypedArray] = {}
        self._nbytes = 0

    def storage(self, key: str, measure: Measure) -> TensorStorage:
        origin, nbytes = self.open_storage(key, measure), measure.nbytes
        self._nbytes += nbytes
        if self._map_file is not None and (span := origin.span()) is not None:
            file, place = file_place(*span)
            assert isinstance(file, FileSource)
            view = self._map_file(file.path, file.identity).view(place, nbytes)
            return EagerStorage(origin, np.frombuffer(view, np.uint8))
        # Not more than the record that is there, or its deflated size times the cap.
        try:
            memory = np.empty(nbytes, np.uint8)
        except MemoryError:
            raise OSError(
                errno.ENOMEM,
                f"storage {key} of {nbytes:,} bytes does not fit into memory. lazy_load, or "
                "mmap=True, reads only what is used",
                self._name,
            ) from None
        made = EagerStorage(origin, memory)
        self._to_fill.append(made)
        return made

    def tensor(self, spec: TensorSpec) -> Any:
        assert isinstance(spec.storage, EagerStorage)
        array = view_of(spec.storage.array, spec)
        if spec.conj or spec.neg:
            # Each element once: a broadcast axis stays one.
            once = array[(..., *(slice(0, 1 if step == 0 else None) for step in spec.stride))]
            resolved = np.empty(once.shape, array.dtype)
            self._to_resolve.append((resolved, once, spec))
            array = np.broadcast_to(resolved, spec.shape)  # a view: it is filled later
        if not has_numpy_dtype(spec.torch_dtype):
            return TypedArray(array, spec.torch_dtype)
        return array

    def on_device(self, data: Any, torch_dtype: str, device: str, requires_grad: bool) -> Any:
        if isinstance(data, PickledArray):
            return as_dtype(data, torch_dtype)
        return data if self.is_tensor(data) and data.dtype == numpy_dtype(torch_dtype) else None

    def is_tensor(self, value: Any) -> bool:
        return type(value) in (np.ndarray, TypedArray)  # and not an array that numpy has pickled

    def other(self, tensor: OtherTensor) -> Any:
        self._to_check.append(tensor)
        return tensor

    def key(self, value: Any) -> Any:
        """Return a TypedArray for an array: the same one each time."""
        torch_dtype = torch_dtype_of(value.dtype) if type(value) is np.ndarray else None
        if torch_dtype is None:
            return value
        return self._keys.setdefault(id(value), TypedArray(value, torch_dtype))

    def fill(self, verify: bool) -> None:
        """Read the bytes of every storage, with a second thread if there are many."""
        total = sum(storage.nbytes for storage in self._to_fill)
        will_read(storage.origin for storage in self._to_fill)
        if total >= _THREADS_FROM and len(self._to_fill) > 1 and processors() > 1:
            from concurrent.futures import ThreadPoolExecutor

            with ThreadPoolExecutor(2) as pool:
                for _ in pool.map(lambda storage: _fill(storage, verify), self._to_fill):
                    pass
        else:
            for storage in self._to_fill:
                _fill(storage, verify)
        for resolved, array, spec in self._to_resolve:
            resolved[...] = resolve_bits(array, spec)
        checked = Checked(self._nbytes)
        for tensor in self._to_check:
            tensor.check_values(checked)
        # Bare storages in the tree keep the factory, and should not keep all memory.
        self._to_fill.clear()
        self._to_resolve.clear()
        self._to_check.clear()
        self._keys.clear()


def _fill(storage: EagerStorage, verify: bool) -> None:
    origin, data = storage.origin, storage.array
    crc = 0
    check = verify and bool(origin.crc)
    if isinstance(origin, SpanStorage):
        for start in range(0, data.size, CHECKED_NBYTES):
            block = data[start : start + CHECKED_NBYTES]
            origin.read_into(start, block)
            if check:
                crc = crc32(block.data, crc)
        if check and crc != origin.crc:
            raise wrong_crc(crc, origin.crc or 0, origin.record, origin.path)
    else:
        start = 0
        for block in origin.checked_blocks() if verify else origin.blocks():
            data[start : start + block.size] = block
            start += block.size


def _check_torch_options(map_location: Any, weights_only: Any) -> None:
    """Raise TypeError for options of ``torch.load`` that ask for what torchzip does not do."""
    if map_location is not None and str(map_location) != "cpu":
        raise TypeError(
            f"map_location={map_location!r}: arrays of numpy are in the memory of the CPU; leave "
            "it out, and move what is loaded"
        )
    if weights_only is not None and weights_only is not True:
        raise TypeError(
            f"weights_only={weights_only!r}: torchzip never runs what a file names; leave it out, "
            "and objects of other classes come as ForeignObjects"
        )


@EnoughMemory()
def load(
    file: File,
    *,
    mmap: bool = False,
    foreign: Foreign = "keep",
    verify: bool = True,
    limits: Limits | None = None,
    storage_options: StorageOptions = None,
    map_location: Any = None,
    weights_only: bool | None = None,
) -> Any:
    """Return the object that was saved, with a numpy array for each dense tensor.

    ``file`` is what `lazy_load` takes. A file object is left positioned after the checkpoint, where
    another may follow.

    Sparse, quantized, nested and meta tensors are the types of that name in `torchzip.types`, with
    arrays as their parts; their indices are checked against their shapes.

    bfloat16 and float8 come through ml_dtypes; a dtype that numpy lacks is a
    `types.TypedArray`, and so is a tensor that is a key of a dict or an item of a set (in a pickled
    optimizer), since arrays have no hash. Tensors that shared a storage share memory. A Parameter
    gives its array and a tensor with attributes loses them; `lazy_load` keeps both.

    ``mmap=True`` needs a path and gives read-only views of the file; a tensor that is put
    together from several places is an array of its own. Only the pickle's CRC is
    checked then, and cutting the file short while it is in use kills the process.
    ``verify=False`` skips the CRCs of the tensors.

    ``map_location`` and ``weights_only`` are for calls that were written for ``torch.load``: the
    CPU and True are what torchzip does anyway; else a TypeError says what to do.

    Raises
    ------
    TorchZipError, OSError
        Whatever the bytes; nothing else.

    Examples
    --------
    >>> import io, numpy as np
    >>> file = io.BytesIO()
    >>> save({"weight": np.ones(3, "float32"), "step": 7}, file)
    >>> _ = file.seek(0)
    >>> load(file)
    {'weight': array([1., 1., 1.], dtype=float32), 'step': 7}
    """
    _check_torch_options(map_location, weights_only)
    file = located(file, storage_options)
    if mmap and (not isinstance(file, str | os.PathLike) or isinstance(file, Location)):
        raise TypeError("mmap=True needs a path, not a file object or a URL")
    limits = check_options(foreign, limits)
    container = open_checkpoint(file, limits)
    try:
        map_file = functools.cache(MmapSource) if mmap else None
        factories: list[EagerFactory] = []

        def make_factory(open_storage: OpenStorage) -> EagerFactory:
            factories.append(EagerFactory(open_storage, map_file, container.name))
            return factories[-1]

        contents = container.read(make_factory)
        if foreign == "raise":
            from torchzip.checkpoint.foreign import refuse_objects  # which few ask for

            refuse_objects(container, contents, limits)
        with ErrorPlace(path=container.name):
            if verify:
                container.check_parts()
            for factory in factories:
                factory.fill(verify)
        if isinstance(container, FileContainer) and isinstance(container.source, FileObjectSource):
            container.source.move_to(container.end)  # where another checkpoint may follow
    finally:
        container.close()
    return contents.root
