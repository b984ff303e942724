"""The reference of the command line, made from the parsers when the site is built.

`markdown` says what ``--help`` says of each command, in its words. It takes the place of a line
``% commands`` in a page.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from typing import Any

from torchzip.cli.main import build_parser

_PLACE = "% commands\n"
_NARGS = {None: "{}", "?": "[{}]", "*": "[{} ...]", "+": "{} [{} ...]"}


def markdown(parser: argparse.ArgumentParser) -> str:
    """Return a section for each command of a parser, and one for what many commands share."""
    (commands,) = (
        action for action in parser._actions if isinstance(action, argparse._SubParsersAction)
    )
    summaries = {action.dest: action.help for action in commands._choices_actions}
    shared = _shared_groups(commands.choices)
    lines = ["| command | what it does |", "|---|---|"]
    for name, help_ in summaries.items():
        lines.append(f"| [`{name}`](#torchzip-{name}) | {_prose(help_ or '')} |")
    lines.append("")
    for name, command in commands.choices.items():
        lines += _command(name, command, shared)
    lines += ["## Options of many commands", ""]
    for title, actions in shared.items():
        lines += [f"### {title.capitalize()}", "", *_options(actions)]
    return "\n".join(lines) + "\n"


def _shared_groups(commands: dict[str, Any]) -> dict[str, list[argparse.Action]]:
    """Return the groups of options with a title of their own, which are the same wherever."""
    return {
        group.title: group._group_actions
        for command in commands.values()
        for group in command._action_groups[2:]
    }


def _command(
    name: str, command: argparse.ArgumentParser, shared: dict[str, list[argparse.Action]]
) -> Iterator[str]:
    positional, optional, *others = command._action_groups
    options = [action for action in optional._group_actions if action.dest != "help"]
    usage = ["torchzip", name, *(["[OPTION ...]"] if options else [])]
    usage += [_usage(action) for action in positional._group_actions]
    yield from (f"## torchzip {name}", "", "```text", " ".join(usage), "```", "")
    yield from _paragraphs(command.description or "")
    yield from _options([each for each in positional._group_actions if each.help])
    yield from _options(options)
    if others:
        names = [
            f"[`{action.option_strings[-1]}`](#{_anchor(group.title or '')})"
            for group in others
            for action in shared[group.title or ""]
        ]
        yield from (f"Also {' and '.join(names)}.", "")
    title, _, examples = (command.epilog or "").partition("\n")
    if title == "examples:":
        lines = [line.removeprefix("  ") for line in examples.splitlines()]
        yield from ("```sh", *lines, "```", "")


def _usage(action: argparse.Action) -> str:
    word = str(action.metavar or action.dest)
    return _NARGS[action.nargs].format(word, word)  # type: ignore[index]


def _options(actions: list[argparse.Action]) -> Iterator[str]:
    """Yield a list of definitions, one for each argument."""
    for action in actions:
        names = action.option_strings or [""]
        value = action.metavar
        if value is None and action.choices is not None:
            value = "{" + ",".join(map(str, action.choices)) + "}"
        if value is None and action.nargs != 0:
            value = action.dest.upper()
        terms = [f"`{f'{name} {value or str()}'.strip()}`" for name in names]
        text = (action.help or "").replace("%%", "%")
        yield from (", ".join(terms), f": {_prose(text)}", "")


def _paragraphs(text: str) -> Iterator[str]:
    """Yield the paragraphs of a description; a list stays one."""
    for paragraph in re.split(r"\n\s*\n", text.strip()):
        if re.search(r"^\s", paragraph, re.MULTILINE):
            yield from ("```text", paragraph, "```", "")
        else:
            yield from (_prose(paragraph), "")


def _prose(text: str) -> str:
    """Return words of a help text as Markdown; options and what is in backticks are code."""
    parts = re.split(r"(`[^`]*`|(?<![\w-])--[a-z][a-z-]*)", text)
    return "".join(
        (part if part.startswith("`") else f"`{part}`")
        if number % 2
        else re.sub(r"([\\`*_{}\[\]<>#|~$^])", r"\\\1", part)
        for number, part in enumerate(parts)
    )


def _anchor(title: str) -> str:
    return title.lower().replace(" ", "-")


def _read_page(app: Any, docname: str, source: list[str]) -> None:
    if _PLACE in source[0]:
        source[0] = source[0].replace(_PLACE, markdown(build_parser()))


def setup(app: Any) -> dict[str, bool]:
    """Fill the place of each page that has one."""
    app.connect("source-read", _read_page)
    return {"parallel_read_safe": True}
