"""A tensor as text, as numbers about it and as .npy: the same from every format."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import torchzip as tz
from tests import builders as b
from tests.formats import dcp_builder as d
from tests.saved import GOLDEN_FILES, saved, zipped_again
from torchzip.checkpoint.lazy_tensor import LazyTensor
from torchzip.errors import UnsupportedError
from torchzip.tools import statistics
from torchzip.tools.array_text import array_text, tensor_text
from torchzip.tools.npy import write_npy


def check(tensor: LazyTensor) -> None:
    """Compare with numpy on the whole array."""
    array = tensor.numpy()
    assert tensor_text(tensor) == array_text(array)
    expected, out = io.BytesIO(), io.BytesIO()
    try:
        write_npy(tensor, out)
    except UnsupportedError:
        assert array.dtype.isbuiltin != 1
        if tensor.torch_dtype.startswith("complex"):
            return
        array = array.astype(np.float32)
        write_npy(tensor, out, dtype="float32")
    np.save(expected, array)
    if array.ndim < 2 or array.flags.c_contiguous:
        assert out.getvalue() == expected.getvalue()
    out.seek(0)
    np.testing.assert_array_equal(np.load(out), array)
    found, whole = statistics(tensor), statistics(array)
    assert (found.count, found.min, found.max, found.counts) == (
        whole.count, whole.min, whole.max, whole.counts,
    )  # fmt: skip


@pytest.mark.parametrize("path", GOLDEN_FILES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_golden_files(path: Path) -> None:
    """Zip, legacy, TorchScript; strides, conj, float8."""
    with tz.lazy_load(path) as checkpoint:
        for tensor in checkpoint.values():
            if isinstance(tensor, LazyTensor):
                check(tensor)


def _deflated(folder: Path, array: Any) -> Path:
    (folder / "m.pt").write_bytes(zipped_again(saved({"w": array}), zipfile.ZIP_DEFLATED))
    return folder / "m.pt"


def _big_endian(folder: Path, array: Any) -> Path:
    storage = b.persistent(numel=array.size, kind=b.name("torch", "FloatStorage"))
    made = b.dict_of({"w": b.tensor(storage, size=array.shape, stride=(array.shape[1], 1))})
    members = b.members_of(b.stream(made), {"0": array.astype(">f4").tobytes()}, byteorder=b"big")
    (folder / "m.pt").write_bytes(b.build_zip(members))
    return folder / "m.pt"


def _safetensors(folder: Path, array: Any) -> Path:
    tz.save({"w": array}, folder / "m.pt")
    tz.convert(folder / "m.pt", folder / "m.safetensors")
    return folder / "m.safetensors"


def _shards(folder: Path, array: Any) -> Path:
    tz.save({"w": array, "v": array + 1}, folder / "m.pt")
    tz.convert(folder / "m.pt", f"{folder / 'shards'}/", max_shard_size=array.nbytes + 1000)
    return folder / "shards"


def _distributed(folder: Path, array: Any) -> Path:
    rows, columns = array.shape
    made = d.Builder(folder / "c")
    half = columns // 2
    made.tensor("w", array, [((0, 0), (rows, half)), ((0, half), (rows, columns - half))])
    return made.write()


@pytest.mark.parametrize(
    "write", [_deflated, _big_endian, _safetensors, _shards, _distributed], ids=lambda f: f.__name__
)
def test_formats(write: Any, tmp_path: Path) -> None:
    """A matrix, its transposed and a slice, from wherever it lies."""
    array = np.random.default_rng(0).standard_normal((90, 61)).astype(np.float32)
    with tz.lazy_load(write(tmp_path, array)) as checkpoint:
        tensor = checkpoint["w"]
        np.testing.assert_array_equal(tensor.numpy(), array)
        check(tensor)
        spec = tensor.spec
        check(LazyTensor(spec.replace(shape=spec.shape[::-1], stride=spec.stride[::-1])))


@pytest.mark.parametrize("dtype", ["float16", "float64"])
def test_casts(dtype: str) -> None:
    """Other casts round as those of convert do."""
    array = np.array([1 / 3, 1e6, np.nan], np.float32)
    out = io.BytesIO()
    with tz.lazy_load(io.BytesIO(saved({"w": array}))) as checkpoint:
        write_npy(checkpoint["w"], out, dtype=dtype)
        with pytest.raises(UnsupportedError, match="bfloat16"):
            write_npy(checkpoint["w"], out, dtype="bfloat16")
    out.seek(0)
    with np.errstate(over="ignore"):
        np.testing.assert_array_equal(np.load(out), array.astype(dtype))
