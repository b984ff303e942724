"""Sources and sinks in memory, which count and which can be larger than memory."""

from __future__ import annotations

import bisect

from torchzip.errors import FormatError
from torchzip.files.source import Buffer


class BytesSource:
    """A Source of bytes, which notes what is read: ``reads`` holds (offset, size)."""

    def __init__(self, data: bytes, name: str = "made.pt") -> None:
        self.data = data
        self.size = len(data)
        self.name = name
        self.reads: list[tuple[int, int]] = []

    def read_at(self, offset: int, nbytes: int) -> bytes:
        if offset < 0 or nbytes < 0 or offset + nbytes > self.size:
            raise FormatError(f"a read of {nbytes} bytes outside", offset=offset)
        self.reads.append((offset, nbytes))
        return self.data[offset : offset + nbytes]

    def read_into(self, offset: int, out: memoryview) -> None:
        out[:] = self.read_at(offset, out.nbytes)

    def close(self) -> None:
        """Nothing."""


class BytesSink:
    """A Sink that keeps what is written, and the size of each write."""

    def __init__(self) -> None:
        self.name = "made.pt"
        self.parts: list[bytes] = []
        self.position = 0

    def write(self, data: Buffer) -> None:
        self.parts.append(bytes(data))
        self.position += len(self.parts[-1])

    @property
    def data(self) -> bytes:
        return b"".join(self.parts)


class SparseFile:
    """Sink, Source and file object of any size: large writes are taken for zeros."""

    LARGE = 1 << 20

    def __init__(self) -> None:
        self.name = "sparse.pt"
        self.position = self.size = 0
        self._starts: list[int] = []
        self._parts: list[bytes] = []
        self._at = 0

    def write(self, data: Buffer) -> None:
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

    def read_into(self, offset: int, out: memoryview) -> None:
        out[:] = self.read_at(offset, out.nbytes)

    def close(self) -> None:
        """Nothing."""

    # what zipfile wants of a file object

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        self._at = offset + (0, self._at, self.position)[whence]
        return self._at

    def tell(self) -> int:
        return self._at

    def read(self, nbytes: int = -1) -> bytes:
        left = self.position - self._at
        take = left if nbytes < 0 else min(nbytes, left)
        data = self.read_at(self._at, take)
        self._at += take
        return data
