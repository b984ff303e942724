"""Finds the intact records of a damaged archive, as confirmed by their CRC-32.

The offset, size and CRC of a record each occur several times in a file: in the local header, the
directory, the descriptor after the data, and the pickle. The offset also follows from the alignment
and from neighbouring records. Every combination is a candidate, and bytes that match the stored CRC
are correct, however they were found: a wrong candidate matches with a chance of one in 4 billion,
and there are few. So one damaged byte outside a record never loses a record, and one inside a
record loses only that record.

The directory's CRC is stored far from the bytes and next to the name, so it decides: bytes that
match only their own descriptor could belong to another record that was moved here. One damaged byte
in the directory's CRC is tolerated.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from typing import NamedTuple

from torchzip.container.damaged.correction import MOST_BIT_NBYTES, corrected
from torchzip.container.damaged.marks import (
    aligned,
    find_descriptor,
    has_descriptor,
    is_sound_extra,
    past_the_end,
    read_descriptors,
    read_lengths,
    scan,
)
from torchzip.container.damaged.places import Place, Places
from torchzip.container.inflating import MAX_RATIO, measure_deflated
from torchzip.container.zip_layout import (
    DEFLATED,
    DESCRIPTOR,
    DESCRIPTOR_MAGIC,
    LOCAL,
    STORED,
)
from torchzip.files.crc import crc32
from torchzip.files.source import Source
from torchzip.limits import Limits

#: Bytes of a descriptor after a record; none if the local header has the sizes.
_GAPS = (16, 24, 0)
_BLOCK_NBYTES = 1 << 20
#: Fewer zeros at the end of a file mean nothing.
_MANY_ZEROS = 64
#: Bytes that may be read in all, as hostile files describe overlapping records. Each read counts
#: some bytes extra.
_WORK = 8
_LEAST_WORK = 1 << 26
_LOOK_NBYTES = 256
#: Bytes of small records that may be searched for a damaged byte: about a second in all.
_MOST_CORRECTED = 2 * MOST_BIT_NBYTES


class Whole(NamedTuple):
    """A record whose bytes were found. ``crc`` is None if no CRC confirms them.

    ``is_own`` is False if nothing confirms that it belongs to this archive. ``deflated_nbytes`` is
    how many bytes it takes if it is deflated.
    """

    offset: int
    nbytes: int
    crc: int | None
    is_own: bool
    deflated_nbytes: int = 0


class Text(NamedTuple):
    """The bytes of a small record. ``fixed`` is the byte that was corrected by its CRC."""

    data: bytes
    is_verified: bool
    fixed: int | None = None


class _Sought(NamedTuple):
    """A record at a place where it may be.

    ``by_rows`` are its CRCs in the directory. Its bytes start at ``begin`` by the lengths in its
    header (None if there are none), which may be damaged; its name ends at ``name_end``, and the
    next record or directory begins at ``after``.
    """

    place: Place
    by_rows: set[int]
    begin: int | None
    name_end: int
    after: int

    def has_size(self, nbytes: int) -> bool:
        return any(row.nbytes == nbytes for row in self.place.rows)


class DamagedArchive:
    """What is left of an archive of ``torch.save``. Nothing here raises for damage."""

    def __init__(self, source: Source, limits: Limits) -> None:
        self.source = source
        self.places = Places(scan(source, limits), source)
        self._work = _WORK * source.size + _LEAST_WORK
        self._correction = min(_WORK * source.size, _MOST_CORRECTED)
        own = (place for place in self.places.all() if place.is_own)
        self.has_crcs = any(map(self._crcs_beside, own))
        #: Where its content ends: zeros at the end, from an incomplete copy, do not count.
        self.stop = source.size if self.places.stop else source.size - _count_zeros(source)

    # -- whether bytes are right ---------------------------------------------------------------

    def _may_look(self, nbytes: int) -> bool:
        """Count bytes that are read; return whether there are that many left to read."""
        self._work -= nbytes + _LOOK_NBYTES
        return self._work >= 0

    def _crc(self, offset: int, nbytes: int) -> int | None:
        """Return the CRC of bytes; None if reading them would be too much work."""
        if not self._may_look(nbytes):
            return None
        found = 0
        for start in range(offset, offset + nbytes, _BLOCK_NBYTES):
            block = self.source.read_at(start, min(_BLOCK_NBYTES, offset + nbytes - start))
            found = crc32(block, found)
        return found

    def _crcs_beside(self, place: Place) -> set[int]:
        """Return the CRCs of a place in its rows and header, and before the next record."""
        after = self.places.after(place.offset)
        found = {claim.crc for claim in place.claims}
        for gap in _GAPS[:2]:
            behind = read_descriptors(self.source, after - gap)
            found |= {each.crc for each in behind if each.is_signed}
        return found - {0}

    def stored_crcs(self, name: bytes) -> set[int]:
        """Return every stored CRC of a small record, correct or not."""
        found: set[int] = set()
        for place in self.places.candidates(name):
            found |= self._seek(place, name).by_rows | self._crcs_beside(place)
        return found

    def _seek(self, place: Place, name: bytes) -> _Sought:
        rows = [*place.rows, *([] if self.places.firm(name) else self.places.rows(name))]
        return _Sought(
            place,
            {row.crc for row in rows if row.crc},
            read_lengths(self.source, place.offset),
            place.offset + LOCAL.size + len(self.places.root) + len(name),
            self.places.after(place.offset),
        )

    def _other_crcs(self, place: Place, end: int, compressed: int, nbytes: int) -> set[int]:
        """Return the CRCs in the descriptor and the local header."""
        found = {
            each.crc
            for each in read_descriptors(self.source, end)
            if each.is_signed or (each.compressed, each.nbytes) == (compressed, nbytes)
        }
        if place.local is not None:
            found.add(place.local.crc)
        return found - {0}

    def _is_own(self, place: Place) -> bool:
        return place.is_own and self.places.is_anchored

    def _is_beside(self, sought: _Sought, start: int, nbytes: int) -> bool:
        """Return whether bytes lie between a header and the next one, so that they must be its own.

        A damaged length can lead into a later record, or into an archive in a tensor.
        """
        name_end = sought.name_end
        is_at_header = start in (name_end, aligned(name_end + 4, self.places.start)) or (
            start == sought.begin and is_sound_extra(self.source, name_end, start)
        )
        return is_at_header and start + nbytes <= sought.after

    # -- records -------------------------------------------------------------------------------

    def find(self, name: bytes, nbytes: int) -> Whole | str:
        """Return the place of a record of that size, or why it was not found."""
        if not nbytes:
            return Whole(0, 0, None, True)
        candidates = self.places.candidates(name)
        if not candidates:
            return self.places.why_not(name)
        found: list[Whole] = []
        reasons: list[str] = []
        for place in candidates:
            sought = self._seek(place, name)
            result = self._find(sought, [nbytes], [nbytes])
            if isinstance(result, str):
                result = self._find_before_cut(sought, nbytes) or result
            if isinstance(result, str):
                reasons.append(result)
            elif place.is_firm(self.places.root + name):
                return result
            else:
                found.append(result)
        if len({each.crc for each in found}) > 1 or (len(found) > 1 and found[0].crc is None):
            return "there are several records of its name, and nothing shows which of them it is"
        return found[0] if found else reasons[0]

    def find_unmeasured(self, name: bytes) -> Whole | None:
        """Return the place of a record whose size only the archive knows, if its CRC matches."""
        for place in self.places.candidates(name):
            sought = self._seek(place, name)
            found = self._find(sought, *self._sizes(sought, name, self.source.size))
            if isinstance(found, Whole) and found.crc is not None:
                return found
        return None

    def _find(self, sought: _Sought, stored: list[int], deflated: list[int]) -> Whole | str:
        """Return where the bytes of a record are, stored or deflated, of one of some sizes."""
        methods = {claim.method for claim in sought.place.claims}
        result: Whole | str = "its deflated bytes are damaged or cut short"
        if methods != {DEFLATED}:
            result = self._find_stored(sought, stored)
        if isinstance(result, str) and DEFLATED in methods:
            found = (self._find_deflated(sought, nbytes) for nbytes in deflated)
            result = next((whole for whole in found if whole is not None), result)
        return result

    def _find_stored(self, sought: _Sought, sizes: list[int]) -> Whole | str:
        place, by_rows = sought.place, sought.by_rows
        begin = place.offset if sought.begin is None else sought.begin
        reason = ""
        inside = [each for each in sizes if place.rows or begin + each <= self.source.size]
        for start, nbytes in self._spans(sought, inside):
            found = self._crc(start, nbytes)
            if found is None:
                return "the file describes too many overlapping records to read them all"
            by_others = self._other_crcs(place, start + nbytes, nbytes, nbytes)
            is_beside = self._is_beside(sought, start, nbytes)
            if _is_vouched_for(found, by_rows, by_others if is_beside else set()):
                return Whole(start, nbytes, found, self._is_own(place))
            is_described = has_descriptor(self.source, start, start + nbytes)
            is_sized = is_described or (start == sought.begin and sought.has_size(nbytes))
            if is_beside and is_sized and not self.has_crcs:
                return Whole(start, nbytes, None, self._is_own(place))
            reason = reason or _damaged(found, by_rows | by_others)
            if start == sought.begin and is_beside and is_described:
                break  # all descriptions agree on its place
        return reason or past_the_end(self.source, begin, max(sizes, default=0))

    def _spans(self, sought: _Sought, sizes: list[int]) -> Iterator[tuple[int, int]]:
        """Yield where the bytes of a stored record may be, the most likely offsets first."""
        by_header = [aligned(sought.name_end + 4, self.places.start), sought.name_end]
        if sought.begin is not None:
            by_header.insert(0, sought.begin)
        first = max(sought.place.offset + LOCAL.size, 0)
        for nbytes in dict.fromkeys(sizes):
            starts = [*by_header, *(sought.after - gap - nbytes for gap in _GAPS)]
            last = self.source.size - nbytes
            possible = [at for at in dict.fromkeys(starts) if nbytes > 0 and first <= at <= last]
            possible.sort(key=lambda at: not has_descriptor(self.source, at, at + nbytes))
            yield from ((at, nbytes) for at in possible)

    def _find_before_cut(self, sought: _Sought, nbytes: int) -> Whole | None:
        """Return a record after whose bytes the file was cut, before or within its descriptor."""
        place, start = sought.place, sought.begin
        if start is None or sought.by_rows or place.local is None or place.local.crc:
            return None
        left = self.stop - start - nbytes
        if not 0 <= left < DESCRIPTOR.size or not self._is_beside(sought, start, nbytes):
            return None
        crc = (self._crc(start, nbytes) if self.has_crcs else 0) or 0
        low = nbytes & 0xFFFFFFFF
        is_cut = DESCRIPTOR.pack(DESCRIPTOR_MAGIC, crc, low, low).startswith(
            bytes(self.source.read_at(start + nbytes, left))
        )
        return Whole(start, nbytes, None, self._is_own(place)) if is_cut else None

    def _find_deflated(self, sought: _Sought, nbytes: int) -> Whole | None:
        name_end = sought.name_end
        begin = name_end if sought.begin is None else sought.begin
        for start in dict.fromkeys([begin, name_end]):
            room = sought.after - start
            if start < 0 or room <= 0 or nbytes > room * MAX_RATIO:
                continue
            if not self._may_look(nbytes + room):
                break
            measured = measure_deflated(self.source, start, sought.after, nbytes)
            if measured is None or measured[1] != nbytes:
                continue
            compressed, _, found = measured
            by_others = self._other_crcs(sought.place, start + compressed, compressed, nbytes)
            if _is_vouched_for(found, sought.by_rows, by_others):
                return Whole(start, nbytes, found, self._is_own(sought.place), compressed)
        return None

    # -- small records ---------------------------------------------------------------------------

    def read_text(self, name: bytes, most: int) -> Text | None:
        """Return the bytes of a small record if they are correct, or can be corrected."""
        texts = (self.read_text_at(place, name, most) for place in self.places.candidates(name))
        return next((text for text in texts if text is not None), None)

    def read_text_at(self, place: Place, name: bytes, most: int) -> Text | None:
        """Do what `read_text` does, for one place."""
        sought = self._seek(place, name)
        stored, deflated = self._sizes(sought, name, most)
        whole = self._find(sought, stored, deflated)
        if isinstance(whole, Whole) and (whole.crc is not None or not self.has_crcs):
            data = bytes(self.source.read_at(whole.offset, whole.deflated_nbytes or whole.nbytes))
            if whole.deflated_nbytes:
                data = zlib.decompressobj(-15).decompress(data, whole.nbytes)
            return Text(data, whole.crc is not None)
        return self._read_corrected(sought, stored)

    def _sizes(self, sought: _Sought, name: bytes, most: int) -> tuple[list[int], list[int]]:
        """Return the sizes that a record may have if it is stored, and if it is deflated."""
        start, after = sought.begin, sought.after
        claims = [*sought.place.claims, *self.places.rows(name)]
        stored, deflated = (
            [each.nbytes for each in claims if each.method == method and each.nbytes <= most]
            for method in (STORED, DEFLATED)
        )
        if start is not None:
            stop = min(after, start + most)
            ends: list[int | None] = [after - gap for gap in _GAPS]
            if self._may_look(max(0, stop - start)):
                ends.append(find_descriptor(self.source, start, stop))
            stored += [end - start for end in ends if end is not None and end - start <= most]
        return stored, deflated

    def _read_corrected(self, sought: _Sought, sizes: list[int]) -> Text | None:
        """Correct one byte, if all CRCs of the record agree."""
        found = {}
        for start, nbytes in self._spans(sought, sizes):
            end = start + nbytes
            crcs = sought.by_rows | self._other_crcs(sought.place, end, nbytes, nbytes)
            is_sized = sought.has_size(nbytes) or has_descriptor(self.source, start, end)
            if len(crcs) != 1 or not is_sized:
                continue
            self._correction -= nbytes
            if self._correction < 0:
                break
            fixed = corrected(bytes(self.source.read_at(start, nbytes)), *crcs)
            if fixed is not None:
                found[fixed] = Text(fixed[0], True, fixed[1])
        return next(iter(found.values())) if len(found) == 1 else None


def _count_zeros(source: Source) -> int:
    """Return how many zeros a file ends with, or 0 if they are few."""
    start = source.size
    found = 0
    while start and found == source.size - start:
        nbytes = min(start, _BLOCK_NBYTES)
        start -= nbytes
        found += nbytes - len(bytes(source.read_at(start, nbytes)).rstrip(b"\0"))
    return found if found >= _MANY_ZEROS else 0


def _is_vouched_for(found: int, by_rows: set[int], by_others: set[int]) -> bool:
    """Return whether a CRC is the stored one; a byte of the directory's may be damaged."""
    if not by_rows and not by_others:
        return found == 0  # a CRC can be 0 by chance
    damaged_bytes = (sum(map(bool, (found ^ crc).to_bytes(4, "big"))) for crc in by_rows)
    return found in by_rows or (found in by_others and all(count <= 1 for count in damaged_bytes))


def _damaged(found: int, known: set[int]) -> str:
    if not known:
        return "no CRC of its bytes is left"
    if found in known:
        return "the record in its place may be another one: only its own descriptor matches"
    said = " or ".join(f"{crc:08x}" for crc in sorted(known)[:2])
    return f"its bytes are damaged: their CRC-32 is {found:08x}, {said} was stored"
