"""Objects that fsspec reads and writes, under any of its schemes."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from typing import Any

from torchzip.files.location import Location
from torchzip.files.remote import Answer, RemoteObject, errors_of, missing

#: What file systems call what changes with a file.
_OF_STATE = (
    "ETag", "etag", "md5Hash", "generation", "mtime", "modified", "LastModified", "created",
)  # fmt: skip


class FsspecObject(RemoteObject):
    """A file of a file system of fsspec.

    Most of them have no conditional reads, so each read asks for the state of the file before it
    and after it.
    """

    def __init__(self, location: Location, kept: dict[Any, Any] | None = None) -> None:
        self._name = location.name
        self._location = location
        self._system, self._path = _open_system(location)

    def tail(self, nbytes: int) -> Answer:
        size, _ = self._state()
        return self.range(max(0, size - nbytes), size, None)

    def _state(self) -> tuple[int, str]:
        """Return the size of the object now, and what says that it is another."""
        with errors_of(self._name):
            self._system.invalidate_cache()
            info = self._system.info(self._path)
            if info.get("type") == "directory":
                raise IsADirectoryError(errno.EISDIR, "A directory, not an object", self._name)
            size = int(info["size"])
            known = [str(info[key]) for key in _OF_STATE if info.get(key) is not None]
            return size, ", ".join([*known, str(size)])

    def range(self, start: int, stop: int, identity: str | None) -> Answer:
        with errors_of(self._name):
            data = self._system.cat_file(self._path, start=start, end=stop)
        size, state = self._state()
        return Answer(memoryview(data), start, size, state)

    def exists(self) -> bool:
        with errors_of(self._name):
            return bool(self._system.exists(self._path))

    def put(self, blocks: Iterator[bytes], *, overwrite: bool) -> None:
        with errors_of(self._name):
            # A transaction, as the end of a ``with`` block would commit after an error too. It is
            # of all of a file system, so this has one of its own.
            system, path = _open_system(self._location, skip_instance_cache=True)
            # Stores have no folders to make, and other file systems make none by themselves.
            folder = path.rpartition("/")[0]
            if folder and not system.exists(folder):
                system.makedirs(folder, exist_ok=True)
            transaction = system.start_transaction() or system.transaction
            is_whole = False
            try:
                file = system.open(path, "wb")
                for block in blocks:
                    file.write(block)
                file.close()
                is_whole = True
            finally:
                transaction.complete(commit=is_whole)

    def remove(self) -> None:
        with errors_of(self._name):
            self._system.rm_file(self._path)


open_object = FsspecObject


def list_folder(location: Location) -> tuple[Location, list[str]]:
    """Return a folder, and the names of what is in it."""
    system, path = _open_system(location)
    with errors_of(location.name):
        found = system.ls(path, detail=True)
    paths = [each["name"].rstrip("/") for each in found]
    # Some stores have an object for the folder itself.
    return location, [each.rpartition("/")[2] for each in paths if each != path.rstrip("/")]


def list_files(location: Location) -> tuple[Location, list[str]]:
    """Return a folder, and the paths of all files below it."""
    system, path = _open_system(location)
    start = f"{path.rstrip('/')}/"
    with errors_of(location.name):
        return location, [each.removeprefix(start) for each in system.find(path)]


def _open_system(location: Location, **more: Any) -> tuple[Any, str]:
    try:
        import fsspec
    except ImportError:
        raise missing("fsspec", location) from None
    try:
        found: tuple[Any, str] = fsspec.core.url_to_fs(
            location.url, **dict(location.storage_options or {}), **more
        )
    except ImportError as error:  # it says which package a scheme needs
        raise OSError(errno.ENOSYS, str(error), location.name) from None
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{location.name}: fsspec does not take this URL with these storage_options "
            f"({type(error).__name__}). It knows the schemes {', '.join(_schemes(fsspec))}"
        ) from None
    return found


def _schemes(fsspec: Any) -> list[str]:
    return sorted(fsspec.available_protocols())
