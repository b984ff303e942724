"""What `verify` says of torch.load, beside torch.load itself: of odd files and of mutants."""

from __future__ import annotations

import contextlib
import io
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import torchzip as tz
from tests import sampling
from tests.torch_mutants import mutants, originals
from tests.torch_verdicts import Verdicts
from torchzip.tools import Verified, verify

pytestmark = [pytest.mark.torch, pytest.mark.filterwarnings("ignore")]

#: torch asks for the sizes of a nested tensor before it has read them: what stands in fresh memory
#: decides, and mostly that is not a size.
_BY_CHANCE = "nested-legacy"


@pytest.fixture(scope="module")
def asked() -> Iterator[Verdicts]:
    with contextlib.closing(Verdicts()) as asked:
        yield asked


def _agree(found: Verified, verdict: str) -> bool:
    """Return whether torch does what was said of it.

    A file with names that torch does not know "needs weights_only=False". Whether their classes
    take what the file gives them, nobody but they can say. So it is with frames that were cut.
    """
    if found.torch_load == verdict:
        return True
    is_open = found.refused or "FRAME" in found.refused_opcodes
    return bool(is_open) and "accepts" not in (found.torch_load, verdict)


def test_odd_files(torch: Any, asked: Verdicts, tmp_path: Path) -> None:
    """Every dtype, kind of tensor and plain value, in both formats and three protocols."""
    wrong = []
    for name, data in originals(torch):
        path = tmp_path / "m.pt"
        path.write_bytes(data)
        found = verify(path)
        verdict, why = asked.of(path)
        if not _agree(found, verdict) and not name.startswith(_BY_CHANCE):
            wrong.append((name, found.torch_load, found.reason, verdict, why))
    assert wrong == []


def test_mutants(torch: Any, asked: Verdicts, tmp_path: Path) -> None:
    """Of files with one thing or a few changed that torchzip still reads."""
    make = mutants(torch)
    wrong = []
    read = 0
    for number in range(1000, 1000 + 4 * sampling.profile.inputs):
        name, data = make(number)
        path = tmp_path / "m.pt"
        path.write_bytes(data)
        try:
            found = verify(path)
        except (tz.TorchZipError, OSError):
            continue
        read += 1
        verdict, why = asked.of(path)
        if verdict != "crashes" and not _agree(found, verdict) and _BY_CHANCE not in name:
            wrong.append((name, found.torch_load, found.reason, verdict, why))
    assert wrong == []
    assert read > sampling.profile.inputs


@pytest.mark.parametrize("dtype", ["float32", "float8_e4m3fn", "uint16", "complex32", "int64"])
@pytest.mark.parametrize("is_legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("requires_grad", [False, True])
def test_dtypes(
    torch: Any, asked: Verdicts, path: Path, dtype: str, is_legacy: bool, requires_grad: bool
) -> None:
    """Of those without a storage class, legacy files can hold none and zip files no gradients."""
    tensor = torch.ones(3).to(getattr(torch, dtype))
    if requires_grad and tensor.is_floating_point():
        tensor.requires_grad_()
    torch.save({"w": tensor}, path, _use_new_zipfile_serialization=not is_legacy)
    found = verify(path)
    verdict, why = asked.of(path)
    assert (found.torch_load, found.refused) == (verdict, ()), (found.reason, why)


def test_names_of_files(torch: Any, asked: Verdicts, tmp_path: Path) -> None:
    """torch.load goes by the name where it ends in .safetensors."""
    torch.save({"w": torch.ones(3)}, tmp_path / "m.pt")
    tz.convert(tmp_path / "m.pt", tmp_path / "m.safetensors")
    (tmp_path / "m.pt").rename(tmp_path / "zip.safetensors")
    (tmp_path / "of.pt").write_bytes((tmp_path / "m.safetensors").read_bytes())
    said = {"m.safetensors": "accepts", "zip.safetensors": "refuses", "of.pt": "does not apply"}
    for name, verdict in said.items():
        assert verify(tmp_path / name).torch_load == verdict
        assert (asked.of(tmp_path / name)[0] == "accepts") == (verdict == "accepts")


def test_empty_storages_that_are_shared(torch: Any, asked: Verdicts, path: Path) -> None:
    """One without bytes has the dtype of each mention of it, and is loaded."""
    empty = torch.empty(0)
    torch.save([empty, empty.view(0, 3)], path, _use_new_zipfile_serialization=False)
    assert verify(path).torch_load == asked.of(path)[0]


def test_mutants_are_the_same_each_time(torch: Any) -> None:
    """A number gives one file."""
    make = mutants(torch)
    for number in random.Random(0).sample(range(10_000), 5):
        name, data = make(number)
        assert make(number) == (name, data)
    assert tz.load(io.BytesIO(make(0)[1])) is not None
