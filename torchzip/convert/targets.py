"""Destinations: what a path asks for, and the names of the files of a sharded one.

Shards and their index are named as transformers names them (`container.hub_names`), also those of a
variant: ``model.fp16.safetensors`` in shards has ``model.safetensors.index.fp16.json``.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from fractions import Fraction

from torchzip.container.hub_names import INDEX_SUFFIX, WHOLE_FILES, index_of, whole_of
from torchzip.convert.outputs.base import Output
from torchzip.convert.outputs.registry import OUTPUTS, output_of
from torchzip.convert.outputs.safetensors import SafetensorsOutput
from torchzip.files.location import join
from torchzip.files.opening import is_folder
from torchzip.files.place import LocalPlace, StorePlace, place_of

_UNITS = {"": 1, "B": 1}
for _power, _letter in enumerate("KMGT", 1):
    _UNITS |= {f"{_letter}B": 1000**_power, f"{_letter}IB": 1024**_power}
_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", re.ASCII)


def parse_size(size: int | str) -> int:
    """Return a number of bytes, as an int or as a string with a unit; decimal ones as on the hub.

    >>> parse_size("5GB"), parse_size("1.5 MB"), parse_size("2GiB"), parse_size(7)
    (5000000000, 1500000, 2147483648, 7)

    Raises
    ------
    ValueError
        If it is not a size, or not above 0.
    """
    if isinstance(size, str):
        match = _SIZE.fullmatch(size)
        unit = _UNITS.get(match[2].upper()) if match is not None else None
        if match is None or unit is None:
            raise ValueError(f"{size!r} is not a size; a number with KB, MB or GB was expected")
        nbytes = int(Fraction(match[1]) * unit)
    elif isinstance(size, int) and not isinstance(size, bool):
        nbytes = size
    else:
        raise TypeError(f"a size is an int or a string like '5GB', not {type(size).__name__}")
    if nbytes < 1:
        raise ValueError(f"a size of {size!r}; more than 0 bytes were expected")
    return nbytes


@dataclass(frozen=True, slots=True)
class Target:
    """Where the output goes: ``path`` if it is one file, shards with names made of it otherwise.

    ``output`` is the format, and ``place`` what the paths lead to; ``index_path`` is where the
    index of shards goes. With ``has_index`` there is an index even if one shard is enough; with
    ``makes_folder`` the directory need not be there.
    """

    path: str
    output: type[Output]
    index_path: str
    place: LocalPlace | StorePlace
    has_index: bool = False
    makes_folder: bool = False


def parse_target(dst: str | os.PathLike[str], name: str = WHOLE_FILES[0]) -> Target:
    """Return what a destination asks for, by its suffix, or as a directory.

    In a directory, an existing one or a path that ends with a separator, it is ``name``.
    An ``*.index.json``, or ``*.index.fp16.json``, asks for shards.

    Raises
    ------
    ValueError
        If the suffix asks for nothing that can be written.
    """
    if not isinstance(dst, str | os.PathLike):
        raise TypeError(f"dst must be a path, not {type(dst).__name__}")
    path, place = os.fsdecode(dst), place_of(dst)
    if not path:
        raise ValueError("the destination is an empty string; the name of a file was expected")
    if is_folder(dst) or path.endswith(("/", os.sep)):
        inside = join(path, name)
        return Target(inside, SafetensorsOutput, index_of(inside), place, makes_folder=True)
    whole = whole_of(path)
    output = output_of(whole or path)
    if output is None:
        suffix = os.path.splitext(whole or path)[1].lower()
        known = " ".join(each for output in OUTPUTS for each in output.suffixes)
        has = f"the suffix {suffix} is not known" if suffix else "it has no suffix"
        raise ValueError(
            f"{path}: {has}; one of {known} {INDEX_SUFFIX} was expected, or a slash at the end for "
            f"a new directory: {path}/"
        )
    if whole is None:
        return Target(path, output, index_of(path), place)
    return Target(whole, output, path, place, has_index=True)
