"""How much of the tests a run tries: one profile for all of them.

Each run takes a sample of everything; ``python -m pytest --full`` takes all (``-m ""`` means the
same), and ``--hypothesis-seed=N`` other examples. A test says what costs much, and never how many
there are:

* `thorough` and `costly` properties have more and fewer examples than others;
* a loop over `some` places takes a few of them;
* of a parametrized test a run takes some rows, of one marked `few` a single one;
* what is marked `long` is for the full run.
"""

from __future__ import annotations

import sys
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import pytest
from hypothesis import HealthCheck, settings

_Place = TypeVar("_Place")
_Test = TypeVar("_Test", bound=Callable[..., None])


@dataclass(frozen=True)
class Profile:
    """The sizes of all samples."""

    #: Examples of a property; of one whose examples are cheap and many, and of one with slow ones.
    examples: int
    thorough: int
    costly: int
    #: Rows of a parametrized test, places of a loop.
    rows: int
    places: int
    #: Inputs of the fuzzer.
    inputs: int

    def load(self, *, is_seeded: bool) -> None:
        """Make it the profile of all tests that are imported from now on.

        A run tries the same examples each time, so that it fails for what was changed. With a seed
        (``--hypothesis-seed``) it tries others.
        """
        global profile
        profile = self
        settings.register_profile(
            "torchzip",
            max_examples=self.examples,
            deadline=None,  # a busy machine is no failure: no test has a clock
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
            derandomize=not is_seeded,
        )
        settings.load_profile("torchzip")


QUICK = Profile(examples=15, thorough=40, costly=5, rows=6, places=6, inputs=50)
FULL = Profile(
    examples=300, thorough=1000, costly=100, rows=sys.maxsize, places=sys.maxsize, inputs=1200
)
profile = QUICK


def thorough(test: _Test) -> _Test:
    """Try more examples: each of this property is cheap, and few of them are interesting."""
    return settings(max_examples=profile.thorough)(test)


def costly(test: _Test) -> _Test:
    """Try fewer examples: each of this property takes long."""
    return settings(max_examples=profile.costly)(test)


def some(places: Sequence[_Place]) -> Sequence[_Place]:
    """Return the places of a loop that a run tries: all, or as many as the profile says."""
    return spread(places, profile.places)


def spread(values: Sequence[_Place], count: int, first: int = 0) -> Sequence[_Place]:
    """Return ``count`` of the values, or all if they are fewer, evenly from the ``first`` of them.

    >>> spread(range(10), 3)
    [0, 3, 6]
    """
    if len(values) <= count:
        return values
    return [
        values[(number * len(values) // count + first) % len(values)] for number in range(count)
    ]


def sample_rows(items: Sequence[pytest.Item]) -> None:
    """Mark what a run leaves out of the rows of each test as `long`."""
    if profile is FULL:
        return
    tests: dict[tuple[Any, ...], list[pytest.Item]] = {}
    for item in items:
        name = getattr(item, "originalname", None) or item.name
        tests.setdefault((item.path, item.parent, name), []).append(item)
    for (_, _, name), rows in tests.items():
        count = 1 if rows[0].get_closest_marker("few") else profile.rows
        # Tests with the same rows take different ones.
        taken = {id(row) for row in spread(rows, count, zlib.crc32(name.encode()))}
        for row in rows:
            if id(row) not in taken:
                row.add_marker(pytest.mark.long)
