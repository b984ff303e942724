"""The benchmarks run, what they print is well-formed, and the README quotes what they wrote."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from benchmarks import memory, report
from benchmarks.tasks import ROWS, is_ours
from tests.child_process import python

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "benchmarks"


def benchmarks(*arguments: str) -> str:
    """Run ``python -m benchmarks``, which tells its progress on stderr; return what it prints."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def svg_texts(svg: str) -> list[str]:
    """Return the texts of a chart, which is parsed as XML."""
    return ["".join(text.itertext()) for text in ElementTree.fromstring(svg).iter() if text.text]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Return the figures of two cheap rows, and under ``shown`` what was printed."""
    folder = tmp_path_factory.mktemp("benchmarks")
    shown = benchmarks(
        *"--rows tensors.to.memory$|^open.300 --tools torch --rounds 1 --size 0.001 --json".split(),
        str(folder / "run.json"), "--folder", str(folder),
    )  # fmt: skip
    assert [path.name for path in folder.iterdir()] == ["run.json"]
    figures: dict[str, Any] = json.loads((folder / "run.json").read_text())
    return figures | {"shown": shown}


@pytest.mark.long
def test_rows_are_measured(run: dict[str, Any]) -> None:
    """Every tool that was asked for and is installed has a figure of each kind for every round."""
    assert len(run["rows"]) == 2
    for result in run["rows"]:
        assert next(iter(result["tools"])) == "torchzip"
        assert all("torch" in tool for tool in result["tools"])
        assert not result["failed"]
        for figures in result["tools"].values():
            assert set(figures) == {"seconds", "process_mb", "worker_mb"}
            assert all(len(values) == run["rounds"] == 1 for values in figures.values())
            assert figures["seconds"][0] > 0


@pytest.mark.long
def test_table(run: dict[str, Any]) -> None:
    """The printed table has five cells in every line, and says what was measured on what."""
    assert run["shown"].strip() == report.markdown(run).strip()
    lines = [line for line in run["shown"].splitlines() if line.startswith("|")]
    assert all(line.count("|") == 6 for line in lines)
    for result in run["rows"]:
        assert sum(line.startswith(f"| {result['row']} |") for line in lines) == 1
    assert run["shown"].startswith(run["machine"])


@pytest.mark.long
def test_chart(run: dict[str, Any]) -> None:
    """The chart is XML, with a bar for each torch."""
    svg = report.chart(run)
    texts = svg_texts(svg)
    bars = list(report.chart_lines(run))
    assert svg.count("<rect") == len(bars)
    for bar in bars:
        assert f"{bar.label} ({bar.beside})" in texts


def test_memory(tmp_path: Path) -> None:
    """Memory against size: a line for each size, a chart that is XML, and no file left."""
    shown = benchmarks(
        *"--memory --tools ^torchzip$ --sizes 0.015,0.03 --json".split(),
        str(tmp_path / "run.json"), "--folder", str(tmp_path),
    )  # fmt: skip
    assert [line.split("|")[1].strip() for line in shown.splitlines()[2:]] == ["0.015", "0.03"]
    result = json.loads((tmp_path / "run.json").read_text())
    assert "torchzip" in svg_texts(memory.chart(result))
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]


_WORKER = """
import multiprocessing, sys
from benchmarks.piece import peaks_mb
def work(pipe):
    block = b"x" * 150_000_000
    pipe.send("done")
    pipe.recv()
context = multiprocessing.get_context("fork")
ours, theirs = context.Pipe()
worker = context.Process(target=work, args=[theirs])
worker.start()
ours.recv()
living = peaks_mb()
ours.send("end")
worker.join()
ended = peaks_mb()
for peaks in (living, ended):
    assert peaks["process_mb"] < 100 < 150 < peaks["worker_mb"] < 250, (living, ended)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peaks are read from /proc")
def test_peaks_of_workers() -> None:
    """A worker's peak is seen while it lives and after it has ended, apart from its parent's."""
    python("-c", _WORKER)


def test_rows_have_aims() -> None:
    """Each row is named once, and torchzip is in it."""
    assert len({row.name for row in ROWS}) == len(ROWS)
    assert all(is_ours(row.tools[0]) for row in ROWS)


def test_pages_quote_the_last_run(tmp_path: Path) -> None:
    """The figures in README and docs are those that ``python -m benchmarks --write`` kept."""
    run = json.loads((FOLDER / "results.json").read_text())
    (tmp_path / "docs").mkdir()
    for name, quotation in report.quotations(run).items():
        page = (ROOT / name).read_text()
        assert report.quoted(page) == quotation
        (tmp_path / name).write_text(page)
    report.quote(run, tmp_path)
    for name in report.quotations(run):
        assert (tmp_path / name).read_text() == (ROOT / name).read_text()
    assert report.short(run).count("\n") == 2 + 5


def test_the_last_run_is_of_one_piece(tmp_path: Path) -> None:
    """Table and charts are those of the figures that are kept beside them."""
    for name, module in {"results.json": report, "memory.json": memory}.items():
        if (FOLDER / name).exists():
            module.write(json.loads((FOLDER / name).read_text()), tmp_path)
    for path in tmp_path.iterdir():
        assert path.read_text() == (FOLDER / path.name).read_text(), path.name


@pytest.mark.long
def test_beside_another_state(tmp_path: Path) -> None:
    """The other checkout's package is what one of the two runs: a broken one is noticed."""
    arguments = "--rows tensors.to.memory$|^read.one --rounds 2 --size 0.001 --before".split()
    shown = benchmarks(*arguments, str(ROOT), "--folder", str(tmp_path))
    assert shown.startswith("| | before | after | after / before |")
    assert len(shown.splitlines()) == 4
    (tmp_path / "torchzip").mkdir()
    (tmp_path / "torchzip" / "__init__.py").write_text("raise RuntimeError('the other one')")
    with pytest.raises(AssertionError, match="the other one"):
        benchmarks(*arguments, str(tmp_path), "--folder", str(tmp_path))
