"""Bytes to values: an interpreter of pickle opcodes that calls nothing.

This module and the given `Table` determine everything that a file can do. A name in the table
becomes a value, or its arguments are passed to a function of torchzip. Any other name becomes a
`ForeignObject`, and so does everything made from it. Nothing is imported or looked up because a
file names it.

It differs from ``pickle.Unpickler`` where that trusts the file: the memo is a dict, so a large
index costs nothing; a declared length is compared with the bytes that are left before anything
is allocated; keys are hashed only if that is cheap; BUILD sets attributes only where the table
allows it.
"""

from __future__ import annotations

import struct
from typing import Any

from torchzip.errors import LimitError, PickleError, TorchZipError, UnsupportedError, shown
from torchzip.leaf_types import ForeignObject
from torchzip.limits import Limits
from torchzip.pickling.memo import Memo
from torchzip.pickling.objects import (
    add_items,
    append,
    build,
    call,
    dropped,
    new,
    set_items,
    size_of,
)
from torchzip.pickling.opcodes import (
    BY_CODE,
    FIXED,
    TruncatedPickleError,
    truncated,
    within_argument,
)
from torchzip.pickling.python2 import python2_string, python3_name, unquote
from torchzip.pickling.table import Name, Shortcut, Table

_NOTHING = object()

_U16 = struct.Struct("<H").unpack_from
_I32 = struct.Struct("<i").unpack_from
_U32 = struct.Struct("<I").unpack_from
_U64 = struct.Struct("<Q").unpack_from
_F64 = struct.Struct(">d").unpack_from

#: Most bytes of an opcode with an argument of fixed size.
_LONGEST_FIXED = 9
#: Most digits of an int that Python parses by default.
_MAX_DIGITS = 4300


#: An empty set, and the result of a call, count as so many empty lists.
_SET, _CALLED = 4, 2
#: ADDITEMS, FROZENSET, LIST, DICT, OBJ and POP_MARK, which take all from the mark: what each makes.
_TO_MARK = {0x90: 0, 0x91: _SET, 0x6C: 1, 0x64: 1, 0x6F: _CALLED, 0x31: 0}


class Interpreter:
    """Runs one or more pickles in ``data``.

    `run` returns the value of one. Then ``position`` is after its STOP, and ``globals`` holds
    every (module, name) that was mentioned so far, as Python 3 spells them. A subclass can say
    what a name, a call, a new object and a state make: `_name`, `_call`, `_new` and `_build`.
    """

    def __init__(
        self,
        data: bytes,
        table: Table,
        limits: Limits,
        *,
        record: str | None = None,
    ) -> None:
        self._data = data
        self._table = table
        self._limits = limits
        self._record = record
        self._names: dict[Name, Any] = {}
        # Objects that BUILD will replace by another, by id, with their memo numbers.
        self._awaiting: dict[int, tuple[ForeignObject, int]] = {}
        self._trigger: Any = _NOTHING
        self._shortcut: Shortcut | None = None
        self._protocol = 0
        self._arguments_left = 0
        self.position = 0

    @property
    def globals(self) -> list[Name]:
        return list(self._names)

    def run(self, start: int = 0) -> Any:
        """Interpret the pickle that starts at ``start``; return its value.

        Raises
        ------
        TorchZipError
            With the offset of the opcode that failed.
        """
        self.position = start
        try:
            return self._run(start)
        except TorchZipError as error:
            error.at(record=self._record, offset=self.position)
            raise
        except (IndexError, struct.error):
            # data[position] or a fixed argument past the end, or a pop from an empty stack.
            at = self.position
            short = at + _LONGEST_FIXED - len(self._data)
            if at < len(self._data):
                opcode = BY_CODE[self._data[at]]
                fixed = FIXED.get(opcode.argument.partition("+")[0])
                if fixed is not None and at + 1 + fixed.size > len(self._data):
                    message = within_argument(opcode)
                else:
                    message = f"{opcode.name} needs a value, and none is on the stack"
            else:
                message = f"the pickle ends after {len(self._data):,} bytes without STOP"
            kind = TruncatedPickleError if short > 0 else PickleError
            raise kind(message, record=self._record, offset=at) from None
        except RecursionError:
            raise PickleError(
                "values are nested too deeply", record=self._record, offset=self.position
            ) from None

    def _run(self, position: int) -> Any:
        data = self._data
        memo = Memo()
        stack: list[Any] = []
        below: list[list[Any]] = []  # the stacks below each mark
        push = stack.append
        pop = stack.pop
        self._protocol = 0
        containers_left = self._limits.containers + len(data) // 4
        memo.most = self._limits.memo + len(data) // 4
        in_turn = 0  # lower numbers can be put into the memo directly
        most_marks = self._limits.containers
        self._arguments_left = self._limits.argument_items + 2 * len(data)
        keys = self._table.keys
        keys.allow(self._limits, len(data))
        while True:
            self.position = position
            op = data[position]
            position += 1
            # First what files have most of beside tensors, which are mostly read in runs.
            if op == 0x68:  # BINGET
                push(memo[data[position]])
                position += 1
            elif op == 0x72:  # LONG_BINPUT
                number = _U32(data, position)[0]
                if number < in_turn:
                    memo[number] = stack[-1]
                else:
                    in_turn = memo.put(number, stack[-1])
                position += 4
            elif op == 0x6A:  # LONG_BINGET
                push(memo[_U32(data, position)[0]])
                position += 4
            elif op == 0x4B:  # BININT1
                push(data[position])
                position += 1
            elif op == 0x58:  # BINUNICODE
                end = position + 4 + _U32(data, position)[0]
                try:
                    text = data[position + 4 : end].decode()
                except UnicodeDecodeError:
                    text = None
                if text is None or end > len(data):
                    text = self._text(position + 4, end - position - 4)
                push(text)
                position = end
            elif op == 0x71:  # BINPUT
                memo[data[position]] = stack[-1]
                position += 1
            elif op == 0x52:  # REDUCE
                containers_left -= _CALLED
                if containers_left < 0:
                    raise self._too_many_containers()
                args = pop()
                stack[-1] = self._call(stack[-1], args)
                if type(stack[-1]) is ForeignObject:
                    self._await_build(stack[-1], position, memo)
            elif op == 0x29:  # EMPTY_TUPLE
                push(())
            elif op == 0x7D or op == 0x5D or op == 0x8F:  # EMPTY_DICT, EMPTY_LIST, EMPTY_SET
                containers_left -= _SET if op == 0x8F else 1
                if containers_left < 0:
                    raise self._too_many_containers()
                push({} if op == 0x7D else [] if op == 0x5D else set())
            elif op == 0x28:  # MARK
                if stack and stack[-1] is self._trigger and self._shortcut is not None:
                    behind = self._shortcut(data, position - 1, memo, stack, below)
                    if behind is not None:
                        position = behind
                        continue
                below.append(stack)
                if len(below) > most_marks:
                    raise LimitError("containers", len(below), most_marks)
                stack = []
                push, pop = stack.append, stack.pop
            elif op == 0x73:  # SETITEM
                value, key = pop(), pop()
                target = stack[-1]
                if type(key) is str and type(target) is dict and not keys.is_watching:
                    target[key] = value
                else:
                    set_items(self._table, target, [key, value])
            elif op == 0x75:  # SETITEMS
                items = stack
                stack = _under_mark(below)
                push, pop = stack.append, stack.pop
                set_items(self._table, stack[-1], items)
            elif op == 0x74:  # TUPLE
                items = stack
                stack = _under_mark(below)
                push, pop = stack.append, stack.pop
                push(tuple(items))
                containers_left -= 1
                if containers_left < 0:
                    raise self._too_many_containers()
            elif op == 0x4D:  # BININT2
                push(_U16(data, position)[0])
                position += 2
            elif op == 0x4A:  # BININT
                push(_I32(data, position)[0])
                position += 4
            elif op == 0x86:  # TUPLE2
                second = pop()
                stack[-1] = (stack[-1], second)
                containers_left -= 1
                if containers_left < 0:
                    raise self._too_many_containers()
            elif op == 0x85:  # TUPLE1
                stack[-1] = (stack[-1],)
                containers_left -= 1
                if containers_left < 0:
                    raise self._too_many_containers()
            elif op == 0x87:  # TUPLE3
                third, second = pop(), pop()
                stack[-1] = (stack[-1], second, third)
                containers_left -= 1
                if containers_left < 0:
                    raise self._too_many_containers()
            elif op == 0x51:  # BINPERSID
                stack[-1] = self._table.persistent(stack[-1])
            elif op == 0x89:  # NEWFALSE
                push(False)
            elif op == 0x88:  # NEWTRUE
                push(True)
            elif op == 0x4E:  # NONE
                push(None)
            elif op == 0x63:  # GLOBAL
                module, position = self._line(position)
                name, position = self._line(position)
                push(self._name(_utf8(module), _utf8(name)))
            elif op == 0x47:  # BINFLOAT
                push(_F64(data, position)[0])
                position += 8
            elif op == 0x61:  # APPEND
                value = pop()
                append(stack[-1], [value])
            elif op == 0x65:  # APPENDS
                items = stack
                stack = _under_mark(below)
                push, pop = stack.append, stack.pop
                append(stack[-1], items)
            elif op == 0x62:  # BUILD
                state = pop()
                stack[-1] = self._build(stack[-1], state, memo)
            elif op == 0x81:  # NEWOBJ
                containers_left -= _CALLED
                if containers_left < 0:
                    raise self._too_many_containers()
                args = pop()
                stack[-1] = self._new(stack[-1], args)
                if type(stack[-1]) is ForeignObject:
                    self._await_build(stack[-1], position, memo)
            elif op == 0x2E:  # STOP
                value = pop()
                if below:
                    raise PickleError("STOP, and a MARK is still open")
                self.position = position
                return value
            elif op == 0x80:  # PROTO
                self._protocol = data[position]
                if self._protocol > 5:
                    raise UnsupportedError(
                        f"the pickle protocol is {self._protocol}; 0 to 5 was expected"
                    )
                position += 1
            elif op == 0x8A or op == 0x8B:  # LONG1, LONG4
                if op == 0x8A:
                    nbytes = data[position]
                    position += 1
                else:
                    nbytes = _I32(data, position)[0]
                    position += 4
                if nbytes > self._limits.int_nbytes:
                    raise LimitError("int_nbytes", nbytes, self._limits.int_nbytes)
                push(int.from_bytes(self._bytes(position, nbytes), "little", signed=True))
                position += nbytes
            # Protocol 4 and 5, then what only old or odd files have.
            elif op == 0x94:  # MEMOIZE
                memo.put(memo.settle(), stack[-1])
            elif op == 0x8C:  # SHORT_BINUNICODE
                nbytes = data[position]
                push(self._text(position + 1, nbytes))
                position += 1 + nbytes
            elif op == 0x93:  # STACK_GLOBAL
                name, module = pop(), pop()
                if type(name) is not str or type(module) is not str:
                    raise PickleError(
                        f"STACK_GLOBAL has {shown(module)} and {shown(name)} on the stack; two "
                        "strings were expected"
                    )
                push(self._name(module, name))
            elif op == 0x95:  # FRAME
                nbytes = _U64(data, position)[0]
                position += 8
                if nbytes > len(data) - position:
                    raise truncated(
                        f"FRAME of {nbytes:,} bytes, and {len(data) - position:,} are left",
                        nbytes - len(data) + position,
                    )
            elif op == 0x43 or op == 0x55:  # SHORT_BINBYTES, SHORT_BINSTRING
                nbytes = data[position]
                raw = self._bytes(position + 1, nbytes)
                push(raw if op == 0x43 else python2_string(raw))
                position += 1 + nbytes
            elif op == 0x42:  # BINBYTES
                nbytes = _U32(data, position)[0]
                push(self._bytes(position + 4, nbytes))
                position += 4 + nbytes
            elif op in (0x8D, 0x8E, 0x96):  # BINUNICODE8, BINBYTES8, BYTEARRAY8
                nbytes = _U64(data, position)[0]
                position += 8
                if op == 0x8D:
                    push(self._text(position, nbytes))
                elif op == 0x8E:
                    push(self._bytes(position, nbytes))
                else:
                    push(bytearray(self._bytes(position, nbytes)))
                position += nbytes
            elif op == 0x30:  # POP
                if stack:
                    dropped(stack.pop(), stack)
                elif below:
                    stack = below.pop()
                    push, pop = stack.append, stack.pop
                else:
                    raise IndexError
            elif op in _TO_MARK:
                items = self._table.keys.checked(stack) if op in (0x90, 0x91) else stack
                stack = _under_mark(below)
                push, pop = stack.append, stack.pop
                containers_left -= _TO_MARK[op]
                if containers_left < 0:
                    raise self._too_many_containers()
                if op == 0x90:  # ADDITEMS
                    add_items(self._table, stack[-1], items)
                elif op == 0x91:  # FROZENSET
                    push(self._table.keys.frozen(items))
                elif op == 0x6C:  # LIST
                    push(items)
                elif op == 0x64:  # DICT
                    push({})
                    set_items(self._table, stack[-1], items)
                elif op == 0x6F:  # OBJ
                    push(self._call(items[0], tuple(items[1:])))
            elif op == 0x32:  # DUP
                push(stack[-1])
            elif op == 0x92:  # NEWOBJ_EX
                kwargs, args = pop(), pop()
                if kwargs is None:
                    raise PickleError("a new object with None for its keywords")
                containers_left -= _CALLED
                if containers_left < 0:
                    raise self._too_many_containers()
                stack[-1] = self._new(stack[-1], args, kwargs)
            elif op == 0x69:  # INST
                module, position = self._line(position)
                name, position = self._line(position)
                items = stack
                stack = _under_mark(below)
                push, pop = stack.append, stack.pop
                push(self._call(self._name(_utf8(module), _utf8(name)), tuple(items)))
                containers_left -= _CALLED
                if containers_left < 0:
                    raise self._too_many_containers()
            elif op == 0x50:  # PERSID
                line, position = self._line(position)
                push(self._table.persistent(_utf8(line)))
            elif op in (0x67, 0x70):  # GET, PUT
                line, position = self._line(position)
                index = self._decimal(line)
                if op == 0x67:
                    push(memo[index])
                elif index < 0:
                    raise PickleError(f"PUT has memo number {index:,}; 0 or more was expected")
                else:
                    in_turn = memo.put(index, stack[-1])
            elif op == 0x49 or op == 0x4C:  # INT, LONG
                line, position = self._line(position)
                if op == 0x49 and line in (b"00", b"01"):
                    push(line == b"01")
                else:
                    push(self._decimal(line[:-1] if line.endswith(b"L") else line))
            elif op == 0x46:  # FLOAT
                line, position = self._line(position)
                try:
                    push(float(line))
                except ValueError:
                    raise PickleError(f"{shown(line)} where a float was expected") from None
            elif op == 0x53:  # STRING
                line, position = self._line(position)
                push(python2_string(unquote(line)))
            elif op == 0x54:  # BINSTRING
                nbytes = _I32(data, position)[0]
                push(python2_string(self._bytes(position + 4, nbytes)))
                position += 4 + nbytes
            elif op == 0x56:  # UNICODE
                start = position
                line, position = self._line(position)
                try:
                    # Not stripped: a string may end in a carriage return. In other lines, one
                    # comes from a file that was written in text mode.
                    push(self._data[start : position - 1].decode("raw-unicode-escape"))
                except UnicodeDecodeError:
                    raise PickleError(f"{shown(line)} where escaped text was expected") from None
            elif op in (0x82, 0x83, 0x84):  # EXT1, EXT2, EXT4
                nbytes = 1 << (op - 0x82)
                push(self._extension(int.from_bytes(self._bytes(position, nbytes), "little")))
                position += nbytes
            elif op in BY_CODE:  # NEXT_BUFFER, READONLY_BUFFER
                raise UnsupportedError(
                    f"opcode {BY_CODE[op].name} refers to something outside the file"
                )
            else:
                raise PickleError(f"byte {op:#04x} is not an opcode")

    # -- arguments -----------------------------------------------------------------------

    def _opcode(self) -> str:
        return BY_CODE[self._data[self.position]].name

    def _bytes(self, position: int, nbytes: int) -> bytes:
        left = len(self._data) - position
        if nbytes < 0:
            raise PickleError(f"{self._opcode()} of {nbytes:,} bytes; 0 or more were expected")
        if nbytes > left:
            raise truncated(
                f"{self._opcode()} of {nbytes:,} bytes, and {left:,} are left", nbytes - left
            )
        return self._data[position : position + nbytes]

    def _too_many_containers(self) -> LimitError:
        bound = self._limits.containers + len(self._data) // 4
        return LimitError("containers", bound + 1, bound)

    def _text(self, position: int, nbytes: int) -> str:
        raw = self._bytes(position, nbytes)
        try:
            return raw.decode("utf-8", "surrogatepass")
        except UnicodeDecodeError:
            raise PickleError(f"{shown(raw)} where UTF-8 text was expected") from None

    def _line(self, position: int) -> tuple[bytes, int]:
        end = self._data.find(b"\n", position)
        if end < 0:
            raise truncated(within_argument(BY_CODE[self._data[self.position]]), 1)
        return self._data[position:end].rstrip(b"\r"), end + 1

    def _decimal(self, line: bytes) -> int:
        # Parsing decimals takes quadratic time, and Python refuses more than 4300 digits.
        nbytes = len(line) * 415 // 1000  # a digit holds 3.32 bits
        if nbytes > self._limits.int_nbytes:
            raise LimitError("int_nbytes", nbytes, self._limits.int_nbytes)
        if len(line) > _MAX_DIGITS:
            raise UnsupportedError(
                f"an int has {len(line):,} digits as text; up to {_MAX_DIGITS:,} are read"
            )
        try:
            return int(line)
        except ValueError:
            raise PickleError(f"{shown(line)} where an int was expected") from None

    # -- names and calls -------------------------------------------------------------------

    def _name(self, module: str, name: str) -> Any:
        key = python3_name(module, name) if self._protocol < 3 else (module, name)
        value = self._names.get(key)
        if value is None:
            value = self._table.values.get(key)
            if value is None:
                value = ForeignObject(*key)
            self._names[key] = value
            shortcut = self._table.shortcut
            if shortcut is not None and shortcut[0] == key:
                self._trigger, self._shortcut = value, shortcut[1](self._names)
        return value

    def _call(self, callee: Any, args: Any) -> Any:
        # A name outside the table becomes an inert object, which copies nothing.
        if type(callee) is ForeignObject and (callee.module, callee.name) in self._table.calls:
            self._charge(args)
        return call(self._table, callee, args)

    def _new(self, callee: Any, args: Any, kwargs: Any = None) -> Any:
        return new(self._table, callee, args, kwargs)

    def _charge(self, args: Any) -> None:
        """Count what a call may copy."""
        self._arguments_left -= size_of(args)
        if self._arguments_left < 0:
            bound = self._limits.argument_items + 2 * len(self._data)
            raise LimitError("argument_items", bound - self._arguments_left, bound)

    def _extension(self, code: int) -> ForeignObject:
        """Return the placeholder for an extension code; its name is not in the file."""
        if not 0 < code < 1 << 31:
            raise PickleError(f"the extension code is {code:,}; 1 to 2**31 was expected")
        key = ("copyreg", f"extension {code}")
        made: ForeignObject = self._names.setdefault(key, ForeignObject(*key))
        return made

    def _await_build(self, made: ForeignObject, position: int, memo: Memo) -> None:
        """Note the memo number of an object that its state may replace by another."""
        if (made.module, made.name) not in self._table.builds:
            return
        # Its put follows immediately, before the state.
        data = self._data
        op = data[position : position + 1]
        if op == b"q":
            number = data[position + 1]
        elif op == b"r":
            number = _U32(data, position + 1)[0]
        elif op == b"p":
            number = self._decimal(self._line(position + 1)[0])
        elif op == b"\x94":
            number = memo.settle()
        else:
            return
        self._awaiting[id(made)] = (made, number)

    def _build(self, target: Any, state: Any, memo: Memo) -> Any:
        """Give an object its state; return the object, or its replacement."""
        if type(target) is ForeignObject and (target.module, target.name) in self._table.builds:
            self._charge(state)
        made = build(self._table, target, state)
        if made is not target:
            # From here on the number means the replacement; earlier references keep the inert
            # object.
            _, number = self._awaiting.pop(id(target), (None, -1))
            if memo.recall(number) is target:
                memo.put(number, made)
        return made


def _under_mark(below: list[list[Any]]) -> list[Any]:
    if not below:
        raise PickleError("the opcode needs a MARK on the stack, which lacks one")
    return below.pop()


def _utf8(line: bytes) -> str:
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError:
        raise PickleError(f"{shown(line)} where a name in UTF-8 was expected") from None
