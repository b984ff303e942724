"""What `verify` returns; tests/cli/test_cli_verify.py has what it finds in files of all kinds."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import torchzip as tz
from tests import builders as b
from torchzip.tools import Verified, verify


def test_sound(tmp_path: Path) -> None:
    """A frozen dataclass, the same for a path and for a file object where it stands."""
    tensors = {"a": np.arange(300, dtype=np.float32)}
    tz.save(tensors, tmp_path / "m.pt")
    found = verify(tmp_path / "m.pt")
    assert type(found) is Verified
    assert (found.file, found.format, found.tensors) == (str(tmp_path / "m.pt"), "zip", 1)
    assert (found.torch_load, found.refused, found.without_crc) == ("accepts", (), ())
    with (tmp_path / "m.pt").open("rb") as file:
        again = verify(file)
    assert dataclasses.replace(again, file=found.file) == found
    with pytest.raises(dataclasses.FrozenInstanceError):
        found.records = 0  # type: ignore[misc]


def test_legacy_stream_behind_other_bytes() -> None:
    """The opcodes are those of the stream that the file object stands at."""
    data = (b.GOLDEN / "views-legacy.pt").read_bytes()
    file = io.BytesIO(b"\x80\x04before" + data)
    file.seek(8)
    found = verify(file)
    assert (found.format, found.torch_load) == ("legacy", "accepts")


def test_limits() -> None:
    """They bound what is read."""
    with pytest.raises(tz.LimitError):
        verify(io.BytesIO(b.checkpoint(b.stream(b.tensor()))), limits=tz.Limits(pickle_nbytes=10))


@pytest.mark.parametrize("name", ["views.pt", "views-legacy.pt", "sparse.pt", "script.pt"])
def test_progress(name: str) -> None:
    """It rises to the whole, which is never less than what was read."""
    calls: list[tuple[int, int]] = []
    found = verify(b.GOLDEN / name, progress=lambda done, total: calls.append((done, total)))
    assert len(calls) == found.records
    assert calls == sorted(calls)
    assert all(done <= total for done, total in calls)
    assert calls[-1] == (found.nbytes, found.nbytes)


class _Least:
    """A file object with ``read`` and ``seek`` and no more."""

    def __init__(self, data: bytes) -> None:
        file = io.BytesIO(data)
        self.read, self.seek = file.read, file.seek


def _of(make: Callable[[], Any], folder: Path) -> list[Callable[[], Any]]:
    return [
        lambda: tz.tools.verify(make()).torch_load,
        lambda: tz.tools.why_big(make()).nbytes,
        lambda: tz.tools.report(make(), folder / "page.html", overwrite=True).tensors,
        lambda: tz.tools.repair(make(), folder / "out.pt", overwrite=True).tensors,
    ]


def test_least_of_file_objects(tmp_path: Path) -> None:
    """What a reader needs of one is ``read`` and ``seek``."""
    buffer = io.BytesIO()
    tz.save({"a": np.ones(3)}, buffer)
    data = buffer.getvalue()
    for least, whole in zip(
        _of(lambda: _Least(data), tmp_path), _of(lambda: io.BytesIO(data), tmp_path), strict=True
    ):
        assert least() == whole()


@pytest.mark.parametrize("wrong", [None, 5, b"m.pt", []], ids=repr)
def test_what_is_no_file(tmp_path: Path, wrong: Any) -> None:
    """It is a TypeError of each tool."""
    for call in _of(lambda: wrong, tmp_path):
        with pytest.raises(TypeError, match="expected a path or a binary file object"):
            call()
    assert list(tmp_path.iterdir()) == []
