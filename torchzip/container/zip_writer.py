"""Writes the zip archive that torch writes, byte for byte, as a stream.

See docs/format.md, section 2. Every record is stored, never compressed::

    local header        30 bytes: PK 03 04, version 0, flags 0x0808, then zeros, and the
                        lengths of name and extra data
    name                archive name + "/" + record name
    zip64 field         only if the size or the header's offset is >= 0xffffffff
    padding field       "FB", u16 length, "Z" * length: the record starts on a multiple
                        of the alignment, counted from the archive's first byte
    record
    data descriptor     PK 07 08, crc, compressed size, size; the sizes take 8 bytes each
                        if there is a zip64 field, else 4. An empty record has none,
                        and its flags are 0x0800

and at the end the central directory, the zip64 end record, its locator and the end record,
always all of them. All times are 0. The CRC follows the record, so the archive can be written to
a destination that cannot seek.

One quirk matters for the serialization id. torch's writer finds the CRCs for it by looking at
the bytes of each of its write calls: a call of 8 bytes or more that begins with PK 07 08 counts
as a descriptor. So a record, or an archive name, that begins with these bytes counts as well.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Sequence
from itertools import repeat
from typing import Any

import numpy as np
from numpy.typing import NDArray

from torchzip.container.serialization_id import serialization_id
from torchzip.container.zip_end import END_64_NBYTES, LAST_NBYTES, build_end
from torchzip.container.zip_layout import (
    BIG,
    CENTRAL,
    DESCRIPTOR,
    DESCRIPTOR_64,
    DESCRIPTOR_MAGIC,
    LOCAL,
)
from torchzip.files.crc import Crc32Meanwhile, crc32, crc32_short
from torchzip.files.sink import GapSink, Output
from torchzip.files.source import Buffer

# The same headers as rows of an array, for records without zip64 fields: only the
# fields that differ from one record to the next have names of their own.
_SMALL_LOCAL = LOCAL.pack(b"PK\3\4", 0, 0x0808, *(0,) * 8)
_LOCAL_ROW = [("local", "V26"), ("name", "<u2"), ("extra", "<u2")]
_SMALL_DESCRIPTOR = DESCRIPTOR.pack(DESCRIPTOR_MAGIC, 0, 0, 0)
_DESCRIPTOR_ROW = [("magic", "V4"), ("crc", "<u4"), ("compressed", "<u4"), ("size", "<u4")]
_SMALL_CENTRAL = CENTRAL.pack(b"PK\1\2", 0, 0, 0x0808, *(0,) * 13)
_CENTRAL_ROW = [
    ("central", "V16"), ("crc", "<u4"), ("compressed", "<u4"), ("size", "<u4"),
    ("name", "<u2"), ("zeros", "V12"), ("offset", "<u4"),
]  # fmt: skip
#: An upper bound for the headers of such a record, without its padding.
_SMALL_AROUND = 1 << 10

#: Fewer records are as fast one by one.
_FEW = 12

#: The padding field has a u16 length, and shares the u16 length of all extra data with a
#: zip64 field of up to 28 bytes.
MAX_ALIGNMENT = 0xFFFF - 4 - 28 + 1

#: Writes smaller than the second number are joined into writes of about the first.
_COALESCE_NBYTES = 1 << 20
_DIRECT_NBYTES = 1 << 16
#: Small records are joined to about this size: memory for more is mapped again each time, which
#: takes longer than what fewer steps save.
_JOINED_NBYTES = 1 << 19
#: The CRC of buffers of this size or more is computed while they are written.
_MEANWHILE_NBYTES = 1 << 22


class ZipWriter:
    """Writes records to a Sink in the order in which they come.

    ``root`` is the archive name. With ``crc32=False`` every CRC field is 0, as in torch
    under ``set_crc32_options(False)``. ``start`` is the number of bytes of the archive before the
    first one written here, if records are added to an archive.

    Small records are joined before they reach the sink; `flush` writes pending ones.
    """

    def __init__(
        self,
        sink: Output,
        root: str,
        *,
        alignment: int = 64,
        crc32: bool = True,
        start: int = 0,
    ) -> None:
        if isinstance(alignment, bool) or not isinstance(alignment, int):
            raise TypeError(f"alignment must be an int, not {type(alignment).__name__}")
        if not 1 <= alignment <= MAX_ALIGNMENT:
            raise ValueError(f"alignment must be from 1 to {MAX_ALIGNMENT}, not {alignment}")
        if root in ("", ".."):
            raise ValueError(
                f"{sink.name}: the file name before its last dot becomes the archive name, "
                f"and it is {root or 'empty'} here, which is not the name of a folder"
            )
        self.alignment = alignment
        self._sink = sink
        self._prefix = root.encode("utf-8", "surrogateescape") + b"/"
        self._with_crc = crc32
        self._pending: list[Buffer] = []
        self._pending_nbytes = 0
        #: Bytes from the archive's start to where the next byte goes.
        self.position = start
        self._names: list[bytes] = []
        self._seen: set[bytes] = set()
        self._id_crcs: list[int] = []
        #: The directory rows of the records written so far.
        self.rows: list[bytes] = []
        self._open: tuple[int, int, bytes] | None = None
        self._left = 0
        self._crc = 0
        self._first = b""  # the record's first bytes, for the quirk of the id
        self._computes = False

    def write_record(self, name: str, data: Buffer, *, crc: int | None = None) -> None:
        """Write a whole record. ``crc`` saves computing it."""
        view = memoryview(data).cast("B")
        self.begin_record(name, view.nbytes, crc=crc)
        if view.nbytes:
            self.write(view)
        self.end_record()

    def begin_record(self, name: str, nbytes: int, *, crc: int | None = None) -> int:
        """Begin a record of ``nbytes`` bytes, to be passed to `write`; return where it starts.

        ``crc`` saves computing it.
        """
        if self._open is not None:
            raise RuntimeError("the previous record is not finished")
        record = name.encode()
        if record in self._seen:
            raise ValueError(f"record {name} is written twice")
        self._seen.add(record)
        full = self._prefix + record
        header_offset = self.position
        zip64 = _zip64_field(nbytes, 0, header_offset)  # compressed size: not known yet
        start = header_offset + 30 + len(full) + len(zip64) + 4
        pad = -start % self.alignment
        flags = 0x0808 if nbytes else 0x0800
        extra = zip64 + _padding(pad)
        local = LOCAL.pack(b"PK\3\4", 0, flags, 0, 0, 0, 0, 0, 0, len(full), len(extra))
        self._put(local + full + extra)
        self._names.append(record)
        self._id_crcs += _descriptor_like(full)
        self._open = (header_offset, nbytes, full)
        self._left = nbytes
        self._computes = self._with_crc and crc is None
        self._crc = crc if crc is not None and self._with_crc else 0
        self._first = b""
        return self.position

    def write(self, data: Buffer) -> None:
        """Add bytes to the open record."""
        view = memoryview(data).cast("B")
        if self._open is None or view.nbytes > self._left:
            raise RuntimeError("more bytes than the record was begun with")
        if len(self._first) < 8:
            self._first += bytes(view[: 8 - len(self._first)])
        self._left -= view.nbytes
        if self._computes and view.nbytes >= _MEANWHILE_NBYTES:
            meanwhile = Crc32Meanwhile(view, self._crc)
            try:
                self._put(view)
            finally:
                self._crc = meanwhile.result()
            return
        if self._computes:
            self._crc = crc32(view, self._crc)
        self._put(view)

    def skip(self, nbytes: int, crc: int, first: bytes) -> None:
        """Skip all bytes of the open record, which the sink's file already has.

        ``crc`` is their CRC, and ``first`` the first 8 of them.
        """
        if self._open is None or nbytes != self._left or nbytes != self._open[1]:
            raise RuntimeError("only a whole record can be skipped")
        if not isinstance(self._sink, GapSink):
            raise RuntimeError("only a file can have gaps")
        self.flush()
        self._sink.skip(nbytes)
        self.position += nbytes
        self._left = 0
        self._crc = crc if self._with_crc else 0
        self._first = first

    def end_record(self) -> int:
        """Finish the record; return its CRC as stored."""
        if self._open is None:
            raise RuntimeError("no record is open")
        if self._left:
            raise RuntimeError(f"the record lacks {self._left} bytes")
        header_offset, nbytes, full = self._open
        self._open = None
        extra = _zip64_field(nbytes, nbytes, header_offset)
        if nbytes:
            self._id_crcs += [*_descriptor_like(self._first), self._crc]
            packer = DESCRIPTOR_64 if extra else DESCRIPTOR
            self._put(packer.pack(DESCRIPTOR_MAGIC, self._crc, nbytes, nbytes))
        flags = 0x0808 if nbytes else 0x0800
        size = min(nbytes, BIG)
        self.rows.append(
            CENTRAL.pack(
                b"PK\1\2", 0, 0, flags, 0, 0, 0, self._crc, size, size,
                len(full), len(extra), 0, 0, 0, 0, min(header_offset, BIG),
            )
            + full
            + extra
        )  # fmt: skip
        return self._crc

    def write_small_records(
        self,
        names: Sequence[bytes],
        contents: Sequence[bytes | NDArray[Any]],
        crcs: Sequence[int | None] | None = None,
    ) -> None:
        """Write whole records of some 100 KB at most, with all headers computed in one step.

        Writes the same bytes as `write_record` for each (a test compares them), which is used
        if names have several lengths. Records start on multiples of the alignment, so each start
        is the previous one plus the size, rounded up: a running sum gives all of them. ``crcs``
        are the known CRCs; None is computed. Arrays are contiguous, and give their bytes by the
        buffer protocol.
        """
        count = len(names)
        sizes = np.fromiter(
            [len(each) if isinstance(each, bytes) else each.nbytes for each in contents],
            np.int64, count,
        )  # fmt: skip
        if (
            count < _FEW
            or self._prefix.startswith(DESCRIPTOR_MAGIC)
            or not sizes.all()
            or self.position + int(sizes.sum()) + count * (_SMALL_AROUND + self.alignment) >= BIG
            or set(map(len, names)) != {len(names[0])}
            or len(set(names)) < count
            or not self._seen.isdisjoint(names)
        ):
            for name, data, crc in zip(names, contents, crcs or repeat(None), strict=False):
                whole = data if isinstance(data, bytes) else data.tobytes()
                self.write_record(name.decode(), whole, crc=crc)
            return
        length = len(self._prefix) + len(names[0])
        first = _round_up(self.position + 34 + length, self.alignment)
        steps = _round_up(sizes[:-1] + (50 + length), self.alignment)
        starts = first + np.concatenate([[0], np.cumsum(steps)])
        headers = np.concatenate([[self.position], starts[:-1] + sizes[:-1] + 16])
        pads = starts - headers - (34 + length)
        text = np.frombuffer(b"".join(names), f"V{len(names[0])}")
        full = [("root", f"V{len(self._prefix)}"), ("text", text.dtype)]
        head = self._prefix + names[0]
        # Between the bytes of two records: a descriptor, and a header up to its padding.
        between = np.frombuffer(
            bytearray((_SMALL_DESCRIPTOR + _SMALL_LOCAL + head) * count),
            [*_DESCRIPTOR_ROW, *_LOCAL_ROW, *full],
        )
        between["compressed"][1:] = between["size"][1:] = sizes[:-1]
        between["name"] = length
        between["extra"] = 4 + pads
        between["text"] = text
        row = np.frombuffer(bytearray((_SMALL_CENTRAL + head) * count), [*_CENTRAL_ROW, *full])
        row["compressed"] = row["size"] = sizes
        row["name"] = length
        row["offset"] = headers
        row["text"] = text
        gaps = pads.tolist()
        padding_of = {gap: _padding(gap) for gap in set(gaps)}
        paddings = list(map(padding_of.__getitem__, gaps))
        ends = starts + sizes
        all_found: list[int] = []
        at = 0
        while at < count:
            most = starts[at] + _JOINED_NBYTES
            stop = max(at + 1, int(np.searchsorted(ends, most, "right")))
            some = slice(at, stop)
            found = self._crcs_of(contents[some], crcs[some] if crcs is not None else None)
            all_found += found
            between["crc"][at + 1 : stop + 1] = found[: count - 1 - at]
            parts: list[Any] = [b""] * (3 * (stop - at))
            parts[0::3] = between[some].view(f"V{between.itemsize}").tolist()
            parts[1::3] = paddings[some]
            parts[2::3] = contents[some]
            if at == 0:
                parts[0] = parts[0][len(_SMALL_DESCRIPTOR) :]
            if stop == count:
                size = int(sizes[-1])
                parts.append(DESCRIPTOR.pack(DESCRIPTOR_MAGIC, found[-1], size, size))
            joined = b"".join(parts)
            self._add_id_crcs(joined, (starts[some] - self.position).tolist(), sizes[some], found)
            self._put(joined)
            at = stop
        row["crc"] = all_found
        self.rows.append(row.tobytes())
        self._seen.update(names)
        self._names += names

    def _crcs_of(
        self, contents: Sequence[bytes | NDArray[Any]], known: Sequence[int | None] | None
    ) -> list[int]:
        """Return the CRCs of records as they are stored."""
        if not self._with_crc:
            return [0] * len(contents)
        if known is None:
            return list(map(crc32_short, contents))
        pairs = zip(contents, known, strict=True)
        return [crc32_short(data) if crc is None else crc for data, crc in pairs]

    def _add_id_crcs(
        self, joined: bytes, starts: list[int], sizes: NDArray[np.int64], crcs: list[int]
    ) -> None:
        """Add the CRCs of records, which start at places of ``joined``, to those of the id."""
        if not any(map(joined.startswith, repeat(DESCRIPTOR_MAGIC), starts)):
            self._id_crcs += crcs
            return
        for start, size, crc in zip(starts, sizes.tolist(), crcs, strict=True):
            self._id_crcs += [*_descriptor_like(joined[start : start + min(size, 8)]), crc]

    def finish(self) -> None:
        """Write the records ``version`` and ``.data/serialization_id`` and the directory."""
        self.write_record("version", b"3\n")
        digits = serialization_id(self._names, self._id_crcs)
        self.write_record(".data/serialization_id", digits.encode())
        offset = self.position
        self._put(b"".join(self.rows))
        nbytes = self.position - offset
        if nbytes >= BIG:
            raise ValueError("the central directory would reach 4 GiB")
        self._put(build_end(len(self._names), nbytes, offset))
        self.flush()

    def _put(self, data: Buffer) -> None:
        nbytes = len(data)
        self.position += nbytes
        if nbytes >= _DIRECT_NBYTES:
            self.flush()
            self._sink.write(data)
            return
        # A view may be of memory that its owner reuses after this call.
        self._pending.append(bytes(data) if type(data) is memoryview else data)
        self._pending_nbytes += nbytes
        if self._pending_nbytes >= _COALESCE_NBYTES:
            self.flush()

    def flush(self) -> None:
        """Write pending bytes to the sink."""
        if self._pending:
            joined = b"".join(self._pending)
            self._pending.clear()
            self._pending_nbytes = 0
            self._sink.write(joined)


def _descriptor_like(data: bytes) -> list[int]:
    """Return the CRC that torch finds at the beginning of a write call, if it finds one."""
    if len(data) >= 8 and data.startswith(DESCRIPTOR_MAGIC):
        return [int.from_bytes(data[4:8], "little")]
    return []


def _zip64_values(nbytes: int, compressed: int, header_offset: int) -> list[int]:
    """Return what does not fit into 32 bits."""
    values = [nbytes, compressed] if nbytes >= BIG else []
    return [*values, header_offset] if header_offset >= BIG else values


def _zip64_field(nbytes: int, compressed: int, header_offset: int) -> bytes:
    """Return the zip64 field of a header, which has that."""
    values = _zip64_values(nbytes, compressed, header_offset)
    return struct.pack(f"<HH{len(values)}Q", 1, 8 * len(values), *values) if values else b""


def _padding(pad: int) -> bytes:
    """Return the padding field of ``pad`` bytes."""
    return b"FB" + pad.to_bytes(2, "little") + b"Z" * pad


def _round_up(value: Any, step: int) -> Any:
    return -(-value // step) * step


def measure(
    root: str, records: Sequence[tuple[int, int]], alignment: int = 64
) -> tuple[list[int], int]:
    """Return where each record of an archive will start, and the size of the archive.

    ``records`` are the lengths of name and content of each record before `ZipWriter.finish`, in
    order. Not for archives whose directory reaches 4 GiB.
    """
    prefix = len(root.encode("utf-8", "surrogateescape")) + 1
    starts = []
    position = directory = 0
    for name, nbytes in [*records, (len("version"), 2), (len(".data/serialization_id"), 40)]:
        values = _zip64_values(nbytes, nbytes, position)
        zip64 = 4 + 8 * len(values) if values else 0
        start = position + 30 + prefix + name + zip64 + 4
        start += -start % alignment
        starts.append(start)
        directory += 46 + prefix + name + zip64
        descriptor = DESCRIPTOR_64.size if zip64 else DESCRIPTOR.size
        position = start + nbytes + (descriptor if nbytes else 0)
    return starts[: len(records)], position + directory + END_64_NBYTES + LAST_NBYTES


def archive_name(file: object) -> str:
    """Return the archive name that torch would use for a destination.

    For a path of ASCII characters, its last component without its last suffix; for any
    other path, and for a file object, ``archive``.

    >>> archive_name("weights/model.v1.tar.gz"), archive_name("x"), archive_name(object())
    ('model.v1.tar', 'x', 'archive')
    """
    if not isinstance(file, str | os.PathLike):
        return "archive"
    path = os.fsdecode(os.fspath(file))
    if not path.isascii():
        return "archive"
    name = path.replace("\\", "/").rpartition("/")[2]
    stem, dot, _ = name.rpartition(".")
    return stem if dot else name
