"""Bytes to values: equal to what pickle gives for plain trees, inert for everything else."""

from __future__ import annotations

import argparse
import contextlib
import copyreg
import datetime
import functools
import itertools
import pickle
import struct
import sys
import tracemalloc
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests import builders as b
from tests.pickling.graphs import TREES, TREES_WITH_BYTEARRAYS, cycles, graph
from tests.sampling import costly, thorough
from torchzip.checkpoint.lazy_tensor import LazyFactory
from torchzip.errors import LimitError, PickleError, TorchZipError, UnsupportedError
from torchzip.limits import Limits
from torchzip.pickling.interpreter import Interpreter
from torchzip.pickling.opcodes import OPCODES, TruncatedPickleError
from torchzip.pickling.table import Table
from torchzip.tensors.rebuild import Rebuilder
from torchzip.types import ForeignObject


def _no_storage(*arguments: Any) -> Any:
    raise AssertionError("none of these has a tensor")


def whole_table() -> Table:
    """Return what a checkpoint may name."""
    return Rebuilder(LazyFactory(_no_storage)).table


def run(data: bytes, table: Table | None = None, limits: Limits | None = None) -> Any:
    """Return the value of one pickle."""
    return Interpreter(data, table or Table(), limits or Limits()).run()


# -- equal to pickle -------------------------------------------------------------------------


@given(TREES, st.integers(0, 5))
def test_plain_trees_come_back(value: Any, protocol: int) -> None:
    """What pickle writes of plain values is read back equal, with its sharing."""
    data = pickle.dumps(value, protocol)
    assert graph(run(data, whole_table())) == graph(pickle.loads(data))


@costly
@given(TREES_WITH_BYTEARRAYS, st.integers(2, 5))
def test_bytearrays_come_back(value: Any, protocol: int) -> None:
    """A bytearray is one opcode in protocol 5 and a call below."""
    data = pickle.dumps(value, protocol)
    assert graph(run(data, whole_table())) == graph(pickle.loads(data))


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("which", range(len(cycles())))
def test_cycles_come_back(which: int, protocol: int) -> None:
    """A value that reaches itself does so again, also through a tuple."""
    data = pickle.dumps(cycles()[which], protocol)
    assert graph(run(data, whole_table())) == graph(pickle.loads(data))


@pytest.mark.parametrize("protocol", range(6))
def test_shared_object_is_one_object(protocol: int) -> None:
    """The memo aliases; it does not copy."""
    shared: dict[str, int] = {"a": 1}
    made = run(pickle.dumps([shared, (shared, {"b": shared})], protocol), whole_table())
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
    assert run(pickle.dumps(value, protocol), whole_table()) == value


def test_several_pickles_follow_one_another() -> None:
    """`position` is behind the STOP of each pickle, and the memo is not kept."""
    data = pickle.dumps([1], 2) + pickle.dumps("two", 4)
    interpreter = Interpreter(data, Table(), Limits())
    assert interpreter.run() == [1]
    assert interpreter.run(interpreter.position) == "two"
    assert interpreter.position == len(data)


def test_memo_ends_with_the_pickle() -> None:
    """The second pickle cannot reach what the first has numbered."""
    data = pickle.dumps([1], 2) + b"\x80\x02h\x00."
    interpreter = Interpreter(data, Table(), Limits())
    interpreter.run()
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
    """From protocol 3 on a name is what it says."""
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


def test_dup_pushes_the_same_object() -> None:
    """DUP is no copy."""
    first, second = run(b"]2\x86.")
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


class TrapByReduce(Trap):
    """Is made by a call."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (trip, ("reduce",))


class TrapByState(Trap):
    """Has its state set by a call."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (Trap, (), {"state": 1}, None, None, trip)


class TrapWithKeywords(Trap):
    """Is made with keywords."""

    def __getnewargs_ex__(self) -> tuple[Any, ...]:
        return (("positional",), {"keyword": 1})


class TrapList(list[Any]):
    """Would notice each item."""

    def append(self, item: Any) -> None:
        trip("append")

    def extend(self, items: Any) -> None:
        trip("extend")


class TrapDict(dict[Any, Any]):
    """Would notice each item."""

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
    """Arguments, keywords, items, state and setter are kept as the file has them."""
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
        argparse.Namespace(lr=0.1),
        datetime.datetime(2020, 1, 2),
        Decimal("1.5"),
        PurePosixPath("a/b"),
        functools.partial(int, base=2),
        deque([1, 2], 3),
        defaultdict(list, {"a": [1]}),
        Counter("abca"),
        range(3),
        len,
        int,
        Ellipsis,
        NotImplemented,
        type(None),
        slice(1, 2),
    ],
    ids=repr,
)
@pytest.mark.parametrize("protocol", range(6))
def test_ordinary_objects_are_foreign(value: Any, protocol: int) -> None:
    """Without a table nothing is made, whatever the class."""
    assert type(run(pickle.dumps(value, protocol))) is ForeignObject


def test_a_name_is_one_object() -> None:
    """Two mentions of a name are the same ForeignObject."""
    first, second = run(b.stream(b.name("a", "b"), b.name("a", "b"), b"\x86"))
    assert first is second


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


# -- broken streams ----------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", range(6))
def test_every_prefix_is_truncated(protocol: int) -> None:
    """A pickle that is cut anywhere says so, and asks for no more than is missing."""
    value = {
        "a": [1, 300, 70_000, 1 << 40, 1 << 3000, 1.5, None, True],
        "é": (b"bytes", "x" * 300, {1}, 2j, Trap),
        "o": Trap(),
    }
    data = pickle.dumps(value, protocol)
    for cut in range(len(data)):
        with pytest.raises(TruncatedPickleError) as caught:
            run(data[:cut], whole_table())
        assert 1 <= caught.value.needed <= len(data) - cut, cut


@pytest.mark.parametrize("opcode", [o for o in OPCODES if o.name != "STOP"], ids=lambda o: o.name)
def test_each_opcode_on_an_empty_stack(opcode: Any) -> None:
    """An opcode with nothing on the stack, and STOP behind it, gives a value or an error."""
    for argument in (b"", b"\0", b"\0" * 8, b"\xff" * 8, b"1\n", b"a\nb\n", b"(", b"'x'\n"):
        with contextlib.suppress(TorchZipError):
            run(bytes([opcode.code]) + argument + b".")


_BROKEN: list[tuple[str, bytes, type[TorchZipError], str]] = [
    ("empty", b"", PickleError, "without STOP"),
    ("no stop", b"\x80\x02N", PickleError, "without STOP"),
    ("stop on nothing", b"\x80\x02.", PickleError, "STOP"),
    ("no opcode", b"\x80\x02\xff........", PickleError, "0xff is not an opcode"),
    ("protocol 6", b"\x80\x06N.", UnsupportedError, "protocol is 6"),
    ("open mark", b"(N.", PickleError, "STOP"),
    ("tuple without mark", b"Nt.", PickleError, "needs a MARK"),
    ("setitems without mark", b"}u.", PickleError, "needs a MARK"),
    ("memo miss", b"h\x05.........", PickleError, "memo number 5"),
    ("long memo miss", b"j\xff\xff\xff\xff.........", PickleError, "memo number 4294967295"),
    ("get miss", b"g12345678901234567890\n.........", PickleError, "was never set"),
    ("negative put", b"Np-1\n.........", PickleError, "memo number -1"),
    ("put on nothing", b"q\0.........", PickleError, "BINPUT"),
    ("get of text", b"gx\n.........", PickleError, "an int was expected"),
    ("bad utf-8", b"X\x02\0\0\0\xff\xfe.........", PickleError, "UTF-8"),
    ("bad utf-8 name", b"c\xff\nx\n.........", PickleError, "UTF-8"),
    ("bad utf-8 persid", b"P\xff\n.........", PickleError, "UTF-8"),
    ("text of 4 GiB", b"X\xff\xff\xff\xffabc", PickleError, "4,294,967,295"),
    ("text of 2**64", b"\x8d" + b"\xff" * 8 + b"abc", PickleError, "BINUNICODE8 of"),
    ("bytes of 4 GiB", b"B\xff\xff\xff\xffabc", PickleError, "BINBYTES of"),
    ("bytes of 2**64", b"\x8e" + b"\xff" * 8 + b"abc", PickleError, "BINBYTES8 of"),
    ("bytearray of 2**64", b"\x96" + b"\xff" * 8 + b"abc", PickleError, "BYTEARRAY8 of"),
    ("negative string", b"T\xff\xff\xff\xffabc", PickleError, "-1"),
    ("frame of 2**64", b"\x95" + b"\xff" * 8 + b"N.", PickleError, "FRAME of"),
    ("long4 past the limit", b"\x8b\x01\x10\0\0" + b"\1" * 4097 + b".", LimitError, "int_nbytes"),
    ("long4 of 2 GiB", b"\x8b\xff\xff\xff\x7f.", LimitError, "int_nbytes"),
    ("negative long4", b"\x8b\xff\xff\xff\xff.........", PickleError, "-1"),
    ("decimal past the limit", b"L" + b"9" * 5000 + b"L\n.", LimitError, "int_nbytes"),
    ("int of text", b"Ix\n.........", PickleError, "an int was expected"),
    ("float of text", b"Fx\n.........", PickleError, "a float was expected"),
    ("string without quotes", b"Sx\n.........", PickleError, "in quotes was expected"),
    ("string of one quote", b"S'\n.........", PickleError, "in quotes was expected"),
    ("string with a bad escape", b"S'\\x4'\n.........", PickleError, "string"),
    ("unicode with a bad escape", b"V\\u12\n.........", PickleError, "escaped text was expected"),
    ("unicode past the last character",
     b"V\\U00110000\n.........", PickleError, "escaped text was expected"),
    ("call of an int", b"K\x01)R.........", PickleError, "a call of 1"),
    ("call of a list", b"])R.........", PickleError, "a call of an empty list"),
    ("call with a list", b"ca\nb\n]R.........", PickleError, "for its arguments"),
    ("new of an int", b"K\x01)\x81.........", PickleError, "a new object of 1"),
    ("new with a dict", b"ca\nb\n}\x81.........", PickleError, "for its arguments"),
    ("keywords that are no dict", b"ca\nb\n)]\x92.........", PickleError, "keywords"),
    ("keywords that are no text", b"ca\nb\n)}NNs\x92.........", PickleError, "keywords"),
    ("stack global of ints", b"K\x01K\x02\x93.........", PickleError, "two strings"),
    ("obj without a class", b"(o.........", PickleError, "OBJ"),
    ("append to an int", b"K\x01Na.........", PickleError, "APPEND to 1"),
    ("append to a tuple", b")Na.........", PickleError, "APPEND to an empty tuple"),
    ("append to a name", b"ca\nb\nNa.........", PickleError, "APPEND to <foreign a.b>"),
    ("setitem on a list", b"]NNs.........", PickleError, "SETITEM on an empty list"),
    ("setitem on a name", b"ca\nb\nNNs.........", PickleError, "SETITEM on <foreign a.b>"),
    ("additems on a list", b"](N\x90.........", PickleError, "ADDITEMS on an empty list"),
    ("odd items", b"}(NNNu.........", PickleError, "a key without a value"),
    ("odd dict", b"(Nd.........", PickleError, "a key without a value"),
    ("list as a key", b"}]Ns.........", UnsupportedError, "as a key"),
    ("dict in a tuple as a key", b"}}\x85Ns.........", UnsupportedError, "as a key"),
    ("set of lists", b"\x8f(]\x90.........", UnsupportedError, "as a key"),
    ("build on a dict", b"}}b.........", UnsupportedError, "BUILD"),
    ("build on a name", b"ca\nb\n}b.........", UnsupportedError, "BUILD"),
    ("two states", b"ca\nb\n)R}b}b.........", UnsupportedError, "twice"),
    ("both kinds of items", b"ca\nb\n)RNaNNs.........", UnsupportedError, "list items and dict"),
    ("extension 0", b"\x82\0.........", PickleError, "extension code is 0"),
    ("negative extension", b"\x84\xff\xff\xff\xff.........", PickleError, "extension code"),
    ("next buffer", b"\x97.........", UnsupportedError, "NEXT_BUFFER"),
    ("read-only buffer", b"N\x98.........", UnsupportedError, "READONLY_BUFFER"),
    ("persistent id", b"NQ.........", PickleError, "persistent id"),
    ("persistent id as text", b"Pabc\n.........", PickleError, "persistent id"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("data", "error", "message"), [row[1:] for row in _BROKEN], ids=[row[0] for row in _BROKEN]
)
def test_broken_streams(data: bytes, error: type[TorchZipError], message: str) -> None:
    """Each fault has its error, which says what is wrong and at which byte."""
    with pytest.raises(error) as caught:
        Interpreter(data, Table(), Limits(), record="data.pkl").run()
    assert message in str(caught.value)
    assert caught.value.record == "data.pkl"
    assert caught.value.offset is not None
    assert 0 <= caught.value.offset <= len(data)


def test_unknown_escape_in_a_string_is_no_warning() -> None:
    """An escape that Python does not know is kept, without a word about it from Python."""
    assert run(b"S'a\\qb'\n.") == "a\\qb"


def test_int_limit_can_be_raised() -> None:
    """The limit on integers is an option."""
    data = pickle.dumps(1 << 50_000, 2)
    with pytest.raises(LimitError):
        run(data)
    assert run(data, limits=Limits(int_nbytes=10_000)) == 1 << 50_000


@pytest.mark.parametrize(
    "data",
    [
        b"\x96" + struct.pack("<Q", 1 << 40) + b"x" * 50,
        b"\x8d" + struct.pack("<Q", 1 << 40) + b"x" * 50,
        b"\x8e" + struct.pack("<Q", 1 << 40) + b"x" * 50,
        b"X" + struct.pack("<L", 0xFFFFFFFF) + b"x" * 50,
        b"\x8b" + struct.pack("<l", 0x7FFFFFFF) + b"x" * 50,
        b"Nr" + struct.pack("<L", 0xFFFFFFFF) + b".",
        b"Np99999999999999999999\n.",
        b"\x95" + struct.pack("<Q", 1 << 40) + b"N.",
    ],
)
def test_declared_numbers_cost_nothing(data: bytes) -> None:
    """Nothing is allocated for a length or an index before its bytes are there."""
    tracemalloc.start()
    try:
        with contextlib.suppress(TorchZipError):
            run(data)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 100_000


def test_deep_nesting_is_read() -> None:
    """The stack of the interpreter is a list: depth costs no recursion."""
    depth = 100_000
    made = run(b"]" * depth + b"a" * (depth - 1) + b".")
    for _ in range(depth - 1):
        (made,) = made
    assert made == []


def _again(key: bytes) -> bytes:
    """Return the pickle of a list of dicts that all have one key."""
    return b"](" + key + b"q\0" + b"}h\0Ns" * 10_000 + b"e."


_LONG_INT = b"\x8b" + struct.pack("<i", 1700) + b"\x7f" * 1700


@pytest.mark.parametrize(
    ("data", "limit"),
    [
        pytest.param(b"})" + b"\x85" * 200 + b"Ns.", "key_nesting", id="deep tuple"),
        pytest.param(b"})" + b"2\x86" * 30 + b"Ns.", "key_values", id="doubling tuple"),
        pytest.param(b"}(" + b"N" * 10 + b"(l2tNs.", None, id="a list in it"),
        pytest.param(_again(b"(" + b"N" * 10_000 + b"t"), "key_values", id="a long tuple again"),
        pytest.param(_again(b"(" + b"".join(b"M" + struct.pack("<H", i) for i in range(10_000))
         + b"\x91"), "key_values", id="a large frozenset again"),
        pytest.param(_again(b"(" + b"(" + b"N" * 9000 + b"tNt"), "key_values", id="tuple in tuple"),
        pytest.param(_again(_LONG_INT + b"q\1(" + b"h\1" * 1000 + b"t"),
         "key_values", id="long ints"),
        pytest.param(_again(_LONG_INT + b"q\1(N" + b"h\1" * 1000 + b"t"),
         "key_values", id="None, long ints"),
    ],
)  # fmt: skip
def test_keys_that_are_dear_to_hash(data: bytes, limit: str | None) -> None:
    """A key that would cost exponential or quadratic time is refused."""
    with pytest.raises(TorchZipError) as caught:
        run(data)
    assert getattr(caught.value, "limit", None) == limit
    assert limit is not None or isinstance(caught.value, UnsupportedError)


def test_a_dict_that_is_counted_again_is_bounded() -> None:
    """To make a Counter of a dict hashes its keys again, each time."""
    key = b"(" + b"N" * 10_000 + b"t"
    counted = b"}" + key + b"K\1s\x85q\0" + b.name("collections", "Counter") + b"q\1"
    with pytest.raises(LimitError, match="key_values"):
        run(b"](" + counted + b"h\1h\0R" * 10_000 + b"e.", whole_table())


def _boards() -> Any:
    """Return a table of what was tried in each of some positions of Go, and how often each was."""
    states = [tuple((i * j) % 3 for j in range(361)) for i in range(1, 40)]
    return {
        "visits": dict.fromkeys(states, 1),
        "tried": {(state, action): 0.5 for state in states for action in range(50)},
        "seen": set(states),
    }


def _tuples_around(value: Any, levels: int) -> Any:
    for _ in range(levels):
        value = (value,)
    return value


@pytest.mark.parametrize(
    "value",
    [
        pytest.param(lambda: {tuple(range(361)): 1}, id="a board of Go"),
        pytest.param(_boards, id="boards in several dicts"),
        pytest.param(lambda: {tuple(range(100_000)): 1}, id="a long tuple"),
        pytest.param(lambda: {_tuples_around(1, 90): 1}, id="a deep tuple"),
        pytest.param(lambda: {frozenset(range(1000)): 1}, id="a frozenset"),
        pytest.param(lambda: {(x, y, z, u): 1 for x in (-2, -1, 0) for y in (-2, -1, 0)
         for z in (-2, -1, 0) for u in (-2, -1, 0)}, id="offsets: -1 and -2 have the same hash"),
        pytest.param(lambda: dict.fromkeys(itertools.product((-2, -1), repeat=9)),
         id="512 of one hash"),
        pytest.param(lambda: {2.0**i for i in range(-1000, 1000)}, id="powers of two"),
        pytest.param(lambda: [{(i, j) for j in range(20)} for i in range(2000)], id="many pairs"),
        pytest.param(lambda: [dict.fromkeys([(1, 2, "a")] * 3, i) for i in range(2000)],
         id="one key often"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("protocol", [2, 4])
def test_keys_of_ordinary_programs(value: Callable[[], Any], protocol: int) -> None:
    """Whatever keys a program has are read within the default limits."""
    made = value()
    assert run(pickle.dumps(made, protocol), whole_table()) == made


def _colliding_ints(count: int) -> list[Any]:
    return [i * sys.hash_info.modulus for i in range(1, count + 1)]


def colliding_pairs(count: int) -> list[Any]:
    """Return pairs of small ints with one hash: the tuple hash of CPython can be undone."""
    mask = (1 << 64) - 1
    prime_1, prime_2, prime_5 = 11400714785074694791, 14029467366897019727, 2870177450012600261
    inverse = pow(prime_2, -1, 1 << 64)
    made: list[Any] = []
    first = 0
    while len(made) < count:
        first += 1
        state = (prime_5 + first * prime_2) & mask
        state = ((state << 31 | state >> 33) & mask) * prime_1 & mask
        second = (12345 - state) * inverse & mask
        if second < 1 << 59:
            made.append((first, second))
    assert len({hash(pair) for pair in made}) == 1
    return made


def _colliding_complex(count: int) -> list[Any]:
    made: list[Any] = [complex(-1_000_003.0 * i, i) for i in range(1, count + 1)]
    assert len({hash(key) for key in made}) < 10
    return made


@pytest.mark.few
@pytest.mark.parametrize(
    "keys",
    [
        pytest.param(_colliding_ints(12_000), id="ints"),
        pytest.param(colliding_pairs(3_000), id="tuples of ints"),
        pytest.param(_colliding_complex(3_000), id="complex"),
    ],
)
@pytest.mark.parametrize("container", [dict, set], ids=["dict", "set"])
def test_keys_of_one_hash_are_refused(keys: list[Any], container: Any) -> None:
    """Keys made to collide would cost quadratic time; no real file has thousands."""
    value = dict.fromkeys(keys) if container is dict else set(keys)
    with pytest.raises(TorchZipError):
        run(pickle.dumps(value, 4), whole_table())


def _in_the_way(size: int, most: int) -> list[int]:
    """Return ints for a dict of so many places: a way through half of them, and others to it."""
    mask = size - 1
    way = [0]
    while len(way) < size // 2:
        way.append((5 * way[-1] + 1) & mask)
    steps = {place: step for step, place in enumerate(way)}
    made = list(way)
    for number in range(size, 64 * size):
        place, rest = number & mask, number
        while rest and place in steps:
            rest >>= 5
            place = (5 * place + rest + 1) & mask
        if steps.get(place, size) < size // 4 and len(made) < most:
            made.append(number)
    return made


@pytest.mark.parametrize("kind", [dict, OrderedDict, Counter])
def test_keys_that_are_in_the_way_are_refused(kind: Any) -> None:
    """Keys of different hashes can cost quadratic time as well."""
    made = kind(dict.fromkeys(_in_the_way(4096, 2_700), 0))
    with pytest.raises(PickleError, match="they do not come so by chance"):
        run(pickle.dumps(made, 4), whole_table())


@pytest.mark.few
@pytest.mark.parametrize("kind", [dict, set, frozenset])
@pytest.mark.parametrize(
    "key",
    [
        pytest.param(lambda i: i, id="one after the other"),
        pytest.param(lambda i: -i, id="downwards"),
        pytest.param(lambda i: i * 7_919 % 20_011, id="shuffled"),
        pytest.param(lambda i: 0x7F00_0000_0000 + 16 * i, id="addresses"),
        pytest.param(lambda i: i * 0x9E37_79B9_7F4A_7C15 % (1 << 59), id="hashes"),
        pytest.param(lambda i: i / 64, id="floats"),
        pytest.param(lambda i: (i % 100, i // 100), id="pairs"),
        pytest.param(lambda i: (i % 100) << 32 | i // 100, id="pairs in one int"),
        pytest.param(lambda i: i if i % 2 else str(i), id="with texts"),
    ],
)
def test_many_keys_as_they_are(key: Callable[[int], Any], kind: Any) -> None:
    """Whatever numbers a program has are no attack."""
    keys = list(map(key, range(20_000)))
    value = dict.fromkeys(keys) if kind is dict else kind(keys)
    made = run(pickle.dumps(value, 4), whole_table())
    assert made == value
    assert kind is not dict or list(made) == keys


def test_build_sets_attributes_on_an_ordered_dict_only_where_harmless() -> None:
    """`_metadata` arrives; names that the class has are refused."""
    made = run(b.stream(b.HOOKS, b.dict_of({"_metadata": 7}), b"b"), whole_table())
    assert made._metadata == 7
    for attribute in ("__class__", "__dict__", "items", "__reduce__"):
        with pytest.raises(PickleError, match="BUILD sets"):
            run(b.stream(b.HOOKS, b.dict_of({attribute: b"N"}), b"b"), whole_table())


# -- any bytes -----------------------------------------------------------------------------------


def _only_our_errors(data: bytes) -> None:
    with contextlib.suppress(TorchZipError):
        run(data, whole_table())


@given(st.binary(max_size=200))
def test_random_bytes(data: bytes) -> None:
    """Any bytes give a value or a TorchZipError."""
    _only_our_errors(data)


_TOKENS = [bytes([o.code]) for o in OPCODES] + [
    b"ca\nb\n", b"ccollections\nOrderedDict\n", b"K\x01", b"h\x00", b"q\x00", b"X\x01\0\0\0a",
    b"I1\n", b"S'a\\n'\n", b"\x8a\x01\xff", b"U\x01\xff", b"(", b"(", b")", b"}", b"]", b"N",
]  # fmt: skip


@thorough
@given(st.lists(st.sampled_from(_TOKENS), max_size=40).map(lambda tokens: b"".join(tokens) + b"."))
def test_random_opcodes(data: bytes) -> None:
    """Any sequence of opcodes gives a value or a TorchZipError."""
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
    """A pickle with bytes changed, lost, added or doubled gives a value or a TorchZipError."""
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


def test_chain_of_attributes_is_bounded() -> None:
    """Names of nested classes are joined, up to a length; beyond, the calls stay what they are."""
    step = b.name("builtins", "getattr") + b"q\x01h\x00" + b.text("inner") + b"\x86Rq\x00"
    made = run(b.stream(b.name("m", "Outer"), b"q\x00", step * 20_000, b"h\x00"))
    assert made.name == "getattr"
    depth = 0
    while made.how == "call":
        assert len(made.name) < 1000
        made, depth = made.args[0], depth + 1
    assert (made.name, depth) == ("Outer", 20_000)


@pytest.mark.parametrize(
    "name", [("builtins", "set"), ("collections", "deque"), ("builtins", "frozenset")]
)
def test_calls_that_copy_are_bounded(name: tuple[str, str]) -> None:
    """A list that is mentioned many times is not copied each time without end."""
    listed = b"](" + b"K\x01" * 10_000 + b"eq\x00\x85q\x010" + b.name(*name) + b"q\x020"
    data = b.stream(b"(", listed, b"h\x02h\x01R0" * 20_000, b"N")
    with pytest.raises(LimitError, match="argument_items"):
        run(data, whole_table())


def test_bytes_that_copy_are_bounded() -> None:
    """Nor is a text that is made bytes again and again."""
    text = b.text("x" * 100_000) + b"q\x00" + b.text("latin1") + b"\x86q\x010"
    encode = b.name("_codecs", "encode") + b"q\x020"
    data = b.stream(b"(", text, encode, b"h\x02h\x01R" * 3000, b"l")
    with pytest.raises(LimitError, match="argument_items"):
        run(data, whole_table())


_NUMBERS = st.one_of(st.integers(0, 8), st.integers(250, 300), st.integers(0, (1 << 32) - 1))


@given(st.lists(st.one_of(_NUMBERS, st.none()), min_size=1, max_size=40))
def test_numbers_in_any_order(numbers: list[int | None]) -> None:
    """Far ahead, with gaps, put again, and MEMOIZE among them: as Python's own loader has it."""
    parts = [b"\x80\x04("]
    for value, number in enumerate(numbers):
        put = b"\x94" if number is None else b"r" + struct.pack("<I", number)
        parts.append(b"M" + struct.pack("<H", value) + put)
    known = {number for number in numbers if number is not None}
    parts += [b"j" + struct.pack("<I", number) for number in sorted(known)]
    data = b"".join(parts) + b"t."
    if max(known, default=0) < 1 << 16:  # Python's own takes memory for as many
        assert run(data) == pickle.loads(data)
    else:
        last = dict[int, int]()
        for value, number in enumerate(numbers):
            last[len(last) if number is None else number] = value
        assert run(data) == (*range(len(numbers)), *(last[number] for number in sorted(known)))
