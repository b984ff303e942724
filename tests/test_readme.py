"""The README's commands and examples do what it says."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """Return a folder with the examples in it, as a user has it."""
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    return tmp_path


def blocks(language: str) -> list[str]:
    """Return the README's code blocks of a language."""
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def test_python_examples(checkout: Path) -> None:
    """The Python examples run, one after the other, as a user would paste them."""
    script = "\n".join(blocks("python"))
    assert script.count("tz.") >= 5
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script],
        cwd=checkout,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "28 tensors" in done.stdout
    assert sorted(path.name for path in checkout.iterdir()) == [
        "big.pt",
        "examples",
        "model.pt",
        "model.safetensors",
        "split.pt",
    ]


def test_command_line_examples(checkout: Path) -> None:
    """The commands of torchzip run; what installs is left to the machine that tests."""
    commands = [
        part.strip()
        for block in blocks("sh")
        for part in re.split("&&|\n", block.replace("\\\n", ""))
        if part.strip().startswith("torchzip")
    ]
    assert len(commands) >= 14
    for command in commands:
        words = [sys.executable, "-m", *shlex.split(command, comments=True)]
        done = subprocess.run(words, cwd=checkout, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    assert (checkout / "out.safetensors").exists()
    assert (checkout / "shards" / "model.safetensors.index.json").exists()


def test_order() -> None:
    """The two commands, the examples, the workbench, the table, the guarantees: in this order."""
    heads = re.findall(r"^## (.*)$", README, re.MULTILINE)
    assert heads == [
        "Two commands",
        "Examples",
        "The workbench",
        "Beside torch, safetensors and ptloader",
        "Guarantees",
    ]
