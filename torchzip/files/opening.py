"""What a user gives is opened here: a path, a URL (as a `Location`) or a file object.

Nothing above this folder knows which of them it has. What URLs need is imported when there is one,
and what writing needs when something is written.
"""

from __future__ import annotations

import errno
import io
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, BinaryIO

from torchzip.files.folder import Folder, GivenFiles, LocalFolder
from torchzip.files.location import EXISTS, Location
from torchzip.files.source import File, FileObjectSource, FileSource, Source, checked_file
from torchzip.files.streams import is_stream

if TYPE_CHECKING:
    from torchzip.files.sink import Sink


def open_source(file: File) -> Source:
    """Return a Source for a path, a `Location`, or a binary file object with read and seek."""
    if isinstance(file, Location):
        from torchzip.files.remote_source import RemoteSource

        return RemoteSource(file)
    if isinstance(file, str | os.PathLike):
        return FileSource(file)
    return FileObjectSource(checked_file(file))


def open_sink(file: str | os.PathLike[str] | BinaryIO) -> Sink:
    """Return a Sink for a path, a `Location`, or a binary file object with ``write``."""
    from torchzip.files.sink import FileObjectSink, PathSink, StreamSink

    if isinstance(file, Location):
        from torchzip.files.remote_sink import RemoteSink

        return RemoteSink(file)
    if isinstance(file, str | os.PathLike):
        return StreamSink(file) if is_stream(file) else PathSink(file)
    if not hasattr(file, "write") or isinstance(file, io.TextIOBase):
        raise TypeError(
            f"expected a path or a binary file object with write, not {type(file).__name__}"
        )
    return FileObjectSink(file)


def is_folder(file: str | os.PathLike[str]) -> bool:
    """Return whether a path or a `Location` is that of a folder."""
    if isinstance(file, Location):
        from torchzip.files.backends import is_folder as is_remote_folder

        return is_remote_folder(file)
    return os.path.isdir(file)


def open_folder(file: str | os.PathLike[str]) -> Folder:
    """Return the folder of a path or a `Location`."""
    if isinstance(file, Location):
        from torchzip.files.remote_folder import RemoteFolder

        return RemoteFolder(file, needs_names=True)
    return LocalFolder(file)


def open_given(files: Sequence[str | os.PathLike[str]]) -> Folder:
    """Return files that a user has named one by one as a folder, of paths or of Locations."""
    locations = [file for file in files if isinstance(file, Location)]
    if not locations:
        return GivenFiles(list(map(os.fsdecode, files)))
    if len(locations) < len(files):
        raise ValueError("a list of files is one of paths or one of URLs, not of both")
    from torchzip.files.remote_folder import GivenObjects

    return GivenObjects(locations)


def open_around(file: str | os.PathLike[str]) -> tuple[Folder, str]:
    """Return the folder that a file lies in, and the name that it has there."""
    parent, name = os.path.split(os.fsdecode(file))
    if isinstance(file, Location):
        from torchzip.files.remote_folder import RemoteFolder

        return RemoteFolder(file.at(f"{parent}/")), name
    return LocalFolder(parent), name


def refuse_existing(file: str | os.PathLike[str]) -> None:
    """Raise FileExistsError if a name exists, even as a broken link.

    Streams are accepted, as writing to them replaces nothing.
    """
    if isinstance(file, Location):
        from torchzip.files.backends import open_object

        exists = open_object(file).exists()
    else:
        exists = os.path.lexists(file) and not is_stream(file)
    if exists:
        raise FileExistsError(errno.EEXIST, EXISTS, os.fsdecode(file))
