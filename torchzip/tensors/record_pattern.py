"""One regular expression for a whole tensor, in place of some thirty opcodes.

``torch.save`` writes every tensor after the first of its dtype as the same sequence of opcodes,
with other numbers in it::

    ( ( <get 'storage'> <get class> <key, put | get key> <get location> numel t put Q
    offset (size) put (stride) put False <get OrderedDict> ) R put t put R put

The pattern takes nothing that the interpreter would read in another way: each of its pieces is an
opcode with its argument, told by its first byte. What it matches is carried out with the same
values and the same memo, and anything else is left to the interpreter. A test compares the two
over all the other tests' files.
"""

from __future__ import annotations

import re
import struct
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torchzip.leaf_types import ForeignObject
from torchzip.pickling.memo import Memo
from torchzip.pickling.table import Name
from torchzip.tensors.record_runs import Gets, RunReader

_NUMBER = rb"(?:K.|M..|J....)"
_PUT = rb"(?:q.|r....)"
_GET = rb"(?:h.|j....)"
_AXES = rb"(\)|" + _NUMBER + rb"{1,3}[\x85\x86\x87]|\(" + _NUMBER + rb"+t)(" + _PUT + rb")?"

_TENSOR = (
    rb"\(\((" + _GET + rb")(" + _GET + rb")"
    rb"(?:X(.)\0\0\0([0-9]{1,20})(" + _PUT + rb")|(" + _GET + rb"))"
    rb"(" + _GET + rb")(" + _NUMBER + rb")t(" + _PUT + rb")Q"
    rb"(" + _NUMBER + rb")" + _AXES + _AXES + rb"\x89"
    rb"(" + _GET + rb")\)R(" + _PUT + rb")t(" + _PUT + rb")R(" + _PUT + rb")?"
)

_U16 = struct.Struct("<xH").unpack
_PACK_PUTS = struct.Struct("<sIsIsIsIsIsIsI").pack
_I32 = struct.Struct("<xi").unpack
_U32 = struct.Struct("<xI").unpack

_HOOKS = ("collections", "OrderedDict")
#: What makes a tensor, and what makes a Parameter of one.
TENSOR = ("torch._utils", "_rebuild_tensor_v2")
PARAMETER = ("torch._utils", "_rebuild_parameter")
_MISSING = object()
_WIDTHS = {0x4B: 2, 0x4D: 3, 0x4A: 5}  # BININT1, BININT2, BININT
_TUPLES = {0x85: 1, 0x86: 2, 0x87: 3}


@dataclass(eq=False, repr=False)
class TensorPattern:
    """Matches and carries out tensors for one run of an `Interpreter`.

    ``storage`` and ``tensor`` make the values, from arguments that are known to be of the right
    types; ``persistent`` takes any persistent id. ``runs`` makes many tensors at once.
    """

    names: Mapping[Name, Any]
    persistent: Callable[[Any], Any]
    storage: Callable[[ForeignObject, str, str, int], Any]
    tensor: Callable[[Any, int, tuple[int, ...], tuple[int, ...]], Any]
    runs: RunReader

    def __post_init__(self) -> None:
        # Compiled by the first file that has a tensor, not by the import.
        self._match = re.compile(_TENSOR, re.DOTALL).match
        # What the same bytes mean: the numbers and shapes of a file repeat.
        self._numbers: dict[bytes, int] = {}
        self._axes: dict[bytes, tuple[int, ...] | None] = {}

    def __call__(self, data: bytes, position: int, memo: Memo, stack: list[Any]) -> int | None:
        """Put the tensor whose arguments begin at ``position`` on the stack; return where they end.

        Items of the same dict may come with it. None if the bytes are anything else; then nothing
        has happened.
        """
        if position >= self.runs.next and len(memo) > 256:  # puts of four bytes from there on
            inside = len(stack) > 1 and stack[-2] is self.names.get(PARAMETER)
            gets = self._gets(data, position, memo, inside)
            run = None if gets is None else self.runs.read(data, position, memo, gets)
            if run is not None:
                stack[-2 if inside else -1 :], position = run
                return position
        one = self._one(data, position, memo)
        if one is None:
            return None
        stack[-1], position = one
        return position

    def _gets(self, data: bytes, position: int, memo: Memo, inside: bool) -> Gets | None:
        """Return what the tensor that begins here asks the memo for, if it is what it should be."""
        names = self.names
        parameter = None
        if inside:
            if data[position - 4] != 0x68:
                return None
            parameter = data[position - 3]
            if memo.recall(parameter) is not names.get(PARAMETER):
                return None
        hooks_at = data.find(b"\x89h", position, position + 512) + 2
        if data[position - 2] != 0x68 or data[position : position + 3] != b"((h" or hooks_at < 2:
            return None
        # The last byte of the file is STOP at best, so these are there.
        function, storage, hooks = data[position - 1], data[position + 3], data[hooks_at]
        text = memo.recall(storage)
        if (
            type(text) is not str
            or text != "storage"
            or memo.recall(hooks, _MISSING) is not names.get(_HOOKS)
            or memo.recall(function, _MISSING) is not names.get(TENSOR)
        ):
            return None
        return Gets(function, storage, hooks, parameter)

    def _one(self, data: bytes, position: int, memo: Memo) -> tuple[Any, int] | None:
        found = self._match(data, position)
        if found is None:
            return None
        (
            storage, kind, key_nbytes, digits, key_put, key_get, location, numel, pid_put,
            offset, size, size_put, stride, stride_put, hooks, hooks_put, args_put, put,
        ) = found.groups()  # fmt: skip
        number = self._number
        text = memo.recall(storage[1] if len(storage) == 2 else number(storage))
        if type(text) is not str or text != "storage":
            return None
        hooks_at = hooks[1] if len(hooks) == 2 else number(hooks)
        if memo.recall(hooks_at, _MISSING) is not self.names.get(_HOOKS):
            return None
        kind_value = memo.recall(kind[1] if len(kind) == 2 else number(kind), _MISSING)
        location_at = location[1] if len(location) == 2 else number(location)
        location_value = memo.recall(location_at, _MISSING)
        if digits is None:
            key = memo.recall(number(key_get), _MISSING)
        elif key_nbytes[0] != len(digits):
            return None
        else:
            key = digits.decode()
        shape = self._axes.get(size) or self._read_axes(size)
        steps = self._axes.get(stride) or self._read_axes(stride)
        if (
            kind_value is _MISSING or location_value is _MISSING or key is _MISSING
            or shape is None or steps is None
        ):  # fmt: skip
            return None
        count = numel[1] if len(numel) == 2 else number(numel)
        pid = ("storage", kind_value, key, location_value, count)
        if digits is not None and type(location_value) is str and type(kind_value) is ForeignObject:
            bare = self.storage(kind_value, key, location_value, count)
        else:
            bare = self.persistent(pid)
        first = offset[1] if len(offset) == 2 else number(offset)
        value = self.tensor(bare, first, shape, steps)
        empty: OrderedDict[Any, Any] = OrderedDict()
        args = (bare, first, shape, steps, False, empty)
        at = number(pid_put)
        if (
            key_put is not None and size_put is not None and stride_put is not None
            and put is not None and 256 <= at < 1 << 31 and memo.is_in_turn(at + 5)
            and key_put + pid_put + size_put + stride_put + hooks_put + args_put + put
            == _PACK_PUTS(
                b"r", at - 1, b"r", at, b"r", at + 1, b"r", at + 2, b"r", at + 3, b"r", at + 4,
                b"r", at + 5,
            )
        ):  # fmt: skip
            # Consecutive, as in all but the first and the smallest tensors.
            memo[at - 1] = key
            memo[at] = pid
            memo[at + 1] = shape
            memo[at + 2] = steps
            memo[at + 3] = empty
            memo[at + 4] = args
            memo[at + 5] = value
        else:
            for where, made in (
                (key_put, key), (pid_put, pid), (size_put, shape), (stride_put, steps),
                (hooks_put, empty), (args_put, args), (put, value),
            ):  # fmt: skip
                if where is not None:
                    index = number(where)
                    if index < 256:  # never far ahead
                        memo[index] = made
                    else:
                        memo.put(index, made)
        return value, found.end()

    def _number(self, raw: bytes) -> int:
        """Return the number behind an opcode: an int, or an index of the memo."""
        if len(raw) == 2:
            return raw[1]
        value = self._numbers.get(raw)
        if value is None:
            (value,) = (_U16 if len(raw) == 3 else _I32 if raw[0] == 0x4A else _U32)(raw)
            if len(self._numbers) < 4096:
                self._numbers[raw] = value
        return value

    def _read_axes(self, raw: bytes) -> tuple[int, ...] | None:
        """Return a tuple of ints from its opcodes; None if they leave something else."""
        values = []
        at = 1 if raw[:1] == b"(" else 0
        while raw[at] in _WIDTHS:
            nbytes = _WIDTHS[raw[at]]
            values.append(self._number(raw[at : at + nbytes]))
            at += nbytes
        made = tuple(values) if _TUPLES.get(raw[at], len(values)) == len(values) else None
        if len(self._axes) < 4096:
            self._axes[raw] = made
        return made
