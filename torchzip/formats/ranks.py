"""Files of all ranks, each with its parts of the tensors as DTensor or ShardedTensor.

``model_world_size_<W>_rank_<R>.pt`` is what verl writes; other names can be given one by one. The
parts say where they belong (`formats.rank_parts`). A tensor that is plain is one that every rank
has whole. Of what several ranks have, the first is taken; sizes, dtypes and, where both are known,
CRCs are compared:

* parts of one DTensor that differ are of different saves, which is an error;
* plain tensors may differ (statistics that every rank keeps for itself), which is a note.

Dicts and lists inside the object are gone into: the names of what is in them are joined by dots.
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple

from torchzip.errors import (
    ErrorPlace,
    FormatError,
    UnsupportedError,
    listed,
    shown,
)
from torchzip.files.folder import Folder
from torchzip.formats.base import Opener
from torchzip.formats.rank_files import (
    Joined,
    RankFilesContainer,
    closed,
    differ,
    identity,
    lacking,
)
from torchzip.formats.rank_parts import Part, knows_in_parts, parts_of
from torchzip.leaf_types import ForeignObject
from torchzip.tensors.chunks import Chunk
from torchzip.tensors.rebuild import FOREIGN_TENSORS
from torchzip.tensors.specs import Shape, TensorSpec

_NAME = re.compile(r"model_world_size_(\d{1,6})_rank_(\d{1,6})\.pt", re.ASCII)


def rank_of(name: str) -> tuple[int, int] | None:
    """Return the number of ranks and that of its own that the name of a rank file has."""
    match = _NAME.fullmatch(name)
    return None if match is None else (int(match[1]), int(match[2]))


def lone_note(name: str) -> tuple[str, ...]:
    """Return what is to be said of a rank file that is opened by itself; nothing for other names.

    >>> lone_note("model_world_size_8_rank_0.pt")
    ('1 of 8 ranks: give the path of the directory to read the tensors of all',)
    """
    parsed = rank_of(name)
    if parsed is None or parsed[0] < 2:
        return ()
    return (f"1 of {parsed[0]:,} ranks: give the path of the directory to read the tensors of all",)


def ranks_in(names: list[str]) -> list[str]:
    """Return the rank files among the names of a directory, in order; [] if there are none.

    Raises
    ------
    FormatError
        If one is missing, or there are those of several saves.
    """
    found: dict[int, str] = {}
    counts: dict[int, str] = {}
    for name in names:
        parsed = rank_of(name)
        if parsed is not None:
            counts.setdefault(parsed[0], name)
            found[parsed[1]] = name
            if parsed[1] >= parsed[0]:
                raise FormatError(
                    f"{shown(name)} is of rank {parsed[1]:,} of {parsed[0]:,}; the first is 0"
                )
    if len(counts) > 1:
        raise FormatError(
            f"files of saves by {listed(sorted(counts))} ranks, as {listed(list(counts.values()))}"
            "; move away those that do not belong"
        )
    for count in counts:
        if len(found) < count:
            raise lacking(found, count, f"model_world_size_{count}_rank_{{}}.pt")
    return [found[rank] for rank in sorted(found)]


class _Found(NamedTuple):
    """A part of a tensor, and the file that has it. ``is_plain``: a tensor like any other."""

    part: Part
    file: str
    is_plain: bool


class RanksContainer(RankFilesContainer):
    """Rank files as the flat dict of the whole tensors."""

    format = "ranks"
    label = "files of ranks"
    knows = staticmethod(knows_in_parts)

    def __init__(self, folder: Folder, names: list[str], opener: Opener) -> None:
        super().__init__(folder, opener)
        folder.will_open(names)
        found: dict[str, list[_Found]] = {}
        self._odd: list[str] = []
        self._left_out: list[str] = []
        for name in names:
            place = folder.place(name)
            with ErrorPlace(path=place):
                self._add(self.read_file(name), place, found, is_first=name == names[0])
        # What is one tensor under two names in every file is one here.
        known: dict[tuple[Any, ...], Joined] = {}
        for name, parts in found.items():
            one = tuple(identity(each.part.spec) for each in parts)
            with ErrorPlace(path=self.name, record=name):
                if one not in known:
                    known[one] = self._joined(name, parts)
            self.tensors[name] = known[one]
        if self._odd:
            self.notes += (
                f"ranks have different values of {listed(self._odd)}, which are not parts of one "
                f"tensor; those in {names[0]} are taken",
            )
        if self._left_out:
            self.notes += (f"objects that are left out: {listed(self._left_out)}",)

    def _add(
        self, root: Any, place: str, found: dict[str, list[_Found]], *, is_first: bool
    ) -> None:
        """Take over what one file has."""
        seen = 0
        for name, value in self.leaves(root):
            with ErrorPlace(record=name):
                parts = parts_of(value)
            if type(value) is TensorSpec:
                whole = Part(value.torch_dtype, value.shape, (0,) * len(value.shape), value)
                parts = [whole]
            if parts is None:
                if is_first and isinstance(value, bool | int | float | str | None):
                    self.values[name] = value
                elif is_first:
                    self._left_out.append(name)
                    _check_no_tensor(name, value)
                continue
            if name not in found and not is_first:
                raise FormatError(f"the file has {shown(name)}, which the first rank lacks")
            seen += 1
            known = found.setdefault(name, [])
            known += [_Found(part, place, type(value) is TensorSpec) for part in parts]
        if seen != len(found):
            missing = [name for name, parts in found.items() if parts and parts[-1].file != place]
            raise FormatError(
                f"the file lacks {listed(missing)}, which other ranks have: it is not of the same "
                "save. Fetch it again."
            )

    def _joined(self, name: str, parts: list[_Found]) -> Joined:
        if not parts:
            raise FormatError("no rank has a part of it")
        first = parts[0].part
        boxes: dict[tuple[Shape, Shape], _Found] = {}
        for each in parts:
            part = each.part
            if (part.torch_dtype, part.shape) != (first.torch_dtype, first.shape):
                raise FormatError(
                    f"it is {part.torch_dtype} of size {list(part.shape)} here, and in "
                    f"{parts[0].file} {first.torch_dtype} of size {list(first.shape)}: the files "
                    "are not of one save. Fetch them again.",
                    path=each.file,
                )
            known = boxes.setdefault((part.offsets, part.spec.shape), each)
            if known is not each and differ(known.part.spec, part.spec):
                if each.is_plain:
                    self._odd.append(name)
                    break
                raise FormatError(
                    f"its part at {list(part.offsets)} is not what {known.file} has: the files are "
                    "not of one save. Fetch them again.",
                    path=each.file,
                )
        chunks = [
            Chunk(offsets, sizes, each.file, closed(each.part.spec, each.file))
            for (offsets, sizes), each in boxes.items()
            if 0 not in sizes
        ]
        return self.join(name, first.torch_dtype, first.shape, chunks)


def _check_no_tensor(name: str, value: Any) -> None:
    """See that what is left out is not a tensor of a kind that is not read."""
    is_other = type(value) is not ForeignObject
    if is_other or (value.module, value.name) in FOREIGN_TENSORS:
        raise UnsupportedError(
            f"{shown(name)} is {shown(value)}; dense tensors and parts of them are put together"
        )
