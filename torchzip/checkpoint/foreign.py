"""What ``foreign="raise"`` promises: nothing in a value is a `ForeignObject`.

Names outside the table are refused because the file mentions them, wherever. But a name of the
table is an object too where it means nothing: ``torch.Tensor`` called with a 5, a storage class in
a list, a dtype of numpy that is never given its state. So the value itself is looked through. What
may stay is no part of it, but says what a tensor is: the name of its class, and the ranges of sizes
that torch's compiler has noted beside the sizes of a jagged tensor.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Iterable
from dataclasses import fields
from typing import Any

import numpy as np

from torchzip.errors import UnsafeGlobalError
from torchzip.tensors.specs import TensorSpec
from torchzip.types import ForeignObject, OtherTensor, Parameter

#: What has nothing inside, and is met by the million.
_LEAVES = frozenset([type(None), bool, int, float, complex, str, bytes, np.ndarray])
_RANGES = "_dynamo_dynamic_range"
_RANGE = ("torch._dynamo.decorators", "_DimRange")


def refuse_objects(
    root: Any, path: str, spec_of: Callable[[Any], TensorSpec | None] = lambda value: None
) -> None:
    """Raise UnsafeGlobalError if there is a ForeignObject in a value.

    ``spec_of`` gives the spec of a tensor that has one: attributes may hang on it.
    """
    found: dict[tuple[str, str], None] = {}
    todo = [root]
    seen: set[int] = set()
    for value in todo:  # grows meanwhile
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, ForeignObject):
            found[value.module, value.name] = None
            continue
        spec = spec_of(value)
        parts = _parts(value) if spec is None else _hung(spec.attributes, spec.subclass)
        todo += [part for part in parts if type(part) not in _LEAVES]
    if found:
        raise UnsafeGlobalError(
            list(found),
            what="objects that torchzip knows the names of and does not make",
            path=path,
        )


def _parts(value: Any) -> Iterable[Any]:
    """Return what is inside a value, the attributes of an OrderedDict and of tensors included."""
    if isinstance(value, dict):
        more = value.__dict__.values() if isinstance(value, OrderedDict) else ()
        return [*value, *value.values(), *more]
    if isinstance(value, list | tuple | set | frozenset | deque):
        return value
    if isinstance(value, slice):
        return value.start, value.stop, value.step
    if isinstance(value, Parameter):
        return value.data, value.state
    if isinstance(value, OtherTensor):
        own = [each.name for each in fields(value) if each.name not in ("attributes", "subclass")]
        return *(getattr(value, name) for name in own), *_hung(value.attributes, value.subclass)
    return ()


def _hung(attributes: Any, subclass: ForeignObject | None) -> list[Any]:
    """Return what hangs on a tensor."""
    parts: list[Any] = [subclass] if subclass is not None and subclass.how != "name" else []
    if type(attributes) is not dict:
        return [*parts, attributes]
    parts += attributes
    return parts + [
        value for key, value in attributes.items() if key != _RANGES or not _is_ranges(value)
    ]


def _is_ranges(value: Any) -> bool:
    return type(value) is set and all(map(_is_range, value))


def _is_range(value: Any) -> bool:
    """Return whether a value is a range of torch's compiler: axis, least and most, as it stands."""
    return (
        type(value) is ForeignObject
        and (value.module, value.name, value.how) == (*_RANGE, "new")
        and not (value.args or value.kwargs or value.items or value.setter)
        and type(value.state) is list
        and all(part is None or type(part) is int for part in value.state)
    )
