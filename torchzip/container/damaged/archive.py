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
from typing import NamedTuple

from torchzip.container.damaged.correction import MOST_BIT_NBYTES, corrected
from torchzip.container.damaged.marks import (
    Descriptor,
    aligned,
    find_descriptor,
    is_sound_extra,
    read_descriptors,
    read_lengths,
    scan,
)
from torchzip.container.damaged.places import Place, Places
from torchzip.container.inflating import MAX_RATIO, measure_deflated
from torchzip.container.zip_layout import (
    DEFLATED,
    DESCRIPTOR,
    DESCRIPTOR_64,
    DESCRIPTOR_MAGIC,
    STORED,
)
from torchzip.files.crc import crc32
from torchzip.files.source import Source
from torchzip.limits import Limits

#: Lengths of a local header's zip64 field, docs/format.md, section 2.6.
_ZIP64_LENGTHS = (20, 28, 12)
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
_SMALL_RECORDS = frozenset(
    [
        b"data.pkl", b"byteorder", b"version", b".format_version", b".storage_alignment",
        b".data/version", b".data/serialization_id", b"constants.pkl", b"archive_format",
    ]
)  # fmt: skip


class Whole(NamedTuple):
    """A record whose bytes were found. ``crc`` is None if no CRC confirms them.

    ``is_own`` is False if nothing confirms that it belongs to this archive.
    """

    offset: int
    nbytes: int
    crc: int | None
    is_deflated: bool = False
    compressed: int = 0
    is_own: bool = True


class Text(NamedTuple):
    """The bytes of a small record. ``fixed`` is the byte that was corrected by its CRC."""

    data: bytes
    is_verified: bool
    fixed: int | None = None


class DamagedArchive:
    """What is left of an archive of ``torch.save``. Nothing here raises for damage."""

    def __init__(self, source: Source, limits: Limits) -> None:
        self.source = source
        self.places = Places(scan(source, limits), source)
        self._work = _WORK * source.size + _LEAST_WORK
        self._correction = min(_WORK * source.size, _MOST_CORRECTED)
        self._expected: set[bytes] | None = None
        self.has_crcs = self._find_crcs()
        #: Where its content ends: zeros at the end, from an incomplete copy, do not count.
        self.stop = source.size if self.places.stop else source.size - _count_zeros(source)

    @property
    def is_empty(self) -> bool:
        """Whether no record is left."""
        return not self.places.all()

    def expect(self, names: set[bytes]) -> None:
        """Set the records that the pickle mentions: any other name is a damaged one."""
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

    def _row_crcs(self, place: Place, name: bytes) -> set[int]:
        rows = list(place.rows)
        if not self.places.firm(name):
            rows += self.places.rows(name)
        return {row.crc for row in rows if row.crc}

    def _vouched(
        self, found: int, by_rows: set[int], by_others: set[int], *, is_beside: bool = True
    ) -> bool:
        """Return whether a CRC matches; bytes away from their header may be another record's."""
        if found in by_rows or (found == 0 and not by_rows and not by_others):
            return True  # a CRC can be 0 by chance
        return (
            is_beside
            and found in by_others
            and all(_is_one_byte_apart(found, crc) for crc in by_rows)
        )

    def _other_crcs(self, place: Place, end: int, compressed: int, nbytes: int) -> set[int]:
        """Return the CRCs in the descriptor and the local header."""
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
        """Return whether bytes lie between a header and the next one, so that they must be its own.

        A damaged length can lead into a later record, or into an archive in a tensor.
        """
        name_end = self._name_end(place, name)
        by_lengths = read_lengths(self.source, place.offset)
        is_at_header = start in (name_end, self._aligned(name_end + 4)) or (
            start == by_lengths and is_sound_extra(self.source, name_end, start)
        )
        return is_at_header and start + nbytes <= self._after(place)

    def _starts_by_header(self, place: Place, name: bytes) -> list[int]:
        """Return where the bytes may start: by the header's lengths, aligned, or unpadded."""
        by_lengths = read_lengths(self.source, place.offset)
        name_end = self._name_end(place, name)
        found = [self._aligned(name_end + 4), name_end]
        return found if by_lengths is None else [by_lengths, *found]

    def _name_end(self, place: Place, name: bytes) -> int:
        return place.offset + 30 + len(self.places.root) + len(name)

    def _aligned(self, offset: int) -> int:
        return aligned(offset, self.places.start)

    def _starts(self, place: Place, name: bytes, nbytes: int) -> list[int]:
        """Return where the bytes of a stored record may start, the most likely offset first."""
        found = self._starts_by_header(place, name)
        after = self._after(place)
        found += [after - back - nbytes for back in (16, 24, 0)]
        name_end = self._name_end(place, name)
        found += [self._aligned(name_end + length + 4) for length in _ZIP64_LENGTHS]
        last = self.source.size - nbytes
        inside = [at for at in dict.fromkeys(found) if place.offset + 30 <= at <= last]
        return sorted(inside, key=lambda at: not self._has_descriptor(at + nbytes, nbytes))

    def find(self, name: bytes, nbytes: int) -> Whole | str:
        """Return the place of a record of that size, or the reason why there is none."""
        if not nbytes:
            return Whole(0, 0, None)
        candidates = self.places.candidates(name, self._is_expected)
        if not candidates:
            if self.places.claims(name):
                return "two records claim its place, and nothing shows which of them it is"
            if self.places.is_elsewhere(name):
                return (
                    "a record of its name is not where the record before it ends, and no "
                    "directory is left that leads to it: it may belong to another archive"
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
            return "there are several records of its name, and nothing shows which of them it is"
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
            # Usually nothing is wrong.
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
                return "the file describes too many overlapping records to read them all"
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
                return reason  # all descriptions agree on its place
        return reason

    def _is_unjudged(
        self, place: Place, end: int, nbytes: int, found: int, by_rows: set[int]
    ) -> bool:
        """Return whether a record is where it should be, and no CRC of it is left."""
        if by_rows or place.local is None or place.local.crc:
            return False
        name_end = place.offset + 30 + len(place.local.name)
        if not is_sound_extra(self.source, name_end, place.local.data_offset):
            return False
        if self.has_crcs and place.rows:
            return False
        if any(row.nbytes == nbytes for row in place.rows):
            return True
        # The file was cut after the bytes, before or within their descriptor.
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
        """Return the bytes of a small record if they are correct, or can be corrected."""
        for place in self.places.candidates(name, self._is_expected):
            text = self.read_text_at(place, name, most)
            if text is not None:
                return text
        return None

    def read_text_at(self, place: Place, name: bytes, most: int) -> Text | None:
        """Do what `read_text` does, for one place."""
        whole = self._measure(place, name, most)
        if whole is not None:
            return Text(self._content(whole), True)
        spans = self._spans(place, name, most)
        if not self.has_crcs:
            return self._read_unjudged(place, spans)
        by_rows = self._row_crcs(place, name)
        return self._read_corrected(place, spans, by_rows)

    def find_unmeasured(self, name: bytes) -> Whole | None:
        """Return the place of a record whose size only the archive knows, if its CRC matches."""
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
        """Correct one byte, if all CRCs of the record agree."""
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
        """Return every stored CRC of a small record, correct or not."""
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
    """Return how many zeros a file ends with, or 0 if they are few."""
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
        return "the record in its place may be another one: only its own descriptor matches"
    said = " or ".join(f"{crc:08x}" for crc in sorted(known)[:2])
    return f"its bytes are damaged: their CRC-32 is {found:08x}, {said} was stored"
