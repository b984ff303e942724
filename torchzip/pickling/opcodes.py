"""The opcodes of pickle as documented data, protocols 0 to 5.

Messages and `disassembly` take names and arguments from here; a test compares the table with
``pickletools``. ``torch_safe`` says whether torch's default loader
(``weights_only=True``, torch 2.13) accepts the opcode: 34 of 68 (docs/format.md, section 8.2).
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from torchzip.errors import PickleError


class Opcode(NamedTuple):
    """One opcode: its byte, its name, its argument, what it does."""

    code: int
    name: str
    argument: str  # as written after the opcode: "", "u8", "i32", "line", "u32+bytes" ...
    protocol: int
    torch_safe: bool
    does: str


OPCODES: tuple[Opcode, ...] = (
    Opcode(0x80, "PROTO", "u8", 2, True, "protocol number"),
    Opcode(0x2E, "STOP", "", 0, True, "the top of the stack is the result"),
    Opcode(0x95, "FRAME", "u64", 4, False, "so many bytes follow in one frame"),
    # constants
    Opcode(0x4E, "NONE", "", 0, True, "push None"),
    Opcode(0x88, "NEWTRUE", "", 2, True, "push True"),
    Opcode(0x89, "NEWFALSE", "", 2, True, "push False"),
    Opcode(0x49, "INT", "line", 0, False, "push a decimal int; 00 and 01 are bools"),
    Opcode(0x4C, "LONG", "line", 0, False, "push a decimal int that may end in L"),
    Opcode(0x4B, "BININT1", "u8", 1, True, "push an int"),
    Opcode(0x4D, "BININT2", "u16", 1, True, "push an int"),
    Opcode(0x4A, "BININT", "i32", 1, True, "push an int"),
    Opcode(0x8A, "LONG1", "u8+bytes", 2, True, "push an int, two's complement"),
    Opcode(0x8B, "LONG4", "i32+bytes", 2, False, "push an int, two's complement"),
    Opcode(0x46, "FLOAT", "line", 0, False, "push a decimal float"),
    Opcode(0x47, "BINFLOAT", "f64 big-endian", 1, True, "push a float"),
    # text and bytes
    Opcode(0x53, "STRING", "line", 0, False, "push a Python 2 string, quoted and escaped"),
    Opcode(0x54, "BINSTRING", "i32+bytes", 1, False, "push a Python 2 string"),
    Opcode(0x55, "SHORT_BINSTRING", "u8+bytes", 1, True, "push a Python 2 string"),
    Opcode(0x56, "UNICODE", "line", 0, False, "push text, raw-unicode-escape"),
    Opcode(0x58, "BINUNICODE", "u32+bytes", 1, True, "push text, UTF-8"),
    Opcode(0x8C, "SHORT_BINUNICODE", "u8+bytes", 4, False, "push text, UTF-8"),
    Opcode(0x8D, "BINUNICODE8", "u64+bytes", 4, False, "push text, UTF-8"),
    Opcode(0x42, "BINBYTES", "u32+bytes", 3, False, "push bytes"),
    Opcode(0x43, "SHORT_BINBYTES", "u8+bytes", 3, False, "push bytes"),
    Opcode(0x8E, "BINBYTES8", "u64+bytes", 4, False, "push bytes"),
    Opcode(0x96, "BYTEARRAY8", "u64+bytes", 5, False, "push a bytearray"),
    Opcode(0x97, "NEXT_BUFFER", "", 5, False, "push the next out-of-band buffer"),
    Opcode(0x98, "READONLY_BUFFER", "", 5, False, "make the top buffer read-only"),
    # containers
    Opcode(0x28, "MARK", "", 0, True, "remember this place of the stack"),
    Opcode(0x29, "EMPTY_TUPLE", "", 1, True, "push ()"),
    Opcode(0x74, "TUPLE", "", 0, True, "all from the mark become a tuple"),
    Opcode(0x85, "TUPLE1", "", 2, True, "the top value becomes a tuple"),
    Opcode(0x86, "TUPLE2", "", 2, True, "the top 2 values become a tuple"),
    Opcode(0x87, "TUPLE3", "", 2, True, "the top 3 values become a tuple"),
    Opcode(0x5D, "EMPTY_LIST", "", 1, True, "push []"),
    Opcode(0x6C, "LIST", "", 0, False, "all from the mark become a list"),
    Opcode(0x61, "APPEND", "", 0, True, "append the top value to the list below it"),
    Opcode(0x65, "APPENDS", "", 1, True, "append all from the mark to the list below it"),
    Opcode(0x7D, "EMPTY_DICT", "", 1, True, "push {}"),
    Opcode(0x64, "DICT", "", 0, False, "all from the mark become a dict, key and value in turn"),
    Opcode(0x73, "SETITEM", "", 0, True, "key and value from the top go into the dict below"),
    Opcode(0x75, "SETITEMS", "", 1, True, "keys and values from the mark go into the dict below"),
    Opcode(0x8F, "EMPTY_SET", "", 4, True, "push a set"),
    Opcode(0x90, "ADDITEMS", "", 4, False, "all from the mark go into the set below it"),
    Opcode(0x91, "FROZENSET", "", 4, False, "all from the mark become a frozenset"),
    # the stack and the memo
    Opcode(0x30, "POP", "", 0, False, "drop the top value (or mark)"),
    Opcode(0x31, "POP_MARK", "", 1, False, "drop all from the mark"),
    Opcode(0x32, "DUP", "", 0, False, "push the top value again"),
    Opcode(0x70, "PUT", "line", 0, False, "number the top value"),
    Opcode(0x71, "BINPUT", "u8", 1, True, "number the top value"),
    Opcode(0x72, "LONG_BINPUT", "u32", 1, True, "number the top value"),
    Opcode(0x94, "MEMOIZE", "", 4, False, "give the top value the next number"),
    Opcode(0x67, "GET", "line", 0, False, "push the value of that number"),
    Opcode(0x68, "BINGET", "u8", 1, True, "push the value of that number"),
    Opcode(0x6A, "LONG_BINGET", "u32", 1, True, "push the value of that number"),
    # names and objects
    Opcode(0x63, "GLOBAL", "two lines", 0, True, "push the name module, name"),
    Opcode(0x93, "STACK_GLOBAL", "", 4, False, "module and name from the stack"),
    Opcode(0x82, "EXT1", "u8", 2, False, "a name by number, from a registry of the process"),
    Opcode(0x83, "EXT2", "u16", 2, False, "a name by number"),
    Opcode(0x84, "EXT4", "i32", 2, False, "a name by number"),
    Opcode(0x52, "REDUCE", "", 0, True, "callable and argument tuple become the result"),
    Opcode(0x62, "BUILD", "", 0, True, "give the state on top to the object below"),
    Opcode(0x69, "INST", "two lines", 0, False, "class by name, arguments from the mark"),
    Opcode(0x6F, "OBJ", "", 1, False, "class and arguments from the mark"),
    Opcode(0x81, "NEWOBJ", "", 2, True, "class and argument tuple: a new object"),
    Opcode(0x92, "NEWOBJ_EX", "", 4, False, "class, arguments, keywords: a new object"),
    Opcode(0x50, "PERSID", "line", 0, False, "persistent id, as text"),
    Opcode(0x51, "BINPERSID", "", 1, True, "persistent id, from the stack"),
)

BY_CODE: dict[int, Opcode] = {opcode.code: opcode for opcode in OPCODES}

#: How numbers in arguments are written; text arguments end with the line.
FIXED = {
    "u8": struct.Struct("<B"),
    "u16": struct.Struct("<H"),
    "i32": struct.Struct("<i"),
    "u32": struct.Struct("<I"),
    "u64": struct.Struct("<Q"),
    "f64 big-endian": struct.Struct(">d"),
}
_PACK_U32 = FIXED["u32"].pack


def text_opcode(nbytes: int) -> bytes:
    """Return the opcode of a string, up to its bytes."""
    return b"X" + _PACK_U32(nbytes)


def put_opcode(number: int) -> bytes:
    """Return the opcode that assigns a memo number."""
    return b"q%c" % number if number < 256 else b"r" + _PACK_U32(number)


def get_opcode(number: int) -> bytes:
    """Return the opcode that fetches the value with a memo number."""
    return b"h%c" % number if number < 256 else b"j" + _PACK_U32(number)


class TruncatedPickleError(PickleError):
    """The bytes end within the pickle; ``needed`` is how many more the next step needs."""

    needed: int = 1


def within_argument(opcode: Opcode) -> str:
    """Return the message for bytes that end within an argument."""
    return f"the pickle ends within the argument of {opcode.name}"


def truncated(message: str, needed: int) -> TruncatedPickleError:
    """Return the error for bytes that end within a pickle."""
    error = TruncatedPickleError(message)
    error.needed = max(1, needed)
    return error
