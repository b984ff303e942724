"""Which kind of damaged file it is, told by what is left of its beginning."""

from __future__ import annotations

from torchzip.errors import UnsupportedError
from torchzip.files.source import Source
from torchzip.formats.damaged_streams import DamagedLegacy, DamagedSafetensors
from torchzip.formats.damaged_zip import DamagedZip
from torchzip.formats.legacy import is_legacy
from torchzip.formats.opening import is_safetensors
from torchzip.formats.salvaged import SalvagedContainer
from torchzip.limits import Limits


def open_damaged(source: Source, limits: Limits) -> SalvagedContainer:
    """Return what is left of a file that is no sound checkpoint.

    Raises
    ------
    TorchZipError, OSError
        If nothing is left; the message says what was looked for.
    UnsupportedError
        If it is of a format whose damaged files are not repaired.
    """
    head = bytes(source.read_at(0, min(source.size, 512)))
    if head[:1] in (b"\x80", b"L") and is_legacy(head, limits):
        return DamagedLegacy(source, limits)
    if is_safetensors(head, source.size):
        return DamagedSafetensors(source, limits)
    if head[257:262] == b"ustar":
        raise UnsupportedError(
            "a damaged tar checkpoint of torch before 0.1.10, which is not repaired. Its members "
            "can be unpacked with tar as far as they are whole.",
            path=source.name,
        )
    return DamagedZip(source, limits)
