"""JSON texts of objects: hostile ones, and those that the first edition wrote."""

from __future__ import annotations

import datetime as dt
import json
import pathlib
from decimal import Decimal
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.convert.test_carried import VALUES, lazy
from tests.sampling import thorough
from torchzip.convert.carried import carry
from torchzip.convert.restored import restore
from torchzip.errors import FormatError, LimitError
from torchzip.limits import Limits
from torchzip.types import Device


def made_of(text: str, limits: Limits | None = None) -> Any:
    """Return what a text gives in a file with two tensors; only one kind of error may come."""
    tensors = {"a": lazy(np.zeros((2, 3), "f4")), "b": lazy(np.zeros(3, "i8"))}
    return restore(text, tensors.get, limits or Limits())


#: What an array of one byte is written with, up to its shape.
_BYTE = '{"root": {"numpy.array": ["numpy._core", "C", {"numpy.dtype": "|u1"}, {"bytes": "AA=="},'
BROKEN = {
    "no JSON": "",
    "cut": '{"root": [1, ',
    "no object": "[]",
    "no root": "{}",
    "more than a root": '{"root": 1, "roots": 2}',
    "nan": '{"root": NaN}',
    "twice": '{"root": {"dict": {"a": 1, "a": 2}}}',
    "kind": '{"root": {"os.system": "ls"}}',
    "no kind": '{"root": {}}',
    "two kinds": '{"root": {"tuple": [], "dict": {}}}',
    "option": '{"root": {"tuple": [], "stride": [1]}}',
    "option of a value": '{"root": {"bytes": "", "stride": [1]}}',
    "missing tensor": '{"root": {"tensor": "c"}}',
    "tensor by number": '{"root": {"tensor": 1}}',
    "tensor by list": '{"root": {"tensor": ' + "[" * 300 + "]" * 300 + "}}",
    "stride of another shape": '{"root": {"tensor": "a", "stride": [1]}}',
    "stride with gaps": '{"root": {"tensor": "a", "stride": [1, 3]}}',
    "negative stride": '{"root": {"tensor": "a", "stride": [-1, 2]}}',
    "true stride": '{"root": {"tensor": "a", "stride": [true, 2]}}',
    "gradient": '{"root": {"parameter": "a", "requires_grad": 1}}',
    "shared without a table": '{"root": {"shared": 0}}',
    "shared table": '{"root": 1, "shared": {}}',
    "shared true": '{"root": {"shared": true}, "shared": [1, 2]}',
    "shared negative": '{"root": {"shared": -1}, "shared": [1]}',
    "shared with itself": '{"root": {"shared": 0}, "shared": [{"shared": 0}]}',
    "shared in a ring":
        '{"root": {"shared": 0}, "shared": [{"tuple": [{"shared": 1}]}, {"shared": 0}]}',
    "list as a key": '{"root": {"dict": [[[], 1]]}}',
    "key twice": '{"root": {"dict": [[1, 1], [1.0, 2]]}}',
    "no pairs": '{"root": {"dict": [1]}}',
    "dict of a number": '{"root": {"dict": 1}}',
    "tensors of no names": '{"root": {"tensors": [1]}}',
    "tensors of an object": '{"root": {"tensors": {}}}',
    "list in a set": '{"root": {"set": [[]]}}',
    "list in a frozenset": '{"root": {"frozenset": [{"tuple": [[]]}]}}',
    "attribute": '{"root": {"OrderedDict": {}, "attributes": {"__class__": 1}}}',
    "attribute that numpy asks for": (
        '{"root": {"OrderedDict": {}, "attributes": {"__array_interface__": 1}}}'
    ),
    "attributes": '{"root": {"OrderedDict": {}, "attributes": []}}',
    "attributes of a dict": '{"root": {"dict": {}, "attributes": {"a": 1}}}',
    "factory": '{"root": {"defaultdict": {}, "factory": "eval"}}',
    "maxlen": '{"root": {"deque": [], "maxlen": -1}}',
    "int": '{"root": {"int": "12"}}',
    "digits": '{"root": ' + "1" * 10_000 + "}",
    "float": '{"root": {"float": "1.5"}}',
    "base64": '{"root": {"bytes": "a"}}',
    "no text of base64": '{"root": {"bytes": "\u00e9"}}',
    "utf-8": '{"root": {"str": "/w=="}}',
    "complex": '{"root": {"complex": ["1", 2]}}',
    "range": '{"root": {"range": [1, 2, 0]}}',
    "slice": '{"root": {"slice": [1, 2]}}',
    "datetime": '{"root": {"datetime": [{"bytes": "B+T/HwAAAAAAAA=="}]}}',
    "datetime as text": '{"root": {"datetime": ["2020-02-01T00:00:00"]}}',
    "zone": '{"root": {"datetime": [{"bytes": "B+QCAQAAAAAAAA=="}, "UTC"]}}',
    "time of a datetime": '{"root": {"time": [{"bytes": "B+QCAQAAAAAAAA=="}]}}',
    "date": '{"root": {"date": [5]}}',
    "month of a date": '{"root": {"date": [{"bytes": "B+QNAQ=="}]}}',
    "timedelta": '{"root": {"timedelta": [99999999999, 0, 0]}}',
    "timezone": '{"root": {"timezone": [{"timedelta": [5, 0, 0]}]}}',
    "timezone without an offset": '{"root": {"timezone": [5]}}',
    "decimal": '{"root": {"Decimal": ["x"]}}',
    "fraction": '{"root": {"Fraction": [1, 0]}}',
    "path": '{"root": {"PosixPath": [1]}}',
    "dtype of objects": '{"root": {"numpy.dtype": "|O8"}}',
    "scalar":
        '{"root": {"numpy.scalar": ["numpy._core", {"numpy.dtype": "<f8"}, {"bytes": "AA=="}]}}',
    "scalar of another module":
        '{"root": {"numpy.scalar": ["os", {"numpy.dtype": "|u1"}, {"bytes": "AA=="}]}}',
    "scalar of nothing": '{"root": {"numpy.scalar": []}}',
    "array": _BYTE + "2]}}",
    "array of a huge shape": _BYTE.replace("AA==", "") + "0, 4611686018427387904, 4]}}",
    "array of no order": _BYTE.replace('"C"', '"K"') + "1]}}",
    "array of nothing": '{"root": {"numpy.array": ["numpy._core"]}}',
    "size": '{"root": {"torch.Size": [1.5]}}',
    "torch dtype": '{"root": {"torch.dtype": "load"}}',
    "device": '{"root": {"torch.device": [1]}}',
    "device index": '{"root": {"torch.device": ["cuda", -1]}}',
    "0.1.0, datetime": '{"root": {"datetime": "2020-02-31T00:00:00"}}',
    "0.1.0, fold": '{"root": {"time": "00:00:00", "fold": 2}}',
    "0.1.0, zone": '{"root": {"datetime": "2020-02-01T00:00:00", "tzinfo": "UTC"}}',
    "0.1.0, timezone": '{"root": {"timezone": [5, 0, 0]}}',
    "0.1.0, scalar": '{"root": {"numpy.scalar": "AA==", "dtype": "<f8"}}',
    "0.1.0, array": '{"root": {"numpy.array": "AA==", "dtype": "|u1", "shape": [2]}}',
    "0.1.0, array of a huge shape":
        '{"root": {"numpy.array": "", "dtype": "|u1", "shape": [0, 4611686018427387904, 4]}}',
    "0.1.0, array without a shape": '{"root": {"numpy.array": "AA==", "dtype": "|u1"}}',
    "0.1.0, array of a shape that is none":
        '{"root": {"numpy.array": "AA==", "dtype": "|u1", "shape": 1}}',
    "0.1.0, unknown option": '{"root": {"torch.device": "cuda", "colour": 1}}',
    "0.1.0, bytearray": '{"root": {"bytearray": "A"}}',
    "option that never was": '{"root": {"complex": [1.0, 2.0], "index": 1}}',
    "nested values": '{"root": ' + '{"complex": [' * 300 + "1" + "]}" * 300 + "}",
}  # fmt: skip


@pytest.mark.parametrize("text", BROKEN.values(), ids=BROKEN.keys())
def test_broken_texts(text: str) -> None:
    """What is no text of `carry` is a FormatError."""
    with pytest.raises(FormatError):
        made_of(text)


_EAST = dt.timezone(dt.timedelta(hours=2))
_WEST = dt.timezone(dt.timedelta(hours=-5), "EST")
#: What torchzip 0.1.0 wrote for values that have another form today.
FIRST_EDITION: dict[str, Any] = {
    '{"datetime": "2020-02-03T04:05:06.000007"}': dt.datetime(2020, 2, 3, 4, 5, 6, 7),
    '{"datetime": "2020-02-03T04:05:06", "tzinfo": {"timezone": [0, 7200, 0]}}':
        dt.datetime(2020, 2, 3, 4, 5, 6, tzinfo=_EAST),
    '{"time": "01:02:03", "tzinfo": {"timezone": [-1, 68400, 0], "name": "EST"}}':
        dt.time(1, 2, 3, tzinfo=_WEST),
    '{"time": "01:02:03", "fold": 1}': dt.time(1, 2, 3, fold=1),
    '{"date": "2021-01-02"}': dt.date(2021, 1, 2),
    '{"timezone": [0, 7200, 0]}': _EAST,
    '{"timezone": [-1, 68400, 0], "name": "EST"}': _WEST,
    '{"timezone": [0, 0, 0]}': dt.UTC,
    '{"Decimal": "1.50"}': Decimal("1.50"),
    '{"PurePosixPath": "a/b"}': pathlib.PurePosixPath("a/b"),
    '{"bytearray": "YWJj"}': bytearray(b"abc"),
    '{"numpy.scalar": "AAAAAAAA+D8=", "dtype": "<f8"}': np.float64(1.5),
    '{"numpy.array": "AQID", "dtype": "|u1", "shape": [3, 1]}': np.array([[1], [2], [3]], "u1"),
    '{"numpy.array": "AQI=", "dtype": "|i1", "shape": [1, 2], "order": "F"}':
        np.array([[1, 2]], "i1"),
    '{"torch.device": "cuda", "index": 1}': Device("cuda", 1),
    '{"torch.device": "cpu"}': Device("cpu"),
}  # fmt: skip


@pytest.mark.parametrize("text", FIRST_EDITION)
def test_what_the_first_edition_wrote(text: str) -> None:
    """Files of torchzip 0.1.0 give the object that was put into them."""
    made, expected = made_of(f'{{"root": [{text}]}}')[0], FIRST_EDITION[text]
    assert repr(np.asarray(made) if isinstance(made, np.ndarray) else made) == repr(expected)
    assert type(made) is type(expected) or isinstance(expected, np.ndarray)


def test_missing_tensors_are_named() -> None:
    """A tensor that the file has not is named."""
    with pytest.raises(FormatError, match=r"no tensor 'layers\.3'"):
        made_of('{"root": [{"tensor": "a"}, {"parameter": "layers.3"}]}')


def test_limits_of_a_text() -> None:
    """Length, number, depth and digits are bounded, also where JSON is too deep for Python."""
    for text, limits, limit in (
        ('{"root": "' + "x" * 100 + '"}', Limits(header_nbytes=50), "header_nbytes"),
        ('{"root": [' + "[]," * 90 + "[]]}", Limits(containers=10), "containers"),
        ('{"root": ' + "[" * 90 + "]" * 90 + "}", Limits(nesting=89), "nesting"),
        ('{"root": {"int": "0x' + "f" * 4000 + '"}}', Limits(), "int_nbytes"),
    ):
        with pytest.raises(LimitError) as raised:
            made_of(text, limits)
        assert raised.value.limit == limit
    for deep in ("[", '{"tuple":[', '{"dict":{"a":'):
        with pytest.raises((FormatError, LimitError)):
            made_of('{"root": ' + deep * 100_000)
    chain = ",".join(f'{{"tuple": [{{"shared": {i + 1}}}]}}' for i in range(5000))
    with pytest.raises(LimitError):
        made_of(f'{{"root": {{"shared": 0}}, "shared": [{chain}, 1]}}')
    links = ",".join(f'{{"shared": {i + 1}}}' for i in range(5000))
    assert made_of(f'{{"root": {{"shared": 0}}, "shared": [{links}, 1]}}') == 1
    same_hash = ",".join(f'{{"int": "{hex(i * (2**61 - 1))}"}}' for i in range(9, 5000))
    with pytest.raises(LimitError, match="key_values"):
        made_of(f'{{"root": {{"set": [{same_hash}]}}}}')


_WORDS = sorted(
    {"root", "shared", "tensor", "parameter", "dict", "OrderedDict", "tuple", "set", "frozenset",
     "stride", "requires_grad", "attributes", "state", "factory", "maxlen", "Counter", "deque",
     "defaultdict", "numpy.array", "numpy.scalar", "dtype", "shape", "order", "torch.Size", "bytes",
     "datetime", "tzinfo", "timezone", "timedelta", "fold", "complex", "Decimal", "Fraction", "int",
     "PosixPath", "slice", "range", "float", "str", "a", "b", "<f4", "|u1", "AAAAAA==", "list",
     "tensors", ""}
)  # fmt: skip
_JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 70) | st.integers() | st.floats()
    | st.sampled_from(_WORDS) | st.text(),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(_WORDS), inner, max_size=3)
    ),
    max_leaves=20,
)  # fmt: skip


def survives(text: str) -> None:
    """Check that a text gives an object, which can be carried again, or one kind of error."""
    try:
        made = made_of(text)
    except (FormatError, LimitError):
        return
    carry(made, lambda tensor: "a")


@given(_JSON, st.lists(_JSON, max_size=3))
@thorough
def test_random_json(root: Any, shared: list[Any]) -> None:
    """Any JSON gives an object or a TorchZipError."""
    survives(json.dumps({"root": root, "shared": shared}, allow_nan=True))
    survives(json.dumps(root))


@given(VALUES, st.data())
def test_mutated_texts(value: Any, data: st.DataObject) -> None:
    """A text with some of it changed gives an object or a TorchZipError."""
    text = carry([value], lambda tensor: None).text
    assert text is not None
    for _ in range(data.draw(st.integers(1, 3))):
        start = data.draw(st.integers(0, len(text)))
        stop = data.draw(st.integers(start, min(len(text), start + 6)))
        piece = data.draw(
            st.sampled_from([*'[]{}",:01-e', '"shared":', "1e999", "null", "\\ud800"])
        )
        text = text[:start] + piece + text[stop:]
    survives(text)
