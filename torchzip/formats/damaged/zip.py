"""What can be recovered of a damaged zip checkpoint: the object, with the storages that are whole.

The pickle is the one that the last directory with an end record points to. If that one is beyond
repair, or there is no such directory, an older one of an edited file is tried, and last the first
in the file. Without any, the storages themselves are the content, as bytes.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator

from torchzip.container.damaged.archive import DamagedArchive, Text, Whole
from torchzip.container.damaged.places import PICKLE, TENSOR_FOLDERS, Place
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
from torchzip.formats.damaged.storages import LostStorage
from torchzip.formats.zip import ZipFormat
from torchzip.limits import Limits
from torchzip.tensors.storage import (
    FixedPlace,
    Measure,
    MeasuredStorage,
    OpenStorage,
    SpanStorage,
    StreamStorage,
    TensorStorage,
)

#: Records that only archives with other pickles have, and what these are.
_OTHER_FORMATS = {b"constants.pkl": "a TorchScript archive", b"archive_format": "a .pt2 archive"}
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
        if not self._archive.places.all():
            raise ArchiveError(
                "no record of a checkpoint is left: neither a local header (PK\\3\\4) nor a "
                f"directory row (PK\\1\\2) of a zip archive was found in its {source.size:,} bytes",
                path=source.name,
            )
        self.is_cut = not self._archive.places.stop
        self.end = self._archive.places.stop or source.size
        self.damage = self._find_damage()
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
        reasons = []
        for place in self._pickle_places():
            text = self._archive.read_text_at(place, PICKLE, self._limits.pickle_nbytes)
            reason = self._why_unread(place) if text is None else self._try_pickle(text)
            if text is None or reason is not None:
                reasons.append(reason)
                continue
            if reasons:
                self._note(
                    "the structure is an older one, from before the file was edited: the newer "
                    "data.pkl is damaged"
                )
            return text.data
        why = reasons[0] if reasons else "data.pkl is not in what is left of the file"
        self._archive.places.settle({})
        self._note(
            f"{why}: names, dtypes and shapes are lost, the storages come back as bytes (uint8) by "
            "their record"
        )
        return None

    def _pickle_places(self) -> list[Place]:
        """Return where there are pickles: the current one, then those from before edits."""
        places = self._archive.places
        ranks = {each.start: rank for rank, each in enumerate(places.directories)}

        def order(place: Place) -> tuple[int, int]:
            # An edit appends a pickle and the directory that leads to it.
            following = [start for start in ranks if start > place.offset]
            if not following:
                return len(ranks), place.offset
            return ranks[min(following)], -place.offset

        return sorted((place for place in places.claims(PICKLE) if place.is_own), key=order)

    def _why_unread(self, place: Place) -> str:
        """Return why a pickle cannot be had; raise LimitError if that is because of its size."""
        bound = self._limits.pickle_nbytes
        for row in place.rows:
            if bound < row.nbytes <= self.source.size:
                raise LimitError("pickle_nbytes", row.nbytes, bound, path=self.name)
        return "data.pkl is damaged beyond its CRC's help"

    def _try_pickle(self, text: Text) -> str | None:
        """Take a pickle for the file's if it can be read; return why not otherwise."""
        factory = MeasuringFactory()
        try:
            self._read_pickle(text.data, factory.storage, lambda _: factory)
        except LimitError:
            if text.fixed is None:
                raise  # the pickle is sound, and the caller can raise the limit
            return "data.pkl is damaged, and what its CRC makes of it passes a limit"
        except TorchZipError as error:
            return f"data.pkl cannot be read ({error.message})"
        places = self._archive.places
        sizes = {_record(key): each.nbytes for key, each in factory.measured.items()}
        for name, nbytes in sizes.items() if text.fixed is not None else ():
            rows = places.rows(name)
            if rows and all(row.nbytes != nbytes for row in rows):
                return "data.pkl is damaged, and what its CRC makes of it does not fit the records"
        places.settle({PICKLE: len(text.data), **sizes})
        byteorder = self._find_byteorder(factory.measured)
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
        return None

    def _find_byteorder(self, measured: dict[str, MeasuredStorage]) -> str | None:
        archive = self._archive
        name = b"byteorder"
        other = "big" if sys.byteorder == "little" else "little"
        if all(
            swap_nbytes(each.torch_dtype, other) == 1 or not archive.places.claims(_record(key))
            for key, each in measured.items()
        ):
            return sys.byteorder  # it changes nothing of what is there
        if not archive.places.claims(name):
            # Releases before 2.1 have no such record.
            is_complete = any(each.is_complete() for each in archive.places.directories)
            return "little" if is_complete or archive.places.begins_whole else None
        crcs = archive.stored_crcs(name)
        text = None if crcs else archive.read_text(name, self._limits.text_nbytes)
        said = [
            word.decode()
            for word in (b"little", b"big")
            if crc32(word) in crcs or (text is not None and text.data == word)
        ]
        return said[0] if len(said) == 1 else None

    # -- storages ----------------------------------------------------------------------------------

    def open_storage(self, key: str, measure: Measure) -> TensorStorage:
        """Return the storage of a key, or a `LostStorage`."""
        record = f"data/{key}"
        whole = self._archive.find(_record(key), measure.nbytes)
        if isinstance(whole, str):
            return LostStorage(measure, record, whole)
        return self._storage(whole, measure.torch_dtype, measure.location, record)

    def _storage(
        self, whole: Whole, torch_dtype: str | None, location: str, record: str
    ) -> TensorStorage:
        if whole.nbytes and not whole.is_own:
            self._note(
                "whether some records are of this archive cannot be told, as the file says nothing "
                "more of where they should be: they are unverified"
            )
        if whole.nbytes and (whole.crc is None or not whole.is_own):
            self.unverified.add(record)
        unit = swap_nbytes(torch_dtype, self._byteorder)
        if not whole.deflated_nbytes:
            place = FixedPlace(self.source, whole.offset)
            return SpanStorage(torch_dtype, whole.nbytes, location, record, place, whole.crc, unit)
        return StreamStorage(
            torch_dtype, whole.nbytes, location,
            inflate=lambda: inflate_span(
                self.source, whole.offset, whole.offset + whole.deflated_nbytes, whole.nbytes,
                lambda message: ArchiveError(message, path=self.name, record=record),
            ),
            crc=whole.crc, swap_nbytes=unit, record=record,
        )  # fmt: skip

    def read(self, make_factory: MakeFactory) -> Contents:
        if self._data is None:
            return self._read_raw(make_factory)
        return self._read_pickle(self._data, self.open_storage, make_factory)

    def _read_pickle(
        self, data: bytes, open_storage: OpenStorage, make_factory: MakeFactory
    ) -> Contents:
        return read_pickle(
            data, open_storage, make_factory, self._limits, path=self.name, record=PICKLE.decode()
        )

    def _read_raw(self, make_factory: MakeFactory) -> Contents:
        """Return every storage whose CRC agrees, as bytes."""
        archive = self._archive
        names = [
            name
            for name in archive.places.names()
            if name.startswith(TENSOR_FOLDERS) and not name.endswith(_NO_TENSORS)
        ]
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
                storage = LostStorage(Measure(None, max(sizes), "cpu"), record, why)
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
