"""Computed tensors cost the memory of their blocks, whatever their size: peaks of processes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.test_memory import peak_mb, pytestmark  # noqa: F401  the mark is for this module too

_SCRIPT = """
import sys
import numpy as np
import torchzip as tz
from torchzip import lazy

def doubled(block):
    block *= 2
    return block

def shifted(block, rows):
    return block + np.float32(1)

folder, kind = sys.argv[1:]
with tz.lazy_load(folder + "/a.safetensors") as a, tz.lazy_load(folder + "/b.safetensors") as b:
    x, y = a["x"], b["x"]
    made = {
        "cat and compute": lambda: lazy.compute(doubled, lazy.cat([x, y])),
        "by rows": lambda: lazy.compute(shifted, x, rows=True, dtype="bfloat16"),
        "arithmetic": lambda: (x + y * 0.5 - x / 3).to("float16"),
        "transposed": lambda: x.T + y.T,
        "stacked": lambda: lazy.stack([x, y], axis=1),
        "joined": lambda: lazy.cat([x.T, (x + y).T, y.T.lazy[:, ::2]], axis=1),
        "padded": lambda: lazy.pad(x, (x.shape[0] + 5, x.shape[1] + 7), 1),
    }[kind]()
    tz.convert({"made": made}, folder + "/o.safetensors", overwrite=True)
"""


def write_sparse(path: Path, shape: tuple[int, int]) -> None:
    """Write a safetensors file with one tensor of zeros, which takes no room on the disk."""
    nbytes = 4 * shape[0] * shape[1]
    header = json.dumps({"x": {"dtype": "F32", "shape": shape, "data_offsets": [0, nbytes]}})
    header += " " * (-len(header) % 8)
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header.encode())
        file.truncate(8 + len(header) + nbytes)


@pytest.mark.few
@pytest.mark.parametrize(
    "kind",
    ["cat and compute", "by rows", "arithmetic", "transposed", "stacked", "joined", "padded"],
)
def test_a_large_tensor(tmp_path: Path, kind: str) -> None:
    """64 MB from each of two files, under 100 MB with the interpreter."""
    for name in "ab":
        write_sparse(tmp_path / f"{name}.safetensors", (4096, 4096))
    assert peak_mb(_SCRIPT, tmp_path, kind) < 100


@pytest.mark.long
def test_a_tensor_of_8_gb(tmp_path: Path) -> None:
    """Through `cat` and `compute`, in no more memory."""
    for name in "ab":
        write_sparse(tmp_path / f"{name}.safetensors", (1 << 16, 1 << 14))
    assert peak_mb(_SCRIPT, tmp_path, "cat and compute") < 100
    (tmp_path / "o.safetensors").unlink()
