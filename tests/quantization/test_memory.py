"""What dequantizing and merging cost in memory, whatever the size: peaks of processes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import torchzip as tz
from tests.test_memory import peak_mb, pytestmark  # noqa: F401  the mark is for this module too
from torchzip.dtypes import SAFETENSORS

_CONVERT = """
import sys, torchzip as tz
tz.convert(sys.argv[1], sys.argv[2], dequantize=True, overwrite=True)
"""

_MERGE = """
import sys, torchzip as tz
merged = tz.tools.merge_lora(sys.argv[1], sys.argv[2], sys.argv[3], overwrite=True)
assert len(merged.merged) == int(sys.argv[4]), merged.merged
"""


def write_sparse(path: Path, tensors: dict[str, tuple[str, tuple[int, ...]]]) -> None:
    """Write a safetensors file of zeros, which takes no room on the disk."""
    header, at = {}, 0
    for name, (code, shape) in tensors.items():
        nbytes = SAFETENSORS[code].itemsize * int(np.prod(shape))
        header[name] = {"dtype": code, "shape": shape, "data_offsets": [at, at + nbytes]}
        at += nbytes
    raw = json.dumps(header).encode()
    raw += b" " * (-len(raw) % 8)
    with path.open("wb") as file:
        file.write(len(raw).to_bytes(8, "little") + raw)
        file.truncate(8 + len(raw) + at)


def fp8(size: int) -> dict[str, tuple[str, tuple[int, ...]]]:
    return {
        "a.weight": ("F8_E4M3", (size, size)),
        "a.weight_scale_inv": ("F32", (-(-size // 128), -(-size // 128))),
    }


def mxfp4(experts: int) -> dict[str, tuple[str, tuple[int, ...]]]:
    return {
        "e.gate_up_proj_blocks": ("U8", (experts, 5760, 90, 16)),
        "e.gate_up_proj_scales": ("U8", (experts, 5760, 90)),
    }


def mxfp6(size: int) -> dict[str, tuple[str, tuple[int, ...]]]:
    return {
        "a.weight_packed": ("U8", (size, size * 3 // 4)),
        "a.weight_scale": ("U8", (size, size // 32)),
    }


def gptq(out: int, inner: int) -> dict[str, tuple[str, tuple[int, ...]]]:
    return {
        "a.qweight": ("I32", (inner // 8, out)),
        "a.qzeros": ("I32", (inner // 128, out // 8)),
        "a.scales": ("F16", (inner // 128, out)),
        "a.g_idx": ("I32", (inner,)),
    }


#: The tensors of a file, and the most MB that a process may take.
CASES = {
    "fp8, 4096 x 4096": (fp8(4096), 60),
    "mxfp4, 134 MB": (mxfp4(4), 100),
    "mxfp6, 8192 x 8192": (mxfp6(8192), 100),
    "gptq, 8192 x 8192": (gptq(8192, 8192), 100),
}
LARGE = {
    "fp8, 16384 x 16384": (fp8(16384), 60),
    "mxfp4, 4 GB": (mxfp4(128), 100),
}


@pytest.mark.few
@pytest.mark.parametrize("case", CASES)
def test_dequantize(case: str, tmp_path: Path) -> None:
    tensors, most = CASES[case]
    write_sparse(tmp_path / "m.safetensors", tensors)
    assert peak_mb(_CONVERT, tmp_path / "m.safetensors", tmp_path / "o.safetensors") < most


@pytest.mark.long
@pytest.mark.parametrize("case", LARGE)
def test_dequantize_large(case: str, tmp_path: Path) -> None:
    """Of gpt-oss-120b, the experts of one layer are one tensor of 4.2 GB in bfloat16."""
    tensors, most = LARGE[case]
    write_sparse(tmp_path / "m.safetensors", tensors)
    peak = peak_mb(_CONVERT, tmp_path / "m.safetensors", tmp_path / "o.safetensors")
    (tmp_path / "o.safetensors").unlink()
    assert peak < most


def _merge_peak(folder: Path, layers: int, rank: int) -> int:
    """Return the peak of merging into matrices of 8192 x 8192, 134 MB each in bfloat16."""
    names = [f"model.layers.{layer}.q" for layer in range(layers)]
    write_sparse(
        folder / "base.safetensors", {f"{each}.weight": ("BF16", (8192, 8192)) for each in names}
    )
    factors: dict[str, tuple[str, tuple[int, ...]]] = {}
    for each in names:
        factors[f"{each}.lora_A.weight"] = ("F32", (rank, 8192))
        factors[f"{each}.lora_B.weight"] = ("F32", (8192, rank))
    write_sparse(folder / "lora.safetensors", factors)
    paths = [folder / f"{name}.safetensors" for name in ("base", "lora", "out")]
    peak = peak_mb(_MERGE, *paths, str(layers))
    paths[-1].unlink()
    return peak


@pytest.mark.few
def test_merge_lora(tmp_path: Path) -> None:
    """Two matrices."""
    assert _merge_peak(tmp_path, 2, 16) < 150


@pytest.mark.long
def test_merge_lora_into_20_gb(tmp_path: Path) -> None:
    """A base of 150 matrices, with factors of 3.4 MB for each."""
    assert _merge_peak(tmp_path, 150, 16) < 150


def test_sparse_files_are_right(tmp_path: Path) -> None:
    """What the tests above write is a file as others are."""
    write_sparse(tmp_path / "m.safetensors", fp8(200))
    with tz.lazy_load(tmp_path / "m.safetensors") as made:
        assert made["a.weight_scale_inv"].shape == (2, 2)
        assert not tz.lazy.dequantized(made)["a.weight"].numpy().any()
