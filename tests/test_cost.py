"""Bytes read and memory used, counted: a lazy checkpoint reads what it is asked for."""

from __future__ import annotations

import contextlib
import io
import json
import struct
import sys
import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import torchzip as tz
from tests import builders as b
from tests.child_process import python
from tests.formats.counting import Counted
from tests.formats.rank_builder import write_ranks
from tests.formats.zero_builder import Zero
from tests.hostile.parts import zipped
from tests.saved import saved


class CountingFile(io.BytesIO):
    """A file object that says what is read of it."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self.reads: list[tuple[int, int]] = []

    def read(self, size: int | None = -1) -> bytes:
        at = self.tell()
        data = super().read(size)
        self.reads.append((at, len(data)))
        return data

    def readinto(self, buffer: Any) -> int:
        at = self.tell()
        got = super().readinto(buffer)
        self.reads.append((at, got))
        return got

    @property
    def nbytes(self) -> int:
        return sum(size for _, size in self.reads)

    def forget(self) -> None:
        self.reads.clear()


_SHAPE = (2000, 300)


@pytest.fixture(scope="module")
def data() -> bytes:
    """Return a checkpoint of several megabytes."""
    return saved(
        {
            "first": np.arange(600_000, dtype=np.float32).reshape(_SHAPE),
            "second": np.zeros(300_000),
            "bias": np.arange(300, dtype=np.float32),
        }
    )


@contextlib.contextmanager
def peak_below(nbytes: int) -> Iterator[None]:
    """Fail if the block allocates more than this at once."""
    tracemalloc.start()
    try:
        yield
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < nbytes


@pytest.mark.few
@pytest.mark.parametrize("layout", ["zero 2", "zero 3", "ranks"])
def test_many_ranks(layout: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Opening reads no tensor, a slice reads its bytes, and converting needs less than a tensor."""
    big = np.arange(12_000_000, dtype=np.float32).reshape(3000, 4000)
    if layout == "ranks":
        write_ranks(tmp_path / "in", {"w": (big, [0]), "v": (big, [1])}, [4])
    else:
        Zero([{"w": big, "v": big}], ranks=4, stage=int(layout[-1])).write(tmp_path / "in")
    counted = Counted(monkeypatch)
    with peak_below(3_000_000), tz.lazy_load(tmp_path / "in") as checkpoint:
        assert counted.nbytes < 400_000
        counted.nbytes = 0
        np.testing.assert_array_equal(checkpoint["v"][1500:1510, 7:9], big[1500:1510, 7:9])
        assert counted.nbytes < 200_000
    with peak_below(35_000_000):
        tz.convert(tmp_path / "in", tmp_path / "m.safetensors")
    np.testing.assert_array_equal(tz.load(tmp_path / "m.safetensors")["v"], big)


def test_opening_reads_no_tensor(data: bytes) -> None:
    """The end of the file, the directory, the pickle and the text records: no data."""
    file = CountingFile(data)
    with tz.lazy_load(file) as checkpoint:
        list(checkpoint)
        assert checkpoint["first"].nbytes == 2_400_000
    # The end is searched for in the last 64 KiB; the rest is small.
    assert file.nbytes < 0xFFFF + 22 + 4000
    starts = [at for at, _ in file.reads]
    assert all(at < 2000 or at >= len(data) - 0xFFFF - 22 for at in starts)


@pytest.mark.parametrize(
    ("key", "nbytes"),
    [
        (np.s_[10:20, :4], 10 * 4 * 4),
        (np.s_[7], 300 * 4),
        (np.s_[5:9], 4 * 300 * 4),
        (np.s_[0, 0], 4),
        (np.s_[1999, 299], 4),
        (np.s_[3:3], 0),
        (np.s_[::500], 4 * 300 * 4),
        (np.s_[1000:1010, 100], 10 * 4),
        (np.s_[-3:, -2:], 3 * 2 * 4),
    ],
)
def test_a_slice_reads_what_it_needs(data: bytes, key: Any, nbytes: int) -> None:
    """Exactly the bytes of the slice, and once the header of its record."""
    file = CountingFile(data)
    with tz.lazy_load(file) as checkpoint:
        tensor = checkpoint["first"]
        tensor[0]  # the local header is looked at once
        file.forget()
        made = tensor[key]
        expected = np.arange(600_000, dtype=np.float32).reshape(_SHAPE)[key]
        np.testing.assert_array_equal(made, expected)
    assert file.nbytes == nbytes


def test_a_tensor_reads_its_own_bytes(data: bytes) -> None:
    """One tensor costs its bytes and a header of at most a few hundred."""
    file = CountingFile(data)
    with tz.lazy_load(file) as checkpoint:
        file.forget()
        checkpoint["bias"].numpy()
        assert 1200 <= file.nbytes < 1200 + 400


def test_load_reads_each_byte_once(data: bytes) -> None:
    """Apart from the search for the end."""
    file = CountingFile(data)
    tz.load(file)
    assert file.nbytes < len(data) + 0xFFFF + 22


def test_repr_and_names_read_nothing(data: bytes) -> None:
    """Looking at a checkpoint costs no reads."""
    file = CountingFile(data)
    with tz.lazy_load(file) as checkpoint:
        file.forget()
        assert repr(checkpoint)
        assert [repr(checkpoint[name]) for name in checkpoint]
        assert checkpoint.root
        assert len(checkpoint) == 3
    assert file.reads == []


def test_slicing_costs_the_memory_of_the_slice(path: Path, data: bytes) -> None:
    """Neither opening nor slicing allocates the tensor."""
    path.write_bytes(data)
    with peak_below(600_000), tz.lazy_load(path) as checkpoint:
        checkpoint["first"][10:20, :4]
        checkpoint["first"][::100, ::100]


def test_load_costs_the_tensors_once(path: Path, data: bytes) -> None:
    """Memory is that of the tensors and a constant."""
    path.write_bytes(data)
    with peak_below(4_801_200 + 1_500_000):
        tz.load(path)


def test_mmap_costs_nothing(path: Path, data: bytes) -> None:
    """Mapped tensors are not allocated."""
    path.write_bytes(data)
    with peak_below(500_000):
        tz.load(path, mmap=True)


@pytest.mark.parametrize("make", [np.ascontiguousarray, np.asfortranarray, lambda a: a[::-1]])
def test_saving_costs_blocks(
    tmp_path: Path, make: Callable[[np.ndarray[Any, Any]], np.ndarray[Any, Any]]
) -> None:
    """Arrays are written in blocks, packed ones too; never a second copy of all."""
    array = make(np.zeros((1000, 4000)))
    with peak_below(8_000_000):
        tz.save({"w": array}, tmp_path / "m.pt")


def test_storing_early_costs_one_tensor(tmp_path: Path) -> None:
    """Many tensors that are freed as they are stored need the memory of one."""
    with peak_below(10_000_000), tz.incremental_save(tmp_path / "m.pt") as out:
        out.save([out.store_early(np.full(500_000, i, np.float64)) for i in range(10)])


def test_chunks_cost_one_block(tmp_path: Path) -> None:
    """A tensor in chunks needs the memory of a chunk."""
    with peak_below(3_000_000), tz.incremental_save(tmp_path / "m.pt") as out:
        chunks = (np.full(100_000, i, np.float64) for i in range(50))
        out.save(out.store_chunks(chunks, shape=(50, 100_000), dtype="float64"))


# -- hostile headers -----------------------------------------------------------------------------


def _claimed(nbytes: int, method: int) -> bytes:
    """Return a checkpoint whose storage says that it is so large, and has 16 bytes."""
    members = b.members_of(b.stream(b.tensor(b.persistent(numel=nbytes // 4))))
    extra = struct.pack("<HHQ", 1, 8, nbytes)
    return b.build_zip(
        [
            replace(each, method=method, nbytes=0xFFFFFFFF, local_nbytes=0xFFFFFFFF, extra=extra)
            if each.name == b"archive/data/0"
            else each
            for each in members
        ]
    )


_HOSTILE = {
    "a stored record of 512 MB": _claimed(1 << 29, 0),
    "a deflated record of 512 MB": _claimed(1 << 29, 8),
    "a string of 4 GB": zipped(b"X\xff\xff\xff\xff", b"x" * 100),
    "bytes of 2**60": zipped(b"\x8e" + struct.pack("<Q", 1 << 60)),
    "a bytearray of 2**60": zipped(b"\x96" + struct.pack("<Q", 1 << 60)),
    "an int of 2 GB": zipped(b"\x8b\xff\xff\xff\x7f"),
    "a memo number of 4 billion": zipped(b"Nr\xff\xff\xff\xff"),
    "a memo number of 20 digits": zipped(b"Np99999999999999999999\n"),
    "a frame of 2**60": zipped(b"\x95" + struct.pack("<Q", 1 << 60) + b"N"),
    "bytes(2**40)": zipped(b.call("__builtin__.bytes", 1 << 40)),
    "bytearray(2**40)": zipped(b.call("__builtin__.bytearray", 1 << 40)),
    "range(2**60)": zipped(b.call("__builtin__.xrange", 1 << 60)),
    "a tensor of 2**60 elements": zipped(b.tensor(size=(1 << 60,))),
    "a giant of stride 0": zipped(b.tensor(size=(1 << 40,), stride=(0,))),
    "an empty giant": zipped(b.tensor(size=(0, 1 << 40), stride=(1, 1))),
    "a list of 2**40 as a tree": zipped(b"]" + b"2\x86" * 40),
    "a tensor under 2**40 names": zipped(b.tensor() + b"2\x86" * 40),
    "a pickle bomb": b.build_zip(
        [replace(m, method=8, nbytes=1 << 29) for m in b.members_of(b.stream(b"N"), {})]
    ),
    "a legacy storage of 2**60": b.legacy(
        b.stream(b.tensor(b.persistent(numel=1 << 58))), b.stream(b.list_of("0")), bytes(24)
    ),
    "a safetensors header of 99 MB": b.safetensors(b"{}", nbytes=99_000_000),
    "a directory of 65535 entries": b.build_zip(
        b.members_of(b.stream(b"N"), {}), b.End(count=0xFFFF, zip64=True)
    ),
    "a directory of 2**60 entries": b.build_zip(
        b.members_of(b.stream(b"N"), {}), b.End(count=0xFFFF, zip64=True, zip64_count=1 << 60)
    ),
}


@pytest.mark.few
@pytest.mark.parametrize("name", _HOSTILE)
@pytest.mark.parametrize("way", ["load", "lazy"])
def test_declared_numbers_cost_nothing(name: str, way: str) -> None:
    """Whatever a file of a few hundred bytes says, reading it needs no memory to speak of."""
    made = _HOSTILE[name]
    with peak_below(96 << 20), contextlib.suppress(tz.TorchZipError, OSError):  # names take most
        if way == "load":
            tz.load(io.BytesIO(made))
        else:
            with tz.lazy_load(io.BytesIO(made)) as checkpoint:
                for tensor in checkpoint.values():
                    assert repr(tensor)


def test_deflated_bomb_stops_at_its_size() -> None:
    """A record that goes on past its size is not inflated to the end."""
    bomb = b.deflate(bytes(100 << 20))
    members = b.members_of(b.stream(b.tensor()))
    data = b.build_zip(
        [replace(m, method=8, stored=bomb) if m.name.endswith(b"data/0") else m for m in members]
    )
    with peak_below(8_000_000), pytest.raises(tz.FormatError):
        tz.load(io.BytesIO(data))


@pytest.mark.long
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Linux tells the peak")
def test_many_small_objects_stay_in_proportion() -> None:
    """A pickle of a megabyte needs at most 64 MiB, whatever it is made of."""
    risen = json.loads(python("-m", "tests.floods"))
    assert len(risen) > 30
    assert {name: nbytes for name, nbytes in risen.items() if nbytes > 64 << 20} == {}
    assert max(risen.values()) > 20 << 20  # what is measured is there


def test_import_brings_nothing() -> None:
    """``import torchzip`` imports neither numpy nor anything else that takes time."""
    code = (
        "import sys; before = {*sys.modules}; import torchzip; "
        "print(sorted({*sys.modules} - before - {'typing'}))"
    )
    brought = python("-c", code).strip().replace("'", "").strip("[]").split(", ")
    assert [name for name in brought if name.startswith("torchzip")] == [
        "torchzip", "torchzip.convert",
    ]  # fmt: skip
    assert not {"numpy", "ml_dtypes", "json", "dataclasses", "threading"} & {*brought}


def test_opening_brings_what_reading_needs() -> None:
    """`lazy_load` and `load` leave for later what most programs never ask for."""
    later = [
        "difflib", "json", "queue", "tempfile", "fnmatch", "concurrent.futures.thread",
        "torchzip.checkpoint.saving", "torchzip.convert.run", "torchzip.cli.main",
        "torchzip.formats.dcp", "torchzip.formats.directory", "torchzip.formats.legacy",
        "torchzip.formats.pt2", "torchzip.formats.safetensors", "torchzip.formats.sharded",
        "torchzip.formats.tar", "torchzip.formats.torchscript",
    ]  # fmt: skip
    code = (
        "import numpy, ml_dtypes, sys; before = {*sys.modules}; import torchzip; "
        "torchzip.lazy_load, torchzip.load; "
        f"print([m for m in {later} if m in sys.modules and m not in before]); "
        "torchzip.convert, torchzip.save, torchzip.incremental_save; "
        "import torchzip.convert.run; print(callable(torchzip.convert))"
    )
    assert python("-c", code).split("\n")[:2] == ["[]", "True"]


@pytest.mark.parametrize("name", ["convert", "save", "incremental_save", "LimitError"])
def test_what_comes_later_is_listed_and_real(name: str) -> None:
    """In ``dir()`` from the beginning, a function at first sight, and nothing else is invented."""
    code = (
        f"import torchzip.convert.run, torchzip; print({name!r} in dir(torchzip)); "
        f"print(torchzip.{name}.__name__); print(hasattr(torchzip, 'other'))"
    )
    assert python("-c", code).split() == ["True", name, "False"]
