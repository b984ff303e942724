"""Which kind of damaged file it is, told by what is left of its beginning."""

from __future__ import annotations

from torchzip.errors import UnsupportedError
from torchzip.files.source import Source
from torchzip.formats.base import FileContainer
from torchzip.formats.damaged.storages import SalvagedContainer
from torchzip.formats.damaged.streams import DamagedLegacy, DamagedSafetensors
from torchzip.formats.damaged.zip import DamagedZip
from torchzip.formats.legacy import is_legacy
from torchzip.formats.opening import is_safetensors
from torchzip.formats.zip import ZipContainer
from torchzip.limits import Limits


def kind_of(source: Source, start: int, limits: Limits) -> str | None:
    """Return what kind of checkpoint begins at a byte of a file, if one seems to."""
    left = source.size - start
    head = bytes(source.read_at(start, max(0, min(left, 512))))
    if head.startswith(b"PK\3\4"):
        return "a zip archive"
    if head[:1] in (b"\x80", b"L") and is_legacy(head, limits):
        return "a legacy stream"
    return "a safetensors file" if is_safetensors(head, left) else None


def end_of(container: FileContainer) -> int:
    """Return the byte after a sound checkpoint; a zip archive may be followed by some bytes."""
    if not isinstance(container, ZipContainer):
        return container.end
    at = container.archive.end.at
    return at + 22 + int.from_bytes(container.source.read_at(at + 20, 2), "little")


def open_damaged(source: Source, limits: Limits) -> SalvagedContainer:
    """Return what is left of a file that is not a sound checkpoint.

    Raises
    ------
    TorchZipError, OSError
        If nothing is left; the message says what was looked for.
    UnsupportedError
        If it is of a format whose damaged files are not repaired.
    """
    kind = kind_of(source, 0, limits)
    if kind == "a legacy stream":
        return DamagedLegacy(source, limits)
    if kind == "a safetensors file":
        return DamagedSafetensors(source, limits)
    head = bytes(source.read_at(0, min(source.size, 512)))
    if head[257:262] == b"ustar":
        raise UnsupportedError(
            "a damaged tar checkpoint of torch before 0.1.10, which is not repaired. Its members "
            "can be unpacked with tar as far as they are whole.",
            path=source.name,
        )
    return DamagedZip(source, limits)
