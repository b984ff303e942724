"""What stands for values while `torch_loader` follows a pickle as torch's loaders do.

A plain value stands for itself, a long string by its beginning. Anything else is a `Made`: what
kind of thing it is, and of tensors as much as decides whether a later step fails. `UNKNOWN` is what
a name outside torch's allow-list gives: nothing is known of it, and so nothing is wrong with it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

#: Items of a dict that are kept: those of metadata, of hooks, of a nested tensor's arguments.
_KEPT_ITEMS = 64


class RefusedError(Exception):
    """Both of torch's loaders fail here; the message says of what."""


@dataclass(slots=True, eq=False)
class Made:
    """A value that is not plain.

    ``kind`` is the name of its class where that is one of Python's; a function or a class that is
    not called yet is "function" or "class", with its full ``name``. Of a tensor ``name`` is the
    dtype and ``form`` what kind of tensor it is. Of a list ``form`` says what is in it: "" for
    numbers alone, "mixed" for anything that no tensor is made of, "nested" for what may be.
    """

    kind: str
    name: str = ""
    form: str = ""
    count: int = 0
    size: tuple[Any, ...] | None = None
    stride: tuple[Any, ...] | None = None
    items: dict[str, Any] = field(default_factory=dict)
    #: Whether a dict has keys that are not strings.
    has_other_keys: bool = False

    def append(self, items: list[Any]) -> None:
        """Note what a list gets."""
        self.count += len(items)
        for item in items:
            if self.form == "mixed":
                break
            if isinstance(item, Made | Unknown | tuple):
                self.form = "nested"
            elif not isinstance(item, int | float):
                self.form = "mixed"

    def put(self, key: Any, value: Any) -> None:
        """Keep an item of a dict, if there are few."""
        self.count += 1
        self.has_other_keys |= not isinstance(key, str)
        if len(self.items) < _KEPT_ITEMS and isinstance(key, str):
            self.items[key] = value


class Unknown:
    """What nothing is known of."""


UNKNOWN = Unknown()

_UNHASHABLE = frozenset(["list", "dict", "set", "bytearray", "OrderedDict", "Counter"])
TENSORS = ("Tensor", "Parameter", "NestedTensor")


def check_hash(value: Any) -> None:
    """Raise RefusedError for what cannot be a key; torchzip has bounded how deep it is."""
    if isinstance(value, tuple):
        for item in value:
            check_hash(item)
    elif is_a(value, *_UNHASHABLE):
        raise RefusedError(f"a {value.kind} is a key of a dict or an item of a set")


def is_a(value: Any, *kinds: str) -> bool:
    """Return whether a value is a `Made` of one of these kinds."""
    return isinstance(value, Made) and value.kind in kinds


def is_tensor(value: Any) -> bool:
    return is_a(value, *TENSORS)


def is_dict(value: Any) -> bool:
    return is_a(value, "dict", "OrderedDict", "Counter")


def is_empty(value: Any) -> bool:
    """Return whether a value is false in Python; of what is unknown it is not known."""
    if isinstance(value, Made):
        return value.kind in (*_UNHASHABLE, "Size") and not value.count
    return not isinstance(value, Unknown) and not value
