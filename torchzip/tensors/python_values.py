"""Plain values of Python that a pickle makes by a call: bytes, ranges, times, numbers, paths.

Each function here checks its arguments and makes a value of the standard library that holds
data and nothing else. What it cannot make, because the file is of another kind (a time zone of
another library, a factory that is a function of somebody's own), it leaves as a ForeignObject.

Source: docs/format.md, section 7, and what CPython 3.8 to 3.13 writes for the types of
``datetime``, ``decimal``, ``fractions``, ``pathlib`` and ``collections``.
"""

from __future__ import annotations

from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable
from datetime import date, datetime, time, timedelta, timezone
from itertools import product
from typing import TYPE_CHECKING, Any

from torchzip.errors import PickleError, shown, wrong_arguments
from torchzip.leaf_types import ForeignObject
from torchzip.limits import is_number
from torchzip.pickling.python2 import bytes_of
from torchzip.pickling.table import KEEP, Name

if TYPE_CHECKING:  # each is imported when a file has one: `import torchzip` should cost little
    from decimal import Decimal
    from fractions import Fraction

Args = tuple[Any, ...]

#: Digits of a number that is written as text: reading them costs quadratic time.
_MAX_DIGITS = 4000
#: Parts of a path; no system has longer ones.
_MAX_PARTS = 4096


def _encode(args: Args) -> bytes:
    """``bytes`` as protocol 2 has them: latin-1 text, encoded."""
    if not (
        len(args) == 2
        and all(type(part) is str for part in args)
        and args[1] in ("latin1", "latin-1")
    ):
        raise wrong_arguments("_codecs.encode", "a string and 'latin1'", args)
    try:
        encoded: bytes = args[0].encode("latin1")
    except UnicodeEncodeError:
        raise PickleError(f"_codecs.encode of {shown(args[0])}, which is not latin1") from None
    return encoded


def _plain(
    kind: type, wanted: str, *types: tuple[type, ...], fault: str = ""
) -> Callable[[Args], Any]:
    """Return a call of ``kind`` with arguments of these types, one way or another.

    ``fault`` is what is wrong where it raises for these.
    """
    name = f"{kind.__module__}.{kind.__name__}"

    def make(args: Args) -> Any:
        if tuple(map(type, args)) not in types:
            raise wrong_arguments(name, wanted, args)
        try:
            return kind(*args)
        except (OverflowError, ValueError):
            raise PickleError(f"{name} {fault}") from None

    return make


def _bytearray(args: Args) -> bytearray:
    if not args:
        return bytearray()
    if len(args) == 1 and type(args[0]) is bytes:
        return bytearray(args[0])
    if len(args) == 2 and type(args[0]) is str:  # protocol 2 of Python 2
        return bytearray(_encode(args))
    raise wrong_arguments("builtins.bytearray", "bytes", args)


def _slice(args: Args) -> slice:
    if len(args) != 3:
        raise wrong_arguments("builtins.slice", "three values", args)
    return slice(*args)


def _moment(kind: type[date] | type[time], nbytes: int) -> Callable[[Args], Any]:
    name = f"datetime.{kind.__name__}"
    has_zone = kind is not date
    wanted = f"{nbytes} bytes{' and a time zone' if has_zone else ''}"

    def make(args: Args) -> Any:
        raw = bytes_of(args[0]) if 1 <= len(args) <= 1 + has_zone else None
        if raw is None or len(raw) != nbytes:
            raise wrong_arguments(name, wanted, args)
        if len(args) == 2 and not isinstance(args[1], timezone | None):
            return KEEP  # a time zone of another library
        try:
            # From bytes it may be the 255th of a month; to replace nothing checks all parts.
            return kind(raw, *args[1:]).replace()  # type: ignore[arg-type]
        except (ValueError, TypeError):
            raise PickleError(f"{name} of {shown(raw)}, which is not a {kind.__name__}") from None

    return make


def _decimal(args: Args) -> Decimal:
    from decimal import Decimal, InvalidOperation

    if len(args) != 1 or type(args[0]) is not str or len(args[0]) > _MAX_DIGITS:
        raise wrong_arguments(
            "decimal.Decimal", f"a string of up to {_MAX_DIGITS:,} characters", args
        )
    try:
        return Decimal(args[0])
    except InvalidOperation:
        raise PickleError(f"decimal.Decimal of {shown(args[0])}, which is not a number") from None


def _fraction(args: Args) -> Fraction:
    from fractions import Fraction

    if len(args) == 1 and type(args[0]) is str and len(args[0]) <= _MAX_DIGITS:  # before 3.12
        try:
            # As it writes itself; other spellings (1e1000000) could cost any amount of memory.
            args = tuple(int(part) for part in args[0].split("/"))
        except ValueError:
            raise PickleError(
                f"fractions.Fraction of {shown(args[0])}, which is not a fraction"
            ) from None
        args = args if len(args) == 2 else (*args, 1)
    if len(args) != 2 or not all(type(part) is int for part in args) or not args[1]:
        raise wrong_arguments("fractions.Fraction", "a numerator and a denominator", args)
    return Fraction(*args)


def _path(kind: str) -> Callable[[Args], Any]:
    def make(args: Args) -> Any:
        import pathlib

        if len(args) > _MAX_PARTS or not all(type(part) is str for part in args):
            raise wrong_arguments(f"pathlib.{kind}", f"up to {_MAX_PARTS:,} strings", args)
        try:
            return getattr(pathlib, kind)(*args)  # splits text, and looks at no file
        except NotImplementedError:
            return KEEP  # a path of another system

    return make


def _deque(args: Args) -> Any:
    values = args[0] if args else ()
    most = args[1] if len(args) == 2 else None
    if len(args) > 2 or type(values) not in (list, tuple) or not (most is None or is_number(most)):
        raise wrong_arguments("collections.deque", "a list and a length", args)
    return deque(values, most)


#: What a defaultdict may make its values with and still be one here.
FACTORIES: dict[Name, Callable[[], Any]] = {
    **{
        ("builtins", kind.__name__): kind
        for kind in (list, dict, set, tuple, int, float, complex, bool, str, bytes, frozenset)
    },
    **{("collections", kind.__name__): kind for kind in (OrderedDict, Counter, deque)},
}


def _defaultdict(args: Args) -> Any:
    factory = args[0] if len(args) == 1 else None
    if isinstance(factory, ForeignObject) and factory.how == "name":
        known = FACTORIES.get((factory.module, factory.name))
        return KEEP if known is None else defaultdict(known)
    return defaultdict() if not args or (factory is None and len(args) == 1) else KEEP


PATHS = "PurePosixPath PureWindowsPath PosixPath WindowsPath".split()

#: By name, what takes the arguments of a call.
PYTHON_CALLS: dict[Name, Callable[[Args], Any]] = {
    ("_codecs", "encode"): _encode,
    ("builtins", "bytes"): _plain(bytes, "no arguments", ()),
    ("builtins", "bytearray"): _bytearray,
    ("builtins", "complex"): _plain(
        complex,
        "two numbers",
        *product((float, int), repeat=2),
        fault="of an int past the largest float",
    ),
    ("builtins", "range"): _plain(
        range, "one to three ints", (int,), (int,) * 2, (int,) * 3, fault="with a step of 0"
    ),
    ("builtins", "slice"): _slice,
    ("collections", "deque"): _deque,
    ("collections", "defaultdict"): _defaultdict,
    ("datetime", "datetime"): _moment(datetime, 10),
    ("datetime", "time"): _moment(time, 6),
    ("datetime", "date"): _moment(date, 4),
    ("datetime", "timedelta"): _plain(
        timedelta, "days, seconds and microseconds", (int,) * 3, fault="past its range"
    ),
    ("datetime", "timezone"): _plain(
        timezone,
        "an offset and a name",
        (timedelta,),
        (timedelta, str),
        fault="of an offset of a day or more",
    ),
    ("decimal", "Decimal"): _decimal,
    ("fractions", "Fraction"): _fraction,
    # 3.13 calls the module by another name.
    **{(module, kind): _path(kind) for module in ("pathlib", "pathlib._local") for kind in PATHS},
}

#: Known as what a defaultdict makes its values with.
PYTHON_NAMES = frozenset(FACTORIES)
