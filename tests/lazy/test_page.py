"""docs/lazy.md: its examples run, one after the other, and make what they say."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np

import torchzip as tz

PAGE = (Path(__file__).parents[2] / "docs" / "lazy.md").read_text()


def test_examples(monkeypatch: Any, tmp_path: Path, capsys: Any) -> None:
    """Fused and split, stacked and unstacked, channels last, padded, dequantized, averaged."""
    monkeypatch.setattr("tempfile.mkdtemp", lambda: str(tmp_path))
    script = "\n".join(re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL))
    exec(compile(script, "docs/lazy.md", "exec"), {"__name__": "page"})
    a, b = (tz.load(tmp_path / f"{seed}.pt")["weight"] for seed in (0, 1))
    printed = capsys.readouterr().out.splitlines()
    assert printed == ["LazyTensor(float32, shape=[8, 6])", str(((a + b) / 2)[3, :2])]

    def made(name: str) -> Any:
        return tz.load(tmp_path / name)

    mean = made("mean.safetensors")["weight"]
    np.testing.assert_array_equal(mean, (a + b) / 2)
    codes = made("fp8.pt")["w"]
    np.testing.assert_array_equal(
        made("bf16.safetensors")["w"].astype(np.float32), codes.astype(np.float32) / 2
    )
    np.testing.assert_allclose(
        made("direction.pt")["direction"], a / np.linalg.norm(a.astype(np.float64)), rtol=1e-6
    )
    split = made("split.pt")
    for name in "qkv":
        np.testing.assert_array_equal(split[name], mean)
    np.testing.assert_array_equal(split["qkv"], np.concatenate([mean] * 3))
    experts = made("experts.pt")
    np.testing.assert_array_equal(
        made("stacked.safetensors")["experts.w"], np.stack(list(experts.values()))
    )
    for name, array in made("apart.safetensors").items():
        np.testing.assert_array_equal(array, experts[name])
    vision = made("channels_last.safetensors")
    assert vision["conv"].shape == (5, 5, 3, 8)
    assert vision["embed"].sum(1).tolist() == [16] * 100 + [0] * 28
    halves = made("halves.pt")
    np.testing.assert_array_equal(halves["weight.second"], a[4:].astype(np.float16))
    np.testing.assert_array_equal(made("average.pt")["weight"], (a + b * 3) / np.float32(4))
    between = made("between.safetensors")["weight"]
    np.testing.assert_array_equal(between, a + np.float32(0.5) * (b - a))


def test_all_of_it_is_on_the_page() -> None:
    """Each public name of `torchzip.lazy`."""
    for name in tz.lazy.__all__:
        assert f"`lazy.{name}(" in PAGE
