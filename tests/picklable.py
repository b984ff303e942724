"""Classes and functions that pickles of the tests name, one for each way to be taken apart."""

from __future__ import annotations

import copyreg
import enum
from collections import OrderedDict, UserDict, UserList, namedtuple
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
    x: Any
    y: Any


class Plain:
    def __init__(self, **attributes: Any) -> None:
        self.__dict__.update(attributes)

    class Inner:
        """A class that is found through another."""

        class Deep:
            """A class that is found through two."""

        def method(self) -> None:
            """Is found as Plain.Inner.method."""

    def shout(self) -> None:
        """Is a method of an object."""

    @classmethod
    def make(cls) -> Plain:
        return cls()


@dataclass
class Data:
    first: Any = 1
    rest: list[Any] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class FrozenData:
    """A dataclass with slots, which has a state of its own making."""

    first: int = 1
    second: Any = "two"


class Slotted:
    __slots__ = ("left", "right", "unset")

    def __init__(self, left: Any, right: Any) -> None:
        self.left, self.right = left, right


class SlottedAndMore(Slotted):
    def __init__(self, left: Any, right: Any) -> None:
        super().__init__(left, right)
        self.more = "more"


class Color(enum.Enum):
    RED = 1
    GREEN = "green"


class Level(enum.IntEnum):
    LOW = 1
    HIGH = 2


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
    target.__dict__.update(state)


def add(left: int, right: int) -> int:
    """Return a sum: a function to be named."""
    return left + right


class WithGetstate:
    """Says what its state is."""

    def __init__(self, state: Any) -> None:
        self.state = state

    def __getstate__(self) -> Any:
        return self.state

    def __setstate__(self, state: Any) -> None:
        self.state = state


def make_plain(*args: Any) -> Plain:
    return Plain(args=args)


class Reduced:
    """Reduces to what it was given."""

    def __init__(self, *reduction: Any) -> None:
        self.reduction = reduction

    def __reduce__(self) -> tuple[Any, ...]:
        return tuple(iter(part) if type(part) is ItemsOf else part for part in self.reduction)


class ItemsOf(list[Any]):
    """Items that a reduction gives as an iterator."""


class SetSubclass(set[Any]):
    """A set of its own class."""


class FloatSubclass(float):
    """A float of its own class."""


class BytesSubclass(bytes):
    """Bytes of their own class."""


Pair = namedtuple("Pair", "left right")


@dataclass(frozen=True)
class Frozen:
    a: int = 1


class Bits(enum.Flag):
    A = 1
    B = 2


class Word(str, enum.Enum):  # noqa: UP042
    YES = "yes"


class Meta(type):
    """A metaclass."""


class WithMeta(metaclass=Meta):
    """A class of a metaclass."""


class RegisteredMeta(type):
    """A metaclass whose classes copyreg takes apart."""


class WithRegisteredMeta(metaclass=RegisteredMeta):
    """A class that copyreg takes apart."""


def getattr_in_module(name: str) -> Any:
    """Return what this module calls so."""
    return globals()[name]


copyreg.pickle(RegisteredMeta, lambda value: (getattr_in_module, (value.__name__,)))


class Registered:
    def __init__(self, value: Any) -> None:
        self.value = value


copyreg.pickle(Registered, lambda value: (Registered, (value.value,)))


class Knot:
    """Reaches itself through its state and through its arguments."""

    def __init__(self) -> None:
        self.me = self
        self.holder = [self, (self,)]


class KnotInArguments:
    """Reaches itself through a list in its arguments."""

    def __init__(self) -> None:
        self.box: list[Any] = []

    def __reduce__(self) -> tuple[Any, ...]:
        return (make_plain, (self.box,))


class User(UserDict[Any, Any]):
    """A user dict."""


class Users(UserList[Any]):
    """A user list."""
