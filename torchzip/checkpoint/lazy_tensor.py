"""Lazy tensors: shape and dtype are known, data is read when it is asked for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from types import EllipsisType
from typing import Any, cast, overload

import numpy as np
from numpy.typing import NDArray

from torchzip.dtypes import DTYPES
from torchzip.errors import EnoughMemory, no_memory
from torchzip.leaf_types import Parameter
from torchzip.tensors.array_likes import array_kind, array_of, dense_spec
from torchzip.tensors.kinds.base import OtherTensor
from torchzip.tensors.numpy_dtypes import (
    as_dtype,
    numpy_dtype,
    parse_torch_dtype,
    torch_dtype_of,
)
from torchzip.tensors.persistent_ids import BareStorage, Factory
from torchzip.tensors.specs import (
    TensorSpec,
    contiguous_stride,
    opened,
    parts_of_view,
    read_view,
    slice_spec,
)
from torchzip.tensors.storage import (
    ArrayStorage,
    OpenStorage,
    StorageOpener,
    TensorStorage,
    will_read,
)

#: What an index is made of, as that of an array of numpy.
_Int = int | np.integer[Any]
_Indices = _Int | slice | EllipsisType | None | NDArray[Any] | Sequence[Any]


class LazyTensor:
    """A tensor of a file. Its shape and dtype are known; its data is read when it is asked for.

    ``spec`` is what the file says of it: its storage, and how it lies in it. Stride and
    storage offset count elements. A LazyTensor survives ``pickle`` if its file is a path, or a file
    object that does.

    Views (`lazy`, `T`, `permute`, `reshape`, `to`) and ``+ - * /`` with numbers, arrays and other
    LazyTensors give LazyTensors: nothing is read, and they are computed block by block when they
    are (docs/lazy.md). Each is a tensor of its own with a storage of its own. `torchzip.lazy` has
    what several tensors make together.
    """

    __slots__ = ("__weakref__", "spec")

    spec: TensorSpec

    def __init__(self, spec: TensorSpec) -> None:
        self.spec = spec

    @property
    def shape(self) -> tuple[int, ...]:
        return self.spec.shape

    @property
    def ndim(self) -> int:
        return len(self.spec.shape)

    @property
    def dtype(self) -> np.dtype[Any]:
        """The numpy dtype of the data; for a dtype that numpy lacks, that of its raw bits."""
        return numpy_dtype(self.spec.torch_dtype)

    @property
    def torch_dtype(self) -> str:
        """Torch's name of the dtype, such as ``"bfloat16"``."""
        return self.spec.torch_dtype

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor's elements, whatever its storage holds."""
        return self.spec.numel * DTYPES[self.spec.torch_dtype].itemsize

    @property
    def stride(self) -> tuple[int, ...]:
        return self.spec.stride

    @property
    def storage_offset(self) -> int:
        return self.spec.storage_offset

    @property
    def requires_grad(self) -> bool:
        return self.spec.requires_grad

    @property
    def is_parameter(self) -> bool:
        return self.spec.is_parameter

    def numpy(self) -> NDArray[Any]:
        """Read the tensor and return it as an array of its own. Conj and neg are carried out.

        A broadcast tensor (stride 0) of more than 16 MiB is a read-only view of its elements.
        """
        spec = opened(self.spec)
        return _read(spec, spec.shape, spec.stride, spec.storage_offset)

    def __array__(
        self, dtype: np.dtype[Any] | None = None, copy: bool | None = None
    ) -> NDArray[Any]:
        if copy is False:
            raise ValueError("a LazyTensor has no array to share; its data is read each time")
        array = self.numpy()
        with EnoughMemory():
            return array if dtype is None else array.astype(dtype, copy=False)

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **options: Any) -> Any:
        """Leave ``array + tensor`` and the like unread; any other ufunc gets the data."""
        if ufunc in _OPERATORS and method == "__call__" and not options:
            return _arithmetic(ufunc, *inputs)
        arrays = [each.numpy() if isinstance(each, LazyTensor) else each for each in inputs]
        return getattr(ufunc, method)(*arrays, **options)

    @overload
    def __getitem__(self, key: _Int | tuple[_Int, ...]) -> Any: ...
    @overload
    def __getitem__(self, key: _Indices | tuple[_Indices, ...]) -> NDArray[Any]: ...
    def __getitem__(self, key: Any) -> Any:
        """Return ``self.numpy()[key]``, reading only the bytes that a basic index needs.

        An index by arrays or lists reads the whole tensor.
        """
        spec = opened(self.spec)
        chosen = slice_spec(spec, key)
        if chosen is None:
            with EnoughMemory():
                return self.numpy()[key]
        array = _read(spec, *chosen)
        return array if array.ndim or _has_ellipsis(key) else array[()]

    @property
    def lazy(self) -> LazyIndex:
        """The tensor for a basic index that is not read: ``tensor.lazy[10:20, :4]``."""
        return LazyIndex(self.spec)

    @property
    def T(self) -> LazyTensor:  # noqa: N802
        """The tensor with its axes in reverse order."""
        return self.permute(*reversed(range(self.ndim)))

    def permute(self, *axes: int | Sequence[int]) -> LazyTensor:
        """Return the tensor with its axes in another order, as numpy's ``transpose``."""
        from torchzip.tensors.views import permuted  # as all of these, which few programs need

        return LazyTensor(permuted(self.spec, _each_or_one_sequence(axes)))

    def reshape(self, *shape: int | Sequence[int]) -> LazyTensor:
        """Return the same elements, in C order, in another shape; one size may be -1."""
        from torchzip.tensors.views import reshaped

        return LazyTensor(reshaped(self.spec, _each_or_one_sequence(shape)))

    def to(self, dtype: Any) -> LazyTensor:
        """Return the tensor in another dtype, rounded once from what an expression computes.

        ``dtype`` is torch's name of one, or a dtype of numpy, ml_dtypes or torch. Floats round as
        torch's ``.to()`` does. Ints must fit, or it is an error to read them.

        Raises
        ------
        TypeError
            For floats that are to be ints, and complex numbers that are to be real.
        """
        from torchzip.tensors.arithmetic import converted

        made = converted(self.spec, parse_torch_dtype(dtype))
        return self if made is self.spec else LazyTensor(made)

    def __add__(self, other: Any) -> LazyTensor:
        return _arithmetic(np.add, self, other)

    def __radd__(self, other: Any) -> LazyTensor:
        return _arithmetic(np.add, other, self)

    def __sub__(self, other: Any) -> LazyTensor:
        return _arithmetic(np.subtract, self, other)

    def __rsub__(self, other: Any) -> LazyTensor:
        return _arithmetic(np.subtract, other, self)

    def __mul__(self, other: Any) -> LazyTensor:
        return _arithmetic(np.multiply, self, other)

    def __rmul__(self, other: Any) -> LazyTensor:
        return _arithmetic(np.multiply, other, self)

    def __truediv__(self, other: Any) -> LazyTensor:
        return _arithmetic(np.divide, self, other)

    def __rtruediv__(self, other: Any) -> LazyTensor:
        return _arithmetic(np.divide, other, self)

    def __neg__(self) -> LazyTensor:
        return _arithmetic(np.multiply, self, -1)

    def __len__(self) -> int:
        if not self.spec.shape:
            raise TypeError("len() of a tensor without dimensions")
        return self.spec.shape[0]

    def __iter__(self) -> Iterator[Any]:
        """Read row by row."""
        if not self.spec.shape:
            raise TypeError("a tensor without dimensions cannot be iterated over")
        return (self[index] for index in range(len(self)))

    def __repr__(self) -> str:
        extra = ", requires_grad=True" if self.requires_grad else ""
        kind = "parameter, " if self.is_parameter else ""
        return f"LazyTensor({kind}{self.torch_dtype}, shape={list(self.shape)}{extra})"

    def __reduce__(self) -> tuple[Any, ...]:
        return (LazyTensor, (self.spec,))


def _read(
    spec: TensorSpec, shape: tuple[int, ...], stride: tuple[int, ...], offset: int
) -> NDArray[Any]:
    try:
        if spec.storage.depth:  # it is read in blocks, of all that it is made of in turn
            will_read([spec.storage], parts_of_view(spec, shape, stride, offset))
        return read_view(spec, shape, stride, offset)
    except MemoryError as error:  # a block would cost each of many small reads
        raise no_memory(error) from None


class LazyIndex:
    """Takes the index of a `LazyTensor` and gives a view of it that is not read."""

    __slots__ = ("_spec",)

    def __init__(self, spec: TensorSpec) -> None:
        self._spec = spec

    def __getitem__(self, key: Any) -> LazyTensor:
        from torchzip.tensors.views import sliced

        return LazyTensor(sliced(self._spec, key))


_OPERATORS = (np.add, np.subtract, np.multiply, np.divide)


def _arithmetic(ufunc: np.ufunc, left: Any, right: Any) -> LazyTensor:
    from torchzip.tensors.arithmetic import arithmetic

    sides = [_operand(each) for each in (left, right)]
    if any(each is None for each in sides):
        return NotImplemented  # type: ignore[no-any-return]
    return LazyTensor(arithmetic(ufunc, *sides))


def _operand(value: Any) -> Any:
    """Return a tensor or a number as arithmetic takes it; None for anything else."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, int | float | complex):
        return value
    value = data_of(value)
    if isinstance(value, LazyTensor):
        return value.spec
    kind = array_kind(type(value))
    if kind == "torch tensor":
        return dense_spec(value)
    if kind == "array":
        value = array_of(value)
    made = tensor_of(value) if isinstance(value, np.ndarray) else None
    return made and made.spec


def _each_or_one_sequence(sizes: tuple[int | Sequence[int], ...]) -> Sequence[int]:
    """Return the ints that a call was given one by one, or all in one sequence."""
    return sizes[0] if len(sizes) == 1 and np.iterable(sizes[0]) else cast(Sequence[int], sizes)


def _has_ellipsis(key: Any) -> bool:
    return any(item is Ellipsis for item in (key if isinstance(key, tuple) else (key,)))


class LazyFactory(Factory):
    """Makes LazyTensors and Parameters of them."""

    def __init__(self, open_storage: OpenStorage, others: list[OtherTensor] | None = None) -> None:
        #: Every tensor that is not dense, wherever it is in the object.
        self._others = [] if others is None else others
        # Called for every storage and tensor of a file, so without a step in between.
        self.storage: Any = open_storage
        self.storages = open_storage.many if isinstance(open_storage, StorageOpener) else None
        self.tensor = LazyTensor  # type: ignore[method-assign]

    def spec_of(self, tensor: Any) -> TensorSpec | None:
        return tensor.spec if isinstance(tensor, LazyTensor) else None

    def parameter(self, tensor: Any, requires_grad: bool, state: Any) -> Parameter:
        if isinstance(tensor, LazyTensor):
            spec = tensor.spec.replace(is_parameter=True, requires_grad=requires_grad)
            tensor = LazyTensor(spec)
        elif isinstance(tensor, OtherTensor):
            tensor = tensor.replace(is_parameter=True, requires_grad=requires_grad)
        return Parameter(tensor, requires_grad, state)

    def on_device(
        self, data: Any, torch_dtype: str, device: str, requires_grad: bool
    ) -> LazyTensor | None:
        if isinstance(data, np.ndarray):
            data = as_dtype(data, torch_dtype)
            data = None if data is None else tensor_of(data, torch_dtype)
        if not isinstance(data, LazyTensor) or data.torch_dtype != torch_dtype:
            return None
        data.spec.storage.location = device  # it has no other user
        return LazyTensor(data.spec.replace(requires_grad=requires_grad))

    def is_tensor(self, value: Any) -> bool:
        return isinstance(value, LazyTensor)

    def other(self, tensor: OtherTensor) -> OtherTensor:
        self._others.append(tensor)
        return tensor


def is_tensor(value: Any) -> bool:
    """Return whether a value of a lazy checkpoint is a tensor, or a Parameter of one."""
    return type(value) is LazyTensor or isinstance(data_of(value), LazyTensor | OtherTensor)


def data_of(value: Any) -> Any:
    """Return the data of a Parameter; any other value as it is."""
    return value.data if isinstance(value, Parameter) else value


def storages_of(value: Any) -> list[TensorStorage]:
    """Return the storages of a tensor of a lazy checkpoint, or of a bare storage in it."""
    held = data_of(value)
    if isinstance(held, BareStorage):
        return [held.storage]
    parts = held.parts if isinstance(held, OtherTensor) else [held]
    return [part.spec.storage for part in parts if isinstance(part, LazyTensor)]


def tensor_of(array: NDArray[Any], torch_dtype: str | None = None) -> LazyTensor | None:
    """Return an array in memory as a tensor; None if torch has no such dtype."""
    array = np.ascontiguousarray(array.astype(array.dtype.newbyteorder("="), copy=False)).reshape(
        array.shape
    )
    name = torch_dtype or torch_dtype_of(array.dtype)
    if name is None:
        return None
    spec = TensorSpec(
        name, array.shape, contiguous_stride(array.shape), 0, ArrayStorage(array, name)
    )
    return LazyTensor(spec)


def is_weight(value: Any) -> bool:
    """Return whether a value has a flat name: a tensor, or an array of a dtype that torch has."""
    return is_tensor(value) or (
        isinstance(value, np.ndarray) and torch_dtype_of(value.dtype.newbyteorder("=")) is not None
    )
