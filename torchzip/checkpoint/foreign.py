"""What ``foreign="raise"`` promises: nothing in a value is a `ForeignObject`.

Names outside the table are refused because the file mentions them, wherever. But a name of the
table is an object too where it means nothing: ``torch.Tensor`` called with a 5, a storage class in
a list, a dtype of numpy that is never given its state. So the value itself is looked through. What
may stay is not a part of it but says what a tensor is: the name of its class, and the ranges of
sizes that torch's compiler puts beside the sizes of a jagged tensor.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torchzip.checkpoint.lazy_tensor import LazyTensor
from torchzip.checkpoint.walk import holders, reach
from torchzip.errors import UnsafeGlobalError
from torchzip.formats.base import Child, Container, Contents
from torchzip.formats.pickled import refuse_foreign
from torchzip.leaf_types import ForeignObject
from torchzip.limits import Limits
from torchzip.tensors.kinds.base import OtherTensor

_RANGES = "_dynamo_dynamic_range"
_RANGE = ("torch._dynamo.decorators", "_DimRange")


def refuse_objects(
    container: Container, contents: Contents, limits: Limits, constants: Any = None
) -> None:
    """Raise UnsafeGlobalError for names outside the table, and for ForeignObjects in the values."""
    refuse_foreign(container, contents, limits)
    for root in (contents.root, constants):
        objects = (each for each in reach(root, _parts) if isinstance(each, ForeignObject))
        found = dict.fromkeys((each.module, each.name) for each in objects)
        if found:
            raise UnsafeGlobalError(
                list(found),
                what="objects that torchzip knows the names of and does not make",
                path=container.name,
            )


def _parts(value: Any) -> Iterator[Child]:
    if isinstance(value, ForeignObject):
        return  # enough has been seen
    for name, step, part in holders(value):
        if name != _RANGES or type(part) is not set or not all(map(_is_range, part)):
            yield name, step, part
    if isinstance(value, LazyTensor | OtherTensor):
        subclass = value.spec.subclass if isinstance(value, LazyTensor) else value.subclass
        if subclass is not None and subclass.how != "name":
            yield "class", "", subclass


def _is_range(value: Any) -> bool:
    """Return whether a value is a range of torch's compiler: axis, least and most, as it stands."""
    return (
        type(value) is ForeignObject
        and (value.module, value.name, value.how) == (*_RANGE, "new")
        and not (value.args or value.kwargs or value.items or value.setter)
        and type(value.state) is list
        and all(part is None or type(part) is int for part in value.state)
    )
