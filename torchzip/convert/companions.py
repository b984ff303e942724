"""The small files beside the weights of a directory: the config and the tokenizer of a model.

They are recognised by their suffixes, so weights in another format are never among them, and
neither is the index of shards, which would be wrong for the new ones. They are copied as they are
and get their names together with the weights. Beside weights that were dequantized, the config says
nothing of quantization.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import NamedTuple, Protocol

from torchzip.container.hub_names import is_index
from torchzip.files.folder import Folder
from torchzip.files.location import join
from torchzip.files.source import Buffer, FileObjectSource, Source
from torchzip.formats.base import read_blocks
from torchzip.quantization.configs import is_config, plain_config

_SUFFIXES = (".json", ".jinja", ".md", ".model", ".tiktoken", ".txt")
#: Larger files are left out, and said to be. The largest tokenizers have about 40 MB.
_MOST_NBYTES = 100_000_000


class Companion(NamedTuple):
    """A file that is copied to ``path``."""

    path: str
    source: Source


class _File(Protocol):
    def write_at(self, offset: int, data: Buffer) -> None: ...


def companions(
    folder: Folder, target: str, *, is_dequantized: bool = False
) -> tuple[list[Companion], list[str]]:
    """Return the small files of a folder, which go to the folder ``target``.

    And a line for each file that is not copied, or not all of it.
    """
    files: list[Companion] = []
    left_out: list[str] = []
    for name, source in _small_files(folder):
        if source.size > _MOST_NBYTES:
            left_out.append(f"{name}: a file of {source.size:,} bytes, too large to be a config")
            continue
        if is_dequantized and is_config(name):
            raw = bytes(source.read_at(0, source.size))
            plain = plain_config(name, raw)
            if plain is None:
                left_out.append(f"{name}: of the quantization, and not for plain weights")
                continue
            if plain != raw:
                left_out.append(f"{name}: what it says of the quantization")
                source = FileObjectSource(io.BytesIO(plain))
        files.append(Companion(join(target, name), source))
    return files, left_out


def _small_files(folder: Folder) -> Iterator[tuple[str, Source]]:
    names = [
        name
        for name in folder.names
        if name.lower().endswith(_SUFFIXES) and not name.startswith(".") and not is_index(name)
    ]
    folder.will_open(names)
    for name in names:
        try:
            yield name, folder.open(name)
        except IsADirectoryError:
            continue


def copy(companion: Companion, file: _File) -> None:
    """Write a file's bytes to a new one."""
    at = 0
    for block in read_blocks(companion.source, 0, companion.source.size):
        file.write_at(at, block)
        at += len(block)
