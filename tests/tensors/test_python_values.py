"""Values of the standard library and of numpy: what pickle writes is read back as itself."""

from __future__ import annotations

import datetime as dt
import io
import pathlib
import pickle
import warnings
from collections import defaultdict, deque
from decimal import Decimal
from fractions import Fraction
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import torchzip as tz
from tests.pickling.test_interpreter import run
from tests.pickling.test_interpreter_refusals import whole_table
from torchzip.errors import TorchZipError
from torchzip.pickling.reductions import reduce_object
from torchzip.tensors.numpy_values import PickledArray
from torchzip.types import ForeignObject


def _timedelta_without_a_unit() -> list[Any]:
    """Return one where numpy makes it: since 2.5 it warns, later it will not."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        try:
            return [np.timedelta64(5)]
        except (TypeError, ValueError):
            return []


VALUES = [
    defaultdict(list, a=[1]), defaultdict(None, a=1), defaultdict(int), deque([1, 2], maxlen=3),
    deque([1]), deque(), dt.datetime(2020, 1, 2, 3, 4, 5, 6, tzinfo=dt.UTC),
    dt.datetime.max.replace(tzinfo=dt.timezone(dt.timedelta(hours=5), "x")),
    dt.datetime(2020, 1, 1, tzinfo=dt.timezone(dt.timedelta(0))), dt.datetime.min,
    dt.date(2020, 1, 2), dt.time(23, 59, 59, 999_999), dt.timedelta(-1, 2, 3), Decimal("1.50"),
    Decimal("-Infinity"), Decimal("NaN"), Fraction(-1, 3), Fraction(5),
    pathlib.PurePosixPath("/a/b"), pathlib.PureWindowsPath("c:/a"), pathlib.Path("x/y"),
    frozenset([1]), range(3, 9, 2), slice(1, None, 2), 1 + 2j, np.float32(1.5), np.float64("nan"),
    np.bool_(True), np.int8(-3), np.complex64(1j), np.datetime64("2020-05"),
    np.timedelta64(5, ("s", 10)), *_timedelta_without_a_unit(), np.str_("text"), np.bytes_(b"raw"),
    np.dtype("f4"), np.dtype(">c8"), np.dtype([("a", "f4"), ("b", [("c", "i8")])]),
    np.dtype(ml_dtypes.float8_e4m3fn),
]  # fmt: skip
ARRAYS = [
    np.zeros((2, 3), "f4"),
    np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    np.arange(6, dtype=">i4").reshape(3, 2),
    np.array(5),
    np.zeros((0, 3)),
    np.zeros(0, "U0"),
    np.array(["ab", "c"]),
    np.array([b"x", b"yz"]),
    np.array(["2020-01-01"], "M8[D]"),
    np.array([(1, 2.0)], dtype=[("a", "i4"), ("b", "f8")]),
    np.array([(1, (2.0, 3))], dtype=np.dtype([("a", "i1"), ("b", "f8", (2,))], align=True)),
    np.array([1.5], ml_dtypes.bfloat16),
    np.arange(4).reshape(2, 2)[:, ::-1],
    np.zeros((1,) * 64, "i1"),
]


def read(data: bytes) -> Any:
    return run(data, whole_table())


def same(made: Any, value: Any) -> bool:
    """Return whether two values are equal and of one type, arrays to the bit."""
    if isinstance(value, np.ndarray):
        return bool(
            made.dtype == value.dtype
            and made.shape == value.shape
            and made.tobytes() == value.tobytes()
        )
    return type(made) is type(value) and repr(made) == repr(value)


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("value", [*VALUES, *ARRAYS], ids=repr)
def test_pickles_of_every_protocol(value: Any, protocol: int) -> None:
    """What Python pickles is read as the same value, and one that is shared as one object."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        data = pickle.dumps([value, value], protocol)
    first, second = read(data)
    assert same(first, value)
    if not isinstance(value, int | float | complex | slice):
        assert first is second


@pytest.mark.parametrize("value", [*VALUES, *ARRAYS], ids=repr)
def test_saved_again(value: Any) -> None:
    first, second = io.BytesIO(), io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tz.save({"config": [AsPickled(value)], "other": (1, 2)}, first)
        first.seek(0)
        root = tz.lazy_load(first).root
        assert same(root["config"][0], value)
        tz.save(root, second)
    second.seek(0)
    again = tz.load(second)
    assert same(again["config"][0], value)
    # Names of one letter are one object each in Python, so those of fields may become gets.
    if getattr(getattr(value, "dtype", None), "names", None) is None:
        assert second.getvalue() == first.getvalue()


class AsPickled:
    """Is written as Python pickles its value, arrays too."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __reduce_ex__(self, protocol: Any) -> Any:
        return reduce_object(self.value)


def test_pickled_array_is_an_array() -> None:
    """It stays numpy's own when it is saved; what is computed from it is a tensor."""
    file = io.BytesIO()
    array = np.arange(3.0)
    with pytest.warns(UserWarning, match="refuse"):
        tz.save([AsPickled(array)], file)
    file.seek(0)
    (made,) = tz.load(file)
    assert isinstance(made, PickledArray)
    file.seek(0)
    with tz.lazy_load(file) as checkpoint:
        assert list(checkpoint) == ["0"]  # a weight, wherever it comes from
        assert checkpoint["0"].numpy().tolist() == [0.0, 1.0, 2.0]
        assert isinstance(checkpoint.root[0], PickledArray)
    with pytest.warns(UserWarning, match="numpy"):
        tz.save([made], io.BytesIO())
    target = io.BytesIO()
    tz.save([made + 1, made[:2]], target)  # no warning: tensors
    target.seek(0)
    assert [each.tolist() for each in tz.load(target)] == [[1.0, 2.0, 3.0], [0.0, 1.0]]


def test_array_of_objects_stays_foreign() -> None:
    """With what is in it; and it is written back."""
    data = pickle.dumps(np.array([None, "text"], object), 2)
    made = read(data)
    assert isinstance(made, ForeignObject)
    assert made.state[-1] == [None, "text"]


def test_a_factory_that_is_a_strangers() -> None:
    """It leaves the call as it is."""
    made = read(b"ccollections\ndefaultdict\n(cbad\nfactory\ntR.")
    assert isinstance(made, ForeignObject)
    assert (made.module, made.name) == ("collections", "defaultdict")


#: (what, the call): arguments that the writers of these never give.
_ABSURD = [
    ("deque", b"ccollections\ndeque\n(]I-1\ntR."),
    ("deque of a number", b"ccollections\ndeque\n(I5\ntR."),
    ("datetime", b"cdatetime\ndatetime\n(C\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\xfftR."),
    ("short datetime", b"cdatetime\ndatetime\n(C\x01\x01tR."),
    ("date", b"cdatetime\ndate\n(C\x04\0\0\0\0tR."),
    ("timedelta", b"cdatetime\ntimedelta\n(I999999999999\nI0\nI0\ntR."),
    ("timezone", b"cdatetime\ntimezone\n(cdatetime\ntimedelta\n(I9\nI0\nI0\ntRtR."),
    ("decimal", b"cdecimal\nDecimal\n(X\x03\0\0\0abctR."),
    ("long decimal", b"cdecimal\nDecimal\n(X\x88\x13\0\0" + b"9" * 5000 + b"tR."),
    ("fraction", b"cfractions\nFraction\n(I1\nI0\ntR."),
    ("fraction of a power", b"cfractions\nFraction\n(X\x09\0\0\x001e1000000tR."),
    ("path", b"cpathlib\nPurePosixPath\n(I1\ntR."),
    ("nan as a key", b"}cdecimal\nDecimal\n(X\x04\0\0\0sNaNtRI1\ns."),
]


@pytest.mark.parametrize(("what", "data"), _ABSURD, ids=[row[0] for row in _ABSURD])
def test_absurd_arguments(what: str, data: bytes) -> None:
    with pytest.raises(TorchZipError):
        read(data)


_F4 = np.dtype("f4").__reduce__()


def _dtype_pickle(spelled: Any, state: tuple[Any, ...]) -> bytes:
    class Made:
        def __reduce__(self) -> Any:
            return (np.dtype, (spelled, False, True), state)

    return pickle.dumps(Made(), 2)


@pytest.mark.parametrize(
    ("spelled", "state"),
    [
        # flags that hide the objects in a structure: numpy itself would follow the bytes
        ("V8", (3, "|", None, ("a",), {"a": (1, 0)}, 8, 1, 0)),
        ("V8", (3, "|", None, ("a",), {"a": (np.dtype("f8"), 4)}, 8, 1, 16)),
        ("V8", (3, "|", None, ("a",), {"a": (np.dtype("f8"), -4)}, 8, 1, 16)),
        ("V8", (3, "|", None, ("a",), {}, 8, 1, 16)),
        ("V8", (3, "|", None, "a", {"a": (np.dtype("f8"), 0)}, 8, 1, 16)),
        ("V8", (3, "|", (np.dtype("f8"), (1 << 40,)), None, None, 8, 1, 0)),
        ("f3", (3, "<", None, None, None, -1, -1, 0)),
        ("O8", (3, "|", None, None, None, -1, -1, 0)),
        ("i4,O", (3, "|", None, None, None, -1, -1, 0)),
        ("U999999999", (3, "<", None, None, None, -1, -1, 8)),
        ("M8", (4, "<", None, None, None, -1, -1, 0, (None, (b"parsec", 1, 1, 1)))),
        ("M8", (4, "<", None, None, None, -1, -1, 0, (None, (b"D", -1, 1, 1)))),
        ("f4", (3, "<")),
        ("f4", None),
        (5, (3, "<", None, None, None, -1, -1, 0)),
    ],
)
def test_dtypes_that_lie(spelled: Any, state: Any) -> None:
    """No dtype comes of them that has objects or reaches outside itself."""
    try:
        made = read(_dtype_pickle(spelled, state))
    except TorchZipError:
        return
    assert isinstance(made, ForeignObject) or not made.hasobject
    if isinstance(made, np.dtype):
        assert np.zeros(0, made).tolist() == []


@given(st.data())
def test_mutated_pickles(data: Any) -> None:
    value = data.draw(st.sampled_from([*VALUES[:20], *ARRAYS]))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        raw = bytearray(pickle.dumps(value, data.draw(st.sampled_from([2, 4]))))
    for _ in range(data.draw(st.integers(1, 3))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    try:
        made = read(bytes(raw))
    except TorchZipError:
        return
    if isinstance(made, np.ndarray):
        made.tolist()


def test_keys_that_cannot_be_compared() -> None:
    """A scalar of numpy beside a tuple of the same hash, which numpy cannot tell apart."""
    number = next(i for i in range(10_000) if 1 << 60 < hash((1, i)) < (1 << 61) - 1)
    keys = [pickle.dumps(key, 2)[2:-1] for key in ((1, number), np.int64(hash((1, number))))]
    for first, second in (keys, keys[::-1]):
        with pytest.raises(TorchZipError, match="beside one of its hash"):
            read(b"\x80\x02}" + first + b"Ns" + second + b"Ns.")
