"""Public proofs against other scanners, and what those took for code though nobody runs it."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path

import numpy as np
import pytest

import torchzip as tz
from tests import builders as b
from tests.hostile.advisories import ARCHIVES, PROOFS, Proof
from torchzip.tools import scan


@pytest.mark.parametrize("proof", PROOFS, ids=lambda each: f"{each.source}: {each.names[0]}")
def test_every_name_is_found(tmp_path: Path, proof: Proof) -> None:
    """In a pickle of any suffix, in a checkpoint, and in what compresses them."""
    for name, data in {
        "m.pkl": proof.pickle,
        "m.bin": proof.pickle,
        "m.pt": b.checkpoint(proof.pickle),
        "m.joblib": zlib.compress(proof.pickle, 3),
        "m.pt.gz": gzip.compress(b.checkpoint(proof.pickle)),
    }.items():
        (tmp_path / name).write_bytes(data)
        (file,) = scan(tmp_path / name).files
        assert file.verdict == "foreign", name
        assert set(proof.names) <= {each.name for each in file.findings}, name


@pytest.mark.parametrize(("source", "data"), ARCHIVES, ids=lambda each: str(each)[:40])
def test_no_archive_is_passed_by(tmp_path: Path, source: str, data: bytes) -> None:
    """Where a reader could see something else, that is the finding."""
    (tmp_path / "m.pt").write_bytes(data)
    assert scan(tmp_path / "m.pt").findings, source


@pytest.mark.parametrize("magic", [b"7z\xbc\xaf\x27\x1c", b"Rar!\x1a\7", b"\x28\xb5\x2f\xfd"])
def test_archives_that_are_not_looked_into(tmp_path: Path, magic: bytes) -> None:
    """They are not passed in silence: pickles in 7z archives were on the hub (nullifAI, 2025)."""
    (tmp_path / "m.bin").write_bytes(magic + bytes(100))
    (finding,) = scan(tmp_path / "m.bin").findings
    assert finding.rule == "unreadable"
    assert "not looked into" in finding.message


def test_elements_that_look_like_code(tmp_path: Path) -> None:
    """Bytes of a tensor are no pickle, whatever they are (modelaudit 624)."""
    code = np.frombuffer(PROOFS[0].pickle, np.uint8)
    tz.save({"w": code, "v": np.tile(code, 100)}, tmp_path / "m.pt")
    tz.convert(tmp_path / "m.pt", tmp_path / "m.safetensors")
    np.save(tmp_path / "m.npy", code)
    for file in scan(tmp_path).files:
        assert (file.findings, file.verdict in ("safe", "no pickle")) == ((), True), file.path
