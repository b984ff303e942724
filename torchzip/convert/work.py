"""One file of an output while it is written."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from torchzip.convert.pieces import Piece, Written, cut, known_crc
from torchzip.convert.planned import PlannedFile
from torchzip.files.crc import crc32, crc32_combine, wrong_crc
from torchzip.files.new_file import NewFile
from torchzip.files.streamed_file import StreamedFile
from torchzip.tensors.casts import Cast, CastStorage
from torchzip.tensors.computed import names_tensor
from torchzip.tensors.storage import compare_crcs, will_read

#: Smaller storages are written with what is around them.
_SMALL_NBYTES = 1 << 16
#: Many small records get their headers at once.
_BATCH_NBYTES = 4 << 20
_BATCH_RECORDS = 1 << 12
#: Pieces of large storages, and what a worker takes at once.
_PIECE_NBYTES = 32 << 20
_TASK_NBYTES = 96 << 20
#: Read at once of what was written.
_CHECKED_NBYTES = 8 << 20


class Work:
    """One file on its way: its large storages are cut in ``pieces``, whose results it collects."""

    def __init__(
        self, planned: PlannedFile, file: NewFile | StreamedFile, *, with_crc: bool, verify: bool
    ) -> None:
        self.planned = planned
        self.file = file
        self.pieces: list[Piece] = []
        self.written: list[Written] = []
        #: How many elements of a storage their new dtype has no place for, where there are any.
        self.out_of_range: dict[int, int] = {}
        self._cuts: dict[int, slice] = {}
        self._write: Callable[[Sequence[Piece]], list[Written]] | None = None
        for key, (storage, start) in enumerate(zip(planned.storages, planned.starts, strict=True)):
            if storage.nbytes > _SMALL_NBYTES:
                first = len(self.pieces)
                self.pieces += cut(
                    storage, start, _PIECE_NBYTES, with_crc=with_crc, verify=verify,
                    name=self._name_of(key),
                )  # fmt: skip
                self._cuts[key] = slice(first, len(self.pieces))

    def _name_of(self, key: int) -> str:
        """Return what messages call a storage: a tensor that is on it."""
        return self.planned.cast[key][0][0] if key in self.planned.cast else f"data/{key}"

    def is_small(self, key: int) -> bool:
        """Return whether a storage is not a piece but written with what is around it."""
        return key not in self._cuts

    def batches(self) -> Iterator[range]:
        """Yield all keys in order: one that is cut by itself, small ones together."""
        storages = self.planned.storages
        first = nbytes = 0
        for key in range(len(storages)):
            is_small = self.is_small(key)
            if first < key and (
                not is_small or nbytes >= _BATCH_NBYTES or key - first >= _BATCH_RECORDS
            ):
                yield range(first, key)
                first, nbytes = key, 0
            nbytes += storages[key].nbytes
            if not is_small:
                yield range(key, key + 1)
                first, nbytes = key + 1, 0
        if first < len(storages):
            yield range(first, len(storages))

    def crc_of(self, key: int) -> int:
        """Return the CRC of a storage whose pieces are written; raise if the source is damaged."""
        if self._write is not None:
            self.written[self._cuts[key]] = self._write(self.pieces[self._cuts[key]])
        pieces, written = self.pieces[self._cuts[key]], self.written[self._cuts[key]]
        self.out_of_range[key] = sum(part.out_of_range for part in written)
        storage = self.planned.storages[key]
        if pieces[0].copied:
            return known_crc(storage)
        crc = 0
        for piece, part in zip(pieces, written, strict=True):
            crc = crc32_combine(crc, part.crc, piece.nbytes)
        compare_crcs(storage.compared(), zip(*(part.compared for part in written), strict=True))
        return crc

    def contents_of(self, keys: range) -> list[bytes]:
        """Return the bytes of small storages, with their CRCs compared. Casts alike go together."""
        contents: dict[int, bytes] = {}
        alike: dict[tuple[str, str], list[int]] = {}
        for key in keys:
            storage = uncast = self.planned.storages[key]
            if isinstance(storage, CastStorage):
                uncast = storage.base
                alike.setdefault((storage.source, storage.target), []).append(key)
            with names_tensor(self._name_of(key)):
                contents[key] = b"".join(map(bytes, uncast.checked_blocks()))
        for pair, cast_keys in alike.items():
            parts = [contents[key] for key in cast_keys]
            cast = Cast(*pair)
            made = cast(np.frombuffer(b"".join(parts), np.uint8)).tobytes()
            at = 0
            for key, part in zip(cast_keys, parts, strict=True):
                nbytes = self.planned.storages[key].nbytes
                contents[key] = made[at : at + nbytes]
                at += nbytes
                if cast.out_of_range:  # of any: find out which
                    alone = Cast(*pair)
                    alone(np.frombuffer(part, np.uint8))
                    if alone.out_of_range:
                        self.out_of_range[key] = alone.out_of_range
        return list(contents.values())

    def write_in_order(self, write: Callable[[Sequence[Piece]], list[Written]]) -> None:
        """Have the pieces of a storage written when its turn comes, by ``write``."""
        self._write = write
        self.written = [Written(0)] * len(self.pieces)

    def announce(self) -> None:
        """Tell the sources what will be read from now on, in the order of the file."""
        storages = [
            storage
            for key, storage in enumerate(self.planned.storages)
            if self._write is not None or self.is_small(key)
        ]
        will_read(storages)


class LocalWork(Work):
    """A file of this computer, whose pieces are written in any order, before all else."""

    def __init__(
        self, planned: PlannedFile, file: NewFile, *, with_crc: bool, verify: bool
    ) -> None:
        super().__init__(planned, file, with_crc=with_crc, verify=verify)
        self.temporary = file.temporary

    def check_copied(self) -> None:
        """Read what was written of bytes that were copied unread; raise if a CRC does not match."""
        for key, places in self._cuts.items():
            start, storage = self.planned.starts[key], self.planned.storages[key]
            expected = known_crc(storage) if self.pieces[places][0].copied else 0
            found = 0
            for at in range(0, storage.nbytes if expected else 0, _CHECKED_NBYTES):
                nbytes = min(_CHECKED_NBYTES, storage.nbytes - at)
                found = crc32(self.file.read_back(start + at, nbytes), found)
            if found != expected:
                raise wrong_crc(found, expected, storage.record)

    def tasks(self) -> Iterator[slice]:
        """Yield the places of the pieces that a worker takes at once."""
        first = nbytes = 0
        for stop, piece in enumerate(self.pieces, 1):
            nbytes += piece.nbytes
            if nbytes >= _TASK_NBYTES or stop == len(self.pieces):
                yield slice(first, stop)
                first, nbytes = stop, 0
