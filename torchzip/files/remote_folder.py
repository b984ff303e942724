"""A folder at a URL: objects whose names are its own and one component more."""

from __future__ import annotations

import errno
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor

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
        self.path = location.name
        self._location, names = list_folder(location)
        self._is_listed = names is not None
        if not self._is_listed and needs_names:
            raise OSError(
                errno.EOPNOTSUPP,
                "A web server does not say what is in a folder; give the URL of a file, or of the "
                "index of shards",
                self.path,
            )
        self.names = sorted(names or ())
        self._connections = Connections()
        # Threads of their own, as opening a source waits for one of the connections.
        self._openers = ThreadPoolExecutor(CONNECTIONS, "torchzip-open")
        self._opened: dict[str, Future[RemoteSource]] = {}

    def has(self, name: str) -> bool:
        return not self._is_listed or name in self.names

    def file(self, name: str) -> Location:
        check_plain_name(name, self.path)
        return member_of(self._location, name)

    def will_open(self, names: Iterable[str]) -> None:
        for name in names:
            if is_plain_name(name) and name not in self._opened:
                self._opened[name] = self._openers.submit(
                    RemoteSource, self.file(name), self._connections
                )

    def open(self, name: str) -> RemoteSource:
        check_plain_name(name, self.path)
        self.will_open([name])
        return self._opened[name].result()

    def close(self) -> None:
        self._openers.shutdown(wait=False, cancel_futures=True)
        self._connections.close()
        for future in self._opened.values():
            if future.done() and not future.cancelled() and future.exception() is None:
                future.result().close()
