"""Collects the places where the records of a damaged archive may be.

A record's name occurs twice: in the local header before it and in the directory. If both agree on a
place, it is *firm*. If one damaged byte turns a name into that of another record, this shows: the
other name is firm elsewhere.

There may be other archives in the file: the bytes of a tensor, or a second checkpoint after the
first. The archive that is repaired begins with the first local header. A directory is its own if
its offsets count from there or before, or if it describes that header. Which other headers are its
own is determined by the chain of offsets (`zip_chain`).

An archive that was edited in place has several directories, one after the other. The last one that
is followed by an end record is the current one.

Of all claims about one place or one name in a hostile file, only a few are checked, so that the
time stays proportional to the size of the file.
"""

from __future__ import annotations

import bisect
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from torchzip.container.damaged.chain import Surroundings, follow
from torchzip.container.damaged.marks import EndRecord, LocalHeader, Mark, Row, read_descriptors
from torchzip.container.zip_layout import BIG
from torchzip.files.source import Source

_PICKLE = b"data.pkl"
_LEAST_NBYTES = 8
#: Most headers of one name, and claims about one place or one name, that are checked.
_MOST_OF_A_NAME = 8
#: Most directories of the archive that are checked: each edit leaves the older one in place.
_MOST_DIRECTORIES = 100
#: The content of a directory row, without the offset of the row itself.
_SAID = slice(2, None)


@dataclass(slots=True, eq=False)
class Place:
    """A place where a record may be: its local header, and rows that point there."""

    offset: int
    local: LocalHeader | None = None
    rows: list[Row] = field(default_factory=list)
    #: Whether it is known to belong to this archive.
    is_own: bool = True

    def names(self) -> set[bytes]:
        """Return every name that is claimed for this place."""
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
    """Consecutive rows. ``base`` is the offset in the file that their offsets count from.

    ``described`` are the offsets of local headers that agree with a row.
    """

    rows: list[Row]
    ends: list[EndRecord] = field(default_factory=list)
    base: int = 0
    described: set[int] = field(default_factory=set)

    @property
    def start(self) -> int:
        return self.rows[0].at

    def speaks_of(self, first: int) -> bool:
        """Return whether it belongs to the archive whose first local header is at an offset."""
        is_around = 0 <= self.base <= first < self.start
        return is_around or min(self.described, default=first + 1) <= first

    @property
    def stop(self) -> int:
        """The offset after it and its end records."""
        return max([self.rows[-1].end, *(end.stop for end in self.ends)])

    def is_complete(self) -> bool:
        """Return whether it has as many rows as its end record says."""
        follows = all(a.end == b.at for a, b in zip(self.rows, self.rows[1:], strict=False))
        return (
            follows
            and any(end.entries == len(self.rows) for end in self.ends)
            and self.ends[0].at == self.rows[-1].end
        )


class Places:
    """All places of the first archive in a file.

    ``root`` is the archive name with its slash, or empty if records have no folder; ``start`` is
    where the archive begins. ``directories`` are its own, the best first: those with an end record,
    from the last to the first. ``others`` are the complete ones of other archives.
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
        """Yield the directories with a known base, and with the headers that they describe."""
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
        """Return the offset in the file that a directory's offsets count from, or None if unknown.

        It follows from the end record, if a row then leads to its record, or no row leads to one
        with another base; bytes may have been lost in between. Otherwise the rows decide by
        majority.
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
        """Return whether the header and descriptor beside a record agree with a row.

        Records of a few bytes are the same in all archives and prove nothing.
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
        # Directories with another base belong to archives in tensors.
        return [each for each in own if each.base == own[0].base][:_MOST_DIRECTORIES]

    def _lost_its_head(
        self, last: Directory, directories: list[Directory], headers: list[LocalHeader]
    ) -> bool:
        """Return whether the file begins inside the last archive, in one of its tensors."""
        if last.base >= 0 or not last.described:
            return False
        first = min(last.described)
        inner = {at for each in directories if each is not last for at in each.described}
        return all(header.offset in inner for header in headers if header.offset < first)

    def _has_end(self, directory: Directory) -> bool:
        """Return whether a directory is complete; its end record may be damaged."""
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
        """Return the headers that are not in another archive whose directory is complete."""
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
        """Determine which headers are the archive's own; ``sizes`` are those of known records."""
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
            # The CRC in its row decides.
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
        """The offset after the archive, 0 if its end is missing."""
        return max([each.stop for each in self.directories if each.ends], default=0)

    @property
    def is_anchored(self) -> bool:
        """Whether the archive begins or ends with the file: any others are in tensors."""
        return not self.start or self.stop == self._source.size

    def is_elsewhere(self, name: bytes) -> bool:
        """Return whether there is a header of that name outside the archive's chain."""
        return self.root + name in self._elsewhere

    def spans_of_others(self) -> list[tuple[int, int]]:
        """Return the extents of other archives that are not in a record of this one."""
        found: list[tuple[int, int]] = []
        extents = self._chain.extents
        for base, stop in sorted((each.base, each.stop) for each in self.others):
            index = bisect.bisect_right(extents, (base, self._source.size)) - 1
            inside = index >= 0 and stop <= extents[index][1] <= self._source.size
            if not inside and base > self.start and (not found or stop > found[-1][1]):
                found.append((base, stop))
        return found

    # -- lookup -----------------------------------------------------------------------

    def all(self) -> list[Place]:
        """Return all places in file order."""
        return [self._places[offset] for offset in sorted(self._places)]

    def names(self) -> list[bytes]:
        """Return every name that is claimed for a place, without the archive name."""
        return [name[len(self.root) :] for name in self._claims if name.startswith(self.root)]

    def claims(self, name: bytes) -> list[Place]:
        """Return the places for which a name is claimed, perhaps among others."""
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
        """Return where a record may be: its firm places, else those that no other can have."""
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
        """Return where the next record or directory begins."""
        index = bisect.bisect_right(self._borders, offset)
        return self._borders[index] if index < len(self._borders) else size


def _group(marks: list[Mark]) -> list[Directory]:
    """Return consecutive rows without duplicate names, each run with the end records after it."""
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
    """Add the claim of a row, unless it is known or there are too many."""
    if len(rows) < _MOST_OF_A_NAME and all(row[_SAID] != each[_SAID] for each in rows):
        rows.append(row)


def _first(places: list[Place], name: bytes) -> list[Place]:
    """Return the claims of a name that are checked, firm ones first."""
    return sorted(places, key=lambda place: not place.is_firm(name))[:_MOST_OF_A_NAME]


def _root_of(marks: Iterable[Mark]) -> bytes:
    """Return the archive name with its slash, which precedes the name of the pickle.

    It is the first that occurs twice. If no pickle is left, it is the first folder that occurs
    twice, if all records have one.
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
    """Return the longest root that a name begins with, if any."""
    end = len(name)
    while end > 0:
        end = name.rfind(b"/", 0, end)
        if name[: end + 1] in roots:
            return name[: end + 1]
    return None
