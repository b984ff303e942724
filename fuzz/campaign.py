"""Sends inputs through the doors by the hundred thousand, in several processes."""

from __future__ import annotations

import multiprocessing
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from random import Random
from typing import Any

from fuzz import doors
from fuzz.inputs import make
from fuzz.seeds import Case

#: A process that has been at one input for so long hangs where Python hears no signal.
_HANGING_SECONDS = 300
_REPORT_SECONDS = 2

Room = Callable[[], AbstractContextManager[doors.Send]]


@dataclass(frozen=True)
class Finding:
    """An input that gave what it must not: its number, where and what, and the whole story."""

    number: int
    what: str
    story: str


@dataclass
class Outcome:
    """What came of many inputs: how many, what `load` made of them, and what was found."""

    inputs: int = 0
    made: Counter[str] = field(default_factory=Counter)
    findings: list[Finding] = field(default_factory=list)

    def add(self, other: Outcome) -> None:
        """Add what another process saw. Of findings at one place the first is kept."""
        self.inputs += other.inputs
        self.made += other.made
        known = {finding.what for finding in self.findings}
        self.findings += [finding for finding in other.findings if finding.what not in known]


def input_of(number: int) -> tuple[Case, list[str]]:
    """Return the input of a number, always the same, and the doors that it goes through."""
    rng = Random(number)
    chosen = rng.sample(doors.DOORS, rng.choice([1, 1, 2, 3]))
    return make(rng), chosen


def try_one(send: doors.Send, number: int) -> Outcome:
    case, chosen = input_of(number)
    try:
        made = send(case, chosen)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # every class is a finding, those of the guard as well
        return Outcome(
            1, Counter(["a finding"]), [Finding(number, _place_of(error), _story(error))]
        )
    # What the file named is a value like any other; errors are told by their class.
    is_error = issubclass(made, Exception)
    return Outcome(1, Counter([made.__name__ if is_error else "a value"]))


def _place_of(error: BaseException) -> str:
    last = traceback.extract_tb(error.__traceback__)[-1]
    return (
        f"{type(error).__name__} in {last.name}, {last.filename.rpartition('/')[2]}:{last.lineno}"
    )


def _story(error: BaseException) -> str:
    return "".join(traceback.format_exception(error, limit=-12))[-6000:]


def _work(
    room: Room, first: int, step: int, most: int | None, seconds: float, to: Connection
) -> None:
    """Send every ``step``-th input from ``first``, and tell of them every few seconds."""
    seen = Outcome()
    end = time.monotonic() + seconds
    told = 0.0
    numbers: Iterator[int] = iter(range(first, 1 << 62 if most is None else first + most, step))
    with room() as send:
        for number in numbers:
            now = time.monotonic()
            if now > end:
                break
            if now > told + _REPORT_SECONDS or seen.findings:
                to.send((number, seen))
                seen, told = Outcome(), now
            seen.add(try_one(send, number))
    to.send((None, seen))


def run(
    first: int,
    *,
    seconds: float = 1e9,
    most: int | None = None,
    processes: int = 1,
    room: Room = doors.room,
    tell: Callable[[Outcome], Any] = lambda outcome: None,
) -> Outcome:
    """Send inputs from number ``first`` on, for some seconds or so many of them.

    ``room`` gives what they are sent with: through the doors, or `against_torch`.
    ``tell`` is called with what came of all so far. A process that dies or hangs is a finding of
    its own, at the numbers from the one that it told of last.
    """
    total = Outcome()
    context = multiprocessing.get_context("spawn")
    workers: dict[Connection, tuple[Any, int, float]] = {}
    for index in range(processes):
        here, there = context.Pipe(duplex=False)
        arguments = (room, first + index, processes, most, seconds, there)
        process = context.Process(target=_work, args=arguments)
        process.start()
        there.close()
        workers[here] = (process, first + index, time.monotonic())
    while workers:
        ready = wait(list(workers), timeout=10)
        for connection in list(workers):
            process, number, heard = workers[connection]
            if connection in ready:
                try:
                    at, seen = connection.recv()
                except EOFError:
                    process.join()
                    total.add(_lost(number, f"a process died with code {process.exitcode}"))
                    del workers[connection]
                    continue
                total.add(seen)
                if at is None:
                    del workers[connection]
                    process.join()
                else:
                    workers[connection] = (process, at, time.monotonic())
            elif time.monotonic() > heard + _HANGING_SECONDS:
                process.kill()
                total.add(_lost(number, f"nothing for {_HANGING_SECONDS} s"))
                del workers[connection]
        tell(total)
    return total


def _lost(number: int, what: str) -> Outcome:
    return Outcome(findings=[Finding(number, f"{what}, at input {number} or soon after", "")])
