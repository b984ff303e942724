"""``torchzip why-big``: what takes up the bytes of a checkpoint, as text or JSON."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import TYPE_CHECKING

from torchzip import tools
from torchzip.checkpoint.quantities import count_text, name_text, nbytes_text, some_of
from torchzip.cli.command import DONE, Command, print_found, reading_options
from torchzip.cli.rendering import Screen, fitted_table, screen
from torchzip.errors import printable
from torchzip.formats.base import collector_paused

if TYPE_CHECKING:
    from torchzip.tools import WhyBig

COMMAND = Command(
    name="why-big",
    summary="show where the bytes go, and what could be saved",
    description="""\
Show what takes up the bytes of a checkpoint, the largest first, and what convert would save, to the
byte. Only storages that may be duplicates are read. An EMA copy is recognised by names and shapes.
""",
    examples="torchzip why-big run.ckpt",
    arguments={
        "FILE": None,
        "--json": "print everything as JSON",
    },
)

#: At most so many rows of each kind are shown.
_MOST = 10
#: Duplicates smaller than this share of the file are only counted.
_NOTABLE = 0.001


def run(arguments: argparse.Namespace) -> int:
    with collector_paused(True):  # of 100,000 tensors, none of what is made is garbage
        found = tools.why_big(arguments.file, **reading_options(arguments))
    print_found(found, arguments, lambda found: "\n".join(text_lines(found, screen())))
    return DONE


def text_lines(found: WhyBig, where: Screen) -> Iterator[str]:
    """Yield a summary: the parts, duplicate and unreached bytes, and what could be saved."""
    yield where.bold(
        f"{printable(found.file)}: {found.format}, {nbytes_text(found.nbytes)} "
        f"({count_text(found.nbytes, 'byte')})"
    )
    rows = [
        [_share(part.nbytes, found.nbytes), nbytes_text(part.nbytes), part.kind]
        for part in found.parts
    ]
    yield from fitted_table(rows, where, (2,), right=(0, 1))
    for copy in found.copies:
        slots = sorted(copy.slots.items(), key=lambda slot: -slot[1])
        if copy.of is None:
            inside = [f"{printable(name)} {nbytes_text(nbytes)}" for name, nbytes in slots]
            yield f"{copy.kind}: {printable(copy.prefix)}, {some_of(inside, 4)}"
        else:
            of = f"those of {printable(copy.of)}" if copy.of else "the others"
            yield (
                f"{printable(copy.prefix)} looks like an EMA copy of {of}: "
                f"{count_text(copy.tensors, 'tensor')}, {nbytes_text(copy.nbytes)}"
            )
    yield from _unreached(found, where)
    yield from _duplicates(found, where)
    yield from _savings(found, where)
    for note in found.notes:
        yield f"note: {printable(note)}"


def _share(nbytes: int, of: int) -> str:
    return f"{nbytes / of:.1%}" if nbytes * 1000 >= of else "<0.1%"


def _unreached(found: WhyBig, where: Screen) -> Iterator[str]:
    if not found.unreached:
        return
    yield where.bold("storages with bytes that no tensor reaches")
    rows = [
        [nbytes_text(each.nbytes), f"of {nbytes_text(each.stored_nbytes)}", name_text(each.name)]
        for each in found.unreached[:_MOST]
    ]
    yield from _rows(rows, len(found.unreached), where)


def _duplicates(found: WhyBig, where: Screen) -> Iterator[str]:
    if not found.duplicates:
        return
    spare = sum(each.spare_nbytes for each in found.duplicates)
    if spare < found.nbytes * _NOTABLE:  # counters and the like
        yield f"{nbytes_text(spare)} are stored more than once; --json says by which tensors"
        return
    yield where.bold(f"storages with the same bytes ({nbytes_text(spare)} more than once)")
    rows = [
        [
            nbytes_text(each.spare_nbytes),
            f"{len(each.names):,} × {nbytes_text(each.nbytes)}",
            some_of(list(map(name_text, each.names)), 3),
        ]
        for each in found.duplicates[:_MOST]
    ]
    yield from _rows(rows, len(found.duplicates), where)


def _savings(found: WhyBig, where: Screen) -> Iterator[str]:
    if not found.savings:
        return
    yield where.bold("what would save bytes")
    for saving in found.savings:
        lossy = " (lossy)" if saving.is_lossy else ""
        yield (
            f"{nbytes_text(saving.saved)} less, {nbytes_text(saving.nbytes)} left: "
            f"{saving.what}{lossy}"
        )
        if saving.not_carried:
            first = printable(saving.not_carried[0])
            left = len(saving.not_carried) - 1
            more = f", and {left:,} more" if left else ""
            yield f"    not carried: {first}{more}"
        yield f"    {saving.command}"


def _rows(rows: list[list[str]], count: int, where: Screen) -> Iterator[str]:
    yield from fitted_table(rows, where, (2,), right=(0, 1))
    if count > _MOST:
        yield where.dim(f"and {count - _MOST:,} more; --json has them")
