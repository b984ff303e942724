"""The meaning of the names in a file: all that an `Interpreter` knows about the world."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn

from torchzip.errors import PickleError
from torchzip.leaf_types import ForeignObject
from torchzip.pickling.keys import KeyCheck
from torchzip.pickling.memo import Memo

Name = tuple[str, str]
#: Runs many opcodes at once: (data, position, memo, stack, the stacks below each mark) -> the
#: position after them, or None if nothing was done.
Shortcut = Callable[[bytes, int, Memo, list[Any], list[list[Any]]], int | None]


#: Returned by a handler of a `Table` to keep a call as a ForeignObject.
KEEP: Any = object()


def _no_persistent_id(pid: Any) -> NoReturn:
    raise PickleError("a persistent id, and nothing here to resolve it")


@dataclass(slots=True, eq=False, repr=False)
class Table:
    """The meaning of the names in a file.

    ``values`` are names that stand for a value (``torch.float32``). ``calls`` take the argument
    tuple of a REDUCE on a name, or of a NEWOBJ without arguments. ``builds`` take an object that
    was made from a name, and the state of its BUILD. Both may return `KEEP`. ``names`` are known,
    but only have a meaning in certain places, such as storage classes in persistent ids.
    ``persistent`` resolves a persistent id. ``keys`` refuses keys that cost too much.
    ``shortcut`` is for a call that occurs once for every tensor: the name that is called, and a
    function that makes, from the names so far, a `Shortcut` for the arguments, the call and the
    opcodes after it. That finds the name on the stack and leaves the value there.
    ``one_value`` is the prefix of modules whose names may be called with a value that is not a
    tuple, which is how TorchScript's C++ writer writes an enum.
    """

    values: Mapping[Name, Any] = field(default_factory=dict)
    calls: Mapping[Name, Callable[[tuple[Any, ...]], Any]] = field(default_factory=dict)
    builds: Mapping[Name, Callable[[ForeignObject, Any], Any]] = field(default_factory=dict)
    names: frozenset[Name] = frozenset()
    persistent: Callable[[Any], Any] = _no_persistent_id
    keys: KeyCheck = field(default_factory=KeyCheck)
    shortcut: tuple[Name, Callable[[Mapping[Name, Any]], Shortcut]] | None = None
    one_value: str | None = None

    def knows(self, name: Name) -> bool:
        """Return whether a name is in the table."""
        return (
            name in self.values or name in self.calls or name in self.builds or name in self.names
        )
