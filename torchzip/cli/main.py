"""Arguments and exit codes: 0 done, 1 the file is bad or differs, 2 wrong usage."""

from __future__ import annotations

import argparse
import io
import os
import sys
from collections.abc import Sequence

import torchzip
from torchzip.cli import (
    averaging,
    checking,
    combining,
    comparing,
    completion,
    converting,
    disassembly,
    editing,
    listing,
    merging_lora,
    naming,
    repairing,
    reporting,
    scanning,
    showing,
    weighing,
)
from torchzip.cli.command import (
    BAD,
    DONE,
    USAGE,
    CommandParser,
    add_command,
    error_text,
    reader_may_leave,
    say,
)
from torchzip.errors import TorchZipError

#: In the order of the help.
_COMMANDS = (
    listing,
    showing,
    reporting,
    weighing,
    naming,
    checking,
    scanning,
    comparing,
    repairing,
    editing,
    converting,
    averaging,
    combining,
    merging_lora,
    disassembly,
)


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="torchzip",
        description="Look at and convert PyTorch checkpoints, without PyTorch.",
        epilog="Exit status: 0 done, 1 the file is bad or differs, 2 wrong usage.",
    )
    parser.add_argument("--version", action="version", version=f"torchzip {torchzip.__version__}")
    commands = parser.add_subparsers(
        dest="command", required=True, metavar="COMMAND", parser_class=CommandParser
    )
    for module in _COMMANDS:
        add_command(commands, module.COMMAND, module.run)
    add_command(commands, completion.COMMAND, lambda parsed: completion.run(parsed, parser))
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status."""
    _open_closed_streams()
    parser = build_parser()
    words = sys.argv[1:] if argv is None else list(argv)
    if not words:
        parser.print_help()
        return DONE
    arguments = parser.parse_args(words)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # names may have any character
            stream.reconfigure(errors="backslashreplace")
    try:
        status: int = DONE  # also of a listing whose reader has seen enough
        with reader_may_leave(sys.stdout):
            status = arguments.run(arguments)
        return status
    except KeyboardInterrupt:
        say("interrupted; no file was left half written")
        return 130
    except (TorchZipError, OSError) as error:
        # With --force, or in a command without it, a file is in the way for another reason.
        if isinstance(error, FileExistsError) and not getattr(arguments, "force", True):
            say(f"{error.filename} exists; --force overwrites it")
            return USAGE
        say(error_text(error))
        return BAD
    except MemoryError:
        say("not enough memory")
        return BAD
    except ValueError as error:
        say(str(error))
        return USAGE


def _open_closed_streams() -> None:
    """Open the null device for standard streams that were closed (``>&-``); there Python has None.

    Otherwise the next file that is opened would get the descriptor of one of them.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115
