"""Memory that is short: an OSError that says so, from everything that reads, and no file half made.

Each allocation fails once, as a full disk fails at each call in `tests/test_crash.py`.
"""

from __future__ import annotations

import errno
import inspect
import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import torchzip as tz
from tests.faults import descriptors
from tests.sampling import some
from torchzip import tools
from torchzip.errors import EnoughMemory
from torchzip.files.source import FileSource
from torchzip.types import SparseTensor

_BIG = np.arange(300_000, dtype=np.float32)
#: What makes arrays and strings of the size that a file says, or for its bytes.
_ALLOCATING = [
    (np, "empty"), (np, "zeros"), (np, "concatenate"), (np, "ascontiguousarray"), (np, "conjugate"),
    (np, "broadcast_to"), (FileSource, "read_at"), (FileSource, "read_into"),
]  # fmt: skip


def _incremental(path: Path, out: Path) -> None:
    with tz.lazy_load(path) as ckpt, tz.incremental_save(out) as writer:
        early = {name: writer.store_early(ckpt[name]) for name in ("big", "turned")}
        writer.save({**early, "rest": ckpt["square"]})


def _of(use: Callable[[tz.Checkpoint], object]) -> Callable[[Path, Path], object]:
    def run(path: Path, out: Path) -> object:
        with tz.lazy_load(path) as ckpt:
            return use(ckpt)

    return run


#: Everything that reads: (source, where to write) -> anything.
USES: dict[str, Callable[[Path, Path], object]] = {
    "load": lambda path, out: tz.load(path),
    "load mapped": lambda path, out: tz.load(path, mmap=True),
    "lazy_load": _of(len),
    "numpy": _of(lambda ckpt: [ckpt[name].numpy() for name in ("big", "square", "turned")]),
    "slice": _of(lambda ckpt: [ckpt["square"][1:, ::3], ckpt["turned"][5:9]]),
    "index": _of(lambda ckpt: ckpt["big"][[0, 5]]),
    "asarray": _of(lambda ckpt: np.asarray(ckpt["big"], np.float64)),
    "todense": _of(lambda ckpt: ckpt.root["sparse"].todense()),
    "Checkpoint.verify": _of(lambda ckpt: ckpt.verify()),
    "statistics": _of(lambda ckpt: tools.statistics(ckpt["big"])),
    "verify": lambda path, out: tools.verify(path),
    "scan": lambda path, out: tools.scan(path),
    "diff": lambda path, out: tools.diff(path, path.with_name("other.pt")),
    "why_big": lambda path, out: tools.why_big(path),
    "report": lambda path, out: tools.report(path, out.with_suffix(".html")),
    "repair": lambda path, out: tools.repair(path, out),
    "repair damaged": lambda path, out: tools.repair(path.with_name("cut.pt"), out),
    "edit": lambda path, out: tools.edit(path, rename={"big": "large"}, dry_run=True),
    "convert": lambda path, out: tz.convert(path, out),
    "convert and cast": lambda path, out: tz.convert(path, out, dtype="float16"),
    "convert to safetensors": lambda path, out: tz.convert(
        path, out.with_suffix(".safetensors"), exclude="sparse"
    ),
    "average": lambda path, out: tools.average([path, path.with_name("other.pt")], out),
    "combine": lambda path, out: tools.combine("a - 2*a", {"a": path}, out),
    "merge_lora": lambda path, out: tools.merge_lora(path, path.with_name("lora.pt"), out),
    "dequantized": _of(
        lambda ckpt: tz.lazy.dequantized(
            {"w": ckpt["big"].reshape(500, 600).to("float8_e4m3fn"), "w_scale": np.ones(1, "f4")}
        )["w"].numpy()
    ),
    "computed": _of(lambda ckpt: (ckpt["square"].T + ckpt["square"].T / 3).numpy()),
    "reduce": _of(lambda ckpt: tz.lazy.reduce(lambda made, block: 0, ckpt["square"].T)),
    "save": _of(lambda ckpt: tz.save(ckpt.root, io.BytesIO())),
    "incremental_save": _incremental,
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Write what they read: a file, one that differs from it, and one that is cut."""
    sparse = SparseTensor("sparse_coo", np.array([[0, 2]]), np.ones(2, np.float32), (5,))
    values = {
        "big": _BIG,
        "square": _BIG.reshape(500, 600),
        "turned": _BIG[:999] * 1j,
        "sparse": sparse,
    }
    tz.save(values, tmp_path / "m.pt")
    tz.save({**values, "big": _BIG + 1}, tmp_path / "other.pt")
    factors = {"lora_up": np.ones((500, 2), np.float32), "lora_down": np.ones((2, 600), np.float32)}
    tz.save({f"square.{name}.weight": each for name, each in factors.items()}, tmp_path / "lora.pt")
    (tmp_path / "cut.pt").write_bytes((tmp_path / "m.pt").read_bytes()[:-300])
    return tmp_path / "m.pt"


def _fails_at(which: int, patch: pytest.MonkeyPatch) -> list[int]:
    """Have an allocation fail; return how many there are, once they are made."""
    calls = [0]

    def failing(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **more: Any) -> Any:
            calls[0] += 1
            if calls[0] - 1 == which:
                raise MemoryError("no room")
            return real(*args, **more)

        return call

    for owner, name in _ALLOCATING:
        patch.setattr(owner, name, failing(getattr(owner, name)))
    return calls


@pytest.mark.parametrize("use", USES)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_each_allocation_fails_once(path: Path, use: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is an OSError of that number or makes no difference; nothing is left behind."""
    out = path.with_name("out.pt")
    before = sorted(os.listdir(path.parent))
    with monkeypatch.context() as patch:
        calls = _fails_at(-1, patch)
        USES[use](path, out)
    for made in set(os.listdir(path.parent)) - set(before):
        path.with_name(made).unlink()
    assert calls[0]
    for which in some(range(calls[0])):
        opened = descriptors()
        with monkeypatch.context() as patch:
            _fails_at(which, patch)
            found = 0
            try:
                USES[use](path, out)
            except OSError as error:
                found = error.errno or -1
        assert found in (0, errno.ENOMEM), which
        if found:
            assert sorted(os.listdir(path.parent)) == before, which
        for made in set(os.listdir(path.parent)) - set(before):
            path.with_name(made).unlink()
        assert descriptors() == opened, which


def test_no_public_function_is_missing() -> None:
    """Whatever the package gives that takes a file is in the table."""
    functions = [
        name
        for module in (tz, tools)
        for name in module.__all__
        if inspect.isfunction(getattr(module, name))
    ]
    assert set(functions) <= set(USES)


def test_what_it_says() -> None:
    """What numpy says of the size goes along."""
    with (
        pytest.raises(OSError, match=r"\[Errno 12\] Not enough memory: Unable to allocate"),
        EnoughMemory(),
    ):
        np.empty(1 << 60, np.uint8)
