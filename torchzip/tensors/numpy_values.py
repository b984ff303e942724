"""Values of numpy in a pickle: arrays, scalars and dtypes, as numpy 1 and 2 write them.

A checkpoint may hold them beside its tensors: the state of numpy's random generator, a loss that
was never made a float. numpy's own functions are not called with what the file says: a dtype that
lies about its flags can make numpy follow a number as a pointer. The parts of the state are
checked, and a dtype is built from them.

An array of objects stays a ForeignObject, and so does whatever has a dtype that is not understood.

numpy 1 calls its inner module ``numpy.core``, numpy 2 ``numpy._core``. What a file says, it keeps
saying when it is saved again, so a value of another module than the running numpy's remembers it:
an array as an attribute, a scalar by a class of its own below that of numpy. Scalars that numpy
makes no subclass of (bools, times, records, those of ml_dtypes), and long doubles, follow the rest
of their file.

Source: docs/format.md, section 7.1; numpy 1.26 and 2.4 as observed.
"""

from __future__ import annotations

import functools
import math
import re
import sys
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from torchzip.errors import MAX_NDIM, PickleError
from torchzip.leaf_types import ForeignObject
from torchzip.limits import is_number
from torchzip.pickling.python2 import bytes_of
from torchzip.pickling.table import KEEP, Name
from torchzip.tensors.numpy_dtypes import named_dtype

Args = tuple[Any, ...]

_MODULES = ("numpy._core", "numpy.core")
_RUNNING = "numpy._core"
_DTYPE = re.compile(r"(?:[?]|[biufcSUVmM][0-9]{0,9})")
_UNITS = frozenset("Y M W D h m s ms us \u03bcs ns ps fs as generic".split())
_MAX_FIELDS = 1000
#: The flag of a structure whose fields are aligned (numpy's ``NPY_ALIGNED_STRUCT``).
_ALIGNED = 0x80


class PickledArray(np.ndarray[Any, Any]):
    """A numpy array that was pickled as one, and not as a tensor.

    It is an ordinary array, but `save` writes it as numpy pickles itself, so it comes back
    as what it was. What is computed from it is saved as a tensor, like any array.
    """

    #: Only on the object that came from the file.
    is_pickled = False
    #: The inner module of the numpy that pickled it.
    module = _RUNNING


def pickled_array(array: NDArray[Any], module: str = _RUNNING) -> PickledArray:
    """Return an array as one that was pickled by numpy."""
    made = array.view(PickledArray)
    made.is_pickled = True
    if module != _RUNNING:
        made.module = module
    return made


# -- where a value comes from ----------------------------------------------------------------------

#: Classes of scalars that another module than the running numpy's has pickled: numpy's own class
#: of each, and the module.
_REMEMBERED: dict[type, tuple[type, str]] = {}


@functools.cache
def _remembering(kind: type, module: str) -> Any:
    """Return the class of numpy's scalars of ``kind`` that were pickled by ``module``."""
    names = {"__slots__": (), "__repr__": lambda self: repr(kind(self))}
    made = type(kind.__name__, (kind,), names)
    _REMEMBERED[made] = (kind, module)
    return made


def _can_remember(dtype: np.dtype[Any]) -> bool:
    """Return whether a scalar of numpy's own can be of a class below that of its dtype.

    A long double could, but for the bytes between its numbers.
    """
    return dtype.kind in "SU" or (
        dtype.kind in "iufc" and dtype.isbuiltin == 1 and dtype.char not in "gG"
    )


def _remember(scalar: Any, module: str) -> Any:
    if module == _RUNNING or not _can_remember(scalar.dtype):
        return scalar
    kind: Any = type(scalar)
    made = _remembering(kind, module)(scalar)
    return made if made.tobytes() == scalar.tobytes() else scalar


def plain_type(value: Any) -> type:
    """Return the class of a value, and of a scalar of numpy its own, whatever pickled it.

    >>> plain_type(np.float32(1)), plain_type(1)
    (<class 'numpy.float32'>, <class 'int'>)
    """
    kind = type(value)
    return _REMEMBERED[kind][0] if kind in _REMEMBERED else kind


def module_of(value: Any) -> str | None:
    """Return the inner module of the numpy that pickled a value; None if it remembers none."""
    if type(value) is PickledArray:
        return value.module if value.is_pickled else None
    if type(value) in _REMEMBERED:
        return _REMEMBERED[type(value)][1]
    return _RUNNING if isinstance(value, np.generic) and _can_remember(value.dtype) else None


def module_among(names: Iterable[Name]) -> str | None:
    """Return the inner module of numpy that a file mentions, if it is one."""
    tops = {".".join(module.split(".", 2)[:2]) for module, _ in names}
    found = tops.intersection(_MODULES)
    return found.pop() if len(found) == 1 else None


def under_module(reduction: Any, module: str) -> Any:
    """Return a reduction of numpy's with its function under the name of that inner module."""
    if module == _RUNNING or not isinstance(reduction, tuple):
        return reduction
    function = reduction[0]
    top, _, rest = str(function.__module__).rpartition(".")
    if top not in _MODULES:
        return reduction
    return (ForeignObject(f"{module}.{rest}", function.__name__), *reduction[1:])


# -- dtypes ----------------------------------------------------------------------------------------


def _build_dtype(target: ForeignObject, state: Any) -> Any:
    """Return the dtype that ``numpy.dtype(text, False, True)`` and its state describe."""
    spelled = target.args[0] if target.args else None
    if target.how != "call" or type(state) is not tuple or len(state) not in (8, 9):
        return KEEP
    _, order, base, names, fields, itemsize, _, flags = state[:8]
    try:
        if isinstance(spelled, ForeignObject):
            made = _extension_dtype(spelled)
        elif type(spelled) is not str or not _DTYPE.fullmatch(spelled):
            made = None  # objects among them
        elif fields is not None:
            made = _structure(names, fields, itemsize, flags)
        elif base is not None:
            made = _subarray(base)
        elif spelled[0] in "mM":
            made = _with_unit(spelled, state[8] if len(state) == 9 else None)
        else:
            made = np.dtype(spelled)
    except (ValueError, TypeError, OverflowError, MemoryError) as error:
        raise PickleError(f"a numpy dtype whose parts do not fit ({error})") from None
    if made is None or made.hasobject:
        return KEEP
    if type(order) is str and order in ("<", ">") and fields is None:
        ordered = made.newbyteorder("<" if order == "<" else ">")
        return made if ordered.isnative else ordered
    return made


def _extension_dtype(name: ForeignObject) -> np.dtype[Any] | None:
    """Return a dtype of ml_dtypes by the name of its scalar type."""
    is_one = name.how == "name" and name.module == "ml_dtypes"
    return named_dtype(name.name) if is_one else None


def _structure(names: Any, fields: Any, itemsize: Any, flags: Any) -> np.dtype[Any] | None:
    if not (
        type(names) is tuple
        and len(names) <= _MAX_FIELDS
        and type(fields) is dict
        and all(type(name) is str and name in fields for name in names)
        and type(itemsize) is int
        and 0 <= itemsize < 1 << 31
        and type(flags) is int
    ):
        return None
    rows = [fields[name] for name in names]
    if not all(
        type(row) is tuple
        and len(row) == 2
        and isinstance(row[0], np.dtype)
        and type(row[1]) is int
        and 0 <= row[1] < 1 << 31
        for row in rows
    ):
        return None
    total = 0
    for inner, _ in rows:
        total += _field_count(inner)
        if total > _MAX_FIELDS:  # a few that share their parts could have any number in all
            return None
    parts: Any = {
        "names": list(names),
        "formats": [row[0] for row in rows],
        "offsets": [row[1] for row in rows],
        "itemsize": itemsize,
    }
    made: np.dtype[Any] = np.dtype(parts, align=bool(flags & _ALIGNED))
    return made


def _field_count(dtype: np.dtype[Any]) -> int:
    """Return how many fields are in a dtype, with those of its fields."""
    fields = dtype.base.fields
    return 1 if fields is None else sum(_field_count(row[0]) for row in fields.values())


def _subarray(base: Any) -> np.dtype[Any] | None:
    if not (type(base) is tuple and len(base) == 2 and isinstance(base[0], np.dtype)):
        return None
    inner, shape = base
    if not _is_shape(shape) or math.prod(shape) * inner.itemsize >= 1 << 31:
        return None
    return np.dtype((inner, shape))


def _with_unit(spelled: str, metadata: Any) -> np.dtype[Any] | None:
    """Return a dtype of times, whose unit is at the end of the state."""
    parts = metadata[1] if type(metadata) is tuple and len(metadata) == 2 else None
    if type(parts) is not tuple or len(parts) < 2 or type(parts[1]) is not int:
        return None
    unit = parts[0].decode("latin1") if type(parts[0]) is bytes else parts[0]
    if unit not in _UNITS or not 0 < parts[1] < 1 << 31:
        return None
    return np.dtype(spelled if unit == "generic" else f"{spelled}[{parts[1]}{unit}]")


def _is_shape(shape: Any) -> bool:
    return type(shape) is tuple and len(shape) <= MAX_NDIM and all(map(is_number, shape))


# -- arrays and scalars ----------------------------------------------------------------------------


def _array(dtype: Any, shape: Any, data: Any, module: str, *, fortran: bool) -> Any:
    """Return an array over a copy of ``data``; KEEP if the parts are those of something else."""
    raw = bytes_of(data)
    if not isinstance(dtype, np.dtype) or raw is None:
        return KEEP
    if not _is_shape(shape):
        raise PickleError("a numpy array whose shape is not valid")
    if math.prod(shape) * dtype.itemsize != len(raw):
        raise PickleError(
            f"a numpy array of shape {list(shape)} and dtype {dtype} has "
            f"{math.prod(shape) * dtype.itemsize:,} bytes, and {len(raw):,} are given"
        )
    if math.prod(max(size, 1) for size in shape) * max(dtype.itemsize, 1) >= 1 << 63:
        raise PickleError(f"a numpy array of shape {list(shape)}")
    # Without bytes there may be a dtype without bytes: numpy makes no array from a buffer then.
    made: Any = np.empty(shape, dtype, order="F" if fortran else "C")
    if raw:
        made.reshape(-1, order="A").view(np.uint8)[...] = np.frombuffer(raw, np.uint8)
        _check_texts(made.reshape(-1, order="A"))
    return pickled_array(made, module)


def _check_texts(flat: np.ndarray[Any, Any]) -> None:
    """Raise where a string has a number that is not a character: numpy cannot give or show it."""
    dtype = flat.dtype
    if dtype.names is not None:
        for name in dtype.names:
            _check_texts(flat[name])
    elif dtype.kind == "U" and dtype.itemsize:
        number = np.dtype(np.uint32)
        number = number if dtype.isnative else number.newbyteorder("S")
        codes = np.ascontiguousarray(flat).view(number)
        if codes.size and int(codes.max()) > sys.maxunicode:
            raise PickleError(
                f"a string of a numpy array has the character {int(codes.max()):#x}; up to "
                f"{sys.maxunicode:#x} was expected"
            )


def _build_array(target: ForeignObject, state: Any) -> Any:
    """Return the array of ``_reconstruct(ndarray, (0,), b'b')`` and its state."""
    kind = target.args[0] if target.args else None
    if (
        not isinstance(kind, ForeignObject)
        or (kind.module, kind.name, kind.how) != ("numpy", "ndarray", "name")
        or type(state) is not tuple
        or len(state) != 5
    ):
        return KEEP  # a subclass of ndarray has a state of its own
    _, shape, dtype, fortran, data = state
    if type(fortran) not in (bool, int):
        return KEEP
    module = target.module.rpartition(".")[0]
    return _array(dtype, shape, data, module, fortran=bool(fortran))


def _from_buffer(module: str, args: Args) -> Any:
    """Return the array that numpy writes at protocol 5, when its buffer is in the pickle."""
    if len(args) not in (4, 5) or type(args[3]) is not str or args[3] not in ("C", "F"):
        return KEEP
    return _array(args[1], args[2], args[0], module, fortran=args[3] == "F")


def _scalar(module: str, args: Args) -> Any:
    dtype = args[0] if len(args) == 2 else None
    raw = bytes_of(args[1]) if len(args) == 2 else None
    if not isinstance(dtype, np.dtype) or raw is None:
        return KEEP
    if len(raw) != dtype.itemsize:
        raise PickleError(f"a numpy scalar of {dtype} with {len(raw):,} bytes")
    if not raw:
        return _remember(np.zeros((), dtype)[()], module)
    made = np.frombuffer(raw, dtype)
    _check_texts(made)
    return _remember(made[0], module)


#: By name, what takes the arguments of a call.
NUMPY_CALLS: dict[Name, Callable[[Args], Any]] = {
    **{(f"{at}.multiarray", "scalar"): functools.partial(_scalar, at) for at in _MODULES},
    **{(f"{at}.numeric", "_frombuffer"): functools.partial(_from_buffer, at) for at in _MODULES},
}

#: By name, what an object and its state make together.
NUMPY_BUILDS: dict[Name, Callable[[ForeignObject, Any], Any]] = {
    ("numpy", "dtype"): _build_dtype,
    **{(f"{module}.multiarray", "_reconstruct"): _build_array for module in _MODULES},
}

NUMPY_NAMES = frozenset([("numpy", "ndarray")])
