"""Counts what is read of files, whichever they are."""

from __future__ import annotations

import pytest

from torchzip.files.source import FileSource


class Counted:
    """The bytes read of every file, in how many reads, and the names of the files."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.nbytes = 0
        self.reads = 0
        self.names: set[str] = set()
        read_at, read_into = FileSource.read_at, FileSource.read_into

        def counted_at(source: FileSource, offset: int, nbytes: int) -> bytes:
            self.nbytes += nbytes
            self.reads += 1
            self.names.add(source.name)
            return read_at(source, offset, nbytes)

        def counted_into(source: FileSource, offset: int, out: memoryview) -> None:
            self.nbytes += out.nbytes
            self.reads += 1
            self.names.add(source.name)
            read_into(source, offset, out)

        monkeypatch.setattr(FileSource, "read_at", counted_at)
        monkeypatch.setattr(FileSource, "read_into", counted_into)

    def forget(self) -> None:
        self.nbytes = self.reads = 0
        self.names.clear()
