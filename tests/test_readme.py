"""The README's links and its order; that its examples run is in tests/test_pages.py."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


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
