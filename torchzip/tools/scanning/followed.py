"""What pickles name and call, and where, without making or calling anything."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

from torchzip.errors import TorchZipError, shown
from torchzip.files.source import Source
from torchzip.formats.base import run_on_more
from torchzip.leaf_types import ForeignObject
from torchzip.limits import Limits
from torchzip.pickling.interpreter import Interpreter
from torchzip.pickling.table import Table

#: Calls of one name whose arguments are kept.
_MOST_CALLS = 3
#: Pickles in a row that are followed.
_MOST_PICKLES = 1000
_WINDOW_NBYTES = 1 << 20
#: What Python could look up: text that happens to look like a pickle names other things.
_NAME = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*\.[^\W\d]\w*")


@dataclass(slots=True)
class Mention:
    """A name, the byte of the pickle that first mentions it, and arguments of its calls."""

    name: str
    offset: int
    calls: list[str] = field(default_factory=list)


@dataclass(slots=True)
class Followed:
    """What pickles mention, as far as they could be followed, and why no further."""

    mentions: dict[str, Mention] = field(default_factory=dict)
    pickles: int = 0
    problem: TorchZipError | None = None

    @property
    def names_what_exists(self) -> bool:
        """Whether a name is one that Python could look up."""
        return any(_NAME.fullmatch(name) for name in self.mentions)


class _Noting(Interpreter):
    """An interpreter for which all names are inert."""

    def __init__(self, data: bytes, limits: Limits, found: Followed, base: int) -> None:
        table = Table(persistent=lambda pid: None, one_value="")
        super().__init__(data, table, limits)
        self._found = found
        self._base = base

    def _name(self, module: str, name: str) -> Any:
        value = super()._name(module, name)
        if type(value) is ForeignObject:
            self._mention(value)
        return value

    def _call(self, callee: Any, args: Any) -> Any:
        if type(callee) is ForeignObject and callee.how == "name":
            calls = self._mention(callee).calls
            if len(calls) < _MOST_CALLS:
                calls.append(shown(args))
        return super()._call(callee, args)

    def _extension(self, code: int) -> ForeignObject:
        made = super()._extension(code)
        self._mention(made)
        return made

    def _mention(self, value: ForeignObject) -> Mention:
        path = f"{value.module}.{value.name}"
        new = Mention(path, self._base + self.position)
        return self._found.mentions.setdefault(path, new)


def follow(source: Source, limits: Limits, *, start: int = 0) -> Followed:
    """Return what the pickles in a row mention that begin at a byte of a file.

    One that cannot be followed is the last; what it mentions before that counts, as whoever loads
    it does what comes first.
    """
    found = Followed()
    at = start

    def run(data: bytes) -> int:
        interpreter = _Noting(data, limits, found, at)
        interpreter.run()
        return interpreter.position

    while at < source.size and found.pickles < _MOST_PICKLES:
        try:
            at += run_on_more(source, at, _WINDOW_NBYTES, limits, run)
        except TorchZipError as error:
            found.problem = error
            break
        found.pickles += 1
    return found


def follow_bytes(data: bytes, limits: Limits, found: Followed) -> None:
    """Add what one pickle mentions."""
    try:
        _Noting(data, limits, found, 0).run()
        found.pickles += 1
    except TorchZipError as error:
        found.problem = error
