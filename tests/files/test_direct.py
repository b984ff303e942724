"""Writes past the page cache: the same bytes, the same failures, and no thread left behind."""

from __future__ import annotations

import contextlib
import errno
import gc
import itertools
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import torchzip as tz
from tests.faults import descriptors, failing_with, forks, in_child, under
from tests.sampling import costly
from torchzip.files import direct, sink
from torchzip.files.direct import ALIGNMENT, DirectWriter
from torchzip.files.sink import PathSink


def _can_write_directly(folder: Path) -> bool:
    (folder / "probe").write_bytes(b"")
    try:
        DirectWriter(str(folder / "probe"), 0).close()
    except OSError:
        return False
    finally:
        (folder / "probe").unlink()
    return True


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Make a few KB large; skip where there is no way past the cache."""
    if not _can_write_directly(tmp_path):
        pytest.skip("no direct writes on this file system")
    monkeypatch.setattr(sink, "_CACHED_NBYTES", 2 * ALIGNMENT)
    monkeypatch.setattr(direct, "_BLOCK_NBYTES", 4 * ALIGNMENT)
    before = set(threading.enumerate())  # those of tests before, which may end meanwhile
    yield
    deadline = time.monotonic() + 10
    while not before.issuperset(threading.enumerate()) and time.monotonic() < deadline:
        gc.collect()
    assert before.issuperset(threading.enumerate())


def _pieces(data: bytes, sizes: list[int]) -> Iterator[bytes]:
    at = 0
    while at < len(data):
        for size in sizes:
            yield data[at : at + size]
            at += size


@pytest.mark.parametrize("size", [0, 1, 8191, 8192, 8193, 12_288, 24_576, 24_577, 99_999])
def test_sizes(tmp_path: Path, size: int) -> None:
    """At, before and behind each boundary of cache, block and unit."""
    data = os.urandom(size)
    target = PathSink(tmp_path / "m.pt")
    target.write(data)
    assert target.position == size
    target.commit()
    assert (tmp_path / "m.pt").read_bytes() == data
    assert os.listdir(tmp_path) == ["m.pt"]


@costly
@given(st.data())
def test_any_split_and_reads_between(tmp_path_factory: pytest.TempPathFactory, data: Any) -> None:
    """Writes of any size, and what was written read back at any time."""
    path = tmp_path_factory.mktemp("direct") / "m.pt"
    content = os.urandom(data.draw(st.integers(1, 120_000)))
    sizes = data.draw(st.lists(st.integers(1, 30_000), min_size=1, max_size=5))
    target = PathSink(path)
    for piece in _pieces(content, sizes):
        target.write(piece)
        if data.draw(st.integers(0, 3)) == 0:
            first = data.draw(st.integers(0, target.position))
            last = data.draw(st.integers(first, target.position))
            assert target.read_back(first, last - first) == content[first:last]
    target.commit()
    assert path.read_bytes() == content


def test_direct_way_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file beyond its first bytes does go through the thread."""
    by: list[str] = []
    original = os.pwrite

    def spy(descriptor: int, data: Any, offset: int) -> int:
        by.append(threading.current_thread().name)
        return original(descriptor, data, offset)

    monkeypatch.setattr(os, "pwrite", spy)
    target = PathSink(tmp_path / "m.pt")
    target.write(bytes(100_000))
    target.commit()
    assert len(set(by)) == 2  # the thread, and this one for the tail


def test_without_a_way_past_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system that refuses gets the bytes through its cache."""

    def refuse(*args: Any) -> None:
        raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(sink, "DirectWriter", refuse)
    target = PathSink(tmp_path / "m.pt")
    target.write(bytes(50_000))
    target.write(b"end")
    target.commit()
    assert (tmp_path / "m.pt").read_bytes() == bytes(50_000) + b"end"


def test_without_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A user may have no more of them, and an interpreter that ends starts none."""

    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    array = np.arange(6 << 20, dtype=np.float32) % 1000
    tz.save({"w": array}, tmp_path / "m.pt")
    before = descriptors()
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        tz.save({"w": array}, tmp_path / "o.pt")
        tz.convert(tmp_path / "m.pt", tmp_path / "o.safetensors", dtype="float16")
    assert descriptors() == before
    assert np.array_equal(tz.load(tmp_path / "o.pt")["w"], array)
    assert tz.load(tmp_path / "o.safetensors")["w"].dtype == np.float16


@pytest.mark.parametrize("at", [1, 2, 5])
def test_disk_full(tmp_path: Path, at: int) -> None:
    """The failure of a block is raised by a later call, and the old file stays."""
    path = tmp_path / "m.pt"
    path.write_bytes(b"old")
    with under(("pwrite", at - 1).__eq__, failing_with(errno.ENOSPC)):
        target = PathSink(path)
        with pytest.raises(OSError, match="No space"):  # noqa: PT012
            target.write(bytes(100_000))
            target.commit()
        target.abort()
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["m.pt"]


def test_short_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A write that takes a part goes on from a whole unit."""
    original = os.pwrite
    monkeypatch.setattr(
        os, "pwrite", lambda fd, data, offset: original(fd, data[: ALIGNMENT + 512], offset)
    )
    data = os.urandom(70_000)
    target = PathSink(tmp_path / "m.pt")
    target.write(data)
    target.commit()
    assert (tmp_path / "m.pt").read_bytes() == data


def test_a_page_that_never_gets_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of the disk can be smaller than a page: a full one must not be asked for ever."""
    original = os.pwrite
    calls: list[int] = []

    def take_a_block(descriptor: int, data: Any, offset: int) -> int:
        calls.append(offset)
        if len(calls) > 1000:
            raise OSError(errno.EIO, "Asked a thousand times")
        return original(descriptor, data[:1024], offset)

    monkeypatch.setattr(os, "pwrite", take_a_block)
    target = PathSink(tmp_path / "m.pt")
    with pytest.raises(OSError, match="No space"):  # noqa: PT012
        target.write(bytes(100_000))
        target.commit()
    target.abort()
    assert len(calls) < 20
    assert os.listdir(tmp_path) == []


def test_dropped(tmp_path: Path) -> None:
    """A sink that nobody wants any more takes its thread and its file along."""
    target = PathSink(tmp_path / "m.pt")
    target.write(bytes(100_000))
    del target
    gc.collect()
    assert os.listdir(tmp_path) == []


@forks
def test_forked_child(tmp_path: Path) -> None:
    """A child neither waits for a thread that it has not, nor harms the file."""
    target = PathSink(tmp_path / "m.pt")
    target.write(bytes(100_000))
    assert in_child(target.abort) == 0
    target.write(b"end")
    target.commit()
    assert (tmp_path / "m.pt").read_bytes() == bytes(100_000) + b"end"


@costly
@given(st.data())
def test_ranges(tmp_path_factory: pytest.TempPathFactory, data: Any) -> None:
    """Ranges at any places, made in place or given, in any order, by two writers in turn."""
    path = tmp_path_factory.mktemp("direct") / "ranges"
    content = os.urandom(data.draw(st.integers(1, 100_000)))
    path.write_bytes(bytes(len(content)))
    cuts = sorted(data.draw(st.sets(st.integers(1, len(content)), max_size=8)))
    edges = [0, *(cut for cut in cuts if cut < len(content)), len(content)]
    ranges = list(itertools.pairwise(edges))
    with contextlib.ExitStack() as ended:
        writers = [DirectWriter(str(path), 0), DirectWriter(str(path), 0)]
        for writer in writers:
            ended.callback(writer.close)
        for number, (start, stop) in enumerate(data.draw(st.permutations(ranges))):
            writer = writers[number % 2]
            writer.begin(start)
            if data.draw(st.booleans()):
                writer.write(content[start:stop])
            else:
                while start < stop:
                    count = min(len(writer.room), stop - start, data.draw(st.integers(1, 9000)))
                    writer.room[:count] = content[start : start + count]
                    writer.advance(count)
                    start += count
            writer.end()
        for writer in writers:
            writer.settle()
    assert path.read_bytes() == content
