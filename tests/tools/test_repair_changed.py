"""What `repair` gives back of files that are whole, but not as they were; and what it says of them.

Nothing is missing in such a file: something was put between its parts, in front or behind, or all
of it was written in another way.
"""

from __future__ import annotations

import json
import struct
import zipfile
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import torchzip as tz
from tests.saved import legacy, saved, zipped_again
from torchzip.errors import TorchZipError
from torchzip.tools import Repaired, repair

_VALUE: dict[str, Any] = {
    "w": np.random.default_rng(2).standard_normal(600).astype(np.float32),
    "b": np.arange(50, dtype=np.int16),
    "zeros": np.zeros(900, np.float32),
}
_OTHER: dict[str, Any] = {"w": np.ones(600, np.float32), "more": np.arange(9, dtype=np.int16)}


def _converted(value: dict[str, Any], folder: Path) -> bytes:
    tz.save(value, folder / "made.pt")
    tz.convert(folder / "made.pt", folder / "made.safetensors", overwrite=True)
    return (folder / "made.safetensors").read_bytes()


def _repair(data: bytes, folder: Path, suffix: str = ".pt") -> tuple[Repaired, dict[str, Any]]:
    (folder / "broken").write_bytes(data)
    found = repair(folder / "broken", folder / f"out{suffix}", overwrite=True)
    return found, tz.load(folder / f"out{suffix}")


def _is_all(found: Repaired, made: dict[str, Any], value: dict[str, Any] = _VALUE) -> None:
    assert not found.lost
    assert sorted(made) == sorted(value)
    for name, array in value.items():
        assert made[name].dtype == array.dtype
        assert np.array_equal(made[name], array)


# -- zip archives --------------------------------------------------------------------------------


def _packed_again(
    data: bytes, name_of: Callable[[str], str], method: int, *, is_sorted: bool = False
) -> bytes:
    """Return an archive as an archiver makes it from the files of another."""
    made = BytesIO()
    with zipfile.ZipFile(BytesIO(data)) as old, zipfile.ZipFile(made, "w", method) as new:
        names = sorted(old.namelist()) if is_sorted else old.namelist()
        if is_sorted:
            new.writestr(name_of("archive/data/"), b"")
        for name in names:
            new.writestr(name_of(name), old.read(name))
    return made.getvalue()


_FOLDERS: dict[str, Callable[[str], str]] = {
    "none": lambda name: name.partition("/")[2],
    "two": lambda name: f"some/{name}",
    "one called data": lambda name: name.replace("archive/", "data/"),
}


@pytest.mark.parametrize("folder", _FOLDERS)
@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize("is_sorted", [False, True])
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_other_folders(
    folder: str, method: int, is_sorted: bool, suffix: str, tmp_path: Path
) -> None:
    """An archive that was unpacked and packed again, without its folder or in another one."""
    data = _packed_again(saved(_VALUE), _FOLDERS[folder], method, is_sorted=is_sorted)
    found, made = _repair(data, tmp_path, suffix)
    _is_all(found, made)
    assert not found.unverified


def test_without_folder_and_end(tmp_path: Path) -> None:
    """Of such an archive the records before a cut come back."""
    data = _packed_again(saved(_VALUE), _FOLDERS["none"], zipfile.ZIP_STORED)
    found, made = _repair(data[:4500], tmp_path)
    assert list(made) == ["w", "b"]
    assert [lost.name for lost in found.lost] == ["zeros"]


# -- copied as text ------------------------------------------------------------------------------


def _as_text(data: bytes) -> bytes:
    return data.replace(b"\n", b"\r\n")


@pytest.mark.parametrize("kind", ["zip", "deflated", "legacy", "safetensors"])
def test_copied_as_text(kind: str, tmp_path: Path) -> None:
    """Each LF became CR LF: that is undone exactly, which the CRCs prove where there are any."""
    value = _VALUE | {"n": np.frombuffer(b"\n\r\n\r\r\n\n" * 40, np.uint8)}
    if kind == "legacy":
        data = legacy(value)
    elif kind == "safetensors":
        data = _converted(value, tmp_path)
    else:
        method = zipfile.ZIP_DEFLATED if kind == "deflated" else zipfile.ZIP_STORED
        data = zipped_again(saved(value), method)
    found, made = _repair(_as_text(data), tmp_path)
    _is_all(found, made, value)
    assert found.damage is not None
    assert "copied as text" in found.damage
    assert bool(found.unverified) == (kind in ("legacy", "safetensors"))


def test_copied_as_text_and_cut(tmp_path: Path) -> None:
    """What is before the cut comes back."""
    data = _as_text(saved(_VALUE))
    found, made = _repair(data[: data.index(bytes(3000))], tmp_path)
    assert list(made) == ["w", "b"]
    assert not found.unverified
    assert found.damage is not None
    assert "copied as text" in found.damage


# -- safetensors ---------------------------------------------------------------------------------


def _row(dtype: str, shape: list[int], begin: int, end: int) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def _safetensors(header: dict[str, Any], body: bytes) -> bytes:
    raw = json.dumps(header).encode()
    return struct.pack("<Q", len(raw)) + raw + body


_PAIR = np.array([1.5, 2.5], np.float32)
_BODY = b"abc\0\0\0\0\0" + _PAIR.tobytes()
_PADDED = {"m": _row("U8", [3], 0, 3), "w": _row("F32", [2], 8, 16)}
_WHOLE: dict[str, Any] = {"m": np.frombuffer(b"abc", np.uint8), "w": _PAIR}


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize(
    ("header", "body", "names"),
    [
        (_PADDED, _BODY, "m w"),
        ({"w": _row("F32", [2], 8, 16)}, _BODY, "w"),
        (_PADDED, _BODY + bytes(64), "m w"),
        (_PADDED | {"x": _row("F32", [2], 16, 24)}, _BODY, "m w"),
        (_PADDED | {"__metadata__": {"step": 7, "of": [1, 2], "by": "me"}}, _BODY, "m w"),
        (_PADDED | {"__metadata__": [1, 2]}, _BODY, "m w"),
        (_PADDED | {"x": _row("F32", [3], 0, 16)}, _BODY, "m w"),
        (_PADDED | {"x": _row("F1000", [2], 8, 16)}, _BODY, "m w"),
        (_PADDED | {"x": _row("U8", [4], 8, 12)}, _BODY, "m"),
        (_PADDED | {"x": 5, "y": _row("U8", [-1], 0, 3)}, _BODY, "m w"),
    ],
)  # fmt: skip
def test_safetensors(
    header: dict[str, Any], body: bytes, names: str, suffix: str, tmp_path: Path
) -> None:
    """Each tensor that its row describes, and no other claims, comes back."""
    found, made = _repair(_safetensors(header, body), tmp_path, suffix)
    assert sorted(made) == names.split()
    for name in names.split():
        assert np.array_equal(made[name], _WHOLE[name])
    assert sorted(found.unverified) == names.split()
    said = " ".join([*found.notes, *(lost.name for lost in found.lost)])
    assert all(name in said for name in header if name not in names.split())


def test_safetensors_metadata(tmp_path: Path) -> None:
    """Values that should be strings are written as JSON; strings stay."""
    metadata = {"step": 7, "of": [1, 2], "by": "me", "none": None}
    _repair(_safetensors(_PADDED | {"__metadata__": metadata}, _BODY), tmp_path, ".safetensors")
    with tz.lazy_load(tmp_path / "out.safetensors") as checkpoint:
        assert checkpoint.metadata == {
            "torchzip.object": '{"root":{"tensors":["m","w"]}}', "step": "7", "of": "[1, 2]",
            "by": "me", "none": "null", "format": "pt",
        }  # fmt: skip


def test_safetensors_of_a_zip(tmp_path: Path) -> None:
    """A zip that is cut gives a safetensors file, if that is what is asked for."""
    data = saved({"model": _VALUE, "step": 3})
    found, made = _repair(data[: data.index(bytes(3000)) + 100], tmp_path, ".safetensors")
    assert (tmp_path / "out.safetensors").read_bytes()[8:9] == b"{"
    assert found.nbytes == (tmp_path / "out.safetensors").stat().st_size
    assert sorted(made) == ["model.b", "model.w"]
    assert np.array_equal(made["model.w"], _VALUE["w"])
    assert not found.unverified


# -- several in one file -------------------------------------------------------------------------


def _kinds(value: dict[str, Any], folder: Path) -> dict[str, bytes]:
    return {
        "a zip archive": saved(value),
        "a legacy stream": legacy(value),
        "a safetensors file": _converted(value, folder),
    }


@pytest.mark.parametrize("first", ["a zip archive", "a legacy stream", "a safetensors file"])
@pytest.mark.parametrize("second", ["a zip archive", "a legacy stream", "a safetensors file"])
@pytest.mark.parametrize("cut", [0, 40])
def test_two_saves(first: str, second: str, cut: int, tmp_path: Path) -> None:
    """The first comes back, and the second is named with its place, whole or not."""
    one = _kinds(_VALUE, tmp_path)[first]
    two = _kinds(_OTHER, tmp_path)[second]
    found, made = _repair(one + two[: len(two) - cut], tmp_path)
    _is_all(found, made)
    (note,) = (note for note in found.notes if "second" in note)
    assert f"{second}, begins at byte {len(one):,}" in note
    assert f"tail -c +{len(one) + 1} " in note
    assert "truncated" not in (found.damage or "")


def test_the_same_twice(tmp_path: Path) -> None:
    """A file that was appended to itself."""
    data = saved(_VALUE)
    found, made = _repair(data * 2, tmp_path)
    _is_all(found, made)
    assert any(f"begins at byte {len(data):,}" in note for note in found.notes)


# -- what is said --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "said", "is_cut"),
    [
        (lambda data: data + b"\1" * 99_000, "99,000 bytes follow the archive", False),
        (lambda data: data + bytes(99_000), "99,000 bytes follow the archive", False),
        (lambda data: b"HTTP/1.1 200\n" + data, "13 bytes are before the archive", False),
        (lambda data: data[:-22] + b"Q" + data[-21:], "no zip directory in the last", False),
        (lambda data: data[:3500] + bytes(len(data) - 3500), "the file ends with", True),
        (lambda data: data[:3500], "no zip directory in the last", True),
    ],
)  # fmt: skip
def test_damage(change: Callable[[bytes], bytes], said: str, is_cut: bool, tmp_path: Path) -> None:
    """A file that grew is not said to be truncated, nor is one that has its end."""
    found, _ = _repair(change(saved(_VALUE)), tmp_path)
    assert found.damage is not None
    assert said in found.damage
    assert ("truncated" in found.damage or "cut short" in found.damage) == is_cut


def test_nothing_to_be_had_of_a_file_with_its_end(tmp_path: Path) -> None:
    """It is not said to be truncated either."""
    data = bytearray(saved({"w": np.ones(3)}))
    start = data.index(b"\x80\2")
    data[start : start + 9] = b"destroyed"
    data[data.index(np.ones(3).tobytes())] ^= 1
    with pytest.raises(TorchZipError, match="nothing can be recovered") as caught:
        _repair(bytes(data), tmp_path)
    assert "truncated" not in str(caught.value)
