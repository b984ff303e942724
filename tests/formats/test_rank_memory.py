"""Checkpoints of many ranks cost the memory of their structure: peaks of processes."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.test_big import folder  # noqa: F401  a fixture
from tests.test_memory import peak_mb, pytestmark  # noqa: F401  the mark is for this module too

#: Lets torchzip write and copy holes where a tensor is.
_HOLES = """
import os
import sys
from collections import OrderedDict
from pathlib import Path
import numpy as np
import torchzip as tz
from tests.test_big import Holes
from torchzip.files import new_file, platform_calls, sink

platform_calls.os = Holes()
sink._CACHED_NBYTES = 1 << 60
new_file._reserve = lambda descriptor, nbytes: False
new_file.NewFile.free_nbytes = lambda self: 1 << 62
folder, size = Path(sys.argv[1]), float(sys.argv[2])
folder.mkdir(exist_ok=True)
"""

_ZERO = """
count, ranks = 200, 4
rows = round(size * 1e9 / 4 / 4096 / count / ranks) * ranks
shapes = OrderedDict((f"layers.{i}.w", tz.types.Size((rows, 4096))) for i in range(count))
flat = np.zeros(rows // ranks * 4096 * count, np.float32)
empty = OrderedDict((name, np.empty(0, np.float32)) for name in shapes)
for rank in range(ranks):
    start = folder / f"zero_pp_rank_{rank}_mp_rank_00_"
    tz.save({"module": empty, "param_shapes": [shapes]}, f"{start}model_states.pt")
    states = {"zero_stage": 3, "partition_count": ranks, "fp32_flat_groups": [flat]}
    tz.save({"optimizer_state_dict": states}, f"{start}optim_states.pt", crc32=False)
"""

_RANKS = """
from tests.formats.rank_builder import dtensor, write_rank
count, ranks = 100, 32
rows = round(size * 1e9 / 4 / 4096 / count / ranks)
for rank in range(ranks):
    root = {
        f"layers.{i}.w": dtensor(
            np.zeros((rows, 4096), np.float32), (rows * ranks, 4096), [ranks], [0], [rank]
        )
        for i in range(count)
    }
    write_rank(folder, rank, ranks, root, crc32=False)
"""

_CONVERT = """
with tz.lazy_load(folder) as checkpoint:
    assert sum(tensor.nbytes for tensor in checkpoint.values()) > 0.9e9 * size
tz.convert(folder, folder / "out.safetensors", **eval(sys.argv[3]))
"""


def _check(around: Path, write: str, size: float, most_mb: int, options: str = "{}") -> None:
    made = around / "ranks"
    peak_mb(_HOLES + write, made, str(size))
    assert peak_mb(_HOLES + _CONVERT, made, str(size), options) < most_mb


@pytest.mark.few
@pytest.mark.parametrize("write", [_ZERO, _RANKS], ids=["zero", "ranks"])
def test_300_mb(folder: Path, write: str) -> None:  # noqa: F811
    """With a cast."""
    _check(folder, write, 0.3, 80, "{'dtype': 'bfloat16'}")


@pytest.mark.long
def test_10_gb_of_zero(folder: Path) -> None:  # noqa: F811
    """Stage 3, 4 ranks, 200 tensors."""
    _check(folder, _ZERO, 10, 80)


@pytest.mark.long
def test_50_gb_in_32_ranks(folder: Path) -> None:  # noqa: F811
    """100 tensors, each in 32 parts."""
    _check(folder, _RANKS, 50, 200)
