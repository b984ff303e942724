"""Which local headers of a damaged archive are its own, told by the chain of offsets.

A writer puts one record behind the other: each header stands where the record before it ends. The
bytes of a tensor may be an archive themselves, with headers of the same names; and a second archive
may follow the first. Their headers stand elsewhere. So a header is the archive's own if

* a row of the archive's own directory points to it, or
* the record before it ends right there, or a directory that an edit has left behind does, or
* it stands where `torch.save` puts a record of that name, as all sizes are known from the pickle:
  that leads over a hole in the file.

A header that stands elsewhere is looked at only where the directory has a CRC for its name, which
then decides: bytes may have been added or lost before it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

from torchzip.container.zip_layout import LOCAL, STORED
from torchzip.container.zip_marks import (
    LocalHeader,
    Row,
    find_descriptor,
    is_sound_extra,
    read_descriptors,
)
from torchzip.container.zip_writer import measure
from torchzip.files.source import Source

#: Bytes of a descriptor behind a record: the short one, the one with sizes of 8 bytes.
_DESCRIPTORS = (16, 24)
#: The small records that a release of torch writes between the pickle and the storages.
_SMALL_RECORDS = (
    ((b".format_version", 1), (b".storage_alignment", 2), (b"byteorder", 6)),
    ((b"byteorder", 6),),
    (),
)
_PICKLE = b"data.pkl"


class Chain(NamedTuple):
    """What is the archive's own: headers in their order, and where the bytes of each record lie.

    ``elsewhere`` are headers away from where their record should be. Of these ``doubtful`` are
    those that stand in no record of the chain, where nothing says how the file was laid out.
    """

    headers: list[LocalHeader]
    extents: list[tuple[int, int]]
    elsewhere: list[LocalHeader]
    doubtful: list[LocalHeader]


class Surroundings(NamedTuple):
    """What is known of an archive beside its local headers.

    ``root`` is the archive name with its slash, ``start`` the byte where it begins. ``rows_at``
    gives what the directory says of a place; ``ends`` are the bytes behind its directories.
    """

    source: Source
    root: bytes
    start: int
    rows_at: Callable[[int], list[Row]]
    ends: set[int]


def follow(headers: list[LocalHeader], around: Surroundings, sizes: Mapping[bytes, int]) -> Chain:
    """Return which of an archive's headers are in its chain.

    ``sizes`` has the bytes of stored records, as far as they are known; those of others are looked
    for in the file.
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
            is_linked = layout.get(record) == header.data_offset
        if not is_linked:
            chain.elsewhere.append(header)
            if header.offset >= inside and not layout:
                chain.doubtful.append(header)
            continue
        chain.headers.append(header)
        ends = _ends(header, rows, sizes.get(record), around)
        gaps = _DESCRIPTORS if header.has_descriptor else (0,)
        linked = {end + gap for end in ends for gap in gaps} | around.ends
        inside = max(ends, default=header.data_offset)
        if inside > header.data_offset:
            chain.extents.append((header.data_offset, inside))
    return chain


def _ends(
    header: LocalHeader, rows: list[Row], nbytes: int | None, around: Surroundings
) -> set[int]:
    """Return where the bytes of a record end: where a descriptor agrees, or wherever it is said.

    Nothing says so where the header's lengths are damaged, and so the place where they start.
    """
    name_end = header.offset + LOCAL.size + len(header.name)
    if not is_sound_extra(around.source, name_end, header.data_offset):
        return set()
    said = {row.compressed for row in rows if row.name == header.name}
    if not header.has_descriptor:
        said.add(header.compressed)
    if nbytes is not None and header.method == STORED:
        said.add(nbytes)
    ends = {header.data_offset + each for each in said}
    sure = {end for end in ends if _is_described(around.source, end, end - header.data_offset)}
    if sure or ends:
        return sure or ends
    found = find_descriptor(around.source, header.data_offset, around.source.size)
    return set() if found is None else {found}


def _is_described(source: Source, end: int, nbytes: int) -> bool:
    return any(
        each.is_signed and each.compressed == nbytes for each in read_descriptors(source, end)
    )


def _layout(
    chained: list[LocalHeader], around: Surroundings, sizes: Mapping[bytes, int]
) -> Mapping[bytes, int]:
    """Return where torch.save puts the bytes of each record; nothing if it did not make the file.

    Of the layouts of its releases it is the first that all of the chain so far agrees with.
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
