"""Peak memory of converting float32 to bfloat16, against the size of the file.

A file is one 14 MB block many times over, so that making it needs no memory, and is deleted before
the next one. Each tool converts it in a process of its own.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

from benchmarks.chart import curves
from benchmarks.measure import ToolError, available_nbytes, is_installed, machine, run_piece
from benchmarks.piece import CONVERT_ONCE
from benchmarks.tasks import big_block, big_names, is_ours

SIZES = [0.1, 0.5, 1.0, 2.0, 4.0, 8.0]
TOOLS = ["torchzip", "torchzip jobs=2", "torch mmap", "torch plain"]

_TORCH_UP_TO = 4.0


def measure(folder: Path, sizes: list[float], chosen: str = "") -> dict[str, Any]:
    """Return for each tool the sizes in GB, and the peaks of the process and its workers in MB."""
    source, target = folder / "source.pt", folder / "out.pt"
    tools = [tool for tool in TOOLS if re.search(chosen, tool) and is_installed(tool)]
    points: dict[str, list[dict[str, float]]] = {tool: [] for tool in tools}
    failed: dict[str, str] = {}
    for size in sizes:
        # The source, the target of half its size, and as much again to leave to others.
        if shutil.disk_usage(folder).free < 2 * size * 1e9:
            print(f"not enough room on the disk for {size:g} GB", file=sys.stderr)
            break
        make(source, size)
        for tool in points:
            if tool in failed or not fits(tool, size):
                continue
            try:
                peaks = run_piece(CONVERT_ONCE, tool, source, target)
            except ToolError as error:
                failed[tool] = str(error).strip().splitlines()[-1]
                print(f"{tool} failed:\n{error}", file=sys.stderr)
            else:
                points[tool].append({"size_gb": size, **peaks})
            target.unlink(missing_ok=True)
        source.unlink()
        print(f"memory: {size:g} GB", file=sys.stderr)
    return {"machine": machine(), "tools": points, "failed": failed}


def fits(tool: str, size: float) -> bool:
    """Return whether a tool should try: torch holds the file and its copy in memory."""
    return is_ours(tool) or (size <= _TORCH_UP_TO and 1.6e9 * size < available_nbytes())


def make(path: Path, size: float) -> None:
    import torchzip

    block = big_block()
    with torchzip.incremental_save(path) as out:
        out.save(
            {
                name: out.store_chunks([block], shape=block.shape, dtype="float32")
                for name in big_names(size)
            }
        )


def table(result: dict[str, Any]) -> str:
    """Return the peaks as Markdown: the largest of the process and its workers."""
    lines = [
        "| GB | " + " | ".join(result["tools"]) + " |",
        "|---" * (len(result["tools"]) + 1) + "|",
    ]
    peaks = {tool: dict(line) for tool, line in peak_lines(result).items()}
    for size in sorted({size for line in peaks.values() for size in line}):
        cells = [f"{line[size]:.0f} MB" if size in line else "" for line in peaks.values()]
        lines.append(f"| {size:g} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def chart(result: dict[str, Any]) -> str:
    lines = {tool: line for tool, line in peak_lines(result).items() if line}
    return curves("Converting float32 to bfloat16: the largest process, peak memory", lines)


def peak_lines(result: dict[str, Any]) -> dict[str, list[tuple[float, float]]]:
    return {
        tool: [(p["size_gb"], max(p["process_mb"], p["worker_mb"])) for p in points]
        for tool, points in result["tools"].items()
    }


def write(result: dict[str, Any], folder: Path) -> None:
    """Keep the figures and the chart in ``folder``."""
    (folder / "memory.json").write_text(json.dumps(result, indent=1) + "\n")
    (folder / "memory.svg").write_text(chart(result))
