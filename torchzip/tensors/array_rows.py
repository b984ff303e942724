"""Many new tensors at once: the opcodes of each as one row, worked out for all in one step.

A state dict has thousands of entries that differ in little: a name, a tensor that shares its
memory with no other, a storage key, and memo numbers that go up by one from put to put. So the
opcodes from one name's put to its tensor's are the same bytes for every tensor of a `Form`, with
gaps for the key and the numbers. The states of an optimizer are alike in the same way: for each
parameter a dict of tensors under the same few strings. A `_Template` has those bytes and fills the
gaps: for many as columns of an array, for a few as one large integer each.

Equal to writing the pairs one by one, byte for byte (a test compares them).
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, repeat
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from torchzip.pickling.emitter import Emitter
from torchzip.pickling.opcodes import get_opcode, text_opcode
from torchzip.tensors.memory import Form
from torchzip.tensors.reduce import (
    DenseWriter,
    StorageKeys,
    Stored,
    int_opcode,
    ints_opcodes,
)

Numbers = NDArray[np.int64]

#: The first memo number whose put has four bytes for it.
_FIRST_LONG = 256
#: A key, a persistent id, size, stride, hooks, arguments and the tensor; for a parameter its
#: hooks, its arguments and itself.
_MOST_PUTS = 10
#: So many pairs make a run: fewer are as quick one by one.
_LEAST_PAIRS = 24
_MOST_PAIRS = 1000
#: From so many rows of one template on, columns are quicker than integers.
_COLUMNS_FROM = 8
#: More puts at once do not stay in the processor's cache.
_COLUMNS_PUTS = 10_000

#: What decides the opcodes of a pair: the memo numbers of the strings in an inner dict and the
#: forms of its tensors, or no numbers and the form of a tensor.
Look = tuple[tuple[int, ...], tuple[Form, ...]]


class _Gap(enum.Enum):
    """A place in a template that is filled: with a storage key, or the put of what precedes it."""

    KEY = enum.auto()
    PUT = enum.auto()
    TENSOR_PUT = enum.auto()


# Looked up once: a member takes longer to find in its class than a part takes to be added.
_KEY, _PUT, _TENSOR_PUT = _Gap


class _Run(NamedTuple):
    """Pairs of a dict that may be rows: strings and tensors, or ints and dicts of tensors."""

    keys: Sequence[Any]
    #: The ids of what gets the first number of each pair: its key, or the inner dict.
    firsts: list[int]
    #: As many for each pair.
    tensors: Sequence[Any]
    tensor_ids: list[int]
    #: The looks that pairs have, None for what cannot be a row, and the index of that of each.
    looks: list[Look | None]
    look_at: list[int]


@dataclass(eq=False)
class ArrayRows:
    """Writes tensors that stand alone: runs of pairs with such tensors, or one tensor.

    ``forms`` maps the ids of such tensors to their forms; ``storages`` has what is stored for
    those that are not arrays.
    """

    keys: StorageKeys
    dense: DenseWriter
    forms: Mapping[int, Form]
    storages: Mapping[int, Stored]

    def __post_init__(self) -> None:
        # By the length of the storage keys, and by whether the puts of a single tensor are short.
        self._templates: dict[tuple[int, bool], dict[Form | Look, _Template]] = {}
        # Where runs end early, the next ones are looked for in fewer pairs, and not at once.
        self._window = _MOST_PAIRS
        self._skipped = 0

    def __call__(self, emitter: Emitter, pairs: Sequence[tuple[Any, Any]], start: int) -> int:
        """Write pairs from ``start`` up to the first that is something else; return how many.

        None are written before the emitter has met what they mention, such as the strings in the
        inner dicts.
        """
        if self._skipped:
            self._skipped -= 1
            return 0
        value = pairs[start][1]
        is_nested = type(value) is dict
        tensors = value.values() if is_nested else (value,)
        width = len(tensors)
        if not 0 < width < _LEAST_PAIRS or emitter.count < _FIRST_LONG:
            return 0
        if not all(id(tensor) in self.forms for tensor in tensors):
            return 0
        if is_nested and not all(id(name) in emitter.memo for name in value):
            return 0
        first_key = len(self.keys.order)
        key_nbytes = len(str(first_key))
        # As many as have keys of one length.
        most = (10**key_nbytes - first_key) // width
        stop = min(len(pairs), start + self._window, start + most)
        if stop - start < _LEAST_PAIRS:
            return 0
        some = pairs[start:stop]
        run = self._of_dicts(emitter, some) if is_nested else self._of_tensors(some)
        templates = [look and self._row_template(emitter, look, key_nbytes) for look in run.looks]
        count = _count_ordinary(emitter, run, templates, width)
        if count == len(run.look_at):
            self._window = min(2 * self._window, _MOST_PAIRS)
        else:
            self._window = max(2 * count, _LEAST_PAIRS)
        if count < _LEAST_PAIRS:
            self._skipped = _LEAST_PAIRS
            return 0
        tensor_ids = run.tensor_ids[: count * width]
        storages: list[Any] | None = None
        if self.storages:
            storages = list(map(self.storages.get, tensor_ids, run.tensors))
            if not self.keys.are_new(storages):
                self._window = self._skipped = _LEAST_PAIRS
                return 0
        # The first pairs all have a template, so anything does where there is none.
        unused: Any = templates[run.look_at[0]]
        used = [each or unused for each in templates]
        self._write(emitter, run, count, used, storages or run.tensors[: count * width])
        return count

    def _write(
        self,
        emitter: Emitter,
        run: _Run,
        count: int,
        templates: Sequence[_Template],
        stored: Sequence[Stored],
    ) -> None:
        """Write the first pairs of a run, whose tensors lie on the new storages ``stored``."""
        group = np.fromiter(run.look_at, np.int64, count)
        bounds = np.full(count + 1, emitter.count, np.int64)
        bounds[1:] += np.cumsum(np.array([each.puts for each in templates])[group])
        begins = bounds[:-1]
        first_key = len(self.keys.order)
        first_keys = np.arange(first_key, first_key + len(stored), len(stored) // count)
        rows: list[bytes] = []
        place_of = np.empty(count, np.int64)
        for index, template in enumerate(templates):
            members = np.flatnonzero(group == index)
            place_of[members] = np.arange(len(rows), len(rows) + len(members))
            rows += template.rows(first_keys[members], begins[members])
        parts = [b""] * (3 * count)
        parts[0::3], parts[1::3] = _key_opcodes(run.keys[:count])
        parts[2::3] = map(rows.__getitem__, place_of.tolist())
        emitter.write(b"".join(parts))
        emitter.count = int(bounds[-1])

        def number(ids: Iterable[int], steps: list[list[int]]) -> None:
            """Give the numbers that are some steps after the first of each pair."""
            numbers = begins[:, None] + np.array(steps)[group]
            emitter.memo.update(zip(ids, numbers.ravel().tolist(), strict=False))

        number(run.firsts, [[0]] * len(templates))
        number(run.tensor_ids, [each.tensor_puts for each in templates])
        if not self.storages:  # nobody else mentions the keys of arrays
            self.keys.order += stored
        else:
            key_ids = map(id, self.keys.add(stored))
            number(key_ids, [each.key_puts for each in templates])

    def one(self, emitter: Emitter, value: Any) -> bool:
        """Write a tensor that has no number yet, with its put; return False if it has no row."""
        form = self.forms.get(id(value))
        if form is None:
            return False
        begin, key = emitter.count, len(self.keys.order)
        short = begin < _FIRST_LONG
        if short and begin + _MOST_PUTS > _FIRST_LONG:
            return False
        key_nbytes = len(str(key))
        templates = self._templates.setdefault((key_nbytes, short), {})
        template = templates.get(form)
        if template is None:
            parts = self._parts(emitter, form)
            if parts is None:
                return False
            template = templates[form] = _Template(parts, key_nbytes, short)
        storage = self.storages.get(id(value)) if self.storages else None
        if storage is None:
            self.keys.order.append(value)
        elif self.keys.are_new([storage]):
            emitter.memo[id(self.keys.add([storage])[0])] = begin
        else:
            return False
        emitter.write(template.one(key, begin))
        emitter.count = begin + template.puts
        emitter.memo[id(value)] = begin + template.puts - 1
        return True

    def _of_tensors(self, pairs: Sequence[tuple[Any, Any]]) -> _Run:
        """Return pairs as strings and tensors; what is something else has no look."""
        names, values = zip(*pairs, strict=True)
        ids = list(map(id, values))
        forms = list(map(self.forms.get, ids))
        index_of = {form: index for index, form in enumerate(dict.fromkeys(forms))}
        looks: list[Look | None] = [None if form is None else ((), (form,)) for form in index_of]
        look_at = list(map(index_of.__getitem__, forms))
        if set(map(type, names)) != {str}:
            at_none = len(looks)
            looks.append(None)
            named = zip(names, look_at, strict=True)
            look_at = [at if type(name) is str else at_none for name, at in named]
        return _Run(names, list(map(id, names)), values, ids, looks, look_at)

    def _of_dicts(self, emitter: Emitter, pairs: Sequence[tuple[Any, Any]]) -> _Run:
        """Return pairs as ints and dicts, up to the first whose dict has other strings."""
        name_ids = tuple(map(id, pairs[0][1]))
        numbers = tuple(map(emitter.memo.__getitem__, name_ids))
        keys: list[int] = []
        dicts: list[dict[Any, Any]] = []
        for key, inner in pairs:
            if (
                type(key) is not int
                or not 0 <= key < 1 << 31
                or type(inner) is not dict
                or tuple(map(id, inner)) != name_ids
            ):
                break
            keys.append(key)
            dicts.append(inner)
        tensors = list(chain.from_iterable(map(dict.values, dicts)))
        ids = list(map(id, tensors))
        forms: Any = list(zip(*[map(self.forms.get, ids)] * len(name_ids), strict=True))
        index_of = {some: index for index, some in enumerate(dict.fromkeys(forms))}
        looks = [None if None in some else (numbers, some) for some in index_of]
        look_at = list(map(index_of.__getitem__, forms))
        return _Run(keys, list(map(id, dicts)), tensors, ids, looks, look_at)

    def _row_template(self, emitter: Emitter, look: Look, key_nbytes: int) -> _Template | None:
        """Return the template of pairs; None as long as what it mentions has no numbers."""
        templates = self._templates.setdefault((key_nbytes, False), {})
        template = templates.get(look)
        if template is None:
            numbers, forms = look
            tensors = []
            for form in forms:
                tensor = self._parts(emitter, form)
                if tensor is None:
                    return None
                tensors.append(tensor)
            if numbers:
                is_one = len(numbers) == 1
                parts: list[bytes | _Gap] = [b"}", _PUT, b"" if is_one else b"("]
                for number, tensor in zip(numbers, tensors, strict=True):
                    parts += (get_opcode(number), *tensor)
                parts.append(b"s" if is_one else b"u")
            else:
                parts = [_PUT, *tensors[0]]
            template = templates[look] = _Template(parts, key_nbytes, False)
        return template

    def _parts(self, emitter: Emitter, form: Form) -> list[bytes | _Gap] | None:
        """Return the opcodes of a tensor up to its put; None if something there has no number."""
        prefix = self.dense.prefix(emitter, form.torch_dtype)
        call = b""
        if form.parameter is not None:
            number = emitter.memo.get(("torch._utils", "_rebuild_parameter"))
            if number is None:
                return None
            call = get_opcode(number)
        if prefix is None:
            return None
        begin, location, hooks = prefix
        pieces = [  # the bytes before each put after that of the key
            location + int_opcode(form.numel) + b"t",
            b"Q" + int_opcode(form.storage_offset) + ints_opcodes(form.shape),
            ints_opcodes(form.stride),
            b"\x89" + hooks,
            b"t",
            b"R",
        ]
        if not form.shape:  # two empty tuples have no puts
            pieces[1:4] = [b"".join(pieces[1:4])]
        if form.parameter is not None:
            pieces += [(b"\x88" if form.parameter else b"\x89") + hooks, b"\x87", b"R"]
        parts: list[bytes | _Gap] = [call + begin, _KEY, _PUT]
        for piece in pieces:
            parts += (piece, _PUT)
        parts[-1] = _TENSOR_PUT
        return parts


def _count_ordinary(
    emitter: Emitter, run: _Run, templates: Sequence[_Template | None], width: int
) -> int:
    """Return how many pairs from the first on have a template, and nothing that has a number."""
    memo, count = emitter.memo.keys(), len(run.look_at)
    ids = {*run.firsts, *run.tensor_ids}
    if (
        len(ids) == (1 + width) * count  # a stranger's iterator may give an object twice
        and memo.isdisjoint(ids)
        and None not in templates
    ):
        return count
    met: set[int] = set()
    for index, look_at in enumerate(run.look_at):
        ids = {run.firsts[index], *run.tensor_ids[index * width : (index + 1) * width]}
        is_new = len(ids) == 1 + width and memo.isdisjoint(ids) and met.isdisjoint(ids)
        if templates[look_at] is None or not is_new:
            return index
        met |= ids
    return count


def _key_opcodes(keys: Sequence[Any]) -> tuple[Iterable[bytes], list[bytes]]:
    """Return the opcodes of strings without their puts, or of ints that are not negative.

    Those of each are in two parts.
    """
    if type(keys[0]) is int:
        return repeat(b"", len(keys)), list(map(int_opcode, keys))
    try:
        texts = list(map(str.encode, keys))
    except UnicodeEncodeError:
        texts = [key.encode("utf-8", "surrogatepass") for key in keys]
    lengths = list(map(len, texts))
    heads = {length: text_opcode(length) for length in set(lengths)}
    return map(heads.__getitem__, lengths), texts


class _Template:
    """Opcodes with gaps for storage keys of one length and for memo numbers, which go up by one.

    ``puts`` is how many memo numbers they take, ``key_puts`` and ``tensor_puts`` say which of these
    are of the keys and of the tensors.
    """

    def __init__(self, parts: Sequence[bytes | _Gap], key_nbytes: int, short: bool) -> None:
        text = bytearray()
        puts_at: list[int] = []
        self._keys_at: list[int] = []
        self.key_puts: list[int] = []
        self.tensor_puts: list[int] = []
        put = b"q\0" if short else b"r\0\0\0\0"
        for part in parts:
            if type(part) is bytes:
                text += part
            elif part is _KEY:
                text += text_opcode(key_nbytes)
                self.key_puts.append(len(puts_at))
                self._keys_at.append(len(text))
                text += bytes(key_nbytes)
            else:
                if part is _TENSOR_PUT:
                    self.tensor_puts.append(len(puts_at))
                puts_at.append(len(text) + 1)
                text += put
        self.puts = len(puts_at)
        self._key_nbytes = key_nbytes
        # As one little-endian number: the first memo number times ones in all gaps, and the
        # constant steps between them.
        ones = bytearray(len(text))
        for index, at in enumerate(puts_at):
            text[at] = index
            ones[at] = 1
        self._text = bytes(text)
        self._constant = int.from_bytes(text, "little")
        self._ones = int.from_bytes(ones, "little")
        self._puts_at = puts_at

    def one(self, first_key: int, begin: int) -> bytes:
        """Return the opcodes by the first storage key and the first memo number."""
        row = self._constant + begin * self._ones
        text = bytearray(row.to_bytes(len(self._text), "little"))
        for key, at in enumerate(self._keys_at, first_key):
            text[at : at + self._key_nbytes] = b"%d" % key
        return bytes(text)

    def rows(self, first_keys: Numbers, begins: Numbers) -> list[bytes]:
        """Return `one` for each, with puts of four bytes."""
        count = len(begins)
        if count < _COLUMNS_FROM:
            return list(map(self.one, first_keys.tolist(), begins.tolist()))
        made: list[bytes] = []
        tens = 10 ** np.arange(self._key_nbytes)[::-1]
        puts_at = np.add.outer(self._puts_at, range(4)).ravel()
        step = _COLUMNS_PUTS // self.puts
        for some in (slice(at, at + step) for at in range(0, count, step)):
            numbers = (begins[some, None] + np.arange(self.puts)).astype("<u4")
            table = np.empty((len(numbers), len(self._text)), np.uint8)
            table[:] = np.frombuffer(self._text, np.uint8)
            table[:, puts_at] = numbers.view(np.uint8)
            for index, at in enumerate(self._keys_at):
                digits = (first_keys[some, None] + index) // tens % 10
                table[:, at : at + self._key_nbytes] = ord("0") + digits
            made += table.view(f"V{len(self._text)}").ravel().tolist()
        return made
