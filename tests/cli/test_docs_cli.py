"""docs/cli.md is what the commands print, on checkpoints from packages of the Python index."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.transcripts import collect, prepare, run_again

_PAGE = Path(__file__).parents[2] / "docs" / "cli.md"


def test_transcript(real_file: Any, tmp_path: Path) -> None:
    """Each command prints what the page says."""
    collect(tmp_path, real_file)
    prepare(tmp_path)
    text = _PAGE.read_text()
    again = run_again(text, tmp_path)
    assert again.splitlines() == text.splitlines()
    assert text.count("\n$ torchzip ") > 30
