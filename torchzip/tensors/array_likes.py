"""What counts as an array beside numpy's own: torch's tensors, and objects that give an array.

torch is never imported here: its classes are recognised by the module and the name that they have.

A torch tensor of any kind is taken apart by its own ``__reduce_ex__``, as ``torch.save`` does it:
the torch that made it decides what is written. What is left to the writer are the storages among
the parts: a `TorchStorage` has their bytes, in place.
"""

from __future__ import annotations

import sys
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from torchzip.tensors.memory import (
    Placement,
    extent_of,
    memory_span,
    shared_memory,
    storage_kind,
    torch_dtype_to_save,
)
from torchzip.tensors.specs import TensorSpec
from torchzip.tensors.storage import BLOCK_NBYTES, Bytes, TensorStorage

Array = NDArray[Any]
ArrayKind = Literal["torch tensor", "torch storage", "array"]

_TORCH_CLASSES: dict[Any, ArrayKind] = {
    ("torch", "Tensor"): "torch tensor",
    ("torch.storage", "UntypedStorage"): "torch storage",
    ("torch.storage", "TypedStorage"): "torch storage",
}
#: Methods that give an array; what has both is asked in this order.
_GIVES_ARRAYS = ("__array__", "__dlpack__")


def array_kind(kind: type) -> ArrayKind | None:
    """Return what values of a class are to a writer; None for anything that is not an array.

    numpy's own arrays and scalars are not meant.
    """
    if issubclass(kind, np.ndarray | np.generic):
        return None
    gives_array = False
    for base in kind.__mro__:
        found = _TORCH_CLASSES.get((base.__module__, base.__qualname__))
        if found is not None:
            return found
        gives_array = gives_array or any(
            base.__dict__.get(name) is not None for name in _GIVES_ARRAYS
        )
    return "array" if gives_array else None


def array_of(value: Any) -> Array:
    """Return the array that an object with ``__array__`` or ``__dlpack__`` gives.

    Raises
    ------
    TypeError
        If it gives none, or one of a dtype that torch does not have. The message has no path.
    """
    name = type(value).__qualname__
    array: Any = None
    reason: object = None
    for method, make in (("__array__", np.asarray), ("__dlpack__", np.from_dlpack)):
        if array is None and hasattr(type(value), method):
            try:
                array = make(value)
            except Exception as error:  # whatever a stranger's method raises
                reason = reason or error
    if array is None:
        raise TypeError(
            f"cannot save a {name}: it gives no array ({reason}); copy it into a numpy array first"
        )
    try:
        torch_dtype_to_save(array)
    except TypeError:
        raise TypeError(
            f"cannot save a {name}: it gives an array of dtype {array.dtype}, which torch does not "
            "have; convert it to a numeric array or to plain Python values first"
        ) from None
    return np.asarray(array)


class TorchStorage(TensorStorage):
    """A storage of torch in memory: on the CPU in place, on another device copied when it is read.

    ``storage`` is torch's untyped storage.
    """

    def __init__(self, storage: Any, torch_dtype: str | None) -> None:
        self.storage = storage
        self.torch_dtype = torch_dtype
        self.nbytes = int(storage.nbytes())
        self._device = str(storage.device.type)
        if self._device == "meta":
            raise TypeError("cannot save a storage on the meta device: it has no data")
        self.location = "cpu" if self._device == "cpu" else _location_of(storage)

    @property
    def span_in_memory(self) -> tuple[int, int] | None:
        """The addresses of its bytes; None if it has none in this process's memory."""
        if self._device != "cpu" or not self.nbytes:
            return None
        start = int(self.storage.data_ptr())
        return start, start + self.nbytes

    def _bytes(self) -> Bytes:
        if not self.nbytes:
            return np.empty(0, np.uint8)
        held = self.storage if self._device == "cpu" else self.storage.cpu()
        start = int(held.data_ptr())
        return memory_span(start, start + self.nbytes, keep=held)

    def read_into(self, start: int, out: Bytes) -> None:
        out[:] = self._bytes()[start : start + out.nbytes]

    def blocks(self, nbytes: int = BLOCK_NBYTES) -> Iterator[Bytes]:
        if self.nbytes:
            yield self._bytes()


def dense_spec(tensor: Any) -> TensorSpec | None:
    """Return a plain strided tensor of torch, in place; None for one of any other kind."""
    storage = getattr(tensor, "untyped_storage", None)
    is_plain = type(tensor).__module__ in ("torch", "torch.nn.parameter")
    if storage is None or not is_plain or str(tensor.layout) != "torch.strided":
        return None
    if tensor.is_quantized or tensor.is_nested:
        return None
    torch_dtype = str(tensor.dtype).removeprefix("torch.")
    return TensorSpec(
        torch_dtype, tuple(tensor.shape), tensor.stride(), tensor.storage_offset(),
        TorchStorage(storage(), torch_dtype), conj=tensor.is_conj(), neg=tensor.is_neg(),
    )  # fmt: skip


def _location_of(storage: Any) -> str:
    """Return the tag of a storage's device, which torch's registry of devices knows."""
    serialization: Any = sys.modules["torch.serialization"]
    return str(serialization.location_tag(storage))


class TorchStorages:
    """The storages of torch in one object: each is one `TorchStorage`, however often it is met."""

    def __init__(self) -> None:
        self._known: dict[int, TorchStorage] = {}
        self._dtypes: dict[int, str] = {}

    def __bool__(self) -> bool:
        return bool(self._known)

    def __iter__(self) -> Iterator[TorchStorage]:
        return iter(self._known.values())

    def get(self, value: Any) -> tuple[TorchStorage, str | None]:
        """Return the storage of a typed or untyped storage of torch, and the dtype of a typed one.

        Raises
        ------
        TypeError, ValueError
            If it cannot be saved, in torch either. The message has no path.
        """
        untyped = getattr(value, "_untyped_storage", value)
        torch_dtype = None if untyped is value else str(value.dtype).removeprefix("torch.")
        found = self._known.get(untyped._cdata)
        if found is None:
            found = self._known[untyped._cdata] = TorchStorage(untyped, torch_dtype)
        span = found.span_in_memory
        if span is not None:
            now = torch_dtype or "uint8"
            first = self._dtypes.setdefault(span[0], now)
            if first != now:
                raise ValueError(shared_memory([first, now]))
        return found, torch_dtype

    def known(self, storage: TensorStorage) -> TensorStorage:
        """Return the storage of this table for one of another table; any other as it is."""
        if not isinstance(storage, TorchStorage):
            return storage
        return self._known.setdefault(storage.storage._cdata, storage)

    def placements(
        self, arrays: Iterable[tuple[Array, str]], path_of: Callable[[Array], str]
    ) -> Iterator[tuple[tuple[int, str], Placement]]:
        """Yield, by identity and dtype, where arrays lie that are in the memory of a storage.

        ``path_of`` gives what messages call an array.
        """
        spans = sorted(
            ((*span, storage) for storage in self if (span := storage.span_in_memory) is not None),
            key=lambda row: row[:2],
        )
        starts = [start for start, _, _ in spans]
        for array, torch_dtype in arrays:
            extent = extent_of(array, torch_dtype)
            at = bisect_right(starts, extent.start) - 1 if extent is not None else -1
            if extent is None or at < 0 or extent.start == extent.stop:
                continue
            start, stop, storage = spans[at]
            offset, rest = divmod(extent.start - start, array.itemsize)
            if extent.stop > stop or rest:
                continue
            held = storage.torch_dtype or "uint8"
            if held != storage_kind(torch_dtype):
                raise ValueError(f"{path_of(array)}: {shared_memory([held, torch_dtype])}")
            yield (id(array), torch_dtype), Placement(storage, offset, extent.stride)
