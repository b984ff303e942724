"""Classes whose objects pickle takes apart in every way that there is."""

from __future__ import annotations

import copyreg
import enum
from collections import OrderedDict, UserDict, UserList, namedtuple
from dataclasses import dataclass, field
from typing import Any, NamedTuple


class Plain:
    """Has an attribute dict."""

    def __init__(self, **attributes: Any) -> None:
        self.__dict__.update(attributes)

    class Inner:
        """A nested class."""

        class Deep:
            """Two levels down."""

        def method(self) -> None:
            """Is found as Plain.Inner.method."""

    def shout(self) -> None:
        """Is a method of an object."""

    @classmethod
    def make(cls) -> Plain:
        """Return one."""
        return cls()


class Slotted:
    """Has slots and no dict."""

    __slots__ = ("a", "b", "unset")

    def __init__(self, a: Any, b: Any) -> None:
        self.a = a
        self.b = b


class SlottedWithDict(Slotted):
    """Has slots and a dict."""

    def __init__(self, a: Any, b: Any) -> None:
        super().__init__(a, b)
        self.c = [a, b]


class WithGetstate:
    """Says what its state is."""

    def __init__(self, state: Any) -> None:
        self.state = state

    def __getstate__(self) -> Any:
        return self.state

    def __setstate__(self, state: Any) -> None:
        self.state = state


class WithNewargs:
    """Is made with arguments."""

    def __new__(cls, *args: Any) -> WithNewargs:
        made = super().__new__(cls)
        made.args = args
        return made

    args: tuple[Any, ...]

    def __getnewargs__(self) -> tuple[Any, ...]:
        return self.args


class WithNewargsEx:
    """Is made with arguments and keywords."""

    def __new__(cls, *args: Any, **kwargs: Any) -> WithNewargsEx:
        made = super().__new__(cls)
        made.given = (args, kwargs)
        return made

    given: tuple[tuple[Any, ...], dict[str, Any]]

    def __getnewargs_ex__(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return self.given


def set_state(target: Any, state: Any) -> None:
    """Set a state as a sixth element of a reduction does."""
    target.__dict__.update(state)


def make_plain(*args: Any) -> Plain:
    """Return a Plain."""
    return Plain(args=args)


class Reduced:
    """Reduces to what it was given."""

    def __init__(self, *reduction: Any) -> None:
        self.reduction = reduction

    def __reduce__(self) -> tuple[Any, ...]:
        return tuple(iter(part) if type(part) is ItemsOf else part for part in self.reduction)


class ItemsOf(list[Any]):
    """Items that a reduction gives as an iterator."""


class GlobalByName:
    """Reduces to a name."""

    def __reduce__(self) -> str:
        return "SINGLETON"


SINGLETON = GlobalByName()


class ListWithAttributes(list[Any]):
    """A list with a dict."""


class DictWithAttributes(dict[Any, Any]):
    """A dict with a dict."""


class OrderedWithAttributes(OrderedDict[Any, Any]):
    """An ordered dict of its own class."""


class TupleSubclass(tuple[Any, ...]):
    """A tuple of its own class."""


class IntSubclass(int):
    """An int of its own class."""


class StrSubclass(str):
    """A string of its own class."""


class SetSubclass(set[Any]):
    """A set of its own class."""


class FloatSubclass(float):
    """A float of its own class."""


class BytesSubclass(bytes):
    """Bytes of their own class."""


Pair = namedtuple("Pair", "left right")


class Typed(NamedTuple):
    """A typed named tuple."""

    left: int
    right: Any = None


@dataclass
class Data:
    """A dataclass."""

    a: int = 1
    b: list[Any] = field(default_factory=list)


@dataclass(frozen=True)
class FrozenData:
    """A frozen dataclass."""

    a: int = 1


@dataclass(frozen=True, slots=True)
class SlottedData:
    """A frozen dataclass with slots."""

    a: int
    b: Any


class Color(enum.Enum):
    """An enum."""

    RED = 1
    GREEN = "green"


class Number(enum.IntEnum):
    """An enum of ints."""

    ONE = 1


class Bits(enum.Flag):
    """An enum of flags."""

    A = 1
    B = 2


class Word(str, enum.Enum):  # noqa: UP042
    """An enum of strings."""

    YES = "yes"


class Meta(type):
    """A metaclass."""


class WithMeta(metaclass=Meta):
    """A class of a metaclass."""


class RegisteredMeta(type):
    """A metaclass whose classes copyreg takes apart."""


class WithRegisteredMeta(metaclass=RegisteredMeta):
    """A class that copyreg takes apart."""


def _reduce_class(value: type) -> tuple[Any, ...]:
    return (getattr_in_module, (value.__name__,))


def getattr_in_module(name: str) -> Any:
    """Return what this module calls so."""
    return globals()[name]


copyreg.pickle(RegisteredMeta, _reduce_class)


class Registered:
    """A class that is known to copyreg."""

    def __init__(self, value: Any) -> None:
        self.value = value


def _reduce_registered(value: Registered) -> tuple[Any, ...]:
    return (Registered, (value.value,))


copyreg.pickle(Registered, _reduce_registered)


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


def function(x: int) -> int:
    """Return its argument."""
    return x
