"""Many new tensors at once: the opcodes of each as one row, worked out for all in one step.

A state dict has thousands of entries that differ in little: a name, a tensor that shares its
memory with no other, a storage key, and memo numbers that go up by one from put to put. So the
opcodes from one name's put to its tensor's are the same bytes for every tensor of a `Form`, with
gaps for the key and the numbers. A `_Template` has those bytes and fills the gaps: for many tensors
of one form as columns of a numpy array, for one or a few as one large integer.

Equal to writing the pairs one by one, byte for byte (a test compares them).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from torchzip.pickling.emitter import Emitter
from torchzip.pickling.opcodes import get_opcode, put_opcode, text_opcode
from torchzip.tensors.memory import Form
from torchzip.tensors.reduce import (
    DenseWriter,
    Prefix,
    StorageKeys,
    Stored,
    int_opcode,
    ints_opcodes,
)

Numbers = NDArray[np.int64]

#: A name, a key, a persistent id, size, stride, hooks, arguments and the tensor; for a parameter
#: its hooks, its arguments and itself.
_MOST_PUTS = 11
#: From so many tensors of one form on, numpy's columns are quicker than integers.
_COLUMNS_FROM = 8
#: So many pairs make a run: fewer are as quick one by one.
_LEAST_PAIRS = 24
_MOST_PAIRS = 1000


@dataclass(eq=False)
class ArrayRows:
    """Writes tensors that stand alone: runs of pairs of a new string and such a tensor, or one.

    ``forms`` maps the ids of such tensors to their forms; ``storages`` has what is stored for
    those that are not arrays.
    """

    keys: StorageKeys
    dense: DenseWriter
    forms: Mapping[int, Form]
    storages: Mapping[int, Stored]

    def __post_init__(self) -> None:
        # By the length of the storage key and of the puts, then by form.
        self._templates: dict[tuple[int, bool], dict[Form, _Template]] = {}
        # Where runs end early, the next ones are looked for in fewer pairs.
        self._window = _MOST_PAIRS

    def __call__(self, emitter: Emitter, pairs: Sequence[tuple[Any, Any]], start: int) -> int:
        """Write pairs from ``start`` up to the first that is something else; return how many."""
        stop = min(len(pairs), start + self._window)
        if emitter.count < 256:  # as many as have short puts; those of the next begin short
            stop = min(stop, start + (256 - emitter.count) // _MOST_PUTS)
        # And as many as have keys of one length.
        first_key = len(self.keys.order)
        key_nbytes = len(str(first_key))
        stop = min(stop, start + 10**key_nbytes - first_key)
        form = self.forms.get(id(pairs[start][1]))
        short = emitter.count < 256
        if (
            form is None
            or stop - start < _LEAST_PAIRS
            or self._template(emitter, form, key_nbytes, short) is None
        ):
            return 0
        names, values = zip(*pairs[start:stop], strict=True)
        name_ids = list(map(id, names))
        value_ids = list(map(id, values))
        found = list(map(self.forms.get, value_ids))
        templates = {
            form: self._template(emitter, form, key_nbytes, short)
            for form in dict.fromkeys(found)
            if form is not None
        }
        count = self._ordinary(emitter, names, name_ids, value_ids, found, templates)
        self._window = min(max(_LEAST_PAIRS, 2 * count), _MOST_PAIRS)
        if count < _LEAST_PAIRS:
            return 0
        forms: list[Any] = found[:count]
        storages: list[Any] | None = None
        if self.storages:
            storages = list(map(self.storages.get, value_ids[:count], values))
            if not self.keys.are_new(storages):
                self._window = _LEAST_PAIRS
                return 0
        bounds = self._write(emitter, names[:count], forms, templates, first_key)
        emitter.memo.update(zip(name_ids, bounds[:-1].tolist(), strict=False))
        emitter.memo.update(zip(value_ids, (bounds[1:] - 1).tolist(), strict=False))
        emitter.count = int(bounds[-1])
        if storages is None:  # nobody else mentions those of arrays
            self.keys.order += values[:count]
        else:
            keys = self.keys.add(storages)
            begins = bounds[:-1].tolist()
            emitter.memo.update(
                (id(key), begin + 1) for key, begin in zip(keys, begins, strict=True)
            )
        return count

    def one(self, emitter: Emitter, value: Any) -> bool:
        """Write a tensor that has no number yet, with its put; return False if it has no row."""
        form = self.forms.get(id(value))
        if form is None:
            return False
        begin, order = emitter.count, self.keys.order
        short = begin < 256
        if short and begin + _MOST_PUTS > 256:
            return False
        key = str(len(order))
        template = self._template(emitter, form, len(key), short)
        if template is None:
            return False
        storage = self.storages.get(id(value)) if self.storages else None
        if storage is None:
            order.append(value)
        elif self.keys.are_new([storage]):
            emitter.memo[id(self.keys.add([storage])[0])] = begin
        else:
            return False
        emitter.write(template.one(key, begin))
        emitter.count = begin + template.puts
        emitter.memo[id(value)] = begin + template.puts - 1
        return True

    def _template(
        self, emitter: Emitter, form: Form, key_nbytes: int, short: bool
    ) -> _Template | None:
        """Return the template of a form; None as long as what it mentions has no numbers."""
        templates = self._templates.setdefault((key_nbytes, short), {})
        template = templates.get(form)
        if template is None:
            prefix = self.dense.prefix(emitter, form.torch_dtype)
            call = b""
            if form.parameter is not None:
                number = emitter.memo.get(("torch._utils", "_rebuild_parameter"))
                if number is None:
                    return None
                call = get_opcode(number)
            if prefix is None:
                return None
            template = templates[form] = _Template(call, prefix, form, key_nbytes, short)
        return template

    def _ordinary(
        self,
        emitter: Emitter,
        names: Sequence[Any],
        name_ids: list[int],
        value_ids: list[int],
        forms: list[Form | None],
        templates: dict[Form, _Template | None],
    ) -> int:
        """Return how many pairs from the first on are a new string and a new tensor of a row."""
        memo = emitter.memo.keys()
        ids = {*name_ids, *value_ids}
        if (
            len(ids) == 2 * len(names)  # a stranger's iterator may give an object twice
            and memo.isdisjoint(ids)
            and set(map(type, names)) == {str}
            and None not in forms
            and None not in templates.values()
        ):
            return len(names)
        met: set[int] = set()
        for count, form in enumerate(forms):
            ids = {name_ids[count], value_ids[count]}
            if (
                form is None
                or templates[form] is None
                or type(names[count]) is not str
                or not memo.isdisjoint(ids)
                or not met.isdisjoint(ids)
            ):
                return count
            met |= ids
        return len(names)

    def _write(
        self,
        emitter: Emitter,
        names: Sequence[str],
        forms: list[Form],
        templates: Mapping[Form, _Template | None],
        first_key: int,
    ) -> Numbers:
        """Write the pairs; return the memo numbers where each begins, and where the last ends."""
        count = len(names)
        used = {form: template for form, template in templates.items() if template is not None}
        try:
            texts = list(map(str.encode, names))
        except UnicodeEncodeError:
            texts = [name.encode("utf-8", "surrogatepass") for name in names]
        # What follows a row is the head of the next name, which thus is part of the row.
        nbytes = np.zeros(count, np.int64)
        nbytes[:-1] = np.fromiter(map(len, texts[1:]), np.int64, count - 1)
        bounds = np.full(count + 1, emitter.count, np.int64)
        keys = np.arange(first_key, first_key + count)
        if len(used) == 1:
            (template,) = used.values()
            bounds[1:] += (1 + template.puts) * np.arange(1, count + 1)
            rows = template.rows(keys, bounds[:-1], nbytes)
        else:
            place = {form: index for index, form in enumerate(used)}
            group = np.fromiter(map(place.__getitem__, forms), np.int64, count)
            puts = np.array([1 + template.puts for template in used.values()])
            bounds[1:] += np.cumsum(puts[group])
            rows = [b""] * count
            for index, template in enumerate(used.values()):
                members = np.flatnonzero(group == index)
                made = template.rows(keys[members], bounds[members], nbytes[members])
                for member, row in zip(members.tolist(), made, strict=True):
                    rows[member] = row
        rows[-1] = rows[-1][: -len(_NO_NAME)]
        parts = [b""] * (2 * count)
        parts[0::2] = texts
        parts[1::2] = rows
        emitter.write(text_opcode(len(texts[0])) + b"".join(parts))
        return bounds


_NO_NAME = text_opcode(0)


class _Template:
    """The opcodes of a tensor on a new storage up to its put, with gaps.

    ``puts`` is how many memo numbers they take. A row is those opcodes, the put of a name before
    them and the head of the next name after them.
    """

    def __init__(
        self, call: bytes, prefix: Prefix, form: Form, key_nbytes: int, short: bool
    ) -> None:
        begin, location, hooks = prefix
        begin = call + begin
        key_head = text_opcode(key_nbytes)
        pieces = [  # the bytes before each put
            begin + key_head + bytes(key_nbytes),
            location + int_opcode(form.numel) + b"t",
            b"Q" + int_opcode(form.storage_offset) + ints_opcodes(form.shape),
            ints_opcodes(form.stride),
            b"\x89" + hooks,
            b"t",
            b"R",
        ]
        if not form.shape:  # two empty tuples have no puts
            pieces[2:5] = [b"".join(pieces[2:5])]
        if form.parameter is not None:
            pieces += [(b"\x88" if form.parameter else b"\x89") + hooks, b"\x87", b"R"]
        text = b""
        places = []  # where the memo numbers go
        for piece in pieces:
            text += piece + (b"q" if short else b"r")
            places.append(len(text))
            text += bytes(1 if short else 4)
        self.puts = len(pieces)
        self._text = text
        self._key_at = len(begin) + len(key_head)
        self._key_nbytes = key_nbytes
        # As one little-endian number: memo numbers are consecutive, so the first of them times
        # ones in all gaps, and the constant steps between them.
        steps = sum(index << 8 * place for index, place in enumerate(places))
        self._constant = int.from_bytes(text, "little") + steps
        self._ones = sum(1 << 8 * place for place in places)
        self._places = places
        self._short = short
        self._row: np.dtype[np.void] | None = None

    def one(self, key: str, begin: int) -> bytes:
        """Return the opcodes by the storage key and the first memo number."""
        row = self._constant + begin * self._ones
        row += int.from_bytes(key.encode(), "little") << 8 * self._key_at
        return row.to_bytes(len(self._text), "little")

    def rows(self, keys: Numbers, begins: Numbers, name_nbytes: Numbers) -> list[bytes]:
        """Return rows by their storage keys, first memo numbers and the bytes of the next names."""
        if len(keys) >= _COLUMNS_FROM:
            return self._as_columns(keys, begins, name_nbytes)
        return [
            put_opcode(begin) + self.one(str(key), begin + 1) + text_opcode(nbytes)
            for key, begin, nbytes in zip(
                keys.tolist(), begins.tolist(), name_nbytes.tolist(), strict=True
            )
        ]

    def _as_columns(self, keys: Numbers, begins: Numbers, name_nbytes: Numbers) -> list[bytes]:
        text = b"q\0" if self._short else b"r\0\0\0\0"
        before = len(text)
        text += self._text + _NO_NAME
        if self._row is None:
            number = "u1" if self._short else "<u4"
            puts = [1, *(before + place for place in self._places)]
            key_at = before + self._key_at
            fields = {
                **{f"put {index}": (number, place) for index, place in enumerate(puts)},
                **{f"digit {at}": ("u1", key_at + at) for at in range(self._key_nbytes)},
                "name": ("<u4", len(text) - 4),
            }
            formats, offsets = zip(*fields.values(), strict=True)
            self._row = np.dtype(
                {"names": [*fields], "formats": formats, "offsets": offsets, "itemsize": len(text)}
            )
        table = np.frombuffer(bytearray(text * len(keys)), self._row)
        for index in range(self.puts + 1):
            table[f"put {index}"] = begins + index
        for index in range(self._key_nbytes):
            digits = keys // 10 ** (self._key_nbytes - 1 - index) % 10
            table[f"digit {index}"] = ord("0") + digits
        table["name"] = name_nbytes
        rows: list[bytes] = table.view(f"V{len(text)}").tolist()
        return rows
