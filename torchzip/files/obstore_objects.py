"""Objects that obstore reads and writes: of S3, Google Cloud and Azure."""

from __future__ import annotations

import errno
from collections.abc import Iterator, Mapping
from datetime import timedelta
from itertools import chain
from typing import Any

from torchzip.files.location import Location
from torchzip.files.remote import Answer, RemoteObject, errors_of, missing

#: Of an upload. A store takes parts of 5 MB and more, and 10,000 of them: up to 160 GB.
_PART_NBYTES = 16 << 20
_PARTS_AT_ONCE = 3
#: As long as users do not say otherwise; obstore's own retries take minutes.
_RETRIES = {"max_retries": 4, "retry_timeout": timedelta(seconds=60)}
_TIMES = {"connect_timeout": "10s", "timeout": "5m"}


class ObstoreObject(RemoteObject):
    """An object of a store."""

    def __init__(self, location: Location, kept: dict[Any, Any] | None = None) -> None:
        self._name = location.name
        self._obstore, self._store = _open_store(location)  # of one object, whose path is empty

    def tail(self, nbytes: int) -> Answer:
        try:
            return self._get({"range": {"suffix": nbytes}}, nbytes)
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EIO):
                raise
            with errors_of(self._name):  # an empty object has no range
                meta = self._obstore.head(self._store, "")
            if meta["size"]:
                raise
            return Answer(b"", 0, 0, _state_of(meta))

    def range(self, start: int, stop: int, identity: str | None) -> Answer:
        options: dict[str, Any] = {"range": (start, stop)}
        if identity is not None and identity.startswith('"'):  # a strong one
            options["if_match"] = identity
        return self._get(options, stop - start)

    def _get(self, options: dict[str, Any], nbytes: int) -> Answer:
        with errors_of(self._name):
            found = self._obstore.get(self._store, "", options=options)
            meta = found.meta
            first, last = found.range
            if last - first > nbytes or not 0 <= first <= last <= meta["size"]:
                raise OSError(
                    errno.EIO,
                    f"The server gives bytes {first:,} to {last:,} of {meta['size']:,}, which "
                    "nobody asked for",
                    self._name,
                )
            parts, left = [], last - first
            for part in found:
                parts.append(memoryview(part))
                left -= len(part)
                if left < 0:
                    break
            if left:
                raise OSError(
                    errno.EIO,
                    f"The server announces {last - first:,} bytes and gives "
                    f"{last - first - left:,}{' or more' if left < 0 else ''}",
                    self._name,
                )
        data = parts[0] if len(parts) == 1 else b"".join(parts)
        return Answer(data, first, meta["size"], _state_of(meta))

    def exists(self) -> bool:
        try:
            with errors_of(self._name):
                self._obstore.head(self._store, "")
        except FileNotFoundError:
            return False
        return True

    def put(self, blocks: Iterator[bytes], *, overwrite: bool) -> None:
        first = bytearray()
        for block in blocks:
            first += block
            if len(first) >= _PART_NBYTES:
                break
        else:  # one request, which the store itself carries out or refuses
            with errors_of(self._name):
                mode = "overwrite" if overwrite else "create"
                self._obstore.put(self._store, "", first, use_multipart=False, mode=mode)
            return
        with errors_of(self._name):
            self._obstore.put(
                self._store, "", chain([first], blocks), use_multipart=True,
                chunk_size=_PART_NBYTES, max_concurrency=_PARTS_AT_ONCE,
            )  # fmt: skip

    def remove(self) -> None:
        with errors_of(self._name):
            self._obstore.delete(self._store, "")


open_object = ObstoreObject


def list_folder(location: Location) -> tuple[Location, list[str]]:
    """Return a folder, and the names of the objects and of the folders in it."""
    obstore, store = _open_store(location)
    with errors_of(location.name):
        found = obstore.list_with_delimiter(store)
        paths = [each["path"] for each in found["objects"]] + list(found["common_prefixes"])
    return location, [path.rstrip("/").rpartition("/")[2] for path in paths]


def list_files(location: Location) -> tuple[Location, list[str]]:
    """Return a folder, and the paths of all objects below it."""
    obstore, store = _open_store(location)
    with errors_of(location.name):
        return location, [each["path"] for page in obstore.list(store) for each in page]


def _open_store(location: Location) -> tuple[Any, Any]:
    try:
        import obstore
        from obstore.store import from_url
    except ImportError:
        raise missing("obstore", location) from None
    options = dict(location.storage_options or {})
    options["client_options"] = _TIMES | dict(options.get("client_options", {}))
    options.setdefault("retry_config", _RETRIES)
    try:
        return obstore, from_url(location.url, **options)
    except Exception as error:  # its words name the option, but may quote a value as well
        known = str(error).partition("\n")[0] if "not valid for store" in str(error) else ""
        raise ValueError(
            f"{location.name}: obstore does not take this URL with these storage_options"
            + (f": {known}" if known else f" ({type(error).__name__})")
        ) from None


def _state_of(meta: Mapping[str, Any]) -> str:
    """Return what changes with an object."""
    return meta["e_tag"] or f"{meta['last_modified']}, {meta['size']}"
