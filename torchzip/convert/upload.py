"""Carries a plan out whose files go to a store: each is written from its start to its end.

A store makes an object of a stream, and only when all of it came. So the pieces of a storage are
written when its turn comes, and tasks are whole files. The files of several appear one by one, and
the index last, which readers go by; after a failure those are removed that were not there before.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from concurrent.futures import Executor
from itertools import chain

from torchzip.convert.companions import copy
from torchzip.convert.meter import Meter
from torchzip.convert.outputs.base import Output
from torchzip.convert.overflow import by_tensor
from torchzip.convert.pieces import PieceWriter, Tell, check_read_in_part
from torchzip.convert.plan import Plan
from torchzip.convert.planned import PlannedFile
from torchzip.convert.tasks import Task, run_tasks
from torchzip.convert.work import Work
from torchzip.files.place import StorePlace
from torchzip.files.streamed_file import StreamedFile
from torchzip.files.watch import Watch
from torchzip.tensors.storage import sources_of


def upload(
    plan: Plan, place: StorePlace, executor: Executor | None, meter: Meter,
    overflowed: Callable[[dict[str, int]], None], *, verify: bool, overwrite: bool,
) -> None:  # fmt: skip
    """Write a plan's output to a store; see `run`."""
    storages = [storage for planned in plan.files for storage in planned.storages]
    if verify:
        check_read_in_part(storages)
    watch = Watch(sources_of(storages))
    found: list[dict[str, int]] = []

    def end() -> None:
        """Do what comes before the last file has its name, which may raise."""
        watch.check()
        overflowed(dict(chain.from_iterable(map(dict.items, found))))
        meter.finish()

    with contextlib.ExitStack() as opened:
        copied: list[str] = []
        undo = opened.enter_context(contextlib.ExitStack())
        undo.callback(lambda: _remove(place, copied))
        for companion in plan.companions:
            is_new = not (overwrite and place.exists(companion.path))
            file = place.open(companion.path, overwrite=overwrite)
            opened.callback(file.abort)
            copy(companion, file)
            file.commit()
            copied += [companion.path] if is_new else []
        if plan.index is None and executor is None:
            (planned,) = plan.files
            file = place.open(planned.path, overwrite=overwrite)
            opened.callback(file.abort)
            found.append(_write(plan.output, planned, file, meter.add))
            end()
            file.commit()
            undo.pop_all()
            return
        new = [path for path in plan.sizes if not (overwrite and place.exists(path))]
        made: list[str] = []
        failed = opened.enter_context(contextlib.ExitStack())
        failed.callback(lambda: _remove(place, [path for path in made if path in new]))
        if executor is None:
            for planned in plan.files:
                found.append(upload_file(plan.output, planned, place, overwrite, meter.add))
                made.append(planned.path)
        else:
            tasks = [upload_task(plan, planned, place, overwrite) for planned in plan.files]

            def done(number: int, counts: dict[str, int]) -> None:
                made.append(plan.files[number].path)
                found.append(counts)
                meter.add(plan.files[number].nbytes)

            run_tasks(executor, tasks, done)
        end()
        if plan.index is not None:
            path, text = plan.index
            file = place.open(path, overwrite=overwrite)
            opened.callback(file.abort)
            file.write_at(0, text)
            file.commit()
        failed.pop_all()
        undo.pop_all()


def upload_task(plan: Plan, planned: PlannedFile, place: StorePlace, overwrite: bool) -> Task:
    """Return the writing of one file as a task."""
    return Task(upload_file, (plan.output, planned, place, overwrite))


def upload_file(
    output: type[Output],
    planned: PlannedFile,
    place: StorePlace,
    overwrite: bool,
    tell: Tell = lambda nbytes: None,
) -> dict[str, int]:
    """Write one file; return how many elements of each tensor are out of range of their dtype."""
    file = place.open(planned.path, overwrite=overwrite)
    try:
        found = _write(output, planned, file, tell)
        file.commit()
        return found
    finally:
        file.abort()


def _write(
    output: type[Output], planned: PlannedFile, file: StreamedFile, tell: Tell
) -> dict[str, int]:
    # All bytes pass through here, so the CRCs of the source are compared in any case.
    work = Work(planned, file, with_crc=output.has_crcs, verify=True)
    work.write_in_order(PieceWriter(file, tell).write_all)
    work.announce()
    output.finish(work)
    return dict(by_tensor(planned, work.out_of_range))


def _remove(place: StorePlace, paths: list[str]) -> None:
    for path in paths:
        with contextlib.suppress(OSError):  # there is another error to report
            place.remove(path)
