"""All attacks."""

from __future__ import annotations

from tests.hostile import (
    archives,
    bodies,
    code,
    deflated,
    ends,
    gadgets,
    ggufs,
    headers,
    numpy_files,
    pickles,
    programs,
    safetensors,
    tars,
    tensors,
)
from tests.hostile.attack import Attack

BY_KIND = {
    "code": code.ROWS,
    "gadget": gadgets.ROWS,
    "pickle": pickles.ROWS,
    "tensor": tensors.ROWS,
    "archive": archives.ROWS,
    "header": headers.ROWS,
    "end": ends.ROWS,
    "deflated": deflated.ROWS,
    "body": bodies.ROWS,
    "safetensors": safetensors.ROWS,
    "gguf": ggufs.ROWS,
    "numpy": numpy_files.ROWS,
    "tar": tars.ROWS,
    "program": programs.ROWS,
}
ATTACKS: list[Attack] = [attack for rows in BY_KIND.values() for attack in rows]
