"""Carries a plan out whose files go to a store: each is written from its start to its end.

A store makes an object of a stream, and only when all of it came. So the pieces of a storage are
written when its turn comes, and tasks are whole files. The files of several appear one by one, and
the index last, which readers go by; after a failure those are removed that were not there before.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from functools import partial
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
    made: list[str] = []  # where nothing was before

    def end() -> None:
        """Do what comes before the last file has its name, which may raise."""
        watch.check()
        overflowed(dict(chain.from_iterable(map(dict.items, found))))
        meter.finish()

    def put(path: str, write: Callable[[StreamedFile], object], *, is_last: bool = False) -> None:
        is_new = not (overwrite and place.exists(path))
        with _committed(place, path, overwrite) as file:
            write(file)
            if is_last:
                end()
        made.extend([path] if is_new else [])

    def write_planned(planned: PlannedFile, file: StreamedFile) -> None:
        found.append(_write(plan.output, planned, file, meter.add))

    try:
        for companion in plan.companions:
            put(companion.path, partial(copy, companion))
        if executor is not None:
            new = [path for path in plan.sizes if not (overwrite and place.exists(path))]

            def done(number: int, counts: dict[str, int]) -> None:
                made.extend([path] if (path := plan.files[number].path) in new else [])
                found.append(counts)
                meter.add(plan.files[number].nbytes)

            tasks = [upload_task(plan, planned, place, overwrite) for planned in plan.files]
            run_tasks(executor, tasks, done)
            if plan.index is None:
                end()
        else:
            for planned in plan.files:
                is_last = plan.index is None  # then there is one file
                put(planned.path, partial(write_planned, planned), is_last=is_last)
        if plan.index is not None:
            path, text = plan.index
            put(path, lambda file: file.write_at(0, text), is_last=True)
    except BaseException:
        for path in made:
            with contextlib.suppress(OSError):  # there is another error to report
                place.remove(path)
        raise


def upload_task(plan: Plan, planned: PlannedFile, place: StorePlace, overwrite: bool) -> Task:
    """Return the writing of one file as a task."""
    return Task(_upload_file, (plan.output, planned, place, overwrite))


def _upload_file(
    output: type[Output], planned: PlannedFile, place: StorePlace, overwrite: bool
) -> dict[str, int]:
    """Write one file; return how many elements of each tensor are out of range of their dtype."""
    with _committed(place, planned.path, overwrite) as file:
        return _write(output, planned, file, lambda nbytes: None)


@contextlib.contextmanager
def _committed(place: StorePlace, path: str, overwrite: bool) -> Iterator[StreamedFile]:
    """Give a new file, which appears if the block comes to its end."""
    file = place.open(path, overwrite=overwrite)
    try:
        yield file
        file.commit()
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
