"""Memory is a promise: peaks of child processes, by the operating system's account."""

from __future__ import annotations

from pathlib import Path

import pytest

import torchzip as tz
from tests.child_process import python

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/status").exists(), reason="the peak of a process is read from /proc"
)

_PEAK = """
for line in open("/proc/self/status"):
    if line.startswith("VmHWM:"):
        print(int(line.split()[1]) // 1000)
"""


def peak_mb(script: str, *arguments: Path | str) -> int:
    """Return the peak memory of a Python process that runs a script, in MB."""
    return int(python("-c", script + _PEAK, *arguments).split()[-1])


_WRITE = """
import sys, numpy as np, torchzip as tz
def blocks():
    block = np.arange(1 << 22, dtype=np.float32)
    for i in range(32):
        yield block
        block += 1
with tz.incremental_save(sys.argv[1]) as out:
    state = {f"layer.{i}": out.store_chunks(blocks(), shape=(32, 1 << 22), dtype="float32")
             for i in range(4)}
    out.save(state)
"""

_CONVERT = """
import sys, torchzip as tz
tz.convert(sys.argv[1], sys.argv[2], dtype="bfloat16")
"""


#: Prints the peak of the largest worker too: what the system keeps of children that have ended.
_CONVERT_WITH_WORKERS = """
import resource, sys, torchzip as tz
tz.convert(sys.argv[1], sys.argv[2], dtype="bfloat16", jobs=2)
worker = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss // 1000
assert 10 < worker < 100, f"a worker took {worker} MB"
"""


@pytest.fixture(scope="module")
def two_gb(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a 2 GB checkpoint of float32, in a process that stays under 150 MB."""
    path = tmp_path_factory.mktemp("big") / "two.pt"
    assert peak_mb(_WRITE, path) < 150
    assert path.stat().st_size > 2 << 30
    return path


@pytest.mark.long
@pytest.mark.parametrize(
    ("suffix", "dtype"),
    [
        (".pt", "bfloat16"), (".safetensors", "bfloat16"), (".npz", "float32"),
        (".gguf", "bfloat16"), (".gguf", "q8_0"),
    ],
)  # fmt: skip
def test_convert_two_gb(two_gb: Path, tmp_path: Path, suffix: str, dtype: str) -> None:
    """Converting 2 GB of float32 takes under 100 MB of memory."""
    target = tmp_path / f"out{suffix}"
    assert peak_mb(_CONVERT.replace("bfloat16", dtype), two_gb, target) < 100
    with tz.lazy_load(target) as ckpt:
        tensor = ckpt["layer.3"]
        assert tensor.torch_dtype == ("float32" if dtype == "q8_0" else dtype)
        if dtype == "q8_0":
            assert tensor[31, :3].round().tolist() == [31, 32, 33]
            return
        assert tensor[31, :3].astype(int).tolist() == [31, 32, 33]
    target.unlink()


@pytest.mark.long
def test_convert_with_workers(two_gb: Path, tmp_path: Path) -> None:
    """Each of the processes takes under 100 MB."""
    assert peak_mb(_CONVERT_WITH_WORKERS, two_gb, tmp_path / "out.pt") < 100


def test_one_large_tensor(tmp_path: Path) -> None:
    """One tensor of 2 GB, written in chunks and read by a slice, takes as little."""
    script = _WRITE.replace("range(4)", "range(1)").replace("range(32)", "range(128)")
    script = script.replace("(32, 1 << 22)", "(128, 1 << 22)")
    path = tmp_path / "one.pt"
    assert peak_mb(script, path) < 150
    with tz.lazy_load(path) as ckpt:
        assert ckpt["layer.0"].nbytes == 2 << 30
        assert ckpt["layer.0"][127, -2:].astype(int).tolist() == [(1 << 22) + 125, (1 << 22) + 126]
