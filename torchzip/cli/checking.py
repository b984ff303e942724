"""``torchzip verify``: whether a checkpoint is whole, and what torch's safe loader says of it."""

from __future__ import annotations

from typing import Any

from torchzip.checkpoint.lazy import Checkpoint
from torchzip.cli.disassembly import refused_opcodes
from torchzip.cli.rendering import count_text, nbytes_text
from torchzip.errors import printable
from torchzip.pickling.allowlist import is_torch_safe

#: Formats whose names torch's loader checks.
_CHECKED_BY_TORCH = ("zip", "legacy")
#: Formats that ``weights_only=True`` refuses whatever they name, and what they are.
_NEVER_SAFE = {
    "tar": "a tar file of before torch 0.1.10",
    "torchscript": "a TorchScript archive; torch.jit.load reads it",
}
#: Formats that are no file for torch.load, and what reads them.
_NOT_FOR_TORCH_LOAD = {
    "safetensors": "a safetensors file; safetensors.torch.load_file reads it",
    "sharded": "shards with an index; each shard is a file of its own",
    "dcp": "a distributed checkpoint; torch.distributed.checkpoint reads it",
    "pt2": "an archive of torch.export; torch.export.load reads it",
}


def check(checkpoint: Checkpoint) -> dict[str, Any]:
    """Read all of a checkpoint; return what `verify` shows, as plain values for JSON.

    ``torch_load`` is "accepts", "needs weights_only=False" or "does not apply". ``refused`` are
    the names that torch's default loader refuses, ``refused_opcodes`` the opcodes that it does not
    know, ``reason`` what else there is to say.

    Raises
    ------
    TorchZipError
        At the first record that is damaged.
    """
    report = checkpoint.verify()
    of = checkpoint.format
    refused: list[str] = []
    opcodes = refused_opcodes(checkpoint.path) if of in _CHECKED_BY_TORCH else []
    if of in (*_CHECKED_BY_TORCH, "sharded"):
        refused = [".".join(name) for name in checkpoint.globals if not is_torch_safe(*name)]
    if of in _NOT_FOR_TORCH_LOAD:
        verdict, reason = "does not apply", _NOT_FOR_TORCH_LOAD[of]
    elif of in _NEVER_SAFE:
        verdict, reason = "needs weights_only=False", _NEVER_SAFE[of]
    else:
        verdict, reason = "needs weights_only=False" if refused or opcodes else "accepts", None
    return {
        "file": checkpoint.path,
        "format": of,
        "records": report.records,
        "nbytes": report.nbytes,
        "tensors": report.tensors,
        "without_crc": list(report.without_crc),
        "notes": list(report.notes),
        "torch_load": verdict,
        "refused": refused,
        "refused_opcodes": opcodes,
        "reason": reason,
    }


def check_as_text(found: dict[str, Any]) -> str:
    """Return what was found as a few lines."""
    without = found["without_crc"]
    compared = found["records"] - len(without)
    lines = [
        f"{printable(found['file'])}: sound; {found['format']}, "
        f"{count_text(found['tensors'], 'tensor')}, {count_text(found['records'], 'record')}, "
        f"{nbytes_text(found['nbytes'])} read",
        f"{count_text(compared, 'CRC')} compared" + (", all right" if compared else ""),
    ]
    if without:
        shown = ", ".join(map(printable, without[:10]))
        more = f" and {len(without) - 10:,} more" if len(without) > 10 else ""
        lines.append(f"{count_text(len(without), 'record')} without a CRC: {shown}{more}")
    lines += [f"note: {printable(note)}" for note in found["notes"]]
    lines.append(_torch_line(found))
    return "\n".join(lines)


def _torch_line(found: dict[str, Any]) -> str:
    names = ", ".join(map(printable, found["refused"]))
    if found["torch_load"] == "accepts":
        return "torch.load accepts (weights_only=True)"
    line = f"torch.load {found['torch_load']}"
    if found["reason"] is None:
        opcodes = ", ".join(found["refused_opcodes"])
        because = [names] if names else []
        because += [f"the opcodes {opcodes}, which its safe loader does not know"] * bool(opcodes)
        return f"{line}, because of {', and '.join(because)}"
    line += f": {found['reason']}"
    return f"{line}; torch's safe loader refuses {names}" if names else line
