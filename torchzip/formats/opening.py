"""Which format a file has, told by its content.

A new format is a class beside this module with the members of `Container`, and a line here.
"""

from __future__ import annotations

import os
from typing import Any

from torchzip.container.zip_reader import ZipReader
from torchzip.errors import FormatError, TorchZipError, UnsupportedError
from torchzip.files.source import File, Source, open_source
from torchzip.formats.base import Container
from torchzip.formats.directory import is_part_of_directory, open_directory
from torchzip.formats.legacy import LEGACY_MAGIC, LegacyContainer
from torchzip.formats.pt2 import OldPt2Container, Pt2Container
from torchzip.formats.safetensors import SafetensorsContainer
from torchzip.formats.tar import TarContainer
from torchzip.formats.torchscript import TorchScriptContainer
from torchzip.formats.zip import ZipContainer
from torchzip.limits import Limits
from torchzip.pickling.interpreter import Interpreter
from torchzip.pickling.table import Table


def open_checkpoint(file: File, limits: Limits) -> Container:
    """Return the container that a path or a file object is. A path may be that of a directory.

    Raises
    ------
    TorchZipError, OSError
        If it is no checkpoint; the message says what it looks like.
    """
    if isinstance(file, str | os.PathLike):
        path = os.fspath(file)
        if is_part_of_directory(path):
            return open_directory(path, limits, open_container)
    source = open_source(file)
    try:
        return open_container(source, limits)
    except BaseException:
        source.close()
        raise


def open_container(source: Source, limits: Limits) -> Container:
    """Return the container that the bytes of one file are."""
    head = bytes(source.read_at(0, min(source.size, 512)))
    if head.startswith(b"PK\3\4"):
        if _first_record(head) == OldPt2Container.needed_record.encode():
            return OldPt2Container(ZipReader(source, limits, in_folder=False), limits)
        return _open_zip(ZipReader(source, limits), limits)
    if head[:1] in (b"\x80", b"L") and _first_value(head, limits) == LEGACY_MAGIC:
        return LegacyContainer(source, limits)
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= max(source.size, 1 << 27):
        return SafetensorsContainer(source, limits)
    if head.startswith(b"PYTORCH1"):
        raise UnsupportedError(
            "a preview format of 2018, which torch itself refuses", path=source.name
        )
    if head[257:262] == b"ustar":
        return TarContainer(source, limits)
    raise FormatError(f"not a checkpoint: {_looks_like(head, source.size)}", path=source.name)


def _open_zip(archive: ZipReader, limits: Limits) -> Container:
    name = archive.source.name
    if "constants.pkl" in archive:
        return TorchScriptContainer(archive, limits)
    if "model.json" in archive and ZipContainer.pickle_record not in archive:
        raise UnsupportedError(
            "a TorchScript archive as torch before 1.4 wrote (it has model.json); load it with "
            "torch.jit.load and save it again with torch.jit.save",
            path=name,
        )
    if Pt2Container.needed_record in archive:
        return Pt2Container(archive, limits)
    return ZipContainer(archive, limits)


def _first_record(head: bytes) -> bytes:
    """Return the name in the local header that a zip archive begins with."""
    return head[30 : 30 + int.from_bytes(head[26:28], "little")]


def _looks_like(head: bytes, size: int) -> str:
    if not size:
        return "the file is empty"
    for magic, what in (
        (b"version https://git-lfs", "a Git LFS pointer; the real file was not fetched"),
        (b"GGUF", "a GGUF file"),
        (b"\x89HDF", "an HDF5 file"),
        (b"\x93NUMPY", "a .npy file; numpy.load reads it"),
        (b"\x1f\x8b", "gzip-compressed; decompress it first"),
        (b"PK\5\6", "an empty zip archive"),
        (b"Rar!", "a RAR archive"),
        (b"7z\xbc\xaf", "a 7z archive"),
    ):
        if head.startswith(magic):
            return what
    if head[:1] == b"\x80" and head[1:2] <= b"\5":
        return "a pickle, but not one that torch.save wrote"
    if head.lstrip()[:1] == b"<":
        return "a web page or XML; the download may have failed"
    return f"it begins with {head[:8]!r}"


def _first_value(head: bytes, limits: Limits) -> Any:
    try:
        return Interpreter(head, Table(), limits).run()
    except TorchZipError:
        return None
