"""Formulas of names and numbers with ``+ - * /`` and parentheses: parsed here, not run as code."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping
from typing import Any

_TOKEN = re.compile(
    r"\s*(?:(?P<number>(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)|(?P<name>[^\W\d]\w*)|(?P<sign>[-+*/()]))"
)


def _divided(value: Any, by: Any) -> Any:
    """Return a quotient. A number of 0 divides no tensor either, which would be all inf and NaN."""
    if isinstance(by, float) and by == 0:
        raise ZeroDivisionError
    return value / by


_OPERATIONS: dict[str, Callable[[Any, Any], Any]] = {
    "+": operator.add, "-": operator.sub, "*": operator.mul, "/": _divided,
}  # fmt: skip
#: Parentheses and signs inside one another.
_MOST_NESTED = 50


class Formula:
    """A formula, with the ``names`` that it mentions, in order.

    >>> Formula("a + 0.5*(b - a)").of({"a": 1.0, "b": 3.0})
    2.0
    >>> Formula("a + 0.5*(b - a)").names
    ['a', 'b']

    Raises
    ------
    ValueError
        If it is not one, with the place.
    """

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self._nested = 0
        self.names: list[str] = []
        self._value = self._sum()
        if self._look() is not None:
            raise self._error("an operation was expected")

    def of(self, values: Mapping[str, Any]) -> Any:
        """Return the value, given those of the names."""
        return self._value(values)

    def _look(self) -> re.Match[str] | None:
        """Return the next token; None at the end."""
        if not self._text[self._at :].strip():
            return None
        match = _TOKEN.match(self._text, self._at)
        if match is None:
            raise self._error("a name, a number, + - * / or a parenthesis was expected")
        return match

    def _sign(self, signs: str) -> str | None:
        """Take the next token if it is one of these signs."""
        match = self._look()
        if match is None or match["sign"] is None or match["sign"] not in signs:
            return None
        self._at = match.end()
        return match["sign"]

    def _sum(self) -> _Value:
        return self._chain("+-", self._product)

    def _product(self) -> _Value:
        return self._chain("*/", self._factor)

    def _chain(self, signs: str, part: Callable[[], _Value]) -> _Value:
        value = part()
        while (sign := self._sign(signs)) is not None:
            value = _both(_OPERATIONS[sign], value, part())
        return value

    def _factor(self) -> _Value:
        self._nested += 1
        if self._nested > _MOST_NESTED:
            raise self._error(f"more than {_MOST_NESTED} parentheses inside one another")
        try:
            if self._sign("-"):
                return _both(operator.sub, lambda values: 0, self._factor())
            if self._sign("("):
                value = self._sum()
                if not self._sign(")"):
                    raise self._error("a closing parenthesis was expected")
                return value
            match = self._look()
            if match is None or match["sign"] is not None:
                raise self._error("a name or a number was expected")
            self._at = match.end()
            name = match["name"]
            if name is None:
                number = float(match["number"])
                return lambda values: number
            if name not in self.names:
                self.names.append(name)
            return lambda values: values[name]
        finally:
            self._nested -= 1

    def _error(self, what: str) -> ValueError:
        before = self._text[: self._at].rstrip()
        return ValueError(f"{self._text!r}: {what} after {before!r}")


_Value = Callable[[Mapping[str, Any]], Any]


def _both(operation: Callable[[Any, Any], Any], left: _Value, right: _Value) -> _Value:
    return lambda values: operation(left(values), right(values))
