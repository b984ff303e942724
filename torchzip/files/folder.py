"""A folder that is one checkpoint: files by plain names.

A sharded checkpoint can have more files than a process may open, so few files of a directory are
open at once. Each is opened once to check that it is a regular file and to get its size. If it was
closed in between, it is opened again when it is read; a file that was replaced meanwhile is
refused.

The names come from a file (an index, a ``.metadata``), so they must be plain: one component, in
this folder. Symbolic links in a directory are followed, since the cache of the Hugging Face hub
consists of them. The owner of the directory made them; an index cannot.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Protocol

from torchzip.errors import FormatError, shown
from torchzip.files.location import join
from torchzip.files.source import FileSource, Source, reopen

#: Open files of a folder, unless more threads than that read at once.
_OPEN_FILES = 64


def is_plain_name(name: Any) -> bool:
    """Return whether a name from a file is exactly one component of a path, on every system.

    (A letter and a colon are a drive on Windows.)

    >>> [is_plain_name(name) for name in ("a.bin", "..", "x/a.bin", "c:a.bin", "")]
    [True, False, False, False, False]
    """
    if type(name) is not str or not 0 < len(name) <= 255 or name in (".", ".."):
        return False
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return not any(character in name for character in "/\\\0") and name[1:2] != ":"


class Folder(Protocol):
    """A folder. ``path`` is what messages call it; ``names`` are those of what is in it."""

    path: str
    names: list[str]

    def has(self, name: str) -> bool:
        """Return whether a file may be there; False says that it is not."""
        return name in self.names

    def place(self, name: str) -> str:
        """Return a file of the folder as messages show it."""
        return join(self.path, name)

    def file(self, *names: str) -> str | os.PathLike[str]:
        """Return what opens a file of the folder by itself, or one that is folders below."""
        for name in names:
            check_plain_name(name, self.path)
        return os.path.join(self.path, *names)

    def within(self, name: str) -> Folder:
        """Return a folder in this one."""
        ...

    def will_open(self, names: Iterable[str]) -> None:
        """Take note of files that will be opened soon."""
        return

    def open(self, name: str) -> Source:
        """Return the Source of a file.

        Raises
        ------
        FormatError
            If the name is not a plain name.
        OSError
            If it is not a regular file, or cannot be opened.
        """
        ...

    def close(self) -> None: ...


def check_plain_name(name: Any, folder: str) -> None:
    """Raise FormatError for what would lead out of a folder."""
    if not is_plain_name(name):
        raise FormatError(
            f"a file is called {shown(name)}; a plain name in the same directory was expected",
            path=folder,
        )


class LocalFolder(Folder):
    """A directory of this computer."""

    def __init__(self, path: str | os.PathLike[str], names: list[str] | None = None) -> None:
        self.path = os.fsdecode(path)
        self.names = sorted(os.listdir(path or ".")) if names is None else names
        self._lock = threading.Lock()
        self._files: OrderedDict[str, FileSource] = OrderedDict()
        self._sources: dict[str, PooledSource] = {}
        self._closed = False

    def within(self, name: str) -> LocalFolder:
        return LocalFolder(self.file(name))

    def open(self, name: str) -> PooledSource:
        self._check_name(name)
        made = self._sources.get(name)
        if made is None:
            file = FileSource(self.place(name))
            made = self._sources[name] = PooledSource(self, name, file)
            with self._lock:
                self._files[name] = file
                self._make_room()
        return made

    def _check_name(self, name: str) -> None:
        check_plain_name(name, self.path)

    @contextlib.contextmanager
    def borrow(self, source: PooledSource) -> Iterator[int]:
        """Yield the descriptor of a Source, whose file stays open within the block."""
        name = source.own_name
        with contextlib.ExitStack() as use:
            with self._lock:
                if self._closed:
                    raise ValueError(f"{self.path}: the checkpoint is closed")
                file = self._files.pop(name, None)
                if file is None:
                    file = reopen(source.path, source.identity)
                    file.name = source.name
                self._files[name] = file  # now the most recently used
                number = use.enter_context(file.descriptor)
                self._make_room()
            yield number

    def _make_room(self) -> None:
        """Close the least recently used files; who uses one keeps it. The caller holds the lock."""
        while len(self._files) > _OPEN_FILES:
            self._files.popitem(last=False)[1].close()

    def close(self) -> None:
        with self._lock:
            self._closed = True
            for file in self._files.values():
                file.close()


class GivenFiles(LocalFolder):
    """Files that a user has named one by one, in any directories: their names are paths."""

    def __init__(self, paths: Sequence[str]) -> None:
        try:
            around = os.path.commonpath(list(map(os.path.dirname, paths)) or [""])
        except ValueError:  # some begin at the root and some here, or they are on several drives
            around = ""
        super().__init__(around, list(paths))

    def place(self, name: str) -> str:
        return name

    def _check_name(self, name: str) -> None:
        """Take any path: no file has named it."""


class PooledSource(FileSource):
    """A regular file of a `LocalFolder`, which opens it for each use, if it is not open."""

    def __init__(self, folder: LocalFolder, own_name: str, file: FileSource) -> None:
        self._folder = folder
        self.own_name = own_name
        self.name = file.name
        self.path = file.path
        self.size = file.size
        self.opened = file.opened
        self.identity = file.identity

    @property
    def descriptor(self) -> contextlib.AbstractContextManager[int]:  # type: ignore[override]
        """The descriptor of the open file, which stays open within the ``with`` block."""
        return self._folder.borrow(self)

    def close(self) -> None:
        """Do nothing: the folder closes its files."""
