"""The opcode table is the one of Python."""

from __future__ import annotations

import pickletools

from torchzip.pickling.opcodes import BY_CODE, OPCODES

#: The arguments of the table, and what `pickletools` calls those that are written so.
_ARGUMENTS = {
    "u8": "uint1",
    "u16": "uint2",
    "u32": "uint4",
    "u64": "uint8",
    "i32": "int4",
    "f64 big-endian": "float8",
    "line": "floatnl decimalnl_short decimalnl_long stringnl stringnl_noescape unicodestringnl",
    "two lines": "stringnl_noescape_pair",
    "u8+bytes": "string1 bytes1 unicodestring1 long1",
    "i32+bytes": "string4 long4",
    "u32+bytes": "bytes4 unicodestring4",
    "u64+bytes": "bytes8 bytearray8 unicodestring8",
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
    called = {name: ours for ours, names in _ARGUMENTS.items() for name in names.split()}
    ours = {(o.code, o.name, o.argument, o.protocol) for o in OPCODES}
    theirs = {
        (ord(o.code), o.name, called[o.arg.name] if o.arg else "", o.proto)
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
