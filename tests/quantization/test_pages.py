"""The examples of docs/quantized.md and docs/lora.md run, and make what the pages say."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import torchzip as tz
from torchzip.quantization.table import SCHEMES

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture
def run_page(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Any) -> Any:
    """Return a function that runs the examples of a page in ``tmp_path``, and returns its lines."""
    monkeypatch.setattr("tempfile.mkdtemp", lambda: str(tmp_path))

    def run(name: str) -> list[str]:
        page = (DOCS / name).read_text()
        script = "\n".join(re.findall(r"```python\n(.*?)```", page, re.DOTALL))
        exec(compile(script, name, "exec"), {"__name__": "page"})
        lines: list[str] = capsys.readouterr().out.splitlines()
        return lines

    return run


def test_quantized(run_page: Any, tmp_path: Path) -> None:
    first, second = run_page("quantized.md")
    codes = tz.load(tmp_path / "fp8.pt")["a.weight"]
    want = (codes.astype(np.float32) / 2).astype(ml_dtypes.bfloat16)
    assert first == f"LazyTensor(bfloat16, shape=[300, 256]) {want[0, :2]}"
    assert second == "{'a.weight': 'fp8, 128x128 blocks, of bfloat16'}"
    made = tz.load(tmp_path / "plain.safetensors")
    np.testing.assert_array_equal(made["a.weight"].view("u2"), want.view("u2"))
    assert set(made) == {"a.weight", "norm"}


def test_lora(run_page: Any, tmp_path: Path) -> None:
    assert run_page("lora.md") == ["{'model.layers.0.q_proj.weight': 'lora'}"]
    (made,) = tz.load(tmp_path / "merged.safetensors").values()
    assert made.dtype == np.float16
    assert (made == 1 + 0.5 * 2 * 2 * 0.25).all()


def test_names_are_on_the_page() -> None:
    """The ending of each part that a scheme needs."""
    page = (DOCS / "quantized.md").read_text()
    for scheme in SCHEMES:
        for ending in scheme.needs:
            name = re.sub(r"^\.quant_state.*", "quant_state", ending)
            assert name in page, ending
