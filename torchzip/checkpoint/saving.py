"""Saving a whole object, and the archive that both writers fill."""

from __future__ import annotations

import contextlib
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from operator import attrgetter
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from torchzip.checkpoint.destination import refuse_other_format
from torchzip.checkpoint.lazy_tensor import LazyTensor, data_of
from torchzip.checkpoint.structure import Structure
from torchzip.checkpoint.walk import holders, ways
from torchzip.container.zip_writer import ZipWriter, archive_name
from torchzip.errors import EnoughMemory
from torchzip.files.location import StorageOptions, located
from torchzip.files.opening import open_sink
from torchzip.files.source import File
from torchzip.files.watch import Watch
from torchzip.tensors.computed import ComputationError
from torchzip.tensors.memory import place_arrays
from torchzip.tensors.reduce import StorageKeys, Stored, as_storage
from torchzip.tensors.storage import ArrayStorage, Bytes, TensorStorage, sources_of, will_read

#: Yields the bytes of a storage that is to be written; see `reading`.
BlocksOf = Callable[[TensorStorage], Iterator[Bytes]]

#: Storages up to this size are written together. Those that are read from a file are copied into
#: memory for that, about half a MB at once.
_SMALL_NBYTES = 1 << 18
_BATCH_RECORDS = 1 << 11
#: Arrays of fewer bytes, on average, are copied: that takes less time than looking whether they
#: have to be.
_COPIED_NBYTES = 1 << 11
_BATCH_NBYTES = 1 << 19


def save(
    obj: Any,
    file: File,
    *,
    alignment: int = 64,
    crc32: bool = True,
    storage_options: StorageOptions = None,
) -> None:
    """Write ``obj`` as ``torch.save`` would write it, byte for byte.

    ``obj`` is any tree of Python values, numpy arrays, objects that give one (``__array__``,
    ``__dlpack__``), torch tensors, LazyTensors and the types of `torchzip.types`. Arrays that share
    memory become views of one storage, which holds what they reach and nothing more; torch tensors
    and LazyTensors of one file keep the storages that they have, whole. Records start on multiples
    of ``alignment`` bytes; ``crc32=False`` leaves the CRCs 0, as torch can.

    A path, or a URL (docs/remote.md), is written all or nothing, but for one that is a stream (a
    FIFO, a device, ``/dev/stdout``), which is written as it comes; a binary file object needs only
    ``write``. Of an object that cannot be saved, nothing is written to it. An error that comes
    later (a full disk, a damaged file that LazyTensors are read from) leaves a part of the
    checkpoint there, which the caller must take back: truncate the file to where it stood, or
    discard it.

    Warns
    -----
    UserWarning
        If ``torch.load`` with its defaults will refuse the file; the paths are listed.

    Raises
    ------
    TypeError, ValueError
        For what cannot be saved, or is past a bound that readers have by default, with its path
        in the object; for a path with the suffix of another format, such as .safetensors, which
        `convert` writes. Nothing is written then.

    Examples
    --------
    >>> import io, numpy as np
    >>> file = io.BytesIO()
    >>> save({"weight": np.zeros((2, 3), "float32")}, file)
    >>> len(file.getvalue())
    1577
    """
    file = located(file, storage_options)
    refuse_other_format(file)
    keys = StorageKeys()
    with EnoughMemory():
        structure = Structure(obj, keys, place_arrays)
    warn_refused(structure)
    with EnoughMemory(), Archive(file, alignment, crc32) as archive:
        archive.write_head(structure.pickle)
        archive.write_storages(keys.order, root=obj)
        archive.writer.finish()
        archive.commit()


def warn_refused(structure: Structure) -> None:
    """Warn the caller's caller of what torch's default loader will not take."""
    if structure.refused:
        shown = [f"{path} ({reason})" for path, reason in dict(structure.refused).items()]
        more = f", and {len(shown) - 20} more" if len(shown) > 20 else ""
        warnings.warn(
            "torch.load with its default weights_only=True will refuse this file, because of "
            + ", ".join(shown[:20])
            + more,
            UserWarning,
            stacklevel=3,
        )


def head_records(pickle: bytes, alignment: int = 64) -> list[tuple[str, bytes]]:
    """Return the records of an archive that are not storages, except those at its end."""
    return [
        ("data.pkl", pickle),
        (".format_version", b"1"),
        (".storage_alignment", str(alignment).encode()),
        ("byteorder", sys.byteorder.encode()),
    ]


class Archive:
    """A sink with a zip archive in it, aborted unless it is committed."""

    def __init__(self, file: File, alignment: int = 64, crc32: bool = True) -> None:
        self.sink = open_sink(file)
        self.alignment = alignment
        self.with_crc = crc32
        self._root: Any = None
        try:
            root = archive_name(file)
            self.writer = ZipWriter(self.sink, root, alignment=alignment, crc32=crc32)
        except BaseException:
            self.sink.abort()
            raise

    def write_head(self, pickle: bytes) -> None:
        """Write the records that stand around the storages: before them, or after early ones."""
        for name, data in head_records(pickle, self.alignment):
            self.writer.write_record(name, data)

    def write_storages(self, order: Sequence[Stored], first: int = 0, root: Any = None) -> None:
        """Write storages as ``data/<first>`` and on, many small ones at once.

        ``root`` is the object that they are of, for messages.
        """
        stored = [each.array if type(each) is ArrayStorage else each for each in order[first:]]
        nbytes = np.fromiter(map(attrgetter("nbytes"), stored), np.int64, len(stored))
        ends = nbytes.cumsum()
        self.sink.reserve(int(nbytes.sum()))
        alone = np.flatnonzero((nbytes == 0) | (nbytes > _SMALL_NBYTES)).tolist()
        at = 0
        self._root = root
        of_files = [each for each in stored if type(each) is not np.ndarray]
        with reading(of_files) as blocks_of:
            for next_alone in [*alone, len(stored)]:
                while at < next_alone:
                    # Keys of one length.
                    stop = min(next_alone, at + _BATCH_RECORDS, 10 ** len(str(first + at)) - first)
                    if of_files:
                        most_bytes = ends[at] - nbytes[at] + _BATCH_NBYTES
                        stop = min(stop, int(np.searchsorted(ends, most_bytes, "right")))
                    small_nbytes = int(nbytes[at:stop].sum())
                    self._write_small(first + at, stored[at:stop], small_nbytes, blocks_of)
                    at = stop
                if at < len(stored):
                    self._write_storage(first + at, as_storage(stored[at]), blocks_of)
                at += 1

    def _write_small(
        self, key: int, small: Sequence[Stored], nbytes: int, blocks_of: BlocksOf
    ) -> None:
        names = [b"data/%d" % index for index in range(key, key + len(small))]
        as_bytes: Any
        as_bytes = _as_buffer if nbytes >= _COPIED_NBYTES * len(small) else np.ndarray.tobytes
        if set(map(type, small)) == {np.ndarray}:
            self.writer.write_small_records(names, list(map(as_bytes, small)))
            return
        contents = [
            as_bytes(each)
            if isinstance(each, np.ndarray)
            else b"".join(block.tobytes() for block in self._blocks_of(each, blocks_of))
            for each in small
        ]
        crcs = [None if isinstance(each, np.ndarray) else each.crc for each in small]
        self.writer.write_small_records(names, contents, crcs)

    def _write_storage(self, key: int, storage: TensorStorage, blocks_of: BlocksOf) -> None:
        self.writer.begin_record(f"data/{key}", storage.nbytes, crc=storage.crc)
        for block in self._blocks_of(storage, blocks_of):
            self.writer.write(block.data)
        self.writer.end_record()

    def _blocks_of(self, storage: TensorStorage, blocks_of: BlocksOf) -> Iterator[Bytes]:
        try:
            yield from blocks_of(storage)
        except ComputationError as error:
            for way, value in ways(self._root, holders):
                held = data_of(value)
                if isinstance(held, LazyTensor) and held.spec.storage is storage:
                    raise ComputationError(f"{way}: {error}") from error.__cause__
            raise

    def commit(self) -> None:
        self.sink.commit()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.sink.abort()  # harmless after a commit


def _as_buffer(array: NDArray[Any]) -> NDArray[Any] | bytes:
    """Return an array that gives its bytes by the buffer protocol, or its bytes if it does not."""
    is_buffer = array.dtype.isbuiltin == 1 and array.flags.c_contiguous
    return array if is_buffer else array.tobytes()


@contextlib.contextmanager
def reading(storages: Iterable[object]) -> Iterator[BlocksOf]:
    """Give what yields the bytes of storages to be written.

    A CRC that is known goes along unread, and shows damage in the file. It must not do so where
    somebody has written to the file since it was opened: it is compared then, and a file that is
    written to in the meantime is an error.
    """
    stored = [each for each in storages if isinstance(each, TensorStorage)]
    will_read(stored)
    watch = Watch(sources_of(stored))
    if not watch.is_unwritten():
        yield lambda storage: storage.checked_blocks()
        return
    yield lambda storage: storage.blocks() if storage.crc else storage.checked_blocks()
    watch.check()
