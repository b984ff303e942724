"""The pickle machine itself: memo, lengths, depth, cycles, the stack."""

from __future__ import annotations

import pickletools
import struct
from collections.abc import Iterator

from tests import builders as b
from tests.hostile.attack import Attack, Row, attacks
from tests.hostile.parts import SYSTEM, doubling, legacy, short_text, tensor_on, zipped
from torchzip.errors import LimitError, PickleError, TensorError, UnsupportedError

_U32, _U64 = struct.Struct("<I").pack, struct.Struct("<Q").pack
_LEGAL = None
#: Deeper than any stack of calls.
_DEEP = 4_000
#: All of these have the same hash.
_COLLIDING = [i * ((1 << 61) - 1) for i in range(1, 200)]


def _in_the_way() -> list[int]:
    """Return ints of different hashes that a dict of 4096 places finds after hundreds of others.

    The first are one way from place to place, the others lead to its beginning.
    """
    way = [0]
    while len(way) < 2048:
        way.append((5 * way[-1] + 1) & 4095)
    steps = {place: step for step, place in enumerate(way)}
    made = list(way)
    for number in range(1 << 12, 1 << 17):
        place, rest = number & 4095, number
        while rest and place in steps:
            rest >>= 5
            place = (5 * place + rest + 1) & 4095
        if steps.get(place, 2048) < 1000 and len(made) < 2700:
            made.append(number)
    return made


IN_THE_WAY = _in_the_way()


def _float(value: float) -> bytes:
    return b"G" + struct.pack(">d", value)


def _keys(*keys: bytes) -> bytes:
    return b"}(" + b"".join(key + b"N" for key in keys) + b"u"


def _wide() -> bytes:
    """Return a tuple of 256 times a tuple of 128 times a tuple of 64 and so on, each one object."""
    made = b"N"
    for count in (2, 4, 8, 16, 32, 64, 128, 256):
        made += b"q\x000(" + b"h\0" * count + b"t"
    return made


def _equal() -> bytes:
    """Return a frozenset whose hash is known, and that takes 2**40 steps to compare."""
    return b"(\x91" + b"q\x000(h\0h\0\x86\x91" * 40


_PICKLES: list[Row] = [
    # the memo
    ("PUT of -1", b"Np-1\n"),
    ("PUT of text", b"Npabc\n"),
    ("PUT of nothing", b"Np\n"),
    ("PUT of a fraction", b"Np1.5\n"),
    ("PUT of a hexadecimal number", b"Np0x10\n"),
    ("PUT of 2**70", b"Np%d\n" % (1 << 70), _LEGAL),
    ("PUT of a million digits", b"Np" + b"9" * 1_000_000 + b"\n", LimitError),
    ("PUT of 4,400 digits", b"Np" + b"9" * 4400 + b"\n", LimitError),
    ("PUT of an empty stack", b"p0\n"),
    ("BINPUT of an empty stack", b"q\0"),
    ("LONG_BINPUT of an empty stack", b"r\0\0\0\0"),
    ("MEMOIZE of a mark", b"N(\x94"),
    ("LONG_BINPUT of 2**32-1", b"Nr\xff\xff\xff\xff0j\xff\xff\xff\xff", _LEGAL),
    ("LONG_BINPUT of 2**31", b"Nr\0\0\0\x800j\0\0\0\x80", _LEGAL),
    ("a number that is put 10,000 times", b"N" + b"q\0" * 10_000, _LEGAL),
    ("a number that is put by all four opcodes", b"Nq\0r\0\0\0\0p0\n\x94", _LEGAL),
    ("MEMOIZE behind a number of 2**32-1", b"Nr\xff\xff\xff\xff\x94h\1\x86", _LEGAL),
    ("50,000 MEMOIZEs", b"N" + b"\x94" * 50_000, _LEGAL),
    ("10,000 LONG_BINPUTs far apart",
     b"N" + b"".join(b"r" + _U32(i * 200_000) for i in range(10_000)), _LEGAL),
    ("GET of what was never put", b"g0\n"),
    ("GET of -1", b"Nq\0g-1\n"),
    ("GET of text", b"gx\n"),
    ("GET of nothing", b"g\n"),
    ("GET of a million digits", b"g" + b"1" * 1_000_000 + b"\n", LimitError),
    ("BINGET of what was never put", b"Nq\0h\1"),
    ("LONG_BINGET of what was never put", b"j\xff\xff\xff\xff"),
    ("LONG_BINGET of what a mark hides", b"Nq\0(h\0t", _LEGAL),
    ("BINGET of what was dropped", b"]q\x000h\0", _LEGAL),
    # declared lengths
    ("BINUNICODE of 2**32-1", b"X\xff\xff\xff\xffx"),
    ("BINUNICODE of 2**31", b"X\0\0\0\x80x"),
    ("BINUNICODE past the end by one", b"X\5\0\0\0xxx"),
    ("BINUNICODE8 of 2**64-1", b"\x8d" + b"\xff" * 8 + b"x"),
    ("BINUNICODE8 of 2**63", b"\x8d" + _U64(1 << 63) + b"x"),
    ("BINUNICODE8 of 2**40", b"\x8d" + _U64(1 << 40) + b"x"),
    ("SHORT_BINUNICODE of 255", b"\x8c\xffx"),
    ("BINBYTES of 2**32-1", b"B\xff\xff\xff\xffx"),
    ("BINBYTES8 of 2**64-1", b"\x8e" + b"\xff" * 8 + b"x"),
    ("BINBYTES8 of 2**63", b"\x8e" + _U64(1 << 63) + b"x"),
    ("BINBYTES8 of 2**40", b"\x8e" + _U64(1 << 40) + b"x"),
    ("BYTEARRAY8 of 2**64-1", b"\x96" + b"\xff" * 8 + b"x"),
    ("BYTEARRAY8 of 2**63", b"\x96" + _U64(1 << 63) + b"x"),
    ("BYTEARRAY8 of 2**40", b"\x96" + _U64(1 << 40) + b"x"),
    ("BYTEARRAY8 of 2**30", b"\x96" + _U64(1 << 30) + b"x"),
    ("SHORT_BINBYTES of 255", b"C\xffx"),
    ("BINSTRING of -1", b"T\xff\xff\xff\xffx"),
    ("BINSTRING of -2**31", b"T\0\0\0\x80x"),
    ("BINSTRING of 2**31-1", b"T\xff\xff\xff\x7fx"),
    ("SHORT_BINSTRING of 255", b"U\xffx"),
    ("SHORT_BINSTRING that is no UTF-8", b"U\1\xff", _LEGAL),
    ("LONG1 of nothing", b"\x8a\0", _LEGAL),
    ("LONG1 of 255 that is cut", b"\x8a\xffx"),
    ("LONG4 of nothing", b"\x8b\0\0\0\0", _LEGAL),
    ("LONG4 of -1", b"\x8b\xff\xff\xff\xff"),
    ("LONG4 of -2**31", b"\x8b\0\0\0\x80"),
    ("LONG4 of 2**31-1", b"\x8b\xff\xff\xff\x7fx", LimitError),
    ("LONG4 of 1,786 bytes", b"\x8b" + _U32(1786) + bytes(1786), LimitError),
    ("LONG4 of 1,785 bytes", b"\x8b" + _U32(1785) + bytes(1784) + b"\x7f", _LEGAL),
    ("LONG4 of a million bytes", b"\x8b" + _U32(1_000_000) + b"\x7f" * 1_000_000, LimitError),
    ("FRAME of 2**64-1", b"\x95" + b"\xff" * 8 + b"N"),
    ("FRAME of 2**63", b"\x95" + _U64(1 << 63) + b"N"),
    ("FRAME longer than the pickle", b"\x95" + _U64(3) + b"N"),
    ("FRAME shorter than an opcode", b"\x95" + _U64(1) + b"J\1\0\0\0", _LEGAL),
    ("FRAME of nothing", b"\x95" + _U64(0) + b"N", _LEGAL),
    ("FRAME within a FRAME", b"\x95" + _U64(11) + b"\x95" + _U64(2) + b"N", _LEGAL),
    # text and bytes
    ("BINUNICODE that is no UTF-8", b"X\2\0\0\0\xff\xfe"),
    ("BINUNICODE of a long spelling", b"X\2\0\0\0\xc0\x80"),
    ("BINUNICODE that is cut in a character", b"X\1\0\0\0\xc3"),
    ("BINUNICODE past Unicode", b"X\4\0\0\0\xf4\x90\x80\x80"),
    ("BINUNICODE of a lone surrogate", b"X\3\0\0\0\xed\xa0\x80", _LEGAL),
    ("SHORT_BINUNICODE that is no UTF-8", b"\x8c\1\x80"),
    ("BINUNICODE8 that is no UTF-8", b"\x8d" + _U64(1) + b"\x80"),
    ("UNICODE with an escape that is cut", b"V\\u12\n"),
    ("UNICODE with an escape of text", b"V\\uzzzz\n"),
    ("UNICODE with an escape past Unicode", b"V\\U00110000\n"),
    ("UNICODE with an escape of ten digits", b"V\\U0000004\n"),
    ("UNICODE with a lone surrogate", b"V\\ud800\n", _LEGAL),
    ("UNICODE with a backslash at its end", b"Vx\\\n", _LEGAL),
    ("UNICODE of other escapes", b"V\\x41\\n\\N{DIGIT ONE}\n", _LEGAL),
    ("UNICODE of nothing", b"V\n", _LEGAL),
    ("UNICODE without its end", b"Vx"),
    ("UNICODE of a million characters", b"V" + b"\\u0041" * 1_000_000 + b"\n", _LEGAL),
    ("STRING without quotes", b"Sabc\n"),
    ("STRING of nothing", b"S\n"),
    ("STRING of one quote", b"S'\n"),
    ("STRING with two kinds of quotes", b"S'abc\"\n"),
    ("STRING with text behind its quotes", b"S'a'b\n"),
    ("STRING of an expression", b"S'a'+__import__('os').getcwd()\n"),
    ("STRING with an escape that is cut", b"S'\\x4'\n"),
    ("STRING with a backslash at its end", b"S'a\\'\n"),
    ("STRING with a quote within", b"S'a'b'\n", _LEGAL),
    ("STRING of escapes past a byte", b"S'\\777\\0\\400'\n", _LEGAL),
    ("STRING of 200,000 escapes", b"S'" + b"\\x41" * 200_000 + b"'\n", _LEGAL),
    ("STRING of 200,000 backslashes", b"S'" + b"\\" * 200_000 + b"'\n", _LEGAL),
    # numbers as text
    ("INT of a million digits", b"I" + b"1" * 1_000_000 + b"\n", LimitError),
    ("INT of 4,400 digits", b"I" + b"1" * 4400 + b"\n", LimitError),
    ("INT of 4,000 digits", b"I" + b"1" * 4000 + b"\n", _LEGAL),
    ("INT of a million zeros", b"I" + b"0" * 1_000_000 + b"\n", LimitError),
    ("INT of a million spaces", b"I" + b" " * 1_000_000 + b"1\n", LimitError),
    ("INT of nothing", b"I\n"),
    ("INT of a sign", b"I-\n"),
    ("INT of two signs", b"I--1\n"),
    ("INT of text", b"Iabc\n"),
    ("INT of a fraction", b"I1.5\n"),
    ("INT of a power", b"I1e5\n"),
    ("INT in hexadecimal", b"I0xff\n"),
    ("INT with a space within", b"I1 2\n"),
    ("INT with two underscores", b"I1__2\n"),
    ("INT with a zero byte", b"I1\x002\n"),
    ("INT in Arabic digits", "I\u0661\n".encode()),
    ("INT of L", b"IL\n"),
    ("INT of 00", b"I00\n", _LEGAL),
    ("INT of 01", b"I01\n", _LEGAL),
    ("INT of 02", b"I02\n", _LEGAL),
    ("INT of 001", b"I001\n", _LEGAL),
    ("INT of -01", b"I-01\n", _LEGAL),
    ("INT of 2**64", b"I18446744073709551616\n", _LEGAL),
    ("LONG of a million digits", b"L" + b"1" * 1_000_000 + b"L\n", LimitError),
    ("LONG of 4,000 digits and an L", b"L" + b"1" * 4000 + b"L\n", _LEGAL),
    ("LONG of nothing", b"L\n"),
    ("LONG of L", b"LL\n"),
    ("LONG of two Ls", b"L1LL\n"),
    ("LONG of a small l", b"L1l\n"),
    ("LONG without L", b"L1\n", _LEGAL),
    ("LONG of 01", b"L01L\n", _LEGAL),
    ("FLOAT of nothing", b"F\n"),
    ("FLOAT of text", b"Fabc\n"),
    ("FLOAT in hexadecimal", b"F0x1p3\n"),
    ("FLOAT of two dots", b"F1..5\n"),
    ("FLOAT of a complex number", b"F1j\n"),
    ("FLOAT that is no UTF-8", b"F\xff\n"),
    ("FLOAT of nan", b"Fnan\n", _LEGAL),
    ("FLOAT of -Infinity", b"F-Infinity\n", _LEGAL),
    ("FLOAT past the floats", b"F1e99999\n", _LEGAL),
    ("FLOAT of a million digits", b"F" + b"9" * 1_000_000 + b"\n", _LEGAL),
    ("FLOAT of a power of many digits", b"F1e" + b"9" * 100_000 + b"\n", _LEGAL),
    ("BINFLOAT of a signalling nan", b"G\x7f\xf0\0\0\0\0\0\1", _LEGAL),
    # depth
    ("lists 4,000 deep", b"]" * _DEEP + b"a" * (_DEEP - 1), _LEGAL),
    ("lists 4,000 deep by APPENDS", b"](" * _DEEP + b"e" * _DEEP, _LEGAL),
    ("lists 4,000 deep by LIST", b"(" * _DEEP + b"l" * _DEEP, _LEGAL),
    ("tuples 4,000 deep by TUPLE", b"(" * _DEEP + b"t" * _DEEP, _LEGAL),
    ("tuples 4,000 deep by TUPLE1", b")" + b"\x85" * _DEEP, _LEGAL),
    ("tuples 4,000 deep by TUPLE2", b")" + b"2\x86" * _DEEP, _LEGAL),
    ("tuples 4,000 deep by TUPLE3", b"N" * (2 * _DEEP) + b")" + b"\x87" * _DEEP, _LEGAL),
    ("dicts 4,000 deep", b"}K\0" * _DEEP + b"N" + b"s" * _DEEP, _LEGAL),
    ("dicts 4,000 deep by DICT", b"(K\0" * _DEEP + b"N" + b"d" * _DEEP, _LEGAL),
    ("frozensets 4,000 deep", b"(" * _DEEP + b"\x91" * _DEEP, LimitError),
    ("calls 4,000 deep", (SYSTEM + b"(") * _DEEP + b"tR" * _DEEP, _LEGAL),
    ("states 4,000 deep", (SYSTEM + b")R") * _DEEP + b"N" + b"b" * _DEEP, _LEGAL),
    ("items 4,000 deep", (SYSTEM + b")R") * _DEEP + b"N" + b"a" * _DEEP, _LEGAL),
    ("OrderedDicts 4,000 deep", (b.HOOKS + b"K\0") * _DEEP + b"N" + b"s" * _DEEP, _LEGAL),
    ("attributes of OrderedDicts 4,000 deep",
     (b.HOOKS + b"}" + b.text("a")) * _DEEP + b"N" + b"sb" * _DEEP, _LEGAL),
    ("a tensor 4,000 deep", b"(" * _DEEP + b.tensor() + b"l" * _DEEP, _LEGAL),
    ("a parameter of parameters", b"N" + (b"q\0" + b"0" + b.call(
        "torch._utils._rebuild_parameter", b"h\0", True, b"N")) * 1000, TensorError),
    ("marks 4,000 deep that stay open", b"(" * _DEEP + b"N"),
    ("marks 4,000 deep that are dropped", b"(" * _DEEP + b"0" * _DEEP + b"N", _LEGAL),
    ("marks 4,000 deep that POP_MARK drops", b"(" * _DEEP + b"1" * _DEEP + b"N", _LEGAL),
    # cycles
    ("a list in itself", b"]q\0h\0a", _LEGAL),
    ("a list twice in itself", b"]q\0(h\0h\0e", _LEGAL),
    ("a list in itself that is extended", b"]q\0N" + b"0h\0(h\0h\0h\0e" * 1000 + b"0", _LEGAL),
    ("a dict in itself", b"}q\0K\0h\0s", _LEGAL),
    ("a dict in itself as a key", b"}q\0h\0Ns", UnsupportedError),
    ("a list in itself as a key", b"}]q\0h\0aNs", UnsupportedError),
    ("a tuple in itself by a list", b"]q\0h\0\x85q\1ah\1", _LEGAL),
    ("a tuple in itself by a dict", b"}q\0K\0h\0\x85s", _LEGAL),
    ("a tuple in itself as a key", b"}q\1]q\0h\0\x85q\2ah\2\x86" + b"0h\1h\2Ns", UnsupportedError),
    ("a set in itself", b"\x8fq\0(h\0\x90", UnsupportedError),
    ("an OrderedDict in itself", b.HOOKS + b"q\0K\0h\0s", _LEGAL),
    ("an OrderedDict in its attributes", b.HOOKS + b"q\0}" + b.text("a") + b"h\0sb", _LEGAL),
    ("a call in its state", SYSTEM + b")Rq\0h\0b", _LEGAL),
    ("a call in its state by a dict", SYSTEM + b")Rq\0}" + b.text("a") + b"h\0sb", _LEGAL),
    ("a call in its items", SYSTEM + b")Rq\0h\0a", _LEGAL),
    ("a call as a key of itself", SYSTEM + b")Rq\0h\0Ns", _LEGAL),
    ("a call in its arguments", b"]q\0" + SYSTEM + b"h\0\x85R" + b"q\1ah\1", _LEGAL),
    ("a parameter in its state", b"}q\0" + b.text("a") + b.call(
        "torch._utils._rebuild_parameter_with_state", b.tensor(), True, b.HOOKS,
        b"h\0") + b"s", _LEGAL),
    ("two lists in each other", b"]q\0]q\1h\0ah\1\x86" + b"0h\0h\1a", _LEGAL),
    ("a ring of 1,000 lists",
     b"".join(b"]r" + _U32(i) for i in range(1000)) + b"h\0a" + b"a" * 999, _LEGAL),
    # what is shared
    ("a list of 2**40 by tuples", doubling(), _LEGAL),
    ("a list of 2**40 by lists", b"]" + b"q\x000]h\0ah\0a" * 40, _LEGAL),
    ("a dict of 2**40 by values", b"}" + b"q\x000}(K\0h\0K\1h\0u" * 40, _LEGAL),
    ("2**40 tensors", b.list_of(b.tensor()) + b"2\x86" * 40, _LEGAL),
    ("2**40 arguments of calls", b"N" + (b"q\x000" + SYSTEM + b"(h\0h\0tR") * 40, _LEGAL),
    ("2**40 states", b"N" + (b"q\x000" + SYSTEM + b")Rh\0h\0\x86b") * 40, _LEGAL),
    ("2**40 items of tuples as a key", b"}" + b")" + b"2\x86" * 40 + b"Ns", LimitError),
    ("2**7 items of tuples as a key", b"}" + b")" + b"2\x86" * 7 + b"Ns", _LEGAL),
    ("2**40 items of frozensets", b"(\x91" + b"q\x000(h\0h\0\x86\x91" * 40, LimitError),
    ("a long text in 10,000 lists",
     b.text("x" * 100_000) + b"q\0" + b"(" + b"h\0\x85" * 10_000 + b"l\x86", _LEGAL),
    ("a long list copied by 1,000 sets", b.list_of(*[b"K\1"] * 20_000)
     + b"q\0(" + (b.name("__builtin__", "set") + b"h\0\x85R") * 1000 + b"l\x86", LimitError),
    ("a long list copied by 1,000 deques", b.list_of(*[b"N"] * 20_000)
     + b"q\0(" + (b.name("collections", "deque") + b"h\0\x85R") * 1000 + b"l\x86", LimitError),
    ("a long text copied by 1,000 encodes", b.text("x" * 200_000) + b"q\0" + b.text("latin1")
     + b"q\1(" + (b.name("_codecs", "encode") + b"h\0h\1\x86R") * 1000 + b"l\x87", LimitError),
    ("long bytes copied by 1,000 bytearrays", b"B" + _U32(200_000) + bytes(200_000)
     + b"q\0(" + (b.name("__builtin__", "bytearray") + b"h\0\x85R") * 1000 + b"l\x86", LimitError),
    ("a long text as 1,000 names", short_text("os")
     + b"q\0" + b.text("x" * 100_000) + b"q\1(" + b"h\0h\1\x93" * 1000 + b"l\x87", _LEGAL),
    ("a long text as 300 getattrs", b.text("x" * 900) + b"q\0" + SYSTEM
     + (b"q\x010" + b.name("__builtin__", "getattr") + b"h\1h\0\x86R") * 300 + b"\x86", _LEGAL),
    ("1,000 sets of a list of many numbers", b.list_of(*[b"J" + _U32(i) for i in range(5_000)])
     + b"q\0(" + (b.name("__builtin__", "set") + b"h\0\x85R") * 1000 + b"l\x86", LimitError),
    # keys
    ("a key of 2**36 items of tuples of many", _keys(_wide()), LimitError),
    ("a key of 2**40 items of equal frozensets", _keys(_equal(), _equal()), LimitError),
    ("a key of 10,000 empty tuples", _keys(b.tuple_of(b")" * 10_000)), _LEGAL),
    ("200 keys of one hash", _keys(*map(b.integer, _COLLIDING)), _LEGAL),
    ("200 keys of one hash in 200 dicts",
     b"(" + b"".join(b"}" + b.integer(key) + b"Ns" for key in _COLLIDING) + b"l", _LEGAL),
    ("200 floats of one hash",
     _keys(*(_float(float(i * 2**61)) for i in range(1, 5)), *map(b.integer, _COLLIDING)), _LEGAL),
    ("200 items of one hash by a set",
     b"\x8f(" + b"".join(map(b.integer, _COLLIDING)) + b"\x90", _LEGAL),
    ("200 items of one hash by a frozenset",
     b"(" + b"".join(map(b.integer, _COLLIDING)) + b"\x91", _LEGAL),
    ("200 items of one hash by a call of set", b.call("__builtin__.set", [*_COLLIDING]), _LEGAL),
    ("200 pairs of one hash in an OrderedDict",
     b.call("collections.OrderedDict", [*(b.tuple_of(key, b"N") for key in _COLLIDING)]), _LEGAL),
    ("200 keys of one hash in tuples",
     _keys(*(b.integer(key) + b"\x85" for key in _COLLIDING)), _LEGAL),
    ("200 keys of one hash in a foreign object",
     SYSTEM + b")R(" + b"".join(b.integer(key) + b"N" for key in _COLLIDING) + b"u", _LEGAL),
    ("a dict that has to look in many places", _keys(*map(b.integer, IN_THE_WAY))),
    ("a dict that has to look in many places, by one key each",
     b"}" + b"".join(b.integer(key) + b"Ns" for key in IN_THE_WAY)),
    ("a dict of texts and of keys in the way", b"}"
     + b.text("x") + b"Ns(" + b"".join(b.integer(key) + b"N" for key in IN_THE_WAY) + b"u"),
    ("a dict of floats that are in the way", _keys(*(_float(float(key)) for key in IN_THE_WAY))),
    ("an object with items in the way",
     SYSTEM + b")R(" + b"".join(b.integer(key) + b"N" for key in IN_THE_WAY) + b"u"),
    ("an OrderedDict of pairs in the way",
     b.call("collections.OrderedDict", [*(b.tuple_of(key, b"N") for key in IN_THE_WAY)])),
    ("memo numbers in the way", b"N" + b"".join(b"r" + _U32(key) for key in IN_THE_WAY), _LEGAL),
    ("memo numbers as text in the way",
     b"N" + b"".join(b"p%d\n" % key for key in IN_THE_WAY), _LEGAL),
    ("256 memo numbers out of turn",
     b"N" + b"".join(b"r" + _U32(key << 20) for key in range(1, 257)), _LEGAL),
    ("50 keys of one hash", _keys(*map(b.integer, _COLLIDING[:50])), _LEGAL),
    ("keys of -1 and -2", _keys(b.integer(-1), b.integer(-2)), _LEGAL),
    ("keys of 1, 1.0 and True", _keys(b"K\1", _float(1.0), b.TRUE), _LEGAL),
    ("keys that are nan", _keys(*[_float(float("nan"))] * 1000), _LEGAL),
    ("a key that is nan, from the memo",
     b"}(" + _float(float("nan")) + b"q\0N" + b"h\0N" * 1000 + b"u", _LEGAL),
    ("a key that is a list", _keys(b"]"), UnsupportedError),
    ("a key that is a dict", _keys(b"}"), UnsupportedError),
    ("a key that is a set", _keys(b"\x8f"), UnsupportedError),
    ("a key that is a bytearray", _keys(b"\x96" + _U64(0)), UnsupportedError),
    ("a key that is a tensor", _keys(b.tensor()), _LEGAL),
    ("a key that is a list in a tuple", _keys(b"]\x85"), UnsupportedError),
    ("a key that is a slice", _keys(b.call("__builtin__.slice", b"NNN")), UnsupportedError),
    ("a key that is a range of 2**62", _keys(b.call("__builtin__.xrange", 1 << 62)), _LEGAL),
    ("a key that is a tuple of 257", _keys(b.tuple_of(*[b"N"] * 257)), _LEGAL),
    ("a key that is a tuple of 256", _keys(b.tuple_of(*[b"N"] * 256)), _LEGAL),
    ("a key that is a tuple nine deep", _keys(b")" + b"\x85" * 9), _LEGAL),
    ("a key that is a tuple 4,000 deep", _keys(b")" + b"\x85" * _DEEP), LimitError),
    ("a key that is a frozenset of 257",
     _keys(b"(" + b"".join(map(b.integer, range(257))) + b"\x91"), _LEGAL),
    ("a key that is a deque", _keys(b.call("collections.deque", b"]")), UnsupportedError),
    ("a key of 4,000 digits", _keys(b"I" + b"9" * 4000 + b"\n"), _LEGAL),
    ("an item that is a list, by ADDITEMS", b"\x8f(]\x90", UnsupportedError),
    ("an item that is a list, by FROZENSET", b"(]\x91", UnsupportedError),
    ("a key without a value", b"}(Nu"),
    ("a key without a value, by DICT", b"(NNNd"),
    ("a key twice", _keys(b.text("a"), b.text("a")), _LEGAL),
    # the stack
    ("STOP of an empty stack", b""),
    ("STOP of a mark", b"("),
    ("STOP with a mark below", b"N(N"),
    ("STOP with more than one value", b"NNK\1", _LEGAL),
    ("STOP with 10,000 values", b"N" * 10_000, _LEGAL),
    ("10,000 DUPs", b"N" + b"2" * 10_000, _LEGAL),
    ("POP of a mark", b"N(0", _LEGAL),
    ("POP of a mark and a value", b"N(00N", _LEGAL),
    ("POP of more than there is", b"N00"),
    ("POP_MARK of everything", b"(NN1"),
    ("DUP of a mark", b"N(2"),
    ("a REDUCE across a mark", SYSTEM + b"()R"),
    ("a TUPLE2 across a mark", b"N(N\x86"),
    ("a TUPLE3 across a mark", b"NN(N\x87"),
    ("an APPEND across a mark", b"](Na"),
    ("a SETITEM across a mark", b"}N(Ns"),
    ("a BUILD across a mark", b.HOOKS + b"(}b"),
    ("a TUPLE1 of a mark", b"N(\x85"),
    ("a BINPERSID of a mark", b"N(Q"),
    ("an APPENDS to a mark", b"((Ne"),
    ("a SETITEMS to a mark", b"((NNu"),
    # protocols and opcodes
    ("protocol 0 by PROTO", b"\x80\0N", _LEGAL),
    ("protocol 6", b"\x80\6N", UnsupportedError),
    ("protocol 255", b"\x80\xffN", UnsupportedError),
    ("protocol 255 in the middle", b"N\x80\xff", UnsupportedError),
    ("protocol 5 in the middle", b"N\x80\5", _LEGAL),
    ("10,000 protocols", b"\x80\2" * 10_000 + b"N", _LEGAL),
    ("an opcode of 0", b"N\0"),
    ("an opcode of 0x01", b"N\1"),
    ("an opcode of a line break", b"N\n"),
    ("an opcode of a space", b"N "),
    ("an opcode of 0x7f", b"N\x7f"),
    ("an opcode of 0x99, behind the last", b"N\x99"),
    ("an opcode of 0xff", b"N\xff"),
    ("an opcode of another pickle, a Z", b"NZ"),
]  # fmt: skip


def _cut() -> Iterator[tuple[str, bytes]]:
    """Yield each opcode that has an argument, with the file's end within that."""
    for opcode in pickletools.opcodes:
        argument = opcode.arg
        if argument is None:
            continue
        code = opcode.code.encode("latin1")
        value = b"((NN" + code  # enough on the stack for any
        yield f"{opcode.name} without its argument", value
        if argument.n == pickletools.UP_TO_NEWLINE:
            lines = 2 if " " in argument.name or argument.name.endswith("pair") else 1
            yield f"{opcode.name} without its line break", value + b"1\n" * (lines - 1) + b"1"
        elif argument.n > 1:
            yield f"{opcode.name} with half its argument", value + b"\1" * (argument.n // 2)
        elif argument.n < 0:
            width = 1 if argument.name.endswith("1") else 8 if argument.name.endswith("8") else 4
            if width > 1:
                yield f"{opcode.name} with half its length", value + b"\1" * (width // 2)
            length = b"\5" + bytes(width - 1)
            yield f"{opcode.name} with half of what its length says", value + length + b"xx"


def _too_little() -> Iterator[tuple[str, bytes]]:
    """Yield each opcode that takes values, with none or one too few on the stack."""
    arguments = {"GLOBAL": b"a\nb\n", "PUT": b"0\n", "BINPUT": b"\0", "LONG_BINPUT": bytes(4)}
    for opcode in pickletools.opcodes:
        needs = [each.name for each in opcode.stack_before]
        if not needs or opcode.name in ("STOP", "POP"):
            continue
        code = opcode.code.encode("latin1") + arguments.get(opcode.name, b"")
        code += b"a\nb\n" if opcode.name == "INST" else b""
        if "mark" in needs:
            yield f"{opcode.name} without a mark", b"NNN" + code
            if needs[0] != "mark":
                yield f"{opcode.name} with nothing below its mark", b"(" + code
        elif opcode.arg is None and opcode.name != "READONLY_BUFFER":
            yield f"{opcode.name} of an empty stack", code
        if "mark" not in needs and len(needs) > 1:
            yield f"{opcode.name} with a value too few", b"N" * (len(needs) - 1) + code


def _whole(pickle: bytes) -> bytes:
    return b.checkpoint(b"\x80\2" + pickle)


def _window(key: str) -> bytes:
    """Return a tensor of one element on a window of a storage, which is the second and third."""
    return tensor_on(extra=(key, 1, 2), size=(1,))


ROWS = attacks([*_PICKLES, *_too_little()], PickleError, zipped)
ROWS += attacks(_cut(), PickleError, _whole)
ROWS += [
    Attack("no STOP", _whole(b"N"), PickleError),
    Attack("PROTO and nothing behind", b.checkpoint(b"\x80\2"), PickleError),
    Attack("STOP and nothing before", b.checkpoint(b"."), PickleError),
    Attack("a view that has the key of its storage", legacy(root=_window("0")), PickleError),
    Attack("a view that has the key of a later storage",
     legacy(root=b.list_of(_window("1"), tensor_on("1"))), PickleError),
    Attack("a view that has a key of its own", legacy(root=_window("1")), _LEGAL),
    Attack("a pickle without PROTO", b.checkpoint(b"N."), _LEGAL),
    Attack("a pickle of protocol 0", b.checkpoint(b"(dp0\nS'a'\np1\nI1\ns."), _LEGAL),
]  # fmt: skip
