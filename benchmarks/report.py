"""What was measured, as a Markdown table and as the lines of the chart."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.chart import Bar, bars
from benchmarks.tasks import is_ours

HERE = Path(__file__).parent
_BEGIN, _END = "<!-- benchmarks: begin -->", "<!-- benchmarks: end -->"
_CHARTS = {
    "results.svg": "Times faster than torch",
    "memory.svg": "Peak memory against the size of the file",
}

#: What the README shows of a run, and beside which way of torch.
_IN_SHORT = {
    "convert big to bfloat16, all with fsync": "torch mmap",
    "save big, all with fsync": "torch save",
    "load big into own memory": "torch load",
    "open 1k tensors lazily: names, shapes, dtypes": "torch mmap",
    "read one 14 MB tensor of big, the whole process": "torch mmap",
}

Run = dict[str, Any]  # what `python -m benchmarks --json` writes


def markdown(run: Run) -> str:
    """Return the report of a run: the machine, how to read the table, the table.

    Each row of the run gives a line for every way of torchzip and every other tool. The ratio is
    the median of those of the rounds, with the least and the greatest. A row that was measured
    again, in other rounds than the rest, says in how many.
    """
    lines = [
        run["machine"],
        "",
        f"Big is {run['size_gb']:g} GB of float32. Medians of {run['rounds']} rounds, the largest "
        "peak memory of a process; times faster: median, least and greatest. `jobs=2`: with two "
        "worker processes. `[fast]`: with isal.",
        "",
        "| | torchzip | others | times faster | target |",
        "|---|---|---|---|---|",
    ]
    for result in run["rows"]:
        rounds = max(len(each["seconds"]) for each in result["tools"].values())
        name = result["row"] if rounds == run["rounds"] else f"{result['row']} ({rounds} rounds)"
        for our in ours_of(result):
            way = our.removeprefix("torchzip").strip()
            cell = f"{way} {figures(result, our)}".strip()
            for other in others_of(result) or [""]:
                theirs = f"{other} {figures(result, other)}" if other else ""
                lines.append(f"| {name} | {cell} | {theirs} | {compared(result, our, other)} |")
                name = cell = ""
    return "\n".join(lines) + "\n"


def ours_of(result: dict[str, Any]) -> list[str]:
    return [tool for tool in result["tools"] if is_ours(tool)]


def others_of(result: dict[str, Any]) -> list[str]:
    return [tool for tool in result["tools"] if not is_ours(tool)]


def figures(result: dict[str, Any], tool: str) -> str:
    """Return a tool's time and peak memory."""
    figure = result["tools"][tool]
    peaks = map(max, figure["process_mb"], figure["worker_mb"])
    return f"{duration(statistics.median(figure['seconds']))}, {statistics.median(peaks):.0f} MB"


def duration(seconds: float) -> str:
    """Return a time in the unit that suits it."""
    return f"{seconds * 1000:.1f} ms" if seconds < 1 else f"{seconds:.2f} s"


def compared(result: dict[str, Any], our: str, other: str) -> str:
    """Return the last two cells of a line: the ratio, and what it should be."""
    if not other:
        return " | "
    if other in result["extra_ms"]:
        pairs = zip(*(result["tools"][tool]["seconds"] for tool in (our, other)), strict=True)
        extra = statistics.median(ours - theirs for ours, theirs in pairs) * 1000
        target = result["extra_ms"][other]
        return f"{extra:+.1f} ms | {'' if target is None else f'at most +{target:g} ms'}"
    each = ratios(result, our, other)
    spread = f"{number(statistics.median(each))} ({number(each[0])} to {number(each[-1])})"
    target = result["ours"][our].get(other)
    return f"{spread} | {'' if target is None else format(target, 'g')}"


def ratios(result: dict[str, Any], our: str, other: str) -> list[float]:
    """Return the other's time by ours in each round, in ascending order."""
    pairs = zip(*(result["tools"][tool]["seconds"] for tool in (our, other)), strict=True)
    return sorted(theirs / ours for ours, theirs in pairs)


def number(ratio: float) -> str:
    return f"{ratio:.2f}" if ratio < 10 else f"{ratio:.1f}"


def chart(run: Run) -> str:
    """Return the chart of a run as SVG: a bar for every way of torchzip beside every torch."""
    return bars("Times faster than torch", list(chart_lines(run)))


def chart_lines(run: Run) -> Iterator[Bar]:
    for result in run["rows"]:
        for our in ours_of(result):
            for other in others_of(result):
                if other.split()[0] == "torch":
                    label = ", ".join([result["row"], *our.removeprefix("torchzip").split()])
                    ratio = statistics.median(ratios(result, our, other))
                    yield Bar(label, other, ratio, result["ours"][our].get(other))


def write(run: Run, folder: Path) -> None:
    """Keep a run in ``folder``: the figures and the chart."""
    (folder / "results.json").write_text(json.dumps(run, indent=1) + "\n")
    (folder / "results.svg").write_text(chart(run))


def short(run: Run) -> str:
    """Return the rows of the README: what torchzip and torch take for it."""
    lines = ["| | torchzip | torch | times faster |", "|---|---|---|---|"]
    for result in run["rows"]:
        if result["row"] in _IN_SHORT:
            cells = figures(result, "torchzip"), figures(result, _IN_SHORT[result["row"]])
            ratio, _ = compared(result, "torchzip", _IN_SHORT[result["row"]]).split(" | ")
            lines.append(f"| {' | '.join([result['row'], *cells, ratio])} |")
    return "\n".join(lines) + "\n"


def quotations(run: Run) -> dict[str, str]:
    """Return what each page of the project has of a run between its markers, by its path."""
    charts = [f"![{title}](../{HERE.name}/{name})\n\n" for name, title in _CHARTS.items()]
    return {"README.md": short(run), "docs/benchmarks.md": "".join(charts) + markdown(run)}


def quote(run: Run, root: Path) -> None:
    """Put a run into the pages of the project."""
    for name, quotation in quotations(run).items():
        text = (root / name).read_text()
        head, tail = text[: text.index(_BEGIN) + len(_BEGIN)], text[text.index(_END) :]
        (root / name).write_text(f"{head}\n{quotation}{tail}")


def quoted(page: str) -> str:
    """Return what a page has between its markers now."""
    return page[page.index(_BEGIN) + len(_BEGIN) + 1 : page.index(_END)]
