"""What the interpreter refuses: broken streams, and what would cost more than its bytes."""

from __future__ import annotations

import contextlib
import itertools
import pickle
import struct
import sys
from collections import Counter, OrderedDict
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests import builders as b
from tests.hostile.pickles import IN_THE_WAY
from tests.pickling.test_interpreter import PLAIN, Trap, run
from tests.refusals import Refusal, each_refusal
from tests.test_cost import peak_below
from torchzip.checkpoint.lazy_tensor import LazyFactory
from torchzip.errors import LimitError, PickleError, TorchZipError, UnsupportedError
from torchzip.limits import Limits
from torchzip.pickling.interpreter import Interpreter
from torchzip.pickling.opcodes import OPCODES, TruncatedPickleError
from torchzip.pickling.table import Table
from torchzip.tensors.rebuild import Rebuilder


def _no_storage(*arguments: Any) -> Any:
    raise AssertionError("none of these has a tensor")


def whole_table() -> Table:
    """Return what a checkpoint may name."""
    return Rebuilder(LazyFactory(_no_storage)).table


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
            run(data[:cut], PLAIN)
        assert 1 <= caught.value.needed <= len(data) - cut, cut


@pytest.mark.parametrize("opcode", [o for o in OPCODES if o.name != "STOP"], ids=lambda o: o.name)
def test_each_opcode_on_an_empty_stack(opcode: Any) -> None:
    """An opcode with nothing on the stack, and STOP behind it, gives a value or an error."""
    for argument in (b"", b"\0", b"\0" * 8, b"\xff" * 8, b"1\n", b"a\nb\n", b"(", b"'x'\n"):
        with contextlib.suppress(TorchZipError):
            run(bytes([opcode.code]) + argument + b".")


_BROKEN: list[Refusal] = [
    ("empty", b"", "without STOP"),
    ("no stop", b"\x80\x02N", "without STOP"),
    ("stop on nothing", b"\x80\x02.", "STOP"),
    ("no opcode", b"\x80\x02\xff........", "0xff is not an opcode"),
    ("protocol 6", b"\x80\x06N.", "protocol is 6", UnsupportedError),
    ("open mark", b"(N.", "STOP"),
    ("tuple without mark", b"Nt.", "needs a MARK"),
    ("setitems without mark", b"}u.", "needs a MARK"),
    ("memo miss", b"h\x05.........", "memo number 5"),
    ("long memo miss", b"j\xff\xff\xff\xff.........", "memo number 4294967295"),
    ("get miss", b"g12345678901234567890\n.........", "was never set"),
    ("negative put", b"Np-1\n.........", "memo number -1"),
    ("put on nothing", b"q\0.........", "BINPUT"),
    ("get of text", b"gx\n.........", "an int was expected"),
    ("bad utf-8", b"X\x02\0\0\0\xff\xfe.........", "UTF-8"),
    ("bad utf-8 name", b"c\xff\nx\n.........", "UTF-8"),
    ("bad utf-8 persid", b"P\xff\n.........", "UTF-8"),
    ("text of 4 GiB", b"X\xff\xff\xff\xffabc", "4,294,967,295"),
    ("text of 2**64", b"\x8d" + b"\xff" * 8 + b"abc", "BINUNICODE8 of"),
    ("bytes of 4 GiB", b"B\xff\xff\xff\xffabc", "BINBYTES of"),
    ("bytes of 2**64", b"\x8e" + b"\xff" * 8 + b"abc", "BINBYTES8 of"),
    ("bytearray of 2**64", b"\x96" + b"\xff" * 8 + b"abc", "BYTEARRAY8 of"),
    ("negative string", b"T\xff\xff\xff\xffabc", "-1"),
    ("frame of 2**64", b"\x95" + b"\xff" * 8 + b"N.", "FRAME of"),
    ("long4 past the limit", b"\x8b\x01\x10\0\0" + b"\1" * 4097 + b".", "int_nbytes", LimitError),
    ("long4 of 2 GiB", b"\x8b\xff\xff\xff\x7f.", "int_nbytes", LimitError),
    ("negative long4", b"\x8b\xff\xff\xff\xff.........", "-1"),
    ("decimal past the limit", b"L" + b"9" * 5000 + b"L\n.", "int_nbytes", LimitError),
    ("int of text", b"Ix\n.........", "an int was expected"),
    ("float of text", b"Fx\n.........", "a float was expected"),
    ("string without quotes", b"Sx\n.........", "in quotes was expected"),
    ("string of one quote", b"S'\n.........", "in quotes was expected"),
    ("string with a bad escape", b"S'\\x4'\n.........", "string"),
    ("unicode with a bad escape", b"V\\u12\n.........", "escaped text was expected"),
    ("unicode past the last character", b"V\\U00110000\n.........", "escaped text was expected"),
    ("call of an int", b"K\x01)R.........", "a call of 1"),
    ("call of a list", b"])R.........", "a call of an empty list"),
    ("call with a list", b"ca\nb\n]R.........", "for its arguments"),
    ("new of an int", b"K\x01)\x81.........", "a new object of 1"),
    ("new with a dict", b"ca\nb\n}\x81.........", "for its arguments"),
    ("keywords that are no dict", b"ca\nb\n)]\x92.........", "keywords"),
    ("keywords that are no text", b"ca\nb\n)}NNs\x92.........", "keywords"),
    ("stack global of ints", b"K\x01K\x02\x93.........", "two strings"),
    ("obj without a class", b"(o.........", "OBJ"),
    ("append to an int", b"K\x01Na.........", "APPEND to 1"),
    ("append to a tuple", b")Na.........", "APPEND to an empty tuple"),
    ("append to a name", b"ca\nb\nNa.........", "APPEND to <foreign a.b>"),
    ("setitem on a list", b"]NNs.........", "SETITEM on an empty list"),
    ("setitem on a name", b"ca\nb\nNNs.........", "SETITEM on <foreign a.b>"),
    ("additems on a list", b"](N\x90.........", "ADDITEMS on an empty list"),
    ("odd items", b"}(NNNu.........", "a key without a value"),
    ("odd dict", b"(Nd.........", "a key without a value"),
    ("list as a key", b"}]Ns.........", "as a key", UnsupportedError),
    ("dict in a tuple as a key", b"}}\x85Ns.........", "as a key", UnsupportedError),
    ("set of lists", b"\x8f(]\x90.........", "as a key", UnsupportedError),
    ("build on a dict", b"}}b.........", "BUILD", UnsupportedError),
    ("build on a name", b"ca\nb\n}b.........", "BUILD", UnsupportedError),
    ("two states", b"ca\nb\n)R}b}b.........", "twice", UnsupportedError),
    ("both kinds of items", b"ca\nb\n)RNaNNs.........", "list items and dict", UnsupportedError),
    ("extension 0", b"\x82\0.........", "extension code is 0"),
    ("negative extension", b"\x84\xff\xff\xff\xff.........", "extension code"),
    ("next buffer", b"\x97.........", "NEXT_BUFFER", UnsupportedError),
    ("read-only buffer", b"N\x98.........", "READONLY_BUFFER", UnsupportedError),
    ("persistent id", b"NQ.........", "persistent id"),
    ("persistent id as text", b"Pabc\n.........", "persistent id"),
]  # fmt: skip


@each_refusal(_BROKEN, PickleError)
def test_broken_streams(given: bytes, error: type[TorchZipError], message: str) -> None:
    with pytest.raises(error) as caught:
        Interpreter(given, Table(), Limits(), record="data.pkl").run()
    assert message in str(caught.value)
    assert caught.value.record == "data.pkl"
    assert caught.value.offset is not None
    assert 0 <= caught.value.offset <= len(given)


def test_unknown_escape_in_a_string_is_no_warning() -> None:
    """An escape that Python does not know is kept, without a word about it from Python."""
    assert run(b"S'a\\qb'\n.") == "a\\qb"


def test_int_limit_can_be_raised() -> None:
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
    with peak_below(100_000), contextlib.suppress(TorchZipError):
        run(data)


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
        run(pickle.dumps(value, 4), PLAIN)


@pytest.mark.parametrize("kind", [dict, OrderedDict, Counter])
def test_keys_that_are_in_the_way_are_refused(kind: Any) -> None:
    """Keys of different hashes can cost quadratic time as well."""
    made = kind(dict.fromkeys(IN_THE_WAY, 0))
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
    made = run(pickle.dumps(value, 4), Table(calls=PLAIN.calls))  # which remembers hashes
    assert made == value
    assert kind is not dict or list(made) == keys


def test_build_sets_attributes_on_an_ordered_dict_only_where_harmless() -> None:
    """`_metadata` arrives; names that the class has are refused."""
    made = run(b.stream(b.HOOKS, b.dict_of({"_metadata": 7}), b"b"), PLAIN)
    assert made._metadata == 7
    for attribute in ("__class__", "__dict__", "items", "__reduce__"):
        with pytest.raises(PickleError, match="BUILD sets"):
            run(b.stream(b.HOOKS, b.dict_of({attribute: b"N"}), b"b"), PLAIN)


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


_COPIED_LIST = b"](" + b"K\x01" * 10_000 + b"eq\x00\x85q\x010"
_COPIED_TEXT = b.text("x" * 100_000) + b"q\x00" + b.text("latin1") + b"\x86q\x010"


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        (_COPIED_LIST, ("builtins", "set")),
        (_COPIED_LIST, ("collections", "deque")),
        (_COPIED_LIST, ("builtins", "frozenset")),
        (_COPIED_TEXT, ("_codecs", "encode")),
    ],
)
def test_calls_that_copy_are_bounded(arguments: bytes, name: tuple[str, str]) -> None:
    """A list or a text that is mentioned many times is not copied each time without end."""
    data = b.stream(b"(", arguments, b.name(*name), b"q\x020", b"h\x02h\x01R0" * 20_000, b"N")
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
