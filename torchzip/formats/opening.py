"""Which format a file has, told by its content.

A new format is a class beside this module with the members of `Container`, and a line here. The
module of a format is imported when a file has it, as most programs meet one or two of them.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

from torchzip.container.zip_reader import ZipReader
from torchzip.errors import ArchiveError, ErrorPlace, FormatError, UnsupportedError
from torchzip.files.opening import is_folder, open_given
from torchzip.files.source import File, Source
from torchzip.formats.base import Container, Opener
from torchzip.formats.zip import ZipContainer
from torchzip.limits import Limits

if TYPE_CHECKING:
    from torchzip.formats.joins import Join

#: Paths of the files of all ranks.
Files = Sequence[str | os.PathLike[str]]

#: The records that mark an archive of torch.export; one of before 2.8 begins with its own.
_PT2 = "archive_format"
_OLD_PT2 = "serialized_exported_program.json"
#: What a gzip file begins with.
_GZIP = b"\x1f\x8b"
#: Blanks of JSON.
_BLANKS = b" \t\n\r"
#: How files may end that say what a directory holds.
_OF_DIRECTORIES = (".json", ".metadata", "latest", "latest_universal")


def open_checkpoint(
    file: File | Files, limits: Limits, join: Join | None = None, *, optimizer: bool = False
) -> Container:
    """Return the container that a path or a file object is. A path may be that of a directory.

    A list of paths is the files of all ranks; ``join`` says how their tensors were cut, if they do
    not say it themselves. With ``optimizer`` a ZeRO directory has what its optimizer keeps as well.

    Raises
    ------
    TorchZipError, OSError
        If it is not a checkpoint; the message says what it looks like.
    """
    opener = Opener(limits, open_container, optimizer)
    if isinstance(file, list | tuple):
        return _open_files(file, opener, join)
    if join is not None:
        raise ValueError("join is for a list of files")
    if isinstance(file, str | os.PathLike):
        path = os.fsdecode(file)
        if path.endswith(_OF_DIRECTORIES) or is_folder(file):
            from torchzip.formats.directory import is_part_of_directory, open_directory

            if is_part_of_directory(file):
                return open_directory(file, opener)
        if path.endswith(".distcp"):
            raise FormatError(
                "items of a distributed checkpoint. Give the path of the directory, which has a "
                ".metadata.",
                path=path,
            )
    made = opener.of_file(cast(File, file))
    if "_rank_" in made.name:
        from torchzip.formats.ranks import lone_note

        made.notes += lone_note(os.path.basename(made.name))
    return made


def _open_files(files: Files, opener: Opener, join: Join | None) -> Container:
    from torchzip.formats.joined import JoinedContainer
    from torchzip.formats.joins import check_join
    from torchzip.formats.ranks import RanksContainer

    if not files:
        raise TypeError(
            "expected a path or a binary file object, or a list of paths, not an empty list"
        )
    if join is not None:
        check_join(join)
    folder = open_given(files)
    try:
        if join is None:
            return RanksContainer(folder, folder.names, opener)
        return JoinedContainer(folder, join, opener)
    except BaseException:
        folder.close()
        raise


def open_container(source: Source, limits: Limits) -> Container:
    """Return the container that the bytes of one file are. Errors name the file."""
    with ErrorPlace(path=source.name):
        return _open(source, limits)


def _open(source: Source, limits: Limits) -> Container:
    head = bytes(source.read_at(0, min(source.size, 512)))
    if head.startswith(b"PK\3\4"):
        # The name in the local header that the archive begins with.
        first = head[30 : 30 + int.from_bytes(head[26:28], "little")]
        if first == _OLD_PT2.encode():
            from torchzip.formats.pt2 import OldPt2Container

            archive = ZipReader(source, limits, in_folder=False)
            return OldPt2Container(archive, Opener(limits, open_container))
        if first.endswith(b".npy"):
            from torchzip.formats.npz import NpzContainer

            return NpzContainer(ZipReader(source, limits, in_folder=False))
        try:
            return _open_zip(ZipReader(source, limits), limits)
        except ArchiveError as error:
            from torchzip.formats.not_checkpoints import zip_error

            raise zip_error(error, source, limits) from None
    if head[:1] in (b"\x80", b"L"):
        from torchzip.formats.legacy import LegacyContainer, is_legacy

        if is_legacy(head, limits):
            _refuse_tar(head, "a legacy file of torch.save")
            return LegacyContainer(source, limits)
    if is_safetensors(head, source.size):
        _refuse_tar(head, "a safetensors file")
        from torchzip.formats.safetensors import SafetensorsContainer

        return SafetensorsContainer(source, limits)
    if head.startswith(b"GGUF"):
        _refuse_tar(head, "a GGUF file")
        from torchzip.formats.gguf import GgufContainer

        return GgufContainer(source, limits)
    if head.startswith(b"\x93NUMPY"):
        _refuse_tar(head, "a .npy file")
        from torchzip.formats.npy import NpyContainer

        return NpyContainer(source)
    if head.startswith(b"PYTORCH1"):
        raise UnsupportedError("a preview format of 2018, which torch itself refuses")
    if head.startswith(_GZIP) and source.name.endswith(".nemo"):
        from torchzip.formats.nemo import open_gzip

        found = open_gzip(source, Opener(limits, open_container))
        if found is not None:
            return found
    if head[257:262] == b"ustar":
        from torchzip.formats.nemo import open_tar

        found = open_tar(source, Opener(limits, open_container))
        if found is not None:
            return found
        from torchzip.formats.tar import TarContainer

        return TarContainer(source, limits)
    from torchzip.formats.not_checkpoints import file_error

    raise file_error(source, head)


def _refuse_tar(head: bytes, what: str) -> None:
    """Refuse a file that torch would open as a tar file: it tries that before anything else."""
    from torchzip.container.tar import is_header

    if is_header(head):
        raise ArchiveError(
            f"{what} whose first 512 bytes are a valid header of a tar file as well; torch.load "
            "would read the tar file"
        )


def is_safetensors(head: bytes, size: int) -> bool:
    """Return whether a file that begins so has a header of safetensors, which may be cut short.

    There may be blanks before it, more of them than are looked at.
    """
    begins_so = len(head) > 8 and head[8:].lstrip(_BLANKS)[:1] in (b"{", b"")
    return begins_so and int.from_bytes(head[:8], "little") <= max(size, 1 << 27)


def _open_zip(archive: ZipReader, limits: Limits) -> Container:
    if "constants.pkl" in archive:
        from torchzip.formats.torchscript import TorchScriptContainer

        return TorchScriptContainer(archive, limits)
    if "model.json" in archive and ZipContainer.pickle_record not in archive:
        raise UnsupportedError(
            "a TorchScript archive as torch before 1.4 wrote (it has model.json). Load it with "
            "torch.jit.load and save it again with torch.jit.save."
        )
    if _PT2 in archive:
        from torchzip.formats.pt2 import Pt2Container

        return Pt2Container(archive, Opener(limits, open_container))
    return ZipContainer(archive, limits)
