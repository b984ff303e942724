"""Parses JSON objects from files: without duplicate names, and with a bound on containers."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

from torchzip.errors import ArchiveError, LimitError, shown
from torchzip.limits import Limits

#: The fewest bytes of a name with a bracket in it together with its value.
_NAME_NBYTES = 8
_SURROGATE = re.compile("[\ud800-\udfff]")


def is_plain_text(text: str) -> bool:
    """Return whether UTF-8 can encode a string."""
    return text.isascii() or not _SURROGATE.search(text)


def repeated(names: Iterable[str]) -> str | None:
    """Return the first name that is there more than once; None if each is there once."""
    return next((name for name, count in Counter(names).items() if count > 1), None)


def no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return the dict of an object, as ``object_pairs_hook``; raise ArchiveError for duplicates.

    Readers disagree about which of the two counts.
    """
    made = dict(pairs)
    if len(made) != len(pairs):
        name = repeated(name for name, _ in pairs)
        raise ArchiveError(f"{shown(name)} occurs twice in one JSON object")
    return made


def check_containers(raw: bytes, limits: Limits, path: str) -> None:
    """Raise LimitError for too many lists and objects, or too many brackets in names."""
    containers = raw.count(b"[") + raw.count(b"{")
    bound = limits.containers + len(raw) // _NAME_NBYTES
    if containers > bound:
        raise LimitError("containers", containers, bound, path=path)


def parse_json(
    raw: bytes,
    what: str,
    path: str,
    *,
    limits: Limits | None = None,
    parse_int: Callable[[str], Any] | None = None,
    parse_constant: Callable[[str], Any] | None = None,
) -> dict[str, Any]:
    """Return a JSON object that came from a file.

    Without ``limits`` there is no bound on lists and objects: the caller has bounded the bytes.
    ``parse_int`` makes the integers, ``parse_constant`` NaN and Infinity, which are not JSON.

    Raises
    ------
    ArchiveError, LimitError
        If it is not a JSON object, has a duplicate key, or has more than ``limits.containers``
        lists and objects, in addition to one for every 8 bytes of it.
    """
    if limits is not None:
        check_containers(raw, limits, path)
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
        raise ArchiveError(f"{what} is not valid JSON ({error})", path=path) from None
    if not isinstance(made, dict):
        raise ArchiveError(f"{what} is {shown(made)} in JSON; an object was expected", path=path)
    return made
