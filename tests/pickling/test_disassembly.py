"""The walk over opcodes equals that of ``pickletools``, and breaks with one kind of error."""

from __future__ import annotations

import pickle
import pickletools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.pickling.graphs import TREES
from torchzip.errors import PickleError
from torchzip.pickling.disassembly import Annotator, Step, argument_text, parse_step
from torchzip.pickling.opcodes import OPCODES, TruncatedPickleError

#: Random opcodes and arguments get further than random bytes.
OPCODE_BYTES = st.lists(
    st.sampled_from([bytes([row.code]) for row in OPCODES]) | st.binary(max_size=3)
    | st.sampled_from([b"a\n", b"b\r\n", b"1\n", b"\xff\n"])
).map(b"".join)  # fmt: skip


def walk(data: bytes) -> list[Step]:
    steps = [parse_step(data, 0)]
    while steps[-1].opcode.name != "STOP":
        steps.append(parse_step(data, steps[-1].end))
    return steps


def notes_of(data: bytes) -> dict[str, list[str]]:
    annotator = Annotator()
    notes: dict[str, list[str]] = {}
    for step in walk(data):
        notes.setdefault(step.opcode.name, []).append(annotator.note(step))
    return notes


@given(TREES, st.integers(0, 5))
def test_equals_pickletools(value: Any, protocol: int) -> None:
    data = pickle.dumps(value, protocol)
    expected = [(position, opcode.name) for opcode, _, position in pickletools.genops(data)]
    steps = walk(data)
    assert [(step.offset, step.opcode.name) for step in steps] == expected
    assert steps[-1].end == len(data)
    annotator = Annotator()
    for step in steps:
        assert argument_text(step).isprintable()
        assert annotator.note(step).isprintable()


@given(st.binary() | OPCODE_BYTES)
def test_any_bytes(data: bytes) -> None:
    """A PickleError or steps that follow one another; every step can be shown and noted."""
    position = 0
    annotator = Annotator()
    while position < len(data):
        try:
            step = parse_step(data, position)
        except PickleError:
            return
        assert step.offset == position < step.end <= len(data)
        assert argument_text(step).isprintable()
        assert len(argument_text(step)) < 2000
        assert annotator.note(step).isprintable()
        position = step.end


@given(TREES, st.integers(0, 5), st.data())
def test_truncated(value: Any, protocol: int, draw: st.DataObject) -> None:
    """What is missing is said to be missing, and never more than is."""
    data = pickle.dumps(value, protocol)
    cut = draw.draw(st.integers(0, len(data) - 1))
    with pytest.raises(TruncatedPickleError) as caught:
        walk(data[:cut])
    assert 1 <= caught.value.needed <= len(data) - cut


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"\xff", "byte 0xff is not an opcode"),
        (b"\x8b\xff\xff\xff\xff", "LONG4 of -1 bytes"),
        (b"X\xff\xff\xff\xffabc", "BINUNICODE of 4,294,967,295 bytes, and 3 are left"),
        (b"cos\nsystem", "the pickle ends within the argument of GLOBAL"),
        (b"J\1\2", "the pickle ends within the argument of BININT"),
        (b"N", "the pickle ends after 1 bytes without STOP"),
    ],
)
def test_faults(data: bytes, message: str) -> None:
    with pytest.raises(PickleError, match=message):
        walk(data)


def test_notes() -> None:
    storage = b"(X\7\0\0\0storagectorch\nFloatStorage\nq\5tQ"
    notes = notes_of(b"\x80\2" + storage + b"0h\5h\7cos\nsystem\nX\1\0\0\0a\x85R.")
    assert notes["GLOBAL"] == ["name torch.FloatStorage", "name os.system"]
    assert notes["BINPUT"] == ["memo 5 = torch.FloatStorage"]
    assert notes["BINGET"] == ["torch.FloatStorage", "memo 7 was never set"]
    assert notes["BINPERSID"] == ["persistent id ('storage', torch.FloatStorage)"]
    assert notes["REDUCE"] == ["call of os.system(...)"]


def test_names_from_the_stack() -> None:
    """STACK_GLOBAL, from texts and from what is none."""
    assert notes_of(b"\x8c\2os\x8c\6system\x93.")["STACK_GLOBAL"] == ["name os.system"]
    assert notes_of(b"N\x8c\6system\x93.")["STACK_GLOBAL"] == ["a name that is not a string"]


def test_long_values_are_shortened() -> None:
    step, _ = walk(b"X\x00\x00\x10\x00" + b"a" * (1 << 20) + b".")
    assert argument_text(step).endswith("... (1,048,576 bytes)")
    assert len(argument_text(step)) < 130
