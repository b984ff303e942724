"""Runs commands of torchzip in this process, for tests of what they print."""

from __future__ import annotations

from typing import Any

import pytest

from torchzip.cli.main import main

Capture = pytest.CaptureFixture[str]


class Command:
    """Runs commands that begin with these words."""

    def __init__(self, *before: str) -> None:
        self._before = before

    def __call__(self, capsys: Capture, *arguments: Any) -> tuple[int, str, str]:
        """Return status, stdout and stderr."""
        status = main([*self._before, *map(str, arguments)])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    def done(self, capsys: Capture, *arguments: Any) -> str:
        """Return the stdout of a command that ends well and says nothing on stderr."""
        status, out, err = self(capsys, *arguments)
        assert (status, err) == (0, "")
        return out

    def says(self, expected: int, capsys: Capture, *arguments: Any) -> str:
        """Return the stderr of a command that ends with this status and nothing on stdout."""
        status, out, err = self(capsys, *arguments)
        assert (status, out) == (expected, "")
        return err


run = Command()


def usage(capsys: Capture, *arguments: Any) -> str:
    """Return what is said of a wrong usage that the parser finds."""
    with pytest.raises(SystemExit) as caught:
        main([str(argument) for argument in arguments])
    assert caught.value.code == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    return captured.err
