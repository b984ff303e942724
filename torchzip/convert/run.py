"""Carries a plan out: the large storages in pieces, by workers if there are any, then the rest.

Each file has its final size from the start, and whoever has a piece writes it to its place. What
is around the storages, and small ones, are written last, when all CRCs are known.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from functools import partial
from itertools import chain

from torchzip.convert.companions import copy
from torchzip.convert.meter import Meter, Progress
from torchzip.convert.overflow import by_tensor
from torchzip.convert.pieces import (
    Piece,
    Written,
    check_read_in_part,
    write_announced,
    write_pieces,
)
from torchzip.convert.plan import Plan
from torchzip.convert.tasks import Task, run_tasks, stays_here
from torchzip.convert.upload import upload, upload_task
from torchzip.convert.work import LocalWork
from torchzip.files.new_file import NewFile, commit_together
from torchzip.files.place import StorePlace
from torchzip.files.platform_calls import Closable, let_go, processors
from torchzip.files.source import FileSource, Source, file_place
from torchzip.files.watch import Watch
from torchzip.tensors.casts import CastStorage
from torchzip.tensors.chunks import ChunkedStorage
from torchzip.tensors.computed import ComputedStorage
from torchzip.tensors.packing import ElementStorage
from torchzip.tensors.storage import StreamStorage, TensorStorage, sources_of


def run(
    plan: Plan, *, executor: Executor | None = None, verify: bool = False,
    progress: Progress | None = None, overflowed: Callable[[dict[str, int]], None] | None = None,
    overwrite: bool = True, opened: Sequence[Closable] = (),
) -> None:  # fmt: skip
    """Write a plan's output, all or nothing.

    ``executor`` carries the pieces out; without one they are carried out here, one by one. With
    ``verify`` every CRC of the source's storages is compared, also where it could go along unread,
    or is of more than what is taken. ``overflowed`` is called once, before any file has its name,
    with the number of elements that their new dtype has no place for, by the names of tensors.
    ``overwrite=False`` is for stores, where somebody else may write the same object meanwhile.
    ``opened`` are the files that are read: one of them may be what is replaced.
    """
    meter = Meter(plan.nbytes, progress)
    told = overflowed if overflowed is not None else lambda counts: None
    if isinstance(plan.place, StorePlace):
        upload(plan, plan.place, executor, meter, told, verify=verify, overwrite=overwrite)
        return
    with contextlib.ExitStack() as failed:
        files: list[NewFile] = []
        for path in [*plan.sizes, *(each.path for each in plan.companions)]:
            files.append(NewFile(path))
            failed.callback(files[-1].abort)
            failed.push(files[-1].names_target)
        _check_apart(files)
        files, beside = files[: len(plan.sizes)], files[len(plan.sizes) :]
        _check_space(files[0], plan.nbytes)
        storages = [storage for planned in plan.files for storage in planned.storages]
        if verify:
            check_read_in_part(storages)
        sources = sources_of(storages)
        watch = Watch(sources)
        works: list[LocalWork] = []
        for planned, file in zip(plan.files, files, strict=False):  # the index follows
            file.resize(planned.nbytes)
            works.append(LocalWork(planned, file, with_crc=plan.output.has_crcs, verify=verify))
        if executor is not None:
            _run_pieces(works, executor, meter)
        elif any(source.far_group is not None for source in sources):
            # In one go, so that what is near each other in the source is fetched together.
            for work in works:
                work.write_in_order(partial(write_announced, work.temporary, tell=meter.add))
        else:
            for work in works:
                if work.pieces:
                    work.written = write_pieces(work.temporary, work.pieces, meter.add)
        for work in works:
            work.announce()
            plan.output.finish(work)
        if not watch.check():
            for work in works:
                work.check_copied()
        if plan.index is not None:
            files[-1].write_at(0, plan.index[1])
        for companion, file in zip(plan.companions, beside, strict=True):
            copy(companion, file)
        found = (by_tensor(work.planned, work.out_of_range) for work in works)
        told(dict(chain.from_iterable(found)))
        meter.finish()  # what it raises comes before anything has its name
        let_go(*opened)
        commit_together([*beside, *files])


def _check_apart(files: Sequence[NewFile]) -> None:
    """Raise if two of the files go to one place, where one would be lost.

    Symlinks can lead there, and names that differ by their case where that does not count.
    """
    names: dict[str, str] = {}
    for file in files:
        first = names.setdefault(os.path.normcase(file.target), file.name)
        if first is not file.name:
            raise FileExistsError(errno.EEXIST, f"It leads to the same file as {first}", file.name)


def _check_space(file: NewFile, nbytes: int) -> None:
    free = file.free_nbytes()
    if free < nbytes:
        raise OSError(
            errno.ENOSPC,
            f"{nbytes:,} bytes are to be written, and the disk has {free:,} left",
            file.name,
        )


def _run_pieces(works: Sequence[LocalWork], executor: Executor, meter: Meter) -> None:
    """Have an executor carry all pieces out."""
    parts = [(work, part) for work in works for part in work.tasks()]
    for work in works:
        work.written = [Written(0)] * len(work.pieces)

    def done(number: int, written: list[Written]) -> None:
        work, part = parts[number]
        work.written[part] = written
        meter.add(sum(piece.nbytes for piece in work.pieces[part]))

    run_tasks(executor, [_task(work.temporary, work.pieces[part]) for work, part in parts], done)


def _task(path: str, pieces: Sequence[Piece]) -> Task:
    """Return the writing of pieces as a task.

    Forked processes share the position of an open file, which a `FileSource` does not use.
    """
    sources = sources_of(piece.storage for piece in pieces)
    return Task(write_pieces, (path, pieces), all(map(_is_file, sources)))


#: What each process has to do if it is to pay: with 128 MB a second one gains some tens of ms.
_PAYING_NBYTES = 128 << 20
#: More processes wait for the disk.
_MOST_JOBS = 4


def paying_jobs(plan: Plan) -> int:
    """Return how many processes write a plan soonest; 1 is this one alone.

    What is written as it is read counts for nothing, with a CRC or without: one process has it at
    the disk as soon as the disk takes it, and two disturb each other there (3 GB of ZeRO: 2.2 s by
    one, 2.3 to 4.1 s by two). Files that are read or written over a network, and file objects, are
    for one process.
    """
    storages = [storage for planned in plan.files for storage in planned.storages]
    if isinstance(plan.place, StorePlace) or not all(map(_is_file, sources_of(storages))):
        return 1
    nbytes = sum(storage.nbytes for storage in storages if _is_worked_on(storage))
    return max(1, min(processors(), _MOST_JOBS, nbytes // _PAYING_NBYTES))


def _is_worked_on(storage: TensorStorage) -> bool:
    """Return whether the bytes of a storage are cast, computed, gathered or inflated."""
    if isinstance(storage, ElementStorage):
        return storage.is_strided or _is_worked_on(storage.spec.storage)
    if isinstance(storage, ChunkedStorage):
        return not storage.are_runs or any(map(_is_worked_on, storage.made_of()))
    return isinstance(storage, CastStorage | ComputedStorage | StreamStorage)


def _is_file(source: Source) -> bool:
    return isinstance(file_place(source, 0)[0], FileSource)


def computed_here(plan: Plan, executor: Executor | None) -> tuple[str, ...]:
    """Return the tensors that are computed by this process alone: their functions cannot be sent.

    None stands for a pool of `workers`.
    """
    found: list[str] = []
    for planned in plan.files:
        if isinstance(plan.place, StorePlace):
            units = [(upload_task(plan, planned, plan.place, overwrite=True), [*planned.cast])]
        else:
            units = [
                (_task("", [Piece(planned.storages[key], 0, 0, 0)]), [key]) for key in planned.cast
            ]
        for task, keys in units:
            if keys and stays_here(task, executor):
                found += [name for key in keys for name, _ in planned.cast[key]]
    return tuple(found)
