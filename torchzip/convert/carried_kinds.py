"""The kinds of values of docs/format.md, section 11.8: one table, for the writer and the reader.

Such a value is written as pickle keeps it: the arguments that make it. The reader gives them to the
function that the reader of pickles has for it, so JSON can make nothing that a pickle could not;
and the writer makes each value too, so what the reader refuses is not written. Containers and
tensors are written and read by `carried` and `restored`, since anything may be in them.
"""

from __future__ import annotations

import base64
import binascii
import copyreg
import math
import re
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Collection, Iterable, Mapping
from datetime import date, datetime, time, timedelta, timezone
from functools import partial
from operator import attrgetter
from typing import Any, NamedTuple

import numpy as np

from torchzip.container.json_objects import is_plain_text
from torchzip.dtypes import DTYPES, NAME_ONLY, QSCHEMES
from torchzip.errors import FormatError, LimitError, shown
from torchzip.limits import Limits, is_number
from torchzip.pickling.table import KEEP
from torchzip.tensors.numpy_dtypes import named_dtype
from torchzip.tensors.numpy_values import NUMPY_CALLS, PickledArray, module_of
from torchzip.tensors.python_values import FACTORIES, PATHS, PYTHON_CALLS, Args
from torchzip.tensors.rebuild import LEAF_CALLS
from torchzip.types import Device, Dtype, Layout, QScheme, Size

#: What JSON holds. Any: its types are checked where it is read.
Node = Any

#: Bytes of one value: larger ones do not belong into a header.
_MAX_NBYTES = 4 << 20
#: Values within values, as an int in the offset of the time zone of a datetime.
_MAX_DEPTH = 4
_INT64 = range(-(1 << 63), 1 << 63)
_HEX = re.compile("-?0x[0-9a-f]+")
_DTYPE = re.compile(r"[<>]([iu][248]|f[248]|c(8|16))|\|(b1|[iu]1)")
_WORD = re.compile("[A-Za-z0-9_]{1,64}")


class NotCarriedError(Exception):
    """A value that JSON cannot hold exactly; the message says why."""


def broken(message: str) -> FormatError:
    """Return the error for a string that does not encode an object."""
    return FormatError(f"the object in the metadata: {message}")


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
    """Values of one type, which hold nothing but what they are made with.

    ``type`` is their type, or the names of its module and its own: some modules are imported when
    a file has something of theirs. ``args`` gives what stands under the tag, a string or values
    that are written in their turn. ``make`` makes the value of them, KEEP if it cannot.
    """

    tag: str
    type: Any
    args: Callable[[Any], str | Iterable[Any]]
    make: Callable[[Args], Any]


def write_value(value: Any, limits: Limits) -> Node:
    """Return the JSON of a value.

    Raises
    ------
    NotCarriedError
        If it is of another kind, or one of these that has no exact form.
    """
    node = _written(value, limits)
    if type(node) is dict:
        try:
            read_value(node, limits)
        except (FormatError, LimitError):
            raise NotCarriedError(f"{shown(value)} cannot be held by JSON") from None
    return node


def _written(value: Any, limits: Limits) -> Node:
    own: Any = type(value)
    if own in _AS_IT_IS and _AS_IT_IS[own](value):
        return value
    if own is int and value.bit_length() > 8 * limits.int_nbytes:
        raise NotCarriedError(f"an int of more than {limits.int_nbytes:,} bytes")
    for base in (np.generic, np.dtype):  # which have a type for each dtype
        own = base if isinstance(value, base) else own
    kind = _BY_TYPE.get(own) or _BY_TYPE.get((own.__module__.partition(".")[0], own.__qualname__))
    if kind is None:
        raise NotCarriedError(f"{shown(value)} cannot be held by JSON")
    args = kind.args(value)
    body = args if type(args) is str else [_written(each, limits) for each in args]
    return {kind.tag: body}


def read_value(node: dict[str, Node], limits: Limits, depth: int = 0) -> Any:
    """Return the value of an object of JSON that has one of `KINDS` for a key.

    Raises
    ------
    FormatError, LimitError
        If it does not describe one.
    """
    options = dict(node)
    tags = [key for key in node if key in KINDS]
    if len(tags) != 1 or depth > _MAX_DEPTH:
        raise broken("a value of no kind or of several, or in too many others")
    (tag,) = tags
    body = options.pop(tag)
    if tag == "int" and type(body) is str and len(body) > 2 * limits.int_nbytes + 3:
        raise LimitError("int_nbytes", len(body) // 2, limits.int_nbytes)
    first_edition = _FIRST_EDITION.get(tag)
    if first_edition is not None and (options or first_edition.is_body(body)):
        for key, part in options.items():
            options[key] = read_value(part, limits, depth + 1) if type(part) is dict else part
        try:
            args = first_edition.args(body, **options)
        except (TypeError, ValueError, OverflowError):
            raise broken(f"no {tag} can be made of what is given") from None
    elif options:
        raise broken(f"{tag!r} has no options")
    else:
        args = []
        for part in body if type(body) is list else [body]:
            if type(part) is dict:
                part = read_value(part, limits, depth + 1)
            elif type(part) is list:
                raise broken("a value inside of another is of the wrong kind")
            args.append(part)
    made = KINDS[tag].make(tuple(args))
    if made is KEEP:
        raise broken(f"no {tag} can be made of what is given")
    return made


# -- numbers, strings, bytes -----------------------------------------------------------------------


def _int(args: Args) -> Any:
    return int(args[0], 16) if _is_text(args) and _HEX.fullmatch(args[0]) else KEEP


def _float(args: Args) -> Any:
    return float(args[0]) if args in (("nan",), ("inf",), ("-inf",)) else KEEP


def _base64(raw: bytes) -> str:
    if len(raw) > _MAX_NBYTES:
        raise NotCarriedError(f"a value of {len(raw):,} bytes is too large for a header")
    return base64.b64encode(raw).decode()


def _bytes(args: Args) -> Any:
    try:
        return base64.b64decode(args[0], validate=True) if _is_text(args) else KEEP
    except (binascii.Error, ValueError):
        return KEEP


def _str(args: Args) -> Any:
    raw = _bytes(args)
    try:
        return raw if raw is KEEP else raw.decode("utf-8", "surrogatepass")
    except UnicodeDecodeError:
        return KEEP


def _is_text(args: Args) -> bool:
    return len(args) == 1 and type(args[0]) is str


# -- values of Python ------------------------------------------------------------------------------


def _pickled(value: Any) -> Args:
    """Return the arguments that pickle keeps of a value."""
    function, args = value.__reduce_ex__(4)[:2]
    return tuple(args[1:] if function is copyreg.__newobj__ else args)  # type: ignore[attr-defined]


def _called(module: str, name: str, args: Callable[[Any], Iterable[Any]] = _pickled) -> Kind:
    """Return the kind of what a function of the pickle reader makes."""
    return Kind(name, (module, name), args, PYTHON_CALLS[module, name])


def _are_slice(args: Args) -> bool:
    return {int, type(None)}.issuperset(map(type, args))


def _slice_args(value: slice) -> Args:
    args = (value.start, value.stop, value.step)
    if not _are_slice(args):
        raise NotCarriedError("a slice of other things than ints")
    return args


def _slice(args: Args) -> Any:
    return slice(*args) if len(args) == 3 and _are_slice(args) else KEEP


def _path(name: str) -> Kind:
    def make(args: Args) -> Any:
        made = PYTHON_CALLS["pathlib", name](args)
        # A path of another system cannot be opened here, and is the same text.
        return PYTHON_CALLS["pathlib", f"Pure{name}"](args) if made is KEEP else made

    return _called("pathlib", name)._replace(make=make)


# -- values of numpy -------------------------------------------------------------------------------


def _dtype_name(dtype: np.dtype[Any]) -> str:
    if _DTYPE.fullmatch(dtype.str) and np.dtype(dtype.str) == dtype:
        return dtype.str
    if named_dtype(dtype.name) == dtype:
        return dtype.name  # one of ml_dtypes, whose codes say nothing
    raise NotCarriedError(f"a value of numpy's dtype {str(dtype)[:40]} cannot be held by JSON")


def _dtype(args: Args) -> Any:
    if not _is_text(args):
        return KEEP
    found = np.dtype(args[0]) if _DTYPE.fullmatch(args[0]) else named_dtype(args[0])
    return KEEP if found is None else found


def _core(value: Any) -> str:
    """Return the inner module of the numpy that pickled a value."""
    return module_of(value) or "numpy._core"


def _numpy(function: str, args: Args) -> Any:
    """Call a function of an inner module of numpy 1 or of numpy 2, by its name."""
    core, _, name = function.partition(".")
    module = args[0] if args else None
    call = NUMPY_CALLS.get((f"{module}.{core}", name)) if type(module) is str else None
    return KEEP if call is None else call(args[1:])


def _array_args(value: PickledArray) -> Args:
    if not value.is_pickled:
        raise NotCarriedError("an array that is not a tensor of a file")
    order: Any = "F" if value.flags.f_contiguous and not value.flags.c_contiguous else "C"
    return _core(value), order, value.dtype, value.tobytes(order), *value.shape


def _array(args: Args) -> Any:
    if len(args) < 4:
        return KEEP
    core, order, dtype, raw, *shape = args
    return _numpy("numeric._frombuffer", (core, raw, dtype, tuple(shape), order))


# -- values of torch -------------------------------------------------------------------------------


def _word(kind: Any, is_known: Callable[[str], Any]) -> Kind:
    """Return a kind of torch's words, of which those of some names are known."""

    def make(args: Args) -> Any:
        return kind(args[0]) if _is_text(args) and is_known(args[0]) else KEEP

    return Kind(f"torch.{kind.__name__.lower()}", kind, attrgetter("name"), make)


def _device_args(value: Device) -> Args:
    return (value.type,) if value.index is None else (value.type, value.index)


# -- the table -------------------------------------------------------------------------------------

_ROWS = [
    Kind("int", int, hex, _int),
    Kind("float", float, repr, _float),
    # Two surrogates in a row would come back as one character if JSON had them as escapes.
    Kind("str", str, lambda value: _base64(value.encode("utf-8", "surrogatepass")), _str),
    Kind("bytes", bytes, _base64, _bytes),
    *[_called("builtins", name) for name in ("bytearray", "complex", "range")],
    Kind("slice", slice, _slice_args, _slice),
    *[_called("datetime", kind.__name__) for kind in (datetime, time, date, timedelta, timezone)],
    _called("decimal", "Decimal"),
    _called("fractions", "Fraction", lambda value: (value.numerator, value.denominator)),
    *map(_path, PATHS),
    Kind("numpy.dtype", np.dtype, _dtype_name, _dtype),
    Kind(
        "numpy.scalar",
        np.generic,
        lambda value: (_core(value), value.dtype, value.tobytes()),
        partial(_numpy, "multiarray.scalar"),
    ),
    Kind("numpy.array", PickledArray, _array_args, _array),
    Kind("torch.Size", Size, tuple, lambda args: LEAF_CALLS["torch", "Size"]((args,))),
    _word(Dtype, lambda name: name in DTYPES or name in NAME_ONLY),
    _word(QScheme, QSCHEMES.__contains__),
    _word(Layout, _WORD.fullmatch),
    Kind("torch.device", Device, _device_args, LEAF_CALLS["torch", "device"]),
]
KINDS = {kind.tag: kind for kind in _ROWS}
_BY_TYPE: dict[Any, Kind] = {kind.type: kind for kind in _ROWS}


class _FirstEdition(NamedTuple):
    """How torchzip 0.1.0 wrote a kind: ``args`` gives what pickle keeps, of its body and options.

    It is recognised by its options, or by the body.
    """

    args: Callable[..., Iterable[Any]]
    is_body: Callable[[Any], bool] = lambda body: type(body) is str


def _of_zone(kind: Any) -> _FirstEdition:
    return _FirstEdition(
        lambda body, tzinfo=None, fold=0: _pickled(
            kind.fromisoformat(body).replace(tzinfo=tzinfo, fold=fold)
        )
    )


_FIRST_EDITION = {
    "bytearray": _FirstEdition(lambda body: [_bytes((body,))]),
    "datetime": _of_zone(datetime),
    "time": _of_zone(time),
    "date": _FirstEdition(lambda body: _pickled(date.fromisoformat(body))),
    "timezone": _FirstEdition(
        lambda body, **name: [timedelta(*body), *name.values()],
        lambda body: type(body) is list and {int}.issuperset(map(type, body)),
    ),
    "numpy.scalar": _FirstEdition(
        lambda body, dtype: ["numpy._core", _dtype((dtype,)), _bytes((body,))]
    ),
    "numpy.array": _FirstEdition(
        lambda body, dtype, shape, order="C": [
            "numpy._core", order, _dtype((dtype,)), _bytes((body,)), *shape,
        ]
    ),
    "torch.device": _FirstEdition(lambda body, index: [body, index], lambda body: False),
}  # fmt: skip


# -- containers ------------------------------------------------------------------------------------


class Container(NamedTuple):
    """A container, whose tag is the name of its type; what is in it may be anything.

    ``empty`` makes one from its options, to be filled afterwards; None: it needs its items first.
    ``options`` give what stands beside the items, None for what is left out. Those in
    ``attributes`` may be anything, like the items.
    """

    type: type
    empty: Callable[..., Any] | None = None
    options: Mapping[str, Callable[[Any], Any]] = {}


_FACTORIES = {kind.__name__: kind for kind in FACTORIES.values()}


def _empty_defaultdict(factory: Any = None) -> Any:
    if not (factory is None or (type(factory) is str and factory in _FACTORIES)):
        raise broken("a defaultdict of unknown values")
    return defaultdict(None if factory is None else _FACTORIES[factory])


def _empty_deque(maxlen: Any = None) -> Any:
    if maxlen is not None and not is_number(maxlen):
        raise broken("a deque whose length is not valid")
    return deque(maxlen=maxlen)


#: By the tag.
CONTAINERS = {
    row.type.__name__: row
    for row in [
        Container(list, list),  # is itself, without a tag
        Container(dict, dict),
        Container(OrderedDict, lambda attributes=None: OrderedDict(), {"attributes": vars}),
        Container(
            defaultdict,
            _empty_defaultdict,
            {"factory": lambda value: getattr(value.default_factory, "__name__", None)},
        ),
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
