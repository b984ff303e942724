"""What archives have inside, each as a Source: zip, tar, and files of gzip, bzip2 and xz."""

from __future__ import annotations

import bz2
import io
import lzma
import tarfile
import tempfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any, BinaryIO, NamedTuple

from torchzip.container.zip_reader import ZipReader
from torchzip.errors import ArchiveError
from torchzip.files.source import FileObjectSource, PartSource, Source

#: Bytes that a compressed file, or a deflated member, may come to.
MOST_NBYTES = 1 << 30
_HEAD_NBYTES = 512
_BLOCK_NBYTES = 1 << 20

COMPRESSED: dict[bytes, Callable[[], Any]] = {
    b"\x1f\x8b": lambda: zlib.decompressobj(31),
    b"BZh": bz2.BZ2Decompressor,
    b"\xfd7zXZ\0": lzma.LZMADecompressor,
    # What joblib writes: a bare stream of zlib, at each of its levels, and one of lzma.
    b"\x78\1": zlib.decompressobj,
    b"\x78\x5e": zlib.decompressobj,
    b"\x78\x9c": zlib.decompressobj,
    b"\x78\xda": zlib.decompressobj,
    b"\x5d\0\0": lzma.LZMADecompressor,
}
#: What begins so is such a file; the other magics are too short to say so.
_SURE = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ\0")
#: Archives that are not looked into.
UNOPENED = {
    b"7z\xbc\xaf\x27\x1c": "7z",
    b"Rar!\x1a\7": "RAR",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"\x04\x22\x4d\x18": "lz4",
}


class Member(NamedTuple):
    """A member of an archive: ``head`` are its first bytes, and ``open`` gives all of it."""

    name: str
    head: bytes
    nbytes: int
    open: Any


def zip_members(archive: ZipReader, names: Iterable[str]) -> Iterator[Member]:
    """Yield members of a zip archive, of these names."""
    source = archive.source
    for name in names:
        if name.endswith("/"):
            continue
        nbytes = archive.size_of(name)[0]
        span = archive.stored_span(name)
        if span is not None:
            part = PartSource(source, *span, f"{source.name}!{name}")
            head = bytes(part.read_at(0, min(part.size, _HEAD_NBYTES)))
            yield Member(name, head, nbytes, lambda part=part: part)
        else:
            head = b""
            for block in archive.inflate(name):
                head += block[:_HEAD_NBYTES]
                if len(head) >= _HEAD_NBYTES:
                    break
            yield Member(
                name, head[:_HEAD_NBYTES], nbytes,
                lambda name=name: _kept(archive.inflate(name), f"{source.name}!{name}"),
            )  # fmt: skip


def tar_members(source: Source) -> Iterator[Member]:
    """Yield the regular members of a tar file.

    Raises
    ------
    ArchiveError
        If Python's reader does not read it.
    """
    try:
        with tarfile.open(fileobj=io.BufferedReader(_File(source)), mode="r:") as archive:
            for member in archive:
                if not member.isreg() or member.issparse():
                    continue
                name = f"{source.name}!{member.name}"
                part = PartSource(source, member.offset_data, member.size, name)
                head = bytes(part.read_at(0, min(part.size, _HEAD_NBYTES)))
                yield Member(member.name, head, part.size, lambda part=part: part)
    except (tarfile.TarError, ValueError, OverflowError, EOFError) as error:
        raise ArchiveError(f"a tar file that cannot be read: {error}") from None


def decompressed(source: Source, head: bytes) -> Source | None:
    """Return what a compressed file comes to; None for others.

    Raises
    ------
    ArchiveError
        If it is damaged, or comes to more than `MOST_NBYTES`.
    """
    for magic, make in COMPRESSED.items():
        if head.startswith(magic) and (magic in _SURE or _begins_well(head, make())):
            return _kept(_blocks(source, make()), f"{source.name}!")
    return None


def _begins_well(head: bytes, decompressor: Any) -> bool:
    try:
        return bool(decompressor.decompress(head, _BLOCK_NBYTES))
    except (zlib.error, lzma.LZMAError):
        return False


def _blocks(source: Source, decompressor: Any) -> Iterator[bytes]:
    at = 0
    while at < source.size and not decompressor.eof:
        block = bytes(source.read_at(at, min(_BLOCK_NBYTES, source.size - at)))
        at += len(block)
        while block and not decompressor.eof:
            try:
                made = decompressor.decompress(block, _BLOCK_NBYTES)
            except (zlib.error, OSError, lzma.LZMAError, EOFError) as error:
                raise ArchiveError(f"a compressed file that is damaged: {error}") from None
            yield made
            # zlib gives back what it did not take yet, the others keep it.
            block = getattr(decompressor, "unconsumed_tail", b"")
            while not (block or decompressor.eof or getattr(decompressor, "needs_input", True)):
                yield decompressor.decompress(b"", _BLOCK_NBYTES)
    if not decompressor.eof:
        raise ArchiveError("a compressed file that is cut short")
    if decompressor.unused_data or at < source.size:
        raise ArchiveError("a compressed file with something after it")


def _kept(blocks: Iterator[bytes], name: str) -> Source:
    """Return bytes that come in blocks, kept in a temporary file, as a Source."""
    kept: BinaryIO = tempfile.TemporaryFile()  # noqa: SIM115
    nbytes = 0
    try:
        for block in blocks:
            nbytes += len(block)
            if nbytes > MOST_NBYTES:
                raise ArchiveError(
                    f"compressed bytes that come to more than {MOST_NBYTES:,}; unpack them first"
                )
            kept.write(block)
        kept.seek(0)
        return _KeptSource(kept, name)
    except BaseException:
        kept.close()
        raise


class _KeptSource(FileObjectSource):
    """A file of its own, which is closed with it."""

    def __init__(self, file: BinaryIO, name: str) -> None:
        super().__init__(file)
        self.name = name
        self._kept = file

    def close(self) -> None:
        self._kept.close()


class _File(io.RawIOBase):
    """A Source as a file object, for Python's reader of tar files."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        self._at = max(0, (0, self._at, self._source.size)[whence] + offset)
        return self._at

    def readinto(self, out: Any) -> int:
        view = memoryview(out).cast("B")
        nbytes = max(0, min(view.nbytes, self._source.size - self._at))
        if nbytes:
            self._source.read_into(self._at, view[:nbytes])
        self._at += nbytes
        return nbytes
