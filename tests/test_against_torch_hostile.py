"""Changed files beside torch: what its safe loader accepts, torchzip reads alike, or refuses."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import torchzip as tz
from fuzz import against_torch, campaign, seeds
from fuzz.against_torch import Both, DifferentError, NotTorchzip, OnlyTorchzip
from fuzz.doors import Send
from fuzz.seeds import Case
from tests import builders as b
from tests import sampling

pytestmark = pytest.mark.torch


@pytest.fixture(scope="module")
def send() -> Iterator[Send]:
    """Return what has both read a file."""
    with against_torch.room() as send:
        yield send


def test_seeds(send: Send) -> None:
    """What the inputs are made from is the same to both, wherever torch takes it."""
    made = [send(case) for case in sampling.some(list(seeds.whole()))]
    assert made.count(Both) > len(made) / 3


def test_a_seeded_run() -> None:
    """The same changed files in each run; both read a part of them, with the same values."""
    inputs = sampling.profile.inputs
    total = campaign.run(5_000_000, most=inputs, room=against_torch.room)
    assert [finding.what + "\n" + finding.story for finding in total.findings] == []
    assert total.inputs == inputs
    assert total.made["Both"] > inputs / 30


def _checkpoint(byteorder: bytes = b"little", offset: int = 0) -> Case:
    members = b.members_of(b.stream(b.tensor(offset=offset)), byteorder=byteorder)
    return Case.of(b.build_zip(members))


def test_differences_are_seen(send: Send, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader that is wrong in one bit, or forgets the byte order, is found out."""
    assert send(_checkpoint()) is Both
    assert send(_checkpoint(b"big")) is Both
    assert send(_checkpoint(offset=1)) is NotTorchzip
    assert send(Case.of(b.checkpoint(b.stream(b"\x8c\1a")))) is OnlyTorchzip
    real = tz.LazyTensor.numpy
    monkeypatch.setattr(tz.LazyTensor, "numpy", lambda self: real(self) * np.float32(1.5))
    with pytest.raises(DifferentError):
        send(_checkpoint())


def test_a_different_structure_is_seen(
    send: Send, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Two tensors that share a storage are not two that do not."""
    files = []
    for second in ("0", "1"):
        stream = b.stream(b.list_of(b.tensor(), b.tensor(b.persistent(second))))
        files.append(b.checkpoint(stream, {"0": b.DATA, "1": b.DATA}))
    assert [send(Case.of(data)) for data in files] == [Both, Both]
    (tmp_path / "apart.pt").write_bytes(files[1])
    apart = against_torch.describe(tmp_path / "apart.pt")
    monkeypatch.setattr(against_torch, "describe", lambda path: apart)
    with pytest.raises(DifferentError):
        send(Case.of(files[0]))
