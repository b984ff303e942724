"""``torchzip verify``: what was found in a sound checkpoint, as text."""

from __future__ import annotations

from torchzip.cli.rendering import count_text, nbytes_text
from torchzip.errors import printable
from torchzip.tools.verification import Verified


def check_as_text(found: Verified) -> str:
    """Return what was found as a few lines."""
    without = found.without_crc
    compared = found.records - len(without)
    lines = [
        f"{printable(found.file)}: sound; {found.format}, "
        f"{count_text(found.tensors, 'tensor')}, {count_text(found.records, 'record')}, "
        f"{nbytes_text(found.nbytes)} read",
        f"{count_text(compared, 'CRC')} compared" + (", all right" if compared else ""),
    ]
    if without:
        shown = ", ".join(map(printable, without[:10]))
        more = f" and {len(without) - 10:,} more" if len(without) > 10 else ""
        lines.append(f"{count_text(len(without), 'record')} without a CRC: {shown}{more}")
    lines += [f"note: {printable(note)}" for note in found.notes]
    lines.append(_torch_line(found))
    return "\n".join(lines)


def _torch_line(found: Verified) -> str:
    names = ", ".join(map(printable, found.refused))
    if found.torch_load == "accepts":
        return "torch.load accepts (weights_only=True)"
    line = f"torch.load {found.torch_load}"
    if found.reason is None:
        opcodes = ", ".join(found.refused_opcodes)
        because = [names] if names else []
        because += [f"the opcodes {opcodes}, which its safe loader does not know"] * bool(opcodes)
        return f"{line}, because of {', and '.join(because)}"
    line += f": {found.reason}"
    return f"{line}; torch's safe loader refuses {names}" if names else line
