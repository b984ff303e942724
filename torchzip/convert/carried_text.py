"""The JSON text of what is carried, if a header has room for it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field

from torchzip.convert.carried_kinds import Node
from torchzip.limits import Limits


@dataclass(frozen=True, slots=True)
class Carried:
    """``text`` is the object as JSON; ``lost`` says what is not in it, as "path: what and why".

    A text of None: nothing was carried, and ``lost`` is empty unless it says why.
    """

    text: str | None = None
    lost: list[str] = field(default_factory=list)


def carry_order(names: list[str], in_file: Sequence[str] | None, limits: Limits) -> Carried:
    """Return the JSON of a plain dict of tensors by their names, if the file has another order."""
    if in_file is None or names == list(in_file):
        return Carried()
    return text_of({"root": {"tensors": names}}, "the order of the tensors", [], limits)


def text_of(made: Node, what: str, lost: list[str], limits: Limits) -> Carried:
    """Return the JSON of all that is carried, unless it is too long for a header."""
    most = limits.header_nbytes // 2
    if _is_longer(made, most):
        return Carried(None, [f"{what}: more than {most:,} bytes as JSON"])
    text = to_json(made)
    for unit, actual, bound in (
        # It is quoted once more as a string of the header, and shares that with the tensors.
        # The name of a tensor may have surrogates, which the header refuses.
        ("bytes", len(text.encode("utf-8", "surrogatepass")) + text.count('"'), most),
        ("lists and dicts", *containers_in(text, limits)),
    ):
        if actual > bound:
            return Carried(None, [f"{what}: {actual:,} {unit} as JSON, more than {bound:,}"])
    return Carried(text, lost)


def containers_in(text: str, limits: Limits) -> tuple[int, int]:
    """Return how many lists and objects a JSON string has at most, and how many it may have."""
    return text.count("[") + text.count("{"), limits.containers + len(text) // 8


def _is_longer(node: Node, most: int) -> bool:
    """Return whether the strings and numbers alone are longer: one may be in many places."""
    todo = [node]
    while todo and most >= 0:
        part = todo.pop()
        parts = [*part, *part.values()] if isinstance(part, dict) else part
        most -= sum([len(each) for each in parts if type(each) is str])
        most -= sum([each.bit_length() >> 2 for each in parts if type(each) is int])
        todo += [each for each in parts if type(each) in (dict, list)]
    return most < 0


def to_json(node: Node) -> str:
    """Return JSON without blanks."""
    return json.dumps(node, ensure_ascii=False, separators=(",", ":"))
