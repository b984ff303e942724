"""Crashes of an edit in place: the file is readable at every moment, with its old or new tree.

Every call fails once, or is the last of its process. A power cut is played on the calls of an edit:
of what was written since the last sync, any sectors may be missing, and the file may have its size
without them.
"""

from __future__ import annotations

import errno
import io
import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

import torchzip as tz
from tests.comparing import assert_same_tree
from tests.faults import (
    CAN_BE_SHORT,
    Call,
    descriptors,
    end_afterwards,
    end_half_way,
    end_process,
    ends_in_child,
    failing_with,
    forks,
    half,
    in_child,
    under,
)
from tests.sampling import some
from tests.systems import needs
from torchzip.container import zip_edit
from torchzip.files import in_place, platform_calls
from torchzip.tools import edit

SECTOR = 512
RULES: dict[str, Any] = {
    "rename": [("^layer", "block")],
    "drop": "layer.1",
    "set_values": {"step": 2},
}


def _tree(count: int, *, is_new: bool) -> dict[str, Any]:
    name = "block" if is_new else "layer"
    made: dict[str, Any] = {
        f"{name}.{index}": np.full(3, index, np.int64)
        for index in range(count)
        if not (is_new and index == 1)
    }
    return made | {"step": 2 if is_new else 1}


class Place:
    """A file before an edit and after it: one of few tensors, or one that takes several steps."""

    def __init__(self, path: Path, count: int) -> None:
        self.path = path
        self._count = count
        tz.save(_tree(count, is_new=False), path)
        self.old = path.read_bytes()
        self.edit()
        self.new = path.read_bytes()
        self.reset()

    def reset(self) -> None:
        self.path.write_bytes(self.old)

    def edit(self) -> None:
        assert edit(self.path, **RULES).how == "appended"

    def is_new(self, data: bytes) -> bool:
        """Return whether bytes are read as the new tree; raise if they are neither."""
        loaded = tz.load(io.BytesIO(data))
        is_new = "layer.0" not in loaded
        assert_same_tree(loaded, _tree(self._count, is_new=is_new))
        return is_new

    def check_in_torch(self, torch: Any, data: bytes) -> None:
        """Raise unless torch reads what torchzip reads."""
        self.path.write_bytes(data)
        expected = _tree(self._count, is_new=self.is_new(data))
        for options in ({}, {"mmap": True}):
            assert_same_tree(torch.load(self.path, **options), expected)


@pytest.fixture(params=[5, 500], ids=["one step", "several steps"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    made = Place(tmp_path / "m.pt", request.param)
    steps = zip_edit._steps(len(made.old), len(made.new))
    assert (len(steps) > 1) == (request.param > 5)
    return made


def _calls(place: Place) -> list[Call]:
    place.reset()
    with under() as system:
        place.edit()
    assert place.path.read_bytes() == place.new
    place.reset()
    return system.calls


def _last(calls: list[Call], name: str) -> Call:
    return max(call for call in calls if call[0] == name)


# -- faults ----------------------------------------------------------------------------------------


@pytest.mark.few
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EINTR], ids=errno.errorcode.get)
def test_each_call_fails_once(place: Place, code: int) -> None:
    """The file is as it was, byte for byte; only after the last write it is the new one."""
    calls = _calls(place)
    raised = set()
    for call in calls:
        place.reset()
        before = descriptors()
        with under(call.__eq__, failing_with(code)):
            try:
                place.edit()
            except OSError as error:
                assert error.errno == code  # noqa: PT017
                raised.add(call)
        is_late = call in (_last(calls, "fsync"), *(each for each in calls if each[0] == "close"))
        assert place.path.read_bytes() == (place.new if is_late else place.old)
        assert descriptors() == before
    assert raised >= {call for call in calls if call[0] in ("pwrite", "fsync", "reserve", "pread")}


@pytest.mark.few
def test_the_disk_goes_away(place: Place) -> None:
    """From a call on all fail, those of the clearing up too: the file is readable still."""
    seen = set()
    calls = _calls(place)
    for call in [*some(calls), calls[-1]]:
        place.reset()
        is_gone = False

        def fails(this: Call, first: Call = call) -> bool:
            nonlocal is_gone
            is_gone = is_gone or this == first
            return is_gone

        with under(fails, failing_with(errno.EIO)), pytest.raises(OSError, match="error"):
            place.edit()
        seen.add(place.is_new(place.path.read_bytes()))
    assert seen == {False, True}


@pytest.mark.few
def test_interrupt_at_each_call(place: Place) -> None:
    """Ctrl-C before a call or right after it: the old bytes or the new ones, and no lock stays."""

    def before(name: str, real: Callable[..., Any], *args: Any, **more: Any) -> Any:
        if name == "close":
            real(*args)
        raise KeyboardInterrupt

    def after(name: str, real: Callable[..., Any], *args: Any, **more: Any) -> Any:
        real(*args, **more)
        raise KeyboardInterrupt

    for call in _calls(place):
        for effect in (before, after):
            place.reset()
            # What is opened and not known yet stays open, as with any program.
            if call[0] == "open" and effect is after:
                continue
            with under(call.__eq__, effect), pytest.raises(KeyboardInterrupt):
                place.edit()
            assert place.path.read_bytes() in (place.old, place.new)
            with in_place.InPlaceFile(place.path):
                pass


def test_each_write_is_short_once(place: Place) -> None:
    """It is gone on with, from where it ended."""
    for call in _calls(place):
        if call[0] in CAN_BE_SHORT:
            place.reset()
            with under(call.__eq__, half):
                place.edit()
            assert place.path.read_bytes() == place.new


# -- the end of the process ------------------------------------------------------------------------


@pytest.mark.long
@forks
def test_the_process_ends_at_each_call(place: Place) -> None:
    """What is left is read, in torch too, and the next edit comes to the same end."""
    torch = pytest.importorskip("torch")
    calls = _calls(place)
    switch = _last(calls, "pwrite")
    # Of the reads, which leave nothing, some.
    chosen = [call for call in calls if call[0] != "pread" or call[1] % 8 == 0]
    ends = [(call, end_process) for call in chosen] + [(call, end_afterwards) for call in chosen]
    # A sector is written as a whole: the last write is not cut in two.
    ends += [(call, end_half_way) for call in calls if call[0] == "pwrite" and call != switch]
    seen = set()
    for call, effect in ends:
        place.reset()
        assert ends_in_child(call, effect, place.edit)
        left = place.path.read_bytes()
        is_new = place.is_new(left)
        seen.add((is_new, left in (place.old, place.new)))
        if call[0] == "pwrite":
            place.check_in_torch(torch, left)
        if not is_new:
            place.edit()
            assert place.path.read_bytes() == place.new
    assert seen == {(False, True), (False, False), (True, True)}


def _ends_while_it_clears_up(place: Place, failed: Call, at: int, is_done: bool) -> int:
    """Edit in a process that fails at a call and ends ``at`` calls later; return its status."""
    seen = 0  # calls from the one that fails on

    def fails(this: Call) -> bool:
        nonlocal seen
        seen += this == failed or seen > 0
        return this == failed or seen == at + 1

    def effect(name: str, real: Callable[..., Any], *args: Any, **more: Any) -> None:
        if seen == at + 1:
            os._exit(77)
        if is_done:
            real(*args, **more)
        raise OSError(errno.EIO, "of the test")

    def task() -> None:
        with under(fails, effect), pytest.raises(OSError, match="of the test"):
            place.edit()

    place.reset()
    return in_child(task)


@pytest.mark.long
@forks
@pytest.mark.parametrize("is_done", [False, True], ids=["not done", "done"])
def test_the_process_ends_while_it_clears_up(place: Place, is_done: bool) -> None:
    """A write fails, with or without effect, and then the process ends at each call that follows.

    What was done in spite of the error is undone as well.
    """
    writes = [call for call in _calls(place) if call[0] == "pwrite"]
    for failed in (writes[0], writes[-2], writes[-1]):
        for at in range(1, 20):
            status = _ends_while_it_clears_up(place, failed, at, is_done)
            # The first thing that is undone is the last write.
            is_new = is_done and failed == writes[-1] and at == 1
            assert place.is_new(place.path.read_bytes()) == is_new
            if status == 0:
                break
            assert status == 77
        assert at > 3
        assert place.path.read_bytes() == place.old


# -- power cuts ------------------------------------------------------------------------------------


class Write(NamedTuple):
    """Bytes that were given to the system; a size and no bytes where the file was cut."""

    offset: int
    data: bytes


class Log:
    """Stands for ``os`` where a file is edited, and notes what is written between two syncs.

    One write, told by its number, raises an error although it is done.
    """

    def __init__(self, failing: int = -1) -> None:
        self.epochs: list[list[Write]] = [[]]
        self.writes = 0
        self._failing = failing

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    def pwrite(self, descriptor: int, data: Any, offset: int) -> int:
        self.epochs[-1].append(Write(offset, bytes(data)))
        done = os.pwrite(descriptor, data, offset)
        self.writes += 1
        if self.writes == self._failing:
            raise OSError(errno.EIO, "of the test")
        return done

    def ftruncate(self, descriptor: int, size: int) -> None:
        self.epochs[-1].append(Write(size, b""))
        os.ftruncate(descriptor, size)

    def fsync(self, descriptor: int) -> None:
        self.epochs.append([])


def _sectors(writes: list[Write]) -> list[Write]:
    """Cut writes where sectors end."""
    pieces = []
    for offset, data in writes:
        if not data:
            pieces.append(Write(offset, data))
        at = 0
        while at < len(data):
            count = min(len(data) - at, SECTOR - (offset + at) % SECTOR)
            pieces.append(Write(offset + at, data[at : at + count]))
            at += count
    return pieces


def _applied(data: bytes, writes: list[Write]) -> bytes:
    made = bytearray(data)
    for offset, piece in writes:
        if piece:
            made.extend(bytes(max(0, offset - len(made))))
            made[offset : offset + len(piece)] = piece
        else:
            del made[offset:]
    return bytes(made)


def _states(old: bytes, epochs: list[list[Write]], rng: random.Random) -> Iterator[bytes]:
    """Yield what may be on the disk: all that was synced, and of the rest any sectors."""
    durable = old
    for epoch in epochs:
        pieces = _sectors(epoch)
        size = len(_applied(durable, pieces))
        for number in range(min(1 << len(pieces), 60)):
            if len(pieces) <= 5:
                kept = [piece for at, piece in enumerate(pieces) if number >> at & 1]
            elif number < 20:  # a beginning
                kept = pieces[: rng.randrange(len(pieces) + 1)]
            elif number < 40:  # all but a few
                gone = set(rng.sample(range(len(pieces)), rng.randrange(1, 4)))
                kept = [piece for at, piece in enumerate(pieces) if at not in gone]
            else:
                kept = [piece for piece in pieces if rng.random() < number / 60]
            made = _applied(durable, kept)
            yield made
            if len(made) < size:
                yield made + bytes(size - len(made))
        durable = _applied(durable, pieces)
        yield durable


def _put_under(patch: pytest.MonkeyPatch, log: Log) -> None:
    for module in (in_place, platform_calls):
        patch.setattr(module, "os", log)


def _logged(monkeypatch: pytest.MonkeyPatch, place: Place) -> list[list[Write]]:
    place.reset()
    log = Log()
    with monkeypatch.context() as patch:
        _put_under(patch, log)
        place.edit()
    return log.epochs


def _check_states(place: Place, old: bytes, epochs: list[list[Write]]) -> set[bool]:
    torch = pytest.importorskip("torch")
    seen = set()
    for number, data in enumerate(_states(old, epochs, random.Random(0))):
        seen.add(place.is_new(data))
        if number % 20 == 0:
            place.check_in_torch(torch, data)
    return seen


@pytest.mark.few
@needs("pwrite")
def test_power_cuts(monkeypatch: pytest.MonkeyPatch, place: Place) -> None:
    """All that may be on the disk is read, by torch as well, as the old tree or the new one."""
    epochs = _logged(monkeypatch, place)
    steps = zip_edit._steps(len(place.old), len(place.new))
    assert len(epochs) == len(steps) + 3
    assert epochs[-1] == []
    assert len(_sectors(epochs[-2])) == 1  # the switch
    assert _check_states(place, place.old, epochs) == {False, True}


@pytest.mark.long
def test_power_cuts_while_it_clears_up(monkeypatch: pytest.MonkeyPatch, place: Place) -> None:
    """A write fails, though it is done, and the power is cut at any moment from then on."""
    count = sum(map(len, _logged(monkeypatch, place)))
    for failing in (1, count - 1, count):
        place.reset()
        log = Log(failing)
        with monkeypatch.context() as patch:
            _put_under(patch, log)
            with pytest.raises(OSError, match="of the test"):
                place.edit()
        assert place.path.read_bytes() == place.old
        seen = _check_states(place, place.old, log.epochs)
        assert seen == ({False, True} if failing == count else {False})


@pytest.mark.long
def test_power_cuts_after_a_kill(monkeypatch: pytest.MonkeyPatch, place: Place) -> None:
    """The same for an edit of what another edit has left that was killed."""
    epochs = _logged(monkeypatch, place)
    left = place.old
    for epoch in epochs[:-2]:
        left = _applied(left, epoch)
    assert len(left) == len(place.new)
    assert not place.is_new(left)
    place.old = left
    again = _logged(monkeypatch, place)
    assert place.path.read_bytes() == place.new
    assert _check_states(place, left, again) == {False, True}


@pytest.mark.long
def test_power_cuts_of_a_second_edit(monkeypatch: pytest.MonkeyPatch, place: Place) -> None:
    """The same for an edit of an edited file."""
    whole = place.old
    edit(place.path, set_values={"step": 5})
    edit(place.path, set_values={"step": 1})
    place.old = place.path.read_bytes()
    assert place.old.startswith(whole[:-22])
    place.edit()
    place.new = place.path.read_bytes()
    assert _check_states(place, place.old, _logged(monkeypatch, place)) == {False, True}
