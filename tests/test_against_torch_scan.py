"""What `scan` says of hostile files, with torch as the judge: a finding, or torch takes it too."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.hostile.every import ATTACKS, BY_KIND
from tests.torch_verdicts import Verdicts
from torchzip.tools import scan

pytestmark = pytest.mark.torch


@pytest.mark.parametrize("kind", BY_KIND)
def test_no_silence(torch: Any, tmp_path: Path, kind: str) -> None:
    """No file without a finding is one that torch.load refuses by default and runs if asked to."""
    quiet = []
    for number, attack in enumerate(BY_KIND[kind]):
        path = tmp_path / f"{number}.pt"
        path.write_bytes(attack.data)
        (file,) = scan(path).files
        if not file.findings:
            quiet.append((attack.name, path, file.verdict))
        elif kind in ("code", "gadget"):
            assert file.verdict in ("foreign", "refused", "unreadable"), attack.name
    verdicts = Verdicts()
    wrong = {}
    for name, path, verdict in quiet:
        said, why = verdicts.of(path)
        is_odd = kind == "end" and said == "refuses"  # comments that torch's reader trips over
        if (verdict == "safe" and said != "accepts" and not is_odd) or said.startswith("needs"):
            wrong[name] = (verdict, said, why)
    assert not wrong
    assert len(ATTACKS) > 2000
