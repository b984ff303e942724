"""Work that an executor does: what is sent to it, and what comes back.

A task is a function of a module and its arguments. To another process they go packed: a pool whose
worker cannot unpack what it gets is broken, and a source that has changed meanwhile is an error
like others. What cannot be packed, such as a lambda, workers have from the beginning if they are
forked for these tasks.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import BrokenExecutor, Executor, Future, ThreadPoolExecutor, as_completed
from typing import Any, NamedTuple

import numpy as np

from torchzip.files.platform_calls import CAN_FORK, MOST_WORKERS, signals_later, signals_now

#: What clusters raise when the process that had a task is gone.
_LOST = {
    "KilledWorker", "WorkerCrashedError", "NodeDiedError", "OutOfMemoryError",
    "FutureCancelledError", "ActorDiedError",
}  # fmt: skip


#: The most of an array that a task takes along.
_SENT_NBYTES = 1 << 20


class Task(NamedTuple):
    """A function, and what it is called with.

    ``is_inherited`` says that a process that is forked may call it as it is.
    """

    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    is_inherited: bool = False


#: Tasks that cannot be packed, for workers that are forked when all are here: they have them too.
_INHERITED: list[Task] = []


def run_tasks(executor: Executor, tasks: Sequence[Task], done: Callable[[int, Any], None]) -> None:
    """Have an executor do all tasks; ``done`` gets the number of each and what it returned.

    What cannot get to another process, such as an open file, is done here. When one fails, the
    others are cancelled; those that have begun are waited for, and told as well.
    """
    told: set[int] = set()

    def tell(number: int, result: Any) -> None:
        told.add(number)
        done(number, result)

    futures: dict[Future[Any], int] = {}
    try:
        calls = [_call_of(task, executor) for task in tasks]
        for number, call in enumerate(calls):
            if call is not None:  # the first one makes the workers
                futures[executor.submit(*call)] = number
        for number, task in enumerate(tasks):
            if calls[number] is None:
                tell(number, task.function(*task.arguments))
        for future in as_completed(futures):
            tell(futures[future], future.result())
    except BaseException as error:
        for future in futures:
            future.cancel()
        for future, number in futures.items():
            # Wait: a worker must not write to a file that is gone.
            if not future.cancelled() and future.exception() is None and number not in told:
                with contextlib.suppress(Exception):  # there is an error to report already
                    tell(number, future.result())
        if isinstance(error, BrokenExecutor) or type(error).__name__ in _LOST:
            raise ChildProcessError(
                errno.ECHILD, "A worker ended before its work was done. It may have been killed "
                "for want of memory",
            ) from None  # fmt: skip
        raise
    finally:
        _INHERITED.clear()


def stays_here(task: Task, executor: Executor | None) -> bool:
    """Return whether this process has to do a task. None stands for a pool of `workers`."""
    if isinstance(executor, ThreadPoolExecutor):
        return False
    if executor is None and task.is_inherited and _can_fork():
        return False
    return _packed(task) is None


def _call_of(task: Task, executor: Executor) -> tuple[Any, ...] | None:
    """Return what an executor is given for a task; None if it has to be done here."""
    if isinstance(executor, ThreadPoolExecutor):
        return (task.function, *task.arguments)
    packed = _packed(task)
    if packed is not None:
        return _call_packed, packed
    if task.is_inherited and isinstance(executor, _Uninterrupted) and executor.forks:
        _INHERITED.append(task)
        return _call_inherited, len(_INHERITED) - 1
    return None


def _packed(task: Task) -> bytes | None:
    """Return a task for another process; None for what lives in this one only."""
    from multiprocessing.reduction import ForkingPickler  # as a pool sends it

    class TaskPickler(ForkingPickler):
        def reducer_override(self, value: Any) -> Any:
            if isinstance(value, io.BytesIO):
                raise TypeError("a file in memory would go along with each task, all of it")
            if isinstance(value, np.ndarray) and value.nbytes > _SENT_NBYTES:
                raise TypeError("an array would go along with each task, all of it")
            return NotImplemented

    try:
        return bytes(TaskPickler.dumps((task.function, task.arguments)))
    except Exception:  # whatever an open file object says, which cannot be sent
        return None


def _call_packed(packed: bytes) -> Any:
    """Do what another process of this program has packed."""
    from multiprocessing.reduction import ForkingPickler

    function, arguments = ForkingPickler.loads(packed)
    return function(*arguments)


def _call_inherited(index: int) -> Any:
    task = _INHERITED[index]
    return task.function(*task.arguments)


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
        with signals_later(_ENDING):
            return self._pool.submit(fn, *args, **kwargs)


def _begin_work() -> None:
    import threading

    # Ctrl-C reaches every process of a terminal; the one that asked for the work cancels it.
    for number in _ENDING:
        signal.signal(number, signal.SIG_IGN)
    signals_now(_ENDING)
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
    pool = ProcessPoolExecutor(min(jobs, MOST_WORKERS), mp_context=context, initializer=_begin_work)
    try:
        yield _Uninterrupted(pool, forks)
    finally:
        pool.shutdown(cancel_futures=True)


def _can_fork() -> bool:
    import threading

    # A backend of URLs may have threads that Python does not know of.
    is_alone = threading.active_count() == 1 and "obstore" not in sys.modules
    return CAN_FORK and is_alone
