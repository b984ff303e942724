"""Runs every row of the table: each tool in a process of its own, in turn, several rounds.

``python -m benchmarks`` prints a Markdown table; ``--json FILE`` writes the figures as well. A row
compares medians of the same work; absolute times drift from run to run, so the ratio is what
counts. Before anything is timed each process touches fresh memory, which costs more than the work
itself on many machines.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.tasks import PREPARE, ROWS, Row

_PACKAGES = "torchzip numpy ml_dtypes torch safetensors isal zipslicer ptloader".split()


def main() -> int:
    """Run the rows that the arguments ask for and print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="of each tool (default 5)")
    parser.add_argument("--size", type=float, default=1.0, help="GB of the big file (default 1)")
    parser.add_argument("--rows", default="", help="only rows whose name has this in it")
    parser.add_argument("--folder", default=None, help="where the files go (default: temporary)")
    parser.add_argument(
        "--write", action="store_true", help="put the table into benchmarks/results.md and README"
    )
    parser.add_argument("--json", default=None, metavar="FILE", help="write the figures here too")
    arguments = parser.parse_args()
    rows = [row for row in ROWS if arguments.rows in row.name]
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        results = [measure(row, Path(folder), arguments.rounds, arguments.size) for row in rows]
    report = f"{machine()}\n\n{table(results)}\n"
    print(report)
    if arguments.write:
        write_report(report)
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(results, indent=2) + "\n")
    return 0


def write_report(report: str) -> None:
    """Keep a report, and quote it in the README."""
    here = Path(__file__).parent
    (here / "results.md").write_text(report)
    readme = here.parent / "README.md"
    text = readme.read_text()
    begin, end = "<!-- benchmarks: begin -->", "<!-- benchmarks: end -->"
    head, tail = text[: text.index(begin) + len(begin)], text[text.index(end) :]
    readme.write_text(f"{head}\n{report}{tail}")


def measure(row: Row, folder: Path, rounds: int, size: float) -> dict[str, Any]:
    """Return the seconds and the peak memory of each tool, round by round."""
    run_once(row.name, PREPARE, folder, size)  # in a process of its own: ours stays small
    figures: dict[str, dict[str, list[float]]] = {
        tool: {"seconds": [], "peak_mb": []} for tool in row.tools
    }
    for round_number in range(rounds + 1):
        # Rotated, so that no tool is always first; the first round warms the page cache.
        turn = round_number % len(row.tools)
        for tool in row.tools[turn:] + row.tools[:turn]:
            figure = run_once(row.name, tool, folder, size)
            if round_number and figure is not None:
                figures[tool]["seconds"].append(figure["seconds"])
                figures[tool]["peak_mb"].append(figure["peak_mb"])
        print(f"{row.name}: round {round_number} of {rounds}", file=sys.stderr)
    return {"row": row.name, "target": row.target, "tools": figures}


def run_once(row: str, tool: str, folder: Path, size: float) -> dict[str, float] | None:
    """Run one task in a process of its own; None if the tool is not installed."""
    command = [sys.executable, "-m", "benchmarks.tasks", row, tool, str(folder), str(size)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode == 3:
        return None
    if done.returncode:
        raise SystemExit(f"{row} with {tool} failed:\n{done.stderr}")
    figure: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return figure


def table(results: list[dict[str, Any]]) -> str:
    """Return the Markdown table: medians, and the ratio of the first tool's time to ours."""
    lines = [
        "| | torchzip | others | times faster than torch | target |",
        "|---|---|---|---|---|",
    ]
    for result in results:
        cells = {
            tool: f"{text(statistics.median(figures['seconds']))}, "
            f"{statistics.median(figures['peak_mb']):.0f} MB"
            for tool, figures in result["tools"].items()
            if figures["seconds"]
        }
        ours = cells.pop("torchzip")
        others = "; ".join(f"{tool} {cell}" for tool, cell in cells.items())
        ratios = ""
        reference = next((tool for tool in result["tools"] if tool.startswith("torch ")), None)
        if reference is not None and result["tools"][reference]["seconds"]:
            pairs = zip(
                result["tools"][reference]["seconds"],
                result["tools"]["torchzip"]["seconds"],
                strict=True,
            )
            each = sorted(theirs / our for theirs, our in pairs)
            ratios = f"{statistics.median(each):.1f} ({each[0]:.1f} to {each[-1]:.1f})"
        lines.append(f"| {result['row']} | {ours} | {others} | {ratios} | {result['target']} |")
    return "\n".join(lines)


def text(seconds: float) -> str:
    """Return a time in the unit that suits it."""
    return f"{seconds * 1000:.1f} ms" if seconds < 1 else f"{seconds:.2f} s"


def machine() -> str:
    """Return what the figures were measured on."""
    versions = [f"Python {platform.python_version()}"]
    for package in _PACKAGES:
        try:
            versions.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            versions.append(f"no {package}")
    return f"{os.cpu_count()} cores, {platform.system()}; " + ", ".join(versions)


if __name__ == "__main__":
    raise SystemExit(main())
