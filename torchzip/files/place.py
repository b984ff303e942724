"""Where the files of an output go: folders of this computer, or a store.

An output has several files, whose names are made from that of one. They are handled by their paths
as messages show them; a place knows what these lead to. The two have the same methods.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Collection, Iterator

from torchzip.files.backends import open_object
from torchzip.files.location import Location
from torchzip.files.opening import refuse_existing
from torchzip.files.platform_calls import sync_folder
from torchzip.files.remote_sink import RemoteSink
from torchzip.files.streamed_file import StreamedFile


class LocalPlace:
    """Folders of this computer."""

    def scratch(self, path: str) -> str | None:
        """Return the folder for what is kept meanwhile; None is that for temporary files."""
        return os.path.dirname(os.path.realpath(path))

    def exists(self, path: str) -> bool:
        return os.path.lexists(path)

    def refuse_existing(self, path: str) -> None:
        """Raise FileExistsError if there is something already."""
        refuse_existing(path)

    def check_removable(self, path: str, files: Collection[str]) -> None:
        """Raise unless what is at a path can be removed when files are there."""
        if os.path.isdir(path) and not os.path.islink(path):
            raise IsADirectoryError(
                errno.EISDIR, "A directory has the name of the checkpoint", path
            )
        if os.path.realpath(path) in map(os.path.realpath, files):
            raise FileExistsError(errno.EEXIST, "A link of a shard's name leads here", path)

    def remove(self, path: str) -> None:
        os.unlink(path)

    @contextlib.contextmanager
    def folder_of(self, path: str) -> Iterator[None]:
        """Make the folder of a path if need be; take it away again if the block fails."""
        folder = os.path.dirname(path)
        if os.path.isdir(folder):
            yield
            return
        try:
            os.mkdir(folder)
        except FileNotFoundError:
            raise FileNotFoundError(
                errno.ENOENT, "The directory around it does not exist; make it first", folder
            ) from None
        try:
            yield
            sync_folder(os.path.dirname(os.path.realpath(folder)))
        except BaseException:
            with contextlib.suppress(OSError):  # it has the files, if their folder's sync failed
                os.rmdir(folder)
            raise


class StorePlace:
    """The store of a location, which has no folders of its own. Files are written as streams."""

    def __init__(self, location: Location) -> None:
        self._location = location

    def scratch(self, path: str) -> str | None:
        return None

    def exists(self, path: str) -> bool:
        return open_object(self._location.at(path)).exists()

    def refuse_existing(self, path: str) -> None:
        refuse_existing(self._location.at(path))

    def check_removable(self, path: str, files: Collection[str]) -> None:
        """Do nothing: an object is neither a directory nor a link."""

    def remove(self, path: str) -> None:
        open_object(self._location.at(path)).remove()

    def folder_of(self, path: str) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    def open(self, path: str, *, overwrite: bool) -> StreamedFile:
        """Begin to write a file. It appears when it is committed."""
        return StreamedFile(RemoteSink(self._location.at(path), overwrite=overwrite))


def place_of(file: str | os.PathLike[str]) -> LocalPlace | StorePlace:
    """Return where a path or a `Location` is."""
    return StorePlace(file) if isinstance(file, Location) else LocalPlace()
