"""Reads the records of a zip archive (docs/format.md, sections 2 and 4).

If two readers disagree about an archive, an attacker can show each of them other content. So
everything that allows two readings is refused: more than one plausible end (`zip_end`), names that
are equal or differ only in ASCII case, names that some readers cut, normalise (`record_index`) or
replace (`zip_extra`), entries that overlap or lie outside, wrong counts, and local headers that
disagree with the directory in name, method, encryption or sizes.

The directory is parsed in one vectorised step, 100,000 entries in tens of milliseconds: its
signatures are found in the bytes, all headers are gathered into one structured array,
and the lengths must lead from each header to the next. If they do not, because a
name contains a signature or the directory is broken, a plain loop reads it and reports what is
wrong where.

Sizes come from the directory: torch writes zeros into the local headers and a descriptor after
the data. Any other number there must be the directory's. Data starts at local header + 30 + the two
lengths *of the local header*, which differ from those in the directory. A CRC of 0 means "not
computed".
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from functools import cached_property, partial
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from torchzip.container.inflating import MAX_RATIO, inflate_span
from torchzip.container.record_index import (
    RecordIndex,
    check_name,
    index_fast,
    index_plainly,
    shown_name,
)
from torchzip.container.zip_end import find_end
from torchzip.container.zip_extra import (
    UNICODE_PATH,
    ZIP64,
    Field,
    all_fields,
    check_path,
    uncap,
    zip64_sizes,
)
from torchzip.container.zip_layout import BIG, DEFLATED, LOCAL, STORED
from torchzip.errors import ArchiveError, ErrorPlace, LimitError, TorchZipError, UnsupportedError
from torchzip.files.crc import crc32, wrong_crc
from torchzip.files.source import Source
from torchzip.limits import Limits

_CENTRAL = np.dtype(
    [
        ("signature", "<u4"), ("made_by", "<u2"), ("needed", "<u2"), ("flags", "<u2"),
        ("method", "<u2"), ("time", "<u2"), ("date", "<u2"), ("crc", "<u4"),
        ("compressed", "<u4"), ("size", "<u4"), ("name", "<u2"), ("extra", "<u2"),
        ("comment", "<u2"), ("disk", "<u2"), ("internal", "<u2"), ("external", "<u4"),
        ("offset", "<u4"),
    ]
)  # fmt: skip


#: torch aligns the bytes of a record to a multiple of this.
_ALIGNMENT = 64


#: Bytes that inflated records may have in any case, however small the file; and the memory that a
#: byte of a pickle can take, if it makes an empty list.
_FREE_NBYTES = 64 << 20
_IN_MEMORY = 8


class Entry(NamedTuple):
    """One row of the central directory. ``name`` is the record's, without the archive name."""

    name: str
    nbytes: int
    compressed_nbytes: int
    crc: int
    method: int
    flags: int
    header_offset: int
    end: int  # where the next record or the directory begins


class ZipReader:
    """The records of an archive that fills a Source.

    ``root`` is the archive name, ``end`` describes the end records; iterating gives the record
    names in directory order. With ``in_folder=False`` the records need not be in one folder and
    ``root`` is empty. This is for archives of Python's ``zipfile``, such as the oldest .pt2 files.

    Raises
    ------
    ArchiveError
        If the archive is broken or could be read in more than one way.
    UnsupportedError
        If it is encrypted, split over several disks, or uses another method than
        stored and deflate.
    """

    def __init__(self, source: Source, limits: Limits, *, in_folder: bool = True) -> None:
        self.source = source
        self._limits = limits
        self._in_folder = in_folder
        self._data_offsets: dict[str, int] = {}
        with ErrorPlace(path=source.name):
            self.end = find_end(source, limits)
            self.root, self._index, self._table = self._parse_directory(*self.end.directory)
        self._sizes, self._compressed, self._crcs, self._methods, *_ = self._table

    # -- the directory ---------------------------------------------------------------

    def _parse_directory(
        self, start: int, nbytes: int, count: int
    ) -> tuple[str, RecordIndex, NDArray[np.int64]]:
        """Return the archive name, the rows by name, and a table with a column for each row."""
        data = bytes(self.source.read_at(start, nbytes))
        if count == 0:
            raise ArchiveError("the archive has no record; a checkpoint has at least data.pkl")
        places = _chain(data, count, start)
        header = _gather(data, places)
        sizes = header["size"].astype(np.int64)
        compressed = header["compressed"].astype(np.int64)
        offsets = header["offset"].astype(np.int64)
        name_lengths = header["name"].astype(np.int64)
        capped = (sizes == BIG) | (compressed == BIG) | (offsets == BIG)
        for index in np.flatnonzero(capped).tolist():
            row = _read_zip64(data, int(places[index]), header[index], start)
            sizes[index], compressed[index], offsets[index] = row
        self._check_headers(header, start, places)
        _check_paths(data, header, start, places)
        ends = self._check_extents(offsets, compressed, name_lengths, start)
        root, slash, _ = data[46 : 46 + int(name_lengths[0])].partition(b"/")
        if not self._in_folder:
            root = slash = b""
        elif not slash:
            raise ArchiveError(
                f"the first record is called {shown_name(root)}; the records of a checkpoint "
                "lie in one directory"
            )
        prefix = root + slash
        if prefix != b"./":  # of a file called ..pt; the names are unambiguous all the same
            check_name(prefix)
        begins = places + 46
        _check_prefix(data, begins, name_lengths, prefix, start)
        records = index_fast(data, begins + len(prefix), begins + name_lengths)
        if records is None:
            records = index_plainly(data, begins + len(prefix), begins + name_lengths)
        table = np.array([
            sizes, compressed, header["crc"], header["method"], header["flags"], offsets, ends
        ], np.int64)  # fmt: skip
        return root.decode("utf-8", "surrogateescape"), records, table

    def _check_headers(
        self, header: NDArray[np.void], start: int, places: NDArray[np.int64]
    ) -> None:
        flags, method = header["flags"], header["method"]
        # torch takes such a record for a folder, and returns uninitialised memory as its bytes.
        folders = (header["external"] & 0x10 != 0) & (header["compressed"] != 0)
        refused: list[tuple[NDArray[Any], type[TorchZipError], str]] = [
            # The flags are: encrypted, strongly, with masked headers.
            (flags & 0x2041, UnsupportedError, "the archive is encrypted; decrypt it first"),
            (
                flags & 0x20,
                UnsupportedError,
                "a record is a patch for another file (flag bit 5), which neither torch nor "
                "torchzip reads",
            ),
            (
                (method != STORED) & (method != DEFLATED),
                UnsupportedError,
                "a record is compressed with method {method}; only stored (0) and deflate (8) are "
                "used in checkpoints",
            ),
            (header["disk"], ArchiveError, "a record lies on another disk"),
            (folders, ArchiveError, "a record with bytes in it is a folder by its attributes"),
        ]
        for found, error, message in refused:
            rows = np.flatnonzero(found)
            if len(rows):
                row = int(rows[0])
                raise error(message.format(method=method[row]), offset=start + int(places[row]))

    def _check_extents(
        self,
        offsets: NDArray[np.int64],
        compressed: NDArray[np.int64],
        name_lengths: NDArray[np.int64],
        directory: int,
    ) -> NDArray[np.int64]:
        """Refuse records that overlap or reach into the directory; return where each must end.

        A record takes at least its local header, name and bytes.
        """
        order = np.argsort(offsets, kind="stable")
        begins = offsets[order]
        # Each number can be up to 2**63; compare before adding.
        outside = np.flatnonzero((offsets > directory) | (compressed > directory))
        if len(outside):
            raise ArchiveError(
                f"a record of {int(compressed[outside[0]]):,} bytes at byte "
                f"{int(offsets[outside[0]]):,} does not lie before the directory",
                offset=directory,
            )
        ends = begins + 30 + name_lengths[order] + compressed[order]
        limits = np.append(begins[1:], directory)
        bad = np.flatnonzero(ends > limits)
        if len(bad):
            raise ArchiveError(
                f"the record at byte {int(begins[bad[0]]):,} reaches to byte "
                f"{int(ends[bad[0]]):,}, into what begins at byte {int(limits[bad[0]]):,}",
                offset=int(begins[bad[0]]),
            )
        result = np.empty(len(order), np.int64)
        result[order] = limits
        return result

    # -- records -----------------------------------------------------------------------

    def entry(self, name: str) -> Entry:
        """Return the row of a record, or raise ArchiveError."""
        row = self._index.find(name)
        if row is None:
            raise self._broken(name, "the archive has no record of this name")
        return Entry(name, *self._table[:, row].tolist())

    def _broken(self, name: str, message: str) -> ArchiveError:
        return _broken(self.source, name, message)

    @property
    def _folder(self) -> bytes:
        return f"{self.root}/".encode("utf-8", "surrogateescape") if self._in_folder else b""

    def size_of(self, name: str) -> tuple[int, int, int]:
        """Return size, CRC and method of a record; a stored one really has that size."""
        entry = self.entry(name)
        if entry.method == STORED:
            self._stored_nbytes(entry)
        return entry.nbytes, entry.crc, entry.method

    def crcs_of(self, keys: list[str], nbytes: NDArray[np.int64]) -> list[int] | None:
        """Return the CRCs of the records ``data/<key>``, if all are stored and have these sizes.

        None if one of them does not, or is missing; `size_of` reports which.
        """
        rows = self._index.find_keys(keys)
        if rows is None:
            return None
        sizes = self._sizes[rows]
        if (
            (sizes != nbytes).any()
            or (sizes != self._compressed[rows]).any()
            or (self._methods[rows] != STORED).any()
        ):
            return None
        crcs: list[int] = self._crcs[rows].tolist()
        return crcs

    def locate(self, record: str) -> tuple[Source, int]:
        """Return the Source and the offset of the bytes of a stored record."""
        return self.source, self._start_of(self._stored_entry(record))

    def alone(self, record: str) -> StoredRecord:
        """Return what locates one stored record, to be pickled."""
        return StoredRecord(self.source, self._folder, self._stored_entry(record))

    def _stored_entry(self, record: str) -> Entry:
        entry = self.entry(record)
        if entry.method != STORED:
            raise self._broken(record, "the record is deflated where a stored one was expected")
        self._stored_nbytes(entry)
        return entry

    def extent(self, record: str, nbytes: int) -> tuple[Source, int, int]:
        """Return the Source, the offset of a record's header, and the bytes up to the next one."""
        entry = self.entry(record)
        return self.source, entry.header_offset, entry.end - entry.header_offset

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and self._index.find(name) is not None

    def __iter__(self) -> Iterator[str]:
        return iter(self._index.names())

    def rows(self) -> list[bytes]:
        """Return the rows of the directory, in its order."""
        start, nbytes, count = self.end.directory
        data = bytes(self.source.read_at(start, nbytes))
        bounds = [*_chain(data, count, start).tolist(), nbytes]
        return [data[first:last] for first, last in pairwise(bounds)]

    def data_offset(self, name: str) -> int:
        """Return where the bytes of a record start, after a check of its local header."""
        return self._start_of(self.entry(name))

    def _start_of(self, entry: Entry) -> int:
        offset = self._data_offsets.get(entry.name)
        if offset is None:
            offset = _read_local(self.source, self._folder, entry)
            self._data_offsets[entry.name] = offset
        return offset

    def read(self, name: str, *, limit: str = "pickle_nbytes") -> bytes:
        """Return a small record after checking its CRC. ``limit`` names the bound on its size."""
        entry = self.entry(name)
        bound: int = getattr(self._limits, limit)
        if entry.nbytes > bound:
            raise LimitError(limit, entry.nbytes, bound, path=self.source.name, record=name)
        if entry.method == STORED:
            data = bytes(self.source.read_at(self._start_of(entry), self._stored_nbytes(entry)))
        else:
            self._check_growth(entry.nbytes, _FREE_NBYTES // _IN_MEMORY, name)
            data = b"".join(self.inflate(name))
        if entry.crc and crc32(data) != entry.crc:
            raise wrong_crc(crc32(data), entry.crc, name, self.source.name)
        return data

    def _stored_nbytes(self, entry: Entry) -> int:
        if entry.nbytes != entry.compressed_nbytes:
            raise self._broken(
                entry.name,
                f"the directory says {entry.nbytes:,} bytes and {entry.compressed_nbytes:,} "
                "compressed; a stored record has as many of both",
            )
        return entry.nbytes

    def stored_span(self, name: str) -> tuple[int, int] | None:
        """Return offset and size of a stored record's bytes; None if it is deflated."""
        entry = self.entry(name)
        if entry.method != STORED:
            return None
        return self._start_of(entry), self._stored_nbytes(entry)

    def check_ratio(self, name: str) -> None:
        """Raise if a deflated record claims a size that its bytes, or the file, cannot justify.

        All deflated records count together: many small ones can be a bomb as well.
        """
        entry = self.entry(name)
        if entry.nbytes > MAX_RATIO * entry.compressed_nbytes:
            raise self._broken(
                name,
                f"the directory says that {entry.compressed_nbytes:,} deflated bytes come to "
                f"{entry.nbytes:,}; deflate makes {MAX_RATIO:,} of one at most",
            )
        self._check_growth(self._deflated_nbytes, _FREE_NBYTES, name)

    def _check_growth(self, nbytes: int, free: int, name: str) -> None:
        """Raise LimitError for too many bytes for the size of the file, minus free ones."""
        bound = self._limits.deflate_ratio
        needed = -(-(nbytes - free) // self.source.size)
        if needed > bound:
            raise LimitError("deflate_ratio", needed, bound, path=self.source.name, record=name)

    @cached_property
    def _deflated_nbytes(self) -> int:
        nbytes: list[int] = self._sizes[self._methods == DEFLATED].tolist()
        return sum(nbytes)

    def inflate(self, name: str) -> Iterator[bytes]:
        """Yield the content of a deflated record in blocks, exactly its declared size."""
        entry = self.entry(name)
        self.check_ratio(name)
        offset = self._start_of(entry)
        end = offset + entry.compressed_nbytes
        return inflate_span(self.source, offset, end, entry.nbytes, partial(self._broken, name))


def _read_local(source: Source, folder: bytes, entry: Entry) -> int:
    """Return where the bytes of a record start, after a check of its local header."""
    broken = partial(_broken, source, entry.name, offset=entry.header_offset)
    wanted = folder + entry.name.encode("latin-1")
    begin, room = entry.header_offset, entry.end - entry.header_offset
    guess = LOCAL.size + len(wanted) + 4  # saves a read if torch has aligned the bytes
    guess += -(begin + guess) % _ALIGNMENT
    head = bytes(source.read_at(begin, min(guess, room)))
    (magic, _, flags, method, _, _, crc, compressed, size, name_length, extra_length) = (
        LOCAL.unpack_from(head)
    )
    if magic != b"PK\3\4":
        raise broken(f"{bytes(magic)!r} where the local header of a record was expected")
    nbytes = LOCAL.size + name_length + extra_length
    if nbytes > len(head):
        head = bytes(source.read_at(begin, min(nbytes, room)))
    name = head[LOCAL.size : LOCAL.size + name_length]
    if name != wanted:
        raise broken(
            f"the local header names {shown_name(name)}, the directory {shown_name(wanted)}"
        )
    if method != entry.method or (flags ^ entry.flags) & 0x2061:
        raise broken(
            f"the local header says method {method} and flags {flags:#06x}, the directory "
            f"{entry.method} and {entry.flags:#06x}"
        )
    fields = all_fields(head[LOCAL.size + name_length : nbytes])
    speaks = any(kind in (ZIP64, UNICODE_PATH) for kind, _ in fields)
    if speaks or size or compressed or crc or not flags & 8:
        with ErrorPlace(path=source.name, record=entry.name, offset=begin):
            _check_local(entry, name, fields, size, compressed, crc, has_descriptor=flags & 8)
    if nbytes + entry.compressed_nbytes > room:
        raise broken(
            f"{entry.compressed_nbytes:,} bytes from byte {begin + nbytes:,} reach past byte "
            f"{entry.end:,}, where the next record or the directory begins"
        )
    return begin + int(nbytes)


class StoredRecord:
    """Where the bytes of one stored record are, without the rest of its archive."""

    def __init__(self, source: Source, folder: bytes, entry: Entry) -> None:
        self._source = source
        self._folder = folder
        self._entry = entry

    def locate(self, record: str) -> tuple[Source, int]:
        return self._source, _read_local(self._source, self._folder, self._entry)

    def extent(self, record: str, nbytes: int) -> tuple[Source, int, int]:
        entry = self._entry
        return self._source, entry.header_offset, entry.end - entry.header_offset

    def alone(self, record: str) -> StoredRecord:
        return self


def _broken(source: Source, name: str, message: str, offset: int | None = None) -> ArchiveError:
    return ArchiveError(message, path=source.name, record=name, offset=offset)


def _chain(data: bytes, count: int, start: int) -> NDArray[np.int64]:
    """Return where the headers of a directory start."""
    places = _chain_fast(data, count)
    return _chain_plainly(data, count, start) if places is None else places


def _chain_fast(data: bytes, count: int) -> NDArray[np.int64] | None:
    """Return where the headers start, if every signature begins a header."""
    if len(data) < 46:
        return None
    signature = np.frombuffer(b"PK\1\2", np.uint8)
    places: NDArray[np.int64]
    places = np.flatnonzero(np.frombuffer(data, np.uint8, len(data) - 3) == signature[0])
    places = places[(_windows(data, 4)[places] == signature).all(axis=1)]
    if len(places) != count or places[0] != 0 or places[-1] + 46 > len(data):
        return None
    # The lengths of the name, the extra fields and the comment.
    lengths = _windows(data, 6)[places + 28].view("<u2").sum(axis=1, dtype=np.int64)
    if not np.array_equal(places + 46 + lengths, np.append(places[1:], len(data))):
        return None
    return places


def _gather(data: bytes, places: NDArray[np.int64]) -> NDArray[np.void]:
    """Return the 46 fixed bytes at each place as one structured array."""
    rows: NDArray[np.void] = _windows(data, _CENTRAL.itemsize)[places].view(_CENTRAL).reshape(-1)
    return rows


def _windows(data: bytes, nbytes: int) -> NDArray[np.uint8]:
    """Return a table of the next ``nbytes`` bytes from each place on."""
    return np.ndarray((len(data) - nbytes + 1, nbytes), np.uint8, data, 0, (1, 1))


def _chain_plainly(data: bytes, count: int, start: int) -> NDArray[np.int64]:
    """Return where the headers start by following their lengths, one by one."""
    places = []
    at = 0
    for index in range(count):
        if at + 46 > len(data) or data[at : at + 4] != b"PK\1\2":
            raise ArchiveError(
                f"entry {index} of the directory has no header here; the end record counts "
                f"{count} entries",
                offset=start + at,
            )
        places.append(at)
        at += 46 + sum(struct.unpack_from("<HHH", data, at + 28))
    if at != len(data):
        raise ArchiveError(
            f"the {count} entries of the directory take {at:,} bytes of its {len(data):,}",
            offset=start + at,
        )
    return np.array(places, np.int64)


def _read_zip64(data: bytes, place: int, header: np.void, start: int) -> tuple[int, int, int]:
    """Return size, compressed size and offset of an entry with capped fields."""
    values = [int(header["size"]), int(header["compressed"]), int(header["offset"])]
    at = place + 46 + int(header["name"])
    with ErrorPlace(offset=start + place):
        values = uncap(values, all_fields(data[at : at + int(header["extra"])]))
        if max(values) >= 1 << 63:
            raise ArchiveError("a record has an offset or a size past 2**63")
    return values[0], values[1], values[2]


def _check_local(
    entry: Entry,
    name: bytes,
    fields: Sequence[Field],
    size: int,
    compressed: int,
    crc: int,
    *,
    has_descriptor: int,
) -> None:
    """Raise if a local header contradicts the directory.

    If a descriptor follows the bytes, a 0 means that the number was not known yet.
    """
    check_path(fields, name)
    zeros = (0,) if has_descriptor else ()
    own = uncap([size, compressed], fields)
    for nbytes, in_file in (own, zip64_sizes(fields) or own):
        if nbytes not in (entry.nbytes, *zeros) or in_file not in (entry.compressed_nbytes, *zeros):
            raise ArchiveError(
                f"the local header says {nbytes:,} bytes ({in_file:,} compressed), the directory "
                f"{entry.nbytes:,} ({entry.compressed_nbytes:,})"
            )
    if crc not in (entry.crc, *zeros):
        raise ArchiveError(f"the local header says CRC {crc:08x}, the directory {entry.crc:08x}")


def _check_paths(
    data: bytes, header: NDArray[np.void], start: int, places: NDArray[np.int64]
) -> None:
    """Refuse records to which a field of their entry gives another name."""
    mark = UNICODE_PATH.to_bytes(2, "little")
    for index in np.flatnonzero(header["extra"]).tolist():  # nearly always none
        name = int(places[index]) + 46
        extra = name + int(header["name"][index])
        raw = data[extra : extra + int(header["extra"][index])]
        if mark in raw:
            with ErrorPlace(offset=start + int(places[index])):
                check_path(all_fields(raw), data[name:extra])


def _check_prefix(
    data: bytes, begins: NDArray[np.int64], lengths: NDArray[np.int64], prefix: bytes, start: int
) -> None:
    """Refuse names that do not begin with ``prefix``, the directory of the first record."""
    outside = np.flatnonzero(lengths < len(prefix))
    if prefix and not len(outside):
        starts = _windows(data, len(prefix))[begins]
        outside = np.flatnonzero((starts != np.frombuffer(prefix, np.uint8)).any(axis=1))
    if len(outside):
        place, length = int(begins[outside[0]]), int(lengths[outside[0]])
        raise ArchiveError(
            f"record {shown_name(data[place : place + length])} does not lie in "
            f"{shown_name(prefix)}, the directory of the first record",
            offset=start + place,
        )
