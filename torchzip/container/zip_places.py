"""Where the records of a damaged archive may lie, from all that still says so.

A record's name stands twice: in the local header before it and in the directory. Where both say
the same of one place, that is *firm*. A name that one byte has turned into another record's is
then seen: that other name is firm elsewhere.

The bytes of a tensor may be an archive themselves. Such an archive is told by its directory, which
counts from another start, and by lying inside a firm record.

An archive that was edited in place has several directories, one behind the other; the last that has
an end record behind it is what the file was meant to be.
"""

from __future__ import annotations

import bisect
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from torchzip.container.zip_layout import BIG
from torchzip.container.zip_marks import EndRecord, LocalHeader, Mark, Row, read_descriptors
from torchzip.files.source import Source

#: Headers of one name that are looked at.
_MOST_OF_A_NAME = 8


@dataclass(slots=True, eq=False)
class Place:
    """A place where a record may be: what its local header says, and rows that point there."""

    offset: int
    local: LocalHeader | None = None
    rows: list[Row] = field(default_factory=list)

    def names(self) -> set[bytes]:
        """Return every name that is claimed for it."""
        found = {row.name for row in self.rows}
        if self.local is not None:
            found.add(self.local.name)
        return found

    def is_firm(self, name: bytes) -> bool:
        """Return whether header and directory agree on a name."""
        return (
            self.local is not None
            and self.local.name == name
            and any(row.name == name for row in self.rows)
        )


@dataclass(slots=True, eq=False)
class Directory:
    """Rows that stand together. ``base`` is the byte of the file that they count from."""

    rows: list[Row]
    ends: list[EndRecord] = field(default_factory=list)
    base: int = 0

    @property
    def start(self) -> int:
        return self.rows[0].at

    def is_complete(self) -> bool:
        """Return whether no row is missing, as its end record counts them."""
        follows = all(a.end == b.at for a, b in zip(self.rows, self.rows[1:], strict=False))
        return (
            follows
            and any(end.entries == len(self.rows) for end in self.ends)
            and self.ends[0].at == self.rows[-1].end
        )


class Places:
    """All places of the outermost archive in a file.

    ``root`` is the archive name with its slash, ``start`` where the archive begins. ``directories``
    are in the order of their worth: those with an end record first, of these the last.
    """

    def __init__(self, marks: Iterable[Mark], source: Source) -> None:
        found = list(marks)
        self._source = source
        self.root = _root_of(found)
        headers = [
            mark
            for mark in found
            if isinstance(mark, LocalHeader) and mark.name.startswith(self.root)
        ]
        self.start = headers[0].offset if headers else 0
        self.directories = self._find_directories(found, headers)
        if not headers and self.directories:
            self.start = self.directories[0].base
        self._places: dict[int, Place] = {}
        self._claims: dict[bytes, list[Place]] = {}
        self._rows: dict[bytes, list[Row]] = {}
        for directory in self.directories:
            for row in directory.rows:
                self._rows.setdefault(row.name, []).append(row)
                self._at(row.offset + directory.base).rows.append(row)
        headers = _without_inner(headers, self._firm_extents(headers))
        self._set_headers(headers)

    def _set_headers(self, headers: list[LocalHeader]) -> None:
        for place in self._places.values():
            place.local = None
        for header in headers:
            self._at(header.offset).local = header
        self._places = {
            offset: place for offset, place in self._places.items() if place.local or place.rows
        }
        self._headers = headers
        self._claims = {}
        for offset in sorted(self._places):
            place = self._places[offset]
            for name in place.names():
                self._claims.setdefault(name, []).append(place)
        # Rows alone may point anywhere.
        starts = [directory.start for directory in self.directories]
        self._borders = sorted({*starts, *(header.offset for header in headers)})

    def _at(self, offset: int) -> Place:
        place = self._places.get(offset)
        if place is None:
            place = self._places[offset] = Place(offset)
        return place

    # -- directories -------------------------------------------------------------------------

    def _find_directories(self, marks: list[Mark], headers: list[LocalHeader]) -> list[Directory]:
        found: list[Directory] = []
        is_open = False
        for mark in marks:
            if isinstance(mark, LocalHeader):
                is_open = False
            elif isinstance(mark, Row):
                if not mark.name.startswith(self.root):
                    continue
                if not is_open:
                    found.append(Directory([]))
                    is_open = True
                found[-1].rows.append(mark)
            elif found and (is_open or found[-1].ends):
                found[-1].ends.append(mark)
                is_open = False
        by_name: dict[bytes, list[LocalHeader]] = {}
        for header in headers:
            known = by_name.setdefault(header.name, [])
            if len(known) < _MOST_OF_A_NAME:
                known.append(header)
        for directory in found:
            directory.base = self._base_of(directory, by_name)
        outer: list[Directory] = []
        self._doubtful: list[Directory] = []
        for directory in found:
            is_outer = self._is_outer(directory, bool(headers))
            (outer if is_outer else self._doubtful).append(directory)
        return sorted(outer, key=lambda each: (self._has_end(each), each.start), reverse=True)

    def _base_of(self, directory: Directory, headers: dict[bytes, list[LocalHeader]]) -> int:
        """Return the byte of the file that a directory counts from, by most of its rows."""
        votes: Counter[int] = Counter()
        for row in directory.rows:
            for header in headers.get(row.name, ()):
                # A name alone may be that of a record of another archive.
                votes[header.offset - row.offset] += 100 if self._agrees(header, row) else 1
        said = [directory.start - end.offset for end in directory.ends if end.offset != BIG]
        if not votes:
            return said[0] if said and said[0] >= 0 else 0
        most = max(votes.values())
        return min(
            (base for base, count in votes.items() if count == most),
            key=lambda base: (base not in said, abs(base)),
        )

    def _agrees(self, header: LocalHeader, row: Row) -> bool:
        """Return whether what stands beside a record says of it what a row says."""
        if row.crc and row.crc == header.crc:
            return True
        behind = read_descriptors(self._source, header.data_offset + row.compressed)
        return any((each.crc, each.compressed) == (row.crc, row.compressed) for each in behind)

    def _has_end(self, directory: Directory) -> bool:
        """Return whether a directory was written to its end; that record may be damaged."""
        if directory.ends:
            return True
        end = directory.rows[-1].end
        if end + 22 > self._source.size:
            return False
        found = bytes(self._source.read_at(end, 4))
        return any(
            sum(a == b for a, b in zip(found, signature, strict=True)) >= 3
            for signature in (b"PK\5\6", b"PK\6\6")
        )

    def _is_outer(self, directory: Directory, has_headers: bool) -> bool:
        """Return whether a directory is not that of an archive inside a tensor."""
        first = min(row.offset for row in directory.rows) + directory.base
        return not has_headers or directory.base == self.start or first <= self.start

    def _firm_extents(self, headers: list[LocalHeader]) -> list[tuple[int, int]]:
        """Return where the bytes of firm records lie, in order and none over another."""
        at = {header.offset: header for header in headers}
        offsets = sorted(self._places)
        found = []
        for index, offset in enumerate(offsets):
            header = at.get(offset)
            rows = [row for row in self._places[offset].rows if header and row.name == header.name]
            if header is None or not rows:
                continue
            stop = header.data_offset + rows[0].compressed
            if index + 1 < len(offsets):
                stop = min(stop, offsets[index + 1])
            if header.data_offset < stop:
                found.append((header.data_offset, stop))
        return found

    def drop_inner(self, end_of: Callable[[LocalHeader], int | None]) -> None:
        """Forget headers that lie inside of records, for a file without a whole directory.

        A directory that counts from elsewhere, and lies in no record, is the file's own after all:
        bytes were added before it. ``end_of`` gives the end of a record's bytes, None if it is not
        sure.
        """
        kept = []
        extents = []
        reach = 0
        for header in self._headers:
            if header.offset < reach:
                continue
            kept.append(header)
            end = end_of(header) or 0
            if end > header.data_offset:
                extents.append((header.data_offset, end))
            reach = max(reach, end)
        for directory in self._doubtful:
            before = bisect.bisect_right(extents, (directory.start, self._source.size)) - 1
            if before < 0 or extents[before][1] <= directory.start:
                for row in directory.rows:
                    self._rows.setdefault(row.name, []).append(row)
        self._doubtful = []
        if len(kept) < len(self._headers):
            self._set_headers(kept)

    # -- what is where -----------------------------------------------------------------------

    def all(self) -> list[Place]:
        """Return all places in the order of the file."""
        return [self._places[offset] for offset in sorted(self._places)]

    def names(self) -> list[bytes]:
        """Return every name that is claimed for a place, without the archive name."""
        return [name[len(self.root) :] for name in self._claims if name.startswith(self.root)]

    def claims(self, name: bytes) -> list[Place]:
        """Return the places for which a name is claimed, whatever else is."""
        return self._claims.get(self.root + name, [])

    def rows(self, name: bytes) -> list[Row]:
        """Return the rows of a name, wherever they point."""
        return self._rows.get(self.root + name, [])

    def firm(self, name: bytes) -> list[Place]:
        """Return the places where header and directory agree on a name."""
        return [place for place in self.claims(name) if place.is_firm(self.root + name)]

    def candidates(self, name: bytes, is_expected: Callable[[bytes], bool]) -> list[Place]:
        """Return where a record may be: its firm places, or those that no other can have."""
        firm = self.firm(name)
        if firm:
            return firm
        found = []
        for place in self.claims(name):
            others = {each[len(self.root) :] for each in place.names()} - {name}
            if not any(is_expected(other) and not self.firm(other) for other in others):
                found.append(place)
        return found

    def after(self, offset: int, size: int) -> int:
        """Return where the next record, or a directory, begins."""
        index = bisect.bisect_right(self._borders, offset)
        return self._borders[index] if index < len(self._borders) else size


def _root_of(marks: list[Mark]) -> bytes:
    """Return the first archive name that stands there twice, or else the first."""
    names = [
        mark.name[: mark.name.index(b"/") + 1]
        for mark in marks
        if isinstance(mark, LocalHeader | Row)
    ]
    counts = Counter(names)
    for name in names:
        if counts[name] > 1:
            return name
    return names[0] if names else b"/"


def _without_inner(headers: list[LocalHeader], extents: list[tuple[int, int]]) -> list[LocalHeader]:
    """Return the headers that lie in none of the extents."""
    kept = []
    index = 0
    for header in headers:
        while index < len(extents) and extents[index][1] <= header.offset:
            index += 1
        if index == len(extents) or header.offset < extents[index][0]:
            kept.append(header)
    return kept
