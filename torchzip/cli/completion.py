"""``torchzip completion``: a script that makes a shell complete commands, options and files."""

from __future__ import annotations

import argparse
from collections.abc import Iterator

from torchzip.cli.command import DONE, Command

_SHELLS = ("bash", "zsh", "fish", "tcsh", "powershell")

#: Arguments that are paths, by their names in the help.
_FILES = frozenset({"FILE", "SRC", "DST", "A", "B", "BROKEN", "OUT"})


COMMAND = Command(
    name="completion",
    summary="print a script for shell completion of these commands",
    description="""\
Print a script that makes a shell complete torchzip's commands, options and files. It needs the
package shtab: python -m pip install 'torchzip[completion]'
""",
    examples="""
        torchzip completion bash > ~/.local/share/bash-completion/completions/torchzip
        torchzip completion zsh > ~/.zsh/functions/_torchzip
        torchzip completion fish > ~/.config/fish/completions/torchzip.fish
    """,
    arguments={"shell": {"metavar": "SHELL", "choices": _SHELLS, "help": ", ".join(_SHELLS)}},
    reads=False,
)


def run(arguments: argparse.Namespace, whole: argparse.ArgumentParser) -> int:
    """Print the script for the command line whose parser is ``whole``."""
    print(script(whole, arguments.shell))
    return DONE


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
