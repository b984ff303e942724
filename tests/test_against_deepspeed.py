"""ZeRO directories as DeepSpeed writes them, and what its own script makes of them."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import torchzip as tz

_NEEDED = ["deepspeed", "huggingface_hub"]  # the second by zero_to_fp32.py
pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(
        None in map(importlib.util.find_spec, _NEEDED), reason=f"needs {' and '.join(_NEEDED)}"
    ),
]
_MAKE = Path(__file__).parent / "data" / "ranks" / "make_zero.py"
_CASES = [
    (stage, dtype, ranks, "{}")
    for stage in (1, 2, 3)
    for dtype in ("fp32", "bf16")
    for ranks in (1, 2, 3, 8)
] + [
    (1, "fp32", 3, '{"round_robin_gradients": true}'),
    (2, "bf16", 3, '{"round_robin_gradients": true}'),
    (2, "fp16", 3, "{}"),
    (3, "bf16", 3, '{"sub_group_size": 100}'),
]


def _run(folder: Path, *command: str) -> None:
    environment = dict(
        os.environ, DS_ACCELERATOR="cpu", CUDA_VISIBLE_DEVICES="", OMP_NUM_THREADS="1",
        TORCH_EXTENSIONS_DIR=str(folder / "extensions"),
    )  # fmt: skip
    done = subprocess.run(
        [sys.executable, *command], cwd=folder, env=environment, capture_output=True, text=True,
        check=False, timeout=300,
    )  # fmt: skip
    if "Type fp16 is not supported on your device" in done.stderr:
        pytest.skip("this processor has no fp16 that DeepSpeed would train with")
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.parametrize(("stage", "dtype", "ranks", "more"), _CASES)
def test_equal(stage: int, dtype: str, ranks: int, more: str, tmp_path: Path) -> None:
    """Bit for bit what the script makes, and the frozen parameters that it loses in stage 1."""
    out = tmp_path / "out"
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    _run(tmp_path, *launch, str(_MAKE), str(stage), dtype, str(out), more)
    _run(out, "zero_to_fp32.py", ".", "reference")
    expected = tz.load(out / "reference" / "pytorch_model.bin")
    with tz.lazy_load(out) as found:
        lost = {"frozen.weight", "frozen.bias"} if stage == 1 else set()
        assert set(found) == {*expected, *lost}
        for name, array in expected.items():
            assert found[name].shape == array.shape
            made = found[name].numpy().astype(np.float32)
            assert made.tobytes() == array.astype(np.float32).tobytes(), name
        assert found["head.weight"] is found["emb.weight"]
        assert found.verify().notes == ()
