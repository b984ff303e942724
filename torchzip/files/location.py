"""URLs where paths are taken: what is one, and how it is shown.

Whoever takes a path of a user calls `located` once; what that returns is handed down like any path
and opened by `open_source` and `open_sink`. Nothing in between knows about URLs.
"""

from __future__ import annotations

import os
import posixpath
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")

#: What is said of a name that exists, by whoever may not overwrite it.
EXISTS = "Exists already; overwrite=True replaces it"
#: What users may say of a store beside the URL; its backend takes it.
StorageOptions = Mapping[str, Any] | None


@dataclass(frozen=True, slots=True, repr=False)
class Location(os.PathLike[str]):
    """A URL, and what its backend needs beside it.

    As a path it is its ``name``: the URL as messages show it, without what may be a secret. That
    is good for looking at; to open it takes the Location itself.
    """

    url: str
    storage_options: StorageOptions = None

    @property
    def scheme(self) -> str:
        """What comes before ``://``."""
        return urlsplit(self.url).scheme.lower()

    @property
    def name(self) -> str:
        """The URL without user, password, query and fragment."""
        host = urlsplit(self.url).netloc.rpartition("@")[2]
        return with_parts(self.url, netloc=host, query="", fragment="")

    def at(self, name: str) -> Location:
        """Return the location whose ``name`` this is, in the same store.

        >>> Location("ftp://me:key@host/run/").at("ftp://host/run/m.pt").url
        'ftp://me:key@host/run/m.pt'
        """
        return Location(with_parts(self.url, path=urlsplit(name).path), self.storage_options)

    def __fspath__(self) -> str:
        return self.name

    def __repr__(self) -> str:
        return f"Location({self.name!r})"


def with_parts(url: str, **parts: str) -> str:
    """Return a URL with other parts.

    The standard library leaves ``//`` out where there is no host and it does not know the scheme.
    What is left is the name of a local file for most readers.

    >>> with_parts("hdfs:///run/?a=b", path="/run/m.pt", query="")
    'hdfs:///run/m.pt'
    """
    made = urlsplit(url)._replace(**parts)
    scheme, _, rest = made.geturl().partition(":")
    return f"{scheme}:{rest}" if rest.startswith("//") else f"{scheme}://{rest}"


def join(folder: str, name: str) -> str:
    """Return the path of a file in a folder, which may be the name of a `Location`.

    >>> join("s3://bucket/run", "m.pt"), join("s3://bucket/run/", "m.pt")
    ('s3://bucket/run/m.pt', 's3://bucket/run/m.pt')
    """
    if _URL.match(folder) is None:
        return os.path.join(folder, name)
    return posixpath.join(folder, name)


def located(file: Any, storage_options: StorageOptions = None) -> Any:
    """Return a `Location` for a URL, a path for one of this computer, anything else as it is.

    Raises
    ------
    ValueError
        If a ``file://`` URL names a host: ``file://data/m.pt`` would be ``/m.pt``.

    >>> located("s3://bucket/m.pt"), located("file:///m%20.pt"), located("c:/m.pt"), located("m.pt")
    (Location('s3://bucket/m.pt'), '/m .pt', 'c:/m.pt', 'm.pt')
    """
    if not isinstance(file, str) or _URL.match(file) is None:
        return file
    parts = urlsplit(file)
    if parts.scheme.lower() == "file":
        if parts.netloc.lower() not in ("", "localhost"):
            raise ValueError(
                f"{file}: the URL names the host {parts.netloc!r}; the path of a file of this "
                "computer comes after three slashes, as in file:///data/m.pt"
            )
        from urllib.request import url2pathname  # which knows the drives of Windows

        return url2pathname(parts.path)
    if storage_options is not None and not isinstance(storage_options, Mapping):
        raise TypeError(f"storage_options must be a mapping, not {type(storage_options).__name__}")
    return Location(file, storage_options)
