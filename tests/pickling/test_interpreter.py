"""Bytes to values: equal to what pickle gives for plain trees, inert for everything else."""

from __future__ import annotations

import argparse
import contextlib
import copyreg
import datetime
import functools
import pickle
import sys
from collections import Counter, OrderedDict, defaultdict, deque
from decimal import Decimal
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests import builders as b
from tests.pickling.graphs import TREES, TREES_WITH_BYTEARRAYS, cycles, graph
from tests.sampling import costly, thorough
from torchzip.errors import PickleError, TorchZipError
from torchzip.limits import Limits
from torchzip.pickling.interpreter import Interpreter
from torchzip.pickling.opcodes import OPCODES
from torchzip.pickling.table import Table
from torchzip.types import ForeignObject

PLAIN = Table(
    calls={
        ("_codecs", "encode"): lambda args: args[0].encode(args[1]),
        ("builtins", "bytes"): lambda args: bytes(*args),
        ("builtins", "bytearray"): lambda args: bytearray(*args),
        ("builtins", "complex"): lambda args: complex(*args),
        ("builtins", "set"): lambda args: set(*args),
        ("builtins", "frozenset"): lambda args: frozenset(*args),
        ("collections", "OrderedDict"): lambda args: OrderedDict(*args),
    }
)


def run(data: bytes, table: Table | None = None, limits: Limits | None = None) -> Any:
    return Interpreter(data, table or Table(), limits or Limits()).run()


# -- equal to pickle -------------------------------------------------------------------------


@given(TREES, st.integers(0, 5))
def test_plain_trees_come_back(value: Any, protocol: int) -> None:
    """What pickle writes of plain values is read back equal, with its sharing."""
    data = pickle.dumps(value, protocol)
    assert graph(run(data, PLAIN)) == graph(pickle.loads(data))


@costly
@given(TREES_WITH_BYTEARRAYS, st.integers(2, 5))
def test_bytearrays_come_back(value: Any, protocol: int) -> None:
    """A bytearray is one opcode in protocol 5 and a call below."""
    data = pickle.dumps(value, protocol)
    assert graph(run(data, PLAIN)) == graph(pickle.loads(data))


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("which", range(len(cycles())))
def test_cycles_come_back(which: int, protocol: int) -> None:
    data = pickle.dumps(cycles()[which], protocol)
    assert graph(run(data, PLAIN)) == graph(pickle.loads(data))


@pytest.mark.parametrize("protocol", range(6))
def test_shared_object_is_one_object(protocol: int) -> None:
    """The memo aliases; it does not copy."""
    shared: dict[str, int] = {"a": 1}
    made = run(pickle.dumps([shared, (shared, {"b": shared})], protocol), PLAIN)
    made[0]["new"] = 2
    assert made[1][0] is made[0]
    assert made[1][1]["b"] is made[0]


@pytest.mark.parametrize("protocol", range(6))
def test_large_containers_come_back(protocol: int) -> None:
    """Batches and memo numbers past one byte make no difference."""
    value = {
        "list": list(range(2001)),
        "texts": [str(i) for i in range(300)],
        "dict": {i: (i,) for i in range(1001)},
        "long": "x" * 70_000,
        "bytes": bytes(range(256)) * 300,
        "int": 1 << 3000,
        "negative": -(1 << 2039),
    }
    assert run(pickle.dumps(value, protocol), PLAIN) == value


def test_several_pickles_follow_one_another() -> None:
    """`position` is behind the STOP of each pickle, and the memo is not kept."""
    data = pickle.dumps([1], 2) + pickle.dumps("two", 4)
    interpreter = Interpreter(data + b"\x80\x02h\x00.", Table(), Limits())
    assert interpreter.run() == [1]
    assert interpreter.run(interpreter.position) == "two"
    assert interpreter.position == len(data)
    with pytest.raises(PickleError, match="memo number 0"):
        interpreter.run(interpreter.position)


def test_globals_are_listed_once_by_their_python3_names() -> None:
    """`globals` has every name in the order of first mention, as Python 3 spells it."""
    data = b.stream(
        b.name("__builtin__", "xrange"), b"0", b.name("copy_reg", "x"), b"0",
        b.name("__builtin__", "xrange"),
    )  # fmt: skip
    interpreter = Interpreter(data, Table(), Limits())
    interpreter.run()
    assert interpreter.globals == [("builtins", "range"), ("copyreg", "x")]


def test_python2_names_are_translated_below_protocol_3_only() -> None:
    old = run(b.stream(b.name("__builtin__", "xrange")))
    new = run(b.stream(b.name("__builtin__", "xrange"), protocol=3))
    assert (old.module, old.name) == ("builtins", "range")
    assert (new.module, new.name) == ("__builtin__", "xrange")


def test_python2_strings() -> None:
    """A string of Python 2 is text if it is UTF-8, and bytes if not."""
    assert run(b"U\x03abc.") == "abc"
    assert run(b"U\x02\xff\xfe.") == b"\xff\xfe"
    assert run(b"T\x03\0\0\0abc.") == "abc"
    assert run(b"S'a\\x41\\n'\n.") == "aA\n"
    assert run(b'S"\\xff"\n.') == b"\xff"


@pytest.mark.parametrize(
    ("data", "value"),
    [
        (b"I42\n.", 42),
        (b"I01\n.", True),
        (b"I00\n.", False),
        (b"L42L\n.", 42),
        (b"L-7\n.", -7),
        (b"F1.5\n.", 1.5),
        (b"Vab\\u0041\n.", "abA"),
        (b"Vab\r\n.", "ab\r"),  # a text as it is
        (b"I42\r\n.", 42),  # a line of a file that was written as text
        (b"(I1\nI2\nl.", [1, 2]),
        (b"(I1\nI2\nd.", {1: 2}),
        (b"(I1\nt.", (1,)),
        (b"N2\x86.", (None, None)),
        (b"(I1\nI2\n1N.", None),
        (b"I1\nI2\n0.", 1),
        (b"((0I5\nt.", (5,)),
        (b"\x8f(K\x01K\x02\x90.", {1, 2}),
        (b"(K\x01\x91.", frozenset([1])),
        (b"N\x940h\x00.", None),
        (b"]p7\n0g7\n.", []),
        (b"\x8a\x00.", 0),
        (b"\x8b\x02\0\0\0\xff\xff.", -1),
        (b"\x8d\x02\0\0\0\0\0\0\0hi.", "hi"),
        (b"\x8e\x02\0\0\0\0\0\0\0hi.", b"hi"),
        (b"\x96\x02\0\0\0\0\0\0\0hi.", bytearray(b"hi")),
        (b"X\x03\0\0\0\xed\xa0\x80.", "\ud800"),
    ],
)
def test_single_opcodes(data: bytes, value: Any) -> None:
    """Opcodes that current writers do not use have their meaning all the same."""
    assert run(data) == value
    assert pickle.loads(data) == value


@pytest.mark.parametrize(
    "data", [b"]2\x86.", b.stream(b.name("a", "b"), b.name("a", "b"), b"\x86")]
)
def test_one_object(data: bytes) -> None:
    """DUP is no copy, and two mentions of a name are the same ForeignObject."""
    first, second = run(data)
    assert first is second


# -- nothing is called -----------------------------------------------------------------------

_TRIPPED: list[str] = []


def trip(*args: Any, **kwargs: Any) -> str:
    """Leave a trace: whoever calls this has run code because a file said so."""
    _TRIPPED.append(repr(args))
    return "tripped"


class Trap:
    """Leaves a trace in whatever way pickle could touch it."""

    class Inner:
        """A nested class, which protocol 2 writes with getattr."""

    def __new__(cls, *args: Any, **kwargs: Any) -> Trap:
        if args or kwargs:
            trip("new")
        return super().__new__(cls)

    def __init__(self, *args: Any) -> None:
        self.weight = 1.0
        self.nested = {"a": [1]}

    def __setstate__(self, state: Any) -> None:
        trip("setstate")

    def __setattr__(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)


class TrapByReduce(Trap):
    def __reduce__(self) -> tuple[Any, ...]:
        return (trip, ("reduce",))


class TrapByState(Trap):
    def __reduce__(self) -> tuple[Any, ...]:
        return (Trap, (), {"state": 1}, None, None, trip)


class TrapWithKeywords(Trap):
    def __getnewargs_ex__(self) -> tuple[Any, ...]:
        return (("positional",), {"keyword": 1})


class TrapList(list[Any]):
    def append(self, item: Any) -> None:
        trip("append")

    def extend(self, items: Any) -> None:
        trip("extend")


class TrapDict(dict[Any, Any]):
    def __setitem__(self, key: Any, value: Any) -> None:
        trip("setitem")


def _trap_dict() -> TrapDict:
    made = TrapDict()
    dict.update(made, {"a": 1, "b": 2})
    return made


def _trap_list() -> TrapList:
    made = TrapList()
    list.extend(made, [1, 2, 3])
    return made


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize(
    "make",
    [Trap, TrapByReduce, TrapByState, TrapWithKeywords, _trap_list, _trap_dict],
    ids=lambda make: str(make.__name__),
)
def test_nothing_in_a_file_runs(make: Any, protocol: int) -> None:
    """Classes, functions, states and items of a file become inert objects in every protocol."""
    data = pickle.dumps(make(), protocol)
    _TRIPPED.clear()
    made = run(data)
    assert _TRIPPED == []
    assert type(made) is ForeignObject
    pickle.loads(data)
    if protocol >= 2:  # below, the items of a subclass are an argument
        assert _TRIPPED, "the trap itself does not work"


_TRIP = b.name(__name__, "trip")
_ARGS = b.tuple_of("x")


@pytest.mark.parametrize(
    ("data", "how"),
    [
        (b.stream(_TRIP), "name"),
        (b.stream(_TRIP, _ARGS, b"R"), "call"),
        (b.stream(_TRIP, _ARGS, b"\x81"), "new"),
        (b.stream(_TRIP, _ARGS, b"}\x92", protocol=4), "new"),
        (b.stream(_TRIP, _ARGS, b.dict_of({"k": b"N"}), b"\x92", protocol=4), "new"),
        (b.stream(b.text(__name__), b.text("trip"), b"\x93", protocol=4), "name"),
        (b.stream(b.text(__name__), b.text("trip"), b"\x93)R", protocol=4), "call"),
        (b.stream(b"(", b.text("x"), f"i{__name__}\ntrip\n".encode()), "call"),
        (b.stream(b"(", _TRIP, b.text("x"), b"o"), "call"),
        (b.stream(b"(", _TRIP, b"o"), "call"),
        (b.stream(_TRIP, b")R", b"}b"), "call"),
        (b.stream(_TRIP, b")R", b.text("x"), b"a"), "call"),
        (b.stream(_TRIP, b")R", b.text("x"), b"Ns"), "call"),
        (b.stream(_TRIP, b")R", b")R"), "call"),
        (b.stream(_TRIP, b")R", b"(", b.text("x"), b"\x90", protocol=4), "call"),
        (b.stream(b"\x82\xf1"), "name"),
        (b.stream(b"\x82\xf1)R"), "call"),
        (b.stream(b"\x83\xf1\0", _ARGS, b"\x81"), "new"),
        (b.stream(b"\x84\xf1\0\0\0)R", b"}b"), "call"),
        (b.stream(b.name("builtins", "getattr"), b"(", _TRIP, b.text("__class__"), b"tR"), "call"),
        (b.stream(b.name("os", "system"), b"(", b.text("exit 1"), b"tR"), "call"),
        (b.stream(b.name("builtins", "eval"), b"(", b.text("trip()"), b"tR"), "call"),
        (b.stream(b.name("builtins", "__import__"), b"(", b.text("this"), b"tR"), "call"),
        (b.stream(b.name("numpy", "load"), b")R"), "call"),
    ],
)
def test_every_way_to_name_or_call_is_inert(data: bytes, how: str) -> None:
    """Each opcode that could reach a function gives a ForeignObject that says how."""
    _TRIPPED.clear()
    copyreg.add_extension(__name__, "trip", 0xF1)
    try:
        made = run(data)
    finally:
        copyreg.remove_extension(__name__, "trip", 0xF1)
    assert type(made) is ForeignObject
    assert made.how == how
    assert _TRIPPED == []
    assert "this" not in sys.modules


def test_no_module_is_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name does not import its module, in whatever opcode it stands."""
    (tmp_path / "tz_trap_module.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(str(tmp_path))
    for data in (
        b.stream(b.name("tz_trap_module", "x")),
        b.stream(b.text("tz_trap_module"), b.text("x"), b"\x93", protocol=4),
        b.stream(b"(itz_trap_module\nx\n"),
        b.stream(b.name("tz_trap_module", "x.y.z"), b")R"),
    ):
        run(data)
        assert "tz_trap_module" not in sys.modules


def test_what_a_foreign_object_holds() -> None:
    made = run(pickle.dumps(TrapByState(), 2))
    assert (made.module, made.name, made.how) == (__name__, "Trap", "call")
    assert made.args == ()
    assert made.state == {"state": 1}
    assert made.setter.name == "trip"
    keywords = run(pickle.dumps(TrapWithKeywords(), 4))
    assert keywords.args == ("positional",)
    assert keywords.kwargs == {"keyword": 1}
    assert keywords.state == {"weight": 1.0, "nested": {"a": [1]}}
    assert run(pickle.dumps(_trap_list(), 2)).items == [1, 2, 3]
    assert run(pickle.dumps(_trap_dict(), 2)).items == {"a": 1, "b": 2}
    assert run(pickle.dumps(Trap.Inner, 2)).how == "call"
    assert run(pickle.dumps(Trap.Inner(), 2)).name == "Trap.Inner"


@pytest.mark.parametrize(
    "value",
    [
        argparse.Namespace(lr=0.1), datetime.datetime(2020, 1, 2), Decimal("1.5"),
        PurePosixPath("a/b"), functools.partial(int, base=2), deque([1, 2], 3),
        defaultdict(list, {"a": [1]}), Counter("abca"), range(3), len, int, Ellipsis,
        NotImplemented, type(None), slice(1, 2),
    ],
    ids=repr,
)  # fmt: skip
@pytest.mark.parametrize("protocol", range(6))
def test_ordinary_objects_are_foreign(value: Any, protocol: int) -> None:
    """Without a table nothing is made, whatever the class."""
    assert type(run(pickle.dumps(value, protocol))) is ForeignObject


def test_table_of_values_and_calls() -> None:
    """Only what the table says is understood, and only by its exact name."""
    table = Table(
        values={("torch", "float32"): "F32"}, calls={("m", "f"): lambda args: ("called", args)}
    )
    assert run(b.stream(b.name("torch", "float32")), table) == "F32"
    assert run(b.stream(b.name("m", "f"), _ARGS, b"R"), table) == ("called", ("x",))
    assert run(b.stream(b.name("m", "f"), b")\x81"), table) == ("called", ())
    assert type(run(b.stream(b.name("m.f", ""), b")R"), table)) is ForeignObject
    assert type(run(b.stream(b.name("m", "f.g"), b")R"), table)) is ForeignObject
    assert table.knows(("torch", "float32"))
    assert not table.knows(("torch", "float3"))


def test_calls_with_one_value() -> None:
    """Where the table says so, a name may be called with what is no tuple."""
    data = b.stream(b.name("__torch__.m", "Color"), b"K\2R")
    made = run(data, Table(one_value="__torch__"))
    assert (made.module, made.name, made.args, made.how) == ("__torch__.m", "Color", (2,), "call")
    for table in (Table(), Table(one_value="other")):
        with pytest.raises(PickleError, match="a call with 2 for its arguments"):
            run(data, table)


# -- any bytes -----------------------------------------------------------------------------------


def _only_our_errors(data: bytes) -> None:
    with contextlib.suppress(TorchZipError):
        run(data, Table(calls=_SAFE_CALLS))


#: Calls that take any arguments.
_SAFE_CALLS: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): lambda args: OrderedDict(),
    ("builtins", "set"): lambda args: set(),
}


@given(st.binary(max_size=200))
def test_random_bytes(data: bytes) -> None:
    _only_our_errors(data)


_TOKENS = [bytes([o.code]) for o in OPCODES] + [
    b"ca\nb\n", b"ccollections\nOrderedDict\n", b"K\x01", b"h\x00", b"q\x00", b"X\x01\0\0\0a",
    b"I1\n", b"S'a\\n'\n", b"\x8a\x01\xff", b"U\x01\xff", b"(", b"(", b")", b"}", b"]", b"N",
]  # fmt: skip


@thorough
@given(st.lists(st.sampled_from(_TOKENS), max_size=40).map(lambda tokens: b"".join(tokens) + b"."))
def test_random_opcodes(data: bytes) -> None:
    _only_our_errors(data)


_SEEDS = [
    pickle.dumps({"a": [Trap(), (1, 2.5, "x", b"y", {3}, frozenset([4]), 1 << 70)]}, protocol)
    for protocol in range(6)
]


@thorough
@given(
    st.sampled_from(_SEEDS),
    st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255), st.integers(0, 3)), max_size=6),
)
def test_mutated_pickles(seed: bytes, changes: list[tuple[float, int, int]]) -> None:
    data = bytearray(seed)
    for where, byte, how in changes:
        at = int(where * (len(data) - 1))
        if how == 0:
            data[at] = byte
        elif how == 1:
            del data[at]
        elif how == 2:
            data.insert(at, byte)
        else:
            data[at:at] = data[at : at + byte]
    _only_our_errors(bytes(data))
