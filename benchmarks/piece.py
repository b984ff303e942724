"""One piece of work in a process of its own, which prints its figures as JSON.

``python -m benchmarks.piece ROW TOOL FOLDER SIZE`` times a row: the seconds that the work took in
a warm process, imports not counted, and the peak memory. Short work is repeated in the process
and gives its median. ``... prepare ROW FOLDER SIZE`` writes the files that it reads.
``... convert-once TOOL SOURCE TARGET`` converts a file cold, for the peak memory alone.
"""

from __future__ import annotations

import json
import os
import resource
import statistics
import sys
import time
from pathlib import Path

PREPARE, CONVERT_ONCE = "prepare", "convert-once"


def main() -> int:
    """Do one piece of work and print its figures."""
    first, second, third, fourth = sys.argv[1:]
    hide_isal(second)
    from benchmarks.tasks import ROWS, converting

    rows = {row.name: row for row in ROWS}
    if first == PREPARE:
        rows[second].prepare(Path(third), float(fourth))
        figures = {}
    elif first == CONVERT_ONCE:
        converting(second, Path(third), Path(fourth))()
        figures = peaks_mb()
    else:
        row, folder = rows[first], Path(third)
        work = row.make(second, folder, float(fourth))
        work()  # warm: files in the page cache, memory touched, modules imported
        seconds = []
        for _ in range(row.repeat):
            # Into a new file, and freeing an old one is no part of it; nor is writing back what
            # was written before.
            (folder / "out.pt").unlink(missing_ok=True)
            os.sync()
            started = time.perf_counter()
            work()
            seconds.append(time.perf_counter() - started)
        figures = {"seconds": statistics.median(seconds), **peaks_mb()}
    print(json.dumps(figures))
    return 0


def hide_isal(tool: str) -> None:
    """Let isal be missing from now on, unless the tool is the one that has it."""
    if "[fast]" not in tool:
        sys.modules["isal"] = None  # type: ignore[assignment]


def peaks_mb() -> dict[str, float]:
    """Return the most memory that this process, and the largest of its workers, has had.

    This process: VmHWM, which counts this program alone; its ru_maxrss would also count what the
    process was before it started Python. Workers that have ended: ru_maxrss of the children,
    which the system keeps for each by itself and does not add up. It cannot be too low; it can be
    too high for a worker that was started as a program of its own, which is charged with what its
    parent had then, and so never more than the parent's own peak. A forked worker counts the
    pages that it shares with its parent as well. Workers that live still: their VmHWM. Not seen
    are ended workers of a fork server, which alone has waited for them.
    """
    unit = 1 if sys.platform == "darwin" else 1024
    own = high_water_mark("self")
    if own is None:
        own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    ended = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * unit
    living = [high_water_mark(pid) or 0 for pid in children(str(os.getpid()))]
    return {"process_mb": own / 1e6, "worker_mb": max([ended, *living]) / 1e6}


def high_water_mark(pid: str) -> int | None:
    """Return the VmHWM of a process in bytes, or None where the system does not tell."""
    try:
        return parse_high_water_mark(Path(f"/proc/{pid}/status").read_text())
    except OSError:
        return None


def parse_high_water_mark(status: str) -> int | None:
    for line in status.splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return None


def children(pid: str) -> list[str]:
    """Return the living children of a process, and theirs."""
    found: list[str] = []
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in path.read_text().split():
            found += [child, *children(child)]
    return found


if __name__ == "__main__":
    raise SystemExit(main())
