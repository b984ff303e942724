"""The exceptions of torchzip: one tree, each error with its place in the file.

A reader raises a `TorchZipError` or an `OSError` and nothing else, whatever the
bytes. A caller's own mistake is a plain `TypeError` or `ValueError`.

The layer that notices a fault rarely knows which file it is reading, so an error
collects its place on the way up: each layer fills in what it knows with
`TorchZipError.at`, and what is already known stays.
"""

from __future__ import annotations

from typing import Any, Self


class TorchZipError(Exception):
    """Something is wrong with a checkpoint.

    ``path`` names the file, ``record`` the record inside it, ``offset`` the byte
    in that record (or in the file, when there is no record); each is None when
    not known.
    """

    def __init__(
        self,
        message: str,
        *,
        path: str | None = None,
        record: str | None = None,
        offset: int | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.path = path
        self.record = record
        self.offset = offset

    def at(
        self, *, path: str | None = None, record: str | None = None, offset: int | None = None
    ) -> Self:
        """Fill in what is known of the place and not said yet; return the error itself."""
        if self.path is None:
            self.path = path
        if self.record is None and self.offset is None:
            self.offset = offset
        if self.record is None:
            self.record = record
        return self

    def __str__(self) -> str:
        place = ", ".join(
            part
            for part in (
                self.path,
                None if self.record is None else f"record {self.record[:100]}",
                None if self.offset is None else f"byte {self.offset}",
            )
            if part
        )
        return f"{place}: {self.message}" if place else self.message

    def __reduce__(self) -> tuple[Any, ...]:
        # Keyword-only arguments do not survive the default; worker processes send errors home.
        return (_restore, (type(self), self.message, self.__dict__.copy()))


def _restore(cls: type[TorchZipError], message: str, attributes: dict[str, Any]) -> TorchZipError:
    error = cls.__new__(cls, message)
    error.args = (message,)
    error.__dict__.update(attributes)
    return error


class FormatError(TorchZipError, ValueError):
    """The bytes break the format."""


class ArchiveError(FormatError):
    """The container is broken: no directory, headers that disagree, a wrong CRC."""


class PickleError(FormatError):
    """The opcode stream is broken: cut short, an empty stack, an impossible argument."""


class TensorError(FormatError):
    """A tensor is broken: a range outside its storage, a size that is no number."""


class UnsafeGlobalError(TorchZipError):
    """The file names something outside the table; ``names`` lists all (module, name) pairs."""

    def __init__(self, names: list[tuple[str, str]], **place: Any) -> None:
        listed = ", ".join(f"{module}.{name}"[:100] for module, name in names[:15])
        if len(names) > 15:
            listed += f" and {len(names) - 15:,} more"
        super().__init__(
            f"names outside torchzip's table: {listed}. "
            "foreign='keep' reads them as inert ForeignObjects.",
            **place,
        )
        self.names = names
        self.module, self.name = names[0]


class UnsupportedError(TorchZipError, NotImplementedError):
    """Legal, but torchzip does not read or write it (yet)."""


class LimitError(TorchZipError):
    """A bound of `Limits` was reached: ``limit`` names it, the file asked for ``actual``."""

    def __init__(self, limit: str, actual: int, bound: int, **place: Any) -> None:
        super().__init__(
            f"{limit} would be {actual:,}, past the limit of {bound:,}. If you trust the file, "
            f"pass limits=Limits({limit}=...).",
            **place,
        )
        self.limit = limit
        self.actual = actual
        self.bound = bound


class TensorNotFoundError(TorchZipError, KeyError):
    """No tensor of that name."""

    __str__ = TorchZipError.__str__
