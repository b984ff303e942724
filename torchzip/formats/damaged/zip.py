"""What can be recovered of a damaged zip checkpoint: the object, with the storages that are whole.

The pickle is the one that the last directory with an end record points to. If that one is beyond
repair, or there is no such directory, an older one of an edited file is tried, and last the first
in the file. Without any, the storages themselves are the content, as bytes.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Iterator

from torchzip.container.damaged.archive import DamagedArchive, Text, Whole
from torchzip.container.damaged.places import Place
from torchzip.container.inflating import inflate_span
from torchzip.errors import TRUNCATED, ArchiveError, LimitError, TorchZipError, listed, printable
from torchzip.files.crc import crc32
from torchzip.files.source import Source
from torchzip.formats.base import (
    Contents,
    FileContainer,
    MakeFactory,
    MeasuringFactory,
    RecordCheck,
    contiguous_tensor,
    read_pickle,
    swap_nbytes,
)
from torchzip.formats.damaged.storages import LostStorage, WholeStorage
from torchzip.formats.zip import ZipFormat
from torchzip.limits import Limits
from torchzip.tensors.storage import FixedPlace, MeasuredStorage, StreamStorage, TensorStorage

_PICKLE = b"data.pkl"
#: Records that only archives with other pickles have, and what these are.
_OTHER_FORMATS = {b"constants.pkl": "a TorchScript archive", b"archive_format": "a .pt2 archive"}
#: Where such archives, and those of torch.save, have their tensors.
_TENSOR_FOLDERS = (b"data/", b"constants/")
#: Other archives in a file that are named.
_MOST_OTHERS = 5
_NO_TENSORS = (b".pkl", b".json", b"_pkl")


class DamagedZip(ZipFormat, FileContainer):
    """A zip archive that `ZipReader` refuses, with all that is left of it.

    Raises
    ------
    ArchiveError
        If nothing is left. The message says what was looked for.
    """

    def __init__(self, source: Source, limits: Limits) -> None:
        super().__init__(source)
        self._limits = limits
        self.notes: tuple[str, ...] = ()
        self.unverified: set[str] = set()
        self._archive = DamagedArchive(source, limits)
        if self._archive.is_empty:
            raise ArchiveError(
                "no record of a checkpoint is left: neither a local header (PK\\3\\4) nor a "
                f"directory row (PK\\1\\2) of a zip archive was found in its {source.size:,} bytes",
                path=source.name,
            )
        self.is_cut = not self._archive.places.stop
        self.end = self._archive.places.stop or source.size
        self.damage = self._find_damage()
        self._measured: dict[str, MeasuredStorage] = {}
        self._lost: dict[str, str] = {}
        self._byteorder: str = sys.byteorder
        self._data = self._choose_pickle()
        self._note_place()

    def _note(self, text: str) -> None:
        if text not in self.notes:
            self.notes += (text,)

    # -- the file as a whole ---------------------------------------------------------------------

    def _find_damage(self) -> str | None:
        """Return what is wrong with where the archive begins and ends."""
        places = self._archive.places
        said = []
        if places.start > 0:
            said.append(f"{places.start:,} bytes are before the archive")
        zeros = self.source.size - self._archive.stop
        if zeros:
            said.append(
                f"no directory is left, and the file ends with {zeros:,} zeros: it was cut short, "
                "or has its size without all of its bytes"
            )
        elif places.stop < self.source.size and not self.is_cut:
            behind = self.source.size - places.stop
            said.append(f"{behind:,} bytes follow the archive, which ends at byte {places.stop:,}")
        return "; ".join(said) or None

    def _note_place(self) -> None:
        places = self._archive.places
        if not places.is_anchored:
            self._note(
                f"the archive begins at byte {places.start:,} and ends before the file does: it "
                "may be what a tensor held"
            )

    def other_checkpoints(self) -> list[str]:
        others = self._archive.places.spans_of_others()
        return [
            f"another archive stands from byte {start:,} to byte {stop:,} and is not in what was "
            f"repaired. To have it by itself: tail -c +{start + 1} FILE | head -c {stop - start}"
            for start, stop in others[:_MOST_OTHERS]
            if start != self.end
        ]

    # -- the pickle ------------------------------------------------------------------------------

    def _choose_pickle(self) -> bytes | None:
        """Return the pickle to be trusted, if there is one, and note what its storages are."""
        for name, what in _OTHER_FORMATS.items():
            if self._archive.places.claims(name):
                self._note(
                    f"{what}, whose structure is not put together again: its tensors come back as "
                    "bytes (uint8) by their record, without names, dtypes and shapes"
                )
                return None
        places = self._pickle_places()
        reasons = []
        for index, place in enumerate(places):
            text = self._archive.read_text_at(place, _PICKLE, self._limits.pickle_nbytes)
            if text is None:
                self._check_size(place)
                reasons.append("data.pkl is damaged beyond its CRC's help")
                continue
            reason = self._try_pickle(text)
            if reason is not None:
                reasons.append(reason)
                continue
            if index:
                self._note(
                    "the structure is an older one, from before the file was edited: the newer "
                    "data.pkl is damaged"
                )
            return text.data
        why = reasons[0] if reasons else "data.pkl is not in what is left of the file"
        self._measured = {}
        self._note(
            f"{why}: names, dtypes and shapes are lost, the storages come back as bytes (uint8) by "
            "their record"
        )
        return None

    def _check_size(self, place: Place) -> None:
        """Raise LimitError if the pickle was not read because of its size."""
        bound = self._limits.pickle_nbytes
        for row in place.rows:
            if bound < row.nbytes <= self.source.size:
                raise LimitError("pickle_nbytes", row.nbytes, bound, path=self.name)

    def _pickle_places(self) -> list[Place]:
        places = self._archive.places
        claimed = [place for place in places.claims(_PICKLE) if place.is_own]
        found: list[Place] = []
        previous_starts = [directory.start for directory in places.directories]
        for directory in places.directories:
            at = {row.offset + directory.base for row in directory.rows}
            full = places.root + _PICKLE
            pointed = [
                place
                for place in claimed
                if place.offset in at and any(row.name == full for row in place.rows)
            ]
            older = [start for start in previous_starts if start < directory.start]
            since = max(older, default=0)
            beside = [place for place in claimed if since <= place.offset < directory.start]
            found += pointed + sorted(beside, key=lambda place: -place.offset)
        headed = [place for place in claimed if place.local is not None]
        found += headed[:1]
        return list(dict.fromkeys(found))

    def _try_pickle(self, text: Text) -> str | None:
        """Take a pickle for the file's if it can be read; return why not otherwise."""
        factory = MeasuringFactory()
        try:
            read_pickle(
                text.data, factory.storage, lambda _: factory, self._limits,
                path=self.name, record=_PICKLE.decode(),
            )  # fmt: skip
        except LimitError:
            if text.fixed is None:
                raise  # the pickle is sound, and the caller can raise the limit
            return "data.pkl is damaged, and what its CRC makes of it passes a limit"
        except TorchZipError as error:
            return f"data.pkl cannot be read ({error.message})"
        self._measured = factory.measured
        sizes = {_record(key): each.nbytes for key, each in factory.measured.items()}
        self._archive.expect(set(sizes))
        if text.fixed is not None:
            reason = self._check_sizes(sizes)
            if reason is not None:
                return reason
        byteorder = self._find_byteorder()
        if byteorder is None:
            return "whether the numbers are little- or big-endian cannot be told any more"
        self._byteorder = byteorder
        if text.fixed == len(text.data):
            self._note("the CRC of data.pkl had a damaged byte; the pickle itself has none")
        elif text.fixed is not None:
            self._note(
                f"byte {text.fixed:,} of data.pkl was damaged and was corrected by its CRC-32"
            )
        if not text.is_verified:
            self._note(
                "the file has no CRCs: it is unknown whether names and values in it are right"
            )
        self._archive.places.settle({_PICKLE: len(text.data), **sizes})
        self._lost = self._names_in_doubt(sizes)
        return None

    def _check_sizes(self, sizes: dict[bytes, int]) -> str | None:
        """Return what contradicts a corrected pickle: a size that is another."""
        for name, nbytes in sizes.items():
            rows = self._archive.places.rows(name)
            if rows and all(row.nbytes != nbytes for row in rows):
                return "data.pkl is damaged, and what its CRC makes of it does not fit the records"
        return None

    # -- the byte order --------------------------------------------------------------------------

    def _find_byteorder(self) -> str | None:
        archive = self._archive
        name = b"byteorder"
        other = "big" if sys.byteorder == "little" else "little"
        if all(
            swap_nbytes(each.torch_dtype, other) == 1 or not archive.places.claims(_record(key))
            for key, each in self._measured.items()
        ):
            return sys.byteorder  # it changes nothing of what is there
        if not archive.places.claims(name):
            return "little" if self._has_all_before_storages() else None
        text = archive.read_text(name, self._limits.text_nbytes)
        if text is not None:
            # Without a CRC, length and all bytes but one say which word it was.
            for word in ("little", "big"):
                same = sum(a == b for a, b in zip(text.data, word.encode(), strict=False))
                if len(text.data) == len(word) and same >= len(word) - (not text.is_verified):
                    return word
        said = {
            word for word in ("little", "big") if crc32(word.encode()) in archive.stored_crcs(name)
        }
        return said.pop() if len(said) == 1 else None

    def _has_all_before_storages(self) -> bool:
        """Return whether no record can be missing that releases since 2.1 have."""
        archive = self._archive
        if any(directory.is_complete() for directory in archive.places.directories):
            return True
        reach = archive.places.start
        for place in archive.places.all():
            if place.local is None or place.offset != reach:
                return False
            name = place.local.name[len(archive.places.root) :]
            if name.startswith(b"data/"):
                return True
            after = archive.places.after(place.offset, archive.source.size)
            text = archive.read_text_at(place, name, after - place.offset)
            if text is None:
                return False
            end = place.local.data_offset + len(text.data)
            reach = next((end + gap for gap in (16, 24, 0) if end + gap == after), -1)
        return True

    # -- names that only a local header has --------------------------------------------------------

    def _names_in_doubt(self, sizes: dict[bytes, int]) -> dict[str, str]:
        """Return the keys whose record only its local header names, out of the file's order.

        A name has no CRC. torch writes storages in the order of their keys as numbers, or (before
        2.7) as strings, so a damaged digit shows where no directory is left to compare it with.
        """
        places = self._archive.places
        keys = [name[5:].decode("latin-1") for name in sizes]
        if any(directory.is_complete() for directory in places.directories) or not all(
            key.isdecimal() and key.isascii() for key in keys
        ):
            return {}
        by_text = {key: rank for rank, key in enumerate(sorted(keys))}
        found: list[tuple[str, bool]] = []  # and whether it follows without a gap
        reach: int | None = None
        for place in places.all():
            if place.local is None:
                continue
            name = place.local.name[len(places.root) :]
            follows = place.offset == reach
            after = places.after(place.offset, self.source.size)
            if name in sizes:
                found.append((name[5:].decode("latin-1"), follows))
                ends = {place.local.data_offset + sizes[name] + gap for gap in (0, 16, 24)}
                reach = after if after in ends else None
            else:
                reach = after if not name.startswith(b"data/") else None
        breaks = min(
            (_breaks(found, ranks) for ranks in ({key: int(key) for key in keys}, by_text)),
            key=len,
        )
        if 2 * len(breaks) > len(found):
            return {}  # the file has an order of its own
        return {
            key: "its name is out of the file's order, and no directory is left to compare it with"
            for pair in breaks
            for key in pair
            if key is not None and not places.rows(_record(key))
        }

    # -- storages ----------------------------------------------------------------------------------

    def open_storage(
        self, key: str, torch_dtype: str | None, nbytes: int, location: str
    ) -> TensorStorage:
        """Return the storage of a key, or a `LostStorage`."""
        record = f"data/{key}"
        why: str | None = self._lost.get(key)
        if why is None:
            whole = self._archive.find(_record(key), nbytes)
            if isinstance(whole, Whole):
                return self._storage(whole, torch_dtype, location, record)
            why = whole
        return LostStorage(torch_dtype, nbytes, location, record, why)

    def _storage(
        self, whole: Whole, torch_dtype: str | None, location: str, record: str
    ) -> TensorStorage:
        unit = swap_nbytes(torch_dtype, self._byteorder)
        storage: TensorStorage
        if whole.is_deflated:
            inflate = functools.partial(self._inflate, whole, record)
            storage = StreamStorage(
                torch_dtype, whole.nbytes, location,
                inflate=inflate, crc=whole.crc, swap_nbytes=unit, record=record,
            )  # fmt: skip
        else:
            place = FixedPlace(self.source, whole.offset)
            storage = WholeStorage(
                torch_dtype, whole.nbytes, location, record, place, whole.crc, unit
            )
        if whole.nbytes and not whole.is_own:
            self._note(
                "whether some records are of this archive cannot be told, as the file says nothing "
                "more of where they should be: they are unverified"
            )
        if whole.nbytes and (whole.crc is None or not whole.is_own):
            self.unverified.add(record)
        return storage

    def _inflate(self, whole: Whole, record: str) -> Iterator[bytes]:
        return inflate_span(
            self.source, whole.offset, whole.offset + whole.compressed, whole.nbytes,
            lambda message: ArchiveError(message, path=self.name, record=record),
        )  # fmt: skip

    def read(self, make_factory: MakeFactory) -> Contents:
        if self._data is None:
            return self._read_raw(make_factory)
        return read_pickle(
            self._data, self.open_storage, make_factory, self._limits,
            path=self.name, record=_PICKLE.decode(),
        )  # fmt: skip

    def _read_raw(self, make_factory: MakeFactory) -> Contents:
        """Return every storage whose CRC agrees, as bytes."""
        archive = self._archive
        names = [
            name
            for name in archive.places.names()
            if name.startswith(_TENSOR_FOLDERS) and not name.endswith(_NO_TENSORS)
        ]
        archive.expect(set(names))
        root = {}
        whole = 0
        unsized = []
        for name in names:
            record = name.decode("latin-1")
            found = archive.find_unmeasured(name)
            if found is not None:
                whole += 1
                storage = self._storage(found, None, "cpu", record)
            else:
                sizes = [row.nbytes for row in archive.places.rows(name)]
                if not any(sizes):
                    unsized += [record] if sizes == [] else []
                    continue
                why = "its bytes are damaged or not there, or no CRC of them is left"
                storage = LostStorage(None, max(sizes), "cpu", record, why)
            factory = make_factory(lambda *_, made=storage: made)
            root[record] = contiguous_tensor(factory, record, "uint8", (storage.nbytes,))
        if not whole:
            looked = f"; of {len(names):,} storages none is whole" if names else ""
            end = TRUNCATED if self.is_cut else "The file is not cut short; its bytes are damaged."
            raise ArchiveError(
                f"nothing can be recovered: {printable(self.notes[0].partition(':')[0])}{looked}. "
                + " ".join([end, *self.other_checkpoints()[:1]]),
                path=self.name,
            )
        if unsized:
            self._note(f"lost as well, of unknown size: {listed(unsized)}")
        return Contents(root, [], [], 0)

    def check_records(self) -> Iterator[RecordCheck]:
        """Nothing: what is left was compared when it was found."""
        return iter(())


def _record(key: str) -> bytes:
    return b"data/" + key.encode("latin-1", "replace")


def _breaks(found: list[tuple[str, bool]], ranks: dict[str, int]) -> list[tuple[str | None, str]]:
    """Return the pairs of keys between which their order is broken."""
    broken = []
    before: str | None = None
    for key, follows in found:
        rank, rank_before = ranks[key], -1 if before is None else ranks[before]
        if rank <= rank_before or (follows and rank != rank_before + 1):
            broken.append((before, key))
        before = key
    return broken
