"""Whether files are written to while they are read.

Bytes that are copied unread take along the CRC that they had. Somebody who writes to the source in
the meantime makes that a lie, which nobody would notice: so the source is looked at before and
after. What is written within the same tick of the file system's clock, some milliseconds, goes
unseen where the kernel has no finer times.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol, runtime_checkable

from torchzip.errors import FormatError
from torchzip.files.source import Source, Status, file_place


@runtime_checkable
class Watched(Protocol):
    """A Source that can tell whether it was written to. ``opened`` is its status at first."""

    name: str
    opened: Status

    def status(self) -> Status:
        """Return the status of now."""
        ...


class Watch:
    """Compares the files of Sources with what they were when they were opened.

    A Source that can tell nothing, such as a file object, is left out.
    """

    def __init__(self, sources: Iterable[Source]) -> None:
        files = [file_place(source, 0)[0] for source in sources]
        self._files = {id(file): file for file in files if isinstance(file, Watched)}

    def is_unwritten(self) -> bool:
        """Return whether nobody has written to any of them."""
        return all(file.status()[:2] == file.opened[:2] for file in self._files.values())

    def check(self) -> bool:
        """Return whether all are as they were: False if a status was changed, but size and time.

        That is so when a file was renamed, replaced or unlinked, which is no harm, and when it
        was written to and its time put back.

        Raises
        ------
        FormatError
            If one was written to.
        """
        is_same = True
        for file in self._files.values():
            now = file.status()
            if now[:2] != file.opened[:2]:
                raise FormatError(
                    "the file was written to while it was read, so what was read may be neither "
                    "the old nor the new. Nothing was made of it; try again when it is complete",
                    path=file.name,
                )
            is_same = is_same and now == file.opened
        return is_same
