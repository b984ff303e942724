"""What the names of a file mean: the only thing that an `Interpreter` knows of the world."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn

from torchzip.errors import PickleError
from torchzip.leaf_types import ForeignObject
from torchzip.pickling.keys import KeyCheck
from torchzip.pickling.memo import Memo

Name = tuple[str, str]
#: Carries out many opcodes at once: (data, position, memo, stack) -> the position behind them, or
#: None if nothing was done.
Shortcut = Callable[[bytes, int, Memo, list[Any]], int | None]


class Keep:
    """What a handler of a `Table` returns to leave a call as it is: a ForeignObject."""


KEEP = Keep()


def _no_persistent_id(pid: Any) -> NoReturn:
    raise PickleError("a persistent id, and nothing here to resolve it")


@dataclass(frozen=True, slots=True)
class Table:
    """What the names of a file mean.

    ``values`` are names that stand for a value (``torch.float32``). ``calls`` take the argument
    tuple of a REDUCE on a name, or of a NEWOBJ without arguments. ``builds`` take an object that
    was made from a name, and the state of its BUILD. Both may give `KEEP`. ``names`` are known and
    mean something only in a place of their own, as storage classes do in persistent ids.
    ``persistent`` resolves a persistent id. ``keys`` refuses keys that cost too much.
    ``shortcut`` is for a call that occurs once for every tensor: the name that is called, and what
    makes, from the names met so far, a function that may carry out arguments and call at once, and
    what is behind them. It finds the name on the stack and leaves the value there.
    ``one_value`` is how modules begin whose names may be called with one value that is no tuple,
    as the C++ writer of TorchScript writes an enum.
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
