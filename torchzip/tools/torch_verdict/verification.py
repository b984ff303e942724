"""Whether a checkpoint is whole, and what torch.load does with it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from dataclasses import dataclass

from torchzip.checkpoint.lazy import Checkpoint
from torchzip.container.zip_reader import ZipReader
from torchzip.errors import EnoughMemory, shown
from torchzip.files.location import StorageOptions, located
from torchzip.files.opening import open_source
from torchzip.files.source import File, rewinder
from torchzip.formats.zip import ZipContainer
from torchzip.limits import Limits
from torchzip.pickling.allowlist import is_torch_safe
from torchzip.tensors.script import is_script_class
from torchzip.tools.pickles import find_pickles, pickles
from torchzip.tools.torch_verdict.loader import TorchLoader
from torchzip.tools.torch_verdict.values import RefusedError
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


@EnoughMemory()
def verify(
    file: File,
    *,
    limits: Limits | None = None,
    progress: Callable[[int, int], None] | None = None,
    storage_options: StorageOptions = None,
) -> Verified:
    """Read all of a checkpoint, compare every CRC, and say whether torch.load accepts it.

    That torch.load refuses a file by default (``weights_only=True``) is not a fault of the file.
    ``progress`` is called with the bytes read so far and those in all.

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
    rewind = rewinder(file)
    with Checkpoint(file, limits=limits) as checkpoint:
        report = checkpoint.verify(progress)
        of = checkpoint.format
        limits = checkpoint.limits
        names = checkpoint.globals if of == "sharded" else checkpoint.foreign
        container = checkpoint.container
        is_followed = not container.torch_reason
        why = None
        if is_followed and isinstance(container, ZipContainer):
            why = _archive_reason(container.archive)
        root = checkpoint.root
    refused = tuple(
        ".".join(name)
        for name in names
        if not (is_torch_safe(*name) or (container.has_code and is_script_class(name[0])))
    )
    opcodes: tuple[str, ...] = ()
    verdict, reason = container.torch_load, container.torch_reason or None
    if is_followed:
        loader = TorchLoader(is_legacy=of == "legacy")
        rewind()
        try:
            _follow(loader, file, limits)
        except RefusedError as error:
            why = why or str(error)
        refused, opcodes = tuple(loader.refused), tuple(loader.opcodes)
        if why is not None:
            verdict, reason = "refuses", why
        elif refused or opcodes or loader.reasons:
            verdict, reason = "needs weights_only=False", "; ".join(loader.reasons) or None
        else:
            reason = "; ".join(loader.provisos) or None
    elif container.is_script and not (
        isinstance(root, ForeignObject) and is_script_class(root.module)
    ):
        verdict, reason = "refuses", "an archive with constants.pkl that is not TorchScript"
    if _is_called_safetensors(file):
        if of == "safetensors":
            verdict, reason = "accepts", "as the name of the file ends in .safetensors"
        elif verdict != "does not apply":
            verdict, reason = "refuses", f"a {of} file whose name ends in .safetensors"
    return Verified(
        file=checkpoint.path,
        format=of,
        records=report.records,
        nbytes=report.nbytes,
        tensors=report.tensors,
        without_crc=report.without_crc,
        notes=report.notes,
        torch_load=verdict,
        refused=refused,
        refused_opcodes=opcodes,
        reason=reason,
    )


def _follow(loader: TorchLoader, file: File, limits: Limits) -> None:
    """Have a loader follow all pickles of a file that torch.load carries out."""
    source = open_source(file)
    with contextlib.closing(source):
        place = find_pickles(source, None, limits)
        for number, steps in enumerate(pickles(place, source.name, limits)):
            loader.run(steps, has_storages=not loader.is_legacy or number == _OBJECT)


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
    return None


def _is_called_safetensors(file: File) -> bool:
    """Return whether torch.load would hand a file to the safetensors package."""
    return isinstance(file, str | os.PathLike) and os.fsdecode(file).endswith(".safetensors")
