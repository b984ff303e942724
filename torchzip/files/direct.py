"""Large files past the page cache: whole blocks, written by a thread while the next are made.

A file that is synced before it is renamed has to reach the disk anyway. Through the page cache its
bytes are copied to fresh pages first, and the kernel slows the writer down when many of them wait
(measured on 1 GB: 0.5 s past the cache with the sync, 0.7 s through it; without a sync from 0.4 to
4 s). The thread waits for the disk, without the interpreter's lock, while the caller works out the
next block.
"""

from __future__ import annotations

import mmap
import os
import queue
import threading

from torchzip.files.source import Buffer

#: What memory, offsets and lengths are multiples of: enough for every disk and file system.
ALIGNMENT = 4096
_BLOCK_NBYTES = 2 << 20
_BLOCKS = 3

#: A block, how much of it is filled, and where it goes; None ends the thread.
_Job = tuple[mmap.mmap, int, int] | None


class DirectWriter:
    """Appends to a file from ``offset``, a multiple of `ALIGNMENT`, on.

    Raises
    ------
    OSError
        If the system or the file system cannot write past its cache.
    """

    def __init__(self, path: str, offset: int) -> None:
        if not hasattr(os, "O_DIRECT"):
            raise OSError("no direct writes on this system")
        self._fd = os.open(path, os.O_WRONLY | os.O_DIRECT | os.O_CLOEXEC)
        self._offset = offset
        self._filled = 0
        self._free: queue.SimpleQueue[mmap.mmap] = queue.SimpleQueue()
        for _ in range(_BLOCKS - 1):
            self._free.put(mmap.mmap(-1, _BLOCK_NBYTES))
        self._block = mmap.mmap(-1, _BLOCK_NBYTES)  # a mapping begins on a page
        self._jobs: queue.SimpleQueue[_Job] = queue.SimpleQueue()
        self._failed: list[OSError] = []
        # It has no reference to this object, which therefore ends when nobody wants it.
        self._thread = threading.Thread(
            target=_run, args=(self._fd, self._jobs, self._free, self._failed), daemon=True
        )
        self._thread.start()

    def write(self, data: Buffer) -> None:
        """Take bytes; raise what an earlier write has failed with."""
        view = memoryview(data).cast("B")
        while view:
            room = min(len(view), _BLOCK_NBYTES - self._filled)
            self._block[self._filled : self._filled + room] = view[:room]
            self._filled += room
            view = view[room:]
            if self._filled == _BLOCK_NBYTES:
                self._send(_BLOCK_NBYTES)

    def _send(self, nbytes: int) -> None:
        self._jobs.put((self._block, nbytes, self._offset))
        self._offset += nbytes
        self._filled -= nbytes
        rest = self._block[nbytes : nbytes + self._filled]
        self._block = self._free.get()
        self._block[: self._filled] = rest
        self._raise_failure()

    def _raise_failure(self) -> None:
        if self._failed:
            raise self._failed[0]

    def settle(self) -> tuple[bytes, int]:
        """Wait for the disk; return what is no whole unit yet, and where it belongs."""
        whole = self._filled // ALIGNMENT * ALIGNMENT
        if whole:
            self._send(whole)
        idle = [self._free.get() for _ in range(_BLOCKS - 1)]
        for block in idle:
            self._free.put(block)
        self._raise_failure()
        return self._block[: self._filled], self._offset

    def close(self) -> None:
        """End the thread. What was not settled is lost."""
        self._jobs.put(None)
        self._thread.join()
        self.close_descriptor()

    def close_descriptor(self) -> None:
        """Close the file and nothing else: all that a forked child may do."""
        descriptor, self._fd = self._fd, -1
        if descriptor >= 0:
            os.close(descriptor)


def _run(
    descriptor: int,
    jobs: queue.SimpleQueue[_Job],
    free: queue.SimpleQueue[mmap.mmap],
    failed: list[OSError],
) -> None:
    while (job := jobs.get()) is not None:
        block, nbytes, offset = job
        try:
            done = 0
            while done < nbytes and not failed:
                part = memoryview(block)[done:nbytes]
                # What a full disk cuts short goes on from a whole unit, and says why it cannot.
                done += os.pwrite(descriptor, part, offset + done) // ALIGNMENT * ALIGNMENT
        except OSError as error:
            failed.append(error)
        free.put(block)
