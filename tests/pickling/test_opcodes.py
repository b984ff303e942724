"""The opcode table is the one of Python."""

from __future__ import annotations

import pickletools

from torchzip.pickling.opcodes import BY_CODE, OPCODES

#: How `pickletools` calls an argument, and how the table does.
_ARGUMENTS = {
    None: "",
    "uint1": "u8",
    "uint2": "u16",
    "uint4": "u32",
    "uint8": "u64",
    "int4": "i32",
    "float8": "f64 big-endian",
    "floatnl": "line",
    "decimalnl_short": "line",
    "decimalnl_long": "line",
    "stringnl": "line",
    "stringnl_noescape": "line",
    "stringnl_noescape_pair": "two lines",
    "unicodestringnl": "line",
    "string1": "u8+bytes",
    "string4": "i32+bytes",
    "bytes1": "u8+bytes",
    "bytes4": "u32+bytes",
    "bytes8": "u64+bytes",
    "bytearray8": "u64+bytes",
    "unicodestring1": "u8+bytes",
    "unicodestring4": "u32+bytes",
    "unicodestring8": "u64+bytes",
    "long1": "u8+bytes",
    "long4": "i32+bytes",
}

#: The branches of torch 2.13's `_weights_only_unpickler.Unpickler.load`.
_TORCH_SAFE = """
    GLOBAL NEWOBJ REDUCE BUILD APPEND APPENDS SETITEM SETITEMS MARK TUPLE TUPLE1 TUPLE2 TUPLE3
    NONE NEWFALSE NEWTRUE EMPTY_TUPLE EMPTY_LIST EMPTY_DICT EMPTY_SET BININT BININT1 BININT2
    BINFLOAT BINUNICODE SHORT_BINSTRING BINPERSID BINGET LONG_BINGET BINPUT LONG_BINPUT LONG1
    PROTO STOP
""".split()


def test_table_is_that_of_pickletools() -> None:
    """Byte, name, argument and protocol of each opcode are those of `pickletools`."""
    ours = {(o.code, o.name, o.argument, o.protocol) for o in OPCODES}
    theirs = {
        (ord(o.code), o.name, _ARGUMENTS[o.arg.name if o.arg else None], o.proto)
        for o in pickletools.opcodes
    }
    assert ours == theirs


def test_each_opcode_has_one_row() -> None:
    """No byte and no name comes twice, and the index holds every row."""
    assert len(OPCODES) == len({o.code for o in OPCODES}) == len({o.name for o in OPCODES}) == 68
    assert [BY_CODE[o.code] for o in OPCODES] == list(OPCODES)
    assert all(o.does for o in OPCODES)


def test_torch_safe_marks() -> None:
    """The marked opcodes are the 34 of torch's default loader."""
    assert {o.name for o in OPCODES if o.torch_safe} == set(_TORCH_SAFE)
    assert len(_TORCH_SAFE) == 34
