"""A short run of `fuzz`, and that it would see what it looks for."""

from __future__ import annotations

import io
import os
import pickle
import random
import signal
import subprocess
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import torchzip as tz
from fuzz import campaign, guard, pickles, seeds
from fuzz.doors import Send, room
from fuzz.guard import ExecutedError, OutOfTimeError, guarded
from fuzz.guided import Choices
from fuzz.inputs import changed_bytes, make
from fuzz.seeds import Case
from tests import builders as b
from tests import sampling
from tests.child_process import python


@pytest.fixture(scope="module")
def send() -> Iterator[Send]:
    """Return what sends a case through every door, guarded."""
    with room() as send:
        yield send


# -- the one sentence ------------------------------------------------------------------------------


def test_seeds_are_read(send: Send) -> None:
    """What the inputs are made from is whole: it has to get as far as a change lets it."""
    for case in sampling.some(list(seeds.whole())):
        made = send(case)
        assert not issubclass(made, Exception), (case.opened, made)


def test_a_seeded_run() -> None:
    """The same inputs in each run: a value, a `TorchZipError` or an `OSError`, within limits."""
    inputs = sampling.profile.inputs  # `python -m fuzz` sends as many more as there is time for
    total = campaign.run(0, most=inputs, processes=2)
    assert [finding.what + "\n" + finding.story for finding in total.findings] == []
    assert total.inputs == inputs
    # Most inputs break, and still a good part of them is read to the end.
    assert total.made["a value"] > inputs / 10


@given(choices=st.randoms(use_true_random=False))
def test_inputs_that_hypothesis_chooses(send: Send, choices: random.Random) -> None:
    """The same with choices that hypothesis makes, which it shrinks when they find something."""
    send(make(choices))


@given(
    st.binary(max_size=300), st.sampled_from([b"", b"PK\3\4", b"\x80\x02", b"\x10\0\0\0\0\0\0\0{"])
)
def test_bytes_without_sense(send: Send, data: bytes, magic: bytes) -> None:
    """Bytes that nobody made from a checkpoint."""
    send(Case.of(magic + data), ["disassemble"])


# -- inputs ----------------------------------------------------------------------------------------


@pytest.mark.long
def test_inputs_are_told_by_their_number() -> None:
    """An input is the same wherever it is made, and another number is another input."""
    program = (
        "from fuzz.campaign import input_of; print([hash(repr(input_of(n))) for n in range(99)])"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "0"}
    assert len({python("-c", program, env=environment) for _ in range(2)}) == 1
    assert len({repr(campaign.input_of(number)) for number in range(99)}) > 90


@given(st.binary(max_size=40))
def test_choices_are_bytes(data: bytes) -> None:
    """For a fuzzer that is guided by coverage, the same bytes are the same input."""
    assert repr(make(Choices(data))) == repr(make(Choices(data)))
    number = int.from_bytes(data[:3].ljust(3, b"\0"), "little")
    assert Choices(data).getrandbits(20) == number % (1 << 20)


def test_a_tree_is_its_pickle() -> None:
    """What is not changed is written as it was read, to the byte."""
    for data in seeds.golden():
        if data.startswith(b"PK"):
            for name in (archive := zipfile.ZipFile(_file(data))).namelist():
                stream = archive.read(name)
                if name.endswith(".pkl") and stream.startswith(b"\x80\x02"):
                    assert b"\x80\x02" + pickles.parse(stream).write() + b"." == stream


def test_a_part_stands_alone() -> None:
    """Without numbers, a value is the same in any place."""
    value: Any = {"a": [1, 2], "b": (b"c", "d")}
    value["again"] = value["a"]
    for protocol in range(6):
        tree = pickles.parse(pickle.dumps(value, protocol), by_number=False)
        assert pickle.loads(b"\x80\x05" + tree.write() + b".") == value
        assert not any(node.opcode[0] in b"ghjpqr\x94" for node in tree.nodes())


@given(st.integers(0, 1 << 40))
def test_changes(seed: int) -> None:
    """Changed bytes are bytes, and mostly others."""
    data = seeds.golden()[seed % len(seeds.golden())]
    changed = [changed_bytes(Random(seed + n), data) for n in range(5)]
    assert any(each != data for each in changed)


def _file(data: bytes) -> io.BytesIO:
    return io.BytesIO(data)


# -- the guard -------------------------------------------------------------------------------------


class _Call:
    """Pickled, it is the call of a function; Python's own loader makes that call."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self._call = function, arguments

    def __reduce__(self) -> tuple[Any, ...]:
        return self._call


@pytest.mark.parametrize(
    "call",
    [
        _Call(os.system, "true"), _Call(eval, "1"), _Call(exec, "pass"), _Call(__import__, "this"),
        _Call(compile, "1", "", "eval"), _Call(os.mkdir, "/nonexistent/x"), _Call(os.getpid),
        _Call(os.remove, "/nonexistent"), _Call(subprocess.Popen, ["true"]),
        _Call(open, "/nonexistent/x", "w"),
    ],
    ids=lambda call: call._call[0].__name__,
)  # fmt: skip
def test_the_canary_sings(call: _Call) -> None:
    """What Python's own loader would do for such a file is seen, and does not happen."""
    data = pickle.dumps(call)
    with pytest.raises(ExecutedError), guarded():
        pickle.loads(data)
    assert tz.load(_file(b.checkpoint(data))) is not None


def test_the_canary_lets_a_folder_be_written(tmp_path: Path) -> None:
    """A conversion writes where it should, and nowhere else."""
    with guarded(tmp_path):
        (tmp_path / "x").write_bytes(b"")
    with pytest.raises(ExecutedError), guarded(tmp_path / "y"):
        (tmp_path / "x").write_bytes(b"")
    (tmp_path / "x").unlink()


def test_the_limits_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    """Too much memory and too much time are errors within; afterwards all is as before."""
    before = signal.getsignal(signal.SIGPROF)
    with pytest.raises(MemoryError), guarded():
        bytearray(1 << 40)
    monkeypatch.setattr(guard, "_CPU_SECONDS", 0.1)
    with pytest.raises(OutOfTimeError), guarded():
        _spin()
    assert signal.getsignal(signal.SIGPROF) == before
    assert signal.getitimer(signal.ITIMER_PROF) == (0, 0)


def _spin() -> None:
    while True:
        pass


def test_a_finding_is_told() -> None:
    """An exception of a foreign class is a finding, with its place."""

    def send(case: Case, doors: Any = ()) -> type:
        raise KeyError("x")

    seen = campaign.try_one(send, 7)
    assert (seen.inputs, seen.findings[0].number) == (1, 7)
    assert seen.findings[0].what.startswith("KeyError in send, test_fuzz.py:")
    assert "KeyError: 'x'" in seen.findings[0].story


def test_a_process_that_dies_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """A crash of the interpreter is a finding as well."""
    monkeypatch.setattr(campaign, "_work", _die)
    total = campaign.run(5, most=1)
    assert [finding.what for finding in total.findings] == [
        "a process died with code 3, at input 5 or soon after"
    ]


def _die(*arguments: Any) -> None:
    os._exit(3)


@pytest.mark.long
def test_the_command(tmp_path: Path) -> None:
    """``python -m fuzz`` says how many inputs there were, and one can be had again."""
    for options in (["--seconds", "1"], ["--input", "12"]):
        assert " 0 findings; " in python("-m", "fuzz", *options)
