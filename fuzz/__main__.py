"""``python -m fuzz``: any bytes give a value, a `TorchZipError` or an `OSError`, within limits."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from fuzz import against_torch, campaign, doors
from fuzz.campaign import Finding, Outcome


def main() -> int:
    """Run a campaign, or one input of it again. Return 1 if something was found."""
    parser = argparse.ArgumentParser(
        prog="python -m fuzz",
        description="Changed and made-up checkpoints, each sent through load, lazy_load and "
        "commands, with a canary for execution and limits on memory and time. An input is told by "
        "its number and is always the same, as long as fuzz/ and the seeds are.",
    )
    parser.add_argument("--seconds", type=float, default=60, help="how long (default: %(default)s)")
    parser.add_argument("--first", type=int, default=0, help="the number of the first input")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--torch", action="store_true", help="compare with torch's safe loader")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="where found inputs are kept")
    parser.add_argument("--input", type=int, metavar="NUMBER", help="send this one only")
    arguments = parser.parse_args()
    room = against_torch.room if arguments.torch else doors.room
    started = time.monotonic()
    if arguments.input is not None:
        with room() as send:
            total = campaign.try_one(send, arguments.input)
    else:
        total = campaign.run(
            arguments.first,
            seconds=arguments.seconds,
            processes=arguments.processes,
            room=room,
            tell=_progress if sys.stderr.isatty() else lambda outcome: None,
        )
    for finding in total.findings:
        print(f"input {finding.number}: {finding.what}\n{finding.story}")
        if arguments.keep is not None:
            _keep(finding, arguments.keep)
    print(_summary(total, time.monotonic() - started))
    return 1 if total.findings else 0


def _progress(outcome: Outcome) -> None:
    print(f"\r{outcome.inputs:,} inputs, {len(outcome.findings)} findings", end="", file=sys.stderr)


def _keep(finding: Finding, folder: Path) -> None:
    case, _ = campaign.input_of(finding.number)
    doors.put(case, folder / str(finding.number))


def _summary(total: Outcome, seconds: float) -> str:
    made = ", ".join(f"{count:,} {name}" for name, count in total.made.most_common())
    return f"{total.inputs:,} inputs in {seconds:,.0f} s, {len(total.findings)} findings; {made}"


if __name__ == "__main__":
    sys.exit(main())
