"""A damaged checkpoint -> a sound one with all that could be saved."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping, Set
from dataclasses import dataclass, replace
from typing import Any

from torchzip.checkpoint.destination import refuse_other_format
from torchzip.checkpoint.lazy import Checkpoint, VerifyReport, checkpoint_of
from torchzip.checkpoint.lazy_tensor import (
    LazyFactory,
    LazyTensor,
    data_of,
    is_tensor,
    storages_of,
)
from torchzip.checkpoint.names import NameTable
from torchzip.checkpoint.plain_values import flat_values
from torchzip.checkpoint.saving import save
from torchzip.container.safetensors import parse_ties
from torchzip.convert.outputs.safetensors import SafetensorsOutput
from torchzip.convert.plan import make_plan
from torchzip.convert.run import run
from torchzip.convert.targets import parse_target
from torchzip.errors import (
    REPAIR_ADVICE,
    TRUNCATED,
    EnoughMemory,
    ErrorPlace,
    FormatError,
    TorchZipError,
    UnsupportedError,
)
from torchzip.files.location import Location, StorageOptions, located
from torchzip.files.opening import open_source, refuse_existing
from torchzip.files.source import File, Source, rewinder
from torchzip.formats.base import (
    FileContainer,
    check_options,
)
from torchzip.formats.damaged.opening import end_of, kind_of, open_damaged
from torchzip.formats.damaged.storages import LostStorage, SalvagedContainer
from torchzip.formats.directory import is_part_of_directory
from torchzip.limits import Limits
from torchzip.tensors.kinds.parts import Checked
from torchzip.tensors.persistent_ids import BareStorage
from torchzip.tensors.storage import Measure, OpenStorage
from torchzip.tools.repairing.pruning import Pruning, lost_in
from torchzip.tools.repairing.text_mode import before_text, count_text_lines
from torchzip.types import OtherTensor

#: So many LFs that all have a CR before them cannot be chance.
_MANY_LINES = 8


@dataclass(frozen=True, slots=True)
class LostTensor:
    """A tensor that did not come back; one without a flat name is called by the way to it."""

    name: str
    torch_dtype: str
    shape: tuple[int | None, ...]
    why: str


@dataclass(frozen=True, slots=True)
class Repaired:
    """What `repair` has written.

    ``damage`` is the first thing that is wrong with the file, None if it is sound. ``tensors`` is
    how many came back. ``unverified`` are those of them that no CRC vouches for. ``notes`` say what
    else there is to know. ``nbytes`` is the size of ``out``.
    """

    broken: str
    out: str
    format: str
    damage: str | None
    tensors: int
    lost: tuple[LostTensor, ...]
    unverified: tuple[str, ...]
    notes: tuple[str, ...]
    nbytes: int


@EnoughMemory()
def repair(
    broken: File,
    out: str | os.PathLike[str],
    *,
    overwrite: bool = False,
    limits: Limits | None = None,
    storage_options: StorageOptions = None,
) -> Repaired:
    """Write what can be saved of a truncated or damaged checkpoint.

    Every tensor whose bytes are whole comes back under its name, none with values that its
    CRC does not match. What is lost is taken out of dicts; None stands for it in lists, tuples and
    objects. Files without CRCs (legacy, safetensors, ``crc32=False``) give tensors that are in
    their place and ``unverified``. Where the structure itself is lost, the storages come back as
    arrays of bytes, in a dict by their record. A sound file is written again as it is.

    ``out`` is written all or nothing: as a ``.safetensors`` file if it is called so, else as a
    ``.pt``. It is the same as ``broken`` only with ``overwrite``.

    A file that was copied as text, so that every LF became CR LF, is put back into a temporary
    file beside ``out``, and read from there. Of several archives in one file the first is
    repaired, and the others are named in the ``notes``. The work is bounded by the size of the
    file.

    Raises
    ------
    FileExistsError
        If ``out`` is there already and ``overwrite`` is false.
    ValueError
        If ``out`` has the suffix of a format that is not written here, or is a URL.
    TorchZipError
        If nothing can be recovered; nothing is written then.
    OSError

    Examples
    --------
    >>> import numpy as np, os, tempfile, torchzip
    >>> folder = tempfile.mkdtemp()
    >>> whole, cut, out = (os.path.join(folder, name) for name in ("a.pt", "b.pt", "c.pt"))
    >>> torchzip.save({"a": np.ones(1000), "b": np.ones(500, "int8")}, whole)
    >>> with open(whole, "rb") as file, open(cut, "wb") as half:
    ...     count = half.write(file.read(9000))
    >>> found = repair(cut, out)
    >>> found.tensors, [(lost.name, lost.torch_dtype, lost.shape) for lost in found.lost]
    (1, [('b', 'int8', (500,))])
    >>> torchzip.load(out)["a"].sum().item()
    1000.0
    """
    limits = check_options("keep", limits)
    broken = located(broken, storage_options)
    out = os.fsdecode(out)
    if not out.lower().endswith(SafetensorsOutput.suffixes):
        refuse_other_format(out)
    if isinstance(located(out), Location):
        raise ValueError(f"{located(out).name}: what is repaired is written to this computer")
    if not overwrite:
        refuse_existing(out)
    rewind = rewinder(broken)
    error = _write_sound(broken, out, limits)
    if not isinstance(error, TorchZipError):
        return error
    rewind()
    _refuse_directory(broken, error)
    with contextlib.closing(open_source(broken)) as source:
        lines = count_text_lines(source)
        if lines:
            damage = f"{source.name}: each LF of it has a CR before it: it was copied as text"
            with before_text(source, os.path.dirname(os.path.abspath(out))) as binary:
                again = _write_sound(binary, out, limits, damage)
                if not isinstance(again, TorchZipError):
                    return again
                if lines >= _MANY_LINES:
                    binary.seek(0)
                    return _write_salvaged(binary, out, limits, again, f"{damage}. Then: ")
    rewind()
    return _write_salvaged(broken, out, limits, error)


def _refuse_directory(broken: File, error: TorchZipError) -> None:
    if isinstance(broken, str | os.PathLike):
        path = os.fsdecode(broken)
        if is_part_of_directory(path) or path.endswith(".distcp"):
            raise UnsupportedError(
                "shards and distributed checkpoints are not repaired as a whole; a damaged shard "
                f"is, by itself. What is wrong: {error.message}",
                path=path,
            )


def _write(root: Any, checkpoint: Checkpoint, told: Repaired, out: str) -> Repaired:
    """Write ``root`` to a .pt, ``checkpoint`` to a .safetensors file, and say what was written."""
    if out.lower().endswith(SafetensorsOutput.suffixes):
        with ErrorPlace(path=told.broken):
            plan = make_plan(checkpoint, parse_target(out))
            run(plan)
        notes = [f"not in a safetensors file: {each}" for each in plan.lost]
    else:
        notes = []
        if checkpoint.metadata:
            what = f"the metadata of a {checkpoint.format} checkpoint"
            notes.append(f"{what} is left out; a .pt has no place for it")
        try:
            save(root, out)
        except (TypeError, ValueError) as error:
            if isinstance(error, TorchZipError):
                raise
            # A file can hold what no file of ours can, such as names with a line break.
            raise UnsupportedError(
                f"what there is cannot be written to a .pt ({error})", path=told.broken
            ) from None
    return replace(told, notes=(*told.notes, *notes), nbytes=os.path.getsize(out))


def _following(source: Source, end: int, limits: Limits) -> list[str]:
    """Return what there is to say of a second checkpoint after the first."""
    kind = kind_of(source, end, limits) if end < source.size else None
    if kind is None:
        return []
    return [
        f"a second checkpoint, {kind}, begins at byte {end:,} and is not in what was repaired. To "
        f"have it by itself: tail -c +{end + 1} FILE"
    ]


# -- sound files -----------------------------------------------------------------------------------


def _write_sound(
    broken: File, out: str, limits: Limits, damage: str | None = None
) -> Repaired | TorchZipError:
    """Write a file again if all of it is sound; return its first error otherwise."""
    try:
        checkpoint = Checkpoint(broken, limits=limits)
    except TorchZipError as error:
        return error
    with checkpoint:
        try:
            report = checkpoint.verify()
        except TorchZipError as error:
            return error
        return _write_all(checkpoint, report, out, limits, damage)


def _write_all(
    checkpoint: Checkpoint, report: VerifyReport, out: str, limits: Limits, damage: str | None
) -> Repaired:
    names = dict(checkpoint.items())
    notes = list(report.notes)
    root = checkpoint.root
    ties = _ties(checkpoint.metadata, names)
    if ties:
        names |= ties
        root = dict(root) | ties
    container = checkpoint.container
    if not container.keeps_root:
        root = names
        notes.append(f"of a {checkpoint.format} checkpoint the tensors are written, by their names")
    if isinstance(container, FileContainer):
        end = end_of(container)
        behind = container.source.size - end
        notes += _following(container.source, end, limits) or (
            [f"{behind:,} bytes after the checkpoint are left out"] if behind > 0 else []
        )
    without = frozenset(report.without_crc) if container.has_crcs else None
    told = Repaired(
        broken=checkpoint.path,
        out=out,
        format=checkpoint.format,
        damage=damage,
        tensors=len(names),
        lost=(),
        unverified=_unverified(names, without),
        notes=tuple(notes),
        nbytes=0,
    )
    return _write(root, checkpoint, told, out)


def _ties(metadata: Mapping[str, str], tensors: Mapping[str, Any]) -> dict[str, Any]:
    """Return the tensors whose names are in the metadata of a safetensors file only."""
    return {name: tensors[kept] for name, kept in parse_ties(metadata, tensors).items()}


def _unverified(names: Mapping[str, Any], without_crc: Set[str] | None) -> tuple[str, ...]:
    """Return the tensors with bytes in records without a CRC; None stands for all records."""
    return tuple(
        name
        for name, tensor in names.items()
        if any(
            storage.nbytes > 0 and (without_crc is None or storage.record in without_crc)
            for storage in storages_of(tensor)
        )
    )


# -- damaged files ---------------------------------------------------------------------------------


def _write_salvaged(
    broken: File, out: str, limits: Limits, error: TorchZipError, before: str = ""
) -> Repaired:
    with contextlib.closing(open_source(broken)) as source:
        container = open_damaged(source, limits)
        contents = container.read(_CheckingFactory)
        if contents.metadata:
            contents.root |= _ties(contents.metadata, contents.root)
        names = NameTable(contents.root, is_tensor, limits, contents.pickle_nbytes).names
        pruning = Pruning(contents.root)
        lost = _lost_tensors(names, pruning)
        kept = {name: tensor for name, tensor in names.items() if lost_in(tensor) is None}
        others = [*container.other_checkpoints(), *_following(source, container.end, limits)]
        if not kept and lost and not _has_values(pruning.root, limits):
            said = (
                f"nothing can be recovered: all of its tensors are lost, {len(lost):,} in number; "
                f"the first, because {lost[0].why}"
            )
            raise FormatError(". ".join([said, *others[:1]]), path=source.name)
        contents.root = pruning.root
        told = Repaired(
            broken=source.name,
            out=out,
            format=container.format,
            damage=before + _damage(container, error),
            tensors=len(kept),
            lost=tuple(lost),
            unverified=_unverified(kept, container.unverified),
            notes=(*container.notes, *others),
            nbytes=0,
        )
        container.read = lambda make_factory: contents  # type: ignore[method-assign]
        return _write(pruning.root, checkpoint_of(container, limits), told, out)


def _damage(container: SalvagedContainer, error: TorchZipError) -> str:
    """Return what is wrong with a file: its first error, but for what turned out otherwise."""
    if container.damage is not None:
        return f"{container.name}: {container.damage}"
    said = str(error).removesuffix(f" {REPAIR_ADVICE}")
    return said if container.is_cut else said.replace(f" {TRUNCATED}", "")


class _CheckingFactory(LazyFactory):
    """Gives up tensors whose indices are wrong: `load` would refuse what holds them."""

    def __init__(self, open_storage: OpenStorage) -> None:
        super().__init__(open_storage)
        self._checked = Checked()

    def other(self, tensor: OtherTensor) -> OtherTensor:
        if lost_in(tensor) is not None:
            return tensor
        try:
            tensor.check_values(self._checked)
        except TorchZipError as error:
            why = error.message
            return tensor.with_parts(lambda part: _given_up(part, why))
        return tensor


def _given_up(part: LazyTensor, why: str) -> LazyTensor:
    held = part.spec.storage
    measure = Measure(held.torch_dtype, held.nbytes, held.location)
    lost = LostStorage(measure, held.record or "", why)
    return LazyTensor(part.spec.replace(storage=lost))


def _lost_tensors(names: dict[str, Any], pruning: Pruning) -> list[LostTensor]:
    found = []
    named: set[int] = set()
    for name, tensor in names.items():
        storage = lost_in(tensor)
        if storage is not None:
            named.add(id(tensor))
            found.append(_lost(name, tensor, storage.why))
    for key, (tensor, place) in pruning.lost.items():
        storage = lost_in(tensor)
        if key not in named and storage is not None:
            found.append(_lost(place, tensor, storage.why))
    return found


def _lost(name: str, tensor: Any, why: str) -> LostTensor:
    held = data_of(tensor)
    if isinstance(held, BareStorage):
        return LostTensor(name, held.torch_dtype or "uint8", (held.count,), why)
    return LostTensor(name, held.torch_dtype, tuple(held.shape), why)


def _has_values(root: Any, limits: Limits) -> bool:
    """Return whether there is anything in an object but containers, empty or not."""
    values = flat_values(root, limits).values()
    return any(
        value is not None and not (isinstance(value, list | tuple | dict) and not any(value))
        for value in values
    )
