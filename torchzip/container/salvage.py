"""The records of a damaged archive that are whole, with a CRC-32 as the judge.

A record's place, its size and its CRC each stand in the file more than once: in the local
header, in the directory, in the descriptor behind the data, in the pickle; and the place follows
from the alignment and from its neighbours as well. Every combination is a candidate, and bytes
whose CRC is the stored one are right, however they were found: a wrong candidate has a chance of
one in 4 billion, and there are few. So one damaged byte outside of a record never loses it, and one
inside loses that record alone.

The directory's CRC binds bytes to a name from afar, so it has the last word: bytes that only their
own descriptor vouches for must not be those of another record that came to lie here. One damaged
byte in the directory's CRC is forgiven.
"""

from __future__ import annotations

import zlib
from typing import NamedTuple

from torchzip.container.crc_correction import MOST_BIT_NBYTES, corrected
from torchzip.container.inflating import MAX_RATIO, measure_deflated
from torchzip.container.zip_layout import (
    DEFLATED,
    DESCRIPTOR,
    DESCRIPTOR_64,
    DESCRIPTOR_MAGIC,
    STORED,
)
from torchzip.container.zip_marks import (
    Descriptor,
    find_descriptor,
    is_sound_extra,
    read_descriptors,
    read_lengths,
    scan,
)
from torchzip.container.zip_places import Place, Places
from torchzip.files.crc import crc32
from torchzip.files.source import Source
from torchzip.limits import Limits

#: Records of torch.save start on a multiple of this, unless it was told otherwise.
_ALIGNMENT = 64
#: Lengths of a local header's zip64 field, docs/format.md, section 2.6.
_ZIP64_LENGTHS = (20, 28, 12)
_BLOCK_NBYTES = 1 << 20
#: Fewer zeros at the end of a file say nothing.
_MANY_ZEROS = 64
#: Bytes of the file that may be looked at, over and over: hostile files describe records that
#: overlap. Each look counts as some more.
_WORK = 8
_LEAST_WORK = 1 << 26
_LOOK_NBYTES = 256
#: Bytes of small records that are gone through for a damaged one: about a second in all.
_MOST_CORRECTED = 2 * MOST_BIT_NBYTES
_SMALL_RECORDS = frozenset(
    [
        b"data.pkl", b"byteorder", b"version", b".format_version", b".storage_alignment",
        b".data/version", b".data/serialization_id", b"constants.pkl", b"archive_format",
    ]
)  # fmt: skip


class Whole(NamedTuple):
    """A record whose bytes are there. ``crc`` is None if no CRC says that they are right.

    ``is_own`` is False if nothing says that it is of this archive.
    """

    offset: int
    nbytes: int
    crc: int | None
    is_deflated: bool = False
    compressed: int = 0
    is_own: bool = True


class Text(NamedTuple):
    """The bytes of a small record. ``fixed`` is the byte of it that its CRC has put right."""

    data: bytes
    is_verified: bool
    fixed: int | None = None


class DamagedArchive:
    """What is left of an archive of ``torch.save``. Nothing here raises for what it finds."""

    def __init__(self, source: Source, limits: Limits) -> None:
        self.source = source
        self.places = Places(scan(source, limits), source)
        self._work = _WORK * source.size + _LEAST_WORK
        self._correction = min(_WORK * source.size, _MOST_CORRECTED)
        self._expected: set[bytes] | None = None
        self.has_crcs = self._find_crcs()
        #: Where what is left of it ends: the zeros of a copy that was not finished are nothing.
        self.stop = source.size if self.places.stop else source.size - _count_zeros(source)

    @property
    def is_empty(self) -> bool:
        """Whether there is no record at all."""
        return not self.places.all()

    def expect(self, names: set[bytes]) -> None:
        """Say which records the pickle mentions: what is called otherwise, is damaged there."""
        self._expected = names

    def _is_expected(self, name: bytes) -> bool:
        if name in _SMALL_RECORDS:
            return True
        if self._expected is not None:
            return name in self._expected
        return name.startswith(b"data/")

    def _find_crcs(self) -> bool:
        places = self.places.all()
        if any(row.crc for place in places for row in place.rows):
            return True
        if any(place.local is not None and place.local.crc for place in places):
            return True
        for place in places:
            after = self.places.after(place.offset, self.source.size)
            for back in (16, 24):
                if any(each.is_signed and each.crc for each in self._descriptors(after - back)):
                    return True
        return False

    def _descriptors(self, offset: int) -> list[Descriptor]:
        return read_descriptors(self.source, offset)

    def _after(self, place: Place) -> int:
        return self.places.after(place.offset, self.source.size)

    # -- whether bytes are right ---------------------------------------------------------------

    def _may_look(self, nbytes: int) -> bool:
        """Take bytes from what may be looked at; return whether there is that much."""
        self._work -= nbytes + _LOOK_NBYTES
        return self._work >= 0

    def _crc(self, offset: int, nbytes: int) -> int | None:
        """Return the CRC of bytes; None if looking at them would be too much work."""
        if not self._may_look(nbytes):
            return None
        found = 0
        for start in range(offset, offset + nbytes, _BLOCK_NBYTES):
            block = self.source.read_at(start, min(_BLOCK_NBYTES, offset + nbytes - start))
            found = crc32(block, found)
        return found

    def _row_crcs(self, place: Place, name: bytes) -> set[int]:
        rows = list(place.rows)
        if not self.places.firm(name):
            rows += self.places.rows(name)
        return {row.crc for row in rows if row.crc}

    def _vouched(
        self, found: int, by_rows: set[int], by_others: set[int], *, is_beside: bool = True
    ) -> bool:
        """Return whether a CRC is right; bytes away from their header may be another record's."""
        if found in by_rows or (found == 0 and not by_rows and not by_others):
            return True  # a CRC of 0 is what bytes may have, if rarely
        return (
            is_beside
            and found in by_others
            and all(_is_one_byte_apart(found, crc) for crc in by_rows)
        )

    def _other_crcs(self, place: Place, end: int, compressed: int, nbytes: int) -> set[int]:
        """Return what descriptor and local header say."""
        found = {
            each.crc
            for each in self._descriptors(end)
            if each.is_signed or (each.compressed, each.nbytes) == (compressed, nbytes)
        }
        if place.local is not None:
            found.add(place.local.crc)
        return found - {0}

    def _has_descriptor(self, end: int, nbytes: int) -> bool:
        return any(
            each.is_signed and each.compressed == each.nbytes == nbytes
            for each in self._descriptors(end)
        )

    def _is_beside(self, place: Place, name: bytes, start: int, nbytes: int) -> bool:
        """Return whether bytes are so between a header and the next that they can be no other's.

        A damaged length can lead into the next record but one, or into an archive in a tensor.
        """
        name_end = self._name_end(place, name)
        by_lengths = read_lengths(self.source, place.offset)
        is_at_header = start in (name_end, self._aligned(name_end + 4)) or (
            start == by_lengths and is_sound_extra(self.source, name_end, start)
        )
        return is_at_header and start + nbytes <= self._after(place)

    def _starts_by_header(self, place: Place, name: bytes) -> list[int]:
        """Return where the bytes start by the header's lengths, by the alignment, or at once."""
        by_lengths = read_lengths(self.source, place.offset)
        name_end = self._name_end(place, name)
        found = [self._aligned(name_end + 4), name_end]
        return found if by_lengths is None else [by_lengths, *found]

    def _name_end(self, place: Place, name: bytes) -> int:
        return place.offset + 30 + len(self.places.root) + len(name)

    def _aligned(self, offset: int) -> int:
        return offset + (self.places.start - offset) % _ALIGNMENT

    def _starts(self, place: Place, name: bytes, nbytes: int) -> list[int]:
        """Return where the bytes of a stored record may start, the likeliest first."""
        found = self._starts_by_header(place, name)
        after = self._after(place)
        found += [after - back - nbytes for back in (16, 24, 0)]
        name_end = self._name_end(place, name)
        found += [self._aligned(name_end + length + 4) for length in _ZIP64_LENGTHS]
        last = self.source.size - nbytes
        inside = [at for at in dict.fromkeys(found) if place.offset + 30 <= at <= last]
        return sorted(inside, key=lambda at: not self._has_descriptor(at + nbytes, nbytes))

    def find(self, name: bytes, nbytes: int) -> Whole | str:
        """Return where a record of that size is, or why there is none."""
        if not nbytes:
            return Whole(0, 0, None)
        candidates = self.places.candidates(name, self._is_expected)
        if not candidates:
            if self.places.claims(name):
                return "its place is claimed by two records, and nothing tells which of them it is"
            if self.places.is_elsewhere(name):
                return (
                    "a record of its name does not stand where the record before it ends, and no "
                    "directory is left that leads to it: it may be of another archive"
                )
            return "its record is not in what is left of the file"
        found: list[Whole] = []
        reasons: list[str] = []
        for place in candidates:
            result = self._find_at(place, name, nbytes)
            if isinstance(result, str):
                reasons.append(result)
            else:
                result = result._replace(is_own=self._is_own(place))
                found.append(result)
                if place.is_firm(self.places.root + name):
                    return result
        if len({each.crc for each in found}) > 1 or (len(found) > 1 and found[0].crc is None):
            return "several records of its name are there, and nothing tells which of them it is"
        return found[0] if found else reasons[0]

    def _is_own(self, place: Place) -> bool:
        return place.is_own and self.places.is_anchored

    def _find_at(self, place: Place, name: bytes, nbytes: int) -> Whole | str:
        methods = {row.method for row in place.rows}
        if place.local is not None:
            methods.add(place.local.method)
        by_rows = self._row_crcs(place, name)
        result: Whole | str = "its bytes are damaged"
        if methods != {DEFLATED}:
            result = self._find_stored(place, name, nbytes, by_rows)
        if isinstance(result, str) and DEFLATED in methods:
            deflated = self._find_deflated(place, name, nbytes, by_rows)
            if methods == {DEFLATED} or not isinstance(deflated, str):
                result = deflated
        return result

    def _find_stored(
        self, place: Place, name: bytes, nbytes: int, by_rows: set[int]
    ) -> Whole | str:
        by_lengths = read_lengths(self.source, place.offset)
        if by_rows and by_lengths is not None and by_lengths + nbytes <= self.source.size:
            # Mostly there is nothing wrong.
            found = self._crc(by_lengths, nbytes)
            if found in by_rows:
                return Whole(by_lengths, nbytes, found)
        starts = self._starts(place, name, nbytes)
        if not starts or (
            not place.rows and by_lengths is not None and by_lengths + nbytes > self.source.size
        ):
            at = place.offset if by_lengths is None else by_lengths
            return (
                f"the file ends at byte {self.source.size:,}; its {nbytes:,} bytes begin at byte "
                f"{at:,}"
            )
        reason = ""
        for start in starts:
            found = self._crc(start, nbytes)
            if found is None:
                return "the file describes so many overlapping records that not all were read"
            end = start + nbytes
            by_others = self._other_crcs(place, end, nbytes, nbytes)
            beside = self._is_beside(place, name, start, nbytes)
            if self._vouched(found, by_rows, by_others, is_beside=beside):
                return Whole(start, nbytes, found)
            if start == by_lengths and self._is_unjudged(place, end, nbytes, found, by_rows):
                return Whole(start, nbytes, None)
            if not self.has_crcs and beside and self._has_descriptor(end, nbytes):
                return Whole(start, nbytes, None)
            known = by_rows | by_others
            if not reason:
                reason = _damaged(found, known)
            if start == by_lengths and beside and self._has_descriptor(end, nbytes):
                return reason  # it lies where all say that it lies
        return reason

    def _is_unjudged(
        self, place: Place, end: int, nbytes: int, found: int, by_rows: set[int]
    ) -> bool:
        """Return whether a record is where it should be, and nothing is there to judge it by."""
        if by_rows or place.local is None or place.local.crc:
            return False
        name_end = place.offset + 30 + len(place.local.name)
        if not is_sound_extra(self.source, name_end, place.local.data_offset):
            return False
        if self.has_crcs and place.rows:
            return False
        if any(row.nbytes == nbytes for row in place.rows):
            return True
        # The file was cut behind the bytes, before or within their descriptor.
        if end > self.stop:
            return False
        tail = bytes(self.source.read_at(end, min(24, self.stop - end)))
        crc = found if self.has_crcs else 0
        wanted = (
            DESCRIPTOR.pack(DESCRIPTOR_MAGIC, crc, nbytes & 0xFFFFFFFF, nbytes & 0xFFFFFFFF),
            DESCRIPTOR_64.pack(DESCRIPTOR_MAGIC, crc, nbytes, nbytes),
        )
        return any(len(tail) < len(each) and each.startswith(tail) for each in wanted)

    def _find_deflated(
        self, place: Place, name: bytes, nbytes: int, by_rows: set[int]
    ) -> Whole | str:
        after = self._after(place)
        by_lengths = read_lengths(self.source, place.offset)
        name_end = self._name_end(place, name)
        for start in dict.fromkeys([name_end if by_lengths is None else by_lengths, name_end]):
            room = after - start
            if room <= 0 or nbytes > room * MAX_RATIO:
                continue
            if not self._may_look(nbytes + room):
                break
            measured = measure_deflated(self.source, start, after, nbytes)
            if measured is None or measured[1] != nbytes:
                continue
            compressed, _, found = measured
            by_others = self._other_crcs(place, start + compressed, compressed, nbytes)
            if self._vouched(found, by_rows, by_others):
                return Whole(start, nbytes, found, True, compressed)
        return "its deflated bytes are damaged or cut short"

    # -- small records ---------------------------------------------------------------------------

    def read_text(self, name: bytes, most: int) -> Text | None:
        """Return the bytes of a small record if they are right, or can be put right."""
        for place in self.places.candidates(name, self._is_expected):
            text = self.read_text_at(place, name, most)
            if text is not None:
                return text
        return None

    def read_text_at(self, place: Place, name: bytes, most: int) -> Text | None:
        """Return what `read_text` does for one place."""
        whole = self._measure(place, name, most)
        if whole is not None:
            return Text(self._content(whole), True)
        spans = self._spans(place, name, most)
        if not self.has_crcs:
            return self._read_unjudged(place, spans)
        by_rows = self._row_crcs(place, name)
        return self._read_corrected(place, spans, by_rows)

    def find_unmeasured(self, name: bytes) -> Whole | None:
        """Return where a record is whose size only the archive knows; its CRC agrees."""
        for place in self.places.candidates(name, self._is_expected):
            whole = self._measure(place, name, self.source.size)
            if whole is not None:
                return whole._replace(is_own=self._is_own(place))
        return None

    def _measure(self, place: Place, name: bytes, most: int) -> Whole | None:
        by_rows = self._row_crcs(place, name)
        for start, nbytes in self._spans(place, name, most):
            found = self._crc(start, nbytes)
            if found is None:
                return None
            by_others = self._other_crcs(place, start + nbytes, nbytes, nbytes)
            beside = self._is_beside(place, name, start, nbytes)
            if self._vouched(found, by_rows, by_others, is_beside=beside):
                return Whole(start, nbytes, found)
        sizes = {row.nbytes for row in place.rows if row.method == DEFLATED}
        if place.local is not None and place.local.method == DEFLATED:
            sizes.add(place.local.nbytes)
        for nbytes in sorted(sizes):
            deflated = self._find_deflated(place, name, nbytes, by_rows) if nbytes <= most else ""
            if isinstance(deflated, Whole):
                return deflated
        return None

    def _content(self, whole: Whole) -> bytes:
        if not whole.is_deflated:
            return bytes(self.source.read_at(whole.offset, whole.nbytes))
        data = self.source.read_at(whole.offset, whole.compressed)
        return zlib.decompressobj(-15).decompress(data, whole.nbytes)

    def _spans(self, place: Place, name: bytes, most: int) -> list[tuple[int, int]]:
        """Return starts and sizes that a record without a known size may have."""
        rows = dict.fromkeys((*place.rows, *self.places.rows(name)))
        sizes = [row.nbytes for row in rows if row.method == STORED]
        if place.local is not None and place.local.method == STORED:
            sizes.append(place.local.nbytes)
        by_lengths = read_lengths(self.source, place.offset)
        after = self._after(place)
        if by_lengths is not None:
            sizes += [after - back - by_lengths for back in (16, 24, 0)]
            stop = min(after, by_lengths + most)
            if self._may_look(max(0, stop - by_lengths)):
                end = find_descriptor(self.source, by_lengths, stop)
                sizes += [] if end is None else [end - by_lengths]
        return list(
            dict.fromkeys(
                (start, nbytes)
                for nbytes in dict.fromkeys(sizes)
                if 0 < nbytes <= most
                for start in self._starts(place, name, nbytes)
            )
        )

    def _read_unjudged(self, place: Place, spans: list[tuple[int, int]]) -> Text | None:
        for start, nbytes in spans:
            sized = any(row.nbytes == nbytes for row in place.rows)
            if start == read_lengths(self.source, place.offset) and (
                sized or self._has_descriptor(start + nbytes, nbytes)
            ):
                return Text(bytes(self.source.read_at(start, nbytes)), False)
        return None

    def _read_corrected(
        self, place: Place, spans: list[tuple[int, int]], by_rows: set[int]
    ) -> Text | None:
        """Put one byte right, if all CRCs that there are say the same."""
        found = {}
        for start, nbytes in spans:
            end = start + nbytes
            sized = any(row.nbytes == nbytes for row in place.rows)
            crcs = by_rows | self._other_crcs(place, end, nbytes, nbytes)
            if len(crcs) != 1 or not (sized or self._has_descriptor(end, nbytes)):
                continue
            self._correction -= nbytes
            if self._correction < 0:
                break
            fixed = corrected(bytes(self.source.read_at(start, nbytes)), *crcs)
            if fixed is not None:
                found[fixed] = Text(fixed[0], True, fixed[1])
        return next(iter(found.values())) if len(found) == 1 else None

    def stored_crcs(self, name: bytes) -> set[int]:
        """Return every CRC that is said of a small record, right or wrong."""
        found: set[int] = set()
        for place in self.places.candidates(name, self._is_expected):
            found |= self._row_crcs(place, name)
            for back in (16, 24):
                found |= {
                    each.crc
                    for each in self._descriptors(self._after(place) - back)
                    if each.is_signed
                }
        return found - {0}


def _count_zeros(source: Source) -> int:
    """Return how many zeros a file ends with, 0 if they are few."""
    start = source.size
    found = 0
    while start and found == source.size - start:
        nbytes = min(start, _BLOCK_NBYTES)
        start -= nbytes
        found += nbytes - len(bytes(source.read_at(start, nbytes)).rstrip(b"\0"))
    return found if found >= _MANY_ZEROS else 0


def _is_one_byte_apart(one: int, other: int) -> bool:
    difference = one ^ other
    return any(not difference & ~(0xFF << shift) for shift in (0, 8, 16, 24))


def _damaged(found: int, known: set[int]) -> str:
    if not known:
        return "no CRC of its bytes is left"
    if found in known:
        return "what is where it should be may be another record: only its own descriptor agrees"
    said = " or ".join(f"{crc:08x}" for crc in sorted(known)[:2])
    return f"its bytes are damaged: their CRC-32 is {found:08x}, {said} was stored"
