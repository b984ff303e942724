"""Determines which local headers of a damaged archive are its own, by the chain of offsets.

A writer puts one record after the other: each header is where the record before it ends. The bytes
of a tensor may be an archive themselves, with headers of the same names, and a second archive may
follow the first. Their headers are elsewhere. So a header is the archive's own if

* a row of the archive's own directory points to it, or
* it is where the record before it ends, or where a directory ends that an edit replaced, or
* it is where `torch.save` puts a record of that name, as all sizes are known from the pickle:
  this bridges a hole in the file.

A header anywhere else is only used if the directory has a CRC for its name, which then decides:
bytes may have been added or lost before it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

from torchzip.container.damaged.marks import (
    LocalHeader,
    Row,
    aligned,
    find_descriptor,
    is_sound_extra,
    read_descriptors,
)
from torchzip.container.zip_layout import LOCAL, STORED
from torchzip.container.zip_writer import measure
from torchzip.files.source import Source

#: Bytes of a descriptor after a record: short, or with sizes of 8 bytes.
_DESCRIPTORS = (16, 24)
#: The small records that each release of torch writes between the pickle and the storages.
_SMALL_RECORDS = (
    ((b".format_version", 1), (b".storage_alignment", 2), (b"byteorder", 6)),
    ((b"byteorder", 6),),
    (),
)
_PICKLE = b"data.pkl"


class Chain(NamedTuple):
    """The headers that are the archive's own, in file order, and the extents of their records.

    ``elsewhere`` are headers away from where their record should be. ``doubtful`` are those of
    them that are in no record of the chain, if the layout of the file is unknown.
    """

    headers: list[LocalHeader]
    extents: list[tuple[int, int]]
    elsewhere: list[LocalHeader]
    doubtful: list[LocalHeader]


class Surroundings(NamedTuple):
    """What is known of an archive apart from its local headers.

    ``root`` is the archive name with its slash, ``start`` the offset where it begins. ``rows_at``
    gives the directory rows for an offset; ``ends`` are the offsets where its directories end.
    """

    source: Source
    root: bytes
    start: int
    rows_at: Callable[[int], list[Row]]
    ends: set[int]


def follow(headers: list[LocalHeader], around: Surroundings, sizes: Mapping[bytes, int]) -> Chain:
    """Return which headers are in the chain of an archive.

    ``sizes`` has the known sizes of stored records; those of others are searched in the file.
    """
    chain = Chain([], [], [], [])
    linked = {around.start, *around.ends}
    layout: Mapping[bytes, int] | None = None
    inside = 0
    for header in headers:
        record = header.name[len(around.root) :]
        rows = around.rows_at(header.offset)
        is_linked = bool(rows) or (header.offset >= inside and header.offset in linked)
        if not is_linked and header.offset >= inside and record in sizes:
            if layout is None:
                layout = _layout(chain.headers, around, sizes)
            is_linked = layout.get(record) == _start_of(header, around)[0]
        if not is_linked:
            chain.elsewhere.append(header)
            if header.offset >= inside and not layout:
                chain.doubtful.append(header)
            continue
        chain.headers.append(header)
        start, is_sure = _start_of(header, around)
        ends = _ends(header, start, is_sure, rows, sizes.get(record), around)
        gaps = _DESCRIPTORS if header.has_descriptor else (0,)
        linked = {end + gap for end in ends for gap in gaps} | around.ends
        inside = max(ends, default=start)
        if inside > start:
            chain.extents.append((start, inside))
    return chain


def _start_of(header: LocalHeader, around: Surroundings) -> tuple[int, bool]:
    """Return where the bytes of a record start, and whether its lengths say so.

    Where these are damaged, it is where `torch.save` aligns them.
    """
    name_end = header.offset + LOCAL.size + len(header.name)
    if is_sound_extra(around.source, name_end, header.data_offset):
        return header.data_offset, True
    return aligned(name_end + 4, around.start), False


def _ends(
    header: LocalHeader,
    start: int,
    is_sure: bool,
    rows: list[Row],
    nbytes: int | None,
    around: Surroundings,
) -> set[int]:
    """Return where the bytes of a record may end: where a descriptor confirms it, or else all
    claims.

    Claims that nothing confirms do not count where it is not sure that the bytes start there.
    """
    said = {row.compressed for row in rows if row.name == header.name}
    if not header.has_descriptor:
        said.add(header.compressed)
    if nbytes is not None and header.method == STORED:
        said.add(nbytes)
    ends = {start + each for each in said}
    sure = {end for end in ends if _is_described(around.source, end, end - start)}
    if sure or (ends and is_sure):
        return sure or ends
    found = find_descriptor(around.source, start, around.source.size)
    return set() if found is None else {found}


def _is_described(source: Source, end: int, nbytes: int) -> bool:
    return any(
        each.is_signed and each.compressed == nbytes for each in read_descriptors(source, end)
    )


def _layout(
    chained: list[LocalHeader], around: Surroundings, sizes: Mapping[bytes, int]
) -> Mapping[bytes, int]:
    """Return where torch.save puts the bytes of each record; empty if it did not write the file.

    It is the first layout of a release that agrees with the whole chain so far.
    """
    known = {header.name[len(around.root) :]: header.data_offset for header in chained}
    for made in _layouts(around, sizes):
        if _PICKLE in known and all(made.get(name) == at for name, at in known.items()):
            return made
    return {}


def _layouts(around: Surroundings, sizes: Mapping[bytes, int]) -> Iterator[Mapping[bytes, int]]:
    root = around.root[:-1].decode("utf-8", "surrogateescape")
    storages = [(name, nbytes) for name, nbytes in sizes.items() if name != _PICKLE]
    for small in _SMALL_RECORDS:
        # Releases before 2.7 write the storages in the order of their keys as strings.
        for ordered in (storages, sorted(storages)):
            records = [(_PICKLE, sizes.get(_PICKLE, 0)), *small, *ordered]
            lengths = [(len(name), nbytes) for name, nbytes in records]
            starts, _ = measure(root, lengths)
            yield {
                name: around.start + start for (name, _), start in zip(records, starts, strict=True)
            }
