"""Why a checkpoint is as big as it is: where its bytes go, and what could be saved."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass

from torchzip.checkpoint.lazy import Checkpoint, checkpoint_of
from torchzip.checkpoint.lazy_tensor import storages_of
from torchzip.checkpoint.outline import Outline, outline
from torchzip.convert.casting import inner_tensors
from torchzip.convert.rules import Rules
from torchzip.convert.selection import select
from torchzip.errors import EnoughMemory
from torchzip.files.folder import Folder
from torchzip.files.location import StorageOptions, located
from torchzip.files.source import File, rewinder
from torchzip.formats.base import FolderContainer
from torchzip.formats.opening import open_checkpoint
from torchzip.formats.sharded import ShardedContainer
from torchzip.limits import Limits
from torchzip.tensors.persistent_ids import BareStorage
from torchzip.tools.file_size.accounts import (
    TENSORS,
    UNNAMED,
    Account,
    Known,
    OneFile,
    Part,
    Unreached,
    account_of,
)
from torchzip.tools.file_size.duplicates import equal_storages
from torchzip.tools.file_size.roles import Role, find_roles
from torchzip.tools.file_size.savings import Idea, Saving, saving_of

#: Kinds of bytes that a new archive does not have.
_LEFT_BEHIND = ("dead bytes", "storages that nothing mentions", "storages without a tensor")


@dataclass(frozen=True, slots=True)
class Duplicates:
    """Storages with the same ``nbytes`` bytes; ``names`` are the first tensor in each."""

    nbytes: int
    names: tuple[str, ...]

    @property
    def spare_nbytes(self) -> int:
        """Bytes of all but one of them."""
        return self.nbytes * (len(self.names) - 1)


@dataclass(frozen=True, slots=True)
class Copy:
    """An optimizer's state, or tensors that look like an EMA of those under ``of``.

    ``slots`` has the bytes of the tensors by the last step of their names: "exp_avg", ...
    """

    kind: str
    prefix: str
    tensors: int
    nbytes: int
    of: str | None
    slots: dict[str, int]


@dataclass(frozen=True, slots=True)
class WhyBig:
    """What `why_big` has found, the largest first.

    ``parts`` together are the ``nbytes`` of the file, or of all files of a checkpoint that has
    several. ``unreached`` are the storages with bytes that no tensor reaches. ``duplicates`` are
    among the parts, not beside them. ``savings`` are conversions, each by itself.
    """

    file: str
    format: str
    nbytes: int
    parts: tuple[Part, ...]
    unreached: tuple[Unreached, ...]
    duplicates: tuple[Duplicates, ...]
    copies: tuple[Copy, ...]
    savings: tuple[Saving, ...]
    notes: tuple[str, ...]


@EnoughMemory()
def why_big(
    file: File, *, limits: Limits | None = None, storage_options: StorageOptions = None
) -> WhyBig:
    """Say where the bytes of a checkpoint go, and what `convert` would save of them.

    Data is read only of storages that have the size of another (and its CRC, where there are
    CRCs): whether they are the same is decided by all their bytes. Memory does not grow with them.
    What is saved is computed from the plan of each conversion, to the byte; a file object has no
    ``savings``, as it has no name for a command.

    Raises
    ------
    TorchZipError, OSError
        If the file is bad, whatever its bytes; nothing else.

    Examples
    --------
    >>> import numpy as np, os, tempfile, torchzip
    >>> path = os.path.join(tempfile.mkdtemp(), "m.pt")
    >>> torchzip.save({"a": np.zeros(1000), "b": np.zeros(1000), "c": np.ones(9)}, path)
    >>> found = why_big(path)
    >>> found.parts[0], found.nbytes == sum(part.nbytes for part in found.parts)
    (Part(kind='tensors', nbytes=16072, count=3), True)
    >>> found.duplicates, found.savings[0].what
    ((Duplicates(nbytes=8000, names=('a', 'b')),), 'round floating tensors to bfloat16')
    """
    file = located(file, storage_options)
    rewind = rewinder(file)
    with Checkpoint(file, limits=limits) as checkpoint:
        survey = _survey(checkpoint)
        if not isinstance(checkpoint.container, OneFile | ShardedContainer):
            assert isinstance(checkpoint.container, FolderContainer)
            folder = checkpoint.container.folder
            return _result(file, survey, _account_of_dcp(checkpoint, folder, survey.kinds))
    del checkpoint  # its object may be large; there will be others
    rewind()
    container = open_checkpoint(file, survey.limits)
    with contextlib.closing(container):
        if isinstance(container, ShardedContainer):
            account = _account_of_shards(container, survey)
        else:
            assert isinstance(container, OneFile)
            account = account_of(container, survey.known)
        return _result(file, survey, account)


@dataclass(frozen=True, slots=True)
class _Survey:
    """What is known before bytes are counted. ``kinds`` is what each tensor is for, by name."""

    path: str
    limits: Limits
    found: Outline
    roles: list[Role]
    kinds: dict[str, str]
    known: Known
    has_code: bool


def _survey(checkpoint: Checkpoint) -> _Survey:
    found = outline(checkpoint, plain=False)
    around = checkpoint.root
    if checkpoint.container.is_by_name:  # it may be in their metadata
        around = select(checkpoint, Rules()).around
    roles = find_roles(around, found)
    kinds = {name: role.kind for role in reversed(roles) for name in role.names}
    kinds |= {row.name: UNNAMED for row in found.unnamed if row.name not in kinds}
    return _Survey(
        checkpoint.path,
        checkpoint.limits,
        found,
        roles,
        kinds,
        _known(checkpoint, found, kinds),
        checkpoint.container.has_code,
    )


def _known(checkpoint: Checkpoint, found: Outline, kinds: dict[str, str]) -> Known:
    of_record: dict[str, str] = {}
    for row in (*found.tensors, *found.unnamed, *found.constants):
        kind = kinds.get(row.name, TENSORS)
        for number in row.storages:
            record = found.storages[number].record or ""
            # A tensor of the model that shares its storage counts before others.
            if record not in of_record or kind == TENSORS:
                of_record[record] = kind
    names = {row.record or "": row.first_name for row in found.storages}
    whole = {
        held.storage.record or ""
        for held in inner_tensors([checkpoint.root, *checkpoint.constants]).values()
        if isinstance(held, BareStorage)
    }
    return Known(of_record, names, frozenset(whole))


# -- several files ---------------------------------------------------------------------------------


def _account_of_shards(container: ShardedContainer, survey: _Survey) -> Account:
    made = Account(container.index_nbytes)
    made.add("index of shards", container.index_nbytes)
    for shard in container.shards:
        assert isinstance(shard, OneFile)
        its = checkpoint_of(shard, survey.limits)
        known = _known(its, outline(its, plain=False), survey.kinds)
        account = account_of(shard, known)
        made.size += account.size
        for part in account.parts.values():
            made.add(part.kind, part.nbytes, part.count)
        made.storages += account.storages
        made.unreached += account.unreached
        made.notes += account.notes
    return made


def _account_of_dcp(checkpoint: Checkpoint, folder: Folder, kinds: dict[str, str]) -> Account:
    """Return the bytes of a distributed checkpoint: those of tensors, and all others together."""
    own = [name for name in folder.names if name.endswith((".distcp", ".metadata"))]
    own = own or [name for name in folder.names if name.endswith(".safetensors")]
    folder.will_open(own)
    made = Account(sum(folder.open(name).size for name in own))
    around = made.size
    seen: set[int] = set()
    for name, tensor in checkpoint.items():
        for storage in storages_of(tensor):
            if id(storage) not in seen:
                seen.add(id(storage))
                made.storages.append((storage, name))
                made.add(kinds.get(name, TENSORS), storage.nbytes)
                around -= storage.nbytes
    made.add("pickles, headers and padding", around, len(own))
    return made


# -- the result ------------------------------------------------------------------------------------


def _result(file: File, survey: _Survey, account: Account) -> WhyBig:
    found, roles = survey.found, survey.roles
    names = {id(storage): name for storage, name in account.storages}
    duplicates = [
        Duplicates(group[0].nbytes, tuple(names[id(storage)] for storage in group))
        for group in equal_storages(storage for storage, _ in account.storages)
    ]
    copies = [_copy(role, found) for role in roles]
    notes = [*found.notes, *account.notes]
    savings: list[Saving] = []
    if survey.has_code:
        notes.append("convert would take the tensors only, without the code in the archive")
    elif isinstance(file, str | os.PathLike):
        ideas = _ideas(found, account, roles)
        made = (saving_of(file, account.size, idea, survey.limits) for idea in ideas)
        savings = [saving for saving in made if saving is not None]
    return WhyBig(
        file=survey.path,
        format=found.format,
        nbytes=account.size,
        parts=tuple(sorted(account.parts.values(), key=lambda part: -part.nbytes)),
        unreached=tuple(sorted(account.unreached, key=lambda each: -each.nbytes)),
        duplicates=tuple(sorted(duplicates, key=lambda each: -each.spare_nbytes)),
        copies=tuple(sorted(copies, key=lambda each: -each.nbytes)),
        savings=tuple(sorted(savings, key=lambda each: -each.saved)),
        notes=tuple(notes),
    )


def _copy(role: Role, found: Outline) -> Copy:
    wanted = set(role.names)
    rows = [row for row in found.tensors if row.name in wanted]
    slots: dict[str, int] = {}
    for row in rows:
        slot = row.name.rpartition(".")[2]
        slots[slot] = slots.get(slot, 0) + row.nbytes
    nbytes = sum(row.nbytes for row in rows)
    return Copy(role.kind, role.prefix, len(rows), nbytes, role.of, slots)


def _ideas(found: Outline, account: Account, roles: list[Role]) -> Iterator[Idea]:
    optimizers = tuple(role.prefix for role in roles if role.kind == "optimizer state")
    copies = tuple(role.prefix for role in roles if role.kind == "EMA copy")
    if optimizers:
        yield Idea("leave out the optimizer state", "no-optimizer", exclude=optimizers)
    if copies:
        yield Idea("leave out what looks like an EMA copy", "no-ema", exclude=copies)
    if optimizers and copies:
        what = "leave out both the optimizer state and the EMA copy"
        yield Idea(what, "model", exclude=optimizers + copies)
    if account.unreached:
        what = "each tensor by itself, without what no tensor reaches"
        yield Idea(what, "packed", suffix=".safetensors")
    if any(kind in account.parts for kind in _LEFT_BEHIND):
        yield Idea("rewrite it, without what nothing needs", "new")
    if not {"float32", "float64"}.isdisjoint(found.by_dtype):
        yield Idea("round floating tensors to bfloat16", "bfloat16", dtype="bfloat16")
