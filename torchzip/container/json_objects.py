"""JSON objects that came from a file: no name twice, and no more containers than are paid for."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from torchzip.errors import ArchiveError, LimitError, shown
from torchzip.limits import Limits

#: A name with a bracket in it, and what it is the name of, take as many bytes at least.
_NAME_NBYTES = 8


def no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return the dict of an object, as ``object_pairs_hook``; raise ArchiveError at a name twice.

    Readers disagree about which of the two counts.
    """
    made = dict(pairs)
    if len(made) != len(pairs):
        seen: set[str] = set()
        for name, _ in pairs:
            if name in seen:
                raise ArchiveError(f"{shown(name)} stands twice in one JSON object")
            seen.add(name)
    return made


def parse_json(raw: bytes, what: str, limits: Limits, path: str) -> dict[str, Any]:
    """Return a JSON object that came from a file.

    Raises
    ------
    ArchiveError, LimitError
        If it is none, has a key twice, or more than ``limits.containers`` lists and objects,
        beyond one for each 8 bytes of it.
    """
    check_containers(raw, limits, path)
    return parse_object(raw, what, path)


def check_containers(raw: bytes, limits: Limits, path: str) -> None:
    """Raise LimitError for more lists and objects than are allowed, or brackets in names."""
    containers = raw.count(b"[") + raw.count(b"{")
    bound = limits.containers + len(raw) // _NAME_NBYTES
    if containers > bound:
        raise LimitError("containers", containers, bound, path=path)


def parse_object(
    raw: bytes,
    what: str,
    path: str,
    *,
    parse_int: Callable[[str], Any] | None = None,
    parse_constant: Callable[[str], Any] | None = None,
) -> dict[str, Any]:
    """Do that, with any number of lists and objects: the caller has bounded the bytes.

    ``parse_int`` makes the integers, ``parse_constant`` NaN and Infinity, which are not JSON.
    """
    try:
        made = json.loads(
            raw.decode(),
            object_pairs_hook=no_duplicates,
            parse_int=parse_int,
            parse_constant=parse_constant,
        )
    except ArchiveError as error:
        raise error.at(path=path) from None
    except (ValueError, RecursionError) as error:
        raise ArchiveError(f"{what} is no JSON ({error})", path=path) from None
    if not isinstance(made, dict):
        raise ArchiveError(f"{what} is {shown(made)} in JSON; an object was expected", path=path)
    return made
