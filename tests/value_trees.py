"""Trees of plain values, ordinary objects and torch's own leaves, for the tests against torch."""

from __future__ import annotations

import argparse
import datetime
import decimal
import fractions
import functools
import math
import operator
import pathlib
import random
import sys
import uuid
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable
from typing import Any

from tests.picklable import (
    BY_NAME,
    Color,
    Data,
    DictSubclass,
    FrozenData,
    IntSubclass,
    Level,
    ListSubclass,
    OrderedSubclass,
    Plain,
    Point,
    Slotted,
    SlottedAndMore,
    StrSubclass,
    TupleSubclass,
    WithNewArgs,
    WithNewArgsEx,
    WithSetter,
    WithState,
    add,
)
from tests.torch_oracle import QUANTIZED_DTYPES, TENSOR_DTYPES, tensor

Make = Callable[[Any], Any]

DTYPE_NAMES = (
    *TENSOR_DTYPES, *QUANTIZED_DTYPES,
    *(f"{sign}int{bits}" for sign in ("", "u") for bits in range(1, 8)),
)  # fmt: skip


def _strings_of_the_writer(t: Any) -> Any:
    words = ["cpu", "storage", "latin1", "meta", "mps", "conj", "neg", "0", "cuda:0", "cuda"]
    return [words, tensor(t, "float32", (1,)), words, b"bytes", t.device("cpu"), "cpu", "storage"]


def _strings_of_the_writer_made_anew(t: Any) -> Any:
    words = ["".join(list(word)) for word in ("cpu", "storage", "latin1", "meta")]
    return [words, tensor(t, "float32", (1,)), words, b"bytes"]


def _same_string_twice(t: Any) -> Any:
    one = "".join(["on", "e"])
    return {one: one, "x": [one, "".join(["on", "e"])]}


def _one_character_strings(t: Any) -> Any:
    text = "abc\xe9\u20ac"
    return [text[0], text[1:2], "a", "b", text[3], "\xe9", text[4], chr(0x20AC), text[5:], ""]


def _with_attribute(value: Any) -> Any:
    value.attribute = ["attribute"]
    return value


VALUES: dict[str, Make] = {
    # Plain values.
    "ints around the powers of two": lambda t: [
        s * 2**e + d for e in range(2101) for s in (1, -1) for d in (-1, 0, 1)
    ],
    "ints up to 255 bytes": lambda t: [
        s * 2**e + d for e in range(0, 2039) for s in (1, -1) for d in (-1, 0)
    ],
    "int of 256 bytes": lambda t: {"x": 2**2039},
    "int of minus 255 bytes": lambda t: {"x": -(2**2039)},
    "int of minus 256 bytes": lambda t: {"x": -(2**2039) - 1},
    "a very long int": lambda t: 3**9000,
    "random ints": lambda t: [random.Random(i).getrandbits(i) * (-1) ** i for i in range(1, 400)],
    "bools": lambda t: [True, False, {True: False}],
    "None": lambda t: None,
    "Ellipsis": lambda t: [..., ...],
    "NotImplemented": lambda t: [NotImplemented],
    "types of the singletons": lambda t: [type(None), type(...), type(NotImplemented)] * 2,
    "floats": lambda t: [0.0, -0.0, 1.5, 1e308, 5e-324, float("inf"), -float("inf"), float("nan"),
                         sys.float_info.epsilon, 0.1],
    "complex": lambda t: [1j, complex(-0.0, 2), complex(float("inf"), 1), 3 + 0j],
    "bytes": lambda t: [b"a", b"abc", bytes(range(256)), b"\xff" * 300, b"\r\n"],
    "bytes, empty": lambda t: [b"", b""],
    "bytearray": lambda t: [bytearray(), bytearray(b"abc"), bytearray(range(256))],
    "bytearray twice": lambda t: [bytearray(b"x")] * 2,
    "long bytes": lambda t: [bytes(70000), bytearray(70000)],
    "range": lambda t: [range(3), range(1, 10, 2), range(5, -5, -1), range(2**70)],
    "slice": lambda t: [slice(None), slice(1, 2, 3), slice("a", (1,), None)],
    "set of mixed": lambda t: {1, "a", (2, 3), None, b"x"},
    "set of one": lambda t: [{5}, frozenset([5]), frozenset()],
    "Counter with attributes": lambda t: [Counter("abracadabra"), Counter(a=-1)],
    "keys of many types": lambda t: {1: 1, "1": 2, (1, "x"): 3, None: 4, 2.5: 5, b"k": 6, -1: 7},
    "keys that are shared": lambda t: [{"alpha": 1, "beta": {"alpha": 2}}, {"beta": "alpha"}],
    "strings": lambda t: [
        "", "a", "\xe9", "\u20ac", "\U0001f600", "\ud800", "a\udfffb", "\0", "a\nb", "x" * 255,
        "x" * 256, "\x7f", "\x80", "\xff", "\u0100", "'", '"', "\\", "\u2028",
    ],
    "strings_of_the_writer": _strings_of_the_writer,
    "strings_of_the_writer_made_anew": _strings_of_the_writer_made_anew,
    "same_string_twice": _same_string_twice,
    "one_character_strings": _one_character_strings,
    "strings_of_the_writer_after_it": lambda t: [
        tensor(t, "float32", (1,)), b"bytes", "cpu", "storage", "latin1", "0",
    ],
    "storage_keys_as_strings": lambda t: {str(i): tensor(t, "float32", (1,)) for i in range(12)},
    # Ordinary objects.
    "plain object": lambda t: Plain(a=1, b=[2]),
    "plain object without attributes": lambda t: [Plain(), Plain()],
    "plain object with a tensor": lambda t: Plain(x=tensor(t, "float32", (2,)), y="y"),
    "dataclass": lambda t: [Data(), Data(3, [4])],
    "dataclass with a parameter": lambda t: Data(t.nn.Parameter(tensor(t, "float32", (2,)))),
    "frozen dataclass with slots": lambda t: FrozenData(5),
    "slots": lambda t: Slotted(*[[1]] * 2),
    "slots and a dict": lambda t: SlottedAndMore(*[[1]] * 2),
    "enum": lambda t: [Color.RED, Color.GREEN, Color.RED, Color],
    "int enum": lambda t: {Level.LOW: Level.HIGH},
    "named tuple": lambda t: [Point(1, 2), Point(tensor(t, "int8", (1,)), None)],
    "nested class": lambda t: [Plain.Inner, Plain.Inner.Deep, Plain, Plain.Inner],
    "object of a nested class": lambda t: [Plain.Inner(), Plain.Inner.Deep()],
    "functions": lambda t: [add, len, math.sqrt, operator.itemgetter, functools.reduce, add],
    "methods": lambda t: [[1, 2].append, "abc".upper, Data.__init__, dict.fromkeys],
    "classes": lambda t: [int, str, dict, list, object, type, Exception, OrderedDict, range, set],
    "more classes": lambda t: [bytes, float, complex, tuple, bool, zip, map, open, print],
    "Fraction": lambda t: fractions.Fraction(3, 7),
    "Decimal": lambda t: [decimal.Decimal("1.50"), decimal.Decimal("NaN")],
    "datetime": lambda t: datetime.datetime(2024, 2, 29, 12, 30, tzinfo=datetime.UTC),
    "date and time": lambda t: [
        datetime.date(2024, 1, 2), datetime.time(3, 4), datetime.timedelta(5, 6),
    ],
    "Path": lambda t: [pathlib.PurePosixPath("/a/b"), pathlib.PureWindowsPath("c:/x")],
    "UUID": lambda t: uuid.UUID(int=5),
    "defaultdict": lambda t: defaultdict(int, a=1),
    "defaultdict of tensors": lambda t: defaultdict(list, a=[tensor(t, "float32", (2,))]),
    "deque": lambda t: [deque([1, 2, 3]), deque(maxlen=2), deque([1, 2], maxlen=5)],
    "deque of tensors": lambda t: deque([tensor(t, "float32", (2,)), 5]),
    "partial": lambda t: functools.partial(add, 1, right=2),
    "partial without arguments": lambda t: functools.partial(add),
    "Namespace": lambda t: argparse.Namespace(lr=0.1, layers=[1, 2], name="run"),
    "new args": lambda t: WithNewArgs(1, "two"),
    "new args with keywords": lambda t: WithNewArgsEx(1, 2, key="word"),
    "own state": lambda t: WithState([1]),
    "state set by a function": lambda t: WithSetter(),
    "by name": lambda t: [BY_NAME, BY_NAME],
    "str subclass": lambda t: [StrSubclass("abc"), {StrSubclass("k"): 1}],
    "int subclass": lambda t: IntSubclass(5),
    "tuple subclass": lambda t: TupleSubclass((1, 2)),
    "list subclass with attributes": lambda t: _with_attribute(ListSubclass([1, 2])),
    "dict subclass with attributes": lambda t: _with_attribute(DictSubclass(a=1)),
    "dict subclass of tensors": lambda t: DictSubclass(a=tensor(t, "float32", (2,))),
    "OrderedDict subclass": lambda t: [OrderedSubclass(a=1), _with_attribute(OrderedSubclass(b=2))],
    "exception": lambda t: ValueError("message", 5),
    "exception with attributes": lambda t: _with_attribute(KeyError("k")),
    "itemgetter": lambda t: operator.itemgetter(1, 2),
    "random state": lambda t: random.Random(3).getstate(),
    "one object in many places": lambda t: [[x, (x, {x: x})] for x in [FrozenData(7)]],
    # torch's own leaves.
    "dtypes": lambda t: [getattr(t, name) for name in DTYPE_NAMES] * 2,
    "a dtype": lambda t: t.float32,
    "dtypes as keys": lambda t: {t.float32: t.half, t.bool: "bool"},
    "dtype of a tensor before it": lambda t: [t.uint16, tensor(t, "uint16", (2,)), t.uint16],
    "dtype of a tensor after it": lambda t: [tensor(t, "complex32", (2,)), t.complex32],
    "sizes": lambda t: [t.Size([]), t.Size([1]), t.Size([2, 3]), t.Size([2, 3, 4, 5, 70000])],
    "size of a tensor": lambda t: [tensor(t, "float32", (2, 3)).size()] * 2,
    "device cpu": lambda t: t.device("cpu"),
    "devices": lambda t: [t.device(name) for name in ("cpu", "cuda", "cuda:1", "meta", "xpu:0")],
    "device twice": lambda t: [t.device("cuda", 2)] * 2,
    "equal devices": lambda t: [t.device("cuda", 2), t.device("cuda", 2), t.device("cpu:0")],
    "layouts": lambda t: [t.strided, t.sparse_coo, t.sparse_csr, t.strided, t.sparse_csc],
    "more layouts": lambda t: [t.sparse_bsr, t.sparse_bsc, t.jagged, t._mkldnn],
    "qschemes": lambda t: [
        t.per_tensor_affine, t.per_tensor_symmetric, t.per_channel_affine, t.per_channel_symmetric,
        t.per_channel_affine_float_qparams, t.per_tensor_affine,
    ],
    "leaves together": lambda t: {
        "dtype": t.bfloat16, "device": t.device("cuda:0"), "size": t.Size((1, 2)),
        "layout": t.strided, "x": tensor(t, "bfloat16", (1, 2)), "again": t.bfloat16,
        "location": "cuda:0",
    },
}  # fmt: skip
