"""Edits of what a file has beside its tensors: the strings of safetensors, the values of GGUF.

The header is in front of the data, so the file is rewritten, all or nothing, by `convert`.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from typing import Any

from torchzip.checkpoint.lazy import Checkpoint
from torchzip.convert.conversion import convert
from torchzip.convert.outputs.registry import output_of
from torchzip.errors import UnsupportedError, shown
from torchzip.limits import Limits


def set_metadata(
    file: str | os.PathLike[str], values: Mapping[str, Any], limits: Limits, *, dry_run: bool
) -> tuple[int, list[str], list[str]]:
    """Set values by their keys, or take a key away for None.

    Returns the size of the new file, the keys that change, and a line for each that was to go and
    is not there. Nothing is written if nothing changes.

    Raises
    ------
    UnsupportedError
        If the file has no place for metadata, or is called otherwise than its format.
    """
    path = os.fsdecode(file)
    with Checkpoint(file, limits=limits) as checkpoint:
        old, format = checkpoint.metadata, checkpoint.format
    output = output_of(path)
    if output is None or output.format != format or not output.has_metadata:
        raise UnsupportedError(
            f"a checkpoint of format {format}; metadata is set in .safetensors and .gguf files, "
            "which are called so",
            path=path,
        )
    unused = [
        f"the metadata has no {shown(key)}"
        for key, value in values.items()
        if value is None and key not in old
    ]
    changed = [
        key
        for key, value in values.items()
        if (key in old if value is None else key not in old or not _same(old[key], value))
    ]
    if not changed:
        output.check_metadata(values)
        return os.path.getsize(path), [], unused
    if "format" in old:  # which says whose file it is, and stays
        values = {"format": old["format"], **values}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about codes, which stay what they are
        report = convert(
            path, path, metadata=values, overwrite=True, dry_run=dry_run, limits=limits
        )
    return report.nbytes, changed, unused


def _same(old: Any, new: Any) -> bool:
    """Return whether a value is there already, with its type."""
    return type(old) is type(new) and bool(old == new) if isinstance(new, str | bool) else False
