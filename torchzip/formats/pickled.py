"""The names in every pickle that a loader of a file would run.

The object of a checkpoint comes from one pickle or a few, and `Contents` has their names. Formats
have more: the list of keys after the object of a legacy file, the sample inputs of an exported
program, the items of a distributed checkpoint. `Container.pickles` lists all of them and says which
ones `Container.read` has carried out; this module reads the names of the others.

A pickle is carried out here without a table, so that every name becomes an inert object and the
values mean nothing. A pickle that cannot be followed is an error: nobody can say what it names.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import Any

from torchzip.errors import ErrorPlace, TorchZipError, UnsafeGlobalError, listed, shown
from torchzip.formats.base import Container, Contents, MeasuringFactory
from torchzip.limits import Limits
from torchzip.pickling.interpreter import Interpreter
from torchzip.pickling.keys import KeyCheck
from torchzip.pickling.opcodes import BY_CODE, TruncatedPickleError
from torchzip.pickling.table import Name, Table
from torchzip.tensors.rebuild import Rebuilder

#: Bytes of a record that are looked at to see whether it may be a pickle.
HEAD_NBYTES = 64


class _NoKeys(KeyCheck):
    """One key stands for all: a dict or a set keeps nothing that anybody asks for."""

    def checked(self, keys: Iterable[Any]) -> list[Any]:
        return [None for _ in keys]


@functools.cache
def _table() -> Table:
    return Rebuilder(MeasuringFactory()).table


def knows(name: Name) -> bool:
    """Return whether torchzip knows what a name means in the pickle of a checkpoint."""
    return _table().knows(name)


def names_in(data: bytes, limits: Limits) -> list[Name]:
    """Return every (module, name) that a pickle mentions, in its order.

    Raises
    ------
    TorchZipError
        If it cannot be carried out.

    Examples
    --------
    >>> names_in(b"cos\\nsystem\\n(S'true'\\ntR.", Limits())
    [('os', 'system')]
    """
    table = Table(persistent=lambda pid: None, keys=_NoKeys(), one_value="")
    interpreter = Interpreter(data, table, limits)
    interpreter.run()
    return interpreter.globals


def all_names(
    container: Container, contents: Contents, limits: Limits
) -> tuple[list[Name], list[Name]]:
    """Return what every pickle of a checkpoint mentions, and which of it is foreign."""
    names = dict.fromkeys(contents.globals)
    foreign = dict.fromkeys(contents.foreign)
    for each in container.pickles():
        if each.is_read:
            continue
        with ErrorPlace(path=container.name, record=each.place):
            for name in names_in(each.data(), limits):
                names[name] = None
                if not (each.knows or knows)(name):
                    foreign[name] = None
    return list(names), list(foreign)


def refuse_foreign(container: Container, contents: Contents, limits: Limits) -> None:
    """Raise UnsafeGlobalError if a pickle of the checkpoint names anything outside the table."""
    foreign = all_names(container, contents, limits)[1]
    if foreign:
        raise UnsafeGlobalError(foreign, path=container.name)


# -- records that nobody declares ------------------------------------------------------------


def may_be_pickle(head: bytes) -> bool:
    """Return whether a record that begins so can be a pickle. Most bytes cannot.

    >>> [may_be_pickle(head) for head in (b"\\x80\\2}q\\0.", b"cos\\nsystem\\n", b"\\0" * 8)]
    [True, True, False]
    """
    if head[:1] == b"\x80":
        return head[1:2] <= b"\5"
    if not head or head[0] not in BY_CODE:
        return False
    from torchzip.pickling.disassembly import parse_step  # which few files need

    at = 0
    try:
        while at < len(head):
            step = parse_step(head, at)
            if step.opcode.name == "STOP":
                return at > 0
            at = step.end
    except TruncatedPickleError:
        pass
    except TorchZipError:
        return False
    return True


def stray_note(record: str, data: bytes, limits: Limits) -> str | None:
    """Return what is to be said of a record that no loader of its format reads; None if nothing.

    A pickle of protocol 0 or 1 has no mark at its beginning, so it counts only if it names
    something.
    """
    is_marked = data[:1] == b"\x80"
    try:
        names = names_in(data, limits)
    except TorchZipError:
        if not (is_marked and record.endswith(("pkl", "pickle"))):
            return None
        return f"record {shown(record)} begins like a pickle and cannot be followed as one"
    if not (names or is_marked):
        return None
    named = listed([".".join(name) for name in names]) or "nothing"
    return (
        f"record {shown(record)} is a pickle that no loader of this format runs; it names {named}"
    )
