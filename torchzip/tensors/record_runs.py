"""Many tensors at once: their opcodes as columns of numbers.

Behind the first tensors of a file, each is written as the same sequence of opcodes with other
numbers in it (``put`` is BINPUT or LONG_BINPUT, ``n`` an opcode of an int, ``t`` TUPLE1 to TUPLE3
or a TUPLE with its MARK)::

    <get function> ( ( <get 'storage'> <get class> <key put> <get location> n t put Q
    n n..t put n..t put False <get OrderedDict> ) R put t put R put

or, without its two puts, ``)`` for the size and the stride of a scalar. A parameter has ``<get
_rebuild_parameter>`` before the function, and ``True <get OrderedDict> ) R put t put R put``
after all of it.

The bytes that end a tensor are found first; then all tensors of a window of the pickle are read
side by side, opcode by opcode, each at its own place. Between two of them there is a gap: in a
state dict a name and its put, in the state of an optimizer the end of a dict and the beginning of
the next. Gaps are passed over side by side as well, and left to the interpreter unless they are
just a name: a new one with its put, or ``get`` of one that was met before, as the keys of Adam's
moments are. Before it one dict may end and another begin, under an int: ``u n } put (``.
What counts is the longest beginning in which every opcode was the one that is expected, and each
tensor began where a gap ended. Whatever else there is, the interpreter reads.

Tensors are made before the interpreter comes to them. It does come there: opcodes follow each other
without jumps, and no gap has one that mentions a storage or changes what the tensors ask for.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from torchzip.leaf_types import ForeignObject
from torchzip.pickling.memo import Memo
from torchzip.pickling.table import Name

#: What makes a tensor, and what makes a Parameter of one.
TENSOR = ("torch._utils", "_rebuild_tensor_v2")
PARAMETER = ("torch._utils", "_rebuild_parameter")
_HOOKS = ("collections", "OrderedDict")
_MISSING = object()

Numbers = NDArray[np.int64]
Columns = tuple[Numbers, Numbers, NDArray[np.bool_]]

#: Fewer tensors are not worth the arrays.
_FEWEST = 12
#: Bytes that are looked at first, and at most. A window that was used up is followed by one
#: that is larger, so what is looked at in vain is never much.
_FIRST_WINDOW = 1 << 17
_LARGEST_WINDOW = 1 << 18
#: Bytes that are passed over after the first time that there was no run.
_PAUSE = 1 << 10
#: A tensor takes less than this after its key; nothing is read past the end of a window.
_PADDING = 512
_MOST_AXES = 8

#: Bytes of the opcodes that push an int with their argument, of those that number a value,
#: and of those that get one by its number; 0 for all others. The bits of an argument, by these.
_INT_NBYTES, _PUT_NBYTES, _GET_NBYTES = np.zeros((3, 256), np.int64)
_INT_NBYTES[list(b"KMJ")] = 2, 3, 5
_PUT_NBYTES[list(b"qr")] = 2, 5
_GET_NBYTES[list(b"hj")] = 2, 5
_MASKS = np.array([0, 0, 0xFF, 0xFFFF, 0, 0xFFFFFFFF])
#: Opcodes of a gap at most, and the bytes of those that may be in one, with their argument but
#: for the text of BINUNICODE. Any would do that has no persistent id and renumbers nothing.
_MOST_IN_GAP = 200
_FEW_IN_GAP = 6
_GAP_NBYTES = np.zeros(256, np.int64)
_GAP_NBYTES[list(b"XqrhjKMJG")] = 5, 2, 5, 2, 5, 2, 3, 5, 9
_GAP_NBYTES[list(b"N\x88\x89)}](ueasbtR\x81\x85\x86\x87")] = 1
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
    """Tensors with just a name between each two, as a `Memo` keeps them: some rows of a window.

    Before the name a dict may end and the next begin.
    """

    window: Window
    first: int
    stop: int
    start: int
    end: int

    def numbered(self, index: int) -> Iterator[tuple[int, Any]]:
        """Yield numbers and objects of the tensor that ``index`` belongs to."""
        window = self.window
        row = bisect_right(window.starts, index, self.first + 1, self.stop) - 1
        start = window.key_puts[row] if row == self.first else window.starts[row]
        key, layout = window.keys[row], window.layouts[window.which[row]]
        tensor = window.tensors[row]
        bare = window.storage(layout.kind, key, layout.location, layout.numel)
        hooks: OrderedDict[Any, Any] = OrderedDict()
        axes = (layout.size, layout.stride)
        made: list[Any] = []
        if row > self.first:
            made += [window.dicts[row]] if row in window.dicts else []
            made += [window.names[row]] if start + len(made) < window.key_puts[row] else []
        made += [key, ("storage", layout.kind, key, layout.location, layout.numel)]
        made += axes if layout.size else ()
        made += [hooks, (bare, layout.storage_offset, *axes, False, hooks), tensor]
        if window.gets.parameter is not None:
            more: OrderedDict[Any, Any] = OrderedDict()
            made += [more, (tensor, True, more), window.values[row]]
        return enumerate(made, start)


@dataclass(slots=True, eq=False, repr=False)
class Window:
    """The tensors that were read at once, by rows."""

    gets: Gets
    starts: list[int]  # the number of what is new before each: a dict, a name, or else of the key
    key_puts: list[int]
    ends: list[int]  # the number after the last of each
    stops: list[int]  # where each ends in the pickle
    names: list[str | None]  # what comes before each, if it is just a name, or a dict and a name
    keys: list[str]
    layouts: list[TensorLayout]
    which: list[int]  # the layout of each
    tensors: list[Any]
    values: list[Any]  # the tensors, or Parameters of them
    storage: Callable[[ForeignObject, str, str, int], Any]
    opens: list[int]  # the rows before which a dict begins
    dict_keys: dict[int, int]  # by these rows, the key of that dict in the one around it
    dicts: dict[int, dict[Any, Any]]  # and the dict, once it is made


@dataclass(slots=True, eq=False, repr=False)
class RunReader:
    """Reads tensors for one run of an `Interpreter`; a `Shortcut`.

    ``names`` are those that the interpreter has met. ``tensors`` makes the values, ``parameter`` a
    Parameter of one, whether it needs a gradient and its state, and ``storage`` gives the storage
    of a tensor that was made.
    """

    names: Mapping[Name, Any]
    tensors: MakeTensors
    parameter: Callable[[Any, bool, Any], Any]
    storage: Callable[[ForeignObject, str, str, int], Any]
    #: Where it pays to look again.
    _next: int = field(default=0, init=False)
    _nbytes: int = field(default=_FIRST_WINDOW, init=False)
    _in_vain: int = field(default=0, init=False)
    _columns: _Columns | None = field(default=None, init=False)
    _window: Window | None = field(default=None, init=False)
    #: The rows of runs in the window, by where they begin in the pickle.
    _runs: dict[int, tuple[int, int]] = field(default_factory=dict, init=False)

    def __call__(
        self, data: bytes, position: int, memo: Memo, stack: list[Any], below: list[list[Any]]
    ) -> int | None:
        """Put the tensor whose arguments begin at ``position`` on the stack; return where they end.

        Items of the same dict may come with it, and of those after it in an outer dict. None if
        the interpreter shall read them; then nothing has happened.
        """
        rows = self._runs.get(position)
        if rows is None:
            if position < self._next:
                return None
            inside = len(stack) > 1 and stack[-2] is self.names.get(PARAMETER)
            gets = self._gets(data, position, memo, inside)
            if gets is None or not self._look(data, position, memo, gets):
                return None
            rows = self._runs[position]
        window = self._window
        first, stop = rows
        assert window is not None
        del stack[-1 if window.gets.parameter is None else -2 :]
        opens = window.opens[bisect_right(window.opens, first) : bisect_left(window.opens, stop)]
        if opens and not _is_first_item(stack, below):
            stop, opens = opens[0], []
        memo.add(TensorRun(window, first, stop, window.key_puts[first], window.ends[stop - 1]))
        values, names = window.values, window.names
        if opens:
            outer = below[-1]
            outer[-1].update(
                zip([stack[0], *names[first + 1 : opens[0]]], values[first : opens[0]], strict=True)
            )
            for row, end in pairwise(opens):
                made = dict(zip(names[row:end], values[row:end], strict=True))
                outer += window.dict_keys[row], made
                window.dicts[row] = made
            # The last one stays open.
            first = opens[-1]
            window.dicts[first] = {}
            outer += window.dict_keys[first], window.dicts[first]
            stack[0] = names[first]
        items: list[Any] = [None] * (2 * (stop - first) - 1)
        items[::2] = values[first:stop]
        items[1::2] = names[first + 1 : stop]
        stack += items
        return window.stops[stop - 1]

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

    def _look(self, data: bytes, position: int, memo: Memo, gets: Gets) -> bool:
        """Read the tensors from ``position`` on; return whether there are enough."""
        self._window, self._runs = None, {}
        columns = self._columns
        row = columns.row_at(position) if columns is not None and columns.gets == gets else None
        if columns is None or row is None:
            columns = self._columns = _Columns(data, position, self._nbytes, gets)
            row = columns.row_at(position)
        window = self._read(columns, row, memo) if row is not None else None
        if window is None:
            # Where there is no run there may be none for long: look again after ever more bytes.
            self._in_vain += 1
            self._next = max(self._next, position + (_PAUSE << min(self._in_vain, 6)))
            self._nbytes = _FIRST_WINDOW
            return False
        used = window.stops[-1] - columns.start
        if used > columns.nbytes // 2:
            self._nbytes = min(columns.nbytes * 2, _LARGEST_WINDOW)
        elif used < columns.nbytes // 8:
            self._nbytes = _FIRST_WINDOW
        self._in_vain = 0
        self._window = window
        return True

    def _read(self, columns: _Columns, row: int, memo: Memo) -> Window | None:
        count = columns.count_from(row)
        if count < _FEWEST:
            return None
        rows = slice(row, row + count)
        gaps = slice(row, row + count - 1)
        key_puts, ends = columns.key_puts[rows].tolist(), columns.ends[rows].tolist()
        # What is numbered in the gaps has numbers of its own.
        if not memo.takes(key_puts[0], ends[-1]):
            return None
        made = self._layouts(columns.rows[rows], memo)
        if made is None:
            return None
        layouts, which = made
        text = columns.text
        spans = zip(columns.keys[rows].tolist(), columns.key_ends[rows].tolist(), strict=True)
        keys = [text[a:b] for a, b in spans]
        named = np.flatnonzero(columns.is_name[gaps])
        spans = zip(
            columns.names[gaps][named].tolist(), columns.name_ends[gaps][named].tolist(),
            strict=True,
        )  # fmt: skip
        texts = [text[a:b] for a, b in spans]
        if not "".join(texts).isascii():
            try:
                texts = [each.encode("latin-1").decode() for each in texts]
            except UnicodeDecodeError:
                return None
        names: list[str | None] = [None] * count
        starts = key_puts.copy()
        for gap, name in zip(named.tolist(), texts, strict=True):
            names[gap + 1] = name
            starts[gap + 1] -= 1
        opening = np.flatnonzero(columns.is_next[gaps])
        opens = (opening + 1).tolist()
        for opened in opens:
            starts[opened] -= 1
        dict_keys = dict(zip(opens, columns.dict_keys[gaps][opening].tolist(), strict=True))
        known = np.flatnonzero(columns.is_known[gaps])
        if len(known):
            numbers = columns.known_numbers[gaps][known].tolist()
            new = dict(zip((columns.key_puts[rows][named + 1] - 1).tolist(), texts, strict=True))
            self._add_known(known.tolist(), numbers, names, new, key_puts, memo)
        tensors = self.tensors(keys, layouts, which)
        if len(tensors) < count:  # one is not in order: the interpreter shall say so
            self._next = columns.start + columns.nbytes
            count = len(tensors)
            if not count:
                return None
        values = tensors
        if columns.gets.parameter is not None:
            values = [self.parameter(tensor, True, None) for tensor in tensors]
        first = 0
        begins = (columns.start + columns.begins[rows]).tolist()
        for end in range(1, count + 1):
            if end == count or names[end] is None:
                self._runs[begins[first]] = first, end
                for opened in opens[bisect_right(opens, first) : bisect_left(opens, end)]:
                    self._runs[begins[opened]] = opened, end
                first = end
        stops = (columns.start + columns.stops[rows]).tolist()[:count]
        return Window(
            columns.gets, starts, key_puts, ends, stops, names, keys, layouts, which,
            tensors, values, self.storage, opens, dict_keys, {},
        )  # fmt: skip

    @staticmethod
    def _add_known(
        gaps: list[int], numbers: list[int], names: list[str | None], new: dict[int, str],
        key_puts: list[int], memo: Memo,
    ) -> None:  # fmt: skip
        """Add the names that were met before: before the window, or in it as one of ``new``."""
        lowest = key_puts[0]
        before: dict[int, Any] = {}
        for gap, number in zip(gaps, numbers, strict=True):
            if number >= lowest:
                name = new.get(number) if number < key_puts[gap + 1] else None
            elif number in before:
                name = before[number]
            else:
                name = before[number] = memo.recall(number)
            if type(name) is str:
                names[gap + 1] = name

    @staticmethod
    def _layouts(rows: Numbers, memo: Memo) -> tuple[list[TensorLayout], list[int]] | None:
        """Return the different layouts of rows, and which of them each tensor has."""
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


def _is_first_item(stack: list[Any], below: list[list[Any]]) -> bool:
    """Return whether a name is all that is on the stack of the items of a new dict."""
    if len(stack) != 1 or type(stack[0]) is not str or not below or not below[-1]:
        return False
    return type(below[-1][-1]) is dict and not below[-1][-1]


class Gets(NamedTuple):
    """The numbers of what every tensor asks the memo for by BINGET."""

    function: int
    storage: int
    hooks: int
    parameter: int | None  # of _rebuild_parameter, if the tensors are inside of Parameters


class _Columns:
    """The tensors in ``nbytes`` bytes of a pickle from ``start`` on, side by side.

    The first begins with its arguments, each of the others with what is before it. Places are
    counted from ``start``.
    """

    def __init__(self, data: bytes, start: int, nbytes: int, gets: Gets) -> None:
        self.start = start
        self.nbytes = nbytes
        self.gets = gets
        part = data[start : start + nbytes]
        self.text = part.decode("latin-1")
        raw = self._raw = np.frombuffer(part + bytes(_PADDING), np.uint8)
        # The four bytes at each place, as a number.
        words = self._words = np.ndarray((len(raw) - 3,), "<u4", raw, 0, (1,))
        hooks = bytes([0x68, gets.hooks])
        closing = _word(hooks + b")R")
        stops = np.flatnonzero(raw[: len(part)] == 0x89)
        stops = stops[words[stops + 1] == closing]
        begins = np.flatnonzero((raw[: len(part)] == 0x28) & (raw[1 : len(part) + 1] == 0x28))
        begins = begins[words[begins] == _word(bytes([0x28, 0x28, 0x68, gets.storage]))]
        # Each ends where the arguments do that began last before it.
        nearest = np.searchsorted(begins, stops) - 1
        stops = stops[nearest >= 0]
        begins = self.begins = begins[nearest[nearest >= 0]]
        if len(stops) < _FEWEST:
            self.begins = begins[:0]
            return
        # The opcodes between the puts after the strides. The first of them are there.
        parts = [b"", b"t", b"R"]
        opening = bytes([0x68, gets.function])
        if gets.parameter is not None:
            parts += [b"\x88" + hooks + b")R", b"\x87", b"R"]
            opening = bytes([0x68, gets.parameter]) + opening
        at, good = stops + len(b"\x89" + hooks + b")R"), np.ones(len(stops), np.bool_)
        last_puts = []
        for opcodes in parts:
            for opcode in opcodes:
                good &= raw[at] == opcode
                at = at + 1
            put, at, is_put = self._put(at)
            good &= is_put
            last_puts.append(put)
        self.stops = at
        good &= at <= len(part)
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
        number, at, is_put = self._put(at)
        self.key_puts = number
        good &= is_put & (raw[at] == 0x68)
        locations = raw[at + 1]
        # The numbers.
        numel, at, is_number = self._number(at + 2)
        good &= is_number & (raw[at] == 0x74)
        put, at, is_put = self._put(at + 1)
        good &= is_put & (put == number + 1) & (raw[at] == 0x51)
        offset, at, is_number = self._number(at + 1)
        good &= is_number
        self.rows = np.zeros((len(at), 6 + 2 * _MOST_AXES), np.int64)
        sizes, strides = self.rows[:, 6 : 6 + _MOST_AXES], self.rows[:, 6 + _MOST_AXES :]
        axes, at, is_tuple = self._axes(at, number + 2, sizes)
        more, at, is_also = self._axes(at, number + 3, strides)
        good &= is_tuple & is_also & (at == stops) & ((axes == 0) == (more == 0))
        self.rows[:, :6] = np.stack((kinds, locations, numel, offset, axes, more), axis=1)
        # What is met again has a number from before.
        self._highest = np.maximum(np.maximum(kinds, locations), max(gets[:3]))
        number = number + np.where(axes == 0, 2, 4)
        for put in last_puts:
            good &= put == number
            number = number + 1
        self.ends = number
        self._good = good
        self._follows = self._gaps(opening)

    def row_at(self, position: int) -> int | None:
        """Return the row of the tensor whose arguments begin at a place of the pickle."""
        row = int(np.searchsorted(self.begins, position - self.start))
        if row < len(self.begins) and self.begins[row] == position - self.start:
            return row
        return None

    def count_from(self, row: int) -> int:
        """Return how many tensors from a row on are as they should be."""
        good = self._good[row:] & (self._highest[row:] < self.key_puts[row : row + 1])
        good[1:] &= self._follows[row:]
        return len(good) if good.all() else int(np.argmin(good))

    def _gaps(self, opening: bytes) -> NDArray[np.bool_]:
        """Go over what is between tensors; return whether each follows the one before it.

        It does if it begins where the gap ends, and is numbered from there on.
        """
        raw, words = self._raw, self._words
        end = len(raw) - _PADDING
        gaps = np.minimum(self.stops[:-1], end)
        next_word = _word((opening + b"((")[:4])
        # The end of a dict, and an int with a new one.
        self.dict_keys, behind, is_next = self._number(np.minimum(gaps + 1, end))
        is_next &= (raw[gaps] == 0x75) & (raw[behind] == 0x7D)
        dict_put, behind, is_put = self._put(behind + 1)
        is_next &= is_put & (raw[behind] == 0x28)
        # A name.
        names = np.where(is_next, np.minimum(behind + 1, end), gaps)
        self.names = names + 5
        self.name_ends = np.minimum(names + 5 + words[names + 1], end)
        name_put, behind, is_put = self._put(self.name_ends)
        self.is_name = (raw[names] == 0x58) & is_put & (words[behind] == next_word)
        self.known_numbers, behind_get, is_get = self._number(names, _GET_NBYTES)
        self.is_known = is_get & (words[behind_get] == next_word)
        self.is_next = is_next & (self.is_name | self.is_known)
        puts = self.is_next * 1
        good = ~self.is_next | (dict_put == self.ends[:-1])
        good &= ~self.is_name | (name_put == self.ends[:-1] + puts)
        puts += self.is_name
        at = np.where(self.is_name, behind, np.where(self.is_known, behind_get, gaps))
        lanes = np.flatnonzero(words[at] != next_word)
        for step in range(_MOST_IN_GAP):
            if len(lanes) < (1 if step < _FEW_IN_GAP else _FEWEST):
                break  # what is long and rare is passed over sooner by the interpreter
            here = at[lanes]
            put, _, is_put = self._put(here)
            if is_put.any():
                numbered = lanes[is_put]
                good[numbered] &= put[is_put] == self.ends[numbered] + puts[numbered]
                puts[numbered] += 1
            opcodes = raw[here]
            nbytes = _GAP_NBYTES[opcodes]
            here += nbytes + np.where(opcodes == 0x58, words[here + 1], 0)
            here = at[lanes] = np.minimum(here, end)
            lanes = lanes[(nbytes > 0) & (words[here] != next_word)]
        good &= (words[at] == next_word) & (at + len(opening) == self.begins[1:])
        follows: NDArray[np.bool_] = good & (self.key_puts[1:] == self.ends[:-1] + puts)
        return follows

    def _number(self, at: Numbers, nbytes: Numbers = _INT_NBYTES) -> Columns:
        """Return the ints whose opcodes are at places, the places after them, and if all is well.

        ``nbytes`` are those of the opcodes that may be there with their argument, 0 for others.
        """
        width = nbytes[self._raw[at]]
        value = self._words[at + 1] & _MASKS[width]
        return value, at + width, (width > 0) & (value < 1 << 31)

    def _put(self, at: Numbers) -> Columns:
        """Return the numbers of puts, as `_number` does it."""
        return self._number(at, _PUT_NBYTES)

    def _axes(self, at: Numbers, number: Numbers, out: Numbers) -> Columns:
        """Read tuples of ints into ``out``, and the put of each that is not empty.

        Return their lengths, the places after them, and if all is well.
        """
        marked = self._raw[at] == 0x28
        at = at + marked
        count = np.zeros(len(at), np.int64)
        good = np.ones(len(at), np.bool_)
        for axis in range(_MOST_AXES):
            value, behind, is_number = self._number(at)
            more = behind > at
            if not more.any():
                break
            good &= is_number | ~more
            out[:, axis] = np.where(more, value, 0)
            count += more
            at = behind
        opcodes = self._raw[at]
        short = (count >= 1) & (count <= 3) & (opcodes == 0x84 + count)
        empty = count == 0
        good &= np.where(marked, (opcodes == 0x74) & ~empty, short | (empty & (opcodes == 0x29)))
        put, behind, is_put = self._put(at + 1)
        good &= empty | (is_put & (put == number))
        return count, np.where(empty, at + 1, behind), good


def _word(opcodes: bytes) -> int:
    return int.from_bytes(opcodes, "little")
