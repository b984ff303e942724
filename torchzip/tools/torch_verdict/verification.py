"""Whether a checkpoint is whole, and what torch.load does with it."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

from torchzip.checkpoint.lazy import Checkpoint
from torchzip.container.zip_reader import ZipReader
from torchzip.errors import EnoughMemory, shown
from torchzip.files.location import StorageOptions, located
from torchzip.files.source import File
from torchzip.formats.base import Container
from torchzip.formats.zip import ZipContainer
from torchzip.limits import Limits
from torchzip.pickling.allowlist import is_torch_safe
from torchzip.tensors.script import is_script_class
from torchzip.tools.odd_values import OddValues, odd_values
from torchzip.tools.torch_verdict.calls import RefusedError
from torchzip.tools.torch_verdict.loader import TorchLoader
from torchzip.types import ForeignObject

#: Of the five pickles of a legacy file, the one that mentions storages.
_OBJECT = 3


@dataclass(frozen=True, slots=True)
class Verified:
    """What `verify` has found in a sound checkpoint.

    ``without_crc`` are records whose bytes are there and have no CRC. ``torch_load`` is what
    ``torch.load(file, map_location="cpu")`` of torch 2.13 does: "accepts", "needs
    weights_only=False" (the file may still name what is not there), "refuses" (with either), or
    "does not apply". ``refused`` are the names that torch's default loader refuses,
    ``refused_opcodes`` the opcodes that it does not know, ``reason`` what else there is to say.
    """

    file: str
    format: str
    records: int
    nbytes: int
    tensors: int
    without_crc: tuple[str, ...]
    notes: tuple[str, ...]
    torch_load: str
    refused: tuple[str, ...]
    refused_opcodes: tuple[str, ...]
    reason: str | None
    odd_values: tuple[OddValues, ...] | None = None


@EnoughMemory()
def verify(
    file: File,
    *,
    values: bool = False,
    limits: Limits | None = None,
    progress: Callable[[int, int], None] | None = None,
    storage_options: StorageOptions = None,
) -> Verified:
    """Read all of a checkpoint, compare every CRC, and say whether torch.load accepts it.

    That torch.load refuses a file by default (``weights_only=True``) is not a fault of the file.
    ``progress`` is called with the bytes read so far and those in all. With ``values``, all
    tensors are read once more, and ``odd_values`` are those with NaN or infinities.

    Raises
    ------
    TorchZipError, OSError
        At the first record that is damaged.

    Examples
    --------
    >>> import io, torchzip
    >>> buffer = io.BytesIO()
    >>> torchzip.save({"step": 7}, buffer)
    >>> start = buffer.seek(0)
    >>> found = verify(buffer)
    >>> found.format, found.records, found.torch_load
    ('zip', 6, 'accepts')
    """
    file = located(file, storage_options)
    with Checkpoint(file, limits=limits) as checkpoint:
        found = verified(checkpoint, file, progress)
        return replace(found, odd_values=odd_values(checkpoint)) if values else found


def verified(
    checkpoint: Checkpoint, file: File, progress: Callable[[int, int], None] | None = None
) -> Verified:
    """Do what `verify` does, with a file that is open."""
    report = checkpoint.verify(progress)
    return Verified(checkpoint.path, checkpoint.format, *report, *verdict_of(checkpoint, file))


#: What torch's zip reader (miniz) reads at once in search of the end record. Reads overlap by 3.
_SEARCHED_NBYTES = 4096
#: It gives torch no more of a name, which must have the slash after the folder.
_MOST_IN_NAME = 511


class Verdict(NamedTuple):
    """What torch.load does with a file; see `Verified`."""

    torch_load: str
    refused: tuple[str, ...]
    refused_opcodes: tuple[str, ...]
    reason: str | None


def verdict_of(checkpoint: Checkpoint, file: File | None = None) -> Verdict:
    """Return what torch.load does with a file that is open; no tensor is read."""
    of = checkpoint.format
    names = checkpoint.globals if of == "sharded" else checkpoint.foreign
    container = checkpoint.container
    loader = TorchLoader(is_legacy=of == "legacy")
    refused = tuple(
        ".".join(name)
        for name in names
        if not (is_torch_safe(*name) or (container.has_code and is_script_class(name[0])))
    )
    verdict, reason = container.torch_load, container.torch_reason or None
    if not container.torch_reason:
        why = _why_refused(loader, container, checkpoint.limits)
        refused = tuple(loader.refused)
        if why is not None:
            verdict, reason = "refuses", why
        elif refused or loader.opcodes or loader.reasons:
            verdict, reason = "needs weights_only=False", "; ".join(loader.reasons) or None
        else:
            reason = "; ".join(loader.provisos) or None
    elif container.is_script and not (
        isinstance(checkpoint.root, ForeignObject) and is_script_class(checkpoint.root.module)
    ):
        verdict, reason = "refuses", "an archive with constants.pkl that is not TorchScript"
    # By its name torch.load hands a file to the safetensors package.
    if isinstance(file, str | os.PathLike) and os.fsdecode(file).endswith(".safetensors"):
        if of == "safetensors":
            verdict, reason = "accepts", "as the name of the file ends in .safetensors"
        elif verdict != "does not apply":
            verdict, reason = "refuses", f"a {of} file whose name ends in .safetensors"
    return Verdict(verdict, refused, tuple(loader.opcodes), reason)


def _why_refused(loader: TorchLoader, container: Container, limits: Limits) -> str | None:
    """Return why both loaders refuse a file; None if one of them does not."""
    why = _archive_reason(container.archive) if isinstance(container, ZipContainer) else None
    try:
        for number, each in enumerate(container.pickles()):
            has_storages = not loader.is_legacy or number == _OBJECT
            loader.run(each.data(), limits, has_storages=has_storages)
    except RefusedError as error:
        return why or str(error)
    return why


def _archive_reason(archive: ZipReader) -> str | None:
    """Return why torch.load refuses an archive whatever its pickle says; None if it does not."""
    for name, parse, wrong in (
        (".storage_alignment", int, "; a number was expected"),
        (".data/serialization_id", bytes.decode, ", which is not UTF-8"),
    ):
        if name in archive:
            text = archive.read(name, limit="text_nbytes")
            try:
                parse(text)
            except ValueError:
                return f"the record {name} is {shown(text, 20)}{wrong}"
    # torch goes backwards through the file, and past its beginning if it finds no end record.
    lowest = max(archive.source.size - _SEARCHED_NBYTES, 0) % (_SEARCHED_NBYTES - 3)
    if archive.end.at < lowest:
        return "the end record is so far from the end of the file that torch does not find it"
    if len(os.fsencode(archive.root)) >= _MOST_IN_NAME:
        return f"records are in a folder whose name has {len(os.fsencode(archive.root)):,} bytes"
    for written in [os.fsencode(archive.root), *(each.encode("latin-1") for each in archive)]:
        try:
            written.decode()
        except UnicodeDecodeError:
            return f"the name {shown(written, 40)} is not UTF-8"
    return None
