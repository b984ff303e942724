"""Past 4 GiB and past 65,535 records, on disk, with torch and safetensors as readers and writers.

The files are sparse: what lies inside a large tensor is a hole, its first and last bytes are there.
Where an offset or a size is cut to 32 bits somewhere, the values at the ends are others.
"""

from __future__ import annotations

import errno
import importlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import torchzip as tz
from tests import builders as b
from tests.torch_oracle import torch_settings
from torchzip.container import zip_writer
from torchzip.container.zip_writer import measure
from torchzip.files import new_file, platform_calls, sink

Array = np.ndarray[Any, Any]
_4_GIB = 1 << 32
_BIG = 0xFFFFFFFF
#: What is kept of a large write, at each of its ends.
_EDGE = 1 << 12


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder whose files may have holes."""
    probe = tmp_path / "probe"
    with probe.open("wb") as file:
        file.truncate(1 << 24)
    blocks = probe.stat().st_blocks
    probe.unlink()
    if blocks * 512 >= 1 << 24:
        pytest.skip("this file system has no sparse files")
    return tmp_path


class Holes:
    """Stands for ``os``: a large write leaves a hole between its ends, and holes need no copy."""

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    def pwrite(self, descriptor: int, data: memoryview, offset: int) -> int:
        if data.nbytes < 1 << 20:
            return os.pwrite(descriptor, data, offset)
        os.pwrite(descriptor, data[:_EDGE], offset)
        os.pwrite(descriptor, data[-_EDGE:], offset + data.nbytes - _EDGE)
        return data.nbytes

    def copy_file_range(self, source: int, target: int, count: int, start: int, to: int) -> int:
        """Copy what begins with data; say of a hole that it is copied."""
        try:
            data = os.lseek(source, start, os.SEEK_DATA)
        except OSError as error:
            assert error.errno == errno.ENXIO  # noqa: PT017
            return count
        if data > start:
            return min(count, data - start)
        return os.copy_file_range(source, target, count, start, to)


@pytest.fixture
def _holes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the writers of torchzip make sparse files."""
    monkeypatch.setattr(platform_calls, "os", Holes())
    monkeypatch.setattr(sink, "_CACHED_NBYTES", 1 << 60)
    monkeypatch.setattr(new_file, "_reserve", lambda descriptor, nbytes: False)
    monkeypatch.setattr(new_file.NewFile, "free_nbytes", lambda self: 1 << 62)


class HoleyFile:
    """A file object that leaves holes, for a writer that is not torchzip's."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("wb", buffering=0)
        self._position = 0

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        self._position += (done := Holes().pwrite(self._file.fileno(), view, self._position))
        return done

    def flush(self) -> None:
        """Nothing."""

    def close(self) -> None:
        self._file.close()


def _marked(dtype: str, numel: int, mark: int) -> Array:
    """Return zeros, never touched and so without memory, but for three marks at the ends."""
    array = np.zeros(numel, dtype)
    array[0], array[-2], array[-1] = mark, mark + 1, mark + 2
    return array


def _state() -> dict[str, Array]:
    """Return a record past 4 GiB, and behind it some of ordinary size."""
    return {
        "before": np.arange(5),
        "large": _marked("u1", _4_GIB + 7, 11),
        "after": np.arange(5, dtype=np.int16) + 100,
        "second": _marked("f4", (1 << 28) + 3, 21),
        "empty": np.zeros(0, np.float32),
        "last": np.arange(7.0) - 3,
    }


def _assert_ends(get: Any, names: list[str] | None = None) -> None:
    """Compare the ends of each tensor; ``get(name, slice)`` reads some of it."""
    for name, array in _state().items():
        if names is None or name in names:
            for part in (slice(0, 5), slice(max(0, array.size - 5), array.size)):
                assert np.asarray(get(name, part)).tolist() == array[part].tolist(), name


def _check_with_torchzip(path: Path, kind: str) -> None:
    with tz.lazy_load(path) as ckpt:
        assert ckpt.format == kind
        assert {name: ckpt[name].shape for name in ckpt} == {
            name: array.shape for name, array in _state().items()
        }
        _assert_ends(lambda name, part: ckpt[name][part])
    mapped = tz.load(path, mmap=True)
    _assert_ends(lambda name, part: mapped[name][part])


def _check_with_torch(torch: Any, path: Path) -> None:
    mapped = torch.load(path, mmap=True)
    assert list(mapped) == list(_state())
    _assert_ends(lambda name, part: mapped[name][part].numpy())


def _save(path: Path) -> None:
    tz.save(_state(), path, crc32=False)


def _save_early(path: Path) -> None:
    with tz.incremental_save(path, crc32=False) as out:
        out.save({name: out.store_early(array) for name, array in _state().items()})


# -- zip -------------------------------------------------------------------------------------------


@pytest.mark.torch
@pytest.mark.usefixtures("_holes")
@pytest.mark.parametrize("write", [_save, _save_early], ids=["save", "incremental_save"])
def test_zip_of_torchzip(torch: Any, folder: Path, write: Any) -> None:
    """A record and offsets past 4 GiB, read by torch and by torchzip."""
    path = folder / "m.pt"
    write(path)
    assert path.stat().st_size > _4_GIB + (1 << 30)
    _check_with_torchzip(path, "zip")
    _check_with_torch(torch, path)


@pytest.mark.torch
def test_zip_of_torch(torch: Any, folder: Path) -> None:
    """The same of torch, which says itself where the records are, read by torchzip."""
    path = folder / "m.pt"
    state = _state()
    with torch.serialization.skip_data():
        torch.save({name: torch.from_numpy(array) for name, array in state.items()}, path)
    reader = torch._C.PyTorchFileReader(str(path))
    with path.open("r+b") as file:
        for key, array in enumerate(state.values()):
            if array.size:
                start = reader.get_record_offset(f"data/{key}")
                for part in (slice(0, 5), slice(array.size - 5, array.size)):
                    file.seek(start + part.start * array.itemsize)
                    file.write(array[part].tobytes())
    _check_with_torchzip(path, "zip")
    _check_with_torch(torch, path)


def _data_ranges(descriptor: int) -> Iterator[tuple[int, int]]:
    at = 0
    while True:
        try:
            start = os.lseek(descriptor, at, os.SEEK_DATA)
        except OSError as error:
            assert error.errno == errno.ENXIO  # noqa: PT017
            return
        at = os.lseek(descriptor, start, os.SEEK_HOLE)
        yield start, at


def _assert_same_files(first: Path, second: Path) -> None:
    """Compare all bytes of two files, but for holes that both have."""
    assert first.stat().st_size == second.stat().st_size
    with first.open("rb") as one, second.open("rb") as other:
        for start, stop in [*_data_ranges(one.fileno()), *_data_ranges(other.fileno())]:
            data = os.pread(one.fileno(), stop - start, start)
            assert data == os.pread(other.fileno(), stop - start, start), (start, stop)


def _sizes_before(header: int, first: int) -> tuple[int, int]:
    """Return storages after which the header of the third record stands at ``header``."""
    # Two, because one of that size would have zip64 fields by itself.
    names = [("data.pkl", first), (".format_version", 1), (".storage_alignment", 2),
             ("byteorder", 6), ("data/0", 1 << 31), ("data/1", 1)]  # fmt: skip
    start = measure("m", [(len(name), nbytes) for name, nbytes in names])[0][-1]
    return 1 << 31, header - start - 16  # the descriptor


@pytest.mark.torch
@pytest.mark.usefixtures("_holes")
@pytest.mark.parametrize("value", [_BIG - 1, _BIG, _BIG + 1], ids=hex)
@pytest.mark.parametrize("what", ["size", "offset"])
def test_thresholds(torch: Any, folder: Path, what: str, value: int) -> None:
    """A record of this size, or whose header stands there: byte for byte torch's file."""
    ours, theirs = folder / "ours" / "m.pt", folder / "theirs" / "m.pt"
    ours.parent.mkdir()
    theirs.parent.mkdir()
    sizes = [value, 5]

    def write() -> None:
        arrays = [np.zeros(size, np.uint8) for size in sizes]
        tz.save(arrays, ours, crc32=False)
        with torch_settings(torch, 64, crc32=False), torch.serialization.skip_data():
            # (numpy gives an empty array the stride 0, and torch would take it over.)
            empty = torch.zeros(0, dtype=torch.uint8)
            torch.save([torch.from_numpy(a) if a.size else empty for a in arrays], theirs)

    if what == "offset":
        reader: Any = torch._C.PyTorchFileReader
        sizes = [1 << 31, (1 << 31) - 4096, 5, 0]
        write()  # for the size of the pickle, which has the sizes in it
        pickle_nbytes = len(reader(str(ours)).get_record("data.pkl"))
        sizes = [*_sizes_before(value, pickle_nbytes), 5, 0]
    write()
    _assert_same_files(ours, theirs)
    if what == "offset":
        assert len(reader(str(ours)).get_record("data.pkl")) == pickle_nbytes
        with ours.open("rb") as file:
            assert os.pread(file.fileno(), 40, value).startswith(b"PK\3\4")
            assert b"m/data/2" in os.pread(file.fileno(), 40, value)
    with tz.lazy_load(theirs) as ckpt:
        assert [ckpt[name].shape for name in ckpt] == [(size,) for size in sizes]
        assert ckpt["0"][-3:].tolist() == ckpt["1"][:3].tolist() == [0, 0, 0]
        assert ckpt.root[-1].numpy().tolist() == [0] * sizes[-1]


@pytest.mark.long
def test_seventy_thousand_records(folder: Path) -> None:
    """More than the end record of a zip can count.

    That they are the bytes of torch is shown in test_against_torch_writing.py.
    """
    values = np.arange(70_000, dtype=np.int32)
    path = folder / "m.pt"
    tz.save({i: row.copy() for i, row in enumerate(values.reshape(-1, 1))}, path)
    assert np.array_equal(np.concatenate(list(tz.load(path).values())), values)
    with tz.lazy_load(path) as ckpt:
        assert len(ckpt) == 70_000
        assert ckpt["69999"].numpy().tolist() == [69_999]


@pytest.mark.long
@pytest.mark.torch
def test_seventy_thousand_records_for_torch(torch: Any, folder: Path) -> None:
    """It finds the right ones; few are named in the object, since each takes it long to make."""
    chosen = (0, 1, 65_533, 65_534, 65_535, 65_536, 69_999)
    path = folder / "m.pt"
    with tz.incremental_save(path) as out:
        early = [out.store_early(np.full(1, i, np.int32)) for i in range(70_000)]
        out.save({i: early[i] for i in chosen})
    for mmap in (False, True):
        made = torch.load(path, mmap=mmap)
        assert {i: array.tolist() for i, array in made.items()} == {i: [i] for i in chosen}
    loaded = tz.load(path)
    assert {i: array.tolist() for i, array in loaded.items()} == {i: [i] for i in chosen}


# -- other formats, and between them ---------------------------------------------------------------


@pytest.mark.torch
def test_legacy_of_torch(torch: Any, folder: Path) -> None:
    """A legacy file has no directory: each storage stands where those before it end."""
    path = folder / "m.pt"
    file: Any = HoleyFile(path)
    state = {name: torch.from_numpy(array) for name, array in _state().items()}
    torch.save(state, file, _use_new_zipfile_serialization=False)
    file.close()
    assert path.stat().st_size > _4_GIB + (1 << 30)
    _check_with_torchzip(path, "legacy")


def _check_with_safetensors(path: Path) -> None:
    safetensors: Any = importlib.import_module("safetensors")
    with safetensors.safe_open(path, framework="numpy") as file:
        assert sorted(file.keys()) == sorted(_state())
        _assert_ends(
            lambda name, part: file.get_slice(name)[part],
            [name for name, array in _state().items() if array.size],
        )
        assert file.get_tensor("empty").size == 0


@pytest.mark.usefixtures("_holes")
def test_convert_to_safetensors(folder: Path) -> None:
    """Past 4 GiB in both formats: the safetensors package reads what comes out."""
    pytest.importorskip("safetensors")
    _save(folder / "m.pt")
    tz.convert(folder / "m.pt", folder / "m.safetensors")
    assert (folder / "m.safetensors").stat().st_size > _4_GIB + (1 << 30)
    _check_with_torchzip(folder / "m.safetensors", "safetensors")
    _check_with_safetensors(folder / "m.safetensors")


def test_safetensors_of_another_writer(folder: Path) -> None:
    """Tensors in another order than by size, so that small ones have offsets past 4 GiB."""
    pytest.importorskip("safetensors")
    path = folder / "m.safetensors"
    header: dict[str, Any] = {}
    at = 0
    codes = {"int64": "I64", "uint8": "U8", "int16": "I16", "float32": "F32", "float64": "F64"}
    for name, array in _state().items():
        header[name] = {
            "dtype": codes[array.dtype.name], "shape": [array.size],
            "data_offsets": [at, at + array.nbytes],
        }  # fmt: skip
        at += array.nbytes
    text = json.dumps(header).encode()
    head = b.safetensors(text + b" " * (-len(text) % 8))
    with path.open("wb") as file:
        file.write(head)
        for name, array in _state().items():
            for part in (slice(0, 5), slice(max(0, array.size - 5), array.size)):
                start = header[name]["data_offsets"][0] + part.start * array.itemsize
                file.seek(len(head) + start)
                file.write(array[part].tobytes())
    _check_with_torchzip(path, "safetensors")
    _check_with_safetensors(path)


class _NoCrc:
    """Stands for the CRC of a large buffer: nobody looks at 4 GiB of zeros here."""

    def __init__(self, data: memoryview, value: int) -> None:
        pass

    def result(self) -> int:
        """Return one that is known, so that the bytes are copied unread."""
        return 7


@pytest.mark.torch
@pytest.mark.usefixtures("_holes")
def test_convert_to_zip(torch: Any, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The places of a conversion are known before; past 4 GiB they are as right."""
    monkeypatch.setattr(zip_writer, "Crc32Meanwhile", _NoCrc)
    tz.save(_state(), folder / "m.pt")
    tz.convert(folder / "m.pt", folder / "o.pt", include=["*"])
    _check_with_torchzip(folder / "o.pt", "zip")
    _check_with_torch(torch, folder / "o.pt")
