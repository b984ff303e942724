"""A disk that is really full: a small file system in memory, mounted for the test."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

import torchzip as tz
from tests.writers import NEW, OLD, Writer, content, each_writer, make_small
from torchzip.files import new_file

_PAGE = 4096


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """Mount a file system of 1 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("there is no mount command")
    if done.returncode:
        pytest.skip(f"a small file system cannot be mounted here: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def _fill(path: Path, free: int) -> None:
    """Take all pages but some."""
    with path.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(_PAGE))
        except OSError as error:
            assert error.errno == errno.ENOSPC  # noqa: PT017
        file.truncate(file.tell() - free * _PAGE)


@each_writer
@pytest.mark.parametrize("is_known", [True, False], ids=["known", "found out"])
@pytest.mark.parametrize("free", [0, 1, 2, 5, 10])
def test_full_disk(
    disk: Path, monkeypatch: pytest.MonkeyPatch, writer: Writer, free: int, is_known: bool
) -> None:
    """It is an ENOSPC, by a look at the room or by a write; the old files stay, and no other."""
    make_small(monkeypatch)
    if not is_known:
        monkeypatch.setattr(new_file.NewFile, "free_nbytes", lambda self: 1 << 62)
        monkeypatch.setattr(new_file, "_reserve", lambda descriptor, nbytes: False)
    for seed in (OLD, NEW):
        tz.save(content(seed), disk.parent / f"source{seed}.pt")
    writer.write(disk, OLD)
    old = {path.name: path.read_bytes() for path in disk.iterdir()}
    assert sorted(old) == sorted(writer.files)
    filler = disk / "filler"
    _fill(filler, free)
    with pytest.raises(OSError, match=r".+") as caught:
        writer.write(disk, NEW)
    assert caught.value.errno == errno.ENOSPC
    assert caught.value.filename in {str(disk / name) for name in writer.files}
    assert sorted(os.listdir(disk)) == sorted([*old, "filler"])
    assert all((disk / name).read_bytes() == data for name, data in old.items())
    filler.unlink()
    writer.write(disk, NEW)
    writer.check(disk, NEW)
