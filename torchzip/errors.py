"""The exceptions of torchzip: one tree, each error with its place in the file.

A reader raises a `TorchZipError` or an `OSError` and nothing else, whatever the
bytes. A caller's mistake is a plain `TypeError` or `ValueError`. Running out of memory is an
`OSError` (`EnoughMemory`).

The layer that finds a fault rarely knows which file it is reading, so an error collects
its place on the way up: each layer fills in what it knows with an `ErrorPlace`, and does
not overwrite what is already set.

The content of a file may be hostile: a message never contains a control character, a line break,
a terminal's escape or an invisible character, and is never longer than a screen. `shown` quotes
and cuts a single value; the constructor checks the whole message.
"""

from __future__ import annotations

import copyreg
import errno
import os
from bisect import bisect_right
from collections.abc import Sequence
from contextlib import ContextDecorator
from itertools import accumulate
from typing import Any, Self

#: Most characters of a message, and of the record's name before it.
_MAX_MESSAGE = 1500
_MAX_RECORD = 100
#: Most characters of one name outside the table, and of all that are listed.
_MAX_NAME = 200
_MAX_NAMES = 1000
#: Ints beyond 10**20 are shown by their size in bits: Python may refuse to print them.
_MAX_INT = 10**20

#: Advice for a file that ends too early.
TRUNCATED = "It looks truncated; compare its size with the place it came from."
#: Advice for a damaged file of which something can be recovered.
REPAIR_ADVICE = "`torchzip repair` saves what is whole."
CUT_SHORT = f"{TRUNCATED} {REPAIR_ADVICE}"

#: Most dimensions of torch's tensors and numpy's arrays.
MAX_NDIM = 64

#: Readers make tensors of different classes; messages call them all the same.
_KINDS = {
    "LazyTensor": "a tensor",
    "TensorSpec": "a tensor",
    "ndarray": "a tensor",
    "BareStorage": "a storage",
}
#: Leaf types whose ``str`` is torch's name for them.
_WORDS = frozenset(["Dtype", "Device", "Layout", "QScheme"])


#: Invisible characters that Python calls printable: a name could end in one, or consist of them.
#: Those of Unicode's Default_Ignorable_Code_Point that are letters and marks (the others are of
#: category Cf or Cn, which are not printable), and the blanks, fillers and joiners that are not
#: spaces: of Hangul, braille, Khitan, hieroglyphs, musical notation, Tifinagh, Brahmi and
#: shorthand, and the object replacement character.
_INVISIBLE = frozenset(
    [
        chr(code)
        for first, last in (
            (0x034F, 0x034F), (0x115F, 0x1160), (0x17B4, 0x17B5), (0x180B, 0x180F),
            (0x3164, 0x3164), (0xFE00, 0xFE0F), (0xFFA0, 0xFFA0), (0xE0100, 0xE01EF),
            (0x2800, 0x2800), (0x16FE4, 0x16FE4), (0x13441, 0x13442), (0x1D159, 0x1D159),
            (0x2D7F, 0x2D7F), (0x1107F, 0x1107F), (0x1BC9D, 0x1BC9E), (0xFFFC, 0xFFFC),
        )
        for code in range(first, last + 1)
    ]
)  # fmt: skip


def is_printable(text: str) -> bool:
    """Return whether each character is visible and none moves the cursor.

    >>> is_printable("weight é 重"), is_printable("\\u3164")
    (True, False)
    """
    return text.isprintable() and (text.isascii() or _INVISIBLE.isdisjoint(text))


def printable(text: str) -> str:
    """Return text with escapes for characters that move the cursor, or turn or hide text.

    >>> printable("a\\tb"), printable("\\x1b[31m"), printable("\\u3164")
    ('a\\\\tb', '\\\\x1b[31m', '\\\\u3164')
    """
    if is_printable(text):
        return text
    return "".join(c if is_printable(c) else ascii(c)[1:-1] for c in text)


def shown(value: object, most: int = 100, *, inside: bool = False) -> str:
    """Return a value from a file as messages show it: quoted and cut, or its type in words.

    A list or tuple is shown with its first items; one ``inside`` another is shown by its type.

    >>> shown("a\\nb"), shown("x" * 1000, 4), shown(-1), shown(1 << 99), shown({1: 2})
    ("'a\\\\nb'", "'xxxx'...", '-1', 'an int of 100 bits', 'a dict')
    >>> shown([1, [2], "a", "b", "c"])
    "[1, a list, 'a', 'b', ...]"
    """
    if isinstance(value, str | bytes):
        return printable(repr(value[:most])) + ("..." if len(value) > most else "")
    if value is None or isinstance(value, bool | float):
        return repr(value)
    if type(value) is int:
        if -_MAX_INT < value < _MAX_INT:
            return f"{value:,}"
        return f"an int of {value.bit_length():,} bits"
    if isinstance(value, list | tuple | dict) and not value:
        return f"an empty {type(value).__name__}"
    if type(value) in (list, tuple) and not inside:
        assert isinstance(value, list | tuple)
        items = [shown(item, 40, inside=True) for item in value[:4]] + ["..."] * (len(value) > 4)
        opening, closing = "[]" if type(value) is list else "()"
        return f"{opening}{', '.join(items)}{closing}"
    name = type(value).__name__
    if name == "ForeignObject":  # its repr is always one line
        return shortened(printable(repr(value)), 2 * most)
    if name in _WORDS:
        return shortened(printable(str(value)), most)
    return _KINDS.get(name) or f"{'an' if name[0] in 'aeiouAEIOU' else 'a'} {name}"


def listed(names: Sequence[object], most: int = 5) -> str:
    """Return the first names, quoted, and how many more there are."""
    first = ", ".join([shown(name) for name in names[:most]])
    return first + (f" and {len(names) - most:,} more" if len(names) > most else "")


def as_argument(path: str) -> str:
    """Return a path as a command that messages advise takes it: no dash at its start.

    >>> as_argument("-m.pt"), as_argument("m.pt")
    ('./-m.pt', 'm.pt')
    """
    return os.path.join(os.curdir, path) if path.startswith("-") else path


def shortened(text: str, most: int) -> str:
    """Return text with its middle cut out, since the advice is at the end."""
    if len(text) <= most:
        return text
    return f"{text[: most * 2 // 3]} [...] {text[-(most // 3) :]}"


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
        # Cut twice: first so that only the part that is shown is escaped, then since escapes are
        # longer.
        message = shortened(printable(shortened(message, _MAX_MESSAGE)), _MAX_MESSAGE)
        super().__init__(message)
        self.message = message
        self.path = path
        self.record = record
        self.offset = offset

    def at(
        self, *, path: str | None = None, record: str | None = None, offset: int | None = None
    ) -> Self:
        """Fill in the parts of the place that are not set yet; return the error itself."""
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
                None if self.path is None else printable(self.path),
                None if self.record is None else f"record {_cut(self.record)}",
                None if self.offset is None else f"byte {self.offset:,}",
            )
            if part
        )
        return f"{place}: {self.message}" if place else self.message

    def __reduce__(self) -> tuple[Any, ...]:
        # The default does not keep keyword-only arguments; workers send their errors pickled.
        return (copyreg.__newobj__, (type(self), self.message), vars(self).copy())  # type: ignore[attr-defined]


class ErrorPlace:
    """A block that adds a known place to the errors raised in it; see `TorchZipError.at`.

    >>> with ErrorPlace(path="model.pt", record="data.pkl"):
    ...     raise PickleError("broken")
    Traceback (most recent call last):
    torchzip.errors.PickleError: model.pt, record data.pkl: broken
    """

    def __init__(self, **place: Any) -> None:
        self._place = place

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, TorchZipError):
            error.at(**self._place)


def no_memory(error: MemoryError) -> OSError:
    """Return the error of running out of memory, as readers raise it: it is the machine's fault."""
    why = str(error)  # numpy's message says how much was asked for
    return OSError(errno.ENOMEM, f"Not enough memory: {why}" if why else "Not enough memory")


class EnoughMemory(ContextDecorator):
    """A block, or a function, in which running out of memory is an OSError, as a full disk is.

    Used in all functions that read for a user: how much memory they need depends on the file.

    >>> with EnoughMemory():
    ...     raise MemoryError
    Traceback (most recent call last):
    OSError: [Errno 12] Not enough memory
    """

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, MemoryError):
            raise no_memory(error) from None


def _cut(record: str) -> str:
    text = printable(record[: _MAX_RECORD + 1])
    return text[:_MAX_RECORD] + ("..." if len(text) > _MAX_RECORD else "")


class FormatError(TorchZipError, ValueError):
    """The bytes break the format."""


class ArchiveError(FormatError):
    """The container is broken: no directory, headers that disagree, a wrong CRC."""


class PickleError(FormatError):
    """The opcode stream is broken: cut short, an empty stack, an impossible argument."""


class TensorError(FormatError):
    """A tensor is broken: a range outside its storage, a size that is not a number."""


def too_many_dimensions(what: str, ndim: int, **place: Any) -> TensorError:
    """Return the error of a tensor of more than `MAX_NDIM` dimensions."""
    return TensorError(
        f"{what} has {ndim:,} dimensions; torch and numpy stop at {MAX_NDIM}", **place
    )


def wrong_arguments(name: str, wanted: str, args: tuple[Any, ...]) -> PickleError:
    """Return the error of a call with wrong arguments.

    >>> print(wrong_arguments("complex", "two numbers", (1, "x")))
    complex takes two numbers, not (1, 'x')
    """
    found = shown(args[0] if len(args) == 1 else args) if args else "nothing"
    return PickleError(f"{name} takes {wanted}, not {found}")


class UnsafeGlobalError(TorchZipError):
    """The file names something outside the table; ``names`` lists all (module, name) pairs."""

    def __init__(
        self,
        names: list[tuple[str, str]],
        *,
        what: str = "names outside torchzip's table",
        advice: str = "foreign='keep' reads them as inert ForeignObjects.",
        **place: Any,
    ) -> None:
        parts = [shortened(f"{module}.{name}", _MAX_NAME) for module, name in names]
        fit = bisect_right(list(accumulate(map(len, parts))), _MAX_NAMES, lo=1)
        if fit < len(parts):
            parts[fit:] = [f"and {len(parts) - fit:,} more (all are in the error's .names)"]
        super().__init__(f"{what}: {', '.join(parts)}. {advice}", **place)
        self.names = names
        self.module: str = names[0][0]
        self.name: str = names[0][1]


class UnsupportedError(TorchZipError, NotImplementedError):
    """Valid, but torchzip does not read or write it (yet)."""


class LimitError(TorchZipError):
    """A bound of `Limits` was reached: ``limit`` names it, the file asked for ``actual``."""

    def __init__(self, limit: str, actual: int, bound: int, **place: Any) -> None:
        super().__init__(
            f"{limit} would be {actual:,}, past the limit of {bound:,}. If you trust the file, "
            f"pass limits=tz.Limits({limit}=...).",
            **place,
        )
        self.limit = limit
        self.actual = actual
        self.bound = bound


class TensorNotFoundError(TorchZipError, KeyError):
    """No tensor has that name."""

    __str__ = TorchZipError.__str__
