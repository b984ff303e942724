"""What hostile rows name: it writes down every use of itself in ``RECORD``, and does nothing else.

No row may leave anything in ``RECORD``: neither a look-up by name, nor a call, nor an object made,
filled or given a state.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

RECORD: list[str] = []


class _Watched(ModuleType):
    """The module itself: a look-up of anything in it is written down."""

    def __getattribute__(self, name: str) -> Any:
        if name != "RECORD" and not name.startswith("__"):
            RECORD.append(f"look-up of {name}")
        return super().__getattribute__(name)


class _WatchedClass(type):
    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        RECORD.append("class called")
        return super().__call__()

    def __getattribute__(cls, name: str) -> Any:
        RECORD.append(f"look-up of {name} in the class")
        return super().__getattribute__(name)

    def __setattr__(cls, name: str, value: Any) -> None:
        RECORD.append(f"{name} set in the class")


class Victim(metaclass=_WatchedClass):
    """A class that pickles make objects of, fill and give a state to."""

    def __new__(cls, *args: Any, **kwargs: Any) -> Victim:
        RECORD.append("object made")
        return super().__new__(cls)

    def __getattribute__(self, name: str) -> Any:
        RECORD.append(f"look-up of {name} in an object")
        return super().__getattribute__(name)

    def __setattr__(self, name: str, value: Any) -> None:
        RECORD.append(f"{name} set in an object")

    def __setstate__(self, state: Any) -> None:
        RECORD.append("state given")

    def __reduce__(self) -> Any:
        RECORD.append("object taken apart")
        return (called, ())

    def __call__(self, *args: Any, **kwargs: Any) -> None:
        RECORD.append("object called")

    def __setitem__(self, key: Any, value: Any) -> None:
        RECORD.append("item set")

    def __hash__(self) -> int:
        RECORD.append("object hashed")
        return 0

    def __eq__(self, other: object) -> bool:
        RECORD.append("object compared")
        return True

    def __repr__(self) -> str:
        RECORD.append("object shown")
        return "Victim()"

    def append(self, *items: Any) -> None:
        """Write down that an item was appended."""
        RECORD.append("item appended")

    extend = add = update = append


def called(*args: Any, **kwargs: Any) -> None:
    """Write down that a function was called."""
    RECORD.append("function called")


sys.modules[__name__].__class__ = _Watched
