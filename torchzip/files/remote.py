"""Objects behind URLs: what a backend does, and what becomes of its errors.

Credentials, retries and their bounds are those of the backends. Their errors become OSErrors here,
without what may be a secret.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
from collections.abc import Iterator
from typing import NamedTuple, Protocol

from torchzip.errors import FormatError, TorchZipError
from torchzip.files.location import EXISTS, Location
from torchzip.files.source import Buffer

#: What obstore says of an answer, beside the URL with its signature and headers.
_STATUS = re.compile(r"status code:? (\d{3})|status: (\d{3})|\b(\d{3}) (?:Client|Server) Error")
#: What a server answers -> what it is.
NUMBER_OF_STATUS = {401: errno.EACCES, 403: errno.EACCES, 404: errno.ENOENT}
#: The names of what backends raise -> what it is.
_ERRORS = {
    "PermissionDeniedError": errno.EACCES,
    "UnauthenticatedError": errno.EACCES,
    "PermissionError": errno.EACCES,
    "GatedRepoError": errno.EACCES,
    "NoCredentialsError": errno.EACCES,
    "RepositoryNotFoundError": errno.ENOENT,
    "RevisionNotFoundError": errno.ENOENT,
    "NotFoundError": errno.ENOENT,
    "AlreadyExistsError": errno.EEXIST,
    "NotSupportedError": errno.EOPNOTSUPP,
}
SAID = {
    errno.EACCES: "The server refuses access; check the credentials",
    errno.ENOENT: "No such object, or not for you. The URL of a folder ends with a slash",
    errno.EEXIST: EXISTS,
    errno.EOPNOTSUPP: (
        "The server gives no parts of this object; fetch it whole, and open the copy"
    ),
}


#: What obstore says where there is no status -> what it means.
_PHRASES = {
    "error sending request": "the server cannot be reached",
    "error decoding response body": "the answer ended too soon",
    "operation timed out": "no answer in time",
}


class Answer(NamedTuple):
    """Bytes of an object, where they begin, the size of the whole, and what state it is in."""

    data: Buffer
    start: int
    size: int
    identity: str


class RemoteObject(Protocol):
    """One object, as a backend has it. Its methods may be called by several threads at once."""

    def tail(self, nbytes: int) -> Answer:
        """Return the last ``nbytes`` bytes, or all if there are fewer."""
        ...

    def range(self, start: int, stop: int, identity: str | None) -> Answer:
        """Return the bytes from ``start`` to before ``stop``, or what there is of them.

        With an ``identity`` the request is for that state of the object, if the backend can say so.
        """
        ...

    def exists(self) -> bool: ...

    def put(self, blocks: Iterator[bytes], *, overwrite: bool) -> None:
        """Make the object of blocks; if they raise, what is there stays as it is.

        ``overwrite=False`` is for backends that can refuse it by themselves; the caller has looked.
        """
        ...

    def remove(self) -> None: ...


def replaced(name: str) -> FormatError:
    """Return the error for an object that is not the one that was opened."""
    return FormatError(
        "the object was replaced or changed since it was opened; open it again", path=name
    )


def missing(package: str, location: Location) -> OSError:
    """Return the error for a URL whose backend is not installed."""
    return OSError(
        errno.ENOSYS,
        f"{package} is needed for this URL and is not installed; pip install 'torchzip[remote]'",
        location.name,
    )


def read_only(name: str) -> OSError:
    """Return the error for writing to what is only read."""
    return OSError(errno.EROFS, "Files at this URL can only be read; write to a store", name)


@contextlib.contextmanager
def errors_of(name: str) -> Iterator[None]:
    """Turn the errors of a backend into OSErrors of a name, without what may be a secret in them.

    An error that torchzip has made stays as it is.
    """
    try:
        yield
    except TorchZipError:
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.filename == name:
            raise
        kind = type(error).__name__
        if kind == "PreconditionError":
            raise replaced(name) from None
        found = _STATUS.search(str(error))
        status = next(filter(None, found.groups())) if found is not None else None
        number = _number_of(error, status)
        said = SAID.get(number)
        if said is None:
            reason = f"status {status}" if status else kind
            if isinstance(error, OSError) and error.errno:
                reason = os.strerror(error.errno)
            for phrase, meaning in _PHRASES.items():
                if phrase in str(error) and not status:
                    reason = meaning
            said = f"The request failed: {reason}"
        raise OSError(number, said, name) from None


def _number_of(error: Exception, status: str | None) -> int:
    for kind in type(error).__mro__:
        if kind.__name__ in _ERRORS:
            return _ERRORS[kind.__name__]
    if status is not None and int(status) in NUMBER_OF_STATUS:
        return NUMBER_OF_STATUS[int(status)]
    number = error.errno if isinstance(error, OSError) else None
    if number is None and isinstance(error, FileNotFoundError):
        number = errno.ENOENT
    if number is None and isinstance(error, FileExistsError):
        number = errno.EEXIST
    return number or errno.EIO
