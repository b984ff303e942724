"""Writes the record of what is public, `tests/public_api.txt`: ``python -m tests.public_api``.

A line has a name and what is relied on: parameters with their defaults, fields, options. Types are
left out, since they may become more exact.
"""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torchzip as tz
from torchzip import errors
from torchzip.cli.command import BAD, DONE, USAGE
from torchzip.cli.main import build_parser

RECORD = Path(__file__).with_name("public_api.txt")
#: What the modules of the package call on what they give to users.
_INNER = {
    "PARTS", "REBUILT_BY", "at", "beside", "check", "check_indices", "check_to_write",
    "check_values", "foreign_in_root", "named_parts", "or_default", "spec", "subclassed",
    "with_parts", "write",
}  # fmt: skip
#: What Python calls for an expression or a statement.
_SPECIAL = {
    "__array__", "__add__", "__contains__", "__enter__", "__exit__", "__getitem__", "__iter__",
    "__len__", "__mul__", "__neg__", "__radd__", "__rmul__", "__rsub__", "__rtruediv__", "__sub__",
    "__truediv__",
}  # fmt: skip


def _parameters(function: Any) -> str:
    signature = inspect.signature(function)
    plain = [each.replace(annotation=each.empty) for each in signature.parameters.values()]
    return str(signature.replace(parameters=plain, return_annotation=signature.empty))


def _lines_of(name: str, thing: Any) -> Iterator[str]:
    if inspect.ismodule(thing):
        for inner in thing.__all__:
            yield from _lines_of(f"{name}.{inner}", getattr(thing, inner))
    elif not inspect.isclass(thing):
        yield f"{name}{_parameters(thing)}"
    else:
        bases = [base.__name__ for base in thing.__bases__ if base is not object]
        yield f"{name}({', '.join(bases)})"
        fields = _fields(thing)
        if fields:
            yield f"{name}: {', '.join(fields)}"
        for attribute in sorted(dir(thing)):
            value = inspect.getattr_static(thing, attribute)
            if not _is_ours(thing, attribute) or attribute in fields:
                continue
            yield f"{name}.{attribute}{_parameters(value) if inspect.isfunction(value) else ''}"


def _fields(thing: type) -> list[str]:
    return [each.name for each in dataclasses.fields(thing)] if _is_data(thing) else []


def _is_data(thing: Any) -> bool:
    return inspect.isclass(thing) and dataclasses.is_dataclass(thing)


def _is_ours(thing: type, attribute: str) -> bool:
    """Return whether users may use what a class has under a name, and Python did not make it."""
    if attribute in _INNER or (attribute.startswith("_") and attribute not in _SPECIAL):
        return False
    owner = next(base for base in thing.__mro__ if attribute in vars(base))
    return owner.__module__.startswith("torchzip")


def _results(function: Any) -> Iterator[type]:
    """Yield the dataclasses of what a function returns, and of what they hold."""
    left, seen = [typing.get_type_hints(function).get("return")], set()
    while left:
        kind = left.pop()
        left += typing.get_args(kind)
        if isinstance(kind, type) and _is_data(kind) and kind not in seen:
            seen.add(kind)
            yield kind
            left += typing.get_type_hints(kind).values()


def _options(parser: argparse.ArgumentParser) -> Iterator[str]:
    for action in parser._actions:
        if action.option_strings:
            takes = "" if action.nargs == 0 else f" {action.metavar or action.dest.upper()}"
            yield f"[{'|'.join(action.option_strings)}{takes}]"
        else:
            yield f"{action.metavar or action.dest}{action.nargs or ''}"


def _is_error(thing: Any) -> bool:
    return inspect.isclass(thing) and issubclass(thing, errors.TorchZipError)


def public_api() -> list[str]:
    """Return the lines of the record."""
    public = [
        each
        for name in tz.__all__
        if name != "__version__"
        for each in _lines_of(f"torchzip.{name}", getattr(tz, name))
    ]
    known = {name for module in (tz, tz.tools, tz.types) for name in module.__all__}
    kinds = [
        kind
        for function in (tz.convert, *map(vars(tz.tools).get, tz.tools.__all__))
        if inspect.isfunction(function)
        for kind in _results(function)
    ]
    kinds += [kind for kind in vars(errors).values() if _is_error(kind)]
    inner = {f"{kind.__module__}.{kind.__name__}": kind for kind in kinds}
    lines = public + [
        line
        for kind in inner.values()
        if kind.__name__ not in known
        for line in _lines_of(kind.__name__, kind)
    ]
    lines.append(f"exit status: {DONE} done, {BAD} bad or different, {USAGE} usage")
    (commands,) = (each for each in build_parser()._actions if each.dest == "command")
    assert isinstance(commands.choices, dict)
    for name, parser in commands.choices.items():
        lines.append(f"torchzip {name} {' '.join(_options(parser))}")
    return lines


if __name__ == "__main__":
    RECORD.write_text("\n".join(public_api()) + "\n", encoding="utf-8")
