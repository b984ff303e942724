"""Leaf types: what a checkpoint holds and numpy has no word for.

They are plain and inert. Each survives load, save and torch unchanged.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

__all__ = [
    "Device",
    "Dtype",
    "ForeignObject",
    "Layout",
    "Parameter",
    "QScheme",
    "Size",
    "Storage",
    "TypedArray",
]


class Size(tuple[int, ...]):
    """``torch.Size``: a tuple of ints that torch gets back as a Size."""

    __slots__ = ()

    def __repr__(self) -> str:
        return f"Size({list(self)})"


@dataclass(frozen=True, slots=True)
class Dtype:
    """A ``torch.dtype`` as a value: ``Dtype("float16")`` stands for ``torch.float16``."""

    name: str

    def __str__(self) -> str:
        return f"torch.{self.name}"


@dataclass(frozen=True, slots=True)
class Device:
    """A ``torch.device``: ``Device("cuda", 1)``, ``Device("cpu")``."""

    type: str
    index: int | None = None

    def __str__(self) -> str:
        return self.type if self.index is None else f"{self.type}:{self.index}"


@dataclass(frozen=True, slots=True)
class Layout:
    """A ``torch.layout``: ``Layout("strided")`` stands for ``torch.strided``."""

    name: str

    def __str__(self) -> str:
        return f"torch.{self.name}"


@dataclass(frozen=True, slots=True)
class QScheme:
    """A ``torch.qscheme``: ``QScheme("per_tensor_affine")``."""

    name: str

    def __str__(self) -> str:
        return f"torch.{self.name}"


class _Frozen:
    """Slots that are set once, and equality by identity, as torch's objects have it."""

    __slots__ = ()

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f"{type(self).__name__} is immutable")

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"{type(self).__name__} is immutable")


class Parameter(_Frozen):
    """``nn.Parameter``: ``data`` is an array or a LazyTensor.

    ``state`` holds the Python attributes of a parameter that has some, else None.
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
    """An array of a dtype that numpy has not: the raw bits and torch's name for them.

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
    the dtype of a typed storage and None for an untyped one, which counts bytes.
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


class ForeignObject:
    """A class, a function or an object that the file names and torchzip does not know.

    Nothing is imported or called to make one. Without ``args`` it is the bare name
    ``module.name``; with ``args`` (and ``kwargs``) it is what calling that name, or
    making a new object of that class, would have given. ``state`` is what pickle
    would have handed to ``__setstate__`` or the attribute dict, ``items`` the list,
    dict or set of items that would have been added. Two are equal only if they are
    the same object. An extension code of ``copyreg``, whose name is not in the file, is
    the name ``copyreg.extension 7``.

    ``callee`` is what is called: itself a ForeignObject, a bare name or the result of
    another call. ``how`` is ``"name"``, ``"call"`` or ``"new"``. ``setter`` is the function
    of a reduction that sets its state by a call of its own.
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
        """One line: the name, and how much is inside, not what."""
        inside: Iterable[str] = ()
        if self.how == "name":
            return f"<foreign {self.module}.{self.name}>"
        inside = [f"{len(self.args or ())} args"] if self.args else []
        if self.kwargs:
            inside.append(f"kwargs {_some(self.kwargs)}")
        if isinstance(self.state, dict):
            inside.append(f"state {_some(self.state)}")
        elif self.state is not None:
            inside.append(f"state of type {type(self.state).__name__}")
        if self.items:
            inside.append(f"{len(self.items)} items")
        return f"<foreign {self.module}.{self.name}({', '.join(inside)})>"


def _some(mapping: dict[Any, Any]) -> str:
    """Name up to five keys."""
    names = [str(key)[:40] for key, _ in zip(mapping, range(5), strict=False)]
    more = len(mapping) - len(names)
    return "{" + ", ".join(names) + (f", and {more} more" if more > 0 else "") + "}"
