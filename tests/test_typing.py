"""Type checkers read a user's program, and what the package says of itself."""

from __future__ import annotations

import ast
import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import torchzip as tz

_USE = Path(__file__).with_name("typed_use.py")


def _checked(folder: Path, *command: str) -> None:
    """Run a type checker in a folder that has a user's program and no settings of this project."""
    shutil.copy(_USE, folder)
    done = subprocess.run(
        [sys.executable, "-m", *command, _USE.name],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(Path(tz.__file__).parents[1])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.long
def test_mypy(tmp_path: Path) -> None:
    """In its strict mode, with every ``ignore`` needed."""
    _checked(tmp_path, "mypy", "--strict", "--config-file=", "--cache-dir=cache")


@pytest.mark.long
def test_pyright(tmp_path: Path) -> None:
    """Where it is installed."""
    if importlib.util.find_spec("pyright") is None:
        pytest.skip("no pyright; install it: pip install pyright")
    _checked(tmp_path, "pyright", "--pythonpath", sys.executable)


def test_every_public_name_is_used() -> None:
    """In the program that the type checkers read."""
    tree = ast.parse(_USE.read_text())
    used = {
        (node.value.id, node.attr)
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)
    }
    rooms = {"lazy": tz.lazy, "tools": tz.tools, "types": tz.types, "executors": tz.executors}
    expected = {("tz", name) for name in tz.__all__ if name not in rooms}
    expected |= {(room, name) for room, module in rooms.items() for name in module.__all__}
    assert not expected - used
