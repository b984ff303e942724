"""Folders at URLs: objects whose names are its own and one component more, or given ones."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace

from torchzip.files.backends import list_folder, member_of
from torchzip.files.folder import Folder, check_plain_name, is_plain_name
from torchzip.files.location import Location
from torchzip.files.read_ahead import CONNECTIONS, Connections
from torchzip.files.remote_source import RemoteSource


class RemoteFolder(Folder):
    """A folder at a URL.

    A web server does not say what is in it: then ``names`` is empty, and only opening a file shows
    whether it is there. With ``needs_names`` that is an error.
    """

    def __init__(self, location: Location, *, needs_names: bool = False) -> None:
        self._location, names = list_folder(location)
        self._is_listed = names is not None
        if not self._is_listed and needs_names:
            raise OSError(
                errno.EOPNOTSUPP,
                "A web server does not say what is in a folder; give the URL of a file, or of the "
                "index of shards",
                location.name,
            )
        self._begin(location.name, sorted(names or ()))

    def _begin(self, path: str, names: list[str]) -> None:
        self.path, self.names = path, names
        self._connections = Connections()
        # Threads of their own, as opening a source waits for one of the connections.
        self._openers = ThreadPoolExecutor(CONNECTIONS, "torchzip-open")
        self._opened: dict[str, Future[RemoteSource]] = {}

    def has(self, name: str) -> bool:
        return not self._is_listed or name in self.names

    def file(self, *names: str) -> Location:
        for name in names:
            check_plain_name(name, self.path)
        return member_of(self._location, "/".join(names))

    def within(self, name: str) -> RemoteFolder:
        location = self.file(name)
        return RemoteFolder(replace(location, url=f"{location.url}/"), needs_names=True)

    def _is_own(self, name: str) -> bool:
        return is_plain_name(name)

    def will_open(self, names: Iterable[str]) -> None:
        for name in names:
            if self._is_own(name):
                self._begin_to_open(name)

    def open(self, name: str) -> RemoteSource:
        return self._begin_to_open(name).result()

    def _begin_to_open(self, name: str) -> Future[RemoteSource]:
        if name not in self._opened:
            self._opened[name] = self._openers.submit(
                RemoteSource, self.file(name), self._connections
            )
        return self._opened[name]

    def close(self) -> None:
        self._openers.shutdown(wait=False, cancel_futures=True)
        self._connections.close()
        for future in self._opened.values():
            if future.done() and not future.cancelled() and future.exception() is None:
                future.result().close()


class GivenObjects(RemoteFolder):
    """Objects that a user has named one by one: their names are what messages call them."""

    def __init__(self, locations: Sequence[Location]) -> None:
        self._locations = {location.name: location for location in locations}
        self._is_listed = True
        self._begin(os.path.dirname(locations[0].name), [*self._locations])

    def place(self, name: str) -> str:
        return name

    def file(self, *names: str) -> Location:
        (name,) = names
        return self._locations[name]

    def _is_own(self, name: str) -> bool:
        return name in self._locations
