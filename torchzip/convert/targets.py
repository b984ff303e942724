"""Destinations: what a path asks for, and the names of the files of a sharded one.

Shards are named as transformers names them: ``model-00001-of-00003.safetensors`` and
``model.safetensors.index.json``, ``pytorch_model-00001-of-00002.bin`` and
``pytorch_model.bin.index.json``.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from fractions import Fraction

from torchzip.container.shard_index import INDEX_SUFFIX

ZIP_SUFFIXES = (".pt", ".pth", ".bin", ".ckpt")
SAFETENSORS_SUFFIX = ".safetensors"

_UNITS = {"": 1, "B": 1}
for _power, _letter in enumerate("KMGT", 1):
    _UNITS |= {f"{_letter}B": 1000**_power, f"{_letter}IB": 1024**_power}
_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", re.ASCII)


def parse_size(size: int | str) -> int:
    """Return a number of bytes, as an int or as a text with a unit; decimal ones as on the hub.

    >>> parse_size("5GB"), parse_size("1.5 MB"), parse_size("2GiB"), parse_size(7)
    (5000000000, 1500000, 2147483648, 7)

    Raises
    ------
    ValueError
        If it is no size, or none above 0.
    """
    if isinstance(size, str):
        match = _SIZE.fullmatch(size)
        unit = _UNITS.get(match[2].upper()) if match is not None else None
        if match is None or unit is None:
            raise ValueError(f"{size!r} is no size; a number with KB, MB or GB was expected")
        nbytes = int(Fraction(match[1]) * unit)
    elif isinstance(size, int) and not isinstance(size, bool):
        nbytes = size
    else:
        raise TypeError(f"a size is an int or a text like '5GB', not {type(size).__name__}")
    if nbytes < 1:
        raise ValueError(f"a size of {size!r}; more than 0 bytes were expected")
    return nbytes


@dataclass(frozen=True, slots=True)
class Target:
    """Where the output goes: ``path`` if it is one file, shards with names made of it otherwise.

    ``format`` is ``"zip"`` or ``"safetensors"``. With ``has_index`` there is an index even if one
    shard is enough; with ``makes_folder`` the directory need not be there.
    """

    path: str
    format: str
    has_index: bool = False
    makes_folder: bool = False

    @property
    def index_path(self) -> str:
        return self.path + INDEX_SUFFIX

    def shard_path(self, number: int, count: int) -> str:
        """Return the path of a shard, counted from 1."""
        stem, suffix = os.path.splitext(self.path)
        return f"{stem}-{number:05d}-of-{count:05d}{suffix}"


def parse_target(dst: str | os.PathLike[str]) -> Target:
    """Return what a destination asks for, by its suffix, or as a directory.

    In a directory, an existing one or a path that ends with a separator, it is
    ``model.safetensors``. An ``*.index.json`` asks for shards.

    Raises
    ------
    ValueError
        If the suffix asks for nothing that can be written.
    """
    if not isinstance(dst, str | os.PathLike):
        raise TypeError(f"dst must be a path, not {type(dst).__name__}")
    path = os.fsdecode(dst)
    if os.path.isdir(path) or path.endswith(("/", os.sep)):
        inside = os.path.join(path, "model" + SAFETENSORS_SUFFIX)
        return Target(inside, "safetensors", makes_folder=True)
    has_index = path.lower().endswith(INDEX_SUFFIX)
    whole = path[: -len(INDEX_SUFFIX)] if has_index else path
    suffix = os.path.splitext(whole)[1].lower()
    if suffix == SAFETENSORS_SUFFIX:
        return Target(whole, "safetensors", has_index)
    if suffix in ZIP_SUFFIXES:
        return Target(whole, "zip", has_index)
    raise ValueError(
        f"{path}: the suffix says what to write, and {suffix or 'none'} is not one of "
        f"{' '.join(ZIP_SUFFIXES)} {SAFETENSORS_SUFFIX} {INDEX_SUFFIX}; that of a new directory "
        "ends with a slash"
    )
