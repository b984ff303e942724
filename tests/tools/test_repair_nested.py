"""An archive in a tensor is never taken for the file, whatever of the file is lost.

The records of the inner archive have the names, sizes and CRCs that outer ones could have.
"""

from __future__ import annotations

import io
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import torchzip as tz
from tests.sampling import some
from tests.saved import saved, zipped_again
from tests.systems import open_files_can_go
from tests.tools.damage import Original, damaged, repaired, value_of
from torchzip.errors import TorchZipError


def _four(*values: float) -> dict[str, Any]:
    return {name: np.full(4, value, np.float32) for name, value in zip("awvx", values, strict=True)}


def _with_inner(inner: bytes, *, first: bool) -> dict[str, Any]:
    """Return four tensors; one is an archive, whose other records look like those of the rest."""
    blob = np.frombuffer(inner, np.uint8).copy()
    outer = _four(1, 2, 3, 4)
    return {"a": blob, **{k: outer[k] for k in "wvx"}} if first else {**outer, "blob": blob}


_INNER = saved(_four(0, 666, 7, 8))
_DEEPER = saved(_with_inner(_INNER, first=True))
_FILES = {
    "first": Original(saved(_with_inner(_INNER, first=True))),
    "last": Original(saved(_with_inner(_INNER, first=False))),
    "deeper": Original(saved(_with_inner(_DEEPER, first=True))),
    "zipped again": Original(zipped_again(saved(_with_inner(_INNER, first=True)))),
}
_INNER_RECORDS = {array.tobytes() for array in _four(0, 666, 7, 8).values()}
each_file = pytest.mark.parametrize("kind", _FILES)


def _judge(original: Original, data: bytes, folder: Path, *, all_right: bool = False) -> set[str]:
    """Repair a file; what comes back verified is right, and with ``all_right`` all else as well."""
    try:
        found, checkpoint = repaired(data, folder)
    except TorchZipError:
        return set()
    with checkpoint:
        for name in checkpoint:
            if name == "data/pkl":  # the pickle itself, whose name has a damaged byte
                continue
            if name.startswith("data/"):  # bytes by their record
                array = checkpoint[name].numpy()
                # Without the end of the file, an archive inside can be all that is left of it.
                is_inner = original.data[-22:] not in data and array.tobytes() in _INNER_RECORDS
                assert is_inner or name in found.unverified or _is_in(original, array)
            elif all_right or name not in found.unverified:
                assert value_of(checkpoint[name]) == original.values[name], name
        return set(checkpoint)


def _is_in(original: Original, array: Any) -> bool:
    spans = [span for spans in original.spans.values() for span in spans]
    return any(original.data[start:stop] == array.tobytes() for start, stop in spans)


_LOSSES: dict[str, Callable[[bytes, int], bytes]] = {
    "the end": lambda data, at: data[:at],
    "the end, which is zeros": lambda data, at: data[:at] + bytes(len(data) - at),
    "the end, which is noise": lambda data, at: data[:at] + b"\xa5" * (len(data) - at),
    "the beginning": lambda data, at: data[at:],
    "the beginning, which is zeros": lambda data, at: bytes(at) + data[at:],
}


#: Bytes behind a record without which it is lost: its descriptor, unless the file ends there; and
#: an archive ends with zeros, which could be those of the end.
_SLACK = {"the end": 0, "the end, which is zeros": 2, "the end, which is noise": 16}


@each_file
@pytest.mark.parametrize("loss", _LOSSES)
def test_one_side_is_lost(kind: str, loss: str, tmp_path: Path) -> None:
    """At any byte, all that comes back under a name is right, unverified or not."""
    original = _FILES[kind]
    for at in some(range(1, len(original.data), 23)):
        names = _judge(original, _LOSSES[loss](original.data, at), tmp_path, all_right=True)
        if loss.startswith("the end"):
            must = {
                name
                for name, spans in original.spans.items()
                if all(stop + _SLACK[loss] <= at for _, stop in spans)
            }
            start = original.data.index(b"PK\7\x08") + 16 if kind != "zipped again" else 4000
            assert at < start or must <= names


@each_file
@given(seed=st.integers(0, 1 << 40))
@example(seed=666859)  # the length of an extra field leads into the archive in a tensor
def test_any_damage(kind: str, seed: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    """A hole, bytes lost or added, flips, a lost end, in any combination.

    Blocks that change places can bring rows of one directory into the other, in the middle of it.
    """
    original = _FILES[kind]
    rng = random.Random(seed)
    data, done = damaged(original.data, rng)
    while any(kind in ("swap", "copy") for kind, *_ in done):
        data, done = damaged(original.data, rng)
    cut = rng.randrange(100, len(data) + 1)
    start, stop = sorted((rng.randrange(len(data)), rng.randrange(len(data))))
    folder = tmp_path_factory.mktemp("nested")
    for each in (
        data,
        data[:cut],
        data[:cut] + bytes(len(data) - cut),
        data[:start] + bytes(stop - start) + data[stop:cut],
    ):
        _judge(original, each, folder)


def test_hole_without_directory(tmp_path: Path) -> None:
    """Behind a hole a record is known by where torch.save puts it."""
    original = _FILES["first"]
    ((start, _),) = original.spans["w"]
    ((_, stop),) = original.spans["v"]
    data = bytearray(original.data[: original.data.rindex(b"PK\1\2")])
    directory = original.data.rindex(b"PK\6\6") - original.data.rindex(b"PK\1\2")
    assert directory > 0
    data[start - 90 : start + 10] = bytes(100)
    found, checkpoint = repaired(bytes(data[: stop + 16]), tmp_path)
    assert {"a", "v"} <= set(checkpoint)
    assert "w" not in checkpoint
    assert value_of(checkpoint["v"]) == original.values["v"]
    assert not found.unverified


@open_files_can_go
def test_second_archive_is_not_mixed_in(tmp_path: Path) -> None:
    """Of a save that was cut off, and one behind it, the second is named, and no more."""
    one, two = saved(_four(1, 2, 3, 4)), saved(_four(5, 6, 7, 8))
    original = Original(one)
    for cut in some(range(500, len(one), 31)):
        takes_it_out = f"tail -c +{cut + 1} FILE | head -c {len(two)}"
        said: list[str] = []
        try:
            found, checkpoint = repaired(one[:cut] + two, tmp_path)
        except TorchZipError as error:
            said.append(str(error))
        else:
            said += found.notes
            for name in checkpoint:
                assert value_of(checkpoint[name]) == original.values[name]
        assert any(takes_it_out in each for each in said)
    assert np.array_equal(tz.load(io.BytesIO(two))["w"], np.full(4, 6, np.float32))
