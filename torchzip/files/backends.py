"""Which backend a URL needs.

obstore speaks to S3, Google Cloud and Azure, the standard library to web servers, huggingface_hub
says where a file of the hub is, fsspec has every other scheme. Each is imported when such a URL is
opened.
"""

from __future__ import annotations

from dataclasses import replace
from types import ModuleType
from typing import Any
from urllib.parse import quote, urlsplit

from torchzip.files.location import Location, with_parts
from torchzip.files.remote import RemoteObject

_OF_OBSTORE = {"s3", "s3a", "gs", "gcs", "az", "adl", "azure", "abfs", "abfss"}
_OF_WEB = {"http", "https"}


def open_object(location: Location, kept: dict[Any, Any] | None = None) -> RemoteObject:
    """Return the object of a URL, by its scheme.

    ``kept`` is for what the objects of one folder share, such as open connections.
    """
    found: RemoteObject = _backend(location).open_object(location, kept)
    return found


def list_folder(location: Location) -> tuple[Location, list[str] | None]:
    """Return a folder, as it is now where it has states, and the names of what is in it.

    These are files and folders, as of a directory. The names are None if a server has no list of
    them.
    """
    found: tuple[Location, list[str] | None] = _backend(location).list_folder(location)
    return found


def list_files(location: Location) -> tuple[Location, list[str]]:
    """Return a folder, as it is now where it has states, and the paths of all files below it.

    Raises
    ------
    OSError
        If it cannot be listed: a web server does not say what is in a folder.
    """
    found: tuple[Location, list[str]] = _backend(location).list_files(location)
    return found


def is_read_only(location: Location) -> bool:
    """Return whether files at a URL can only be read."""
    return location.scheme in {*_OF_WEB, "hf"}


def is_folder(location: Location) -> bool:
    """Return whether a URL is that of a folder: it ends with a slash, or is all of a bucket.

    >>> is_folder(Location("s3://bucket/run/")), is_folder(Location("hf://org/model"))
    (True, True)
    """
    if location.scheme == "hf":
        from torchzip.files.hub import parse_place

        return parse_place(location.url).file[-1:] in ("", "/")
    path = urlsplit(location.url).path
    return path.endswith("/") or (not path and location.scheme in _OF_OBSTORE)


def member_of(folder: Location, name: str) -> Location:
    """Return a file of a folder. A name leads nowhere else, whatever a server would make of it."""
    if folder.scheme in _OF_OBSTORE | _OF_WEB:  # where what is in a URL is decoded
        name = quote(name)
    url = with_parts(folder.url, path=f"{urlsplit(folder.url).path}{name}")
    return replace(folder, url=url)


def _backend(location: Location) -> ModuleType:
    if location.scheme in _OF_OBSTORE:
        from torchzip.files import obstore_objects

        return obstore_objects
    if location.scheme in _OF_WEB:
        from torchzip.files import web

        return web
    if location.scheme == "hf":
        from torchzip.files import hub

        return hub
    from torchzip.files import fsspec_objects

    return fsspec_objects
