"""The .npz format of numpy: a zip archive with a .npy file for each tensor, stored.

The CRC of a tensor precedes it. To a disk the head of a record is written when its CRC is
known; to a store, where bytes go in their order, a tensor whose CRC is unknown is read twice.
"""

from __future__ import annotations

from torchzip.container.npz import SUFFIX, Member, build_directory, build_member, end_nbytes
from torchzip.container.record_index import is_changed
from torchzip.convert.outputs.by_name import PlannerByName, name_bytes
from torchzip.convert.pieces import known_crc
from torchzip.convert.planned import PlannedFile
from torchzip.convert.work import Work
from torchzip.dtypes import DTYPES
from torchzip.errors import UnsupportedError, shown
from torchzip.files.crc import crc32
from torchzip.files.streamed_file import StreamedFile
from torchzip.tensors.specs import TensorSpec
from torchzip.tensors.storage import TensorStorage


class NpzOutput(PlannerByName):
    """Arrays by their names, as ``numpy.savez`` writes them; one of a tie has the data."""

    format = "npz"
    suffixes = (".npz",)
    has_crcs = True

    def stored_dtype(self, name: str, spec: TensorSpec, dtype: str) -> str:
        if DTYPES[dtype].npy is None:
            raise self.no_dtype(name, dtype)
        return dtype

    def shard(self, path: str, names: list[str]) -> PlannedFile:
        if not names:
            raise UnsupportedError(
                "the output would be without tensors, and such a .npz file is an empty archive"
            )
        known: dict[bytes, str] = {}  # by the name as the reader compares it
        all_names = set(names)
        members: list[Member] = []
        at = 0
        for name in names:
            _check_name(name)
            if f"{name}.npy" in all_names:
                raise UnsupportedError(
                    f"{name}: numpy takes {name}.npy for the same name; rename one of them"
                )
            other = known.setdefault(name.encode().lower(), name)
            if other != name:
                raise UnsupportedError(
                    f"{shown(other)} and {shown(name)} differ in case alone, which is one file for "
                    "some programs that unpack archives; rename one of them"
                )
            nbytes = self.storages[name].nbytes
            members.append(
                build_member(name, self.dtypes[name], self.tensors[name].shape, nbytes, at)
            )
            at = members[-1].start + nbytes
        head = b"".join(member.head for member in members)
        starts = [member.start for member in members]
        return self.file(path, head, names, starts, at + end_nbytes(members))

    @staticmethod
    def finish(work: Work) -> None:
        planned, file = work.planned, work.file
        members = _members(planned)
        rows: list[bytes] = []
        for keys in work.batches():
            first = members[keys[0]]
            if work.is_small(keys[0]):
                parts: list[bytes] = []
                for key, data in zip(keys, work.contents_of(keys), strict=True):
                    head, row = members[key].with_crc(crc32(data))
                    parts += [head, data]
                    rows.append(row)
                file.write_at(first.at, b"".join(parts))
            elif isinstance(file, StreamedFile):
                storage = planned.storages[keys[0]]
                head, row = first.with_crc(known_crc(storage) or _crc_of(storage))
                file.write_at(first.at, head)
                work.crc_of(keys[0])
                rows.append(row)
            else:
                head, row = first.with_crc(work.crc_of(keys[0]))
                file.write_at(first.at, head)
                rows.append(row)
        end = members[-1].start + members[-1].nbytes if members else 0
        file.write_at(end, build_directory(rows, end))


def _members(planned: PlannedFile) -> list[Member]:
    """Return what was planned for each array: its head is what precedes its data."""
    members: list[Member] = []
    at = taken = 0
    for storage, start in zip(planned.storages, planned.starts, strict=True):
        head = planned.head[taken : taken + start - at]
        members.append(Member(head, start, storage.nbytes))
        taken += len(head)
        at = start + storage.nbytes
    return members


def _crc_of(storage: TensorStorage) -> int:
    crc = 0
    for block in storage.checked_blocks():
        crc = crc32(block.data, crc)
    return crc


def _check_name(name: str) -> None:
    """Raise UnsupportedError for a name under which numpy or torchzip would not find its array."""
    raw = name_bytes(name)
    if not name:
        raise UnsupportedError(
            "a tensor without a name, which is the object itself or has the key ''; name it: "
            "--rename '^$=>NAME'"
        )
    if is_changed(raw + SUFFIX.encode()) or len(raw) > 60_000:
        raise UnsupportedError(
            f"{shown(name)} cannot be the name of a file in a zip archive; rename the tensor"
        )
