"""Why a checkpoint is as big as it is: where its bytes go, and what could be saved."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass

from torchzip.checkpoint.lazy import Checkpoint
from torchzip.checkpoint.outline import Outline, outline
from torchzip.checkpoint.roles import Role, find_roles
from torchzip.convert.rules import Rules
from torchzip.convert.selection import select
from torchzip.errors import EnoughMemory
from torchzip.files.location import StorageOptions, located
from torchzip.files.source import File
from torchzip.limits import Limits
from torchzip.tools.file_size.accounts import (
    Account,
    Part,
    Unreached,
    account_of,
    kinds_of,
)
from torchzip.tools.file_size.duplicates import equal_storages
from torchzip.tools.file_size.savings import Idea, Saving, saving_of

#: Kinds of bytes that a new archive does not have.
_LEFT_BEHIND = ("dead bytes", "storages that nothing mentions")


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
    with Checkpoint(file, limits=limits) as checkpoint:
        found = outline(checkpoint, plain=False)
        around = checkpoint.root
        if checkpoint.container.is_by_name:  # it may be in their metadata
            around = select(checkpoint, Rules()).around
        roles = find_roles(around, found)
        account = account_of(checkpoint, found, kinds_of(roles, found))
        names = {id(storage): name for storage, name in account.storages}
        duplicates = [
            Duplicates(group[0].stored.nbytes, tuple(names[id(storage)] for storage in group))
            for group in equal_storages(storage for storage, _ in account.storages)
        ]
        has_code, limits = checkpoint.container.has_code, checkpoint.limits
    del checkpoint, around  # the object may be large; there will be others
    copies = [_copy(role, found) for role in roles]
    notes = [*found.notes, *account.notes]
    savings: list[Saving] = []
    if has_code:
        notes.append("convert would take the tensors only, without the code in the archive")
    elif isinstance(file, str | os.PathLike):
        ideas = _ideas(found, account, roles)
        made = (saving_of(file, account.size, idea, limits) for idea in ideas)
        savings = [saving for saving in made if saving is not None]
    return WhyBig(
        file=found.path,
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
