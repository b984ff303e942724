"""Two states of torchzip side by side: whether a change made anything slower.

Each row runs with the code of another checkout and with this one, in turn, so that both meet the
same machine; the ratio of a round is what counts.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks import measure
from benchmarks.piece import PREPARE
from benchmarks.tasks import Row

HERE = Path(__file__).parent.parent
_OURS = "torchzip"


def compare(row: Row, folder: Path, rounds: int, size: float, before: Path) -> dict[str, Any]:
    """Return the seconds that a row takes with each of the two, round by round."""
    measure.run_piece(PREPARE, row.name, folder, size)
    seconds: dict[str, list[float]] = {"before": [], "after": []}
    with tempfile.TemporaryDirectory() as name:
        # The rows are those of this checkout; only the package is the other's.
        (Path(name) / "torchzip").symlink_to(before.resolve() / "torchzip")
        trees = {"before": [Path(name), HERE], "after": [HERE]}
        for number in range(rounds):
            for which in sorted(trees, reverse=number % 2 == 0):
                figure = _once(row, folder, size, trees[which])
                seconds[which].append(figure["seconds"])
            print(f"{row.name}: round {number + 1} of {rounds}", file=sys.stderr)
    return {"row": row.name, **seconds}


def _once(row: Row, folder: Path, size: float, tree: list[Path]) -> dict[str, float]:
    if row.fresh:
        return measure.run_fresh(row.make(_OURS, folder, size), True, row.repeat, tree)
    return measure.run_piece(row.name, _OURS, folder, size, tree)


def markdown(results: list[dict[str, Any]]) -> str:
    """Return a table: the median of each, and that of the ratio with its least and greatest."""
    lines = ["| | before | after | after / before |", "|---|---|---|---|"]
    for result in results:
        before, after = result["before"], result["after"]
        ratios = sorted(b / a for a, b in zip(before, after, strict=True))
        lines.append(
            f"| {result['row']} | {statistics.median(before) * 1000:,.1f} ms "
            f"| {statistics.median(after) * 1000:,.1f} ms "
            f"| {statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f}) |"
        )
    return "\n".join(lines)
