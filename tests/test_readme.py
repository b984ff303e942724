"""The README's commands and examples do what it says, also the second time."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tomllib
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
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def run(words: list[str], checkout: Path) -> str:
    """Run a command there as a user would, with `torchzip` on the path; return what it printed."""
    before = sorted(checkout.rglob("*"))
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    done = subprocess.run(
        words, cwd=checkout, capture_output=True, text=True, check=False,
        env={**os.environ, "PATH": path, "TMPDIR": str(checkout.parent)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert sorted(checkout.rglob("*")) == before  # what is written goes to a temporary folder
    return done.stdout


def test_python_examples(checkout: Path) -> None:
    """The Python examples run, one after the other, as a user would paste them."""
    script = "\n".join(
        block
        for block in blocks("python")
        if "import jax" not in block or importlib.util.find_spec("jax") is not None
    )
    assert script.count("tz.") >= 8
    shown = [run([sys.executable, "-W", "error", "-c", script], checkout) for _ in range(2)]
    assert "28 tensors" in shown[0]
    assert shown[0] == shown[1]


@pytest.mark.parametrize("times", [1, pytest.param(2, marks=pytest.mark.long)])
def test_command_line_examples(checkout: Path, times: int) -> None:
    """The commands run, in order; what installs and tests is left to who tests."""
    script = "\n".join(blocks("sh"))
    script = re.sub(r"^python -m pip install -e .*$", "", script, flags=re.MULTILINE)
    script = script.replace("python -m pip install . && ", "")
    assert "pip" not in script
    assert len(re.findall("^torchzip ", script, re.MULTILINE)) >= 14
    for _ in range(times):
        run(["bash", "-euo", "pipefail", "-c", script], checkout)


def test_outputs(checkout: Path) -> None:
    """What a command is said to print is what it prints."""
    shown = blocks("console")
    assert shown
    for block in shown:
        command, output = block.removeprefix("$ ").split("\n", 1)
        assert run(["bash", "-c", command], checkout) == output


def test_links() -> None:
    """Links work on a package's page too, and lead to what is there."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    home = project["urls"]["Repository"]
    targets = re.findall(r"\]\(([^)]+)\)", README)
    assert len(targets) > 10
    for target in targets:
        kind, _, path = target.removeprefix(f"{home}/").partition("/main/")
        assert kind in ("blob", "raw"), target
        assert (ROOT / path).exists(), target


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
