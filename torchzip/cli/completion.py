"""``torchzip completion``: a script that makes a shell complete commands, options and files."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import Any

from torchzip.cli.command import DONE, add_command

_DESCRIPTION = """\
Print a script that makes a shell complete torchzip's commands, options and files. It needs the
package shtab: python -m pip install 'torchzip[completion]'
"""

_SHELLS = ("bash", "zsh", "fish", "tcsh", "powershell")

#: Arguments that are paths, by their names in the help.
_FILES = frozenset({"FILE", "SRC", "DST", "A", "B", "BROKEN", "OUT"})


def add_parser(commands: Any, whole: argparse.ArgumentParser) -> None:
    """Add the command to the command line, whose parser is ``whole``."""

    def run(arguments: argparse.Namespace) -> int:
        print(script(whole, arguments.shell))
        return DONE

    parser = add_command(
        commands,
        "completion",
        run,
        summary="print a script for shell completion of these commands",
        description=_DESCRIPTION,
        reads=False,
        examples="""
            torchzip completion bash > ~/.local/share/bash-completion/completions/torchzip
            torchzip completion zsh > ~/.zsh/functions/_torchzip
            torchzip completion fish > ~/.config/fish/completions/torchzip.fish
        """,
    )
    parser.add_argument("shell", metavar="SHELL", choices=_SHELLS, help=", ".join(_SHELLS))


def script(parser: argparse.ArgumentParser, shell: str) -> str:
    """Return the script for a shell.

    Raises
    ------
    ValueError
        If shtab is not installed.
    """
    try:
        import shtab
    except ImportError:
        raise ValueError(
            "completion needs the package shtab; python -m pip install 'torchzip[completion]'"
        ) from None
    for action in _actions(parser):
        if action.metavar in _FILES:
            action.complete = shtab.FILE  # type: ignore[attr-defined]
    text: str = shtab.complete(parser, shell)
    return text


def _actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    """Yield the arguments of a parser and of all commands in it."""
    for action in parser._actions:
        yield action
        if isinstance(action, argparse._SubParsersAction):
            for inner in action.choices.values():
                yield from _actions(inner)
