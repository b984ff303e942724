"""Where attributes of others begin in a ``.metadata`` of torch.distributed.checkpoint.

Megatron-Core adds ``all_local_plans`` to torch's ``Metadata``, with an object of several parts for
each item, which can be most of the file. Nothing of it is used. So it is not interpreted: the
opcodes are gone through once, with a number for each value instead of the value, up to the end of
the dict of attributes. What is before the first attribute that torch does not have is the pickle
that counts.

That is only so if nothing behind can change what is before: all other attributes behind are unknown
as well, and no object that comes from the memo is filled. (A string that is not in its place any
more at the end of the dict was not a key.) Where that is not sure, and for opcodes that no
``.metadata`` has, the answer is None, and all of the pickle must be interpreted.
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Collection
from typing import NamedTuple

from torchzip.pickling.table import Name

#: What stands for a value that was made where it is, and for one of the memo. A number from 0 on is
#: a string: the place of its opcode, and more if it comes from the memo.
_NEW, _OLD = -1, -2
_FETCHED = 1 << 31
_U32 = struct.Struct("<I").unpack_from
_U64 = struct.Struct("<Q").unpack_from
#: Bytes of the arguments of opcodes that push a value which is not a string.
_PUSHED = {
    0x4B: 1, 0x4D: 2, 0x4A: 4, 0x47: 8, 0x4E: 0, 0x88: 0, 0x89: 0, 0x29: 0, 0x7D: 0, 0x5D: 0,
    0x8F: 0,
}  # fmt: skip
#: How many values an opcode takes from the stack for the one that it leaves, or fills.
_TAKEN = {0x85: 1, 0x86: 2, 0x87: 3, 0x52: 2, 0x81: 2}
_TUPLE, _SETITEMS = 0x74, 0x75
#: SETITEMS, APPENDS, ADDITEMS: all values from the mark on.
_FROM_MARK = (_SETITEMS, 0x65, 0x90)
#: SETITEM, APPEND, BUILD: the values above the one that they fill.
_FILLS = {0x73: 2, 0x61: 1, 0x62: 1}


class Own(NamedTuple):
    """The pickle without attributes of others, and the names that those mention."""

    data: bytes
    names: list[Name]


def without_others(data: bytes, fields: Collection[str]) -> Own | None:
    """Return what is before the first attribute that is not one of ``fields``.

    None if there is none, or if it is not sure that this makes no difference.
    """
    try:
        return _skim(data, fields) if len(data) < _FETCHED else None
    except (IndexError, ValueError, OverflowError, struct.error):
        return None  # it is damaged; where, the interpreter says


def _skim(data: bytes, fields: Collection[str]) -> Own | None:
    """Go through a pickle of one object whose state is a dict."""
    memo = array("i")
    frames: list[int] = []
    names: dict[Name, None] = {}
    stack: list[int] = []
    below: list[list[int]] = []
    # The first unknown attribute: where its opcode is, and its place in the dict.
    begin, first = len(data), 0
    position = 0
    while True:
        op = data[position]
        position += 1
        if op == 0x94:  # MEMOIZE
            memo.append(stack[-1])
        elif op == 0x8C or op == 0x58:  # SHORT_BINUNICODE, BINUNICODE
            at = position - 1
            is_key = len(below) == 1 and len(below[0]) == 2 and not len(stack) % 2
            if is_key and stack[first : first + 1] != [begin] and _string(data, at) not in fields:
                begin, first = at, len(stack)
                names.clear()
            stack.append(at)
            position += 1 + data[position] if op == 0x8C else 4 + _U32(data, position)[0]
        elif op == 0x68 or op == 0x6A:  # BINGET, LONG_BINGET
            if op == 0x68:
                number = data[position]
                position += 1
            else:
                number = _U32(data, position)[0]
                position += 4
            value = memo[number]
            stack.append(value + _FETCHED if value >= 0 else _OLD)
        elif op in _PUSHED:
            stack.append(_NEW)
            position += _PUSHED[op]
        elif op == 0x28:  # MARK
            below.append(stack)
            stack = []
        elif op in _FILLS:
            del stack[-_FILLS[op] :]
            if stack[-1] != _NEW:
                return None
        elif op in _TAKEN:
            count = _TAKEN[op]
            if len(stack) < count:
                return None
            stack[-count:] = [_NEW]
        elif op in _FROM_MARK:
            items = stack
            stack = below.pop()
            if not below and op == _SETITEMS and data[position : position + 3] == b"b.":
                behind = items[first::2]  # the keys from the first unknown attribute on
                if behind[0] != begin or len(items) % 2:
                    return None
                if any(at < 0 or _string(data, at) in fields for at in behind):
                    return None
                return Own(_ended(data[:begin], frames), list(names))
            if stack[-1] != _NEW:
                return None
        elif op == _TUPLE:
            stack = below.pop()
            stack.append(_NEW)
        elif op == 0x93:  # STACK_GLOBAL
            name, module = stack.pop(), stack.pop()
            if name < 0 or module < 0:
                return None
            names[_string(data, module), _string(data, name)] = None
            stack.append(_NEW)
        elif op == 0x63:  # GLOBAL
            end = data.index(b"\n", position)
            stop = data.index(b"\n", end + 1)
            names[data[position:end].decode(), data[end + 1 : stop].decode()] = None
            position = stop + 1
            stack.append(_NEW)
        elif op == 0x71 or op == 0x72:  # BINPUT, LONG_BINPUT
            number = data[position] if op == 0x71 else _U32(data, position)[0]
            if number != len(memo):
                return None
            memo.append(stack[-1])
            position += 1 if op == 0x71 else 4
        elif op == 0x95:  # FRAME
            frames.append(position)
            position += 8
        elif op == 0x8A or op == 0x43:  # LONG1, SHORT_BINBYTES
            stack.append(_NEW)
            position += 1 + data[position]
        elif op == 0x80:  # PROTO
            position += 1
        else:
            return None


def _string(data: bytes, at: int) -> str:
    at %= _FETCHED
    if data[at] == 0x8C:
        start, nbytes = at + 2, data[at + 1]
    else:
        start, nbytes = at + 5, _U32(data, at + 1)[0]
    return data[start : start + nbytes].decode("utf-8", "surrogatepass")


def _ended(data: bytes, frames: list[int]) -> bytes:
    """Return a pickle that was cut off within the dict, with its end; frames get their length."""
    own = bytearray(data) + b"ub."  # SETITEMS, BUILD, STOP
    for frame in frames:
        if frame < len(data) and _U64(own, frame)[0] > len(own) - frame - 8:
            struct.pack_into("<Q", own, frame, len(own) - frame - 8)
    return bytes(own)
