"""Collects the places where the records of a damaged archive may be.

A record's name occurs twice: in the local header before it and in the directory. If both agree on a
place, it is *firm*. If one damaged byte turns a name into that of another record, this shows: the
other name is firm elsewhere.

There may be other archives in the file: the bytes of a tensor, or a second checkpoint after the
first. The archive that is repaired begins with the first local header. A directory is its own if
its offsets count from there or before, or if it describes that header. A local header is its own if

* a row of such a directory points to it, or
* it is where the record before it ends, or where a directory ends that an edit replaced, or
* it is where `torch.save` puts a record of that name, as all sizes are known from the pickle:
  this bridges a hole in the file.

A header anywhere else is only used if the directory has a CRC for its name, which then decides:
bytes may have been added or lost before it. Where no row points, the name in a header is all that
says which record it is. So a storage that `torch.save` would have put elsewhere is not used: its
name may have a damaged digit.

An archive that was edited in place has several directories, one after the other. The last one that
is followed by an end record is the current one.

Of all claims about one place or one name in a hostile file, only a few are checked, so that the
time stays proportional to the size of the file.
"""

from __future__ import annotations

import bisect
import itertools
import re
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping, Set
from dataclasses import dataclass, field

from torchzip.container.damaged.marks import (
    EndRecord,
    LocalHeader,
    Mark,
    Row,
    aligned,
    find_descriptor,
    has_descriptor,
    is_sound_extra,
    read_descriptors,
)
from torchzip.container.zip_layout import BIG, STORED
from torchzip.container.zip_writer import measure
from torchzip.files.source import Source

PICKLE = b"data.pkl"
#: Where archives have the records of their tensors.
TENSOR_FOLDERS = (b"data/", b"constants/")
#: Bytes of a descriptor after a record: short, or with sizes of 8 bytes.
_DESCRIPTORS = (16, 24)
#: The small records that each release of torch writes between the pickle and the storages.
_SMALL_RECORDS = (
    ((b".format_version", 1), (b".storage_alignment", 2), (b"byteorder", 6)),
    ((b"byteorder", 6),),
    (),
)
#: The archive name with its slash, before the name of a record that checkpoints have.
_ROOT = re.compile(
    rb"(.*/)?(?:(?:data|constants)(?:\.pkl|/[^/]+)|byteorder|\.format_version|\.storage_alignment"
    rb"|\.data/.+)",
    re.DOTALL,
)
#: Smaller records are the same in all archives and prove nothing.
_LEAST_NBYTES = 8
#: Most headers of one name, and claims about one place or one name, that are checked.
_MOST_OF_A_NAME = 8
#: Most directories of the archive that are checked: each edit leaves the older one in place.
_MOST_DIRECTORIES = 100


@dataclass(slots=True, eq=False)
class Place:
    """A place where a record may be: its local header, and rows that point there."""

    offset: int
    local: LocalHeader | None = None
    rows: list[Row] = field(default_factory=list)
    #: Whether it is known to belong to this archive.
    is_own: bool = True

    @property
    def claims(self) -> list[LocalHeader | Row]:
        """All that describes what is here."""
        return [*self.rows, *([] if self.local is None else [self.local])]

    def is_firm(self, name: bytes) -> bool:
        """Return whether header and directory agree on a name."""
        return (
            self.local is not None
            and self.local.name == name
            and any(row.name == name for row in self.rows)
        )


@dataclass(slots=True, eq=False)
class Directory:
    """Consecutive rows. ``base`` is the offset in the file that their offsets count from."""

    rows: list[Row]
    ends: list[EndRecord] = field(default_factory=list)
    base: int = 0

    @property
    def start(self) -> int:
        return self.rows[0].at

    @property
    def stop(self) -> int:
        """The offset after it and its end records."""
        return max([self.rows[-1].end, *(end.stop for end in self.ends)])

    def is_complete(self) -> bool:
        """Return whether it has as many rows as its end record says."""
        return (
            all(a.end == b.at for a, b in itertools.pairwise(self.rows))
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
        at = {(header.offset, header.name) for header in headers}
        first = next((header for header in headers if _ROOT.fullmatch(header.name)), None)
        own = [each for each in directories if first is None or self._is_own(each, first, at)]
        own.sort(key=lambda each: (bool(each.ends), each.start), reverse=True)
        # Directories with another base belong to archives in tensors.
        own = [each for each in own if each.base == own[0].base][:_MOST_DIRECTORIES]
        self.root = _root_of(own[0].rows if own and own[0].ends else found)
        self.directories = [
            each for each in own if any(row.name.startswith(self.root) for row in each.rows)
        ]
        self.others = [each for each in directories if each not in own and each.is_complete()]
        headers = [header for header in headers if header.name.startswith(self.root)]
        begin = headers[0].offset if headers else 0
        base = self.directories[0].base if self.directories else begin
        self.start = base if 0 <= base <= begin or not headers else begin
        self._at: dict[int, list[Row]] = {}
        self._rows: dict[bytes, list[Row]] = {}
        for directory in self.directories:
            for row in directory.rows:
                if row.name.startswith(self.root):
                    _add(self._at.setdefault(row.offset + directory.base, []), row)
                    _add(self._rows.setdefault(row.name, []), row)
        self._headers = list(self._without_others(headers))
        self.settle({})

    # -- directories -------------------------------------------------------------------------

    def _located(
        self, directories: list[Directory], headers: list[LocalHeader]
    ) -> Iterator[Directory]:
        """Yield the directories with a known base.

        It follows from the end record, if a row then leads to its record, or no row leads to one
        with another base; bytes may have been lost in between. Otherwise the rows decide by
        majority.
        """
        by_name: dict[bytes, list[LocalHeader]] = {}
        for header in headers:
            known = by_name.setdefault(header.name, [])
            if len(known) < _MOST_OF_A_NAME:
                known.append(header)
        for directory in directories:
            votes = Counter(
                header.offset - row.offset
                for row in directory.rows
                for header in by_name.get(row.name, ())
                if self._agrees(header, row)
            )
            said = [directory.start - end.offset for end in directory.ends if end.offset != BIG]
            voted = sorted(votes, key=lambda base: (-votes[base], abs(base)))
            bases = [base for base in said if votes[base] or not votes] + voted
            if bases:
                directory.base = bases[0]
                yield directory

    def _agrees(self, header: LocalHeader, row: Row) -> bool:
        """Return whether the header and descriptor beside a record agree with a row."""
        if row.nbytes < _LEAST_NBYTES:
            return False
        if row.crc and row.crc == header.crc:
            return True
        behind = read_descriptors(self._source, header.data_offset + row.compressed)
        return any((each.crc, each.compressed) == (row.crc, row.compressed) for each in behind)

    def _is_own(self, directory: Directory, first: LocalHeader, at: Set[tuple[int, bytes]]) -> bool:
        """Return whether a directory belongs to the archive that the file begins with or in."""
        return directory.base <= first.offset < directory.start or any(
            row.name == first.name
            and (row.offset + directory.base, row.name) not in at
            and self._agrees(first, row)
            for row in directory.rows
        )

    def _without_others(self, headers: list[LocalHeader]) -> Iterator[LocalHeader]:
        """Yield the headers that are not in another archive whose directory is complete."""
        spans = deque(
            sorted((each.base, each.start) for each in self.others if each.base > self.start)
        )
        reach = 0
        for header in headers:
            while spans and spans[0][0] <= header.offset:
                reach = max(reach, spans.popleft()[1])
            if header.offset >= reach or header.offset in self._at:
                yield header

    # -- the chain ---------------------------------------------------------------------------

    def settle(self, sizes: Mapping[bytes, int]) -> None:
        """Determine which headers are the archive's own; ``sizes`` are those of known records."""
        chained, elsewhere, in_no_record = self._follow(sizes)
        self._elsewhere = {header.name for header in elsewhere}
        self._places = {offset: Place(offset, None, rows) for offset, rows in self._at.items()}
        for header in chained:
            self._places.setdefault(header.offset, Place(header.offset)).local = header
        known = {header.name for header in chained}
        claimed = {claim.name for place in self._places.values() for claim in place.claims}
        counts = Counter(header.name for header in in_no_record)
        for header in elsewhere:
            # The CRC in its row decides.
            has_judge = any(row.crc for row in self._rows.get(header.name, ()))
            if header.name not in known and (
                has_judge or (header.name not in claimed and counts[header.name] == 1)
            ):
                self._places[header.offset] = Place(header.offset, header, is_own=has_judge)
        self._claims: dict[bytes, list[Place]] = {}
        for place in self._places.values():
            for name in {claim.name for claim in place.claims}:
                self._claims.setdefault(name, []).append(place)
        for name, claims in self._claims.items():
            claims.sort(key=lambda place, name=name: not place.is_firm(name))  # type: ignore[misc]
            del claims[_MOST_OF_A_NAME:]
        # Any other name is a damaged one.
        names = [name for name in self.names() if name.startswith(TENSOR_FOLDERS)]
        self._expected = set(sizes) or set(names)
        # Rows alone may point anywhere.
        starts = [directory.start for directory in self.directories]
        held = [offset for offset, place in self._places.items() if place.local is not None]
        self._borders = sorted({*starts, *held})

    def _follow(
        self, sizes: Mapping[bytes, int]
    ) -> tuple[list[LocalHeader], list[LocalHeader], list[LocalHeader]]:
        """Return the headers that are the archive's own, and those that are elsewhere.

        The third list has those of the latter that are in no record of the archive, if its layout
        is unknown.
        """
        chained: list[LocalHeader] = []
        elsewhere: list[LocalHeader] = []
        in_no_record: list[LocalHeader] = []
        stops = {directory.stop for directory in self.directories if directory.ends}
        layouts = self._layouts(sizes)
        linked = {self.start, *stops}
        inside = 0
        #: Where the bytes of each record begin and end.
        self._extents: list[tuple[int, int]] = []
        self._misnamed: set[bytes] = set()
        #: Whether no record is missing before the first storage.
        self.begins_whole = False
        is_unbroken = True
        is_laid_out = False
        for header, following in zip(self._headers, [*self._headers[1:], None], strict=False):
            record = header.name[len(self.root) :]
            rows = self._at.get(header.offset, [])
            start = self._start_of(header)
            fitting = [made for made in layouts if made.get(start) == record]
            is_next = header.offset in linked
            is_own = bool(rows) or (header.offset >= inside and (is_next or bool(fitting)))
            is_misplaced = chained and layouts and record in sizes and not fitting
            # Within its extra field: one of the two was moved.
            holds_another = following is not None and following.offset < start
            if is_own and not rows and (is_misplaced or holds_another):
                self._misnamed.add(header.name)
                is_own = False
            if not is_own:
                elsewhere.append(header)
                if header.offset >= inside and not layouts:
                    in_no_record.append(header)
                continue
            if fitting or not rows or any(row.name == header.name for row in rows):
                layouts = fitting
            chained.append(header)
            is_laid_out = is_laid_out or bool(fitting)
            is_unbroken = is_unbroken and is_next
            if record.startswith(b"data/"):
                self.begins_whole = self.begins_whole or is_unbroken
                is_unbroken = False
            ends = self._ends(header, start, rows, sizes.get(record))
            gaps = _DESCRIPTORS if header.has_descriptor else (0,)
            linked = {end + gap for end in ends for gap in gaps} | stops
            inside = max(ends, default=start)
            if inside > start:
                self._extents.append((start, inside))
        if not is_laid_out:
            names = [header.name[len(self.root) :] for header in chained]
            doubted = {self.root + name for name in _out_of_order(names, sizes)}
            doubted -= self._rows.keys()
            self._misnamed |= doubted
            chained = [header for header in chained if header.name not in doubted]
        return chained, elsewhere, in_no_record

    def _start_of(self, header: LocalHeader) -> int:
        """Return where the bytes of a record start; without lengths, where torch aligns them."""
        if is_sound_extra(self._source, header.name_end, header.data_offset):
            return header.data_offset
        return aligned(header.name_end + 4, self.start)

    def _ends(
        self, header: LocalHeader, start: int, rows: list[Row], nbytes: int | None
    ) -> set[int]:
        """Return where the bytes of a record may end: as its descriptor or else all claims say."""
        said = {row.compressed for row in rows if row.name == header.name}
        if not header.has_descriptor:
            said.add(header.compressed)
        if nbytes is not None and header.method == STORED:
            said.add(nbytes)
        ends = {start + each for each in said}
        confirmed = {end for end in ends if has_descriptor(self._source, start, end)}
        if ends:
            return confirmed or ends
        found = find_descriptor(self._source, start, self._source.size)
        return set() if found is None else {found}

    def _layouts(self, sizes: Mapping[bytes, int]) -> list[dict[int, bytes]]:
        """Return which record torch.save begins at which byte, for each way it had to do so."""
        if not sizes:
            return []
        root = self.root[:-1].decode("utf-8", "surrogateescape")
        storages = [(name, nbytes) for name, nbytes in sizes.items() if name != PICKLE]
        made = []
        for small in _SMALL_RECORDS:
            # Releases before 2.7 write the storages in the order of their keys as strings.
            for ordered in (storages, sorted(storages)):
                records = [(PICKLE, sizes.get(PICKLE, 0)), *small, *ordered]
                starts, _ = measure(root, [(len(name), nbytes) for name, nbytes in records])
                names = [name for name, _ in records]
                made.append({self.start + at: name for at, name in zip(starts, names, strict=True)})
        return made

    @property
    def stop(self) -> int:
        """The offset after the archive, 0 if its end is missing."""
        return max([each.stop for each in self.directories if each.ends], default=0)

    @property
    def is_anchored(self) -> bool:
        """Whether the archive begins or ends with the file: any others are in tensors."""
        return not self.start or self.stop == self._source.size

    def spans_of_others(self) -> list[tuple[int, int]]:
        """Return the extents of other archives that are not in a record of this one."""
        found: list[tuple[int, int]] = []
        for base, stop in sorted((each.base, each.stop) for each in self.others):
            index = bisect.bisect_right(self._extents, (base, self._source.size)) - 1
            inside = index >= 0 and stop <= self._extents[index][1] <= self._source.size
            if not inside and base > self.start and (not found or stop > found[-1][1]):
                found.append((base, stop))
        return found

    # -- lookup -----------------------------------------------------------------------

    def all(self) -> list[Place]:
        """Return all places in file order."""
        return [self._places[offset] for offset in sorted(self._places)]

    def names(self) -> list[bytes]:
        """Return every name that is claimed for a place, without the archive name."""
        return [name[len(self.root) :] for name in self._claims]

    def claims(self, name: bytes) -> list[Place]:
        """Return the places for which a name is claimed, perhaps among others; firm ones first."""
        return self._claims.get(self.root + name, [])

    def rows(self, name: bytes) -> list[Row]:
        """Return the rows of a name, wherever they point."""
        return self._rows.get(self.root + name, [])

    def firm(self, name: bytes) -> list[Place]:
        """Return the places where header and directory agree on a name."""
        return [place for place in self.claims(name) if place.is_firm(self.root + name)]

    def candidates(self, name: bytes) -> list[Place]:
        """Return where a record may be: its firm places, else those that no other can have."""
        found = []
        for place in self.claims(name):
            others = {claim.name[len(self.root) :] for claim in place.claims} - {name}
            if not any(other in self._expected and not self.firm(other) for other in others):
                found.append(place)
        return self.firm(name) or found

    def why_not(self, name: bytes) -> str:
        """Return why a record has no candidate."""
        if self.claims(name):
            return "two records claim its place, and nothing shows which of them it is"
        if self.root + name in self._misnamed:
            return (
                "its name is out of the file's order, and no directory is left to compare it with"
            )
        if self.root + name in self._elsewhere:
            return (
                "a record of its name is not where the record before it ends, and no "
                "directory is left that leads to it: it may belong to another archive"
            )
        return "its record is not in what is left of the file"

    def after(self, offset: int) -> int:
        """Return where the next record or directory begins, or the file ends."""
        index = bisect.bisect_right(self._borders, offset)
        return self._borders[index] if index < len(self._borders) else self._source.size


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
    if len(rows) < _MOST_OF_A_NAME and all(row.says != each.says for each in rows):
        rows.append(row)


def _root_of(marks: Iterable[Mark]) -> bytes:
    """Return the archive name with its slash: the first that occurs twice."""
    found = [
        match[1] or b""
        for mark in marks
        if isinstance(mark, LocalHeader | Row) and (match := _ROOT.fullmatch(mark.name))
    ]
    counts = Counter(found)
    return next((root for root in found if counts[root] > 1), found[0] if found else b"")


def _out_of_order(names: list[bytes], sizes: Mapping[bytes, int]) -> set[bytes]:
    """Return the storages beside which there are others than in their order.

    It is that of the pickle, or that of their names, as they were written one after the other. A
    file may have an order of its own.
    """
    storages = dict.fromkeys(name for name in sizes if name != PICKLE)
    stored = [name for name in names if name in storages]
    found = []
    for order in (storages, sorted(storages)):
        ranks = {b"": -1} | {name: rank for rank, name in enumerate(order)}
        pairs = itertools.pairwise([b"", *stored])
        found.append([pair for pair in pairs if ranks[pair[1]] != ranks[pair[0]] + 1])
    breaks = min(found, key=len)
    return set(itertools.chain(*breaks)) if 2 * len(breaks) <= len(stored) else set()
