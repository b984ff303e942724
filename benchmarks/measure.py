"""Runs the rows: each tool in a process of its own, in turn, several rounds."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.piece import PREPARE, parse_high_water_mark
from benchmarks.tasks import DISK, NUMPY, Row, is_ours

_PACKAGES = "torchzip numpy ml_dtypes torch safetensors isal zipslicer ptloader".split()

#: At the end of a process that is timed from outside: it tells its own peak.
_TELL_PEAK = "import os\nif os.path.exists(s := '/proc/self/status'): print(open(s).read())\n"


class ToolError(Exception):
    """A tool could not do its work; the message is what it said."""


def measure(row: Row, folder: Path, rounds: int, size: float, chosen: str = "") -> dict[str, Any]:
    """Return the seconds and the peak memory of each tool that is installed, round by round.

    ``chosen`` is a regex that the tools' names must have in them. What fails is named under
    ``failed`` and has no figures.
    """
    run_piece(PREPARE, row.name, folder, size)  # in a process of its own: this one stays small
    tools = [tool for tool in row.tools if re.search(chosen, tool) and is_installed(tool)]
    figures: dict[str, dict[str, list[float]]] = {tool: {} for tool in tools}
    failed: dict[str, str] = {}
    for number in range(rounds):
        turn = number % max(1, len(tools))  # rotated, so that no tool is always first
        for tool in tools[turn:] + tools[:turn]:
            if tool in failed:
                continue
            try:
                if row.fresh:
                    figure = run_fresh(row.make(tool, folder, size), is_ours(tool), row.repeat)
                else:
                    figure = run_piece(row.name, tool, folder, size)
            except ToolError as error:
                failed[tool] = str(error).strip().splitlines()[-1]
                print(f"{row.name}: {tool} failed:\n{error}", file=sys.stderr)
                continue
            for key, value in figure.items():
                figures[tool].setdefault(key, []).append(value)
        print(f"{row.name}: round {number + 1} of {rounds}", file=sys.stderr)
    return {
        "row": row.name,
        "ours": row.ours,
        "extra_ms": row.extra_ms,
        "tools": {tool: figures[tool] for tool in tools if tool not in failed},
        "failed": failed,
    }


def run_piece(
    first: str, second: str, third: object, fourth: object, tree: Sequence[Path] = ()
) -> dict[str, float]:
    """Run one piece of work in a process of its own, see `benchmarks.piece` and `run`."""
    out = run(["-m", "benchmarks.piece", first, second, str(third), str(fourth)], tree)
    figures: dict[str, float] = json.loads(out.splitlines()[-1])
    return figures


def run_fresh(
    script: str, hide_isal: bool, repeat: int, tree: Sequence[Path] = ()
) -> dict[str, float]:
    """Time a whole process from outside, start and imports included; the median of several."""
    if hide_isal:
        script = "import sys\nsys.modules['isal'] = None\n" + script
    script += _TELL_PEAK
    run(["-c", script], tree)  # files in the page cache
    seconds = []
    for _ in range(repeat):
        started = time.perf_counter()
        out = run(["-c", script], tree)
        seconds.append(time.perf_counter() - started)
    peak = parse_high_water_mark(out) or 0
    return {"seconds": statistics.median(seconds), "process_mb": peak / 1e6, "worker_mb": 0.0}


def run(arguments: list[str], tree: Sequence[Path] = ()) -> str:
    """Run Python and return what it prints; raise `ToolError` if it fails.

    Compiled modules are kept, as those of installed packages are. Modules come from the folders of
    ``tree`` before any other place, where there are some.
    """
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    if tree:
        environment["PYTHONPATH"] = os.pathsep.join(map(str, tree))
        arguments = ["-P", *arguments]
    done = subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, check=False, env=environment
    )
    if done.returncode:
        raise ToolError(done.stderr or f"exit status {done.returncode}")
    return done.stdout


def is_installed(tool: str) -> bool:
    if tool in (NUMPY, DISK):
        return True
    package = "isal" if "[fast]" in tool else re.match(r"\w+", tool)[0]  # type: ignore[index]
    return importlib.util.find_spec(package) is not None


def available_nbytes() -> int:
    """Return how much memory is free, or would be with a smaller page cache."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))


def touch_memory(size: float) -> None:
    """Touch memory as the rows will need it: a page's first use can cost more than the work."""
    run(["-c", f"b'x' * {int(min(4e9 * size, available_nbytes() / 2))}"])


def machine() -> str:
    """Return what the figures were measured on."""
    versions = [f"Python {platform.python_version()}"]
    for package in _PACKAGES:
        try:
            versions.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            versions.append(f"no {package}")
    return f"{os.cpu_count()} cores, {platform.system()}; " + ", ".join(versions)
