"""``torchzip dis``: the opcodes of the pickles in a file, shown without running them."""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
from collections.abc import Iterator
from typing import Any

from torchzip.cli.command import DONE, Command, in_options, reading_options
from torchzip.errors import TorchZipError, printable
from torchzip.files.location import StorageOptions, located
from torchzip.files.opening import open_source
from torchzip.limits import DEFAULT_LIMITS, Limits
from torchzip.pickling.allowlist import is_torch_safe
from torchzip.pickling.disassembly import Annotator, Step, argument_text
from torchzip.pickling.opcodes import OPCODES
from torchzip.pickling.python2 import python3_name
from torchzip.tools.pickles import find_pickles, numbered_steps

COMMAND = Command(
    name="dis",
    summary="show the opcodes of the pickle, annotated",
    description="""\
Show the opcodes of a checkpoint's pickle, one per line: offset, name, argument, and the values they
act on. If the pickle is broken, those before the fault are shown. Nothing is executed.
""",
    examples="""
        torchzip dis model.pt
        torchzip dis scripted.pt constants.pkl
    """,
    arguments={
        "FILE": None,
        "record": {
            "metavar": "RECORD",
            "nargs": "?",
            "help": "record of an archive (default: data.pkl)",
        },
        "--json": "print the opcodes as JSON",
    },
)

_REFUSED_OPCODES = {opcode.name for opcode in OPCODES if not opcode.torch_safe}


def run(arguments: argparse.Namespace) -> int:
    options = reading_options(arguments)
    disassemble(arguments.file, arguments.record, as_json=arguments.json, **options)
    return DONE


def disassemble(
    file: str,
    record: str | None,
    *,
    as_json: bool,
    limits: Limits | None = None,
    storage_options: StorageOptions = None,
) -> None:
    """Print the opcodes of a file's pickles, one per line, up to the first fault.

    Raises
    ------
    TorchZipError, OSError
        After the opcodes before the fault are printed.
    """
    limits = limits or DEFAULT_LIMITS
    source = open_source(located(file, storage_options))
    show = _JsonLines(source.name) if as_json else _TextLines()
    with contextlib.closing(source):
        try:
            place = find_pickles(source, record, limits)
            steps = numbered_steps(place, source.name, limits)
            for number, of_one in itertools.groupby(steps, lambda each: each[0]):
                show.pickle(number, place.most == 1)
                for row in _rows(step for _, step in of_one):
                    show.row(row)
        except TorchZipError as error:
            show.end(in_options(str(error.at(path=source.name))))
            raise
        except OSError as error:
            show.end(str(error))
            raise
    show.end(None)


def _rows(steps: Iterator[Step]) -> Iterator[dict[str, Any]]:
    annotator = Annotator()
    is_old = True
    for step in steps:
        note = annotator.note(step)
        name = annotator.globals.pop(step.offset, None)
        if step.opcode.name == "PROTO":
            is_old = step.argument < 3
        refused = name is not None and not is_torch_safe(*(python3_name(*name) if is_old else name))
        yield {
            "offset": step.offset,
            "opcode": step.opcode.name,
            "argument": argument_text(step),
            "note": note,
            "torch_safe": step.opcode.torch_safe and not refused,
        }


class _TextLines:
    """Prints one line for each opcode."""

    def __init__(self) -> None:
        self._refused: set[str] = set()

    def pickle(self, number: int, is_only: bool) -> None:
        if not is_only:
            print(f"pickle {number}")

    def row(self, row: dict[str, Any]) -> None:
        notes = [row["note"]] if row["note"] else []
        opcode = row["opcode"]
        if opcode in _REFUSED_OPCODES:
            # Noted once per opcode: a pickle of protocol 4 is full of them.
            if opcode not in self._refused:
                notes.append("an opcode that torch.load refuses")
            self._refused.add(opcode)
        elif not row["torch_safe"]:
            notes.append("torch.load refuses it")
        line = f"{row['offset']:>8} {opcode:<16} {row['argument']:<20}"
        print(printable(line + ("  # " + "; ".join(notes) if notes else "")).rstrip())

    def end(self, error: str | None) -> None:
        pass


class _JsonLines:
    """Prints one JSON document, a line for each opcode, which is valid even after a fault."""

    def __init__(self, path: str) -> None:
        self._before = ""
        self._close = ""
        print(f'{{"file": {json.dumps(path)}, "pickles": [')

    def pickle(self, number: int, is_only: bool) -> None:
        print(f"{self._close}{',' if number else ''}[", end="")
        self._before, self._close = "", "\n]"

    def row(self, row: dict[str, Any]) -> None:
        print(f"{self._before}\n{json.dumps(row)}", end="")
        self._before = ","

    def end(self, error: str | None) -> None:
        print(f'{self._close}], "error": {json.dumps(error)}}}')
