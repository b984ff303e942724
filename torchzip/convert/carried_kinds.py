"""The kinds of values that `carried` describes: one table, read by the writer and by the reader.

A kind makes values with the functions that the reader of pickles has for it, so that JSON can make
nothing that a pickle could not. Containers and tensors have rows of their own: what is in them and
on them is written and read by `carried` and `restored`, since it may be anything.
"""

from __future__ import annotations

import base64
import binascii
import math
import re
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Collection, Iterable, Mapping
from datetime import date, datetime, time, timedelta, timezone
from operator import attrgetter
from typing import Any, NamedTuple

import numpy as np

from torchzip.dtypes import DTYPES, NAME_ONLY, QSCHEMES
from torchzip.errors import FormatError, LimitError, shown
from torchzip.limits import Limits, is_number
from torchzip.pickling.table import KEEP
from torchzip.tensors.numpy_dtypes import named_dtype
from torchzip.tensors.numpy_values import NUMPY_CALLS, PickledArray, module_of
from torchzip.tensors.python_values import FACTORIES, PATHS, PYTHON_CALLS
from torchzip.types import Device, Dtype, Layout, QScheme, Size

#: What JSON holds. Any: its types are checked where it is read.
Node = Any

#: Bytes of one value: larger ones do not belong into a header.
_MAX_NBYTES = 4 << 20
_MAX_DIGITS = 4000
_INT64 = range(-(1 << 63), 1 << 63)
_HEX = re.compile("-?0x[0-9a-f]+")
_SURROGATE = re.compile("[\ud800-\udfff]")
_DTYPE = re.compile(r"[<>]([iu][248]|f[248]|c(8|16))|\|(b1|[iu]1)")
_WORD = re.compile("[A-Za-z0-9_]{1,64}")


class NotCarriedError(Exception):
    """A value that JSON cannot hold exactly; the message says why."""


def broken(message: str) -> FormatError:
    """Return the error for a string that does not encode an object."""
    return FormatError(f"the object in the metadata: {message}")


def is_plain_text(text: str) -> bool:
    """Return whether UTF-8 can encode a string."""
    return text.isascii() or not _SURROGATE.search(text)


def are_json(values: Collection[Any]) -> bool:
    """Return whether all are numbers and strings that JSON has as they are.

    >>> are_json([1, 2.5, "a", None]), are_json([1, float("nan")]), are_json([1, b"a"])
    (True, False, False)
    """
    return _AS_IT_IS.keys() >= set(map(type, values)) and all(
        _AS_IT_IS[type(value)](value) for value in values
    )


#: When a value of a type is the same as JSON.
_AS_IT_IS: dict[type, Callable[[Any], bool]] = {
    type(None): lambda value: True,
    bool: lambda value: True,
    int: lambda value: value in _INT64,
    float: math.isfinite,
    str: is_plain_text,
}


class Kind(NamedTuple):
    """Values without others inside.

    ``type`` is their type, or the names of its module and its own: some modules are imported when
    a file has something of theirs. ``write`` returns what stands under the tag, a value or a list
    of values that are written in their turn; each of ``options`` likewise, None for one that is
    left out. ``read`` makes the value again from what stands under the tag in the JSON, and from
    the options by their names.
    """

    tag: str
    type: Any
    write: Callable[[Any], Any]
    read: Callable[..., Any]
    options: Mapping[str, Callable[[Any], Any]] = {}


def write_value(value: Any, limits: Limits) -> Node:
    """Return the JSON of a value, or of a list of such values.

    Raises
    ------
    NotCarriedError
        If it is of another kind, or one of these that has no exact form.
    """
    own: Any = type(value)
    if own is list:
        return [write_value(each, limits) for each in value]
    if own in _AS_IT_IS and _AS_IT_IS[own](value):
        return value
    if own is int and value.bit_length() > 8 * limits.int_nbytes:
        raise NotCarriedError(f"an int of more than {limits.int_nbytes:,} bytes")
    for base in (np.generic, np.dtype):  # which have a type for each dtype
        own = base if isinstance(value, base) else own
    kind = _BY_TYPE.get(own) or _BY_TYPE.get((own.__module__.partition(".")[0], own.__qualname__))
    if kind is None:
        raise NotCarriedError(f"{shown(value)} cannot be held by JSON")
    node = {kind.tag: write_value(kind.write(value), limits)}
    for option, get in kind.options.items():
        held = get(value)
        if held is not None:
            node[option] = write_value(held, limits)
    return node


def read_value(tag: str, node: dict[str, Any], limits: Limits) -> Any:
    """Return the value of an object of JSON whose kind is one of `KINDS`."""
    kind = KINDS[tag]
    options = options_of(node, tag, kind.options)
    made = kind.read(node[tag], limits, **options)
    if made is KEEP:
        raise broken(f"no {tag} can be made of what is given")
    return made


def options_of(node: dict[str, Any], tag: str, options: Collection[str]) -> dict[str, Any]:
    """Return what an object of JSON has beside its kind.

    Raises
    ------
    FormatError
        If that is not one of the options of the kind.
    """
    rest = {key: held for key, held in node.items() if key != tag}
    for key in rest:
        if key not in options:
            raise broken(f"{tag!r} has no option {key[:40]!r}")
    return rest


def _part(node: Node, limits: Limits, tags: Iterable[str] = ("int", "float", "str")) -> Any:
    """Return a value inside of another: one of JSON's own, or of a few kinds, so nothing nests."""
    if type(node) not in (dict, list):
        return node
    if type(node) is dict:
        for tag in tags:
            if tag in node:
                return read_value(tag, node, limits)
    raise broken("a value inside of another is of the wrong kind")


def _parts(body: Any, limits: Limits) -> list[Any]:
    return [_part(part, limits) for part in body]


# -- numbers, strings, bytes -----------------------------------------------------------------------


def _read_int(body: Any, limits: Limits) -> int:
    if type(body) is not str or not _HEX.fullmatch(body):
        raise broken("an int is written as hexadecimal text")
    if len(body) > 2 * limits.int_nbytes + 3:
        raise LimitError("int_nbytes", len(body) // 2, limits.int_nbytes)
    return int(body, 16)


def _read_float(body: Any, limits: Limits) -> float:
    if body not in ("nan", "inf", "-inf"):
        raise broken("a float as text is nan, inf or -inf")
    return float(body)


def _base64(raw: bytes | bytearray) -> str:
    if len(raw) > _MAX_NBYTES:
        raise NotCarriedError(f"a value of {len(raw):,} bytes is too large for a header")
    return base64.b64encode(raw).decode()


def _raw(body: Any, limits: Limits) -> bytes:
    if type(body) is str:
        try:
            return base64.b64decode(body, validate=True)
        except (binascii.Error, ValueError):
            pass
    raise broken("bytes are written in base64")


def _read_str(body: Any, limits: Limits) -> str:
    try:
        return _raw(body, limits).decode("utf-8", "surrogatepass")
    except UnicodeDecodeError:
        raise broken("a str that is not UTF-8") from None


# -- values that Python makes by a call ------------------------------------------------------------


def _called(name: tuple[str, str], write: Callable[[Any], list[Any]]) -> Kind:
    """Return the kind of what a function of the pickle reader makes of up to three parts."""

    def read(body: Any, limits: Limits) -> Any:
        if type(body) is not list or len(body) > 3:
            raise broken(f"{name[1]} takes a list")
        return PYTHON_CALLS[name](tuple(_parts(body, limits)))

    return Kind(name[1], name, write, read)


def _are_slice(parts: list[Any]) -> bool:
    return all(type(part) in (int, type(None)) for part in parts)


def _write_slice(value: slice) -> list[Any]:
    parts = [value.start, value.stop, value.step]
    if not _are_slice(parts):
        raise NotCarriedError("a slice of other things than ints")
    return parts


def _read_slice(body: Any, limits: Limits) -> slice:
    if type(body) is not list or len(body) != 3:
        raise broken("a slice has three parts")
    parts = _parts(body, limits)
    if not _are_slice(parts):
        raise broken("a slice of other things than ints")
    return slice(*parts)


def _moment(kind: Any) -> Kind:
    tag = kind.__name__

    def read(body: Any, limits: Limits, tzinfo: Any = None, fold: Any = 0) -> Any:
        zone = _part(tzinfo, limits, ("timezone",))
        made = _iso(kind, body)
        if not isinstance(zone, timezone | None) or type(fold) is not int or fold not in (0, 1):
            raise broken(f"a {tag} with a time zone or a fold that is not valid")
        return made.replace(tzinfo=zone, fold=fold)

    def write(value: Any) -> Any:
        return value.replace(tzinfo=None, fold=0).isoformat()

    def fold(value: Any) -> int | None:
        return value.fold or None

    return Kind(tag, kind, write, read, {"tzinfo": attrgetter("tzinfo"), "fold": fold})


def _iso(kind: Any, body: Any) -> Any:
    """Return a time whose text is exactly the one that it writes itself."""
    try:
        made = kind.fromisoformat(body)
        if made.isoformat() == body and getattr(made, "tzinfo", None) is None:
            return made
    except (TypeError, ValueError):
        pass
    raise broken(f"a {kind.__name__} that is not valid")


def _days(value: timedelta) -> list[int]:
    return [value.days, value.seconds, value.microseconds]


_TIMEDELTA = _called(("datetime", "timedelta"), _days)


def _name_of_zone(value: timezone) -> str | None:
    name = value.tzname(None)
    return name if name != timezone(value.utcoffset(None)).tzname(None) else None


def _read_timezone(body: Any, limits: Limits, **name: Any) -> Any:
    args = (_TIMEDELTA.read(body, limits), *(_part(each, limits) for each in name.values()))
    return PYTHON_CALLS["datetime", "timezone"](args)


def _digits(value: Any) -> str:
    text = str(value)
    if len(text) > _MAX_DIGITS:
        raise NotCarriedError(f"a Decimal of {len(text):,} characters")
    return text


def _path(kind: str) -> Kind:
    def read(body: Any, limits: Limits) -> Any:
        args = (_part(body, limits),)
        made = PYTHON_CALLS["pathlib", kind](args)
        # A path of another system cannot be opened here, and is the same text.
        return PYTHON_CALLS["pathlib", f"Pure{kind}"](args) if made is KEEP else made

    return Kind(kind, ("pathlib", kind), str, read)


# -- values of numpy -------------------------------------------------------------------------------


def _dtype_name(dtype: np.dtype[Any]) -> str:
    if _DTYPE.fullmatch(dtype.str) and np.dtype(dtype.str) == dtype:
        return dtype.str
    if named_dtype(dtype.name) == dtype:
        return dtype.name  # one of ml_dtypes, whose codes say nothing
    raise NotCarriedError(f"a value of numpy's dtype {str(dtype)[:40]} cannot be held by JSON")


def _read_dtype(name: Any, limits: Limits) -> np.dtype[Any]:
    if type(name) is str:
        if _DTYPE.fullmatch(name):
            return np.dtype(name)
        found = named_dtype(name)
        if found is not None:
            return found
    raise broken("a dtype that numpy and ml_dtypes lack")


def _dtype_of(value: Any) -> str:
    return _dtype_name(value.dtype)


def _module_of(value: Any) -> str | None:
    """Return what is said of a value that numpy 1 has pickled."""
    return "numpy.core" if module_of(value) == "numpy.core" else None


def _numpy_call(inner: str, name: str, module: Mapping[str, Any]) -> Callable[..., Any]:
    if module.get("module", "numpy.core") != "numpy.core":
        raise broken("a module of numpy that it does not have")
    top = "numpy.core" if module else "numpy._core"
    return NUMPY_CALLS[f"{top}.{inner}", name]


def _read_scalar(body: Any, limits: Limits, dtype: Any = None, **module: Any) -> Any:
    make = _numpy_call("multiarray", "scalar", module)
    return make((_read_dtype(dtype, limits), _raw(body, limits)))


def _is_fortran(value: PickledArray) -> bool:
    return value.flags.f_contiguous and not value.flags.c_contiguous


def _write_array(value: PickledArray) -> str:
    if not value.is_pickled:
        raise NotCarriedError("an array that is not a tensor of a file")
    return _base64(value.tobytes("F" if _is_fortran(value) else "C"))


def _read_array(
    body: Any, limits: Limits, dtype: Any = None, shape: Any = None, order: Any = "C", **module: Any
) -> Any:
    if type(shape) is not list or order not in ("C", "F"):
        raise broken("an array without a shape, or of no order")
    make = _numpy_call("numeric", "_frombuffer", module)
    return make((_raw(body, limits), _read_dtype(dtype, limits), tuple(shape), order))


# -- values of torch -------------------------------------------------------------------------------


def _read_size(body: Any, limits: Limits) -> Size:
    sizes = _parts(body, limits) if type(body) is list else None
    if sizes is None or not all(type(size) is int for size in sizes):
        raise broken("torch.Size takes ints")
    return Size(sizes)


def _word(kind: Any, is_known: Callable[[str], Any]) -> Kind:
    """Return a kind of torch's words, of which those of some names are known."""

    def write(value: Any) -> str:
        if not (type(value.name) is str and is_known(value.name)):
            raise NotCarriedError(f"{value!r} is not known to torch")
        return value.name

    def read(body: Any, limits: Limits) -> Any:
        if not (type(body) is str and is_known(body)):
            raise broken(f"a {kind.__name__} that torch does not have")
        return kind(body)

    return Kind(f"torch.{kind.__name__.lower()}", kind, write, read)


def _read_device(body: Any, limits: Limits, index: Any = None) -> Device:
    kind, index = _part(body, limits), _part(index, limits)
    if type(kind) is not str or not (index is None or is_number(index)):
        raise broken("torch.device takes a type and an index")
    return Device(kind, index)


# -- the table -------------------------------------------------------------------------------------

_ROWS = [
    Kind("int", int, hex, _read_int),
    Kind("float", float, repr, _read_float),
    # Two surrogates in a row would come back as one character if JSON had them as escapes.
    Kind("str", str, lambda value: _base64(value.encode("utf-8", "surrogatepass")), _read_str),
    Kind("bytes", bytes, _base64, _raw),
    Kind("bytearray", bytearray, _base64, lambda body, limits: bytearray(_raw(body, limits))),
    _called(("builtins", "complex"), lambda value: [value.real, value.imag]),
    _called(("builtins", "range"), lambda value: [value.start, value.stop, value.step]),
    Kind("slice", slice, _write_slice, _read_slice),
    _moment(datetime),
    _moment(time),
    Kind("date", date, date.isoformat, lambda body, limits: _iso(date, body)),
    _TIMEDELTA,
    Kind(
        "timezone",
        timezone,
        lambda value: _days(value.utcoffset(None)),
        _read_timezone,
        {"name": _name_of_zone},
    ),
    Kind(
        "Decimal",
        ("decimal", "Decimal"),
        _digits,
        lambda body, limits: PYTHON_CALLS["decimal", "Decimal"]((body,)),
    ),
    _called(("fractions", "Fraction"), lambda value: [value.numerator, value.denominator]),
    *map(_path, PATHS),
    Kind("numpy.dtype", np.dtype, _dtype_name, _read_dtype),
    Kind(
        "numpy.scalar",
        np.generic,
        lambda value: _base64(value.tobytes()),
        _read_scalar,
        {"dtype": _dtype_of, "module": _module_of},
    ),
    Kind(
        "numpy.array",
        PickledArray,
        _write_array,
        _read_array,
        {
            "dtype": _dtype_of,
            "shape": lambda value: list(value.shape),
            "order": lambda value: "F" if _is_fortran(value) else None,
            "module": _module_of,
        },
    ),
    Kind("torch.Size", Size, list, _read_size),
    _word(Dtype, lambda name: name in DTYPES or name in NAME_ONLY),
    _word(QScheme, QSCHEMES.__contains__),
    _word(Layout, _WORD.fullmatch),
    Kind("torch.device", Device, attrgetter("type"), _read_device, {"index": attrgetter("index")}),
]

#: By the tag.
KINDS = {kind.tag: kind for kind in _ROWS}
_BY_TYPE: dict[Any, Kind] = {kind.type: kind for kind in _ROWS}


# -- containers ------------------------------------------------------------------------------------


class Container(NamedTuple):
    """A container, whose tag is the name of its type; what is in it may be anything.

    ``empty`` makes one from its options, to be filled afterwards; None: it needs its items first.
    ``options`` are as those of a `Kind`, but for ``attributes``, which are as free as the items.
    """

    type: type
    empty: Callable[..., Any] | None = None
    options: Mapping[str, Callable[[Any], Any]] = {}


def _empty_defaultdict(factory: Any = None) -> Any:
    if factory is None:
        return defaultdict(None)
    for (_, known), kind in FACTORIES.items():
        if factory == known:
            return defaultdict(kind)
    raise broken("a defaultdict of unknown values")


def _name_of_factory(value: Any) -> str | None:
    names = {kind: name for (_, name), kind in FACTORIES.items()}
    return None if value.default_factory is None else names[value.default_factory]


def _empty_deque(maxlen: Any = None) -> Any:
    if maxlen is not None and not is_number(maxlen):
        raise broken("a deque whose length is not valid")
    return deque(maxlen=maxlen)


#: By the tag.
CONTAINERS = {
    row.type.__name__: row
    for row in [
        Container(dict, dict),
        Container(OrderedDict, lambda attributes=None: OrderedDict(), {"attributes": vars}),
        Container(defaultdict, _empty_defaultdict, {"factory": _name_of_factory}),
        Container(Counter, Counter),
        Container(deque, _empty_deque, {"maxlen": attrgetter("maxlen")}),
        Container(tuple),
        Container(set, set),
        Container(frozenset),
    ]
}

#: What is elsewhere: in the table of shared values, in the file. By the tag: the options.
MENTIONS: dict[str, tuple[str, ...]] = {
    "shared": (),
    "tensors": (),
    "tensor": ("stride", "requires_grad", "attributes"),
    "parameter": ("stride", "requires_grad", "attributes", "state"),
}
