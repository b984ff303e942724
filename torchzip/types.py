"""Leaf types: values in a checkpoint for which numpy has no type.

They are plain and inert. Load, save and torch keep each of them unchanged.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Self, SupportsIndex

__all__ = [
    "Device",
    "Dtype",
    "ForeignObject",
    "Layout",
    "MetaTensor",
    "NestedTensor",
    "OtherTensor",
    "Parameter",
    "QScheme",
    "QuantizedTensor",
    "Size",
    "SparseTensor",
    "Storage",
    "TypedArray",
]


def _check_text(what: str, name: object) -> None:
    if not isinstance(name, str):
        raise TypeError(f"{what} takes a name, not {type(name).__name__}")


class Size(tuple[int, ...]):
    """``torch.Size``: a tuple of ints that torch gets back as a Size.

    As in torch, everything that can be an index, such as an int of numpy, becomes a plain int.
    """

    __slots__ = ()

    def __new__(cls, sizes: Iterable[SupportsIndex] = ()) -> Self:
        return super().__new__(cls, map(int, map(operator.index, sizes)))

    def __repr__(self) -> str:
        return f"Size({list(self)})"


class _Frozen:
    """Slots that are set once, and equality by identity, as for torch's objects."""

    __slots__ = ()

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f"{type(self).__name__} is immutable")

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"{type(self).__name__} is immutable")


class _Word(_Frozen):
    """A named value of torch: equal if type and fields are equal."""

    __slots__ = ()

    name: str

    def __init__(self, name: str) -> None:
        _check_text(type(self).__name__, name)
        object.__setattr__(self, "name", name)

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        return self.name == other.name

    def __hash__(self) -> int:
        return hash((type(self).__name__, self.name))

    def __repr__(self) -> str:
        return f"{type(self).__name__}(name={self.name!r})"

    def __str__(self) -> str:
        return f"torch.{self.name}"

    def __reduce__(self) -> tuple[Any, ...]:
        return (type(self), (self.name,))


class Dtype(_Word):
    """A ``torch.dtype`` as a value: ``Dtype("float16")`` stands for ``torch.float16``.

    The name is torch's own: ``"float16"``, not ``"half"``.
    """

    __slots__ = ("name",)


class Layout(_Word):
    """A ``torch.layout``: ``Layout("strided")`` stands for ``torch.strided``."""

    __slots__ = ("name",)


class QScheme(_Word):
    """A ``torch.qscheme``: ``QScheme("per_tensor_affine")``."""

    __slots__ = ("name",)


class Device(_Frozen):
    """A ``torch.device``: ``Device("cuda", 1)``, ``Device("cpu")``."""

    __slots__ = ("index", "type")

    type: str
    index: int | None

    def __init__(self, type: str, index: int | None = None) -> None:
        _check_text("Device", type)
        if index is not None:
            index = int(operator.index(index))
            if index < 0:
                raise ValueError(f"a Device has the index {index}; 0 or more was expected")
        object.__setattr__(self, "type", type)
        object.__setattr__(self, "index", index)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Device):
            return NotImplemented
        return (self.type, self.index) == (other.type, other.index)

    def __hash__(self) -> int:
        return hash((self.type, self.index))

    def __repr__(self) -> str:
        return f"Device(type={self.type!r}, index={self.index!r})"

    def __str__(self) -> str:
        return self.type if self.index is None else f"{self.type}:{self.index}"

    def __reduce__(self) -> tuple[Any, ...]:
        return (Device, (self.type, self.index))


class Parameter(_Frozen):
    """``nn.Parameter``: ``data`` is an array or a LazyTensor.

    ``state`` holds the Python attributes of the parameter, or None if it has none.
    """

    __slots__ = ("data", "requires_grad", "state")

    data: Any
    requires_grad: bool
    state: Any

    def __init__(self, data: Any, requires_grad: bool = True, state: Any = None) -> None:
        object.__setattr__(self, "data", data)
        object.__setattr__(self, "requires_grad", requires_grad)
        object.__setattr__(self, "state", state)

    def __repr__(self) -> str:
        return f"Parameter({self.data!r}, requires_grad={self.requires_grad})"

    def __reduce__(self) -> tuple[Any, ...]:
        return (Parameter, (self.data, self.requires_grad, self.state))


class TypedArray(_Frozen):
    """An array of a dtype that numpy lacks: the raw bits and torch's name for them.

    `load` also returns one for a tensor that is a key of a dict, since it is hashable (by
    identity).

    >>> import numpy as np
    >>> TypedArray(np.array([1, 2], np.uint8), "bits8")
    TypedArray(array([1, 2], dtype=uint8), 'bits8')
    """

    __slots__ = ("array", "torch_dtype")

    array: Any
    torch_dtype: str

    def __init__(self, array: Any, torch_dtype: str) -> None:
        object.__setattr__(self, "array", array)
        object.__setattr__(self, "torch_dtype", torch_dtype)

    def __repr__(self) -> str:
        return f"TypedArray({self.array!r}, {self.torch_dtype!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        return (TypedArray, (self.array, self.torch_dtype))


class Storage(_Frozen):
    """A bare torch storage in the tree.

    ``data`` is its content as a one-dimensional array (or LazyTensor), ``torch_dtype``
    the dtype of a typed storage, which must be that of the data, or None for an untyped one, which
    counts bytes. It is saved as exactly the bytes of ``data``. An array that is saved with it and
    shares its memory must lie within these bytes.
    """

    __slots__ = ("data", "location", "torch_dtype")

    data: Any
    torch_dtype: str | None
    location: str

    def __init__(self, data: Any, torch_dtype: str | None = None, location: str = "cpu") -> None:
        object.__setattr__(self, "data", data)
        object.__setattr__(self, "torch_dtype", torch_dtype)
        object.__setattr__(self, "location", location)

    def __repr__(self) -> str:
        return f"Storage({self.data!r}, {self.torch_dtype!r}, {self.location!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        return (Storage, (self.data, self.torch_dtype, self.location))


@dataclass(frozen=True, slots=True, eq=False, repr=False, kw_only=True)
class OtherTensor:
    """Base of the tensors that are not dense.

    Their parts are LazyTensors in a lazy checkpoint and numpy arrays elsewhere. ``is_parameter`` is
    True for the data of a Parameter. A tensor with Python attributes, or of a subclass, has
    the name of its class in ``subclass`` and its saved state in ``attributes``; both are None for
    plain tensors.
    """

    attributes: Any = None
    subclass: ForeignObject | None = None
    is_parameter: bool = False

    #: The fields that hold tensors, in torch's order.
    PARTS: ClassVar[tuple[str, ...]] = ()

    def replace(self, **changes: Any) -> Self:
        """Return a copy with some fields changed."""
        return replace(self, **changes)

    @property
    def parts(self) -> list[Any]:
        """The tensors that this one consists of."""
        held: list[Any] = []
        for name in self.PARTS:
            value = getattr(self, name)
            held += value if isinstance(value, tuple) else [value] if _is_part(value) else []
        return held

    def with_parts(self, change: Callable[[Any], Any]) -> Self:
        """Return a copy with ``change`` applied to each part."""
        changes: dict[str, Any] = {}
        for name in self.PARTS:
            value = getattr(self, name)
            if isinstance(value, tuple):
                changes[name] = tuple(change(part) for part in value)
            elif _is_part(value):
                changes[name] = change(value)
        return replace(self, **changes)

    @property
    def requires_grad(self) -> bool:
        raise NotImplementedError

    @property
    def torch_dtype(self) -> str:
        raise NotImplementedError

    @property
    def shape(self) -> tuple[int | None, ...]:
        raise NotImplementedError

    @property
    def kind(self) -> str:
        """Its kind: ``"sparse_csr"``, ``"quantized"``, ``"nested"``, ..."""
        raise NotImplementedError

    @property
    def nbytes(self) -> int:
        """Bytes of the elements of its parts, counting broadcast axes in full."""
        return sum(_array_of(part).nbytes for part in self.parts)

    def _describe(self) -> str:
        raise NotImplementedError

    def __repr__(self) -> str:
        extra = ", parameter" if self.is_parameter else ""
        extra += ", requires_grad=True" if self.requires_grad else ""
        return f"{type(self).__name__}({self._describe()}{extra})"


def _check_parts(tensor: OtherTensor, *needed: str) -> None:
    """Raise TypeError if a part has no shape; parts that are not ``needed`` may be anything."""
    for name in tensor.PARTS:
        value = getattr(tensor, name)
        for part in value if isinstance(value, tuple) else (value,):
            if (name in needed or _is_part(part)) and not hasattr(_array_of(part), "shape"):
                raise TypeError(
                    f"{name} of a {type(tensor).__name__}: a {type(part).__name__}; an array or a "
                    "tensor was expected"
                )


def _is_part(value: Any) -> bool:
    return value is not None and not isinstance(value, int | float | list)


def _array_of(part: Any) -> Any:
    return part.array if isinstance(part, TypedArray) else part


def _torch_dtype_of(part: Any) -> str:
    name = getattr(part, "torch_dtype", None)
    if name is None:  # numpy and ml_dtypes call a dtype as torch does
        name = getattr(part.dtype, "name", None) or str(part.dtype).removeprefix("torch.")
    return str(name)


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class SparseTensor(OtherTensor):
    """A sparse tensor: the values, and their places in a dense tensor of ``shape``.

    ``layout`` is torch's name. For ``"sparse_coo"``, ``indices`` is an int64 array of shape (sparse
    dimensions, n) and ``values`` has shape (n, dense dimensions ...). For ``"sparse_csr"``,
    ``"sparse_csc"``, ``"sparse_bsr"`` and ``"sparse_bsc"``, ``indices`` is the pair of the
    compressed and the plain indices, int64 or int32, as in ``crow_indices()`` and ``col_indices()``
    of a CSR tensor. The blocks of BSR and BSC are two axes of ``values`` after the axis that counts
    them. ``is_coalesced`` is None for these, and for a COO tensor if its file does not say.

    >>> import numpy as np
    >>> eye = SparseTensor("sparse_coo", np.array([[0, 1], [0, 1]]), np.ones(2), (2, 2))
    >>> eye, eye.todense().tolist()
    (SparseTensor(sparse_coo, float64, shape=[2, 2], nnz=2), [[1.0, 0.0], [0.0, 1.0]])
    """

    layout: str
    indices: Any
    values: Any
    shape: tuple[int, ...]
    is_coalesced: bool | None = False
    requires_grad: bool = field(default=False, kw_only=True)

    PARTS = ("indices", "values")

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", tuple(self.shape))
        if isinstance(self.indices, list):
            object.__setattr__(self, "indices", tuple(self.indices))
        if self.layout != "sparse_coo":
            object.__setattr__(self, "is_coalesced", None)
        _check_parts(self, "indices", "values")

    @property
    def torch_dtype(self) -> str:
        """Torch's name of the dtype of the values."""
        return _torch_dtype_of(self.values)

    @property
    def compressed_indices(self) -> Any:
        """The first of the two indices of a compressed layout; None for COO."""
        return self.indices[0] if isinstance(self.indices, tuple) else None

    @property
    def plain_indices(self) -> Any:
        """The second of the two indices of a compressed layout; None for COO."""
        return self.indices[1] if isinstance(self.indices, tuple) else None

    @property
    def nnz(self) -> int:
        """The number of values (blocks, for BSR and BSC) in each batch."""
        indices = self.indices[1] if isinstance(self.indices, tuple) else self.indices
        return int(indices.shape[-1])

    @property
    def kind(self) -> str:
        return self.layout

    def todense(self) -> Any:
        """Return the dense array that torch's ``to_dense()`` gives; values in the same place are
        added.

        Raises
        ------
        TensorError
            If an index lies outside the shape.
        OSError
            If the dense array does not fit into memory.
        """
        from torchzip.tensors.dense import sparse_to_dense

        return sparse_to_dense(self)

    def _describe(self) -> str:
        return f"{self.layout}, {self.torch_dtype}, shape={list(self.shape)}, nnz={self.nnz}"


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class QuantizedTensor(OtherTensor):
    """A quantized tensor: integers, and the scale and zero point that turn them into floats.

    Per tensor, ``axis`` is None, ``scale`` a float and ``zero_point`` an int. Per channel, the last
    two are one-dimensional arrays with an element for each index of ``axis``: float64 and int64, or
    both float32 for the scheme ``per_channel_affine_float_qparams``. In files of torch before 1.4
    they are lists.

    ``int_repr`` holds the integers: int8 for qint8, uint8 for quint8, int32 for qint32. The packed
    dtypes have 2 (quint4x2) or 4 (quint2x4) values in a byte, the first in the lowest bits. Their
    ``int_repr`` is a one-dimensional uint8 array, and ``torch_dtype`` and ``shape`` are required.

    >>> import numpy as np
    >>> tensor = QuantizedTensor(np.array([3, 4], "uint8"), 0.5, 3)
    >>> tensor, tensor.dequantize().tolist()
    (QuantizedTensor(quint8, shape=[2], per_tensor_affine), [0.0, 0.5])
    """

    int_repr: Any
    scale: Any
    zero_point: Any
    axis: int | None = None
    requires_grad: bool = field(default=False, kw_only=True)
    torch_dtype: str = field(default="", kw_only=True)
    shape: tuple[int, ...] = field(default=None, kw_only=True)  # type: ignore[arg-type]

    PARTS = ("int_repr", "scale", "zero_point")

    def __post_init__(self) -> None:
        _check_parts(self, "int_repr")
        if self.axis is None:
            object.__setattr__(self, "scale", float(self.scale))
            object.__setattr__(self, "zero_point", int(self.zero_point))
        if not self.torch_dtype:
            name = _torch_dtype_of(self.int_repr)
            name = {"int8": "qint8", "uint8": "quint8", "int32": "qint32"}.get(name, name)
            object.__setattr__(self, "torch_dtype", name)
        shape: Any = self.shape  # None: that of the integers
        if shape is None:
            shape = _array_of(self.int_repr).shape
        object.__setattr__(self, "shape", tuple(shape))

    @property
    def qscheme(self) -> str:
        """Torch's name for the scheme."""
        if self.axis is None:
            return "per_tensor_affine"
        listed = isinstance(self.zero_point, list)
        floats = not listed and _torch_dtype_of(self.zero_point).startswith("float")
        return "per_channel_affine_float_qparams" if floats else "per_channel_affine"

    @property
    def kind(self) -> str:
        return "quantized"

    def dequantize(self) -> Any:
        """Return the float32 array that torch's ``dequantize()`` gives.

        Raises
        ------
        TensorError
            If a zero point lies outside the integers of the dtype, which torch refuses too.
        OSError
            If the array does not fit into memory.
        """
        from torchzip.tensors.dense import dequantize

        return dequantize(self)

    def _describe(self) -> str:
        axis = "" if self.axis is None else f", axis={self.axis}"
        return f"{self.torch_dtype}, shape={list(self.shape)}, {self.qscheme}{axis}"


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class NestedTensor(OtherTensor):
    """A nested tensor: several tensors of different sizes over one buffer, ``values``.

    ``layout`` is ``"strided"`` or ``"jagged"``. Strided: ``sizes`` and ``strides`` are int64 arrays
    of shape (n, dimensions) and ``offsets`` one of shape (n), in elements of ``values``, which has
    one dimension. Jagged: tensor i is the part of ``values`` on axis ``ragged_idx - 1`` from
    ``offsets[i]`` to ``offsets[i + 1]``, or of ``lengths[i]`` elements if there are lengths.
    ``constructor`` is the argument dict of a jagged tensor as in its file, with torch's caches;
    ``attributes`` is torch's attribute dict.

    >>> import numpy as np
    >>> nested = NestedTensor("jagged", np.arange(5.0), np.array([0, 2, 5]))
    >>> nested, [array.tolist() for array in nested.unbind()]
    (NestedTensor(jagged, float64, shape=[2, None]), [[0.0, 1.0], [2.0, 3.0, 4.0]])
    """

    layout: str
    values: Any
    offsets: Any
    sizes: Any = field(default=None, kw_only=True)
    strides: Any = field(default=None, kw_only=True)
    lengths: Any = field(default=None, kw_only=True)
    ragged_idx: int = field(default=1, kw_only=True)
    requires_grad: bool = field(default=False, kw_only=True)
    constructor: Any = field(default=None, kw_only=True)

    PARTS = ("values", "sizes", "strides", "offsets", "lengths")

    def __post_init__(self) -> None:
        _check_parts(self, "values", "offsets")

    @property
    def torch_dtype(self) -> str:
        """Torch's name of the dtype of the values."""
        return _torch_dtype_of(self.values)

    @property
    def shape(self) -> tuple[int | None, ...]:
        """The shape, with None for each axis whose size differs or is unknown before reading."""
        if self.layout == "strided":
            sizes = self.sizes.shape
            return (int(self.offsets.shape[0]), *(None for _ in range(sizes[1] if sizes else 0)))
        inner = list(_array_of(self.values).shape)
        inner[self.ragged_idx - 1] = None
        return (int(self.offsets.shape[0]) - 1, *inner)

    @property
    def kind(self) -> str:
        return "nested" if self.layout == "strided" else "nested_jagged"

    def unbind(self) -> list[Any]:
        """Return its tensors as arrays: views of one array that is read as a whole.

        Raises
        ------
        TensorError
            If one of them does not lie inside the values.
        OSError
            If the values do not fit into memory.
        """
        from torchzip.tensors.dense import nested_arrays

        return nested_arrays(self)

    def _describe(self) -> str:
        return f"{self.layout}, {self.torch_dtype}, shape={list(self.shape)}"


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class MetaTensor(OtherTensor):
    """A tensor on torch's meta device: dtype, shape and stride (in elements), and no data.

    >>> MetaTensor("float32", (2, 3)), MetaTensor("float32", (2, 3)).stride
    (MetaTensor(float32, shape=[2, 3]), (3, 1))
    """

    torch_dtype: str
    shape: tuple[int, ...]
    stride: tuple[int, ...] = None  # type: ignore[assignment]
    requires_grad: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", tuple(self.shape))
        stride: Any = self.stride  # None: that of a contiguous tensor
        if stride is None:
            stride = [1] * len(self.shape)
            for axis in range(len(self.shape) - 2, -1, -1):
                stride[axis] = stride[axis + 1] * max(self.shape[axis + 1], 1)
        object.__setattr__(self, "stride", tuple(stride))

    @property
    def kind(self) -> str:
        return "meta"

    def _describe(self) -> str:
        return f"{self.torch_dtype}, shape={list(self.shape)}"


class ForeignObject:
    """A class, a function or an object that the file names and torchzip does not know.

    Nothing is imported or called to make one. Without ``args`` it is the bare name
    ``module.name``. With ``args`` (and ``kwargs``) it stands for the result of calling that
    name, or for a new object of that class. ``state`` is the value that pickle would have
    handed to ``__setstate__`` or the attribute dict, ``items`` the list, dict or set of items
    that would have been added. Two are equal only if they are the same object. An extension
    code of ``copyreg``, whose name is not in the file, has a name like ``copyreg.extension 7``.

    ``callee`` is the thing called: another ForeignObject, either a bare name or the result of
    another call. ``how`` is ``"name"``, ``"call"`` or ``"new"``. ``setter`` is the function
    that sets the state, if the reduction has one.
    """

    __slots__ = (
        "__weakref__",
        "args",
        "callee",
        "how",
        "items",
        "kwargs",
        "module",
        "name",
        "setter",
        "state",
    )

    def __init__(
        self,
        module: str,
        name: str,
        args: tuple[Any, ...] | None = None,
        kwargs: dict[str, Any] | None = None,
        state: Any = None,
        items: list[Any] | dict[Any, Any] | set[Any] | None = None,
        *,
        callee: ForeignObject | None = None,
        how: str | None = None,
        setter: ForeignObject | None = None,
    ) -> None:
        if not (type(module) is type(name) is str):
            raise TypeError("the module and the name of a ForeignObject are strings")
        if not isinstance(args, tuple | None) or not isinstance(kwargs, dict | None):
            raise TypeError("the args of a ForeignObject are a tuple, its kwargs a dict")
        if kwargs is not None and not all(isinstance(key, str) for key in kwargs):
            raise TypeError("the kwargs of a ForeignObject have strings as keys")
        if not isinstance(items, list | dict | set | None):
            raise TypeError("the items of a ForeignObject are a list, a dict or a set")
        if how not in (None, "name", "call", "new"):
            raise ValueError(f"a ForeignObject is made by 'name', 'call' or 'new', not {how!r}")
        self.module = module
        self.name = name
        self.args = args
        self.kwargs = kwargs
        self.state = state
        self.items = items
        self.how = how if how is not None else ("name" if args is None else "call")
        if callee is None and self.how != "name":
            callee = ForeignObject(module, name)
        self.callee = callee
        self.setter = setter

    def __repr__(self) -> str:
        """One line: the name and the sizes of the parts, not their values."""
        called = f"{self.module}.{self.name}"
        if len(called) > 200:
            called = called[:200] + "..."
        if self.how == "name":
            return f"<foreign {called}>"
        inside = [f"{len(self.args or ())} args"] if self.args else []
        if self.kwargs:
            inside.append(f"kwargs {_some(self.kwargs)}")
        if isinstance(self.state, dict):
            inside.append(f"state {_some(self.state)}")
        elif self.state is not None:
            inside.append(f"state of type {type(self.state).__name__}")
        if self.items:
            inside.append(f"{len(self.items)} items")
        return f"<foreign {called}({', '.join(inside)})>"


def _some(mapping: dict[Any, Any]) -> str:
    """Name up to five keys."""
    names = [str(key)[:40] for key, _ in zip(mapping, range(5), strict=False)]
    more = len(mapping) - len(names)
    return "{" + ", ".join(names) + (f", and {more} more" if more > 0 else "") + "}"
