"""Writes of large files that bypass the page cache (O_DIRECT).

A file that is synced before it is renamed has to reach the disk anyway. Through the page cache its
bytes are first copied to fresh pages, and the kernel slows the writer down when many of them wait
(measured on 1 GB with the sync: 0.5 s without the cache, 0.7 s with it). So whole pages are written
directly, by a thread that waits for the disk without the GIL while the caller makes the next block.

Several writers, in several processes, can write ranges of one file. A page that is only partly in a
range goes through the cache, so no two writers conflict. It is written after all direct writes have
ended: a write through the cache waits for those beside it (2 ms each were measured).
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
from torchzip.files.platform_calls import on_huge_pages, open_direct, open_file, write_at
from torchzip.files.source import Buffer

#: Memory, offsets and lengths are multiples of this: enough for every disk and file system.
ALIGNMENT = 4096
_BLOCK_NBYTES = 2 << 20
_BLOCKS = 3
#: At most so many partial pages are kept: 1 MiB.
_EDGES = 256

#: A block, the range of it to write, and the offset in the file; None ends the thread.
_Job = tuple[memoryview, int, int, int] | None


class DirectWriter:
    """Writes ranges of a file, the first from ``offset`` on.

    `write` takes bytes. A caller can also make them in place, in `room`, and then call `advance`.
    `end` finishes a range, `begin` starts another.

    Raises
    ------
    OSError
        If the system or the file system does not support direct writes.
    """

    _fd = _cached = -1
    _thread: threading.Thread | None = None

    def __init__(self, path: str, offset: int) -> None:
        self._pid = os.getpid()
        try:
            self._fd = open_direct(path)
            self._cached = open_file(path, os.O_WRONLY)
        except BaseException:
            self._close_descriptors()
            raise
        self._free: queue.SimpleQueue[memoryview] = queue.SimpleQueue()
        self._block, *others = _blocks()
        for block in others:
            self._free.put(block)
        self._edges: list[tuple[int, bytes]] = []
        self.begin(offset)
        self._jobs: queue.SimpleQueue[_Job] = queue.SimpleQueue()
        self._failed: list[BaseException] = []
        # The thread has no reference to this object, so that the object can be collected.
        self._thread = threading.Thread(
            target=_run,
            args=(self._fd, self._cached, self._jobs, self._free, self._failed),
            daemon=True,
        )
        try:
            self._thread.start()
        except RuntimeError as error:  # too many threads, or the interpreter is exiting
            self._thread = None
            self._close_descriptors()
            raise OSError(errno.EAGAIN, str(error)) from None

    def begin(self, offset: int) -> None:
        """Continue at another offset. The range before must have been ended with `end`."""
        self._first = self._filled = offset % ALIGNMENT  # pages in memory as in the file
        self._offset = offset - self._first

    @property
    def room(self) -> memoryview:
        """Memory for the next bytes, a page or more; `advance` takes them."""
        return self._block[self._filled :]

    def advance(self, nbytes: int) -> None:
        """Take the first bytes of `room`; raise the error of an earlier write, if any."""
        self._filled += nbytes
        if self._filled == _BLOCK_NBYTES:
            self._send()

    def write(self, data: Buffer) -> None:
        """Take bytes; raise the error of an earlier write, if any."""
        view = memoryview(data).cast("B")
        while view:
            count = min(len(view), _BLOCK_NBYTES - self._filled)
            self._block[self._filled : self._filled + count] = view[:count]
            view = view[count:]
            self.advance(count)

    def _send(self) -> None:
        """Hand whole pages to the thread, and keep the rest for the next block."""
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
        """Hand over what there is; a partial page is kept until `settle`. More may follow."""
        self._send()
        self._keep_edge(self._first, self._filled)
        if len(self._edges) >= _EDGES:
            self.settle()

    def settle(self) -> None:
        """Wait until all bytes are in the file; raise the error of a write that failed."""
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
        """End the thread. Bytes that were not settled are lost.

        A forked child has no thread to end; it only closes the file.
        """
        if self._thread is not None and os.getpid() == self._pid:
            self._jobs.put(None)
            if self._thread.ident is not None:  # it was started
                self._thread.join()
            self._thread = None  # not earlier: the thread uses the descriptors until it ends
        self._close_descriptors()

    def __del__(self) -> None:
        # In case an interrupt came before the caller could close it.
        if self._fd >= 0 or self._cached >= 0:
            self.close()

    def _close_descriptors(self) -> None:
        descriptors = self._fd, self._cached
        self._fd = self._cached = -1  # first: the number of a closed file may be used again soon
        with contextlib.ExitStack() as closing:  # close all of them, even if one fails
            for descriptor in descriptors:
                if descriptor >= 0:
                    closing.callback(os.close, descriptor)


def _blocks() -> list[memoryview]:
    """Return memory for all blocks, on huge pages if the system has some.

    The kernel then has fewer pages to allocate, and to pin while it writes.
    """
    arena = mmap.mmap(-1, (_BLOCKS + 1) * _BLOCK_NBYTES)
    on_huge_pages(arena)
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
                # After a short write (full disk), go on from a whole unit: that gives the error.
                written = write_at(descriptor, part, offset + done - start)
                if written < ALIGNMENT and is_stuck:
                    # Again less than a unit was written: writing its rest gives the error.
                    write_at(cached, part[written:ALIGNMENT], offset + done - start + written)
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                is_stuck = written < ALIGNMENT
                done += written // ALIGNMENT * ALIGNMENT
        except BaseException as error:  # any error: the writer waits for the block
            failed.append(error)
        free.put(block)
