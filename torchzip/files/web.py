"""Objects of web servers, read by ranges with the standard library's client.

It is used, and no library around it, because where a redirect leads must be known before it is
followed: never from https to http, never with the credentials of another server, and not from a
server of the internet to an address of the own network, which a server could have probed so.
"""

from __future__ import annotations

import base64
import errno
import http.client
import ipaddress
import random
import re
import ssl
import time
import urllib.request
from collections.abc import Iterator, Mapping
from email.message import Message
from typing import Any, NoReturn
from urllib.parse import SplitResult, unquote, urljoin, urlsplit

from torchzip.errors import TorchZipError
from torchzip.files.location import Location
from torchzip.files.remote import (
    NUMBER_OF_STATUS,
    SAID,
    Answer,
    RemoteObject,
    read_only,
    replaced,
)

_ATTEMPTS = 4
_MOST_REDIRECTS = 5
#: Of one read of a socket, and of one request.
_SOCKET_SECONDS = 30.0
_REQUEST_SECONDS = 300.0
_REDIRECTS = {301, 302, 303, 307, 308}
_AGAIN = {408, 425, 429, 500, 502, 503, 504}
_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+)")
_EMPTY_RANGE = re.compile(r"bytes \*/0")
_OF_STATUS = {
    **{status: (number, SAID[number]) for status, number in NUMBER_OF_STATUS.items()},
    410: (errno.ENOENT, "No such object any more"),
}


class _TryAgainError(Exception):
    """What may be better the next time."""


class WebObject(RemoteObject):
    """An object of a web server. ``storage_options`` may have ``headers``, for the first server.

    ``name`` is what messages call it.
    """

    def __init__(
        self, location: Location, kept: dict[Any, Any] | None = None, name: str | None = None
    ) -> None:
        self._name = name or location.name
        options = dict(location.storage_options or {})
        headers = options.pop("headers", {})
        if options or not isinstance(headers, Mapping):
            raise ValueError(
                f"{self._name}: of storage_options a web server takes headers, a mapping"
            )
        parts = urlsplit(location.url)
        self._headers = {str(key): str(value) for key, value in headers.items()}
        if parts.username is not None:
            secret = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
            self._headers["Authorization"] = f"Basic {base64.b64encode(secret.encode()).decode()}"
        netloc = parts.netloc.rpartition("@")[2]
        self._url = parts._replace(netloc=netloc, fragment="").geturl()
        #: Where redirects have led, so that they are followed once.
        self._direct = self._url
        self._is_private = False
        self._idle: _Idle = ({} if kept is None else kept).setdefault("web", _Idle())

    def tail(self, nbytes: int) -> Answer:
        return self._get(f"bytes=-{nbytes}", nbytes, None)

    def range(self, start: int, stop: int, identity: str | None) -> Answer:
        return self._get(f"bytes={start}-{stop - 1}", stop - start, identity)

    def exists(self) -> bool:
        raise read_only(self._name)

    def put(self, blocks: Iterator[bytes], *, overwrite: bool) -> None:
        raise read_only(self._name)

    def remove(self) -> None:
        raise read_only(self._name)

    def _get(self, span: str, nbytes: int, identity: str | None) -> Answer:
        asked = {"Range": span, "Accept-Encoding": "identity"}
        if identity is not None and identity.startswith('"'):  # a strong ETag
            asked["If-Match"] = identity
        for attempt in range(_ATTEMPTS):
            try:
                return self._follow(asked, nbytes)
            except TorchZipError:
                raise
            except (_TryAgainError, OSError, http.client.HTTPException) as error:
                if isinstance(error, OSError) and error.filename == self._name:
                    raise
                reason = _reason(error)
                self._direct = self._url  # it may have been for a while only
                self._idle.drop()  # the server may have closed them
            except ValueError:
                self._fail(errno.EIO, "The server's answer, or the URL, makes no sense")
            if attempt + 1 < _ATTEMPTS:
                _pause(attempt)
        self._fail(errno.EIO, f"The request failed: {reason}")

    def _follow(self, asked: Mapping[str, str], nbytes: int) -> Answer:
        """Send a request, and again to where the answers redirect it."""
        url = self._direct
        for _ in range(_MOST_REDIRECTS + 1):
            parts = urlsplit(url)
            headers = dict(asked)
            if parts[:2] == urlsplit(self._url)[:2]:
                headers |= self._headers
            connection = self._connection(parts)
            is_idle = False
            try:
                deadline = time.monotonic() + _REQUEST_SECONDS
                connection.request("GET", _target(parts, connection), headers=headers)
                response = connection.getresponse()
                to = response.headers.get("Location")
                if response.status in _REDIRECTS and to is not None:
                    url = self._redirected(url, to)
                    continue
                answer = self._answer(response, nbytes, deadline)
                self._direct = url
                is_idle = response.isclosed() and not response.will_close
            finally:
                if is_idle:
                    self._idle.put(parts, connection)
                else:
                    connection.close()
            return answer
        self._fail(errno.ELOOP, "Too many redirects")

    def _redirected(self, url: str, to: str) -> str:
        made = urlsplit(urljoin(url, to))
        was = urlsplit(url)
        if made.scheme not in ("http", "https") or (was.scheme, made.scheme) == ("https", "http"):
            self._fail(
                errno.EACCES, f"The server redirects to {made.scheme}, which is not followed"
            )
        return made._replace(fragment="").geturl()

    def _connection(self, parts: SplitResult) -> http.client.HTTPConnection:
        """Return a connection to a server that requests may go to."""
        idle = self._idle.take(parts)
        if idle is not None:
            return idle
        made, is_proxy = _connect(parts)
        try:
            made.connect()
            if not is_proxy:  # which knows best where it may go
                is_private = _is_private(made.sock.getpeername()[0])
                if parts[:2] == urlsplit(self._url)[:2]:
                    self._is_private = is_private
                elif is_private and not self._is_private:
                    self._fail(
                        errno.EACCES,
                        "The server redirects to an address of your own network, which is not "
                        "followed",
                    )
        except BaseException:
            made.close()
            raise
        return made

    def _answer(self, response: http.client.HTTPResponse, nbytes: int, deadline: float) -> Answer:
        headers = response.headers
        content_range = headers.get("Content-Range", "")
        if response.status in _AGAIN:
            raise _TryAgainError(f"status {response.status}")
        if response.status == 412:
            raise replaced(self._name)
        if response.status == 416 and _EMPTY_RANGE.fullmatch(content_range):
            return Answer(b"", 0, 0, _state_of(headers, 0))
        if headers.get("Content-Encoding", "identity") != "identity":
            self._fail(errno.EIO, "The server sends something compressed, which was not asked for")
        announced = headers.get("Content-Length", "")
        length = int(announced) if announced.isascii() and announced.isdigit() else None
        found = _CONTENT_RANGE.fullmatch(content_range)
        if response.status == 206 and found is not None:
            first, last, size = map(int, found.groups())
        elif response.status == 200 and length is not None:
            first, last, size = 0, length - 1, length
            if length > nbytes:
                self._fail(errno.EOPNOTSUPP, SAID[errno.EOPNOTSUPP])
        else:
            number, said = _OF_STATUS.get(
                response.status, (errno.EIO, f"The request failed: status {response.status}")
            )
            self._fail(number, said)
        expected = last + 1 - first
        is_sound = 0 <= first <= last + 1 <= size and length in (None, expected)
        if not is_sound or expected > nbytes:
            self._fail(
                errno.EIO,
                f"The server says it sends bytes {first:,} to {last:,} of {size:,}"
                f"{'' if length is None else f', {length:,} in all'}, which nobody asked for",
            )
        data = bytearray(expected)
        done = 0
        while done < expected:
            got = response.readinto(memoryview(data)[done:])
            if not got:
                raise _TryAgainError("the answer ended too soon")
            if time.monotonic() > deadline:
                raise _TryAgainError("no answer in time")
            done += got
        if length is None and response.read(1):
            self._fail(errno.EIO, f"The server sends more than the {expected:,} bytes it announced")
        response.close()
        return Answer(data, first, size, _state_of(headers, size))

    def _fail(self, number: int, said: str) -> NoReturn:
        raise OSError(number, said, self._name)


class _Idle:
    """Connections that wait for the next request. Objects of a folder share them."""

    def __init__(self) -> None:
        self._waiting: dict[tuple[str, str], list[http.client.HTTPConnection]] = {}
        self._is_closed = False

    def take(self, parts: SplitResult) -> http.client.HTTPConnection | None:
        """Return a connection to a server, if there is one."""
        try:
            return self._waiting[parts.scheme, parts.netloc].pop()
        except (KeyError, IndexError):
            return None

    def put(self, parts: SplitResult, connection: http.client.HTTPConnection) -> None:
        if self._is_closed:
            connection.close()
        else:
            self._waiting.setdefault((parts.scheme, parts.netloc), []).append(connection)

    def drop(self) -> None:
        """Close all of them."""
        for waiting in [*self._waiting.values()]:
            while waiting:
                waiting.pop().close()

    def close(self) -> None:
        self._is_closed = True
        self.drop()

    def __del__(self) -> None:
        self.close()


open_object = WebObject


def list_folder(location: Location) -> tuple[Location, None]:
    """Return a folder: a web server does not say what is in it."""
    return location, None


def list_files(location: Location) -> tuple[Location, list[str]]:
    """Raise OSError: a web server does not say what is in a folder."""
    raise OSError(
        errno.EOPNOTSUPP,
        "A web server does not say what is in a folder; give the URLs of files",
        location.name,
    )


def _state_of(headers: Message, size: int) -> str:
    """Return what changes with an object."""
    return headers.get("ETag") or f"{headers.get('Last-Modified')}, {size}"


def _is_private(address: str) -> bool:
    """Return whether an address is not one of the internet."""
    return not ipaddress.ip_address(address.partition("%")[0]).is_global


def _connect(parts: SplitResult) -> tuple[http.client.HTTPConnection, bool]:
    """Return a connection that is to be opened, and whether it is to a proxy."""
    proxy = urllib.request.getproxies().get(parts.scheme)
    host = parts.hostname or ""
    via = None
    if proxy and not urllib.request.proxy_bypass(host):
        via = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
    place: dict[str, Any] = {"timeout": _SOCKET_SECONDS}
    if parts.scheme == "http":
        to = via or parts
        return http.client.HTTPConnection(to.hostname or "", to.port, **place), via is not None
    place["context"] = ssl.create_default_context()
    if via is None:
        return http.client.HTTPSConnection(host, parts.port, **place), False
    made = http.client.HTTPSConnection(via.hostname or "", via.port, **place)
    made.set_tunnel(host, parts.port)
    return made, True


def _target(parts: SplitResult, connection: http.client.HTTPConnection) -> str:
    """Return what a request names: the path, or for a proxy all of the URL."""
    path = parts._replace(scheme="", netloc="").geturl() or "/"
    is_direct = connection.host == parts.hostname or parts.scheme == "https"
    return path if is_direct else parts.geturl()


def _pause(attempt: int) -> None:
    """Wait longer after each attempt, and not as long as others that failed with this one."""
    time.sleep(0.1 * 4**attempt * random.uniform(0.5, 1))


def _reason(error: Exception) -> str:
    if isinstance(error, _TryAgainError):
        return str(error)
    if isinstance(error, TimeoutError):
        return "no answer in time"
    if isinstance(error, ssl.SSLError):
        return f"no secure connection ({error.reason or 'SSL'})"
    if isinstance(error, OSError):
        return "the server cannot be reached"
    return "the answer is not one of HTTP, or ended too soon"
