"""Classes and functions that pickles of the tests name, one for each way to be taken apart."""

from __future__ import annotations

import enum
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Any, NamedTuple


class ListSubclass(list[Any]):
    """A list with a name of its own."""


class DictSubclass(dict[Any, Any]):
    """A dict with a name of its own."""


class OrderedSubclass(OrderedDict[Any, Any]):
    """An OrderedDict with a name of its own."""


class StrSubclass(str):
    """A str with a name of its own."""

    __slots__ = ()


class IntSubclass(int):
    """An int with a name of its own."""


class TupleSubclass(tuple[Any, ...]):
    """A tuple with a name of its own."""

    __slots__ = ()


class Point(NamedTuple):
    """A named tuple."""

    x: Any
    y: Any


class Plain:
    """An object with attributes."""

    def __init__(self, **attributes: Any) -> None:
        self.__dict__.update(attributes)


@dataclass
class Data:
    """A dataclass."""

    first: Any = 1
    rest: list[Any] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class FrozenData:
    """A dataclass with slots, which has a state of its own making."""

    first: int = 1
    second: str = "two"


class Slotted:
    """An object without a dict."""

    __slots__ = ("left", "right")

    def __init__(self) -> None:
        self.left = [1]
        self.right = self.left


class SlottedAndMore(Slotted):
    """An object with slots and a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.more = "more"


class Color(enum.Enum):
    """An enumeration."""

    RED = 1
    GREEN = "green"


class Level(enum.IntEnum):
    """An enumeration of ints."""

    LOW = 1
    HIGH = 2


class Outer:
    """A class that holds another."""

    class Inner:
        """A class that is found through another."""

        class Innermost:
            """A class that is found through two."""


class WithNewArgs:
    """An object made from positional arguments."""

    def __new__(cls, *args: Any) -> WithNewArgs:
        made = super().__new__(cls)
        made.args = args
        return made

    args: tuple[Any, ...]

    def __getnewargs__(self) -> tuple[Any, ...]:
        return self.args


class WithNewArgsEx:
    """An object made from positional and keyword arguments."""

    positional: tuple[Any, ...]
    keywords: dict[str, Any]

    def __new__(cls, *args: Any, **kwargs: Any) -> WithNewArgsEx:
        made = super().__new__(cls)
        made.positional, made.keywords = args, kwargs
        return made

    def __getnewargs_ex__(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return self.positional, self.keywords


class WithState:
    """An object that says itself what its state is."""

    def __init__(self, state: Any) -> None:
        self.state = state

    def __getstate__(self) -> Any:
        return (self.state, "state")

    def __setstate__(self, state: Any) -> None:
        self.state = state[0]


class WithSetter:
    """An object whose state is set by a function."""

    value: Any = None

    def __reduce__(self) -> Any:
        return (WithSetter, (), {"value": 5}, None, None, set_value)


class ByName:
    """An object that is pickled as the name of a module's attribute."""

    def __reduce__(self) -> str:
        return "BY_NAME"


class InItsArguments:
    """An object whose reduction has the object in it."""

    def __init__(self, holder: list[Any] | None = None) -> None:
        self.holder = [self] if holder is None else holder

    def __reduce__(self) -> Any:
        return (InItsArguments, (self.holder,))


BY_NAME = ByName()


def set_value(target: Any, state: Any) -> None:
    """Set a state."""
    target.__dict__.update(state)


def add(left: int, right: int) -> int:
    """Return a sum: a function to be named."""
    return left + right
