"""What `scan` says of hostile files, with torch as the judge: a finding, or torch takes it too."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import pytest

from tests.hostile.every import ATTACKS, BY_KIND
from tests.real_files import PACKAGES
from tests.saved import GOLDEN_FILES
from tests.torch_verdicts import Verdicts
from torchzip.tools import scan

pytestmark = pytest.mark.torch


#: Sound files that torch.load is not for, whatever they are called, and plain pickles.
_OTHER_FORMATS = {"safetensors", "gguf", "npz", "npy", "pt2", "pickle"}


@pytest.mark.parametrize("kind", BY_KIND)
def test_no_silence(torch: Any, tmp_path: Path, kind: str) -> None:
    """A file without a finding is one that torch.load accepts by default, or that is none of its.

    Of what torch.load refuses by default and takes if it is asked to, none is without a finding.
    """
    quiet = []
    for number, attack in enumerate(BY_KIND[kind]):
        path = tmp_path / f"{number}.pt"
        path.write_bytes(attack.data)
        (file,) = scan(path).files
        if not file.findings:
            quiet.append((attack, path, file))
        elif kind in ("code", "gadget"):
            assert file.verdict in ("foreign", "refused", "unreadable"), attack.name
    wrong = {}
    with contextlib.closing(Verdicts()) as asked:
        for attack, path, file in quiet:
            said, why = asked.of(path)
            is_own = file.verdict in ("no pickle", "plain") and file.format in _OTHER_FORMATS
            if said != "accepts" and not (said == "refuses" and is_own):
                wrong[attack.name] = (file.verdict, file.format, said, why)
    assert not wrong
    assert len(ATTACKS) > 2000


def test_golden_files(torch: Any) -> None:
    """Of four releases of torch: a finding where torch.load refuses by default, and only there."""
    wrong = {}
    with contextlib.closing(Verdicts()) as asked:
        for path in GOLDEN_FILES:
            said, why = asked.of(path)
            (file,) = scan(path).files
            if bool(file.findings) != (said != "accepts"):
                wrong[path] = (file.verdict, said, why)
    assert not wrong


@pytest.mark.parametrize("package", PACKAGES)
def test_real_packages(torch: Any, real_file: Any, package: str) -> None:
    """Of all files of a package those that torch.load refuses by default, and no others."""
    folder = real_file(package, ".")
    found = scan(folder)
    assert len(found.files) > 5
    with contextlib.closing(Verdicts()) as asked:
        for file in found.files:
            if file.verdict != "no pickle" or file.findings:
                said, why = asked.of(Path(file.path))
                assert bool(file.findings) == (said != "accepts"), (file, said, why)
