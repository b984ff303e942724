"""Detects whether files are written to while they are read.

Bytes that are copied by the kernel keep their stored CRC. If another process writes to the source
meanwhile, that CRC is wrong and nobody would notice. So the status of the source is compared before
and after. A write within the same tick of the file system's clock (some milliseconds) is missed
unless the kernel has finer times.
"""

from __future__ import annotations

from collections.abc import Iterable

from torchzip.errors import FormatError
from torchzip.files.source import FileSource, Source, file_place


class Watch:
    """Compares the status of the files of Sources with their status when they were opened.

    What is not a file of this computer has no status, and is skipped.
    """

    def __init__(self, sources: Iterable[Source]) -> None:
        files = [file_place(source, 0)[0] for source in sources]
        self._files = {id(file): file for file in files if isinstance(file, FileSource)}

    def is_unwritten(self) -> bool:
        """Return whether none of them was written to."""
        return all(file.status()[:2] == file.opened[:2] for file in self._files.values())

    def check(self) -> bool:
        """Return whether no status changed; False if one did, but neither its size nor write time.

        That happens when a file was renamed, replaced or unlinked, which is harmless, and when it
        was written to and its time was reset.

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
