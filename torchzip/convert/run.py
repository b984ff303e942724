"""Carries a plan out: the large storages in pieces, by workers if there are any, then the rest.

Each file has its final size from the start, and whoever has a piece writes it to its place. What
is around the storages, and small ones, are written last, when all CRCs are known.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import BrokenExecutor, Executor, Future, as_completed
from itertools import chain
from typing import Any

import numpy as np

from torchzip.convert.overflow import by_tensor
from torchzip.convert.pieces import Piece, Written, read_in_part, write_pieces
from torchzip.convert.plan import Plan
from torchzip.convert.work import Work
from torchzip.files.new_file import NewFile, commit_together
from torchzip.files.source import FileSource, file_place
from torchzip.files.watch import Watch
from torchzip.tensors.storage import sources_of

Progress = Callable[[int, int], None]

_PROGRESS_NBYTES = 1 << 20
#: The most of an array that a task takes along.
_SENT_NBYTES = 1 << 20


def run(
    plan: Plan, *, executor: Executor | None = None, verify: bool = False,
    progress: Progress | None = None, overflowed: Callable[[dict[str, int]], None] | None = None,
) -> None:  # fmt: skip
    """Write a plan's output, all or nothing.

    ``executor`` carries the pieces out; without one they are carried out here, one by one. With
    ``verify`` every CRC of the source's storages is compared, also where it could go along unread,
    or is of more than what is taken. ``overflowed`` is called once, before any file has its name,
    with the number of elements that their new dtype has no place for, by the names of tensors.
    """
    meter = _Meter(plan.nbytes, progress)
    with contextlib.ExitStack() as opened:
        files = []
        for path in plan.sizes:
            files.append(NewFile(path))
            opened.callback(files[-1].abort)
        _check_apart(files)
        _check_space(files[0], plan.nbytes)
        storages = [storage for planned in plan.files for storage in planned.storages]
        if verify:
            for storage in read_in_part(storages):
                for _ in storage.checked_blocks():
                    pass
        watch = Watch(sources_of(storages))
        works = []
        for planned, file in zip(plan.files, files, strict=False):  # the index follows
            file.resize(planned.nbytes)
            works.append(Work(planned, file, with_crc=plan.output.has_crcs, verify=verify))
        if executor is None:
            for work in works:
                if work.pieces:
                    work.written = write_pieces(work.file.temporary, work.pieces, meter.add)
        else:
            _run_tasks(works, executor, meter)
        for work in works:
            plan.output.finish(work)
        if not watch.check():
            for work in works:
                work.check_copied()
        if plan.index is not None:
            files[-1].write_at(0, plan.index[1])
        if overflowed is not None:
            found = (by_tensor(work.planned, work.out_of_range) for work in works)
            overflowed(dict(chain.from_iterable(found)))
        meter.finish()  # what it raises comes before anything has its name
        commit_together(files)


def _check_apart(files: Sequence[NewFile]) -> None:
    """Raise if symlinks lead two of the files to one place, where one would be lost."""
    names: dict[str, str] = {}
    for file in files:
        first = names.setdefault(file.target, file.name)
        if first is not file.name:
            raise FileExistsError(errno.EEXIST, f"A link to where {first} goes too", file.name)


def _check_space(file: NewFile, nbytes: int) -> None:
    free = file.free_nbytes()
    if free < nbytes:
        raise OSError(
            errno.ENOSPC,
            f"{nbytes:,} bytes are to be written, and the disk has {free:,} left",
            file.name,
        )


# -- pieces -------------------------------------------------------------------------------------


def _run_tasks(works: Sequence[Work], executor: Executor, meter: _Meter) -> None:
    """Have an executor carry all pieces out."""
    from concurrent.futures import ThreadPoolExecutor

    futures: dict[Future[list[Written]], tuple[Work, slice]] = {}
    here: list[tuple[Work, slice]] = []
    calls: list[tuple[Work, slice, Callable[..., list[Written]], tuple[Any, ...]]] = []
    forks = isinstance(executor, _Uninterrupted) and executor.forks
    try:
        for work in works:
            work.written = [Written(0)] * len(work.pieces)
            for part in work.tasks():
                task = work.file.temporary, work.pieces[part]
                if isinstance(executor, ThreadPoolExecutor):
                    calls.append((work, part, write_pieces, task))
                elif (packed := _packed(task)) is not None:
                    calls.append((work, part, _write_packed, (packed,)))
                elif forks and _is_inherited(task[1]):
                    calls.append((work, part, _write_inherited, (len(_INHERITED),)))
                    _INHERITED.append(task)
                else:
                    here.append((work, part))
        for work, part, function, arguments in calls:  # the first of which makes the workers
            futures[executor.submit(function, *arguments)] = (work, part)
        for work, part in here:
            pieces = work.pieces[part]
            work.written[part] = write_pieces(work.file.temporary, pieces, meter.add)
        for future in as_completed(futures):
            work, part = futures[future]
            work.written[part] = future.result()
            meter.add(sum(piece.nbytes for piece in work.pieces[part]))
    except BaseException as error:
        for future in futures:
            future.cancel()
        for future in futures:
            if not future.cancelled():
                future.exception()  # wait: a worker must not write to a file that is gone
        if isinstance(error, BrokenExecutor):
            raise ChildProcessError(
                errno.ECHILD, "A worker ended before its work was done. It may have been killed "
                "for want of memory",
            ) from None  # fmt: skip
        raise
    finally:
        _INHERITED.clear()


#: Tasks that cannot be sent, for workers that are forked when all are here: they have them too.
_INHERITED: list[tuple[str, list[Piece]]] = []


def _write_inherited(index: int) -> list[Written]:
    return write_pieces(*_INHERITED[index])


def _is_inherited(pieces: Sequence[Piece]) -> bool:
    """Return whether a forked process reads what this one reads: files have no shared position."""
    sources = sources_of(piece.storage for piece in pieces)
    return all(isinstance(file_place(source, 0)[0], FileSource) for source in sources)


def computed_here(plan: Plan, executor: Executor | None) -> tuple[str, ...]:
    """Return the tensors that are computed by this process alone: their functions cannot be sent.

    None stands for a pool of `workers`.
    """
    from concurrent.futures import ThreadPoolExecutor

    if isinstance(executor, ThreadPoolExecutor):
        return ()
    found = []
    for planned in plan.files:
        for key, tensors in planned.cast.items():
            pieces = [Piece(planned.storages[key], 0, 0, 0)]
            if executor is None and _can_fork() and _is_inherited(pieces):
                continue
            if _packed(("", pieces)) is None:
                found += [name for name, _ in tensors]
    return tuple(found)


def _packed(task: tuple[str, list[Piece]]) -> bytes | None:
    """Return a path and pieces for another process; None for what lives in this one only."""
    from multiprocessing.reduction import ForkingPickler  # as a pool sends it

    class TaskPickler(ForkingPickler):
        def reducer_override(self, value: Any) -> Any:
            if isinstance(value, io.BytesIO):
                raise TypeError("a file in memory would go along with each task, all of it")
            if isinstance(value, np.ndarray) and value.nbytes > _SENT_NBYTES:
                raise TypeError("an array would go along with each task, all of it")
            return NotImplemented

    try:
        return bytes(TaskPickler.dumps(task))
    except Exception:  # whatever an open file object says, which cannot be sent
        return None


def _write_packed(packed: bytes) -> list[Written]:
    """Write what another process of this program has packed.

    Unpacked here, not on the way: a pool whose worker cannot unpack what it gets is broken, and
    a source that has changed meanwhile is an error like others.
    """
    from multiprocessing.reduction import ForkingPickler

    return write_pieces(*ForkingPickler.loads(packed))


#: What ends a conversion in this process; it tells its workers, and waits for them.
_ENDING = {signal.SIGINT, signal.SIGTERM}


class _Uninterrupted(Executor):
    """Keeps Ctrl-C and SIGTERM from a pool that is making a worker; they come afterwards.

    One that reaches the worker, which does not ignore it yet, would break the pool, and say so
    instead of what has happened. One that is raised here before the pool knows of the worker would
    leave it waiting for work, and this process waiting for it.
    """

    def __init__(self, pool: Executor, forks: bool) -> None:
        self._pool = pool
        self.forks = forks

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        before = signal.pthread_sigmask(signal.SIG_BLOCK, _ENDING)
        try:
            return self._pool.submit(fn, *args, **kwargs)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _begin_work() -> None:
    import threading

    # Ctrl-C reaches every process of a terminal; the one that asked for the work cancels it.
    for number in _ENDING:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _ENDING)  # it was made with them blocked
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """End this process when the one that asked for the work was killed: nobody else would."""
    from multiprocessing import connection, parent_process

    parent = parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        os._exit(1)


@contextlib.contextmanager
def workers(jobs: int) -> Iterator[Executor]:
    """Give a pool of processes, which ends with the block.

    They are forked where that is safe, because it takes milliseconds: on Linux, in a
    process without other threads. Elsewhere they start afresh, and import torchzip.
    """
    import multiprocessing
    from concurrent.futures import ProcessPoolExecutor

    forks = _can_fork()
    context = multiprocessing.get_context("fork" if forks else "spawn")
    pool = ProcessPoolExecutor(jobs, mp_context=context, initializer=_begin_work)
    try:
        yield _Uninterrupted(pool, forks)
    finally:
        pool.shutdown(cancel_futures=True)


def _can_fork() -> bool:
    import threading

    return sys.platform == "linux" and threading.active_count() == 1


class _Meter:
    """Tells a callback how far the writing is, not oftener than it is worth."""

    def __init__(self, total: int, progress: Progress | None) -> None:
        self._total = total
        self._progress = progress
        self._done = 0
        self._told = -_PROGRESS_NBYTES

    def add(self, nbytes: int) -> None:
        self._done += nbytes
        if self._progress is not None and self._done - self._told >= _PROGRESS_NBYTES:
            self._told = self._done
            self._progress(self._done, self._total)

    def finish(self) -> None:
        if self._progress is not None:
            self._progress(self._total, self._total)
