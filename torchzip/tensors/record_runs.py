"""Many tensors at once: the items of a state dict, as columns of numbers.

Behind the first tensors of a file, the items of a state dict are written as one sequence of
opcodes, over and over, with other numbers in it (``put`` is LONG_BINPUT, ``n`` any of the opcodes
of an int, ``t`` TUPLE1 to TUPLE3 or a TUPLE with its MARK)::

    <name put> <get function> ( ( <get 'storage'> <get class> <key put> <get location> n t put Q
    n n..t put n..t put False <get OrderedDict> ) R put t put R put

or, without its two puts, ``)`` for the size and the stride of a scalar. A parameter has ``<get
_rebuild_parameter>`` before the function, and ``True <get OrderedDict> ) R put t put R put``
after all of it.

The bytes that end a tensor are found first; then all tensors are read side by side, opcode
by opcode, each at its own place. What counts is the longest beginning of the run in which every
opcode was the one that is expected, and each tensor began where the one before it ended. Whatever
else there is, the interpreter reads.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from torchzip.leaf_types import ForeignObject
from torchzip.pickling.memo import Memo

Numbers = NDArray[np.int64]

#: Fewer tensors are not worth the arrays.
_FEWEST = 12
#: Bytes that are looked at first, and at most. A window that was used up is followed by one
#: that is larger, so what is looked at in vain is never much.
_FIRST_WINDOW = 1 << 15
_LARGEST_WINDOW = 1 << 18
#: Bytes that are passed over after the first time that there was no run.
_PAUSE = 1 << 10
#: A tensor takes less than this after its key; nothing is read past the end of a window.
_PADDING = 512
_MOST_AXES = 8
#: pickle writes the items of a dict in batches of so many.
_MOST_TENSORS = 1000

#: Bytes of the opcodes that push an int, and the bits of their argument; 0 for all others.
_WIDTHS = np.zeros(256, np.int64)
_WIDTHS[[0x4B, 0x4D, 0x4A]] = 2, 3, 5  # BININT1, BININT2, BININT
_MASKS = np.zeros(256, np.int64)
_MASKS[[0x4B, 0x4D, 0x4A]] = 0xFF, 0xFFFF, 0xFFFFFFFF
#: To tell rows of numbers apart by one number each; that they are equal is checked.
_MIX = np.cumprod(np.full(6 + 2 * _MOST_AXES, 6364136223846793005))


class TensorLayout(NamedTuple):
    """What many tensors have in common: all but the name and the key."""

    kind: ForeignObject
    location: str
    numel: int
    storage_offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]


#: Makes tensors of keys, layouts and the layout of each; fewer if one of them is not in order.
MakeTensors = Callable[[list[str], list[TensorLayout], list[int]], list[Any]]


@dataclass(slots=True, eq=False, repr=False)
class TensorRun:
    """Tensors that were made at once, as a `Memo` keeps them."""

    start: int
    end: int
    begins: Numbers  # the number of each name
    names: list[str]  # of all but the first, whose name was read before
    keys: list[str]
    layouts: list[TensorLayout]
    which: list[int]
    values: list[tuple[Any, Any]]
    storage: Callable[[ForeignObject, str, str, int], Any]

    def numbered(self, index: int) -> Iterator[tuple[int, Any]]:
        """Yield numbers and objects of the tensor that ``index`` belongs to."""
        row = int(np.searchsorted(self.begins, index, "right")) - 1
        key, layout = self.keys[row], self.layouts[self.which[row]]
        tensor, parameter = self.values[row]
        bare = self.storage(layout.kind, key, layout.location, layout.numel)
        hooks: OrderedDict[Any, Any] = OrderedDict()
        axes = (layout.size, layout.stride)
        made: list[Any] = [] if row == 0 else [self.names[row - 1]]
        made += [key, ("storage", layout.kind, key, layout.location, layout.numel)]
        made += axes if layout.size else ()
        made += [hooks, (bare, layout.storage_offset, *axes, False, hooks), tensor]
        if parameter is not None:
            more: OrderedDict[Any, Any] = OrderedDict()
            made += [more, (tensor, True, more), parameter]
        return enumerate(made, self.start if row == 0 else int(self.begins[row]))


@dataclass(slots=True, eq=False, repr=False)
class RunReader:
    """Reads runs of tensors for one run of an `Interpreter`.

    ``tensors`` makes the values, ``parameter`` a Parameter of one, whether it needs a gradient and
    its state, and ``storage`` gives the storage of a tensor that was made.
    """

    tensors: MakeTensors
    parameter: Callable[[Any, bool, Any], Any]
    storage: Callable[[ForeignObject, str, str, int], Any]
    #: Where it pays to look again.
    next: int = field(default=0, init=False)
    _window: int = field(default=_FIRST_WINDOW, init=False)
    _in_vain: int = field(default=0, init=False)

    def read(
        self, data: bytes, position: int, memo: Memo, gets: Gets
    ) -> tuple[list[Any], int] | None:
        """Return the values of a run, with the names between them, and where it ends.

        ``position`` is after the name that is called: the arguments of the first tensor.
        """
        window = self._window
        found = self._read(data, position, window, memo, gets)
        if found is None:
            # Where there is no run there may be none for long: look again after ever more bytes.
            self._in_vain += 1
            self.next = position + (_PAUSE << min(self._in_vain, 6))
            self._window = _FIRST_WINDOW
            return None
        if found[1] - position > window // 2:
            self._window = min(window * 8, _LARGEST_WINDOW)
        elif found[1] - position < window // 8:
            self._window = _FIRST_WINDOW
        self._in_vain = 0
        return found

    def _read(
        self, data: bytes, position: int, window: int, memo: Memo, gets: Gets
    ) -> tuple[list[Any], int] | None:
        part = data[position : position + window]
        columns = _Columns(part, gets)
        count = columns.count
        if count < _FEWEST or columns.key_puts[0] <= 256:
            return None  # a get of one byte could mean what the run itself has numbered
        made = self._layouts(columns, memo)
        if made is None:
            return None
        layouts, which = made
        text = part.decode("latin-1")
        spans = zip(columns.keys[:count].tolist(), columns.key_ends[:count].tolist(), strict=True)
        keys = [text[a:b] for a, b in spans]
        begins = (columns.names[: count - 1] + 5).tolist()  # of the names, but for the first
        ends = columns.name_ends[: count - 1].tolist()
        names = [text[a:b] for a, b in zip(begins, ends, strict=True)]
        if not "".join(names).isascii():
            try:
                names = [part[a:b].decode() for a, b in zip(begins, ends, strict=True)]
            except UnicodeDecodeError:
                return None
        if not memo.takes(int(columns.key_puts[0]), int(columns.ends[count - 1])):
            return None
        tensors = self.tensors(keys, layouts, which)
        if len(tensors) < count:  # one is not in order: the interpreter shall say so
            self.next = position + window
            count = len(tensors)
            if not count:
                return None
            del names[count - 1 :]
        values = tensors
        if gets.parameter is not None:
            values = [self.parameter(tensor, True, None) for tensor in tensors]
            pairs = list(zip(tensors, values, strict=True))
        else:
            pairs = [(tensor, None) for tensor in tensors]
        start, end = int(columns.key_puts[0]), int(columns.ends[count - 1])
        begins = columns.key_puts[:count] - 1
        memo.add(TensorRun(start, end, begins, names, keys, layouts, which, pairs, self.storage))
        items: list[Any] = [None] * (2 * count - 1)
        items[::2] = values
        items[1::2] = names
        return items, position + int(columns.stops[count - 1])

    def _layouts(
        self, columns: _Columns, memo: Memo
    ) -> tuple[list[TensorLayout], list[int]] | None:
        """Return the different layouts of a run, and which of them each tensor has."""
        rows = columns.rows[: columns.count]
        _, firsts, which = np.unique(
            (rows * _MIX[: rows.shape[1]]).sum(axis=1), return_index=True, return_inverse=True
        )
        if not np.array_equal(rows[firsts][which], rows):
            return None
        layouts = []
        for kind_at, location_at, numel, offset, axes, more, *numbers in rows[firsts].tolist():
            kind, location = memo.recall(kind_at), memo.recall(location_at)
            if type(kind) is not ForeignObject or type(location) is not str:
                return None
            size, stride = numbers[:axes], numbers[_MOST_AXES : _MOST_AXES + more]
            layouts.append(TensorLayout(kind, location, numel, offset, tuple(size), tuple(stride)))
        return layouts, which.tolist()


class Gets(NamedTuple):
    """The numbers of what every tensor of a run asks the memo for, below 256."""

    function: int
    storage: int
    hooks: int
    parameter: int | None  # of _rebuild_parameter, if the tensors are inside of Parameters


class _Columns:
    """The tensors in some bytes, side by side.

    The first begins with its arguments, each of the others with its name. ``count`` is how many
    are as they should be; columns may be longer than that.
    """

    def __init__(self, part: bytes, gets: Gets) -> None:
        self.count = 0
        raw = np.frombuffer(part + bytes(_PADDING), np.uint8)
        # The four bytes at each place, as a number.
        words = np.ndarray((len(raw) - 3,), "<u4", raw, 0, (1,))
        of = int.from_bytes
        hooks = bytes([0x68, gets.hooks])
        closing = of(hooks + b")R", "little")
        stops = np.flatnonzero(raw[: len(part)] == 0x89)
        stops = stops[words[stops + 1] == closing][:_MOST_TENSORS]
        if len(stops) < _FEWEST:
            return
        inside = gets.parameter is not None
        behind = 44 if inside else 22  # from False to the next name
        names = stops[:-1] + behind
        name_ends = np.minimum(names + 5 + words[names + 1], len(part))
        opening = bytes([0x68, gets.function])
        if gets.parameter is not None:
            opening = bytes([0x68, gets.parameter]) + opening
        begins = np.empty(len(stops), np.int64)
        begins[0] = 0
        begins[1:] = name_ends + 5 + len(opening)
        good = words[begins] == of(bytes([0x28, 0x28, 0x68, gets.storage]), "little")
        good[1:] &= (raw[names] == 0x58) & (raw[name_ends] == 0x72)
        for index, opcode in enumerate(opening):
            good[1:] &= raw[name_ends + 5 + index] == opcode
        name_puts = words[name_ends + 1]
        self.names = names
        self.name_ends = name_ends
        # The class, the key and the location.
        kinds = raw[begins + 5]
        digits = words[begins + 7].astype(np.int64)
        good &= (raw[begins + 4] == 0x68) & (raw[begins + 6] == 0x58)
        good &= (digits >= 1) & (digits <= 20)
        self.keys = begins + 11
        at = self.key_ends = self.keys + np.minimum(digits, 20)
        for index in range(min(20, int(digits.max()))):
            byte = raw[self.keys + index] - np.uint8(0x30)
            good &= (byte <= 9) | (index >= digits)
        puts = self.key_puts = words[at + 1].astype(np.int64)
        good &= (raw[at] == 0x72) & (raw[at + 5] == 0x68)
        locations = raw[at + 6]
        good[1:] &= name_puts == puts[1:] - 1
        # The numbers.
        numel, at, is_number = _number(raw, words, at + 7)
        good &= is_number & (raw[at] == 0x74) & (raw[at + 1] == 0x72) & (raw[at + 6] == 0x51)
        good &= words[at + 2] == puts + 1
        offset, at, is_number = _number(raw, words, at + 7)
        good &= is_number
        self.rows = np.zeros((len(at), 6 + 2 * _MOST_AXES), np.int64)
        sizes, strides = self.rows[:, 6 : 6 + _MOST_AXES], self.rows[:, 6 + _MOST_AXES :]
        axes, at, is_tuple = _axes(raw, words, at, puts + 2, sizes)
        more, at, is_also = _axes(raw, words, at, puts + 3, strides)
        good &= is_tuple & is_also & (at == stops) & ((axes == 0) == (more == 0))
        self.rows[:, :6] = np.stack((kinds, locations, numel, offset, axes, more), axis=1)
        # The end.
        number = puts + np.where(axes == 0, 2, 4)
        at = stops + 5
        parts = [b"r", b"tr", b"Rr"]
        if inside:
            good &= (raw[stops + 22] == 0x88) & (words[stops + 23] == closing)
            parts += [b"\x88" + hooks + b")Rr", b"\x87r", b"Rr"]
        for opcodes in parts:
            for opcode in opcodes:
                good &= raw[at] == opcode
                at = at + 1
            good &= words[at] == number
            number = number + 1
            at = at + 4
        good &= at <= len(part)
        self.ends = number
        self.stops = at
        good[1:] &= puts[1:] == number[:-1] + 1
        self.count = len(good) if good.all() else int(np.argmin(good))


def _number(
    raw: NDArray[np.uint8], words: NDArray[np.uint32], at: Numbers
) -> tuple[Numbers, Numbers, NDArray[np.bool_]]:
    """Return the ints whose opcodes are at places, the places after them, and if all is well."""
    opcodes = raw[at]
    value = words[at + 1] & _MASKS[opcodes]
    width = _WIDTHS[opcodes]
    return value, at + width, (width > 0) & (value < 1 << 31)


def _axes(
    raw: NDArray[np.uint8],
    words: NDArray[np.uint32],
    at: Numbers,
    put: Numbers,
    out: Numbers,
) -> tuple[Numbers, Numbers, NDArray[np.bool_]]:
    """Read tuples of ints into ``out``, and the put of each that is not empty.

    Return their lengths, the places after them, and if all is well.
    """
    marked = raw[at] == 0x28
    at = at + marked
    count = np.zeros(len(at), np.int64)
    good = np.ones(len(at), np.bool_)
    for axis in range(_MOST_AXES):
        value, behind, is_number = _number(raw, words, at)
        more = behind > at
        if not more.any():
            break
        good &= is_number | ~more
        out[:, axis] = np.where(more, value, 0)
        count += more
        at = behind
    opcodes = raw[at]
    short = (count >= 1) & (count <= 3) & (opcodes == 0x84 + count)
    empty = count == 0
    good &= np.where(marked, (opcodes == 0x74) & ~empty, short | (empty & (opcodes == 0x29)))
    good &= empty | ((raw[at + 1] == 0x72) & (words[at + 2] == put))
    return count, at + np.where(empty, 1, 6), good
