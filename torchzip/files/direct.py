"""Large files past the page cache: whole pages, written by a thread while the next are made.

A file that is synced before it is renamed has to reach the disk anyway. Through the page cache its
bytes are copied to fresh pages first, and the kernel slows the writer down when many of them wait
(measured on 1 GB: 0.5 s past the cache with the sync, 0.7 s through it; without a sync from 0.4 to
4 s). The thread waits for the disk, without the interpreter's lock, while the caller works out the
next block.

Several writers, in several processes, can each have ranges of one file. A page that is not all of
one range goes through the cache, so no two of them meet. That waits until nothing is on its way to
the disk: the kernel lets no write through the cache pass those beside it (2 ms each were measured).
"""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import queue
import threading

import numpy as np

from torchzip.files.new_file import write_all
from torchzip.files.source import Buffer

#: What memory, offsets and lengths are multiples of: enough for every disk and file system.
ALIGNMENT = 4096
_BLOCK_NBYTES = 2 << 20
_BLOCKS = 3
#: Parts of pages that are kept at most: 1 MiB.
_EDGES = 256

#: A block, the range of it that is written, and where that goes; None ends the thread.
_Job = tuple[memoryview, int, int, int] | None


class DirectWriter:
    """Writes ranges of a file, the first from ``offset`` on.

    `write` takes bytes. Whoever makes them can make them in place, in `room`, and say `advance`.
    `end` finishes a range, `begin` starts another.

    Raises
    ------
    OSError
        If the system or the file system cannot write past its cache.
    """

    _fd = _cached = -1
    _thread: threading.Thread | None = None

    def __init__(self, path: str, offset: int) -> None:
        if not hasattr(os, "O_DIRECT"):
            raise OSError("no direct writes on this system")
        self._pid = os.getpid()
        try:
            self._fd = os.open(path, os.O_WRONLY | os.O_DIRECT)
            self._cached = os.open(path, os.O_WRONLY)
        except BaseException:
            self.close_descriptor()
            raise
        self._free: queue.SimpleQueue[memoryview] = queue.SimpleQueue()
        self._block, *others = _blocks()
        for block in others:
            self._free.put(block)
        self._edges: list[tuple[int, bytes]] = []
        self.begin(offset)
        self._jobs: queue.SimpleQueue[_Job] = queue.SimpleQueue()
        self._failed: list[BaseException] = []
        # It has no reference to this object, which therefore ends when nobody wants it.
        self._thread = threading.Thread(
            target=_run,
            args=(self._fd, self._cached, self._jobs, self._free, self._failed),
            daemon=True,
        )
        try:
            self._thread.start()
        except RuntimeError as error:  # no more threads for this user, or none so late
            self._thread = None
            self.close_descriptor()
            raise OSError(errno.EAGAIN, str(error)) from None

    def begin(self, offset: int) -> None:
        """Go on at another place of the file. The range before must have its `end`."""
        self._first = self._filled = offset % ALIGNMENT  # pages in memory as in the file
        self._offset = offset - self._first

    @property
    def room(self) -> memoryview:
        """Memory for the bytes that come next, of a page at least; `advance` says how many."""
        return self._block[self._filled :]

    def advance(self, nbytes: int) -> None:
        """Take the first bytes of `room`; raise what an earlier write has failed with."""
        self._filled += nbytes
        if self._filled == _BLOCK_NBYTES:
            self._send()

    def write(self, data: Buffer) -> None:
        """Take bytes; raise what an earlier write has failed with."""
        view = memoryview(data).cast("B")
        while view:
            count = min(len(view), _BLOCK_NBYTES - self._filled)
            self._block[self._filled : self._filled + count] = view[:count]
            view = view[count:]
            self.advance(count)

    def _send(self) -> None:
        """Give whole pages to the thread, and keep what begins the next one."""
        start = -(-self._first // ALIGNMENT) * ALIGNMENT
        stop = self._filled // ALIGNMENT * ALIGNMENT
        if start >= stop:
            return
        self._keep_edge(self._first, start)
        self._jobs.put((self._block, start, stop, self._offset + start))
        rest = bytes(self._block[stop : self._filled])
        self._offset += stop
        self._first, self._filled = 0, len(rest)
        self._block = self._free.get()
        self._block[: len(rest)] = rest
        self._raise_failure()

    def _keep_edge(self, start: int, stop: int) -> None:
        if start < stop:
            self._edges.append((self._offset + start, bytes(self._block[start:stop])))

    def _raise_failure(self) -> None:
        if self._failed:
            raise self._failed[0]

    def end(self) -> None:
        """Send what there is; the rest of a page is kept until `settle`. More may follow."""
        self._send()
        self._keep_edge(self._first, self._filled)
        if len(self._edges) >= _EDGES:
            self.settle()

    def settle(self) -> None:
        """Wait until all that came is in the file; raise what has failed."""
        self._send()
        idle = [self._free.get() for _ in range(_BLOCKS - 1)]
        for block in idle:
            self._free.put(block)
        self._raise_failure()
        self._keep_edge(self._first, self._filled)
        for offset, edge in self._edges:
            write_all(self._cached, offset, edge)
        self._edges.clear()

    def close(self) -> None:
        """End the thread. What was not settled is lost."""
        if self._thread is not None:
            self._jobs.put(None)
            if self._thread.ident is not None:  # it was started
                self._thread.join()
            self._thread = None  # not before: its descriptors must outlive it
        self.close_descriptor()

    def __del__(self) -> None:
        # Where an interrupt came between the opening and whoever closes it.
        if self._fd >= 0 or self._cached >= 0:
            if os.getpid() == self._pid:
                self.close()
            else:
                self.close_descriptor()

    def close_descriptor(self) -> None:
        """Close the file and nothing else: all that a forked child may do."""
        descriptors = self._fd, self._cached
        self._fd = self._cached = -1  # first: one that is closed may be another file's soon
        with contextlib.ExitStack() as closing:  # all of them, when one fails too
            for descriptor in descriptors:
                if descriptor >= 0:
                    closing.callback(os.close, descriptor)


def _blocks() -> list[memoryview]:
    """Return memory for all blocks, on large pages if the system has some to spare.

    The kernel has fewer pages to hold on to then while it writes, and to make in the first place.
    """
    arena = mmap.mmap(-1, (_BLOCKS + 1) * _BLOCK_NBYTES)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):
            arena.madvise(mmap.MADV_HUGEPAGE)
    first = -np.frombuffer(arena, np.uint8).ctypes.data % _BLOCK_NBYTES
    return [
        memoryview(arena)[start : start + _BLOCK_NBYTES]
        for start in range(first, first + _BLOCKS * _BLOCK_NBYTES, _BLOCK_NBYTES)
    ]


def _run(
    descriptor: int,
    cached: int,
    jobs: queue.SimpleQueue[_Job],
    free: queue.SimpleQueue[memoryview],
    failed: list[BaseException],
) -> None:
    while (job := jobs.get()) is not None:
        block, start, stop, offset = job
        try:
            done = start
            is_stuck = False
            while done < stop and not failed:
                part = block[done:stop]
                # What a full disk cuts short goes on from a whole unit, and says why it cannot.
                written = os.pwrite(descriptor, part, offset + done - start)
                if written < ALIGNMENT and is_stuck:
                    # A part of a page has room, again and again: why, its rest is told.
                    os.pwrite(cached, part[written:ALIGNMENT], offset + done - start + written)
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                is_stuck = written < ALIGNMENT
                done += written // ALIGNMENT * ALIGNMENT
        except BaseException as error:  # whatever it is: the writer waits for the block
            failed.append(error)
        free.put(block)
