"""``torchzip report``: an HTML page about a checkpoint."""

from __future__ import annotations

import argparse
import sys

from torchzip.checkpoint.quantities import count_text, nbytes_text
from torchzip.cli.command import BAD, DONE, Command, reading_options, say
from torchzip.cli.progress import progress_line

COMMAND = Command(
    name="report",
    summary="write a page about the file, for a browser",
    description="""\
Write one HTML page about a checkpoint: where the bytes are, dtypes, histograms of the largest
tensors, ties, the classes that it names, other values, and whether it is intact. The page loads no
other files, so it can be sent to others. All data is read, unless --no-data is given.

Exit status: 0 done, 1 the file is bad (the page shows where, if it could be made), 2 wrong usage.
""",
    examples="""
        torchzip report model.pt
        torchzip report model.pt -o model.html
        torchzip report big.pt -o big.html --no-data
    """,
    arguments={
        "FILE": None,
        "-o --output": {
            "metavar": "OUT",
            "default": "report.html",
            "help": "where to write the page (default: report.html); - is stdout",
        },
        "--no-data": "read no tensor: no histograms, no verification",
        "--force": "overwrite OUT",
    },
)


def run(arguments: argparse.Namespace) -> int:
    from torchzip.tools import report  # imported here, as only this command makes HTML

    to_stdout = arguments.output == "-"
    with progress_line() as progress:
        made = report(
            arguments.file,
            sys.stdout.buffer if to_stdout else arguments.output,
            read_data=not arguments.no_data,
            overwrite=arguments.force,
            progress=progress,
            **reading_options(arguments),
        )
    if not to_stdout:
        about = f"{count_text(made.tensors, 'tensor')}, {nbytes_text(made.nbytes)}"
        say(f"{arguments.output}: a page about {about}")
    if made.damage is not None:
        say(f"{arguments.file}: {made.damage}")
        return BAD
    return DONE
