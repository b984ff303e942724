"""Values in a checkpoint, other than tensors, for which numpy has no type.

Their public home is `torchzip.types`. They are plain and inert: load, save and torch keep each of
them unchanged. Tensors that are not dense are in `tensors.kinds`.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Self, SupportsIndex


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
    """Slots that are set once, and equality by identity, as for torch's objects.

    ``__match_args__`` are the arguments that make one, in their order.
    """

    __slots__ = ()
    __match_args__ = ()

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f"{type(self).__name__} is immutable")

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"{type(self).__name__} is immutable")

    def _arguments(self) -> tuple[Any, ...]:
        names: tuple[str, ...] = self.__match_args__
        return tuple([getattr(self, name) for name in names])

    def __reduce__(self) -> tuple[Any, ...]:
        return (type(self), self._arguments())


class _Word(_Frozen):
    """A named value of torch: equal if type and fields are equal."""

    __slots__ = ()

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        return self._arguments() == other._arguments()

    def __hash__(self) -> int:
        return hash((type(self).__name__, self._arguments()))

    def __repr__(self) -> str:
        names: tuple[str, ...] = self.__match_args__
        fields = zip(names, self._arguments(), strict=True)
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in fields)})"


class _Name(_Word):
    __slots__ = ("name",)
    __match_args__ = ("name",)

    name: str

    def __init__(self, name: str) -> None:
        _check_text(type(self).__name__, name)
        object.__setattr__(self, "name", name)

    def __str__(self) -> str:
        return f"torch.{self.name}"


class Dtype(_Name):
    """A ``torch.dtype`` as a value: ``Dtype("float16")`` stands for ``torch.float16``.

    The name is torch's own: ``"float16"``, not ``"half"``.
    """

    __slots__ = ()


class Layout(_Name):
    """A ``torch.layout``: ``Layout("strided")`` stands for ``torch.strided``."""

    __slots__ = ()


class QScheme(_Name):
    """A ``torch.qscheme``: ``QScheme("per_tensor_affine")``."""

    __slots__ = ()


class Device(_Word):
    """A ``torch.device``: ``Device("cuda", 1)``, ``Device("cpu")``."""

    __slots__ = ("index", "type")
    __match_args__ = ("type", "index")

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

    def __str__(self) -> str:
        return self.type if self.index is None else f"{self.type}:{self.index}"


class Parameter(_Frozen):
    """``nn.Parameter``: ``data`` is an array or a LazyTensor.

    ``state`` holds the Python attributes of the parameter, or None if it has none.
    """

    __slots__ = ("data", "requires_grad", "state")
    __match_args__ = ("data", "requires_grad", "state")

    data: Any
    requires_grad: bool
    state: Any

    def __init__(self, data: Any, requires_grad: bool = True, state: Any = None) -> None:
        object.__setattr__(self, "data", data)
        object.__setattr__(self, "requires_grad", requires_grad)
        object.__setattr__(self, "state", state)

    def __repr__(self) -> str:
        return f"Parameter({self.data!r}, requires_grad={self.requires_grad})"


class TypedArray(_Frozen):
    """An array of a dtype that numpy lacks: the raw bits and torch's name for them.

    `load` also returns one for a tensor that is a key of a dict, since it is hashable (by
    identity).

    >>> import numpy as np
    >>> TypedArray(np.array([1, 2], np.uint8), "bits8")
    TypedArray(array([1, 2], dtype=uint8), 'bits8')
    """

    __slots__ = ("array", "torch_dtype")
    __match_args__ = ("array", "torch_dtype")

    array: Any
    torch_dtype: str

    def __init__(self, array: Any, torch_dtype: str) -> None:
        object.__setattr__(self, "array", array)
        object.__setattr__(self, "torch_dtype", torch_dtype)

    def __repr__(self) -> str:
        return f"TypedArray({self.array!r}, {self.torch_dtype!r})"


class Storage(_Frozen):
    """A bare torch storage in the tree.

    ``data`` is its content as a one-dimensional array (or LazyTensor), ``torch_dtype``
    the dtype of a typed storage, which must be that of the data, or None for an untyped one, which
    counts bytes. It is saved as exactly the bytes of ``data``. An array that is saved with it and
    shares its memory must lie within these bytes.
    """

    __slots__ = ("data", "location", "torch_dtype")
    __match_args__ = ("data", "torch_dtype", "location")

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
        return (Storage, self._arguments())  # of what a file mentions too


@dataclass(slots=True, eq=False, repr=False, weakref_slot=True)
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

    module: str
    name: str
    args: tuple[Any, ...] | None = None
    kwargs: dict[str, Any] | None = None
    state: Any = None
    items: list[Any] | dict[Any, Any] | set[Any] | None = None
    callee: ForeignObject | None = field(default=None, kw_only=True)
    how: str = field(default=None, kw_only=True)  # type: ignore[assignment]
    setter: ForeignObject | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        if not (type(self.module) is type(self.name) is str):
            raise TypeError("the module and the name of a ForeignObject are strings")
        args, kwargs, how = self.args, self.kwargs, self.how
        if not isinstance(args, tuple | None) or not isinstance(kwargs, dict | None):
            raise TypeError("the args of a ForeignObject are a tuple, its kwargs a dict")
        if kwargs is not None and not all(isinstance(key, str) for key in kwargs):
            raise TypeError("the kwargs of a ForeignObject have strings as keys")
        if not isinstance(self.items, list | dict | set | None):
            raise TypeError("the items of a ForeignObject are a list, a dict or a set")
        if how not in (None, "name", "call", "new"):
            raise ValueError(f"a ForeignObject is made by 'name', 'call' or 'new', not {how!r}")
        self.how = how if how is not None else ("name" if args is None else "call")
        if self.callee is None and self.how != "name":
            self.callee = ForeignObject(self.module, self.name)

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


# Pickles and tracebacks name the classes as users do.
for _kind in (
    Size, Dtype, Layout, QScheme, Device, Parameter, TypedArray, Storage, ForeignObject
):  # fmt: skip
    _kind.__module__ = "torchzip.types"


def _some(mapping: dict[Any, Any]) -> str:
    """Name up to five keys."""
    names = [str(key)[:40] for key, _ in zip(mapping, range(5), strict=False)]
    more = len(mapping) - len(names)
    return "{" + ", ".join(names) + (f", and {more} more" if more > 0 else "") + "}"
