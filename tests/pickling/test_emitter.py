"""Values to bytes: the bytes of ``pickle.dumps(value, 2)``, which torch.save uses."""

from __future__ import annotations

import argparse
import array
import collections
import datetime
import decimal
import fractions
import functools
import ipaddress
import itertools
import logging
import math
import operator
import os
import pathlib
import pickle
import pickletools
import re
import string
import sys
import threading
import types
import uuid
from collections import Counter, OrderedDict, defaultdict, deque
from typing import Any

import pytest
from hypothesis import given

from tests import picklable as o
from tests.pickling.graphs import TREES_WITH_BYTEARRAYS, cycles
from torchzip.limits import Limits
from torchzip.pickling import emitter, reductions
from torchzip.pickling.emitter import Emitter
from torchzip.pickling.interpreter import Interpreter
from torchzip.pickling.table import Table
from torchzip.types import ForeignObject


def dump(value: Any) -> bytes:
    """Return the pickle of a value that needs no writers."""
    return Emitter({}).dump(value)


def same(ours: bytes, theirs: bytes) -> None:
    """Compare two pickles; show their opcodes where they differ."""
    if ours != theirs:
        shown = [
            [f"{opcode.name} {argument!r}" for opcode, argument, _ in pickletools.genops(data)]
            for data in (ours, theirs)
        ]
        assert shown[0] == shown[1]
        assert ours == theirs


_EDGES = sorted(
    {
        sign * (1 << bits) + delta
        for bits in (0, 7, 8, 15, 16, 31, 32, 63, 64, 255, 256, 2031, 2032, 2039, 2040, 2047, 4096)
        for delta in (-2, -1, 0, 1, 2)
        for sign in (1, -1)
    }
)
_COUNTS = [0, 1, 2, 3, 4, 5, 999, 1000, 1001, 1002, 1999, 2000, 2001, 3000]

_INTERNED = "cpu"
_COMPUTED = "".join(["c", "pu"])


def _values() -> dict[str, Any]:
    shared: list[Any] = [1, 2]
    made: dict[str, Any] = {
        "ints": _EDGES,
        "floats": [0.0, -0.0, 1.5, math.inf, -math.inf, math.nan, 5e-324, 1.7e308],
        "complex": [0j, 1 + 2j, complex(math.nan, -0.0)],
        "constants": [None, True, False, ..., NotImplemented],
        "types of constants": [type(None), type(...), type(NotImplemented)] * 2,
        "empty": [(), [], {}, set(), frozenset(), b"", "", bytearray(), OrderedDict()],
        "empty twice": [(), (), b"", b"", "", "", frozenset(), frozenset()],
        "strings": ["a", "é", "\ud800", "\0", "\n", "x" * 300, "x" * 70_000, "😀"],
        "interned and computed": [_INTERNED, "cpu", _COMPUTED, _COMPUTED, _INTERNED],
        "one character each": ["abc"[0], "a", "é"[0], "é", "ab"[1:], "b"],
        "bytes": [b"a", b"a", bytes(range(256)), b"\n" * 300],
        "bytearrays": [bytearray(b"abc"), bytearray(range(256))],
        "shared": [shared, shared, (shared, shared), {"s": shared}],
        "shared tuple": [(shared, 1)] * 3,
        "shared bytes": [made_bytes := b"xyz" * 3, made_bytes, bytearray(made_bytes)],
        "many memo numbers": [str(i) for i in range(300)] * 2,
        "many gets": [texts := [f"n{i}" for i in range(70_000)], texts[255], texts[65_535]],
        "nested": [[[[[[(((((1,),),),),)]]]]]],
        "deep": _deep(100),
        "sets": [{1}, frozenset([1]), {"a"}, {(1, 2)}, {None}, {frozenset([1]): {2}}],
        "tuples": [tuple(range(n)) for n in range(6)],
        "OrderedDict": OrderedDict(a=1, b=[2]),
        "Counter": [Counter(), Counter("abca")],
        "defaultdict": [defaultdict(list, a=[1]), defaultdict(None, {1: 2}), defaultdict(int)],
        "deque": [deque(), deque([1]), deque([1, 2], 5), deque(range(1001))],
        "range and slice": [range(3), range(1, 9, 2), slice(None), slice(1, 2, 3)],
        "classes": [int, str, bytes, dict, object, type, Exception, o.Plain, o.Data, o.Color],
        "classes with other Python 2 names": [
            collections.UserDict, itertools.zip_longest, functools.reduce, os.getcwd, BaseException,
            ModuleNotFoundError, map, filter, zip, range,
        ],
        "functions": [len, o.add, os.path.join, operator.add, math.sin, functools.reduce],
        "methods": [[].append, o.Plain(a=1).shout, o.Plain.make, o.Plain.Inner().method],
        "unbound": [o.Plain.Inner.method, str.upper, dict.fromkeys, bytes.maketrans],
        "nested classes": [o.Plain.Inner, o.Plain.Inner.Deep, o.Plain.Inner, o.Plain.Inner()],
        "nested class alone": o.Plain.Inner.Deep,
        "Plain": [o.Plain(), o.Plain(a=1, b=[2]), o.Plain(**{str(i): i for i in range(1001)})],
        "Slotted": [o.Slotted(1, "x"), o.SlottedAndMore(1, [2])],
        "getstate": [*map(o.WithGetstate, (None, {}, 0, "x", [1], ({}, {"a": 1})))],
        "getnewargs": [o.WithNewArgs(), o.WithNewArgs(1, "x", [2])],
        "getnewargs_ex": [o.WithNewArgsEx(1, key="x"), o.WithNewArgsEx(), o.WithNewArgsEx(k=[1])],
        "reduced": [
            o.Reduced(o.make_plain, ()),
            o.Reduced(o.make_plain, (1, [2])),
            o.Reduced(o.make_plain, (), {"state": 1}),
            o.Reduced(o.make_plain, (), None, o.ItemsOf([1, 2])),
            o.Reduced(o.make_plain, (), None, o.ItemsOf([1])),
            o.Reduced(o.make_plain, (), None, o.ItemsOf()),
            o.Reduced(o.make_plain, (), None, None, o.ItemsOf([("a", 1), ("b", 2)])),
            o.Reduced(o.make_plain, (), None, None, o.ItemsOf([("a", 1)])),
            o.Reduced(o.make_plain, (), {"s": 1}, o.ItemsOf([1]), o.ItemsOf([("a", 1)])),
            o.Reduced(o.make_plain, (), {"s": 1}, None, None, o.set_value),
            o.Reduced(o.make_plain, (), None, None, None, o.set_value),
            o.Reduced(o.make_plain, (), 0),
            o.Reduced(o.make_plain, (), ()),
        ],
        "by name": [o.BY_NAME, o.BY_NAME],
        "subclasses": [
            o.ListSubclass([1, 2]), o.DictSubclass(a=1), o.OrderedSubclass(a=1),
            o.TupleSubclass((1, 2)), o.IntSubclass(7), o.StrSubclass("x"), o.SetSubclass([1]),
            o.FloatSubclass(1.5), o.BytesSubclass(b"abc"), o.BytesSubclass(),
        ],
        "named tuples": [o.Pair(1, "x"), o.Point(1, None), o.Pair(o.Pair(1, 2), None)],
        "dataclasses": [o.Data(), o.Data(2, [1]), o.Frozen(), o.FrozenData(1, [2])],
        "enums": [o.Color.RED, o.Color.GREEN, o.Level.LOW, o.Bits.A, o.Bits.A | o.Bits.B],
        "enum twice": [o.Word.YES, o.Word.YES, o.Color.RED, o.Color.RED],
        "metaclasses": [o.WithMeta, o.WithMeta(), o.Meta],
        "copyreg": [o.Registered(1), o.Registered([2])],
        "metaclass in copyreg": o.WithRegisteredMeta,
        "partial": [functools.partial(int, base=2), functools.partial(o.add, 1)],
        "user collections": [o.User(a=1), o.Users([1, 2])],
        "knot": o.Knot(),
        "standard library": [
            argparse.Namespace(lr=0.1, layers=[1, 2]),
            datetime.datetime(2020, 1, 2, 3, 4, 5, 6, datetime.UTC),
            datetime.date(2020, 1, 2), datetime.timedelta(1, 2, 3),
            decimal.Decimal("1.50"), fractions.Fraction(1, 3),
            pathlib.PurePosixPath("a/b"), pathlib.PureWindowsPath("a/b"),
            uuid.UUID(int=1), re.compile("a+", re.IGNORECASE), types.SimpleNamespace(a=1),
            array.array("i", [1, 2]), ipaddress.ip_address("127.0.0.1"), string.Template("$x"),
            logging.getLogger("torchzip.test"), KeyError("x"), OSError(2, "No", "file"),
            operator.itemgetter(1), operator.attrgetter("a.b"), operator.methodcaller("f", 1, k=2),
            iter([1, 2]), iter((1,)), enumerate([1]), reversed([1, 2]),
            memoryview, zip([1], [2], strict=True), map(str, [1]),
            *([] if sys.version_info >= (3, 12) else [itertools.count(3)]),  # deprecated since
        ],
        "exception with state": _exception(),
        "deque of itself": _deque(),
    }  # fmt: skip
    for count in _COUNTS:
        made[f"list of {count}"] = list(range(count))
        made[f"tuple of {count}"] = tuple(range(count))
        made[f"dict of {count}"] = {i: str(i) for i in range(count)}
        made[f"set of {count}"] = set(range(count))
        made[f"OrderedDict of {count}"] = OrderedDict((i, i) for i in range(count))
        made[f"subclasses of {count}"] = [
            o.ListSubclass(range(count)),
            o.DictSubclass((i, i) for i in range(count)),
        ]
        made[f"Counter of {count}"] = Counter(range(count))
        made[f"namespace of {count}"] = argparse.Namespace(**{f"k{i}": i for i in range(count)})
    for index, value in enumerate(cycles()):
        made[f"cycle {index}"] = value
    return made


def _deep(depth: int) -> Any:
    made: Any = 1
    for _ in range(depth):
        made = [made]
    return made


def _exception() -> Exception:
    error = ValueError("x", 1)
    error.extra = [1]  # type: ignore[attr-defined]
    return error


def _deque() -> deque[Any]:
    made: deque[Any] = deque([1])
    made.append(made)
    return made


_VALUES = _values()


@pytest.mark.parametrize("name", _VALUES)
def test_bytes_of_pickle(name: str) -> None:
    """A value gives the bytes of CPython's pickler at protocol 2."""
    value = _VALUES[name]
    if name == "standard library":  # reducing an iterator may move it; one object at a time
        for item in value:
            same(dump(item), pickle.dumps(item, 2))
    else:
        same(dump(value), pickle.dumps(value, 2))


def test_all_values_at_once() -> None:
    """Memo numbers go on from one value to the next as CPython counts them."""
    apart = ("standard library", "metaclass in copyreg")
    values = [value for name, value in _VALUES.items() if name not in apart]
    same(dump(values), pickle.dumps(values, 2))


@given(TREES_WITH_BYTEARRAYS)
def test_any_tree(value: Any) -> None:
    """Any tree of plain values gives pickle's bytes."""
    same(dump(value), pickle.dumps(value, 2))


@given(TREES_WITH_BYTEARRAYS)
def test_any_tree_inside_objects(value: Any) -> None:
    """Objects around the same subtree find it in the memo as pickle does."""
    nested = [
        o.Plain(a=value, b=[value]), o.Data(1, [value]), o.Pair(value, value),
        o.Reduced(o.make_plain, (value,), {"s": value}, o.ItemsOf([value, value])),
        defaultdict(list, {"v": value}), deque([value]), o.WithNewArgsEx(value, k=value),
    ]  # fmt: skip
    same(dump(nested), pickle.dumps(nested, 2))


def test_object_that_contains_itself_in_its_arguments() -> None:
    """It is popped and a get written, as pickle does."""
    knot = o.KnotInArguments()
    holder = o.Plain(knot=knot)
    knot.box.append(o.Reduced(o.make_plain, (holder,)))
    same(dump(holder), pickle.dumps(holder, 2))
    tied = o.KnotInArguments()
    tied.box.append(o.TupleSubclass((tied.box,)))
    same(dump(tied), pickle.dumps(tied, 2))


def test_temporary_objects_keep_their_numbers() -> None:
    """An object that a reduction makes anew stays alive, so its address is not used again."""
    values = [o.Reduced(o.make_plain, ([i], f"text {i}", (i, i))) for i in range(500)]
    same(dump(values), pickle.dumps(values, 2))


# -- what cannot be saved ------------------------------------------------------------------------


def _local() -> Any:
    def inner() -> None:
        pass

    return inner


class _Hidden:
    """Is not what its name says."""


_Hidden.__qualname__ = "dump"


class _Raises:
    def __reduce__(self) -> tuple[Any, ...]:
        raise ZeroDivisionError("no way")


class _Odd:
    def __init__(self, reduction: Any) -> None:
        self.reduction = reduction

    def __reduce__(self) -> Any:
        return self.reduction


@pytest.mark.parametrize("pad", [0, 5, 1500])
@pytest.mark.parametrize(
    "make",
    [
        pytest.param(lambda: lambda: 0, id="lambda"),
        pytest.param(_local, id="local function"),
        pytest.param(lambda: _Hidden, id="hidden class"),
        pytest.param(threading.Lock, id="lock"),
        pytest.param(lambda: (i for i in [1]), id="generator"),
        pytest.param(_Raises, id="reduce raises"),
        pytest.param(lambda: _Odd(7), id="reduce gives an int"),
        pytest.param(lambda: _Odd((1,)), id="reduce gives one element"),
        pytest.param(lambda: _Odd((len, (), *[None] * 5)), id="reduce gives seven elements"),
        pytest.param(lambda: _Odd((o.make_plain, (), None, None, iter([1]))), id="items no pairs"),
        pytest.param(lambda: _Odd((o.make_plain, (), None, None, iter([(1, 2, 3)]))), id="triples"),
        pytest.param(lambda: _Odd((o.make_plain, [1])), id="arguments are a list"),
        pytest.param(lambda: _Odd((7, ())), id="callable is an int"),
        pytest.param(lambda: _Odd((o.make_plain, (), None, 7)), id="items are an int"),
        pytest.param(lambda: _Odd("no_such_name"), id="name that is not there"),
        pytest.param(lambda: types.ModuleType("m"), id="module"),
    ],
)
def test_error_says_where(make: Any, pad: int) -> None:
    """What cannot be saved is named by its path, in whatever batch it stands."""
    value = make()
    tree = {"model": {"layers": [*range(pad), {"weight": (1, value)}]}}
    with pytest.raises((TypeError, ValueError)) as caught:
        dump(tree)
    assert str(caught.value).startswith(f"model.layers.{pad}.weight.1: ")


@pytest.mark.parametrize(
    ("tree", "beginning"),
    [
        pytest.param(lambda: 0, "the object itself: cannot save", id="the root"),
        pytest.param(
            {**dict.fromkeys(map(str, range(1500))), "bad": lambda: 0}, "bad: ", id="a later batch"
        ),
        pytest.param(deque([*range(2500), lambda: 0]), "2500: ", id="a place in all batches"),
        pytest.param(
            {"a": {"x": [1, {2: 3}]}, "s": {1, 2}, "o": o.Plain(a=1), "b": [lambda: 0]}, "b.0: ",
            id="after a subtree that is done",
        ),
    ],
)  # fmt: skip
def test_path_in_an_error(tree: Any, beginning: str) -> None:
    """A value is called by its keys and places from the root, which has no path."""
    with pytest.raises(TypeError) as caught:
        dump(tree)
    assert str(caught.value).startswith(beginning)


def test_too_deep_is_an_error_with_a_place() -> None:
    """A tree deeper than the stack is a ValueError, not a RecursionError."""
    tree: Any = []
    for _ in range(100_000):
        tree = [tree]
    with pytest.raises(ValueError, match=r"deep\.0\.0.*nested too deeply"):
        dump({"deep": tree})


def test_name_with_a_line_break() -> None:
    """A name that GLOBAL cannot hold is refused; it could be read as two."""
    with pytest.raises(ValueError, match="line break"):
        dump(ForeignObject("m", "a\nb"))


def test_emitter_changes_nothing() -> None:
    """The value is the same afterwards, also if it could not be saved."""
    tree = {"a": [1, 2], "b": o.Plain(x=[1])}
    before = pickle.dumps(tree, 2)
    dump(tree)
    assert pickle.dumps(tree, 2) == before


# -- what torch refuses --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (o.Plain(), "tests.picklable.Plain"),
        (frozenset(), "builtins.frozenset"),
        (b"", "builtins.bytes"),
        (deque(), "collections.deque"),
        (len, "builtins.len"),
        (1 << 3000, "an int of 256 bytes or more"),
        (cycles()[5], "a tuple that contains itself"),
    ],
    ids=lambda value: str(type(value).__name__),
)
def test_refused_lists_path_and_reason(value: Any, reason: str) -> None:
    """`refused` says what torch's default loader will not take, and where it is."""
    emitter = Emitter({})
    emitter.dump({"fine": [1, "x", {2}, b"x", 1j], "odd": [0, value]})
    assert ("odd.1", reason) in [(path[:5], why) for path, why in emitter.refused]


def test_nothing_is_refused_of_what_torch_takes() -> None:
    """What the default loader takes is not listed."""
    emitter = Emitter({})
    emitter.dump(
        [1, 2.5, "x", None, True, (1,), {"a": []}, {1}, b"x", bytearray(), bytearray(b"x"), 1j,
         OrderedDict(a=1), Counter("ab"), 1 << 2000]
    )  # fmt: skip
    assert emitter.refused == []


# -- foreign objects -----------------------------------------------------------------------------

_FOREIGN = [
    name for name in _VALUES if name not in ("standard library", "reduced", "one character each")
]


def read(data: bytes, table: Table | None = None) -> Any:
    """Return what the interpreter makes of a pickle without knowing any name."""
    return Interpreter(data, table or Table(), Limits()).run()


def _qualnames(value: Any) -> list[str]:
    """Return what a value, or each item of a list, is by name."""
    return [
        getattr(each, "__qualname__", type(each).__qualname__)
        for each in (value if isinstance(value, list) else [value])
    ]


@pytest.mark.parametrize("name", _FOREIGN)
def test_foreign_objects_are_written_as_they_were(name: str) -> None:
    """An object that is read without its class is written with the same bytes."""
    data = pickle.dumps(_VALUES[name], 2)
    if name in ("methods", "unbound") and not reductions.numbers_parts_of_names():
        # Without the class str, str.upper could be a nested class, which is now written otherwise.
        data = dump(read(data))
        assert _qualnames(pickle.loads(data)) == _qualnames(_VALUES[name])
    same(dump(read(data)), data)


@pytest.mark.parametrize("numbers_parts", [True, False])
@pytest.mark.parametrize("name", ["methods", "unbound", "nested classes", "nested class alone"])
def test_names_with_dots_of_any_python(
    name: str, numbers_parts: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both forms of a nested class are read as one thing, and pickle finds it again."""
    monkeypatch.setattr(emitter, "numbers_parts_of_names", lambda: numbers_parts)
    value = _VALUES[name]
    data = dump(value)
    for written in (data, dump(read(data))):
        assert _qualnames(pickle.loads(written)) == _qualnames(value)


_ONE_BY_ONE = [
    (name, index)
    for name in ("standard library", "reduced")
    for index in range(len(_VALUES[name]))
    if (name, index) != ("reduced", 8)
]


@pytest.mark.parametrize(("name", "index"), _ONE_BY_ONE)
def test_foreign_objects_one_by_one(name: str, index: int) -> None:
    """Whatever the standard library reduces to, and arguments, state, items and setter."""
    data = pickle.dumps(_VALUES[name][index], 2)
    same(dump(read(data)), data)


@given(TREES_WITH_BYTEARRAYS)
def test_any_tree_is_read_and_written(value: Any) -> None:
    """Reading and writing any tree is the identity on bytes, though sets and bytes are foreign."""
    nested = [value, o.Plain(a=value), o.Pair(value, value)]
    # Once read, strings of one character are shared objects, which they need not be before.
    data = dump(read(pickle.dumps(nested, 2)))
    same(dump(read(data)), data)


@pytest.mark.parametrize("protocol", [3, 4, 5])
@pytest.mark.parametrize(
    "name", ["Plain", "getnewargs", "getnewargs_ex", "dataclasses", "subclasses", "nested classes"]
)
def test_foreign_objects_of_later_protocols(name: str, protocol: int) -> None:
    """What a later protocol says in its own opcodes is equal when Python loads it again."""
    value = _VALUES[name]
    again = pickle.loads(dump(read(pickle.dumps(value, protocol))))
    assert pickle.dumps(again, 4) == pickle.dumps(pickle.loads(pickle.dumps(value, protocol)), 4)


@pytest.mark.parametrize(
    "data",
    [
        b"\x80\x02\x82\xf1.",
        b"\x80\x02\x83\xf1\x02)Rq\x00.",
        b"\x80\x02\x84\xf1\x02\x03\x00K\x01\x85q\x00\x81q\x01h\x01h\x01\x87q\x02.",
        b"\x80\x02cm\nn\nq\x00)Rq\x01(K\x01\x90.",
        b"\x80\x02cm\nn\nq\x00)\x81q\x01(K\x01\x90}q\x02b.",
    ],
)
def test_extensions_and_items_of_sets_are_written_as_they_were(data: bytes) -> None:
    """Opcodes that Python's own pickler does not write at protocol 2 are written all the same."""
    same(dump(read(data)), data)


@pytest.mark.parametrize(
    "name",
    ["extension 99999999999", "extension -1", "extension 0", "extension x", "extension \u0667",
     "extension 1_0", "extension " + "9" * 5000],
    ids=lambda name: ascii(name)[:30],
)  # fmt: skip
def test_names_like_extensions_are_names(name: str) -> None:
    """A file may say so by GLOBAL; what is no code is written as the name that it was."""
    data = b"\x80\x02ccopy_reg\n%b\nq\0." % name.encode()
    same(dump(read(data)), data)


def test_writers_are_found_by_base_class() -> None:
    """A writer serves the subclasses of its type, and gets the emitter and the value."""
    seen: list[Any] = []

    def write(emitter: Emitter, value: Any) -> None:
        seen.append(value)
        emitter.write(b"N")

    value = o.OrderedSubclass(a=1)
    assert Emitter({OrderedDict: write}).dump([value, value]) == b"\x80\x02]q\x00(NNe."
    assert seen == [value, value]
