"""Arguments and exit codes: 0 done, 1 the file is bad or differs, 2 wrong usage."""

from __future__ import annotations

import argparse
import dataclasses
import io
import json
import os
import signal
import sys
from collections.abc import Sequence

import torchzip
from torchzip.cli import comparing, converting
from torchzip.cli.checking import check_as_text
from torchzip.cli.disassembly import disassemble
from torchzip.cli.listing import (
    as_json,
    as_text,
    describe,
    describe_globals,
    globals_as_text,
)
from torchzip.errors import TorchZipError, printable
from torchzip.tools.verification import verify

_DONE, _BAD, _USAGE = 0, 1, 2


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(
        prog="torchzip",
        description="Look at and convert PyTorch checkpoints, without PyTorch.",
        epilog="Exit status: 0 done, 1 the file is bad or differs, 2 wrong usage.",
    )
    parser.add_argument("--version", action="version", version=f"torchzip {torchzip.__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    ls = commands.add_parser(
        "ls",
        help="names, dtypes, shapes and sizes",
        description="List the tensors of a checkpoint: names, dtypes, shapes, sizes, totals.",
        epilog="example: torchzip ls -l model.pt",
    )
    ls.add_argument("file")
    ls.add_argument(
        "-l", dest="long", action="store_true", help="also strides, devices and what shares memory"
    )
    ls.add_argument("--json", action="store_true", help="everything, as JSON")
    ls.set_defaults(run=_ls)

    names = commands.add_parser(
        "globals",
        help="every class and function that the file names",
        description="List every class and function that a checkpoint names, and which of them are "
        "foreign: not known to torchzip, kept as inert objects. None is ever imported or called. "
        "The last column says what torch.load accepts by default (weights_only=True).",
        epilog="example: torchzip globals model.ckpt",
    )
    names.add_argument("file")
    names.add_argument("--json", action="store_true", help="the names, as JSON")
    names.set_defaults(run=_globals)

    verify = commands.add_parser(
        "verify",
        help="whether the file is whole, and whether torch.load accepts it",
        description="Read all of a checkpoint, compare every CRC and check all bounds. Then say "
        "whether torch.load accepts it by default (weights_only=True), and if not, which names "
        "block it; that alone is no fault of the file.",
        epilog="example: torchzip verify model.pt",
    )
    verify.add_argument("file")
    verify.add_argument("--json", action="store_true", help="what was found, as JSON")
    verify.set_defaults(run=_verify)

    dis = commands.add_parser(
        "dis",
        help="the opcodes of the pickle, annotated",
        description="Show the opcodes of a checkpoint's pickle, one a line: offset, name, argument "
        "and what it works on. Of a broken pickle, those before the fault. Nothing is carried out.",
        epilog="example: torchzip dis model.pt",
    )
    dis.add_argument("file", metavar="FILE")
    dis.add_argument(
        "record", metavar="RECORD", nargs="?", help="of an archive (default: data.pkl)"
    )
    dis.add_argument("--json", action="store_true", help="the opcodes, as JSON")
    dis.set_defaults(run=_dis)

    comparing.add_parser(commands, _diff)
    converting.add_parser(commands, _convert)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status."""
    arguments = build_parser().parse_args(argv)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # names may have what the terminal has not
            stream.reconfigure(errors="backslashreplace")
    try:
        status: int = arguments.run(arguments)
        sys.stdout.flush()
        return status
    except BrokenPipeError:
        # The reader of our output has gone; keep the interpreter from noticing it again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _DONE
    except KeyboardInterrupt:
        _say("interrupted; nothing was written")
        return 130
    except FileExistsError as error:
        _say(f"{error.filename} exists; --force overwrites it")
        return _USAGE
    except TorchZipError as error:
        _say(str(error))
        return _BAD
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        _say(f"{place}{error.strerror or error}")
        return _BAD
    except ValueError as error:
        _say(str(error))
        return _USAGE


def _say(text: str) -> None:
    print(f"torchzip: {printable(text)}", file=sys.stderr)


def _ls(arguments: argparse.Namespace) -> int:
    with torchzip.lazy_load(arguments.file) as checkpoint:
        listing = describe(checkpoint)
    print(as_json(listing) if arguments.json else as_text(listing, long=arguments.long))
    return _DONE


def _globals(arguments: argparse.Namespace) -> int:
    with torchzip.lazy_load(arguments.file) as checkpoint:
        names = describe_globals(checkpoint)
        place = f"{checkpoint.path}: {checkpoint.format}"
    print(json.dumps(names, indent=2) if arguments.json else globals_as_text(names, place))
    return _DONE


def _verify(arguments: argparse.Namespace) -> int:
    found = verify(arguments.file)
    as_values = dataclasses.asdict(found)
    print(json.dumps(as_values, indent=2) if arguments.json else check_as_text(found))
    return _DONE


def _dis(arguments: argparse.Namespace) -> int:
    disassemble(arguments.file, arguments.record, as_json=arguments.json)
    return _DONE


def _diff(arguments: argparse.Namespace) -> int:
    return _DONE if comparing.compare(arguments) else _BAD


def _convert(arguments: argparse.Namespace) -> int:
    # It undoes what was begun, as Ctrl-C does; the system would end the process where it is.
    before = signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        converting.convert(arguments, _say)
    finally:
        signal.signal(signal.SIGTERM, before)
    return _DONE
