"""The blocks of all pages in Markdown run, and print what the pages say: see tests/transcripts.py.

docs/cli.md, whose files are downloaded, is in tests/cli/test_docs_cli.py.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import torchzip as tz
from tests.transcripts import blocks, prepare, run_again
from torchzip.quantization.table import SCHEMES

ROOT = Path(__file__).parents[1]
PAGES = {
    path.relative_to(ROOT).as_posix(): path.read_text()
    for path in sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
}
#: Languages whose blocks are not code, beside the directives of the site in braces.
_NOT_CODE = ("", "text")
_NOT_RUN = [
    pytest.param(name, block, id=f"{name}:{block.line}")
    for name, text in PAGES.items()
    for block in blocks(text)
    if block.not_run is not None
]
#: Pages that have a test of their own.
_TESTED = ("README.md", "docs/cli.md", "docs/lazy.md", "docs/lora.md", "docs/quantized.md")
#: Pages with dozens of commands.
_LONG = ("docs/howto.md", "docs/tutorials/ranks.md")
_RUN = [
    pytest.param(name, marks=pytest.mark.long if name in _LONG else ())
    for name, text in PAGES.items()
    if blocks(text) and name not in _TESTED
]

#: name of a page -> what its Python has assigned.
RunPage = Callable[[str], dict[str, Any]]


@pytest.fixture
def run_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunPage:
    """Return a function that runs a page where its files are and compares what it prints."""
    temporary, folder = tmp_path / "temporary", tmp_path / "folder"
    temporary.mkdir()
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    prepare(folder)

    def run(name: str) -> dict[str, Any]:
        names: dict[str, Any] = {}
        assert run_again(PAGES[name], folder, names).splitlines() == PAGES[name].splitlines()
        return names

    monkeypatch.chdir(folder)
    return run


@pytest.mark.parametrize("name", _RUN)
def test_page(run_page: RunPage, name: str) -> None:
    run_page(name)


@pytest.mark.parametrize(("name", "block"), _NOT_RUN)
def test_block_that_does_not_run_here(name: str, block: Any) -> None:
    """It is shown as skipped, with the reason that the page has."""
    pytest.skip(block.not_run)


@pytest.mark.parametrize("name", PAGES)
def test_every_block_is_code_or_not(name: str) -> None:
    """A block of another language has no commands, so that none is left out by its language."""
    found = blocks(PAGES[name])
    assert len(found) * 2 == len(re.findall("^ *```", PAGES[name], re.MULTILINE))
    for block in found:
        if block.language.startswith("{"):
            continue
        if block.language in _NOT_CODE:
            assert not re.search(r"^(\$ |>>> |torchzip |tz\.|import |python )", block.code), block
        else:
            assert block.language in ("console", "pycon", "sh", "python"), block


def test_lazy(run_page: RunPage) -> None:
    """Fused and split, stacked and unstacked, channels last, padded, dequantized, averaged."""
    folder = run_page("docs/lazy.md")["folder"]
    a, b = (tz.load(folder / f"{seed}.pt")["weight"] for seed in (0, 1))

    def made(name: str) -> Any:
        return tz.load(folder / name)

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


def test_all_of_lazy_is_on_its_page() -> None:
    """Each public name of `torchzip.lazy`."""
    for name in tz.lazy.__all__:
        assert f"`lazy.{name}(" in PAGES["docs/lazy.md"]


def test_quantized(run_page: RunPage) -> None:
    folder = run_page("docs/quantized.md")["folder"]
    codes = tz.load(folder / "fp8.pt")["a.weight"]
    want = (codes.astype(np.float32) / 2).astype(ml_dtypes.bfloat16)
    made = tz.load(folder / "plain.safetensors")
    np.testing.assert_array_equal(made["a.weight"].view("u2"), want.view("u2"))
    assert set(made) == {"a.weight", "norm"}


def test_names_of_quantized_weights_are_on_the_page() -> None:
    """The ending of each part that a scheme needs."""
    for scheme in SCHEMES:
        for ending in scheme.needs:
            name = re.sub(r"^\.quant_state.*", "quant_state", ending)
            assert name in PAGES["docs/quantized.md"], ending


def test_lora(run_page: RunPage) -> None:
    folder = run_page("docs/lora.md")["folder"]
    (made,) = tz.load(folder / "merged.safetensors").values()
    assert made.dtype == np.float16
    assert (made == 1 + 0.5 * 2 * 2 * 0.25).all()


@pytest.mark.parametrize("times", [1, pytest.param(2, marks=pytest.mark.long)])
def test_readme(run_page: RunPage, capsys: Any, times: int) -> None:
    """Nothing of it stays beside the examples, so it can be run again, and prints the same."""
    before = sorted(Path().rglob("*"))
    shown = set()
    for _ in range(times):
        run_page("README.md")
        shown.add(capsys.readouterr().out)
    (printed,) = shown
    assert "28 tensors" in printed
    assert sorted(Path().rglob("*")) == before
