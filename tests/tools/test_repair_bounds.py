"""The work of `repair` is bounded by the size of the file, whatever the file claims.

It is counted: bytes and calls of the file object, bytes inflated, bytes gone through for a damaged
one, and the calls that Python makes on the way.
"""

from __future__ import annotations

import random
import struct
import sys
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import torchzip as tz
from tests import builders as b
from tests.test_cost import CountingFile
from tests.test_memory import peak_mb
from torchzip.container.damaged import archive
from torchzip.container.zip_layout import CENTRAL, DESCRIPTOR_MAGIC, LOCAL
from torchzip.errors import TorchZipError
from torchzip.tools import repair

_PICKLE = b"archive/data.pkl"


def _local(name: bytes, data: bytes, crc: int, *, nbytes: int | None = None,
           method: int = 0, flags: int = 0) -> bytes:  # fmt: skip
    sizes = (0, 0) if flags else (len(data), len(data) if nbytes is None else nbytes)
    return LOCAL.pack(b"PK\3\4", 20, flags, method, 0, 33, crc, *sizes, len(name), 0) + name + data


def _row(name: bytes, offset: int, crc: int, compressed: int, nbytes: int,
         method: int = 0, extra: int = 0) -> bytes:  # fmt: skip
    return (
        CENTRAL.pack(
            b"PK\1\2", 20, 20, 0, method, 0, 33, crc, compressed, nbytes, len(name), extra,
            0, 0, 0, 0, offset,
        )
        + name
    )  # fmt: skip


def _storage(index: int) -> bytes:
    return b"archive/data/%d" % index


def _end(count: int, nbytes: int, offset: int) -> bytes:
    return struct.pack("<4sHHHHLLH", b"PK\5\6", 0, 0, count, count, nbytes, offset, 0)


def _with_end(records: bytes, rows: list[bytes]) -> bytes:
    directory = b"".join(rows)
    return records + directory + _end(len(rows), len(directory), len(records))


def _pickle_of(count: int) -> tuple[bytes, bytes]:
    """Return a whole data.pkl of that many tensors of 16 bytes, and its row."""
    tensors = {f"t{i}": b.tensor(b.persistent(str(i), numel=4)) for i in range(count)}
    data = b.stream(b.dict_of(tensors))
    crc = zlib.crc32(data)
    return _local(_PICKLE, data, crc), _row(_PICKLE, 0, crc, len(data), len(data))


def _rows_of_one_place(count: int) -> bytes:
    head, row = _pickle_of(count)
    rows = [_row(_storage(i), len(head), i, 16, 16) for i in range(count)]
    return _with_end(head + _local(_storage(0), b"x" * 16, 1), [row, *rows])


def _rows_of_one_name(count: int) -> bytes:
    head, row = _pickle_of(4)
    return _with_end(head, [row, *(_row(_storage(0), i, i, 16, 16) for i in range(count))])


def _rows_of_one_deflated_record(count: int) -> bytes:
    head, row = _pickle_of(count)
    machine = zlib.compressobj(9, zlib.DEFLATED, -15)
    packed = machine.compress(bytes(200_000)) + machine.flush()
    record = _local(_storage(0), packed, 5, nbytes=200_000, method=8)
    rows = [_row(_storage(i), len(head), i, len(packed), 16, 8) for i in range(count)]
    return _with_end(head + record, [row, *rows])


def _rows_with_long_fields(count: int) -> bytes:
    head, _ = _pickle_of(4)
    big = 0xFFFFFFFF
    rows = [_row(_storage(i), big, i, big, big, extra=65_535) for i in range(count)]
    return _with_end(head, [*rows, bytes(65_536)])


def _headers_of_one_name(count: int) -> bytes:
    return _pickle_of(4)[0] + b"".join(_local(_storage(0), b"x" * 16, i) for i in range(count))


def _headers_that_overlap(count: int) -> bytes:
    records = b"".join(_local(_storage(i), b"", i, nbytes=16) for i in range(count))
    return _pickle_of(count)[0] + records + bytes(1000)


def _headers_out_of_place(count: int) -> bytes:
    records = (_local(_storage(i), b"x" * 16, 0, flags=8) + b"zz" for i in range(count))
    return _pickle_of(count)[0] + b"zz" + b"".join(records)


def _descriptors(count: int) -> bytes:
    records = (_local(_storage(i), DESCRIPTOR_MAGIC * 4, 0, flags=8) for i in range(count))
    return b"".join(records)


def _directories(count: int) -> bytes:
    parts = [_pickle_of(4)[0]]
    for i in range(count):
        parts.append(_local(_storage(i), b"x" * 16, i))
        parts.append(_row(_storage(0), i, i, 16, 16) + _end(1, 62, 1))
    return b"".join(parts)


def _damaged_pickles(count: int) -> bytes:
    """Return pickles of 1 KB that are each damaged beyond repair."""
    data = random.Random(1).randbytes(1000)
    return b"".join(_local(_PICKLE, data, 5) for _ in range(count)) + b"x"


def _deflated_pickles(count: int) -> bytes:
    rng = random.Random(1)
    machine = zlib.compressobj(9, zlib.DEFLATED, -15, 9, zlib.Z_HUFFMAN_ONLY)
    data = bytes(rng.randrange(48, 112) for _ in range(1250))
    packed = machine.compress(data) + machine.flush()
    records = _local(_PICKLE, packed, 5, nbytes=len(data), method=8) * count
    last = len(records) // count * (count - 1)
    return _with_end(records, [_row(_PICKLE, last, 5, len(packed), len(data), 8)])


def _sizes_of_one_pickle(count: int) -> bytes:
    data = random.Random(1).randbytes(100_000)
    rows = [_row(_PICKLE, 0, 5, len(data) - i, len(data) - i) for i in range(count)]
    return _with_end(_local(_PICKLE, data, 5), rows)


_HOSTILE = [
    _rows_of_one_place, _rows_of_one_name, _rows_of_one_deflated_record, _rows_with_long_fields,
    _headers_of_one_name, _headers_that_overlap, _headers_out_of_place, _descriptors, _directories,
    _damaged_pickles, _deflated_pickles, _sizes_of_one_pickle,
]  # fmt: skip


@dataclass
class _Work:
    """What one call of `repair` has done."""

    nbytes: int = 0
    reads: int = 0
    inflated: int = 0
    corrected: int = 0
    calls: int = 0


def _counted(data: bytes, folder: Path, monkeypatch: pytest.MonkeyPatch) -> _Work:
    work, file = _Work(), CountingFile(data)

    def corrected(data: bytes, crc: int) -> None:
        work.corrected += len(data)

    def measured(source: Any, offset: int, end: int, most: int) -> None:
        work.inflated += end - offset + most

    def called(*_: Any) -> None:
        work.calls += 1

    monkeypatch.setattr(archive, "corrected", corrected)
    monkeypatch.setattr(archive, "measure_deflated", measured)
    before = sys.getprofile()
    sys.setprofile(called)
    try:
        repair(file, folder / "out.pt", overwrite=True)
    except TorchZipError:
        pass
    finally:
        sys.setprofile(before)
    work.nbytes, work.reads = file.nbytes, len(file.reads)
    return work


@pytest.mark.parametrize("make", _HOSTILE, ids=lambda make: make.__name__.lstrip("_"))
def test_work_is_linear(
    make: Callable[[int], bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four times as many claims cost about four times as much, with a bound for each byte."""
    small, large = (make(count) for count in (50, 200))
    first, second = (_counted(data, tmp_path, monkeypatch) for data in (small, large))
    for name in ("nbytes", "reads", "inflated", "calls"):
        assert getattr(second, name) <= 6 * getattr(first, name) + 10_000, name
    assert second.nbytes + second.inflated <= 20 * len(large) + (1 << 27)
    assert second.corrected <= 8 * len(large)


@pytest.mark.parametrize("count", [3, 30])
def test_corrections_share_one_budget(
    count: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many small records are damaged, some 2 MB of them are gone through and no more."""
    data = bytes(1 << 20)
    records = b"".join(_local(_PICKLE, data, 5 + i) for i in range(count))
    rows = []
    for i in range(count):
        offset = i * (len(records) // count)
        rows += [_row(_PICKLE, offset, 5 + i, len(data), len(data)), _end(1, 62, offset)]
    work = _counted(records + b"".join(rows), tmp_path, monkeypatch)
    assert 0 < work.corrected <= 2 << 20


_REPAIR = "import sys; from torchzip.tools import repair; repair(sys.argv[1], sys.argv[2])"


@pytest.mark.long
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak is read from /proc")
def test_memory(tmp_path: Path) -> None:
    """A file of 300 MB with one large tensor is repaired in less than 100 MB."""
    broken, out = tmp_path / "b.pt", tmp_path / "o.pt"
    with tz.incremental_save(broken) as writer:
        block = np.ones(1 << 20, np.float32)
        big = writer.store_chunks((block for _ in range(70)), shape=(70 << 20,), dtype="float32")
        writer.save({"big": big, "small": np.arange(3)})
    with open(broken, "r+b") as file:
        file.truncate(file.seek(0, 2) - 200)
    assert peak_mb(_REPAIR, broken, out) < 100
    with tz.lazy_load(out) as checkpoint:
        assert list(checkpoint) == ["big", "small"]
        assert checkpoint["big"][-1] == 1


@pytest.mark.long
def test_work_is_bounded(tmp_path: Path) -> None:
    """Many rows that all claim the same bytes are not all read."""
    pickle = b.stream(
        b.dict_of({f"t{i}": b.tensor(b.persistent(str(i), numel=25_000)) for i in range(3000)})
    )
    members = b.members_of(pickle, {"0": bytes(100_000)})
    (first,) = [each for each in members if each.name.endswith(b"data/0")]
    offset = 0
    for each in members[: members.index(first)]:
        offset += 30 + len(each.name) + len(each.data)
    members += [
        b.Member(name=f"archive/data/{i}".encode(), nbytes=100_000, compressed=100_000, crc=i,
                 offset=offset)
        for i in range(1, 3000)
    ]  # fmt: skip
    data = b.build_zip(members)
    file = CountingFile(data)
    found = repair(file, tmp_path / "o.pt")
    assert found.tensors == 1
    assert any("overlapping" in lost.why for lost in found.lost)
    assert file.nbytes < 20 * len(data) + (1 << 27)
