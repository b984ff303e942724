"""Measures torchzip beside torch and other tools, and prints a Markdown table.

Each tool does each row in a process of its own, in turn, several rounds. Absolute times drift
from run to run; a row compares the same work in the same round, so the ratio is what counts.
With --memory the peak memory of a conversion is measured against the size of the file instead; with
--before torchzip is measured beside an earlier state of itself.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks import before, measure, memory, report
from benchmarks.tasks import ROWS

HERE = Path(__file__).parent


def main() -> int:
    """Run what the arguments ask for; the exit status is 1 if a tool failed."""
    arguments = parse_arguments()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        if arguments.memory:
            result = memory.measure(Path(folder), arguments.sizes, arguments.tools)
            shown = memory.table(result)
            failed = bool(result["failed"])
        elif arguments.before is not None:
            result = measure_rows(arguments, Path(folder))
            shown = before.markdown(result["rows"])
            failed = False
        else:
            result = measure_rows(arguments, Path(folder))
            shown = report.markdown(result)
            failed = any(row["failed"] for row in result["rows"])
    print(shown)
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(result, indent=1) + "\n")
    if arguments.write:
        if failed:
            print("not written, because a tool failed", file=sys.stderr)
        else:
            (memory if arguments.memory else report).write(result, HERE)
            report.quote(json.loads((HERE / "results.json").read_text()), HERE.parent)
    return int(failed)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="of each tool (default 5)")
    parser.add_argument("--size", type=float, default=1.0, help="GB of the big file (default 1)")
    parser.add_argument("--rows", default="", help="only rows whose name has this regex in it")
    parser.add_argument("--tools", default="", help="only tools whose name has this regex in it")
    parser.add_argument(
        "--memory", action="store_true", help="memory against file size; takes minutes and 12 GB"
    )
    parser.add_argument(
        "--sizes", default=memory.SIZES, metavar="GB,GB,...",
        type=lambda text: [float(size) for size in text.split(",")],
        help="of the files of --memory (default 0.1 to 8)",
    )  # fmt: skip
    parser.add_argument(
        "--before", type=Path, metavar="CHECKOUT", help="compare with the torchzip of this checkout"
    )
    parser.add_argument("--folder", default=None, help="where the files go (default: temporary)")
    parser.add_argument("--json", default=None, metavar="FILE", help="write the figures here too")
    parser.add_argument(
        "--write", action="store_true",
        help="keep figures and charts in benchmarks/ and quote them in README and docs",
    )  # fmt: skip
    arguments = parser.parse_args()
    if arguments.write and (arguments.rows or arguments.tools or arguments.before):
        parser.error("--write keeps a whole run; leave --rows, --tools and --before out")
    return arguments


def measure_rows(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Return the figures of the rows that were asked for."""
    measure.touch_memory(arguments.size)
    rows = [row for row in ROWS if re.search(arguments.rows, row.name)]
    return {
        "machine": measure.machine(),
        "size_gb": arguments.size,
        "rounds": arguments.rounds,
        "rows": [
            measure.measure(row, folder, arguments.rounds, arguments.size, arguments.tools)
            if arguments.before is None
            else before.compare(row, folder, arguments.rounds, arguments.size, arguments.before)
            for row in rows
        ],
    }


if __name__ == "__main__":
    raise SystemExit(main())
