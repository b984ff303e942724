"""Runs commands of torchzip in this process, for tests of what they print."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from torchzip.cli.main import main

Capture = pytest.CaptureFixture[str]


def command(*before: str) -> Callable[..., tuple[int, str, str]]:
    """Return a function (capsys, arguments) -> status, stdout and stderr of a command."""

    def run(capsys: Capture, *arguments: Any) -> tuple[int, str, str]:
        status = main([*before, *map(str, arguments)])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return run


run = command()


def usage(capsys: Capture, *arguments: Any) -> str:
    """Return what is said of a wrong usage that the parser finds."""
    with pytest.raises(SystemExit) as caught:
        main([str(argument) for argument in arguments])
    assert caught.value.code == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    return captured.err
