"""Sources and sinks in memory, which count and which can be larger than memory."""

from __future__ import annotations

import bisect
import io
from collections.abc import Iterable

from torchzip.files.sink import FileObjectSink
from torchzip.files.source import Buffer, FileObjectSource


class BytesSource(FileObjectSource):
    """A Source of bytes, which notes what is read: ``reads`` holds (offset, size)."""

    def __init__(self, data: bytes) -> None:
        super().__init__(io.BytesIO(data))
        self.name = "made.pt"
        self.reads: list[tuple[int, int]] = []

    def read_at(self, offset: int, nbytes: int) -> bytes:
        self.reads.append((offset, nbytes))
        return super().read_at(offset, nbytes)

    def read_into(self, offset: int, out: memoryview) -> None:
        out[:] = self.read_at(offset, out.nbytes)


class BytesSink(FileObjectSink):
    """A Sink that keeps what is written."""

    def __init__(self) -> None:
        self._bytes = io.BytesIO()
        super().__init__(self._bytes)

    @property
    def data(self) -> bytes:
        return self._bytes.getvalue()


class SparseFile(io.RawIOBase):
    """Sink, Source and file object of any size: large writes are taken for zeros."""

    LARGE = 1 << 20
    far_group: object | None = None

    def __init__(self) -> None:
        self.name = "sparse.pt"
        self.position = self.size = 0
        self._starts: list[int] = []
        self._parts: list[bytes] = []
        self._at = 0

    def write(self, data: Buffer) -> None:  # type: ignore[override]
        """Append bytes, or zeros where there are many."""
        view = memoryview(data)
        if view.nbytes < self.LARGE:
            self._starts.append(self.position)
            self._parts.append(bytes(view))
        self.position += view.nbytes
        self.size = self.position

    def read_at(self, offset: int, nbytes: int) -> bytes:
        assert 0 <= offset <= offset + nbytes <= self.position, "a read outside"
        out = bytearray(nbytes)
        first = max(0, bisect.bisect_right(self._starts, offset) - 1)
        for start, part in zip(self._starts[first:], self._parts[first:], strict=True):
            if start >= offset + nbytes:
                break
            low, high = max(start, offset), min(start + len(part), offset + nbytes)
            if low < high:
                out[low - offset : high - offset] = part[low - start : high - start]
        return bytes(out)

    def will_read(self, spans: Iterable[object]) -> None:
        pass

    def read_into(self, offset: int, out: memoryview) -> None:
        out[:] = self.read_at(offset, out.nbytes)

    def read_back(self, offset: int, nbytes: int) -> bytes:
        return self.read_at(offset, nbytes)

    def commit(self) -> None:
        """Do nothing, as `abort` does."""

    abort = commit

    # what zipfile wants of a file object

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        self._at = offset + (0, self._at, self.position)[whence]
        return self._at

    def readinto(self, out: memoryview) -> int:  # type: ignore[override]
        nbytes = min(len(out), self.position - self._at)
        out[:nbytes] = self.read_at(self._at, nbytes)
        self._at += nbytes
        return nbytes
