"""Bytes to steps: the opcodes of a pickle with their arguments, one by one, without running them.

This also works for pickles that no loader accepts, up to the first byte that is not an opcode.
`Annotator` follows the stack with short strings in place of values, to show what each opcode
acts on.
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple

from torchzip.errors import PickleError
from torchzip.pickling.opcodes import BY_CODE, FIXED, Opcode, truncated, within_argument

#: At most so many bytes of a long argument are kept.
_KEPT_NBYTES = 256
_SUMMARY_LENGTH = 90
_STRING_OPCODES = {
    "STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE",
    "BINUNICODE8",
}  # fmt: skip


class Step(NamedTuple):
    """One opcode. ``offset`` and ``end`` count bytes of the pickle.

    ``argument`` is a number, the first bytes of a string or of bytes as they are in the file, a
    pair of these for "two lines", or None; ``nbytes`` is the length of the whole string or bytes.
    """

    offset: int
    opcode: Opcode
    argument: Any
    nbytes: int
    end: int


def parse_step(data: bytes, position: int, base: int = 0) -> Step:
    """Return the opcode at ``position`` of ``data``, which begins at offset ``base`` of the pickle.

    Raises
    ------
    TruncatedPickleError
        If the bytes end within it.
    PickleError
        If the byte is not an opcode, or its argument has a negative size.
    """
    if position >= len(data):
        raise truncated(f"the pickle ends after {len(data):,} bytes without STOP", 1)
    opcode = BY_CODE.get(data[position])
    if opcode is None:
        raise PickleError(f"byte 0x{data[position]:02x} is not an opcode")
    at = position + 1
    written = opcode.argument
    argument: Any = None
    nbytes = 0
    if written == "line":
        argument, nbytes, at = _line(data, at, opcode)
    elif written == "two lines":
        first, first_nbytes, at = _line(data, at, opcode)
        second, second_nbytes, at = _line(data, at, opcode)
        argument, nbytes = (first, second), first_nbytes + second_nbytes
    elif written:
        size, plus, _ = written.partition("+bytes")
        fixed = FIXED[size]
        missing = at + fixed.size - len(data)
        if missing > 0:
            raise truncated(within_argument(opcode), missing)
        argument = fixed.unpack_from(data, at)[0]
        at += fixed.size
        if plus:
            nbytes = argument
            if nbytes < 0:
                raise PickleError(f"{opcode.name} of {nbytes:,} bytes; 0 or more were expected")
            missing = at + nbytes - len(data)
            if missing > 0:
                raise truncated(
                    f"{opcode.name} of {nbytes:,} bytes, and {len(data) - at:,} are left", missing
                )
            argument = data[at : at + min(nbytes, _KEPT_NBYTES)]
            at += nbytes
    return Step(base + position, opcode, argument, nbytes, base + at)


def _line(data: bytes, at: int, opcode: Opcode) -> tuple[bytes, int, int]:
    end = data.find(b"\n", at)
    if end < 0:
        raise truncated(within_argument(opcode), 1)
    return data[at : min(end, at + _KEPT_NBYTES)].rstrip(b"\r"), end - at, end + 1


def argument_text(step: Step) -> str:
    """Return the argument as a short printable string."""
    argument, name = step.argument, step.opcode.name
    if argument is None:
        return ""
    if isinstance(argument, tuple):
        return " ".join(_printable(part) for part in argument)
    if not isinstance(argument, bytes):
        return repr(argument)
    if name in ("LONG1", "LONG4") and step.nbytes <= _KEPT_NBYTES:
        return _shortened(str(int.from_bytes(argument, "little", signed=True)))
    if step.opcode.argument == "line" and name not in _STRING_OPCODES:
        return _shortened(_printable(argument))
    value = argument.decode(errors="backslashreplace") if name in _STRING_OPCODES else argument
    text = repr(value)
    if step.nbytes <= _KEPT_NBYTES and len(text) <= _SUMMARY_LENGTH:
        return text
    return f"{text[:_SUMMARY_LENGTH]}... ({step.nbytes:,} bytes)"


def _printable(raw: bytes) -> str:
    return repr(raw.decode(errors="backslashreplace"))[1:-1]


def _shortened(text: str) -> str:
    return text if len(text) <= _SUMMARY_LENGTH else text[: _SUMMARY_LENGTH - 3] + "..."


class _Value(NamedTuple):
    """A placeholder for a value: how it is shown, and its text if it is a string."""

    summary: str
    text: str | None = None


_UNKNOWN = _Value("?")


class Annotator:
    """Describes what the opcodes of one pickle act on. Takes all of its steps, in order.

    It does not make the values, and accepts a stack with too few of them. ``globals`` holds the
    names so far, as spelled in the file, by their offset.
    """

    def __init__(self) -> None:
        self._stack: list[_Value] = []
        self._below: list[list[_Value]] = []
        self._memo: dict[int, _Value] = {}
        #: Offset of the opcode -> (module, name).
        self.globals: dict[int, tuple[str, str]] = {}

    def note(self, step: Step) -> str:
        """Take a step; return a description of it, or ""."""
        kind = step.opcode.name
        match kind:
            case "PROTO" | "FRAME" | "STOP" | "READONLY_BUFFER":
                pass
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                self._push(_listed([self._pop() for _ in range(int(kind[-1]))][::-1]))
            case "TUPLE":
                self._push(_listed(self._to_mark()))
            case "LIST" | "FROZENSET":
                self._push(f"{kind.lower()} of {len(self._to_mark()):,}")
            case "DICT":
                self._push(f"dict of {len(self._to_mark()) // 2:,}")
            case "MARK":
                self._below.append(self._stack)
                self._stack = []
            case "POP" if self._stack:
                self._stack.pop()
            case "POP" | "POP_MARK":
                self._to_mark()
            case "DUP":
                return self._push(*self._top())
            case "APPEND":
                self._pop()
            case "SETITEM":
                value, key = self._pop(), self._pop()
                return f"{key.summary}: {value.summary}"
            case "APPENDS" | "ADDITEMS":
                return f"{len(self._to_mark()):,} items for {self._top().summary}"
            case "SETITEMS":
                return f"{len(self._to_mark()) // 2:,} keys and values for {self._top().summary}"
            case "BUILD":
                self._pop()
                return f"state for {self._top().summary}"
            case "PUT" | "BINPUT" | "LONG_BINPUT" | "MEMOIZE":
                return self._put(step)
            case "GET" | "BINGET" | "LONG_BINGET":
                return self._get(step)
            case "GLOBAL" | "STACK_GLOBAL" | "INST":
                return self._global(step)
            case "REDUCE" | "OBJ" | "NEWOBJ" | "NEWOBJ_EX":
                return self._call(kind)
            case "BINPERSID":
                return self._push(f"persistent id {self._pop().summary}")
            case "PERSID":
                return self._push(f"persistent id {argument_text(step)}")
            case "EXT1" | "EXT2" | "EXT4":
                return self._push(f"extension {step.argument}")
            case _:
                whole = kind in _STRING_OPCODES and step.nbytes <= _KEPT_NBYTES
                text = step.argument.decode(errors="backslashreplace") if whole else None
                self._push(_CONSTANTS.get(kind) or argument_text(step), text)
        return ""

    def _push(self, summary: str, text: str | None = None) -> str:
        self._stack.append(_Value(_shortened(summary), text))
        return self._stack[-1].summary

    def _pop(self) -> _Value:
        return self._stack.pop() if self._stack else _UNKNOWN

    def _top(self) -> _Value:
        return self._stack[-1] if self._stack else _UNKNOWN

    def _to_mark(self) -> list[_Value]:
        items = self._stack
        self._stack = self._below.pop() if self._below else []
        return items

    def _put(self, step: Step) -> str:
        number = len(self._memo) if step.argument is None else _number(step.argument)
        if number is None:
            return "no memo number"
        self._memo[number] = self._top()
        return f"memo {number} = {self._top().summary}"

    def _get(self, step: Step) -> str:
        number = _number(step.argument)
        value = None if number is None else self._memo.get(number)
        self._stack.append(value or _UNKNOWN)
        return f"memo {number} was never set" if value is None else value.summary

    def _global(self, step: Step) -> str:
        if step.opcode.name == "STACK_GLOBAL":
            name, module = self._pop().text, self._pop().text
        else:
            module, name = (part.decode(errors="backslashreplace") for part in step.argument)
        if step.opcode.name == "INST":
            self._to_mark()
        if module is None or name is None:
            self._stack.append(_UNKNOWN)
            return "a name that is not a string"
        self.globals[step.offset] = (module, name)
        full = repr(f"{module}.{name}")[1:-1]
        if step.opcode.name == "INST":
            return "call of " + self._push(f"{full}(...)")
        return "name " + self._push(full)

    def _call(self, kind: str) -> str:
        if kind == "OBJ":
            items = self._to_mark()
            callee = items[0] if items else _UNKNOWN
        else:
            for _ in range(2 if kind == "NEWOBJ_EX" else 1):
                self._pop()
            callee = self._pop()
        return "call of " + self._push(f"{callee.summary}(...)")


def _listed(items: list[_Value]) -> str:
    inside = ", ".join(item.summary for item in items[:8])
    return f"({inside}{', ...' if len(items) > 8 else ',' if len(items) == 1 else ''})"


def _number(argument: int | bytes) -> int | None:
    if isinstance(argument, int):
        return argument
    return int(argument) if re.fullmatch(rb"[0-9]{1,19}", argument) else None


_CONSTANTS = {
    "NONE": "None",
    "NEWTRUE": "True",
    "NEWFALSE": "False",
    "EMPTY_TUPLE": "()",
    "EMPTY_LIST": "list",
    "EMPTY_DICT": "dict",
    "EMPTY_SET": "set",
    "NEXT_BUFFER": "buffer",
}
