"""Where the records of a damaged archive may lie, from all that still says so.

A record's name stands twice: in the local header before it and in the directory. Where both say
the same of one place, that is *firm*. A name that one byte has turned into another record's is
then seen: that other name is firm elsewhere.

There may be other archives in the file: the bytes of a tensor, or a second checkpoint behind the
first. The one that is repaired begins with the first local header. A directory is its own if it
counts from there or before, or describes that header; which other headers are its own is told by
the chain of offsets (`zip_chain`).

An archive that was edited in place has several directories, one behind the other; the last that has
an end record behind it is what the file was meant to be.

Whatever a hostile file claims, of one place or of one name, only a few claims are looked at, so
that all takes time in proportion to the file.
"""

from __future__ import annotations

import bisect
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from torchzip.container.zip_chain import Surroundings, follow
from torchzip.container.zip_layout import BIG
from torchzip.container.zip_marks import EndRecord, LocalHeader, Mark, Row, read_descriptors
from torchzip.files.source import Source

_PICKLE = b"data.pkl"
_LEAST_NBYTES = 8
#: Headers of one name, and claims of one place or of one name, that are looked at.
_MOST_OF_A_NAME = 8
#: Directories of the archive that are looked at: an edit leaves the older one behind.
_MOST_DIRECTORIES = 100
#: What the directory says of a record in a row, but for the place of that row itself.
_SAID = slice(2, None)


@dataclass(slots=True, eq=False)
class Place:
    """A place where a record may be: what its local header says, and rows that point there."""

    offset: int
    local: LocalHeader | None = None
    rows: list[Row] = field(default_factory=list)
    #: Whether it is known to be of this archive.
    is_own: bool = True

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
    """Rows that stand together. ``base`` is the byte of the file that they count from.

    ``described`` are the places of local headers that agree with a row.
    """

    rows: list[Row]
    ends: list[EndRecord] = field(default_factory=list)
    base: int = 0
    described: set[int] = field(default_factory=set)

    @property
    def start(self) -> int:
        return self.rows[0].at

    def speaks_of(self, first: int) -> bool:
        """Return whether it is of the archive that has its first local header there."""
        is_around = 0 <= self.base <= first < self.start
        return is_around or min(self.described, default=first + 1) <= first

    @property
    def stop(self) -> int:
        """The byte behind it and its end records."""
        return max([self.rows[-1].end, *(end.stop for end in self.ends)])

    def is_complete(self) -> bool:
        """Return whether no row is missing, as its end record counts them."""
        follows = all(a.end == b.at for a, b in zip(self.rows, self.rows[1:], strict=False))
        return (
            follows
            and any(end.entries == len(self.rows) for end in self.ends)
            and self.ends[0].at == self.rows[-1].end
        )


class Places:
    """All places of the first archive in a file.

    ``root`` is the archive name with its slash, empty where records have no folder; ``start`` is
    where the archive begins. ``directories`` are its own in the order of their worth: those with an
    end record first, of these the last. ``others`` are the complete ones of other archives.
    """

    def __init__(self, marks: Iterable[Mark], source: Source) -> None:
        found = list(marks)
        self._source = source
        headers = [mark for mark in found if isinstance(mark, LocalHeader)]
        directories = list(self._located(_group(found), headers))
        own = self._own(directories, headers)
        self.root = _root_of(own[0].rows if own and own[0].ends else found)
        self.directories = [
            each for each in own if any(row.name.startswith(self.root) for row in each.rows)
        ]
        counted = set(map(id, own))
        self.others = [
            each for each in directories if id(each) not in counted and each.is_complete()
        ]
        headers = [header for header in headers if header.name.startswith(self.root)]
        first = headers[0].offset if headers else 0
        base = self.directories[0].base if self.directories else first
        self.start = base if 0 <= base <= first or not headers else first
        self._at: dict[int, list[Row]] = {}
        self._rows: dict[bytes, list[Row]] = {}
        for directory in self.directories:
            for row in directory.rows:
                if row.name.startswith(self.root):
                    _add(self._at.setdefault(row.offset + directory.base, []), row)
                    _add(self._rows.setdefault(row.name, []), row)
        self._around = Surroundings(
            source, self.root, self.start, lambda offset: self._at.get(offset, []),
            {directory.stop for directory in self.directories if directory.ends},
        )  # fmt: skip
        self._headers = self._without_others(headers)
        self.settle({})

    # -- directories -------------------------------------------------------------------------

    def _located(
        self, directories: list[Directory], headers: list[LocalHeader]
    ) -> Iterator[Directory]:
        """Yield the directories whose place is known: what each counts from, and describes."""
        at = {header.offset: header for header in headers}
        by_name: dict[bytes, list[LocalHeader]] = {}
        for header in headers:
            known = by_name.setdefault(header.name, [])
            if len(known) < _MOST_OF_A_NAME:
                known.append(header)
        for directory in directories:
            base = self._base_of(directory, by_name)
            if base is None:
                continue
            directory.base = base
            for row in directory.rows:
                place = row.offset + directory.base
                if place in at and at[place].name == row.name:
                    directory.described.add(place)
                else:
                    known = by_name.get(row.name, [])
                    directory.described |= {h.offset for h in known if self._agrees(h, row)}
            yield directory

    def _base_of(
        self, directory: Directory, by_name: dict[bytes, list[LocalHeader]]
    ) -> int | None:  # fmt: skip
        """Return the byte of the file that a directory counts from, None if nothing tells.

        It is what the end record says, if a row leads to its record from there, or no row leads to
        one from elsewhere; bytes may have been lost in between. Otherwise most rows have it.
        """
        votes: Counter[int] = Counter()
        for row in directory.rows:
            for header in by_name.get(row.name, ()):
                if self._agrees(header, row):
                    votes[header.offset - row.offset] += 1
        said = [directory.start - end.offset for end in directory.ends if end.offset != BIG]
        for base in said:
            if votes[base] or not votes.total():
                return base
        most = max(votes.values(), default=0)
        return min((base for base, count in votes.items() if count == most), key=abs, default=None)

    def _agrees(self, header: LocalHeader, row: Row) -> bool:
        """Return whether what stands beside a record says of it what a row says.

        Records of a few bytes are the same in all archives, and say nothing.
        """
        if row.nbytes < _LEAST_NBYTES:
            return False
        if row.crc and row.crc == header.crc:
            return True
        behind = read_descriptors(self._source, header.data_offset + row.compressed)
        return any((each.crc, each.compressed) == (row.crc, row.compressed) for each in behind)

    def _own(self, directories: list[Directory], headers: list[LocalHeader]) -> list[Directory]:
        """Return the directories of the archive that the file begins with."""
        first = headers[0].offset if headers else 0
        own = [each for each in directories if not headers or each.speaks_of(first)]
        last = next((each for each in reversed(directories) if each.ends), None)
        if last is not None and last not in own and self._lost_its_head(last, directories, headers):
            own.append(last)
        own.sort(key=lambda each: (self._has_end(each), each.start), reverse=True)
        # Others that count from elsewhere are of archives in tensors.
        return [each for each in own if each.base == own[0].base][:_MOST_DIRECTORIES]

    def _lost_its_head(
        self, last: Directory, directories: list[Directory], headers: list[LocalHeader]
    ) -> bool:
        """Return whether the file begins within the last archive, in a tensor that is one."""
        if last.base >= 0 or not last.described:
            return False
        first = min(last.described)
        inner = {at for each in directories if each is not last for at in each.described}
        return all(header.offset in inner for header in headers if header.offset < first)

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

    def _without_others(self, headers: list[LocalHeader]) -> list[LocalHeader]:
        """Return the headers that do not lie in another archive whose directory is complete."""
        kept = []
        spans = sorted((each.base, each.start) for each in self.others if each.base > self.start)
        reach = index = 0
        for header in headers:
            while index < len(spans) and spans[index][0] <= header.offset:
                reach = max(reach, spans[index][1])
                index += 1
            if header.offset >= reach or header.offset in self._at:
                kept.append(header)
        return kept

    # -- the chain ---------------------------------------------------------------------------

    def settle(self, sizes: Mapping[bytes, int]) -> None:
        """Find out which headers are the archive's own; ``sizes`` are those of known records."""
        self._chain = follow(self._headers, self._around, sizes)
        self._elsewhere = {header.name for header in self._chain.elsewhere}
        places = {offset: Place(offset, None, rows) for offset, rows in self._at.items()}
        for header in self._chain.headers:
            places.setdefault(header.offset, Place(header.offset)).local = header
        claims: dict[bytes, list[Place]] = {}
        for place in places.values():
            for name in place.names():
                claims.setdefault(name, []).append(place)
        self._firm = {
            name for name, found in claims.items() if any(place.is_firm(name) for place in found)
        }
        chained = {header.name for header in self._chain.headers}
        counts = Counter(header.name for header in self._chain.doubtful)
        for header in self._chain.elsewhere:
            if header.name in chained:
                continue
            # The CRC of its row is the judge of it.
            has_judge = any(row.crc for row in self._rows.get(header.name, ()))
            if has_judge or (header.name not in claims and counts[header.name] == 1):
                places[header.offset] = Place(header.offset, header, is_own=has_judge)
                claims.setdefault(header.name, []).append(places[header.offset])
        self._claims = {name: _first(found, name) for name, found in claims.items()}
        self._places = places
        # Rows alone may point anywhere.
        starts = [directory.start for directory in self.directories]
        held = [offset for offset, place in places.items() if place.local is not None]
        self._borders = sorted({*starts, *held})

    @property
    def stop(self) -> int:
        """The byte behind the archive, 0 if its end is not there."""
        return max([each.stop for each in self.directories if each.ends], default=0)

    @property
    def is_anchored(self) -> bool:
        """Whether the archive begins or ends where the file does: others are in tensors."""
        return not self.start or self.stop == self._source.size

    def is_elsewhere(self, name: bytes) -> bool:
        """Return whether a header of that name is there that is not in the archive's chain."""
        return self.root + name in self._elsewhere

    def spans_of_others(self) -> list[tuple[int, int]]:
        """Return where other archives lie that are in no record of this one."""
        found: list[tuple[int, int]] = []
        extents = self._chain.extents
        for base, stop in sorted((each.base, each.stop) for each in self.others):
            index = bisect.bisect_right(extents, (base, self._source.size)) - 1
            inside = index >= 0 and stop <= extents[index][1] <= self._source.size
            if not inside and base > self.start and (not found or stop > found[-1][1]):
                found.append((base, stop))
        return found

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
        if self.root + name not in self._firm:
            return []
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


def _group(marks: list[Mark]) -> list[Directory]:
    """Return the rows that stand together, no name twice, each with the end records behind it."""
    found: list[Directory] = []
    names: set[bytes] = set()
    is_open = False
    for mark in marks:
        if isinstance(mark, LocalHeader):
            is_open = False
        elif isinstance(mark, Row):
            if not is_open or mark.name in names:
                found.append(Directory([]))
                is_open = True
                names.clear()
            found[-1].rows.append(mark)
            names.add(mark.name)
        elif found and (is_open or found[-1].ends):
            found[-1].ends.append(mark)
            is_open = False
    return found


def _add(rows: list[Row], row: Row) -> None:
    """Add what a row says, if it is not there yet, and not too much is."""
    if len(rows) < _MOST_OF_A_NAME and all(row[_SAID] != each[_SAID] for each in rows):
        rows.append(row)


def _first(places: list[Place], name: bytes) -> list[Place]:
    """Return as many claims of a name as are looked at, firm ones first."""
    return sorted(places, key=lambda place: not place.is_firm(name))[:_MOST_OF_A_NAME]


def _root_of(marks: Iterable[Mark]) -> bytes:
    """Return the archive name with its slash: what stands before the pickle's name.

    It is the first that stands there twice. Where no pickle is left, it is the first folder that
    does, if all records have one.
    """
    names = [mark.name for mark in marks if isinstance(mark, LocalHeader | Row)]
    roots = {name[: -len(_PICKLE)] for name in names if name.endswith(b"/" + _PICKLE)}
    if _PICKLE in names or (not roots and any(b"/" not in name for name in names)):
        roots.add(b"")
    before = [_prefix_of(name, roots) for name in names]
    folders = [name[: name.find(b"/") + 1] for name in names]
    for found in (before, folders):
        counts = Counter(found)
        for root in found:
            if root is not None and counts[root] > 1:
                return root
    return next((root for root in [*before, *folders] if root is not None), b"/")


def _prefix_of(name: bytes, roots: set[bytes]) -> bytes | None:
    """Return the longest of the roots that a name begins with, if it begins with one."""
    end = len(name)
    while end > 0:
        end = name.rfind(b"/", 0, end)
        if name[: end + 1] in roots:
            return name[: end + 1]
    return None
