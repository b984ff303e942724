"""Many new arrays at once: the opcodes of each as one row, worked out for all in one step.

A state dict has thousands of entries that differ in little: a name, an array that shares its
memory with no other, a storage key, and memo numbers that go up by one from put to put. So the
opcodes from one name's put to its tensor's are the same bytes for every array of a dtype and a
shape, with gaps for the key and the numbers. A `_Template` has those bytes and fills the gaps: for
many arrays of one shape as columns of a numpy array, for a few as one large integer.

Equal to writing the pairs one by one, byte for byte (a test compares them).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from torchzip.pickling.emitter import Emitter
from torchzip.tensors.reduce import (
    Prefix,
    StorageKeys,
    int_opcode,
    ints_opcodes,
    name_opcode,
)
from torchzip.tensors.specs import contiguous_stride
from torchzip.tensors.storage import ArrayStorage

Array = NDArray[Any]
Numbers = NDArray[np.int64]
What = tuple[str, tuple[int, ...]]  # dtype and shape

#: A name, a key, a persistent id, size, stride, hooks, arguments and the tensor.
_MOST_PUTS = 8
#: From so many arrays of one shape on, numpy's columns are quicker than integers.
_COLUMNS_FROM = 8


class ArrayRows:
    """Writes runs of pairs of a new string and an array that stands alone.

    ``alone`` maps the ids of such arrays to their torch dtypes; ``prefixes`` is what
    tensors of a dtype begin with, for those dtypes whose names have memo numbers by now.
    """

    def __init__(
        self, keys: StorageKeys, prefixes: Mapping[str, Prefix], alone: Mapping[int, str]
    ) -> None:
        self._keys = keys
        self._prefixes = prefixes
        self._alone = alone
        # By the length of the storage key and of the puts, then by dtype and shape.
        self._templates: dict[tuple[int, bool], dict[What, _Template]] = {}

    def __call__(self, emitter: Emitter, pairs: Sequence[tuple[Any, Any]], start: int) -> int:
        """Write pairs from ``start`` up to the first that is something else; return how many."""
        stop = len(pairs)
        if emitter.count < 256:  # as many as have short puts; those of the next begin short
            stop = min(stop, start + (256 - emitter.count) // _MOST_PUTS)
        # And as many as have keys of one length.
        first_key = len(self._keys.order)
        key_nbytes = len(str(first_key))
        stop = min(stop, start + 10**key_nbytes - first_key)
        if start >= stop:
            return 0
        names = [name for name, _ in pairs[start:stop]]
        arrays = [array for _, array in pairs[start:stop]]
        array_ids = list(map(id, arrays))
        dtypes = list(map(self._alone.get, array_ids))
        name_ids = list(map(id, names))
        count = self._ordinary(emitter, names, name_ids, array_ids, dtypes)
        if count:
            shapes = [array.shape for array in arrays[:count]]
            whats = list(zip(dtypes, shapes, strict=False))
            bounds = self._write(emitter, names[:count], whats, first_key, key_nbytes)
            emitter.memo.update(zip(name_ids, bounds[:-1].tolist(), strict=False))
            emitter.memo.update(zip(array_ids, (bounds[1:] - 1).tolist(), strict=False))
            emitter.count = int(bounds[-1])
            self._keys.order += map(ArrayStorage, arrays[:count], dtypes)
        return count

    def _ordinary(
        self,
        emitter: Emitter,
        names: Sequence[Any],
        name_ids: list[int],
        array_ids: list[int],
        dtypes: list[str | None],
    ) -> int:
        """Return how many pairs from the first on are a new string and a new array of the table."""
        known = self._prefixes.keys()
        memo = emitter.memo.keys()
        if (
            known >= set(dtypes)
            and set(map(type, names)) == {str}
            and memo.isdisjoint(name_ids)
            and memo.isdisjoint(array_ids)
            # a stranger's iterator may give an object twice
            and len({*name_ids, *array_ids}) == 2 * len(names)
        ):
            return len(names)
        met: set[int] = set()
        for count, name in enumerate(names):
            ids = {name_ids[count], array_ids[count]}
            if (
                dtypes[count] not in known
                or type(name) is not str
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
        whats: list[Any],
        first_key: int,
        key_nbytes: int,
    ) -> Numbers:
        """Write the pairs; return the memo numbers where each begins, and where the last ends."""
        count = len(names)
        short = emitter.count < 256
        templates = self._templates.setdefault((key_nbytes, short), {})
        groups = {what: index for index, what in enumerate(dict.fromkeys(whats))}
        for what in groups:
            if what not in templates:
                templates[what] = _Template(self._prefixes[what[0]], what, key_nbytes, short)
        used = [templates[what] for what in groups]
        try:
            texts = list(map(str.encode, names))
        except UnicodeEncodeError:
            texts = [name.encode("utf-8", "surrogatepass") for name in names]
        # What follows a row is the head of the next name, which thus is part of the row.
        nbytes = np.zeros(count, np.int64)
        nbytes[:-1] = np.fromiter(map(len, texts[1:]), np.int64, count - 1)
        bounds = np.full(count + 1, emitter.count, np.int64)
        keys = np.arange(first_key, first_key + count)
        if len(groups) == 1:
            bounds[1:] += used[0].puts * np.arange(1, count + 1)
            rows = used[0].rows(keys, bounds[:-1], nbytes)
        else:
            group = np.fromiter(map(groups.__getitem__, whats), np.int64, count)
            bounds[1:] += np.cumsum(np.array([template.puts for template in used])[group])
            rows = [b""] * count
            for index, template in enumerate(used):
                members = np.flatnonzero(group == index)
                made = template.rows(keys[members], bounds[members], nbytes[members])
                for member, row in zip(members.tolist(), made, strict=True):
                    rows[member] = row
        rows[-1] = rows[-1][: -len(_NO_NAME)]
        parts = [b""] * (2 * count)
        parts[0::2] = texts
        parts[1::2] = rows
        emitter.write(name_opcode(len(texts[0])) + b"".join(parts))
        return bounds


_NO_NAME = name_opcode(0)


class _Template:
    """The opcodes from a name's put to the head of the next name, for a new storage, with gaps.

    ``puts`` is how many memo numbers they take.
    """

    def __init__(self, prefix: Prefix, what: What, key_nbytes: int, short: bool) -> None:
        _, shape = what
        begin, location, hooks = prefix
        key_head = name_opcode(key_nbytes)
        pieces = [  # what stands before each put
            b"",
            begin + key_head + bytes(key_nbytes),
            location + int_opcode(math.prod(shape)) + b"t",
            b"QK\0" + ints_opcodes(shape),
            ints_opcodes(contiguous_stride(shape)),
            b"\x89" + hooks,
            b"t",
            b"R",
        ]
        if not shape:  # two empty tuples have no puts
            pieces[3:6] = [b"".join(pieces[3:6])]
        text = b""
        places = []  # where the memo numbers go
        for piece in pieces:
            text += piece + (b"q" if short else b"r")
            places.append(len(text))
            text += bytes(1 if short else 4)
        text += _NO_NAME
        self.puts = len(pieces)
        self._text = text
        self._key_at = 1 + (1 if short else 4) + len(begin) + len(key_head)
        self._key_nbytes = key_nbytes
        # As columns: fields at those places.
        number = "u1" if short else "<u4"
        fields = {
            **{f"put {index}": (number, place) for index, place in enumerate(places)},
            **{f"digit {index}": ("u1", self._key_at + index) for index in range(key_nbytes)},
            "name": ("<u4", len(text) - 4),
        }
        formats, offsets = zip(*fields.values(), strict=True)
        self._row = np.dtype(
            {"names": [*fields], "formats": formats, "offsets": offsets, "itemsize": len(text)}
        )
        # As one little-endian number: memo numbers are consecutive, so the first of them times
        # ones in all gaps, and the constant steps between them.
        steps = sum(index << 8 * place for index, place in enumerate(places))
        self._constant = int.from_bytes(text, "little") + steps
        self._ones = sum(1 << 8 * place for place in places)

    def rows(self, keys: Numbers, begins: Numbers, name_nbytes: Numbers) -> list[bytes]:
        """Return rows by their storage keys, first memo numbers and the bytes of the next names."""
        if len(keys) >= _COLUMNS_FROM:
            return self._as_columns(keys, begins, name_nbytes)
        return [
            self._as_number(*numbers)
            for numbers in zip(keys.tolist(), begins.tolist(), name_nbytes.tolist(), strict=True)
        ]

    def _as_number(self, key: int, begin: int, name_nbytes: int) -> bytes:
        nbytes = len(self._text)
        row = self._constant + begin * self._ones + (name_nbytes << 8 * (nbytes - 4))
        row += int.from_bytes(str(key).encode(), "little") << 8 * self._key_at
        return row.to_bytes(nbytes, "little")

    def _as_columns(self, keys: Numbers, begins: Numbers, name_nbytes: Numbers) -> list[bytes]:
        table = np.frombuffer(bytearray(self._text * len(keys)), self._row)
        for index in range(self.puts):
            table[f"put {index}"] = begins + index
        for index in range(self._key_nbytes):
            digits = keys // 10 ** (self._key_nbytes - 1 - index) % 10
            table[f"digit {index}"] = ord("0") + digits
        table["name"] = name_nbytes
        rows: list[bytes] = table.view(f"V{len(self._text)}").tolist()
        return rows
