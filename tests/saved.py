"""Whole files as bytes: what `save` makes of a value, and archives as other programs pack them."""

from __future__ import annotations

import contextlib
import io
import json
import struct
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torchzip as tz
from tests import builders as b

#: Where the files of each release of torch are, and those of which ``truth.json`` says what is in.
RELEASES = Path(__file__).parent / "data" / "golden"
GOLDEN_FILES = [
    release / file
    for release in sorted(RELEASES.glob("torch-*"))
    for file in json.loads((release / "truth.json").read_text())
]


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Let be all warnings."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def saved(value: Any, **options: Any) -> bytes:
    file = io.BytesIO()
    tz.save(value, file, **options)
    return file.getvalue()


def flipped(data: bytes, place: int, bits: int = 1) -> bytes:
    """Return bytes of which one has some of its bits turned round."""
    return data[:place] + bytes([data[place] ^ bits]) + data[place + 1 :]


def records_of(data: bytes) -> dict[str, bytes]:
    """Return the records of an archive by their names, without the folder."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return {name.partition("/")[2]: archive.read(name) for name in archive.namelist()}


def zipped_again(
    data: bytes,
    method: int = zipfile.ZIP_STORED,
    change: Callable[[str, bytes], bytes] = lambda record, content: content,
    *,
    level: int = 6,
) -> bytes:
    """Return an archive as Python's zipfile makes it from another: no zip64, sizes in front.

    ``change`` takes the name of a record within the root, and its bytes.
    """
    made = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(data)) as old,
        zipfile.ZipFile(made, "w", method, compresslevel=level) as new,
    ):
        for name in old.namelist():
            info = zipfile.ZipInfo(name)  # of 1980: the bytes do not change with the clock
            info.external_attr = 0o600 << 16
            content = change(name.partition("/")[2], old.read(name))
            new.writestr(info, content, method, level)
    return made.getvalue()


def big_endian(data: bytes) -> bytes:
    """Return an archive whose byte order says big; its numbers are others for it."""
    return zipped_again(data, change=lambda name, raw: b"big" if name == "byteorder" else raw)


def legacy(value: dict[str, Any]) -> bytes:
    """Return a legacy file of arrays in C order, made without torchzip."""
    kinds = {"float32": "Float", "float64": "Double", "int16": "Short", "uint8": "Byte"}
    tensors = {}
    for key, (name, array) in enumerate(value.items()):
        kind = b.name("torch", f"{kinds[array.dtype.name]}Storage")
        stride = [step // array.itemsize for step in array.strides]
        storage = b.persistent(str(key), numel=array.size, kind=kind)
        tensors[name] = b.tensor(storage, size=array.shape, stride=stride)
    storages = [struct.pack("<q", array.size) + array.tobytes() for array in value.values()]
    keys = b.list_of(*map(str, range(len(value))))
    return b.legacy(b.stream(b.dict_of(tensors)), b.stream(keys), b"".join(storages))
