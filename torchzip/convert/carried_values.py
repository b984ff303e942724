"""Values that hold no other values <-> JSON: numbers, strings, bytes, times, the names of torch.

The smaller half of the encoding that `carried` describes: a table of writers, and one of readers.
A reader makes a value with the functions that the reader of pickles has for it, so that JSON
can make nothing that a pickle could not.
"""

from __future__ import annotations

import base64
import binascii
import math
import re
from collections.abc import Callable, Collection
from datetime import date, datetime, time, timedelta, timezone
from typing import Any

import numpy as np

from torchzip.dtypes import DTYPES, NAME_ONLY, QSCHEMES
from torchzip.errors import FormatError, LimitError, shown
from torchzip.limits import Limits, is_number
from torchzip.pickling.table import KEEP
from torchzip.tensors.numpy_dtypes import named_dtype
from torchzip.tensors.numpy_values import NUMPY_CALLS, PickledArray, module_of
from torchzip.tensors.python_values import PATHS, PYTHON_CALLS
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
    kinds = set(map(type, values))
    if kinds == {float}:  # a million losses need no look at each
        return all(map(math.isfinite, values))
    if kinds == {int}:
        return max(values) in _INT64 and min(values) in _INT64
    if not kinds <= _AS_IT_IS.keys():
        return False
    return all(_AS_IT_IS[type(value)](value) for value in values)


#: When a value of a type is the same as JSON.
_AS_IT_IS: dict[type, Callable[[Any], bool]] = {
    type(None): lambda value: True,
    bool: lambda value: True,
    int: lambda value: value in _INT64,
    float: math.isfinite,
    str: is_plain_text,
}


# -- values to JSON ------------------------------------------------------------------------------


def write_atom(value: Any, limits: Limits) -> Node:
    """Return the JSON of a value.

    Raises
    ------
    NotCarriedError
        If it is of another kind, or one of these that has no exact form.
    """
    kind = type(value)
    writer = _WRITERS.get(kind) or _WRITERS_BY_NAME.get(
        (kind.__module__.partition(".")[0], kind.__qualname__)
    )
    if writer is not None:
        return writer(value, limits)
    if isinstance(value, np.generic):
        node = {"numpy.scalar": _text_of(value.tobytes()), "dtype": _dtype_name(value.dtype)}
        return {**node, **_module_option(value)}
    if isinstance(value, np.dtype):
        return {"numpy.dtype": _dtype_name(value)}
    raise NotCarriedError(f"{shown(value)} cannot be held by JSON")


def _int(value: int, limits: Limits) -> Node:
    if value in _INT64:
        return value
    if value.bit_length() > 8 * limits.int_nbytes:
        raise NotCarriedError(f"an int of more than {limits.int_nbytes:,} bytes")
    return {"int": hex(value)}


def _float(value: float, limits: Limits) -> Node:
    return value if value - value == 0 else {"float": repr(value)}  # nan and infinities


def _str(value: str, limits: Limits) -> Node:
    if is_plain_text(value):
        return value
    # Two surrogates in a row would come back as one character if JSON had them as escapes.
    return {"str": _text_of(value.encode("utf-8", "surrogatepass"))}


def _text_of(raw: bytes | bytearray) -> str:
    if len(raw) > _MAX_NBYTES:
        raise NotCarriedError(f"a value of {len(raw):,} bytes is too large for a header")
    return base64.b64encode(raw).decode()


def _slice(value: slice, limits: Limits) -> Node:
    parts = [value.start, value.stop, value.step]
    if not all(type(part) in (int, type(None)) for part in parts):
        raise NotCarriedError("a slice of other things than ints")
    return {"slice": [write_atom(part, limits) for part in parts]}


def _moment(value: datetime | time, limits: Limits) -> Node:
    node = {type(value).__name__: value.replace(tzinfo=None, fold=0).isoformat()}
    if value.tzinfo is not None:
        node["tzinfo"] = write_atom(value.tzinfo, limits)
    return {**node, "fold": 1} if value.fold else node


def _timedelta(value: timedelta, limits: Limits) -> Node:
    return {"timedelta": [value.days, value.seconds, value.microseconds]}


def _timezone(value: timezone, limits: Limits) -> Node:
    offset = value.utcoffset(None)
    parts = [offset.days, offset.seconds, offset.microseconds]
    name = value.tzname(None)
    if name == timezone(offset).tzname(None):
        return {"timezone": parts}
    return {"timezone": parts, "name": _str(name, limits)}


def _digits(value: Any, limits: Limits) -> Node:
    text = str(value)
    if len(text) > _MAX_DIGITS:
        raise NotCarriedError(f"a Decimal of {len(text):,} characters")
    return {"Decimal": text}


def _dtype_name(dtype: np.dtype[Any]) -> str:
    if _DTYPE.fullmatch(dtype.str) and np.dtype(dtype.str) == dtype:
        return dtype.str
    if named_dtype(dtype.name) == dtype:
        return dtype.name  # one of ml_dtypes, whose codes say nothing
    raise NotCarriedError(f"a value of numpy's dtype {str(dtype)[:40]} cannot be held by JSON")


def _array(value: PickledArray, limits: Limits) -> Node:
    if not value.is_pickled:
        raise NotCarriedError("an array that is not a tensor of a file")
    fortran = value.flags.f_contiguous and not value.flags.c_contiguous
    node = {
        "numpy.array": _text_of(value.tobytes("F" if fortran else "C")),
        "dtype": _dtype_name(value.dtype),
        "shape": list(value.shape),
    }
    return {**node, **({"order": "F"} if fortran else {}), **_module_option(value)}


def _module_option(value: Any) -> dict[str, str]:
    """Return what is said of a value that numpy 1 has pickled."""
    return {"module": "numpy.core"} if module_of(value) == "numpy.core" else {}


def _name(value: Dtype | QScheme | Layout, limits: Limits) -> Node:
    kind = type(value).__name__.lower()
    if not _is_name(kind, value.name):
        raise NotCarriedError(f"{value!r} is not known to torch")
    return {f"torch.{kind}": value.name}


def _is_name(kind: str, name: Any) -> bool:
    if type(name) is not str:
        return False
    if kind == "dtype":
        return name in DTYPES or name in NAME_ONLY
    return name in QSCHEMES if kind == "qscheme" else bool(_WORD.fullmatch(name))


def _device(value: Device, limits: Limits) -> Node:
    node = {"torch.device": _str(value.type, limits)}
    return node if value.index is None else {**node, "index": _int(value.index, limits)}


def _numbers(name: str, parts: Callable[[Any], list[Any]]) -> Callable[[Any, Limits], Node]:
    def write(value: Any, limits: Limits) -> Node:
        return {name: [write_atom(part, limits) for part in parts(value)]}

    return write


_WRITERS: dict[type, Callable[[Any, Limits], Node]] = {
    type(None): lambda value, limits: None,
    bool: lambda value, limits: value,
    int: _int,
    float: _float,
    str: _str,
    bytes: lambda value, limits: {"bytes": _text_of(value)},
    bytearray: lambda value, limits: {"bytearray": _text_of(value)},
    complex: _numbers("complex", lambda value: [value.real, value.imag]),
    range: _numbers("range", lambda value: [value.start, value.stop, value.step]),
    slice: _slice,
    datetime: _moment,
    time: _moment,
    date: lambda value, limits: {"date": value.isoformat()},
    timedelta: _timedelta,
    timezone: _timezone,
    PickledArray: _array,
    Size: _numbers("torch.Size", list),
    Dtype: _name,
    QScheme: _name,
    Layout: _name,
    Device: _device,
}

#: For the modules that are imported when a file has something of theirs.
_WRITERS_BY_NAME: dict[tuple[str, str], Callable[[Any, Limits], Node]] = {
    ("decimal", "Decimal"): _digits,
    ("fractions", "Fraction"): _numbers(
        "Fraction", lambda value: [value.numerator, value.denominator]
    ),
    **{
        ("pathlib", kind): lambda value, limits: {type(value).__name__: _str(str(value), limits)}
        for kind in PATHS
    },
}


# -- JSON to values ------------------------------------------------------------------------------

Reader = Callable[[Any, dict[str, Any], Limits], Any]


def _part(node: Node, limits: Limits, kinds: tuple[str, ...] = ("int", "float", "str")) -> Any:
    """Return a value inside of another: one of JSON's own, or of a few kinds, so nothing nests."""
    if type(node) not in (dict, list):
        return node
    if type(node) is dict:
        for kind in kinds:
            if kind in node:
                return read_kind(kind, node, limits)
    raise broken("a value inside of another is of the wrong kind")


def read_kind(kind: str, node: dict[str, Any], limits: Limits) -> Any:
    """Return the value of an object of JSON whose kind is one of `READERS`."""
    reader, options = READERS[kind]
    check_options(node, kind, options)
    made = reader(node[kind], node, limits)
    if made is KEEP:
        raise broken(f"no {kind} can be made of what is given")
    return made


def check_options(node: dict[str, Any], kind: str, options: tuple[str, ...]) -> None:
    """Raise FormatError if an object of JSON has other keys than its kind and the options of it."""
    for key in node:
        if key != kind and key not in options:
            raise broken(f"{kind!r} has no option {key[:40]!r}")


def _read_int(body: Any, node: Any, limits: Limits) -> int:
    if type(body) is not str or not _HEX.fullmatch(body):
        raise broken("an int is written as hexadecimal text")
    if len(body) > 2 * limits.int_nbytes + 3:
        raise LimitError("int_nbytes", len(body) // 2, limits.int_nbytes)
    return int(body, 16)


def _read_float(body: Any, node: Any, limits: Limits) -> float:
    if body not in ("nan", "inf", "-inf"):
        raise broken("a float as text is nan, inf or -inf")
    return float(body)


def _raw(body: Any) -> bytes:
    if type(body) is str:
        try:
            return base64.b64decode(body, validate=True)
        except (binascii.Error, ValueError):
            pass
    raise broken("bytes are written in base64")


def _read_str(body: Any, node: Any, limits: Limits) -> str:
    try:
        return _raw(body).decode("utf-8", "surrogatepass")
    except UnicodeDecodeError:
        raise broken("a str that is not UTF-8") from None


def _called(
    name: tuple[str, str], calls: dict[tuple[str, str], Callable[..., Any]] = PYTHON_CALLS
) -> Callable[..., Any]:
    """Return what the pickle reader has for a call, as a function of the arguments."""
    call = calls[name]
    return lambda *args: call(args)


def _from_parts(name: tuple[str, str]) -> Reader:
    call = _called(name)

    def read(body: Any, node: Any, limits: Limits) -> Any:
        if type(body) is not list or len(body) > 3:
            raise broken(f"{name[1]} takes a list")
        return call(*[_part(part, limits) for part in body])

    return read


def _read_slice(body: Any, node: Any, limits: Limits) -> slice:
    if type(body) is not list or len(body) != 3:
        raise broken("a slice has three parts")
    parts = [_part(part, limits) for part in body]
    if not all(type(part) in (int, type(None)) for part in parts):
        raise broken("a slice of other things than ints")
    return slice(*parts)


def _moment_of(kind: type[datetime] | type[time]) -> Reader:
    def read(body: Any, node: Any, limits: Limits) -> Any:
        zone = _part(node.get("tzinfo"), limits, ("timezone",))
        fold = node.get("fold", 0)
        made = _iso(kind, body)
        if not isinstance(zone, timezone | None) or type(fold) is not int or fold not in (0, 1):
            raise broken(f"a {kind.__name__} with a time zone or a fold that is not valid")
        return made.replace(tzinfo=zone, fold=fold)

    return read


def _iso(kind: Any, body: Any) -> Any:
    """Return a time whose text is exactly the one that it writes itself."""
    try:
        made = kind.fromisoformat(body)
        if made.isoformat() == body and getattr(made, "tzinfo", None) is None:
            return made
    except (TypeError, ValueError):
        pass
    raise broken(f"a {kind.__name__} that is not valid")


_MAKE_TIMEDELTA = _from_parts(("datetime", "timedelta"))


def _read_timezone(body: Any, node: Any, limits: Limits) -> Any:
    offset = _MAKE_TIMEDELTA(body, node, limits)
    args = [offset] if "name" not in node else [offset, _part(node["name"], limits)]
    return _called(("datetime", "timezone"))(*args)


def _read_dtype(name: Any) -> np.dtype[Any]:
    if type(name) is str:
        if _DTYPE.fullmatch(name):
            return np.dtype(name)
        found = named_dtype(name)
        if found is not None:
            return found
    raise broken("a dtype that numpy and ml_dtypes lack")


def _read_module(node: Any) -> str:
    if node.get("module", "numpy.core") != "numpy.core":
        raise broken("a module of numpy that it does not have")
    return "numpy.core" if "module" in node else "numpy._core"


def _read_scalar(body: Any, node: Any, limits: Limits) -> Any:
    make = _called((_read_module(node) + ".multiarray", "scalar"), NUMPY_CALLS)
    return make(_read_dtype(node.get("dtype")), _raw(body))


def _read_array(body: Any, node: Any, limits: Limits) -> Any:
    shape = node.get("shape")
    order = node.get("order", "C")
    if type(shape) is not list or order not in ("C", "F"):
        raise broken("an array without a shape, or of no order")
    make = _called((_read_module(node) + ".numeric", "_frombuffer"), NUMPY_CALLS)
    return make(_raw(body), _read_dtype(node.get("dtype")), tuple(shape), order)


def _read_size(body: Any, node: Any, limits: Limits) -> Size:
    sizes: list[Any] = [_part(size, limits) for size in body] if type(body) is list else [None]
    if not all(type(size) is int for size in sizes):
        raise broken("torch.Size takes ints")
    return Size(sizes)


def _named(kind: type[Dtype] | type[QScheme] | type[Layout]) -> Reader:
    def read(body: Any, node: Any, limits: Limits) -> Any:
        if not _is_name(kind.__name__.lower(), body):
            raise broken(f"a {kind.__name__} that torch does not have")
        return kind(body)

    return read


def _read_device(body: Any, node: Any, limits: Limits) -> Device:
    kind, index = _part(body, limits), _part(node.get("index"), limits)
    if type(kind) is not str or not (index is None or is_number(index)):
        raise broken("torch.device takes a type and an index")
    return Device(kind, index)


def _path(kind: str) -> Reader:
    def read(body: Any, node: Any, limits: Limits) -> Any:
        text = _part(body, limits)
        made = PYTHON_CALLS["pathlib", kind]((text,))
        # A path of another system cannot be opened here, and is the same text.
        return PYTHON_CALLS["pathlib", f"Pure{kind}"]((text,)) if made is KEEP else made

    return read


#: By kind: how it is read, and the options that it may have.
READERS: dict[str, tuple[Reader, tuple[str, ...]]] = {
    "int": (_read_int, ()),
    "float": (_read_float, ()),
    "str": (_read_str, ()),
    "bytes": (lambda body, node, limits: _raw(body), ()),
    "bytearray": (lambda body, node, limits: bytearray(_raw(body)), ()),
    "complex": (_from_parts(("builtins", "complex")), ()),
    "range": (_from_parts(("builtins", "range")), ()),
    "slice": (_read_slice, ()),
    "datetime": (_moment_of(datetime), ("tzinfo", "fold")),
    "time": (_moment_of(time), ("tzinfo", "fold")),
    "date": (lambda body, node, limits: _iso(date, body), ()),
    "timedelta": (_MAKE_TIMEDELTA, ()),
    "timezone": (_read_timezone, ("name",)),
    "Decimal": (lambda body, node, limits: _called(("decimal", "Decimal"))(body), ()),
    "Fraction": (_from_parts(("fractions", "Fraction")), ()),
    **{kind: (_path(kind), ()) for kind in PATHS},
    "numpy.dtype": (lambda body, node, limits: _read_dtype(body), ()),
    "numpy.scalar": (_read_scalar, ("dtype", "module")),
    "numpy.array": (_read_array, ("dtype", "shape", "order", "module")),
    "torch.Size": (_read_size, ()),
    "torch.dtype": (_named(Dtype), ()),
    "torch.qscheme": (_named(QScheme), ()),
    "torch.layout": (_named(Layout), ()),
    "torch.device": (_read_device, ("index",)),
}
