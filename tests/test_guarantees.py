"""docs/guarantees.md points to tests that are there, and counts them right."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from tests.hostile.every import ATTACKS, BY_KIND
from tests.test_messages import MESSAGES

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "docs" / "guarantees.md").read_text()
REFERENCES = sorted(set(re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", TEXT)))


def test_all_guarantees_are_there() -> None:
    """They have the numbers from 1 to 22 and more, each once, and each names a test."""
    numbers = [int(number) for number in re.findall(r"^\| (\d+) \|.*$", TEXT, re.MULTILINE)]
    assert len(set(numbers)) == len(numbers)
    assert set(numbers) >= {*range(1, 23), 23, 27}
    for line in TEXT.splitlines():
        if re.match(r"\| \d", line):
            assert "`tests/" in line, line


@pytest.mark.parametrize(("file", "name"), REFERENCES)
def test_reference(file: str, name: str) -> None:
    """A file, and a function in it."""
    tree = ast.parse((ROOT / file).read_text())
    if name:
        assert name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


def test_counts() -> None:
    """As many attacks of each kind as it says."""

    def rows(*kinds: str) -> int:
        return sum(len(BY_KIND[kind]) for kind in kinds)

    assert f"has {len(ATTACKS):,} files" in TEXT
    assert f"{rows('code')} rows of `tests/hostile/code.py`" in TEXT
    assert f"{rows('tensor')} rows of `tests/hostile/tensors.py`" in TEXT
    assert f"{rows('gadget')} of `tests/hostile/gadgets.py`" in TEXT
    assert f"{rows('header', 'end', 'deflated')} rows of `tests/hostile/headers.py`" in TEXT
    assert f"{rows('deflated')} rows of `tests/hostile/deflated.py`" in TEXT
    assert f"has {len(MESSAGES)} of them in full" in TEXT


def test_security_says_how_to_report() -> None:
    """SECURITY.md and this page point to one another."""
    security = (ROOT / "SECURITY.md").read_text()
    assert "docs/guarantees.md" in security
    assert "../SECURITY.md" in TEXT
    assert "## How to report" in security
