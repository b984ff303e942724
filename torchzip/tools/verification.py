"""Whether a checkpoint is whole, and what torch's safe loader says of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torchzip.checkpoint.lazy import Checkpoint
from torchzip.files.source import File, rewinder
from torchzip.limits import Limits
from torchzip.pickling.allowlist import is_torch_safe
from torchzip.tensors.script import is_script_class
from torchzip.tools.pickles import refused_opcodes

#: Formats whose names torch's loader checks.
_CHECKED_BY_TORCH = ("zip", "legacy")
#: Formats that ``weights_only=True`` refuses whatever they name, and what they are.
_NEVER_SAFE = {
    "tar": "a tar file of before torch 0.1.10",
    "torchscript": "a TorchScript archive; torch.jit.load reads it",
}
#: Formats that hold objects of TorchScript, whose classes stand in the archive itself.
_SCRIPTED = ("torchscript", "pt2")
#: Formats that are no file for torch.load, and what reads them.
_NOT_FOR_TORCH_LOAD = {
    "safetensors": "a safetensors file; safetensors.torch.load_file reads it",
    "sharded": "shards with an index; each shard is a file of its own",
    "dcp": "a distributed checkpoint; torch.distributed.checkpoint reads it",
    "pt2": "an archive of torch.export; torch.export.load reads it",
}


@dataclass(frozen=True, slots=True)
class Verified:
    """What `verify` has found in a sound checkpoint.

    ``without_crc`` are records whose bytes are there and have no CRC. ``torch_load`` is "accepts",
    "needs weights_only=False" or "does not apply". ``refused`` are the names that torch's default
    loader refuses, ``refused_opcodes`` the opcodes that it does not know, ``reason`` what else
    there is to say.
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


def verify(
    file: File,
    *,
    limits: Limits | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Verified:
    """Read all of a checkpoint, compare every CRC, and say whether torch.load accepts it.

    That torch.load refuses a file by default (``weights_only=True``) is no fault of the file.
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
    rewind = rewinder(file)
    with Checkpoint(file, limits=limits) as checkpoint:
        report = checkpoint.verify(progress)
        of = checkpoint.format
        limits = checkpoint.limits
        names = checkpoint.globals if of in (*_CHECKED_BY_TORCH, "sharded") else checkpoint.foreign
    refused = tuple(
        ".".join(name)
        for name in names
        if not (is_torch_safe(*name) or (of in _SCRIPTED and is_script_class(name[0])))
    )
    opcodes: tuple[str, ...] = ()
    if of in _CHECKED_BY_TORCH:
        rewind()
        opcodes = tuple(refused_opcodes(file, limits))
    if of in _NOT_FOR_TORCH_LOAD:
        verdict, reason = "does not apply", _NOT_FOR_TORCH_LOAD[of]
    elif of in _NEVER_SAFE:
        verdict, reason = "needs weights_only=False", _NEVER_SAFE[of]
    else:
        verdict, reason = "needs weights_only=False" if refused or opcodes else "accepts", None
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
